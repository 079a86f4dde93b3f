"""Sampling: the tokens of plain sampling, whatever the slots, the order and the company; and no wasted work."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from iris.errors import UserError
from iris.model import attention
from iris.sampling.draw import draw, uniforms
from iris.sampling.engine import Request, Rollout, Sampling
from iris.sampling.slots import SlotEngine

EOS = 1
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
CONFIGS: list[PreTrainedConfig] = [
    LlamaConfig(**SIZES),
    Qwen2Config(**SIZES),
    Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=64, max_window_layers=1),
    MistralConfig(**SIZES, sliding_window=64),
    MistralConfig(**SIZES, sliding_window=8),
    Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8),
]
GREEDY = Sampling(temperature=0, max_new_tokens=16)


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build(CONFIGS[0])


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, SIZES["vocab_size"], (n,), generator=generator).tolist() for n in lengths]


def requests(*lengths: int, samples: int = 1) -> list[Request]:
    return [Request(p, seed=100 + i, samples=samples, hint=i % 3) for i, p in enumerate(prompts(*lengths))]


@contextmanager
def forward_passes(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The token ids of every forward pass; prefills have more than one column unless their prompts have one token."""
    fed: list[Tensor] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        fed.append(kwargs["input_ids"])

    handle = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield fed
    finally:
        handle.remove()


def excess(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's χ² of counts against probabilities, in standard deviations above its mean."""
    expected = counts.sum() * probabilities
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.numel() - 1
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


@torch.inference_mode()
def next_probabilities(model: PreTrainedModel, tokens: list[int], temperature: float = 1.0) -> Tensor:
    return (model(input_ids=torch.tensor([tokens])).logits[0, -1].double() / temperature).softmax(-1)


# --- the same tokens as plain decoding


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.model_type}-{getattr(c, 'sliding_window', None)}")
def test_greedy_is_token_for_token_generate(config: PreTrainedConfig) -> None:
    model = build(config)
    texts = prompts(1, 9, 30, 17)
    ours = SlotEngine(model, [EOS], 3).generate([Request(p, 0) for p in texts], GREEDY)
    for prompt, (rollout,) in zip(texts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
        assert rollout.tokens == theirs[0, len(prompt) :].tolist()
        assert rollout.finished == (rollout.tokens[-1] == EOS)


def test_sampling_follows_the_uniforms_of_seed_and_sample(model: PreTrainedModel) -> None:
    request = requests(6, 11, samples=2)[1]
    for sample, rollout in enumerate(SlotEngine(model, [EOS]).generate([request], Sampling(max_new_tokens=8))[0]):
        tokens = list(request.prompt)
        for uniform in uniforms(request.seed, sample, len(rollout.tokens)):
            cumulative = next_probabilities(model, tokens).cumsum(-1)
            tokens.append(int(torch.searchsorted(cumulative, torch.tensor(uniform), right=True)))
        assert rollout.tokens == tokens[len(request.prompt) :]


def test_a_response_does_not_depend_on_its_company(model: PreTrainedModel) -> None:
    sampling = Sampling(max_new_tokens=8)
    everyone = requests(4, 1, 25, 9, 2, samples=2)
    expected = SlotEngine(model, [EOS], 64).generate(everyone, sampling)
    for slots in (1, 4):
        assert SlotEngine(model, [EOS], slots).generate(everyone, sampling) == expected
    assert SlotEngine(model, [EOS], 3).generate(everyone[::-1], sampling) == expected[::-1]
    assert SlotEngine(model, [EOS], 3).generate(everyone[2:3], sampling) == expected[2:3]
    other = [replace(request, samples=1, hint=-request.hint) for request in everyone]
    assert SlotEngine(model, [EOS], 3).generate(other, sampling) == [samples[:1] for samples in expected]


def test_a_lower_limit_gives_the_beginning_of_the_same_response(model: PreTrainedModel) -> None:
    engine = SlotEngine(model, [], 4)
    long = engine.generate(requests(4, 8, 3), Sampling(max_new_tokens=9))
    short = engine.generate(requests(4, 8, 3), Sampling(max_new_tokens=4))
    assert [r.tokens for (r,) in short] == [r.tokens[:4] for (r,) in long]


def test_prompts_beyond_one_prefill(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = requests(20, 5, 12, 8, 1, 30)
    expected = SlotEngine(model, [EOS]).generate(everyone, Sampling(max_new_tokens=6))
    monkeypatch.setattr("iris.sampling.cache.PREFILL_TOKENS", 10)
    assert SlotEngine(model, [EOS]).generate(everyone, Sampling(max_new_tokens=6)) == expected


@pytest.mark.gpu
def test_the_same_tokens_on_a_gpu(model: PreTrainedModel) -> None:
    everyone = requests(4, 1, 25, 9, samples=3)
    expected = SlotEngine(model, [EOS], 5).generate(everyone, Sampling(top_p=0.9, max_new_tokens=12))
    there = SlotEngine(build(CONFIGS[0]).cuda(), [EOS], 5)
    assert there.generate(everyone, Sampling(top_p=0.9, max_new_tokens=12)) == expected


# --- the same distribution as plain sampling


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_frequencies_of_tokens_and_pairs(temperature: float) -> None:
    small = build(LlamaConfig(**SIZES | {"vocab_size": 9}))
    batch = [Request([4, 5, 3], seed, samples=4) for seed in range(1500)]
    sampled = SlotEngine(small, [], 512).generate(batch, Sampling(temperature, max_new_tokens=2))
    pairs = Counter(tuple(r.tokens) for samples in sampled for r in samples)
    first = next_probabilities(small, [4, 5, 3], temperature)
    second = torch.stack([next_probabilities(small, [4, 5, 3, token], temperature) for token in range(9)])
    joint = torch.tensor([[pairs[a, b] for b in range(9)] for a in range(9)])
    assert excess(joint.sum(1), first) < 4
    assert excess(joint.flatten(), (first[:, None] * second).flatten()) < 4
    # The test would see a slightly wrong temperature.
    wrong = next_probabilities(small, [4, 5, 3], 1.15 * temperature)
    assert excess(joint.sum(1), wrong) > 4


def grid(count: int) -> Tensor:
    """Evenly spaced uniforms: inversion must return every token as often as its probability says, to one."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("vocabulary", [1, 7, 512, 513, 3000])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_inversion_is_exact(vocabulary: int, temperature: float) -> None:
    logits = 3 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(2))
    tokens = draw(logits.expand(2000, -1), grid(2000), Sampling(temperature))
    probabilities = (logits.double() / temperature).softmax(-1)
    counts = torch.bincount(tokens, minlength=vocabulary)
    assert (counts - 2000 * probabilities).abs().max() <= 1.01
    assert torch.equal(tokens, torch.sort(tokens).values)


def test_inversion_is_exact_in_a_large_vocabulary() -> None:
    logits = torch.randn(40, 151_936, generator=torch.Generator().manual_seed(3))
    uniform = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    token = draw(logits, uniform, Sampling())[:, None]
    probabilities = logits.double().softmax(-1)
    after = probabilities.cumsum(-1).gather(-1, token)[:, 0]
    before = after - probabilities.gather(-1, token)[:, 0]
    # A token holds 1e-5 of the mass on average.
    assert ((before - 1e-8 <= uniform) & (uniform <= after + 1e-8)).all()


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.8, 0.999])
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float) -> None:
    logits = 2 * torch.randn(600, generator=torch.Generator().manual_seed(5))
    probabilities, order = logits.double().softmax(-1).sort(descending=True)
    size = int((probabilities.cumsum(-1) < top_p).sum()) + 1
    kept = torch.zeros(600, dtype=torch.float64).index_copy(0, order[:size], probabilities[:size])
    counts = torch.bincount(draw(logits.expand(5000, -1), grid(5000), Sampling(top_p=top_p)), minlength=600)
    assert (counts - 5000 * kept / kept.sum()).abs().max() <= 1.01
    assert counts[kept == 0].sum() == 0


def test_tokens_without_mass_are_never_drawn() -> None:
    logits = torch.full((600,), -torch.inf)
    logits[[300, 400]] = 0.0
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(2, -1), ends, Sampling()).tolist() == [300, 400]
    assert draw(logits.expand(2, -1), ends, Sampling(top_p=0.2)).unique().numel() == 1


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.5), Sampling(temperature=0)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_marked(sampling: Sampling, bad: float) -> None:
    logits = torch.tensor([[0.0, 1.0, bad], [9.0, 0.0, 0.0]])
    assert draw(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), sampling).tolist() == [-1, 0]


# --- ends and limits


def test_end_of_sequence_and_limit(model: PreTrainedModel) -> None:
    ends, sampling = {EOS, 7}, Sampling(max_new_tokens=20)
    everyone = requests(3, 8, 5, 2, samples=8)
    ours = chain(*SlotEngine(model, list(ends)).generate(everyone, sampling))
    unlimited = chain(*SlotEngine(model, []).generate(everyone, sampling))
    finished = set()
    for rollout, free in zip(ours, unlimited, strict=True):
        stop = next((i + 1 for i, token in enumerate(free.tokens) if token in ends), None)
        assert rollout == Rollout(free.tokens[:stop], stop is not None)
        finished.add(rollout.finished)
    assert finished == {True, False}


def test_an_end_at_the_limit_is_an_end(model: PreTrainedModel) -> None:
    (first,) = SlotEngine(model, []).generate(requests(5), GREEDY)[0]
    engine = SlotEngine(model, [first.tokens[0]])
    assert engine.generate(requests(5), replace(GREEDY, max_new_tokens=1)) == [[Rollout(first.tokens[:1], True)]]


def test_samples_differ(model: PreTrainedModel) -> None:
    (samples,) = SlotEngine(model, []).generate(requests(5, samples=8), Sampling(max_new_tokens=10))
    assert len({tuple(rollout.tokens) for rollout in samples}) == 8


def test_no_requests(model: PreTrainedModel) -> None:
    assert SlotEngine(model, [EOS]).generate([], Sampling()) == []


# --- no wasted work


def test_one_prefill_per_prompt_and_no_idle_rows(model: PreTrainedModel) -> None:
    everyone = requests(4, 11, 25, 9, 13, samples=3)
    ended: list[int] = []
    with forward_passes(model) as fed:
        sampled = SlotEngine(model, [EOS, 5, 6, 7], 4).generate(everyone, Sampling(max_new_tokens=20), ended.append)
    assert sum(ended) == 15
    prefilled = [ids for ids in fed if ids.shape[1] > 1]
    assert sum(ids.numel() for ids in prefilled) == 4 + 11 + 25 + 9 + 13
    # The steps are those of rows that are refilled at once, in the order of the hints, and shrink at the end.
    order = sorted(range(5), key=lambda i: -everyone[i].hint)
    waiting = [len(rollout.tokens) for i in order for rollout in sampled[i]]
    rows, steps = [waiting.pop(0) for _ in range(4)], []
    while rows:
        steps.append(len(rows))
        rows = [left - 1 for left in rows if left > 1]
        while waiting and len(rows) < 4:
            rows.append(waiting.pop(0))
    assert [len(ids) for ids in fed if ids.shape[1] == 1] == steps
    assert len(set(steps)) > 1


def test_longest_expected_response_first(model: PreTrainedModel) -> None:
    batch = [Request([9, 9, 10 + i], 0, hint=hint) for i, hint in enumerate([5, 0, 8, 8, 2])]
    with forward_passes(model) as fed:
        SlotEngine(model, [], 1).generate(batch, Sampling(max_new_tokens=1))
    assert [int(ids) for ids in fed if ids.numel() == 1] == [12, 13, 10, 14, 11]


# --- the model comes back as it was


def test_mode_and_attention_are_restored() -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("attention without masks was called")

    AttentionInterface.register("refuse", refuse)
    model = build(CONFIGS[0])
    expected = SlotEngine(model, [EOS]).generate(requests(4, 7), GREEDY)
    model.train()
    model.get_decoder().layers[0].eval()
    modes = [module.training for module in model.modules()]
    model.set_attn_implementation("refuse")
    assert SlotEngine(model, [EOS]).generate(requests(4, 7), GREEDY) == expected
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "refuse"
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in model.parameters())


def test_bfloat16() -> None:
    model = build(CONFIGS[0]).to(torch.bfloat16)
    everyone = requests(4, 7, 2, samples=2)
    sampled = SlotEngine(model, [EOS], 3).generate(everyone, Sampling(max_new_tokens=5))
    assert sampled == SlotEngine(model, [EOS], 3).generate(everyone, Sampling(max_new_tokens=5))
    assert [len(samples) for samples in sampled] == [2, 2, 2]


# --- errors


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([Request([3], 0), Request([], 0)], "Prompt 1 is empty"),
        ([Request([3, 61], 0)], "tokenizer belongs to another model"),
        ([Request([3, -1], 0)], "tokenizer belongs to another model"),
        ([Request([3] * 81, 0)], "context of 96"),
    ],
)
def test_unusable_prompts(model: PreTrainedModel, batch: list[Request], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SlotEngine(model, [EOS]).generate(batch, GREEDY)


def test_a_model_without_key_value_attention() -> None:
    mamba = build(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(UserError, match=r"'mamba' is not supported.*mixes tokens by other means"):
        SlotEngine(mamba, [EOS])


def test_an_attention_with_more_than_dot_products() -> None:
    states, visible = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 1)
    with pytest.raises(UserError, match="attention uses softcap"):
        attention._slots(
            nn.Identity(), states, states, states, None, visible=visible, places=torch.zeros(1, 1), softcap=30.0
        )


def test_a_broken_policy() -> None:
    broken = build(CONFIGS[0])
    nn.init.constant_(broken.get_output_embeddings().weight, torch.nan)
    with pytest.raises(UserError, match="prompt 0 are not finite"):
        SlotEngine(broken, [EOS]).generate(requests(3), GREEDY)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_new_tokens": 0}])
def test_invalid_sampling(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_no_slots(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="slots is 0"):
        SlotEngine(model, [EOS], 0)

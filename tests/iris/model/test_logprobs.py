"""Packed response log-probabilities and their gradients against the plain forward pass of the same model."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from iris.errors import UserError
from iris.model import attention, head
from iris.model.head import coefficients_of
from iris.model.logprobs import Policy
from iris.model.packing import Row, micro_batches, pack
from iris.training.loop import START_TOLERANCE

VOCABULARY = 61


def tiny(kind: str = "llama", **changes: Any) -> Any:
    """A random causal model with 4 query heads and 2 key heads, far enough from uniform to tell tokens apart."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        **changes,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1).add_(torch.randn_like(parameter), alpha=0.02)
    return model


def make_rows(*responses: int, seed: int = 0) -> list[Row]:
    """One row for each given number of responses, with random tokens and lengths."""
    draw = random.Random(seed)

    def text() -> list[int]:
        return [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(1, 9))]

    return [Row(text(), [text() for _ in range(count)]) for count in responses]


ROWS = make_rows(2, 1, 3, 2)
WEIGHTS = torch.tensor([0.5, -1.0, 2.0, 0.25, -0.75, 1.5, 1.0, -2.0])


def plainly(model: PreTrainedModel, rows: list[Row]) -> Tensor:
    """[R], each response in a forward pass of its own through the model as transformers built it."""

    def one(prompt: Any, response: Any) -> Tensor:
        logps = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        return logps[len(prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None]).sum()

    return torch.stack([one(row.prompt, response) for row in rows for response in row.responses])


def gradients(model: torch.nn.Module, total: Tensor) -> dict[str, Tensor]:
    """By parameter name without the prefix of `Policy`; a parameter the total does not reach has no entry."""
    model.zero_grad()
    total.backward()
    named = ((name.removeprefix("model."), parameter.grad) for name, parameter in model.named_parameters())
    return {name.removeprefix("model."): grad.clone() for name, grad in named if grad is not None}


def logps_of(policy: Policy, rows: list[Row]) -> Tensor:
    return policy(pack(rows))[0]


def weighted(policy: Policy, rows: list[Row], weights: Tensor | None = None) -> Tensor:
    """Σ weight · log π with its gradient; the weights are 1 unless given."""
    of = (lambda logps, _: torch.ones_like(logps)) if weights is None else (lambda _, responses: weights[responses])
    return policy(pack(rows), of)[1].sum()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name],
            value,
            rtol=1e-4,
            atol=2e-5 * max(1.0, float(value.abs().max())),
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.fixture(params=[0, 2**40], ids=["one by one", "together"])
def each_attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SMALL", request.param)


MODELS = {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, equal heads": ("llama", {"num_key_value_heads": 4, "attention_bias": True}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
    "mistral": ("mistral", {"sliding_window": 32}),
    "phi, head with bias": ("phi", {"num_key_value_heads": 4}),
}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of five positions: rows are longer, shorter and equal to a chunk."""
    monkeypatch.setitem(head.CHUNK, "cpu", (100, 5 * VOCABULARY))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("small_chunks", "each_attention")
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_the_plain_model(name: str) -> None:
    kind, changes = MODELS[name]
    model = tiny(kind, **changes)
    expected = plainly(model, ROWS)
    reference = gradients(model, expected @ WEIGHTS)
    policy = Policy(model)
    logps, greedy = policy(pack(ROWS))
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    assert greedy.dtype == torch.bool and greedy.shape == logps.shape
    constants, product = policy(pack(ROWS), lambda logps, responses: WEIGHTS[responses])
    assert torch.equal(constants, logps)
    assert not constants.requires_grad
    torch.testing.assert_close(product.sum(), logps @ WEIGHTS)
    assert_same(gradients(policy, product), reference)


@pytest.mark.usefixtures("small_chunks")
def test_fused_gradient_of_a_loss_of_rows() -> None:
    rows, policy = make_rows(2, 2, 2, 2), Policy(tiny())
    reference = torch.linspace(-30, -10, 8)

    def losses(logps: Tensor, responses: slice) -> Tensor:
        real, synthetic = (logps - reference[responses]).view(-1, 2).unbind(1)
        return F.softplus(-0.1 * (real - synthetic))

    model = tiny()
    expected = gradients(model, losses(plainly(model, rows), slice(0, 8)).mean())
    _, products = policy(pack(rows), coefficients_of(losses))
    assert_same(gradients(policy, products.sum() / len(rows)), expected)


def test_coefficients_are_asked_for_complete_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row([1], [[2] * 3, [3] * 3]), Row([1], [[2] * 2]), Row([1], [[2] * 9]), Row([1], [[2], [3]])]
    monkeypatch.setitem(head.CHUNK, "cpu", (8, 2**20))
    asked: list[slice] = []
    Policy(tiny())(pack(rows), lambda logps, responses: (asked.append(responses), torch.ones_like(logps))[1])
    assert asked == [slice(0, 3), slice(3, 4), slice(4, 6)]


@pytest.mark.parametrize("responses", [1, 2, 3])
def test_a_shared_prompt_changes_nothing(responses: int) -> None:
    rows, policy = make_rows(*[responses] * 3), Policy(tiny("qwen2"))
    apart = [Row(row.prompt, [response]) for row in rows for response in row.responses]
    shared, unshared = logps_of(policy, rows), logps_of(policy, apart)
    torch.testing.assert_close(shared, unshared, rtol=1e-5, atol=1e-5)
    assert_same(
        gradients(policy, weighted(policy, rows, 2 * shared)), gradients(policy, weighted(policy, apart, 2 * shared))
    )


def test_order_and_neighbours_do_not_matter() -> None:
    policy = Policy(tiny())
    together = logps_of(policy, ROWS).split([len(row.responses) for row in ROWS])
    backwards = logps_of(policy, ROWS[::-1]).split([len(row.responses) for row in ROWS[::-1]])
    for number, row in enumerate(ROWS):
        torch.testing.assert_close(logps_of(policy, [row]), together[number], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(backwards[-1 - number], together[number], rtol=1e-5, atol=1e-5)


def test_same_input_same_bits() -> None:
    policy, packed = Policy(tiny()), pack(ROWS)
    runs = [policy(packed, lambda logps, responses: logps / 7) for _ in range(2)]
    first, second = (gradients(policy, product) for _, product in runs)
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_of_micro_batches_add_up() -> None:
    policy = Policy(tiny("qwen2"))
    whole = gradients(policy, weighted(policy, ROWS))
    parts = micro_batches([row.tokens for row in ROWS], max(row.tokens for row in ROWS))
    assert len(parts) > 1
    pieces = [gradients(policy, weighted(policy, [ROWS[i] for i in part])) for part in parts]
    assert_same({name: sum(piece[name] for piece in pieces) for name in whole}, whole)  # type: ignore[misc]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    policy = Policy(tiny("mistral"))
    expected = gradients(policy, weighted(policy, ROWS, WEIGHTS))
    policy.train()
    policy.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    total = weighted(policy, ROWS, WEIGHTS)
    policy(pack(make_rows(1, 1, seed=1)))  # another micro-batch between forward and recomputation
    assert_same(gradients(policy, total), expected)


def with_lora() -> Any:
    adapted = get_peft_model(tiny(), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapted


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora(checkpointing: bool) -> None:
    adapted = with_lora()
    expected = plainly(adapted, ROWS)
    reference = gradients(adapted, expected @ WEIGHTS)
    policy = Policy(adapted).train()
    if checkpointing:
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable()
    _, product = policy(pack(ROWS), lambda logps, responses: WEIGHTS[responses])
    assert_same(gradients(policy, product), reference)
    assert all("lora" in name for name in reference)
    torch.testing.assert_close(logps_of(policy, ROWS), expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_head_gets_no_gradient_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(tie_word_embeddings=False)
    model.lm_head.weight.requires_grad_(False)
    results: list[tuple[Tensor | None, ...]] = []
    original = head._Head.gradients
    monkeypatch.setattr(
        head._Head, "gradients", lambda self, *options: results.append(original(self, *options)) or results[-1]
    )
    policy = Policy(model)
    policy(pack(ROWS), lambda logps, responses: logps)[1].backward()
    assert [[value is None for value in result] for result in results] == [[False, True, True]]


@pytest.mark.usefixtures("small_chunks")
def test_no_logits_are_kept_for_the_backward_pass() -> None:
    policy, packed = Policy(tiny()), pack(ROWS)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(tuple(x.shape)), x)[1], lambda x: x):
        policy(packed, lambda logps, responses: logps)
    assert kept
    rows = {len(packed.labels), packed.input_ids.shape[1], 5}
    assert not [shape for shape in kept if shape[-1] == VOCABULARY and set(shape[:-1]) & rows]


@pytest.mark.usefixtures("each_attention")
def test_bfloat16_autocast_returns_float32_close_to_full_precision() -> None:
    exact, policy = logps_of(Policy(tiny()), ROWS), Policy(tiny(), torch.bfloat16)
    rounded, product = policy(pack(ROWS), lambda logps, responses: torch.ones_like(logps))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.5)
    assert not torch.equal(rounded, exact)
    assert all(grad.dtype == torch.float32 for grad in gradients(policy, product).values())


@pytest.mark.usefixtures("each_attention")
def test_a_bfloat16_model_scores_close_to_full_precision() -> None:
    exact, rounded = logps_of(Policy(tiny()), ROWS), logps_of(Policy(tiny().to(torch.bfloat16)), ROWS)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.5)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)


def test_extreme_logits_stay_finite() -> None:
    hidden, weight = torch.full((3, 2), 1e3, requires_grad=True), torch.tensor([[1e3, 0.0], [0.0, 0.0], [-1e3, 0.0]])
    packed = pack([Row([0], [[0, 1, 2]])])
    logps, product = head.fused_logps(hidden, weight, None, packed, lambda logps, _: torch.ones_like(logps))
    product.sum().backward()
    assert logps.item() == head.response_logps(hidden, weight, None, packed)[0].item() == -3e6
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_greedy_responses_are_marked() -> None:
    model = tiny()
    with torch.no_grad():
        best = int(model(torch.tensor([[5, 6]])).logits[0, -1].argmax())
    other = (best + 1) % VOCABULARY
    assert Policy(model)(pack([Row([5, 6], [[best], [other]])]))[1].tolist() == [True, False]


def test_scoring_and_training_are_one_function_in_bfloat16() -> None:
    """The ratio of a first step: weights as an artifact of this precision holds them, micro-batches of other shapes."""
    rows = make_rows(*[2] * 8)
    model = tiny().to(torch.bfloat16).float()
    scored = torch.cat([logps_of(Policy(model, torch.bfloat16).eval(), [row]) for row in rows])
    policy = Policy(model, torch.bfloat16).train()
    trained, _ = policy(pack(rows), lambda logps, _: torch.ones_like(logps))
    by_column, _ = policy(pack(rows, by_column=True), lambda logps, _: torch.ones_like(logps))
    tokens = sum(len(response) for row in rows for response in row.responses)
    assert (trained - scored).square().sum().div(tokens).sqrt() < START_TOLERANCE["bfloat16"] / 10
    torch.testing.assert_close(by_column, torch.cat([trained[0::2], trained[1::2]]), rtol=0, atol=1e-3)


@pytest.mark.usefixtures("each_attention")
@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_packed_attention_is_masked_attention(key_heads: int, window: int | None) -> None:
    packed = pack(ROWS)
    total = packed.input_ids.shape[1]
    query = torch.randn(1, 4, total, 8)
    key, value = torch.randn(2, 1, key_heads, total, 8)
    mask = torch.zeros(total, total, dtype=torch.bool)
    for i, (start, stop) in enumerate(zip(packed.query_offsets, packed.query_offsets[1:], strict=False)):
        keys = packed.keys[packed.key_offsets[i] : packed.key_offsets[i + 1]]
        offset = len(keys) - int(stop - start)
        seen = torch.ones(int(stop - start), len(keys)).tril(offset)
        mask[start:stop, keys] = (seen if window is None else seen.triu(offset - window + 1)).bool()
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    actual, _ = attention._packed(torch.nn.Identity(), query, key, value, window, packed=packed, scaling=0.3)
    torch.testing.assert_close(actual, expected.transpose(1, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_agrees_with_the_padded_call(window: int | None) -> None:
    packed = pack(make_rows(2, 3, 1)).to("cuda")
    total = packed.input_ids.shape[1]
    query = torch.randn(total, 4, 64, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, total, 2, 64, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(
        attention._flash(query, key, value, packed, 0.1, window),
        attention._together(query, key, value, packed, 0.1, window),
        rtol=2e-2,
        atol=2e-2,
    )


@pytest.mark.gpu
def test_bfloat16_policy_on_a_gpu() -> None:
    rows, policy = make_rows(2, 3, 1), Policy(tiny("qwen2", hidden_size=256, num_attention_heads=4))
    expected = logps_of(policy, rows)
    reference = gradients(policy, weighted(policy, rows))
    policy.to("cuda").precision = torch.bfloat16
    packed = pack(rows).to("cuda")
    logps, total = policy(packed, lambda logps, _: torch.ones_like(logps))
    assert torch.equal(logps, policy(packed)[0])
    torch.testing.assert_close(logps.cpu(), expected, rtol=0.1, atol=1.0)
    actual = gradients(policy, total.sum())
    for name, value in reference.items():
        assert F.cosine_similarity(actual[name].cpu().flatten(), value.flatten(), dim=0) > 0.95, name


@pytest.mark.usefixtures("each_attention")
@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_a_sliding_window_hides_what_is_further_back(kind: str) -> None:
    model = tiny(kind, sliding_window=5, use_sliding_window=True, max_window_layers=1)
    expected = plainly(model, ROWS)
    reference = gradients(model, expected @ WEIGHTS)
    policy = Policy(model)
    torch.testing.assert_close(logps_of(policy, ROWS), expected, rtol=1e-5, atol=1e-5)
    assert_same(gradients(policy, weighted(policy, ROWS, WEIGHTS)), reference)
    wide = Policy(tiny(kind, sliding_window=50, use_sliding_window=True, max_window_layers=1))
    assert (logps_of(wide, ROWS) - expected).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_text_longer_than_the_context_is_refused(kind: str) -> None:
    policy = Policy(tiny(kind, max_position_embeddings=8)).eval()
    fits = Row([1] * 4, [[2] * 5])  # the last token is only predicted
    assert logps_of(policy, [fits]).isfinite().all()
    with pytest.raises(UserError, match="9 tokens, more than the model's context of 8"):
        policy(pack([fits, Row([1] * 4, [[2] * 6])]))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gemma2", {}, "final_logit_softcapping=30.0"),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling=8.0"),
        ("bloom", {"n_head": 4}, "'bloom'.*cannot be replaced"),
        ("mamba", {}, "'mamba'.*mixes tokens"),
        ("bert", {"num_key_value_heads": 4}, "'bert'.*[Ii]t has"),
    ],
)
def test_models_that_would_give_other_numbers_are_named(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Policy(tiny(kind, **changes))


def test_attention_with_sinks_or_dropout_is_named() -> None:
    with pytest.raises(UserError, match="s_aux"):
        Policy(tiny("gpt_oss", num_local_experts=2, head_dim=8))(pack(ROWS))
    with pytest.raises(UserError, match="dropout"):
        weighted(Policy(tiny("llama", attention_dropout=0.1)).train(), ROWS)


def test_lora_on_the_head_is_named() -> None:
    with pytest.raises(UserError, match="output projection"):
        Policy(get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"])))


def test_the_model_cannot_be_used_unpacked_afterwards() -> None:
    model = tiny()
    Policy(model)
    with pytest.raises(RuntimeError, match="without `packed`"):
        model(torch.tensor([[1, 2]]))

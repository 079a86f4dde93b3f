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
    logps = policy(pack(ROWS))
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    assert_same(gradients(policy, logps @ WEIGHTS), reference)
    constants, product = policy(pack(ROWS), lambda logps, responses: WEIGHTS[responses])
    torch.testing.assert_close(constants, logps.detach())
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

    expected = gradients(policy, losses(policy(pack(rows)), slice(0, 8)).mean())
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
    shared, unshared = policy(pack(rows)), policy(pack(apart))
    torch.testing.assert_close(shared, unshared, rtol=1e-5, atol=1e-5)
    assert_same(gradients(policy, shared.square().sum()), gradients(policy, unshared.square().sum()))


def test_order_and_neighbours_do_not_matter() -> None:
    policy = Policy(tiny())
    together = policy(pack(ROWS)).split([len(row.responses) for row in ROWS])
    backwards = policy(pack(ROWS[::-1])).split([len(row.responses) for row in ROWS[::-1]])
    for number, row in enumerate(ROWS):
        torch.testing.assert_close(policy(pack([row])), together[number], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(backwards[-1 - number], together[number], rtol=1e-5, atol=1e-5)


def test_same_input_same_bits() -> None:
    policy, packed = Policy(tiny()), pack(ROWS)
    runs = [policy(packed, lambda logps, responses: logps / 7) for _ in range(2)]
    first, second = (gradients(policy, product) for _, product in runs)
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_of_micro_batches_add_up() -> None:
    policy = Policy(tiny("qwen2"))
    whole = gradients(policy, policy(pack(ROWS)).sum())
    parts = micro_batches([row.tokens for row in ROWS], max(row.tokens for row in ROWS))
    assert len(parts) > 1
    pieces = [gradients(policy, policy(pack([ROWS[i] for i in part])).sum()) for part in parts]
    assert_same({name: sum(piece[name] for piece in pieces) for name in whole}, whole)  # type: ignore[misc]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    policy = Policy(tiny("mistral"))
    expected = gradients(policy, policy(pack(ROWS)) @ WEIGHTS)
    policy.train()
    policy.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    logps = policy(pack(ROWS))
    policy(pack(make_rows(1, 1, seed=1)))  # another micro-batch between forward and recomputation
    assert_same(gradients(policy, logps @ WEIGHTS), expected)


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
    logps = policy(pack(ROWS))
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    assert_same(gradients(policy, logps @ WEIGHTS), reference)


def test_a_frozen_head_gets_no_gradient_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(tie_word_embeddings=False)
    model.lm_head.weight.requires_grad_(False)
    results: list[tuple[Tensor | None, ...]] = []
    original = head._Head.gradients
    monkeypatch.setattr(
        head._Head, "gradients", lambda self, *options: results.append(original(self, *options)) or results[-1]
    )
    policy = Policy(model)
    policy(pack(ROWS)).sum().backward()
    policy(pack(ROWS), lambda logps, responses: logps)[1].backward()
    assert [[value is None for value in result] for result in results] == [[False, True, True]] * 2


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("fused", [False, True])
def test_no_logits_are_kept_for_the_backward_pass(fused: bool) -> None:
    policy, packed = Policy(tiny()), pack(ROWS)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(tuple(x.shape)), x)[1], lambda x: x):
        policy(packed, (lambda logps, responses: logps) if fused else None)
    assert kept
    rows = {len(packed.labels), packed.input_ids.shape[1], 5}
    assert not [shape for shape in kept if shape[-1] == VOCABULARY and set(shape[:-1]) & rows]


@pytest.mark.usefixtures("each_attention")
def test_bfloat16_autocast_returns_float32_close_to_full_precision() -> None:
    policy = Policy(tiny())
    exact = policy(pack(ROWS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, product = policy(pack(ROWS), lambda logps, responses: torch.ones_like(logps))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.5)
    assert not torch.equal(rounded, exact)
    assert all(grad.dtype == torch.float32 for grad in gradients(policy, product).values())


@pytest.mark.usefixtures("each_attention")
def test_a_bfloat16_model_scores_close_to_full_precision() -> None:
    exact, rounded = Policy(tiny())(pack(ROWS)), Policy(tiny().to(torch.bfloat16))(pack(ROWS))
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.5)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)


def test_extreme_logits_stay_finite() -> None:
    hidden, weight = torch.full((3, 2), 1e3, requires_grad=True), torch.tensor([[1e3, 0.0], [0.0, 0.0], [-1e3, 0.0]])
    packed = pack([Row([0], [[0, 1, 2]])])
    logps = head.response_logps(hidden, weight, None, packed)
    logps.backward()
    assert logps.item() == -3e6
    assert hidden.grad is not None and hidden.grad.isfinite().all()


@pytest.mark.usefixtures("each_attention")
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_packed_attention_is_masked_attention(key_heads: int) -> None:
    packed = pack(ROWS)
    total = packed.input_ids.shape[1]
    query = torch.randn(1, 4, total, 8)
    key, value = torch.randn(2, 1, key_heads, total, 8)
    mask = torch.zeros(total, total, dtype=torch.bool)
    for i, (start, stop) in enumerate(zip(packed.query_offsets, packed.query_offsets[1:], strict=False)):
        keys = packed.keys[packed.key_offsets[i] : packed.key_offsets[i + 1]]
        mask[start:stop, keys] = torch.ones(int(stop - start), len(keys)).tril(len(keys) - int(stop - start)).bool()
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    actual, _ = attention._packed(torch.nn.Identity(), query, key, value, None, packed=packed, scaling=0.3)
    torch.testing.assert_close(actual, expected.transpose(1, 2))


@pytest.mark.gpu
def test_flash_attention_agrees_with_the_loop() -> None:
    packed = pack(make_rows(2, 3, 1)).to("cuda")
    total = packed.input_ids.shape[1]
    query = torch.randn(total, 4, 64, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, len(packed.keys), 2, 64, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(
        attention._flash(query, key, value, packed, 0.1), attention._each(query, key, value, packed, 0.1)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
def test_bfloat16_policy_on_a_gpu(fused: bool) -> None:
    rows, policy = make_rows(2, 3, 1), Policy(tiny("qwen2", hidden_size=256, num_attention_heads=4))
    expected = policy(pack(rows))
    reference = gradients(policy, expected.sum())
    policy.to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        ones = torch.ones_like if fused else None
        out = policy(pack(rows).to("cuda"), ones and (lambda logps, responses: ones(logps)))
    logps, total = out if fused else (out, out.sum())
    torch.testing.assert_close(logps.cpu(), expected, rtol=0.1, atol=1.0)
    actual = gradients(policy, total)
    for name, value in reference.items():
        assert F.cosine_similarity(actual[name].cpu().flatten(), value.flatten(), dim=0) > 0.95, name


def test_a_sequence_longer_than_the_window_is_refused() -> None:
    policy = Policy(tiny("mistral", sliding_window=8))
    fits, too_long = Row([1] * 4, [[2] * 4]), Row([1] * 4, [[2] * 5])
    assert policy(pack([fits])).isfinite().all()
    with pytest.raises(UserError, match=r"9 tokens.*window of 8"):
        policy(pack([fits, too_long]))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gemma2", {}, "final_logit_softcapping=30.0"),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling=8.0"),
        ("bloom", {"n_head": 4}, "'bloom' cannot be replaced"),
        ("mamba", {}, "'mamba' mixes tokens"),
        ("bert", {"num_key_value_heads": 4}, "'bert' has"),
    ],
)
def test_models_that_would_give_other_numbers_are_named(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Policy(tiny(kind, **changes))


def test_attention_with_sinks_or_dropout_is_named() -> None:
    with pytest.raises(UserError, match="s_aux"):
        Policy(tiny("gpt_oss", num_local_experts=2, head_dim=8))(pack(ROWS))
    with pytest.raises(UserError, match="dropout"):
        Policy(tiny("llama", attention_dropout=0.1)).train()(pack(ROWS))


def test_lora_on_the_head_is_named() -> None:
    with pytest.raises(UserError, match="output projection"):
        Policy(get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"])))


def test_the_model_cannot_be_used_unpacked_afterwards() -> None:
    model = tiny()
    Policy(model)
    with pytest.raises(RuntimeError, match="without `packed`"):
        model(torch.tensor([[1, 2]]))

"""Fused norms and rotary embeddings against formulas written out, and where they are put in place."""

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from iris.model import layers
from iris.model.layers import fuse, rms_norm, rotary


@pytest.fixture(params=[8, 2**17], ids=["row by row", "at once"])
def in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_NUMBERS", request.param)


def tiny(kind: str, **changes: Any) -> Any:
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 31}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **size, **heads, **changes))


def family(model: Any) -> Any:
    return importlib.import_module(type(model).__module__)


def same_gradients(actual: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    """For a random cotangent, in the layout that the next layer might give it."""
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected.transpose(-1, -2)).transpose(-1, -2)
    found = torch.autograd.grad(actual, leaves, cotangent)
    for mine, theirs in zip(found, torch.autograd.grad(expected, leaves, cotangent), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("shape", [(1, 7, 16), (3, 4, 5, 16)])
def test_norm(shape: tuple[int, ...]) -> None:
    hidden, weight = (3 * torch.randn(shape)).requires_grad_(), torch.randn(16).requires_grad_()
    expected = weight * hidden / (hidden.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    same_gradients(rms_norm(hidden, weight, 1e-5), expected, [hidden, weight])


@pytest.mark.usefixtures("in_parts")
def test_rotary_turns_pairs_of_numbers() -> None:
    states, angles = torch.randn(2, 5, 3, 8).transpose(1, 2).requires_grad_(), 3 * torch.randn(2, 5, 4)
    turned = torch.polar(torch.ones_like(angles), angles)[:, None] * torch.complex(states[..., :4], states[..., 4:])
    both = angles.repeat(1, 1, 2)
    same_gradients(rotary(states, both.cos(), both.sin()), torch.cat([turned.real, turned.imag], -1), [states])


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_families_that_are_fused(kind: str) -> None:
    model = tiny(kind, pad_token_id=0)
    plain, tokens = copy.deepcopy(model), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    expected = plain(tokens).logits
    fuse(model)
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert norms and all("forward" in vars(norm) for norm in norms)
    assert family(model).apply_rotary_pos_emb.fused
    torch.testing.assert_close(model(tokens).logits, expected)


@pytest.mark.parametrize(("kind", "norms", "rotary"), [("gemma", 0, True), ("glm", 3, False), ("cohere", 0, False)])
def test_what_computes_something_else_stays(kind: str, norms: int, rotary: bool) -> None:
    """Weights that are counted from one, pairs of neighbours, layer norms."""
    model = tiny(kind, pad_token_id=0)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    expected = model(tokens).logits
    fuse(model)
    torch.testing.assert_close(model(tokens).logits, expected)
    assert sum("forward" in vars(module) for module in model.modules()) == norms
    assert hasattr(family(model).apply_rotary_pos_emb, "fused") is rotary


def test_other_precisions_go_on_as_before() -> None:
    model = tiny("llama", pad_token_id=0).to(torch.float64)
    norm, hidden = model.model.norm, torch.randn(2, 16, dtype=torch.float64)
    expected = norm(hidden)
    model.float()
    fuse(model)
    model.double()
    assert torch.equal(norm(hidden), expected)
    states, angles = torch.randn(1, 2, 3, 8, dtype=torch.float64), torch.zeros(1, 3, 8, dtype=torch.float64)
    turned, _ = family(model).apply_rotary_pos_emb(states, states, angles.cos(), angles.sin())
    assert torch.equal(turned, states)


def test_a_copy_has_norms_of_its_own() -> None:
    model = tiny("llama", pad_token_id=0)
    fuse(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight.zero_()
    hidden = torch.randn(2, 16)
    assert other.model.norm(hidden).abs().max() == 0 < model.model.norm(hidden).abs().max()
    assert other.state_dict().keys() == tiny("llama", pad_token_id=0).state_dict().keys()

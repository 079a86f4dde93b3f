"""Two attentions, registered with transformers: over packed micro-batches, and over the slots of rollouts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from iris.errors import UserError
from iris.model.packing import Packed

PACKED = "iris_packed"
SLOTS = "iris_slots"

# What scaled_dot_product_attention runs on a CPU: these also give and take the logarithms of the normalisers.
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Work (length² · width) below which a call per sequence costs more than padding sequences to one length.
_SMALL = 2**19
# Rows of slots in one call on a CPU, where reading columns that are masked costs more than a call.
_ROWS = 16

# What some models hand to their attention on top of scaled dot products, and would be ignored here.
_EXTRAS = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")
_LAYERS = {"full_attention", "sliding_attention"}


def use_packed_attention(model: PreTrainedModel) -> None:
    """Switch `model` to packed attention, for good: it then needs `packed=…` in every forward call.

    Raises UserError where tokens of a packed micro-batch would meet outside the registered attention function.
    """
    kind = model.config.model_type
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    if others or getattr(model, "_is_stateful", False) or model.config.is_encoder_decoder:
        raise UserError(
            f"Model type '{kind}' mixes tokens by other means than causal attention "
            f"({', '.join(sorted(others)) or 'recurrence or an encoder'}). Choose a decoder with attention layers only."
        )
    if not model._supports_attention_backend or not model._can_set_attn_implementation():
        raise UserError(
            f"The attention of model type '{kind}' cannot be replaced: transformers' implementation of it does not use "
            "AttentionInterface. Choose a model that does, such as llama, mistral, qwen2, qwen3 or smollm3."
        )
    model.set_attn_implementation(PACKED)


def _refuse(module: nn.Module, dropout: float, extras: Mapping[str, Any]) -> None:
    """Raise UserError for what the attention is asked to do beyond scaled dot products."""
    unsupported = [name for name in _EXTRAS if extras.get(name) is not None] + ["dropout"] * (dropout > 0)
    if unsupported:
        raise UserError(
            f"{type(module).__name__} uses attention {', '.join(unsupported)}, which is not supported here. "
            "Set it to none (or 0) in the model's config.json if the model allows, or choose another model."
        )


def _packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Packed | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Query [1, H, N, D]; key and value [1, H or fewer, N, D]; returns [1, N, H, D]."""
    if packed is None:
        raise RuntimeError("A model with packed attention was called without `packed`; reload it for other uses.")
    _refuse(module, dropout, extras)
    # Rotary embeddings computed in float32 promote query and key under autocast.
    query, key, value = (states.squeeze(0).transpose(0, 1).to(value.dtype) for states in (query, key, value))
    return _attention(query, packed)(query, key, value, packed, scaling)[None], None


def _attention(query: Tensor, packed: Packed) -> Callable[..., Tensor]:
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _flash
    large = max(packed.key_lengths) ** 2 * query[0].numel() > _SMALL
    return _flash_cpu if large and query.device.type == "cpu" else _together


def _flash(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    out = varlen_attn(
        query,
        key[packed.keys],
        value[packed.keys],
        packed.query_offsets,
        packed.key_offsets,
        max(packed.query_lengths),
        max(packed.key_lengths),
        scale=scaling,
        window_size=(-1, 0),  # causal, the last query aligned with the last key
        enable_gqa=True,
    )
    assert isinstance(out, Tensor)  # no auxiliary output was asked for
    return out


def _together(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    """All sequences in one padded call. A query sees the keys up to its own, so padded keys are never seen by a real
    query; what padded queries see is dropped.
    """
    lengths, keys = packed.query_offsets.diff(), packed.key_offsets.diff()
    steps, columns = (torch.arange(max(of), device=query.device) for of in (packed.query_lengths, packed.key_lengths))
    q = query[(packed.query_offsets[:-1, None] + steps).clamp(max=len(query) - 1)]
    at = packed.keys[(packed.key_offsets[:-1, None] + columns).clamp(max=len(packed.keys) - 1)]
    mask = columns <= (steps + (keys - lengths)[:, None])[..., None]
    q, k, v = (states.transpose(1, 2) for states in (q, key[at], value[at]))
    out = F.scaled_dot_product_attention(q, k, v, mask[:, None], scale=scaling, enable_gqa=True)
    return out.transpose(1, 2)[steps < lengths[:, None]]


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) if groups > 1 else states for states in (key, value))
    out: Tensor = _Sequences.apply(query, key, value, packed, scaling)  # type: ignore[no-untyped-call]
    return out


class _Sequences(torch.autograd.Function):
    """Attention of each sequence by itself, on a CPU: query, key and value [N, H, D] of the stream → [N, H, D].

    A response that is not its row's first sees itself and its prompt in two calls, joined by their normalisers: no key
    is copied and nothing is computed to be masked.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None) -> Tensor:
        out = torch.empty_like(query)
        normaliser = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
        for own, prompt in _visible(packed):
            q, k, v = (_heads(states[own]) for states in (query, key, value))
            seen, total = _FORWARD(q, k, v, is_causal=True, scale=scaling)
            if prompt:
                before, other = _FORWARD(q, _heads(key[prompt]), _heads(value[prompt]), scale=scaling)
                seen = seen.lerp(before, torch.sigmoid(other - total)[..., None].to(seen.dtype))
                total = torch.logaddexp(total, other)
            out[own], normaliser[own] = seen[0].transpose(0, 1), total[0].t()
        ctx.save_for_backward(query, key, value, out, normaliser)
        ctx.packed, ctx.scaling = packed, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, normaliser = ctx.saved_tensors
        sums = [torch.empty_like(states) for states in (query, key, value)]

        def part(own: slice, keys: slice, causal: bool) -> list[Tensor]:
            """Gradients of the queries of `own` and the keys and values of `keys`, of what these give to those."""
            dy, q, k, v = _heads(gradient[own]), _heads(query[own]), _heads(key[keys]), _heads(value[keys])
            total = normaliser[own].t()[None]
            found = _BACKWARD(dy, q, k, v, _heads(out[own]), total, 0.0, causal, scale=ctx.scaling)
            return [each[0].transpose(0, 1) for each in found]

        for own, prompt in _visible(ctx.packed):
            for total, found in zip(sums, part(own, own, True), strict=True):
                total[own] = found
            if prompt:
                for total, found, at in zip(sums, part(own, prompt, False), (own, prompt, prompt), strict=True):
                    total[at] += found
        return *sums, None, None


def _visible(packed: Packed) -> Iterator[tuple[slice, slice | None]]:
    """Of each sequence its queries in the stream, and the prompt that they see besides themselves."""
    first = start = 0
    for queries, keys in zip(packed.query_lengths, packed.key_lengths, strict=True):
        first = start if queries == keys else first  # with the prompt in it, where all the row's sequences begin
        yield slice(start, start + queries), slice(first, first + keys - queries) if queries < keys else None
        start += queries


def _heads(states: Tensor) -> Tensor:
    """[n, H, D] → [1, H, n, D]."""
    return states.transpose(0, 1)[None]


def parts(lengths: Sequence[int], device: torch.device) -> list[tuple[int, int]]:
    """Rows of slots that attend in one call, with the columns that they see: `parts` for the attention of slots."""
    size = _ROWS if device.type == "cpu" else len(lengths)
    calls = (lengths[start : start + size] for start in range(0, len(lengths), size))
    return [(len(call), max(call)) for call in calls]


def _slots(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    parts: Sequence[tuple[int, int]] = (),
    **extras: Any,
) -> tuple[Tensor, None]:
    """Query [n, H, Q, D]; key and value [n, H or fewer, columns, D]; returns [n, Q, H, D]. No parts: all see all."""
    assert attention_mask is not None
    _refuse(module, dropout, extras)
    parts = parts or [(len(query), key.shape[2])]
    states = (query, key, value, attention_mask.expand(len(query), -1, -1, -1))
    split = zip(*(torch.split(each, [rows for rows, _ in parts]) for each in states), strict=True)
    out = [
        F.scaled_dot_product_attention(
            q, k[:, :, :seen], v[:, :, :seen], mask[..., :seen], scale=scaling, enable_gqa=k.shape[1] < q.shape[1]
        )
        for (q, k, v, mask), (_, seen) in zip(split, parts, strict=True)
    ]
    return torch.cat(out).transpose(1, 2), None


AttentionInterface.register(PACKED, _packed)
AttentionInterface.register(SLOTS, _slots)

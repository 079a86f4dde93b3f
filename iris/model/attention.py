"""Two attentions, registered with transformers: over packed micro-batches, and over the slots of rollouts.

Both take the sliding window of a layer from the mask that transformers builds for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

from iris.errors import UserError
from iris.model.packing import Packed

PACKED = "iris_packed"
SLOTS = "iris_slots"
PROBE = "iris_probe"

# The kernels behind scaled_dot_product_attention on a CPU; these also return and take the logs of the normalisers.
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Work (length² · width) below which a call per sequence costs more than padding sequences to one length.
_SMALL = 2**19
# Rows of slots in one call on a CPU, where reading columns that are masked costs more than a call.
_ROWS = 16

# Arguments of some models' attention that change its result.
_EXTRAS = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")


def _window(*, local_size: int | None = None, use_vmap: bool = False, **_: Any) -> int | None:
    """Return a layer's sliding window in tokens, in place of the mask that transformers asks for; None: no window."""
    if use_vmap:
        raise UserError("The model adds a mask of its own to causal attention.")
    return local_size or None


def _refuse(window: Any, dropout: float, extras: Mapping[str, Any]) -> None:
    """Raise UserError for what the attention is asked to do beyond scaled dot products in a causal window."""
    unsupported = [name for name in _EXTRAS if extras.get(name) is not None] + ["dropout"] * (dropout > 0)
    unsupported += ["masks of its own"] * (window is not None and not isinstance(window, int))
    unsupported += ["a sliding window without a mask"] * (window is None and bool(extras.get("sliding_window")))
    if unsupported:
        raise UserError(f"The model's attention uses {', '.join(unsupported)}, which is not reproduced here.")


class Reached(Exception):
    """The end of a probe: the model has called its attention in a way that can be replaced."""


def _reach(module: nn.Module, *states: Any, packed: Any = None, **extras: Any) -> None:
    *_, attention_mask = states
    _refuse(attention_mask, 0.0, extras)
    if packed is None:
        raise UserError("The model does not pass further arguments on to its attention.")
    raise Reached


def _packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: int | None,
    *,
    packed: Packed | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Query [1, H, N, D]; key and value [1, H or fewer, N, D]; returns [1, N, H, D]."""
    if packed is None:
        raise RuntimeError("A model with packed attention was called without `packed`; reload it for other uses.")
    _refuse(attention_mask, dropout, extras)
    window = attention_mask if attention_mask and attention_mask < max(packed.key_lengths) else None
    # Rotary embeddings computed in float32 promote query and key under autocast.
    query, key, value = (states.squeeze(0).transpose(0, 1).to(value.dtype) for states in (query, key, value))
    return _kernel(query, value, packed, window)(query, key, value, packed, scaling, window)[None], None


def _kernel(query: Tensor, value: Tensor, packed: Packed, window: int | None) -> Callable[..., Tensor]:
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _flash
    large = max(packed.key_lengths) ** 2 * query[0].numel() > _SMALL
    plain = window is None and value.shape[-1] == query.shape[-1] and query.device.type == "cpu"
    return _flash_cpu if large and plain else _together


def _flash(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None, window: int | None
) -> Tensor:
    width = value.shape[-1]
    if width < query.shape[-1]:  # multi-head latent attention: the kernel takes one width
        value = F.pad(value, (0, query.shape[-1] - width))
    out = varlen_attn(
        query,
        key[packed.keys],
        value[packed.keys],
        packed.query_offsets,
        packed.key_offsets,
        max(packed.query_lengths),
        max(packed.key_lengths),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # causal, the last query aligned with the last key
        enable_gqa=True,
    )
    assert isinstance(out, Tensor)  # no auxiliary output was asked for
    return out[..., :width]


def _together(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None, window: int | None
) -> Tensor:
    """Attend over all sequences in one padded call.

    A query sees the keys up to its own, so no real query sees padding; the outputs of padded queries are dropped.
    """
    lengths, keys = packed.query_offsets.diff(), packed.key_offsets.diff()
    steps, columns = (torch.arange(max(of), device=query.device) for of in (packed.query_lengths, packed.key_lengths))
    q = query[(packed.query_offsets[:-1, None] + steps).clamp(max=len(query) - 1)]
    at = packed.keys[(packed.key_offsets[:-1, None] + columns).clamp(max=len(packed.keys) - 1)]
    distance = (steps + (keys - lengths)[:, None])[..., None] - columns
    mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    if window is not None:
        mask |= (steps >= lengths[:, None])[..., None]  # a padded query beyond all keys would divide zero by zero
    q, k, v = (states.transpose(1, 2) for states in (q, key[at], value[at]))
    out = F.scaled_dot_product_attention(q, k, v, mask[:, None], scale=scaling, enable_gqa=True)
    return out.transpose(1, 2)[steps < lengths[:, None]]


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None, _: None) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) if groups > 1 else states for states in (key, value))
    out: Tensor = _Sequences.apply(query, key, value, packed, scaling)  # type: ignore[no-untyped-call]
    return out


class _Sequences(torch.autograd.Function):
    """Attention of each sequence by itself on a CPU: query, key and value [N, H, D] of the stream → [N, H, D].

    A response that is not its row's first attends to itself and to its prompt in two calls, joined by their
    normalisers: no key is copied and nothing is computed to be masked.
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
            """Return the gradients of the queries `own` and the keys and values `keys` from their attention."""
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
    """Yield each sequence's queries in the stream, and the prompt that they see besides themselves."""
    first = start = 0
    for queries, keys in zip(packed.query_lengths, packed.key_lengths, strict=True):
        first = start if queries == keys else first  # such a sequence holds the prompt: its row begins here
        yield slice(start, start + queries), slice(first, first + keys - queries) if queries < keys else None
        start += queries


def _heads(states: Tensor) -> Tensor:
    """[n, H, D] → [1, H, n, D]."""
    return states.transpose(0, 1)[None]


def parts(lengths: Sequence[int], device: torch.device) -> list[tuple[int, int]]:
    """Group rows of slots that attend in one call: (rows, columns they see), the `parts` of the attention of slots."""
    size = _ROWS if device.type == "cpu" else len(lengths)
    calls = (lengths[start : start + size] for start in range(0, len(lengths), size))
    return [(len(call), max(call)) for call in calls]


def _slots(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: int | None,
    *,
    visible: Tensor,
    places: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    parts: Sequence[tuple[int, int]] = (),
    **extras: Any,
) -> tuple[Tensor, None]:
    """Query [n, H, Q, D]; key and value [n, H or fewer, columns, D]; returns [n, Q, H, D].

    `visible` [n, 1, Q, columns] is added to the scores; `places` [n, Q] are the columns of the queries, which a sliding
    window is measured from. Without `parts` all rows attend in one call.
    """
    _refuse(attention_mask, dropout, extras)
    if attention_mask is not None and attention_mask < visible.shape[-1]:
        outside = places[..., None] - torch.arange(visible.shape[-1], device=places.device) >= attention_mask
        visible = visible.masked_fill(outside[:, None], torch.finfo(visible.dtype).min)
    parts = parts or [(len(query), key.shape[2])]
    split = zip(*(torch.split(each, [n for n, _ in parts]) for each in (query, key, value, visible)), strict=True)
    out = [
        F.scaled_dot_product_attention(
            q, k[:, :, :seen], v[:, :, :seen], mask[..., :seen], scale=scaling, enable_gqa=k.shape[1] < q.shape[1]
        )
        for (q, k, v, mask), (_, seen) in zip(split, parts, strict=True)
    ]
    return torch.cat(out).transpose(1, 2), None


for _name, _function in ((PACKED, _packed), (SLOTS, _slots), (PROBE, _reach)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, _window)

"""Attention over packed micro-batches, registered with transformers as one more implementation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from iris.errors import UserError
from iris.packing import Packed

NAME = "iris_packed"

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
    model.set_attn_implementation(NAME)


def _attend(
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
    unsupported = [name for name in _EXTRAS if extras.get(name) is not None] + ["dropout"] * (dropout > 0)
    if unsupported:
        raise UserError(
            f"{type(module).__name__} uses attention {', '.join(unsupported)}, which packed attention does not have. "
            "Set it to none (or 0) in the model's config.json if the model allows, or choose another model."
        )
    key, value = (states[0].transpose(0, 1)[packed.keys] for states in (key, value))
    query = query[0].transpose(0, 1)
    attend = _flash if value.is_cuda and value.dtype in (torch.bfloat16, torch.float16) else _each
    return attend(query, key, value, packed, scaling)[None], None


def _flash(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    # Rotary embeddings computed in float32 promote query and key under autocast.
    out = varlen_attn(
        query.to(value.dtype),
        key.to(value.dtype),
        value,
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


def _each(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    queries = torch.split(query, list(packed.query_lengths))
    keys, values = (torch.split(states, list(packed.key_lengths)) for states in (key, value))
    return torch.cat([_one(q, k, v, scaling) for q, k, v in zip(queries, keys, values, strict=True)])


def _one(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Causal attention of one sequence: query [Q, H, D] are the last Q of the K positions of key and value."""
    ahead = len(key) - len(query)
    mask = query.new_ones(len(query), len(key), dtype=torch.bool).tril(ahead) if ahead else None
    q, k, v = (states.transpose(0, 1)[None] for states in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scaling, enable_gqa=True)
    return out[0].transpose(0, 1)


AttentionInterface.register(NAME, _attend)

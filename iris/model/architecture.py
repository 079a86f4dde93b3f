"""Which architectures are reproduced exactly, told from their configuration."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iris.errors import UserError, first_line
from iris.model.attention import PROBE, Reached

# Configuration names that change logits after the output projection: Gemma 2, Cohere, Granite, …
_LOGIT_CHANGES = re.compile(r"logits?_?\w*(cap|scal)|(lm_head|output)_multiplier")
_LAYERS = {"full_attention", "sliding_attention"}
_INSTEAD = "Choose a model such as llama, mistral, qwen2, qwen3 or smollm3."


def context_length(config: PreTrainedConfig) -> int | None:
    """Return how many positions a text may have, or None where the configuration sets no bound."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def check_length(config: PreTrainedConfig, tokens: int, what: str) -> None:
    """Raise UserError where `what`, of so many tokens, is longer than the model's context."""
    context = context_length(config)
    if context is not None and tokens > context:
        raise UserError(
            f"{what} has {tokens} tokens, more than the model's context of {context} (max_position_embeddings). Lower "
            "data.max_prompt_tokens, data.max_response_tokens or generate.max_new_tokens."
        )


def check_architecture(config: PreTrainedConfig) -> PreTrainedModel:
    """Raise UserError where packed log-probabilities or rollouts of this architecture would differ from the model's.

    Returns the model built on the meta device: without weights, from the configuration alone.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                copy.deepcopy(config), trust_remote_code=False
            )
    except Exception as error:  # whatever the model's own code raises for its configuration
        raise UserError(
            f"'{config.model_type}' is no causal language model that transformers can build from this configuration: "
            f"{first_line(error)}"
        ) from error
    check_model(model)
    _probe(model)
    return model


def check_model(model: PreTrainedModel) -> None:
    """Raise UserError for what the class and the configuration of a model say against it."""
    if reasons := list(_reasons(model)):
        raise _unsupported(model, f"It {'; it '.join(reasons)}.")


def _unsupported(model: PreTrainedModel, reason: str) -> UserError:
    return UserError(f"Model type '{model.config.model_type}' is not supported. {reason} {_INSTEAD}")


def _reasons(model: PreTrainedModel) -> Iterator[str]:
    config = model.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    if others or getattr(model, "_is_stateful", False) or model.config.is_encoder_decoder:
        what = ", ".join(others) or "recurrence or an encoder"
        yield f"mixes tokens by other means than causal attention ({what})"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        yield "lets tokens see later ones"
    if not model._supports_attention_backend or not model._can_set_attn_implementation():
        yield "has an attention that cannot be replaced, since it does not use transformers' AttentionInterface"
    if getattr(config, "num_kv_shared_layers", 0):
        yield "shares keys and values between layers"
    changes = [f"{k}={v}" for k, v in config.to_dict().items() if _LOGIT_CHANGES.search(k) and v not in (None, 1)]
    if changes:
        yield f"changes its logits ({', '.join(changes)}), which the chunked output projection does not reproduce"
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(head) is not nn.Linear:
        yield f"has a {type(head).__name__} as output projection, not a plain linear layer (of a causal language model)"
    parts = [name for name, child in model.named_children() if child not in (model.base_model, head)]
    if parts:
        yield f"has parts beside its layers and output projection: {', '.join(parts)}"


def _probe(model: PreTrainedModel) -> None:
    """Run a model on the meta device up to its first attention: its arguments show what else that would compute."""
    model.set_attn_implementation(PROBE)
    model.eval()  # type: ignore[no-untyped-call]
    tokens = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    try:
        with torch.no_grad():
            model.base_model(
                input_ids=tokens, position_ids=tokens, attention_mask=tokens, use_cache=False, packed=tokens
            )
    except Reached:
        return
    except UserError as error:
        raise _unsupported(model, str(error)) from error
    except Exception as error:  # whatever the model's own code raises
        raise _unsupported(model, f"It fails with a replaced attention ({first_line(error)}).") from error
    raise _unsupported(model, "It does not use transformers' AttentionInterface.")

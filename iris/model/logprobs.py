"""Response log-probabilities of a causal language model over packed micro-batches."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from iris.errors import UserError
from iris.model.attention import use_packed_attention
from iris.model.head import Coefficients, fused_logps, response_logps
from iris.model.layers import fuse
from iris.model.packing import Packed

# Configuration names that change logits after the output projection (or inside attention): Gemma 2, Cohere, Granite, …
_LOGIT_CHANGES = re.compile(r"logits?_?\w*(cap|scal)|(lm_head|output)_multiplier")


class Policy(nn.Module):
    """A causal language model as log π(response | prompt).

    Takes over `model` (plain or wrapped by peft): its attention is the packed one from then on. The model's
    parameters appear under `model.`; one forward call does all the work, so the hooks of DDP and FSDP2 see it.
    Raises UserError where the model's attention or output projection is not one this computation reproduces.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        _check_head(self._base)
        use_packed_attention(self._base)
        fuse(self._base)

    @property
    def _base(self) -> PreTrainedModel:
        unwrap = getattr(self.model, "get_base_model", None)
        base: PreTrainedModel = unwrap() if unwrap else self.model
        return base

    @property
    def _no_split_modules(self) -> Iterable[str]:
        """What accelerate's FSDP wraps one by one: the model's layers."""
        return self._base._no_split_modules or []

    def tie_weights(self) -> None:
        """Accelerate's FSDP calls this after it has replaced the parameters."""
        self._base.tie_weights()

    def forward(self, packed: Packed, coefficients: Coefficients | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """log π(response | prompt) of the R responses of `packed`: float32 [R], summed over response tokens (nats).

        With `coefficients`, a pair: the same values as constants, and for each block of `packed` the scalar
        Σ coefficient · log π that carries the gradient at less cost (see `iris.model.head.fused_logps`).
        """
        self._check_lengths(packed)
        output = self._base.base_model(
            input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, packed=packed
        )
        head = _head(self._base)
        hidden = _for_head(output.last_hidden_state[0][packed.predict])
        if coefficients is None:
            return response_logps(hidden, head.weight, head.bias, packed)
        return fused_logps(hidden, head.weight, head.bias, packed, coefficients)

    def _check_lengths(self, packed: Packed) -> None:
        window = getattr(self._base.config.get_text_config(), "sliding_window", None)
        longest = max(packed.key_lengths)
        if window is not None and longest > window:
            raise UserError(
                f"A prompt with its response has {longest} tokens, more than the model's sliding attention window of "
                f"{window}. Shorten prompts or responses to {window} tokens together, or choose another model."
            )


def _head(model: PreTrainedModel) -> Any:
    return model.get_output_embeddings()  # type: ignore[no-untyped-call]


def _for_head(hidden: Tensor) -> Tensor:
    """The precision of the output projection: autocast's on a GPU; always float32 on a CPU, where less is slower."""
    device = hidden.device.type
    if device == "cpu":
        return hidden.float()
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


def _check_head(model: PreTrainedModel) -> None:
    kind, config = model.config.model_type, model.config.get_text_config().to_dict()
    changes = [
        f"{name}={value}" for name, value in config.items() if _LOGIT_CHANGES.search(name) and value not in (None, 1)
    ]
    if changes:
        raise UserError(
            f"Model type '{kind}' changes its logits ({', '.join(changes)}), which the chunked output projection does "
            "not reproduce. Choose a model without it, such as llama, mistral, qwen2, qwen3 or smollm3."
        )
    head = _head(model)
    if type(head) is not nn.Linear:
        raise UserError(
            f"The output projection of model type '{kind}' is a {type(head).__name__}, not a plain linear layer. "
            "Leave it out of quantization and of LoRA's target modules, or choose a causal language model."
        )
    others = [name for name, child in model.named_children() if child not in (model.base_model, head)]
    if others:
        raise UserError(f"Model type '{kind}' has parts beside its layers and output projection: {', '.join(others)}.")

"""Response log-probabilities of a causal language model over packed micro-batches."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from iris.model.architecture import check_length, check_model
from iris.model.attention import PACKED
from iris.model.head import Coefficients, fused_logps, response_logps
from iris.model.layers import fuse
from iris.model.packing import Packed


class Policy(nn.Module):
    """A causal language model as log π(response | prompt), the one forward path of training and scoring.

    Takes over `model` (plain or wrapped by peft): its attention is the packed one from then on. The model's
    parameters appear under `model.`; one forward call does all the work, so the hooks of DDP and FSDP2 see it.
    `precision` is that of the computation (autocast), whatever the weights are kept in.
    Raises UserError where the model's attention or output projection is not one this computation reproduces.
    """

    def __init__(self, model: PreTrainedModel, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        check_model(self._base)
        self._base.set_attn_implementation(PACKED)
        fuse(self._base)

    @property
    def _base(self) -> PreTrainedModel:
        unwrap = getattr(self.model, "get_base_model", None)
        base: PreTrainedModel = unwrap() if unwrap else self.model
        return base

    @property
    def _no_split_modules(self) -> Iterable[str]:
        """Layers that accelerate's FSDP wraps one by one."""
        return self._base._no_split_modules or []

    def tie_weights(self) -> None:
        """Tie the weights again after accelerate's FSDP has replaced the parameters."""
        self._base.tie_weights()

    def forward(self, packed: Packed, coefficients: Coefficients | None = None) -> tuple[Tensor, Tensor]:
        """Return log π(response | prompt) of the R responses, float32 [R], summed over response tokens (nats).

        They are constants to the gradient. The second value, with `coefficients`: for each block of `packed` the scalar
        Σ coefficient · log π that carries the gradient (see `iris.model.head.fused_logps`); otherwise: whether each
        response is the greedy one, bool [R].
        """
        device = packed.input_ids.device.type
        with torch.autocast(device, self.precision, enabled=self.precision != torch.float32):
            head: Any = self._base.get_output_embeddings()  # type: ignore[no-untyped-call]
            hidden = _for_head(self._hidden(packed)[packed.predict])
            if coefficients is None:
                return response_logps(hidden, head.weight, head.bias, packed)
            return fused_logps(hidden, head.weight, head.bias, packed, coefficients)

    def _hidden(self, packed: Packed) -> Tensor:
        # The last token of a response is only predicted: nothing is read at its position.
        longest = max(packed.key_lengths) - 1
        check_length(self._base.config, longest, "A prompt with its response")
        output = self._base.base_model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids.clamp(max=longest - 1),
            use_cache=False,
            packed=packed,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def _for_head(hidden: Tensor) -> Tensor:
    """Convert to the output projection's precision: autocast's on a GPU; float32 on a CPU, where less is slower."""
    device = hidden.device.type
    if device == "cpu":
        return hidden.float()
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden

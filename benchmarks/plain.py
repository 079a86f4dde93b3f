"""The training step of tutorials on SPIN's loss (DPO's, β = 0.1): padded rows, all logits, log-softmax."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from iris.model.packing import Row
from measure import StepMeter
from workload import BETA, LEARNING_RATE, MAX_NORM, PAD, Shape, device, model


def plain(work: Sequence[Sequence[Row]], shape: Shape, meter: StepMeter, *, cached: bool) -> None:
    """Measure the loop; with `cached`, the reference's log-probabilities are computed beforehand."""
    policy, reference = model(shape), model(shape, seed=1)
    if shape.checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True)
    known = [_frozen(reference, batch) for batch in work] if cached else None
    if cached:
        del reference
    for n, batch in enumerate(work):
        logps = response_logps(policy, batch)
        real, synthetic = (logps - (known[n] if known else _frozen(reference, batch))).chunk(2)
        loss = -F.logsigmoid(BETA * (real - synthetic)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        del logps, real, synthetic, loss
        meter.step(batch, value)


@torch.no_grad()
def _frozen(reference: PreTrainedModel, batch: Sequence[Row]) -> Tensor:
    return response_logps(reference, batch)


def response_logps(policy: PreTrainedModel, batch: Sequence[Row]) -> Tensor:
    """Return log-probabilities [2B] of the annotated and then the synthetic responses, from padded rows."""
    pairs = [(row.prompt, row.responses[r]) for r in (0, 1) for row in batch]
    tokens = [torch.tensor([*prompt, *response], device=device()) for prompt, response in pairs]
    ids = pad_sequence(tokens, batch_first=True, padding_value=PAD)
    at = torch.arange(ids.shape[1], device=device())
    ends, starts = (torch.tensor(lengths, device=device())[:, None] for lengths in zip(*map(_span, pairs), strict=True))
    with torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda"):
        logits = policy(input_ids=ids, attention_mask=(at < ends).long(), use_cache=False).logits[:, :-1]
    logps = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    result: Tensor = (logps * ((at >= starts) & (at < ends))[:, 1:]).sum(-1)
    return result


def _span(pair: tuple[Any, Any]) -> tuple[int, int]:
    prompt, response = pair
    return len(prompt) + len(response), len(prompt)

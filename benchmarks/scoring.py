"""python benchmarks/scoring.py --variant packed --model v4k

Measure pairs per second of log-probabilities without gradient, in a separate process: ours, or forward passes of
transformers over padded rows or single sequences.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from iris.config import Execution
from iris.model.logprobs import Policy
from iris.model.packing import Row, micro_batches, pack
from measure import Meter, forward_flops, options
from plain import response_logps
from workload import batches, device, model, padded, rows

Score = Callable[[Sequence[Row]], Tensor]


def packed(base: PreTrainedModel) -> Score:
    """Score with `iris.model.logprobs.Policy`, as the `score` stage does."""
    policy = Policy(base, torch.bfloat16 if device().type == "cuda" else torch.float32).eval()

    def run(batch: Sequence[Row]) -> Tensor:
        result = torch.empty(2, len(batch))
        for part in micro_batches([row.tokens for row in batch], Execution().micro_batch_tokens):
            logps, _ = policy(pack([batch[i] for i in part]).to(device()))
            result[:, part] = logps.float().cpu().view(-1, 2).T
        return result.flatten()

    return run


def padded_rows(base: PreTrainedModel, size: int = 8) -> Score:
    """Score padded rows of similar length, with all logits and a log-softmax."""

    def run(batch: Sequence[Row]) -> Tensor:
        order = np.argsort([padded(row) for row in batch])
        parts = [response_logps(base, [batch[i] for i in order[at : at + size]]) for at in range(0, len(order), size)]
        result = torch.empty(2, len(batch))
        result[:, order] = torch.cat([part.float().cpu().view(2, -1) for part in parts], dim=1)
        return result.flatten()

    return run


def one_by_one(base: PreTrainedModel) -> Score:
    """Score one sequence at a time, without padding."""

    def logp(row: Row, r: int) -> Tensor:
        ids = torch.tensor([[*row.prompt, *row.responses[r]]], device=device())
        with torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda"):
            logits = base(input_ids=ids, use_cache=False, logits_to_keep=len(row.responses[r]) + 1).logits[0, :-1]
        labels = ids[0, -len(logits) :, None]
        result: Tensor = logits.float().log_softmax(-1).gather(1, labels).sum()
        return result

    return lambda batch: torch.stack([logp(row, r) for r in (0, 1) for row in batch]).cpu()


VARIANTS = {"packed": packed, "padded": padded_rows, "one-by-one": one_by_one}


def main() -> None:
    """Measure one variant; a step is 4 batches, since data are scored in shards."""
    run = options(__doc__, VARIANTS)
    count = 4 * run.batch
    work = batches(rows(count * run.batches, run.shape.vocabulary), count, run.batches)
    score = VARIANTS[run.variant](model(run.shape))
    meter = Meter(run.window, run.driven)
    for batch in work:
        with torch.inference_mode():
            value = score(batch).double().mean().item()
        meter.mark(len(batch), forward_flops(run.shape, batch), loss=-value)


if __name__ == "__main__":
    main()

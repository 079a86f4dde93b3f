"""python benchmarks/rollouts.py --variant slots --model v4k

Measure sampled tokens per second, in a separate process: our engine, or transformers' `generate` and continuous
batching. An untrained model does not end its responses, so each ends at a given length; engines may expect the length
of the annotated response. `--batch` counts prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from iris.config import Execution
from iris.sampling.engine import Request, Sampling
from iris.sampling.slots import SlotEngine
from measure import Meter, options
from workload import PAD, device, model, rows

LIMIT = 256  # most new tokens
PAGE = 32


@dataclass(frozen=True)
class Task:
    """A prompt, the length at which its response ends, and the length to expect."""

    prompt: list[int]
    length: int
    hint: int


def tasks(count: int, vocabulary: int) -> list[Task]:
    """Return the training benchmark's mix of lengths, cut at the limit."""
    data = rows(count, vocabulary)
    ends = [[min(len(response), LIMIT) for response in row.responses] for row in data]
    return [Task(np.asarray(row.prompt).tolist(), end, hint) for row, (hint, end) in zip(data, ends, strict=True)]


class _Imposed(SlotEngine):
    """Our engine with given lengths in place of the end-of-sequence token."""

    lengths: Sequence[int]

    def _finished(self, row: Any) -> bool:
        return bool(len(row.tokens) >= self.lengths[row.request])


def slots(policy: PreTrainedModel) -> Callable[[Sequence[Task]], int]:
    """Run `iris.sampling.slots.SlotEngine` as the `generate` stage does."""
    engine = _Imposed(policy, [], Execution().slots)

    def run(work: Sequence[Task]) -> int:
        engine.lengths = [task.length for task in work]
        requests = [Request(task.prompt, seed, hint=task.hint) for seed, task in enumerate(work)]
        return sum(len(rollout.tokens) for (rollout,) in engine.generate(requests, Sampling(max_new_tokens=LIMIT)))

    return run


class _Lengths(StoppingCriteria):
    def __init__(self, prompt: int, lengths: Sequence[int]) -> None:
        self.ends = torch.tensor([prompt + length for length in lengths], device=device())

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return input_ids.shape[1] >= self.ends


def generate(
    policy: PreTrainedModel, *, size: int = 16, ordered: bool = False, **settings: Any
) -> Callable[[Sequence[Task]], int]:
    """Run `transformers.generate` on `size` prompts at once, `ordered` by expected length, the longest first."""

    def run(work: Sequence[Task]) -> int:
        work = _by_hint(work) if ordered else work
        for start in range(0, len(work), size):
            part = work[start : start + size]
            width = max(len(task.prompt) for task in part)
            ids = torch.tensor([[PAD] * (width - len(t.prompt)) + t.prompt for t in part], device=device())
            policy.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=(ids != PAD).long(),
                stopping_criteria=StoppingCriteriaList([_Lengths(width, [task.length for task in part])]),
                generation_config=_settings(**settings),
            )
        return sum(task.length for task in work)

    return run


def continuous(policy: PreTrainedModel) -> Callable[[Sequence[Task]], int]:
    """Run transformers' continuous batching, the longest expected first, with as many slots as our engine."""
    count = Execution().slots
    most = -(-(200 + LIMIT) // PAGE)  # pages of the longest prompt and response
    limits: dict[str, Any] = {"page_size": PAGE, "num_blocks": count * most, "max_batch_tokens": 512}
    config = ContinuousBatchingConfig(
        **(limits if device().type == "cpu" else {}), max_requests_per_batch=count, allow_block_sharing=False
    )

    def run(work: Sequence[Task]) -> int:
        total = finished = 0
        with policy.continuous_batching_context_manager(  # type: ignore[operator]
            generation_config=_settings(eos_token_id=-1), continuous_batching_config=config, warmup=False
        ) as manager:
            for task in _by_hint(work):
                manager.add_request(task.prompt, max_new_tokens=task.length)
            while finished < len(work):
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    raise RuntimeError("continuous batching has stopped")
                if result is not None and result.is_finished():
                    finished += 1
                    total += len(result.generated_tokens)
        return total

    return run


def _settings(**extra: Any) -> GenerationConfig:
    """Return settings for plain sampling from the softmax."""
    base = {"do_sample": True, "top_k": 0, "max_new_tokens": LIMIT, "eos_token_id": None, "pad_token_id": PAD}
    return GenerationConfig(**base | extra)  # type: ignore[no-untyped-call]


def _by_hint(work: Sequence[Task]) -> list[Task]:
    return sorted(work, key=lambda task: -task.hint)


VARIANTS: dict[str, Callable[[PreTrainedModel], Callable[[Sequence[Task]], int]]] = {
    "slots": slots,
    "generate": generate,
    # The fastest of 16, 32 and 64 for each on a CPU.
    "generate-sorted": partial(generate, size=32, ordered=True),
    "generate-static": partial(generate, size=64, ordered=True, cache_implementation="static", disable_compile=True),
    "continuous": continuous,
}


def main() -> None:
    """Measure one variant."""
    run = options(__doc__, VARIANTS)
    torch.manual_seed(0)
    work = tasks(run.batch, run.shape.vocabulary)
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    policy = model(run.shape)
    policy.to(dtype)  # type: ignore[arg-type]
    sample = VARIANTS[run.variant](policy)
    meter = Meter(run.window, run.driven)
    short = [Task(task.prompt, min(task.length, 4), task.hint) for task in work[:8]]
    for part in [short] + [work] * (run.rounds * run.window):
        total = sample(part)
        assert total == sum(task.length for task in part), f"{total} tokens"
        meter.mark(total)


if __name__ == "__main__":
    main()

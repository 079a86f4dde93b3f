"""Cost of a stage from its tokens: 2 FLOPs per parameter and token forward, 6 in training, on an assumed machine.

Sampling takes one step per token for `execution.slots` sequences at a time; a step reads all weights. The FLOPs of
attention, communication and waiting are left out.
"""

from dataclasses import dataclass
from typing import NamedTuple

from iris.config import Execution
from iris.plan import Stage


@dataclass(frozen=True)
class Machine:
    """One device: FLOP/s, bytes/s of memory and of files, seconds per step and per start of a stage."""

    name: str
    flops: float
    memory: float
    files: float
    step: float
    start: float


GPU = Machine("H100 at 40 % of 989 TFLOP/s and half of 3.35 TB/s", 0.4 * 989e12, 0.5 * 3.35e12, 1e9, 0.025, 30)
CPU = Machine("CPU thread at 20 GFLOP/s", 2e10, 1e10, 1e9, 0.01, 0.5)


class Rows(NamedTuple):
    """Number of rows of a data subset, and mean tokens of a prompt and of a response."""

    size: float
    prompt: float
    response: float


class Work(NamedTuple):
    """Tokens passed forward (a training token counts as three), device steps, bytes stored, and other seconds."""

    tokens: float
    steps: float
    stored: float
    other: float = 0.0

    def seconds(self, machine: Machine, parameters: float) -> float:
        """Return seconds on one device, with 2-byte weights."""
        weights = 2 * parameters
        computing = 2 * parameters * self.tokens / machine.flops + self.other
        return (
            machine.start
            + weights / machine.files
            + computing
            + self.steps * max(machine.step, weights / machine.memory)
        )


def work(stage: Stage, rows: Rows, parameters: float, execution: Execution) -> Work:
    """Return the work of a stage on a data subset for a model with `parameters`."""
    identity, (count, prompt, response) = stage.identity, rows
    match stage.kind:
        case "base":
            return Work(0, 0, 0 if identity["source"] == "pretrained" else 4 * parameters)
        case "data":
            return Work(0, 0, 10 * count * (prompt + response), other=2 + count / 1000)
        case "generate":
            sampled = count * identity["samples"] * _sampled(stage, rows)
            slots = 768 if identity["engine"] == "vllm" else execution.slots
            return Work(sampled + count * prompt, _steps(sampled, count, slots), 10 * sampled)
        case "score":
            source = stage.one("responses")
            if source.kind == "generate":
                response = source.identity["samples"] * _sampled(source, rows)
            tokens = count * (prompt + response)
            return Work(tokens, tokens / execution.micro_batch_tokens, 100 * count)
        case "evaluate":
            return _evaluate(stage, execution)
    return _train(stage, rows, parameters, execution)


def _train(stage: Stage, rows: Rows, parameters: float, execution: Execution) -> Work:
    identity, rounds, lora = stage.identity, stage.many("generate"), stage.identity["lora"]
    responses = rows.response
    if rounds:
        responses += (identity["samples"] + ("proto" in stage.inputs)) * _sampled(rounds[0], rows)
    examples = identity["epochs"] * rows.size * max(1, len(rounds))
    tokens = examples * (rows.prompt + responses)
    passes = (2 if lora else 3) + execution.gradient_checkpointing  # adapters need no gradients of weights
    steps = max(examples / identity["batch"], tokens / execution.micro_batch_tokens)
    stored = parameters * (lora["rank"] / 750 if lora else 2 if identity["precision"] == "bfloat16" else 4)
    return Work(passes * tokens, steps, stored)


def _evaluate(stage: Stage, execution: Execution) -> Work:
    tokens = steps = stored = 0.0
    for documents, prompt, answer in [task for name in stage.identity["tasks"] for task in _TASKS.get(name, _OTHER)]:
        documents = min(documents, stage.identity["limit"] or documents)
        tokens += documents * (prompt + answer)
        steps += documents * prompt / execution.micro_batch_tokens
        steps += _steps(documents * answer, documents, execution.slots)
        stored += documents * (1000 + 6 * (prompt + answer))
    return Work(tokens, steps, stored)


def _sampled(generate: Stage, rows: Rows) -> float:
    """Return tokens of a synthetic response, assumed as long as an annotated one within the limit."""
    return min(rows.response, float(generate.identity["max_new_tokens"]))


def _steps(sampled: float, sequences: float, slots: int) -> float:
    return sampled / max(1.0, min(slots, sequences))


# Documents of an evaluation task, with tokens of a prompt and all its choices, and of a sampled answer.
_GSM8K = (1319, 900, 130)
_TASKS = {
    "papers": (
        _GSM8K,
        (1324, 1000, 500),  # math, level 5
        (756, 1130, 0),  # musr
        (14042, 704, 0),  # mmlu
        (12032, 1410, 0),  # mmlu_pro
        (1192, 270, 0),  # gpqa
        (10042, 1120, 0),  # hellaswag
        (2534, 160, 0),  # winogrande: each document in two wordings
        (5761, 820, 0),  # bbh
        (541, 60, 400),  # ifeval
    ),
    "gsm8k": (_GSM8K,),
    "embedded": ((1000, 10, 28),),
    "embedded_choice": ((1000, 130, 0),),
}
_OTHER = ((1000, 520, 50),)

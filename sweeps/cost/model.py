"""What a stage costs before anything like it has run: its tokens, the model's FLOPs for them, an assumed machine.

FLOPs: 2·N a token forward and 6·N in training for the N parameters every token passes, and the same for the output
projection at the positions of responses alone; an adapter needs no gradients of weights (4·N). Sampling takes one
step for every token of each sequence, `execution.slots` sequences at a time, and a step at least as long as reading the
weights. Attention's own FLOPs, communication and waiting are left out.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from iris.config import Execution
from iris.plan import Stage
from sweeps.cost.model_size import ModelSize


@dataclass(frozen=True)
class Machine:
    """One device: FLOP/s that are reached, bytes/s of memory and of files, seconds of a step and of a stage's start."""

    name: str
    flops: float
    memory: float
    files: float
    step: float
    start: float


GPU = Machine("H100 at 40 % of 989 TFLOP/s and half of 3.35 TB/s", 0.4 * 989e12, 0.5 * 3.35e12, 1e9, 0.025, 30)
CPU = Machine("CPU thread at 20 GFLOP/s", 2e10, 1e10, 1e9, 0.01, 0.5)


@dataclass(frozen=True)
class Rows:
    """A data subset: how many rows, and the mean tokens of a prompt and of a response."""

    count: float
    prompt: float
    response: float

    def sampled(self, limit: int) -> float:
        """Tokens of a synthetic response: as many as an annotated one has, within the limit."""
        return min(self.response, limit)


@dataclass(frozen=True)
class Task:
    """Documents of an evaluation task, and the tokens of each: prompt, choices (their sum), sampled answer."""

    documents: int
    prompt: int
    choices: int = 0
    sampled: int = 0


_PAPERS = (
    Task(1319, 900, 0, 130),  # gsm8k
    Task(1324, 1000, 0, 500),  # math, level 5
    Task(756, 1100, 30),  # musr
    Task(14042, 700, 4),  # mmlu
    Task(12032, 1400, 10),  # mmlu_pro
    Task(1192, 250, 20),  # gpqa
    Task(10042, 1000, 120),  # hellaswag
    Task(2534, 150, 10),  # winogrande: each document in two wordings
    Task(5761, 800, 20),  # bbh
    Task(541, 60, 0, 400),  # ifeval
)
_TASKS = {
    "papers": _PAPERS,
    "embedded": (Task(1000, 10, 0, 28),),
    "embedded_choice": (Task(1000, 10, 120),),
    "gsm8k": _PAPERS[:1],
}
_OTHER = (Task(1000, 500, 20, 50),)


class Work(NamedTuple):
    """FLOPs, sequential steps on the device, further seconds, and the bytes left in the store."""

    flops: float = 0.0
    steps: float = 0.0
    seconds: float = 0.0
    stored: float = 0.0

    def duration(self, machine: Machine, size: ModelSize) -> float:
        """Seconds on one device."""
        weights = 2 * size.stored
        start = machine.start + weights / machine.files + self.seconds
        return start + self.flops / machine.flops + self.steps * max(machine.step, weights / machine.memory)


class Setting(NamedTuple):
    """What a stage's work depends on besides the stage; `fresh` of its rows are not shared with a smaller subset."""

    size: ModelSize
    rows: Rows
    fresh: float
    execution: Execution


def like(stage: Stage) -> Hashable:
    """What of a stage its work depends on: equal for stages that cost the same in the same setting."""
    return stage.kind, _LIKE[stage.kind](stage, stage.identity)


def work(stage: Stage, setting: Setting) -> Work:
    """The work of a stage."""
    return _KINDS[stage.kind](stage, setting)


def _base(stage: Stage, setting: Setting) -> Work:
    return Work(stored=0 if stage.identity["source"] == "pretrained" else 4 * setting.size.stored)


def _data(stage: Stage, setting: Setting) -> Work:
    rows = setting.rows
    return Work(seconds=2 + rows.count / 1000, stored=10 * rows.count * (rows.prompt + rows.response))


def _train(stage: Stage, setting: Setting) -> Work:
    identity, rows, size = stage.identity, setting.rows, setting.size
    responses = rows.response
    if rounds := stage.many("generate"):
        sampled = rows.sampled(rounds[0].identity["max_new_tokens"])
        responses += sampled * (identity["samples"] + bool(identity["needs"].get("proto")))
    passes = identity["epochs"] * rows.count * max(1, len(rounds))
    tokens = passes * (rows.prompt + responses)
    each = 2 * ((2 if identity["lora"] else 3) + setting.execution.gradient_checkpointing)
    return Work(
        each * _forward(size, tokens, passes * responses),
        max(passes / identity["batch"], tokens / setting.execution.micro_batch_tokens),
        stored=_saved(identity, size),
    )


def _saved(identity: Mapping[str, Any], size: ModelSize) -> float:
    if identity["lora"]:
        return 4 * size.body * float(identity["lora"]["rank"]) / 3000  # parameters of adapters of such models
    return size.stored * (2 if identity["precision"] == "bfloat16" else 4)


def _generate(stage: Stage, setting: Setting) -> Work:
    identity, rows = stage.identity, setting.rows
    responses = setting.fresh * identity["samples"]
    tokens = responses * rows.sampled(identity["max_new_tokens"])
    sampling = _sampling(responses, tokens, setting)
    if identity["engine"] == "vllm":  # 256 sequences at once, at a third of the time for a step
        sampling = Work(sampling.flops, tokens / min(256, max(1, responses)) / 3)
    flops = sampling.flops + 2 * setting.size.body * setting.fresh * rows.prompt
    return Work(flops, sampling.steps, stored=10 * tokens)


def _score(stage: Stage, setting: Setting) -> Work:
    rows, source = setting.rows, stage.one("responses")
    each = rows.response
    if source.kind == "generate":
        each = source.identity["samples"] * rows.sampled(source.identity["max_new_tokens"])
    tokens = setting.fresh * (rows.prompt + each)
    steps = tokens / setting.execution.micro_batch_tokens
    return Work(2 * _forward(setting.size, tokens, setting.fresh * each), steps, stored=100 * setting.fresh)


def _evaluate(stage: Stage, setting: Setting) -> Work:
    flops = steps = stored = 0.0
    for task in [task for name in stage.identity["tasks"] for task in _TASKS.get(name, _OTHER)]:
        limit = stage.identity["limit"] or task.documents
        documents = min(task.documents, limit) * stage.identity.get("share", 1)
        tokens = documents * (task.prompt + task.choices)
        sampling = _sampling(documents, documents * task.sampled, setting)
        flops += 2 * _forward(setting.size, tokens, documents * task.choices) + sampling.flops
        steps += tokens / setting.execution.micro_batch_tokens + sampling.steps
        stored += documents * (1000 + 6 * (task.prompt + task.choices + task.sampled))
    return Work(flops, steps, stored=stored)


def _forward(size: ModelSize, tokens: float, responses: float) -> float:
    """Multiplications of a forward pass over tokens of which some are responses."""
    return size.body * tokens + size.head * responses


def _sampling(sequences: float, tokens: float, setting: Setting) -> Work:
    at_once = max(1.0, min(setting.execution.slots, sequences))
    return Work(2 * _forward(setting.size, tokens, tokens), tokens / at_once)


def _like_training(stage: Stage, identity: Mapping[str, Any]) -> Hashable:
    rounds = stage.many("generate")
    sampled = (
        (len(rounds), rounds[0].identity["max_new_tokens"], identity["samples"], identity["method"]) if rounds else 0
    )
    lora = identity["lora"] and identity["lora"]["rank"]
    return identity["epochs"], identity["batch"], identity["precision"], lora, sampled


def _like_scores(stage: Stage, identity: Mapping[str, Any]) -> Hashable:
    source = stage.one("responses")
    return source.kind == "generate" and (source.identity["samples"], source.identity["max_new_tokens"])


_LIKE: dict[str, Callable[[Stage, Mapping[str, Any]], Hashable]] = {
    "base": lambda stage, identity: identity["source"],
    "data": lambda stage, identity: (),
    "sft": _like_training,
    "generate": lambda stage, identity: (identity["samples"], identity["max_new_tokens"], identity["engine"]),
    "score": _like_scores,
    "train": _like_training,
    "evaluate": lambda stage, identity: (tuple(identity["tasks"]), identity["limit"], identity.get("share")),
}
_KINDS: dict[str, Callable[[Stage, Setting], Work]] = {
    "base": _base,
    "data": _data,
    "sft": _train,
    "generate": _generate,
    "score": _score,
    "train": _train,
    "evaluate": _evaluate,
}

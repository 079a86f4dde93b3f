"""python benchmarks/step.py --variant ours --model v32k

Measure pairs per second of a training step, in a separate process: ours with any method, or a peer's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml

from iris import compose
from iris.config import Execution
from iris.execution.progress import Line, Progress
from iris.execution.runner import Context
from iris.execution.world import World
from iris.method.registry import METHODS, find
from iris.model.logprobs import Policy
from iris.model.packing import Row, micro_batches, pack
from iris.store import Store
from iris.training import batching
from iris.training.gradient import Objective, TrainingSet
from iris.training.loop import Run
from measure import Options, StepMeter, options
from plain import plain
from workload import (
    LEARNING_RATE,
    MAX_NORM,
    POOL,
    STRATA,
    Shape,
    batches,
    device,
    even_rows,
    model,
    rows,
    sorted_batches,
)

PLAIN = ("plain", "plain-cached")
PEERS = ("trl", "trl-cached", "trl-best", "trl-longest", *PLAIN)
SORTED = {"trl-best": 12, "trl-longest": POOL}  # how many batches' pairs (at most the pool's) are sorted together
SETTINGS: Mapping[str, Any] = {
    "epochs": 1.0,
    "learning_rate": LEARNING_RATE,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "warmup": 0.0,
    "decay": "constant",
    "max_grad_norm": MAX_NORM,
    "seed": 0,
    "lora": None,
}


def references(shape: Shape, players: int, data: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Return log-probabilities [J, R, N] under J reference models."""
    return np.stack([_score(shape, 1 + j, data) for j in range(players)]) if players else None


def _score(shape: Shape, seed: int, data: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.float64]]:
    policy = Policy(model(shape, seed)).eval()
    result = np.empty((len(data[0].responses), len(data)))
    for part in micro_batches([row.tokens for row in data], 4096):
        with torch.inference_mode():
            logps, _ = policy(pack([data[i] for i in part]).to(device()))
        result[:, part] = logps.double().cpu().numpy().reshape(len(part), -1).T
    return result


def training_set(work: Sequence[Sequence[Row]], shape: Shape, method: str) -> TrainingSet:
    """Return the samples laid out so that the run's order takes the given batches."""
    flat = [row for batch in work for row in batch]
    order = [i for n in range(len(work)) for i in batching.global_batch(n, len(flat), len(work[0]), SETTINGS["seed"])]
    data: list[Row] = [flat[n] for n in np.argsort(order)]
    responses = [list(column) for column in zip(*(row.responses for row in data), strict=True)]
    known = references(shape, METHODS[method].players, data)
    return TrainingSet([row.prompt for row in data], responses, known, int(METHODS[method].synthetic))


def objective(method: str) -> Objective:
    """Return the method with its shipped parameters, and an order of ½ where it has one."""
    loss = yaml.safe_load((compose.conf_dir() / "method" / f"{method}.yaml").read_text())["loss"]
    return Objective(find(method), loss, (lambda step: 0.5) if METHODS[method].alpha else None)


def ours(work: Sequence[Sequence[Row]], shape: Shape, meter: StepMeter, method: str, distributed: str) -> None:
    """Run `iris.training.loop.Run` as the `train` stage does."""
    on_gpu = device().type == "cuda"
    settings = {**SETTINGS, "batch": len(work[0]), "precision": "bfloat16" if on_gpu else "float32"}
    execution = Execution(tracking=[], checkpoint_minutes=1e9, distributed=distributed)
    execution.gradient_checkpointing = shape.checkpointing
    world = World.join()
    with TemporaryDirectory() as folder:
        context = Context(Store(Path(folder)), execution, Progress(quiet=True), world, Path(folder))
        run = Run(model(shape), training_set(work, shape, method), objective(method), settings, context, Path(folder))
        with Line(context.progress.console, "", run.steps, "steps") as line:
            for batch in work:
                run.step(line)
                meter.step(batch, run.records[-1]["loss"])


def pool(run: Options) -> list[Row]:
    """Return the pairs of a long run, from which a few batches are measured."""
    count = run.batch * run.batches
    if run.length:
        return even_rows(count, run.shape.vocabulary, run.length)
    responses = 1 + METHODS[run.variant].synthetic + METHODS[run.variant].proto if run.variant in METHODS else 2
    return rows(max(POOL, count), run.shape.vocabulary, responses)


def main() -> None:
    """Measure one variant."""
    run = options(__doc__, [*METHODS, *PEERS])
    pairs = pool(run)
    if run.variant in SORTED:
        work = sorted_batches(pairs[: SORTED[run.variant] * run.batch], run.batch, run.rounds)
        run = replace(run, window=STRATA)
    else:
        work = batches(pairs, run.batch, run.batches)
    meter = StepMeter(run, pairs)
    if run.variant in METHODS:
        ours(work, run.shape, meter, run.variant, run.distributed)
    elif run.variant in PLAIN:
        plain(work, run.shape, meter, cached=run.variant == "plain-cached")
    else:
        from trl_step import trl  # its libraries take memory that is not ours

        trl(work, run.shape, meter, cached=run.variant != "trl", compact=run.variant in SORTED)


if __name__ == "__main__":
    main()

"""Frames of a study made up for figures: no store, every number known."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.collect.frames import Frames
from analysis.collect.index import AVERAGE
from iris.store import Store

METHODS = {"sft": 0.002, "spin": 0.01, "iris": 0.02}  # what an iteration adds to the score
SIZES = (14_000.0, 50_000.0, 200_000.0)
TASKS = {"mmlu": 0.0, "gsm8k": -0.1, "bbh": 0.1}  # easier or harder than their average
ITERATIONS, STEPS, BATCH = 3, 4, 64.0
HALF = 4.302652729911275 * 0.01 / 3**0.5 * 100  # of the t interval of three scores 1 point apart, in points
Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Made(Frames):
    """A study without a store."""

    curves: pd.DataFrame = field(default_factory=pd.DataFrame)

    def steps(self, where: pd.Series | None = None) -> pd.DataFrame:
        return self.curves


def grid(
    methods: Sequence[str] = tuple(METHODS), sizes: Sequence[float] = SIZES, seeds: Sequence[int] = (0, 1, 2)
) -> list[dict[str, Any]]:
    """Return the settings of the study's experiments."""
    points = itertools.product(methods, sizes, seeds)
    return [{"method": method, "size": size, "seed": seed} for method, size, seed in points]


def score(point: Setting, iteration: int, task: str = AVERAGE) -> float:
    """Of the supervised policy and of later ones; better with each size, better for higher seeds."""
    start: float = 0.32 + 0.02 * SIZES.index(point["size"]) + 0.01 * (point["seed"] - 1)
    return start + METHODS[point["method"]] * iteration + TASKS.get(task, 0.0)


def study(
    points: Sequence[Setting],
    done: Callable[[Setting], int] = lambda point: ITERATIONS,
    sft: bool = True,
    gpus: bool = True,
    tasks: Sequence[str] = tuple(TASKS),
    steps: int = STEPS,
) -> Made:
    """Frames of experiments whose first `done` iterations are finished; −1: not even their supervised stage."""
    experiments, scores, curves = [], [], [pd.DataFrame({"experiment": [], "iteration": [], "step": []})]
    for number, point in enumerate(points):
        finished = done(point)
        about = {"experiment": f"e{number}", "model": "tiny", "data": "sums", "schedule": "adaptive"} | dict(point)
        about |= {"state": "done" if finished == ITERATIONS else "failed", "annotations": point["size"]}
        experiments.append(about | {"error": "", "iterations": ITERATIONS})
        policies = [("base", -1), ("start", 0)] if sft else [("start", 0)]
        for policy, at in [*policies, *((f"t={t}", t) for t in range(1, ITERATIONS + 1))]:
            there = at <= finished
            row = about | {"policy": policy, "iteration": max(at, 0), "final": at == ITERATIONS, "part": False}
            row |= {"state": "done" if there else about["state"], "metric": "acc" if there else "", "main": True}
            row |= {"alpha": np.nan, "gap": 0.3 / at if point["method"] == "iris" and at > 0 and there else np.nan}
            row |= {"seconds": 60.0 * there, "gpu_seconds": 3600.0 * there * gpus, "evaluation": f"{policy}-{number}"}
            for task in (*tasks, AVERAGE):
                value = 0.3 + TASKS.get(task, 0) if policy == "base" else score(point, at, task)
                scores.append(row | {"task": task, "value": value if there else np.nan})
        for t in range(1, finished + 1):
            curves.append(recorded(point, t, steps).assign(experiment=f"e{number}", iteration=t))
    frame = pd.DataFrame(scores)
    frame = frame.astype(dict.fromkeys(("experiment", "method", "policy", "task", "state"), "category"))
    known = {"experiment", "state", "annotations", "method", "model", "data", "size", "schedule", "seed"}
    varying = list(dict.fromkeys(key for point in points for key in point if key not in known))
    table = pd.DataFrame(experiments)
    return Made(
        "made", Store(Path("none")), table, frame, list(tasks), varying, pd.DataFrame(), frozenset(),
        pd.concat(curves, ignore_index=True),
    )  # fmt: skip


def recorded(point: Setting, iteration: int, steps: int) -> pd.DataFrame:
    """Return the steps that training records in an iteration."""
    step = np.arange(steps)
    found = pd.DataFrame({"step": step, "batch": BATCH})
    if point["method"] != "sft":
        found["real_ratio"] = step / steps + 0.1 * point["seed"]
        found["synthetic_ratio"] = -2.0 * step
    if point["method"] == "iris":
        found["real_ess"], found["synthetic_ess"], found["alpha"] = BATCH, BATCH / (1 + step), 2.0 / iteration
    return found


def with_holes(point: Setting) -> int:
    """spin on 50k stops after one iteration, one seed of iris on 14k after two, sft on 200k never begins."""
    kind = point["method"], point["size"]
    stops = {("spin", 50_000.0): 1, ("sft", 200_000.0): -1, ("iris", 14_000.0): 2 if point["seed"] == 0 else 3}
    return stops.get(kind, ITERATIONS)

"""`train`: one iteration of a method, from π_t to π_{t+1}."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from iris.data.rows import read_rows
from iris.execution.runner import Context
from iris.method import schedules
from iris.plan import Stage
from iris.stages.responses import read_responses, read_scores
from iris.store import Claim
from iris.training.gradient import Objective, TrainingSet
from iris.training.loop import fit, run_steps


def run(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
    """Train on the pairs of the latest rounds, against the log-probabilities that scoring has left."""
    training = training_set(stage, context)
    gap = _gap(stage, context)
    alpha = _alpha(stage, gap.get("gap_smoothed"), run_steps(stage.identity, len(training)))
    objective = Objective(stage.identity["method"], stage.identity["loss"], alpha)
    return fit(stage, context, claim, training, objective) | gap


def training_set(stage: Stage, context: Context) -> TrainingSet:
    """N = prompts × rounds samples; references [J, R, N] of J players, if the method has any."""
    rows = read_rows(context.artifact(stage.one("data")))
    rounds = [read_responses(g, context) for g in stage.many("generate")]
    if not rounds:
        return TrainingSet(rows.prompt_tokens, [rows.response_tokens])
    samples = len(rounds[0])
    responses: list[list[Any]] = [list(rows.response_tokens) * len(rounds)]
    responses += [list(itertools.chain.from_iterable(r[k] for r in rounds)) for k in range(samples)]
    if stage.identity["method"] == "t_spin":
        proto = read_responses(stage.one("proto"), context)[0] if "proto" in stage.inputs else rounds[0][0]
        responses.append(list(proto) * len(rounds))
    return TrainingSet(list(rows.prompt_tokens) * len(rounds), responses, _references(stage, context), samples)


def _references(stage: Stage, context: Context) -> np.ndarray | None:
    real = [read_scores(s, context) for s in stage.many("real_scores")]
    if not real:
        return None
    rounds = len(stage.many("generate"))
    synthetic = [read_scores(s, context) for s in stage.many("synthetic_scores")]
    return np.stack(
        [
            np.concatenate([np.tile(real[j], rounds), np.concatenate(synthetic[j * rounds : (j + 1) * rounds], axis=1)])
            for j in range(len(real))
        ]
    )


def _gap(stage: Stage, context: Context) -> dict[str, float]:
    """The gap between π_t and the annotations, and its average over iterations as the adaptive schedule smooths it."""
    if not stage.many("real_scores"):
        return {}
    real = context.artifact(stage.many("real_scores")[0]).results["per_token"]
    latest = context.artifact(stage.many("synthetic_scores")[len(stage.many("generate")) - 1]).results["per_token"]
    gap = schedules.gap(real, latest)
    previous = context.artifact(stage.one("policy")).results.get("gap_smoothed")
    ema = stage.identity.get("alpha", {}).get("adaptive", {}).get("ema", 0.0)
    return {"gap": gap, "gap_smoothed": schedules.smooth(previous, gap, ema)}


def _alpha(stage: Stage, gap: float | None, steps: int) -> Callable[[int], float] | None:
    """The order α of each step."""
    spec = stage.identity.get("alpha")
    if spec is None:
        return None
    if "adaptive" in spec:
        value = schedules.alpha_at("adaptive", spec["adaptive"], 0.0, gap)
    elif "value" in spec:
        value = spec["value"]
    else:
        iteration, iterations = spec["span"]
        return lambda step: schedules.alpha_at(
            spec["schedule"], spec["params"], schedules.position(iteration, iterations, step, steps)
        )
    return lambda step: value

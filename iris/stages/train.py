"""`train`: one iteration of a method, from π_t to π_{t+1}."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from iris.data.rows import read_rows
from iris.errors import UserError
from iris.execution.runner import Context
from iris.method import schedules
from iris.method.registry import Method
from iris.plan import Stage
from iris.stages.responses import read_responses, read_scores
from iris.store import Claim
from iris.training.gradient import Objective, TrainingSet
from iris.training.loop import fit, run_steps


def run(stage: Stage, context: Context, claim: Claim) -> dict[str, Any]:
    """Train on the pairs of the latest rounds against the log-probabilities of their `score` stages."""
    training = training_set(stage, context)
    gap = _gap(stage, context)
    alpha = _alpha(stage, gap.get("gap_smoothed"), run_steps(stage.identity, len(training)))
    method = Method.of(stage.location["objective"], stage.identity["needs"])
    _check_unchanged(method.reference, method.source, stage.identity["source"])
    objective = Objective(method, stage.identity["loss"], alpha)
    return fit(stage, context, claim, training, objective) | gap


def _check_unchanged(reference: str, here: str, planned: str) -> None:
    """Refuse to compute under a key that another source has given: a function of a user's own may change meanwhile."""
    if here != planned:
        raise UserError(f"{reference} has changed since this was planned. Run the command again to plan it anew.")


def training_set(stage: Stage, context: Context) -> TrainingSet:
    """Return N = prompts × rounds samples, with references [J, R, N] of J players if the method has any."""
    rows = read_rows(context.artifact(stage.one("data")))
    rounds = [read_responses(g, context) for g in stage.many("generate")]
    if not rounds:
        return TrainingSet(rows.prompt_tokens, [rows.response_tokens])
    samples = len(rounds[0])
    responses: list[list[Any]] = [list(rows.response_tokens) * len(rounds)]
    responses += [list(itertools.chain.from_iterable(r[k] for r in rounds)) for k in range(samples)]
    if stage.identity["needs"].get("proto"):
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
    """Return the gap between π_t and the annotations, and its average over iterations with the schedule's `ema`."""
    if not stage.many("real_scores"):
        return {}
    real = context.artifact(stage.many("real_scores")[0]).results["per_token"]
    latest = context.artifact(stage.many("synthetic_scores")[len(stage.many("generate")) - 1]).results["per_token"]
    gap = schedules.gap(real, latest)
    previous = context.artifact(stage.one("policy")).results.get("gap_smoothed")
    ema = stage.identity.get("alpha", {}).get("params", {}).get(schedules.EMA, 0.0)
    return {"gap": gap, "gap_smoothed": schedules.smooth(previous, gap, ema)}


def _alpha(stage: Stage, gap: float | None, steps: int) -> Callable[[int], float] | None:
    """Return the order α of each step, if the method has one."""
    found = stage.identity.get("alpha")
    if found is None:
        return None
    if "value" in found:
        return lambda step: float(found["value"])
    schedule = schedules.find(found["schedule"], stage.location["schedule"])
    _check_unchanged(schedule.reference, schedule.source, found["source"])
    iteration, iterations = found.get("span", (0, 1))
    by_step = found.get("per") == "step"

    def alpha(step: int) -> float:
        at = schedules.position(iteration, iterations, *((step, steps) if by_step else ()))
        return schedule.alpha(found["params"], at, gap)

    return alpha

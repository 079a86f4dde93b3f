"""The stages of a trial in the order a search runs them, rung by rung."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iris import compose, plan
from iris.config import Config, identity
from iris.errors import UserError, nearest
from iris.execution import runner
from iris.execution.runner import Context
from iris.plan import Chain, Row, Stage
from iris.store import Artifact
from sweeps.search.file import Search
from sweeps.study.experiments import facts


@dataclass(frozen=True)
class Rung:
    """The stages up to a policy, and its evaluation on a share of the documents, which the trial reports."""

    label: str
    stages: tuple[Stage, ...]
    part: Stage


@dataclass(frozen=True)
class Trial:
    """The stages of one trial. A rung has only those that no rung before it has."""

    config: Config
    name: str
    rungs: tuple[Rung, ...]
    path: tuple[Stage, ...]  # the stages up to the last policy
    whole: Stage  # its evaluation, which has the objective

    def record(self) -> dict[str, Any]:
        """Return the stages as kind/key and the facts of the configuration, for costs and `status`."""
        rungs = [
            {"label": r.label, "stages": [s.id for s in r.stages], "policy": r.part.one("policy").id, "part": r.part.id}
            for r in self.rungs
        ]
        return {"rungs": rungs, "path": [s.id for s in self.path], "whole": self.whole.id} | {
            "facts": facts(self.config)
        }


def make_trial(search: Search, overrides: Sequence[str]) -> Trial:
    """Plan a trial. Raises UserError."""
    base = [*search.base, *overrides]
    configs = [compose.load([*base, *rung]) for rung in search.rungs] or [compose.load(base)]
    chains = [plan.chain(identity(config)) for config in configs]
    rows = [(chain, chain.rows[-1]) for chain in chains]
    if not search.rungs:
        iterations = max(1, configs[0].iterations)
        rows = [(chains[0], row) for row in chains[0].rows[-iterations:]]
    rungs: list[Rung] = []
    for chain, row in rows:
        before = {stage.id for rung in rungs for stage in rung.stages}
        stages = tuple(s for s in needed(chain, row) if s.id not in before)
        rungs.append(Rung(row.label, stages, _part(row, search)))
    path = tuple(needed(*rows[-1]))
    return Trial(configs[-1], chains[-1].name, tuple(rungs), path, _whole(rows[-1][1], search))


def _part(row: Row, search: Search) -> Stage:
    return row.evaluate if search.share == 1 else plan.part(row.evaluate, search.share)


def _whole(row: Row, search: Search) -> Stage:
    return replace(row.evaluate, location=dict(row.evaluate.location) | {"share": search.share})


def needed(chain: Chain, row: Row) -> list[Stage]:
    """Return the stages up to a row's policy, in order, without evaluations."""
    names: set[str] = set()
    left = [row.policy]
    while left:
        stage = left.pop()
        if stage.id not in names:
            names.add(stage.id)
            left += stage.parents
    return [stage for stage in chain.stages if stage.id in names]


def ensure(stages: Sequence[Stage], context: Context, begin: Callable[[Stage], None] = lambda _: None) -> None:
    """Run the missing stages; wait for those that another worker runs."""
    for stage in stages:
        begin(stage)
        runner.ensure(stage, context)


def score(evaluation: Artifact, objective: str) -> float:
    """Return `average`, `TASK` (its main metric) or `TASK:METRIC,FILTER` of an evaluation. Raises UserError if NaN."""
    value = float(_value(evaluation, objective))
    if math.isnan(value):
        raise UserError(f"objective={objective} is NaN in evaluate/{evaluation.key}: no trial can be compared by it.")
    return value


def _value(evaluation: Artifact, objective: str) -> Any:
    task, sign, metric = objective.partition(":")
    if objective == "average":
        return evaluation.results["average"]
    if not sign:
        return _found(evaluation.results["main"], task, objective)
    tasks = evaluation.read_json("scores.json")["tasks"]
    return _found(_found(tasks, task, objective), metric, objective)


def _found(values: dict[str, Any], name: str, objective: str) -> Any:
    if name not in values:
        known = [key for key in values if "_stderr" not in key]
        raise UserError(
            f"objective={objective}: the evaluation has no '{name}'.{nearest(name, known)} It has: {', '.join(known)}."
        )
    return values[name]

"""Estimate what a plan costs: device time, disk and wall time per kind of stage, and what caching and sharing save."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from iris.errors import UserError
from iris.plan import VERSIONS, Stage
from iris.store import Store
from sweeps.cost.costs import Cost, Costs
from sweeps.cost.formula import Machine
from sweeps.study.plan import Plan

Devices = Callable[[str], int]  # how many devices a stage of a kind runs on


@dataclass(frozen=True)
class KindEstimate:
    """Counts of the stages of one kind; device hours, bytes and median wall seconds of the missing ones."""

    kind: str
    stages: int
    cached: int
    shared: int
    hours: float
    stored: float
    seconds: float | None  # None where none is missing

    @property
    def missing(self) -> int:
        """Stages that have not run."""
        return self.stages - self.cached


@dataclass(frozen=True)
class Estimate:
    """Cost of a plan's missing stages, and device hours that it does not cost."""

    machine: Machine
    kinds: list[KindEstimate]
    shared: float  # hours saved: stages of several experiments that no training precedes run once
    prefixes: float  # hours saved: common iterations run once
    nested: float  # hours saved: prompts that a smaller subset has computed
    cached: float  # hours of finished stages
    longest: float  # wall seconds of the longest chain of missing stages
    measured: dict[str, int]  # finished stages that an estimate rests on, by kind
    notes: list[str]

    @property
    def hours(self) -> float:
        """Device hours of all missing stages."""
        return sum(kind.hours for kind in self.kinds)


def estimate(plan: Plan, store: Store, devices: Devices = lambda kind: 1) -> Estimate:
    """Estimate what is missing; reads a few dozen manifests of the store."""
    costs = Costs(plan, store)
    cost = costs.by_stage()
    missing = [name for name in plan.stages if name not in plan.cached]
    by_kind: dict[str, list[str]] = {kind: [] for kind in VERSIONS}
    for name, stage in plan.stages.items():
        by_kind[stage.kind].append(name)
    shared, prefixes = _saved(plan, cost, missing)
    return Estimate(
        costs.machine,
        [_of_kind(kind, names, plan, cost, devices(kind)) for kind, names in by_kind.items() if names],
        shared,
        prefixes,
        nested=sum(cost[name].alone - cost[name].seconds for name in missing) / 3600,
        cached=sum(cost[name].alone for name in plan.cached) / 3600,
        longest=_longest(plan, cost, devices),
        measured=costs.measured,
        notes=list(costs.notes),
    )


def _saved(plan: Plan, cost: Mapping[str, Cost], missing: list[str]) -> tuple[float, float]:
    """Return hours saved by running shared stages once: those that no training precedes, and all others."""
    trained: set[Any] = set()
    for stage in plan.stages.values():
        if stage.kind == "train" or stage.inputs.get("policy") in trained:
            trained.add(stage)
    hours = {name: cost[name].alone * (len(plan.users[name]) - 1) / 3600 for name in missing}
    prefixes = sum(saved for name, saved in hours.items() if plan.stages[name] in trained)
    return sum(hours.values()) - prefixes, prefixes


def _of_kind(kind: str, names: list[str], plan: Plan, cost: Mapping[str, Cost], devices: int) -> KindEstimate:
    missing = [cost[name] for name in names if name not in plan.cached]
    return KindEstimate(
        kind,
        len(names),
        len(names) - len(missing),
        sum(len(plan.users[name]) > 1 for name in names),
        sum(c.seconds for c in missing) / 3600,
        sum(c.stored for c in missing),
        statistics.median(c.seconds for c in missing) / devices if missing else None,
    )


def _longest(plan: Plan, cost: Mapping[str, Cost], devices: Devices) -> float:
    ends: dict[Stage, float] = {}
    count = {kind: devices(kind) for kind in VERSIONS}
    for name, stage in plan.stages.items():
        if name not in plan.cached:
            start = max((ends.get(source, 0.0) for source in stage.parents), default=0.0)
            ends[stage] = start + cost[name].seconds / count[stage.kind]
    return max(ends.values(), default=0.0)


def check_budget(found: Estimate, hours: float) -> None:
    """Raise UserError where a plan is estimated above `hours` of device time."""
    if found.hours > hours:
        costly = [k for k in sorted(found.kinds, key=lambda k: -k.hours) if k.hours >= 0.05 * found.hours]
        parts = ", ".join(f"{k.kind} {k.hours:.3g}" for k in costly)
        raise UserError(
            f"budget_gpu_hours={hours:g}: missing stages are estimated at {found.hours:.4g} hours ({parts}). Reduce "
            "the study, such as with seeds=[0], or raise the budget."
        )

"""What a plan will cost: device time, disk and wall time per kind of stage, and what is saved by doing things once."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from iris.errors import UserError
from iris.plan import VERSIONS, Stage
from iris.store import Store
from sweeps.cost.costs import Cost, Costs
from sweeps.cost.model import Machine
from sweeps.study.plan import Plan

Devices = Callable[[str], int]  # how many devices a stage of a kind runs on


@dataclass(frozen=True)
class KindEstimate:
    """The stages of one kind, and what the missing ones take: device hours and bytes."""

    kind: str
    stages: int
    cached: int
    shared: int
    hours: float
    stored: float
    seconds: float | None  # wall time of a missing one (median); None where none is missing

    @property
    def missing(self) -> int:
        """Stages to be run."""
        return self.stages - self.cached


@dataclass(frozen=True)
class Estimate:
    """What is missing of a plan, and why it is no more than that. Hours are device hours, `longest` is wall seconds."""

    machine: Machine
    kinds: list[KindEstimate]
    shared: float  # hours saved: stages before the first iteration's training that several experiments need,
    prefixes: float  # … those of iterations in which several agree,
    nested: float  # … prompts that a smaller subset has,
    cached: float  # … and stages that are finished
    longest: float  # of the longest chain of missing stages
    measured: dict[str, int]  # finished stages behind the estimate of a kind
    notes: list[str]

    @property
    def hours(self) -> float:
        """Device hours of all missing stages."""
        return sum(kind.hours for kind in self.kinds)


def estimate(plan: Plan, store: Store, devices: Devices = lambda kind: 1) -> Estimate:
    """Estimate what is missing; reads a few dozen manifests of the store."""
    costs = Costs(plan, store)
    cost = costs.all()
    missing = [name for name in plan.stages if name not in plan.cached]
    by_kind: dict[str, list[str]] = {kind: [] for kind in VERSIONS}
    for name, stage in plan.stages.items():
        by_kind[stage.kind].append(name)
    return Estimate(
        costs.machine,
        [_of_kind(kind, names, plan, cost, devices(kind)) for kind, names in by_kind.items() if names],
        *_saved(plan, cost, missing),
        sum(cost[name].whole - cost[name].seconds for name in missing) / 3600,
        sum(cost[name].whole for name in plan.cached) / 3600,
        _longest(plan, cost, devices),
        costs.measured,
        costs.notes,
    )


def _saved(plan: Plan, cost: Mapping[str, Cost], missing: list[str]) -> tuple[float, float]:
    """The hours that running shared stages once saves: those that no training comes before, and the others."""
    trained: dict[str, bool] = {}
    for name, stage in plan.stages.items():
        trained[name] = stage.kind == "train" or any(trained[before.id] for before in stage.parents)
    hours = {name: cost[name].whole * (len(plan.users[name]) - 1) / 3600 for name in missing}
    prefixes = sum(saved for name, saved in hours.items() if trained[name])
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
    """Wall seconds of the longest chain of missing stages, each on its devices."""
    ends: dict[Stage, float] = {}
    of_kind = {kind: devices(kind) for kind in VERSIONS}
    for name, stage in plan.stages.items():
        if name not in plan.cached:
            latest = max((ends.get(before, 0.0) for before in stage.parents), default=0.0)
            ends[stage] = latest + cost[name].seconds / of_kind[stage.kind]
    return max(ends.values(), default=0.0)


def check_budget(found: Estimate, hours: float) -> None:
    """Refuse a plan that is estimated to cost more than `hours` of device time."""
    if found.hours > hours:
        dearest = sorted(found.kinds, key=lambda k: -k.hours)
        parts = ", ".join(f"{k.kind} {k.hours:.3g}" for k in dearest if k.hours >= 0.05 * found.hours)
        raise UserError(
            f"budget_gpu_hours={hours:g}: what is missing is estimated at {found.hours:.4g} hours ({parts}). Ask for "
            "less, such as seeds=[0], or raise the budget."
        )

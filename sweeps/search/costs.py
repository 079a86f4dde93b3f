"""The costs of a search, from manifests, compared with running each trial whole and by itself."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from iris.cost import cost
from iris.store import Store, split_id

_SECONDS = {"gpu_hours": "gpu_seconds", "cpu_hours": "cpu_seconds"}
_SETUP = ("base", "data", "sft")
Record = dict[str, Any]  # Trial.record


@dataclass
class Ledger:
    """The hours of stages by kind/key."""

    store: Store
    unit: str
    hours: dict[str, float] = field(default_factory=dict)
    shards: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    reused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def read(self, name: str) -> float:
        """Return the hours of a stage without its shards; 0 if it is not finished."""
        if name not in self.hours:
            kind, key = split_id(name)
            self.hours[name] = 0.0
            if found := self.store.find(kind, key):
                spent = cost(found.manifest)
                self.shards[name] = [f"{kind}/{shard}" for shard in spent.shards]
                self.reused[name] = [f"evaluate/{key}" for key in found.manifest["provenance"].get("reused", {})]
                self.hours[name] = getattr(spent, _SECONDS[self.unit]) / 3600
        return self.hours[name]

    def total(self, names: Iterable[str]) -> float:
        """Return the hours of stages and of their shards, each counted once."""
        own = {name: self.read(name) for name in names}
        return sum(map(self.read, {*own}.union(*(self.shards[name] for name in own))))

    def alone(self, name: str) -> float:
        """Return the hours of one stage on an empty store: with its shards and the evaluations that it reused."""
        self.read(name)
        return self.total([name, *self.reused[name]])


def unit_of(store: Store, records: Sequence[Record]) -> str:
    """Return gpu_hours if a stage ran on GPUs, else cpu_hours."""
    ledger = Ledger(store, "gpu_hours")
    return "gpu_hours" if ledger.total(name for r in records for name in path(r)) > 0 else "cpu_hours"


def path(record: Record) -> list[str]:
    """Return every stage of a trial run whole, without those that only rungs need."""
    return [*record["path"], record["whole"]]


def of_record(store: Store, record: Record, unit: str) -> float:
    """Return the hours of a finished trial, whichever trial computed its stages."""
    ledger = Ledger(store, unit)
    return sum(ledger.alone(name) for name in path(record))


@dataclass(frozen=True)
class Account:
    """The hours of a search. `whole` − `setup` − `prefixes` − `pruning` + `rungs` = `executed`."""

    unit: str
    trials: int
    whole: float  # every trial run to its end by itself, with one whole evaluation
    start: float  # base model, data and supervised stage, each distinct one once
    setup: float  # saved: running these for every trial
    prefixes: float  # saved: iterations (and evaluations) that trials share
    pruning: float  # saved: what pruned trials did not run
    rungs: float  # paid: what only rungs need, such as evaluations that no whole one reused
    executed: float
    estimated: float  # the share of `whole` of stages that never ran, at the mean of their kind


@dataclass(frozen=True)
class Done:
    """A trial's record, how many rungs it reported, and whether it is complete."""

    record: Record
    reported: int
    complete: bool

    def ran(self) -> Iterator[str]:
        """Return the stages it needed, without the evaluations of rungs."""
        yield from (name for rung in self.record["rungs"][: self.reported] for name in rung["stages"])
        if self.complete:
            yield from path(self.record)


def account(store: Store, trials: Sequence[Done], unit: str) -> Account:
    """Return the account of a search's valid trials."""
    ledger = Ledger(store, unit)
    ran = {name for trial in trials for name in trial.ran()}
    parts = {rung["part"] for t in trials for rung in t.record["rungs"][: t.reported]}
    every = [name for trial in trials for name in path(trial.record)]
    hours = _hours(ledger, set(every), ran, parts - ran)
    whole = sum(hours[name] for name in every)
    start = sum(hours[name] for name in set(every) if _is_setup(name))
    setup = sum(hours[name] for name in every if _is_setup(name)) - start
    pruning = sum(hours[name] for name in set(every) - ran)
    used = ran & set(every)
    needed = ledger.total(used.union(*(ledger.reused[name] for name in used)))
    executed = ledger.total(ran | parts)
    estimated = sum(hours[name] for name in every if name not in ran) / whole if whole else 0.0
    prefixes = whole - setup - pruning - needed
    return Account(unit, len(trials), whole, start, setup, prefixes, pruning, executed - needed, executed, estimated)


def _is_setup(name: str) -> bool:
    return split_id(name)[0] in _SETUP


def _hours(ledger: Ledger, every: set[str], ran: set[str], parts: set[str]) -> dict[str, float]:
    """Return each stage's hours by itself; for one that no trial ran, the mean of its kind."""
    known = {name: ledger.alone(name) for name in ran}
    kinds: dict[str, list[float]] = {}
    for name, hours in known.items():
        kinds.setdefault(split_id(name)[0], []).append(hours)
    if "evaluate" not in kinds:  # no trial is complete: use the evaluations of rungs
        kinds["evaluate"] = [ledger.alone(name) for name in parts]
    means = {kind: sum(values) / len(values) for kind, values in kinds.items() if values}
    return {name: known.get(name, means.get(split_id(name)[0], 0.0)) for name in every}

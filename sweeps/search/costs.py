"""What a search has cost, from manifests, against its trials run whole and each by itself."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from iris.cost import cost
from iris.store import Store, split_id

# The part of a manifest's cost, and what an hour of it is called.
_SECONDS = {"gpu_hours": "gpu_seconds", "cpu_hours": "cpu_seconds"}
_SETUP = ("base", "data", "sft")
Record = dict[str, Any]  # search_trial.Trial.record


@dataclass
class Ledger:
    """The hours of stages by their names (kind/key)."""

    store: Store
    unit: str
    hours: dict[str, float | None] = field(default_factory=dict)
    shards: dict[str, list[str]] = field(default_factory=dict)
    reused: dict[str, list[str]] = field(default_factory=dict)

    def read(self, name: str) -> float | None:
        """The hours of a finished stage without its shards, None if it has not run."""
        if name not in self.hours:
            kind, key = split_id(name)
            found = self.store.find(kind, key)
            self.hours[name] = None
            if found is not None:
                spent = cost(found.manifest)
                self.shards[name] = [f"{kind}/{shard}" for shard in spent.shards]
                self.reused[name] = [f"evaluate/{key}" for key in found.manifest["provenance"].get("reused", {})]
                self.hours[name] = getattr(spent, _SECONDS[self.unit]) / 3600
        return self.hours[name]

    def everything(self, names: Iterable[str]) -> set[str]:
        """Finished stages with their shards."""
        done = {name for name in names if self.read(name) is not None}
        return done.union(*(self.shards[name] for name in done))

    def total(self, names: Iterable[str]) -> float:
        """The hours of finished stages and of their shards, each counted once."""
        return sum(self.read(name) or 0.0 for name in self.everything(names))

    def alone(self, name: str) -> float | None:
        """The hours of one stage had nothing of it been there: with its shards, and with answers that it reused."""
        if self.read(name) is None:
            return None
        return self.total([name, *self.reused[name]])


def unit_of(store: Store, records: Sequence[Record]) -> str:
    """GPU-hours where stages ran on GPUs, CPU-hours otherwise."""
    ledger = Ledger(store, "gpu_hours")
    return "gpu_hours" if ledger.total(name for r in records for name in path(r)) > 0 else "cpu_hours"


def path(record: Record) -> list[str]:
    """Every stage of a trial run whole: without what only its earlier rungs need, and without their evaluations."""
    return [*record["path"], record["whole"]]


def of_record(store: Store, record: Record, unit: str) -> float:
    """The hours of a finished trial, whoever computed its stages."""
    ledger = Ledger(store, unit)
    return sum(ledger.alone(name) or 0.0 for name in path(record))


@dataclass(frozen=True)
class Account:
    """The hours of a search. `whole` − `setup` − `prefixes` − `pruning` + `rungs` = `executed`."""

    unit: str
    trials: int
    whole: float  # every trial run to its end, by itself, with one whole evaluation
    start: float  # base model, data and supervised stage, each distinct one once
    setup: float  # saved: what running these for every trial would cost beyond that
    prefixes: float  # saved: iterations (and evaluations) in which trials agree once
    pruning: float  # saved: what pruned trials have left out
    rungs: float  # paid: what only rungs need, such as their evaluations where no whole one reused them
    executed: float
    estimated: float  # the share of `whole` that stands for stages which have never run, at the mean of their kind


@dataclass(frozen=True)
class Done:
    """A trial for the account: its stages, how many rungs it has run, and whether it has come to its end."""

    record: Record
    reported: int
    complete: bool

    def ran(self) -> Iterator[str]:
        """The stages it needed, apart from the evaluations of rungs."""
        yield from (name for rung in self.record["rungs"][: self.reported] for name in rung["stages"])
        if self.complete:
            yield from path(self.record)


def account(store: Store, trials: Sequence[Done], unit: str) -> Account:
    """The account of a search's valid trials."""
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
    """Of each stage what it costs by itself; of one that no trial ran, the mean of those of its kind."""
    known = {name: ledger.alone(name) or 0.0 for name in ran}
    kinds: dict[str, list[float]] = {}
    for name, hours in known.items():
        kinds.setdefault(split_id(name)[0], []).append(hours)
    if "evaluate" not in kinds:  # no trial has come to its end: a part is at least something
        kinds["evaluate"] = [ledger.alone(name) or 0.0 for name in parts]
    means = {kind: sum(values) / len(values) for kind, values in kinds.items() if values}
    return {name: known.get(name, means.get(split_id(name)[0], 0.0)) for name in every}

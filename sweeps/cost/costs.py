"""Cost of every stage of a plan: the formula, scaled by the median ratio to similar finished stages."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from iris.plan import Stage, base_of, canonical
from iris.store import Artifact, Store
from sweeps.cost import formula, model_size
from sweeps.cost.formula import Rows
from sweeps.cost.measured import Sample, samples
from sweeps.study.plan import Plan

_ASSUMED_ROWS = 100_000  # of a subset without a size before its data stage has run


class Cost(NamedTuple):
    """Device seconds of a stage alone, device seconds less the shards of a smaller subset, and bytes stored."""

    alone: float
    seconds: float
    stored: float


class Costs:
    """Costs of a plan's stages; `measured` counts finished stages by kind, `notes` are assumptions for users."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.notes: dict[str, None] = {}
        self._plan, self._store = plan, store
        self._parameters: dict[str, float] = {}  # by key of a base stage
        self._rows: dict[str, Rows] = {}  # by key of a data stage
        found = samples(plan, store)
        self._lengths = {_without_size(s.stage): _rows(s.artifact) for s in found if s.stage.kind == "data"}
        on_cpu = all(e.config.execution.device == "cpu" for e in plan.experiments)
        self.machine = formula.CPU if on_cpu or (found and not any(s.gpu for s in found)) else formula.GPU
        comparable = [s for s in found if s.gpu == (self.machine is formula.GPU)]
        self.measured = Counter(s.stage.kind for s in comparable)
        self._scale = {kind: self._ratios([s for s in comparable if s.stage.kind == kind]) for kind in self.measured}

    def by_stage(self) -> dict[str, Cost]:
        """Return the cost of each stage by its name in the plan."""
        fresh = _fresh_rows(self._plan, self._rows_of)
        return {name: self._cost(name, stage, fresh.get(name)) for name, stage in self._plan.stages.items()}

    def _cost(self, name: str, stage: Stage, fresh: float | None) -> Cost:
        user = self._plan.users[name][0]
        time, space = self._scale.get(stage.kind, (1.0, 1.0))
        alone, stored = self._formula(stage, user)
        if fresh is None:
            return Cost(alone * time, alone * time, stored * space)
        seconds, stored = self._formula(stage, user, fresh)
        return Cost(alone * time, seconds * time, stored * space)

    def _formula(self, stage: Stage, user: int = 0, fresh: float | None = None) -> tuple[float, float]:
        rows, parameters = self._rows_of(stage), self._parameters_of(stage)
        rows = rows if fresh is None else rows._replace(size=fresh)
        work = formula.work(stage, rows, parameters, self._plan.experiments[user].config.execution)
        return work.seconds(self.machine, parameters), work.stored

    def _ratios(self, found: Sequence[Sample]) -> tuple[float, float]:
        """Return the median ratios of measured seconds and bytes to the formula's."""
        expected = [self._formula(sample.stage) for sample in found]
        times = [sample.seconds / seconds for sample, (seconds, _) in zip(found, expected, strict=True)]
        spaces = [
            sample.stored / stored if stored else 1.0 for sample, (_, stored) in zip(found, expected, strict=True)
        ]
        return statistics.median(times), statistics.median(spaces)

    def _parameters_of(self, stage: Stage) -> float:
        base = stage.one("tokenizer") if stage.kind == "data" else base_of(stage)
        if base.key not in self._parameters:
            self._parameters[base.key], note = model_size.parameters(base, self._store)
            self.notes |= {note: None} if note else {}
        return self._parameters[base.key]

    def _rows_of(self, stage: Stage) -> Rows:
        data = stage if stage.kind == "data" else stage.inputs.get("data")
        if not isinstance(data, Stage):
            return Rows(0, 0, 0)
        if data.key not in self._rows:
            artifact = self._store.find("data", data.key) if data.id in self._plan.cached else None
            self._rows[data.key] = _rows(artifact) if artifact else self._assumed_rows(data)
        return self._rows[data.key]

    def _assumed_rows(self, data: Stage) -> Rows:
        """Assume lengths of another subset, else prompts of 0.3 and responses of 0.6 times their limits.

        UltraChat200k has about these.
        """
        identity = data.identity
        count = identity["size"] or identity["generator"].get("train")
        if count is None:
            count = _ASSUMED_ROWS
            self.notes[f"{data.name}: size unknown, assumed {count:,} rows"] = None
        limits = Rows(0, 0.3 * identity["max_prompt_tokens"], 0.6 * identity["max_response_tokens"])
        return self._lengths.get(_without_size(data), limits)._replace(size=count)


def _rows(data: Artifact) -> Rows:
    count = data.results["rows"]
    return Rows(count, data.results["prompt_tokens"] / count, data.results["response_tokens"] / count)


def _fresh_rows(plan: Plan, rows_of: Callable[[Stage], Rows]) -> dict[str, float]:
    """Return rows to compute by stage name, for missing stages that reuse the shards of a smaller subset."""
    by_policy: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, stage in plan.stages.items():
        if stage.kind in ("generate", "score"):
            by_policy[stage.kind, stage.one("policy").key].append(name)
    nested: dict[Hashable, list[tuple[float, str]]] = defaultdict(list)
    for names in by_policy.values():
        if len({plan.stages[name].one("data") for name in names}) > 1:
            for name in names:
                nested[_without_size(plan.stages[name])].append((rows_of(plan.stages[name]).size, name))
    fresh = {}
    for members in nested.values():
        done = max((count for count, name in members if name in plan.cached), default=0.0)
        for count, name in sorted(members):
            if name not in plan.cached and done:
                fresh[name] = max(0.0, count - done)
            done = max(done, count)
    return fresh


def _without_size(stage: Stage) -> Hashable:
    """Return what a stage has in common with the same stage on another nested subset."""
    if stage.kind == "data":
        return canonical({key: value for key, value in stage.identity.items() if key != "size"})
    source = stage.inputs.get("responses", stage.inputs["data"])
    assert isinstance(source, Stage)
    return stage.kind, stage.one("policy").key, canonical(stage.identity), _without_size(source)

"""The cost of each stage of a plan: what the cost model says, corrected by finished stages that are alike."""

import statistics
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from iris.config import Execution
from iris.plan import Stage, canonical
from iris.store import Store
from sweeps.cost import model, model_size
from sweeps.cost.measured import Measured, samples
from sweeps.cost.model import Rows, Setting
from sweeps.cost.model_size import ModelSize
from sweeps.study.plan import Plan

_UNKNOWN = 100_000  # rows of a subset whose size is not known before its data stage has run
_NO_ROWS = Rows(0, 0, 0)


class Cost(NamedTuple):
    """Seconds of device time: of the whole stage, and without the shards that a smaller subset has; bytes it leaves."""

    whole: float
    seconds: float
    stored: float


class Costs:
    """The cost of every stage of a plan, on one kind of machine for all."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self.notes: list[str] = []
        self.correction: dict[str, tuple[float, float]] = {}  # of seconds and of bytes, by kind
        self.measured: dict[str, int] = {}
        self._known: dict[Hashable, tuple[float, float]] = {}
        self._sizes: dict[str, ModelSize] = {}  # by key, as the next two
        self._rows: dict[str, Rows] = {}
        self._bases: dict[str, Stage] = {}
        for stage in plan.stages.values():
            self._bases[stage.key] = self._base(stage)
        found = self._samples = samples(plan, store)  # kept, so that nothing else gets the id of an identity
        on_cpu = all(e.config.execution.device == "cpu" for e in plan.experiments)
        idle = bool(found) and not any(sample.gpu for sample in found)
        self.machine = model.CPU if on_cpu or idle else model.GPU
        self._means = {_family(s.stage): _rows(s.results) for s in found if s.stage.kind == "data"}
        self._correct([s for s in found if s.gpu == (self.machine is model.GPU)])

    def all(self) -> dict[str, Cost]:
        """The cost of each stage, by its name in the plan."""
        fresh = self._fresh()
        return {name: self._cost(name, stage, fresh.get(name)) for name, stage in self.plan.stages.items()}

    def _cost(self, name: str, stage: Stage, fresh: float | None) -> Cost:
        execution = self.plan.experiments[self.plan.users[name][0]].config.execution
        seconds, stored = self._model(stage, execution, fresh)
        whole = seconds if fresh is None else self._model(stage, execution)[0]
        time, space = self.correction.get(stage.kind, (1.0, 1.0))
        return Cost(whole * time, seconds * time, stored * space)

    def _model(self, stage: Stage, execution: Execution, fresh: float | None = None) -> tuple[float, float]:
        """Seconds and bytes; worked out once for all stages that are alike, such as those of another seed."""
        base = self._bases.get(stage.key) or self._base(stage)
        data = stage if stage.kind == "data" else stage.inputs.get("data")
        key = model.like(stage), id(base), id(data), id(execution), fresh
        if key not in self._known:
            size, rows = self._size(base), self._rows_of(stage)
            work = model.work(stage, Setting(size, rows, rows.count if fresh is None else fresh, execution))
            self._known[key] = work.duration(self.machine, size), work.stored
        return self._known[key]

    def _correct(self, found: Sequence[Measured]) -> None:
        ratios: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for sample in found:
            seconds, stored = self._model(sample.stage, self.plan.experiments[0].config.execution)
            ratios[sample.stage.kind].append((sample.seconds / seconds, sample.stored / stored if stored else 1.0))
        for kind, pairs in ratios.items():
            times, spaces = zip(*pairs, strict=True)
            self.correction[kind] = statistics.median(times), statistics.median(spaces)
            self.measured[kind] = len(pairs)

    # --- what the work of a stage depends on

    def _base(self, stage: Stage) -> Stage:
        policy = stage.inputs.get("policy") or stage.inputs.get("tokenizer")
        return self._bases[policy.key] if isinstance(policy, Stage) else stage

    def _size(self, base: Stage) -> ModelSize:
        if base.key not in self._sizes:
            size = self._sizes[base.key] = model_size.of_base(base, self.store)
            if size.note and size.note not in self.notes:
                self.notes.append(size.note)
        return self._sizes[base.key]

    def _rows_of(self, stage: Stage) -> Rows:
        data = stage if stage.kind == "data" else stage.inputs.get("data")
        return self._of_data(data) if isinstance(data, Stage) else _NO_ROWS

    def _of_data(self, data: Stage) -> Rows:
        if data.key not in self._rows:
            self._rows[data.key] = self._found_rows(data) or self._assumed_rows(data)
        return self._rows[data.key]

    def _found_rows(self, data: Stage) -> Rows | None:
        artifact = self.store.find("data", data.key) if data.id in self.plan.cached else None
        if artifact is None:
            return None
        return _rows(artifact.results)

    def _assumed_rows(self, data: Stage) -> Rows:
        """As long as those of another subset; else prompts of 0.3 and responses of 0.6 times their limits.

        That is about what UltraChat200k has.
        """
        identity = data.identity
        count = identity["size"] or identity["generator"].get("train")
        if count is None:
            count = _UNKNOWN
            self.notes.append(f"{data.name}: of unknown size, counted as {_UNKNOWN:,} rows")
        limits = Rows(0, 0.3 * identity["max_prompt_tokens"], 0.6 * identity["max_response_tokens"])
        means = self._means.get(_family(data), limits)
        return Rows(count, means.prompt, means.response)

    # --- subsets: responses and scores are shards that nested ones share

    def _fresh(self) -> dict[str, float]:
        """The rows that a missing stage of shards has to compute, where a smaller subset has computed some of them."""
        of_policy: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, stage in self.plan.stages.items():
            if stage.kind in ("generate", "score"):
                of_policy[stage.kind, stage.one("policy").key].append(name)
        families: dict[Hashable, list[tuple[float, str]]] = defaultdict(list)
        for names in of_policy.values():
            stages = [self.plan.stages[name] for name in names]
            if len({stage.one("data").key for stage in stages}) > 1:
                for name, stage in zip(names, stages, strict=True):
                    families[_family(stage)].append((self._rows_of(stage).count, name))
        fresh = {}
        for members in families.values():
            done = max((count for count, name in members if name in self.plan.cached), default=0.0)
            for count, name in sorted(members):
                if name not in self.plan.cached and done:
                    fresh[name] = max(0.0, count - done)
                done = max(done, count)
        return fresh


def _rows(results: Mapping[str, Any]) -> Rows:
    """What a finished data stage reports."""
    count = results["rows"]
    return Rows(count, results["prompt_tokens"] / count, results["response_tokens"] / count)


def _family(stage: Stage) -> Hashable:
    """What the same stage on another nested subset agrees in."""
    if stage.kind == "data":
        return canonical({k: v for k, v in stage.identity.items() if k != "size"})
    source = stage.inputs.get("responses", stage.inputs["data"])
    assert isinstance(source, Stage)
    return stage.kind, stage.one("policy"), canonical(stage.identity), _family(source)

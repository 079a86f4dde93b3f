"""Tidy frames of a study: from its record, the store's folders and the index. Cells that are not there are rows too."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import numpy as np
import pandas as pd

from analysis import index
from analysis.index import AVERAGE, SCORES, Index
from iris.plan import VERSIONS
from iris.store import Store
from sweeps.overview import PRUNED, Overview
from sweeps.records import DONE, Records
from sweeps.selection import check_study, open_store, study_name

DAMAGED = "damaged"
# What the record of a study says of each experiment, in the order of columns.
FACTS = ("method", "model", "data", "size", "annotations", "schedule", "seed", "iterations")
_SAID_BY_FACTS = {"method", "model", "data", "data.size", "schedule", "seed", "iterations"}
_UNITS = ("seconds", "gpu_seconds", "tokens")


@dataclass(frozen=True)
class Frames:
    """A study's experiments and scores as frames; docs/analysis.md lists the columns.

    `scores` has a row per experiment × policy × task × metric; `tasks` are those of the study in its order.
    """

    study: str
    store: Store
    experiments: pd.DataFrame
    scores: pd.DataFrame
    tasks: list[str]
    varying: list[str]  # the columns of override keys that differ between experiments
    stages: pd.DataFrame  # of the index, those of this study
    damaged: frozenset[str]  # stages (kind/key) that do not match their checksums

    def cells(self) -> pd.DataFrame:
        """One row per experiment × policy: is it there, and what did it cost. Evaluations of a share are left out."""
        whole = self.scores[~self.scores["part"]]
        return whole.drop_duplicates(["experiment", "policy"])

    def steps(self, where: pd.Series | None = None) -> pd.DataFrame:
        """Training curves of the policies in some rows of `scores` (all, if none are given): a row a step."""
        rows = self.scores if where is None else self.scores[where]
        trained = rows[rows["stage"].str.startswith(("train/", "sft/"))]
        trained = trained.drop_duplicates(["experiment", "stage"])
        batch = self.stages.set_index("stage")["batch"]
        read = {stage: self._steps(stage) for stage in trained["stage"].unique()}
        about = cast(list[dict[str, Any]], trained[["experiment", "stage", "policy", "iteration"]].to_dict("records"))
        parts = [
            pd.DataFrame(read[row["stage"]]).assign(**row, batch=batch.get(row["stage"], np.nan))
            for row in about
            if read[row["stage"]]
        ]
        columns = ["experiment", "stage", "policy", "iteration", "batch", "step"]
        found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
        return found[columns + [c for c in found if c not in columns]]

    def _steps(self, stage: str) -> list[dict[str, Any]]:
        text = index.content(self.store, stage, "steps.jsonl")
        return [json.loads(line) for line in text.splitlines()] if text else []

    def samples(self, task: str, where: pd.Series | None = None) -> pd.DataFrame:
        """The main metric of every document of a task, for the evaluations in some rows of `scores`.

        Columns: evaluation, document, text (hash of what was asked), metric, value. Each evaluation once.
        """
        rows = self.scores if where is None else self.scores[where]
        chosen = rows[(rows["task"] == task) & rows["main"] & rows["value"].notna()].drop_duplicates("evaluation")
        found = [
            (evaluation, *sample)
            for evaluation, metric in zip(chosen["evaluation"], chosen["metric"], strict=True)
            for sample in self._samples(evaluation, task, metric)
        ]
        return pd.DataFrame(found, columns=["evaluation", "document", "text", "metric", "value"])

    def _samples(self, evaluation: str, task: str, metric: str) -> Iterator[tuple[int, str, str, float]]:
        text = index.content(self.store, evaluation, f"samples/{task}.jsonl") or b""
        for line in text.splitlines():
            sample = json.loads(line)
            if metric in sample["metrics"]:
                asked = hashlib.sha256(sample["text"].encode()).hexdigest()[:16]
                yield sample["doc_id"], asked, metric, float(sample["metrics"][metric])


def load(study: str, store: Store | str | None = None, *, rebuild: bool = False) -> Frames:
    """The frames of a study, called by its name or the path of its file, as it was last launched on a store.

    `rebuild` reads all manifests again. Raises UserError where nothing of that name was launched.
    """
    store = store if isinstance(store, Store) else open_store(store)
    name = study_name(study)
    record = Records(store).study(name)
    if record is None:
        check_study(name, store)  # says what there is
    assert record is not None
    return _Loader(name, store, record["points"], rebuild).frames()


@dataclass
class _Cells:
    """One entry per experiment × evaluation of a policy, as parallel lists."""

    experiment: list[int] = field(default_factory=list)
    policy: list[str] = field(default_factory=list)
    iteration: list[int] = field(default_factory=list)
    stage: list[str] = field(default_factory=list)
    evaluation: list[str] = field(default_factory=list)
    final: list[bool] = field(default_factory=list)
    # The stages that led from the policy before to this one, and the entry that each is of.
    own: list[str] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)

    def add(self, number: int, stages: Sequence[str], supervised: bool) -> None:
        """The cells of one experiment, whose stages come in an order that respects their inputs."""
        policies: dict[str, tuple[str, int, str, list[str]]] = {}
        begun, iteration, first = list[str](), 0, len(self.experiment)
        for stage in stages:
            kind, key = stage.split("/")
            if kind == "generate" or kind == "score":
                begun.append(stage)
            elif kind == "evaluate":
                name = key[:-13]  # without the hash
                label, at, policy, own = policies[name.removesuffix("-part")]
                self.own += [*own, stage]
                self.owner += [len(self.experiment)] * (len(own) + 1)
                self.experiment.append(number)
                self.policy.append(label)
                self.iteration.append(at)
                self.stage.append(policy)
                self.evaluation.append(stage)
            elif kind == "train":
                iteration += 1
                policies[key[:-13]] = f"t={iteration}", iteration, stage, [*begun, stage]
                begun = []
            elif kind != "data":
                label = "sft" if kind == "sft" else "base" if supervised else "π0"
                policies[key[:-13]] = label, 0, stage, [stage]
        last = self.stage[-1] if len(self.stage) > first else ""
        self.final += [stage == last for stage in self.stage[first:]]


class _Loader:
    def __init__(self, study: str, store: Store, points: list[dict[str, Any]], rebuild: bool) -> None:
        self.study, self.store, self.points = study, store, points
        present = {f"{kind}/{key}" for kind in VERSIONS for key in store.keys(kind)}
        named = present.intersection(chain.from_iterable(point["stages"] for point in points))
        self.index: Index = index.read(store, named, rebuild=rebuild)
        names = self.index.stages["stage"].to_numpy(object)
        self.rows = {name: row for row, name in enumerate(names) if name in named}  # of the index, by stage

    def frames(self) -> Frames:
        experiments, varying = self._experiments()
        tasks = list(dict.fromkeys(task for point in self.points for task in point["facts"]["tasks"]))
        cells = _Cells()
        for number, point in enumerate(self.points):
            cells.add(number, point["stages"], any(stage.startswith("sft/") for stage in point["stages"][:5]))
        scores = self._scores(cells, experiments, tasks)
        found = scores["task"][scores["main"] & (scores["task"] != AVERAGE)].unique()
        tasks = [t for t in tasks if t in set(found)] + [t for t in found if t not in tasks] or tasks
        stages = self.index.stages.iloc[list(self.rows.values())].reset_index(drop=True)
        return Frames(self.study, self.store, experiments, scores, tasks, varying, stages, self.index.damaged)

    # --- experiments

    def _experiments(self) -> tuple[pd.DataFrame, list[str]]:
        facts = pd.DataFrame([point["facts"] for point in self.points]).drop(columns="tasks")
        facts["size"] = facts["size"].astype("float64")
        facts["annotations"] = self._annotations()
        facts = facts[list(FACTS)]
        said = [dict(_setting(override) for override in point["overrides"]) for point in self.points]
        varying = _varying(said)
        for key in varying:
            facts[key] = [settings.get(key, "") for settings in said]
        facts.insert(0, "experiment", [point["name"] for point in self.points])
        states = [self._state(point) for point in self.points]
        facts.insert(1, "state", [state for state, _ in states])
        facts.insert(2, "error", [error for _, error in states])
        return facts, varying

    def _annotations(self) -> list[float]:
        counted = self.index.stages["rows"].to_numpy()
        data = (next((s for s in point["stages"] if s.startswith("data/")), "") for point in self.points)
        return [float(counted[self.rows[stage]]) if stage in self.rows else np.nan for stage in data]

    def _state(self, point: dict[str, Any]) -> tuple[str, str]:
        """The state of an experiment, and what went wrong."""
        missing = [stage for stage in point["stages"] if stage not in self.rows]
        if not missing and point.get("state") != PRUNED:
            return DONE, ""
        bad = [stage for stage in missing if stage in self.index.damaged]
        if bad:
            return DAMAGED, f"{bad[0]} does not match its checksum"
        found = self._overview[point["name"]]
        return found.state, found.error

    @property
    def _overview(self) -> dict[str, Any]:
        if not hasattr(self, "_seen"):
            self._seen = {e.name: e for e in Overview(self.store).experiments(self.study)}
        return self._seen

    # --- scores

    def _scores(self, cells: _Cells, experiments: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
        """Each cell repeated for the scores of its evaluation; one that has none for the tasks of the study."""
        found = self.index.scores  # those of an evaluation follow one another
        codes, names = pd.factorize(found["evaluation"])
        counts = np.bincount(codes, minlength=len(names))
        starts = np.cumsum(counts) - counts
        known = {name: n for n, name in enumerate(names)}
        place = np.array([known.get(e, -1) if e in self.rows else -1 for e in cells.evaluation], int)
        there = place >= 0
        absent = [AVERAGE, *tasks]
        if len(names):
            repeats = np.where(there, counts[place], len(absent))
            first = np.where(there, starts[place], 0)
        else:
            repeats, first = np.full(len(place), len(absent)), np.zeros(len(place), int)
        cell = np.repeat(np.arange(len(place)), repeats)
        offset = np.arange(len(cell)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        scored = there[cell]
        frame = self._of_cells(cells, experiments, cell, scored)
        row = np.where(scored, first[cell] + offset, 0)
        blank = pd.DataFrame({"task": absent, "metric": "", "main": True})
        for name in SCORES:
            if name != "evaluation":
                frame[name] = _chosen(found[name], row, scored, blank.get(name), offset)
        return frame

    def _of_cells(
        self, cells: _Cells, experiments: pd.DataFrame, cell: np.ndarray[Any, Any], scored: np.ndarray[Any, Any]
    ) -> pd.DataFrame:
        owner = np.array(cells.experiment, int)[cell]
        about = experiments.drop(columns=["error", "iterations"])
        frame = pd.DataFrame({name: _coded(about[name], owner) for name in about})
        frame["state"] = frame["state"].astype(str).where(~scored, DONE)
        for name, values in self._costs(cells).items():
            frame[name] = values[cell]
        for name in ("policy", "stage", "evaluation"):
            frame[name] = _coded(np.array(getattr(cells, name), object), cell)
        frame["iteration"] = np.array(cells.iteration, int)[cell]
        frame["final"] = np.array(cells.final, bool)[cell]
        frame["part"] = np.array([key[:-13].endswith("-part") for key in cells.evaluation], bool)[cell]
        return frame

    def _costs(self, cells: _Cells) -> dict[str, np.ndarray[Any, Any]]:
        """α, gap and cost of each cell's policy: of its own stages, whoever computed them."""
        place = self._places(cells.own)
        sums = {
            unit: np.bincount(cells.owner, self._values(unit, place, 0.0), minlength=len(cells.stage))
            for unit in _UNITS
        }
        place = self._places(cells.stage)
        return sums | {name: self._values(name, place, np.nan) for name in ("alpha", "gap")}

    def _places(self, stages: Sequence[str]) -> np.ndarray[Any, Any]:
        return np.array([self.rows.get(stage, -1) for stage in stages], int)

    def _values(self, column: str, place: np.ndarray[Any, Any], absent: float) -> np.ndarray[Any, Any]:
        values = np.append(self.index.stages[column].to_numpy(float), absent)  # the last one is at −1
        taken: np.ndarray[Any, Any] = values[place]
        return taken


def _chosen(
    values: pd.Series, row: np.ndarray[Any, Any], scored: np.ndarray[Any, Any], blank: Any, offset: np.ndarray[Any, Any]
) -> Any:
    """A column of the index's scores at `row`, and what stands in cells without scores."""
    if blank is None:
        taken = values.to_numpy(float)[row] if len(values) else np.zeros(len(row))
        return np.where(scored, taken, np.nan)
    if values.dtype == bool:
        return np.where(scored, values.to_numpy(bool)[row] if len(values) else True, True)
    of_values, known = pd.factorize(values)
    names = pd.Index(list(dict.fromkeys([*known, *blank])), dtype=object)
    of_blank = names.get_indexer(pd.Index(blank, dtype=object))
    taken = of_values[row] if len(values) else np.zeros(len(row), int)
    codes = np.where(scored, taken, of_blank[np.where(scored, 0, offset)])
    return pd.Categorical.from_codes(codes, names)


def _coded(values: pd.Series | np.ndarray[Any, Any], at: np.ndarray[Any, Any]) -> Any:
    """`values[at]`; texts as categories, so that a million rows cost a million small numbers."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        return np.asarray(values)[at]
    codes, names = pd.factorize(values, use_na_sentinel=True)
    return pd.Categorical.from_codes(codes[at], pd.Index(names))


def _setting(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def _varying(said: list[dict[str, str]]) -> list[str]:
    """The keys whose value is not the same everywhere and that the facts do not say already."""
    keys = dict.fromkeys(key for settings in said for key in settings if key not in _SAID_BY_FACTS)
    return [key for key in keys if len({settings.get(key) for settings in said}) > 1]

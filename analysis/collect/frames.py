"""Tidy frames of a study: from its record, the store's folders and the index. Cells that are not there are rows too."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import pandas as pd

from analysis.collect import index
from analysis.collect.index import AVERAGE, Index
from analysis.collect.policy_rows import Entries, Flags, Ints, Numbers, PolicyRows, cells
from iris.plan import VERSIONS
from iris.store import Store
from sweeps.state.records import DONE, Records
from sweeps.state.selection import check_study, open_store, study_name
from sweeps.state.study_status import PRUNED, StudyStatus

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
    _documents: dict[str, dict[Any, pd.Series]] = field(default_factory=dict, init=False, repr=False, compare=False)

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

        Columns: evaluation, document, text (hash of what was asked), value. Each evaluation once.
        """
        rows = self.scores if where is None else self.scores[where]
        chosen = rows[(rows["task"] == task) & rows["main"] & rows["value"].notna()]["evaluation"].unique()
        found = [self.documents(evaluation, task).reset_index().assign(evaluation=evaluation) for evaluation in chosen]
        columns = ["evaluation", "document", "text", "value"]
        return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)

    def documents(self, evaluation: str, task: str) -> pd.Series:
        """The main metric of each document of an evaluation (kind/key) and task, by number and hash of what was asked.

        Empty where the samples are damaged.
        """
        if evaluation not in self._documents:
            read = index.samples(self.store, evaluation).set_index(["document", "text"]).sort_index()
            self._documents[evaluation] = dict(iter(read.groupby("task", observed=True)["value"]))
        return self._documents[evaluation].get(task, pd.Series(dtype=float))


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


class _Loader:
    def __init__(self, study: str, store: Store, points: list[dict[str, Any]], rebuild: bool) -> None:
        self.study, self.store, self.points = study, store, points
        self.entries = Entries.of([point["stages"] for point in points])
        self.index: Index = index.read(store, self.entries.places, store.finished(VERSIONS), rebuild=rebuild)

    def frames(self) -> Frames:
        experiments, varying = self._experiments()
        tasks = list(dict.fromkeys(task for point in self.points for task in point["facts"]["tasks"]))
        scores = self._scores(cells(self.entries), experiments, tasks)
        found = scores["task"][scores["main"] & (scores["task"] != AVERAGE)].unique()
        tasks = [t for t in tasks if t in set(found)] + [t for t in found if t not in tasks] or tasks
        stages = self.index.stages[
            np.bincount(self.index.row[self.index.row >= 0], minlength=len(self.index.stages)) > 0
        ]
        return Frames(self.study, self.store, experiments, scores, tasks, varying, stages, self.index.damaged)

    def _values(self, column: str, absent: float = np.nan) -> Numbers:
        """A column of the index by stage."""
        values = np.append(self.index.stages[column].to_numpy(float), absent)  # the last one is at −1
        return np.asarray(values[self.index.row])

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
        incomplete = self.entries.any((self.index.row < 0)[self.entries.stage])
        states = [self._state(*each) for each in zip(self.points, incomplete, strict=True)]
        facts.insert(1, "state", [state for state, _ in states])
        facts.insert(2, "error", [error for _, error in states])
        return facts, varying

    def _annotations(self) -> Numbers:
        first = self.entries.first("data")
        return np.where(first < 0, np.nan, self._values("rows")[self.entries.stage[first]])

    def _state(self, point: dict[str, Any], incomplete: bool) -> tuple[str, str]:
        """The state of an experiment, and what went wrong."""
        if not incomplete and point.get("state") != PRUNED:
            return DONE, ""
        bad = next((stage for stage in point["stages"] if stage in self.index.damaged), None)
        if bad:
            return DAMAGED, f"{bad} does not match its checksum"
        found = self._overview[point["name"]]
        return found.state, found.error

    @cached_property
    def _overview(self) -> dict[str, Any]:
        return {e.name: e for e in StudyStatus(self.store).experiments(self.study)}

    # --- scores

    def _scores(self, found: PolicyRows, experiments: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
        """Each cell repeated for the scores of its evaluation; one that has none for the tasks of the study."""
        absent = [AVERAGE, *tasks]
        of_stage = np.bincount(self.index.scores["row"], minlength=len(self.index.stages))
        row = self.index.row[self.entries.stage[found.evaluation]]
        # Scores of an evaluation follow one another; behind them all those of one that is not there, at −1.
        count = np.append(of_stage, len(absent))[row]
        start = np.append(np.cumsum(of_stage) - of_stage, len(self.index.scores))[row]
        cell = np.repeat(np.arange(len(row)), count)
        taken = np.arange(len(cell)) + (start - np.cumsum(count) + count)[cell]
        frame = self._of_cells(found, experiments, row >= 0, cell)
        for name, values in _with_absent(self.index.scores, absent).items():
            frame[name] = values[taken]
        return frame

    def _of_cells(self, found: PolicyRows, experiments: pd.DataFrame, there: Flags, cell: Ints) -> pd.DataFrame:
        about = experiments.drop(columns=["state", "error", "iterations"])
        owner = found.owner[cell]
        columns: dict[str, Any] = {str(name): _coded(about[name].to_numpy(), owner) for name in about}
        state = np.where(there, DONE, experiments["state"].to_numpy(object)[found.owner])
        columns["state"] = _coded(state, cell)
        columns |= {unit: found.cost(self._values(unit, 0.0))[cell] for unit in _UNITS}
        columns |= {name: self._values(name)[self.entries.stage[found.policy]][cell] for name in ("alpha", "gap")}
        columns["policy"] = _coded(np.array(found.labels, object)[found.label], cell)
        names = np.array(self.entries.names, object)
        for name, entries in (("stage", found.policy), ("evaluation", found.evaluation)):
            columns[name] = _coded(self.entries.stage[entries], cell, names)
        columns |= {name: getattr(found, name)[cell] for name in ("iteration", "final", "part")}
        return pd.DataFrame(columns, copy=False)


def _with_absent(scores: pd.DataFrame, tasks: list[str]) -> dict[str, Any]:
    """The columns of the index's scores, and behind them what stands for the scores of these tasks where none are."""
    blank = {"task": tasks, "metric": [""] * len(tasks)}
    columns = {name: _appended(scores[name], values) for name, values in blank.items()}
    columns["main"] = np.append(scores["main"].to_numpy(bool), [True] * len(tasks))
    for name in ("value", "stderr", "documents"):
        columns[name] = np.append(scores[name].to_numpy(float), [np.nan] * len(tasks))
    return columns


def _appended(codes: pd.Series, texts: list[str]) -> Any:
    """Categories, and more of them."""
    known = codes.cat.categories
    new = pd.Index(list(dict.fromkeys([*known, *texts])), dtype=object)
    of_texts = new.get_indexer(pd.Index(texts, dtype=object))
    return pd.Categorical.from_codes(np.append(codes.cat.codes, of_texts.astype(np.int32)), new)


def _coded(values: Any, at: Ints, names: Any = None) -> Any:
    """`values[at]`; texts (`names[values]`, if given) as categories: a million rows cost a million small numbers."""
    if names is None and pd.api.types.is_numeric_dtype(values.dtype):
        return values[at]
    codes, kinds = pd.factorize(values)
    small = codes.astype(np.min_scalar_type(-len(kinds) - 1))  # −1 stands for None
    return pd.Categorical.from_codes(small[at], pd.Index(kinds if names is None else names[kinds]))


def _setting(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def _varying(said: list[dict[str, str]]) -> list[str]:
    """The keys whose value is not the same everywhere and that the facts do not say already."""
    keys = dict.fromkeys(key for settings in said for key in settings if key not in _SAID_BY_FACTS)
    return [key for key in keys if len({settings.get(key) for settings in said}) > 1]

"""Tidy frames of a study: its experiments and their scores. Scores that are missing have rows too."""

import json
from collections.abc import Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import pandas as pd

from analysis.collect import index
from analysis.collect.index import AVERAGE, Index
from analysis.collect.policy_rows import Flags, Numbers, PolicyRows
from iris.errors import UserError
from iris.plan import VERSIONS
from iris.store import Store
from sweeps.state.records import DONE, Records
from sweeps.state.selection import check_study, open_store, study_name
from sweeps.state.study_status import PRUNED, StudyStatus

DAMAGED = "damaged"
FACTS = ("method", "model", "data", "size", "annotations", "schedule", "seed", "iterations")  # in the order of columns
_KEYS_OF_FACTS = {"method", "model", "data", "data.size", "schedule", "seed", "iterations"}
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
    stages: pd.DataFrame  # rows of the index for this study's finished stages
    damaged: frozenset[str]  # stages (kind/key) that do not match their checksums
    _documents: dict[str, dict[Any, pd.Series]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def policies(self) -> pd.DataFrame:
        """Return one row per experiment × policy with its state and cost, evaluations of a share left out."""
        whole = self.scores[~self.scores["part"]]
        return whole.drop_duplicates(["experiment", "policy"])

    def steps(self, where: pd.Series | None = None) -> pd.DataFrame:
        """Return the training curves of the policies in the rows `where` of `scores` (default: all), a row per step."""
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
        """Return the main metric of every document of a task for the evaluations in the rows `where` of `scores`.

        Columns: evaluation, document, text (hash of the prompt), value. Each evaluation appears once.
        """
        rows = self.scores if where is None else self.scores[where]
        chosen = rows[(rows["task"] == task) & rows["main"] & rows["value"].notna()]["evaluation"].unique()
        found = [self.documents(evaluation, task).reset_index().assign(evaluation=evaluation) for evaluation in chosen]
        columns = ["evaluation", "document", "text", "value"]
        return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)

    def documents(self, evaluation: str, task: str) -> pd.Series:
        """Return the main metric by document and text for a task of an evaluation (kind/key); empty if damaged."""
        if evaluation not in self._documents:
            read = index.samples(self.store, evaluation).set_index(["document", "text"]).sort_index()
            self._documents[evaluation] = dict(iter(read.groupby("task", observed=True)["value"]))
        return self._documents[evaluation].get(task, pd.Series(dtype=float))


def load(study: str, store: Store | str | None = None, *, rebuild: bool = False) -> Frames:
    """Return the frames of a study (its name or the path of its file) as it was last launched on a store.

    `rebuild` reads all manifests again. Raises UserError if no such study was launched.
    """
    store = store if isinstance(store, Store) else open_store(store)
    name = study_name(study)
    record = Records(store).study(name)
    if record is None:
        check_study(name, store)  # raises, with the known names
    assert record is not None
    if any("rows" not in point for point in record["points"]):
        raise UserError(f"{name} was launched by an older version: launch it again, its finished stages are kept.")
    return _Loader(name, store, record["points"], rebuild).frames()


class _Loader:
    def __init__(self, study: str, store: Store, points: list[dict[str, Any]], rebuild: bool) -> None:
        self.study, self.store, self.points = study, store, points
        self.policies = PolicyRows.of(points)
        self.index: Index = index.read(store, self.policies.places, store.finished(VERSIONS), rebuild=rebuild)

    def frames(self) -> Frames:
        experiments, varying = self._experiments()
        tasks = list(dict.fromkeys(task for point in self.points for task in point["facts"]["tasks"]))
        scores = self._scores(experiments, tasks)
        found = scores["task"][scores["main"] & (scores["task"] != AVERAGE)].unique()
        tasks = [t for t in tasks if t in set(found)] + [t for t in found if t not in tasks] or tasks
        stages = self.index.stages.iloc[np.unique(self.index.row[self.index.row >= 0])]
        return Frames(self.study, self.store, experiments, scores, tasks, varying, stages, self.index.damaged)

    def _values(self, column: str, absent: float = np.nan) -> Numbers:
        """Return a column of the index by stage number."""
        values = np.append(self.index.stages[column].to_numpy(float), absent)  # the last one is at −1
        return np.asarray(values[self.index.row])

    # --- experiments

    def _experiments(self) -> tuple[pd.DataFrame, list[str]]:
        facts = pd.DataFrame([point["facts"] for point in self.points]).drop(columns="tasks")
        facts["size"] = facts["size"].astype("float64")
        facts["annotations"] = self._annotations()
        facts = facts[list(FACTS)]
        settings = [dict(_setting(override) for override in point["overrides"]) for point in self.points]
        varying = _varying(settings, {key for point in self.points for key in point.get("with_seed", ())})
        for key in varying:
            facts[key] = [of_point.get(key, "") for of_point in settings]
        facts.insert(0, "experiment", [point["name"] for point in self.points])
        missing = (self.index.row < 0)[self.policies.stage]
        incomplete = np.bincount(self.policies.owner[missing], minlength=len(self.points)) > 0
        states = [self._state(*each) for each in zip(self.points, incomplete, strict=True)]
        facts.insert(1, "state", [state for state, _ in states])
        facts.insert(2, "error", [error for _, error in states])
        return facts, varying

    def _annotations(self) -> Numbers:
        data = [next((s for s in point["stages"] if s.startswith("data/")), "") for point in self.points]
        numbers = np.array([self.policies.places.get(stage, -1) for stage in data])
        return np.asarray(np.append(self._values("rows"), np.nan)[numbers])

    def _state(self, point: dict[str, Any], incomplete: bool) -> tuple[str, str]:
        """Return the state of an experiment and its error."""
        if not incomplete and point.get("state") != PRUNED:
            return DONE, ""
        bad = next((stage for stage in point["stages"] if stage in self.index.damaged), None)
        if bad:
            return DAMAGED, f"{bad} does not match its checksum"
        found = self._status[point["name"]]
        return found.state, found.error

    @cached_property
    def _status(self) -> dict[str, Any]:
        return {e.name: e for e in StudyStatus(self.store).experiments(self.study)}

    # --- scores

    def _scores(self, experiments: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
        """Return a row per score of each policy; a policy without evaluation has a row per task of the study."""
        stages, scores = len(self.index.stages), self._with_absent(tasks)
        row = self.index.row[self.policies.evaluation]
        count = np.bincount(scores["row"], minlength=stages + 1)  # scores of one evaluation are adjacent
        start = (np.cumsum(count) - count)[row]  # −1 finds the last ones, those of no evaluation
        count = count[row]
        at = np.repeat(np.arange(len(row)), count)
        taken = np.arange(len(at)) + (start - np.cumsum(count) + count)[at]
        parts = self._policies(experiments, row >= 0).take(at), scores.drop(columns="row").take(taken)
        return pd.concat([part.reset_index(drop=True) for part in parts], axis=1)

    def _with_absent(self, tasks: list[str]) -> pd.DataFrame:
        """Return the index's scores, followed by empty ones for the tasks of a missing evaluation."""
        known = self.index.scores
        absent = pd.DataFrame({"row": len(self.index.stages), "task": [AVERAGE, *tasks], "metric": "", "main": True})
        for name in ("task", "metric"):
            kinds = known[name].cat.categories.union(pd.Index(absent[name].unique()), sort=False)
            known = known.assign(**{name: known[name].cat.set_categories(kinds)})
            absent[name] = pd.Categorical(absent[name], kinds)
        return pd.concat([known, absent], ignore_index=True)

    def _policies(self, experiments: pd.DataFrame, there: Flags) -> pd.DataFrame:
        """Return the columns that all scores of a policy share, texts as categories."""
        rows, names = self.policies, np.array(list(self.policies.places), object)
        frame = experiments.drop(columns=["error", "iterations"]).take(rows.experiment).reset_index(drop=True)
        frame["state"] = frame.pop("state").mask(there, DONE)  # moves it behind what describes the experiment
        frame = frame.assign(**{unit: rows.cost(self._values(unit, 0.0)) for unit in _UNITS})
        frame = frame.assign(**{name: self._values(name)[rows.policy] for name in ("alpha", "gap")})
        frame = frame.assign(policy=rows.label, stage=names[rows.policy], evaluation=names[rows.evaluation])
        texts = dict.fromkeys((name for name in frame if frame[name].dtype in (object, "str")), "category")
        return frame.assign(iteration=rows.iteration, final=rows.final, part=rows.part).astype(texts)


def _setting(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def _varying(settings: list[dict[str, str]], with_seed: Set[str]) -> list[str]:
    """Return the override keys whose values differ, without those of facts and those that follow the seed."""
    keys = dict.fromkeys(key for of_point in settings for key in of_point if key not in _KEYS_OF_FACTS | with_seed)
    return [key for key in keys if len({of_point.get(key) for of_point in settings}) > 1]

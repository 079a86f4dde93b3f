"""Scores by method. Experiments that differ only in seed and data size belong to one method."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.collect.frames import Frames
from analysis.collect.index import AVERAGE
from analysis.collect.policy_rows import BASE, INITIAL, START
from analysis.compare import statistics
from analysis.compare.statistics import Comparison, Interval
from iris.errors import UserError, nearest

FINAL = "final"
ALPHA = 1 - statistics.LEVEL
_MANY = 5  # methods from which on the selection bias of the best is reported
_NO_DOCUMENTS = pd.Series(dtype=float)


def method_names(frames: Frames) -> pd.Series:
    """Return each experiment's method by its name: `method`, and what else varies except seed and data size."""
    table = frames.experiments.set_index("experiment")
    parts = [table["method"].astype(str)]
    for key in ("model", "data", "schedule", "iterations", *frames.varying):
        values = table[key].astype(object).where(table[key].notna(), "")
        if values[values != ""].nunique() > 1 or key in frames.varying:
            prefix = "" if key in ("model", "data", "schedule") else f"{key}="
            parts.append(values.map(lambda v, prefix=prefix: f"{prefix}{v}" if v != "" else ""))
    return pd.concat(parts, axis=1).apply(lambda row: " ".join(text for text in row if text), axis=1)


@dataclass(frozen=True)
class MethodScores:
    """One method's scores of a task at one data size, by seed; NaN where an experiment has none yet."""

    method: str
    size: float
    scores: pd.Series
    errors: pd.Series  # standard errors over documents
    evaluations: pd.Series  # kind/key; all seeds share that of a pretrained model

    @property
    def interval(self) -> Interval:
        """Mean, standard deviation and 95 % interval over the seeds with distinct evaluations."""
        return statistics.mean(self.scores[~self.evaluations.duplicated()].to_numpy(float))

    @property
    def stderr(self) -> float:
        """The first known standard error over documents."""
        return float(self.errors.dropna().iloc[0]) if self.errors.notna().any() else np.nan

    @property
    def missing(self) -> int:
        """The number of seeds without a score."""
        return int(self.scores.isna().sum())


@dataclass(frozen=True)
class Results:
    """Main scores of a study, one row per method, size, policy, task and seed, with evaluation and cost.

    The initial policies, shared by experiments, are methods of their own (`initial`), besides the rows that they have
    in each trained method.
    """

    frames: Frames
    rows: pd.DataFrame
    initial: list[str]

    @property
    def methods(self) -> list[str]:
        """All methods, the initial policies first."""
        return list(dict.fromkeys(self.rows["method"]))

    @property
    def trained(self) -> list[str]:
        """The methods without the initial policies."""
        return [method for method in self.methods if method not in self.initial]

    @property
    def sizes(self) -> list[float]:
        """The numbers of annotations, ascending; NaN (unknown) last."""
        return sorted(self.rows["size"].unique(), key=lambda size: (np.isnan(size), size))

    def select(self, method: str, size: float, task: str = AVERAGE, policy: str = FINAL) -> MethodScores:
        """Return the scores of one policy of a method (default: the last)."""
        rows = self.rows.iloc[self._places.get((method, -1 if np.isnan(size) else size, task), [])]
        chosen = rows[rows["final"] if policy == FINAL else rows["policy"] == policy]
        chosen = chosen.sort_values("seed").set_index("seed")
        return MethodScores(method, size, chosen["value"], chosen["stderr"], chosen["evaluation"])

    @cached_property
    def _places(self) -> dict[Any, Any]:
        """Positions of the rows by method, size (−1: unknown) and task."""
        return self.rows.assign(size=self.rows["size"].fillna(-1)).groupby(["method", "size", "task"]).indices

    def compare(
        self, method: str, baseline: str, size: float, task: str = AVERAGE, other: float | None = None
    ) -> Comparison:
        """Compare a method with a baseline on the same seeds; `other` is the baseline's size if it differs."""
        ours = self.select(method, size, task).scores
        theirs = self.select(baseline, size if other is None else other, task).scores
        seeds = ours.index.union(theirs.index)
        return statistics.paired(ours.reindex(seeds).to_numpy(float), theirs.reindex(seeds).to_numpy(float))

    def compare_documents(self, method: str, baseline: str, size: float, task: str) -> Comparison:
        """Compare over documents. Seeds without samples or with other documents are left out and noted."""
        sides = [self.select(name, size, task) for name in (method, baseline)]
        found = [side.evaluations[side.scores.notna()] for side in sides]
        seeds = found[0].index.union(found[1].index)
        if found[0].index.intersection(found[1].index).empty:
            return Comparison(np.nan, 0)
        samples = [[self._documents(one.get(seed), task) for seed in seeds] for one in found]
        every = [one for side in samples for one in side if len(one)]
        asked = _most_common([one.index for one in every])
        shape = (2, len(seeds), len(asked))
        values = np.array([[_on(asked, one) for one in side] for side in samples]).reshape(shape)
        compared = statistics.paired_documents(*values)
        others = sum(not one.index.equals(asked) for one in every)
        notes = [compared.note, f"evaluated on other documents: {others} of {len(every)}" if others else ""]
        return replace(compared, note="; ".join(filter(None, notes)))

    def _documents(self, evaluation: str | None, task: str) -> pd.Series:
        return _NO_DOCUMENTS if evaluation is None else self.frames.documents(evaluation, task)

    def differences(self, baseline: str) -> Iterator[tuple[str, float, str, Comparison]]:
        """Yield (method, size, task, comparison) of every method: over seeds, and for single tasks over documents."""
        tasks = self.frames.tasks
        untrained = [method for method in self.initial if method.startswith(BASE)]
        for size in self.sizes:
            for method in (m for m in self.methods if m != baseline and m not in untrained):
                for task in tasks if len(tasks) == 1 else [AVERAGE, *tasks]:
                    found = [self.compare(method, baseline, size, task)]
                    if task != AVERAGE:
                        found.append(self.compare_documents(method, baseline, size, task))
                    yield from ((method, size, task, one) for one in found if one.n or one.documents)

    def clear_best(self, size: float, task: str) -> str | None:
        """Return the best method if it is significantly better than every other (paired, Holm); else None."""
        means = {method: self.select(method, size, task).interval.mean for method in self.methods}
        known = {method: mean for method, mean in means.items() if not np.isnan(mean)}
        top = [method for method, mean in known.items() if mean == max(known.values())]
        if len(top) != 1 or len(known) < 2:
            return None
        compared = [self.compare(top[0], method, size, task) for method in known if method != top[0]]
        return top[0] if all(p < ALPHA for p in statistics.holm([c.p for c in compared])) else None

    def selection_bias(self, size: float) -> tuple[int, float]:
        """Return the number of compared methods and by how much the best overstates itself; 0 for few methods."""
        picked = [self.select(method, size) for method in self.trained]
        picked = [one for one in picked if one.interval.n]
        if len(picked) < _MANY:
            return len(picked), 0.0
        intervals = [one.interval for one in picked]
        errors = [i.sd / np.sqrt(i.n) if i.n > 1 else one.stderr for i, one in zip(intervals, picked, strict=True)]
        bias = statistics.selection_bias([i.mean for i in intervals], errors)
        return len(picked), bias if bias > 0 else 0.0

    def baseline(self, name: str | None = None) -> str:
        """Return `name`, by default `sft`, `start` or the first method. Raises UserError for an unknown one."""
        methods = self.methods
        if name is not None and name not in methods:
            raise UserError(f"baseline={name}: choose one of {', '.join(methods)}.{nearest(name, methods)}")
        return name or next((method for method in ("sft", START) if method in methods), methods[0])


def _most_common(documents: Sequence[pd.Index]) -> pd.Index:
    same = [sum(one.equals(other) for other in documents) for one in documents]
    return documents[int(np.argmax(same))] if documents else _NO_DOCUMENTS.index


def _on(documents: pd.Index, values: pd.Series) -> np.ndarray[Any, Any]:
    same = values.index.equals(documents)
    return values.to_numpy(float) if same else np.full(len(documents), np.nan)


def results(frames: Frames) -> Results:
    """Return the scores of all methods and, counted once, of the initial policies that experiments share."""
    scores = frames.scores[frames.scores["main"] & ~frames.scores["part"]]
    kept = ["experiment", "size", "seed", "policy", "iteration", "task", "value", "stderr", "final", "evaluation"]
    rows = scores[kept].copy()
    rows["size"] = rows["size"].where(rows["size"].notna(), scores["annotations"])
    for name in ("experiment", "policy", "task", "evaluation"):
        rows[name] = rows[name].astype(object)
    method = rows["experiment"].map(method_names(frames))
    table, policy = frames.experiments.set_index("experiment"), rows["policy"]
    about = rows["experiment"].map(table["model"].astype(str) + " " + table["data"].astype(str))
    names = [policy, policy + " " + about, policy + " of " + method]
    common = pd.concat([_named(rows[policy == each].assign(final=True), names) for each in INITIAL])
    trained = _named(rows, [method, method + " (" + rows["experiment"] + ")"])
    return Results(frames, pd.concat([common, trained], ignore_index=True), list(dict.fromkeys(common["method"])))


def _named(rows: pd.DataFrame, names: Sequence[pd.Series]) -> pd.DataFrame:
    """Return the rows under the first of `names` that keeps different evaluations apart; equal rows once.

    If none does, the last is taken: nothing tells such experiments apart.
    """
    same = ["method", "size", "seed", "task", "policy"]
    for name in names:
        named = rows.assign(method=name).drop_duplicates([*same, "evaluation"])
        if not named.duplicated(same).any():
            break
    return named.drop_duplicates(same)

"""What is compared: arms, experiments that differ in nothing but seed and data size, with their scores by seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.collect.frames import Frames
from analysis.collect.index import AVERAGE
from analysis.collect.policy_rows import INITIAL, START
from analysis.compare import statistics
from analysis.compare.statistics import Comparison, Interval
from iris.errors import UserError, nearest

FINAL = "final"
_NO_DOCUMENTS = pd.Series(dtype=float)


def labels(frames: Frames) -> pd.Series:
    """The arm of each experiment, by its name: its method and whatever else varies but for seed and data size."""
    table = frames.experiments.set_index("experiment")
    parts = [table["method"].astype(str)]
    for key in ("model", "data", "schedule", "iterations", *frames.varying):
        values = table[key].astype(object).where(table[key].notna(), "")
        if values[values != ""].nunique() > 1 or key in frames.varying:
            name = "" if key in ("model", "data", "schedule") else f"{key}="
            parts.append(values.map(lambda v, name=name: f"{name}{v}" if v != "" else ""))
    return pd.concat(parts, axis=1).apply(lambda row: " ".join(text for text in row if text), axis=1)


@dataclass(frozen=True)
class Arm:
    """One arm at one data size: `scores` [seed] of a task by seed, NaN where an experiment has none yet."""

    name: str
    size: float
    scores: pd.Series
    errors: pd.Series  # their standard errors over documents, by seed
    evaluations: pd.Series  # where they come from, by seed: a pretrained model has one for all seeds

    @property
    def interval(self) -> Interval:
        """Mean, standard deviation and 95 % interval over seeds that have an evaluation of their own."""
        return statistics.mean(self.scores[~self.evaluations.duplicated()].to_numpy(float))

    @property
    def stderr(self) -> float:
        """The standard error over documents of the first score that is there."""
        return float(self.errors.dropna().iloc[0]) if self.errors.notna().any() else np.nan

    @property
    def missing(self) -> int:
        """Seeds without a score."""
        return int(self.scores.isna().sum())


@dataclass(frozen=True)
class Table:
    """Main scores by arm, size, policy, task and seed, each once, with evaluation and cost.

    The policies that experiments begin with are arms of their own, `starts`, and belong to those of the methods too.
    """

    frames: Frames
    rows: pd.DataFrame
    starts: list[str]

    @property
    def arms(self) -> list[str]:
        """Their names, the policies that all begin with first."""
        return list(dict.fromkeys(self.rows["arm"]))

    @property
    def methods(self) -> list[str]:
        """The arms that are trained in iterations."""
        return [arm for arm in self.arms if arm not in self.starts]

    @property
    def sizes(self) -> list[float]:
        """The numbers of annotations, ascending; NaN (unknown) last."""
        return sorted(self.rows["size"].unique(), key=lambda size: (np.isnan(size), size))

    def select(self, arm: str, size: float, task: str = AVERAGE, policy: str = FINAL) -> Arm:
        """The scores of an arm at a size, by seed."""
        rows = self._some(arm, size, task, policy).set_index("seed")
        return Arm(arm, size, rows["value"], rows["stderr"], rows["evaluation"])

    @cached_property
    def _places(self) -> dict[Any, Any]:
        """Where the rows of each arm, size (−1: unknown) and task are."""
        return self.rows.assign(size=self.rows["size"].fillna(-1)).groupby(["arm", "size", "task"]).indices

    def _some(self, arm: str, size: float, task: str, policy: str) -> pd.DataFrame:
        rows = self.rows.iloc[self._places.get((arm, -1 if np.isnan(size) else size, task), [])]
        chosen: pd.DataFrame = rows[rows["final"] if policy == FINAL else rows["policy"] == policy]
        return chosen.sort_values("seed")

    def compare(
        self, arm: str, baseline: str, size: float, task: str = AVERAGE, other: float | None = None
    ) -> Comparison:
        """An arm minus a baseline on the same seeds; at `other` sizes, if one is given, the baseline's."""
        ours = self.select(arm, size, task).scores
        theirs = self.select(baseline, size if other is None else other, task).scores
        seeds = ours.index.union(theirs.index)
        return statistics.paired(ours.reindex(seeds).to_numpy(float), theirs.reindex(seeds).to_numpy(float))

    def compare_documents(self, arm: str, baseline: str, size: float, task: str) -> Comparison:
        """The same over documents. Seeds without any, or with others than the rest, are left out, as `note` says."""
        sides = [self.select(name, size, task) for name in (arm, baseline)]
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


def _most_common(documents: Sequence[pd.Index]) -> pd.Index:
    same = [sum(one.equals(other) for other in documents) for one in documents]
    return documents[int(np.argmax(same))] if documents else _NO_DOCUMENTS.index


def _on(documents: pd.Index, values: pd.Series) -> np.ndarray[Any, Any]:
    same = values.index.equals(documents)
    return values.to_numpy(float) if same else np.full(len(documents), np.nan)


def table(frames: Frames) -> Table:
    """The scores of all arms. What many experiments begin with (base, start) is an arm of its own, counted once."""
    scores = frames.scores[frames.scores["main"] & ~frames.scores["part"]]
    kept = ["experiment", "size", "seed", "policy", "iteration", "task", "value", "stderr", "final", "evaluation"]
    rows = scores[[*kept, "state", "alpha", "gap", "seconds", "gpu_seconds", "tokens"]].copy()
    rows["size"] = rows["size"].where(rows["size"].notna(), scores["annotations"])
    for name in ("experiment", "policy", "task", "evaluation"):
        rows[name] = rows[name].astype(object)
    begun = [rows[rows["policy"] == policy].assign(final=True) for policy in INITIAL]
    common = pd.concat([_named(each, _starts(each, frames)) for each in begun])
    arm = rows["experiment"].map(labels(frames))
    others = _named(rows, [arm, arm + " (" + rows["experiment"] + ")"])
    return Table(frames, pd.concat([common, others], ignore_index=True), list(dict.fromkeys(common["arm"])))


def _starts(rows: pd.DataFrame, frames: Frames) -> list[pd.Series]:
    """What a policy that experiments begin with may be called: no longer than it takes to tell it from others."""
    table = frames.experiments.set_index("experiment")
    about = rows["experiment"].map(table["model"].astype(str) + " " + table["data"].astype(str))
    return [
        rows["policy"],
        rows["policy"] + " " + about,
        rows["policy"] + " of " + rows["experiment"].map(labels(frames)),
    ]


def _named(rows: pd.DataFrame, names: Sequence[pd.Series]) -> pd.DataFrame:
    """The rows with the first of some names under which no two evaluations are taken for one; equal ones once.

    The last is taken in any case: experiments of one name and seed that differ are then told apart by nothing.
    """
    cell = ["arm", "size", "seed", "task", "policy"]
    for name in names:
        named = rows.assign(arm=name).drop_duplicates([*cell, "evaluation"])
        if not named.duplicated(cell).any():
            break
    return named.drop_duplicates(cell)


def baseline(found: Table, name: str | None = None) -> str:
    """The arm to compare with: the one named, else the method `sft`, else `start`, else the first."""
    arms = found.arms
    if name is not None:
        if name not in arms:
            raise UserError(f"baseline={name}: choose one of {', '.join(arms)}.{nearest(name, arms)}")
        return name
    return next((arm for arm in ("sft", START) if arm in arms), arms[0])


def best(intervals: Sequence[tuple[str, float]]) -> str | None:
    """The name with the highest mean; None where there is none or several share it."""
    known = [(name, value) for name, value in intervals if not np.isnan(value)]
    top = max((value for _, value in known), default=np.nan)
    names = [name for name, value in known if value == top]
    return names[0] if len(names) == 1 else None

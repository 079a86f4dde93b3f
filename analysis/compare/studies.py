"""Two studies, two stores or two commits side by side: their provenance and the differences of their scores."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.collect.frames import Frames, load
from analysis.collect.index import AVERAGE
from analysis.collect.provenance import commit as commit_of
from analysis.collect.provenance import provenance
from analysis.compare import statistics
from analysis.compare.methods import Results, results
from analysis.compare.statistics import Comparison
from iris.errors import UserError


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its name on the command line and its scores."""

    name: str
    results: Results


def read_side(name: str, store: str | None, *, rebuild: bool = False) -> Side:
    """Load STUDY[@STORE][#COMMIT]; `store` is the default store. Raises UserError."""
    rest, _, commit = name.partition("#")
    study, _, folder = rest.partition("@")
    frames = load(study, folder or store, rebuild=rebuild)
    return Side(name, results(_of_commit(frames, commit) if commit else frames))


def _of_commit(frames: Frames, commit: str) -> Frames:
    """Keep the scores that a commit computed."""
    commits = dict(zip(frames.stages["stage"], frames.stages["provenance"].map(commit_of).astype(object), strict=True))
    mine = frames.scores["evaluation"].astype(object).map(commits).fillna("").str.startswith(commit)
    if not mine.any():
        known = sorted({c[:12] for c in commits.values() if c})
        raise UserError(
            f"{frames.study}#{commit}: no evaluation is of that commit. There are: {', '.join(known) or 'none'}."
        )
    return replace(frames, scores=frames.scores[mine])


def differences(a: Side, b: Side) -> tuple[list[tuple[str, float, str, Comparison]], int]:
    """Return (method, size, task, B minus A on the same seeds), and how many scores one side alone has.

    Raises UserError if the sides have nothing in common.
    """
    found, alone = [], 0
    for method in (m for m in b.results.methods if m in a.results.methods):
        for size in (s for s in b.results.sizes if np.isclose(s, a.results.sizes, equal_nan=True).any()):
            for task in [AVERAGE, *(t for t in b.results.frames.tasks if t in a.results.frames.tasks)]:
                ours, theirs = (_scores(side.results, method, size, task) for side in (b, a))
                seeds = ours.index.intersection(theirs.index)
                alone += len(ours.index.symmetric_difference(theirs.index))
                compared = statistics.paired(ours[seeds].to_numpy(float), theirs[seeds].to_numpy(float))
                if compared.n:
                    found.append((method, size, task, compared))
    if not found:
        raise UserError(f"{a.name} and {b.name} have no method, number of annotations, task and seed in common.")
    return found, alone


def _scores(found: Results, method: str, size: float, task: str) -> pd.Series:
    return found.select(method, size, task).scores.dropna().groupby(level=0).first()


def changed(a: Side, b: Side) -> dict[str, tuple[str, str]]:
    """Return the parts of the provenance that differ between two sides, machines aside, with both values."""
    left, right = (_values(side.results.frames) for side in (a, b))
    values = {part: (left.get(part, ""), right.get(part, "")) for part in dict.fromkeys([*left, *right])}
    return {part: both for part, both in values.items() if both[0] != both[1]}


def _values(frames: Frames) -> dict[str, str]:
    used = set(frames.scores["evaluation"]) | set(frames.scores["stage"])
    counts = provenance(replace(frames, stages=frames.stages[frames.stages["stage"].isin(used)]))
    values = {part: ", ".join(sorted(found)) for part, found in counts.items() if part not in ("host", "platform")}
    return {"experiments": str(len(frames.experiments))} | values

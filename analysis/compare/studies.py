"""Two studies, two stores or two commits side by side: their provenance and the differences of their scores."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.collect.frames import Frames, load
from analysis.collect.index import AVERAGE
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
    commits = {
        stage: _commit(json.loads(text))
        for stage, text in zip(frames.stages["stage"], frames.stages["provenance"], strict=True)
    }
    mine = frames.scores["evaluation"].astype(object).map(commits).fillna("").str.startswith(commit)
    if not mine.any():
        known = sorted({c[:12] for c in commits.values() if c})
        raise UserError(
            f"{frames.study}#{commit}: no evaluation is of that commit. There are: {', '.join(known) or 'none'}."
        )
    return replace(frames, scores=frames.scores[mine])


def _commit(provenance: dict[str, Any]) -> str:
    return str(provenance.get("code", {}).get("commit") or "")


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


def versions(frames: Frames, key: str) -> Counter[str]:
    """Count the stages by one part of their provenance (as JSON)."""
    counts: Counter[str] = Counter()
    for text, number in frames.stages["provenance"].value_counts().items():
        value = json.loads(str(text)).get(key)
        if value is not None:
            counts[json.dumps(value, sort_keys=True)] += int(number)
    return counts


def provenance(frames: Frames) -> dict[str, str]:
    """Return the distinct values of each part of the provenance behind the scores, joined."""
    used = set(frames.scores["evaluation"]) | set(frames.scores["stage"])
    stages = frames.stages[frames.stages["stage"].isin(used)]
    found: dict[str, set[str]] = {"experiments": {str(len(frames.experiments))}}
    for text in stages["provenance"].unique():
        given = json.loads(text)
        flat = {"commit": _commit(given), "python": given.get("python"), "device": given.get("device")}
        flat |= {"changes": given.get("code", {}).get("diff"), **given.get("packages", {})}
        tasks = given.get("harness", {}).get("tasks", {})
        flat |= {f"task {task}": json.dumps(about) for task, about in tasks.items()}
        for key, value in flat.items():
            if value:
                found.setdefault(key, set()).add(str(value))
    return {key: ", ".join(sorted(values)) for key, values in found.items()}

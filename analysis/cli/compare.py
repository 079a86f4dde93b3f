"""python -m analysis compare A B [out=FILE] [--rebuild]

Each side is STUDY[@STORE][#COMMIT]: two studies, one study on two stores, or what two commits of the code have computed
of one. Shows what differs in how they were computed, and for every method, number of annotations and task B minus A on
the same seeds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.cli import options
from analysis.collect.frames import Frames, load
from analysis.collect.index import AVERAGE
from analysis.compare import methods, statistics
from analysis.compare.methods import Table
from analysis.show.differences import compared
from analysis.show.table import Cell, Sheet
from analysis.show.tables import head, size_cell
from iris.errors import UserError


@dataclass(frozen=True)
class Side:
    """One side of the comparison: what it is called on the command line, and its scores."""

    name: str
    table: Table


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if any(word in ("--help", "-h") for word in arguments):
        print(__doc__)
        return 0
    given = options.read(arguments, ("out",), names=True)
    if len(given.names) != 2:
        raise UserError(
            "compare takes two sides, such as embedded@here embedded@there, or alpha#1a2b3c4 alpha#5d6e7f8."
        )
    options.check_out(given)
    sides = [_side(name, "--rebuild" in given.flags, given.settings.get("store")) for name in given.names]
    options.show(given, [_provenance(*sides), differences(*sides)])
    return 0


def _side(name: str, rebuild: bool, store: str | None) -> Side:
    rest, _, commit = name.partition("#")
    study, _, folder = rest.partition("@")
    frames = load(study, folder or store, rebuild=rebuild)
    return Side(name, methods.table(_of_commit(frames, commit) if commit else frames))


def _of_commit(frames: Frames, commit: str) -> Frames:
    """The scores whose evaluation a commit has computed."""
    commits = {
        stage: _commit(text) for stage, text in zip(frames.stages["stage"], frames.stages["provenance"], strict=True)
    }
    mine = frames.scores["evaluation"].astype(object).map(commits).fillna("").str.startswith(commit)
    if not mine.any():
        known = sorted({c[:12] for c in commits.values() if c})
        raise UserError(
            f"{frames.study}#{commit}: no evaluation is of that commit. There are: {', '.join(known) or 'none'}."
        )
    return replace(frames, scores=frames.scores[mine])


def _commit(provenance: str) -> str:
    return str(json.loads(provenance).get("code", {}).get("commit") or "")


def differences(a: Side, b: Side) -> Sheet:
    """B minus A for everything that both have, on the same seeds."""
    results, alone = [], 0
    for arm in (arm for arm in b.table.arms if arm in a.table.arms):
        for size in (size for size in b.table.sizes if np.isclose(size, a.table.sizes, equal_nan=True).any()):
            for task in [AVERAGE, *(t for t in b.table.frames.tasks if t in a.table.frames.tasks)]:
                ours, theirs = (_scores(side.table, arm, size, task) for side in (b, a))
                seeds = ours.index.intersection(theirs.index)
                alone += len(ours.index.symmetric_difference(theirs.index))
                found = statistics.paired(ours[seeds].to_numpy(float), theirs[seeds].to_numpy(float))
                if found.n:
                    results.append((arm, size, task, found))
    if not results:
        raise UserError(f"{a.name} and {b.name} have no method, number of annotations, task and seed in common.")
    adjusted = statistics.holm([found.p for *_, found in results])
    rows = [
        [head(arm), size_cell(size), head(task), *compared(c, p)[:-1]]
        for (arm, size, task, c), p in zip(results, adjusted, strict=True)
    ]
    same = all(c.difference == 0 for *_, c in results)
    notes = [
        "Points of percent; p (Holm) holds for all of them together.",
        *(["All scores are equal."] if same else []),
        *([f"Left out, because one side alone has them: {alone} scores."] if alone else []),
    ]
    columns = ["method", "annotations", "task", "difference", "95 % interval", "p", "p (Holm)", "effect", "seeds"]
    return Sheet(f"{b.name} minus {a.name}", columns, rows, notes)


def _scores(table: Table, arm: str, size: float, task: str) -> pd.Series:
    return table.select(arm, size, task).scores.dropna().groupby(level=0).first()


def _provenance(a: Side, b: Side) -> Sheet:
    """What was not the same: code, packages, harness, devices, revisions, and what was compared."""
    rows = []
    left, right = (_facts(side.table.frames) for side in (a, b))
    for key in dict.fromkeys([*left, *right]):
        if left.get(key) != right.get(key):
            rows.append([Cell(key, kind="head"), Cell(left.get(key, "–")), Cell(right.get(key, "–"))])
    notes = [] if rows else ["Both were computed by the same code, packages and devices."]
    other = b.name if b.name != a.name else f"{b.name}, again"
    return Sheet("What differs", ["what", a.name, other], rows, notes)


def _facts(frames: Frames) -> dict[str, str]:
    """Every distinct value of the provenance by what it is of, several joined."""
    used = set(frames.scores["evaluation"]) | set(frames.scores["stage"])
    stages = frames.stages[frames.stages["stage"].isin(used)]
    facts: dict[str, dict[str, None]] = {}
    for text in stages["provenance"].unique():
        said = json.loads(text)
        flat = {"commit": _commit(text), "python": said.get("python"), "device": said.get("device")}
        flat |= {"changes": said.get("code", {}).get("diff"), **said.get("packages", {})}
        flat |= {f"task {task}": json.dumps(about) for task, about in said.get("harness", {}).get("tasks", {}).items()}
        for key, value in flat.items():
            if value:
                facts.setdefault(key, {})[str(value)] = None
    sizes = {"experiments": {str(len(frames.experiments)): None}}
    return {key: ", ".join(sorted(values)) for key, values in (sizes | facts).items()}

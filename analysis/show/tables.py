"""The tables of a study, as sheets: what is there, which arm is better, by how much, how sure, at what cost."""

import itertools
from collections.abc import Callable
from typing import cast

import numpy as np

from analysis.collect.frames import Frames
from analysis.collect.index import AVERAGE
from analysis.collect.policy_rows import INITIAL
from analysis.compare import methods, statistics
from analysis.compare.methods import Arm, Table
from analysis.show import search
from analysis.show.table import NONE, Cell, Sheet, signed
from iris.errors import UserError

ALPHA = 1 - statistics.LEVEL
_MANY = 5  # methods from which on the best one is said to be chosen


def scores(found: Table) -> Sheet:
    """Arms × tasks after the last iteration: mean over seeds in percent, ± half of the 95 % interval."""
    tasks = found.frames.tasks if len(found.frames.tasks) == 1 else [*found.frames.tasks, AVERAGE]
    rows, several = [], len(found.sizes) > 1
    for size in found.sizes:
        tops = {task: _clear_best(found, size, task) for task in tasks}
        for arm in found.arms:
            picked = [found.select(arm, size, task) for task in tasks]
            if len(picked[-1].scores):
                row = [_score(one, bold=tops[task] == arm) for task, one in zip(tasks, picked, strict=True)]
                rows.append([head(arm), *([size_cell(size)] if several else []), *row, _count(picked[-1])])
    columns = ["method", *(["annotations"] if several else []), *tasks, "seeds"]
    notes = [*_notes(found, bold=True), *filter(None, (_optimism(found, size) for size in found.sizes))]
    return Sheet("Scores after the last iteration, %", columns, rows, notes)


def iterations(found: Table) -> Sheet:
    """The average by iteration, with the change from the iteration before."""
    own = found.rows[found.rows["arm"].isin(found.methods)].sort_values("iteration", kind="stable")
    policies = list(dict.fromkeys([*(p for p in INITIAL if p in set(own["policy"])), *own["policy"]]))
    rows = []
    for size in found.sizes:
        for arm in found.methods:
            line = [found.select(arm, size, policy=policy) for policy in policies]
            if any(len(one.scores) for one in line):
                cells = [_score(line[0]), *(_changed(one, before) for before, one in itertools.pairwise(line))]
                rows.append([head(arm), size_cell(size), *cells])
    columns = ["method", "annotations", *policies]
    return Sheet("Average by iteration, % (change)", columns, rows, _notes(found))


def sizes(found: Table, task: str = AVERAGE) -> Sheet:
    """The average, or the score of a task, by number of annotations."""
    rows = [[head(arm), *(_score(found.select(arm, size, task)) for size in found.sizes)] for arm in found.arms]
    columns = ["method", *(size_cell(size).text for size in found.sizes)]
    return Sheet(f"{task.capitalize()} by number of annotations, %", columns, rows, _notes(found))


def completeness(found: Table) -> Sheet:
    """How many experiments of each arm are finished, and why the others are not."""
    table = found.frames.experiments.assign(
        arm=found.frames.experiments["experiment"].map(methods.labels(found.frames))
    )
    states = list(dict.fromkeys(["done", *sorted(table["state"].unique())]))
    table["size"] = table["size"].fillna(table["annotations"])
    rows = []
    for keys, group in table.groupby(["arm", "size"], sort=False, dropna=False):
        arm, size = cast(tuple[str, float], keys)
        counts = group["state"].value_counts()
        rows.append([head(arm), size_cell(size), *(number(int(counts.get(state, 0))) for state in states)])
    return Sheet("Experiments", ["method", "annotations", *states], rows, _troubles(found.frames))


def _troubles(frames: Frames, shown: int = 10) -> list[str]:
    bad = frames.experiments[~frames.experiments["state"].isin(["done", "planned", "queued", "running"])]
    lines = [
        f"{e}: {s}{f' ({why})' if why else ''}"
        for e, s, why in zip(bad["experiment"], bad["state"], bad["error"], strict=True)
    ]
    more = [f"… and {len(lines) - shown} more"] if len(lines) > shown else []
    hurt = [f"damaged: {stage}" for stage in sorted(frames.damaged)[:shown]]
    return [*lines[:shown], *more, *hurt]


def cost(found: Table) -> Sheet:
    """What an experiment of each arm has cost from the first iteration on, and the average that it reached."""
    frames = found.frames
    cells = frames.policies()
    own = cells[~cells["policy"].isin(INITIAL) & (cells["state"] == "done")].copy()
    own["arm"] = own["experiment"].astype(object).map(methods.labels(frames))
    own["size"] = own["size"].where(own["size"].notna(), own["annotations"])
    unit, scale = ("GPU-hours", 3600) if own["gpu_seconds"].sum() else ("minutes", 60)
    seconds = "gpu_seconds" if unit == "GPU-hours" else "seconds"
    sums = (
        own.groupby(["arm", "size", "experiment"], observed=True, dropna=False)[[seconds, "tokens"]].sum().reset_index()
    )
    rows = []
    for keys, group in sums.groupby(["arm", "size"], sort=False, dropna=False):
        arm, size = cast(tuple[str, float], keys)
        spent, tokens = float(group[seconds].mean()) / scale, float(group["tokens"].mean())
        row = [Cell(f"{spent:,.2f}", spent), Cell(f"{tokens:,.0f}", tokens), _score(found.select(arm, size))]
        rows.append([head(arm), size_cell(size), *row])
    note = "Stages of the iterations alone (generate, score, train, evaluate), whoever computed them; mean over seeds."
    return Sheet("Cost of an experiment", ["method", "annotations", unit, "tokens", "average, %"], rows, [note])


# --- cells


def head(text: str) -> Cell:
    """What names a row."""
    return Cell(text, kind="head")


def size_cell(size: float) -> Cell:
    """A number of annotations."""
    return NONE if np.isnan(size) else Cell(f"{size:,.0f}", size, kind="head")


def number(value: int) -> Cell:
    """A count."""
    return Cell(str(value), value)


def _count(one: Arm) -> Cell:
    known = int(one.scores.notna().sum())
    return Cell(f"{known} of {known + one.missing}" if one.missing else str(known), known)


def _score(one: Arm, *, bold: bool = False) -> Cell:
    found = one.interval
    if not found.n:
        return NONE
    ends = None if np.isnan(found.high) else (100 * found.low, 100 * found.high)
    half = f" ± {100 * (found.high - found.mean):.1f}" if ends else ""
    star = "*" if one.missing else ""
    return Cell(f"{100 * found.mean:.1f}{half}{star}", 100 * found.mean, bold, ends=ends)


def _changed(one: Arm, before: Arm) -> Cell:
    cell = _score(one)
    change = 100 * (one.interval.mean - before.interval.mean)
    return cell if cell.missing or np.isnan(change) else Cell(f"{cell.number:.1f} ({signed(change, 1)})", cell.sort)


def _clear_best(found: Table, size: float, task: str) -> str | None:
    """The best arm, if the paired intervals tell it apart from every other one."""
    values = {arm: found.select(arm, size, task).interval.mean for arm in found.arms}
    top = methods.best(list(values.items()))
    if top is None:
        return None
    others = [arm for arm, value in values.items() if arm != top and not np.isnan(value)]
    compared = [found.compare(top, arm, size, task) for arm in others]
    adjusted = statistics.holm([c.p for c in compared])
    return top if others and all(p < ALPHA for p in adjusted) else None


def _optimism(found: Table, size: float) -> str:
    """By how much the best of many arms overstates itself: chosen again, it would not do as well."""
    picked = [found.select(arm, size) for arm in found.methods]
    picked = [one for one in picked if one.interval.n]
    if len(picked) < _MANY:
        return ""
    intervals = [one.interval for one in picked]
    errors = [i.sd / np.sqrt(i.n) if i.n > 1 else one.stderr for i, one in zip(intervals, picked, strict=True)]
    bias = statistics.selection_bias([i.mean for i in intervals], errors)
    if not bias > 0:
        return ""
    where = f" with {size:,.0f} annotations" if len(found.sizes) > 1 and not np.isnan(size) else ""
    best = f"The best of these {len(picked)} methods{where} overstates itself by about {100 * bias:.1f} points"
    return f"{best}: it was chosen for its score (optimizer's curse, parametric bootstrap)."


def _notes(found: Table, *, bold: bool = False) -> list[str]:
    seeds = found.rows.groupby(["arm", "size"], observed=True, dropna=False)["seed"].nunique()
    least, most = int(seeds.min()), int(seeds.max())
    text = f"Mean over {least if least == most else f'{least} to {most}'} seeds"
    notes = [
        f"{text}, ± half of the 95 % interval (Student's t)." if most > 1 else f"{text.removesuffix('s')}: no interval."
    ]
    if warning := statistics.warning(least):
        notes.append(warning)
    if found.rows["value"].isna().any():
        notes.append("* Some seeds are missing; – means that none is there.")
    if bold:
        notes.append("Bold: better than every other method on the same seeds (paired, Holm, 5 %).")
    return notes


def trials(found: Table) -> Sheet:
    """The trials of a search, the best first. Raises UserError for any other study."""
    of_search = search.trials(found.frames)
    if of_search is None:
        raise UserError(f"by=trial: {found.frames.study} is no search.")
    return search.sheet(of_search)


Maker = Callable[[Table], Sheet]
# What `python -m analysis table by=…` can show: of any study, and of a search too.
STUDY: dict[str, Maker] = {
    "task": scores,
    "iteration": iterations,
    "size": sizes,
    "cost": cost,
    "state": completeness,
}
SHEETS = STUDY | {"trial": trials}

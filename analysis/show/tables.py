"""The tables of a study: scores, iterations, sizes, cost and states."""

import itertools
from collections.abc import Callable
from typing import cast

import numpy as np

from analysis.collect.frames import Frames
from analysis.collect.index import AVERAGE
from analysis.collect.policy_rows import INITIAL
from analysis.compare import statistics
from analysis.compare.methods import MethodScores, Results, method_names
from analysis.compare.trials import trials
from analysis.show import search
from analysis.show.table import NONE, Cell, Table, count_cell, head, signed, size_cell
from iris.errors import UserError


def scores(results: Results) -> Table:
    """Return methods × tasks after the last iteration: mean over seeds in percent, ± half of the 95 % interval."""
    tasks = results.frames.tasks if len(results.frames.tasks) == 1 else [*results.frames.tasks, AVERAGE]
    rows, several = [], len(results.sizes) > 1
    for size in results.sizes:
        best = {task: results.clear_best(size, task) for task in tasks}
        for method in results.methods:
            picked = [results.select(method, size, task) for task in tasks]
            if len(picked[-1].scores):
                row = [_score(one, bold=best[task] == method) for task, one in zip(tasks, picked, strict=True)]
                rows.append([head(method), *([size_cell(size)] if several else []), *row, _count(picked[-1])])
    columns = ["method", *(["annotations"] if several else []), *tasks, "seeds"]
    notes = [*_notes(results, bold=True), *filter(None, (_selection_bias(results, size) for size in results.sizes))]
    return Table("Scores after the last iteration, %", columns, rows, notes)


def iterations(results: Results) -> Table:
    """Return the average by iteration, with the change from the iteration before."""
    own = results.rows[results.rows["method"].isin(results.trained)].sort_values("iteration", kind="stable")
    policies = list(dict.fromkeys([*(p for p in INITIAL if p in set(own["policy"])), *own["policy"]]))
    rows = []
    for size, method in itertools.product(results.sizes, results.trained):
        line = [results.select(method, size, policy=policy) for policy in policies]
        if any(len(one.scores) for one in line):
            changes = [_changed(one, before) for before, one in itertools.pairwise(line)]
            rows.append([head(method), size_cell(size), _score(line[0]), *changes])
    return Table("Average by iteration, % (change)", ["method", "annotations", *policies], rows, _notes(results))


def sizes(results: Results, task: str = AVERAGE) -> Table:
    """Return the average, or the score of a task, by number of annotations."""
    rows = [
        [head(method), *(_score(results.select(method, size, task)) for size in results.sizes)]
        for method in results.methods
    ]
    columns = ["method", *(size_cell(size).text for size in results.sizes)]
    return Table(f"{task.capitalize()} by number of annotations, %", columns, rows, _notes(results))


def states(results: Results) -> Table:
    """Return the number of experiments of each method by state, and the errors."""
    table = results.frames.experiments
    table = table.assign(method=table["experiment"].map(method_names(results.frames)))
    known = list(dict.fromkeys(["done", *sorted(table["state"].unique())]))
    table["size"] = table["size"].fillna(table["annotations"])
    rows = []
    for keys, group in table.groupby(["method", "size"], sort=False, dropna=False):
        method, size = cast(tuple[str, float], keys)
        counts = group["state"].value_counts()
        rows.append([head(method), size_cell(size), *(count_cell(int(counts.get(state, 0))) for state in known)])
    return Table("Experiments", ["method", "annotations", *known], rows, _errors(results.frames))


def _errors(frames: Frames, shown: int = 10) -> list[str]:
    bad = frames.experiments[~frames.experiments["state"].isin(["done", "planned", "queued", "running"])]
    lines = [
        f"{name}: {state}{f' ({error})' if error else ''}"
        for name, state, error in zip(bad["experiment"], bad["state"], bad["error"], strict=True)
    ]
    more = [f"… and {len(lines) - shown} more"] if len(lines) > shown else []
    return [*lines[:shown], *more, *(f"damaged: {stage}" for stage in sorted(frames.damaged)[:shown])]


def cost(results: Results) -> Table:
    """Return the cost of an experiment of each method from the first iteration on, and its average score."""
    policies = results.frames.policies()
    own = policies[~policies["policy"].isin(INITIAL) & (policies["state"] == "done")].copy()
    own["method"] = own["experiment"].astype(object).map(method_names(results.frames))
    own["size"] = own["size"].where(own["size"].notna(), own["annotations"])
    on_gpus = own["gpu_seconds"].sum() > 0
    own["spent"] = own["gpu_seconds"] / 3600 if on_gpus else own["seconds"] / 60
    by = ["method", "size", "experiment"]
    sums = own.groupby(by, observed=True, dropna=False)[["spent", "tokens"]].sum().reset_index()
    rows = []
    for keys, group in sums.groupby(["method", "size"], sort=False, dropna=False):
        method, size = cast(tuple[str, float], keys)
        spent, tokens = float(group["spent"].mean()), float(group["tokens"].mean())
        row = [Cell(f"{spent:,.2f}", spent), Cell(f"{tokens:,.0f}", tokens), _score(results.select(method, size))]
        rows.append([head(method), size_cell(size), *row])
    note = "Stages of the iterations only (generate, score, train, evaluate), whoever computed them; mean over seeds."
    columns = ["method", "annotations", "GPU-hours" if on_gpus else "minutes", "tokens", "average, %"]
    return Table("Cost of an experiment", columns, rows, [note])


def _count(one: MethodScores) -> Cell:
    known = int(one.scores.notna().sum())
    return Cell(f"{known} of {known + one.missing}" if one.missing else str(known), known)


def _score(one: MethodScores, *, bold: bool = False) -> Cell:
    found = one.interval
    if not found.n:
        return NONE
    ends = None if np.isnan(found.high) else (100 * found.low, 100 * found.high)
    half = f" ± {100 * (found.high - found.mean):.1f}" if ends else ""
    star = "*" if one.missing else ""
    return Cell(f"{100 * found.mean:.1f}{half}{star}", 100 * found.mean, bold, ends=ends)


def _changed(one: MethodScores, before: MethodScores) -> Cell:
    cell = _score(one)
    change = 100 * (one.interval.mean - before.interval.mean)
    return cell if cell.missing or np.isnan(change) else Cell(f"{cell.number:.1f} ({signed(change, 1)})", cell.sort)


def _selection_bias(results: Results, size: float) -> str:
    methods, bias = results.selection_bias(size)
    where = f" with {size:,.0f} annotations" if len(results.sizes) > 1 and not np.isnan(size) else ""
    best = f"The best of these {methods} methods{where} overstates itself by about {100 * bias:.1f} points"
    return f"{best}: it was chosen for its score (optimizer's curse, parametric bootstrap)." if bias else ""


def _notes(results: Results, *, bold: bool = False) -> list[str]:
    seeds = results.rows.groupby(["method", "size"], observed=True, dropna=False)["seed"].nunique()
    least, most = int(seeds.min()), int(seeds.max())
    several = f"{least if least == most else f'{least} to {most}'} seeds, ± half of the 95 % interval (Student's t)."
    notes = [f"Mean over {several if most > 1 else '1 seed: no interval.'}"]
    if warning := statistics.warning(least):
        notes.append(warning)
    if results.rows["value"].isna().any():
        notes.append("*: some seeds are missing. –: all are missing.")
    if bold:
        notes.append("Bold: better than every other method on the same seeds (paired, Holm, 5 %).")
    return notes


def search_trials(results: Results) -> Table:
    """Return the trials of a search, the best first. Raises UserError for any other study."""
    found = trials(results.frames)
    if found is None:
        raise UserError(f"by=trial: {results.frames.study} is no search.")
    return search.table(found)


Maker = Callable[[Results], Table]
# The choices of `python -m analysis table by=…`: for any study, and for a search.
STUDY: dict[str, Maker] = {"task": scores, "iteration": iterations, "size": sizes, "cost": cost, "state": states}
TABLES = STUDY | {"trial": search_trials}

"""The table and the figure of a search."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.collect.frames import Frames
from analysis.compare.trials import Trials, trials
from analysis.show.style import DOUBLE, GREY, legend, note, styled
from analysis.show.table import NONE, Cell, Table
from sweeps.state.records import DONE
from sweeps.state.study_status import PRUNED

_COLOUR, _BEST = "#0072B2", "#D55E00"


def table(found: Trials) -> Table:
    """Return the trials, the best first, with the score of their last rung and their settings."""
    last = found.rungs.groupby("number")[["rung", "score"]].last().rename(columns={"score": "last"})
    rows = found.rows.join(last, on="number")
    order = np.argsort(-found.sign * rows["score"].to_numpy(), kind="stable")  # NaN comes last
    settings = found.frames.experiments.set_index("experiment")[found.frames.varying].astype(str)
    cells = [
        [
            Cell(str(row["number"]), row["number"], kind="head"),
            Cell(row["state"]),
            _percent(row["score"], row["stderr"]),
            _percent(row["last"]),
            NONE if np.isnan(row["rung"]) else Cell(f"{row['rung']:.0f}", row["rung"]),
            *map(Cell, settings.loc[row["experiment"]]),
        ]
        for row in rows.iloc[order].to_dict("records")
    ]
    columns = ["trial", "state", f"{found.search.objective}, %", "last rung, %", "rungs", *settings]
    return Table(f"Trials of the search {found.search.name}", columns, cells, notes(found))


def _percent(value: Any, error: Any = np.nan) -> Cell:
    around = "" if np.isnan(error) else f" ± {100 * error:.1f}"
    return NONE if np.isnan(value) else Cell(f"{100 * value:.1f}{around}", 100 * float(value))


def notes(found: Trials) -> list[str]:
    """Return errors, the best trial, and what its score is worth."""
    failed = found.rows[found.rows["error"] != ""]
    lines = [f"Trial {row.number} {row.state}: {row.error}." for row in failed.itertuples()]
    lines.append("±: standard error over documents. The last rung is scored on a share of the documents.")
    if found.best is None:
        return [*lines, "No trial is complete yet."]
    number, score, complete = found.best["number"], 100 * found.best["score"], len(found.complete)
    if complete < 2 or np.isnan(found.bias):
        return [*lines, f"Best: trial {number} with {score:.1f} %."]
    return [
        *lines,
        f"Best: trial {number} with {score:.1f} %. As the best of {complete} complete trials, it overstates itself by "
        f"about {100 * found.bias:.1f} points: {100 * found.corrected:.1f} % is the better estimate.",
        "The bias is a parametric bootstrap over the standard errors (optimizer's curse). It is too large because "
        "trials share documents, and it ignores pruning. Documents that the search did not use have no such bias.",
    ]


@styled
def figure(frames: Frames) -> Figure | None:
    """Draw scores by trial with the best so far, pruned trials at their last rung, and scores by rung."""
    found = trials(frames)
    if found is None or (found.complete.empty and found.rungs.empty):
        return None
    drawn = Figure(figsize=(DOUBLE, 2.6), layout="constrained")
    rungs = len(found.rungs) > 0
    axes = drawn.subplots(1, 1 + rungs, squeeze=False, sharey=True, width_ratios=[3, 2][: 1 + rungs])[0]
    handles = _by_number(axes[0], found)
    if rungs:
        _by_rung(axes[1], found)
    legend(drawn, handles)
    states = found.rows["state"].value_counts()
    others = ", ".join(f"{n} {state}" for state, n in states.items() if state not in (DONE, PRUNED))
    shares = f"rungs: on {100 * found.search.share:g} % of the documents" if rungs else ""
    note(drawn, [others, shares, "bars: ± one standard error over documents"])
    return drawn


def _by_number(axes: Axes, found: Trials) -> dict[str, Line2D]:
    axes.set(xlabel="Trial", ylabel=f"{found.search.objective.capitalize()} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    complete, handles = found.complete, dict[str, Line2D]()
    pruned = found.rungs[found.rungs["state"] == PRUNED].groupby("number").last()
    if len(pruned):
        look: Any = {"color": GREY, "marker": "x", "markersize": 4, "linestyle": ""}
        handles["pruned, at its last rung (number)"] = axes.plot(pruned.index, 100 * pruned["score"], **look)[0]
        for number, rung, score in pruned[["rung", "score"]].itertuples():
            axes.annotate(f"{rung}", (number, 100 * score), (3, 3), textcoords="offset points", color=GREY)
    if len(complete):
        look = {"color": _COLOUR, "marker": "o", "markersize": 4, "linestyle": ""}
        axes.errorbar(complete["number"], 100 * complete["score"], 100 * complete["stderr"], elinewidth=0.7, **look)
        handles["complete"] = Line2D([], [], **look)
        top = found.sign * np.maximum.accumulate(100 * found.sign * complete["score"].to_numpy())
        ends = [*complete["number"], int(found.rows["number"].max())]
        handles["best so far"] = axes.step(ends, [*top, top[-1]], where="post", color="black")[0]
        if len(complete) > 1 and not np.isnan(found.bias):
            handles["best, less selection bias"] = axes.axhline(100 * found.corrected, color=_BEST, linestyle="--")
    return handles


def _by_rung(axes: Axes, found: Trials) -> None:
    """Draw a line per trial: complete trials coloured, the others grey, the best one thick."""
    axes.set(xlabel="Rung")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    best, complete = (None if found.best is None else found.best["number"]), set(found.complete["number"])
    for number, rows in found.rungs.groupby("number"):
        color = _BEST if number == best else _COLOUR if number in complete else "0.7"
        look: Any = {"color": color, "linewidth": 2 if number == best else 0.8, "zorder": 2 + (number in complete)}
        axes.plot(rows["rung"], 100 * rows["score"], marker=".", markersize=4, **look)
    axes.set_xlim(0.5, found.rungs["rung"].max() + 0.5)

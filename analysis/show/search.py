"""A search: its trials by number and by rung, the best of them, and by how much that one overstates itself."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.collect.frames import Frames
from analysis.compare import statistics
from analysis.show.style import DOUBLE, GREY, legend, note, styled
from analysis.show.table import NONE, Cell, Sheet
from sweeps.search import file
from sweeps.search.file import Search
from sweeps.state.records import DONE

_PREFIX = "search-"  # of the study whose experiments are the trials of a search
_COLOUR, _BEST = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Trials:
    """The trials of a search: `rows` has the number, state, score and stderr of each; scores are those it looks for.

    `rungs` has number, rung (from 1) and score on the share of the documents that rungs are scored on.
    """

    search: Search
    frames: Frames
    rows: pd.DataFrame
    rungs: pd.DataFrame

    @property
    def sign(self) -> int:
        """What makes the best score the highest one."""
        return -1 if self.search.direction == "minimize" else 1

    @property
    def complete(self) -> pd.DataFrame:
        """Those that came to their end, by number."""
        return self.rows[self.rows["score"].notna()]

    @property
    def best(self) -> Any:
        """The row of the best one, the first of several; None while there is none."""
        complete = self.complete
        return None if complete.empty else complete.iloc[int(np.argmax(self.sign * complete["score"].to_numpy()))]

    @cached_property
    def bias(self) -> float:
        """By how much the best score overstates itself for having been chosen; NaN where errors are not known."""
        known = self.complete.dropna(subset="stderr")
        return statistics.selection_bias(self.sign * known["score"].to_numpy(), known["stderr"].to_numpy())

    @property
    def corrected(self) -> float:
        """The best score without that."""
        return float(self.best["score"]) - self.sign * self.bias


def trials(frames: Frames) -> Trials | None:
    """The trials, if the study is a search."""
    folder = file.folder_of(frames.store, frames.study.removeprefix(_PREFIX))
    if not frames.study.startswith(_PREFIX) or not (folder / file.DECLARATION).is_file():
        return None
    search = file.read(folder)
    number = frames.experiments["experiment"].str.removeprefix("trial-").astype(int)
    about = frames.experiments[["experiment", "state", "error"]].assign(number=number)
    scores = _objective(frames.scores, search.objective)
    last = scores[scores["final"] & ~scores["part"]].drop_duplicates("experiment", keep="last")
    last = last.set_index("experiment")[["value", "stderr"]].rename(columns={"value": "score"})
    rows = about.join(last, on="experiment").sort_values("number", ignore_index=True)
    rows.loc[rows["state"] != DONE, ["score", "stderr"]] = np.nan
    part = scores[scores["part"] & scores["value"].notna()]
    rung = part.groupby("experiment", observed=True).cumcount() + 1
    rungs = pd.DataFrame({"experiment": part["experiment"].astype(object), "rung": rung, "score": part["value"]})
    return Trials(search, frames, rows, rungs.join(about.set_index("experiment")[["number", "state"]], on="experiment"))


def _objective(scores: pd.DataFrame, objective: str) -> pd.DataFrame:
    """The rows of what a search looks for: `average`, a task or `task:metric,filter`."""
    task, _, metric = objective.partition(":")
    chosen = scores["metric"] == metric if metric else scores["main"]
    return scores[(scores["task"] == task) & (chosen | scores["value"].isna())]


def sheet(found: Trials) -> Sheet:
    """The trials, the best first, with the score of their last rung and what they try."""
    last = found.rungs.groupby("number")[["rung", "score"]].last().rename(columns={"score": "last"})
    rows = found.rows.join(last, on="number")
    order = np.argsort(-found.sign * rows["score"].to_numpy(), kind="stable")  # NaN comes last
    said = found.frames.experiments.set_index("experiment")[found.frames.varying].astype(str)
    cells = [
        [
            Cell(str(row["number"]), row["number"], kind="head"),
            Cell(row["state"]),
            _percent(row["score"], row["stderr"]),
            _percent(row["last"]),
            NONE if np.isnan(row["rung"]) else Cell(f"{row['rung']:.0f}", row["rung"]),
            *map(Cell, said.loc[row["experiment"]]),
        ]
        for row in rows.iloc[order].to_dict("records")
    ]
    columns = ["trial", "state", f"{found.search.objective}, %", "last rung, %", "rungs", *said]
    return Sheet(f"Trials of the search {found.search.name}", columns, cells, notes(found))


def _percent(value: Any, error: Any = np.nan) -> Cell:
    around = "" if np.isnan(error) else f" ± {100 * error:.1f}"
    return NONE if np.isnan(value) else Cell(f"{100 * value:.1f}{around}", 100 * float(value))


def notes(found: Trials) -> list[str]:
    """What the best trial is, what its score is worth, and what was not counted."""
    failed = found.rows[found.rows["error"] != ""]
    said = [f"Trial {row.number} {row.state}: {row.error}." for row in failed.itertuples()]
    said.append("± is the standard error over documents; the last rung was scored on a share of them.")
    if found.best is None:
        return [*said, "No trial has come to its end yet."]
    number, score, ended = found.best["number"], 100 * found.best["score"], len(found.complete)
    if ended < 2 or np.isnan(found.bias):
        return [*said, f"Best: trial {number} with {score:.1f} %."]
    return [
        *said,
        f"Best: trial {number} with {score:.1f} %. Chosen for that among {ended} that came to their end, it overstates "
        f"itself by about {100 * found.bias:.1f} points: {100 * found.corrected:.1f} % is the better estimate.",
        "The estimate is a parametric bootstrap over the standard errors (optimizer's curse). It counts errors as "
        "independent, though trials share documents, and so errs upwards; what pruning has chosen it does not count. "
        "An evaluation on documents that took no part in the search has no such bias.",
    ]


@styled
def figure(frames: Frames) -> Figure | None:
    """The trials' scores by number with the best so far, pruned ones at their last rung, and the scores by rung."""
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
    gone = ", ".join(f"{n} {state}" for state, n in states.items() if state not in (DONE, "pruned"))
    shares = f"rungs: on {100 * found.search.share:g} % of the documents" if rungs else ""
    note(drawn, [gone, shares, "bars: ± one standard error over documents"])
    return drawn


def _by_number(axes: Axes, found: Trials) -> dict[str, Line2D]:
    axes.set(xlabel="Trial", ylabel=f"{found.search.objective.capitalize()} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    complete, handles = found.complete, dict[str, Line2D]()
    pruned = found.rungs[found.rungs["state"] == "pruned"].groupby("number").last()
    if len(pruned):
        look: Any = {"color": GREY, "marker": "x", "markersize": 4, "linestyle": ""}
        handles["pruned, at its last rung (number)"] = axes.plot(pruned.index, 100 * pruned["score"], **look)[0]
        for number, rung, score in pruned[["rung", "score"]].itertuples():
            axes.annotate(f"{rung}", (number, 100 * score), (3, 3), textcoords="offset points", color=GREY)
    if len(complete):
        look = {"color": _COLOUR, "marker": "o", "markersize": 4, "linestyle": "", "elinewidth": 0.7}
        axes.errorbar(complete["number"], 100 * complete["score"], yerr=100 * complete["stderr"], **look)
        handles["complete"] = Line2D([], [], **{k: v for k, v in look.items() if k != "elinewidth"})
        top = found.sign * np.maximum.accumulate(100 * found.sign * complete["score"].to_numpy())
        ends = [*complete["number"], int(found.rows["number"].max())]
        handles["best so far"] = axes.step(ends, [*top, top[-1]], where="post", color="black")[0]
        if len(complete) > 1 and not np.isnan(found.bias):
            handles["best, less selection bias"] = axes.axhline(100 * found.corrected, color=_BEST, linestyle="--")
    return handles


def _by_rung(axes: Axes, found: Trials) -> None:
    """A line a trial: coloured where it came to its end, grey where not; the best one stands out."""
    axes.set(xlabel="Rung")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    best = None if found.best is None else found.best["number"]
    for number, rows in found.rungs.groupby("number"):
        ended = number in set(found.complete["number"])
        color = _BEST if number == best else _COLOUR if ended else "0.7"
        look: Any = {"color": color, "linewidth": 2 if number == best else 0.8, "zorder": 2 + ended}
        axes.plot(rows["rung"], 100 * rows["score"], marker=".", markersize=4, **look)
    axes.set_xlim(0.5, found.rungs["rung"].max() + 0.5)

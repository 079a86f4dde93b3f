"""Data and curves of figures: scores and steps by curve and panel, means over seeds, and counts of missing results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.collect.frames import Frames
from analysis.collect.index import AVERAGE
from analysis.collect.policy_rows import BASE, INITIAL, START
from analysis.compare.statistics import LEVEL, mean
from analysis.show.style import GREY, Labels, Style, key

POINTS = 60  # of a curve in an iteration: more steps are averaged in as many groups
# Initial policies are not methods: grey, without markers.
REFERENCES = {name: Style(GREY, "", (0, (1, 1)) if name == BASE else (0, (4, 2))) for name in INITIAL}
AxesOf = Mapping[tuple[str, str], Axes]  # by panel and row


def scores(frames: Frames, labels: Labels) -> pd.DataFrame:
    """Return main scores in percent, one row per experiment × policy × task, with the columns of `Labels.of`."""
    found = frames.scores[frames.scores["main"] & ~frames.scores["part"]]
    found = found.astype(dict.fromkeys(("experiment", "policy", "task", "state"), object))  # not categories
    return found.assign(score=100 * found["value"]).join(labels.of, on="experiment")


def averages(frames: Frames, labels: Labels) -> pd.DataFrame:
    """Return the average scores, one row per experiment × policy."""
    found = scores(frames, labels)
    return found[found["task"] == AVERAGE]


def over_seeds(scores: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Return mean, low, high (95 % t interval) and n per group `by`; NaN where no seed has a number."""
    each = scores.groupby([*by, "seed"])[column].mean()  # experiments that share a policy have equal numbers
    groups: Any = each.groupby(level=list(by))
    found = [(names, mean(values.to_numpy(float))) for names, values in groups]
    rows = [(*names, one.mean, one.low, one.high, one.n) for names, one in found]
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n"])


def missing(scores: pd.DataFrame, by: Sequence[str], column: str) -> str:
    """Return '3 of 84 results missing (2 failed, 1 running)', or ''; a result is one seed of one point."""
    each = scores.groupby([*by, "seed"], dropna=False).agg({column: "mean", "state": "first"})
    gone = each[each[column].isna()]
    if gone.empty:
        return ""
    states = ", ".join(f"{n} {state}" for state, n in gone["state"].value_counts().items())
    return f"{len(gone):,} of {len(each):,} results missing ({states})"


def averaged(points: pd.DataFrame) -> str:
    """Return 'means over 3 seeds', 'means over 1–3 seeds' or 'one seed' from the column `n`."""
    low, high = points["n"][points["n"] > 0].agg(["min", "max"])
    return "one seed" if high == 1 else f"means over {high if low == high else f'{low}–{high}'} seeds"


def intervals(points: pd.DataFrame) -> str:
    """Return a caption for means, error bars and missing intervals."""
    drawn = points[points["n"] > 0]
    if drawn["n"].max() == 1:
        return "one seed: no intervals"
    without = ", none for one seed or equal scores" if drawn["low"].isna().any() else ""
    return f"{averaged(points)}; bars: {100 * LEVEL:.0f} % t-intervals{without}"


def draw(points: pd.DataFrame, place: str, x: str, labels: Labels, axes: AxesOf, row: str = "") -> dict[str, Line2D]:
    """Draw means over `x` with bars, side by side, a curve per method; return the legend's lines.

    `place` is the column with a point's panel. Curves are broken where a mean is missing.
    """
    names = [name for name in labels.styles if name in set(points["curve"][points["mean"].notna()])]
    logarithmic = next(iter(axes.values())).get_xscale() == "log"
    places = np.unique(np.log(points[x]) if logarithmic else points[x])
    spread = min([0.25 if logarithmic else 0.5, *(0.5 * np.diff(places))])
    for panel, name, rows in _by_curve(points[points["curve"].isin(names)], place):
        one, style = axes[panel, row], labels.styles[name]
        shift = spread * ((names.index(name) + 0.5) / len(names) - 0.5)
        at = rows[x] * np.exp(shift) if logarithmic else rows[x] + shift
        reach = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        one.errorbar(at, rows["mean"], yerr=reach, elinewidth=0.7, label=name, **style.keywords())
    return {name: key(labels.styles[name]) for name in names}


def _by_curve(points: pd.DataFrame, column: str) -> Iterator[tuple[Any, str, pd.DataFrame]]:
    for (value, name), rows in points.groupby([column, "curve"]):
        yield value, str(name), rows


def lines_across(scores: pd.DataFrame, place: str, axes: AxesOf) -> dict[str, Line2D]:
    """Draw the mean of each initial policy across its panel; return the legend's lines."""
    points = over_seeds(scores[scores["iteration"] == 0], [place, "policy"], "score").dropna(subset="mean")
    for panel, name, height in zip(points[place], points["policy"], points["mean"], strict=True):
        style = REFERENCES[name]
        axes[panel, ""].axhline(height, color=style.color, linestyle=style.linestyle, label=name)
    return {name: key(style) for name, style in REFERENCES.items() if name in set(points["policy"])}


@dataclass(frozen=True)
class Steps:
    """Training steps of all iterations: means over seeds, by panel, curve and iteration.

    `means` has at most POINTS rows per iteration, at `x` from t − ½ to t + ½, over `n` experiments. `there` has a row
    per experiment and iteration with steps, with 1 as `found`.
    """

    means: pd.DataFrame
    there: pd.DataFrame

    def has(self, column: str) -> bool:
        """Return whether any step has a number in a column."""
        return column in self.means and bool(self.means[column].notna().any())

    def missing(self, scores: pd.DataFrame, column: str) -> str:
        """Count the policies without steps, of the curves that have numbers in a column."""
        drawn = self.means["curve"][self.means[column].notna()]
        trained = scores[(scores["iteration"] > 0) & scores["curve"].isin(drawn)]
        joined = trained.merge(self.there, how="left", on=["experiment", "iteration"])
        return missing(joined, ["panel", "curve", "iteration"], "found")


def steps_of(frames: Frames, labels: Labels) -> Steps:
    """Read the training steps from the store."""
    steps = frames.steps(frames.scores["iteration"] > 0)
    there = steps[["experiment", "iteration"]].drop_duplicates().assign(found=1.0)
    by = ["panel", "curve", "iteration"]
    found = steps.join(labels.of.astype({"panel": "category", "curve": "category"}), on="experiment")
    number = found.groupby(by)["step"].transform("max") + 1
    part = (found["step"] * np.minimum(number, POINTS) // number).rename("part")
    found = found.assign(x=found["iteration"] + (found["step"] + 0.5) / number - 0.5)
    groups = found.groupby([*by, part])
    return Steps(groups.mean(numeric_only=True).assign(n=groups["experiment"].nunique()).reset_index(), there)


def step_curves(steps: Steps, column: str, labels: Labels, axes: AxesOf, row: str) -> dict[str, Line2D]:
    """Draw means over seeds by step, a curve per method, broken between iterations; return the legend's lines."""
    there = steps.means.dropna(subset=column)
    names = [name for name in labels.styles if name in set(there["curve"])]
    for panel, name, rows in _by_curve(there, "panel"):
        x, y, marks = _broken(rows, column, (names.index(name) + 0.5) / len(names))
        axes[panel, row].plot(x, y, markevery=marks, label=name, **labels.styles[name].keywords())
    return {name: key(labels.styles[name]) for name in names}


def _broken(rows: pd.DataFrame, column: str, share: float) -> tuple[list[float], list[float], list[int]]:
    """Return x and y with NaN after each iteration, and the markers' positions, at a share of each iteration."""
    x, y, marks = list[float](), list[float](), list[int]()
    for _, points in rows.groupby("iteration"):
        marks.append(len(x) + int(share * len(points)))  # apart from those of curves that coincide
        x += [*points["x"], np.nan]
        y += [*points[column], np.nan]
    return x, y, marks


def paths(axes: Axes, points: pd.DataFrame, labels: Labels) -> dict[str, Line2D]:
    """Draw each method's path from the start, with larger marks for more annotations; return the legend's lines."""
    sizes = sorted(points["amount"].unique())
    for amount, name, rows in _by_curve(points, "amount"):
        look = labels.styles[name].keywords()
        look |= {"markersize": look["markersize"] * (0.8 + 0.15 * sizes.index(amount)), "linewidth": 0.6}
        marks = np.flatnonzero(rows["iteration"] > 0).tolist()
        axes.plot(rows["cost"], rows["score"], label=name, markevery=marks, **look)
    handles = {name: key(style) for name, style in labels.styles.items() if name in set(points["curve"])}
    starts = points[points["iteration"] == 0].drop_duplicates(["amount", "cost", "score"])
    look = Style(GREY, "h", "").keywords()
    axes.plot(starts["cost"], starts["score"], label=START, **look)
    front = pareto(points)
    ring: dict[str, Any] = {"color": "black", "linewidth": 0.6, "marker": "o", "markersize": 8.5}
    ring |= {"markerfacecolor": "none", "markeredgewidth": 0.6}
    axes.plot(front["cost"], front["score"], drawstyle="steps-post", label="Pareto front", **ring)
    return handles | {START: Line2D([], [], **look), "Pareto front": Line2D([], [], **ring)}


def pareto(points: pd.DataFrame) -> pd.DataFrame:
    """Return the Pareto front by cost: no other row costs at most as much and scores at least as much."""
    ordered = points.sort_values(["cost", "score"], ascending=[True, False])
    before = ordered["score"].cummax().shift(fill_value=-np.inf)
    return ordered[ordered["score"] > before]

"""Figures of a study: scores by iteration, by annotations, by cost and by task; α and the gap; log-ratios and weights.
Of a search, whose trials are too many for curves, what it has found.

Each takes frames and returns a figure, or None where the study has nothing to show. What is not there is counted below
the panels. Scores are percentages, bars 95 % t-intervals over seeds.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from analysis.collect.frames import Frames
from analysis.collect.index import AVERAGE
from analysis.collect.policy_rows import BASE, START
from analysis.show import curves, search
from analysis.show.curves import REFERENCES, over_seeds
from analysis.show.style import DOUBLE, SINGLE, Draw, Labels, count, key, label, legend, letters, note, sheet, styled


@styled
def iterations(frames: Frames) -> Figure | None:
    """Average score by iteration, a curve per method; the base model and the start are lines across."""
    labels = label(frames)
    cells = curves.averages(frames, labels)
    by = ["panel", "curve", "iteration"]
    played = cells[cells["iteration"] > 0]
    points = over_seeds(played, by, "score")
    if points["mean"].isna().all():
        return None
    figure, axes = _by_iteration(labels, {"": "Score (%)"}, height=1.9)
    handles = curves.lines_across(cells, "panel", axes) | curves.draw(points, "panel", "iteration", labels, axes)
    legend(figure, handles)
    note(figure, [curves.missing(played, by, "score"), curves.intervals(points)])
    return figure


@styled
def efficiency(frames: Frames) -> Figure | None:
    """Average score of the last policy against the number of annotations; None for a study with one number."""
    labels = label(frames)
    cells = curves.averages(frames, labels)
    by = ["group", "curve", "amount"]
    last = cells[cells["final"] & (cells["iteration"] > 0)]
    points = over_seeds(last, by, "score")
    sizes = sorted(points["amount"][points["mean"].notna()].unique())
    if len(sizes) < 2:
        return None
    figure, axes = sheet(
        labels.groups, {"": "Score of the last policy (%)"}, "Annotations", height=2.4, width=labels.width
    )
    _log(axes, FixedLocator(sizes), lambda x: count(round(x)))
    handles = curves.lines_across(cells[cells["policy"] == BASE], "group", axes)
    for group, rows in over_seeds(cells[cells["policy"] == START], ["group", "amount"], "score").groupby("group"):
        axes[str(group), ""].plot(rows["amount"], rows["mean"], label=START, **REFERENCES[START].keywords())
        handles[START] = key(REFERENCES[START])
    legend(figure, handles | curves.draw(points, "group", "amount", labels, axes))
    note(figure, [curves.missing(last, by, "score"), curves.intervals(points)])
    return figure


@styled
def alpha(frames: Frames) -> Figure | None:
    """α by iteration and the steps within it, and below the estimated gap that each iteration starts with."""
    labels = label(frames)
    cells, steps = curves.averages(frames, labels), curves.steps_of(frames, labels)
    if not steps.has("alpha"):
        return None
    gaps = over_seeds(cells[cells["iteration"] > 0], ["panel", "curve", "iteration"], "gap")
    rows = {"alpha": "α"} | ({"gap": "Gap (nats\nper token)"} if gaps["n"].any() else {})
    figure, axes = _by_iteration(labels, rows, height=1.4)
    handles = curves.step_curves(steps, "alpha", labels, axes, "alpha")
    said = curves.averaged(steps.means)
    if "gap" in rows:
        handles |= curves.draw(gaps, "panel", "iteration", labels, axes, row="gap")
        said = curves.intervals(gaps)
    legend(figure, {name: handles[name] for name in labels.styles if name in handles})
    note(figure, [steps.missing(cells, "alpha"), said])
    return figure


@styled
def ratios(frames: Frames) -> Figure | None:
    """Log-ratios of annotated and of synthetic responses by step, and how concentrated the weights of a batch are."""
    labels = label(frames)
    steps = curves.steps_of(frames, labels)
    means = steps.means
    for side in ("real", "synthetic"):
        if f"{side}_ess" in means:  # a batch holds no sample twice
            means[f"{side}_share"] = means[f"{side}_ess"] / means[["batch", "amount"]].min(axis=1)
    rows = {
        "real_ratio": "Log-ratio,\nannotated",
        "synthetic_ratio": "Log-ratio,\nsynthetic",
        "real_share": "ESS / batch,\nannotated",
        "synthetic_share": "ESS / batch,\nsynthetic",
    }
    rows = {row: said for row, said in rows.items() if steps.has(row)}
    if not rows:
        return None
    figure, axes = _by_iteration(labels, rows, height=1.05)
    handles: dict[str, Line2D] = {}
    for row in rows:
        handles |= curves.step_curves(steps, row, labels, axes, row)
        if row.endswith("_share"):  # shares of nearly 1 are not to look like a fall
            axes[labels.panels[0], row].set_ylim(min(0.9, means[row].min() - 0.05), 1.02)
    legend(figure, {name: handles[name] for name in labels.styles if name in handles})
    without = ", ".join(name for name in labels.styles if name not in handles)
    gone = steps.missing(curves.averages(frames, labels), next(iter(rows)))
    ess = "ESS: effective sample size of the weights" if len(rows) > 2 else ""
    note(figure, [gone, f"no ratios: {without}" if without else "", curves.averaged(means), ess])
    return figure


def _by_iteration(labels: Labels, rows: Mapping[str, str], height: float) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    figure, axes = sheet(labels.panels, rows, "Iteration", height, width=labels.width)
    first = next(iter(axes.values()))  # all share its x
    first.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes


def _log(axes: curves.AxesOf, places: Locator, text: Callable[[float], str]) -> None:
    """Make x logarithmic, with plain numbers at these places."""
    first = next(iter(axes.values()))  # all share it
    first.set_xscale("log")
    first.xaxis.set_major_locator(places)
    first.xaxis.set_minor_locator(NullLocator())
    first.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text(x)))


@styled
def cost(frames: Frames) -> Figure | None:
    """Average score of each policy against what it and the policies before it have cost, and the Pareto front."""
    labels = label(frames)
    cells = curves.averages(frames, labels)
    cells = cells[cells["policy"] != BASE].sort_values("iteration", kind="stable")
    on_gpus = bool(cells["gpu_seconds"].max() > 0)
    spent = cells["gpu_seconds"] / 3600 if on_gpus else cells["seconds"] / 60
    total = spent.groupby(cells["experiment"]).transform(lambda own: own.cumsum(skipna=False))
    cells = cells.assign(cost=total, score=cells["score"].where(total.notna()))
    by = ["group", "amount", "curve", "iteration"]
    each = cells.dropna(subset="score").groupby([*by, "seed"])[["cost", "score"]].mean()
    points = each.groupby(level=by).mean().assign(n=each.groupby(level=by).size()).reset_index()
    if points.empty:
        return None
    xlabel = "Cost (GPU-hours)" if on_gpus else "Cost (minutes, no GPU)"
    several = points["amount"].nunique() > 1
    figure, axes = sheet(
        labels.groups, {"": "Score (%)"}, xlabel, height=2.8, width=DOUBLE if several else labels.width
    )
    if points["cost"].max() > 10 * points["cost"].min() > 0:
        _log(axes, LogLocator(subs=(1, 2, 5)), "{:g}".format)
    handles: dict[str, Line2D] = {}
    for group in labels.groups:
        handles |= curves.paths(axes[group, ""], points[points["group"] == group], labels)
    legend(figure, handles)
    played = cells[cells["iteration"] > 0]
    sizes = "larger marks: more annotations" if several else ""
    note(figure, [curves.missing(played, by, "score"), f"{curves.averaged(points)}, joined by iteration", sizes])
    return figure


@styled
def tasks(frames: Frames) -> Figure | None:
    """Scores of the last policies by task and method, as differences to the start of the same experiment."""
    labels = label(frames)
    names = [*frames.tasks, *([AVERAGE] if len(frames.tasks) > 1 else [])]
    cells, start = _differences(frames, labels)
    by = ["panel", "curve", "task"]
    points = over_seeds(cells[cells["task"].isin(names)], by, "shown")
    if not points["n"].any():
        return None
    inches, beside = 0.42 * len(names), letters(labels.styles) + 0.7
    across = max(1, min(3, int((DOUBLE - beside) / inches)))
    width = SINGLE if len(labels.panels) == 1 and inches < SINGLE - beside else DOUBLE
    height = 0.35 + 0.18 * len(labels.styles)
    figure, axes = sheet(labels.panels, {"": ""}, "", height, across, width)
    largest = max(1, points["mean"].abs().max())
    norm = Normalize(-largest, largest) if start else Normalize(0, 100)
    shades = ScalarMappable(norm, "RdBu" if start else "cividis")
    for (panel, _), one in axes.items():
        table = points[points["panel"] == panel].pivot(index="curve", columns="task", values="mean")
        _heat(one, table.reindex(index=list(labels.styles), columns=names), shades, signed=bool(start))
    figure.colorbar(shades, ax=list(axes.values()), fraction=0.03, pad=0.01).outline.set_visible(False)
    figure.suptitle(f"Score minus that of {start} (points)" if start else "Score (%)", fontsize=8)
    gone = curves.missing(cells[cells["task"].isin(names)], by, "shown")
    note(figure, [gone, "scores of the last policies", curves.averaged(points)])
    return figure


def _differences(frames: Frames, labels: Labels) -> tuple[pd.DataFrame, str]:
    """The last policies' scores by task as `shown`, minus those of the start if there is one, and its name or ''."""
    found = curves.scores(frames, labels)
    last = found[found["final"] & (found["iteration"] > 0)]
    before = found[found["policy"] == START].set_index(["experiment", "task"])["score"].rename("before")
    start = START if before.notna().any() else ""
    less = last.join(before, on=["experiment", "task"])["before"] if start else 0.0
    shown = last["score"] - less
    alone = last["score"].notna() & shown.isna()
    return last.assign(shown=shown, state=last["state"].mask(alone, f"without {start}")), start


def _heat(axes: Axes, table: pd.DataFrame, shades: ScalarMappable, signed: bool) -> None:
    """Draw a table as coloured cells with their numbers; a cell without number is grey and says –."""
    values = np.ma.masked_invalid(table.to_numpy(float))
    axes.pcolormesh(values, cmap=shades.cmap, clim=shades.get_clim(), edgecolors="white", linewidth=0.5)
    axes.set(facecolor="0.88", xticks=np.arange(table.shape[1]) + 0.5, yticks=np.arange(table.shape[0]) + 0.5)
    axes.set_xticklabels(table.columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticklabels(table.index)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylim(len(table), 0)
    for (row, column), value in np.ndenumerate(table.to_numpy(float)):
        rounded = round(value, 1) + 0.0  # no −0.0
        text = "–" if np.isnan(value) else f"{rounded:{'+' if signed else ''}.1f}".replace("-", "−")
        dark = not np.isnan(value) and np.dot(shades.to_rgba(value)[:3], (0.299, 0.587, 0.114)) < 0.5
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color="white" if dark else "black")


def of(frames: Frames) -> dict[str, Draw]:
    """The figures for a study: for a search, its own alone."""
    return FIGURES if search.trials(frames) is None else {"search": search.figure}


FIGURES: dict[str, Draw] = {
    "iterations": iterations,
    "efficiency": efficiency,
    "alpha": alpha,
    "ratios": ratios,
    "cost": cost,
    "tasks": tasks,
}

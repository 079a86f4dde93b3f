"""The figures of a study: scores by iteration, annotations, cost and task; α and the gap; log-ratios and weights.

Each function returns None where the study has nothing to show. Scores are percentages, bars 95 % t intervals over
seeds; a note below the panels counts missing results.
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
from analysis.compare.trials import trials
from analysis.show import curves, search
from analysis.show.curves import REFERENCES, over_seeds
from analysis.show.style import DOUBLE, SINGLE, Draw, Labels, count, grid, key, label, legend, letters, note, styled


@styled
def iterations(frames: Frames) -> Figure | None:
    """Draw the average by iteration, a curve per method, and the initial policies as lines across."""
    labels = label(frames)
    scores = curves.averages(frames, labels)
    by = ["panel", "curve", "iteration"]
    trained = scores[scores["iteration"] > 0]
    points = over_seeds(trained, by, "score")
    if points["mean"].isna().all():
        return None
    figure, axes = _by_iteration(labels, {"": "Score (%)"}, height=1.9)
    handles = curves.lines_across(scores, "panel", axes) | curves.draw(points, "panel", "iteration", labels, axes)
    legend(figure, handles)
    note(figure, [curves.missing(trained, by, "score"), curves.intervals(points)])
    return figure


@styled
def efficiency(frames: Frames) -> Figure | None:
    """Draw the last policy's average over the number of annotations; None for a study with one number."""
    labels = label(frames)
    scores = curves.averages(frames, labels)
    by = ["group", "curve", "amount"]
    last = scores[scores["final"] & (scores["iteration"] > 0)]
    points = over_seeds(last, by, "score")
    sizes = sorted(points["amount"][points["mean"].notna()].unique())
    if len(sizes) < 2:
        return None
    rows = {"": "Score of the last policy (%)"}
    figure, axes = grid(labels.groups, rows, "Annotations", height=2.4, width=labels.width)
    _log(axes, FixedLocator(sizes), lambda x: count(round(x)))
    handles = curves.lines_across(scores[scores["policy"] == BASE], "group", axes)
    starts = over_seeds(scores[scores["policy"] == START], ["group", "amount"], "score")
    for group, line in starts.groupby("group"):
        axes[str(group), ""].plot(line["amount"], line["mean"], label=START, **REFERENCES[START].keywords())
        handles[START] = key(REFERENCES[START])
    legend(figure, handles | curves.draw(points, "group", "amount", labels, axes))
    note(figure, [curves.missing(last, by, "score"), curves.intervals(points)])
    return figure


@styled
def alpha(frames: Frames) -> Figure | None:
    """Draw α by step and, below, the estimated gap at the start of each iteration."""
    labels = label(frames)
    scores, steps = curves.averages(frames, labels), curves.steps_of(frames, labels)
    if not steps.has("alpha"):
        return None
    gaps = over_seeds(scores[scores["iteration"] > 0], ["panel", "curve", "iteration"], "gap")
    rows = {"alpha": "α"} | ({"gap": "Gap (nats\nper token)"} if gaps["n"].any() else {})
    figure, axes = _by_iteration(labels, rows, height=1.4)
    handles = curves.step_curves(steps, "alpha", labels, axes, "alpha")
    caption = curves.averaged(steps.means)
    if "gap" in rows:
        handles |= curves.draw(gaps, "panel", "iteration", labels, axes, row="gap")
        caption = curves.intervals(gaps)
    legend(figure, {name: handles[name] for name in labels.styles if name in handles})
    note(figure, [steps.missing(scores, "alpha"), caption])
    return figure


@styled
def ratios(frames: Frames) -> Figure | None:
    """Draw log-ratios of annotated and synthetic responses and the effective sample size of the weights by step."""
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
    rows = {row: text for row, text in rows.items() if steps.has(row)}
    if not rows:
        return None
    figure, axes = _by_iteration(labels, rows, height=1.05)
    handles: dict[str, Line2D] = {}
    for row in rows:
        handles |= curves.step_curves(steps, row, labels, axes, row)
        if row.endswith("_share"):  # keeps shares near 1 from looking like a fall
            axes[labels.panels[0], row].set_ylim(min(0.9, means[row].min() - 0.05), 1.02)
    legend(figure, {name: handles[name] for name in labels.styles if name in handles})
    without = ", ".join(name for name in labels.styles if name not in handles)
    gone = steps.missing(curves.averages(frames, labels), next(iter(rows)))
    ess = "ESS: effective sample size of the weights" if len(rows) > 2 else ""
    note(figure, [gone, f"no ratios: {without}" if without else "", curves.averaged(means), ess])
    return figure


def _by_iteration(labels: Labels, rows: Mapping[str, str], height: float) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    figure, axes = grid(labels.panels, rows, "Iteration", height, width=labels.width)
    first = next(iter(axes.values()))  # all share its x axis
    first.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes


def _log(axes: curves.AxesOf, places: Locator, text: Callable[[float], str]) -> None:
    """Make the shared x axis logarithmic, with plain numbers at `places`."""
    first = next(iter(axes.values()))
    first.set_xscale("log")
    first.xaxis.set_major_locator(places)
    first.xaxis.set_minor_locator(NullLocator())
    first.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text(x)))


@styled
def cost(frames: Frames) -> Figure | None:
    """Draw each policy's average over the cost of it and the policies before it, and the Pareto front."""
    labels = label(frames)
    scores = curves.averages(frames, labels)
    scores = scores[scores["policy"] != BASE].sort_values("iteration", kind="stable")
    on_gpus = bool(scores["gpu_seconds"].max() > 0)
    spent = scores["gpu_seconds"] / 3600 if on_gpus else scores["seconds"] / 60
    total = spent.groupby(scores["experiment"]).transform(lambda own: own.cumsum(skipna=False))
    scores = scores.assign(cost=total, score=scores["score"].where(total.notna()))
    by = ["group", "amount", "curve", "iteration"]
    each = scores.dropna(subset="score").groupby([*by, "seed"])[["cost", "score"]].mean()
    points = each.groupby(level=by).mean().assign(n=each.groupby(level=by).size()).reset_index()
    if points.empty:
        return None
    xlabel = "Cost (GPU-hours)" if on_gpus else "Cost (minutes, no GPU)"
    several = points["amount"].nunique() > 1
    width = DOUBLE if several else labels.width
    figure, axes = grid(labels.groups, {"": "Score (%)"}, xlabel, height=2.8, width=width)
    if points["cost"].max() > 10 * points["cost"].min() > 0:
        _log(axes, LogLocator(subs=(1, 2, 5)), "{:g}".format)
    handles: dict[str, Line2D] = {}
    for group in labels.groups:
        handles |= curves.paths(axes[group, ""], points[points["group"] == group], labels)
    legend(figure, handles)
    trained = scores[scores["iteration"] > 0]
    sizes = "larger marks: more annotations" if several else ""
    note(figure, [curves.missing(trained, by, "score"), f"{curves.averaged(points)}, joined by iteration", sizes])
    return figure


@styled
def tasks(frames: Frames) -> Figure | None:
    """Draw the last policies' scores by task and method, minus those of the same experiment's start."""
    labels = label(frames)
    names = [*frames.tasks, *([AVERAGE] if len(frames.tasks) > 1 else [])]
    scores, start = _differences(frames, labels)
    by = ["panel", "curve", "task"]
    points = over_seeds(scores[scores["task"].isin(names)], by, "shown")
    if not points["n"].any():
        return None
    inches, beside = 0.42 * len(names), letters(labels.styles) + 0.7
    across = max(1, min(3, int((DOUBLE - beside) / inches)))
    width = SINGLE if len(labels.panels) == 1 and inches < SINGLE - beside else DOUBLE
    height = 0.35 + 0.18 * len(labels.styles)
    figure, axes = grid(labels.panels, {"": ""}, "", height, across, width)
    largest = max(1, points["mean"].abs().max())
    norm = Normalize(-largest, largest) if start else Normalize(0, 100)
    shades = ScalarMappable(norm, "RdBu" if start else "cividis")
    for (panel, _), one in axes.items():
        table = points[points["panel"] == panel].pivot(index="curve", columns="task", values="mean")
        _heat(one, table.reindex(index=list(labels.styles), columns=names), shades, signed=bool(start))
    figure.colorbar(shades, ax=list(axes.values()), fraction=0.03, pad=0.01).outline.set_visible(False)
    figure.suptitle(f"Score minus that of {start} (points)" if start else "Score (%)", fontsize=8)
    gone = curves.missing(scores[scores["task"].isin(names)], by, "shown")
    note(figure, [gone, "scores of the last policies", curves.averaged(points)])
    return figure


def _differences(frames: Frames, labels: Labels) -> tuple[pd.DataFrame, str]:
    """Return the last policies' scores by task, as `shown` minus those of the start, and its name ('': none)."""
    found = curves.scores(frames, labels)
    last = found[found["final"] & (found["iteration"] > 0)]
    before = found[found["policy"] == START].set_index(["experiment", "task"])["score"].rename("before")
    start = START if before.notna().any() else ""
    less = last.join(before, on=["experiment", "task"])["before"] if start else 0.0
    shown = last["score"] - less
    alone = last["score"].notna() & shown.isna()
    return last.assign(shown=shown, state=last["state"].mask(alone, f"without {start}")), start


def _heat(axes: Axes, table: pd.DataFrame, shades: ScalarMappable, signed: bool) -> None:
    """Draw a table as coloured cells with their numbers; a missing number is a grey –."""
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
    """Return the figures of a study; a search has its own."""
    return FIGURES if trials(frames) is None else {"search": search.figure}


FIGURES: dict[str, Draw] = {
    "iterations": iterations,
    "efficiency": efficiency,
    "alpha": alpha,
    "ratios": ratios,
    "cost": cost,
    "tasks": tasks,
}

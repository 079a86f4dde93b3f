"""Data efficiency: what a number of annotations buys with one method, and how many another one needs for the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.collect.index import AVERAGE
from analysis.compare import statistics
from analysis.compare.methods import Arm, Table
from analysis.compare.statistics import LEVEL, Comparison
from analysis.show.differences import COLUMNS, compared
from analysis.show.table import NONE, Cell, Sheet
from analysis.show.tables import size_cell
from iris.config import parse_size
from iris.errors import UserError, nearest

Array = NDArray[np.float64]
DRAWS = 2000


@dataclass(frozen=True)
class Claim:
    """`arm` with `size` annotations against `other` with `other_size`: ours minus theirs, by seeds."""

    arm: str
    size: float
    other: str
    other_size: float
    seeds: Comparison


@dataclass(frozen=True)
class Need:
    """The annotations with which an arm reaches a score: the least, by its curve; NaN beyond what was run."""

    score: float
    annotations: float
    low: float
    high: float
    beyond: float  # share of the draws over seeds in which no size that was run is enough


@dataclass(frozen=True)
class Efficiency:
    """The curves of a study: a task's score over the number of annotations, by arm."""

    table: Table
    task: str = AVERAGE

    @cached_property
    def sizes(self) -> list[float]:
        """The numbers of annotations that are known."""
        return [size for size in self.table.sizes if not np.isnan(size)]

    def curve(self, arm: str) -> list[Arm]:
        """The scores of an arm at every size that it has some for, ascending."""
        points = [self.table.select(arm, size, self.task) for size in self.sizes]
        return [point for point in points if point.scores.notna().any()]

    def last(self, arm: str) -> Arm:
        """The point with the most annotations. Raises UserError where there is none yet."""
        points = self.curve(arm)
        if not points:
            raise UserError(f"{arm} has no score yet: name another baseline, or wait for it.")
        return points[-1]

    def claim(self, arm: str, size: float, other: str, other_size: float) -> Claim:
        """Compare two points of two curves on the same seeds. Raises UserError where one is not there."""
        for name, at in ((arm, size), (other, other_size)):
            self._check(name, at)
        compared = self.table.compare(arm, other, size, self.task, other=other_size)
        return Claim(arm, size, other, other_size, compared)

    def _check(self, arm: str, size: float) -> None:
        if arm not in self.table.arms:
            arms = self.table.arms
            raise UserError(f"'{arm}' is no method of this study.{nearest(arm, arms)} It has: {', '.join(arms)}.")
        have = [point.size for point in self.curve(arm)]
        if size not in have:
            known = ", ".join(f"{s:,.0f}" for s in have) or "none"
            raise UserError(f"{arm} has no score with {size:,.0f} annotations. It has scores with: {known}.")

    def need(self, arm: str, score: float) -> Need:
        """How many annotations an arm needs for a score: straight lines over log(annotations) between its means.

        The interval is that of a bootstrap over seeds (whole curves are drawn where seeds are the same at all sizes).
        """
        points = self.curve(arm)
        values = _by_seed(points)
        sizes = np.array([point.size for point in points])
        found = _reached(sizes, np.nanmean(values, axis=0)[None], score)[0]
        if len(values) < 2:
            return Need(score, found, np.nan, np.nan, float(np.isnan(found)))
        rng = np.random.default_rng(0)
        drawn = values[rng.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
        needed = np.where(np.isnan(r := _reached(sizes, drawn, score)), np.inf, r)
        low, high = np.quantile(needed, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
        return Need(score, float(found), float(low), float(high), float(np.isinf(needed).mean()))


def _by_seed(points: Sequence[Arm]) -> Array:
    """Scores [seed, size] of the seeds that all sizes have; those of each size in turn where there are none."""
    common = sorted(set.intersection(*(set(p.scores.dropna().index) for p in points))) if points else []
    if common:
        return np.array([[p.scores[seed] for p in points] for seed in common], float)
    return np.array([[p.interval.mean for p in points]], float)


def _reached(sizes: Array, curves: Array, score: float) -> Array:
    """Where each curve [draw, size] first reaches the score; NaN if it never does."""
    above = curves >= score
    first = above.argmax(axis=1)
    rows = np.arange(len(curves))
    before = np.maximum(first - 1, 0)
    low, high = curves[rows, before], curves[rows, first]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (score - low) / (high - low)
        between = np.exp(np.log(sizes[before]) + share * (np.log(sizes[first]) - np.log(sizes[before])))
    found = np.where(first > 0, between, sizes[0])
    return np.where(above.any(axis=1), found, np.nan)


def read_claim(text: str) -> tuple[str, float, str, float]:
    """`iris@26k:sft@200k` → its four parts. Raises UserError."""
    sides = [side.rpartition("@") for side in text.split(":")]
    if len(sides) != 2 or not all(name and size for name, _, size in sides):
        raise UserError(f"claim={text}: write METHOD@ANNOTATIONS:METHOD@ANNOTATIONS, such as iris@26k:sft@200k.")
    (one, _, first), (other, _, second) = sides
    sizes = [parse_size(size) for size in (first, second)]
    if None in sizes:
        raise UserError(f"claim={text}: give numbers of annotations, such as 26k.")
    return one, float(sizes[0] or 0), other, float(sizes[1] or 0)


# --- as sheets


def claims(found: Efficiency, baseline: str, chosen: tuple[str, float, str, float] | None = None) -> Sheet:
    """One claim, or: every method with fewer annotations against the baseline with the most that it has."""
    most = found.last(baseline).size
    wanted = (
        [chosen]
        if chosen
        else [
            (arm, point.size, baseline, most)
            for arm in found.table.methods
            if arm != baseline
            for point in found.curve(arm)
            if point.size < most
        ]
    )
    results = [found.claim(*claim) for claim in wanted]
    adjusted = statistics.holm([result.seeds.p for result in results])
    rows = [_claimed(result, p) for result, p in zip(results, adjusted, strict=True)]
    head = ["method", "annotations", "against", "with", *COLUMNS[:-2], "P(better)"]
    warnings = dict.fromkeys(statistics.warning(result.seeds.n) for result in results)
    return Sheet("Fewer annotations against more", head, rows, [note for note in warnings if note])


def _claimed(claim: Claim, adjusted: float) -> list[Cell]:
    sure = claim.seeds.probability
    return [
        Cell(claim.arm, kind="head"),
        size_cell(claim.size),
        Cell(claim.other, kind="head"),
        size_cell(claim.other_size),
        *compared(claim.seeds, adjusted)[:-1],
        NONE if np.isnan(sure) else Cell(f"{sure:.2f}", sure),
    ]


def savings(found: Efficiency, baseline: str) -> Sheet:
    """For each method the annotations with which it is as good as the baseline with the most, and what that saves."""
    last = found.last(baseline)
    score = last.interval.mean
    rows = []
    for arm in (a for a in found.table.methods if found.curve(a)):
        need = found.need(arm, score)
        known = not np.isnan(need.annotations)
        least = found.curve(arm)[0].size
        text = (
            f"{'≤ ' if known and need.annotations <= least else ''}{need.annotations:,.0f}" if known else "not reached"
        )
        high = "∞" if np.isinf(need.high) else f"{need.high:,.0f}"
        interval = f"{need.low:,.0f} … {high}"
        saved = last.size - need.annotations
        rows.append(
            [
                Cell(arm, kind="head"),
                Cell(text, need.annotations) if known else Cell(text, kind="missing"),
                Cell(interval, need.low, ends=(need.low, need.high)) if np.isfinite(need.low) else NONE,
                Cell(f"{saved:,.0f}", saved) if known else NONE,
            ]
        )
    head = ["method", "annotations needed", "95 % interval", "saved"]
    title = f"To be as good as {baseline} with {last.size:,.0f} annotations ({100 * score:.1f} %)"
    note = (
        "Between sizes: straight lines over log(annotations). Intervals: bootstrap over seeds; ∞: beyond what was run."
    )
    return Sheet(title, head, rows, [note])


def curves(found: Table, task: str = AVERAGE) -> Efficiency:
    """The data efficiency of a study. Raises UserError where only one number of annotations was run."""
    efficiency = Efficiency(found, task)
    if len(efficiency.sizes) < 2:
        raise UserError("data efficiency needs two or more numbers of annotations: this study has one.")
    return efficiency

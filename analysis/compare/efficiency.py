"""Data efficiency: scores over the number of annotations, and the annotations that a method needs for a score."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.collect.index import AVERAGE
from analysis.compare.methods import MethodScores, Results
from analysis.compare.statistics import LEVEL, Comparison
from iris.config import parse_size
from iris.errors import UserError, nearest

Array = NDArray[np.float64]
DRAWS = 2000


@dataclass(frozen=True)
class Claim:
    """`method` with `size` annotations against `other` with `other_size`."""

    method: str
    size: float
    other: str
    other_size: float


@dataclass(frozen=True)
class Need:
    """The fewest annotations with which a method's curve reaches a score; NaN beyond the sizes that were run."""

    annotations: float
    low: float
    high: float


@dataclass(frozen=True)
class Efficiency:
    """Scores of a task over the number of annotations. Raises UserError for a study with one number."""

    results: Results
    task: str = AVERAGE

    def __post_init__(self) -> None:
        if len(self.sizes) < 2:
            raise UserError("data efficiency needs two or more numbers of annotations: this study has one.")

    @cached_property
    def sizes(self) -> list[float]:
        """The known numbers of annotations."""
        return [size for size in self.results.sizes if not np.isnan(size)]

    def curve(self, method: str) -> list[MethodScores]:
        """Return a method's scores at every size for which it has some, ascending."""
        points = [self.results.select(method, size, self.task) for size in self.sizes]
        return [point for point in points if point.scores.notna().any()]

    def last(self, method: str) -> MethodScores:
        """Return the point with the most annotations. Raises UserError if there is none yet."""
        points = self.curve(method)
        if not points:
            raise UserError(f"{method} has no score yet: name another baseline, or wait for it.")
        return points[-1]

    def compare(self, claim: Claim) -> Comparison:
        """Compare the two points of a claim on the same seeds. Raises UserError if one has no score."""
        self._check(claim.method, claim.size)
        self._check(claim.other, claim.other_size)
        return self.results.compare(claim.method, claim.other, claim.size, self.task, other=claim.other_size)

    def _check(self, method: str, size: float) -> None:
        methods = self.results.methods
        if method not in methods:
            known = ", ".join(methods)
            raise UserError(f"'{method}' is no method of this study.{nearest(method, methods)} It has: {known}.")
        have = [point.size for point in self.curve(method)]
        if size not in have:
            known = ", ".join(f"{s:,.0f}" for s in have) or "none"
            raise UserError(f"{method} has no score with {size:,.0f} annotations. It has scores with: {known}.")

    def claims(self, baseline: str) -> list[Claim]:
        """Return every method with fewer annotations against the baseline with the most that it has."""
        most = self.last(baseline).size
        points = [point for name in self.results.trained if name != baseline for point in self.curve(name)]
        return [Claim(point.method, point.size, baseline, most) for point in points if point.size < most]

    def need(self, method: str, score: float) -> Need:
        """Return how many annotations a method needs for a score, linear in log(annotations) between its means.

        The interval is a bootstrap over seeds; whole curves are drawn where all sizes have the same seeds.
        """
        points = self.curve(method)
        values = _by_seed(points)
        sizes = np.array([point.size for point in points])
        found = float(_reached(sizes, np.nanmean(values, axis=0)[None], score)[0])
        if len(values) < 2:
            return Need(found, np.nan, np.nan)
        rng = np.random.default_rng(0)
        drawn = values[rng.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
        needed = np.where(np.isnan(r := _reached(sizes, drawn, score)), np.inf, r)
        low, high = np.quantile(needed, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
        return Need(found, float(low), float(high))


def _by_seed(points: Sequence[MethodScores]) -> Array:
    """Return scores [seed, size] of the seeds that all sizes share, or the means [1, size] if there are none."""
    common = sorted(set.intersection(*(set(p.scores.dropna().index) for p in points))) if points else []
    if common:
        return np.array([[p.scores[seed] for p in points] for seed in common], float)
    return np.array([[p.interval.mean for p in points]], float)


def _reached(sizes: Array, curves: Array, score: float) -> Array:
    """Return the size at which each curve [draw, size] first reaches the score; NaN if it never does."""
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


def read_claim(text: str) -> Claim:
    """Read `iris@26k:sft@200k`. Raises UserError."""
    sides = [side.rpartition("@") for side in text.split(":")]
    if len(sides) != 2 or not all(name and size for name, _, size in sides):
        raise UserError(f"claim={text}: write METHOD@ANNOTATIONS:METHOD@ANNOTATIONS, such as iris@26k:sft@200k.")
    (one, _, first), (other, _, second) = sides
    sizes = [parse_size(size) for size in (first, second)]
    if None in sizes:
        raise UserError(f"claim={text}: give numbers of annotations, such as 26k.")
    return Claim(one, float(sizes[0] or 0), other, float(sizes[1] or 0))

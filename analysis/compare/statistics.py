"""Intervals over seeds, paired comparisons, multiple testing, and the selection bias of the best of many.

NaN is a missing score: a seed that one side lacks is left out and noted. Intervals are 95 %, p values two-sided;
differences are rounded to 12 decimals; equal data give equal results. Tests follow Dror et al. 2018 (The hitchhiker's
guide to testing statistical significance in NLP): a claim about methods needs seeds (`paired`), a claim about trained
models needs documents (`paired_documents`).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
MIN_SEEDS, MIN_DOCUMENTS = 3, 10  # differing documents: with fewer the bootstrap is too coarse
DRAWS, FLIPS = 2_000, 9_999  # of the bootstrap and the sign-flip test
_SEED, _AT_ONCE = 0, 1 << 20  # the second: random numbers in memory
_DECIMALS = 12  # makes 0.34 − 0.32 equal to 0.52 − 0.50
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds, their standard deviation (n − 1) and Student's t interval; NaN where there is none."""

    mean: float
    sd: float
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Ours minus theirs over n seeds and `documents` (0: seeds alone); NaN is unknown."""

    difference: float
    n: int
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    effect: float = math.nan  # mean over standard deviation of the differences: Cohen's d_z, unbiased (Hedges 1981)
    probability: float = math.nan  # that the true difference is above 0
    test: str = ""  # name of the test behind p
    documents: int = 0
    note: str = ""  # caveats, joined by "; "


def mean(values: ArrayLike) -> Interval:
    """Return mean and interval of scores [seed]; no interval for one seed or equal scores."""
    (scores,) = _scores(1, values)
    scores = scores[~np.isnan(scores)]
    n, sd = len(scores), _sd(scores)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n) if sd > 0 else math.nan
    centre = float(scores.mean()) if n else math.nan
    return Interval(centre, sd, n, centre - half, centre + half)


def paired(ours: ArrayLike, theirs: ArrayLike) -> Comparison:
    """Compare methods on the same seeds ([seed] each) by the paired t test.

    `probability` is that of its posterior (prior ∝ 1/σ). If all seeds differ by the same amount, there is no t, and p
    is that of the exact sign-flip test: 2^(1−n), or 1 for no difference.
    """
    a, b = _scores(1, ours, theirs)
    d = np.round(a - b, _DECIMALS)[~np.isnan(a - b)]
    n, sd, difference = len(d), _sd(d), float(d.mean()) if len(d) else math.nan
    note = _note(n, len(a), "all seeds differ by the same amount" if sd == 0 else "")
    if not sd > 0:
        p, test = _flips(d) if sd == 0 else (math.nan, "")
        return Comparison(difference, n, p=p, test=test, note=note)
    found = stats.ttest_1samp(d, 0.0)
    low, high = (float(end) for end in found.confidence_interval(LEVEL))
    p, above = float(found.pvalue), float(stats.t.cdf(found.statistic, n - 1))
    return Comparison(difference, n, low, high, p, _effect(d), above, "paired t test", note=note)


def paired_documents(ours: ArrayLike, theirs: ArrayLike) -> Comparison:
    """Compare trained models on the same documents, [seed, document] each, in the same order.

    p concerns these models on new documents: a sign-flip test on the documents' differences (means over seeds), exact
    or with 9,999 draws and the observed one (Phipson & Smyth 2010). For one seed of 0/1 scores it is the exact test of
    McNemar 1947. The interval concerns new documents and, from two seeds on, new seeds (see `_bootstrap`);
    `probability` is the share of its draws above 0. `effect` is over documents.
    """
    sides = np.stack(_scores(2, ours, theirs))
    scores = sides[:, ~np.isnan(sides).all(axis=2).any(axis=0)]
    d = np.round(scores[0] - scores[1], _DECIMALS)
    if np.isnan(d).any():
        raise ValueError(f"document {np.argwhere(np.isnan(d))[0][1]} lacks a score, though others of its seed have one")
    n, m = d.shape
    if not d.size:
        return Comparison(math.nan, n, documents=m, note=_note(n, sides.shape[1]))
    x = np.round(d.mean(axis=0), _DECIMALS)
    p, test = _flips(x)
    test = "exact McNemar test" if n == 1 and np.isin(scores, (0, 1)).all() else test
    low, high, above = _bootstrap(d)
    few = f"too few documents differ: fewer than {MIN_DOCUMENTS}" if np.count_nonzero(x) < MIN_DOCUMENTS else ""
    unsure = "these models differ, further seeds may not" if n > 1 and p < 1 - LEVEL and low <= 0 <= high else ""
    note = _note(n, sides.shape[1], few, unsure)
    return Comparison(float(d.mean()), n, low, high, p, _effect(x), above, test, m, note)


def holm(p_values: ArrayLike) -> Array:
    """Return p values [test] adjusted for the family-wise error rate (Holm 1979). NaN stays NaN and is no test."""
    (p,) = _scores(1, p_values)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("a p value lies outside 0…1")
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]  # NaN comes last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def selection_bias(scores: ArrayLike, standard_errors: ArrayLike, draws: int = 10_000, seed: int = 0) -> float:
    """Return by how much the highest of N scores [trial] overstates its true score on average (at least 0).

    A parametric bootstrap of the optimizer's curse (Smith & Winkler 2006). Scores are first shrunk to their mean until
    their variance is what the errors leave (Efron & Morris 1975; Louis 1984). Normal scores are then drawn around these
    truths, and the error of the highest counts. Errors are taken as independent; trials on the same documents share
    some, so the result is too large. Pass −scores where the lowest is best.
    """
    given = np.stack(_scores(1, scores, standard_errors))
    x, errors = given[:, ~np.isnan(given).any(axis=0)]
    if (errors < 0).any():
        raise ValueError("a standard error is negative")
    if not len(x):
        return math.nan
    noise_share = float((errors**2).mean()) / _sd(x) ** 2 if _sd(x) > 0 else 1.0
    truth = x.mean() + math.sqrt(max(0.0, 1 - noise_share)) * (x - x.mean())
    noise = np.random.default_rng(seed).standard_normal((draws, len(x))) * errors
    won = noise[np.arange(draws), (truth + noise).argmax(axis=1)]
    return float((won - noise[:, truth.argmax()]).mean())  # subtracting a mean-0 error lowers the variance


def warning(n: int) -> str:
    """Return what n seeds cannot show, or "". In a sign-flip test p ≥ 2^(1−n)."""
    if n < 2:
        return "one seed tells nothing of another training run" if n else "no seed has both scores"
    few = "their spread is hardly known, and " if n < MIN_SEEDS else ""
    limit = f"{n} seeds: {few}a test over seeds that assumes no normality cannot go below p = {2 ** (1 - n):.3g}"
    return limit if 2 ** (1 - n) > 1 - LEVEL else ""


def _flips(x: Array) -> tuple[float, str]:
    """Return p and name of the sign-flip test that x [n] is symmetric about 0."""
    x = x[x != 0]  # zeros change nothing
    sizes, counts = np.unique(np.abs(x), return_counts=True)
    if len(sizes) < 2:
        return float(stats.binomtest(int((x > 0).sum()), len(x)).pvalue) if len(x) else 1.0, "exact sign-flip test"
    extreme = abs(float(x.sum())) - 1e-9 * float(sizes @ counts)
    if 2 ** len(x) <= FLIPS:
        signs = 1 - 2 * (np.arange(2 ** len(x))[:, None] >> np.arange(len(x)) & 1)
        return float((np.abs(signs @ x) >= extreme).mean()), "exact sign-flip test"
    rng = np.random.default_rng(_SEED)  # draw how many of each size keep their sign
    kept = (rng.binomial(counts, 0.5, (rows, len(sizes))) for rows in _chunks(FLIPS, len(sizes)))
    hits = sum(int((np.abs((2.0 * k - counts) @ sizes) >= extreme).sum()) for k in kept)
    return (hits + 1) / (FLIPS + 1), f"sign-flip test, {FLIPS:,} draws"


def _bootstrap(d: Array) -> tuple[float, float, float]:
    """Return (low, high, share above 0) of plausible true differences given d [seed, document].

    Documents are resampled with all their seeds (Efron & Tibshirani 1993). Resampling a few seeds as well (two-way
    bootstrap: Owen 2007) covers too little where they differ much: 73, 83, 88 % with 2, 3, 5 in simulation. Instead the
    mean gets a t variable of n − 1 degrees of freedom, scaled to the variance that documents do not explain (two-way
    ANOVA): 90, 95, 95 %. One seed leaves the bootstrap, equal documents leave the interval of `paired`.
    """
    rng, (n, m) = np.random.default_rng(_SEED), d.shape
    x, seeds = np.round(d.mean(axis=0), _DECIMALS), d.mean(axis=1)
    _, first, counts = np.unique(x, return_index=True, return_counts=True)
    order = np.argsort(first)  # not by size: exchanging the sides mirrors the interval
    kinds, shares = x[first[order]], counts[order] / m  # draw counts of each value
    draws = np.concatenate([rng.multinomial(m, shares, rows) @ kinds / m for rows in _chunks(DRAWS, len(kinds))])
    if n > 1:
        residual = d - x - seeds[:, None] + x.mean()
        explained = float((residual**2).sum()) / ((n - 1) * max(m - 1, 1) * n * m)
        error = math.sqrt(max(0.0, float(seeds.var(ddof=1)) / n - explained))
        t = error * stats.t.ppf((np.arange(DRAWS) + 0.5) / DRAWS, n - 1)  # sorted is fine: draws are not
        draws = np.concatenate([draws + t, draws - t])  # symmetric
    draws = np.round(draws, _DECIMALS)
    if np.ptp(draws) == 0:
        return math.nan, math.nan, math.nan
    low, high = (float(end) for end in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return low, high, float(1 + np.sign(draws).mean()) / 2


def _effect(d: Array) -> float:
    """Return d_z with Hedges' exact correction J; NaN below 3 values, where J is 0, and where nothing varies."""
    if len(d) < 3 or not _sd(d) > 0:
        return math.nan
    half = (len(d) - 1) / 2
    return float(d.mean()) / _sd(d) * math.exp(math.lgamma(half) - math.lgamma(half - 0.5)) / math.sqrt(half)


def _sd(values: Array) -> float:
    spread = round(float(np.ptp(values)), _DECIMALS) if len(values) > 1 else math.nan
    return float(values.std(ddof=1)) if spread > 0 else spread


def _scores(dimensions: int, *values: ArrayLike) -> list[Array]:
    scores = [np.asarray(v, dtype=np.float64) for v in values]
    shapes = {s.shape for s in scores}
    if len(shapes) > 1 or scores[0].ndim != dimensions:
        raise ValueError(f"expected one shape of {dimensions} dimensions, not {' and '.join(map(str, sorted(shapes)))}")
    if any(np.isinf(s).any() for s in scores):
        raise ValueError("a score is infinite")
    return scores


def _note(n: int, all_seeds: int, *more: str) -> str:
    absent = f"{all_seeds - n} of {all_seeds} seeds left out: no score on one side" if n < all_seeds else ""
    return "; ".join(part for part in (absent, warning(n), *more) if part)


def _chunks(draws: int, width: int) -> list[int]:
    rows = max(1, _AT_ONCE // width)
    return [min(rows, draws - start) for start in range(0, draws, rows)]

"""Intervals over seeds, paired comparisons, many tests at once, and the price of reporting the best of many.

Scores in, numbers out. NaN is a score that is not there: a seed that one side lacks is left out, and `note` says so.
Intervals hold 95 %, p values are two-sided, differences are told apart to 12 decimals, equal data give equal results.
Tests follow Dror et al. 2018 (The hitchhiker's guide to testing statistical significance in NLP): a claim about methods
needs seeds (`paired`), one about trained models needs documents (`paired_documents`).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
MIN_SEEDS, MIN_DOCUMENTS = 3, 10  # documents that differ: the means of a bootstrap over fewer are too coarse
DRAWS, FLIPS = 2_000, 9_999  # of the bootstrap, of the sign-flip test
_SEED, _AT_ONCE = 0, 1 << 20  # random numbers in memory
_DECIMALS = 12  # 0.34 − 0.32 and 0.52 − 0.50 are one difference
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
    """Ours minus theirs over n seeds and `documents` (0: seeds alone). NaN is what the data cannot tell."""

    difference: float
    n: int
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    effect: float = math.nan  # mean over standard deviation of the differences: Cohen's d_z, unbiased (Hedges 1981)
    probability: float = math.nan  # that the true difference is above 0
    test: str = ""  # where p comes from
    documents: int = 0
    note: str = ""  # what a reader must know, "" if nothing


def mean(values: ArrayLike) -> Interval:
    """The mean of scores [seed]. No interval for one seed, nor for equal scores: no width would feign certainty."""
    (scores,) = _scores(1, values)
    scores = scores[~np.isnan(scores)]
    n, sd = len(scores), _sd(scores)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n) if sd > 0 else math.nan
    centre = float(scores.mean()) if n else math.nan
    return Interval(centre, sd, n, centre - half, centre + half)


def paired(ours: ArrayLike, theirs: ArrayLike) -> Comparison:
    """Methods on the same seeds, [seed] each: the paired t test; `probability` is that of its posterior (prior ∝ 1/σ).

    Where all seeds differ by the same amount there is no t: p is that of the exact sign-flip test, 2^(1−n), or 1 at 0.
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
    """Trained models on the same documents, [seed, document] each, in the same order.

    p tells of these models on further documents: the signs of the documents' differences (means over seeds) are
    flipped, in all ways or 9,999 random ones (observed one counted: Phipson & Smyth 2010); for one seed of 0/1 scores
    that is the exact test of McNemar 1947. The interval tells of further documents and, from two seeds on, of further
    seeds too: see `_bootstrap`; `probability` is the share of its draws above 0. `effect` is over documents.
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
    """Adjusted p values [test] that hold the family-wise error rate (Holm 1979). NaN stays NaN and is no test."""
    (p,) = _scores(1, p_values)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("a p value lies outside 0…1")
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]  # NaN comes last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def selection_bias(scores: ArrayLike, standard_errors: ArrayLike, draws: int = 10_000, seed: int = 0) -> float:
    """By how much the highest of N scores [trial] overstates its own true score, on average; never below 0.

    The optimizer's curse (Smith & Winkler 2006) by a parametric bootstrap. Observed scores spread more than true ones:
    they are first shrunk to their mean until their variance is what the errors leave (Efron & Morris 1975; Louis 1984).
    Around these truths normal scores are drawn, the highest wins, and its error counts. Errors count as independent;
    trials on the same documents share some, so the result errs upwards. Pass −scores where the lowest is best.
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
    return float((won - noise[:, truth.argmax()]).mean())  # a fixed trial's error is 0 on average: it only steadies


def warning(n: int) -> str:
    """What n seeds cannot tell, or "". With sign flips p ≥ 2^(1−n): two of them are as extreme as any data."""
    if n < 2:
        return "one seed tells nothing of another training run" if n else "no seed has both scores"
    few = "their spread is hardly known, and " if n < MIN_SEEDS else ""
    limit = f"{n} seeds: {few}a test over seeds that assumes no normality cannot go below p = {2 ** (1 - n):.3g}"
    return limit if 2 ** (1 - n) > 1 - LEVEL else ""


def _flips(x: Array) -> tuple[float, str]:
    """p of the sign-flip test (one-sample permutation) that x [n] is symmetric about 0, and its name."""
    x = x[x != 0]  # zeros change nothing
    sizes, counts = np.unique(np.abs(x), return_counts=True)
    if len(sizes) < 2:
        return float(stats.binomtest(int((x > 0).sum()), len(x)).pvalue) if len(x) else 1.0, "exact sign-flip test"
    extreme = abs(float(x.sum())) - 1e-9 * float(sizes @ counts)
    if 2 ** len(x) <= FLIPS:
        signs = 1 - 2 * (np.arange(2 ** len(x))[:, None] >> np.arange(len(x)) & 1)
        return float((np.abs(signs @ x) >= extreme).mean()), "exact sign-flip test"
    rng = np.random.default_rng(_SEED)  # and only how many of each size keep their sign matters
    kept = (rng.binomial(counts, 0.5, (rows, len(sizes))) for rows in _chunks(FLIPS, len(sizes)))
    hits = sum(int((np.abs((2.0 * k - counts) @ sizes) >= extreme).sum()) for k in kept)
    return (hits + 1) / (FLIPS + 1), f"sign-flip test, {FLIPS:,} draws"


def _bootstrap(d: Array) -> tuple[float, float, float]:
    """(low, high, share above 0) of plausible true differences given d [seed, document].

    Documents are resampled whole, with all their seeds (Efron & Tibshirani 1993). To resample a handful of seeds too
    (two-way bootstrap: Owen 2007) covers too little where they differ much: 73, 83, 88 % with 2, 3, 5 in simulation.
    So their mean gets a t variable of n − 1 degrees of freedom, scaled to the variance that documents do not explain
    (two-way ANOVA): 90, 95, 95 %. One seed leaves the bootstrap, like documents leave the interval of `paired`.
    """
    rng, (n, m) = np.random.default_rng(_SEED), d.shape
    x, seeds = np.round(d.mean(axis=0), _DECIMALS), d.mean(axis=1)
    _, first, counts = np.unique(x, return_index=True, return_counts=True)
    order = np.argsort(first)  # not by size: exchanged sides then give the mirrored interval
    kinds, shares = x[first[order]], counts[order] / m  # how often each value is drawn is all that matters
    draws = np.concatenate([rng.multinomial(m, shares, rows) @ kinds / m for rows in _chunks(DRAWS, len(kinds))])
    if n > 1:
        residual = d - x - seeds[:, None] + x.mean()
        explained = float((residual**2).sum()) / ((n - 1) * max(m - 1, 1) * n * m)
        error = math.sqrt(max(0.0, float(seeds.var(ddof=1)) / n - explained))
        t = error * stats.t.ppf((np.arange(DRAWS) + 0.5) / DRAWS, n - 1)  # in order: the draws are in none
        draws = np.concatenate([draws + t, draws - t])  # both, for the same reason
    draws = np.round(draws, _DECIMALS)
    if np.ptp(draws) == 0:
        return math.nan, math.nan, math.nan
    low, high = (float(end) for end in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return low, high, float(1 + np.sign(draws).mean()) / 2


def _effect(d: Array) -> float:
    """d_z times Hedges' J in its exact form: NaN below 3, where J is 0, and where nothing varies."""
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

"""Statistics against scipy, statsmodels, numbers worked out by hand, and simulations whose truth is known."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from analysis.compare import statistics
from analysis.compare.statistics import Array, Comparison, holm, mean, paired, paired_documents, selection_bias, warning

OURS, THEIRS = [0.41, 0.44, 0.40, 0.47, 0.43], [0.40, 0.39, 0.41, 0.42, 0.40]
NAN = math.nan


def coins(seed: int, *shape: int, p: float = 0.5) -> Array:
    return (np.random.default_rng(seed).random(shape) < p).astype(np.float64)


def crossed(rng: np.random.Generator, sds: tuple[float, float, float], n: int, m: int) -> Array:
    """Differences [seed, document] around 0: of seeds, of documents, of both together."""
    seeds, documents, both = (rng.standard_normal(shape) for shape in ((n, 1), (1, m), (n, m)))
    return np.asarray(sds[0] * seeds + sds[1] * documents + sds[2] * both)


def exact_flips(values: list[int]) -> float:
    """Compute the sign-flip p of integers by convolution."""
    ways = np.ones(1)
    for value in values:
        ways = np.convolve(ways, [0.5, *[0] * (2 * abs(value) - 1), 0.5]) if value else ways
    sums = np.arange(len(ways)) - len(ways) // 2
    return float(ways[np.abs(sums) >= abs(sum(values))].sum())


def test_mean_is_the_t_interval() -> None:
    found = mean([1, 2, 3])
    assert (found.mean, found.sd, found.n) == (2, 1, 3)
    assert found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t table: two degrees of freedom
    low, high = DescrStatsW(OURS).tconfint_mean()
    assert (mean(OURS).low, mean(OURS).high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("scores", "centre", "sd", "n"),
    [([], NAN, NAN, 0), ([NAN], NAN, NAN, 0), ([0.3], 0.3, NAN, 1), ([0.1 + 0.2, 0.3], 0.3, 0, 2)],
)
def test_mean_gives_no_interval_where_nothing_varies(scores: list[float], centre: float, sd: float, n: int) -> None:
    found = mean(scores)
    assert (found.mean, found.sd, found.n) == pytest.approx((centre, sd, n), abs=1e-9, nan_ok=True)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_mean_leaves_out_scores_that_are_not_there() -> None:
    assert mean([0.1, NAN, 0.4]) == mean([0.1, 0.4])


def test_intervals_over_seeds_cover_the_truth() -> None:
    runs = np.random.default_rng(5).normal(0.4, 0.02, (1000, 3))
    covered = np.mean([found.low <= 0.4 <= found.high for found in map(mean, runs)])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_paired_by_hand() -> None:
    found = paired([2, 4, 6], [1, 2, 3])  # t = 2√3, p = 1 − t/√(t² + 2), J(2) = 1/√π
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert (found.difference, found.n, found.documents) == (2, 3, 0)
    assert found.effect == pytest.approx(2 / math.sqrt(math.pi))
    assert found.probability == pytest.approx(1 - found.p / 2)
    assert found.test == "paired t test"


def test_paired_agrees_with_scipy_and_statsmodels() -> None:
    found, other = paired(OURS, THEIRS), stats.ttest_rel(OURS, THEIRS)
    low, high = DescrStatsW(np.subtract(OURS, THEIRS)).tconfint_mean()
    assert (found.p, found.low, found.high) == pytest.approx((other.pvalue, low, high))
    assert found.probability == pytest.approx(1 - stats.ttest_rel(OURS, THEIRS, alternative="greater").pvalue)
    assert found.effect == pytest.approx(other.statistic / math.sqrt(5) * (1 - 3 / (4 * 4 - 1)), rel=5e-3)


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("amount", [0.02, 0.0])
def test_seeds_that_all_differ_alike_get_the_exact_p_alone(n: int, amount: float) -> None:
    theirs = np.linspace(0.3, 0.5, n)
    found = paired(theirs + amount, theirs)
    assert found.p == (2 ** (1 - n) if amount else 1)
    assert found.test == "exact sign-flip test" and "same amount" in found.note
    assert found.difference == pytest.approx(amount)
    assert all(map(math.isnan, (found.low, found.high, found.effect, found.probability)))


def test_rounding_is_no_difference() -> None:
    assert paired([0.1 + 0.2] * 2, [0.3] * 2).p == 1


@pytest.mark.parametrize(("n", "test"), [(0, ""), (1, ""), (2, "paired t test")])
def test_too_few_seeds_are_noted(n: int, test: str) -> None:
    found = paired(OURS[:n], THEIRS[:n])
    assert found.note == warning(n) != ""
    assert (found.n, found.test, math.isnan(found.p)) == (n, test, n < 2)
    assert math.isnan(found.effect)  # Hedges' J is 0 with two


def test_a_seed_that_one_side_lacks_is_left_out_and_noted() -> None:
    found = paired([*OURS, NAN, 0.9], [*THEIRS, 0.1, NAN])
    assert found.note.startswith("2 of 7 seeds left out")
    assert (found.n, found.p) == (5, paired(OURS, THEIRS).p)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired([1, 2], [1]), r"one shape of 1 dimensions, not \(1,\) and \(2,\)"),
        (lambda: paired([[1, 2]], [[1, 2]]), "1 dimensions"),
        (lambda: paired_documents([1, 0], [0, 0]), "2 dimensions"),
        (lambda: paired_documents([[1, 0]], [[1, 0], [0, 0]]), "one shape"),
        (lambda: paired_documents([[1, NAN, 0]], [[1, 1, 0]]), "document 1 lacks a score"),
        (lambda: mean([math.inf]), "infinite"),
        (lambda: holm([0.5, 1.1]), "outside"),
        (lambda: holm([-0.1]), "outside"),
        (lambda: selection_bias([1, 2], [0.1]), "one shape"),
        (lambda: selection_bias([1, 2], [0.1, -0.1]), "negative"),
    ],
)
def test_what_cannot_be_compared_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_one_seed_of_right_and_wrong_is_mcnemar() -> None:
    ours, theirs = [[1] * 8 + [0] * 2 + [1] * 30], [[0] * 8 + [1] * 2 + [1] * 30]
    found = paired_documents(ours, theirs)
    assert found.p == 2 * (1 + 10 + 45) / 2**10
    assert (found.test, found.n, found.documents, found.difference) == ("exact McNemar test", 1, 40, 0.15)
    assert found.note == warning(1)


@pytest.mark.parametrize("seed", range(4))
def test_mcnemar_agrees_with_statsmodels(seed: int) -> None:
    a, b = coins(seed, 1, 300, p=0.6), coins(seed + 10, 1, 300)
    table = [[np.sum((a == i) & (b == j)) for j in (0, 1)] for i in (0, 1)]
    assert paired_documents(a, b).p == pytest.approx(mcnemar(table, exact=True).pvalue)


@pytest.mark.parametrize("seed", range(3))
def test_all_sign_flips_agree_with_scipy(seed: int) -> None:
    d = np.random.default_rng(seed).normal(0.3, 1, 11)
    every = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=math.inf)
    found = paired_documents([d], [np.zeros(11)])
    assert found.p == pytest.approx(every.pvalue) and found.test == "exact sign-flip test"


@pytest.mark.parametrize(("n", "p"), [(2, 0.53), (3, 0.55), (5, 0.52)])
def test_random_sign_flips_come_near_the_exact_p(n: int, p: float) -> None:
    a, b = coins(n, n, 150, p=p), coins(n + 50, n, 150)
    exact = exact_flips([int(total) for total in (a - b).sum(axis=0)])
    found = paired_documents(a, b)
    assert found.test == "sign-flip test, 9,999 draws"
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 9_999))


def test_no_random_p_is_zero() -> None:
    d = np.linspace(0.5, 1, 40)
    assert paired_documents([d], [0 * d]).p == 1e-4


def test_sign_flips_keep_their_level() -> None:
    rng = np.random.default_rng(8)
    p = [paired_documents(rng.standard_normal((1, 9)), np.zeros((1, 9))).p for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_one_seed_has_the_bootstrap_interval_of_its_documents() -> None:
    a, b = coins(1, 1, 400, p=0.6), coins(2, 1, 400)
    other = stats.bootstrap(((a - b)[0],), np.mean, n_resamples=20_000, method="percentile", rng=0)
    found, (low, high) = paired_documents(a, b), other.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert found.probability == pytest.approx(np.mean(other.bootstrap_distribution > 0), abs=0.01)
    assert found.effect == pytest.approx((a - b).mean() / (a - b).std(ddof=1), rel=0.005)


def test_documents_that_agree_leave_the_interval_of_the_seeds() -> None:
    found, seeds = paired_documents(np.tile(np.c_[OURS], 30), np.tile(np.c_[THEIRS], 30)), paired(OURS, THEIRS)
    assert (found.low, found.high) == pytest.approx((seeds.low, seeds.high), rel=0.02, abs=5e-4)
    assert found.probability == pytest.approx(seeds.probability, abs=1e-3)


@pytest.mark.parametrize(("n", "sds"), [(2, (0.3, 0.7, 0.7)), (3, (0.3, 0.7, 0.7)), (5, (0, 0.7, 0.7))])
def test_intervals_over_seeds_and_documents_cover_the_truth(n: int, sds: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(3)
    found = [statistics._bootstrap(crossed(rng, sds, n, 60)) for _ in range(200)]
    assert 0.89 <= np.mean([low <= 0 <= high for low, high, _ in found]) <= 0.99


def test_documents_decide_the_width_where_seeds_do_not_differ() -> None:
    d = crossed(np.random.default_rng(4), (0, 0.7, 0.1), 5, 300)
    found = paired_documents(d, np.zeros((5, 300)))
    assert found.high - found.low == pytest.approx(2 * 1.96 * d.mean(axis=0).std() / math.sqrt(300), rel=0.05)


def test_noise_of_documents_is_not_counted_as_one_of_seeds() -> None:
    rng, truth = np.random.default_rng(7), 2 * 1.96 * math.sqrt(0.2**2 / 60 + 0.9**2 / 600)
    found = [statistics._bootstrap(crossed(rng, (0, 0.2, 0.9), 10, 60)) for _ in range(60)]
    assert np.mean([high - low for low, high, _ in found]) == pytest.approx(truth, rel=0.12)  # 1.35 with all of it


def test_models_that_differ_need_not_mean_methods_that_do() -> None:
    d = 0.3 * np.array([[1.0], [0.1], [1.5]]) + 0.1 * crossed(np.random.default_rng(0), (0, 1, 1), 3, 100)
    found = paired_documents(d, np.zeros((3, 100)))
    assert found.p < 0.05 and found.low < 0 < found.high
    assert "further seeds may not" in found.note
    assert "further seeds" not in paired_documents(coins(1, 3, 90), coins(2, 3, 90)).note  # nor do the models differ


def test_equal_documents_give_p_of_one_and_no_interval() -> None:
    found = paired_documents(np.ones((2, 50)), np.ones((2, 50)))
    assert (found.difference, found.p) == (0, 1)
    assert all(map(math.isnan, (found.low, found.high, found.effect, found.probability)))
    assert "too few documents differ: fewer than 10" in found.note


def test_seeds_without_documents_are_left_out() -> None:
    a, b = coins(1, 3, 80), coins(2, 3, 80)
    found = paired_documents(np.vstack([a, np.full((1, 80), NAN)]), np.vstack([b, coins(3, 1, 80)]))
    whole = paired_documents(a, b)
    assert (found.low, found.high, found.p, found.n) == (whole.low, whole.high, whole.p, 3)
    assert found.note.startswith("1 of 4 seeds left out")


@pytest.mark.parametrize("shape", [(0, 7), (2, 0)])
def test_nothing_to_compare_is_noted(shape: tuple[int, int]) -> None:
    found = paired_documents(np.zeros(shape), np.zeros(shape))
    assert (found.n, found.documents) == (0, shape[1])
    assert math.isnan(found.difference) and math.isnan(found.p) and "no seed has both" in found.note


def test_memory_is_bounded_and_its_bound_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    d = np.random.default_rng(2).standard_normal((2, 800))
    whole = paired_documents(d, 0 * d)
    monkeypatch.setattr(statistics, "_AT_ONCE", 1 << 15)
    tracemalloc.start()
    try:
        assert paired_documents(d, 0 * d) == whole
        assert tracemalloc.get_traced_memory()[1] < 5e6  # 9,999 × 800 numbers at once are 64 MB
    finally:
        tracemalloc.stop()


scores = st.integers(0, 20).map(lambda k: k / 20)


def mirrored(a: Comparison, b: Comparison) -> None:
    here = (a.difference, a.low, a.high, a.p, a.effect, a.probability)
    assert here == pytest.approx(
        (-b.difference, -b.high, -b.low, b.p, -b.effect, 1 - b.probability), abs=1e-9, nan_ok=True
    )
    assert (a.test, a.note, a.n, a.documents) == (b.test, b.note, b.n, b.documents)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(scores, scores), max_size=8))
def test_exchanged_seeds_mirror_the_result(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).reshape(-1, 2).T
    mirrored(paired(a, b), paired(b, a))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.booleans(), st.integers(0, 99))
def test_exchanged_documents_mirror_the_result(n: int, m: int, binary: bool, seed: int) -> None:
    a, b = (coins(seed, 2, n, m)) if binary else np.random.default_rng(seed).random((2, n, m))
    mirrored(paired_documents(a, b), paired_documents(b, a))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, NAN, 0.02, NAN]) == pytest.approx([0.5, NAN, 0.04, NAN], nan_ok=True)
    assert len(holm([])) == 0


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_holm_agrees_with_statsmodels(n: int) -> None:
    p = np.random.default_rng(n).random(n) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


@given(p_values, st.randoms(use_true_random=False))
def test_holm_keeps_order_and_never_lowers_a_p_value(p: list[float], random: Any) -> None:
    adjusted = holm(p)
    assert (adjusted >= p).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
    order = random.sample(range(len(p)), len(p))
    assert holm(np.array(p)[order]) == pytest.approx(adjusted[order])
    assert holm([NAN, *p]) == pytest.approx([NAN, *adjusted], nan_ok=True)


@pytest.mark.parametrize(("trials", "maximum"), [(1, 0), (2, 0.56419), (10, 1.53875), (100, 2.50759)])
def test_best_of_equals_is_the_expected_maximum_of_the_noise(trials: int, maximum: float) -> None:
    found = selection_bias([0.4] * trials, [0.01] * trials, draws=20_000)
    assert found == pytest.approx(0.01 * maximum, rel=0.03)  # expected maxima of normal samples: tables


def test_two_trials_by_hand() -> None:
    # Half of the variance 2 is noise, so the truths lie √2 apart; and for a gap g the winner's error is √2·φ(g/√2).
    assert selection_bias([-1, 1], [1, 1], draws=50_000) == pytest.approx(math.sqrt(2) * stats.norm.pdf(1), rel=0.03)


def test_a_clear_winner_owes_nothing_to_chance() -> None:
    assert selection_bias([0.1, 0.2, 0.9], [0.01] * 3) == 0
    assert selection_bias([0.1, 0.2, 0.4], [0.0] * 3) == 0


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_selection_bias_is_what_selection_cost(spread: float) -> None:
    rng = np.random.default_rng(6)
    truth = spread * rng.standard_normal((400, 20))
    observed = truth + rng.standard_normal((400, 20))
    rows, won = np.arange(400), observed.argmax(axis=1)
    cost = (observed - truth)[rows, won].mean()
    claimed = np.mean([selection_bias(scores, np.ones(20), draws=200) for scores in observed])
    assert claimed == pytest.approx(cost, rel=0.15)


def test_a_trial_without_score_or_error_is_left_out() -> None:
    assert selection_bias([0.4, NAN, 0.41, 9], [0.1, 0.1, 0.1, NAN]) == selection_bias([0.4, 0.41], [0.1, 0.1])
    assert math.isnan(selection_bias([NAN], [0.1]))


@pytest.mark.parametrize(("n", "limit"), [(2, "0.5"), (3, "0.25"), (5, "0.0625")])
def test_few_seeds_are_warned_of_the_smallest_p(n: int, limit: str) -> None:
    assert warning(n).startswith(f"{n} seeds") and warning(n).endswith(f"p = {limit}")
    assert ("hardly known" in warning(n)) == (n < statistics.MIN_SEEDS)
    every = stats.permutation_test((np.arange(1.0, n + 1),), np.mean, permutation_type="samples", n_resamples=math.inf)
    assert every.pvalue == float(limit)


def test_enough_seeds_need_no_warning() -> None:
    assert warning(6) == warning(50) == ""
    assert warning(1) != "" != warning(0)

"""The α schedules, the gap, and what a mistyped one is told."""

import math
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris import validate
from iris.errors import UserError
from iris.method.schedules import LEVELS, SCHEDULES, find, gap, mistakes, position, smooth

quick = settings(deadline=None, derandomize=True, max_examples=60)
fractions = st.floats(0, 1)
positive = st.floats(1e-6, 100)

PARAMS: dict[str, dict[str, float]] = {
    "constant": {"alpha": 0.5},
    "linear": {"start": 2.0, "end": 0.5},
    "cosine": {"start": 2.0, "end": 0.5},
    "exponential": {"start": 2.0, "end": 0.5},
    "adaptive": {"alpha_min": 0.2, "alpha_max": 1.8, "tau": 0.5, "ema": 0.3},
}


def alpha_at(name: str, params: dict[str, float], where: float, gap: float | None = None) -> float:
    return find(name).alpha(params, where, gap)


def check(name: str, params: dict[str, float], levels: Sequence[float] = ()) -> None:
    validate.refuse(mistakes(name, params, levels))


def test_every_schedule_is_tested() -> None:
    assert PARAMS.keys() == SCHEDULES.keys()


@pytest.mark.parametrize(
    ("name", "where", "expected"),
    [
        ("constant", 0.7, 0.5),
        ("linear", 0.25, 1.625),
        ("cosine", 0.25, 0.5 + 1.5 * (1 + math.sqrt(0.5)) / 2),
        ("cosine", 0.5, 1.25),
        ("exponential", 0.5, 1.0),
        ("exponential", 0.25, math.sqrt(2)),
    ],
)
def test_values_by_hand(name: str, where: float, expected: float) -> None:
    assert alpha_at(name, PARAMS[name], where) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("name", ["linear", "cosine", "exponential"])
@given(start=positive, end=positive, a=fractions, b=fractions)
@quick
def test_interpolations_run_monotonically_from_start_to_end(
    name: str, start: float, end: float, a: float, b: float
) -> None:
    params = {"start": start, "end": end}
    assert alpha_at(name, params, 0.0) == start
    assert alpha_at(name, params, 1.0) == end
    first, second = (alpha_at(name, params, p) for p in sorted((a, b)))
    rising = 1 if end >= start else -1
    assert rising * (second - first) >= -1e-12 * max(start, end)
    assert min(start, end) * (1 - 1e-12) <= first <= max(start, end) * (1 + 1e-12)


def test_orders_may_be_zero_or_negative_where_nothing_forbids_it() -> None:
    assert alpha_at("linear", {"start": -1.0, "end": 1.0}, 0.5) == 0
    assert alpha_at("constant", {"alpha": 0}, 0.5) == 0


def test_adaptive_by_hand() -> None:
    params = PARAMS["adaptive"]
    assert alpha_at("adaptive", params, 0.0, gap=0.0) == 0.2
    assert alpha_at("adaptive", params, 0.9, gap=0.5) == pytest.approx(0.2 + 1.6 * (1 - math.exp(-1)), abs=1e-14)
    assert alpha_at("adaptive", params, 0.0, gap=1e9) == pytest.approx(1.8)
    # A gap far below τ is not lost to rounding.
    tiny = alpha_at("adaptive", {"alpha_min": 0, "alpha_max": 1, "tau": 1}, 0.0, gap=1e-20)
    assert tiny == pytest.approx(1e-20, rel=1e-12, abs=0)
    assert math.isnan(alpha_at("adaptive", params, 0.0, gap=math.nan))


def test_adaptive_needs_a_gap() -> None:
    with pytest.raises(ValueError, match="needs the gap"):
        alpha_at("adaptive", PARAMS["adaptive"], 0.0)


def test_position_per_iteration() -> None:
    assert [position(t, 5) for t in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert position(0, 1) == 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
@quick
def test_position_per_step_spans_the_run_and_only_grows(steps_of: list[int]) -> None:
    run = [position(t, len(steps_of), i, steps) for t, steps in enumerate(steps_of) for i in range(steps)]
    assert run[0] == 0
    assert len(run) == 1 or run[-1] == 1
    assert all(a < b for a, b in pairwise(run))


def test_position_per_step_is_uniform_where_iterations_agree() -> None:
    run = [position(t, 2, i, 3) for t in range(2) for i in range(3)]
    assert run == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_gap_is_how_much_likelier_the_policy_finds_its_own_responses() -> None:
    assert gap(-1.5, -0.5) == 1.0
    assert gap(-0.5, -1.5) == 0.0
    assert math.isnan(gap(math.nan, -1.0))
    assert math.isnan(gap(-1.0, math.nan))


def test_smoothing() -> None:
    assert smooth(None, 0.8, 0.9) == 0.8
    assert smooth(5.0, 0.8, 0.0) == 0.8
    assert smooth(1.0, 0.0, 0.25) == 0.25
    assert smooth(1.0, 2.0, 0.25) == pytest.approx(1.75)


@pytest.mark.parametrize("name", SCHEDULES)
def test_valid_parameters_pass(name: str) -> None:
    check(name, PARAMS[name])


def test_ema_is_optional() -> None:
    check("adaptive", {"alpha_min": 0.5, "alpha_max": 0.5, "tau": 1})


WRONG = [
    ("cosin", {}, ["'cosin'", "Did you mean 'cosine'?", ", ".join([*SCHEDULES, LEVELS])]),
    ("adaptive", {"alphamin": 0.1}, ["'alphamin'", "Did you mean 'alpha_min'?", "alpha_min, alpha_max, tau, ema"]),
    ("linear", {"start": 1.0, "end": 2.0, "gap": 1.0}, ["'linear'", "'gap'", "start, end"]),
    ("linear", {"start": 1.0}, ["needs end", "schedule.params.end="]),
    ("adaptive", {"alpha_min": 0.1}, ["needs alpha_max, tau"]),
    ("constant", {"alpha": math.nan}, ["schedule.params.alpha=nan", "finite number"]),
    ("constant", {"alpha": math.inf}, ["schedule.params.alpha=inf", "finite number"]),
    ("constant", {"alpha": True}, ["schedule.params.alpha=True", "finite number"]),
    ("constant", {"alpha": "half"}, ["schedule.params.alpha=half", "finite number"]),
    ("constant", {"alpha": None}, ["schedule.params.alpha=None", "finite number"]),
    ("exponential", {"start": 0.0, "end": 1.0}, ["start=0", "above 0", "schedule=linear"]),
    ("exponential", {"start": 1.0, "end": -1.0}, ["end=-1", "above 0"]),
    ("adaptive", PARAMS["adaptive"] | {"tau": 0.0}, ["tau=0", "tau must be above 0"]),
    ("adaptive", PARAMS["adaptive"] | {"ema": 1.0}, ["ema=1", "below 1"]),
    ("adaptive", PARAMS["adaptive"] | {"ema": -0.1}, ["ema=-0.1", "at least 0"]),
    ("adaptive", PARAMS["adaptive"] | {"alpha_min": 2.0}, ["alpha_min=2", "must not be above alpha_max"]),
]


@pytest.mark.parametrize(("name", "params", "parts"), WRONG)
def test_a_wrong_schedule_is_told_what_is_wrong(name: str, params: dict[str, float], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check(name, params)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_levels_are_one_finite_number_an_iteration() -> None:
    check("levels", {}, [2, 1.0, 0.5])
    for levels in ([], [1.0, math.nan], [True], ["high"]):
        with pytest.raises(UserError, match=r"schedule\.levels=.*one finite number an iteration"):
            check("levels", {}, levels)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"schedule\.params\.tau: 'levels' takes no parameters"):
        check("levels", {"tau": 1.0}, [1.0])
    with pytest.raises(UserError, match=r"only schedule=levels takes levels, not 'constant'"):
        check("constant", PARAMS["constant"], [1.0])


def test_planning_with_schedules_does_not_import_torch() -> None:
    code = "import sys, iris.method.schedules; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

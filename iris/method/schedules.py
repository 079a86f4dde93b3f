"""Schedules of the order α of the Rényi objective (arXiv 2604.20933), and the gap that the adaptive one follows.

A schedule is a function of the position in the run, 0 at its start and 1 at its end, and of the current gap between the
policy and the annotations; its keyword arguments are its parameters (`schedule.params`). `levels` is no such function
but a list of one order per iteration (`schedule.levels`), whatever the length of the run.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence

from iris.errors import UserError, nearest


def constant(position: float, gap: float | None, *, alpha: float) -> float:
    """α."""
    return alpha


def linear(position: float, gap: float | None, *, start: float, end: float) -> float:
    """(1 − p)·start + p·end at position p."""
    return (1 - position) * start + position * end


def cosine(position: float, gap: float | None, *, start: float, end: float) -> float:
    """end + (start − end)·(1 + cos πp)/2 at position p: flat at both ends (arXiv 1608.03983, eq. 5)."""
    return linear((1 - math.cos(math.pi * position)) / 2, gap, start=start, end=end)


def exponential(position: float, gap: float | None, *, start: float, end: float) -> float:
    """start^(1−p)·end^p at position p: geometric interpolation between two positive orders."""
    return float(start ** (1 - position) * end**position)


def adaptive(
    position: float, gap: float | None, *, alpha_min: float, alpha_max: float, tau: float, ema: float = 0.0
) -> float:
    """α_min + (α_max − α_min)·(1 − exp(−D̂/τ)) of the smoothed gap D̂ ≥ 0, in nats per token like τ (arXiv 2604.20933).

    A large gap gives a large α, and α → α_min near convergence. `ema` is what `smooth` makes D̂ with.
    """
    if gap is None:
        raise ValueError("the adaptive schedule needs the gap of the iteration")
    return alpha_min + (alpha_max - alpha_min) * -math.expm1(-gap / tau)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "adaptive": adaptive,
}

LEVELS = "levels"

# What the parameters of a schedule must satisfy beyond being finite numbers, and how to say so.
_RULES: dict[str, list[tuple[Callable[..., bool], str]]] = {
    "exponential": [
        (lambda start, end: start > 0 and end > 0, "start and end must be above 0, or use schedule=linear"),
    ],
    "adaptive": [
        (lambda tau, **_: tau > 0, "tau must be above 0"),
        (lambda ema=0.0, **_: 0 <= ema < 1, "ema must be at least 0 (no smoothing) and below 1"),
        (lambda alpha_min, alpha_max, **_: alpha_min <= alpha_max, "alpha_min must not be above alpha_max"),
    ],
}


def alpha_at(name: str, params: Mapping[str, float], position: float, gap: float | None = None) -> float:
    """The order α of a schedule at a position in [0, 1] (see `position`) and, for `adaptive`, a smoothed gap.

    Raises UserError where `check` does, and ValueError for `adaptive` without a gap.
    """
    check(name, params)
    return SCHEDULES[name](position, gap, **params)


def position(iteration: int, iterations: int, step: int = 0, steps: int = 1) -> float:
    """The fraction of the run, 0 at its first moment and 1 at its last: t/(T − 1) for iteration t of T.

    Per step, with step i of the `steps` optimizer steps of this iteration: (t·steps + i)/(T·steps − 1), which grows
    over the whole run even where iterations differ in steps. A run of a single moment is at its start.
    """
    return (iteration * steps + step) / max(iterations * steps - 1, 1)


def gap(real: float, synthetic: float) -> float:
    """D̂ = max(0, ⟨log π_t(y'|x)/|y'|⟩ − ⟨log π_t(y|x)/|y|⟩), in nats per token, of the two means in brackets.

    How much likelier the policy π_t finds its own responses y' than the annotations y (arXiv 2604.20933).
    """
    # In this order, because max keeps its first argument when the comparison fails: a NaN must not pass as 0.
    return max(synthetic - real, 0.0)


def smooth(previous: float | None, gap: float, ema: float) -> float:
    """The exponential moving average of the gap over iterations, ema·previous + (1 − ema)·gap; the gap in the first."""
    return gap if previous is None else ema * previous + (1 - ema) * gap


def check(name: str, params: Mapping[str, float], levels: Sequence[float] = ()) -> None:
    """Raise UserError unless `name` is a schedule and its `params` (or `levels`) are all there, finite and in range."""
    known = [*SCHEDULES, LEVELS]
    if name not in known:
        raise UserError(f"schedule '{name}' does not exist.{nearest(name, known)} Choose from: {', '.join(known)}.")
    if name == LEVELS:
        return _check_levels(params, levels)
    if levels:
        raise UserError(f"schedule.levels={list(levels)}: only schedule=levels takes levels, not '{name}'.")
    _check_names(name, params)
    for key, value in params.items():
        if not _finite(value):
            raise UserError(f"schedule.params.{key}={value}: '{name}' needs a finite number here.")
    for holds, message in _RULES.get(name, []):
        if not holds(**params):
            values = ", ".join(f"{key}={value}" for key, value in params.items())
            raise UserError(f"schedule.params of '{name}' ({values}): {message}.")


def _check_levels(params: Mapping[str, float], levels: Sequence[float]) -> None:
    if params:
        raise UserError(f"schedule.params.{next(iter(params))}: '{LEVELS}' takes no parameters, only schedule.levels.")
    if not levels or not all(_finite(level) for level in levels):
        raise UserError(f"schedule.levels={list(levels)}: expected one finite number an iteration, such as [2,1,0.5].")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@functools.cache
def _parameters(name: str) -> dict[str, bool]:
    """The parameters that a schedule takes, and whether it needs them."""
    taken = inspect.signature(SCHEDULES[name]).parameters.values()
    return {p.name: p.default is p.empty for p in taken if p.kind is p.KEYWORD_ONLY}


def _check_names(name: str, params: Mapping[str, float]) -> None:
    """Raise UserError unless the parameters are ones the schedule takes, with none missing."""
    valid = _parameters(name)
    for key in params:
        if key not in valid:
            hint = nearest(key, valid)
            raise UserError(f"schedule '{name}' has no parameter '{key}'.{hint} It takes: {', '.join(valid)}.")
    missing = [key for key, required in valid.items() if required and key not in params]
    if missing:
        example = ", ".join(f"schedule.params.{key}=…" for key in missing)
        raise UserError(f"schedule '{name}' needs {', '.join(missing)}: set {example}.")

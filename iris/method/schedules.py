"""Schedules of the order α of the Rényi objective (arXiv 2604.20933), and the gap that the adaptive one follows.

A schedule is a function that takes `position`, the place in the run from 0 at its start to 1 at its end, or `gap`, the
current gap between the policy and the annotations, or both, or neither; its keyword arguments are its parameters
(`schedule.params`). `levels` is no such function but a list of one order per iteration (`schedule.levels`), whatever
the length of the run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iris.errors import UserError, first_line, nearest
from iris.method import functions
from iris.method.functions import Signature


def constant(*, alpha: float) -> float:
    """Return α."""
    return alpha


def linear(position: float, *, start: float, end: float) -> float:
    """Return (1 − p)·start + p·end at position p."""
    return (1 - position) * start + position * end


def cosine(position: float, *, start: float, end: float) -> float:
    """Return end + (start − end)·(1 + cos πp)/2 at position p: flat at both ends (arXiv 1608.03983, eq. 5)."""
    return linear((1 - math.cos(math.pi * position)) / 2, start=start, end=end)


def exponential(position: float, *, start: float, end: float) -> float:
    """Return start^(1−p)·end^p at position p: geometric interpolation between two positive orders."""
    return float(start ** (1 - position) * end**position)


def adaptive(gap: float, *, alpha_min: float, alpha_max: float, tau: float, ema: float = 0.0) -> float:
    """Return α_min + (α_max − α_min)·(1 − exp(−D̂/τ)) of the smoothed gap D̂ ≥ 0, in nats per token like τ.

    A large gap gives a large α, and α → α_min near convergence (arXiv 2604.20933). `ema` is the weight of `smooth`.
    """
    return alpha_min + (alpha_max - alpha_min) * -math.expm1(-gap / tau)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "adaptive": adaptive,
}

LEVELS = "levels"
EMA = "ema"  # the parameter with which the gap is smoothed over iterations, of a schedule that follows it

# Conditions on parameters beyond being finite numbers, and their messages.
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


@dataclass(frozen=True)
class Schedule:
    """A schedule's function, package.module:name, that takes `position`, `gap`, both or none, and its parameters."""

    reference: str
    signature: Signature

    @property
    def needs_gap(self) -> bool:
        """Whether α follows from the gap of the iteration, which scoring measures."""
        return "gap" in self.signature.positional

    @property
    def needs_position(self) -> bool:
        """Whether α follows from the place in the run."""
        return "position" in self.signature.positional

    @property
    def source(self) -> str:
        """The hash of the function's source."""
        return functions.digest(self.reference)

    def alpha(self, params: Mapping[str, float], position: float, gap: float | None = None) -> float:
        """Return the order α at a position in [0, 1] (see `position`) and a smoothed gap.

        Raises UserError where a user's function fails, ValueError where a gap is needed and none is given.
        """
        if self.needs_gap and gap is None:
            raise ValueError(f"{self.reference} needs the gap of the iteration")
        given = {"position": position, "gap": gap}
        function = functions.imported(self.reference, "schedule.function")
        try:
            return float(function(*(given[name] for name in self.signature.positional), **params))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UserError(f"schedule {self.reference} at position {position:g}: {first_line(error)}.") from error


def find(name: str, function: str | None = None) -> Schedule:
    """Return a built-in schedule, or that of a function, `package.module:name`. Raises UserError where it is none."""
    known = [*SCHEDULES, LEVELS]
    if function is None and name not in SCHEDULES:
        raise UserError(f"schedule '{name}' does not exist.{nearest(name, known)} Choose from: {', '.join(known)}.")
    if function is not None and name in known:
        raise UserError(f"schedule.name={name} is built in: give {function} another name with schedule.name=….")
    if function is not None:
        functions.imported(function, "schedule.function")
    reference = function or f"iris.method.schedules:{name}"
    signature = functions.signature(reference, "schedule.function")
    if not {"position", "gap"}.issuperset(signature.positional):
        raise UserError(
            f"schedule.function={reference}: it takes ({', '.join(signature.positional)}); a schedule takes position, "
            "gap, both or neither, and its parameters after a '*'."
        )
    return Schedule(reference, signature)


def position(iteration: int, iterations: int, step: int = 0, steps: int = 1) -> float:
    """Return the place in the run, 0 at its first moment and 1 at its last: t/(T − 1) for iteration t of T.

    Per step, with step i of the `steps` optimizer steps of this iteration: (t·steps + i)/(T·steps − 1), which grows
    over the whole run even where iterations differ in steps. A run of a single moment is at its start.
    """
    return (iteration * steps + step) / max(iterations * steps - 1, 1)


def gap(real: float, synthetic: float) -> float:
    """Return D̂ = max(0, ⟨log π_t(y'|x)/|y'|⟩ − ⟨log π_t(y|x)/|y|⟩), in nats per token, of the two means in brackets.

    How much likelier the policy π_t finds its own responses y' than the annotations y (arXiv 2604.20933).
    """
    # In this order, because max keeps its first argument when the comparison fails: a NaN must not pass as 0.
    return max(synthetic - real, 0.0)


def smooth(previous: float | None, gap: float, ema: float) -> float:
    """Return the moving average of the gap over iterations, ema·previous + (1 − ema)·gap; the gap in the first."""
    return gap if previous is None else ema * previous + (1 - ema) * gap


def mistakes(
    name: str, params: Mapping[str, float], levels: Sequence[float] = (), function: str | None = None
) -> list[str]:
    """Return what is wrong with a schedule: its name or function, its parameters or its levels."""
    if name == LEVELS and function is None:
        return _wrong_levels(params, levels)
    try:
        schedule = find(name, function)
    except UserError as error:
        return [str(error)]
    found = [f"schedule.levels={list(levels)}: only schedule=levels takes levels, not '{name}'."] if levels else []
    found += _wrong_names(name, params, schedule.signature.parameters)
    found += [
        f"schedule.params.{key}={value}: '{name}' needs a finite number here."
        for key, value in params.items()
        if not _finite(value)
    ]
    return found or _broken_rules(name, params)


def _broken_rules(name: str, params: Mapping[str, float]) -> list[str]:
    values = ", ".join(f"{key}={value:g}" for key, value in params.items())
    rules = [message for holds, message in _RULES.get(name, []) if not holds(**params)]
    return [f"schedule.params of '{name}' ({values}): {message}." for message in rules]


def _wrong_levels(params: Mapping[str, float], levels: Sequence[float]) -> list[str]:
    found = [f"schedule.params.{key}: '{LEVELS}' takes no parameters, only schedule.levels." for key in params]
    if levels and all(_finite(level) for level in levels):
        return found
    return [*found, f"schedule.levels={list(levels)}: expected one finite number an iteration, such as [2,1,0.5]."]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong_names(name: str, params: Mapping[str, float], valid: Mapping[str, bool]) -> list[str]:
    takes = ", ".join(valid) or "none"
    found = [
        f"schedule '{name}' has no parameter '{key}'.{nearest(key, valid)} It takes: {takes}."
        for key in params
        if key not in valid
    ]
    missing = [key for key, required in valid.items() if required and key not in params]
    if missing:
        example = ", ".join(f"schedule.params.{key}=…" for key in missing)
        found.append(f"schedule '{name}' needs {', '.join(missing)}: set {example}.")
    return found

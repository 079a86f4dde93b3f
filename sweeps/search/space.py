"""The space of a search: the keys of the configuration that a trial sets, and their values."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from iris.errors import UserError, nearest
from sweeps.study.presets import check_keys
from sweeps.study.settings import of_value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

KINDS = ("categorical", "float", "int")
Choice = Any  # str, number, bool, None or a list
Values = dict[str, Any]  # by key of the configuration; a list where a parameter has a value per iteration


@dataclass(frozen=True)
class Parameter:
    """A key of the configuration and its values."""

    key: str
    kind: str = "float"  # categorical | float | int
    choices: tuple[Choice, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None  # None: continuous (float), 1 (int)
    log: bool = False
    per: str = "run"  # run | iteration: a value per iteration, so that trials share iterations in which they agree
    when: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict)  # values of earlier parameters it depends on

    @property
    def finite(self) -> bool:
        """Whether it has finitely many values."""
        return self.kind != "float" or self.step is not None

    def active(self, values: Values) -> bool:
        """Whether it is set where others have these values."""
        return all(key in values and values[key] in allowed for key, allowed in self.when.items())

    def distribution(self) -> "BaseDistribution":
        """Return Optuna's distribution of one value. Raises ValueError where the range or the choices are invalid."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "categorical":
            return CategoricalDistribution(self._plain_choices())
        if self.kind == "int":
            return IntDistribution(int(self.low), int(self.high), self.log, int(1 if self.step is None else self.step))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def _plain_choices(self) -> list[Any]:
        """Return the choices with lists as texts, which Optuna can store."""
        return [of_value("", c).value if isinstance(c, list) else c for c in self.choices]

    def suggest(self, trial: "BaseTrial", iterations: int) -> Any:
        """Return a trial's value; or a list, whose parameters the trial names by iteration from 1."""
        if self.per == "run":
            return self._one(trial, self.key)
        return [self._one(trial, f"{self.key}[{t + 1}]") for t in range(iterations)]

    def _one(self, trial: "BaseTrial", name: str) -> Choice:
        if self.kind == "categorical":
            known = self._plain_choices()
            return self.choices[known.index(trial.suggest_categorical(name, known))]
        if self.kind == "int":
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        value = trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)
        return float(f"{value:.12g}")  # 0.3 and not 0.30000000000000004: one key for one number

    def extremes(self, iterations: int) -> list[Any]:
        """Return all choices, or both ends of the range, for a check before anything is spent."""
        ends: list[Any] = list(self.choices) if self.kind == "categorical" else [self.low, self.high]
        ends = [int(end) for end in ends] if self.kind == "int" else ends
        return ends if self.per == "run" else [[end] * iterations for end in ends]


def suggest(space: Sequence[Parameter], trial: "BaseTrial", iterations: int) -> Values:
    """Return a trial's values; `iterations` holds unless the space sets it."""
    values: Values = {}
    for parameter in space:
        if parameter.active(values):
            values[parameter.key] = parameter.suggest(trial, int(values.get("iterations", iterations)))
    return values


def overrides(values: Values) -> list[str]:
    """Return the values as Hydra overrides: groups first, because other keys change their settings."""
    texts = [of_value(key, value).text for key, value in values.items()]
    return sorted(texts, key=lambda text: "." in text.partition("=")[0])


def corners(space: Sequence[Parameter], iterations: int) -> Iterator[tuple[Parameter, Values]]:
    """Return each parameter with values in which it takes one of its extremes."""
    for chosen in space:
        forced = {key: allowed[0] for key, allowed in _conditions(space, chosen).items()}
        for index in range(len(chosen.extremes(1))):
            values: Values = {}
            for parameter in space:
                extremes = parameter.extremes(int(values.get("iterations", iterations)))
                if parameter.active(values):
                    values[parameter.key] = forced.get(parameter.key, extremes[index if parameter is chosen else 0])
            yield chosen, values


def _conditions(space: Sequence[Parameter], parameter: Parameter) -> dict[str, tuple[Choice, ...]]:
    """Return its conditions and those of the parameters in them."""
    found: dict[str, tuple[Choice, ...]] = {}
    for earlier in space:
        if earlier.key in parameter.when:
            found |= _conditions(space, earlier)
    return found | dict(parameter.when)


# --- reading


def read_space(content: Any, where: str) -> tuple[Parameter, ...]:
    """Read the parameters of a mapping from keys to {choices} or {low, high, …}. Raises UserError."""
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{where}: expected a mapping from keys of the configuration to their values, with one at least."
        )
    space: list[Parameter] = []
    for key, own in content.items():
        space.append(_parameter(str(key), own, f"{where}: {key}", space))
    return tuple(sorted(space, key=lambda parameter: parameter.key != "iterations"))


_NAMES = {"type": "kind"} | {f.name: f.name for f in fields(Parameter) if f.name not in ("key", "kind")}


def _parameter(key: str, content: Any, where: str, earlier: Sequence[Parameter]) -> Parameter:
    if isinstance(content, list):
        content = {"choices": content}
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a list of choices, or {{low: …, high: …}}, not {content!r}.")
    check_keys(f"{where}: ", content, _NAMES)
    values = {_NAMES[name]: value for name, value in content.items() if value is not None}
    values.setdefault("kind", "categorical" if "choices" in values else "float")
    values["when"] = _when(values.get("when", {}), where, earlier)
    if values["kind"] == "categorical":
        return _categorical(key, values, where)
    return _number(key, values, where)


def _categorical(key: str, values: dict[str, Any], where: str) -> Parameter:
    choices = values.get("choices")
    if not isinstance(choices, list) or set(values) & {"low", "high", "step", "log"}:
        raise UserError(f"{where}: a categorical parameter has a list of choices, and no range.")
    return _checked(Parameter(key, **{**values, "choices": tuple(choices)}), where)


def _number(key: str, values: dict[str, Any], where: str) -> Parameter:
    if "choices" in values or not {"low", "high"} <= values.keys():
        raise UserError(f"{where}: a parameter of type {values['kind']} has low and high, and no choices.")
    for name in ("low", "high", "step"):
        if name in values:
            values[name] = _finite(values[name], f"{where}: {name}")
    return _checked(Parameter(key, **values), where)


def _checked(parameter: Parameter, where: str) -> Parameter:
    p = parameter
    if p.kind not in KINDS:
        raise UserError(f"{where}: type: {p.kind}: choose one of {', '.join(KINDS)}.{nearest(str(p.kind), KINDS)}")
    if p.per not in ("run", "iteration"):
        raise UserError(f"{where}: per: {p.per}: choose run, or iteration for a value per iteration.")
    if not isinstance(p.log, bool):
        raise UserError(f"{where}: log: {p.log}: expected true or false.")
    if p.kind == "int" and any(n is not None and n != int(n) for n in (p.low, p.high, p.step)):
        raise UserError(f"{where}: low, high and step of type int are whole numbers.")
    try:
        with warnings.catch_warnings(
            category=UserWarning, action="error"
        ):  # high is no whole number of steps above low
            p.distribution()
    except (ValueError, UserWarning) as error:
        raise UserError(f"{where}: {str(error).partition(' It will')[0].strip()}") from error
    return p


def _when(content: Any, where: str, earlier: Sequence[Parameter]) -> dict[str, tuple[Choice, ...]]:
    if not isinstance(content, dict):
        raise UserError(f"{where}: when: expected a mapping from other parameters to a value or a list of values.")
    known = {parameter.key: parameter for parameter in earlier}
    conditions = {}
    for key, value in content.items():
        if key not in known or known[key].kind != "categorical" or known[key].per != "run":
            named = ", ".join(k for k, p in known.items() if p.kind == "categorical") or "there is none"
            raise UserError(f"{where}: when: {key}: expected a parameter with choices that stands before: {named}.")
        conditions[str(key)] = tuple(value if isinstance(value, list) else [value])
        for choice in conditions[key]:
            if choice not in known[key].choices:
                choices = [str(c) for c in known[key].choices]
                hint = nearest(str(choice), choices)
                raise UserError(f"{where}: when: {key}: {choice}: choose one of {', '.join(choices)}.{hint}")
    return conditions


def _finite(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {value}: expected a finite number.")
    return number

"""The space of a search: the keys of the configuration that a trial sets, and their values."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from iris import validate
from iris.errors import UserError, nearest
from iris.validate import choice, ranged
from sweeps.study.settings import of_value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

Values = dict[str, Any]  # by key of the configuration; a list where a parameter has a value per iteration


@dataclass(frozen=True)
class Parameter:
    """A key of the configuration and its values."""

    key: str
    type: str = choice("float", "int", "categorical")
    choices: list[Any] = field(default_factory=list)  # texts, numbers, booleans, None or lists
    low: float = ranged(0.0)
    high: float = ranged(0.0)
    step: float | None = ranged(None)  # None: continuous (float), 1 (int)
    log: bool = False
    per: str = choice("run", "iteration")  # a value per iteration: trials share the iterations in which they agree
    when: dict[str, Any] = field(default_factory=dict)  # values of earlier parameters that it depends on

    @property
    def finite(self) -> bool:
        """Whether it has finitely many values."""
        return self.type != "float" or self.step is not None

    def active(self, values: Values) -> bool:
        """Whether it is set where others have these values."""
        return all(key in values and values[key] in allowed for key, allowed in self.when.items())

    def distribution(self) -> "BaseDistribution":
        """Return Optuna's distribution of one value. Raises ValueError where the range or the choices are invalid."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.type == "categorical":
            return CategoricalDistribution(self._plain_choices())
        if self.type == "int":
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

    def _one(self, trial: "BaseTrial", name: str) -> Any:
        if self.type == "categorical":
            known = self._plain_choices()
            return self.choices[known.index(trial.suggest_categorical(name, known))]
        if self.type == "int":
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        value = trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)
        return float(f"{value:.12g}")  # 0.3 and not 0.30000000000000004: one key for one number

    def extremes(self, iterations: int) -> list[Any]:
        """Return all choices, or both ends of the range, for a check before anything is spent."""
        ends: list[Any] = self.choices if self.type == "categorical" else [self.low, self.high]
        ends = [int(end) for end in ends] if self.type == "int" else ends
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


def _conditions(space: Sequence[Parameter], parameter: Parameter) -> dict[str, list[Any]]:
    """Return its conditions and those of the parameters in them."""
    found: dict[str, list[Any]] = {}
    for earlier in space:
        if earlier.key in parameter.when:
            found |= _conditions(space, earlier)
    return found | parameter.when


# --- reading


def read_space(content: Any, where: str) -> list[Parameter]:
    """Read the parameters of a mapping from keys to {choices} or {low, high, …}. Raises UserError."""
    if not isinstance(content, dict) or not content:
        raise UserError(f"{where}: expected a mapping from one or more keys of the configuration to their values.")
    space: list[Parameter] = []
    for key, own in content.items():
        space.append(_parameter(str(key), own, f"{where}: {key}", space))
    return sorted(space, key=lambda parameter: parameter.key != "iterations")


def _parameter(key: str, content: Any, where: str, earlier: Sequence[Parameter]) -> Parameter:
    content = {"choices": content} if isinstance(content, list) else content
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a list of choices, or {{low: …, high: …}}, not {content!r}.")
    given = {name: value for name, value in content.items() if value is not None}
    kind = given.setdefault("type", "categorical" if "choices" in given else "float")
    parameter, mistakes = validate.read(Parameter, {"key": key} | given)
    validate.refuse([f"{where}: {mistake}" for mistake in mistakes])
    assert isinstance(parameter, Parameter)
    if kind == "categorical" and ("choices" not in given or given.keys() & {"low", "high", "step", "log"}):
        raise UserError(f"{where}: a categorical parameter has a list of choices, and no range.")
    if kind != "categorical" and ("choices" in given or not {"low", "high"} <= given.keys()):
        raise UserError(f"{where}: a parameter of type {kind} has low and high, and no choices.")
    _check_range(parameter, where)
    return replace(parameter, when=_when(parameter.when, where, earlier))


def _check_range(p: Parameter, where: str) -> None:
    if p.type == "int" and any(n is not None and n != int(n) for n in (p.low, p.high, p.step)):
        raise UserError(f"{where}: low, high and step of type int are whole numbers.")
    try:
        with warnings.catch_warnings(category=UserWarning, action="error"):  # high is off the steps from low
            p.distribution()
    except (ValueError, UserWarning) as error:
        raise UserError(f"{where}: {str(error).partition(' It will')[0].strip()}") from error


def _when(content: Mapping[str, Any], where: str, earlier: Sequence[Parameter]) -> dict[str, list[Any]]:
    known = {p.key: p.choices for p in earlier if p.type == "categorical" and p.per == "run"}
    conditions = {key: value if isinstance(value, list) else [value] for key, value in content.items()}
    for key, values in conditions.items():
        if key not in known:
            named = ", ".join(known) or "there is none"
            raise UserError(f"{where}: when: {key}: expected a parameter with choices that stands before: {named}.")
        for value in values:
            if value not in known[key]:
                choices = [str(c) for c in known[key]]
                hint = nearest(str(value), choices)
                raise UserError(f"{where}: when: {key}: {value}: choose one of {', '.join(choices)}.{hint}")
    return conditions

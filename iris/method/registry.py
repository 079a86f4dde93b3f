"""The methods: where each objective is defined and what it needs.

A built-in method has an entry here, its function in `iris.method.objectives` and a YAML of its name. One of a user's
own is any importable function, `method.function=package.module:name`, with its needs in the decorator `needs`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from iris import validate
from iris.errors import UserError, nearest
from iris.method import functions
from iris.method.functions import Signature

_POSITIVE = ("mu", "scale")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Needs:
    """The responses and references that an objective takes.

    By default (real_ratio, synthetic_ratio) [B] each, for a loss per sample. Without `players` they are
    log-probabilities; with several, [players, B] each. `proto` adds the responses of π₀ as a third argument.
    """

    synthetic: bool = True  # False: annotated responses alone, (real, *, tokens), summed over the global batch
    proto: bool = False
    players: int = validate.ranged(1, 0)  # how many of the latest checkpoints serve as reference; 0: reference-free
    coupled: bool = False  # the loss is one value of the whole batch, not a mean over samples
    alpha: bool = False  # a schedule gives the order, the parameter `alpha`
    first: dict[str, float] = field(default_factory=dict)  # parameters that iteration 0 fixes
    tilts: str | None = None  # coupled: the function of its module that gives the log-weights of its gradient

    def declared(self) -> dict[str, Any]:
        """Return the needs that differ from the defaults."""
        return {name: value for name, value in vars(self).items() if value != vars(_DEFAULT)[name]}

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the positional arguments."""
        names = ("real", "synthetic", "proto")[: 1 + self.synthetic + self.proto]
        return tuple(f"{name}_ratio" for name in names) if self.players and self.synthetic else names


_DEFAULT = Needs()
METHODS = {
    "sft": Needs(synthetic=False, players=0),
    "spin": Needs(),
    "space": Needs(),
    "spif": Needs(),
    # In iteration 0 there is no earlier response to tell apart from the current one (eq. 7).
    "t_spin": Needs(proto=True, players=0, first={"beta": 0.0}),
    "tpaw": Needs(players=3),
    "iris": Needs(coupled=True, alpha=True, tilts="iris_tilts"),
}


@dataclass(frozen=True)
class Method:
    """A method's objective: `reference` is package.module:name of its function."""

    reference: str
    needs: Needs
    signature: Signature

    @staticmethod
    def of(reference: str, declared: Mapping[str, Any]) -> "Method":
        """Return the method of a function's `reference` with the needs that a plan has found for it."""
        return Method(reference, Needs(**declared), functions.signature(reference, "method.function"))

    @property
    def parameters(self) -> dict[str, bool]:
        """The names of the parameters that `method.loss` sets, and whether it has to."""
        given = {"alpha"} if self.needs.alpha else set() if self.needs.synthetic else {"tokens"}
        return {name: required for name, required in self.signature.parameters.items() if name not in given}

    @property
    def source(self) -> str:
        """The hash of the source of the objective and of its gradient's weights."""
        module, tilts = self.reference.partition(":")[0], self.needs.tilts
        return functions.digest(self.reference, *([f"{module}:{tilts}"] if tilts else []))

    def load(self, name: str = "") -> Callable[..., Any]:
        """Import the objective, or another function of its module."""
        module, _, own = self.reference.partition(":")
        function: Callable[..., Any] = functions.imported(f"{module}:{name or own}", "method.function")
        return function


def needs(**declared: Any) -> Callable[[F], F]:
    """Decorate an objective with its `Needs`. Raises UserError for unknown ones."""

    def mark(function: F) -> F:
        function.needs = validate.build(Needs, declared, "needs")  # type: ignore[attr-defined]
        return function

    return mark


def find(name: str, function: str | None = None, declared: Mapping[str, Any] | None = None) -> Method:
    """Return a built-in method, or that of a function. Raises UserError where it is not one."""
    if function is None:
        if name not in METHODS:
            raise UserError(f"method.name={name}: choose one of {', '.join(METHODS)}.{nearest(name, METHODS)}")
        if declared is not None:
            raise UserError(f"method.needs: '{name}' is built in; only a method.function has needs to declare.")
        reference = f"iris.method.objectives:{name}"
        return Method(reference, METHODS[name], functions.signature(reference, "method.function"))
    if function and name in METHODS:
        raise UserError(f"method.name={name} is a built-in method: give {function} another name with method.name=….")
    marked = functions.imported(function, "method.function")
    needed = getattr(marked, "needs", Needs()) if declared is None else validate.build(Needs, declared, "method.needs")
    found = Method(function, needed, functions.signature(function, "method.function"))
    _check_signature(function, found)
    return found


def _check_signature(function: str, found: Method) -> None:
    positional, expected = found.signature.positional, found.needs.arguments
    given = "alpha" if found.needs.alpha else "" if found.needs.synthetic else "tokens"
    if len(positional) != len(expected) or (given and given not in found.signature.parameters):
        after = ", ".join(["*", *([given] if given else []), "…"])
        raise UserError(
            f"method.function={function}: it takes ({', '.join(positional)}); by its needs it has to take "
            f"({', '.join(expected)}, {after}), its parameters after the '*'."
        )
    for name in found.needs.first:
        if name not in found.parameters:
            choices = ", ".join(found.parameters) or "none"
            raise UserError(
                f"method.function={function}: its needs fix '{name}' in iteration 0 (first), which is no parameter of "
                f"it; choose one of {choices}.{nearest(name, found.parameters)}"
            )


def wrong_parameters(name: str, method: Method, loss: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the parameters in `method.loss`."""
    known = method.parameters
    choices = ", ".join(f"method.loss.{key}" for key in known) or "none"
    found = [f"method.loss.{k}: '{name}' takes {choices}.{nearest(k, known)}" for k in loss if k not in known]
    found += [f"method.loss.{k} is not set: '{name}' needs it." for k in known if known[k] and k not in loss]
    return found + [m for key in loss if name in METHODS and key in known for m in _wrong_value(key, loss[key])]


def _wrong_value(key: str, value: float | list[float]) -> list[str]:
    numbers = value if isinstance(value, list) else [value]
    if all(math.isfinite(n) and (n > 0 or (n == 0 and key not in _POSITIVE)) for n in numbers):
        return []
    shown = f"[{','.join(f'{n:g}' for n in numbers)}]" if isinstance(value, list) else f"{value:g}"
    return [f"method.loss.{key}={shown}: expected a number {'above' if key in _POSITIVE else 'from'} 0."]

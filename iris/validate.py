"""Plain values to dataclasses: converted by declared types, checked, and all mistakes reported at once.

@dataclass
class Settings:
    rate: float | list[float] = ranged(1e-6, above=0)
    optimizer: str = choice("adamw", "rmsprop")

settings = build(Settings, {"rate": "2e-6"}, "train")
"""

import functools
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from iris.errors import UserError, nearest

MISSING = "???"  # of a field that has no default, as OmegaConf writes it
T = TypeVar("T")
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Bounds:
    """The numbers a field takes: `low` and `high` included, `above` and `below` excluded, finite without `infinite`."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    infinite: bool = False

    def __str__(self) -> str:
        words = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)

    def hold(self, number: float) -> bool:
        """Return whether a number is within the bounds; NaN never is."""
        return (
            (math.isfinite(number) or (self.infinite and not math.isnan(number)))
            and (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


def ranged(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    infinite: bool = False,
) -> Any:
    """Return a dataclass field whose number, or each of whose numbers, must be within bounds."""
    return field(default=default, metadata={"bounds": Bounds(low, high, above, below, infinite)})


def choice(default: str, *others: str) -> Any:
    """Return a dataclass field that takes one of some texts; MISSING as default is no choice."""
    known = others if default == MISSING else (default, *others)
    return field(default=default, metadata={"choices": known})


def converted(default: Any, convert: Callable[[Any], Any]) -> Any:
    """Return a dataclass field whose value passes through a function first, which may raise UserError."""
    return field(default=default, metadata={"convert": convert})


def build(cls: type[T], content: Any, where: str = "") -> T:
    """Return the dataclass of a mapping; `where` is the dotted key of the mapping. Raises UserError."""
    value, mistakes = read(cls, content, where)
    refuse(mistakes)
    assert isinstance(value, cls)
    return value


def refuse(mistakes: Iterable[str]) -> None:
    """Raise one UserError for all mistakes, if there are any."""
    found = list(dict.fromkeys(mistakes))
    if len(found) == 1:
        raise UserError(found[0])
    if found:
        raise UserError("\n".join([f"{len(found)} mistakes:", *(f"  {mistake}" for mistake in found)]))


def read(cls: Any, content: Any, where: str = "") -> tuple[Any, list[str]]:
    """Return the dataclass of a mapping and what is wrong with it; a wrong value is replaced by the default."""
    mistakes: list[str] = []
    return _dataclass(cls, content, where, mistakes), mistakes


def read_at(cls: Any, key: str, value: Any) -> tuple[Any, list[str]]:
    """Like `read`, for the value of one dotted key."""
    content, path = value, key.split(".")
    for name in reversed(path):
        content = {name: content}
    made, mistakes = read(cls, content)
    wrong = [m for m in mistakes if m.startswith(key)]
    if not wrong:
        for name in path:
            made = made[name] if isinstance(made, dict) else getattr(made, name)
    return made, wrong


def _wrong(key: str, value: Any, expected: str) -> UserError:
    text = str(value)
    return UserError(f"{key}={text if len(text) <= 60 else f'{text[:57]}…'}: {expected}")


@functools.cache
def _types(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _dataclass(cls: Any, content: Any, where: str, mistakes: list[str]) -> Any:
    known = {f.name: f for f in fields(cls)}
    if not isinstance(content, Mapping):
        mistakes.append(str(_wrong(where, content, f"expected a mapping of {', '.join(known)}.")))
        content = {}
    prefix = f"{where}." if where else ""
    for key in content:
        if key not in known:
            hint = nearest(str(key), known)
            mistakes.append(f"{prefix}{key}: no such key. Choose from {', '.join(known)}.{hint}")
    values = {}
    for name, declared in known.items():
        kind, key = _types(cls)[name], f"{prefix}{name}"
        if is_dataclass(kind):
            values[name] = _dataclass(kind, content.get(name, {}), key, mistakes)
        elif content.get(name, declared.default) in (MISSING, NO_DEFAULT) and declared.default_factory is NO_DEFAULT:
            mistakes.append(f"{key} is not set.")
            values[name] = MISSING
        elif name in content:
            try:
                values[name] = _field(content[name], kind, declared.metadata, key)
            except UserError as error:
                mistakes.append(str(error))
    return cls(**values)


def _field(value: Any, kind: Any, metadata: Mapping[str, Any], key: str) -> Any:
    if convert := metadata.get("convert"):
        value = convert(value)
    choices = metadata.get("choices")
    if choices is not None and isinstance(value, bool):
        value = str(value).lower()  # what YAML reads of a choice such as true
    found = _value(value, kind, metadata.get("bounds", Bounds()), key)
    if choices is not None and found is not None and found not in choices:
        raise _wrong(key, value, f"choose one of {', '.join(choices)}.{nearest(str(value), choices)}")
    return found


def _value(value: Any, kind: Any, bounds: Bounds, key: str) -> Any:
    """Return a value converted to a declared type. Raises UserError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return plain(value)
    if origin in (Union, types.UnionType):
        return _either(value, arguments, bounds, key)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise _wrong(key, value, "expected a list, such as [a,b].")
        return [_value(item, arguments[0], bounds, key) for item in value]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(key, value, "expected a mapping, such as {a: 1}.")
        return {str(k): _value(v, arguments[1], bounds, f"{key}.{k}") for k, v in value.items()}
    return _CONVERSIONS[kind](value, bounds, key)


def _either(value: Any, kinds: Sequence[Any], bounds: Bounds, key: str) -> Any:
    """Return the value as the one of several types that it can be: none, a list, or one of a list's values."""
    if value is None and types.NoneType in kinds:
        return None
    listed = [kind for kind in kinds if get_origin(kind) is list]
    if listed and isinstance(value, list | tuple):
        if not value:
            raise _wrong(key, value, "expected at least one value.")
        return _value(value, listed[0], bounds, key)
    return _value(value, next(k for k in kinds if k is not types.NoneType and k not in listed), bounds, key)


def plain(value: Any) -> Any:
    """Return a value without declared type in the one way in which equal numbers are written: 2.0 as 2."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53  # above, an int has other digits
    return int(value) if whole else value


def _number(value: Any, bounds: Bounds, key: str, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not bounds.hold(number):
        raise _wrong(key, value, f"expected a {name}{f' {bounds}' if str(bounds) else ''}.")
    return number


def _float(value: Any, bounds: Bounds, key: str) -> float:
    return _number(value, bounds, key, "number")


def _int(value: Any, bounds: Bounds, key: str) -> int:
    number = _number(value, bounds, key, "whole number")
    if not number.is_integer():
        raise _wrong(key, value, f"expected a whole number{f' {bounds}' if str(bounds) else ''}.")
    return value if isinstance(value, int) else int(number)


def _bool(value: Any, bounds: Bounds, key: str) -> bool:
    found = _WORDS.get(value.strip().lower()) if isinstance(value, str) else value
    if found not in (True, False):
        raise _wrong(key, value, "expected true or false.")
    return bool(found)


def _str(value: Any, bounds: Bounds, key: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong(key, value, "expected a text.")
    return str(value)


_CONVERSIONS: dict[Any, Callable[[Any, Bounds, str], Any]] = {float: _float, int: _int, bool: _bool, str: _str}

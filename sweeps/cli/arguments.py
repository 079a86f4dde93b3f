"""The words of a command line: settings of the command, flags, and overrides of the experiments."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from iris.config import Config
from iris.errors import UserError, nearest

_SECTIONS = {*Config.__dataclass_fields__, "seeds"}
_BELOW = "launcher."  # the one setting with keys of its own


@dataclass(frozen=True)
class Arguments:
    """`flags` by name with their value ("" for those without), `settings` by key, and what is left in order."""

    flags: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def under(self, key: str) -> list[str]:
        """The settings below a key, without it: `launcher.max_parallel=4` is `max_parallel=4` under `launcher`."""
        return [f"{k.removeprefix(f'{key}.')}={v}" for k, v in self.settings.items() if k.startswith(f"{key}.")]

    def get(self, key: str, example: str) -> str:
        """A setting that the command needs. Raises UserError."""
        if not self.settings.get(key):
            raise UserError(f"No {key} is given: {example}")
        return self.settings[key]


def parse(
    arguments: Sequence[str], *, settings: Iterable[str], flags: Mapping[str, str] | None = None, names: bool = False
) -> Arguments:
    """Sort words into those of the command (`settings`, `launcher` with the keys below it, and `flags`) and others.

    `flags` maps each flag to what its value is called, "" if it takes none. Words without an equals sign are `names`
    where the command takes some. Raises UserError.
    """
    parsed, keys, flags = Arguments(), set(settings), dict(flags or {})
    words = iter(arguments)
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            _add_flag(parsed, key, value if equals else None, words, flags)
        elif equals and (key in keys or (key.startswith(_BELOW) and _BELOW[:-1] in keys)):
            _add_once(parsed.settings, key, value)
        elif equals or word.startswith("~"):
            _check_not_meant(key, keys)
            parsed.overrides.append(word)
        elif names:
            parsed.names.append(word)
        else:
            hint = nearest(word, [*flags, *(f"{k}=…" for k in keys)])
            raise UserError(f"'{word}': write settings as key=value, such as study=embedded or seed=1.{hint}")
    return parsed


def _check_not_meant(key: str, settings: Iterable[str]) -> None:
    """Refuse what looks like one of the command's settings and is no section of an experiment."""
    if key not in _SECTIONS and (meant := get_close_matches(key, list(settings), n=1, cutoff=0.8)):
        raise UserError(f"{key}: no such setting. Did you mean '{meant[0]}'?")


def _add_flag(parsed: Arguments, flag: str, value: str | None, words: Iterator[str], flags: Mapping[str, str]) -> None:
    if flag not in flags:
        raise UserError(f"{flag}: no such flag. {_listed(flags)}{nearest(flag, flags)}")
    if flags[flag]:
        if value is None:
            value = next(words, "")
            value = "" if value.startswith("-") or "=" in value else value  # the next word, not a value
        if not value:
            raise UserError(f"{flag} needs a {flags[flag]}: {flag} {flags[flag]}")
    elif value is not None:
        raise UserError(f"{flag} takes no value.")
    _add_once(parsed.flags, flag, value or "")


def _add_once(found: dict[str, str], key: str, value: str) -> None:
    if key in found:
        raise UserError(f"{key} is given twice.")
    found[key] = value


def _listed(flags: Mapping[str, str]) -> str:
    return f"There are {', '.join(f'{flag} {value}'.strip() for flag, value in flags.items())}." if flags else ""

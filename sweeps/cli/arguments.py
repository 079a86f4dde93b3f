"""The arguments of a command: settings, flags, names, and overrides of experiments."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from iris.config import Config
from iris.errors import UserError, nearest

_SECTIONS = {*Config.__dataclass_fields__, "seeds"}
_LAUNCHER = "launcher."  # the one setting with keys of its own


@dataclass(frozen=True)
class Command:
    """A function MODULE:NAME that takes Arguments and returns the exit status, and the arguments it knows.

    `flags` maps each flag to the name of its value, "" for none. `rest` says what other arguments are: overrides of
    experiments, names (without equals signs), patterns (with or without), or mistakes.
    """

    function: str
    settings: Sequence[str] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    rest: Literal["overrides", "names", "patterns", ""] = ""


@dataclass(frozen=True)
class Arguments:
    """`flags` by name with their value ("" for those without), `settings` by key, the rest, and all as given."""

    command: Command
    flags: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)

    def under(self, key: str) -> list[str]:
        """Return the settings below a key: `launcher.workers=4` is `workers=4` under `launcher`."""
        return [f"{k.removeprefix(f'{key}.')}={v}" for k, v in self.settings.items() if k.startswith(f"{key}.")]

    def get(self, key: str, example: str) -> str:
        """Return a required setting. Raises UserError that shows the example."""
        if not self.settings.get(key):
            raise UserError(f"No {key} is given: {example}")
        return self.settings[key]


def parse(arguments: Sequence[str], command: Command) -> Arguments:
    """Sort the arguments of a command. Raises UserError for one that it does not know."""
    parsed = Arguments(command, given=list(arguments))
    remaining = iter(arguments)
    for argument in remaining:
        key, equals, value = argument.partition("=")
        if argument.startswith("-"):
            _add_flag(parsed, key, value if equals else None, remaining, command.flags)
        elif equals and (key in command.settings or (key.startswith(_LAUNCHER) and "launcher" in command.settings)):
            _add_once(parsed.settings, key, value)
        else:
            _check_rest(argument, command)
            parsed.rest.append(argument)
    return parsed


def _check_rest(argument: str, command: Command) -> None:
    """Refuse an argument of the wrong form, and what looks like a mistyped setting."""
    key, equals, _ = argument.partition("=")
    if (equals or argument.startswith("~")) and command.rest in ("overrides", "patterns"):
        if key not in _SECTIONS and (close := get_close_matches(key, command.settings, n=1, cutoff=0.8)):
            raise UserError(f"{key}: no such setting. Did you mean '{close[0]}'?")
    elif equals or command.rest not in ("names", "patterns"):
        known = [*command.flags, *(f"{key}=…" for key in command.settings)]
        expected = "write settings as key=value, such as study=embedded or seed=1."
        if command.rest != "overrides":
            expected = f"no such argument. Choose from {', '.join(known)}."
        raise UserError(f"'{argument}': {expected}{nearest(argument, known)}")


def _add_flag(
    parsed: Arguments, flag: str, value: str | None, remaining: Iterator[str], flags: Mapping[str, str]
) -> None:
    if flag not in flags:
        known = ", ".join(f"{name} {of}".strip() for name, of in flags.items())
        raise UserError(f"{flag}: no such flag.{f' Choose from {known}.' if known else ''}{nearest(flag, flags)}")
    if flags[flag]:
        if value is None:
            value = next(remaining, "")
            value = "" if value.startswith("-") or "=" in value else value  # another argument, not the value
        if not value:
            raise UserError(f"{flag} needs a {flags[flag]}: {flag} {flags[flag]}")
    elif value is not None:
        raise UserError(f"{flag} takes no value.")
    _add_once(parsed.flags, flag, value or "")


def _add_once(found: dict[str, str], key: str, value: str) -> None:
    if key in found:
        raise UserError(f"{key} is given twice.")
    found[key] = value

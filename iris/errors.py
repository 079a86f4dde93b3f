"""Errors that a user can act on, and the nearest valid name for a mistyped one."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """An error that the user can correct. The message says what is wrong, where, what is valid and what to do."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a sentence naming the choice closest to `name`, or the empty string when none is close."""
    match = get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__

"""Settings of an experiment: Hydra overrides, written from a command line or from the values of a YAML file."""

import re
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

_BARE = re.compile(r"[\w./%@+-]+", re.ASCII)
_OTHER_TYPE = re.compile(r"(null|true|false|nan|[+-]?inf|[+-]?[\d_.]+(e[+-]?\d+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Setting:
    """An override in Hydra's syntax; `key` is without its prefix (+, ++, ~)."""

    key: str
    text: str

    @property
    def value(self) -> str:
        """The text after the equals sign."""
        return self.text.partition("=")[2]

    def same(self, other: "Setting") -> bool:
        """Return whether two settings of one key are equal; numbers are compared by value."""
        return self.text == other.text or _canonical(self.value) == _canonical(other.value)


def of_text(text: str) -> Setting:
    """Make a setting of an override."""
    return Setting(text.partition("=")[0].lstrip("+~"), text)


def of_value(key: str, value: Any) -> Setting:
    """Make a setting of a YAML key and value."""
    return Setting(key.lstrip("+~"), f"{key}={_written(value)}")


def _written(value: Any) -> str:
    """Write a value such that Hydra's grammar reads the same value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_written(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{_written(v)}' for k, v in value.items())}}}"
    if not isinstance(value, str) or (_BARE.fullmatch(value) and not _OTHER_TYPE.fullmatch(value)):
        return str(value)
    return str(QuotedString(value, Quote.single).with_quotes())


def _canonical(value: str) -> str:
    try:
        return repr(float(value))
    except ValueError:
        return value

"""One `key=value` of an experiment: how a study file's values are written as Hydra overrides."""

import re
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

_BARE = re.compile(r"[\w./%@+-]+", re.ASCII)
_OTHER_TYPE = re.compile(r"(null|true|false|nan|[+-]?inf|[+-]?[\d_.]+(e[+-]?\d+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Setting:
    """An override in Hydra's words; `key` is without the signs that say how it is merged (+, ++, ~)."""

    key: str
    text: str

    @property
    def value(self) -> str:
        """What stands right of the equals sign."""
        return self.text.partition("=")[2]

    def same(self, other: "Setting") -> bool:
        """Whether two settings of one key give it the same value: 1e-6 and 0.000001 are one number."""
        return self.text == other.text or _canonical(self.value) == _canonical(other.value)


def of_text(text: str) -> Setting:
    """A setting from a command line or a list of overrides."""
    return Setting(text.partition("=")[0].lstrip("+~"), text)


def of_value(key: str, value: Any) -> Setting:
    """A setting from a YAML key and value."""
    return Setting(key.lstrip("+~"), f"{key}={_written(value)}")


def _written(value: Any) -> str:
    """A value as Hydra's grammar reads it back."""
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

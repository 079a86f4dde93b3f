"""Annotated examples and the two layouts they are parsed from.

*Messages*: one column of chat messages ({"role", "content"}), of which the first round counts: the prompt is the
optional system message and the first user message, the response is the first assistant message.
*Columns*: one text column with the prompt and one with the response. The columns' names are configurable.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """One row of a source, counted from 0. `problem` names why it cannot be used; its texts are then empty."""

    row: int
    user: str = ""
    response: str = ""
    system: str | None = None
    problem: str | None = None

    @property
    def id(self) -> str:
        """Return 16 hexadecimal digits of the content's SHA-256, equal for equal content in any source or layout."""
        return hashlib.sha256(json.dumps([self.system, self.user, self.response]).encode()).hexdigest()[:16]

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the prompt as chat messages."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]

    @property
    def prompt(self) -> str:
        """Return the prompt without a template: the messages' texts separated by blank lines."""
        return "\n\n".join(message["content"] for message in self.messages)


def from_columns(row: int, prompt: Any, response: Any, system: str | None = None) -> Example:
    """Return the example of one row with a prompt and a response, or its problem."""
    problem = _text_problem("prompt", prompt) or _text_problem("response", response)
    return Example(row, problem=problem) if problem else Example(row, prompt, response, system)


def from_messages(row: int, messages: Any) -> Example:
    """Return the example of the first round of chat messages, or its problem."""
    if messages is None:
        return Example(row, problem="missing value")
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages
    ):
        return Example(row, problem="not chat messages")
    system, round_ = (messages[0]["content"], messages[1:]) if _roles(messages[:1]) == ["system"] else ("", messages)
    if _roles(round_[:2]) != ["user", "assistant"]:
        return Example(row, problem="wrong role order")
    problem = _text_problem("system message", system)
    if problem in ("missing value", "not text"):
        return Example(row, problem=problem)
    return from_columns(row, round_[0]["content"], round_[1]["content"], None if problem else system)


def _roles(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [message["role"] for message in messages]


def _text_problem(name: str, value: Any) -> str | None:
    if value is None:
        return "missing value"
    if not isinstance(value, str):
        return "not text"
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as broken JSON escapes leave it
        return "not text"
    return None if value.strip() else f"empty {name}"

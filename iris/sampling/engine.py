"""Interface of rollout engines: requests, sampling settings and responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from iris.errors import UserError


@dataclass(frozen=True)
class Request:
    """A prompt (token ids), the seed and number of its samples, and the response length to expect (orders the work)."""

    prompt: Sequence[int]
    seed: int
    samples: int = 1
    hint: int = 0


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 takes the likeliest token; `top_p` < 1 keeps the nucleus (Holtzman et al., arXiv 1904.09751)."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_new_tokens >= 1):
            raise UserError(f"{self}: temperature must be ≥ 0, top_p above 0 and ≤ 1, max_new_tokens ≥ 1.")


@dataclass(frozen=True)
class Rollout:
    """A response: its token ids, the end-of-sequence token included when `finished`; otherwise the limit cut it."""

    tokens: list[int]
    finished: bool


def quiet(_: int) -> None:
    """Progress callback that tells nobody."""


class Engine(Protocol):
    """What samples responses. `name` and `version` go into the manifest of the rollouts."""

    name: str
    version: str

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] = quiet
    ) -> list[list[Rollout]]:
        """Responses as [request][sample]; `progress(n)` is called whenever n further responses have ended."""
        ...


def check_prompts(requests: Sequence[Request]) -> None:
    """Raise UserError for a prompt without tokens."""
    for index, request in enumerate(requests):
        if not request.prompt:
            raise UserError(f"Prompt {index} is empty: a response needs at least one token before it.")

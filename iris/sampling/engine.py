"""Interface of rollout engines: requests, sampling settings and responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from iris.errors import UserError
from iris.model.architecture import check_length

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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
    """Ignore progress."""


class Engine(Protocol):
    """A sampler of responses; `name` and `version` go into the manifest of the rollouts."""

    name: str
    version: str

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] = quiet
    ) -> list[list[Rollout]]:
        """Return responses as [request][sample]; call `progress(n)` whenever n further responses have ended."""
        ...


def check_requests(requests: Sequence[Request], sampling: Sampling, config: "PreTrainedConfig", tokens: int) -> None:
    """Raise UserError for an empty prompt, for ids beyond the model's `tokens`, and for texts beyond its context."""
    for index, request in enumerate(requests):
        if not request.prompt:
            raise UserError(f"Prompt {index} is empty: a response needs at least one token before it.")
        if min(request.prompt) < 0 or max(request.prompt) >= tokens:
            raise UserError(
                f"A prompt has tokens {min(request.prompt)}…{max(request.prompt)}, the model knows 0…{tokens - 1}: "
                "the tokenizer belongs to another model."
            )
    longest = max(len(request.prompt) for request in requests) + sampling.max_new_tokens
    check_length(config, longest, f"The longest prompt with max_new_tokens={sampling.max_new_tokens}")

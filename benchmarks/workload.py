"""Models from configuration and the mix of lengths of all benchmarks.

Prompts have 20 to 200 tokens and responses 20 to 400, log-normal; lengths of responses to one prompt correlate (0.6),
as those of annotations and samples do. Token ids are random: no result depends on them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from iris.model.packing import Row

PAD, EOS, FIRST = 0, 1, 4  # FIRST: the first ordinary token
POOL = 1024  # pairs that a long run sorts by length
STRATA = 3  # batches that stand for a sorted run
BETA, LEARNING_RATE, MAX_NORM = 0.1, 1e-4, 1.0  # of every training step; AdamW without weight decay


@dataclass(frozen=True)
class Shape:
    """A Qwen2 architecture with tied embeddings."""

    vocabulary: int
    hidden: int = 256
    intermediate: int = 688
    layers: int = 6
    heads: int = 4
    kv_heads: int = 4
    checkpointing: bool = False  # recompute activations, for us and for the peers, where they would not fit

    @property
    def layer_weights(self) -> int:
        """Weights of all layers, without norms and biases."""
        attention = 2 * self.hidden * (self.hidden + self.kv_heads * (self.hidden // self.heads))
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def weights(self) -> int:
        """All weights, the tied vocabulary counted once."""
        return self.layer_weights + self.vocabulary * self.hidden

    def config(self) -> Qwen2Config:
        """Return the configuration for transformers."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )


SHAPES = {
    "tiny": Shape(512, hidden=32, intermediate=64, layers=2),
    "v4k": Shape(4096),
    "v32k": Shape(32768),
    "v152k": Shape(151936, hidden=64, intermediate=176, layers=4),
    "m16k": Shape(16384, hidden=512, intermediate=1408, layers=8, heads=8, kv_heads=8),
    "qwen2.5-0.5b": Shape(151936, hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2),
    "qwen2.5-3b": Shape(151936, hidden=2048, intermediate=11008, layers=36, heads=16, kv_heads=2, checkpointing=True),
}


def device() -> torch.device:
    """Return the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model(shape: Shape, seed: int = 0) -> PreTrainedModel:
    """Return a model with random float32 weights; the policy has seed 0, references have others."""
    torch.manual_seed(seed)
    with device():
        made = Qwen2ForCausalLM(shape.config())
    made.eval()  # type: ignore[no-untyped-call]
    return made


def rows(count: int, vocabulary: int, responses: int = 2) -> list[Row]:
    """Return prompts with annotated, synthetic and proto responses."""
    random = np.random.default_rng(0)
    prompts = _lengths(70, random.normal(size=count), 200)
    common = np.sqrt(0.6) * random.normal(size=count)
    lengths = [_lengths(150, common + np.sqrt(0.4) * random.normal(size=count), 400) for _ in range(3)][:responses]

    def tokens(length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return random.integers(FIRST, vocabulary, length)

    return [Row(tokens(prompts[i]), [np.append(tokens(own[i] - 1), EOS) for own in lengths]) for i in range(count)]


def even_rows(count: int, vocabulary: int, length: int) -> list[Row]:
    """Return pairs of `length` packed tokens: one fifth prompt, two fifths each response."""
    random = np.random.default_rng(0)
    response = 2 * length // 5

    def tokens(size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return random.integers(FIRST, vocabulary, size)

    return [Row(tokens(length - 2 * response), [tokens(response), tokens(response)]) for _ in range(count)]


def _lengths(median: int, normal: np.ndarray[Any, np.dtype[np.float64]], most: int) -> list[int]:
    values: list[int] = np.clip(np.round(median * np.exp(0.7 * normal)), 20, most).astype(int).tolist()
    return values


def batches(pool: Sequence[Row], size: int, count: int) -> list[list[Row]]:
    """Return the first `count` batches in the random order of the pool."""
    rest: Iterator[Row] = iter(pool)
    return [list(islice(rest, size)) for _ in range(count)]


def sorted_batches(pool: Sequence[Row], size: int, rounds: int) -> list[list[Row]]:
    """Return batches that represent a long run over the pool sorted by length.

    The longest comes first and decides the peak memory; then, in every round, the same STRATA batches from short to
    long, each the middle of an equal share of the pool's tokens.
    """
    order = sorted(pool, key=padded)
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    tokens = np.array([sum(map(unpadded, part)) for part in parts])
    middles = (tokens.cumsum() - tokens / 2) / tokens.sum()
    chosen = [parts[np.abs(middles - (n + 0.5) / STRATA).argmin()] for n in range(STRATA)]
    return [parts[-1], *(chosen * rounds)]


def padded(row: Row) -> int:
    """Return the tokens of the row's longest sequence."""
    return len(row.prompt) + max(map(len, row.responses))


def unpadded(row: Row) -> int:
    """Return the tokens of all sequences, each with its prompt."""
    return len(row.responses) * len(row.prompt) + sum(map(len, row.responses))

"""Key/value cache of rollout slots, and the packed prefill that fills it."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from iris.errors import UserError

# Prompt tokens per prefill: enough to fill the matrix products, few enough for the quadratic mask of the packed row.
PREFILL_TOKENS = 512


class SlotCache(Cache):
    """Keys and values of `slots` rows in one tensor [layer, 2, slot, head, column, dimension] that never changes shape.

    `aim` sets where the next forward pass writes (one column per row) and how many columns it reads.
    """

    def __init__(self, slots: int, columns: int) -> None:
        super().__init__(layers=[])
        self.slots, self.columns = slots, columns
        self.states: Tensor | None = None

    def load(self, slot: int, prompt: Tensor) -> None:
        """Copy the states of a prompt [layer, 2, head, length, dimension] into a slot."""
        if self.states is None:
            layers, two, heads, _, dimension = prompt.shape
            # Zeros, not uninitialised memory: a masked column still enters the product as 0 · value.
            self.states = prompt.new_zeros(layers, two, self.slots, heads, self.columns, dimension)
        self.states[:, :, slot, :, : prompt.shape[-2]] = prompt

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of one slot to another."""
        assert self.states is not None
        self.states[:, :, target, :, :length] = self.states[:, :, source, :, :length]

    def aim(self, positions: Tensor, read: int) -> None:
        """Rows 0…n−1 write to column `positions` [n]; the first `read` columns are returned."""
        self.rows, self.positions, self.read = torch.arange(len(positions), device=positions.device), positions, read

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values [n, head, 1, dimension] of one step; return those so far [n, head, read, dimension]."""
        assert self.states is not None
        keys, values = self.states[layer_idx]
        keys[self.rows, :, self.positions] = key_states[:, :, 0]
        values[self.rows, :, self.positions] = value_states[:, :, 0]
        count = len(self.rows)
        return keys[:count, :, : self.read], values[:count, :, : self.read]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read in the next forward pass."""
        return self.read


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as the term that attention adds to its scores."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


def _groups(prompts: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Consecutive prompts in groups of at most PREFILL_TOKENS tokens; a longer prompt is a group of its own."""
    group: list[Sequence[int]] = []
    for prompt in prompts:
        if group and sum(map(len, group)) + len(prompt) > PREFILL_TOKENS:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def prefill(model: PreTrainedModel, prompts: Iterable[Sequence[int]]) -> Iterator[Tensor]:
    """Keys and values of each prompt [layer, 2, head, length, dimension], computed a group at a time on demand."""
    for group in _groups(prompts):
        lengths = [len(prompt) for prompt in group]
        owner = torch.arange(len(group)).repeat_interleave(torch.tensor(lengths)).to(model.device)
        cache = DynamicCache()
        model.get_decoder()(  # type: ignore[no-untyped-call]
            input_ids=torch.tensor([list(chain(*group))], device=model.device),
            attention_mask=additive_mask((owner[:, None] == owner).tril(), model.dtype)[None, None],
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(model.device),
            past_key_values=cache,
            use_cache=True,
        )
        yield from _states(model, cache).split_with_sizes(lengths, dim=-2)


def _states(model: PreTrainedModel, cache: DynamicCache) -> Tensor:
    """All layers of a cache with one row as [layer, 2, head, column, dimension]."""
    pairs = [torch.cat([keys, values]) for keys, values, *_ in cache]
    if len(pairs) != model.config.get_text_config().num_hidden_layers or len({pair.shape for pair in pairs}) > 1:
        raise unsupported(model)
    return torch.stack(pairs)


def unsupported(model: PreTrainedModel) -> UserError:
    return UserError(
        f"The rollout engine 'slots' needs the same key/value attention in every layer, and {type(model).__name__} "
        "has other layers. Set generate.engine=vllm for this model."
    )

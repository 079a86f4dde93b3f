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

States = list[Tensor]
"""Keys of layer 0, values of layer 0, keys of layer 1, …: [head, column, dimension] each."""


class SlotCache(Cache):
    """Keys and values of `slots` rows, [slot, head, column, dimension] for each layer, in tensors of fixed shape.

    `aim` sets where the next forward pass writes (one column per row) and how many columns it reads.
    """

    def __init__(self, slots: int, columns: int) -> None:
        super().__init__(layers=[])
        self.slots, self.columns = slots, columns
        self.states: list[Tensor] = []

    def load(self, slot: int, prompt: States) -> None:
        """Copy the states of a prompt into a slot."""
        if not self.states:
            # Zeros, not uninitialised memory: a masked column still enters the product as 0 · value.
            self.states = [part.new_zeros(self.slots, len(part), self.columns, part.shape[-1]) for part in prompt]
        for states, part in zip(self.states, prompt, strict=True):
            states[slot, :, : part.shape[1]] = part

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of one slot to another."""
        for states in self.states:
            states[target, :, :length] = states[source, :, :length]

    def aim(self, positions: Tensor, read: int) -> None:
        """Let rows 0…n−1 write to column `positions` [n] and read the first `read` columns."""
        self.rows, self.positions, self.read = torch.arange(len(positions), device=positions.device), positions, read

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values [n, head, 1, dimension] of one step; return those so far [n, head, read, dimension]."""
        keys, values = self.states[2 * layer_idx], self.states[2 * layer_idx + 1]
        keys[self.rows, :, self.positions] = key_states[:, :, 0]
        values[self.rows, :, self.positions] = value_states[:, :, 0]
        count = len(self.rows)
        return keys[:count, :, : self.read], values[:count, :, : self.read]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns read in the next forward pass."""
        return self.read


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a boolean mask as the term that attention adds to its scores."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


def prefill(model: PreTrainedModel, prompts: Iterable[Sequence[int]]) -> Iterator[States]:
    """Yield keys and values of each prompt, computed a packed group at a time on demand."""
    for group in _groups(prompts):
        lengths = [len(prompt) for prompt in group]
        owner = torch.arange(len(group)).repeat_interleave(torch.tensor(lengths)).to(model.device)
        cache = DynamicCache()
        model.get_decoder()(  # type: ignore[no-untyped-call]
            input_ids=torch.tensor([list(chain(*group))], device=model.device),
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(model.device),
            past_key_values=cache,
            use_cache=True,
            visible=additive_mask((owner[:, None] == owner).tril(), model.dtype)[None, None],
            places=torch.arange(len(owner), device=model.device)[None],
        )
        states = [part[0] for keys, values, *_ in cache for part in (keys, values)]
        if len(states) != 2 * model.config.get_text_config().num_hidden_layers:
            raise UserError(
                f"The rollout engine 'slots' needs keys and values of every layer of {type(model).__name__}."
            )
        yield from map(list, zip(*(part.split_with_sizes(lengths, dim=1) for part in states), strict=True))


def _groups(prompts: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Group consecutive prompts, at most PREFILL_TOKENS tokens together; a longer prompt is a group of its own."""
    group: list[Sequence[int]] = []
    for prompt in prompts:
        if group and sum(map(len, group)) + len(prompt) > PREFILL_TOKENS:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group

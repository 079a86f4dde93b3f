"""Continuous batching over slots for any `transformers` causal language model.

`SlotEngine` keeps a fixed number of slots, each with its own row of the key/value cache. A response that ends frees its
slot for the next prompt in the same step, so no row waits for the longest one (continuous batching, Orca, OSDI 2022).
Prompts are prefilled together, packed into one row, once for all their samples; the responses expected to be longest
start first.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from iris.errors import UserError
from iris.model.architecture import check_model
from iris.model.attention import SLOTS, parts
from iris.sampling.cache import SlotCache, States, additive_mask, prefill
from iris.sampling.draw import draw, uniforms
from iris.sampling.engine import Request, Rollout, Sampling, check_requests, quiet


@dataclass
class _Row:
    """An unfinished response."""

    request: int
    sample: int
    prompt: Sequence[int]
    uniforms: np.ndarray[Any, np.dtype[np.float64]]
    tokens: list[int] = field(default_factory=list)

    def step(self) -> tuple[int, int, float]:
        """Return the token to feed next, its position, and the uniform that decides the token after it."""
        count = len(self.tokens)
        last = self.tokens[-1] if count else self.prompt[-1]
        return last, len(self.prompt) + count - 1, float(self.uniforms[count])


@contextmanager
def _decoding(model: PreTrainedModel) -> Iterator[None]:
    """Set evaluation mode, no gradients and the attention of slots for a block, and restore them after it."""
    training = [module for module in model.modules() if module.training]
    attention = model.config._attn_implementation
    model.eval()  # type: ignore[no-untyped-call]
    model.set_attn_implementation(SLOTS)
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
        model.set_attn_implementation(attention)


class SlotEngine:
    """Continuous batching over `slots` rows for any `transformers` causal language model with a key/value cache.

    A response depends on its prompt, seed and sample index, and up to floating-point rounding on nothing else; the same
    requests on the same machine give the same tokens. Memory: `slots` × (longest prompt + max_new_tokens) positions of
    keys and values.
    """

    name = "slots"

    def __init__(self, model: PreTrainedModel, eos_token_ids: Sequence[int], slots: int = 64) -> None:
        if slots < 1:
            raise UserError(f"slots is {slots}; it must be 1 or more.")
        check_model(model)
        self.model, self.eos, self.slots = model, frozenset(eos_token_ids), slots
        self.version = f"1 (transformers {transformers.__version__}, torch {torch.__version__})"

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] = quiet
    ) -> list[list[Rollout]]:
        """See `Engine.generate`."""
        if not requests:
            return []
        tokens = len(cast(Tensor, self.model.get_input_embeddings().weight))
        check_requests(requests, sampling, self.model.config, tokens)
        columns = max(len(request.prompt) for request in requests) + sampling.max_new_tokens
        results: list[list[Rollout]] = [[Rollout([], False)] * request.samples for request in requests]
        with _decoding(self.model):
            for row in self._responses(requests, sampling, columns):
                results[row.request][row.sample] = Rollout(row.tokens, self._finished(row))
                progress(1)
        return results

    def _responses(self, requests: Sequence[Request], sampling: Sampling, columns: int) -> Iterator[_Row]:
        """Yield the responses in the order in which they end."""
        slots = min(self.slots, sum(request.samples for request in requests))
        queue = _queue(self.model, requests, sampling, slots)
        cache = SlotCache(slots, columns)
        rows: list[_Row] = []
        for slot, (row, prompt) in zip(range(slots), queue, strict=False):
            cache.load(slot, prompt)
            rows.append(row)
        while rows:
            for row, token in zip(rows, self._step(cache, rows, sampling), strict=True):
                row.tokens.append(token)
            # From the last slot down, so that the row that closes a gap is never one that has itself just ended.
            for slot in reversed(range(len(rows))):
                row = rows[slot]
                if self._finished(row) or len(row.tokens) == sampling.max_new_tokens:
                    yield row
                    _replace(cache, rows, slot, next(queue, None))

    def _finished(self, row: _Row) -> bool:
        return row.tokens[-1] in self.eos

    def _step(self, cache: SlotCache, rows: list[_Row], sampling: Sampling) -> list[int]:
        """Return the next token of every row."""
        fed, places, chances = zip(*(row.step() for row in rows), strict=True)
        device = self.model.device
        positions = torch.tensor(places, device=device)
        visible = torch.arange(max(places) + 1, device=device) <= positions[:, None]
        cache.aim(positions, visible.shape[1])
        logits = self.model(
            input_ids=torch.tensor(fed, device=device)[:, None],
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
            visible=additive_mask(visible, self.model.dtype)[:, None, None],
            places=positions[:, None],
            parts=parts([place + 1 for place in places], device),
        ).logits[:, -1]
        tokens: list[int] = draw(logits, torch.tensor(chances, dtype=torch.float64, device=device), sampling).tolist()
        if -1 in tokens:
            raise UserError(
                f"The logits for prompt {rows[tokens.index(-1)].request} are not finite: the policy is broken. "
                "Train it again with a lower learning rate, or take another checkpoint."
            )
        return tokens


def _replace(cache: SlotCache, rows: list[_Row], slot: int, arrival: tuple[_Row, States] | None) -> None:
    """Put the next response into a slot, or move the last row into it: active rows stay the first ones."""
    if arrival is not None:
        rows[slot] = arrival[0]
        cache.load(slot, arrival[1])
        return
    last = rows.pop()
    if slot < len(rows):
        rows[slot] = last
        cache.move(len(rows), slot, len(last.prompt) + len(last.tokens) - 1)


def _order(requests: Sequence[Request], slots: int) -> list[int]:
    """Order requests by the expected response length, and those that start at once by the length of their prompts.

    Both descend: neighbours then read about as many columns, and the last row, which fills gaps, reads fewest.
    """
    order = sorted(range(len(requests)), key=lambda index: -requests[index].hint)
    first = 1 + bisect_left(list(accumulate(requests[index].samples for index in order)), slots)
    return sorted(order[:first], key=lambda index: -len(requests[index].prompt)) + order[first:]


def _queue(
    model: PreTrainedModel, requests: Sequence[Request], sampling: Sampling, slots: int
) -> Iterator[tuple[_Row, States]]:
    """Yield every response to write with the states of its prompt."""
    order = _order(requests, slots)
    prompts = prefill(model, (requests[index].prompt for index in order))
    for index, states in zip(order, prompts, strict=True):
        request = requests[index]
        for sample in range(request.samples):
            yield _Row(index, sample, request.prompt, uniforms(request.seed, sample, sampling.max_new_tokens)), states

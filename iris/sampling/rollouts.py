"""Sampling of responses: one interface, and the engine that runs any `transformers` causal language model.

`SlotEngine` keeps a fixed number of slots, each with its own row of the key/value cache. A response that ends frees its
slot for the next prompt in the same step, so no row waits for the longest one (continuous batching, Orca, OSDI 2022).
Prompts are prefilled together, packed into one row, once for all their samples; the responses expected to be longest
start first.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from iris.errors import UserError
from iris.model.attention import SLOTS, parts

# Prompt tokens per prefill: enough to fill the matrix products, few enough for the quadratic mask of the packed row.
PREFILL_TOKENS = 512
# Width of the blocks whose masses are summed in float32; the sums over blocks and inside one block are float64.
BLOCK = 512


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


def uniforms(seed: int, sample: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The uniforms in [0, 1) that decide the tokens of one response: a function of its seed and sample index alone."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, sample], np.uint64))).random(count)


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The cell [n] of cumulated `weights` [n, m] (float64) that `uniform` [n] lies in, and where in it, in [0, 1)."""
    cdf = weights.cumsum(-1)
    # Below the total for every uniform below 1, rounding included: the cell found has mass.
    target = uniform[:, None] * cdf[:, -1:]
    index = torch.searchsorted(cdf, target, right=True).clamp(max=weights.shape[-1] - 1)
    mass = weights.gather(-1, index)
    rest = ((target - cdf.gather(-1, index) + mass) / mass).clamp(0, 1 - 2**-53)
    return index[:, 0], rest[:, 0]


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """`scores` [n, V] with −∞ outside the smallest set of likeliest tokens whose mass reaches `top_p`."""
    probabilities, order = torch.sort(scores.softmax(-1), stable=True, dim=-1, descending=True)
    before = probabilities.double().cumsum(-1) - probabilities
    outside = torch.empty_like(order, dtype=torch.bool).scatter_(-1, order, before >= top_p)
    return scores.masked_fill(outside, -torch.inf)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """One token per row by inversion of the cumulative distribution: `logits` [n, V], `uniform` [n] float64 → [n].

    −1 where the logits of a row are not finite. The uniform picks a block of tokens and what is left of it picks the
    token in the block, so the only rounding is that of the float32 softmax weights, whatever the vocabulary's size.
    """
    if sampling.temperature == 0:
        return torch.where(logits.amax(-1).isfinite(), logits.argmax(-1), -1)
    scores = logits.float() / sampling.temperature
    if sampling.top_p < 1:
        scores = _nucleus(scores, sampling.top_p)
    peak = scores.amax(-1, keepdim=True)
    rows, vocabulary = scores.shape
    blocks = -(-vocabulary // BLOCK)
    weights = (scores - peak).exp_()
    if blocks * BLOCK > vocabulary:
        weights = F.pad(weights, (0, blocks * BLOCK - vocabulary))
    weights = weights.view(rows, blocks, BLOCK)
    block, rest = _invert(weights.sum(-1).double(), uniform)
    token, _ = _invert(weights[torch.arange(rows, device=block.device), block].double(), rest)
    return torch.where(peak[:, 0].isfinite(), block * BLOCK + token, -1)


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


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
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
            attention_mask=_additive((owner[:, None] == owner).tril(), model.dtype)[None, None],
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None].to(model.device),
            past_key_values=cache,
            use_cache=True,
        )
        yield from _states(model, cache).split_with_sizes(lengths, dim=-2)


def _states(model: PreTrainedModel, cache: DynamicCache) -> Tensor:
    """All layers of a cache with one row as [layer, 2, head, column, dimension]."""
    pairs = [torch.cat([keys, values]) for keys, values, *_ in cache]
    if len(pairs) != model.config.get_text_config().num_hidden_layers or len({pair.shape for pair in pairs}) > 1:
        raise _unsupported(model)
    return torch.stack(pairs)


def _unsupported(model: PreTrainedModel) -> UserError:
    return UserError(
        f"The rollout engine 'slots' needs the same key/value attention in every layer, and {type(model).__name__} "
        "has other layers. Set generate.engine=vllm for this model."
    )


@dataclass
class _Row:
    """A response that is being written."""

    request: int
    sample: int
    prompt: Sequence[int]
    uniforms: np.ndarray[Any, np.dtype[np.float64]]
    tokens: list[int] = field(default_factory=list)

    def step(self) -> tuple[int, int, float]:
        """The token to feed next, its position, and the uniform that decides the token after it."""
        count = len(self.tokens)
        last = self.tokens[-1] if count else self.prompt[-1]
        return last, len(self.prompt) + count - 1, float(self.uniforms[count])


@contextmanager
def _decoding(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients, and an attention that takes explicit masks; all as before afterwards."""
    training = [module for module in model.modules() if module.training]
    attention = model.config._attn_implementation
    model.eval()  # type: ignore[no-untyped-call]
    model.set_attn_implementation("eager" if attention == "eager" else SLOTS)
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
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
        if kinds - {"full_attention", "sliding_attention"} or not model._supports_attention_backend:
            raise _unsupported(model)
        self.model, self.eos, self.slots = model, frozenset(eos_token_ids), slots
        self.version = f"1 (transformers {transformers.__version__}, torch {torch.__version__})"

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] = quiet
    ) -> list[list[Rollout]]:
        """See `Engine.generate`."""
        if not requests:
            return []
        columns = _check(self.model, requests, sampling)
        results: list[list[Rollout]] = [[Rollout([], False)] * request.samples for request in requests]
        with _decoding(self.model):
            for row in self._responses(requests, sampling, columns):
                results[row.request][row.sample] = Rollout(row.tokens, self._finished(row))
                progress(1)
        return results

    def _responses(self, requests: Sequence[Request], sampling: Sampling, columns: int) -> Iterator[_Row]:
        """The responses in the order in which they end."""
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
        """Whether the response has reached its end of sequence."""
        return row.tokens[-1] in self.eos

    def _step(self, cache: SlotCache, rows: list[_Row], sampling: Sampling) -> list[int]:
        """The next token of every row."""
        fed, places, chances = zip(*(row.step() for row in rows), strict=True)
        device = self.model.device
        positions = torch.tensor(places, device=device)
        visible = torch.arange(max(places) + 1, device=device) <= positions[:, None]
        cache.aim(positions, visible.shape[1])
        eager = self.model.config._attn_implementation == "eager"  # which takes no further arguments
        logits = self.model(
            input_ids=torch.tensor(fed, device=device)[:, None],
            attention_mask=_additive(visible, self.model.dtype)[:, None, None],
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
            **({} if eager else {"parts": parts([place + 1 for place in places], device)}),
        ).logits[:, -1]
        tokens: list[int] = draw(logits, torch.tensor(chances, dtype=torch.float64, device=device), sampling).tolist()
        if -1 in tokens:
            raise UserError(
                f"The logits for prompt {rows[tokens.index(-1)].request} are not finite: the policy is broken. "
                "Train it again with a lower learning rate, or take another checkpoint."
            )
        return tokens


def _replace(cache: SlotCache, rows: list[_Row], slot: int, arrival: tuple[_Row, Tensor] | None) -> None:
    """Put the next response into a slot, or close the gap with the last row: active rows stay the first ones."""
    if arrival is not None:
        rows[slot] = arrival[0]
        cache.load(slot, arrival[1])
        return
    last = rows.pop()
    if slot < len(rows):
        rows[slot] = last
        cache.move(len(rows), slot, len(last.prompt) + len(last.tokens) - 1)


def _order(requests: Sequence[Request], slots: int) -> list[int]:
    """The longest responses first; of those that start at once the longest prompts: neighbours see as many columns.

    Descending, because the row that closes a gap is the last one, and must not be longer than its new neighbours.
    """
    order = sorted(range(len(requests)), key=lambda index: -requests[index].hint)
    first = 1 + bisect_left(list(accumulate(requests[index].samples for index in order)), slots)
    return sorted(order[:first], key=lambda index: -len(requests[index].prompt)) + order[first:]


def _queue(
    model: PreTrainedModel, requests: Sequence[Request], sampling: Sampling, slots: int
) -> Iterator[tuple[_Row, Tensor]]:
    """All responses to write with the states of their prompts."""
    order = _order(requests, slots)
    prompts = prefill(model, (requests[index].prompt for index in order))
    for index, states in zip(order, prompts, strict=True):
        request = requests[index]
        for sample in range(request.samples):
            yield _Row(index, sample, request.prompt, uniforms(request.seed, sample, sampling.max_new_tokens)), states


def _check(model: PreTrainedModel, requests: Sequence[Request], sampling: Sampling) -> int:
    """Length of the longest prompt with a response up to the limit; UserError where the model cannot go that far."""
    check_prompts(requests)
    known = range(len(cast(Tensor, model.get_input_embeddings().weight)))
    for request in requests:
        if min(request.prompt) not in known or max(request.prompt) not in known:
            raise UserError(
                f"A prompt has tokens {min(request.prompt)}…{max(request.prompt)}, the model knows 0…{known[-1]}: "
                "the tokenizer belongs to another model."
            )
    longest = max(len(request.prompt) for request in requests) + sampling.max_new_tokens
    for name in ("max_position_embeddings", "sliding_window"):
        bound = getattr(model.config.get_text_config(), name, None)
        if bound and longest > bound:
            raise UserError(
                f"The longest prompt and max_new_tokens={sampling.max_new_tokens} make {longest} tokens, more than the "
                f"model's {name}={bound}. Shorten the prompts or lower max_new_tokens."
            )
    return longest

"""Log-probabilities of labels from hidden states through the output projection, a chunk of positions at a time.

All logits never exist together: a chunk is projected, used and overwritten. `fused_logps` asks for the coefficients of
the loss as soon as rows are complete and takes the gradient while their logits are still there, so that every logit is
computed once (head and loss, forward and backward, in one pass as in Liger Kernel, arXiv 2410.10989). That serves any
loss that decomposes over rows, and a loss whose coefficients are known up to a factor for each block of responses:
gradients of blocks are kept apart until the factors are known.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iris.model.packing import Packed

# Most positions and most logits of a chunk, by device. On a CPU all responses of a sample should fit, because
# chunks that complete a sample together are projected twice (128 MiB); on a GPU each chunk also costs a sweep over the
# weight's gradient (1 GiB).
CHUNK = {"cpu": (1536, 2**25), "cuda": (2**14, 2**28)}

Coefficients = Callable[[Tensor, slice], Tensor]
"""From log-probabilities [r] of the responses that the slice names to d loss / d log-probability [r]."""


class _Head:
    """Hidden [M, d], weight [V, d], bias [V] or None, labels [M]; gradients of the first three where `wanted`.

    Sums over chunks accumulate in float32 and apart for each block; rows of the hidden gradient are written once.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        wanted: tuple[bool, ...] = (False, False, False),
        blocks: int = 1,
    ) -> None:
        self.hidden, self.weight, self.bias, self.labels = hidden, weight.to(hidden.dtype), bias, labels
        positions, logits = CHUNK[hidden.device.type]
        self.size = max(1, min(positions, logits // len(weight)))
        self.buffer = hidden.new_empty(min(self.size, len(hidden)), len(weight), dtype=torch.float32)
        self.total, self.greedy = hidden.new_empty(0), hidden.new_empty(0, dtype=torch.bool)
        sums = [
            [torch.zeros_like(source, dtype=torch.float32) for _ in range(blocks)]
            if source is not None and want
            else []
            for source, want in zip((weight, bias), wanted[1:], strict=True)
        ]
        self.hidden_gradient = torch.zeros_like(hidden) if wanted[0] else None
        self.weight_sums, self.bias_sums = sums

    def chunks(self, labels: slice) -> list[slice]:
        return [slice(i, min(i + self.size, labels.stop)) for i in range(labels.start, labels.stop, self.size)]

    def forward(self, chunk: slice) -> Tensor:
        """Return log-probabilities [c] of the labels of a chunk, float32.

        Leaves the exponentials and their sums for `backward`, and in `greedy` [c] which labels are the likeliest.
        """
        logits = self._project(self.hidden[chunk])
        top = logits.amax(1, keepdim=True)
        target = logits.gather(1, self.labels[chunk, None])
        self.greedy = (target == top)[:, 0]
        self.total = logits.sub_(top).exp_().sum(1, keepdim=True)
        return (target - top - self.total.log())[:, 0]

    def backward(self, chunk: slice, coefficients: Tensor, block: int = 0) -> None:
        """Add the gradient of `coefficients` [c] · log-probabilities, for the chunk that `forward` took last."""
        # A coefficient scales its row on the narrow side of the products: one sweep less over the logits.
        logits, scale = self.buffer[: len(coefficients)], -coefficients[:, None] / self.total
        logits[torch.arange(len(logits)), self.labels[chunk]] -= self.total[:, 0]
        product = logits.to(self.hidden.dtype)
        if self.hidden_gradient is not None:
            torch.mm(product, self.weight, out=self.hidden_gradient[chunk])
            self.hidden_gradient[chunk] *= scale
        scaled = (self.hidden[chunk] * scale).to(product.dtype)
        if self.weight_sums and product.dtype == torch.float32:
            self.weight_sums[block].addmm_(product.t(), scaled)
        elif self.weight_sums:
            self.weight_sums[block] += product.t() @ scaled
        if self.bias_sums:
            self.bias_sums[block] += (scale.t() @ logits)[0]

    def gradients(self, factors: Tensor, sizes: list[int], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden, weight and bias, each block (of `sizes` positions) times its factor.

        To be called once: they are scaled in place.
        """
        if self.hidden_gradient is not None:
            for part, factor in zip(torch.split(self.hidden_gradient, sizes), factors, strict=True):
                part.mul_(factor)
        sums = [_weighted(parts, factors) for parts in (self.weight_sums, self.bias_sums)]
        return self.hidden_gradient, *(None if total is None else total.to(dtype) for total in sums)

    def _project(self, hidden: Tensor) -> Tensor:
        logits = self.buffer[: len(hidden)]
        if hidden.dtype == torch.float32:
            torch.mm(hidden, self.weight.t(), out=logits)
        else:  # low-precision products accumulate in float32: keep that precision
            logits.copy_(torch.mm(hidden, self.weight.t(), out_dtype=torch.float32))
        return logits if self.bias is None else logits.add_(self.bias)


def _weighted(parts: list[Tensor], factors: Tensor) -> Tensor | None:
    """Return Σ factor · part, in the first part's memory."""
    if not parts:
        return None
    total = parts[0].mul_(factors[0])
    for part, factor in zip(parts[1:], factors[1:], strict=True):
        total.addcmul_(part, factor)
    return total


class _FusedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed, coefficients: Coefficients
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, bias, packed.labels, ctx.needs_input_grad[:3], len(packed.blocks))
            products = hidden.new_zeros(len(packed.blocks), dtype=torch.float32)
            logps = [_complete(head, packed, *group, coefficients, products) for group in _groups(packed, head.size)]
        ends = [0, *accumulate(packed.response_lengths)]
        stops = [0, *accumulate(packed.blocks)]
        ctx.sizes = [ends[stop] - ends[start] for start, stop in pairwise(stops)]
        ctx.head, ctx.dtype = head, weight.dtype
        del head.buffer
        values = torch.cat(logps)
        ctx.mark_non_differentiable(values)
        return values, products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, factors: Tensor) -> tuple[Tensor | None, ...]:
        head, ctx.head = ctx.head, None
        return *head.gradients(factors, ctx.sizes, ctx.dtype), None, None


def _groups(packed: Packed, size: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield (block, responses, labels) of consecutive units that fit a chunk together, or of one that is longer."""
    ends = [0, *accumulate(packed.response_lengths)]
    stops = list(accumulate(packed.blocks))
    first = last = 0
    for responses in packed.units:
        if first < last and (ends[last + responses] - ends[first] > size or last in stops):
            yield bisect_right(stops, first), slice(first, last), slice(ends[first], ends[last])
            first = last
        last += responses
    yield bisect_right(stops, first), slice(first, last), slice(ends[first], ends[last])


def _complete(
    head: _Head, packed: Packed, block: int, responses: slice, labels: slice, of: Coefficients, products: Tensor
) -> Tensor:
    """Return log-probabilities [r] of these responses; add to the gradients and to the block's sum of products."""
    chunks = head.chunks(labels)
    logps = _sums(torch.cat([head.forward(chunk) for chunk in chunks]), packed.response_lengths[responses])
    coefficients = of(logps, responses)
    for chunk in chunks:
        if len(chunks) > 1:
            head.forward(chunk)
        head.backward(chunk, coefficients[packed.owner[chunk] - responses.start], block)
    products[block] += coefficients @ logps
    return logps


def _sums(values: Tensor, lengths: tuple[int, ...]) -> Tensor:
    # A scatter would sum in any order on a GPU; this gives the same bits every time.
    return torch.stack([part.sum() for part in torch.split(values, list(lengths))])


@torch.no_grad()
def response_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed) -> tuple[Tensor, Tensor]:
    """Return log π(response | prompt), float32 [R], and whether each response is the greedy one, bool [R].

    `hidden` [M, d] holds the states at `packed.predict`. Chunks are those of `fused_logps`, so that values agree.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        head = _Head(hidden, weight, bias, packed.labels)
        chunks = [chunk for *_, labels in _groups(packed, head.size) for chunk in head.chunks(labels)]
        logps, greedy = zip(*((head.forward(chunk), head.greedy) for chunk in chunks), strict=True)
    lengths = list(packed.response_lengths)
    return _sums(torch.cat(logps), packed.response_lengths), torch.stack(
        [part.all() for part in torch.split(torch.cat(greedy), lengths)]
    )


def fused_logps(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed, coefficients: Coefficients
) -> tuple[Tensor, Tensor]:
    """Return the values of `response_logps` [R], and for each block Σ coefficient · log-probability, with the gradient.

    `coefficients` is called once for each group of complete units, in order; what it returns is constant to the
    gradient. The sums [blocks] can be differentiated once.
    """
    logps, products = _FusedLogps.apply(hidden, weight, bias, packed, coefficients)  # type: ignore[no-untyped-call]
    return logps, products


def coefficients_of(loss: Callable[[Tensor, slice], Tensor]) -> Coefficients:
    """Return the coefficients of a loss that is a sum over rows.

    `loss` maps log-probabilities [r] of complete rows (the responses that the slice names) to these rows' losses.
    """

    def coefficients(logps: Tensor, responses: slice) -> Tensor:
        with torch.enable_grad():
            leaf = logps.detach().requires_grad_()
            return torch.autograd.grad(loss(leaf, responses).sum(), leaf)[0]

    return coefficients

"""Log-probabilities of labels from hidden states through the output projection, a chunk of positions at a time.

All logits never exist together: a chunk is projected, used and overwritten. Two ways lead to the gradient.
`token_logps` is an ordinary differentiable function that projects each chunk again in the backward pass.
`fused_logps` asks for the coefficients of the loss as soon as rows are complete and takes the gradient while their
logits are still there, so that every logit is computed once (head and loss, forward and backward, in one pass as in
Liger Kernel, arXiv 2410.10989; here for any loss that decomposes over rows).
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iris.packing import Packed

# Most positions and most logits of a chunk, by device. 512 positions make a CPU's products efficient while their logits
# stay near its caches; on a GPU each chunk costs a sweep over the weight's gradient, so chunks are long (1 GiB).
CHUNK = {"cpu": (512, 2**24), "cuda": (2**14, 2**28)}

Coefficients = Callable[[Tensor, slice], Tensor]
"""From log-probabilities [r] of the responses that the slice names to d loss / d log-probability [r]."""


class _Head:
    """Hidden [M, d], weight [V, d], bias [V] or None, labels [M]; gradients of the first three where `wanted`."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, wanted: tuple[bool, ...] = ()
    ) -> None:
        self.hidden, self.weight, self.bias, self.labels = hidden, weight.to(hidden.dtype), bias, labels
        positions, logits = CHUNK[hidden.device.type]
        self.size = max(1, min(positions, logits // len(weight)))
        self.buffer = hidden.new_empty(min(self.size, len(hidden)), len(weight), dtype=torch.float32)
        self.total = hidden.new_empty(0)
        # Sums over chunks accumulate in float32; rows of the hidden gradient are written once.
        dtypes = (hidden.dtype, torch.float32, torch.float32)
        self.gradients = [
            torch.zeros_like(source, dtype=dtype) if source is not None and want else None
            for source, dtype, want in zip((hidden, weight, bias), dtypes, wanted, strict=False)
        ]

    def chunks(self, labels: slice) -> list[slice]:
        return [slice(i, min(i + self.size, labels.stop)) for i in range(labels.start, labels.stop, self.size)]

    def forward(self, chunk: slice) -> Tensor:
        """Log-probabilities [c] of the labels of a chunk. Leaves its exponentials and their sums for `backward`."""
        logits = self._project(self.hidden[chunk])
        top = logits.amax(1, keepdim=True)
        target = logits.gather(1, self.labels[chunk, None])
        self.total = logits.sub_(top).exp_().sum(1, keepdim=True)
        return (target - top - self.total.log())[:, 0]

    def backward(self, chunk: slice, coefficients: Tensor) -> None:
        """Add the gradient of `coefficients` [c] · log-probabilities, for the chunk that `forward` saw last."""
        logits = self.buffer[: len(coefficients)]
        logits.mul_(-coefficients[:, None] / self.total)
        logits[torch.arange(len(logits)), self.labels[chunk]] += coefficients
        hidden, weight, bias = self.gradients
        product = logits.to(self.hidden.dtype)
        if hidden is not None:
            torch.mm(product, self.weight, out=hidden[chunk])
        if weight is not None and product.dtype == weight.dtype:
            weight.addmm_(product.t(), self.hidden[chunk])
        elif weight is not None:
            weight += product.t() @ self.hidden[chunk]
        if bias is not None:
            bias += logits.sum(0)

    def result(self, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """Gradients of hidden, weight and bias, the latter two as `dtype`."""
        hidden, *parameters = self.gradients
        return hidden, *(None if values is None else values.to(dtype) for values in parameters)

    def _project(self, hidden: Tensor) -> Tensor:
        logits = self.buffer[: len(hidden)]
        if hidden.dtype == torch.float32:
            torch.mm(hidden, self.weight.t(), out=logits)
        else:  # low-precision products accumulate in float32: keep that precision
            logits.copy_(torch.mm(hidden, self.weight.t(), out_dtype=torch.float32))
        return logits if self.bias is None else logits.add_(self.bias)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, labels)
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, bias, labels)
            return torch.cat([head.forward(chunk) for chunk in head.chunks(slice(0, len(labels)))])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, bias, labels, ctx.needs_input_grad[:3])
            for chunk in head.chunks(slice(0, len(labels))):
                head.forward(chunk)
                head.backward(chunk, gradient[chunk])
            return *head.result(weight.dtype), None


class _FusedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed, coefficients: Coefficients
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(hidden, weight, bias, packed.labels, ctx.needs_input_grad[:3])
            parts = [_complete(head, packed, *rows, coefficients) for rows in _groups(packed, head.size)]
            logps, products = (torch.cat(part) for part in zip(*parts, strict=True))
            ctx.gradients = head.result(weight.dtype)
        ctx.mark_non_differentiable(logps)
        return logps, products.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, so good for one backward pass only
        return *(None if values is None else values.mul_(gradient) for values in gradients), None, None


def _groups(packed: Packed, size: int) -> Iterator[tuple[slice, slice]]:
    """Consecutive rows that fit a chunk together, or one row that is longer: slices of responses and of labels."""
    ends = [0, *accumulate(packed.response_lengths)]
    first = last = 0
    for responses in packed.row_sizes:
        if first < last and ends[last + responses] - ends[first] > size:
            yield slice(first, last), slice(ends[first], ends[last])
            first = last
        last += responses
    yield slice(first, last), slice(ends[first], ends[last])


def _complete(
    head: _Head, packed: Packed, responses: slice, labels: slice, coefficients: Coefficients
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [r] of these responses and their products with the coefficients; adds to the gradients."""
    chunks = head.chunks(labels)
    logps = _sums(torch.cat([head.forward(chunk) for chunk in chunks]), packed.response_lengths[responses])
    factors = coefficients(logps, responses)
    for chunk in chunks:
        if len(chunks) > 1:
            head.forward(chunk)
        head.backward(chunk, factors[packed.owner[chunk] - responses.start])
    return logps, factors * logps


def _sums(values: Tensor, lengths: tuple[int, ...]) -> Tensor:
    # A scatter would sum in any order on a GPU; this gives the same bits every time.
    return torch.stack([part.sum() for part in torch.split(values, list(lengths))])


def response_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed) -> Tensor:
    """log π(response | prompt), float32 [R], of hidden [M, d] at `packed.predict`; differentiable."""
    logps: Tensor = _TokenLogps.apply(hidden, weight, bias, packed.labels)  # type: ignore[no-untyped-call]
    return _sums(logps, packed.response_lengths)


def fused_logps(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed, coefficients: Coefficients
) -> tuple[Tensor, Tensor]:
    """`response_logps` [R] as constants, and a scalar Σ coefficient · log-probability that carries the gradient.

    `coefficients` is called once for each group of complete rows, in order; what it returns is constant to the
    gradient. The scalar can be differentiated once.
    """
    logps, product = _FusedLogps.apply(hidden, weight, bias, packed, coefficients)  # type: ignore[no-untyped-call]
    return logps, product


def coefficients_of(loss: Callable[[Tensor, slice], Tensor]) -> Coefficients:
    """The coefficients of a loss that is a sum over rows: `loss` maps log-probabilities [r] of complete rows (the
    responses that the slice names) to the sum, or the terms, of these rows' losses.
    """

    def coefficients(logps: Tensor, responses: slice) -> Tensor:
        with torch.enable_grad():
            leaf = logps.detach().requires_grad_()
            return torch.autograd.grad(loss(leaf, responses).sum(), leaf)[0]

    return coefficients

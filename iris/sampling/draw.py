"""Draw tokens from logits by inversion of the cumulative distribution."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iris.sampling.engine import Sampling

# Width of the blocks whose masses are summed in float32; the sums over blocks and inside one block are float64.
BLOCK = 512


def uniforms(seed: int, sample: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the uniforms in [0, 1) that decide one response's tokens, from its seed and sample index alone."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, sample], np.uint64))).random(count)


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bin [n] of cumulated `weights` [n, m] (float64) at `uniform` [n], and the place in it, in [0, 1)."""
    cdf = weights.cumsum(-1)
    # Below the total for every uniform below 1, rounding included: the bin found has mass.
    target = uniform[:, None] * cdf[:, -1:]
    index = torch.searchsorted(cdf, target, right=True).clamp(max=weights.shape[-1] - 1)
    mass = weights.gather(-1, index)
    rest = ((target - cdf.gather(-1, index) + mass) / mass).clamp(0, 1 - 2**-53)
    return index[:, 0], rest[:, 0]


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Return `scores` [n, V] with −∞ outside the smallest set of likeliest tokens whose mass reaches `top_p`."""
    probabilities, order = torch.sort(scores.softmax(-1), stable=True, dim=-1, descending=True)
    before = probabilities.double().cumsum(-1) - probabilities
    outside = torch.empty_like(order, dtype=torch.bool).scatter_(-1, order, before >= top_p)
    return scores.masked_fill(outside, -torch.inf)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Draw one token per row by inversion of the cumulative distribution: `logits` [n, V], `uniform` [n] float64 → [n].

    Returns −1 where the logits of a row are not finite. The uniform picks a block of tokens and its rest the token in
    the block, so the only rounding is that of the float32 softmax weights, whatever the vocabulary's size.
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

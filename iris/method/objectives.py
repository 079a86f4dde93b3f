"""The objectives: pure functions from log-probabilities (or their ratios) to losses, one per method.

Notation. `real = log π_θ(y|x)` of an annotated response, `synthetic = log π_θ(y'|x)` of a generated one and
`proto = log π_θ(y⁰|x)` of one that π₀ generated; natural logarithms, summed over response tokens. A *ratio* is the
same minus its value under a frozen reference policy: `real_ratio = log π_θ(y|x) − log π_ref(y|x)`. B counts the samples
of the **global** batch. Every function is differentiable in its tensors, keeps their dtype and device and has no state:
training gathers the [B] vectors, differentiates here, and carries ∂loss/∂log-probability back into each micro-batch.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# Orders this close to a limit are taken at it: for |x| ≤ 1e4 both differ by less than float64 resolves, and 1/k stays
# far from overflow in float32.
_LIMIT = 1e-20


def sft(real: Tensor, *, tokens: int) -> Tensor:
    """Supervised fine-tuning: −real / tokens, [B] → [B].

    To be **summed** over the global batch, not averaged like the others: with `tokens` the number of response tokens in
    the global batch, the sum is the mean negative log-likelihood of a token.
    """
    return -real / tokens


def spin(real_ratio: Tensor, synthetic_ratio: Tensor, *, scale: float = 0.1) -> Tensor:
    """SPIN: softplus(−scale·(real_ratio − synthetic_ratio)), [B], [B] → [B]. arXiv 2401.01335."""
    return _softplus(-scale * (real_ratio - synthetic_ratio))


def space(real_ratio: Tensor, synthetic_ratio: Tensor, *, mu: float = 1.0) -> Tensor:
    """SPACE: softplus(log μ − real_ratio) + μ·softplus(synthetic_ratio − log μ), [B], [B] → [B]. arXiv 2512.07175.

    The paper's −log σ_μ(real_ratio) − μ·log σ_{1/μ}(−synthetic_ratio) with σ_μ(z) = 1/(1 + μ·e^{−z}). μ > 0 is also the
    number of synthetic samples per annotated one.
    """
    log_mu = math.log(mu)
    return _softplus(log_mu - real_ratio) + mu * _softplus(synthetic_ratio - log_mu)


def spif(real_ratio: Tensor, synthetic_ratio: Tensor, *, scale: float = 0.1, c: float = 0.5) -> Tensor:
    """SPIF: −(r − s) + (c/2)·(r² + s²) of the scaled ratios r and s, [B], [B] → [B]. arXiv 2602.01357.

    The χ² objective on the mixture of annotations and samples. Over free rewards its minimiser is bounded by ±1/c:
    r*(y) = (1/c)·(p_data(y) − π_t(y)) / (p_data(y) + π_t(y)). The full text of the paper was not at hand: this form is
    unverified.
    """
    r, s = scale * real_ratio, scale * synthetic_ratio
    return s - r + c / 2 * (r.square() + s.square())


def t_spin(real: Tensor, synthetic: Tensor, proto: Tensor, *, alpha: float = 1.0, beta: float = 0.1) -> Tensor:
    """T-SPIN: softplus(−α(real − synthetic)) + β·softplus(−α(synthetic − proto)), [B] each → [B].

    arXiv 2601.08198, eq. 7. Takes log-probabilities, not ratios: there is no reference. In iteration 0, where π₀ itself
    is sampled, β is 0.
    """
    return _softplus(-alpha * (real - synthetic)) + beta * _softplus(-alpha * (synthetic - proto))


def tpaw(
    real_ratio: Tensor, synthetic_ratio: Tensor, *, scale: float = 0.1, eta: float = 6.0, gamma: float = 0.5
) -> Tensor:
    """TPAW: Σ_j b_j · softplus(−(w_j·P_j(y) − P_j(y'))), [J, B], [J, B] → [B]. arXiv 2605.09922.

    Row j holds the ratios to player j, one of the latest checkpoints, and P_j = scale·ratio. The target weight w_j is η
    where P_j(y) ≤ 0 and 1 elsewhere; the player weight b_j is softmax_j(−γ·(P_j(y) − P_j(y'))). Both are constants to
    the gradient.
    """
    real, synthetic = scale * real_ratio, scale * synthetic_ratio
    target = torch.where(real > 0, real, eta * real)
    player = torch.softmax(-gamma * (real - synthetic).detach(), dim=0)
    return (player * _softplus(synthetic - target)).sum(dim=0)


def iris(real_ratio: Tensor, synthetic_ratio: Tensor, *, alpha: float | Tensor, scale: float = 0.1) -> Tensor:
    """IRIS: −1/(α−1)·log⟨exp((α−1)·r)⟩ + 1/α·log⟨exp(α·s)⟩ of the scaled ratios r and s, [B], [B] → scalar.

    One value of the whole global batch: ⟨·⟩ is its mean, and the mean of this loss over micro-batches is a different
    objective. Any finite order α: α → 1 is −⟨r⟩ + log⟨exp s⟩ and α → 0 is log⟨exp(−r)⟩ + ⟨s⟩, reached without
    cancellation from either side. The gradient is −Σ wᵢ∇rᵢ + Σ vᵢ∇sᵢ with the weights of `iris_weights`.

    arXiv 2604.20933, from the variational form of the Rényi divergence R_α(p_data‖π_t) (arXiv 2007.03814): over free
    r = s the minimiser is log(p_data/π_t) + constant and the minimum −R_α/α. The full text of the IRIS paper was not at
    hand: the objective is reconstructed from its abstract, its stated regimes and published reviews of its equations.
    """
    order = float(alpha)
    return _tilted_mean(scale * synthetic_ratio, order) - _tilted_mean(scale * real_ratio, order - 1)


def iris_tilts(*, alpha: float | Tensor, scale: float = 0.1) -> tuple[float, float]:
    """Return the log-weights of `iris_weights` as multiples of annotated and of synthetic ratios."""
    return (float(alpha) - 1) * scale, float(alpha) * scale


def iris_weights(
    real_ratio: Tensor, synthetic_ratio: Tensor, *, alpha: float | Tensor, scale: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Return the weights (w, v) of the samples in the gradient of `iris`: w ∝ exp((α−1)·r), v ∝ exp(α·s).

    [B], [B] → [B], [B], each normalised to sum to 1 over the global batch; constants to the gradient.
    """
    real_tilt, synthetic_tilt = iris_tilts(alpha=alpha, scale=scale)
    w = torch.softmax(real_tilt * real_ratio.detach(), dim=0)
    v = torch.softmax(synthetic_tilt * synthetic_ratio.detach(), dim=0)
    return w, v


def effective_sample_size(weights: Tensor) -> Tensor:
    """Kish's (Σw)² / Σw² of non-negative weights, [B] → scalar between 1 (one sample counts) and B (all alike)."""
    return weights.sum().square() / weights.square().sum()


def _softplus(z: Tensor) -> Tensor:
    """log(1 + e^z). torch's own softplus is the identity above 20, which is 2e-9 off."""
    return -logsigmoid(-z)


def _tilted_mean(x: Tensor, k: float) -> Tensor:
    """log⟨exp(k·x)⟩ / k, and its limit ⟨x⟩ at k = 0: [B] → scalar, to a rounding error of max |x| for every k.

    pivot + log⟨exp(k·(x − pivot))⟩ / k is the same for any constant pivot. With the extreme that makes every exponent
    ≤ 0 nothing overflows. While all exponents are small, so is log⟨exp⟩: it must not be the difference of two larger
    numbers, whose rounding 1/k would magnify, hence log1p and expm1 there, and logsumexp elsewhere.
    """
    if abs(k) < _LIMIT:
        return x.mean()
    pivot = (x.max() if k > 0 else x.min()).detach()
    z = k * (x - pivot)
    near = torch.log1p(torch.expm1(z).mean())
    far = torch.logsumexp(z, dim=0) - math.log(x.numel())
    return pivot + torch.where(z.min() > -1, near, far) / k

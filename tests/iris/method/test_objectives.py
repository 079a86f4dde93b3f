"""The objectives against values, limits, optima and invariances derived here without torch."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iris.method.objectives import effective_sample_size, iris, iris_weights, sft, space, spif, spin, t_spin, tpaw

Loss = Callable[..., Tensor]

quick = settings(deadline=None, derandomize=True, max_examples=60)
ratios = st.floats(-60, 60, allow_nan=False)
batches = st.lists(st.tuples(ratios, ratios), min_size=1, max_size=12)
orders = st.floats(-3, 4, allow_nan=False)

# Orders at, near and far from the two limits, on either side of both.
NEAR = [sign * 10.0**-e for e in (1, 2, 3, 4, 6, 8, 9, 12, 15, 19, 21, 300) for sign in (1, -1)]
ORDERS = sorted({0.0, 1.0, 0.5, 2.0, -1.0, 7.0, *NEAR, *(1 + k for k in NEAR)})

REAL = [0.3, -1.2, 2.5, 0.0, -0.7]
SYNTHETIC = [-0.4, 0.9, 1.1, -2.0, 0.2]
PROTO = [0.6, -0.1, -1.5, 0.8, 2.2]

LOSSES: list[tuple[Loss, int, dict[str, float]]] = [
    (spin, 2, {}),
    (spin, 2, {"scale": 1.3}),
    (space, 2, {}),
    (space, 2, {"mu": 3.0}),
    (spif, 2, {}),
    (spif, 2, {"scale": 0.7, "c": 2.0}),
    (t_spin, 3, {}),
    (t_spin, 3, {"alpha": 0.6, "beta": 0.0}),
    *((iris, 2, {"alpha": alpha, "scale": scale}) for alpha in ORDERS for scale in (0.1, 1.0)),
]


def tensor(values: list[float] | list[list[float]], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), inputs)


def softplus(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def exact_tilt(x: list[float], k: float) -> float:
    """log⟨exp(kx)⟩/k in 40 digits more than a small k cancels."""
    if k == 0:
        return math.fsum(x) / len(x)
    with localcontext(prec=40 + max(0, -math.floor(math.log10(abs(k))))):
        terms = [Decimal(v) for v in x]
        mean = sum(((Decimal(k) * v).exp() for v in terms), Decimal(0)) / len(terms)
        return float(mean.ln() / Decimal(k))


def exact_weights(x: list[float], k: float) -> list[float]:
    top = max(k * v for v in x)
    terms = [math.exp(k * v - top) for v in x]
    return [t / math.fsum(terms) for t in terms]


def test_sft_sums_to_the_mean_over_the_tokens_of_the_global_batch() -> None:
    real = tensor([-12.0, -3.0, -9.0])
    loss = sft(real, tokens=8)
    torch.testing.assert_close(loss, torch.tensor([1.5, 0.375, 1.125], dtype=torch.float64))
    assert loss.sum().item() == pytest.approx(24 / 8)
    assert gradients(loss, real)[0].tolist() == [-1 / 8] * 3


def test_spin_by_hand() -> None:
    expected = [math.log(1 + math.exp(-0.1 * (r - s))) for r, s in zip(REAL, SYNTHETIC, strict=True)]
    assert spin(tensor(REAL), tensor(SYNTHETIC)).tolist() == pytest.approx(expected, abs=1e-14)
    # softplus(−2) and softplus(2)
    value = spin(tensor([3.0, 1.0]), tensor([1.0, 3.0]), scale=1.0)
    assert value.tolist() == pytest.approx([0.1269280110429725, 2.1269280110429725], abs=1e-14)


def test_space_by_hand() -> None:
    expected = [
        math.log(1 + 3 * math.exp(-r)) + 3 * math.log(1 + math.exp(s) / 3) for r, s in zip(REAL, SYNTHETIC, strict=True)
    ]
    assert space(tensor(REAL), tensor(SYNTHETIC), mu=3.0).tolist() == pytest.approx(expected, abs=1e-14)
    # log(1 + 2/4) + 2·log(1 + 6/2)
    value = space(tensor([math.log(4)]), tensor([math.log(6)]), mu=2.0)
    assert value.item() == pytest.approx(math.log(1.5) + 2 * math.log(4), abs=1e-14)


def test_spif_by_hand() -> None:
    # r = 0.3, s = −0.2: −0.5 + 0.25·(0.09 + 0.04)
    assert spif(tensor([3.0]), tensor([-2.0])).item() == pytest.approx(-0.4675, abs=1e-15)
    assert spif(tensor([3.0]), tensor([-2.0]), scale=1.0, c=2.0).item() == pytest.approx(-5 + 13, abs=1e-15)


def test_t_spin_by_hand() -> None:
    rows = list(zip(REAL, SYNTHETIC, PROTO, strict=True))
    for alpha, beta in [(1.0, 0.1), (2.0, 0.7)]:
        expected = [softplus(-alpha * (r - s)) + beta * softplus(-alpha * (s - p)) for r, s, p in rows]
        loss = t_spin(tensor(REAL), tensor(SYNTHETIC), tensor(PROTO), alpha=alpha, beta=beta)
        assert loss.tolist() == pytest.approx(expected, abs=1e-14)
    loss = t_spin(tensor(REAL), tensor(SYNTHETIC), tensor(PROTO))
    assert loss[0].item() == pytest.approx(softplus(-0.7) + 0.1 * softplus(1.0), abs=1e-14)


def exact_tpaw(real: list[float], synthetic: list[float], scale: float, eta: float, gamma: float) -> tuple[float, ...]:
    """One sample seen by J players: the loss, then its gradients in `real` and `synthetic` at constant weights."""
    p, q = [scale * x for x in real], [scale * x for x in synthetic]
    w = [eta if x <= 0 else 1.0 for x in p]
    b = exact_weights([x - y for x, y in zip(p, q, strict=True)], -gamma)
    z = [y - u * x for x, y, u in zip(p, q, w, strict=True)]
    loss = math.fsum(k * softplus(v) for k, v in zip(b, z, strict=True))
    slope = [scale * k * math.exp(-softplus(-v)) for k, v in zip(b, z, strict=True)]
    return loss, *(-u * g for u, g in zip(w, slope, strict=True)), *slope


@pytest.mark.parametrize("parameters", [(0.1, 6.0, 0.5), (1.0, 6.1, 0.5), (0.7, 1.0, 2.0), (0.1, 3.3, 0.0)])
def test_tpaw_by_hand_with_its_weights_constant_to_the_gradient(parameters: tuple[float, float, float]) -> None:
    scale, eta, gamma = parameters
    real, synthetic = tensor([REAL, PROTO, SYNTHETIC]), tensor([SYNTHETIC, REAL, PROTO])
    loss = tpaw(real, synthetic, scale=scale, eta=eta, gamma=gamma)
    columns = zip(real.T.tolist(), synthetic.T.tolist(), strict=True)
    expected = torch.tensor([exact_tpaw(r, s, *parameters) for r, s in columns], dtype=torch.float64)
    computed = torch.cat([loss[:, None], *(g.T for g in gradients(loss, real, synthetic))], dim=1)
    torch.testing.assert_close(computed, expected, rtol=1e-12, atol=1e-13)


def test_iris_by_hand() -> None:
    """METHODS' check: p_data = π_t = (½, ½), π_θ = (.9, .1), α = ½: 2·log 1.4907 + 2·log 0.8944."""
    ratio = tensor([math.log(0.9 / 0.5), math.log(0.1 / 0.5)])
    means = (1.8**-0.5 + 0.2**-0.5) / 2, (1.8**0.5 + 0.2**0.5) / 2
    assert means == pytest.approx((1.4907, 0.8944), abs=5e-5)
    loss = iris(ratio, ratio, alpha=0.5, scale=1.0)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0.57536, abs=5e-6)
    assert loss.item() == pytest.approx(2 * math.log(means[0]) + 2 * math.log(means[1]), abs=1e-14)
    # α = 2: −log⟨e^r⟩ + ½·log⟨e^{2s}⟩ = −log 1 + ½·log 1.64
    assert iris(ratio, ratio, alpha=2.0, scale=1.0).item() == pytest.approx(math.log(1.64) / 2, abs=1e-14)


@pytest.mark.parametrize(("loss", "inputs", "parameters"), LOSSES)
def test_gradcheck(loss: Loss, inputs: int, parameters: dict[str, float]) -> None:
    vectors = [tensor(v) for v in (REAL, SYNTHETIC, PROTO)[:inputs]]
    assert torch.autograd.gradcheck(lambda *v: loss(*v, **parameters), vectors)


def test_gradcheck_of_tpaw_with_one_player_and_of_sft() -> None:
    """One player has weight 1 whatever the margin, so here the constant weights do not hide from finite differences."""
    real, synthetic = tensor([[0.3, -1.2, 2.5]]), tensor([[-0.4, 0.9, 1.1]])
    assert torch.autograd.gradcheck(tpaw, (real, synthetic))
    assert torch.autograd.gradcheck(lambda v: sft(v, tokens=7), tensor(REAL))


@quick
@given(batches, orders)
def test_the_gradient_of_iris_is_the_difference_of_two_tilted_means(
    rows: list[tuple[float, float]], alpha: float
) -> None:
    real, synthetic = (tensor(list(column)) for column in zip(*rows, strict=True))
    grads = gradients(iris(real, synthetic, alpha=alpha, scale=0.3), real, synthetic)
    w = exact_weights([0.3 * x for x in real.tolist()], alpha - 1)
    v = exact_weights([0.3 * x for x in synthetic.tolist()], alpha)
    assert grads[0].tolist() == pytest.approx([-0.3 * x for x in w], abs=1e-12)
    assert grads[1].tolist() == pytest.approx([0.3 * x for x in v], abs=1e-12)
    weights = iris_weights(real, synthetic, alpha=alpha, scale=0.3)
    assert weights[0].tolist() == pytest.approx(w, abs=1e-12)
    assert weights[1].tolist() == pytest.approx(v, abs=1e-12)
    assert not any(weight.requires_grad for weight in weights)


def test_effective_sample_size() -> None:
    assert effective_sample_size(torch.full((8,), 0.125)).item() == pytest.approx(8)
    assert effective_sample_size(torch.tensor([0.0, 1.0, 0.0])).item() == pytest.approx(1)
    assert effective_sample_size(torch.tensor([2.0, 1.0, 1.0])).item() == pytest.approx(16 / 6)


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 1e3, 1e4])
def test_iris_is_accurate_at_every_order(spread: float, dtype: torch.dtype, scale: float) -> None:
    """Value within a few rounding errors of the ratios, across the limits and across the switch of formulas."""
    real, synthetic = (tensor([spread * x / 2.5 for x in v], dtype=dtype) for v in (REAL, SYNTHETIC))
    r, s = ([scale * x for x in v.tolist()] for v in (real, synthetic))
    epsilon = torch.finfo(dtype).eps
    for alpha in ORDERS:
        loss = iris(real, synthetic, alpha=alpha, scale=scale)
        expected = exact_tilt(s, alpha) - exact_tilt(r, alpha - 1)
        assert abs(loss.item() - expected) <= 8 * epsilon * scale * spread, alpha
        grads = gradients(loss, real, synthetic)
        for grad, x, k, sign in zip(grads, (r, s), (alpha - 1, alpha), (-1, 1), strict=True):
            # The relative error of exp is the absolute error of its exponent.
            bound = 8 * epsilon * scale * max(1.0, abs(k) * scale * spread)
            assert grad.tolist() == pytest.approx([sign * scale * w for w in exact_weights(x, k)], rel=0, abs=bound)


def test_iris_is_accurate_where_one_sample_outweighs_a_large_batch() -> None:
    synthetic = [0.0, *(-8 - 4 * i / 4096 for i in range(4095))]
    loss = iris(torch.zeros(1), tensor(synthetic, dtype=torch.float32), alpha=1.0, scale=1.0)
    assert loss.item() == pytest.approx(math.log(math.fsum(map(math.exp, synthetic)) / 4096), rel=0, abs=3e-6)


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_iris_is_continuous_in_alpha(limit: float, dtype: torch.dtype) -> None:
    """Value and gradient approach the limit linearly in |α − limit| until rounding, with no jump on the way."""
    real, synthetic = (tensor(v, dtype=dtype) for v in (REAL, SYNTHETIC))
    at_limit = iris(real, synthetic, alpha=limit, scale=1.0)
    grads_at_limit = torch.cat(gradients(at_limit, real, synthetic))
    for k in NEAR:
        loss = iris(real, synthetic, alpha=limit + k, scale=1.0)
        grads = torch.cat(gradients(loss, real, synthetic))
        bound = 5 * abs(k) + 20 * torch.finfo(dtype).eps
        assert abs((loss - at_limit).item()) <= bound
        assert (grads - grads_at_limit).abs().max().item() <= bound


def test_iris_at_its_limits() -> None:
    real, synthetic = tensor(REAL), tensor(SYNTHETIC)
    expected = -math.fsum(REAL) / 5 + math.log(math.fsum(math.exp(s) for s in SYNTHETIC) / 5)
    assert iris(real, synthetic, alpha=1.0, scale=1.0).item() == pytest.approx(expected, abs=1e-14)
    assert iris_weights(real, synthetic, alpha=1.0)[0].tolist() == pytest.approx([0.2] * 5)
    # The synthetic weights stay π_θ/π_t there.
    v = iris_weights(real, synthetic, alpha=1.0, scale=1.0)[1]
    assert (v[1] / v[0]).item() == pytest.approx(math.exp(SYNTHETIC[1] - SYNTHETIC[0]))
    expected = math.log(math.fsum(math.exp(-r) for r in REAL) / 5) + math.fsum(SYNTHETIC) / 5
    assert iris(real, synthetic, alpha=0.0, scale=1.0).item() == pytest.approx(expected, abs=1e-14)


def test_iris_takes_alpha_as_a_scalar_tensor() -> None:
    real, synthetic, alpha = tensor(REAL), tensor(SYNTHETIC), torch.tensor(0.75)
    assert torch.equal(iris(real, synthetic, alpha=alpha), iris(real, synthetic, alpha=0.75))
    assert torch.equal(iris_weights(real, synthetic, alpha=alpha)[1], iris_weights(real, synthetic, alpha=0.75)[1])


# A finite outcome space: outcome y appears 12·p(y) times among the annotations and 12·q(y) times among the samples, so
# that batch means are expectations.
P_COUNTS, Q_COUNTS = [6, 3, 2, 1], [2, 2, 3, 5]
P, Q = (torch.tensor(c, dtype=torch.float64) / 12 for c in (P_COUNTS, Q_COUNTS))


def outcomes(counts: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(4), torch.tensor(counts))


def minimise(loss: Callable[[Tensor], Tensor]) -> Tensor:
    reward = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [reward], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(reward)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return reward.detach()


@pytest.mark.parametrize("c", [0.5, 2.0])
def test_spif_finds_its_bounded_minimiser(c: float) -> None:
    def loss(reward: Tensor) -> Tensor:
        return spif(reward[outcomes(P_COUNTS)], reward[outcomes(Q_COUNTS)], scale=1.0, c=c).mean()

    reward = minimise(loss)
    torch.testing.assert_close(reward, (P - Q) / (P + Q) / c, rtol=1e-7, atol=1e-8)
    assert reward.abs().max() <= 1 / c


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.3, 0.5, 0.8, 1 - 1e-6, 1.0, 1.5, 2.0])
def test_iris_finds_the_density_ratio_and_the_renyi_divergence(alpha: float) -> None:
    def loss(reward: Tensor) -> Tensor:
        return iris(reward[outcomes(P_COUNTS)], reward[outcomes(Q_COUNTS)], alpha=alpha, scale=1.0)

    reward, ratio = minimise(loss), torch.log(P / Q)
    torch.testing.assert_close(reward - reward.mean(), ratio - ratio.mean(), rtol=0, atol=2e-5)
    if alpha == 0:
        divergence = -(Q * ratio).sum()  # R_α/α → KL(q‖p)
    elif alpha == 1:
        divergence = (P * ratio).sum()
    else:
        divergence = torch.log((P**alpha * Q ** (1 - alpha)).sum()) / (alpha * (alpha - 1))
    assert loss(reward).item() == pytest.approx(-divergence.item(), abs=1e-8)


@pytest.mark.parametrize("alpha", ORDERS)
def test_iris_is_at_rest_where_policy_reference_and_data_agree(alpha: float) -> None:
    """From π_θ = π_t its gradient in the logits is −scale·(p_data − π_t): zero if, and only if, π_t = p_data."""

    def gradient(data: list[int], samples: list[int], scale: float = 0.1) -> Tensor:
        logits = tensor([0.4, -1.0, 0.3, 2.0])
        policy = torch.log_softmax(logits, dim=0)
        ratio = policy - policy.detach()
        return gradients(iris(ratio[outcomes(data)], ratio[outcomes(samples)], alpha=alpha, scale=scale), logits)[0]

    assert gradient(P_COUNTS, P_COUNTS).abs().max().item() <= 1e-14
    torch.testing.assert_close(gradient(P_COUNTS, Q_COUNTS), -0.1 * (P - Q), rtol=0, atol=1e-14)


@quick
@given(batches, orders, st.floats(-100, 100))
def test_iris_invariances(rows: list[tuple[float, float]], alpha: float, shift: float) -> None:
    real, synthetic = (tensor(list(column)) for column in zip(*rows, strict=True))
    loss = iris(real, synthetic, alpha=alpha).item()
    close = pytest.approx(loss, abs=1e-11)
    assert iris(real.flip(0), synthetic, alpha=alpha).item() == close
    assert iris(real.tile(3), synthetic.tile(3), alpha=alpha).item() == close
    assert iris(real, synthetic.tile(3), alpha=alpha).item() == close
    assert iris(real + shift, synthetic + shift, alpha=alpha).item() == close
    assert iris(real + shift, synthetic, alpha=alpha).item() == pytest.approx(loss - 0.1 * shift, abs=1e-11)
    # R_{1−α} swaps the two sides.
    assert iris(-synthetic, -real, alpha=1 - alpha).item() == close


@pytest.mark.parametrize(("loss", "inputs", "parameters"), LOSSES[:8])
def test_per_sample_losses_do_not_see_the_batch(loss: Loss, inputs: int, parameters: dict[str, float]) -> None:
    vectors = [tensor(v) for v in (REAL, SYNTHETIC, PROTO)[:inputs]]
    whole = loss(*vectors, **parameters)
    assert whole.shape == (5,)
    torch.testing.assert_close(loss(*(v.flip(0) for v in vectors), **parameters), whole.flip(0), rtol=1e-14, atol=0)
    parts = [loss(*(v[i : i + 2] for v in vectors), **parameters) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-14, atol=0)


def test_tpaw_does_not_see_the_batch_or_the_order_of_players() -> None:
    real, synthetic = tensor([REAL, PROTO]), tensor([SYNTHETIC, REAL])
    whole = tpaw(real, synthetic)
    assert torch.equal(whole, tpaw(real, synthetic, scale=0.1, eta=6.0, gamma=0.5))
    torch.testing.assert_close(tpaw(real.flip(0), synthetic.flip(0)), whole)
    parts = [tpaw(real[:, part], synthetic[:, part]) for part in (slice(2), slice(2, None))]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_the_gradient_on_the_global_vector_carries_through_micro_batches(alpha: float) -> None:
    """∂loss/∂ratio taken once on the gathered vector gives the whole gradient; per-micro-batch losses do not."""
    features = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta = tensor([2.0, -1.0, 0.5])
    expected = gradients(iris(features[0] @ theta, features[1] @ theta, alpha=alpha, scale=1.0), theta)[0]
    gathered = [(f @ theta).detach().requires_grad_() for f in features]
    grads = gradients(iris(*gathered, alpha=alpha, scale=1.0), *gathered)
    micro = [slice(0, 1), slice(1, 4), slice(4, 6)]
    carried = [gradients((f[m] @ theta) * g[m], theta)[0] for f, g in zip(features, grads, strict=True) for m in micro]
    torch.testing.assert_close(torch.stack(carried).sum(0), expected)
    local = [iris(*(f[m] @ theta for f in features), alpha=alpha, scale=1.0) * (m.stop - m.start) / 6 for m in micro]
    assert (gradients(torch.stack(local), theta)[0] - expected).abs().max() > 0.01


@quick
@given(ratios, ratios, st.floats(0.05, 20))
def test_space_is_the_form_of_its_paper(r: float, s: float, mu: float) -> None:
    def log_sigma(z: float, mu: float) -> float:
        return -math.log1p(mu * math.exp(-z))

    expected = -log_sigma(r, mu) - mu * log_sigma(-s, 1 / mu)
    assert space(tensor([r]), tensor([s]), mu=mu).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@quick
@given(ratios, ratios)
def test_special_cases(r: float, s: float) -> None:
    real, synthetic = tensor([r]), tensor([s])
    assert space(real, synthetic).item() == pytest.approx(softplus(-r) + softplus(s), abs=1e-12)
    pair = softplus(s - r)
    assert spin(real, synthetic, scale=1.0).item() == pytest.approx(pair, abs=1e-12)
    assert t_spin(real, synthetic, torch.zeros(1), beta=0.0).item() == pytest.approx(pair, abs=1e-12)
    # One player, or several that agree, and no target weight: SPIN.
    for players in (1, 3):
        rows = real.expand(players, 1), synthetic.expand(players, 1)
        assert tpaw(*rows, scale=1.0, eta=1.0).item() == pytest.approx(pair, abs=1e-12)
    target = 6 * r if r <= 0 else r
    assert tpaw(real[None], synthetic[None], scale=1.0).item() == pytest.approx(softplus(s - target), abs=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("real", [[1e4, -1e4, 0.0], [-1e4] * 3, [1e4] * 3, [1e4], [-1e4, -1e4 + 1e-2, -9e3]])
def test_extreme_ratios_stay_finite_in_float32(real: list[float], scale: float) -> None:
    a, b = tensor(real, dtype=torch.float32), tensor([-x for x in real], dtype=torch.float32)
    losses = [spin(a, b, scale=scale), space(a, b, mu=3.0), spif(a, b, scale=scale), t_spin(a, b, a, alpha=scale)]
    losses += [tpaw(torch.stack([a, b]), torch.stack([b, a]), scale=scale)]
    losses += [iris(a, b, alpha=alpha, scale=scale) for alpha in [*ORDERS, 1e3, -1e3, 1e20]]
    for loss in losses:
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss).all()
        assert all(torch.isfinite(g).all() for g in gradients(loss, a, b))


def test_extreme_orders_are_worst_cases() -> None:
    """α → ∞ leaves max s − max r."""
    assert iris(tensor(REAL), tensor(SYNTHETIC), alpha=1e9, scale=1.0).item() == pytest.approx(1.1 - 2.5, abs=1e-8)

"""Closed forms against numerical integration, in NumPy and Torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy.special import ndtr

from xaurora import distributions as d

PARAMETERS = st.tuples(
    st.floats(-6.0, 6.0),
    st.floats(0.02, 1.5),
    st.one_of(st.just(0.0), st.floats(1e-7, 0.5)),
    st.sampled_from([1e-5, 1e-4, 1e-3]),
)


def _numerical(mu: float, sigma: float, y: float, epsilon: float, *, metres: bool) -> float:
    """∫ (F − 1{y ≤ x})² dx by adaptive quadrature, in z or in metres, piecewise around everything
    that bends.
    """
    z = np.log1p(y / epsilon)
    weight = (lambda x: epsilon * np.exp(x)) if metres else (lambda x: 1.0)
    below = lambda x: ndtr((x - mu) / sigma) ** 2 * weight(x)  # noqa: E731
    above = lambda x: ndtr(-(x - mu) / sigma) ** 2 * weight(x)  # noqa: E731
    end = max(z, mu + 12 * sigma + sigma**2)
    bends = [mu + k * sigma for k in (-8, -4, -1, 0, 1, 4, 8)]

    def pieces(f, a: float, b: float) -> float:
        points = [a, *sorted(p for p in bends if a < p < b), b]
        return sum(
            integrate.quad(f, i, j, epsabs=0, epsrel=1e-10, limit=200)[0]
            for i, j in itertools.pairwise(points)
            if j > i
        )

    return pieces(below, 0.0, z) + pieces(above, z, end)


@settings(max_examples=60, deadline=None)
@given(PARAMETERS)
def test_crps_in_z_and_in_metres_equal_the_integral(p: tuple[float, float, float, float]) -> None:
    mu, sigma, y, epsilon = p
    z = np.log1p(y / epsilon)
    got = float(d.censored_normal_crps_z(np.float64(mu), np.float64(sigma), np.float64(z)))
    assert got == pytest.approx(_numerical(mu, sigma, y, epsilon, metres=False), rel=1e-5, abs=1e-8)
    metres = float(
        d.censored_normal_crps(np.float64(mu), np.float64(sigma), np.float64(y), epsilon)
    )
    assert metres == pytest.approx(
        _numerical(mu, sigma, y, epsilon, metres=True), rel=1e-5, abs=1e-8 * epsilon
    )


@settings(max_examples=60, deadline=None)
@given(PARAMETERS)
def test_torch_equals_numpy_and_float32_holds(p: tuple[float, float, float, float]) -> None:
    mu, sigma, y, epsilon = p
    z = np.log1p(y / epsilon)
    reference = float(d.censored_normal_crps_z(np.float64(mu), np.float64(sigma), np.float64(z)))
    double = [torch.tensor(v, dtype=torch.float64) for v in (mu, sigma, z)]
    assert float(d.censored_normal_crps_z(*double)) == pytest.approx(
        reference, rel=1e-10, abs=1e-14
    )
    single = float(
        d.censored_normal_crps_z(*(torch.tensor(v, dtype=torch.float32) for v in (mu, sigma, z)))
    )
    # float32 keeps 1e-3 relative for −μ/σ up to 6 and μ/σ up to 300; further out only the scale's
    # 1e-6 counts
    assert single == pytest.approx(reference, rel=1e-3, abs=1e-6 * max(sigma, z))
    assert single >= 0


def test_ensembles_by_hand() -> None:
    members = np.array([[0.0], [2.0], [4.0]])
    # E|X−y| = (1+1+3)/3; ½E|X−X'| fair = ½·(2+4+2)·2/(3·2)
    assert d.ensemble_crps(members, np.array([1.0])) == pytest.approx(5 / 3 - 4 / 3)
    assert d.ensemble_crps(members, np.array([1.0]), fair=False) == pytest.approx(5 / 3 - 8 / 9)
    assert d.ensemble_crps(members[:1], np.array([1.0])) == pytest.approx(1.0)


def test_against_scoringrules_and_samples() -> None:
    rng = np.random.default_rng(0)
    mu, sigma, epsilon = 0.4, 0.8, 1e-3
    draws = epsilon * np.expm1(np.maximum(mu + sigma * rng.standard_normal(200_000), 0))
    assert d.censored_normal_mean(mu, sigma, epsilon) == pytest.approx(draws.mean(), rel=0.01)
    for q in (0.4, 0.9):
        assert d.censored_normal_quantile(
            np.float64(mu), np.float64(sigma), q, epsilon
        ) == pytest.approx(np.quantile(draws, q), rel=0.02, abs=1e-6)
    assert d.censored_normal_cdf(np.float64(mu), np.float64(sigma), 2e-3, epsilon) == pytest.approx(
        (draws <= 2e-3).mean(), abs=0.005
    )
    y = np.array([0.0, 1e-3, 2e-2])
    sample_score = d.ensemble_crps(np.repeat(draws[:4000, None], 3, axis=1), y)
    np.testing.assert_allclose(
        d.censored_normal_crps(np.full(3, mu), np.full(3, sigma), y, epsilon),
        sample_score,
        rtol=0.05,
    )


@pytest.mark.parametrize(
    ("mu", "sigma", "z"),
    [(0.3, 0.5, 0.0), (-2.0, 0.5, 0.0), (1.0, 0.8, 3.0), (-1.0, 0.3, 0.7), (3.0, 0.2, 0.0)],
)
def test_gradients(mu: float, sigma: float, z: float) -> None:
    args = [
        torch.tensor([v], dtype=torch.float64, requires_grad=i < 2)
        for i, v in enumerate((mu, sigma, z))
    ]
    assert torch.autograd.gradcheck(d.censored_normal_crps_z, args)


def test_gradient_survives_the_clamp() -> None:
    mu = torch.tensor(-7.0, requires_grad=True)
    score = d.censored_normal_crps_z(mu, torch.tensor(0.5), torch.tensor(0.0))
    score.backward()
    assert float(score.detach()) >= 0
    assert torch.isfinite(mu.grad)


def test_latent_has_an_inverse() -> None:
    y = np.geomspace(1e-7, 0.5, 50)
    np.testing.assert_allclose(d.from_latent(d.to_latent(y, 1e-4), 1e-4), y, rtol=1e-12)
    t = torch.tensor(y)
    torch.testing.assert_close(d.from_latent(d.to_latent(t, 1e-4), 1e-4), t)

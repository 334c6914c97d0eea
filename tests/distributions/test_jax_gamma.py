"""The incomplete gamma functions of the JAX engine against SciPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import gammainc, gammaincc, gammaln

jax = pytest.importorskip("jax")

from xaurora.distributions import jax_gamma  # noqa: E402


@pytest.fixture(scope="module")
def points() -> tuple[np.ndarray, np.ndarray]:
    """Shapes of all heads, and amounts around them, far below and far above."""
    rng = np.random.default_rng(0)
    shape = np.exp(rng.uniform(np.log(0.1), np.log(41.0), 20_000))
    near = shape * np.exp(rng.normal(0.0, 1.5, shape.size))
    anywhere = np.exp(rng.uniform(np.log(1e-12), np.log(300.0), shape.size))
    x = np.where(rng.random(shape.size) < 0.5, near, anywhere)
    edge = np.array([0.1, 1.0, 5.0, 41.0])  # where the two expansions meet
    return (
        np.concatenate([shape, edge, edge]).astype(np.float32),
        np.concatenate([x, edge + 1.0, np.nextafter(edge + 1.0, 0.0)]).astype(np.float32),
    )


def test_values_and_slopes(points: tuple[np.ndarray, np.ndarray]) -> None:
    """Float32 keeps 1e-7; what is left is the rounding of the exponent."""
    shape, x = (v.astype(np.float64) for v in points)
    above, below = gammaincc(shape, x), gammainc(shape, x)
    assert np.abs(np.asarray(jax_gamma.gamma_above(*points)) - above).max() < 4e-6
    found = np.asarray(jax_gamma.gamma_below(*points))
    assert np.abs(found - below).max() < 4e-6
    small = below > 1e-30  # nothing is lost where hardly any rain falls
    assert (np.abs(found - below) / np.where(small, below, 1.0))[small].max() < 5e-5
    step = 2e-5 * shape
    tail = np.where(above < 0.5, gammaincc(shape + step, x), -gammainc(shape + step, x))
    other = np.where(above < 0.5, gammaincc(shape - step, x), -gammainc(shape - step, x))
    by_shape = (tail - other) / (2.0 * step)
    density = np.exp((shape - 1.0) * np.log(x) - x - gammaln(shape))
    for function, sign in ((jax_gamma.gamma_above, 1.0), (jax_gamma.gamma_below, -1.0)):
        slopes = jax.grad(lambda k, v, f=function: f(k, v).sum(), argnums=(0, 1))(*points)
        assert np.abs(np.asarray(slopes[0]) - sign * by_shape).max() < 1e-5
        error = np.abs(np.asarray(slopes[1]) + sign * density) / np.maximum(density, 1.0)
        assert error.max() < 5e-5


def test_ends_are_finite() -> None:
    shape = np.full(4, 0.5, np.float32)
    x = np.array([0.0, 1e-30, 1e4, 1e30], np.float32)
    np.testing.assert_allclose(jax_gamma.gamma_above(shape, x), [1, 1, 0, 0], atol=1e-6)
    for k in (shape, shape + 4.0, shape / 5.0):
        slopes = jax.grad(lambda *v: jax_gamma.gamma_above(*v).sum(), argnums=(0, 1))(k, x)
        assert np.isfinite(slopes).all()
        assert slopes[0][0] == slopes[1][0] == 0.0
        np.testing.assert_array_equal(np.asarray(jax_gamma.gamma_below(k, x))[[0, 3]], [0, 1])


def test_float64_is_that_of_jax() -> None:
    with jax.enable_x64(True):
        shape, x = jax.numpy.asarray([0.7, 3.0]), jax.numpy.asarray([0.25, 5.0])
        for amount in (x, x.astype("float32")):
            np.testing.assert_allclose(
                jax_gamma.gamma_above(shape, amount), gammaincc([0.7, 3.0], [0.25, 5.0]), rtol=1e-12
            )

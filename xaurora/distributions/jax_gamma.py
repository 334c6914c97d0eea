"""The regularised incomplete gamma functions for JAX in float32, with a gradient in the shape.

Those of JAX iterate until every element has converged, and again for the gradient. Here the numbers
of terms are fixed, so that all of it is one loop over the elements. For shapes from 0.1 to 41, more
than any head predicts, values are within 4e-6 and slopes in the shape within 1e-5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, gammainc, gammaincc, gammaln

_TERMS, _FRACTIONS = 40, 32  # enough for float32 where they converge slowest: x = shape + 1 = 42
_UNROLLED = 4  # more compiles longer and is no faster
_HALF_LOG_2PI = 0.9189385332046727


def _log_weight(k: Array, x: Array) -> Array:
    """Return ``ln(x^k e^{−x} / Γ(k+1))``, as deviations from x = k, so that nothing large cancels.

    Loader (2000), Fast and accurate computation of binomial probabilities.
    """
    deviation = (x - k) / k
    log_ratio = jnp.where(
        deviation > -0.5, jnp.log1p(jnp.maximum(deviation, -0.5)), jnp.log(x) - jnp.log(k)
    )
    inverse = 1.0 / k
    square = inverse * inverse
    # Error of Stirling's formula for Γ(k+1).
    error = jnp.where(
        k < 2.0,
        gammaln(k + 1.0) - (k + 0.5) * jnp.log(k) + k - _HALF_LOG_2PI,
        inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))),
    )
    return k * (log_ratio - deviation) - 0.5 * jnp.log(k) - _HALF_LOG_2PI - error


def _series(k: Array, x: Array) -> tuple[Array, Array]:
    """Return ``Σ x^n / ((k+1)…(k+n))`` and its slope in k, for x up to k + 1 (DLMF 8.7.1)."""

    def add(n: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        term, total, slope, slopes = state
        inverse = 1.0 / (k + n)
        term = term * (x * inverse)
        slope = slope * (x * inverse) - term * inverse
        return term, total + term, slope, slopes + slope

    one, zero = jnp.ones_like(x), jnp.zeros_like(x)
    start = (one, one, zero, zero)
    _, total, _, slopes = jax.lax.fori_loop(1, _TERMS + 1, add, start, unroll=_UNROLLED)
    return total, slopes


def _fraction(k: Array, x: Array) -> tuple[Array, Array]:
    """Return ``Γ(k, x) / (x^k e^{−x})`` and its slope in k, for x from k + 1 (DLMF 8.9.2)."""

    def unfold(place: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        value, slope = state
        n = _FRACTIONS - place
        inverse = 1.0 / value
        part = n * (n - k) * inverse
        return x - k + (2 * n - 1) - part, (n + part * slope) * inverse - 1.0

    start = (x - k + (2 * _FRACTIONS + 1), -jnp.ones_like(x))
    value, slope = jax.lax.fori_loop(0, _FRACTIONS, unfold, start, unroll=_UNROLLED)
    return 1.0 / value, -slope / (value * value)


def _tails(k: Array, x: Array) -> tuple[Array, Array, Array]:
    """Return ``P(k, x)``, ``Q(k, x)`` and ``∂Q/∂k``. None of their sums has terms that cancel."""
    positive, x = x > 0.0, _within(x)
    low = x < k + 1.0
    weight, log_x = jnp.exp(_log_weight(k, x)), jnp.log(x)
    total, slopes = _series(k, jnp.minimum(x, k + 1.0))
    value, slope = _fraction(k, jnp.maximum(x, k + 1.0))
    below, above = weight * total, weight * k * value
    psi = digamma(k)
    by_shape = jnp.where(
        low,
        -below * (log_x - psi - 1.0 / k + slopes / total),
        above * (log_x - psi + slope / value),
    )
    below = jnp.where(low, below, 1.0 - above)
    above = jnp.where(low, 1.0 - weight * total, above)
    return (
        jnp.where(positive, below, 0.0),
        jnp.where(positive, above, 1.0),
        jnp.where(positive, by_shape, 0.0),
    )


def _within(x: Array) -> Array:
    """Return ``x`` where its logarithm is finite; beyond, the functions are at their ends."""
    return jnp.clip(x, 1e-37, 1e30)


@jax.custom_jvp
def _above(shape: Array, x: Array) -> Array:
    return _tails(shape, x)[1]


@jax.custom_jvp
def _below(shape: Array, x: Array) -> Array:
    return _tails(shape, x)[0]


def _slopes(shape: Array, x: Array) -> tuple[Array, Array, Array, Array]:
    """Return both tails and the slopes of the upper one, in the shape and in x."""
    below, above, by_shape = _tails(shape, x)
    density = jnp.exp(_log_weight(shape, _within(x))) * shape / _within(x)
    return below, above, by_shape, jnp.where(x > 0.0, -density, 0.0)


@_above.defjvp
def _above_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    _, above, by_shape, by_x = _slopes(*primals)
    return above, by_shape * tangents[0] + by_x * tangents[1]


@_below.defjvp
def _below_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    below, _, by_shape, by_x = _slopes(*primals)
    return below, -by_shape * tangents[0] - by_x * tangents[1]


def _of_one_kind(shape: Array, x: Array) -> list[Array]:
    dtype = jnp.result_type(shape, x)
    return jnp.broadcast_arrays(jnp.asarray(shape, dtype), jnp.asarray(x, dtype))


def gamma_above(shape: Array, x: Array) -> Array:
    """Return ``Q(shape, x)`` for ``x`` ≥ 0, in float64 by JAX's own function.

    ``x`` must be positive where its gradient is needed.
    """
    shape, x = _of_one_kind(shape, x)
    return _above(shape, x) if x.dtype == jnp.float32 else gammaincc(shape, x)


def gamma_below(shape: Array, x: Array) -> Array:
    """Return ``P(shape, x)``, like :func:`gamma_above`."""
    shape, x = _of_one_kind(shape, x)
    return _below(shape, x) if x.dtype == jnp.float32 else gammainc(shape, x)

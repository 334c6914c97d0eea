"""Hurdle families: zero with probability ``1 − p``, otherwise a lognormal or gamma amount.

Amounts are in metres. The CRPS of a point mass at zero mixed with a distribution G of mean m is
``(1−p) y + p E|G−y| − p(1−p) m − ½p² E|G−G'|`` (from ``E|X−y| − ½E|X−X'|``; Gneiting and Raftery
2007, doi:10.1198/016214506000001437, equation 21). The formulas below are arranged so that no two
large terms cancel where the forecast is dry.
"""

from __future__ import annotations

from typing import Any

from xaurora.distributions.namespace import SQRT_2, SQRT_PI, Array, ArrayNamespace, namespace

MM = 1e-3  # m


def lognormal_crps(p: Array, mu: Array, sigma: Array, y: Array) -> Array:
    """Return the CRPS of a hurdle lognormal in metres.

    ``y − 2p[y S(ω) + m Φ(ω−σ)] + 2p² m S(σ/√2)`` with ``ω = (ln y − μ)/σ`` and ``m = e^{μ+σ²/2}``.

    Parameters
    ----------
    p : array
        Probability of rain.
    mu, sigma : array
        Mean and standard deviation of the logarithm of the amount in millimetres, given rain.
    y : array
        Observed amount, metres, ≥ 0.
    """
    xp = namespace(mu)
    mean = MM * xp.exp(mu + 0.5 * sigma * sigma)
    wet = y > 0
    omega = (
        xp.log(xp.where(wet, y, MM + 0.0 * y) / MM) - mu
    ) / sigma  # `where` on the inside and on the outside: log(0) has no gradient
    beyond = xp.where(wet, xp.ndtr(-omega), xp.ones_like(omega))
    below = xp.where(wet, xp.ndtr(omega - sigma), xp.zeros_like(omega))
    spread = 2.0 * p * p * mean * xp.ndtr(-sigma / SQRT_2)
    return xp.clamp_value(y - 2.0 * p * (y * beyond + mean * below) + spread)


def lognormal_cdf(p: Array, mu: Array, sigma: Array, y: Array) -> Array:
    """Return ``P(tp ≤ y)``."""
    xp = namespace(mu)
    y = xp.like(y, mu)
    omega = (xp.log(xp.where(y > 0, y, MM + 0.0 * y) / MM) - mu) / sigma
    return 1.0 - p * xp.where(y > 0, xp.ndtr(-omega), xp.ones_like(omega))


def lognormal_mean(p: Array, mu: Array, sigma: Array) -> Array:
    """Return the mean amount in metres."""
    return p * MM * namespace(mu).exp(mu + 0.5 * sigma * sigma)


def _rank_given_rain(p: Array, q: Array, xp: ArrayNamespace) -> tuple[Any, Any]:
    """Return the rank of ``q`` among wet amounts, and whether the quantile is wet."""
    rank = (q - (1.0 - p)) / p
    wet = rank > 0
    return xp.where(wet, rank, 0.5 + 0.0 * rank), wet


def lognormal_quantile(p: Array, mu: Array, sigma: Array, q: Array) -> Array:
    """Return the amount in metres not exceeded with probability ``q`` in (0, 1)."""
    xp = namespace(mu)
    rank, wet = _rank_given_rain(p, xp.like(q, mu), xp)
    amount = MM * xp.exp(mu + sigma * xp.ndtri(rank))
    return xp.where(wet, amount, xp.zeros_like(amount))


def gamma_crps(p: Array, shape: Array, mean: Array, y: Array) -> Array:
    """Return the CRPS of a hurdle gamma in metres, computed in float64.

    ``y − 2p[y Q(α, βy) + m P(α+1, βy)] + p² m (1−r)`` with ``r = Γ(α+½)/(√π Γ(α+1))``.

    Parameters
    ----------
    p : array
        Probability of rain.
    shape, mean : array
        α, and m = α/β in metres, given rain.
    y : array
        Observed amount, metres, ≥ 0.
    """
    xp = namespace(shape)
    chance, a, m, v = xp.double(p), xp.double(shape), xp.double(mean), xp.double(y)
    wet = v > 0
    scaled = xp.where(wet, v * a / m, xp.ones_like(v * a))
    above = xp.gamma_above(a, scaled)
    # P(α+1, t) = 1 − Q(α, t) − t^α e^{−t}/Γ(α+1) needs one incomplete gamma function and its
    # gradient instead of two.
    below_next = 1.0 - above - xp.exp(a * xp.log(scaled) - scaled - xp.gammaln(a + 1.0))
    inner = xp.where(wet, v * above + m * below_next, xp.zeros_like(scaled))
    rest = 1.0 - ratio(a, xp)
    return xp.back(xp.clamp_value(v - 2.0 * chance * inner + chance * chance * m * rest), shape)


def ratio(a: Array, xp: ArrayNamespace, log_gamma: Array | None = None) -> Array:
    """Return ``r = Γ(α+½)/(√π Γ(α+1))``.

    This is half the mean difference of two gamma amounts in units of their mean. ``log_gamma`` is
    ``ln Γ(α+1)`` if it is known.
    """
    log_gamma = xp.gammaln(a + 1.0) if log_gamma is None else log_gamma
    return xp.exp(xp.gammaln(a + 0.5) - log_gamma) / SQRT_PI


def gamma_cdf(p: Array, shape: Array, mean: Array, y: Array) -> Array:
    """Return ``P(tp ≤ y)``."""
    xp = namespace(shape)
    y = xp.like(y, shape)
    wet = y > 0
    scaled = xp.where(wet, y * shape / mean, xp.ones_like(y * shape))
    return 1.0 - p * xp.where(wet, xp.gamma_above(shape, scaled), xp.ones_like(scaled))


def gamma_quantile(p: Array, shape: Array, mean: Array, q: Array) -> Array:
    """Return the amount in metres not exceeded with probability ``q`` in (0, 1)."""
    xp = namespace(shape)
    rank, wet = _rank_given_rain(p, xp.like(q, shape), xp)
    amount = mean / shape * xp.gamma_quantile(shape, rank)
    return xp.where(wet, amount, xp.zeros_like(amount))

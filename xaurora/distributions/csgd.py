"""The censored shifted gamma distribution, ``tp = max(0, G − s)`` with G gamma.

Amounts are in metres. Scheuerer and Hamill (2015), Statistical postprocessing of ensemble
precipitation forecasts by fitting censored, shifted gamma distributions, Mon. Weather Rev.,
doi:10.1175/MWR-D-15-0061.1. The shift ``s = −δ`` is positive here.
"""

from __future__ import annotations

from typing import Any

from xaurora.distributions.hurdles import ratio
from xaurora.distributions.namespace import Array, ArrayNamespace, namespace


def _tails(k: Array, x: Array, log_gamma: Array, xp: ArrayNamespace) -> tuple[Any, Any]:
    """Return ``Q(k, x)`` and ``Q(k+1, x) = Q(k, x) + x^k e^{−x}/Γ(k+1)``.

    The second is a sum of positive terms, so nothing cancels. ``log_gamma`` is ``ln Γ(k+1)``.
    """
    above = xp.gamma_above(k, x)
    return above, above + xp.exp(k * xp.log(x) - x - log_gamma)


def crps(shape: Array, scale: Array, shift: Array, y: Array) -> Array:
    """Return the CRPS in metres, computed in float64.

    It is evaluated in survival form, ``y − 2∫₀^y S + ∫₀^∞ S²``. With ``a = (y+s)/θ`` and
    ``c = s/θ``, ``∫₀^y S = θ[a Q(k,a) − c Q(k,c) + k(Q(k+1,c) − Q(k+1,a))]`` and
    ``∫₀^∞ S² = θ[k Q(k+1,c)² − c Q(k,c)² − k r Q(2k+1,2c)]``, ``r = Γ(k+½)/(√π Γ(k+1))``. This is
    equation 10 of Scheuerer and Hamill (2015), arranged so that no large terms cancel where the
    forecast is dry.

    Parameters
    ----------
    shape, scale : array
        k (dimensionless) and θ (metres).
    shift : array
        s, metres, positive.
    y : array
        Observed amount, metres, ≥ 0.
    """
    xp = namespace(shape)
    if xp.is_differentiated(shape, scale, shift, y):
        from xaurora.distributions import torch_csgd

        return torch_csgd.crps(excess, shape, scale, shift, y)
    k, theta, s, v = xp.double(shape), xp.double(scale), xp.double(shift), xp.double(y)
    beyond, _, _ = excess(k, (v + s) / theta, s / theta, xp)
    return xp.back(xp.clamp_value(v + theta * beyond), shape)


def excess(k: Array, a: Array, c: Array, xp: ArrayNamespace) -> tuple[Any, Any, Any]:
    """Return ``(∫₀^∞ S² − 2∫₀^y S)/θ``, ``Q(k, a)`` and ``Q(k, c)``; names as in :func:`crps`.

    The first one's derivative is ``−2 Q(k,a)`` in ``a`` and ``2 Q(k,c) − Q(k,c)²`` in ``c``.
    """
    log_gamma = xp.gammaln(k + 1.0)
    above_a, next_a = _tails(k, a, log_gamma, xp)
    above_c, next_c = _tails(k, c, log_gamma, xp)
    up_to = a * above_a - c * above_c + k * (next_c - next_a)
    twice = (
        k * next_c * next_c
        - c * above_c * above_c
        - k * ratio(k, xp, log_gamma) * xp.gamma_above(2.0 * k + 1.0, 2.0 * c)
    )
    return twice - 2.0 * up_to, above_a, above_c


def mean(shape: Array, scale: Array, shift: Array) -> Array:
    """Return the mean amount in metres, ``θ[k Q(k+1, c) − c Q(k, c)]``."""
    xp = namespace(shape)
    k, theta, s = xp.double(shape), xp.double(scale), xp.double(shift)
    above, following = _tails(k, s / theta, xp.gammaln(k + 1.0), xp)
    return xp.back(xp.clamp_value(theta * (k * following - s / theta * above)), shape)


def cdf(shape: Array, scale: Array, shift: Array, y: Array) -> Array:
    """Return ``P(tp ≤ y)`` for ``y`` ≥ 0 in metres."""
    xp = namespace(shape)
    return xp.gamma_below(shape, (xp.like(y, shape) + shift) / scale)


def quantile(shape: Array, scale: Array, shift: Array, q: Array) -> Array:
    """Return the amount in metres not exceeded with probability ``q`` in (0, 1)."""
    xp = namespace(shape)
    amount = scale * xp.gamma_quantile(shape, xp.like(q, shape)) - shift
    return xp.maximum(amount, xp.zeros_like(amount))

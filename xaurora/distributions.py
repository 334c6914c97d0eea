"""Closed forms of the distribution families of rain: CRPS, cdf, quantile, mean.

Written once over the array namespace: NumPy arrays for scoring, Torch tensors for training. Amounts ``y`` are in metres over
six hours; ``z = log1p(y / ε)`` is where the normal families live, with ε in metres.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_SQRT_PI = math.sqrt(math.pi)
_SQRT_2PI = math.sqrt(2.0 * math.pi)


class _Numpy:
    exp, log1p, expm1, sqrt, where, abs = np.exp, np.log1p, np.expm1, np.sqrt, np.where, np.abs
    minimum, maximum, zeros_like = np.minimum, np.maximum, np.zeros_like

    @staticmethod
    def ndtr(x: Any) -> Any:
        from scipy.special import ndtr

        return ndtr(x)

    @staticmethod
    def ndtri(p: Any) -> Any:
        from scipy.special import ndtri

        return ndtri(p)

    @staticmethod
    def like(value: float, x: Any) -> Any:
        return np.asarray(value, dtype=np.result_type(x, np.float32))

    @staticmethod
    def clamp_value(x: Any) -> Any:
        return np.maximum(x, 0.0)


class _Torch:
    """The same names for Torch, which is imported only when a tensor comes in."""

    def __init__(self) -> None:
        import torch

        self.exp, self.log1p, self.expm1, self.sqrt, self.where, self.abs = (
            torch.exp,
            torch.log1p,
            torch.expm1,
            torch.sqrt,
            torch.where,
            torch.abs,
        )
        self.minimum, self.maximum, self.zeros_like = torch.minimum, torch.maximum, torch.zeros_like
        self.ndtr, self.ndtri = torch.special.ndtr, torch.special.ndtri
        self._torch = torch

    def like(self, value: float, x: Any) -> Any:
        return self._torch.as_tensor(value, dtype=x.dtype, device=x.device)

    @staticmethod
    def clamp_value(x: Any) -> Any:
        # The value is clamped and the gradient kept: far in the dry tail rounding makes a CRPS of 1e-36 negative.
        return x + (x.clamp(min=0.0) - x).detach()


def _namespace(x: Any) -> Any:
    return _Torch() if type(x).__module__.partition(".")[0] == "torch" else _Numpy


def _pdf(x: Any, xp: Any) -> Any:
    return xp.exp(-0.5 * x * x) / _SQRT_2PI


def to_latent(y: Any, epsilon: float) -> Any:
    """``z = log1p(y / ε)``; ``y`` and ``epsilon`` in metres."""
    return _namespace(y).log1p(y / epsilon)


def from_latent(z: Any, epsilon: float) -> Any:
    """``y = ε · expm1(z)``, the inverse of :func:`to_latent`."""
    return epsilon * _namespace(z).expm1(z)


# --- the left-censored normal in z ------------------------------------------------------------------------------------


def censored_normal_crps_z(mu: Any, sigma: Any, z: Any) -> Any:
    """CRPS in z of a normal left-censored at zero.

    ``z + σ[−2ωS(ω) + 2φ(ω) − 2φ(l) + 2lS(l) − lS(l)² + 2φ(l)S(l) − S(√2 l)/√π]`` with ``ω = (z−μ)/σ``, ``l = −μ/σ`` and
    ``S(t) = Φ(−t)``: the form of Thorarinsdottir and Gneiting (2010, J. R. Stat. Soc. A, doi:10.1111/j.1467-985X.2009.00616.x) for
    a point mass at zero, arranged so that nothing large cancels in float32 where it is dry.

    Parameters
    ----------
    mu, sigma, z : array
        Location, positive scale and observation (≥ 0) in z; broadcast together.

    Returns
    -------
    array
        Never negative.
    """
    xp = _namespace(mu)
    omega, low = (z - mu) / sigma, -mu / sigma
    s_omega, s_low = xp.ndtr(-omega), xp.ndtr(-low)
    phi_low = _pdf(low, xp)
    inner = (
        -2.0 * omega * s_omega
        + 2.0 * _pdf(omega, xp)
        - 2.0 * phi_low
        + 2.0 * low * s_low
        - low * s_low * s_low
        + 2.0 * phi_low * s_low
        - xp.ndtr(-math.sqrt(2.0) * low) / _SQRT_PI
    )
    return xp.clamp_value(z + sigma * inner)


def censored_normal_mean(mu: Any, sigma: Any, epsilon: float) -> Any:
    """Mean amount in metres: ``ε (e^{μ+σ²/2} Φ(μ/σ + σ) − Φ(μ/σ))``."""
    xp = _namespace(mu)
    ratio = mu / sigma
    mean = epsilon * (xp.exp(mu + 0.5 * sigma * sigma) * xp.ndtr(ratio + sigma) - xp.ndtr(ratio))
    return xp.maximum(mean, xp.zeros_like(mean))


def censored_normal_cdf(mu: Any, sigma: Any, y: Any, epsilon: float) -> Any:
    """``P(tp ≤ y)``, ``y`` ≥ 0 in metres."""
    xp = _namespace(mu)
    return xp.ndtr((xp.log1p(xp.like(y, mu) / epsilon) - mu) / sigma)


def censored_normal_quantile(mu: Any, sigma: Any, q: float, epsilon: float) -> Any:
    """Amount in metres that is not exceeded with probability ``q`` in (0, 1)."""
    xp = _namespace(mu)
    z = mu + sigma * xp.ndtri(xp.like(q, mu))
    return epsilon * xp.expm1(xp.maximum(z, xp.zeros_like(z)))


def censored_normal_crps(mu: Any, sigma: Any, y: Any, epsilon: float, *, nodes: int = 40) -> Any:
    """CRPS in metres: ``∫ (F(x) − 1{y ≤ x})² dx`` over amounts.

    There is no elementary closed form in metres (it needs the bivariate normal). In z both parts of the integrand are smooth
    and live within nine σ of μ, so that 40 Gauss–Legendre nodes on each side of the observation give 1e-8 relative.

    Parameters
    ----------
    mu, sigma : array
        Parameters in z.
    y : array
        Observed amount, metres, ≥ 0; broadcast with the parameters.
    epsilon : float
        Metres.
    nodes : int
        Of the quadrature on each side; 12 give 1e-3, which is enough for a gradient.
    """
    xp = _namespace(mu)
    abscissas, weights = np.polynomial.legendre.leggauss(nodes)
    z = xp.log1p(y / epsilon)
    zero = xp.zeros_like(z + mu)
    reach = 9.0 * sigma
    # Below the observation F² counts; it is nil under μ − 9σ and one above μ + 9σ.
    lower_start = xp.maximum(xp.minimum(mu - reach, z), zero)
    lower_end = xp.maximum(xp.minimum(z, mu + reach), lower_start)
    total = epsilon * (xp.exp(xp.maximum(z, lower_end)) - xp.exp(lower_end))
    # Above it (1 − F)² counts, which e^z pushes outwards by up to σ².
    upper_start = xp.maximum(z, zero)
    upper_end = xp.maximum(mu + reach + 0.5 * sigma * sigma, upper_start)
    # Where the observation lies far below μ, 1 − F is one up to μ − 9σ: an exact piece.
    flat_end = xp.maximum(xp.minimum(mu - reach, upper_end), upper_start)
    total = total + epsilon * (xp.exp(flat_end) - xp.exp(upper_start))
    for start, end, above in ((lower_start, lower_end, False), (flat_end, upper_end, True)):
        half, centre = 0.5 * (end - start), 0.5 * (end + start)
        for node, weight in zip(abscissas, weights, strict=True):
            x = centre + half * float(node)
            u = (x - mu) / sigma
            f = xp.ndtr(-u) if above else xp.ndtr(u)
            total = total + float(weight) * half * epsilon * xp.exp(x) * f * f
    return total


# --- families, for scoring a forecast from its parameters ----------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """What scoring needs of a distribution family; amounts in metres.

    Parameters
    ----------
    name : str
    parameters : tuple of str
        Suffixes of the forecast's parameter fields (``tp_mu``, ``tp_sigma``).
    """

    name: str
    parameters: tuple[str, ...]

    def crps(self, params: Mapping[str, Any], y: Any, epsilon: float) -> Any:
        """CRPS in metres."""
        if self.name == "deterministic":
            return _namespace(y).abs(params["mean"] - y)
        return censored_normal_crps(params["mu"], params["sigma"], y, epsilon)

    def cdf(self, params: Mapping[str, Any], y: Any, epsilon: float) -> Any:
        """``P(tp ≤ y)``."""
        if self.name == "deterministic":
            xp = _namespace(params["mean"])
            return xp.where(params["mean"] <= y, 1.0 + xp.zeros_like(params["mean"]), xp.zeros_like(params["mean"]))
        return censored_normal_cdf(params["mu"], params["sigma"], y, epsilon)

    def quantile(self, params: Mapping[str, Any], q: float, epsilon: float) -> Any:
        """Amount not exceeded with probability ``q``."""
        if self.name == "deterministic":
            return params["mean"]
        return censored_normal_quantile(params["mu"], params["sigma"], q, epsilon)


FAMILIES: dict[str, Family] = {
    "censored_normal": Family("censored_normal", ("mu", "sigma")),
    "deterministic": Family("deterministic", ()),
}
"""Families by name, as the forecast's ``distribution`` attribute has them."""


# --- ensembles --------------------------------------------------------------------------------------------------------


def ensemble_crps(members: np.ndarray, y: np.ndarray, *, fair: bool = True) -> np.ndarray:
    """CRPS of an ensemble, members along the first axis.

    ``E|X−y| − ½E|X−X'|``; fair divides the second mean by M(M−1) (probability-weighted moments), as WeatherBench2 does
    (Zamo and Naveau 2018, doi:10.1007/s11004-017-9709-7).
    """
    count = members.shape[0]
    skill = np.abs(members - y).mean(axis=0)
    ranked = np.sort(members, axis=0)
    weights = (2 * np.arange(1, count + 1) - count - 1).reshape((-1,) + (1,) * (members.ndim - 1))
    pairs = count * (count - 1) if fair else count * count
    if count == 1:
        return skill
    return skill - (weights * ranked).sum(axis=0) / pairs

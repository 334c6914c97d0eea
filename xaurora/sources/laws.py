"""Laws of synthetic rain, whose best possible score is known."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from xaurora import distributions
from xaurora.errors import OptionError

_MM = 1e-3  # m


_MOST = 0.3  # m, upper limit of all amounts


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


class Law(abc.ABC):
    """Distribution of rain given a wetness w.

    ``ahead`` selects the definition of w. If true, w is the expectation of W given the state six
    hours before. Given that state, rain then has exactly this distribution, and a head of the same
    family can be perfect. If false, w is W itself, which the earlier state does not determine, and
    the perfect forecast is a mixture of these distributions.
    """

    ahead = False

    @abc.abstractmethod
    def cdf_given(self, w: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return ``P(tp ≤ y)`` given w, for ``y`` > 0 in metres; arguments are broadcast."""

    @abc.abstractmethod
    def sample(self, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw amounts in metres given w, independently at each point; at most 0.3 m."""


@dataclass(frozen=True)
class HurdleLaw(Law):
    """Heavy rain with probability ``σ(1.5 W − 1)``, else drizzle with ``σ(W)``, else dry.

    It belongs to no family of heads. Heavy amounts are lognormal around ``e^{0.6 W}`` mm with a
    standard deviation of 0.5 in the logarithm, drizzle around 0.03 mm with 1. About half of all wet
    values then lie between 0.001 and 0.1 mm, as in ERA5. ``drizzle-free`` has no drizzle.

    Parameters
    ----------
    drizzle : bool
        Whether there is drizzle.
    """

    drizzle: bool = True

    def sample(self, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw amounts in metres given W, independently at each point; at most 0.3 m."""
        heavy = rng.random(w.shape) < _sigmoid(1.5 * w - 1.0)
        amount = np.exp(0.6 * w + 0.5 * rng.standard_normal(w.shape)) * _MM
        light = rng.random(w.shape) < _sigmoid(w)
        mist = 0.03 * np.exp(rng.standard_normal(w.shape)) * _MM
        rest = np.where(light, mist, 0.0) if self.drizzle else np.zeros_like(w)
        return np.minimum(np.where(heavy, amount, rest), _MOST)

    def cdf_given(self, w: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return ``P(tp ≤ y)`` given W."""
        log_mm = np.log(y / _MM)
        heavy = _sigmoid(1.5 * w - 1.0)
        rest: np.ndarray | float = 1.0
        if self.drizzle:
            light = _sigmoid(w)
            rest = 1.0 - light + light * ndtr(log_mm - np.log(0.03))
        return (1.0 - heavy) * rest + heavy * ndtr((log_mm - 0.6 * w) / 0.5)


@dataclass(frozen=True)
class FamilyLaw(Law):
    """Rain of one of the head families, with parameters that are smooth functions of wetness.

    Parameters
    ----------
    family : Family
    parameters : callable
        Function from w to the parameters.
    """

    family: distributions.Family
    parameters: Callable[[np.ndarray], dict[str, np.ndarray]]
    ahead = True

    def cdf_given(self, w: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return ``P(tp ≤ y)`` given w."""
        w, y = np.broadcast_arrays(np.asarray(w, float), np.asarray(y, float))
        return np.asarray(self.family.cdf(self.parameters(w), y))

    def sample(self, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw amounts in metres given w, independently at each point; at most 0.3 m."""
        return np.minimum(
            np.asarray(self.family.quantile(self.parameters(w), rng.random(w.shape))), _MOST
        )


_LAWS: dict[str, Law] = {
    "hurdle": HurdleLaw(drizzle=True),
    "drizzle-free": HurdleLaw(drizzle=False),
    # hurdles: dry, or wet without drizzle
    "hurdle_lognormal": FamilyLaw(
        distributions.HurdleLognormal(),
        lambda w: {"p": _sigmoid(1.5 * w - 0.5), "mu": 0.7 * w, "sigma": 0.6 + 0.0 * w},
    ),
    "hurdle_gamma": FamilyLaw(
        distributions.HurdleGamma(),
        lambda w: {
            "p": _sigmoid(1.5 * w - 0.5),
            "shape": np.exp(0.2 * w),
            "amount": 1.2 * _MM * np.exp(0.6 * w),
        },
    ),
    # continuous drizzle down to zero
    "censored_normal": FamilyLaw(
        distributions.CensoredNormal(3e-4), lambda w: {"mu": 0.2 + 0.9 * w, "sigma": 0.7 + 0.0 * w}
    ),
    "csgd": FamilyLaw(
        distributions.CensoredShiftedGamma(),
        lambda w: {
            "shape": 0.9 * np.exp(0.25 * w),
            "scale": 1.2 * _MM * np.exp(0.35 * w),
            "shift": 0.6 * _MM + 0.0 * w,
        },
    ),
}


LAWS = tuple(_LAWS)
"""Distributions of rain that ``rain=`` accepts."""


def cdf(law: Law, mean: np.ndarray, spread: float, y: np.ndarray) -> np.ndarray:
    """Return ``P(tp ≤ y)`` for normal w, by 40-point Gauss–Hermite quadrature."""
    if spread == 0.0:
        return law.cdf_given(mean, y)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    total = np.zeros(np.broadcast_shapes(np.shape(mean), np.shape(y)))
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        total += weight * law.cdf_given(mean + spread * node, y)
    return total


def crps(law: Law, mean: np.ndarray, spread: float, y: np.ndarray) -> np.ndarray:
    """Return the CRPS in metres of the exact forecast, for w normal with this mean and spread.

    The integral ``∫ (F(x) − 1{y ≤ x})² dx`` is tabulated over 161 means and 1200 amounts, which are
    evenly spaced in the logarithm, and interpolated. The error is below 1e-4 of the score.
    """
    x = np.concatenate([[0.0], np.geomspace(1e-7, _MOST, 1200)])  # m, up to the largest amount
    low, high = float(np.min(mean)) - 1e-6, float(np.max(mean)) + 1e-6
    grid = np.linspace(low, high, 161)
    f = cdf(law, grid[:, None], spread, np.maximum(x, 1e-9)[None, :])
    f[:, -1] = 1.0

    def integral(values: np.ndarray) -> np.ndarray:
        steps = 0.5 * (values[:, 1:] + values[:, :-1]) * np.diff(x)
        return np.concatenate([np.zeros((len(grid), 1)), np.cumsum(steps, axis=1)], axis=1)

    below, above = integral(f**2), integral((1.0 - f) ** 2)
    table = below + (above[:, -1:] - above)  # the score for an observation at x
    i = np.clip(((mean - low) / (high - low) * 160).astype(int), 0, 159)
    part = (mean - grid[i]) / (grid[1] - grid[0])
    j = np.clip(np.searchsorted(x, y, side="right") - 1, 0, len(x) - 2)
    fraction = (y - x[j]) / (x[j + 1] - x[j])
    first = table[i, j] * (1 - fraction) + table[i, j + 1] * fraction
    second = table[i + 1, j] * (1 - fraction) + table[i + 1, j + 1] * fraction
    return first * (1 - part) + second * part


def law_of(name: str) -> Law:
    """Return the distribution of rain of a name.

    Raises
    ------
    OptionError
        If the name is unknown.
    """
    if name not in LAWS:
        raise OptionError(
            f"rain={name!r} is not known; valid values are {', '.join(map(repr, LAWS))}.",
            fix="rain='hurdle'",
        )
    return _LAWS[name]

"""Laws of synthetic rain, whose best possible score is known."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from xaurora import distributions
from xaurora.errors import OptionError

_MM = 1e-3  # m


_MOST = 0.3  # m, where every law is cut off


def _sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


class Law(abc.ABC):
    """Rain given how wet it is.

    ``ahead`` says what "how wet" means. If true, it is what the state six hours before lets one
    expect of W, so that given that state rain follows the law exactly, and a head of the law's
    family can be perfect. If false, it is W itself, which the state before does not determine: the
    perfect forecast is then a mixture of laws.
    """

    ahead = False

    @abc.abstractmethod
    def cdf_given(self, w: np.ndarray, y: np.ndarray) -> np.ndarray:
        """``P(tp ≤ y)`` given w; ``y`` > 0 in metres. Broadcasts."""

    @abc.abstractmethod
    def sample(self, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Amounts in metres for given w, each point on its own; at most 0.3 m."""


@dataclass(frozen=True)
class HurdleLaw(Law):
    """Heavy with probability ``σ(1.5 W − 1)``, else drizzle with probability ``σ(W)``, else dry. No
    family of heads is like it.

    Heavy amounts are lognormal around ``e^{0.6 W}`` mm with a spread of 0.5, drizzle around 0.03 mm
    with a spread of 1, so that about half of all wet values lie between 0.001 and 0.1 mm, as in
    ERA5. ``drizzle-free`` leaves the drizzle out.

    Parameters
    ----------
    drizzle : bool
        Whether there is drizzle.
    """

    drizzle: bool = True

    def sample(self, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Amounts in metres for given W, each point on its own; at most 0.3 m."""
        heavy = rng.random(w.shape) < _sigmoid(1.5 * w - 1.0)
        amount = np.exp(0.6 * w + 0.5 * rng.standard_normal(w.shape)) * _MM
        light = rng.random(w.shape) < _sigmoid(w)
        mist = 0.03 * np.exp(rng.standard_normal(w.shape)) * _MM
        rest = np.where(light, mist, 0.0) if self.drizzle else np.zeros_like(w)
        return np.minimum(np.where(heavy, amount, rest), _MOST)

    def cdf_given(self, w: np.ndarray, y: np.ndarray) -> np.ndarray:
        """``P(tp ≤ y)`` given W."""
        log_mm = np.log(y / _MM)
        heavy = _sigmoid(1.5 * w - 1.0)
        rest: Any = 1.0
        if self.drizzle:
            light = _sigmoid(w)
            rest = 1.0 - light + light * ndtr(log_mm - np.log(0.03))
        return (1.0 - heavy) * rest + heavy * ndtr((log_mm - 0.6 * w) / 0.5)


@dataclass(frozen=True)
class FamilyLaw(Law):
    """Rain of one of the families of heads, its parameters smooth functions of how wet it is
    expected to be.

    Parameters
    ----------
    family : Family
    parameters : callable
        w → parameters.
    """

    family: distributions.Family
    parameters: Callable[[np.ndarray], dict[str, np.ndarray]]
    ahead = True

    def cdf_given(self, w: np.ndarray, y: np.ndarray) -> np.ndarray:
        """``P(tp ≤ y)`` given w."""
        w, y = np.broadcast_arrays(np.asarray(w, float), np.asarray(y, float))
        return np.asarray(self.family.cdf(self.parameters(w), y))

    def sample(self, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Amounts in metres for given w, each point on its own; at most 0.3 m."""
        return np.minimum(
            np.asarray(self.family.quantile(self.parameters(w), rng.random(w.shape))), _MOST
        )


_LAWS: dict[str, Law] = {
    "hurdle": HurdleLaw(drizzle=True),
    "drizzle-free": HurdleLaw(drizzle=False),
    # no drizzle, wet or dry at once
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
"""Laws of rain that ``rain=`` takes."""


def cdf(law: Law, mean: np.ndarray, spread: float, y: np.ndarray) -> np.ndarray:
    """``P(tp ≤ y)`` for w normal with this mean and spread, by 40-point Gauss–Hermite quadrature."""
    if spread == 0.0:
        return law.cdf_given(mean, y)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    total = np.zeros(np.broadcast_shapes(np.shape(mean), np.shape(y)))
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        total += weight * law.cdf_given(mean + spread * node, y)
    return total


def crps(law: Law, mean: np.ndarray, spread: float, y: np.ndarray) -> np.ndarray:
    """CRPS in metres of the exact forecast: w normal with this mean and spread.

    The integral ``∫ (F(x) − 1{y ≤ x})² dx`` is tabulated over 161 means and 1200 amounts, spaced
    evenly in the logarithm, and interpolated; its error is below 1e-4 of the score.
    """
    x = np.concatenate([[0.0], np.geomspace(1e-7, _MOST, 1200)])  # m; the law is cut off there
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
    """The law of a name.

    Raises
    ------
    OptionError
        There is none of that name.
    """
    if name not in LAWS:
        raise OptionError(
            f"there is no law of rain {name!r}; valid are {', '.join(map(repr, LAWS))}.",
            fix="rain='hurdle'",
        )
    return _LAWS[name]

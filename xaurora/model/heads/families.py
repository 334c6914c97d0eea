"""Heads for each family: bounded parameters from raw output, and the score to train on."""

from __future__ import annotations

import math

import torch
from aurora.normalisation import log_transform, log_untransform
from torch import nn
from torch.autograd.function import BackwardCFunction

from xaurora import distributions
from xaurora.distributions import Family
from xaurora.distributions.namespace import Array, namespace
from xaurora.errors import OptionError
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model.heads.base import Climatology, DistributionHead, Params
from xaurora.model.heads.options import QUANTILE_LEVELS, HeadOptions
from xaurora.model.heads.trunk import HourlyDecoder

WETTEST = 0.5
"""m; upper limit of the mean over six hours that a head can predict, and of each hour of the head
``own`` (the record over six hours is about 0.84 m, WMO archive of extremes).
"""
LARGEST = 2.0
"""m; approximate upper limit of any 99.9 % quantile that a head can predict."""
_WETTEST_HOUR = float(log_transform(torch.tensor(WETTEST)))  # on Aurora 1.5's logarithmic scale
_TAIL = 3.09  # standard deviations that a normal exceeds once in a thousand
LARGEST_RATIO = 300.0
"""Largest ratio of μ to σ in z. Up to there the CRPS is accurate to 1e-3 in float32."""
_MM = 1e-3  # m
_DRIEST = -8.0  # lower bound of μ in z, where the probability of rain is negligible
_CHANCE = 1e-5  # smallest probability of rain, and of no rain
_SHAPES = (0.1, 20.0)  # of gamma distributions: from a spread of three times the mean to a fifth
_FAINTEST = 1e-7  # m, smallest mean amount given rain
_LARGEST_SHIFT = 12.0  # of the CSGD, in means of its gamma: dry to 1e-5 for an exponential one


# Parameters are bounded by functions of the array namespace, which the JAX engine calls as well.


def _below(x: Array, top: Array | float) -> Array:
    """Return ``x`` bounded smoothly from above: the identity far below ``top``, never above it."""
    return top - namespace(x).softplus(top - x)


def _above(x: Array, floor: float) -> Array:
    return floor + namespace(x).softplus(x - floor)


def _between(raw: Array, low: float, high: float) -> Array:
    return low + (high - low) * namespace(raw).sigmoid(raw)


def _chance(raw: Array) -> Array:
    return _between(raw, _CHANCE, 1.0 - _CHANCE)


def _log_between(raw: Array, low: float, high: float) -> Array:
    return namespace(raw).exp(_between(raw, math.log(low), math.log(high)))


def _log_amount(raw: Array, scale: Array, shape: Array) -> Array:
    """Return the logarithm of the mean of a gamma amount in metres, within its bounds.

    Raw zero corresponds to the climatology's scale. The 99.9 % quantile in units of the mean is
    that of Wilson and Hilferty (1931), doi:10.1073/pnas.17.12.684.
    """
    xp = namespace(raw)
    reach = (1.0 - 1.0 / (9.0 * shape) + _TAIL / (3.0 * xp.sqrt(shape))) ** 3
    top = xp.minimum(math.log(LARGEST) - xp.log(reach), xp.zeros_like(shape) + math.log(WETTEST))
    return _above(_below(xp.like(torch.log(scale), raw) + raw, top), math.log(_FAINTEST))


class _InZ(DistributionHead):
    """The base class of heads in ``z = log1p(tp / ε)``."""

    @property
    def epsilon(self) -> float:
        """ε in metres."""
        if self.options.epsilon is None:
            raise OptionError(
                "the head has no epsilon yet.",
                fix="heads.build(options.for_climate(mean_amount), ...)",
            )
        return self.options.epsilon

    @property
    def _top(self) -> float:
        return math.log(WETTEST / self.epsilon)

    @property
    def _lift(self) -> torch.Tensor:
        """What the soft upper bound takes from z = 0."""
        return torch.nn.functional.softplus(torch.tensor(-self._top))

    def _set_scale(self, climatology: Climatology) -> None:
        import numpy as np

        z = distributions.to_latent(climatology.values, self.epsilon)
        mean = float(climatology.shares @ z)
        spread = float(np.sqrt(climatology.shares @ (z - mean) ** 2))
        self.scale.fill_(min(max(spread, 0.05), 2.0))


class CensoredNormalHead(_InZ):
    """A normal in z, censored at zero, trained on its closed-form CRPS in z.

    That score gives a threshold t the weight 1/(ε + t). μ is bounded above so that
    ``ε e^{μ+σ²/2}`` stays below :data:`WETTEST`, and below at −8. σ lies between 0.001 (or μ/300)
    and ``largest_sigma``.
    """

    outputs = 2

    @property
    def law(self) -> Family:
        """The censored normal in z."""
        return distributions.CensoredNormal(self.epsilon)

    def _bounded(self, raw: torch.Tensor) -> Params:
        xp = namespace(raw)
        sigma = _between(raw[:, 1], *self.options.sigma_bounds)
        top = xp.minimum(
            self._top - 0.5 * sigma**2, math.log(LARGEST / self.epsilon) - _TAIL * sigma
        )
        mu = _above(_below(xp.like(self.scale, raw) * raw[:, 0], top), _DRIEST)
        return {"mu": mu, "sigma": xp.maximum(sigma, xp.constant(mu) / LARGEST_RATIO)}

    def _score(self, params: Params, y: torch.Tensor) -> torch.Tensor:
        z = distributions.to_latent(y, self.epsilon)
        return distributions.censored_normal_crps_z(params["mu"], params["sigma"], z)


class HurdleLognormalHead(DistributionHead):
    """A probability of rain and a lognormal amount, trained on the closed-form CRPS in metres."""

    outputs = 3

    @property
    def law(self) -> Family:
        """The hurdle family with lognormal amounts."""
        return distributions.HurdleLognormal()

    def _bounded(self, raw: torch.Tensor) -> Params:
        xp = namespace(raw)
        sigma = _between(raw[:, 2], *self.options.sigma_bounds)
        middle = xp.like(torch.log(self.scale / _MM), raw)
        top = xp.minimum(
            math.log(WETTEST / _MM) - 0.5 * sigma**2, math.log(LARGEST / _MM) - _TAIL * sigma
        )
        mu = _below(middle + raw[:, 1], top)
        return {
            "p": _chance(raw[:, 0]),
            "mu": _above(mu, math.log(_FAINTEST / _MM)),
            "sigma": sigma,
        }

    def _set_scale(self, climatology: Climatology) -> None:
        self.scale.fill_(_mean_given_rain(climatology))


class HurdleGammaHead(DistributionHead):
    """A probability of rain and a gamma amount, trained on the closed-form CRPS in metres."""

    outputs = 3

    @property
    def law(self) -> Family:
        """The hurdle family with gamma amounts."""
        return distributions.HurdleGamma()

    def _bounded(self, raw: torch.Tensor) -> Params:
        shape = _log_between(raw[:, 2], *_SHAPES)
        amount = namespace(raw).exp(_log_amount(raw[:, 1], self.scale, shape))
        return {"p": _chance(raw[:, 0]), "shape": shape, "amount": amount}

    def _set_scale(self, climatology: Climatology) -> None:
        self.scale.fill_(_mean_given_rain(climatology))


class CsgdHead(DistributionHead):
    """A censored shifted gamma, trained on its closed-form CRPS in metres.

    The shift is predicted at every pixel.
    """

    outputs = 3

    @property
    def law(self) -> Family:
        """The censored shifted gamma."""
        return distributions.CensoredShiftedGamma()

    def _bounded(self, raw: torch.Tensor) -> Params:
        shape = _log_between(raw[:, 2], *_SHAPES)
        xp = namespace(raw)
        whole = xp.exp(_log_amount(raw[:, 0], self.scale, shape))
        share = 1e-3 + xp.non_negative(_below(xp.softplus(raw[:, 1]), _LARGEST_SHIFT))
        return {"shape": shape, "scale": whole / shape, "shift": share * whole}

    def _set_scale(self, climatology: Climatology) -> None:
        self.scale.fill_(max(climatology.mean, _FAINTEST))


class QuantileHead(_InZ):
    """A probability of rain and quantiles of the amount, which cannot cross.

    Each quantile adds a positive increment in z to the one below. The head is trained on the
    closed-form CRPS in metres of the piecewise linear distribution.
    """

    least_offset = -5.0

    def __init__(self, options: HeadOptions, levels: int, width_in: int, patch_size: int) -> None:
        self._levels = options.levels or QUANTILE_LEVELS
        self.outputs = 1 + len(self._levels)
        super().__init__(options, levels, width_in, patch_size)

    @property
    def law(self) -> Family:
        """The quantile family, piecewise linear with an exponential tail."""
        return distributions.Quantiles(self._levels)

    def _bounded(self, raw: torch.Tensor) -> Params:
        xp = namespace(raw)
        steps = xp.softplus(raw[:, 1:]) * xp.like(self.scale, raw)
        z = _below(xp.cumsum(steps, 1), self._top) + xp.like(self._lift, raw)
        # Rounding at the soft bound may give negative values.
        values = distributions.from_latent(xp.non_negative(z), self.epsilon)
        return {
            "p": _chance(raw[:, 0]),
            **{f"q{i + 1}": values[:, i] for i in range(len(self._levels))},
        }

    def _start(self) -> torch.Tensor:
        return torch.cat([torch.zeros(1), torch.full((len(self._levels),), -1.0)]).double()


class DeterministicHead(_InZ):
    """One value in z, bounded at zero, trained on the absolute error in z.

    It therefore predicts the median.
    """

    outputs = 1
    least_offset = -0.6

    @property
    def law(self) -> Family:
        """The deterministic family, with all probability at one value."""
        return distributions.Deterministic()

    def _bounded(self, raw: torch.Tensor) -> Params:
        sharp = 4.0  # sharpness of the soft bound at zero, in units of the climatology's spread
        xp = namespace(raw)
        z = xp.like(self.scale, raw) * xp.softplus(raw[:, 0], sharp)
        z = _below(z, self._top) + xp.like(self._lift, raw)
        return {"value": xp.non_negative(distributions.from_latent(z, self.epsilon))}

    def _score(self, params: Params, y: torch.Tensor) -> torch.Tensor:
        z = distributions.to_latent(params["value"], self.epsilon)
        return namespace(z).abs(z - distributions.to_latent(y, self.epsilon))


class OwnHead(DeterministicHead):
    """Aurora 1.5's own decoder of hourly amounts, and the sum over six hours.

    Each hour is decoded from the surface latent of its own forward pass, on the model's logarithmic
    scale, and set to at least zero before hours are summed, as its own forecasts are. It starts as
    a copy of the model's layer (:meth:`start_from`) and is trained on the absolute error in z.
    """

    outputs = TIMESTEP_HOURS

    def _new_trunk(self) -> nn.Module:
        _, width_in, patch_size = self.shape
        return HourlyDecoder(width_in, patch_size)

    def start_from(self, layer: nn.Linear, location: float, scale: float) -> None:
        """Copy a layer of Aurora's decoder, whose output has this mean and standard deviation."""
        with torch.no_grad():
            self.trunk.out.weight.copy_(layer.weight)
            self.trunk.out.bias.copy_(layer.bias)
            self.location.fill_(location)
            self.scale.fill_(scale)

    def _bounded(self, raw: torch.Tensor) -> Params:
        logarithm = _Within.apply(self.location + self.scale * raw, _WETTEST_HOUR)
        return {"value": log_untransform(logarithm).sum(dim=1)}

    def initialise(self, climatology: Climatology) -> None:
        """Set the unit of the loss to the score of the climatology's median."""
        z = distributions.to_latent(torch.as_tensor(climatology.values), self.epsilon)
        shares = torch.as_tensor(climatology.shares)
        median = z[int((shares.cumsum(0) < 0.5).sum())]
        self.unit_of_loss.fill_(max(float((shares * (z - median).abs()).sum()), 1e-30))


class _Within(torch.autograd.Function):
    """Limit values to the range from zero to a largest one.

    Unlike that of ``clamp``, the gradient also reaches a value outside if it has to move inwards. A
    dry hour could not become wet otherwise.
    """

    @staticmethod
    def forward(ctx: BackwardCFunction, x: torch.Tensor, largest: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.largest = largest  # type: ignore[attr-defined]
        return x.clamp(0.0, largest)

    @staticmethod
    def backward(ctx: BackwardCFunction, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,), (gradient,) = ctx.saved_tensors, gradients
        low, high = x <= 0, x >= ctx.largest  # type: ignore[attr-defined]
        moves = ~(low | high) | (low & (gradient < 0)) | (high & (gradient > 0))
        return torch.where(moves, gradient, torch.zeros_like(gradient)), None


class NormalHead(DistributionHead):
    """A normal in units of the climatology's spread, trained on its CRPS."""

    outputs = 2

    @property
    def law(self) -> Family:
        """The normal family."""
        return distributions.Normal()

    def _bounded(self, raw: torch.Tensor) -> Params:
        xp = namespace(raw)
        scale = xp.like(self.scale, raw)
        return {
            "mu": xp.like(self.location, raw) + scale * raw[:, 0],
            "sigma": scale * _log_between(raw[:, 1], 1e-3, 10.0),
        }

    def _set_scale(self, climatology: Climatology) -> None:
        self.location.fill_(climatology.mean)
        self.scale.fill_(climatology.std)

    def _start(self) -> torch.Tensor:
        return torch.tensor([0.0, 0.8], dtype=torch.float64)  # σ close to the climatology's


class BoundedNormalHead(DistributionHead):
    """A normal censored at both ends of its range, trained on its closed-form CRPS."""

    outputs = 2

    @property
    def law(self) -> Family:
        """The normal censored at both ends."""
        lower, upper = self._ends
        return distributions.BoundedNormal(lower, upper)

    @property
    def _ends(self) -> tuple[float, float]:
        if self.options.bounds is None:
            raise OptionError(
                "the head has no bounds yet.",
                fix="HeadOptions(family='bounded_normal', bounds=(0, 1))",
            )
        return self.options.bounds

    def _bounded(self, raw: torch.Tensor) -> Params:
        xp = namespace(raw)
        lower, upper = self._ends
        span = upper - lower
        # With μ three ranges beyond either end, no probability is left inside.
        mu = _above(
            _below(
                xp.like(self.location, raw) + xp.like(self.scale, raw) * raw[:, 0], upper + 3 * span
            ),
            lower - 3 * span,
        )
        return {"mu": mu, "sigma": span * _log_between(raw[:, 1], 1e-3, 3.0)}

    def _set_scale(self, climatology: Climatology) -> None:
        self.location.fill_(climatology.mean)
        self.scale.fill_(climatology.std)


def _mean_given_rain(climatology: Climatology) -> float:
    return max(climatology.mean / max(climatology.wet_fraction, 1e-6), _FAINTEST)


CLASSES: dict[str, type[DistributionHead]] = {
    "censored_normal": CensoredNormalHead,
    "hurdle_lognormal": HurdleLognormalHead,
    "hurdle_gamma": HurdleGammaHead,
    "csgd": CsgdHead,
    "quantile": QuantileHead,
    "deterministic": DeterministicHead,
    "own": OwnHead,
    "normal": NormalHead,
    "bounded_normal": BoundedNormalHead,
}
"""Head classes by family."""

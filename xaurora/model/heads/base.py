"""The base class of all heads: trunk, initialisation from the climatology, and forecast values."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from xaurora.distributions import Family
from xaurora.distributions.namespace import Array, namespace
from xaurora.model.heads.options import HeadOptions
from xaurora.model.heads.trunk import LatentMLP

Params = dict[str, Array]
"""Parameters of a distribution by name, of Torch or, in training with it, of JAX."""


@dataclass(frozen=True)
class Climatology:
    """The distribution that a head starts from, over all points and times of the training period.

    Parameters
    ----------
    values : ndarray, ``(n,)``
        Bin centres, canonical units, increasing.
    shares : ndarray, ``(n,)``
        Probability of each bin, with a sum of one.
    """

    values: np.ndarray
    shares: np.ndarray

    @property
    def mean(self) -> float:
        """Mean of the distribution, canonical units."""
        return float(self.shares @ self.values)

    @property
    def std(self) -> float:
        """Standard deviation, canonical units, always positive."""
        spread = float(np.sqrt(np.sum(self.shares * (self.values - self.mean) ** 2)))
        return max(spread, 1e-6 * abs(self.mean), 1e-30)

    @property
    def wet_fraction(self) -> float:
        """Probability of a value above zero."""
        return float(self.shares[self.values > 0].sum())


class Head(Protocol):
    """The interface of a head for training and prediction.

    ``params`` are fields ``(b, h, w)``, float32. Values are in canonical units.
    """

    options: HeadOptions

    @property
    def law(self) -> Family:
        """The distribution family with its constants."""

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Return raw output ``(b, n, h, w)`` for latents."""

    def parameters_of(self, raw: Array) -> Params:
        """Return the parameters of the family from raw output."""

    def loss(self, params: Params, y: Array) -> Array:
        """Return the training score of ``y``, divided by the climatology's score."""

    def crps(self, params: Params, y: torch.Tensor) -> torch.Tensor:
        """Return the CRPS of ``y`` in canonical units."""

    def mean(self, params: Params) -> Array:
        """Return the mean."""

    def median(self, params: Params) -> torch.Tensor:
        """Return the median."""

    def quantile(self, params: Params, q: float) -> torch.Tensor:
        """Return the value not exceeded with probability ``q``."""

    def probability_above(self, params: Params, threshold: float) -> Array:
        """Return the probability of a value above ``threshold``."""

    def sample(
        self, params: Params, n: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return ``n`` values drawn independently at each pixel."""

    def initialise(self, climatology: Climatology) -> None:
        """Set the head to predict the climatology."""


class DistributionHead(nn.Module, abc.ABC):
    """A head of one distribution family.

    Subclasses define how raw output becomes parameters, and the score to train on.

    Parameters
    ----------
    options : HeadOptions
    levels, width_in : int
        Number and width of the latent levels.
    patch_size : int
        Pixels along the side of a patch.
    """

    outputs = 2
    least_offset = -8.0
    """Lower limit of the initial raw output. Below it the soft bounds saturate, so that dry points
    of the climatology would get no gradient.
    """

    def __init__(self, options: HeadOptions, levels: int, width_in: int, patch_size: int) -> None:
        super().__init__()
        self.options = options
        self.shape = (levels, width_in, patch_size)
        self.trunk: Any = self._new_trunk()
        # The trunk predicts deviations from the climatology, in units that suit the family.
        self.register_buffer("offset", torch.zeros(self.outputs))
        self.register_buffer("location", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("unit_of_loss", torch.ones(()))

    offset: torch.Tensor
    location: torch.Tensor
    scale: torch.Tensor
    unit_of_loss: torch.Tensor

    def _new_trunk(self) -> nn.Module:
        levels, width_in, patch_size = self.shape
        return LatentMLP(self.options, levels, width_in, self.outputs, patch_size)

    @property
    @abc.abstractmethod
    def law(self) -> Family:
        """The distribution family with its constants."""

    @abc.abstractmethod
    def _bounded(self, raw: torch.Tensor) -> Params:
        """Return parameters within their bounds from raw output ``(b, n, h, w)``.

        The raw output includes the climatology's offset.
        """

    def _score(self, params: Params, y: torch.Tensor) -> torch.Tensor:
        """Return the proper score to train on, ``(b, h, w)``.

        The default is the CRPS in canonical units.
        """
        return self.law.crps(params, y)

    def _set_scale(self, climatology: Climatology) -> None:
        """Set ``location`` and ``scale`` if the family uses them."""

    def _start(self) -> torch.Tensor:
        """Return the raw values from which the fit to the climatology starts."""
        return torch.zeros(self.outputs, dtype=torch.float64)

    # --- forecasts, scores and initialisation ---

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return raw output ``(b, n, h, w)``."""
        return self.trunk(latents)

    def parameters_of(self, raw: Array) -> Params:
        """Return parameters ``(b, h, w)`` from raw output, at least float32 even under autocast."""
        xp = namespace(raw)
        raw = xp.at_least_single(raw)
        return self._bounded(raw + xp.like(self.offset, raw)[:, None, None])

    def loss(self, params: Params, y: Array) -> Array:
        """Return the score relative to the climatology's own score, ``(b, h, w)``.

        The loss is therefore of order one in dry and wet climates alike.
        """
        return self._score(params, y) / namespace(y).like(self.unit_of_loss, y)

    def crps(self, params: Params, y: torch.Tensor) -> torch.Tensor:
        """Return the CRPS in canonical units, ``(b, h, w)``, computed in float64."""
        return self.law.crps({k: v.double() for k, v in params.items()}, y.double())

    def mean(self, params: Params) -> Array:
        """Return the mean in canonical units."""
        return self.law.mean(params)

    def median(self, params: Params) -> torch.Tensor:
        """Return the median in canonical units."""
        return self.quantile(params, 0.5)

    def quantile(self, params: Params, q: float) -> torch.Tensor:
        """Return the value not exceeded with probability ``q``."""
        like = next(iter(params.values()))  # computed in float64, because 1 − q may be small
        return self.law.quantile({k: v.double() for k, v in params.items()}, q).to(like.dtype)

    def probability_above(self, params: Params, threshold: float) -> Array:
        """Return ``P(value > threshold)``."""
        return (1.0 - self.law.cdf(params, threshold)).clip(0.0, 1.0)

    def sample(
        self, params: Params, n: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return ``(n, b, h, w)`` values drawn independently at each pixel by inverting the CDF."""
        like = next(iter(params.values()))
        u = torch.rand((n, *like.shape), generator=generator, dtype=torch.float64).clamp(
            1e-9, 1.0 - 1e-9
        )
        wide = {k: v.double()[None] for k, v in params.items()}
        return self.law.quantile(wide, u.to(like.device)).to(like.dtype)

    def initialise(self, climatology: Climatology) -> None:
        """Set the offset to the member of the family that fits the climatology best.

        The fit minimises the head's own score on the binned distribution with L-BFGS, for all
        families alike. The score it reaches becomes the unit of the loss.
        """
        self._set_scale(climatology)
        device = self.offset.device
        values = torch.as_tensor(climatology.values, dtype=torch.float64, device=device)[None, None]
        shares = torch.as_tensor(climatology.shares, dtype=torch.float64, device=device)[None, None]
        # Scale the score to order one, because L-BFGS stops at absolute tolerances.
        unit = (
            float((shares * self._score(self._start_params(values), values).detach()).sum()) or 1.0
        )
        raw = self._start().to(device).requires_grad_()
        search = torch.optim.LBFGS(
            [raw], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-10
        )

        def mean_score() -> torch.Tensor:
            params = self._bounded(raw[None, :, None, None].expand(1, -1, *values.shape[1:]))
            return (shares * self._score(params, values)).sum() / unit

        def closure() -> torch.Tensor:
            search.zero_grad()
            value = mean_score()
            value.backward()
            return value

        with torch.enable_grad():
            search.step(closure)
        with torch.no_grad():
            best = raw.detach() if torch.isfinite(raw).all() else self._start().to(device)
            self.offset.copy_(best.clamp(self.least_offset, 30.0).to(self.offset))
            raw.copy_(self.offset.to(raw))
            self.unit_of_loss.fill_(max(float(mean_score()) * unit, 1e-30))
            self.trunk.out.bias.zero_()

    def _start_params(self, like: torch.Tensor) -> Params:
        return self._bounded(
            self._start().to(like.device)[None, :, None, None].expand(1, -1, *like.shape[1:])
        )

    def config(self) -> dict[str, Any]:
        """Return everything that is needed to rebuild the head."""
        levels, width_in, patch_size = self.shape
        return {
            "options": asdict(self.options),
            "levels": levels,
            "width_in": width_in,
            "patch_size": patch_size,
        }


class HeadSet(nn.Module):
    """One head per target, all on the same latents.

    Parameters
    ----------
    heads : mapping of str to DistributionHead
        Heads by the target's canonical name.
    """

    def __init__(self, heads: Mapping[str, DistributionHead]) -> None:
        super().__init__()
        # The prefix is needed because submodules cannot be called, for example, "type" or "values".
        self.heads = nn.ModuleDict({f"of_{name}": head for name, head in heads.items()})

    def forward(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return raw output ``(b, n, h, w)`` by target."""
        return {name: head(latents) for name, head in self.items()}

    @property
    def surface_only(self) -> bool:
        """Whether all heads read the surface latent alone."""
        return all(head.options.surface_only for _, head in self.items())

    @property
    def sums_hours(self) -> bool:
        """Whether some head reads the surface latents of six hours."""
        return any(head.options.sums_hours for _, head in self.items())

    def items(self) -> list[tuple[str, DistributionHead]]:
        """Return the targets with their heads."""
        heads: Any = self.heads
        return [(key.removeprefix("of_"), head) for key, head in heads.items()]

    def __getitem__(self, name: str) -> DistributionHead:
        return self.heads[f"of_{name}"]  # type: ignore[return-value]

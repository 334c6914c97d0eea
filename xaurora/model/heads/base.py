"""What all heads share: the trunk, the climatology that they start from, and what follows from
their family's closed forms.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from xaurora.distributions import Family
from xaurora.model.heads.options import HeadOptions
from xaurora.model.heads.trunk import LatentMLP

Params = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Climatology:
    """The distribution that a head starts from: of all points and times of the training period.

    Parameters
    ----------
    values : ndarray, ``(n,)``
        Centres of bins, canonical units, increasing.
    shares : ndarray, ``(n,)``
        Share of each; they sum to one.
    """

    values: np.ndarray
    shares: np.ndarray

    @property
    def mean(self) -> float:
        """Mean."""
        return float(self.shares @ self.values)

    @property
    def std(self) -> float:
        """Standard deviation, never quite zero."""
        spread = float(np.sqrt(np.sum(self.shares * (self.values - self.mean) ** 2)))
        return max(spread, 1e-6 * abs(self.mean), 1e-30)

    @property
    def wet_fraction(self) -> float:
        """Share above zero."""
        return float(self.shares[self.values > 0].sum())


class Head(Protocol):
    """What training and prediction need of a head. ``params`` are fields ``(b, h, w)``, float32;
    values are in canonical units.
    """

    options: HeadOptions

    @property
    def law(self) -> Family: ...
    def __call__(self, latents: torch.Tensor) -> torch.Tensor: ...
    def parameters_of(self, raw: torch.Tensor) -> Params: ...
    def loss(self, params: Params, y: torch.Tensor) -> torch.Tensor: ...
    def crps(self, params: Params, y: torch.Tensor) -> torch.Tensor: ...
    def mean(self, params: Params) -> torch.Tensor: ...
    def median(self, params: Params) -> torch.Tensor: ...
    def quantile(self, params: Params, q: float) -> torch.Tensor: ...
    def probability_above(self, params: Params, threshold: float) -> torch.Tensor: ...
    def sample(
        self, params: Params, n: int, generator: torch.Generator | None = None
    ) -> torch.Tensor: ...
    def initialise(self, climatology: Climatology) -> None: ...


class DistributionHead(nn.Module, abc.ABC):
    """A head of one family: subclasses say how raw output becomes parameters, and which score they
    train on.

    Parameters
    ----------
    options : HeadOptions
    levels, width_in : int
        Latent levels and their width.
    patch_size : int
        Pixels along a patch's side.
    """

    outputs = 2
    least_offset = -8.0
    """Smallest raw value to start from: far out on a soft corner no gradient would reach what was
    dry in the climatology.
    """

    def __init__(self, options: HeadOptions, levels: int, width_in: int, patch_size: int) -> None:
        super().__init__()
        self.options = options
        self.shape = (levels, width_in, patch_size)
        self.trunk = LatentMLP(options, levels, width_in, self.outputs, patch_size)
        # The trunk learns deviations from the climatology, in units that fit the family.
        self.register_buffer("offset", torch.zeros(self.outputs))
        self.register_buffer("location", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("unit_of_loss", torch.ones(()))

    offset: torch.Tensor
    location: torch.Tensor
    scale: torch.Tensor
    unit_of_loss: torch.Tensor

    @property
    @abc.abstractmethod
    def law(self) -> Family:
        """The family with its constants."""

    @abc.abstractmethod
    def _bounded(self, raw: torch.Tensor) -> Params:
        """Raw output with the climatology's offset added, ``(b, n, h, w)`` → parameters within
        their bounds.
        """

    def _score(self, params: Params, y: torch.Tensor) -> torch.Tensor:
        """The proper score that is trained on, ``(b, h, w)``; by default the CRPS in canonical
        units.
        """
        return self.law.crps(params, y)

    def _set_scale(self, climatology: Climatology) -> None:
        """Set ``location`` and ``scale`` where the family uses them."""

    def _start(self) -> torch.Tensor:
        """Raw values from which the search for the climatology starts."""
        return torch.zeros(self.outputs, dtype=torch.float64)

    # --- what follows ---

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Raw output ``(b, n, h, w)``."""
        return self.trunk(latents)

    def parameters_of(self, raw: torch.Tensor) -> Params:
        """Raw output → parameters ``(b, h, w)``, float32 also under autocast."""
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        return self._bounded(raw + self.offset.to(raw)[:, None, None])

    def loss(self, params: Params, y: torch.Tensor) -> torch.Tensor:
        """The score in units of the climatology's own, ``(b, h, w)``: a dry region weighs no less
        than a wet one.
        """
        return self._score(params, y) / self.unit_of_loss.to(y)

    def crps(self, params: Params, y: torch.Tensor) -> torch.Tensor:
        """CRPS in canonical units, ``(b, h, w)``, computed in float64."""
        return self.law.crps({k: v.double() for k, v in params.items()}, y.double())

    def mean(self, params: Params) -> torch.Tensor:
        """Mean, canonical units."""
        return self.law.mean(params)

    def median(self, params: Params) -> torch.Tensor:
        """Median, canonical units."""
        return self.quantile(params, 0.5)

    def quantile(self, params: Params, q: float) -> torch.Tensor:
        """Value not exceeded with probability ``q``."""
        like = next(iter(params.values()))  # in float64: 1 − q may be small
        return self.law.quantile({k: v.double() for k, v in params.items()}, q).to(like.dtype)

    def probability_above(self, params: Params, threshold: float) -> torch.Tensor:
        """``P(value > threshold)``."""
        return (1.0 - self.law.cdf(params, threshold)).clamp(0.0, 1.0)

    def sample(
        self, params: Params, n: int, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """``(n, b, h, w)`` values, each pixel on its own, by the inverse of the cdf."""
        like = next(iter(params.values()))
        u = torch.rand((n, *like.shape), generator=generator, dtype=torch.float64).clamp(
            1e-9, 1.0 - 1e-9
        )
        wide = {k: v.double()[None] for k, v in params.items()}
        return self.law.quantile(wide, u.to(like.device)).to(like.dtype)

    def initialise(self, climatology: Climatology) -> None:
        """Start at the member of the family that fits the climatology best by the head's own score.

        Found by L-BFGS on the binned distribution, for all families alike. The score reached
        becomes the unit of the loss.
        """
        self._set_scale(climatology)
        device = self.offset.device
        values = torch.as_tensor(climatology.values, dtype=torch.float64, device=device)[None, None]
        shares = torch.as_tensor(climatology.shares, dtype=torch.float64, device=device)[None, None]
        # Values of order one: L-BFGS stops by absolute tolerances.
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
        """All that is needed to build the head again."""
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
        By the target's canonical name.
    """

    def __init__(self, heads: Mapping[str, DistributionHead]) -> None:
        super().__init__()
        # Modules cannot have any name: "type" and "values" are taken.
        self.heads = nn.ModuleDict({f"of_{name}": head for name, head in heads.items()})

    def forward(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """Raw output ``(b, n, h, w)`` by target."""
        return {name: head(latents) for name, head in self.items()}

    def items(self) -> list[tuple[str, DistributionHead]]:
        """Targets and their heads."""
        return [(key.removeprefix("of_"), head) for key, head in self.heads.items()]  # type: ignore[misc]

    def __getitem__(self, name: str) -> DistributionHead:
        return self.heads[f"of_{name}"]  # type: ignore[return-value]

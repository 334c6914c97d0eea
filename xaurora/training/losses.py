"""Training losses: the scores of the heads and the loss on Aurora's own variables.

The halo is left out, and points without truth get zero weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from aurora import Aurora, Batch
from aurora.normalisation import log_transform

from xaurora.fields.grid.lattice import Grid
from xaurora.fields.grid.weights import latitude_weights
from xaurora.model.aurora import AuroraWithHead, Step
from xaurora.model.heads import DistributionHead
from xaurora.model.loader import Truth
from xaurora.model.normalisation import atmos_statistics, surface_statistics

# Weights of the loss on Aurora's own variables: Bodnar et al. (2025), supplement D.1. Other
# variables have weight 1.
_SHARES = {"surface": 0.25, "atmos": 1.0}
_WEIGHTS = {
    "surface": {"2t": 3.0, "msl": 1.5, "10u": 0.77, "10v": 0.66},
    "atmos": {"z": 2.8, "q": 0.78, "t": 1.7, "u": 0.87, "v": 0.6},
}

Trim = tuple[slice, slice]


@dataclass(frozen=True)
class Domain:
    """The part of a grid that is scored, with area weights.

    Parameters
    ----------
    area : torch.Tensor, ``(h, 1)``
        Relative cell areas.
    trim : tuple of slice
        Rows and columns that remain after removing the halo.
    """

    area: torch.Tensor
    trim: Trim = (slice(None), slice(None))

    @classmethod
    def of(cls, grid: Grid, trim: Trim, device: torch.device) -> Domain:
        """Return the domain of a grid."""
        area = torch.from_numpy(latitude_weights(grid.latitude)).float().to(device)[:, None]
        return cls(area, trim)


@dataclass(frozen=True)
class Domains:
    """The domains on which Aurora's own variables and the targets are scored."""

    base: Domain
    targets: Domain


def step_loss(
    module: AuroraWithHead, step: Step, truth: Truth, domains: Domains, base_loss: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of one six-hour step and its components.

    Parameters
    ----------
    module : AuroraWithHead
    step : Step
        Output of the model.
    truth : Truth
    domains : Domains
    base_loss : float
        Weight of the loss on Aurora's own variables. 0 turns it off.

    Returns
    -------
    tuple
        The scalar loss, and a dict of detached components: ``head_loss``, ``<target>_loss``,
        ``base_loss``, and the mean squared and absolute errors of each target's mean and of the
        base's variables (``base``, in units of their standard deviations).
    """
    parts: dict[str, torch.Tensor] = {}
    device = domains.base.area.device
    score = torch.zeros((), device=device)
    for name, head in module.heads.items():
        target = truth.targets[name].to(device)
        params, y = head.parameters_of(step.raw[name]), valid_target(head, target)
        own = mean(head.loss(params, y), target, domains.targets)
        score = score + own / len(truth.targets)
        if len(truth.targets) > 1:
            parts[f"{name}_loss"] = own.detach()
        with torch.no_grad():
            error = head.mean(params) - y
            parts[f"{name}:squares"] = mean(error**2, target, domains.targets)
            parts[f"{name}:absolute"] = mean(error.abs(), target, domains.targets)
    if truth.targets:
        parts["head_loss"] = score.detach()
    if base_loss and truth.state is not None:
        state, squares, absolute = base_loss_terms(
            module.base, step.prediction, truth.state, domains.base, tuple(module.inputs)
        )
        parts |= {"base_loss": state.detach(), "base:squares": squares, "base:absolute": absolute}
        score = score + base_loss * state
    return score, parts


def valid_target(head: DistributionHead, target: torch.Tensor) -> torch.Tensor:
    """Return the truth with gaps set to zero and values clipped to the range of the family.

    Gaps get zero weight later, in :func:`mean`.
    """
    y = target.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    low, high = head.options.limits
    return y if low is None and high is None else y.clamp(low, high)


def mean(values: torch.Tensor, target: torch.Tensor, domain: Domain) -> torch.Tensor:
    """Return the area-weighted mean over points with truth, averaged over samples.

    The halo is excluded, and a sample without any truth contributes zero.
    """
    rows, columns = domain.trim
    weight = (torch.isfinite(target) * domain.area)[..., rows, columns]
    inside = values[..., rows, columns]
    total = (torch.where(weight > 0, inside, torch.zeros_like(inside)) * weight).sum(dim=(-2, -1))
    return (total / weight.sum(dim=(-2, -1)).clamp(min=1e-12)).mean()


def base_loss_terms(
    base: Aurora,
    prediction: Batch,
    truth: dict[str, dict[str, torch.Tensor]],
    domain: Domain,
    without: tuple[str, ...] = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss on Aurora's own variables, and their mean squared and absolute errors.

    The loss is the weighted, latitude-weighted mean absolute error of the normalised variables. The
    mean squared and absolute errors are unweighted across variables, also in normalised units.

    References
    ----------
    Bodnar et al. (2025), doi:10.1038/s41586-025-09005-y, supplement D.1.
    """
    area, (rows, columns) = domain.area, domain.trim
    total = torch.zeros((), device=area.device)
    squares, absolute = torch.zeros_like(total), torch.zeros_like(total)
    weight = area / area[rows].mean()
    predicted = {"surface": prediction.surf_vars, "atmos": prediction.atmos_vars}
    count = 0
    for kind in ("surface", "atmos"):
        for name, values in truth[kind].items():
            if kind == "surface" and name in without:
                continue  # a target that is also an input is scored by its head
            if kind == "surface" and name == "insolation":
                continue  # it is computed, not predicted
            scale = _scales(base, kind, name, prediction.metadata.atmos_levels).to(area.device)
            forecast, truth_here = predicted[kind][name][:, 0], values.to(area.device)
            if name in getattr(base, "log_transformed_surf_vars", ()):
                forecast, truth_here = _as_log(forecast), _as_log(truth_here)
            error = ((forecast - truth_here).abs() / scale)[..., rows, columns]
            inside = weight[rows]
            own = (error * inside).mean()
            total = total + base_weight(kind, name) * own
            absolute = absolute + own.detach()
            squares = squares + (error.detach() ** 2 * inside).mean()
            count += 1
    return total / count, squares / count, absolute / count


def _as_log(values: torch.Tensor) -> torch.Tensor:
    """Return values on the scale on which Aurora 1.5 predicts them."""
    # The floor of the inverse transform is -0.001, where the logarithm diverges.
    return log_transform(values.clamp(min=-0.00099))


def base_weight(kind: str, name: str) -> float:
    """Return the weight of one of Aurora's own variables in the loss."""
    return _SHARES[kind] * _WEIGHTS[kind].get(name, 1.0)


def _scales(base: Aurora, kind: str, name: str, levels: tuple[int | float, ...]) -> torch.Tensor:
    if kind == "surface":
        return torch.tensor(surface_statistics(base, name)[1])
    return torch.tensor([scale for _, scale in atmos_statistics(base, name, levels)])[:, None, None]

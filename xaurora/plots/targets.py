"""What a target looks like before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import (
    MissingVariableError,
)
from xaurora.plots.maps import field, pyplot

if TYPE_CHECKING:
    from xaurora.utils.types import AnyAxes

_MOST_FRAMES = 200  # frames of a target that are read for its overview


def target(
    ds: xr.Dataset, name: str = "tp", *, truth: xr.Dataset | None = None, ax: AnyAxes = None
) -> AnyAxes:
    """Draw an overview of a target: mean, wet fraction or spread, histogram, time series.

    Reads at most 200 of its times.

    Parameters
    ----------
    ds : Dataset
        Fields.
    name : str
        The target. Precipitation is shown as the six-hour totals that are trained on.
    truth : Dataset, optional
        Data that the target is taken from, as in ``finetune``.
    ax : sequence of four matplotlib axes, optional

    Returns
    -------
    ndarray of matplotlib axes, ``(4,)``

    Raises
    ------
    MissingVariableError
        If the target has no finite value.
    """
    from xaurora.fields import conventions, targets
    from xaurora.fields.grid.weights import latitude_weights
    from xaurora.fields.truth import resolve_targets

    fields = conventions.standardise(ds, targets.recognise(ds, () if truth is not None else [name]))
    (resolved,) = resolve_targets(fields, [name], truth)
    unit, factor = targets.unit_of(resolved.variable)
    times = resolved.times[
        np.unique(
            np.linspace(0, len(resolved.times) - 1, min(len(resolved.times), _MOST_FRAMES)).astype(
                int
            )
        )
    ]
    values = resolved.values.sel(time=times).values.astype(np.float64)
    if not np.isfinite(values).any():
        raise MissingVariableError(
            f"'{resolved.item.source}' contains only missing values.",
            fix="check the target: ds['tp'].notnull().sum()",
        )
    if resolved.is_rain:
        values = np.where(values < 0, 0.0, values)
    area = np.broadcast_to(latitude_weights(fields.layout.grid.latitude)[:, None], values.shape[1:])
    if ax is None:
        _, made = pyplot().subplots(2, 2, figsize=(12, 7.5), layout="constrained")
        ax = made.ravel()
        few = (
            f", {len(times)} of {len(resolved.times)} times"
            if len(times) < len(resolved.times)
            else ""
        )
        made[0, 0].figure.suptitle(
            f"{resolved.variable.long_name} ({resolved.item.source}) as trained on{few}",
            fontsize=12,
        )
    like = resolved.values.isel(time=0, drop=True)
    there = np.isfinite(values)
    count = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, np.where(there, values, 0.0).sum(axis=0) / count, np.nan)
        if resolved.is_rain:
            second, label = (
                np.where(count > 0, (values > 0).sum(axis=0) / count, np.nan),
                "wet fraction",
            )
        else:
            spread = np.where(there, (values - mean) ** 2, 0.0).sum(axis=0) / count
            second, label = np.sqrt(spread), "standard deviation"
    what = "6 h total" if resolved.is_rain else resolved.variable.long_name.lower()
    field(
        like.copy(data=mean * factor).assign_attrs(units=unit),
        title=f"mean {what}",
        rain=False,
        ax=ax[0],
    )
    limits = (0.0, 1.0) if resolved.is_rain else None
    scaled = second if resolved.is_rain else second * factor
    field(
        like.copy(data=scaled).assign_attrs(units="" if resolved.is_rain else unit),
        title=label,
        rain=False,
        limits=limits,
        ax=ax[1],
    )
    _histogram(
        values[there] * factor,
        np.broadcast_to(area, values.shape)[there],
        unit,
        rain=resolved.is_rain,
        ax=ax[2],
    )
    _draw_mean(ax[3], times, values * factor, there * area, unit)
    return ax


def _histogram(
    values: np.ndarray, weights: np.ndarray, unit: str, *, rain: bool, ax: AnyAxes
) -> None:
    """Draw a histogram of values.

    Precipitation amounts are drawn on a logarithmic axis, with the dry share in the title.
    """
    total = weights.sum()
    if rain:
        wet = values > 0
        lowest = max(float(np.quantile(values[wet], 0.001)), 1e-6) if wet.any() else 1e-3
        bins: Any = np.geomspace(lowest, max(float(values.max()), 10 * lowest), 60)
        ax.set_xscale("log")
        dry = 1.0 - float(weights[wet].sum() / total)
        ax.set_title(
            f"wet amounts; dry: {dry:.0%}, largest: {float(values.max()):.3g} {unit}", fontsize=10
        )
        values, weights = values[wet], weights[wet]
    else:
        bins = 60
        ax.set_title(f"{float(values.min()):.3g} to {float(values.max()):.3g} {unit}", fontsize=10)
    ax.hist(values, bins=bins, weights=weights / total, color="#55a3e0")
    ax.set_xlabel(unit + (" in 6 h" if rain else ""))
    ax.set_ylabel("share of points and times")


def _draw_mean(
    ax: AnyAxes, times: np.ndarray, values: np.ndarray, weights: np.ndarray, unit: str
) -> None:
    """Draw the mean over the area by time; both arrays are ``(time, h, w)``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        series = np.where(weights > 0, values, 0.0).reshape(len(times), -1) * weights.reshape(
            len(times), -1
        )
        series = series.sum(axis=1) / weights.reshape(len(times), -1).sum(axis=1)
    ax.plot(times, series, color="#1f5aa6", linewidth=1.2, marker="." if len(times) < 60 else None)
    ax.set_title("mean over the area", fontsize=10)
    ax.set_ylabel(unit)
    ax.tick_params(axis="x", labelrotation=30)
    if len(times) > 1:
        ax.set_xlim(times[0], times[-1])

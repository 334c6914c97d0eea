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
    (learnt,) = resolve_targets(fields, [name], truth)
    unit, factor = targets.unit_of(learnt.variable)
    times = learnt.times[
        np.unique(
            np.linspace(0, len(learnt.times) - 1, min(len(learnt.times), _MOST_FRAMES)).astype(int)
        )
    ]
    values = learnt.values.sel(time=times).values.astype(np.float64)
    if not np.isfinite(values).any():
        raise MissingVariableError(
            f"'{learnt.item.source}' contains only missing values.",
            fix="check the target: ds['tp'].notnull().sum()",
        )
    if learnt.is_rain:
        values = np.where(values < 0, 0.0, values)
    area = np.broadcast_to(latitude_weights(fields.layout.grid.latitude)[:, None], values.shape[1:])
    if ax is None:
        _, made = pyplot().subplots(2, 2, figsize=(12, 7.5), layout="constrained")
        ax = made.ravel()
        few = (
            f", {len(times)} of {len(learnt.times)} times" if len(times) < len(learnt.times) else ""
        )
        made[0, 0].figure.suptitle(
            f"{learnt.variable.long_name} ({learnt.item.source}) as trained on{few}", fontsize=12
        )
    like = learnt.values.isel(time=0, drop=True)
    there = np.isfinite(values)
    count = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, np.where(there, values, 0.0).sum(axis=0) / count, np.nan)
        if learnt.is_rain:
            second, label = (
                np.where(count > 0, (values > 0).sum(axis=0) / count, np.nan),
                "wet fraction",
            )
        else:
            spread = np.where(there, (values - mean) ** 2, 0.0).sum(axis=0) / count
            second, label = np.sqrt(spread), "standard deviation"
    what = "6 h total" if learnt.is_rain else learnt.variable.long_name.lower()
    field(
        like.copy(data=mean * factor).assign_attrs(units=unit),
        title=f"mean {what}",
        rain=False,
        ax=ax[0],
    )
    limits = (0.0, 1.0) if learnt.is_rain else None
    scaled = second if learnt.is_rain else second * factor
    field(
        like.copy(data=scaled).assign_attrs(units="" if learnt.is_rain else unit),
        title=label,
        rain=False,
        limits=limits,
        ax=ax[1],
    )
    _histogram(
        values[there] * factor,
        np.broadcast_to(area, values.shape)[there],
        unit,
        rain=learnt.is_rain,
        ax=ax[2],
    )
    weights = there * area
    with np.errstate(invalid="ignore", divide="ignore"):
        series = np.where(there, values, 0.0).reshape(len(times), -1) * weights.reshape(
            len(times), -1
        )
        series = series.sum(axis=1) / weights.reshape(len(times), -1).sum(axis=1) * factor
    ax[3].plot(
        times, series, color="#1f5aa6", linewidth=1.2, marker="." if len(times) < 60 else None
    )
    ax[3].set_title("mean over the area", fontsize=10)
    ax[3].set_ylabel(unit)
    ax[3].tick_params(axis="x", labelrotation=30)
    if len(times) > 1:
        ax[3].set_xlim(times[0], times[-1])
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

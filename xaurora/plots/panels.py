"""Helpers shared by the plots: axes, colours, labels, and selection of scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from xaurora.errors import LeadTimeError, MissingVariableError, OptionError
from xaurora.fields import variables
from xaurora.fields.unit_conversion import conversion
from xaurora.utils.types import AnyAxes, LeadLike

COLOURS = ("#1f5aa6", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#444444")


def axes(ax: AnyAxes, size: tuple[float, float] = (5.2, 3.8)) -> AnyAxes:
    """Return the given axes, or new ones."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def colour_of(label: str, position: int, colours: Mapping[str, str] | None) -> str:
    """Return the colour of a model's line: the one it has elsewhere, or that of its position."""
    return (colours or {}).get(label, COLOURS[position % len(COLOURS)])


def model_colours(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour for each model, to be the same in all figures of a page."""
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}


def scores_by_label(scores: xr.Dataset | Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Return scores by label. A single Dataset gets the label ``"forecast"``."""
    return {"forecast": scores} if isinstance(scores, xr.Dataset) else dict(scores)


def select_metric(
    ds: xr.Dataset, name: str, metric: str | None, region: str | None, lead: LeadLike | None = None
) -> xr.DataArray:
    """Return one metric of one region, the first region by default.

    Raises
    ------
    MissingVariableError
        If the scores do not hold the metric. The fix says how to compute it.
    OptionError
        If the scores do not hold the region, or are grouped by time or by lead bins.
    LeadTimeError
        If the scores do not hold the lead time.
    """
    from xaurora.evaluation.metrics import ALIASES, METRICS

    if metric is not None and name in ds and metric not in ds["metric"].values:
        metric = ALIASES.get(metric, metric)
    suffix = max((m.suffix for m in METRICS.values() if name.endswith(m.suffix)), key=len)
    base = name.removesuffix(suffix)
    how = metric or next(n for n, m in METRICS.items() if m.suffix == suffix)
    if name not in ds or (metric is not None and metric not in ds["metric"].values):
        raise MissingVariableError(
            f"these scores do not contain {how!r} of '{base}', only"
            f" {sorted(map(str, ds.data_vars))}.",
            fix=f"evaluate(truth, metrics={[how]}), or metrics='all'",
        )
    da = ds[name] if metric is None else ds[name].sel(metric=metric)
    if region is not None and region not in da["region"].values:
        raise OptionError(
            f"these scores do not contain the region {region!r}, only"
            f" {list(map(str, da['region'].values))}.",
            fix="region=None for the first",
        )
    da = da.isel(region=0) if region is None else da.sel(region=region)
    if kept := [
        d for d in ("init_time", "season", "month", "hour", "year", "lead_bin") if d in da.dims
    ]:
        raise OptionError(
            f"these scores are grouped by {', '.join(kept)}, but a diagram shows one group.",
            fix=f"scores.isel({kept[0]}=0, drop=True)",
        )
    if lead is not None and "lead_time" in da.dims:
        da = da.isel(lead_time=lead) if isinstance(lead, int) else at_lead(da, lead)
    return da


_SHOWN_IN = {"kg kg-1": ("g/kg", 1e3), "Pa": ("hPa", 1e-2)}
"""Units that suit the size of errors, and the factor from canonical ones."""


def display_scale(da: xr.DataArray | xr.Variable, name: str, metric: str) -> tuple[float, str]:
    """Return the factor by which a score is multiplied for display, and its units.

    Precipitation is shown in mm, humidity in g/kg and pressure in hPa; squared errors in squared
    units, and ratios without units.
    """
    from xaurora.evaluation.metrics import ALIASES, METRICS

    spec = METRICS.get(ALIASES.get(metric, metric))
    kind = "" if spec is None else spec.units
    units = str(da.attrs.get("units", ""))
    if kind == "":
        return 1.0, ""
    known = variables.find(name)
    factor = 1.0
    if known is not None and (scale := conversion(units, known.units)):
        shown, more = ("mm", 1e3) if known.accumulated else _SHOWN_IN.get(known.units, ("", 1.0))
        if shown:
            factor, units = more * scale[0], shown
    units = re.sub(r"^m s ?(\*\*|\^)?-1$", "m/s", units)
    return (
        (factor, units)
        if kind == "own"
        else (factor**2, f"({units})²" if " " in units else f"{units}²")
    )


_ACRONYMS = (
    "rmse",
    "mse",
    "mae",
    "acc",
    "crps",
    "seeps",
    "csi",
    "ets",
    "fss",
    "pod",
    "far",
    "pofd",
)


def label_of(metric: str) -> str:
    """Return the label of a metric for display."""
    return metric.upper() if metric in _ACRONYMS else metric.replace("_", " ")


def lead_label(da: xr.DataArray) -> str:
    """Return the lead time of a score as a label, such as ``+6 h``."""
    value = da.coords.get("lead_time")
    return "" if value is None else f"+{float(value / np.timedelta64(1, 'h')):g} h"


def thresholds_axis(ax: AnyAxes, values: np.ndarray) -> None:
    """Set up a logarithmic axis of thresholds, with the thresholds as ticks."""
    from matplotlib.ticker import FixedLocator, NullLocator

    if (values > 0).all():
        ax.set_xscale("log")
    else:
        ax.set_xscale(
            "symlog", linthresh=float(values[values > 0].min()) if (values > 0).any() else 1.0
        )
    ax.xaxis.set_major_locator(FixedLocator(values.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{v:g}" for v in values])
    ax.set_xlabel("threshold in mm")


def plain_ticks(ax: AnyAxes, which: str) -> None:
    """Make an axis logarithmic, with ticks at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FixedLocator, NullLocator

    getattr(ax, f"set_{which}scale")("log")
    low, high = getattr(ax, f"get_{which}lim")()
    ticks = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_ticklabels([f"{t:g}" for t in ticks])


def at_lead(da: xr.DataArray, lead: LeadLike) -> xr.DataArray:
    """Select one lead time.

    Raises
    ------
    LeadTimeError
        If the scores do not hold it.
    """
    import pandas as pd

    try:
        return da.sel(lead_time=pd.Timedelta(lead))
    except (KeyError, ValueError, TypeError):
        there = ", ".join(f"{h:g}h" for h in da["lead_time"].values / np.timedelta64(1, "h"))
        raise LeadTimeError(
            f"these scores do not contain the lead time {lead!r}, only {there}.",
            fix=f"lead='{there.split(', ')[0]}'",
        ) from None


def at_threshold(da: xr.DataArray, threshold: float) -> xr.DataArray:
    """Select one threshold.

    Raises
    ------
    OptionError
        If it was not scored.
    """
    there = da["threshold_mm"].values
    near = np.flatnonzero(np.abs(there - threshold) <= 1e-6 * max(threshold, 1e-9))
    if not len(near):
        raise OptionError(
            f"these scores do not contain a threshold of {threshold:g} mm, only {there.tolist()}.",
            fix=f"threshold_mm={there[0]:g}",
        )
    return da.isel(threshold_mm=int(near[0]))


def middle_threshold(da: xr.DataArray) -> float:
    """Return the middle one of the thresholds at which there are values."""
    rest = [d for d in da.dims if d != "threshold_mm"]
    values = da["threshold_mm"].values
    scored = values[da.notnull().any(rest).values]
    values = scored if len(scored) else values
    return float(values[len(values) // 2])


def first_scores(scores: xr.Dataset | Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return the first of several scores, for diagrams that show one forecast."""
    return next(iter(scores_by_label(scores).values()))


def colour_of_lead(place: int, count: int) -> tuple[float, ...]:
    """Return the colour of a lead time: from dark, the first, to light."""
    import matplotlib as mpl

    return mpl.colormaps["viridis"](0.9 * place / max(count - 1, 1))

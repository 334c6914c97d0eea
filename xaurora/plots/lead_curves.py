"""Scores by lead time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import MissingVariableError, OptionError
from xaurora.fields import variables
from xaurora.fields.unit_conversion import conversion

if TYPE_CHECKING:
    from xaurora.utils.types import AnyAxes


def lead_curve(
    scores: xr.Dataset | Mapping[str, xr.Dataset],
    name: str = "tp",
    metric: str = "rmse",
    *,
    region: str | None = None,
    level: float | None = None,
    intervals: bool = True,
    colours: Mapping[str, str] | None = None,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Plot one metric by lead time, with one line per forecast.

    Parameters
    ----------
    scores : Dataset or dict of Dataset
        Scores from ``evaluate``, or a dict of them by label.
    name, metric, region, level
        What to plot; by default the first region and level. The same variable is also found under
        other names.
    intervals : bool
        With two or more forecasts, draw error bars on the first line: the 95 % interval of its
        difference from the next forecast that it can be paired with (:func:`xaurora.significance`).
    colours : dict of str, optional
        Colours of the forecasts' lines.
    ax : matplotlib axes, optional
    """
    from xaurora.plots.panels import axes, colour_of, display_scale, label_of, scores_by_label

    ax = axes(ax, (6.0, 4.0))
    units, several = "", scores_by_label(scores)
    first = next(iter(several.values()))
    key = first[name].attrs.get("xaurora_variable") if name in first else None
    for i, (label, ds) in enumerate(several.items()):
        colour = colour_of(label, i, colours)
        found = _name_in(ds, name, key)
        if found is None or metric not in ds["metric"].values:
            continue
        da = ds[found].sel(metric=metric)
        if region is None:
            region = str(da["region"].values[0])
        if region not in da["region"].values:
            continue  # scores of another region are not comparable
        da = _curve(da.sel(region=region), label, level)
        if not np.isfinite(da.values).any():
            continue
        own, units = display_scale(ds[found], name, metric)
        factor = own if ds is first else own * _alike(first, name, ds, found, metric)
        hours = ds["lead_time"].values / np.timedelta64(1, "h")
        ax.plot(hours, da.values * factor, "o-", label=label, color=colour, markersize=4)
        bars = (
            _bars(first, ds, name, found, metric, region, level)
            if intervals and ds is not first
            else None
        )
        if bars is not None:
            _draw_bars(ax, bars, da.sel(lead_time=bars["lead_time"]).values * factor)
            intervals = False  # one set of bars is enough
    if not ax.lines:
        raise MissingVariableError(
            f"none of these scores has {metric!r} of '{name}'.",
            fix=f"evaluate(truth, metrics=[{metric!r}])",
        )
    leads: Any = np.unique(np.concatenate([line.get_xdata() for line in ax.lines]))
    if len(leads) <= 12:
        ax.set_xticks(leads)
    ax.set_xlabel("lead time in h")
    ax.set_ylabel(f"{label_of(metric)} of {name}" + (f" in {units}" if units else ""))
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.legend(frameon=False)
    return ax


def _alike(first: xr.Dataset, name: str, ds: xr.Dataset, found: str, metric: str) -> float:
    """Return the factor that converts a score to the units of the first scores.

    1 if either unit is unknown, or for rain, which is always shown in mm.
    """
    from xaurora.evaluation.metrics import ALIASES, METRICS

    known = variables.find(name)
    kind = (
        METRICS[ALIASES.get(metric, metric)].units if ALIASES.get(metric, metric) in METRICS else ""
    )
    if name not in first or known is None or known.accumulated or kind == "":
        return 1.0
    scales = [
        conversion(str(d[n].attrs.get("units", "")), known.units)
        for d, n in ((first, name), (ds, found))
    ]
    if scales[0] is None or scales[1] is None:
        return 1.0
    return float((scales[1][0] / scales[0][0]) ** (2 if kind == "square" else 1))


def _bars(
    first: xr.Dataset,
    other: xr.Dataset,
    name: str,
    found: str,
    metric: str,
    region: str | None,
    level: float | None,
) -> xr.DataArray | None:
    """Return the interval of the first forecast's skill against another, or None.

    None for metrics where larger is better, and where the forecasts cannot be paired.
    """
    from xaurora.errors import XauroraError
    from xaurora.evaluation.metrics import ALIASES, METRICS
    from xaurora.evaluation.significance import significance

    if METRICS[ALIASES.get(metric, metric)].better != "low":
        return None
    try:
        # Keep only the samples of this variable: those of others would be resampled as well.
        alone = (
            ds.drop_vars(
                [c for c in ds.coords if "__" in str(c) and not str(c).startswith(f"{n}__")]
            )
            for ds, n in ((first, name), (other, found))
        )
        result = significance(*alone, metrics=[metric])
    except XauroraError:
        return None
    if name not in result:
        return None
    da = result[name].sel(metric=metric)
    da = da.isel(region=0) if region is None else da.sel(region=region)
    if "level" in da.dims:
        da = da.isel(level=0) if level is None else da.sel(level=level)
    return da if bool(np.isfinite(da.sel(estimate="low")).any()) else None


def _name_in(ds: xr.Dataset, name: str, key: str | None) -> str | None:
    """Return the name of a variable in other scores, which may use other names."""
    if name in ds:
        return name
    for other in ds.data_vars:
        if key and ds[other].attrs.get("xaurora_variable") == key and "metric" in ds[other].dims:
            return str(other)
    return None


def _curve(da: xr.DataArray, label: str, level: float | None) -> xr.DataArray:
    """Return one value per lead time.

    Raises
    ------
    OptionError
        If there are other dimensions, or there is no such level.
    """
    if kept := [str(d) for d in da.dims if d not in ("lead_time", "level")]:
        raise OptionError(
            f"the scores {label!r} have the extra dimension(s) {', '.join(kept)}, but a curve"
            " needs one value per lead time.",
            fix=f"scores.isel({kept[0]}=0, drop=True)",
        )
    if "level" not in da.dims:
        return da
    if level is not None and level not in da["level"].values:
        raise OptionError(
            f"the scores have no level {level!r}; they have {da['level'].values.tolist()}.",
            fix=f"level={da['level'].values[0]:g}",
        )
    return da.isel(level=0) if level is None else da.sel(level=level)


def _draw_bars(ax: AnyAxes, bars: xr.DataArray, reference: np.ndarray) -> None:
    """Draw the first forecast's score at both ends of the interval of its skill."""
    from xaurora.plots.panels import COLOURS

    middle = (1.0 - bars.sel(estimate="skill").values) * reference
    low, high = ((1.0 - bars.sel(estimate=e).values) * reference for e in ("high", "low"))
    ax.errorbar(
        bars["lead_time"].values / np.timedelta64(1, "h"),
        middle,
        [middle - low, high - middle],
        fmt="none",
        ecolor=COLOURS[0],
        capsize=3,
        linewidth=1,
    )

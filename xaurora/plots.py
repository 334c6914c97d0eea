"""Maps, triptychs and curves. Each returns Matplotlib axes and takes ``ax=``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from xaurora import variables
from xaurora.errors import InitTimeError, LeadTimeError, MissingVariableError, OptionError

RAIN_STEPS_MM = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 50)
"""mm in six hours; uneven, as rain maps are: half of all rain is drizzle, and the rest must stay apart."""
_RAIN_COLOURS = ("#e3f2fb", "#bcdff5", "#8cc5ee", "#55a3e0", "#2b7cc4", "#1f5aa6", "#3b3a8f", "#6a2c8a", "#a0287d")


def _pyplot() -> Any:
    import matplotlib.pyplot as plt

    return plt


def rain_colours() -> tuple[Any, Any]:
    """Colour map and norm of rain maps: white below 0.1 mm."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap(list(_RAIN_COLOURS[:-1]), name="rain").with_extremes(
        under="white", over=_RAIN_COLOURS[-1], bad="0.85"
    )
    return colours, BoundaryNorm(RAIN_STEPS_MM, len(RAIN_STEPS_MM) - 1)


def field(
    da: xr.DataArray,
    *,
    title: str = "",
    rain: bool | None = None,
    symmetric: bool = False,
    limits: tuple[float, float] | None = None,
    ax: Any = None,
) -> Any:
    """A map of one field.

    Parameters
    ----------
    da : DataArray
        Two dims, latitude and longitude; precipitation in any unit of length.
    title : str
    rain : bool, optional
        Draw in mm on the uneven colour steps; by default for precipitation.
    symmetric : bool
        Colours around zero, for differences.
    limits : tuple of float, optional
        Ends of the colour scale.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes
    """
    plt = _pyplot()
    if da.ndim != 2:
        raise OptionError(
            f"a map needs two dims, and '{da.name}' has {list(da.dims)}.", fix="da.isel(init_time=0, lead_time=0)"
        )
    lat, lon = da.dims
    if da[lat].ndim != 1 or str(lat).startswith("lon"):
        da = da.transpose()
        lat, lon = da.dims
    longitude = da[lon].values.astype(float)
    if (np.diff(longitude) < 0).any():  # across Greenwich or the date line: draw on, do not jump back
        longitude = np.where(longitude < longitude[0], longitude + 360.0, longitude)
    rain = _is_rain(da) if rain is None else rain
    values, units = da.values.astype(float), str(da.attrs.get("units", ""))
    if rain:
        values, units = values * _to_mm(units), "mm"
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    options: dict[str, Any] = {"shading": "nearest", "rasterized": True}
    extend = "neither"
    if rain and not symmetric:
        options["cmap"], options["norm"] = rain_colours()
        extend = "both"
    elif symmetric:
        top = limits[1] if limits else float(np.nanquantile(np.abs(values), 0.995)) or 1.0
        options |= {"cmap": "BrBG" if rain else "RdBu_r", "vmin": -top, "vmax": top}
        extend = "both"
    elif limits:
        options |= {"vmin": limits[0], "vmax": limits[1]}
    mesh = ax.pcolormesh(longitude, da[lat].values, values, **options)
    ax.set_aspect(1.0 / max(np.cos(np.deg2rad(float(da[lat].mean()))), 0.3) if np.ptp(longitude) < 120 else "auto")
    ax.set_xlabel("longitude")
    ax.set_ylabel("latitude")
    ax.set_title(title, fontsize=10)
    ax.figure.colorbar(mesh, ax=ax, label="" if units == "1" else units, shrink=0.85, extend=extend)
    return ax


def _is_rain(da: xr.DataArray) -> bool:
    known = variables.find(str(da.name))
    return known is not None and known.accumulated


def _to_mm(units: str) -> float:
    scale = variables.conversion(units, "m")
    return 1e3 * (scale[0] if scale else 1.0)


def _pick(fc: xr.Dataset, name: str, init_time: Any, lead: Any, level: float | None) -> xr.DataArray:
    import pandas as pd

    init_dim = "init_time" if "init_time" in fc.dims else "time"
    lead_dim = "lead_time" if "lead_time" in fc.dims else "prediction_timedelta"
    if name not in fc:
        raise MissingVariableError(
            f"'{name}' is not in the forecast, which holds {sorted(map(str, fc.data_vars))}.",
            fix=f"plot({sorted(map(str, fc.data_vars))[0]!r})",
        )
    da = fc[name]
    try:
        da = da.isel({init_dim: 0}) if init_time is None else da.sel({init_dim: pd.Timestamp(init_time)})
    except (KeyError, ValueError):
        raise InitTimeError(
            f"init time {init_time!r} is not in the forecast.", fix=f"init_time='{str(fc[init_dim].values[0])[:16]}'"
        ) from None
    try:
        da = da.isel({lead_dim: 0}) if lead is None else da.sel({lead_dim: pd.Timedelta(lead)})
    except (KeyError, ValueError):
        raise LeadTimeError(
            f"lead {lead!r} is not in the forecast.",
            fix=f"lead='{int(fc[lead_dim].values[0] / np.timedelta64(1, 'h'))}h'",
        ) from None
    if "number" in da.dims:
        da = da.mean("number", keep_attrs=True)
    if "level" in da.dims:
        da = da.isel(level=0) if level is None else da.sel(level=level)
    return da


def forecast(
    fc: xr.Dataset,
    name: str = "tp",
    *,
    init_time: Any = None,
    lead: Any = None,
    truth: xr.Dataset | None = None,
    level: float | None = None,
    ax: Any = None,
) -> Any:
    """A map of a forecast, or a triptych of forecast, truth and difference. See :meth:`xaurora.accessor.AuroraAccessor.plot`."""
    from xaurora import recognition
    from xaurora.errors import KindError

    if not recognition.is_forecast(fc):
        raise KindError(
            "this Dataset is no forecast (it has no lead times).",
            fix="fc = ds.aurora.predict('6h', model=...); fc.aurora.plot('tp')",
        )
    da = _pick(fc, name, init_time, lead, level)
    init = da.coords.get("init_time", da.coords.get("time"))
    lead_value = da.coords.get("lead_time", da.coords.get("prediction_timedelta"))
    stamp = (
        f"{str(init.values)[:13]} + {lead_value.values / np.timedelta64(1, 'h'):g} h"
        if init is not None and lead_value is not None
        else ""
    )
    if truth is None:
        return field(da, title=f"{name}, {stamp}", ax=ax)
    return _triptych(fc, da, name, stamp, truth, level, ax)


def _triptych(
    fc: xr.Dataset, da: xr.DataArray, name: str, stamp: str, truth: xr.Dataset, level: float | None, ax: Any
) -> Any:
    from xaurora.evaluation import alignment

    known = alignment.read_forecast(fc)
    right = alignment.read_truth(truth, known)
    key = next((k for k, item in known.fields.items() if item.source == name), None)
    if key is None:
        raise MissingVariableError(
            f"'{name}' is not a variable that forecast and truth can share.", fix="plot('tp', truth=...)"
        )
    item = known.fields[key]
    init = da.coords.get("init_time", da.coords.get("time"))
    lead = da.coords.get("lead_time", da.coords.get("prediction_timedelta"))
    i = int(np.flatnonzero(known.init_times == init.values)[0])
    j = int(np.flatnonzero(known.leads == lead.values)[0])
    levels = () if key[0] != "atmos" else ((level,) if level is not None else known.levels[:1])
    y = right.read(*key, known.init_times[i] + known.leads[j], levels)
    if y is None:
        raise InitTimeError(
            f"the truth has no field at the valid time of {stamp}.", fix="choose another init_time or lead"
        )
    f = known.raw(name, i, j)
    f = f.mean(axis=0) if known.members and f.ndim > y.ndim else f
    if key[0] == "atmos":
        f, y = f[known.levels.index(levels[0])], y[0]
    y = (y - item.offset) / item.scale
    like = xr.DataArray(
        f,
        dims=("latitude", "longitude"),
        coords={"latitude": known.latitude, "longitude": known.longitude},
        name=name,
        attrs=da.attrs,
    )
    axes = ax
    if axes is None:
        _, axes = _pyplot().subplots(1, 3, figsize=(15, 3.8), layout="constrained", sharey=True)
    low, high = float(np.nanmin([f, y])), float(np.nanmax([f, y]))
    field(like, title=f"forecast of {name}, {stamp}", limits=(low, high), ax=axes[0])
    field(like.copy(data=y), title="truth", limits=(low, high), ax=axes[1])
    field(like.copy(data=f - y), title="forecast − truth", symmetric=True, ax=axes[2])
    for later in axes[1:]:
        later.set_ylabel("")
    return axes


_MOST_FRAMES = 200  # of a target that are read for a picture


def target(ds: xr.Dataset, name: str = "tp", *, truth: xr.Dataset | None = None, ax: Any = None) -> Any:
    """What a target looks like before it is learnt: mean, wet fraction or spread, histogram, time series. Reads at most 200 of its times.

    Parameters
    ----------
    ds : Dataset
        Fields.
    name : str
        The target; precipitation is shown as the six-hour totals that are learnt.
    truth : Dataset, optional
        Where the target comes from, as in ``finetune``.
    ax : sequence of four matplotlib axes, optional

    Returns
    -------
    ndarray of matplotlib axes, ``(4,)``
    """
    from xaurora import conventions, targets
    from xaurora import grid as grids

    fields = conventions.standardise(ds, targets.recognise(ds, () if truth is not None else [name]))
    (learnt,) = targets.resolve(fields, [name], truth)
    unit, factor = targets.unit_of(learnt.variable)
    times = learnt.times[
        np.unique(np.linspace(0, len(learnt.times) - 1, min(len(learnt.times), _MOST_FRAMES)).astype(int))
    ]
    values = learnt.values.sel(time=times).values.astype(np.float64)
    if not np.isfinite(values).any():
        raise MissingVariableError(
            f"'{learnt.item.source}' has no value at all.", fix="look at the target: ds['tp'].notnull().sum()"
        )
    if learnt.is_rain:
        values = np.where(values < 0, 0.0, values)
    area = np.broadcast_to(grids.latitude_weights(fields.layout.grid.latitude)[:, None], values.shape[1:])
    if ax is None:
        _, made = _pyplot().subplots(2, 2, figsize=(12, 7.5), layout="constrained")
        ax = made.ravel()
        few = f", {len(times)} of {len(learnt.times)} times" if len(times) < len(learnt.times) else ""
        made[0, 0].figure.suptitle(
            f"{learnt.variable.long_name} ({learnt.item.source}) as it is learnt{few}", fontsize=12
        )
    like = learnt.values.isel(time=0, drop=True)
    there = np.isfinite(values)
    count = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, np.where(there, values, 0.0).sum(axis=0) / count, np.nan)
        if learnt.is_rain:
            second, label = np.where(count > 0, (values > 0).sum(axis=0) / count, np.nan), "wet fraction"
        else:
            spread = np.where(there, (values - mean) ** 2, 0.0).sum(axis=0) / count
            second, label = np.sqrt(spread), "standard deviation"
    what = "total of 6 h" if learnt.is_rain else learnt.variable.long_name.lower()
    field(like.copy(data=mean * factor).assign_attrs(units=unit), title=f"mean {what}", rain=False, ax=ax[0])
    limits = (0.0, 1.0) if learnt.is_rain else None
    scaled = second if learnt.is_rain else second * factor
    field(
        like.copy(data=scaled).assign_attrs(units="" if learnt.is_rain else unit),
        title=label,
        rain=False,
        limits=limits,
        ax=ax[1],
    )
    _histogram(values[there] * factor, np.broadcast_to(area, values.shape)[there], unit, rain=learnt.is_rain, ax=ax[2])
    weights = there * area
    with np.errstate(invalid="ignore", divide="ignore"):
        series = np.where(there, values, 0.0).reshape(len(times), -1) * weights.reshape(len(times), -1)
        series = series.sum(axis=1) / weights.reshape(len(times), -1).sum(axis=1) * factor
    ax[3].plot(times, series, color="#1f5aa6", linewidth=1.2, marker="." if len(times) < 60 else None)
    ax[3].set_title("mean over the area", fontsize=10)
    ax[3].set_ylabel(unit)
    ax[3].tick_params(axis="x", labelrotation=30)
    if len(times) > 1:
        ax[3].set_xlim(times[0], times[-1])
    return ax


def _histogram(values: np.ndarray, weights: np.ndarray, unit: str, *, rain: bool, ax: Any) -> None:
    """Share by value; amounts on a logarithmic axis, with the dry share in words."""
    total = weights.sum()
    if rain:
        wet = values > 0
        lowest = max(float(np.quantile(values[wet], 0.001)), 1e-6) if wet.any() else 1e-3
        bins: Any = np.geomspace(lowest, max(float(values.max()), 10 * lowest), 60)
        ax.set_xscale("log")
        dry = 1.0 - float(weights[wet].sum() / total)
        ax.set_title(f"wet amounts; dry: {dry:.0%}, largest: {float(values.max()):.3g} {unit}", fontsize=10)
        values, weights = values[wet], weights[wet]
    else:
        bins = 60
        ax.set_title(f"{float(values.min()):.3g} to {float(values.max()):.3g} {unit}", fontsize=10)
    ax.hist(values, bins=bins, weights=weights / total, color="#55a3e0")
    ax.set_xlabel(unit + (" in 6 h" if rain else ""))
    ax.set_ylabel("share of points and times")


def lead_curve(
    scores: Mapping[str, xr.Dataset],
    name: str = "tp",
    metric: str = "rmse",
    *,
    region: str | None = None,
    level: float | None = None,
    ax: Any = None,
) -> Any:
    """One metric by lead time, one line a forecast.

    Parameters
    ----------
    scores : dict of Dataset
        Label → what ``evaluate`` gave.
    name, metric, region, level
        What to draw; by default the first region and level.
    ax : matplotlib axes, optional
    """
    if ax is None:
        _, ax = _pyplot().subplots(figsize=(6, 4), layout="constrained")
    units = ""
    for label, ds in scores.items():
        if name not in ds or metric not in ds["metric"].values:
            continue
        da = ds[name].sel(metric=metric)
        da = da.isel(region=0) if region is None else da.sel(region=region)
        if "level" in da.dims:
            da = da.isel(level=0) if level is None else da.sel(level=level)
        values, units = da.values, str(da.attrs.get("units", ""))
        if _is_rain(da):
            values, units = values * _to_mm(units), "mm"
        ax.plot(ds["lead_time"].values / np.timedelta64(1, "h"), values, "o-", label=label)
    leads: Any = np.unique(np.concatenate([line.get_xdata() for line in ax.lines])) if ax.lines else []
    if len(leads) <= 12:
        ax.set_xticks(leads)
    ax.set_xlabel("lead time in h")
    ax.set_ylabel(f"{metric.upper()} of {name}" + (f" in {units}" if units and metric != "acc" else ""))
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.legend(frameon=False)
    return ax

"""Maps, triptychs and curves. Each returns Matplotlib axes and takes ``ax=``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import (
    InitTimeError,
    LeadTimeError,
    LevelError,
    MissingVariableError,
    OptionError,
)
from xaurora.fields import recognition, variables
from xaurora.training.curves import lead_curve

__all__ = ["coastlines", "field", "forecast", "lead_curve", "models", "rain_colours", "target"]

RAIN_STEPS_MM = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 50)
"""mm in six hours; uneven, as rain maps are: half of all rain is drizzle, and the rest must stay
apart.
"""
_RAIN_COLOURS = (
    "#e3f2fb",
    "#bcdff5",
    "#8cc5ee",
    "#55a3e0",
    "#2b7cc4",
    "#1f5aa6",
    "#3b3a8f",
    "#6a2c8a",
    "#a0287d",
)


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
    bar: bool = True,
    ax: Any = None,
) -> Any:
    """A map of one field, with coastlines where Cartopy is there (axes of a Cartopy projection, or
    new ones).

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
    bar : bool
        Whether to draw the colour bar.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes
    """
    plt = _pyplot()
    da = _single(da)
    if da.ndim != 2:
        raise OptionError(
            f"a map needs two dims, and '{da.name}' has {list(da.dims)}.",
            fix="da.isel(init_time=0, lead_time=0)",
        )
    lat, lon = da.dims
    if da[lat].ndim != 1 or str(lat).startswith("lon"):
        da = da.transpose()
        lat, lon = da.dims
    longitude = da[lon].values.astype(float)
    if (
        np.diff(longitude) < 0
    ).any():  # across Greenwich or the date line: draw on, do not jump back
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
    ax.set_aspect(
        1.0 / max(np.cos(np.deg2rad(float(da[lat].mean()))), 0.3)
        if np.ptp(longitude) < 120
        else "auto"
    )
    ax.set_xlabel("longitude")
    ax.set_ylabel("latitude")
    ax.set_title(title, fontsize=10)
    coastlines(ax, longitude, da[lat].values)
    if bar:
        ax.figure.colorbar(
            mesh, ax=ax, label="" if units == "1" else units, shrink=0.85, extend=extend
        )
    return ax


def coastlines(ax: Any, longitude: np.ndarray, latitude: np.ndarray) -> None:
    """Draw coastlines into a map in degrees, where Cartopy and its files are there; else nothing.

    Cartopy is not among what xaurora installs. Its coastlines of 1:110 million come from a file
    that it fetches once.
    """
    lines = _coastlines()
    if not lines:
        return
    limits = ax.get_xlim(), ax.get_ylim()
    for line in lines:
        x = np.asarray(line[:, 0])
        for turn in (-360.0, 0.0, 360.0):  # the map may lie in any convention
            if x.max() + turn >= limits[0][0] and x.min() + turn <= limits[0][1]:
                ax.plot(
                    x + turn, line[:, 1], color="0.25", linewidth=0.6, scalex=False, scaley=False
                )
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])


@functools.cache
def _coastlines() -> tuple[np.ndarray, ...]:
    try:
        from cartopy.io import shapereader

        path = shapereader.natural_earth(resolution="110m", category="physical", name="coastline")
        return tuple(
            np.asarray(part.coords)
            for geometry in shapereader.Reader(path).geometries()
            for part in getattr(geometry, "geoms", [geometry])
        )
    except (
        Exception
    ):  # not there, or its file cannot be fetched: a map without coastlines is still a map
        return ()


def _is_rain(da: xr.DataArray) -> bool:
    known = variables.find(str(da.name))
    return known is not None and known.accumulated


def _to_mm(units: str) -> float:
    scale = variables.conversion(units, "m")
    return 1e3 * (scale[0] if scale else 1.0)


def _pick(
    fc: xr.Dataset, name: str, init_time: Any, lead: Any, level: float | None
) -> xr.DataArray:
    import pandas as pd

    init_dim = "init_time" if "init_time" in fc.coords else "time"
    lead_dim = "lead_time" if "lead_time" in fc.coords else "prediction_timedelta"
    name = _found(fc, name)
    if (
        lead_dim in fc.coords and fc[lead_dim].dtype.kind != "m"
    ):  # durations that carry only their units
        from xaurora.evaluation.alignment import durations_of

        hours = durations_of(fc[lead_dim])
        fc = fc.assign_coords({lead_dim: (fc[lead_dim].dims, hours)})
    if name not in fc:
        raise MissingVariableError(
            f"'{name}' is not in the forecast, which holds {sorted(map(str, fc.data_vars))}.",
            fix=f"plot({sorted(map(str, fc.data_vars))[0]!r})",
        )
    da = fc[name]
    aloft = next((str(d) for d in da.dims if d in recognition.NAMES["level"]), "level")
    members = next((str(d) for d in da.dims if d in recognition.NAMES["number"]), "number")
    da = da.rename(
        {k: v for k, v in ((aloft, "level"), (members, "number")) if k != v and k in da.dims}
    )
    for dim in (init_dim, lead_dim):  # one time of a forecast is a forecast
        if dim in da.coords and dim not in da.dims:
            da = da.expand_dims(dim)
    try:
        da = (
            da.isel({init_dim: 0})
            if init_time is None
            else da.sel({init_dim: pd.Timestamp(init_time)})
        )
    except (KeyError, ValueError):
        raise InitTimeError(
            f"init time {init_time!r} is not in the forecast.",
            fix=f"init_time='{str(np.ravel(fc[init_dim].values)[0])[:16]}'",
        ) from None
    try:
        da = da.isel({lead_dim: 0}) if lead is None else da.sel({lead_dim: pd.Timedelta(lead)})
    except (KeyError, ValueError):
        raise LeadTimeError(
            f"lead {lead!r} is not in the forecast.",
            fix=f"lead='{int(np.ravel(fc[lead_dim].values)[0] / np.timedelta64(1, 'h'))}h'",
        ) from None
    if "number" in da.dims:
        da = da.mean("number", keep_attrs=True)
    if "level" in da.dims:
        if level is not None and level not in da["level"].values:
            raise LevelError(
                f"'{name}' has no level {level!r}; it has {da['level'].values.tolist()}.",
                fix=f"level={da['level'].values[0]:g}",
            )
        da = da.isel(level=0) if level is None else da.sel(level=level)
    return da


def _found(fc: xr.Dataset, name: str) -> str:
    """The variable as this forecast calls it: ``tp`` is ``total_precipitation_6hr`` in
    WeatherBench2.
    """
    known = variables.find(name) if isinstance(name, str) else None
    if name in fc or known is None:
        return name
    return next((n for n in (known.name, known.weatherbench2, *known.aliases) if n in fc), name)


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
    """A map of a forecast, or a triptych of forecast, truth and difference. See
    :meth:`xaurora.accessor.AuroraAccessor.plot`.
    """
    from xaurora.errors import KindError
    from xaurora.fields import recognition

    if not recognition.is_forecast(fc):
        raise KindError(
            "this Dataset is no forecast (it has no lead times).",
            fix="fc = ds.aurora.predict('6h', model=...); fc.aurora.plot('tp')",
        )
    da = _pick(fc, name, init_time, lead, level)
    name = str(da.name)
    init = da.coords.get("init_time", da.coords.get("time"))
    lead_value = da.coords.get("lead_time", da.coords.get("prediction_timedelta"))
    stamp = (
        f"{str(init.values)[:13]} + {lead_value.values / np.timedelta64(1, 'h'):g} h"
        if init is not None and lead_value is not None
        else ""
    )
    aloft = f" {float(da['level']):g} hPa" if "level" in da.coords else ""
    if truth is None:
        return field(da, title=f"{name}{aloft}, {stamp}", ax=ax)
    if ax is not None and np.size(ax) != 3:
        raise OptionError(
            f"a triptych is drawn into three axes, and {np.size(ax)} were given.",
            fix="plt.subplots(1, 3)",
        )
    if ax is not None and np.ndim(ax) > 1:
        ax = np.ravel(ax)
    return _triptych(fc, da, name, stamp, truth, level, ax)


def _truth_of(
    fc: xr.Dataset, name: str, da: xr.DataArray, truth: xr.Dataset, level: float | None
) -> tuple[Any, tuple[str, str], np.ndarray, np.ndarray]:
    """Forecast as it is scored, the variable's key, and one field of forecast and truth on its
    grid.
    """
    from xaurora.evaluation import alignment, truths

    known = alignment.read_forecast(fc)
    right = truths.read_truth(truth, known)
    key = next((k for k, item in known.fields.items() if item.source == name), None)
    if key is None:
        raise MissingVariableError(
            f"'{name}' is not a variable that forecast and truth can share.",
            fix="plot('tp', truth=...)",
        )
    item = known.fields[key]
    init = da.coords.get("init_time", da.coords.get("time"))
    lead = da.coords.get("lead_time", da.coords.get("prediction_timedelta"))
    i = int(np.flatnonzero(known.init_times == init.values)[0])
    j = int(np.flatnonzero(known.leads == lead.values)[0])
    levels = () if key[0] != "atmos" else ((level,) if level is not None else known.levels[:1])
    valid = known.init_times[i] + known.leads[j]
    found = right.read(*key, [valid], levels)
    if not found:
        raise InitTimeError(
            f"the truth has no field at {str(valid)[:16]}, the valid time of the forecast.",
            fix="choose another init_time or lead",
        )
    y = right.like(*key, next(iter(found.values())), item)
    f = known.block(name, slice(i, i + 1), slice(j, j + 1))[0, 0].astype(np.float64)
    f = f.mean(axis=0) if known.has_members(name) else f
    if key[0] == "atmos":
        f, y = f[known.levels.index(levels[0])], y[0]
    return known, key, f, y


def _triptych(
    fc: xr.Dataset,
    da: xr.DataArray,
    name: str,
    stamp: str,
    truth: xr.Dataset,
    level: float | None,
    ax: Any,
) -> Any:
    known, _, f, y = _truth_of(fc, name, da, truth, level)
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
    aloft = f" {float(da['level']):g} hPa" if "level" in da.coords else ""
    field(like, title=f"forecast of {name}{aloft}, {stamp}", limits=(low, high), ax=axes[0])
    field(like.copy(data=y), title="truth", limits=(low, high), ax=axes[1])
    field(like.copy(data=f - y), title="forecast − truth", symmetric=True, ax=axes[2])
    for later in axes[1:]:
        later.set_ylabel("")
    return axes


_MOST_FRAMES = 200  # of a target that are read for a picture


def target(
    ds: xr.Dataset, name: str = "tp", *, truth: xr.Dataset | None = None, ax: Any = None
) -> Any:
    """What a target looks like before it is learnt: mean, wet fraction or spread, histogram, time
    series. Reads at most 200 of its times.

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
    from xaurora.fields import conventions, targets
    from xaurora.fields.grid import lattice as grids

    fields = conventions.standardise(ds, targets.recognise(ds, () if truth is not None else [name]))
    (learnt,) = targets.resolve(fields, [name], truth)
    unit, factor = targets.unit_of(learnt.variable)
    times = learnt.times[
        np.unique(
            np.linspace(0, len(learnt.times) - 1, min(len(learnt.times), _MOST_FRAMES)).astype(int)
        )
    ]
    values = learnt.values.sel(time=times).values.astype(np.float64)
    if not np.isfinite(values).any():
        raise MissingVariableError(
            f"'{learnt.item.source}' has no value at all.",
            fix="look at the target: ds['tp'].notnull().sum()",
        )
    if learnt.is_rain:
        values = np.where(values < 0, 0.0, values)
    area = np.broadcast_to(
        grids.latitude_weights(fields.layout.grid.latitude)[:, None], values.shape[1:]
    )
    if ax is None:
        _, made = _pyplot().subplots(2, 2, figsize=(12, 7.5), layout="constrained")
        ax = made.ravel()
        few = (
            f", {len(times)} of {len(learnt.times)} times" if len(times) < len(learnt.times) else ""
        )
        made[0, 0].figure.suptitle(
            f"{learnt.variable.long_name} ({learnt.item.source}) as it is learnt{few}", fontsize=12
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
    what = "total of 6 h" if learnt.is_rain else learnt.variable.long_name.lower()
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


def _histogram(values: np.ndarray, weights: np.ndarray, unit: str, *, rain: bool, ax: Any) -> None:
    """Share by value; amounts on a logarithmic axis, with the dry share in words."""
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


def models(
    forecasts: Mapping[str, xr.Dataset],
    name: str = "tp",
    *,
    init_time: Any = None,
    leads: Any = None,
    level: float | None = None,
    truth: xr.Dataset | None = None,
    ax: Any = None,
) -> Any:
    """Maps side by side: a row a forecast, a column a lead time, on one colour scale; with
    ``truth`` a last row of that.

    Parameters
    ----------
    forecasts : dict of Dataset, or Dataset
        By label.
    name, init_time, level
        What to draw; by default the first init time and level.
    leads : sequence, optional
        Columns; by default up to four of the first forecast's.
    truth : Dataset, optional
        Fields.
    ax : array of matplotlib axes, ``(row, column)``, optional

    Returns
    -------
    ndarray of matplotlib axes
    """
    from xaurora.plots.diagrams import labelled

    several = labelled(forecasts)
    first = next(iter(several.values()))
    lead_dim = "lead_time" if "lead_time" in first.coords else "prediction_timedelta"
    columns = (
        list(np.ravel(first[lead_dim].values)[:4])
        if leads is None
        else list(np.atleast_1d(np.asarray(leads, dtype=object)))
    )
    rows: list[tuple[str, list[xr.DataArray]]] = []
    for label, fc in several.items():
        rows.append(
            (
                label,
                [
                    _in_units(_single(_pick(fc, name, init_time, lead, level)), rows)
                    for lead in columns
                ],
            )
        )
    if truth is not None:
        rows.append(("truth", [_truth_like(first, name, da, truth, level) for da in rows[0][1]]))
    if ax is not None and np.shape(ax) != (len(rows), len(columns)):
        raise OptionError(
            f"ax has the shape {np.shape(ax)}, and {len(rows)} rows of {len(columns)} maps are"
            " drawn.",
            fix=f"plt.subplots({len(rows)}, {len(columns)}, squeeze=False)",
        )
    if ax is None:
        _, ax = _pyplot().subplots(
            len(rows),
            len(columns),
            figsize=(3.9 * len(columns), 2.7 * len(rows)),
            layout="constrained",
            squeeze=False,
            sharex=True,
            sharey=True,
        )
    values = np.concatenate([np.ravel(da.values) for _, line in rows for da in line])
    limits = (float(np.nanmin(values)), float(np.nanmax(values)))
    for r, (label, line) in enumerate(rows):
        for c, da in enumerate(line):
            lead = da.coords.get("lead_time", da.coords.get("prediction_timedelta"))
            title = (
                f"{label}, +{float(lead / np.timedelta64(1, 'h')):g} h"
                if lead is not None
                else label
            )
            field(da, title=title, limits=limits, bar=c == len(line) - 1, ax=ax[r][c])
            ax[r][c].label_outer()
    return ax


def _in_units(da: xr.DataArray, rows: list[tuple[str, list[xr.DataArray]]]) -> xr.DataArray:
    """In the units of the first map, so that one scale serves all."""
    known = variables.find(str(da.name))
    if not rows or known is None:
        return da
    units = str(rows[0][1][0].attrs.get("units", ""))
    there, wanted = (
        variables.conversion(u, known.units) for u in (str(da.attrs.get("units", "")), units)
    )
    if there is None or wanted is None or there == wanted:
        return da
    return (
        ((da * there[0] + there[1] - wanted[1]) / wanted[0])
        .rename(da.name)
        .assign_attrs({**da.attrs, "units": units})
    )


def _single(da: xr.DataArray) -> xr.DataArray:
    members = [d for d in ("number", "realization", "member", "ensemble") if d in da.dims]
    return da.mean(members[0], keep_attrs=True) if members else da


def _truth_like(
    fc: xr.Dataset, name: str, da: xr.DataArray, truth: xr.Dataset, level: float | None
) -> xr.DataArray:
    name = str(da.name)
    known, _, _, y = _truth_of(fc, name, da, truth, level)
    out = xr.DataArray(
        y,
        dims=("latitude", "longitude"),
        coords={"latitude": known.latitude, "longitude": known.longitude},
        name=name,
        attrs=da.attrs,
    )
    lead = da.coords.get("lead_time", da.coords.get("prediction_timedelta"))
    return out.assign_coords(lead_time=lead.values)

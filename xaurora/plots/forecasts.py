"""Maps of a forecast, alone or beside the truth, and of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import (
    InitTimeError,
    LeadTimeError,
    LevelError,
    MissingVariableError,
    OptionError,
)
from xaurora.fields import axes, recognition, variables
from xaurora.fields.unit_conversion import conversion
from xaurora.plots.maps import field, panel_size, pyplot, single_map
from xaurora.utils.types import Given, LeadLike, LeadsLike, TimeLike

if TYPE_CHECKING:
    from xaurora.utils.types import AnyAxes


def pick(
    fc: xr.Dataset,
    name: str,
    init_time: TimeLike | None,
    lead: LeadLike | None,
    level: float | None,
) -> xr.DataArray:
    """Return one field of a forecast, by default of the first init time, lead time and level.

    Raises
    ------
    XauroraError
        If the forecast does not have it.
    """
    import pandas as pd

    init_dim = "init_time" if "init_time" in fc.coords else "time"
    lead_dim = "lead_time" if "lead_time" in fc.coords else "prediction_timedelta"
    name = _found(fc, name)
    if (
        lead_dim in fc.coords and fc[lead_dim].dtype.kind != "m"
    ):  # lead times stored as numbers with units
        from xaurora.evaluation.forecast_axes import decode_lead_times

        hours = decode_lead_times(fc[lead_dim])
        fc = fc.assign_coords({lead_dim: (fc[lead_dim].dims, hours)})
    if name not in fc:
        raise MissingVariableError(
            f"'{name}' is not in the forecast, which contains {sorted(map(str, fc.data_vars))}.",
            fix=f"plot({sorted(map(str, fc.data_vars))[0]!r})",
        )
    da = fc[name]
    levels = next((str(d) for d in da.dims if d in axes.NAMES["level"]), "level")
    members = next((str(d) for d in da.dims if d in axes.NAMES["number"]), "number")
    da = da.rename(
        {k: v for k, v in ((levels, "level"), (members, "number")) if k != v and k in da.dims}
    )
    for dim in (init_dim, lead_dim):  # keep a single init or lead time as a dim
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
            f"lead time {lead!r} is not in the forecast.",
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
    """Return the name of a variable in this forecast.

    In WeatherBench2's layout, ``tp`` is called ``total_precipitation_6hr``.
    """
    known = variables.find(name) if isinstance(name, str) else None
    if name in fc or known is None:
        return name
    return next((n for n in (known.name, known.weatherbench2, *known.aliases) if n in fc), name)


def forecast(
    fc: xr.Dataset,
    name: str = "tp",
    *,
    init_time: TimeLike | None = None,
    lead: LeadLike | None = None,
    truth: xr.Dataset | None = None,
    level: float | None = None,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw a map of a forecast, or maps of forecast, truth and difference.

    See :meth:`xaurora.accessor.AuroraAccessor.plot`.
    """
    from xaurora.errors import KindError

    if not recognition.is_forecast(fc):
        raise KindError(
            "this Dataset is not a forecast: it has no lead times.",
            fix="fc = ds.aurora.predict('6h', model=...); fc.aurora.plot('tp')",
        )
    da = pick(fc, name, init_time, lead, level)
    name = str(da.name)
    init = da.coords.get("init_time", da.coords.get("time"))
    lead_value = da.coords.get("lead_time", da.coords.get("prediction_timedelta"))
    stamp, valid = "", ""
    if init is not None and lead_value is not None:
        stamp = f"{_hour(init.values)} + {lead_value.values / np.timedelta64(1, 'h'):g} h"
        valid = f"valid {_hour(init.values + lead_value.values)}"
    level_text = f" {float(da['level']):g} hPa" if "level" in da.coords else ""
    if truth is None:
        return field(da, title=f"{name}{level_text}, {stamp}\n{valid}", ax=ax)
    if ax is not None and np.size(ax) != 3:
        raise OptionError(
            f"forecast, truth and difference need three axes, but {np.size(ax)} were given.",
            fix="plt.subplots(1, 3)",
        )
    if ax is not None and np.ndim(ax) > 1:
        ax = np.ravel(ax)
    return _triptych(fc, da, f"{name}{level_text}, {stamp}", valid, truth, level, ax)


def frame(
    fc: xr.Dataset,
    name: str,
    *,
    init_time: TimeLike | None,
    lead: LeadLike | None,
    level: float | None,
    truth: xr.Dataset | None,
    limits: tuple[float, float],
    ax: AnyAxes,
) -> None:
    """Draw one lead time into the first axes, and the truth into the second ones if it is given."""
    da = pick(fc, name, init_time, lead, level)
    init = da.coords.get("init_time", da.coords.get("time"))
    value = da.coords.get("lead_time", da.coords.get("prediction_timedelta"))
    level_text = f" {float(da['level']):g} hPa" if "level" in da.coords else ""
    stamp, valid = "", ""
    if init is not None and value is not None:
        stamp = f"{_hour(init.values)} + {value.values / np.timedelta64(1, 'h'):g} h"
        valid = f"valid {_hour(init.values + value.values)}"
    field(da, title=f"{da.name}{level_text}, {stamp}\n{valid}", limits=limits, ax=ax[0])
    if truth is not None:
        beside = _truth_like(fc, name, da, truth, level)
        field(beside, title=f"truth\n{valid}", limits=limits, ax=ax[1])


def _hour(time: Given) -> str:
    """Return a time as it stands on a map, such as ``2020-01-01 06 UTC``."""
    return f"{str(np.datetime64(time, 'h')).replace('T', ' ')} UTC"


def _truth_of(
    fc: xr.Dataset, name: str, da: xr.DataArray, truth: xr.Dataset, level: float | None
) -> tuple[Any, tuple[str, str], np.ndarray, np.ndarray]:
    """Return one field of forecast and truth on the forecast's grid.

    Returns
    -------
    tuple
        The forecast as it is scored, the key of the variable, and the values of forecast and truth.
    """
    from xaurora.evaluation import alignment, truths

    known = alignment.read_forecast(fc)
    right = truths.read_truth(truth, known)
    key = next((k for k, item in known.fields.items() if item.source == name), None)
    if key is None:
        raise MissingVariableError(
            f"'{name}' is not in both the forecast and the truth.",
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
    title: str,
    valid: str,
    truth: xr.Dataset,
    level: float | None,
    ax: AnyAxes,
) -> AnyAxes:
    name = str(da.name)
    known, _, f, y = _truth_of(fc, name, da, truth, level)
    like = xr.DataArray(
        f,
        dims=("latitude", "longitude"),
        coords={"latitude": known.latitude, "longitude": known.longitude},
        name=name,
        attrs=da.attrs,
    )
    panels = ax
    if panels is None:
        width, height = panel_size(like)
        _, panels = pyplot().subplots(
            1, 3, figsize=(3 * width, height), layout="constrained", sharey=True
        )
    low, high = float(np.nanmin([f, y])), float(np.nanmax([f, y]))
    field(like, title=f"forecast of {title}\n{valid}", limits=(low, high), ax=panels[0])
    field(like.copy(data=y), title=f"truth\n{valid}", limits=(low, high), ax=panels[1])
    last = f"forecast − truth\n{valid}"
    field(like.copy(data=f - y), title=last, symmetric=True, ax=panels[2])
    for later in panels[1:]:
        later.set_ylabel("")
    return panels


def models(
    forecasts: Mapping[str, xr.Dataset],
    name: str = "tp",
    *,
    init_time: TimeLike | None = None,
    leads: LeadsLike | None = None,
    level: float | None = None,
    truth: xr.Dataset | None = None,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw maps of several forecasts: a row per forecast, a column per lead time.

    All maps share one colour scale. With ``truth``, the last row shows the truth.

    Parameters
    ----------
    forecasts : dict of Dataset, or Dataset
        By label.
    name, init_time, level
        What to draw. By default the first init time and level.
    leads : sequence, optional
        Lead times, one per column. By default up to four of the first forecast.
    truth : Dataset, optional
        Fields.
    ax : array of matplotlib axes, ``(row, column)``, optional

    Returns
    -------
    ndarray of matplotlib axes
    """
    from xaurora.plots.panels import scores_by_label

    several = scores_by_label(forecasts)
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
                    _in_units(single_map(pick(fc, name, init_time, lead, level)), rows)
                    for lead in columns
                ],
            )
        )
    if truth is not None:
        rows.append(("truth", [_truth_like(first, name, da, truth, level) for da in rows[0][1]]))
    if ax is not None and np.shape(ax) != (len(rows), len(columns)):
        raise OptionError(
            f"ax has the shape {np.shape(ax)}, but {len(rows)} rows of {len(columns)} maps must"
            " be drawn.",
            fix=f"plt.subplots({len(rows)}, {len(columns)}, squeeze=False)",
        )
    if ax is None:
        _, ax = pyplot().subplots(
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
            title = label
            if lead is not None:
                init = da.coords.get("init_time", da.coords.get("time"))
                title = f"{label}, +{float(lead / np.timedelta64(1, 'h')):g} h"
                title += f"\nvalid {_hour((init + lead).values)}" if init is not None else ""
            field(da, title=title, limits=limits, bar=c == len(line) - 1, ax=ax[r][c])
            ax[r][c].label_outer()
    return ax


def _in_units(da: xr.DataArray, rows: list[tuple[str, list[xr.DataArray]]]) -> xr.DataArray:
    """Convert a field to the units of the first map, so that all share one scale."""
    known = variables.find(str(da.name))
    if not rows or known is None:
        return da
    units = str(rows[0][1][0].attrs.get("units", ""))
    there, wanted = (conversion(u, known.units) for u in (str(da.attrs.get("units", "")), units))
    if there is None or wanted is None or there == wanted:
        return da
    return (
        ((da * there[0] + there[1] - wanted[1]) / wanted[0])
        .rename(da.name)
        .assign_attrs({**da.attrs, "units": units})
    )


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
    init = da.coords.get("init_time", da.coords.get("time"))
    return out.assign_coords(lead_time=lead.values, init_time=init.values)

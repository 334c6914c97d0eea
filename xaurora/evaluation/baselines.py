"""Baselines as forecasts: persistence and climatology. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from xaurora import periods, precipitation, recognition
from xaurora.errors import LeadTimeError, MissingVariableError, TruthError
from xaurora.variables import TIMESTEP_HOURS


def durations(leads: Any) -> np.ndarray:
    """Lead times as timedelta64[ns].

    Raises
    ------
    LeadTimeError
        One of them is no positive duration.
    """
    import pandas as pd

    values = list(leads) if isinstance(leads, list | tuple | np.ndarray | xr.DataArray | pd.Index) else [leads]
    out = []
    for value in values:
        try:
            delta = pd.Timedelta(value.item() if isinstance(value, xr.DataArray) else value)
        except (ValueError, TypeError):
            delta = pd.Timedelta(0)
        if not delta > pd.Timedelta(0):
            raise LeadTimeError(f"lead {value!r} is no positive duration.", fix="leads=['6h', '24h']")
        out.append(delta.to_timedelta64().astype("timedelta64[ns]"))
    return np.array(out)


def _chosen(ds: xr.Dataset, names: Sequence[str] | str | None) -> tuple[recognition.Recognition, list[str]]:
    found = recognition.recognise(ds)
    for name in [names] if isinstance(names, str) else names or ():
        if name in found.unrecognised:
            recognition.add_generic(ds, name, found)
    found.raise_first()
    there = [item.source for key, item in found.fields.items() if key[0] != "static"]
    wanted = there if names is None else [names] if isinstance(names, str) else list(names)
    if unknown := [n for n in wanted if n not in there]:
        raise MissingVariableError(
            f"{unknown} is not among the recognised variables {there}.", fix="ds.aurora lists what was recognised"
        )
    return found, wanted


def _six_hourly(ds: xr.Dataset, found: recognition.Recognition, name: str) -> xr.DataArray:
    """A field as forecasts have it: precipitation over six hours."""
    items = {item.source: item for item in found.fields.values()}
    if items[name].variable.accumulated:
        dim = found.axes["time"].dim
        da = ds[name] if found.times is None else ds[name].assign_coords({dim: found.times})
        precipitation.refuse_running_totals(da, name=name, dim=dim)
        return precipitation.accumulate(da, TIMESTEP_HOURS, name=name, dim=dim)
    return ds[name]


def _public(da: xr.DataArray, found: recognition.Recognition) -> xr.DataArray:
    names = {
        axis.dim: key
        for key, axis in found.axes.items()
        if key in ("latitude", "longitude", "level") and axis.dim in da.dims and axis.dim != key
    }
    da = da.drop_vars([c for c in da.coords if c not in da.dims])
    da = da.rename(names)
    if "level" in da.dims:
        da = da.assign_coords(level=("level", list(found.levels), {"units": "hPa"}))
    return da


def persistence(ds: xr.Dataset, names: Sequence[str] | str | None = None, leads: Any = ("6h",)) -> xr.Dataset:
    """The forecast that nothing changes: at every lead time the field of the init time; precipitation that of the last six hours.

    Lazy over dask.

    Parameters
    ----------
    ds : Dataset
        Fields, in any naming.
    names : str or sequence of str, optional
        Variables in the data's own names; by default all that change over time.
    leads : sequence of str or timedelta
        Lead times.

    Returns
    -------
    Dataset
        Dims ``(init_time, lead_time[, level], latitude, longitude)``; every time of ``ds`` is an init time (those without a whole
        six-hour total are left out where precipitation is among the names).
    """
    found, wanted = _chosen(ds, names)
    lead = durations(leads)
    time_dim = found.axes["time"].dim
    times = found.times if found.times is not None else np.array([], "datetime64[ns]")
    keep = np.ones(len(times), bool)
    out = {}
    for name in wanted:
        da = _public(_six_hourly(ds, found, name), found).rename({time_dim: "init_time"}).assign_coords(init_time=times)
        if found.fields.get(("surface", "tp")) and found.fields["surface", "tp"].source == name:
            period = precipitation.period_of(name, ds[name].attrs, times)
            for part in range(max(int(TIMESTEP_HOURS / period), 1)):
                keep &= np.isin(times - periods.span(part * period), times)
        order = ["init_time", "lead_time", *[d for d in ("level", "latitude", "longitude") if d in da.dims]]
        out[name] = da.expand_dims(lead_time=lead).transpose(*order)
    result = xr.Dataset(out, attrs={"title": "Persistence"}).isel(init_time=np.flatnonzero(keep))
    return result.assign_coords(
        valid_time=(("init_time", "lead_time"), result["init_time"].values[:, None] + lead[None])
    )


def climatology_forecast(climatology: xr.Dataset, like: xr.Dataset) -> xr.Dataset:
    """The forecast of the climatology of each valid time.

    Parameters
    ----------
    climatology : Dataset
        From :func:`xaurora.climatology`, or WeatherBench2's.
    like : Dataset
        A forecast whose init and lead times are taken.

    Raises
    ------
    TruthError
        The climatology lacks an hour or a day of the year that is needed.
    """
    import pandas as pd

    init = "init_time" if "init_time" in like.dims else "time"
    lead = "lead_time" if "lead_time" in like.dims else "prediction_timedelta"
    times, leads = like[init].values.astype("datetime64[ns]"), like[lead].values.astype("timedelta64[ns]")
    valid = pd.DatetimeIndex((times[:, None] + leads[None]).ravel())
    hours, days = climatology["hour"].values, climatology["dayofyear"].values
    if not (np.isin(valid.hour, hours).all() and np.isin(valid.day_of_year, days).all()):
        raise TruthError(
            "the climatology lacks hours or days of the year that the forecast is valid at.",
            fix="xaurora.climatology(ds) over at least that season",
        )
    shape = ("init_time", "lead_time")
    at = {
        "hour": xr.DataArray(valid.hour.values.reshape(len(times), -1), dims=shape),
        "dayofyear": xr.DataArray(valid.day_of_year.values.reshape(len(times), -1), dims=shape),
    }
    out = climatology.sel(at).drop_vars(["hour", "dayofyear"])
    order = [*shape, *[d for d in out.dims if d not in shape]]
    out = out.transpose(*order).assign_coords(
        init_time=times, lead_time=leads, valid_time=(shape, times[:, None] + leads[None])
    )
    return out.assign_attrs(title="Climatology")

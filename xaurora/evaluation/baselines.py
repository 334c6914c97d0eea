"""Baselines as forecasts: persistence and climatology.

Does not depend on torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import xarray as xr

from xaurora.errors import (
    AccumulationError,
    KindError,
    LeadTimeError,
    MissingVariableError,
    OptionError,
    TruthError,
)
from xaurora.fields import labels, precipitation, recognition
from xaurora.fields.found import Field, Recognition
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.utils import indexed, lazy
from xaurora.utils.types import Given, LeadsLike

logger = logging.getLogger("xaurora")


def durations(leads: LeadsLike) -> np.ndarray:
    """Convert lead times to timedelta64[ns].

    Raises
    ------
    LeadTimeError
        If one of them is not a positive duration.
    """
    import pandas as pd

    values = (
        list(leads)
        if isinstance(leads, list | tuple | np.ndarray | xr.DataArray | pd.Index)
        else [leads]
    )
    out = []
    for value in values:
        try:
            delta = pd.Timedelta(value.item() if isinstance(value, xr.DataArray) else value)
        except (ValueError, TypeError):
            delta = pd.Timedelta(0)
        if not delta > pd.Timedelta(0):
            raise LeadTimeError(
                f"lead time {value!r} is not a positive duration.", fix="leads=['6h', '24h']"
            )
        out.append(delta.to_timedelta64().astype("timedelta64[ns]"))
    return np.array(out)


def _chosen(ds: xr.Dataset, names: Sequence[str] | str | None) -> tuple[Recognition, list[str]]:
    found = recognition.recognise(ds)
    for name in [names] if isinstance(names, str) else names or ():
        if name in found.unrecognised:
            recognition.add_generic(ds, name, found)
    found.raise_first()
    there = [
        item.source
        for key, item in found.fields.items()
        if key[0] != "static" and (names is not None or _has_totals(ds, found, item))
    ]
    wanted = there if names is None else [names] if isinstance(names, str) else list(names)
    if unknown := [n for n in wanted if n not in there]:
        raise MissingVariableError(
            f"{unknown} is not among the recognised variables {there}.",
            fix="ds.aurora lists the recognised variables",
        )
    return found, wanted


def _has_totals(ds: xr.Dataset, found: Recognition, item: Field) -> bool:
    """Return whether a variable has six-hour totals; of amounts other than rain, some do not."""
    if not item.variable.accumulated or item.variable.name == "tp" or found.times is None:
        return True
    try:
        precipitation.check_period(
            item.source, dict(ds[item.source].attrs), found.times, TIMESTEP_HOURS
        )
    except AccumulationError:
        return False
    return True


def _six_hourly(ds: xr.Dataset, found: Recognition, name: str) -> xr.DataArray:
    """Return a field as forecasts have it, with precipitation accumulated over six hours."""
    items = {item.source: item for item in found.fields.values()}
    if items[name].variable.accumulated:
        dim = found.axes["time"].dim
        da = ds[name] if found.times is None else ds[name].assign_coords({dim: found.times})
        precipitation.check_not_running_totals(da, name=name, dim=dim)
        return precipitation.accumulate(da, TIMESTEP_HOURS, name=name, dim=dim)
    return ds[name]


def _public(da: xr.DataArray, found: Recognition) -> xr.DataArray:
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


def persistence(
    ds: xr.Dataset, names: Sequence[str] | str | None = None, leads: LeadsLike = ("6h",)
) -> xr.Dataset:
    """Make a persistence forecast: the field of the init time at every lead time.

    Precipitation is that of the last six hours. Lazy.

    Parameters
    ----------
    ds : Dataset
        Fields, with any naming convention.
    names : str or sequence of str, optional
        Variables in the data's own names; by default all that change over time.
    leads : sequence of str or timedelta
        Lead times.

    Returns
    -------
    Dataset
        Dims ``(init_time, lead_time[, level], latitude, longitude)``. Every time of ``ds`` is an
        init time, except those without a complete six-hour total if precipitation is among the
        names.

    Examples
    --------
    >>> fc = xaurora.persistence(ds, ["t2m", "tp"], ["6h", "24h"])
    >>> dict(fc.sizes)["lead_time"]
    2
    """
    found, wanted = _chosen(ds, names)
    ds = labels.by_end(ds, found)
    lead = durations(leads)
    time_dim = found.axes["time"].dim
    times = found.times if found.times is not None else np.array([], "datetime64[ns]")
    keep = np.ones(len(times), bool)
    out = {}
    amounts = {i.source for i in found.fields.values() if i.variable.accumulated}
    for name in wanted:
        if name in amounts:
            period = precipitation.value_period(name, ds[name].attrs, times)
            keep &= np.isin(times, precipitation.complete_times(times, period))
    kept = np.flatnonzero(keep)
    index = np.repeat(kept[:, None], len(lead), axis=1)
    for name in wanted:
        da = _public(_six_hourly(ds, found, name), found)
        out[name] = _in_order(lazy.gather(da, {time_dim: index}, ("init_time", "lead_time")))
    return xr.Dataset(
        out,
        {
            "init_time": times[kept],
            "lead_time": lead,
            "valid_time": (("init_time", "lead_time"), times[kept][:, None] + lead[None]),
        },
        {"title": "Persistence"},
    )


def _in_order(da: xr.DataArray) -> xr.DataArray:
    """Return a forecast with the levels and the grid last."""
    grid = [d for d in ("level", "latitude", "longitude") if d in da.dims]
    order = [*(d for d in da.dims if d not in grid), *grid]
    return indexed.as_array(lazy.transpose(da.variable, order), da)


def times_of(like: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the init times and lead times of a forecast, either of which may be a scalar.

    Raises
    ------
    KindError
        If it is not a forecast.
    """
    from xaurora.evaluation.forecast_axes import decode_lead_times

    init = "time" if "prediction_timedelta" in like.coords else "init_time"
    lead = "prediction_timedelta" if "prediction_timedelta" in like.coords else "lead_time"
    if not isinstance(like, xr.Dataset) or init not in like.coords or lead not in like.coords:
        raise KindError(
            "like= must be a forecast with init and lead times, but its coordinates are"
            f" {sorted(map(str, getattr(like, 'coords', ())))}.",
            fix="climatology_forecast(normals, fc)",
        )
    return np.atleast_1d(like[init].values.astype("datetime64[ns]")), np.atleast_1d(
        decode_lead_times(like[lead])
    )


def climatology_forecast(climatology: xr.Dataset, like: xr.Dataset) -> xr.Dataset:
    """Make a forecast from the climatology of each valid time.

    Parameters
    ----------
    climatology : Dataset
        From :func:`xaurora.climatology`, or WeatherBench2's.
    like : Dataset
        A forecast whose init and lead times are used. Init times with valid times that the
        climatology does not have are left out.

    Raises
    ------
    KindError
        If ``like`` is not a forecast.
    TruthError
        If no init time is left.

    Examples
    --------
    >>> normal = xaurora.climatology(ds, ["t2m"])
    >>> xaurora.climatology_forecast(normal, like=fc).aurora.evaluate(ds, metrics=["rmse"])
    <xarray.Dataset> ...
    """
    import pandas as pd

    times, leads = times_of(like)
    if not {"hour", "dayofyear"} <= set(climatology.dims):
        raise TruthError(
            "a climatology must have the dims hour and dayofyear, and this one has"
            f" {sorted(map(str, climatology.dims))}.",
            fix="xaurora.climatology(ds)",
        )
    hours, days = climatology["hour"].values, climatology["dayofyear"].values
    valid = pd.DatetimeIndex((times[:, None] + leads[None]).ravel())
    known = np.isin(valid.hour, hours) & np.isin(valid.day_of_year, days)
    whole = known.reshape(len(times), -1).all(axis=1)
    if not whole.any():
        raise TruthError(
            "the climatology has no hours or days of the year of the forecast's valid times.",
            fix="xaurora.climatology(ds) over at least that season",
        )
    if not whole.all():
        logger.warning(
            "Climatology: dropped %d of %d init times, because it has no hours or days of the year"
            " of their valid times.",
            (~whole).sum(),
            len(times),
        )
    times = times[whole]
    valid = pd.DatetimeIndex((times[:, None] + leads[None]).ravel())
    shape = ("init_time", "lead_time")
    at = {
        "hour": pd.Index(hours).get_indexer(valid.hour).reshape(len(times), -1),
        "dayofyear": pd.Index(days).get_indexer(valid.day_of_year).reshape(len(times), -1),
    }
    out = {
        name: lazy.gather(da, at, shape) if set(at) <= set(da.dims) else da
        for name, da in climatology.data_vars.items()
    }
    coords = {"init_time": times, "lead_time": leads}
    valid_time = {"valid_time": (shape, times[:, None] + leads[None])}
    attrs = {**climatology.attrs, "title": "Climatology"}
    return xr.Dataset(out, {**coords, **valid_time}, attrs)


def probabilistic_climatology(
    ds: xr.Dataset,
    like: xr.Dataset,
    names: Sequence[str] | str | None = None,
    *,
    window_days: int = 0,
    exclude_year: bool = True,
) -> xr.Dataset:
    """Make an ensemble forecast whose members are the same day and hour of other years.

    This is WeatherBench-X's probabilistic climatology, whose members are years. With a window, the
    days around the same day are members as well. Lazy.

    Parameters
    ----------
    ds : Dataset
        Fields of many years, with any naming convention; precipitation is accumulated over six
        hours.
    like : Dataset
        A forecast whose init and lead times are used.
    names : str or sequence of str, optional
        Variables in the data's own names; by default all that change over time.
    window_days : int
        Number of days before and after the same day that are members as well.
    exclude_year : bool
        Whether to exclude the years of the forecast's valid times.

    Returns
    -------
    Dataset
        Dims ``(init_time, lead_time, number[, level], latitude, longitude)``. A member that lacks
        any of the times is dropped.

    Raises
    ------
    KindError
        If ``like`` is not a forecast.
    OptionError
        If ``window_days`` is not a non-negative integer.
    TruthError
        If there are fewer than two complete members.

    Examples
    --------
    >>> years = xaurora.synthetic(shape=(8, 16), times=2 * 1464, start="2018-01-01T00")
    >>> later = years.isel(time=slice(-8, None))
    >>> like = xaurora.persistence(later, ["tp"], ["6h"])
    >>> xaurora.probabilistic_climatology(years, like, ["tp"])["tp"].dims
    ('init_time', 'lead_time', 'number', 'latitude', 'longitude')
    """
    import pandas as pd

    if isinstance(window_days, bool) or not isinstance(window_days, int) or window_days < 0:
        raise OptionError(
            f"window_days={window_days!r} is not a non-negative integer.", fix="window_days=5"
        )
    found, wanted = _chosen(ds, names)
    times, leads = times_of(like)
    valid = times[:, None] + leads[None]
    have = found.times if found.times is not None else np.array([], "datetime64[ns]")
    place = {int(t): i for i, t in enumerate(have.astype("datetime64[ns]").astype(np.int64))}
    own = set(pd.DatetimeIndex(valid.ravel()).year) if exclude_year else set()
    members = []
    for year in sorted(set(pd.DatetimeIndex(have).year) - own):
        for shift in range(-window_days, window_days + 1):
            rows = [place.get(_same_day(pd.Timestamp(t), year, shift)) for t in valid.ravel()]
            if all(r is not None for r in rows):
                members.append(rows)
    if len(members) < 2:
        raise TruthError(
            f"the data have {len(members)} complete member(s) for the forecast's days and hours,"
            " and a distribution needs at least two.",
            fix="give more years that cover all forecast seasons, or window_days=5",
        )
    index = np.array(members).T.reshape(*valid.shape, -1)
    time_dim = found.axes["time"].dim
    out = {}
    for name in wanted:
        da = _public(_six_hourly(ds, found, name), found)
        dims = ("init_time", "lead_time", "number")
        out[name] = _in_order(lazy.gather(da, {time_dim: index}, dims))
    result = xr.Dataset(out, attrs={"title": "Probabilistic climatology"})
    return result.assign_coords(
        init_time=times,
        lead_time=leads,
        number=np.arange(len(members)),
        valid_time=(("init_time", "lead_time"), valid),
    )


def _same_day(stamp: Given, year: int, shift: int) -> int:
    """Return the same month, day and hour of another year in ns.

    29 February becomes the 28th if the other year is not a leap year.
    """
    import pandas as pd

    try:
        other = stamp.replace(year=int(year))
    except ValueError:
        other = stamp.replace(year=int(year), day=28)
    return int((other + pd.Timedelta(days=shift)).value)

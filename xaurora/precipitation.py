"""Accumulated precipitation: which period a value stands for, sums over longer periods, negative noise.

ERA5 ``tp`` from the CDS is the total of the hour that *ends* at its time. A six-hour total at 12 UTC is therefore the sum of
the hours labelled 07 to 12, and one at 00 UTC needs the day before. What a value stands for cannot be read off the values
alone, so that it must be said by the data (``cell_methods``, or a name such as ``total_precipitation_6hr``) or follow from
hourly spacing; all else is refused.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import xarray as xr

from xaurora import recognition
from xaurora.errors import AccumulationError, LeadTimeError, MissingVariableError, TimeError
from xaurora.lazy import as_dask
from xaurora.variables import TIMESTEP_HOURS

HOUR = np.timedelta64(1, "h")
_CELL_METHODS = re.compile(r"time:\s*sum\s*\(\s*interval:\s*(\d+)\s*(?:h|hr|hrs|hour|hours)\s*\)")
_NAME = re.compile(r"(?:_|^tp_?)(\d+)_?(?:h|hr|hour)s?$")


def cell_methods(hours: int) -> str:
    """The CF attribute of a total over ``hours``."""
    return f"time: sum (interval: {hours} hour{'s' if hours != 1 else ''})"


def declared_hours(name: str, attrs: dict[str, Any]) -> int | None:
    """The period that attributes or name state, in hours; None when they say nothing.

    Examples
    --------
    >>> declared_hours("total_precipitation_6hr", {}), declared_hours("tp", {})
    (6, None)
    >>> declared_hours("tp", {"cell_methods": "time: sum (interval: 6 hours)"})
    6
    """
    if match := _CELL_METHODS.search(str(attrs.get("cell_methods", ""))):
        return int(match.group(1))
    if match := _NAME.search(name):
        return int(match.group(1))
    return None


def spacing_hours(times: np.ndarray) -> float:
    """The commonest step between times, in hours.

    Raises
    ------
    TimeError
        There are fewer than two times.
    """
    if len(times) < 2:
        raise TimeError(f"there is {len(times)} time, and at least two are needed.", fix="open more than one time")
    steps = np.diff(times.astype("datetime64[ns]")) / HOUR
    values, counts = np.unique(steps, return_counts=True)
    return float(values[np.argmax(counts)])


def period_of(name: str, attrs: dict[str, Any], times: np.ndarray) -> int:
    """Hours that each value of an accumulated variable stands for.

    Raises
    ------
    AccumulationError
        Nothing says it: above all 1-hour totals downloaded at 00, 06, 12 and 18 UTC look just like 6-hour ones.
    """
    if (declared := declared_hours(name, attrs)) is not None:
        return declared
    spacing = spacing_hours(times)
    if spacing == 1:
        return 1
    raise AccumulationError(
        f"'{name}' comes every {spacing:g} hours, and nothing says how many hours each value sums up. ERA5 from the CDS gives "
        f"1-hour totals, of which a {TIMESTEP_HOURS}-hour total cannot be made unless all hours are there.",
        fix=f"download '{name}' for every hour; or, if these are totals over {TIMESTEP_HOURS} hours, "
        f"ds['{name}'].attrs['cell_methods'] = '{cell_methods(TIMESTEP_HOURS)}'",
    )


def period_for(label: str, attrs: dict[str, Any], times: np.ndarray, hours: int) -> int:
    """Hours that each value stands for, of which totals over ``hours`` can be made.

    Raises
    ------
    AccumulationError
        They cannot.
    """
    period = period_of(label, attrs, times)
    if period == hours:
        return period
    if hours % period:
        raise AccumulationError(
            f"'{label}' holds {period}-hour totals, of which no {hours}-hour totals can be made.",
            fix=f"download hourly '{label}', or choose a period that {period} hours divide"
            if period < hours
            else f"download hourly '{label}'",
        )
    if len(times) > 1 and (spacing := spacing_hours(times)) > period:
        raise AccumulationError(
            f"'{label}' holds {period}-hour totals every {spacing:g} hours: the hours between are missing, and no {hours}-hour total can be made.",
            fix=f"download '{label}' for every {period} hour(s)",
        )
    return period


_LOOKED_AT = 48  # frames
_RAIN = 1e-4  # m; what counts as rain in the search for running totals


def refuse_running_totals(da: xr.DataArray, *, name: str) -> None:
    """Raise for hourly values that run on from a base time, as ERA5-Land's do. Reads the first two days.

    Hourly rain rises and falls; a running total stays or grows until it starts again, once or twice a day.

    Raises
    ------
    AccumulationError
        More than 85 % of the wet values do not fall within the next hour, of at least 200.
    """
    times = da["time"].values.astype("datetime64[ns]")
    if len(times) < 13 or declared_hours(name, da.attrs) is not None or spacing_hours(times) != 1:
        return
    values = da.isel(time=slice(0, _LOOKED_AT)).values
    now, then = values[:-1], values[1:]
    wet = now > _RAIN
    if wet.sum() >= 200 and (then[wet] >= now[wet] * (1 - 1e-3)).mean() > 0.85:
        raise AccumulationError(
            f"'{name}' grows from hour to hour and starts again once or twice a day: these are totals since a base time, as ERA5-Land and forecasts have them, "
            "not hourly ones.",
            fix=f"take differences first: ds['{name}'] = ds['{name}'].diff('time').where(lambda d: d >= 0, ds['{name}']), and look at the first hour after each base time",
        )


def accumulate(da: xr.DataArray, hours: int, *, name: str | None = None, dim: str = "time") -> xr.DataArray:
    """Totals over ``hours`` that end at each time; NaN where one of the parts is missing. Lazy.

    Parameters
    ----------
    da : DataArray
        Totals over shorter periods, each ending at its time.
    hours : int
        Length of the new period.
    name : str, optional
        Name for messages.
    dim : str
        The time dimension.

    Returns
    -------
    DataArray
        Same times, units and dtype; ``cell_methods`` says what it is.

    Raises
    ------
    AccumulationError
        The period of the parts is unknown, longer than ``hours``, or does not divide it, or parts would overlap.
    """
    label = name or str(da.name)
    times = da[dim].values.astype("datetime64[ns]")
    period = period_for(label, da.attrs, times, hours)
    attrs = {**da.attrs, "cell_methods": cell_methods(hours)}
    if period == hours:
        return da.assign_attrs(attrs)
    da = as_dask(da, dim)
    total: Any = None
    for part in range(hours // period):
        # Looking each part up by its time keeps a gap a gap: a rolling window would bridge it.
        shifted = da.reindex({dim: times - part * period * HOUR}).variable.astype(np.float64)
        total = shifted if total is None else total + shifted
    return xr.DataArray(total.astype(da.dtype), dims=da.dims, coords=da.coords, name=da.name, attrs=attrs)


def target_totals(da: xr.DataArray, *, name: str) -> xr.DataArray:
    """Six-hour totals in canonical form, negative noise of packing clipped to zero. Lazy."""
    totals = accumulate(da, TIMESTEP_HOURS, name=name)
    return totals.clip(min=0.0, keep_attrs=True)


def accumulate_in(ds: xr.Dataset, name: str, period: str) -> xr.DataArray:
    """See :meth:`xaurora.accessor.AuroraAccessor.accumulate`."""
    hours = hours_of(period)
    found = recognition.recognise(ds)
    if not isinstance(name, str) or name not in ds:
        raise MissingVariableError(
            f"'{name}' is not in the data, which hold {sorted(map(str, ds.data_vars))}.",
            fix="ds.aurora lists what was recognised",
        )
    if recognition.is_forecast(ds):
        return _over_leads(ds[name], name, hours)
    found.raise_first()
    items = {item.source: item for item in found.fields.values()}
    if name not in items or not items[name].variable.accumulated:
        raise MissingVariableError(
            f"'{name}' is not an accumulated variable.", fix=f"ds['{name}'].resample(time='{hours}h').mean() for a mean"
        )
    return accumulate(ds[name], hours, name=name, dim=found.axes["time"].dim)


def _over_leads(da: xr.DataArray, name: str, hours: int) -> xr.DataArray:
    """Sums over lead times that end at each lead; NaN where a part is missing."""
    lead = "lead_time" if "lead_time" in da.dims else "prediction_timedelta"
    period = declared_hours(name, da.attrs)
    if period is None or hours % period or "quantile" in da.dims or not da.attrs.get("units"):
        raise AccumulationError(
            f"'{name}' of the forecast holds {f'{period}-hour totals' if period else 'no totals that say their period'}, of which no {hours}-hour ones can be made (quantiles do not add up).",
            fix=f"a multiple of {period or TIMESTEP_HOURS} hours of a total or its mean: fc.aurora.accumulate('tp', '24h')",
        )
    total: Any = None
    for part in range(hours // period):
        shifted = da.reindex({lead: da[lead].values - part * period * HOUR}).variable.astype(np.float64)
        total = shifted if total is None else total + shifted
    keep = {k: v for k, v in da.attrs.items() if k not in ("distribution", "epsilon_m")}
    return xr.DataArray(
        total.astype(da.dtype),
        dims=da.dims,
        coords=da.coords,
        name=da.name,
        attrs={**keep, "cell_methods": cell_methods(hours)},
    )


def hours_of(value: Any) -> int:
    import pandas as pd

    try:
        delta = pd.Timedelta(value)
        hours = delta / pd.Timedelta(hours=1)
    except (ValueError, TypeError):
        hours = float("nan")
    if not (np.isfinite(hours) and hours > 0 and float(hours).is_integer()):
        raise LeadTimeError(f"{value!r} is no positive whole number of hours.", fix="'6h', '24h' or '5 days'")
    return int(hours)

"""Accumulated precipitation: the period of a value, sums over longer periods, and negative noise.

ERA5 ``tp`` from the CDS is the total of the hour that *ends* at its time. A six-hour total at 12
UTC is therefore the sum of the hours labelled 07 to 12, and one at 00 UTC needs the day before. The
values alone do not show which period they stand for. It must be stated by the data
(``cell_methods``, or a name such as ``total_precipitation_6hr``) or follow from hourly spacing.
Anything else raises.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xaurora.errors import AccumulationError, MissingVariableError
from xaurora.fields import labels, recognition
from xaurora.fields.periods import (
    HOUR,
    TimeIndex,
    cell_methods,
    declared_hours,
    hours_of,
    spacing_hours,
    span,
)
from xaurora.fields.unit_conversion import conversion, is_rate, rate_to_amount
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.utils import lazy


def value_period(name: str, attrs: dict[str, Any], times: np.ndarray) -> float:
    """Return the number of hours that each value of an accumulated variable stands for.

    Raises
    ------
    AccumulationError
        The period is unknown. In particular, 1-hour totals downloaded at 00, 06, 12 and 18 UTC look
        just like 6-hour ones.
    """
    if (declared := declared_hours(name, attrs)) is not None:
        return declared
    spacing = spacing_hours(times)
    if spacing == 1:
        return 1
    raise AccumulationError(
        f"'{name}' is {spacing:g}-hourly, but the period that each value sums up is not known."
        f" ERA5 from the CDS gives 1-hour totals, which yield a {TIMESTEP_HOURS}-hour total only"
        " if all hours are present.",
        fix=(
            f"download '{name}' for every hour; or, if these are {TIMESTEP_HOURS}-hour totals,"
            f" ds['{name}'].attrs['cell_methods'] = '{cell_methods(TIMESTEP_HOURS)}'"
        ),
    )


def check_period(label: str, attrs: dict[str, Any], times: np.ndarray, hours: int) -> float:
    """Return the number of hours of each value, if totals over ``hours`` can be computed from them.

    Raises
    ------
    AccumulationError
        They cannot.
    """
    period = value_period(label, attrs, times)
    if period == hours:
        return period
    if hours % period:
        raise AccumulationError(
            f"'{label}' contains {period}-hour totals, from which {hours}-hour totals cannot be"
            " computed.",
            fix=(
                f"download hourly '{label}', or choose a multiple of {period} hours"
                if period < hours
                else f"download hourly '{label}'"
            ),
        )
    if len(times) > 1 and (spacing := spacing_hours(times)) > period:
        raise AccumulationError(
            f"'{label}' contains {period}-hour totals every {spacing:g} hours: the hours between"
            f" are missing, so {hours}-hour totals cannot be computed.",
            fix=f"download '{label}' for every {period} hour(s)",
        )
    return period


def complete_times(times: np.ndarray, period: float, hours: int = TIMESTEP_HOURS) -> np.ndarray:
    """Return the times for which all parts of a total over ``hours`` are available."""
    index, parts = TimeIndex(times), int(hours / period) if period <= hours else 1
    if index.step == span(period):  # no gaps
        return times[parts - 1 :]
    whole = np.ones(len(times), bool)
    for part in range(parts):
        whole &= index.has(times - span(part * period))
    return times[whole]


_LOOKED_AT = 48  # frames read at each of several positions in the record
_LARGE = 100_000  # points of a field, of which a quarter as many frames is enough
_PLACES = 4
_RAIN = 1e-4  # m; minimum amount of rain in the search for running totals


def check_not_running_totals(da: xr.DataArray, *, name: str, dim: str = "time") -> None:
    """Raise for hourly values that accumulate from a base time, as ERA5-Land's do.

    Reads up to two days at four positions in the record. Hourly rain rises and falls; a running
    total stays or grows until it restarts, once or twice a day.

    Raises
    ------
    AccumulationError
        Of at least 200 wet values, more than 85 % do not fall within the next hour.
    """
    times = da[dim].values.astype("datetime64[ns]")
    if len(times) < 13 or declared_hours(name, da.attrs) is not None or spacing_hours(times) != 1:
        return
    scale = conversion(str(da.attrs.get("units", "m")), "m")
    if scale is None or is_rate(str(da.attrs.get("units", ""))):
        return
    count = _LOOKED_AT if da.size < _LARGE * len(times) else _LOOKED_AT // 4
    starts = np.unique(np.linspace(0, max(len(times) - count, 0), _PLACES).astype(int))
    wet_pairs = not_falling = 0
    for start in starts:
        part = da.isel({dim: slice(start, start + count)})
        values = np.moveaxis(part.values, part.dims.index(dim), 0).astype(np.float64) * scale[0]
        now, then = values[:-1], values[1:]
        wet = now > _RAIN
        wet_pairs += int(wet.sum())
        not_falling += int((then[wet] >= now[wet] * (1 - 1e-3)).sum())
    if wet_pairs >= 200 and not_falling > 0.85 * wet_pairs:
        raise AccumulationError(
            f"'{name}' grows from hour to hour and restarts once or twice a day: these are totals"
            " since a base time, as in ERA5-Land and forecasts, not hourly totals.",
            fix=(
                f"ds['{name}'] = ds.aurora.deaccumulate('{name}'); if several files are opened"
                f" together, on the file of '{name}' alone"
            ),
        )


def accumulate(
    da: xr.DataArray, hours: int, *, name: str | None = None, dim: str = "time", clip: bool = False
) -> xr.DataArray:
    """Return totals over ``hours`` that end at each time, NaN where a part is missing. Lazy.

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
    clip : bool
        Set negative amounts, which are noise of packing, to zero;
        :meth:`xaurora.accessor.AuroraAccessor.statistics` and ``finetune`` count them.

    Returns
    -------
    DataArray
        Same times, units and dtype (metres and float32 for mean rates), with the period in
        ``cell_methods``.

    Raises
    ------
    AccumulationError
        The period of the parts is unknown, longer than ``hours``, or does not divide it, or parts
        would overlap.
    """
    label = name or str(da.name)
    times = da[dim].values.astype("datetime64[ns]")
    period = check_period(label, da.attrs, times, hours)
    attrs = {**da.attrs, "cell_methods": cell_methods(hours)}
    if is_rate(units := str(da.attrs.get("units", ""))):
        # Convert mean rates to amounts in metres before summing them.
        to_amount = functools.partial(_scaled, rate_to_amount(units, period))
        da = lazy.map_array(da, to_amount, np.float32)
        attrs["units"] = "m"
    if period == hours:
        positive = lazy.map_array(da, _not_negative, da.dtype) if clip else da
        return positive.assign_attrs(attrs)
    # Selecting each part by its time preserves gaps; a rolling window would bridge them.
    parts = [span(part * period) for part in range(int(hours / period))]
    dtype = da.dtype if np.issubdtype(da.dtype, np.floating) else np.float32  # which can be NaN
    total = lazy.combine_frames(
        da, dim, _Parts(times, parts), clip="parts" if clip else None, dtype=dtype
    )
    return total.assign_attrs(attrs)


class _Parts:
    """Positions of the parts of totals among the times, ``(time, part)``, found when asked for.

    Parameters
    ----------
    times : ndarray of datetime64
    before : list of timedelta64
        How long before a total's time each part ends.
    """

    def __init__(self, times: np.ndarray, before: list[np.timedelta64]) -> None:
        self.times, self.before, self.index = times, before, TimeIndex(times)
        self.shape = (len(times), len(before))

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        times = self.times[rows]
        return np.stack([self.index.locate(times - part) for part in self.before], axis=-1)


def _scaled(factor: float, values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64) * factor


def _not_negative(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0.0, None)


# m; running totals fall by less than this due to packing, and by more when they restart
_NOISE = 1e-5


def deaccumulate(
    da: xr.DataArray, *, every: int = 24, start: int = 0, dim: str = "time"
) -> xr.DataArray:
    """Convert totals since a base time to the total of each step, which ends at its time.

    Reads the first two days as a check, otherwise lazy.

    Parameters
    ----------
    da : DataArray
        Running totals, as in ERA5-Land (since 00 UTC) and in the forecasts of MARS.
    every, start : int
        Hours between base times, and the first of them in hours UTC: 24 and 0 for ERA5-Land.
    dim : str
        The time dimension.

    Returns
    -------
    DataArray
        Same times, units and dtype; NaN where the step before is missing. Negative differences are
        noise of packing and are set to zero.

    Raises
    ------
    AccumulationError
        Totals fall between base times, so the base times must be others; or steps do not divide
        ``every``.
    """
    times = da[dim].values.astype("datetime64[ns]")
    step = spacing_hours(times)
    if not step.is_integer() or every % int(step):
        raise AccumulationError(
            f"'{da.name}' has steps of {step:g} hours, which do not divide the {every} hours"
            " between base times.",
            fix="deaccumulate(every='24h') with the hours after which the totals restart",
        )
    midnight = times.astype("datetime64[D]").astype("datetime64[ns]")
    elapsed = ((times - midnight) / HOUR - start) % every
    fresh = (
        elapsed == step if every > step else np.ones(len(times), bool)
    )  # the first step after a base time
    positions = _Parts(times, [0 * HOUR, int(step) * HOUR])[np.arange(len(times))]
    positions[fresh, 1] = lazy.NOTHING
    start_of = lazy.combine_frames(
        da.isel({dim: slice(0, 48)}), dim, positions[:48], weights=(1.0, -1.0), dtype=np.float64
    )
    first = start_of.values
    if (first < -_NOISE).any():
        i = int(
            np.argmax(
                (np.moveaxis(first, da.dims.index(dim), 0) < -_NOISE)
                .reshape(first.shape[da.dims.index(dim)], -1)
                .any(1)
            )
        )
        raise AccumulationError(
            f"'{da.name}' falls at {times[i].astype('datetime64[m]')}, which is not a base time if"
            f" totals restart every {every} hours from {start:02d} UTC.",
            fix="deaccumulate(every='12h', start=6) with the hours at which they restart",
        )
    change = lazy.combine_frames(da, dim, positions, weights=(1.0, -1.0), clip="total")
    return change.assign_attrs({**da.attrs, "cell_methods": cell_methods(int(step))})


def deaccumulate_variable(ds: xr.Dataset, name: str, every: str, start: int) -> xr.DataArray:
    """Return the total of each step; see :meth:`xaurora.accessor.AuroraAccessor.deaccumulate`."""
    if name not in ds:
        raise MissingVariableError(
            f"'{name}' is not in the data, whose variables are {sorted(map(str, ds.data_vars))}.",
            fix="ds.aurora lists the recognised variables",
        )
    if recognition.is_forecast(ds):
        return _between_leads(ds[name], name)
    found = recognition.recognise(ds)
    if "time" not in found.axes:
        found.raise_first()
    return deaccumulate(ds[name], every=hours_of(every), start=start, dim=found.axes["time"].dim)


def _between_leads(da: xr.DataArray, name: str) -> xr.DataArray:
    """Convert a forecast's totals since its init time to totals between its lead times."""
    lead = "lead_time" if "lead_time" in da.dims else "prediction_timedelta"
    hours = da[lead].values.astype("timedelta64[ns]") / HOUR
    steps = np.diff(np.concatenate([[0.0], hours]))
    if (
        not len(steps)
        or (steps != steps[0]).any()
        or steps[0] <= 0
        or not float(steps[0]).is_integer()
    ):
        raise AccumulationError(
            f"'{name}' has lead times of {[f'{h:g}' for h in hours]} h, but deaccumulation needs"
            " even steps from the init time on.",
            fix=f"select evenly spaced lead times: fc.sel({lead}=...)",
        )
    place = np.arange(len(steps))
    before = np.where(place > 0, place - 1, lazy.NOTHING)
    change = lazy.combine_frames(
        da, lead, np.stack([place, before], axis=1), weights=(1.0, -1.0), clip="total"
    )
    return change.assign_attrs({**da.attrs, "cell_methods": cell_methods(int(steps[0]))})


def accumulate_variable(ds: xr.Dataset, name: str, period: str) -> xr.DataArray:
    """Return totals over a period; see :meth:`xaurora.accessor.AuroraAccessor.accumulate`."""
    hours = hours_of(period)
    found = recognition.recognise(ds)
    if not isinstance(name, str) or name not in ds:
        raise MissingVariableError(
            f"'{name}' is not in the data, whose variables are {sorted(map(str, ds.data_vars))}.",
            fix="ds.aurora lists the recognised variables",
        )
    if recognition.is_forecast(ds):
        return over_leads(ds[name], name, hours)
    found.raise_first()
    ds = labels.by_end(ds, found)
    items = {item.source: item for item in found.fields.values()}
    if name not in items or not items[name].variable.accumulated:
        raise MissingVariableError(
            f"'{name}' is not an accumulated variable.",
            fix=f"ds['{name}'].resample(time='{hours}h').mean() for a mean",
        )
    dim = found.axes["time"].dim
    da = ds[name] if found.times is None else ds[name].assign_coords({dim: found.times})
    check_not_running_totals(da, name=name, dim=dim)
    return accumulate(da, hours, name=name, dim=dim, clip=True)


# attributes that xaurora.distributions.to_attrs writes, which do not hold for a sum
_OF_DISTRIBUTIONS = ("distribution", "epsilon_m")


def over_leads(da: xr.DataArray, name: str, hours: int) -> xr.DataArray:
    """Return sums over lead times that end at each lead time, NaN where a part is missing."""
    lead = "lead_time" if "lead_time" in da.dims else "prediction_timedelta"
    period = declared_hours(name, da.attrs)
    if "quantile" in da.dims or "threshold" in da.dims or "parameter_of" in da.attrs:
        held = {"quantile": "quantiles", "threshold": "probabilities"}
        what = next(
            (v for d, v in held.items() if d in da.dims), "the parameters of a distribution"
        )
        raise AccumulationError(
            f"'{name}' holds {what}, which do not add up over lead times.",
            fix="sum the mean (fc.aurora.accumulate('tp', '24h')), or members: predict(members=50)",
        )
    if period is None or hours % period or not da.attrs.get("units"):
        raise AccumulationError(
            f"'{name}' of the forecast has"
            f" {f'{period}-hour totals' if period else 'no totals with a stated period'}, from"
            f" which {hours}-hour totals cannot be computed.",
            fix=(
                f"use a multiple of {period or TIMESTEP_HOURS} hours, and a total or its mean:"
                " fc.aurora.accumulate('tp', '24h')"
            ),
        )
    index = pd.Index(da[lead].values)
    parts = [index.get_indexer(index - span(part * period)) for part in range(int(hours / period))]
    total = lazy.combine_frames(da, lead, np.stack(parts, axis=1))
    keep = {k: v for k, v in da.attrs.items() if not k.startswith(_OF_DISTRIBUTIONS)}
    return total.assign_attrs({**keep, "cell_methods": cell_methods(hours)})

"""Accumulated precipitation: which period a value stands for, sums over longer periods, negative
noise.

ERA5 ``tp`` from the CDS is the total of the hour that *ends* at its time. A six-hour total at 12
UTC is therefore the sum of the hours labelled 07 to 12, and one at 00 UTC needs the day before.
What a value stands for cannot be read off the values alone, so that it must be said by the data
(``cell_methods``, or a name such as ``total_precipitation_6hr``) or follow from hourly spacing; all
else is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xaurora import distributions
from xaurora.errors import AccumulationError, MissingVariableError
from xaurora.fields import recognition
from xaurora.fields.periods import HOUR, cell_methods, declared_hours, hours_of, spacing_hours, span
from xaurora.fields.unit_conversion import conversion, is_rate, rate_to_amount
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.utils.lazy import as_dask


def period_of(name: str, attrs: dict[str, Any], times: np.ndarray) -> float:
    """Hours that each value of an accumulated variable stands for.

    Raises
    ------
    AccumulationError
        Nothing says it: above all 1-hour totals downloaded at 00, 06, 12 and 18 UTC look just like
        6-hour ones.
    """
    if (declared := declared_hours(name, attrs)) is not None:
        return declared
    spacing = spacing_hours(times)
    if spacing == 1:
        return 1
    raise AccumulationError(
        f"'{name}' comes every {spacing:g} hours, and nothing says how many hours each value sums"
        f" up. ERA5 from the CDS gives 1-hour totals, of which a {TIMESTEP_HOURS}-hour total cannot"
        " be made unless all hours are there.",
        fix=(
            f"download '{name}' for every hour; or, if these are totals over {TIMESTEP_HOURS}"
            f" hours, ds['{name}'].attrs['cell_methods'] = '{cell_methods(TIMESTEP_HOURS)}'"
        ),
    )


def period_for(label: str, attrs: dict[str, Any], times: np.ndarray, hours: int) -> float:
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
            fix=(
                f"download hourly '{label}', or choose a period that {period} hours divide"
                if period < hours
                else f"download hourly '{label}'"
            ),
        )
    if len(times) > 1 and (spacing := spacing_hours(times)) > period:
        raise AccumulationError(
            f"'{label}' holds {period}-hour totals every {spacing:g} hours: the hours between are"
            f" missing, and no {hours}-hour total can be made.",
            fix=f"download '{label}' for every {period} hour(s)",
        )
    return period


def whole_times(times: np.ndarray, period: float, hours: int = TIMESTEP_HOURS) -> np.ndarray:
    """Times at which all parts of a total over ``hours`` are there."""
    whole = np.ones(len(times), bool)
    for part in range(int(hours / period) if period <= hours else 1):
        whole &= np.isin(times - span(part * period), times)
    return times[whole]


_LOOKED_AT = 48  # frames at each of several places of the record
_PLACES = 4
_RAIN = 1e-4  # m; what counts as rain in the search for running totals


def refuse_running_totals(da: xr.DataArray, *, name: str, dim: str = "time") -> None:
    """Raise for hourly values that run on from a base time, as ERA5-Land's do. Reads two days at
    four places of the record.

    Hourly rain rises and falls; a running total stays or grows until it starts again, once or twice
    a day.

    Raises
    ------
    AccumulationError
        More than 85 % of the wet values do not fall within the next hour, of at least 200.
    """
    times = da[dim].values.astype("datetime64[ns]")
    if len(times) < 13 or declared_hours(name, da.attrs) is not None or spacing_hours(times) != 1:
        return
    scale = conversion(str(da.attrs.get("units", "m")), "m")
    if scale is None or is_rate(str(da.attrs.get("units", ""))):
        return
    starts = np.unique(np.linspace(0, max(len(times) - _LOOKED_AT, 0), _PLACES).astype(int))
    wet_pairs = not_falling = 0
    for start in starts:
        part = da.isel({dim: slice(start, start + _LOOKED_AT)})
        values = np.moveaxis(part.values, part.dims.index(dim), 0).astype(np.float64) * scale[0]
        now, then = values[:-1], values[1:]
        wet = now > _RAIN
        wet_pairs += int(wet.sum())
        not_falling += int((then[wet] >= now[wet] * (1 - 1e-3)).sum())
    if wet_pairs >= 200 and not_falling > 0.85 * wet_pairs:
        raise AccumulationError(
            f"'{name}' grows from hour to hour and starts again once or twice a day: these are"
            " totals since a base time, as ERA5-Land and forecasts have them, not hourly ones.",
            fix=(
                f"ds['{name}'] = ds.aurora.deaccumulate('{name}'), on the file of '{name}' alone"
                " where several are opened together"
            ),
        )


def accumulate(
    da: xr.DataArray, hours: int, *, name: str | None = None, dim: str = "time", clip: bool = False
) -> xr.DataArray:
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
    clip : bool
        Set negative amounts, which are noise of packing, to zero;
        :func:`xaurora.fields.statistics.statistics` and ``finetune`` count them.

    Returns
    -------
    DataArray
        Same times, units and dtype (metres and float32 for mean rates); ``cell_methods`` says what
        it is.

    Raises
    ------
    AccumulationError
        The period of the parts is unknown, longer than ``hours``, or does not divide it, or parts
        would overlap.
    """
    label = name or str(da.name)
    times = da[dim].values.astype("datetime64[ns]")
    period = period_for(label, da.attrs, times, hours)
    attrs = {**da.attrs, "cell_methods": cell_methods(hours)}
    if is_rate(units := str(da.attrs.get("units", ""))):
        # Mean rates over their period become amounts in metres before they are summed.
        da = as_dask(da, dim).astype(np.float64) * rate_to_amount(units, period)
        da, attrs = da.astype(np.float32), {**attrs, "units": "m"}
    if period == hours:
        return (da.clip(min=0.0) if clip else da).assign_attrs(attrs)
    da = as_dask(da, dim)
    if not np.issubdtype(da.dtype, np.floating):
        da = da.astype(np.float32)  # looking up times that are not there gives NaN
    total: Any = None
    for part in range(int(hours / period)):
        # Looking each part up by its time keeps a gap a gap: a rolling window would bridge it.
        shifted = da.reindex({dim: times - span(part * period)}).variable.astype(np.float64)
        shifted = shifted.clip(min=0.0) if clip else shifted
        total = shifted if total is None else total + shifted
    # Whole numbers cannot hold what is missing.
    dtype = da.dtype if np.issubdtype(da.dtype, np.floating) else np.float32
    return xr.DataArray(
        total.astype(dtype), dims=da.dims, coords=da.coords, name=da.name, attrs=attrs
    )


# m; running totals fall by less than this through packing, and by more where they start again
_NOISE = 1e-5


def deaccumulate(
    da: xr.DataArray, *, every: int = 24, start: int = 0, dim: str = "time"
) -> xr.DataArray:
    """Totals since a base time → the total of each step, which ends at its time. Reads the first
    two days as a check, else lazy.

    Parameters
    ----------
    da : DataArray
        Running totals, as ERA5-Land (since 00 UTC) and the forecasts of MARS have them.
    every, start : int
        Hours between base times, and the first of them in hours UTC: 24 and 0 for ERA5-Land.
    dim : str
        The time dimension.

    Returns
    -------
    DataArray
        Same times, units and dtype; NaN where the step before is missing. Differences below zero
        are noise of packing, and set to it.

    Raises
    ------
    AccumulationError
        Totals fall between base times, so that the base times are others; or steps do not divide
        ``every``.
    """
    times = da[dim].values.astype("datetime64[ns]")
    step = spacing_hours(times)
    if not step.is_integer() or every % int(step):
        raise AccumulationError(
            f"'{da.name}' comes every {step:g} hours, which do not divide the {every} hours between"
            " base times.",
            fix="deaccumulate(every='24h') with the hours after which the totals start again",
        )
    midnight = times.astype("datetime64[D]").astype("datetime64[ns]")
    elapsed = ((times - midnight) / HOUR - start) % every
    fresh = (
        elapsed == step if every > step else np.ones(len(times), bool)
    )  # the first step after a base time
    da = as_dask(da, dim)
    before = da.reindex({dim: times - int(step) * HOUR}).variable.astype(np.float64)
    now = da.variable.astype(np.float64)
    change = now - before.where(xr.Variable((dim,), ~fresh), 0.0)
    first = change.isel({dim: slice(0, 48)}).values
    if (first < -_NOISE).any():
        i = int(
            np.argmax(
                (np.moveaxis(first, da.dims.index(dim), 0) < -_NOISE)
                .reshape(first.shape[da.dims.index(dim)], -1)
                .any(1)
            )
        )
        raise AccumulationError(
            f"'{da.name}' falls at {times[i].astype('datetime64[m]')}, which is no base time if"
            f" totals start again every {every} hours from {start:02d} UTC.",
            fix="deaccumulate(every='12h', start=6) with the hours at which they start again",
        )
    attrs = {**da.attrs, "cell_methods": cell_methods(int(step))}
    return xr.DataArray(
        change.clip(min=0.0).astype(da.dtype),
        dims=da.dims,
        coords=da.coords,
        name=da.name,
        attrs=attrs,
    )


def deaccumulate_in(ds: xr.Dataset, name: str, every: str, start: int) -> xr.DataArray:
    """See :meth:`xaurora.accessor.AuroraAccessor.deaccumulate`."""
    if name not in ds:
        raise MissingVariableError(
            f"'{name}' is not in the data, which hold {sorted(map(str, ds.data_vars))}.",
            fix="ds.aurora lists what was recognised",
        )
    if recognition.is_forecast(ds):
        return _between_leads(ds[name], name)
    found = recognition.recognise(ds)
    if "time" not in found.axes:
        found.raise_first()
    return deaccumulate(ds[name], every=hours_of(every), start=start, dim=found.axes["time"].dim)


def _between_leads(da: xr.DataArray, name: str) -> xr.DataArray:
    """A forecast's totals since its init time → totals between its lead times."""
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
            f"'{name}' has lead times of {[f'{h:g}' for h in hours]} h; differences need even steps"
            " from the init time on.",
            fix=f"select leads that follow one another: fc.sel({lead}=...)",
        )
    change = da.astype(np.float64) - da.astype(np.float64).shift({lead: 1}, fill_value=0.0)
    attrs = {**da.attrs, "cell_methods": cell_methods(int(steps[0]))}
    return change.clip(min=0.0).astype(da.dtype).assign_attrs(attrs)


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
        return over_leads(ds[name], name, hours)
    found.raise_first()
    items = {item.source: item for item in found.fields.values()}
    if name not in items or not items[name].variable.accumulated:
        raise MissingVariableError(
            f"'{name}' is not an accumulated variable.",
            fix=f"ds['{name}'].resample(time='{hours}h').mean() for a mean",
        )
    dim = found.axes["time"].dim
    da = ds[name] if found.times is None else ds[name].assign_coords({dim: found.times})
    refuse_running_totals(da, name=name, dim=dim)
    return accumulate(da, hours, name=name, dim=dim, clip=True)


def over_leads(da: xr.DataArray, name: str, hours: int) -> xr.DataArray:
    """Sums over lead times that end at each lead; NaN where a part is missing."""
    lead = "lead_time" if "lead_time" in da.dims else "prediction_timedelta"
    period = declared_hours(name, da.attrs)
    if "quantile" in da.dims or "threshold" in da.dims or "parameter_of" in da.attrs:
        raise AccumulationError(
            f"'{name}' holds"
            f" {'quantiles' if 'quantile' in da.dims else 'probabilities' if 'threshold' in da.dims else 'the parameters of a distribution'},"
            " which do not add up over lead times.",
            fix="sum the mean (fc.aurora.accumulate('tp', '24h')), or members: predict(members=50)",
        )
    if period is None or hours % period or not da.attrs.get("units"):
        raise AccumulationError(
            f"'{name}' of the forecast holds"
            f" {f'{period}-hour totals' if period else 'no totals that say their period'}, of which"
            f" no {hours}-hour ones can be made.",
            fix=(
                f"a multiple of {period or TIMESTEP_HOURS} hours of a total or its mean:"
                " fc.aurora.accumulate('tp', '24h')"
            ),
        )
    total: Any = None
    for part in range(int(hours / period)):
        shifted = da.reindex({lead: da[lead].values - span(part * period)}).variable.astype(
            np.float64
        )
        total = shifted if total is None else total + shifted
    keep = {k: v for k, v in da.attrs.items() if not distributions.is_attr(k)}
    return xr.DataArray(
        total.astype(da.dtype),
        dims=da.dims,
        coords=da.coords,
        name=da.name,
        attrs={**keep, "cell_methods": cell_methods(hours)},
    )

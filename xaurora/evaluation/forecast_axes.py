"""The init times and lead times of forecasts: their names, order and units.

Does not depend on torch.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from xaurora.errors import InitTimeError, KindError, LeadTimeError
from xaurora.fields import recognition
from xaurora.utils import lazy
from xaurora.utils.types import Given

_LEADS = {
    "h": 3_600_000_000_000,
    "hour": 3_600_000_000_000,
    "hours": 3_600_000_000_000,
    "days": 86_400_000_000_000,
    "nanoseconds": 1,
    "ns": 1,
    "seconds": 1_000_000_000,
    "minutes": 60_000_000_000,
}


_INIT = (
    "init_time",
    "forecast_reference_time",
    "reference_time",
    "initial_time",
    "initialization_time",
    "time",
)
_LEAD = ("lead_time", "forecast_period", "step", "leadtime", "lead", "prediction_timedelta")


def with_known_names(ds: xr.Dataset) -> xr.Dataset:
    """Rename the dims of others' forecasts, such as the time and step of IFS in GRIB."""
    if recognition.is_forecast(ds):
        return ds
    init = next((n for n in _INIT if n in ds.dims or (n in ds.coords and not ds[n].ndim)), None)
    lead = next((n for n in _LEAD if n in ds.dims), None)
    if init is None or lead is None or lead not in ds.coords or init not in ds.coords:
        return ds
    if not np.issubdtype(ds[init].dtype, np.datetime64):
        return ds
    taken = [n for n in ("init_time", "lead_time") if n in ds.variables and n not in (init, lead)]
    stored = {"init_time": init, "lead_time": lead}
    names = {old: new for new, old in stored.items() if old != new}
    made = ds.drop_vars(taken).rename(names)
    return made.assign_attrs(_stored_dims=stored)


def in_order(ds: xr.Dataset) -> xr.Dataset:
    """Return a forecast with increasing init times and lead times.

    Raises
    ------
    LeadTimeError
        If a lead time occurs twice.
    InitTimeError
        If an init time occurs twice.
    """
    for dim, error in (("init_time", InitTimeError), ("lead_time", LeadTimeError)):
        values = ds[dim].values
        unique, counts = np.unique(values, return_counts=True)
        if len(unique) < len(values):
            doubled = xr.DataArray(unique[counts > 1][:1]).values[0]
            shown = doubled.astype("datetime64[m]") if dim == "init_time" else _duration(doubled)
            raise error(
                f"{int((counts > 1).sum())} {dim.replace('_', ' ')}(s) occur more than once, the"
                f" first is {shown}; they would be scored twice.",
                fix=f"fc = fc.drop_duplicates('{dim}')",
            )
        if len(values) > 1 and not (values[1:] > values[:-1]).all():
            ds = ds.isel({dim: np.argsort(values)})
    return ds


def with_both_dims(ds: xr.Dataset) -> xr.Dataset:
    """Return a forecast with the dims ``init_time`` and ``lead_time``."""
    names = (
        {"init_time": "time", "lead_time": "prediction_timedelta"}
        if "prediction_timedelta" in ds.coords
        else {}
    )
    if names:
        if "time" not in ds.variables:
            raise KindError(
                "the forecast has prediction_timedelta but no time.",
                fix="ds.rename(init_time='time')",
            )
        ds = ds.rename(time="init_time", prediction_timedelta="lead_time")
    elif "time" in ds.coords and "time" not in ds.dims:
        ds = ds.drop_vars("time")  # not a dim, so it is the valid time under another name
    ds = ds.assign_attrs(_stored_dims=names or ds.attrs.get("_stored_dims", {}))
    for dim in ("lead_time", "init_time"):
        if dim not in ds.dims:  # a single time was selected
            static = [
                n
                for n in ds.data_vars
                if n in ("lsm", "slt", "geopotential_at_surface", "land_sea_mask", "soil_type")
            ]
            ds = xr.merge(
                [
                    _expanded(ds.drop_vars([*static, "valid_time"], errors="ignore"), dim),
                    ds[static].drop_vars([dim, "valid_time"], errors="ignore"),
                ]
            )
    if not ds.sizes["init_time"] or not ds.sizes["lead_time"]:
        raise KindError(
            f"the forecast holds no {'init time' if not ds.sizes['init_time'] else 'lead time'}.",
            fix="select init and lead times that are in the forecast",
        )
    return ds


def _expanded(ds: xr.Dataset, dim: str) -> xr.Dataset:
    """Return a Dataset with a selected time as a dim of length 1."""
    values = {name: lazy.expand(da.variable, dim) for name, da in ds.data_vars.items()}
    return ds.drop_vars(list(ds.data_vars)).expand_dims(dim).assign(values)


def decode_lead_times(lead: xr.DataArray) -> np.ndarray:
    """Return lead times as timedelta64[ns]; numbers are converted by their units.

    Raises
    ------
    LeadTimeError
        If they are numbers without units.
    """
    if np.issubdtype(lead.dtype, np.timedelta64):
        return lead.values.astype("timedelta64[ns]")
    unit = str(lead.attrs.get("units", ""))
    if unit in _LEADS:  # xarray since 2026 does not decode durations that have only `units`
        return (lead.values * _LEADS[unit]).astype("timedelta64[ns]")
    raise LeadTimeError(
        f"lead times must be durations, and these are {lead.dtype} without units.",
        fix=(
            f"fc['{lead.name}'] = fc['{lead.name}'].values * np.timedelta64(1, 'h') if they are"
            " hours, or open the file with decode_timedelta=True"
        ),
    )


def _duration(value: Given) -> str:
    if isinstance(value, np.timedelta64):
        return f"{value / np.timedelta64(1, 'h'):g} h"
    return str(value)

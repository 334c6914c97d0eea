"""Bringing forecast, truth and climatology onto one grid, one set of names and one time axis. Knows nothing of torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xaurora import conventions, periods, precipitation, recognition, variables
from xaurora.distributions import FAMILIES, Deterministic, Family, from_attrs
from xaurora.errors import AccumulationError, EnsembleError, KindError, LeadTimeError, TruthError
from xaurora.recognition import Field
from xaurora.variables import TIMESTEP_HOURS

_LEADS = {"h": 3_600_000_000_000, "hour": 3_600_000_000_000, "hours": 3_600_000_000_000, "days": 86_400_000_000_000, "nanoseconds": 1, "ns": 1, "seconds": 1_000_000_000, "minutes": 60_000_000_000}  # fmt: skip


logger = logging.getLogger("xaurora")


@dataclass
class Forecast:
    """A forecast of either layout.

    Parameters
    ----------
    ds : Dataset
        Dims ``init_time``, ``lead_time``, then as found; grid in canonical order.
    fields : dict
        ``(kind, name)`` → :class:`Field`.
    latitude, longitude : ndarray
        Canonical order; longitude in [0, 360).
    init_times, leads : ndarray
        datetime64[ns], timedelta64[ns].
    levels : tuple of float
        hPa, in the forecast's order.
    dims : dict
        Names of ``latitude``, ``longitude``, ``level`` and ``number`` in ``ds``.
    """

    ds: xr.Dataset
    fields: dict[tuple[str, str], Field]
    latitude: np.ndarray
    longitude: np.ndarray
    init_times: np.ndarray
    leads: np.ndarray
    levels: tuple[float, ...]
    dims: dict[str, str]

    def read(self, item: Field, init: int, lead: int) -> np.ndarray:
        """One field in canonical units, float64: ``([number,] [level,] h, w)``."""
        return self.raw(item.source, init, lead) * item.scale + item.offset

    def raw(self, name: str, init: int, lead: int) -> np.ndarray:
        """One variable as it stands, float64, in canonical grid order."""
        da = self.ds[name].isel(init_time=init, lead_time=lead)
        order = [self.dims[d] for d in ("number", "level", "latitude", "longitude") if self.dims.get(d) in da.dims]
        return da.transpose(*order).values.astype(np.float64)

    @property
    def members(self) -> int:
        """Ensemble members, 0 if it is none."""
        return self.ds.sizes.get(self.dims.get("number", ""), 0)


def read_forecast(ds: xr.Dataset) -> Forecast:
    """Recognise a forecast in this package's layout or WeatherBench2's. Lazy.

    Raises
    ------
    KindError
        It has no lead times.
    LeadTimeError
        Lead times are not durations.
    """
    if not isinstance(ds, xr.Dataset) or not recognition.is_forecast(ds):
        raise KindError(
            "a forecast is expected here, with dims (init_time, lead_time, ...) or WeatherBench2's (time, prediction_timedelta, ...), and this Dataset "
            f"has {sorted(map(str, getattr(ds, 'dims', ())))}.",
            fix="fc = ds.aurora.predict('24h', model=...); fc.aurora.evaluate(truth)",
        )
    if "prediction_timedelta" in ds.coords:
        ds = ds.rename(time="init_time", prediction_timedelta="lead_time")
    for dim in ("lead_time", "init_time"):
        if dim not in ds.dims:  # one time of a forecast is a forecast
            static = [
                n for n in ds.data_vars if n in ("lsm", "slt", "geopotential_at_surface", "land_sea_mask", "soil_type")
            ]
            ds = xr.merge(
                [
                    ds.drop_vars([*static, "valid_time"], errors="ignore").expand_dims(dim),
                    ds[static].drop_vars([dim, "valid_time"], errors="ignore"),
                ]
            )
    leads = _durations(ds["lead_time"])
    init_times = ds["init_time"].values.astype("datetime64[ns]")
    probe = ds.isel(lead_time=0, drop=True).drop_vars("valid_time", errors="ignore").rename(init_time="time")
    members = [d for d in recognition.NAMES["number"] if d in probe.dims]
    single = probe.isel({members[0]: 0}, drop=True) if members else probe
    found = recognition.recognise(single)
    for name in list(found.unrecognised):  # a target that the table does not know is scored in its own units
        if "distribution" in probe[name].attrs and "parameter_of" not in probe[name].attrs:
            recognition.add_generic(single, name, found)
    found.raise_first()
    rain = found.fields.get(("surface", "tp"))
    if rain is not None and periods.declared_hours(rain.source, rain.attrs) != TIMESTEP_HOURS:
        raise AccumulationError(
            f"'{rain.source}' of the forecast does not say that it is a total over {TIMESTEP_HOURS} hours.",
            fix=f"fc['{rain.source}'].attrs['cell_methods'] = '{periods.cell_methods(TIMESTEP_HOURS)}' if it is, else sum it to that first",
        )
    if found.grid is None:
        raise KindError("the forecast has no latitude and longitude.", fix="ds.aurora.check()")
    dims: dict[str, str] = {
        axis: found.axes[axis].dim for axis in ("latitude", "longitude", "level") if axis in found.axes
    }
    if members:
        dims["number"] = members[0]
    ordered = ds.isel({dims["latitude"]: found.grid.rows, dims["longitude"]: found.grid.columns})
    fields = {key: item for key, item in found.fields.items() if key[0] != "static"}
    return Forecast(
        ordered, fields, found.grid.latitude, found.grid.true_longitude, init_times, leads, found.levels, dims
    )


def _durations(lead: xr.DataArray) -> np.ndarray:
    if np.issubdtype(lead.dtype, np.timedelta64):
        return lead.values.astype("timedelta64[ns]")
    unit = str(lead.attrs.get("units", ""))
    if unit in _LEADS:  # xarray from 2026 on leaves durations that carry only `units` as numbers
        return (lead.values * _LEADS[unit]).astype("timedelta64[ns]")
    raise LeadTimeError(
        f"lead times are {lead.dtype} without units, not durations.", fix="xr.open_dataset(path, decode_timedelta=True)"
    )


@dataclass
class Truth:
    """Fields to score against, on the forecast's grid.

    Parameters
    ----------
    fields : Fields
        Canonical.
    rows, columns : ndarray of int
        Where the forecast's grid points stand.
    """

    fields: conventions.Fields
    rows: np.ndarray
    columns: np.ndarray
    position: dict[Any, int]
    totals: xr.DataArray | None

    def read(self, kind: str, name: str, time: np.datetime64, levels: tuple[float, ...]) -> np.ndarray | None:
        """One field in canonical units, float64, or None when the time is not there."""
        i = self.position.get(time.astype("datetime64[ns]").item())
        if i is None:
            return None
        da = (
            self.totals
            if (kind, name) == ("surface", "tp") and self.totals is not None
            else getattr(self.fields, kind)[name]
        )
        da = da.isel(time=i)
        if kind == "atmos":
            da = da.isel(level=[self.fields.levels.index(level) for level in levels])
        return da.values[..., self.rows, :][..., self.columns].astype(np.float64)

    def land(self) -> np.ndarray | None:
        """Land fraction on the forecast's grid."""
        if "lsm" not in self.fields.static:
            return None
        return self.fields.static["lsm"].values[self.rows][:, self.columns].astype(np.float64)


def read_truth(ds: xr.Dataset, forecast: Forecast) -> Truth:
    """Recognise the truth and find the forecast's grid in it. Lazy.

    Raises
    ------
    KindError
        A forecast was given as truth.
    TruthError
        Its grid does not hold the forecast's points, or it shares no valid time with the forecast.
    AccumulationError
        Its precipitation is not over six hours and cannot be summed to that.
    """
    if not isinstance(ds, xr.Dataset):
        raise KindError(
            f"the truth is a Dataset of fields, and this is {type(ds).__name__}.", fix="fc.aurora.evaluate(ds)"
        )
    if recognition.is_forecast(ds):
        raise KindError(
            "the truth is itself a forecast (it has lead times).",
            fix="fc.aurora.evaluate(fields), with fields that have one time axis",
        )
    found = recognition.recognise(ds)
    wanted = set(forecast.fields)
    for key in wanted - set(variables.BY_KEY):
        recognition.add_generic(ds, forecast.fields[key].source, found)
    for key in [k for k in found.fields if k not in wanted and k != ("static", "lsm")]:
        del found.fields[key]
    found.problems = [p for p in found.problems if p.about is None or p.about in wanted]
    found.raise_first()
    fields = conventions.standardise(ds, found)
    rows = _match("latitude", fields.layout.grid.latitude, forecast.latitude, wrap=False)
    columns = _match("longitude", fields.layout.grid.true_longitude, forecast.longitude, wrap=True)
    totals = None
    if ("surface", "tp") in wanted and "tp" in fields.surface:
        source = fields.layout.fields["surface", "tp"].source
        totals = precipitation.accumulate(fields.surface["tp"], TIMESTEP_HOURS, name=source)
    position = {t: i for i, t in enumerate(fields.times.tolist())}
    truth = Truth(fields, rows, columns, position, totals)
    valid = (forecast.init_times[:, None] + forecast.leads[None]).ravel()
    if not any(t in position for t in valid.tolist()):
        raise TruthError(
            f"no valid time of the forecast ({valid.min().astype('datetime64[m]')} to {valid.max().astype('datetime64[m]')}) is in the truth "
            f"({fields.times[0].astype('datetime64[m]')} to {fields.times[-1].astype('datetime64[m]')}, every {periods.spacing_hours(fields.times) if len(fields.times) > 1 else 0:g} h).",
            fix="give a truth that covers init_time + lead_time",
        )
    return truth


def _match(axis: str, have: np.ndarray, want: np.ndarray, *, wrap: bool) -> np.ndarray:
    distance = np.abs(have[None, :] - want[:, None])
    if wrap:
        distance = np.minimum(distance % 360.0, 360.0 - distance % 360.0)
    nearest = distance.argmin(axis=1)
    step = float(np.median(np.abs(np.diff(want)))) if len(want) > 1 else 1.0
    worst = float(distance[np.arange(len(want)), nearest].max())
    if worst > 0.01 * step:
        raise TruthError(
            f"the truth has no grid points at the forecast's {axis}s: {len(have)} from {have[0]:g} to {have[-1]:g}, and the forecast {len(want)} from {want[0]:g} to {want[-1]:g}. "
            "Scores on different grids are not comparable.",
            fix="bring one onto the other's grid first, conservatively for precipitation",
        )
    return nearest


def matched_variables(forecast: Forecast, truth: Truth) -> list[tuple[str, str]]:
    """Variables that both have, in the table's order.

    Raises
    ------
    TruthError
        There are none.
    """
    both = [key for key in forecast.fields if key[1] in getattr(truth.fields, key[0])]
    if not both:
        have = sorted(i.source for i in truth.fields.layout.fields.values())
        raise TruthError(
            f"forecast and truth share no variable: {sorted(i.source for i in forecast.fields.values())} and {have}.",
            fix="give a truth that holds the forecast's variables",
        )
    order = {key: i for i, key in enumerate(variables.BY_KEY)}
    return sorted(both, key=lambda key: (order.get(key, len(order)), key))


def distribution(forecast: Forecast, item: Field, *, needed: bool) -> Family | None:
    """Family of a variable whose parameters stand beside it, or None.

    Raises
    ------
    TruthError
        The family is unknown, or one of its parameters is missing.
    """
    attrs = forecast.ds[item.source].attrs
    name = attrs.get("distribution")
    if name is None:
        return None
    family = from_attrs(attrs)
    if family is None:
        raise TruthError(
            f"'{item.source}' is of the distribution family {name!r}"
            + (", whose attributes are incomplete." if name in FAMILIES else ", which this version does not know."),
            fix=f"one of {', '.join(FAMILIES)}, with the attributes that predict() writes",
        )
    if isinstance(family, Deterministic):
        return family
    missing = [p for p in family.parameters if f"{item.source}_{p}" not in forecast.ds]
    if missing and not needed:
        logger.warning("'%s' has no CRPS: its parameters %s are not in the forecast.", item.source, ", ".join(missing))
        return None
    if missing:
        raise TruthError(
            f"the parameters {[f'{item.source}_{p}' for p in missing]} of '{item.source}' are not in the forecast.",
            fix="keep them beside it, or metrics=['rmse', 'mae']",
        )
    return family


def parameters(forecast: Forecast, item: Field, family: Family, init: int, lead: int) -> dict[str, np.ndarray]:
    """Parameters of a family at one init time and lead, canonical units."""
    if isinstance(family, Deterministic):
        return {"value": forecast.read(item, init, lead)}
    return {p: forecast.raw(f"{item.source}_{p}", init, lead) for p in family.parameters}


def refuse_members(forecast: Forecast) -> None:
    """Raise for an ensemble where one forecast is expected."""
    if forecast.members > 1:
        raise EnsembleError(
            f"the forecast holds {forecast.members} members.", fix=f"fc.mean('{forecast.dims['number']}')"
        )


class ClimatologyFields:
    """A climatology in WeatherBench2's layout (``hour``, ``dayofyear``) on the forecast's grid."""

    def __init__(self, ds: xr.Dataset, forecast: Forecast) -> None:
        if not {"hour", "dayofyear"} <= set(ds.dims):
            raise TruthError(
                f"a climatology has the dims hour and dayofyear, and this one has {sorted(map(str, ds.dims))}.",
                fix="xaurora.climatology(ds)",
            )
        probe = ds.isel(hour=0, drop=True).rename(dayofyear="time")
        probe = probe.assign_coords(
            time=np.datetime64("2000-01-01", "ns") + np.arange(probe.sizes["time"]) * np.timedelta64(1, "D")
        )
        found = recognition.recognise(probe)
        if found.grid is None:
            found.raise_first()
        self.ds, self.found = ds, found
        grid = found.grid
        self.dims = {axis: found.axes[axis].dim for axis in ("latitude", "longitude", "level") if axis in found.axes}
        if grid is None:
            raise TruthError("the climatology has no grid.", fix="xaurora.climatology(ds)")
        self.rows = grid.rows[_match("latitude", grid.latitude, forecast.latitude, wrap=False)]
        self.columns = grid.columns[_match("longitude", grid.true_longitude, forecast.longitude, wrap=True)]

    def has(self, key: tuple[str, str]) -> bool:
        """Whether it holds a variable."""
        return key in self.found.fields

    def read(self, key: tuple[str, str], time: np.datetime64, levels: tuple[float, ...]) -> np.ndarray | None:
        """The normal of a variable at a valid time, canonical units, or None where it has none."""
        import pandas as pd

        stamp, item = pd.Timestamp(time), self.found.fields[key]
        if stamp.hour not in self.ds["hour"].values or stamp.day_of_year not in self.ds["dayofyear"].values:
            return None
        da = self.ds[item.source].sel(hour=stamp.hour, dayofyear=stamp.day_of_year)
        order = [self.dims[d] for d in ("level", "latitude", "longitude") if self.dims.get(d) in da.dims]
        values = da.transpose(*order).values[..., self.rows, :][..., self.columns].astype(np.float64)
        if key[0] == "atmos":
            values = values[[self.found.levels.index(level) for level in levels]]
        return values * item.scale + item.offset

"""Prepare forecasts for scoring: recognise variables, order the grid, read in blocks.

Does not depend on torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from xaurora.distributions import FAMILIES, Deterministic, Family, from_attrs
from xaurora.errors import (
    AccumulationError,
    KindError,
    TruthError,
)
from xaurora.evaluation.forecast_axes import (
    decode_lead_times,
    in_order,
    with_both_dims,
    with_known_names,
)
from xaurora.fields import axes, periods, precipitation, recognition, variables
from xaurora.fields.found import Field
from xaurora.fields.unit_conversion import conversion
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.utils import dask_arrays, indexed
from xaurora.utils.types import Given

logger = logging.getLogger("xaurora")


@dataclass
class Forecast:
    """A forecast to score, read from xaurora's or WeatherBench2's layout.

    Parameters
    ----------
    ds : Dataset
        Dims ``init_time``, ``lead_time``, then as found; grid in canonical order.
    fields : dict
        ``(kind, name)`` → :class:`Field`.
    latitude, longitude : ndarray
        In canonical order; longitude in [0, 360).
    init_times, leads : ndarray
        datetime64[ns], timedelta64[ns].
    levels : tuple of float
        hPa, in the forecast's order.
    dims : dict
        Names of ``latitude``, ``longitude``, ``level`` and ``number`` in ``ds``.
    hours : int
        Accumulation period of its precipitation in hours.
    whole : frozenset of int, optional
        Indices of lead times with a complete accumulation period; None for all.
    """

    ds: xr.Dataset
    fields: dict[tuple[str, str], Field]
    latitude: np.ndarray
    longitude: np.ndarray
    init_times: np.ndarray
    leads: np.ndarray
    levels: tuple[float, ...]
    dims: dict[str, str]
    hours: int = TIMESTEP_HOURS
    whole: frozenset[int] | None = None

    def block(
        self, name: str, init: slice, lead: slice, levels: tuple[float, ...] = ()
    ) -> np.ndarray:
        """Read one variable as stored, in canonical grid order.

        Dims are ``(init, lead, ..., [number,] [level,] h, w)``.
        """
        da = self.ds[name].isel(init_time=init, lead_time=lead)
        if levels and self.dims.get("level") in da.dims and levels != self.levels:
            da = da.isel({self.dims["level"]: [self.levels.index(v) for v in levels]})
        own = [
            self.dims[d]
            for d in ("number", "level", "latitude", "longitude")
            if self.dims.get(d) in da.dims
        ]
        # Read first: xarray's lazy transpose would read point by point.
        read = indexed.read(da.variable, name)
        return da.variable.copy(data=read).transpose("init_time", "lead_time", ..., *own).values

    def has_members(self, name: str) -> bool:
        """Return whether a variable is an ensemble."""
        return self.dims.get("number") in self.ds[name].dims

    def field_size(self, name: str) -> int:
        """Return the bytes of one variable at one init time and lead."""
        da = self.ds[name]
        return max(da.nbytes // max(da.sizes["init_time"] * da.sizes["lead_time"], 1), 1)

    def chunk(self, name: str) -> tuple[int, int]:
        """Return the number of init times and lead times in a chunk of the store."""
        da = self.ds[name]
        stored = da.encoding.get("preferred_chunks", {})
        inits, leads = (
            min(max(int(stored.get(self.stored.get(dim, dim), 1)), 1), max(da.sizes[dim], 1))
            for dim in ("init_time", "lead_time")
        )
        return inits, leads

    @property
    def stored(self) -> dict[str, str]:
        """Names of the time dims in the store, if they differ."""
        return dict(self.ds.attrs.get("_stored_dims", {}))


def read_forecast(ds: xr.Dataset, accumulate: str | None = None) -> Forecast:
    """Recognise a forecast in this package's layout or WeatherBench2's.

    Lazy.

    Parameters
    ----------
    ds : Dataset
    accumulate : str, optional
        Sum precipitation over this period first. Hourly lead times are always summed over six
        hours.

    Raises
    ------
    KindError
        If it has no lead times, is empty in time, or has no latitude and longitude.
    LeadTimeError
        If lead times are not durations.
    AccumulationError
        If its precipitation does not declare a period, or cannot be summed over ``accumulate``.
    """
    if isinstance(ds, xr.Dataset):
        ds = with_known_names(ds)
    if not isinstance(ds, xr.Dataset) or not recognition.is_forecast(ds):
        raise KindError(
            "expected a forecast with dims (init_time, lead_time, ...) or WeatherBench2's"
            " (time, prediction_timedelta, ...), but this Dataset has the dims"
            f" {sorted(map(str, getattr(ds, 'dims', ())))}.",
            fix="fc = ds.aurora.predict('24h', model=...); fc.aurora.evaluate(truth)",
        )
    ds = in_order(with_both_dims(dask_arrays.dataset_without_dask(ds)))
    leads = decode_lead_times(ds["lead_time"])
    init_times = ds["init_time"].values.astype("datetime64[ns]")
    probe = (
        ds.isel(lead_time=0, drop=True)
        .drop_vars("valid_time", errors="ignore")
        .rename(init_time="time")
    )
    members = [d for d in axes.NAMES["number"] if d in probe.dims]
    single = probe.isel({members[0]: 0}, drop=True) if members else probe
    found = recognition.recognise(single)
    for name in list(
        found.unrecognised
    ):  # a target that is not in the table of variables is scored in its own units
        if "distribution" in probe[name].attrs and "parameter_of" not in probe[name].attrs:
            recognition.add_generic(single, name, found)
    found.raise_first()
    hours, whole = TIMESTEP_HOURS, None
    amounts = [item.source for item in found.fields.values() if item.variable.accumulated]
    if amounts:
        ds, hours, whole = _all_totals(ds, amounts, accumulate)
    elif accumulate is not None:
        raise AccumulationError(
            f"accumulate={accumulate!r}: the forecast holds no precipitation, only"
            f" {sorted(map(str, ds.data_vars))}.",
            fix="accumulate=None",
        )
    if found.grid is None:
        raise KindError("the forecast has no latitude and longitude.", fix="ds.aurora.check()")
    dims: dict[str, str] = {
        axis: found.axes[axis].dim
        for axis in ("latitude", "longitude", "level")
        if axis in found.axes
    }
    if members:
        dims["number"] = members[0]
    ordered = ds.isel({dims["latitude"]: found.grid.rows, dims["longitude"]: found.grid.columns})
    fields = {key: item for key, item in found.fields.items() if key[0] != "static"}
    return Forecast(
        ordered,
        fields,
        found.grid.latitude,
        found.grid.true_longitude,
        init_times,
        leads,
        found.levels,
        dims,
        hours,
        whole,
    )


def _all_totals(
    ds: xr.Dataset, names: list[str], accumulate: str | None
) -> tuple[xr.Dataset, int, frozenset[int] | None]:
    """Accumulate precipitation and other amounts over the period that is scored.

    Raises
    ------
    AccumulationError
        If their periods differ, or :func:`_totals` raises it.
    """
    periods_of: dict[str, int] = {}
    whole: frozenset[int] | None = None
    for name in names:
        ds, periods_of[name], own = _totals(ds, name, accumulate)
        if own is not None:
            whole = own if whole is None else whole & own
    if len(set(periods_of.values())) > 1:
        raise AccumulationError(
            f"the forecast's accumulated variables have different periods: {periods_of} h.",
            fix=f"accumulate='{max(periods_of.values())}h'",
        )
    return ds, periods_of[names[0]], whole


def _totals(
    ds: xr.Dataset, name: str, accumulate: str | None
) -> tuple[xr.Dataset, int, frozenset[int] | None]:
    """Accumulate precipitation over the period that is scored.

    Returns
    -------
    tuple
        The forecast, the period in hours, and the indices of lead times with a complete period.

    Raises
    ------
    AccumulationError
        If the period is not declared, or no lead time has a complete period.
    KindError
        If precipitation is an independent distribution at every point.
    """
    declared = periods.declared_hours(name, ds[name].attrs)
    wanted = periods.hours_of(accumulate) if accumulate is not None else None
    if declared is None:
        raise AccumulationError(
            f"'{name}' of the forecast does not declare its accumulation period.",
            fix=(
                f"fc['{name}'].attrs['cell_methods'] = '{periods.cell_methods(TIMESTEP_HOURS)}' if"
                f" it is a total over {TIMESTEP_HOURS} hours, else sum it over that period first"
            ),
        )
    if wanted is None:
        wanted = max(int(declared), TIMESTEP_HOURS)
    if wanted == declared:
        return ds, wanted, None
    law = from_attrs(ds[name].attrs)
    if law is not None and not isinstance(law, Deterministic) and not _is_ensemble(ds[name]):
        raise KindError(
            f"'{name}' is a separate distribution at every point and time, which does not"
            f" determine the distribution of sums over {wanted} hours.",
            fix=(
                "predict(members=50), whose members are coherent in time, or score only the sum of"
                " the means: fc.aurora.accumulate('tp', '24h')"
            ),
        )
    total = precipitation.over_leads(
        ds[name].assign_coords(lead_time=decode_lead_times(ds["lead_time"])), name, wanted
    )
    lead_hours = decode_lead_times(ds["lead_time"]) / np.timedelta64(1, "h")
    there = set(lead_hours.tolist())
    whole = [
        i
        for i, h in enumerate(lead_hours)
        if all(h - k * declared in there for k in range(int(wanted / declared)))
    ]
    if declared < TIMESTEP_HOURS:  # only lead times at which the truth has values
        whole = [i for i in whole if lead_hours[i] % TIMESTEP_HOURS == 0]
    if not whole:
        raise AccumulationError(
            f"no lead time of '{name}' has a complete period of {wanted} hours before it: lead"
            f" times are {[f'{h:g}' for h in lead_hours]} h, totals over {declared:g} h.",
            fix=f"forecast lead times every {declared:g} h from the init time",
        )
    beside = [
        n
        for n in ds.data_vars
        if ds[n].attrs.get("parameter_of") == name
        or n in (f"{name}_quantile", f"{name}_probability", f"{name}_mean")
    ]
    total = total.assign_coords(lead_time=ds["lead_time"])
    return ds.drop_vars(beside).assign({name: total}), wanted, frozenset(whole)


def _is_ensemble(da: xr.DataArray) -> bool:
    return any(d in axes.NAMES["number"] for d in da.dims)


def to_mm(threshold: xr.DataArray) -> float:
    """Return the factor that converts a threshold coordinate to millimetres.

    A coordinate without units is in millimetres.
    """
    return 1e3 * (conversion(str(threshold.attrs.get("units", "mm")), "m") or (1e-3, 0.0))[0]


def matched_variables(forecasts: Iterable[Forecast], truth: Given) -> list[tuple[str, str]]:
    """Return the variables that the truth and at least one forecast share, in the table's order.

    Raises
    ------
    TruthError
        If a forecast shares none with the truth.
    """
    every: set[tuple[str, str]] = set()
    for forecast in forecasts:
        both = [key for key in forecast.fields if key[1] in getattr(truth.fields, key[0])]
        if not both:
            have = sorted(i.source for i in truth.fields.layout.fields.values())
            raise TruthError(
                "forecast and truth share no variable: the forecast has"
                f" {sorted(i.source for i in forecast.fields.values())}, the truth {have}.",
                fix="pass a truth that holds the forecast's variables",
            )
        every |= set(both)
    order = {key: i for i, key in enumerate(variables.BY_KEY)}
    return sorted(every, key=lambda key: (order.get(key, len(order)), key))


def distribution(forecast: Forecast, item: Field, *, needed: bool) -> Family | None:
    """Return the distribution family of a variable, or None if it has none.

    Raises
    ------
    TruthError
        If the family is unknown, or one of its parameters is missing and ``needed``.
    """
    attrs = forecast.ds[item.source].attrs
    name = attrs.get("distribution")
    if name is None:
        return None
    family = from_attrs(attrs)
    if family is None:
        raise TruthError(
            f"'{item.source}' has the distribution family {name!r}"
            + (
                ", whose attributes are incomplete."
                if name in FAMILIES
                else ", which this version does not support."
            ),
            fix=f"use one of {', '.join(FAMILIES)}, with the attributes that predict() writes",
        )
    if isinstance(family, Deterministic):
        return family
    missing = [p for p in family.parameters if f"{item.source}_{p}" not in forecast.ds]
    if missing and not needed:
        logger.warning(
            "the distribution of '%s' is not scored, because its parameters %s are not in the"
            " forecast.",
            item.source,
            ", ".join(missing),
        )
        return None
    if missing:
        raise TruthError(
            f"the parameters {[f'{item.source}_{p}' for p in missing]} of '{item.source}' are not"
            " in the forecast.",
            fix="keep them in the forecast, or metrics=['rmse', 'mae']",
        )
    return family

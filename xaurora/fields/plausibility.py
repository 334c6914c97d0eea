"""Whether values can be what their units say."""

from __future__ import annotations

import logging

import numpy as np
import xarray as xr

from xaurora.errors import UnitsError
from xaurora.fields import (
    periods,
    targets,
)
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field
from xaurora.fields.grid import lattice as grids
from xaurora.fields.grid.weights import latitude_weights
from xaurora.fields.unit_conversion import GRAVITY, accepted_units
from xaurora.fields.variables import TIMESTEP_HOURS

logger = logging.getLogger("xaurora")


def check_plausible(fields: Fields) -> None:
    """Raise for a field whose values contradict its units. Reads one frame of each variable.

    Raises
    ------
    UnitsError
        The mean of a field is outside its plausible range.
    """
    for kind, name in fields.layout.fields:
        check_plausible_field(fields, kind, name)


def warn_implausible(fields: Fields) -> None:
    """Log the error of :func:`check_plausible` as a warning.

    Forecasts use it: they are made even if the units look wrong.
    """
    try:
        check_plausible(fields)
    except UnitsError as error:
        logger.warning("%s", error)


def check_plausible_field(fields: Fields, kind: str, name: str) -> None:
    """Raise if the mean of a field cannot be in the units that it has."""
    item = fields.layout.fields[kind, name]
    da = getattr(fields, kind)[name]
    frame = da.isel(time=0).values if "time" in da.dims else da.values
    finite = frame[np.isfinite(frame)]
    if not finite.size:
        return
    mean, (low, high) = float(finite.mean(dtype=np.float64)), item.variable.plausible
    units = item.attrs.get("units", item.variable.units)
    if (kind, name) == ("atmos", "z"):
        expected = _standard_geopotential(np.asarray(fields.levels))
        low, high = float(expected.mean() * 0.5 - 8000), float(expected.mean() * 1.5 + 8000)
    if not low <= mean <= high:
        raise UnitsError(
            f"'{item.source}' has units {units!r}, but its mean is {mean:.4g}"
            f" {item.variable.units} after conversion; plausible for"
            f" {item.variable.long_name.lower()} is {low:.4g} to {high:.4g}.",
            fix=(
                f"ds['{item.source}'].attrs['units'] = '...' with the actual units of the values,"
                f" one of {', '.join(accepted_units(item.variable.units))}"
            ),
        )
    if item.variable.accumulated:
        hours = periods.declared_hours(item.source, item.attrs)
        if hours is None and len(fields.times) > 1 and periods.spacing_hours(fields.times) == 1:
            hours = 1
        check_plausible_rain(da, item, hours, fields.layout.grid)


# m in one hour, and √h times as much in h hours: above the world records (0.4 m, 0.84 m in 6 h,
# 1.8 m in 24 h; WMO)
_WETTEST = 0.42


_ABSURD = 0.05  # m in one hour, likewise: of which no hundredth of all points sees as much


_FAINT = 2e-6  # m in one hour; where rain varies as rain does, some of it is more


_TRACE = 1e-10  # m; below it is rounding


_GLOBAL_HOUR = (
    4e-5,
    3e-4,
    # m, mean over the globe and one hour: 0.12 mm by GPCP and ERA5, from a third of it to two and a
    # half times as much
)


_CHECKED = "xaurora_amounts_checked"
"""Attribute that users set to confirm amounts that look implausible."""


def check_plausible_target(target: targets.Target) -> None:
    """Raise for six-hour totals with implausible amounts. Reads a few frames.

    Raises
    ------
    UnitsError
        The amounts are implausible.
    """
    if target.is_rain:
        grid = grids.from_axes(target.values["latitude"].values, target.values["longitude"].values)
        check_plausible_rain(
            target.values.sel(time=target.times), target.item, TIMESTEP_HOURS, grid
        )


def check_plausible_rain(
    da: xr.DataArray, item: Field, hours: float | None, grid: grids.Grid
) -> None:
    """Raise for implausible amounts. Reads up to eight frames.

    Amounts may be far too large, far too small, or on a global grid those of another period.
    """
    if item.attrs.get(_CHECKED):
        return
    count = da.sizes["time"]
    looked = np.unique(np.linspace(0, count - 1, min(count, FRAMES_SAMPLED)).astype(int))
    values = da.isel(time=looked).values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    units, top = item.attrs.get("units", item.variable.units), float(finite.max())
    longer = float(np.sqrt(hours or 24))
    if top > _WETTEST * longer or float(np.quantile(finite, 0.99)) > _ABSURD * longer:
        raise UnitsError(
            f"'{item.source}' has units {units!r}, but reaches {top:.3g} m in"
            f" {f'{hours:g} h' if hours else 'one period'}; the values are probably in mm.",
            fix=f"ds['{item.source}'].attrs['units'] = 'mm'",
        )
    aside = f"; if the amounts are correct, ds['{item.source}'].attrs['{_CHECKED}'] = 1"
    wet = finite[finite > _TRACE]
    # Packing noise has few distinct values, rain has many.
    many = wet.size > 0.2 * finite.size and wet.size >= 1000 and len(np.unique(wet)) >= 200
    if many and top < _FAINT * (hours or 1):
        raise UnitsError(
            f"'{item.source}' has units {units!r} and is wet at {wet.size / finite.size:.0%} of"
            f" the points, but never exceeds {top:.2g} m: the values are probably a rate, or in"
            " other units.",
            fix=f"ds['{item.source}'].attrs['units'] = 'kg m-2 s-1' if they are a rate" + aside,
        )
    if not grid.is_global or hours is None or len(looked) < 2 or not wet.size:
        return
    weights = np.broadcast_to(latitude_weights(grid.latitude)[:, None], values.shape)
    there = np.isfinite(values)
    mean = float((np.where(there, values, 0.0) * weights).sum() / (there * weights).sum())
    if there.mean() < 0.9:
        return
    low, high = (edge * hours for edge in _GLOBAL_HOUR)
    if hours > 1 and mean < low and _GLOBAL_HOUR[0] <= mean <= _GLOBAL_HOUR[1]:
        raise UnitsError(
            f"'{item.source}' states {hours:g}-hour totals, but its global mean is"
            f" {mean * 1e3:.2g} mm, that of one hour ({low * 1e3:.2g} to {high * 1e3:.2g} mm is"
            f" plausible in {hours:g} h): are these 1-hour totals, downloaded every {hours:g}"
            " hours?",
            fix=f"download '{item.source}' for every hour, and remove its cell_methods" + aside,
        )
    if not low / 5 <= mean <= high * 10:  # far beyond seasonal and interannual variability
        raise UnitsError(
            f"'{item.source}' has units {units!r}, but its global mean is {mean * 1e3:.2g} mm in"
            f" {hours:g} h; {low * 1e3:.2g} to {high * 1e3:.2g} mm is plausible. Is it a rate, or"
            " in other units?",
            fix=f"ds['{item.source}'].attrs['units'] = '...' with the actual units of the values"
            + aside,
        )


def _standard_geopotential(levels: np.ndarray) -> np.ndarray:
    """Return the geopotential in m2 s-2 at pressure levels in hPa.

    This is the tropospheric formula of the ICAO standard atmosphere, accurate to 10 % above the
    troposphere.
    """
    return GRAVITY * 44_330.8 * (1.0 - (levels / 1013.25) ** 0.190263)


FRAMES_SAMPLED = (
    8  # frames of a large Dataset that are read in the search for NaN and for wrong units
)

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


def refuse_implausible(fields: Fields) -> None:
    """Raise :class:`UnitsError` for a field whose values contradict its units. Reads one frame of
    each variable.
    """
    for kind, name in fields.layout.fields:
        refuse_implausible_field(fields, kind, name)


def warn_implausible(fields: Fields) -> None:
    """Log what :func:`refuse_implausible` would raise: a forecast is made, but the units look
    wrong.
    """
    try:
        refuse_implausible(fields)
    except UnitsError as error:
        logger.warning("%s", error)


def refuse_implausible_field(fields: Fields, kind: str, name: str) -> None:
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
            f"'{item.source}' says {units!r}, but its mean is {mean:.4g} {item.variable.units}"
            f" after conversion, and {low:.4g} to {high:.4g} is possible for"
            f" {item.variable.long_name.lower()}.",
            fix=(
                f"ds['{item.source}'].attrs['units'] = '...' with the units that the values are in,"
                f" one of {', '.join(accepted_units(item.variable.units))}"
            ),
        )
    if item.variable.accumulated:
        hours = periods.declared_hours(item.source, item.attrs)
        if hours is None and len(fields.times) > 1 and periods.spacing_hours(fields.times) == 1:
            hours = 1
        refuse_implausible_rain(da, item, hours, fields.layout.grid)


# m in one hour, and √h times as much in h hours: above the world's records (0.4 m, 0.84 m in 6 h,
# 1.8 m in 24 h; WMO)
_WETTEST = 0.42


_ABSURD = 0.05  # m in one hour, likewise: of which no hundredth of all points sees as much


_FAINT = 2e-6  # m in one hour; where rain varies as rain does, some of it is more


_TRACE = 1e-10  # m; below it is rounding


_GLOBAL_HOUR = (
    4e-5,
    3e-4,
    # m, mean over the globe and one hour: 0.12 mm by GPCP and ERA5, a third to twice and a half of it
)


_CHECKED = "xaurora_amounts_checked"
"""Attribute with which a user says that amounts are right, however odd they look."""


def refuse_implausible_target(target: targets.Target) -> None:
    """Raise :class:`UnitsError` for totals over six hours whose amounts cannot be. Reads a few
    frames.
    """
    if target.is_rain:
        grid = grids.from_axes(target.values["latitude"].values, target.values["longitude"].values)
        refuse_implausible_rain(
            target.values.sel(time=target.times), target.item, TIMESTEP_HOURS, grid
        )


def refuse_implausible_rain(
    da: xr.DataArray, item: Field, hours: float | None, grid: grids.Grid
) -> None:
    """Amounts that are far too large, far too small, or over a globe those of another period. Reads
    up to eight frames.
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
            f"'{item.source}' says {units!r}, but holds {top:.3g} m in"
            f" {f'{hours:g} h' if hours else 'one period'}; the values are probably in mm.",
            fix=f"ds['{item.source}'].attrs['units'] = 'mm'",
        )
    aside = f"; if they are right, ds['{item.source}'].attrs['{_CHECKED}'] = 1"
    wet = finite[finite > _TRACE]
    # Noise of packing has few values, rain has many.
    many = wet.size > 0.2 * finite.size and wet.size >= 1000 and len(np.unique(wet)) >= 200
    if many and top < _FAINT * (hours or 1):
        raise UnitsError(
            f"'{item.source}' says {units!r} and rains at {wet.size / finite.size:.0%} of the"
            f" points, but never more than {top:.2g} m: such values are probably a rate, or in"
            " other units.",
            fix=f"ds['{item.source}'].attrs['units'] = 'kg m-2 s-1', if they are that" + aside,
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
            f"'{item.source}' says that it holds {hours:g}-hour totals, but its mean over the globe"
            f" is {mean * 1e3:.2g} mm, that of one hour ({low * 1e3:.2g} to {high * 1e3:.2g} mm is"
            f" possible in {hours:g} h): 1-hour totals, downloaded every {hours:g} hours?",
            fix=f"download '{item.source}' for every hour, and take its cell_methods away" + aside,
        )
    if not low / 5 <= mean <= high * 10:  # far beyond what any season or year brings
        raise UnitsError(
            f"'{item.source}' says {units!r}, but its mean over the globe is {mean * 1e3:.2g} mm in"
            f" {hours:g} h, and {low * 1e3:.2g} to {high * 1e3:.2g} mm is possible: a rate, or"
            " other units?",
            fix=f"ds['{item.source}'].attrs['units'] = '...' with the units that the values are in"
            + aside,
        )


def _standard_geopotential(levels: np.ndarray) -> np.ndarray:
    """m2 s-2 at pressure levels in hPa; ICAO standard atmosphere, troposphere's formula, good to 10
    % above it.
    """
    return GRAVITY * 44_330.8 * (1.0 - (levels / 1013.25) ** 0.190263)


FRAMES_SAMPLED = (
    8  # frames of a large Dataset that are read in the search for NaN and for wrong units
)

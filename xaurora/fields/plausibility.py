"""Whether values can be what their units say."""

from __future__ import annotations

import functools
import hashlib
import logging
import math

import numpy as np
import xarray as xr

from xaurora.errors import ImplausibleValuesError, UnitsError
from xaurora.fields import implausible, periods, targets
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field
from xaurora.fields.grid import lattice as grids
from xaurora.fields.grid.weights import latitude_weights
from xaurora.fields.requirements import Needs
from xaurora.fields.unit_conversion import GRAVITY, accepted_units
from xaurora.fields.variables import TIMESTEP_HOURS, Variable
from xaurora.utils import indexed

logger = logging.getLogger("xaurora")


def check_plausible(fields: Fields, needs: Needs | None = None) -> None:
    """Raise for a field whose values contradict its units. Reads one frame of each variable.

    Frames that are read later are guarded by :func:`check_frame`. Variables that only some models
    take are checked if ``needs`` names them.

    Raises
    ------
    UnitsError
        The mean of a field is outside its plausible range.
    """
    for (kind, name), item in fields.layout.fields.items():
        if item.variable.auxiliary and (needs is None or name not in needs.read[kind]):
            continue
        da = getattr(fields, kind)[name]
        first = da.variable[0] if "time" in da.dims else da.variable
        check_mean(fields, kind, name, indexed.read(first, str(da.name)))
        check_amounts(fields, kind, name)


def warn_implausible(fields: Fields, needs: Needs | None = None) -> None:
    """Log the error of :func:`check_plausible` as a warning.

    Forecasts use it: they are made even if the units look wrong.
    """
    try:
        check_plausible(fields, needs)
    except UnitsError as error:
        logger.warning("%s", error)


def _present(values: np.ndarray, variable: Variable) -> np.ndarray:
    """Return the values without zeros that say that there is none, such as snow over sea."""
    return values[values != 0] if variable.zero_where_absent else values


_POINTS = 20_000  # of a level: enough for a mean, and to tell two frames apart


def _thinned(values: np.ndarray) -> np.ndarray:
    """Return about :data:`_POINTS` points of each level, evenly spread.

    All points of all levels at 0.25° would take four times as long as they take to read.
    """
    rows, columns = values.shape[-2:]
    stride = max(math.isqrt(rows * columns // _POINTS), 1)
    return values[..., ::stride, ::stride]


def check_mean(
    fields: Fields, kind: str, name: str, frame: np.ndarray, time: np.datetime64 | None = None
) -> None:
    """Raise if the mean of a frame cannot be in the units that the field has.

    The mean of the middle half of the values: a few wrong ones say nothing about units. Of large
    fields some points are looked at.
    """
    item, frame = fields.layout.fields[kind, name], _thinned(frame)
    finite = _present(frame[np.isfinite(frame)], item.variable)
    if not finite.size or item.variable.accumulated or implausible.is_confirmed(item):
        return  # amounts have a check of their own
    finite = finite[:: max(finite.size // _POINTS, 1)]  # of all levels together
    ends = np.partition(finite, [finite.size // 4, finite.size - 1 - finite.size // 4])
    finite = ends[finite.size // 4 : finite.size - finite.size // 4]
    mean, (low, high) = float(finite.mean(dtype=np.float64)), item.variable.plausible
    units = item.attrs.get("units", item.variable.units)
    if (kind, name) == ("atmos", "z"):
        expected = _standard_geopotential(np.asarray(fields.levels))
        low, high = float(expected.mean() * 0.5 - 8000), float(expected.mean() * 1.5 + 8000)
    if not low <= mean <= high:
        raise UnitsError(
            f"'{item.source}' has units {units!r}, but its mean is {mean:.4g}"
            f" {item.variable.units} after conversion{implausible.at_time(time)}; plausible for"
            f" {item.variable.long_name.lower()} is {low:.4g} to {high:.4g}.",
            fix=(
                f"ds['{item.source}'].attrs['units'] = '...' with the actual units of the values,"
                f" one of {', '.join(accepted_units(item.variable.units))}. If only some times have"
                " other units, convert those"
            ),
        )


def check_amounts(fields: Fields, kind: str, name: str) -> None:
    """Raise for implausible amounts of precipitation. Reads a few frames."""
    item = fields.layout.fields[kind, name]
    if item.variable.accumulated:
        da = getattr(fields, kind)[name]
        hours = periods.declared_hours(item.source, item.attrs)
        if hours is None and len(fields.times) > 1 and periods.spacing_hours(fields.times) == 1:
            hours = 1
        check_plausible_rain(da, item, hours, fields.layout.grid)


# --- every frame ----------------------------------------------------------------------------------

_STRIDE = 16  # of a large field, one row of so many is looked at in a frame, in turn
_LARGE = 64  # rows
_CONSTANT_POINTS = 16  # in fewer points, a field may be constant by chance


@functools.lru_cache(maxsize=256)
def extremes_of(
    variable: Variable, levels: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the smallest and largest value that occurs, one or one for each level, or None."""
    if (variable.kind, variable.name) == ("atmos", "z"):
        expected = _standard_geopotential(np.asarray(levels, np.float64))
        margin = 0.1 * expected + 12_000.0  # m2 s-2
        return expected - margin, expected + margin
    if variable.extremes is None:
        return None
    low, high = variable.extremes
    return np.array(low), np.array(high)


def check_frame(
    values: np.ndarray,
    item: Field,
    fields: Fields,
    time: np.datetime64,
    *,
    whole: bool = False,
) -> None:
    """Raise for physically implausible values, and for a field that does not vary.

    Cheap: of a large field, a sixteenth of the rows is looked at, others at other times.

    Parameters
    ----------
    values : ndarray, ``([level,] h, w)``
        A frame in canonical units.
    item : Field
    fields : Fields
        Those that the frame belongs to, for its levels and grid.
    time : datetime64
    whole : bool
        Whether to look at all rows.

    Raises
    ------
    ImplausibleValuesError
        Where, how many, which value, and what occurs.
    """
    limits = extremes_of(item.variable, fields.levels)
    if limits is None or implausible.is_confirmed(item):
        return
    hours = int(time.astype("datetime64[h]").astype(np.int64))
    stride = 1 if whole or values.shape[-2] < _LARGE else _STRIDE
    part = values[..., hours // TIMESTEP_HOURS % stride :: stride, :]
    if item.variable.zero_where_absent:
        present = _present(part, item.variable)  # may be constant: no snow anywhere
        if present.size and (present.min() < limits[0] or present.max() > limits[1]):
            raise implausible.out_of_range(values, item, fields, time, limits)
        return
    low, high = part.min(axis=(-2, -1)), part.max(axis=(-2, -1))
    if (low == high).any():
        check_constant(part, item, fields, time)
    if (low < limits[0]).any() or (high > limits[1]).any():
        raise implausible.out_of_range(values, item, fields, time, limits)


def check_constant(values: np.ndarray, item: Field, fields: Fields, time: np.datetime64) -> None:
    """Raise for a field that has the same value everywhere.

    Parameters
    ----------
    values : ndarray, ``([level,] h, w)``
    item : Field
    fields : Fields
        For its levels.
    time : datetime64

    Raises
    ------
    ImplausibleValuesError
        Which value, on which level. Not for fields that may be constant, and not for few points.
    """
    variable = item.variable
    if extremes_of(variable, fields.levels) is None or implausible.is_confirmed(item):
        return
    may_be = variable.bounds or variable.zero_where_absent
    if may_be or values.shape[-2] * values.shape[-1] < _CONSTANT_POINTS:
        return
    same = np.atleast_1d(values.min(axis=(-2, -1)) == values.max(axis=(-2, -1)))
    if not same.any():
        return
    place = int(np.argmax(same))
    level = f" at {fields.levels[place]:g} hPa" if values.ndim == 3 else ""
    raise ImplausibleValuesError(
        f"'{item.source}'{level} is {values.reshape(len(same), -1)[place, 0]:g} {variable.units} at"
        f" every point{implausible.at_time(time)}.",
        fix=implausible.left_out(item, fields, time),
    )


class Repeats:
    """Finds fields that are the same at two times.

    Parameters
    ----------
    item : Field
    fields : Fields
    """

    def __init__(self, item: Field, fields: Fields) -> None:
        self.item = item
        self.fields = fields
        self._seen: dict[bytes, np.datetime64] = {}

    def check(self, values: np.ndarray, time: np.datetime64) -> None:
        """Raise if the values of a frame are those of an earlier one; of large ones, some points.

        Raises
        ------
        ImplausibleValuesError
            If they are. Fields that often are zero or one everywhere are left out.
        """
        item = self.item
        varies = not (item.variable.bounds or item.variable.accumulated or item.variable.masked)
        if not varies or values.size < _CONSTANT_POINTS or implausible.is_confirmed(item):
            return
        points = np.ascontiguousarray(_thinned(values))
        digest = hashlib.blake2b(points.tobytes(), digest_size=16).digest()
        before = self._seen.setdefault(digest, time)
        if before != time:
            raise ImplausibleValuesError(
                f"'{item.source}' is the same at {implausible.time_name(before)} and at"
                f" {implausible.time_name(time)}, to the last digit.",
                fix=implausible.left_out(item, self.fields, time),
            )


# --- precipitation --------------------------------------------------------------------------------


# m in one hour, and √h times as much in h hours: above the world records (0.4 m, 0.84 m in 6 h,
# 1.8 m in 24 h; WMO)
_WETTEST = 0.42
_ABSURD = 0.05  # m in one hour, likewise: of which no hundredth of all points sees as much
_FAINT = 2e-6  # m in one hour; where rain varies as rain does, some of it is more
_TRACE = 1e-10  # m; below it is rounding
# m, mean over the globe and an hour: 0.12 mm by GPCP and ERA5, from a third of it to two and a half
# times as much
_GLOBAL_HOUR = (4e-5, 3e-4)
_FEW_NEGATIVE = 4  # of so many frames, one may hold negative totals
NEGATIVE = -1e-5
"""Metres: totals above it and below zero are noise of packing."""


def check_total(
    values: np.ndarray, item: Field, latitude: np.ndarray, longitude: np.ndarray, when: str
) -> None:
    """Raise for a total that is negative beyond packing noise, or larger than any on record.

    Parameters
    ----------
    values : ndarray, ``(..., h, w)``
        Totals over six hours in metres; NaN is left out.
    item : Field
    latitude, longitude : ndarray
        Of the rows and columns.
    when : str
        For the message.

    Raises
    ------
    ImplausibleValuesError
        Where, how many, and which value.
    """
    low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    top = _WETTEST * float(np.sqrt(TIMESTEP_HOURS))
    if not (low < NEGATIVE or high > top) or implausible.is_confirmed(item):
        return
    wrong = (values < NEGATIVE) | (values > top)
    place = tuple(int(i[0]) for i in np.nonzero(wrong))
    found = np.unique(values[wrong]) * 1e3
    several = f"{found[0]:.4g} to {found[-1]:.4g} mm" if len(found) > 1 else f"{found[0]:.4g} mm"
    raise ImplausibleValuesError(
        f"'{item.source}' is {values[place] * 1e3:.4g} mm in {TIMESTEP_HOURS} h at"
        f" {latitude[place[-2]]:.2f}°N {longitude[place[-1]]:.2f}°E {when}; totals lie between 0"
        f" and {top * 1e3:.0f} mm. Outside are {wrong.sum()} of {wrong.size} values ({several}).",
        fix=(
            f"mask values that mean missing: ds['{item.source}'] ="
            f" ds['{item.source}'].where(ds['{item.source}'] >= 0), or check the units"
        ),
    )


def check_target_frame(target: targets.Target, values: np.ndarray, time: np.datetime64) -> None:
    """Raise for physically implausible values of a target. NaN is left out.

    Parameters
    ----------
    target : Target
    values : ndarray, ``(h, w)``
        Canonical units.
    time : datetime64
        Valid time.

    Raises
    ------
    ImplausibleValuesError
        Where, how many, and which value.
    """
    latitude, longitude = (target.values[axis].values for axis in ("latitude", "longitude"))
    if target.is_rain:
        check_total(values, target.item, latitude, longitude, f"at {implausible.time_name(time)}")
        return
    limits = extremes_of(target.variable, ())
    if limits is None or implausible.is_confirmed(target.item):
        return
    wrong = (values < limits[0]) | (values > limits[1])
    if wrong.any():
        row, column = (int(i[0]) for i in np.nonzero(wrong))
        raise ImplausibleValuesError(
            f"'{target.item.source}' is {values[row, column]:.4g} {target.variable.units} at"
            f" {latitude[row]:.2f}°N {longitude[column]:.2f}°E at {implausible.time_name(time)};"
            f" {target.variable.long_name.lower()} lies between {limits[0]:.4g} and"
            f" {limits[1]:.4g} {target.variable.units}. Outside are {wrong.sum()} of {wrong.size}"
            " values.",
            fix=implausible.masked(
                target.item, np.unique(values[wrong]), float(limits[0]), float(limits[1])
            ),
        )


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
    if implausible.is_confirmed(item):
        return
    count = da.sizes["time"]
    looked = np.unique(np.linspace(0, count - 1, min(count, FRAMES_SAMPLED)).astype(int))
    values = indexed.read(da.variable.isel(time=looked), item.source).astype(np.float64)
    negative = (values < NEGATIVE).any(axis=(1, 2))
    if negative.sum() > len(looked) / _FEW_NEGATIVE:
        first = int(np.argmax(negative))
        when = f"at {implausible.time_name(da['time'].values[looked[first]])}"
        check_total(values[first], item, grid.latitude, grid.true_longitude, when)
    # Few such frames are found, and left out, when they are read.
    values, looked = values[~negative], looked[~negative]
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
    aside = f"; if the amounts are correct, ds['{item.source}'].attrs['{implausible.CHECKED}'] = 1"
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
    whole = grid.is_global and item.variable.name == "tp"
    if not whole or hours is None or len(looked) < 2 or not wet.size:
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

    These are the troposphere and the isothermal layer above it of the ICAO standard atmosphere,
    whose height at 1 hPa is too small by 6 %.
    """
    below = 44_330.8 * (1.0 - (levels / 1013.25) ** 0.190263)
    above = 11_000.0 + 6_341.6 * np.log(226.32 / np.minimum(levels, 226.32))
    return GRAVITY * np.where(levels >= 226.32, below, above)


FRAMES_SAMPLED = (
    8  # frames of a large Dataset that are read in the search for NaN and for wrong units
)

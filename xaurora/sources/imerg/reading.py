"""Reading the granules of a window: any layout, summed, scaled and regridded."""

from __future__ import annotations

import numbers
import re
from collections.abc import Sequence

import numpy as np
import xarray as xr

from xaurora.errors import GridError, SourceError
from xaurora.fields import recognition
from xaurora.fields.axes import NAMES
from xaurora.fields.grid import regridding
from xaurora.sources.imerg.files import H5, MINUTE, Granule, opened
from xaurora.utils.types import GridLike

_RATES = ("precipitationCal", "precipitation")  # up to V06; from V07 on
_AXES = (("lat", "latitude", "Grid_lat"), ("lon", "longitude", "Grid_lon"))
_QUALITY = ("precipitationQualityIndex", "qualityIndex")
_MM = 1e-3  # m
_HALF_HOURS = 48  # in a day; a daily file counts the observed ones


def _group(file: H5) -> H5:
    """Return the group ``Grid`` of half-hourly files; daily files and subsets have none."""
    return file["Grid"] if "Grid" in file.groups else file


def _variable(group: H5, names: Sequence[str], path: str) -> H5:
    for name in names:
        for candidate in (name, f"Grid_{name}", f"Grid/{name}"):
            if candidate in group.variables:
                return group.variables[candidate]
    raise SourceError(
        f"'{path}' has no variable {' or '.join(names)}; its variables are"
        f" {sorted(group.variables)}.",
        fix="use complete IMERG files" if names is _RATES else "omit quality=",
    )


def axes(granule: Granule) -> tuple[np.ndarray, np.ndarray]:
    """Return latitudes and longitudes of a file, without float32 rounding."""
    with opened(granule.path) as file:
        group = _group(file)
        out = []
        for names in _AXES:
            values = np.ma.filled(
                _variable(group, names, granule.path)[:].astype(np.float64), np.nan
            )
            out.append(np.round(values, 4))
    return out[0], out[1]


def target_of(grid: GridLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the latitudes and longitudes of the target grid, in their own order."""
    if isinstance(grid, numbers.Real) and not isinstance(grid, bool):
        grid = float(grid)
        if not (0.05 <= grid <= 10 and abs(180 / grid - round(180 / grid)) < 1e-6):
            raise GridError(f"grid={grid!r} degrees do not divide 180.", fix="grid=0.25")
        count = round(180 / grid)
        return np.linspace(90.0, -90.0, count + 1), np.arange(2 * count) * (360.0 / (2 * count))
    if isinstance(grid, xr.DataArray):
        grid = grid.to_dataset(name="grid")
    if not isinstance(grid, xr.Dataset):
        raise GridError(
            "grid must be a Dataset, a DataArray or a number of degrees, got"
            f" {type(grid).__name__}.",
            fix="grid=ds, or grid=0.25",
        )
    # A forecast has no time axis of fields, but only its grid is needed here.
    names = {*NAMES["latitude"], *NAMES["longitude"]}
    only = xr.Dataset(
        coords={
            n: grid[n]
            for n in grid.coords
            if n in names or grid[n].attrs.get("units") in ("degrees_north", "degrees_east")
        }
    )
    grid = only if recognition.is_forecast(grid) else grid
    found = recognition.recognise(grid)
    if found.grid is None:
        if problem := next((p for p in found.problems if p.code in ("grid", "coordinate")), None):
            raise GridError(f"grid=: {problem.message}", fix=problem.fix)
        raise GridError(
            "grid= has no latitude and longitude.",
            fix="grid=ds with the fields of the target grid, or grid=0.25",
        )
    lat = np.asarray(grid[found.axes["latitude"].name].values, np.float64)
    lon = np.asarray(grid[found.axes["longitude"].name].values, np.float64)
    return lat, lon


class Window:
    """Reader of one window: sums its granules and regrids the total. Picklable for dask workers.

    Parameters
    ----------
    each, length : int
        Minutes of a granule and of the window.
    latitude, longitude : ndarray
        Axes of the files.
    target : tuple of ndarray or None
        Latitudes and longitudes of the target grid.
    min_valid, quality
        As in :func:`xaurora.open_imerg`.
    """

    def __init__(
        self,
        each: int,
        length: int,
        latitude: np.ndarray,
        longitude: np.ndarray,
        target: tuple[np.ndarray, np.ndarray] | None,
        min_valid: float,
        quality: float | None,
    ) -> None:
        self.each, self.length, self.min_valid, self.quality = each, length, min_valid, quality
        self.size = (len(latitude), len(longitude))
        self.corners = tuple(
            float(v) for v in (latitude[0], latitude[-1], longitude[0], longitude[-1])
        )
        self.rows, self.columns = slice(0, len(latitude)), slice(0, len(longitude))
        self.regrid: regridding.Conservative | None = None
        self.coordinates = (latitude, longitude)
        if target is not None:
            self.coordinates = target
            self.rows, self.columns = _needed(latitude, longitude, *target)
            self.regrid = regridding.Conservative(
                latitude[self.rows], longitude[self.columns], *target
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        return len(self.coordinates[0]), len(self.coordinates[1])

    def __call__(self, granules: Sequence[Granule | None]) -> np.ndarray:
        """Return totals in metres and the share of each cell with values, ``(2, h, w)``.

        Totals are NaN where too little of the window has values.
        """
        total, seen = np.zeros(()), np.zeros(())
        for granule in granules:
            if granule is not None:
                amount, share = self._read(granule)
                there = np.isfinite(amount)
                total = total + np.where(there, amount, 0.0) * share
                seen = seen + np.where(there, share, 0.0)
        known = seen / len(granules)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.where(known >= self.min_valid - 1e-9, total / known, np.nan) * _MM
        if self.regrid is None:
            return np.stack([values, np.isfinite(values)]).astype(np.float32)
        return np.stack(self.regrid(values)).astype(np.float32)

    def _read(self, granule: Granule) -> tuple[np.ndarray, np.ndarray]:
        """Return the amount in mm over a granule, and the share of its half hours with values.

        The amount is ``(h, w)``. The share has the same shape, or is a scalar one for granules
        without counts.
        """
        with opened(granule.path) as file:
            group = _group(file)
            _check_time(group, granule)
            self._check_place(group, granule)
            variable = _variable(group, _RATES, granule.path)
            units = str(getattr(variable, "units", getattr(variable, "Units", "mm/hr"))).replace(
                " ", ""
            )
            values = self._field(variable, granule)
            share = np.ones(())
            if self.each == 1440 and f"{variable.name}_cnt" in group.variables:
                share = self._field(group.variables[f"{variable.name}_cnt"], granule) / _HALF_HOURS
            index = None
            if self.quality is not None:
                index = self._field(_variable(group, _QUALITY, granule.path), granule)
        values = np.where(
            values < 0.0, np.nan, values
        )  # the fill value, which not all files declare
        if index is not None:
            values = np.where(index >= self.quality, values, np.nan)
        if units in ("mm/hr", "mm/h", "mmhr-1", "mmh-1"):
            return values * (self.each / 60.0), share
        if self.each == 1440 and units == "mm":  # up to V06: the sum over the observed half hours
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(share > 0, values / share, np.nan), share
        if self.each == 1440 and units in ("mm/day", "mmday-1", "mm/d"):
            return values, share
        raise SourceError(
            f"'{granule.path}' has precipitation in {units!r}; expected"
            f" {'mm or mm/day' if self.each == 1440 else 'mm/hr'}.",
            fix="use IMERG files as they are distributed",
        )

    def _check_place(self, group: H5, granule: Granule) -> None:
        """Raise if a granule covers another area than the first; sizes alone may agree."""
        axes = [_variable(group, names, granule.path) for names in _AXES]
        found = [float(axis[i]) for axis in axes for i in (0, -1)]
        if any(abs(a - b) > 0.01 for a, b in zip(found, self.corners, strict=True)):
            raise SourceError(
                f"'{granule.path}' lies at {found[0]:.2f} to {found[1]:.2f}°N, {found[2]:.2f} to"
                f" {found[3]:.2f}°E, and the first file at {self.corners[0]:.2f} to"
                f" {self.corners[1]:.2f}°N, {self.corners[2]:.2f} to {self.corners[3]:.2f}°E.",
                fix="open files of one region",
            )

    def _field(self, variable: H5, granule: Granule) -> np.ndarray:
        """Return the required part of a variable, ``(lat, lon)`` float64, NaN where masked."""
        names = [str(d).rsplit("_", 1)[-1].lower() for d in variable.dimensions]
        if not {"lat", "lon"} <= {n[:3] for n in names}:
            names = [n.strip() for n in str(getattr(variable, "DimensionNames", "")).split(",")]
        short = [n[:3] for n in names]
        if len(short) != variable.ndim or not {"lat", "lon"} <= set(short):
            raise SourceError(
                f"the dimensions {variable.dimensions} of '{variable.name}' in '{granule.path}'"
                " are not known.",
                fix="use IMERG files as they are distributed",
            )
        sizes = tuple(variable.shape[short.index(n)] for n in ("lat", "lon"))
        if sizes != self.size:
            raise SourceError(
                f"'{granule.path}' has {sizes[0]} × {sizes[1]} points, but the first file has"
                f" {self.size[0]} × {self.size[1]}.",
                fix="open files of one grid",
            )
        cut = tuple(self.rows if n == "lat" else self.columns if n == "lon" else 0 for n in short)
        values = np.ma.filled(np.ma.asarray(variable[cut]).astype(np.float64), np.nan)
        left = [n for n in short if n in ("lat", "lon")]
        return values if left == ["lat", "lon"] else values.T


def _needed(
    latitude: np.ndarray, longitude: np.ndarray, to_latitude: np.ndarray, to_longitude: np.ndarray
) -> tuple[slice, slice]:
    """Return the rows and columns of the files that a target grid needs.

    These are all columns if the target grid reaches the edge of the files.
    """

    def around(have: np.ndarray, low: float, high: float) -> slice:
        index = np.flatnonzero((have >= low) & (have <= high))
        return slice(int(index[0]), int(index[-1]) + 1) if len(index) > 1 else slice(0, len(have))

    if min(map(len, (latitude, longitude, to_latitude, to_longitude))) < 2:
        return slice(0, len(latitude)), slice(
            0, len(longitude)
        )  # regridding raises for a single point
    reach = 2.0 * max(abs(to_latitude[1] - to_latitude[0]), abs(latitude[1] - latitude[0]))
    rows = around(latitude, to_latitude.min() - reach, to_latitude.max() + reach)
    turned = (to_longitude + 180.0) % 360.0 - 180.0
    west, east = turned.min(), turned.max()
    step = regridding.spacing(to_longitude)
    if (
        east - west > (len(turned) + 1) * step
        or west - 3 * step < longitude[0]
        or east + 3 * step > longitude[-1]
    ):
        return rows, slice(0, len(longitude))
    return rows, around(longitude, west - 3 * step, east + 3 * step)


def _check_time(group: H5, granule: Granule) -> None:
    """Raise if the time in a file differs from its name, as in a renamed file.

    Rain would otherwise appear at the wrong time.
    """
    if "time" not in group.variables:
        return
    variable = group.variables["time"]
    match = re.match(
        r"(seconds|minutes|hours|days) since (\d{4}-\d{2}-\d{2})(?:[ T](\d{2}:\d{2}:\d{2}))?",
        str(getattr(variable, "units", "")),
    )
    if match is None or not variable.size:
        return
    unit = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400}[match[1]]
    # The calendar is given as julian; from 1901 to 2099 its day counts agree with the standard one.
    base = np.datetime64(f"{match[2]}T{match[3] or '00:00:00'}", "ns")
    value = float(np.ma.asarray(variable[...]).ravel()[0])
    found = base + np.timedelta64(round(value * unit), "s")
    if abs(found - granule.start) >= granule.minutes * MINUTE:
        raise SourceError(
            f"'{granule.path}' is named after {str(granule.start)[:16]}, but contains"
            f" {str(found)[:16]}.",
            fix="restore the file's original name, or download it again",
        )


class Windows:
    """Reads windows by their number, and keeps the last two: totals and shares come together."""

    def __init__(self, read: Window, files: list[tuple[Granule | None, ...]]) -> None:
        self.read, self.files = read, files
        self._kept: dict[int, np.ndarray] = {}

    def __call__(self, number: int) -> np.ndarray:
        """Return totals and shares, ``(2, h, w)``."""
        if (kept := self._kept.get(number)) is not None:
            return kept
        values = self.read(self.files[number])
        self._kept = {**dict(list(self._kept.items())[-1:]), number: values}
        return values


def check_quality(granule: Granule) -> None:
    """Raise if a file has no quality index."""
    with opened(granule.path) as file:
        _variable(_group(file), _QUALITY, granule.path)

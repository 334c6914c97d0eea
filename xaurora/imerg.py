"""GPM IMERG files → a lazy Dataset of precipitation totals, in metres, each ending at its time.

Half-hourly granules hold a rate in mm/h and are labelled with the *start* of their half hour; a total over six hours at 12 UTC is half the sum of
the twelve granules that start at 06:00 … 11:30. Daily files hold a day's amount. Names and layouts of V03 to V07: Huffman et al., IMERG
Technical Documentation, and the files themselves.
"""

from __future__ import annotations

import functools
import itertools
import logging
import numbers
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xaurora import opening, recognition, regridding
from xaurora.errors import AccumulationError, GridError, OptionError, SourceError
from xaurora.periods import cell_methods

logger = logging.getLogger("xaurora")

_NAME = re.compile(
    r"3B-(?P<kind>HHR|DAY|MO)(?:-(?P<run>[ELF]))?\.[A-Z]{2}\.[A-Z]{3}\.3IMERG\.(?P<date>\d{8})-S(?P<start>\d{6})-E\d{6}"
    r"(?:\.\d{2,4})?\.V(?P<version>\d{2})(?P<letter>[A-Z]?)"
)
_RUNS = {"E": "Early", "L": "Late", "F": "Final", None: "Final"}
_MINUTES = {"HHR": 30, "DAY": 1440}
_RATES = ("precipitationCal", "precipitation")  # up to V06, and from V07 on
_AXES = (("lat", "latitude", "Grid_lat"), ("lon", "longitude", "Grid_lon"))
_QUALITY = ("precipitationQualityIndex", "qualityIndex")
_MINUTE = np.timedelta64(60_000_000_000, "ns")
_MM = 1e-3  # m
_HALF_HOURS = 48  # in a day, of which a daily file counts those that were seen


@dataclass(frozen=True, order=True)
class Granule:
    """One file: when it starts, how long it lasts, and what made it.

    Parameters
    ----------
    start : datetime64[ns]
        UTC.
    path : str
    minutes : int
        30 or 1440.
    run : str
        Early, Late or Final.
    version, letter : str
        ``"06"`` and ``"B"`` of V06B.
    """

    start: np.datetime64
    path: str
    minutes: int
    run: str
    version: str
    letter: str

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name


def open_imerg(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    period: str = "6h",
    grid: Any = None,
    min_valid: float = 0.9,
    quality: float | None = None,
    missing: str = "raise",
) -> xr.Dataset:
    """Open GPM IMERG as totals of precipitation. Lazy: one window of files at a time is read when values are asked for.

    Parameters
    ----------
    paths : str, path, or sequence of them
        Half-hourly or daily files of V03 to V07, one run and one version; globs.
    period : str
        Length of the totals: ``"6h"``, ``"24h"``, or ``"30min"`` for the half hours themselves. They end at its multiples from 00 UTC on.
    grid : Dataset, DataArray or float, optional
        Regrid conservatively onto the latitudes and longitudes of these data, or of a global grid with so many degrees between points
        (ERA5: 0.25). By default the files' own 0.1°.
    min_valid : float
        Share of a window's half hours that must have values at a point; totals are scaled up to the whole window, and missing below.
    quality : float, optional
        Leave out half hours whose quality index (0 to 1, from V05 on) is lower.
    missing : {"raise", "keep"}
        What to do about a half hour without a file: raise, or count it as missing at every point.

    Returns
    -------
    Dataset
        ``tp (time, latitude, longitude)``, m, float32, the period ending at ``time``; and ``valid_fraction``, the share of each grid cell
        that has values. ``tp`` is the mean over that share, so that the sum of ``tp × valid_fraction × area`` is kept by regridding.

    Raises
    ------
    SourceError
        A file is no IMERG granule, two hold the same time, one is missing, or runs or versions are mixed.
    AccumulationError
        No whole window, or a period that the files cannot give.

    References
    ----------
    Huffman et al. (2023), GPM IMERG Final Precipitation L3 Half Hourly 0.1° V07, doi:10.5067/GPM/IMERG/3B-HH/07.

    Examples
    --------
    >>> xaurora.open_imerg("imerg/2020/*.HDF5", grid=ds)  # doctest: +SKIP
    """
    if not (isinstance(min_valid, int | float) and 0.0 < min_valid <= 1.0):
        raise OptionError(f"min_valid={min_valid!r} does not lie between 0 and 1.", fix="min_valid=0.9")
    if quality is not None and not (isinstance(quality, int | float) and 0.0 <= quality <= 1.0):
        raise OptionError(f"quality={quality!r} does not lie between 0 and 1.", fix="quality=0.4")
    if missing not in ("raise", "keep"):
        raise OptionError(f"missing={missing!r} is neither 'raise' nor 'keep'.", fix="missing='keep'")
    length = _minutes(period)
    granules = sorted(describe(path) for path in opening.expand([paths]))
    _refuse_mixed(granules)
    _refuse_doubled(granules)
    windows = _windows(granules, length, min_valid, keep=missing == "keep")
    latitude, longitude = _axes(granules[0])
    target = None if grid is None else _target(grid)
    if quality is not None:
        with _opened(granules[0].path) as file:
            _variable(_group(file), _QUALITY, granules[0].path)
    read = _Window(granules[0].minutes, length, latitude, longitude, target, min_valid, quality)
    import dask.array

    ends = np.array([end for end, _ in windows], dtype="datetime64[ns]")
    files = [parts for _, parts in windows]
    index = dask.array.arange(len(files), chunks=1)
    rows, columns = read.shape
    both = index.map_blocks(
        functools.partial(_read_block, read, files),
        dtype=np.float32,
        new_axis=[1, 2, 3],
        chunks=((1,) * len(files), (2,), (rows,), (columns,)),
        meta=np.empty((0, 0, 0, 0), np.float32),
    )
    dims = ("time", "latitude", "longitude")
    hours = length / 60
    methods = cell_methods(int(hours)) if hours.is_integer() else f"time: sum (interval: {length} minutes)"
    first = granules[0]
    lat, lon = read.coordinates
    return xr.Dataset(
        {
            "tp": (
                dims,
                both[:, 0],
                {
                    "units": "m",
                    "long_name": "Total precipitation",
                    "standard_name": "lwe_thickness_of_precipitation_amount",
                    "cell_methods": methods,
                },
            ),
            "valid_fraction": (
                dims,
                both[:, 1],
                {"units": "1", "long_name": "share of the grid cell with values"},
            ),
        },
        {
            "time": ("time", ends, {"standard_name": "time", "long_name": "end of the period"}),
            "latitude": ("latitude", lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": ("longitude", lon, {"units": "degrees_east", "standard_name": "longitude"}),
        },
        {
            "title": f"GPM IMERG {first.run} V{first.version}{first.letter}",
            "xaurora_source": "IMERG",
            "imerg_run": first.run,
            "imerg_version": f"V{first.version}{first.letter}",
            "min_valid": min_valid,
            "Conventions": "CF-1.11",
        },
    )


def _minutes(period: Any) -> int:
    import pandas as pd

    try:
        minutes = pd.Timedelta(period) / pd.Timedelta(minutes=1)
    except (ValueError, TypeError):
        minutes = float("nan")
    if not (np.isfinite(minutes) and minutes > 0 and minutes % 30 == 0):
        raise AccumulationError(
            f"period={period!r} is no multiple of half an hour, which is what IMERG comes in.", fix="period='6h'"
        )
    return int(minutes)


# --- which files ---------------------------------------------------------------------------------------------------------


def is_imerg(path: str) -> bool:
    """Whether a file is named as IMERG's are."""
    return _NAME.search(Path(path).name) is not None


def describe(path: str) -> Granule:
    """What a file is: by its name, or if that says nothing by its header.

    Raises
    ------
    SourceError
        It is no half-hourly or daily IMERG file.
    """
    match = _NAME.search(Path(path).name) or _NAME.search(_header_name(path))
    if match is None:
        raise SourceError(
            f"'{path}' is no IMERG file that can be told: neither its name nor its header is like 3B-HHR.MS.MRG.3IMERG.20200101-S000000-E002959.0000.V06B.HDF5.",
            fix="keep the files' own names",
        )
    if match["kind"] not in _MINUTES:
        raise SourceError(f"'{path}' is a monthly file.", fix="half-hourly (3B-HHR) or daily (3B-DAY) files")
    date, start = match["date"], match["start"]
    stamp = f"{date[:4]}-{date[4:6]}-{date[6:]}T{start[:2]}:{start[2:4]}:{start[4:]}"
    try:
        when = np.datetime64(stamp, "ns")
    except ValueError:
        raise SourceError(
            f"'{path}' is named after a time that is none ({stamp}).", fix="keep the file's own name"
        ) from None
    return Granule(when, str(path), _MINUTES[match["kind"]], _RUNS[match["run"]], match["version"], match["letter"])


def _header_name(path: str) -> str:
    with _opened(path) as file:
        header = str(getattr(file, "FileHeader", ""))
    found = re.search(r"FileName=([^;\s]+)", header)
    return found[1] if found else ""


def _refuse_mixed(granules: list[Granule]) -> None:
    for what, of in (
        ("runs", lambda g: f"{g.run} ({'half-hourly' if g.minutes == 30 else 'daily'})"),
        ("versions", lambda g: f"V{g.version}{g.letter}"),
    ):
        kinds: dict[str, str] = {}
        for granule in granules:
            kinds.setdefault(of(granule), granule.name)
        if len(kinds) > 1:
            listed = "; ".join(f"{kind}: {name}" for kind, name in sorted(kinds.items()))
            raise SourceError(
                f"IMERG {what} are mixed, which differ in more than the weather ({listed}).",
                fix="open one at a time, with a narrower glob; if you want both, join what you opened: xr.concat([a, b], 'time')",
            )


def _refuse_doubled(granules: list[Granule]) -> None:
    for before, after in itertools.pairwise(granules):
        if before.start == after.start:
            raise SourceError(
                f"two files hold the same time, {str(after.start)[:16]}: '{before.name}' and '{after.name}'.",
                fix="leave one of them out",
            )


def _windows(
    granules: list[Granule], length: int, min_valid: float, *, keep: bool
) -> list[tuple[np.datetime64, tuple[Granule | None, ...]]]:
    """End of each whole window, and its granules in order; None where one is missing and that is allowed."""
    each = granules[0].minutes
    if length % each:
        what = "daily files, of which only totals over whole days can be made" if each == 1440 else "half hours"
        raise AccumulationError(
            f"totals over {length / 60:g} hours are asked of {what}.",
            fix="period='24h', or open the half-hourly files (3B-HHR)",
        )
    if not keep:
        for before, after in itertools.pairwise(granules):
            if (gap := (after.start - before.start) / _MINUTE) != each:
                raise SourceError(
                    f"{int(gap // each) - 1} file(s) are missing between '{before.name}' and '{after.name}'.",
                    fix="download them; or missing='keep', which makes no total where more than a tenth is missing",
                )
    count = length // each
    by_start = {g.start: g for g in granules}
    origin = granules[0].start.astype("datetime64[D]").astype("datetime64[ns]")
    span = length * _MINUTE
    first = origin + ((granules[0].start - origin) // span) * span
    last = granules[-1].start + each * _MINUTE
    out = []
    for k in range(int((last - first) // span) + 1):
        begin = first + k * span
        parts = tuple(by_start.get(begin + i * each * _MINUTE) for i in range(count))
        there = sum(p is not None for p in parts)
        if there == count or (keep and there >= min_valid * count - 1e-9 and there):
            out.append((begin + span, parts))
    if not out:
        raise AccumulationError(
            f"the {len(granules)} file(s) ({granules[0].name} … {granules[-1].name}) fill no window of {length / 60:g} hours that ends at a multiple of it from 00 UTC on.",
            fix=f"open at least {count} that follow one another, or period='{each}min'"
            if each == 30
            else "open whole days",
        )
    used = sum(p is not None for _, parts in out for p in parts)
    if used < len(granules):
        logger.info(
            "%d of %d IMERG files are in no whole window and are left out.", len(granules) - used, len(granules)
        )
    return out


# --- reading -------------------------------------------------------------------------------------------------------------


def _opened(path: str) -> Any:
    import netCDF4

    try:
        return netCDF4.Dataset(path)
    except (OSError, RuntimeError) as error:
        raise SourceError(
            f"'{path}' could not be opened as HDF5: {error}", fix="check that the download is complete"
        ) from error


def _group(file: Any) -> Any:
    """Half-hourly files have a group ``Grid``; daily files and subsets have none."""
    return file["Grid"] if "Grid" in file.groups else file


def _variable(group: Any, names: Sequence[str], path: str) -> Any:
    for name in names:
        for candidate in (name, f"Grid_{name}", f"Grid/{name}"):
            if candidate in group.variables:
                return group.variables[candidate]
    raise SourceError(
        f"'{path}' has no variable {' or '.join(names)}, but {sorted(group.variables)}.",
        fix="give whole IMERG files" if names is _RATES else "leave quality= out",
    )


def _axes(granule: Granule) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of a file, rounded to what they mean: float32 rounding taken off."""
    with _opened(granule.path) as file:
        group = _group(file)
        out = []
        for names in _AXES:
            values = np.ma.filled(_variable(group, names, granule.path)[:].astype(np.float64), np.nan)
            out.append(np.round(values, 4))
    return out[0], out[1]


def _target(grid: Any) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes to regrid onto, in their own order."""
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
            f"grid={type(grid).__name__} is neither a Dataset nor a number of degrees.", fix="grid=ds, or grid=0.25"
        )
    # A forecast has no time axis of fields, and needs none here.
    names = {*recognition.NAMES["latitude"], *recognition.NAMES["longitude"]}
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
            "grid= has no latitude and longitude.", fix="grid=ds with the fields to compare with, or grid=0.25"
        )
    lat = np.asarray(grid[found.axes["latitude"].name].values, np.float64)
    lon = np.asarray(grid[found.axes["longitude"].name].values, np.float64)
    return lat, lon


class _Window:
    """Reads the granules of one window, adds them up, and regrids the total. Travels to dask's workers.

    Parameters
    ----------
    each, length : int
        Minutes of a granule and of the window.
    latitude, longitude : ndarray
        The files'.
    target : tuple of ndarray or None
        The grid that is wanted.
    min_valid, quality
        As in :func:`open_imerg`.
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
        self.corners = tuple(float(v) for v in (latitude[0], latitude[-1], longitude[0], longitude[-1]))
        self.rows, self.columns = slice(0, len(latitude)), slice(0, len(longitude))
        self.regrid: regridding.Conservative | None = None
        self.coordinates = (latitude, longitude)
        if target is not None:
            self.coordinates = target
            self.rows, self.columns = _needed(latitude, longitude, *target)
            self.regrid = regridding.Conservative(latitude[self.rows], longitude[self.columns], *target)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of what comes out."""
        return len(self.coordinates[0]), len(self.coordinates[1])

    def __call__(self, granules: Sequence[Granule | None]) -> np.ndarray:
        """``(2, h, w)``: totals in metres, NaN where too little is known, and the share of each cell that is."""
        total: Any = 0.0
        seen: Any = 0.0
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
        """Amount in mm over the granule, ``(h, w)``, and the share of its half hours that it is made of."""
        from xarray.backends.locks import HDF5_LOCK  # HDF5 is not safe in threads

        with HDF5_LOCK, _opened(granule.path) as file:
            group = _group(file)
            _check_time(group, granule)
            self._check_place(group, granule)
            variable = _variable(group, _RATES, granule.path)
            units = str(getattr(variable, "units", getattr(variable, "Units", "mm/hr"))).replace(" ", "")
            values = self._field(variable, group, granule)
            share = np.ones(())
            if self.each == 1440 and f"{variable.name}_cnt" in group.variables:
                share = self._field(group.variables[f"{variable.name}_cnt"], group, granule) / _HALF_HOURS
            index = None
            if self.quality is not None:
                index = self._field(_variable(group, _QUALITY, granule.path), group, granule)
        values = np.where(values < 0.0, np.nan, values)  # the fill value, also where it is not declared
        if index is not None:
            values = np.where(index >= self.quality, values, np.nan)
        if units in ("mm/hr", "mm/h", "mmhr-1", "mmh-1"):
            return values * (self.each / 60.0), share
        if self.each == 1440 and units == "mm":  # the sum over the half hours that were seen, up to V06
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(share > 0, values / share, np.nan), share
        if self.each == 1440 and units in ("mm/day", "mmday-1", "mm/d"):
            return values, share
        raise SourceError(
            f"'{granule.path}' has precipitation in {units!r}, and {'mm or mm/day' if self.each == 1440 else 'mm/hr'} is expected.",
            fix="give IMERG files as they were distributed",
        )

    def _check_place(self, group: Any, granule: Granule) -> None:
        """Cuts of different places may have the same size."""
        axes = [_variable(group, names, granule.path) for names in _AXES]
        found = [float(axis[i]) for axis in axes for i in (0, -1)]
        if any(abs(a - b) > 0.01 for a, b in zip(found, self.corners, strict=True)):
            raise SourceError(
                f"'{granule.path}' lies at {found[0]:.2f} to {found[1]:.2f}°N, {found[2]:.2f} to {found[3]:.2f}°E, and the first file at "
                f"{self.corners[0]:.2f} to {self.corners[1]:.2f}°N, {self.corners[2]:.2f} to {self.corners[3]:.2f}°E.",
                fix="open files of one region",
            )

    def _field(self, variable: Any, group: Any, granule: Granule) -> np.ndarray:
        """``(lat, lon)`` float64 of the needed rows and columns, NaN where masked."""
        names = [str(d).rsplit("_", 1)[-1].lower() for d in variable.dimensions]
        if not {"lat", "lon"} <= {n[:3] for n in names}:
            names = [n.strip() for n in str(getattr(variable, "DimensionNames", "")).split(",")]
        short = [n[:3] for n in names]
        if len(short) != variable.ndim or not {"lat", "lon"} <= set(short):
            raise SourceError(
                f"the dimensions {variable.dimensions} of '{variable.name}' in '{granule.path}' are not known.",
                fix="give IMERG files as they were distributed",
            )
        sizes = tuple(variable.shape[short.index(n)] for n in ("lat", "lon"))
        if sizes != self.size:
            raise SourceError(
                f"'{granule.path}' has {sizes[0]} × {sizes[1]} points, and the first file {self.size[0]} × {self.size[1]}.",
                fix="open files of one grid",
            )
        cut = tuple(self.rows if n == "lat" else self.columns if n == "lon" else 0 for n in short)
        values = np.ma.filled(np.ma.asarray(variable[cut]).astype(np.float64), np.nan)
        left = [n for n in short if n in ("lat", "lon")]
        return values if left == ["lat", "lon"] else values.T


def _needed(
    latitude: np.ndarray, longitude: np.ndarray, to_latitude: np.ndarray, to_longitude: np.ndarray
) -> tuple[slice, slice]:
    """The part of the files that a target grid draws on; all columns where it meets the files' edge."""

    def around(have: np.ndarray, low: float, high: float) -> slice:
        index = np.flatnonzero((have >= low) & (have <= high))
        return slice(int(index[0]), int(index[-1]) + 1) if len(index) > 1 else slice(0, len(have))

    if min(map(len, (latitude, longitude, to_latitude, to_longitude))) < 2:
        return slice(0, len(latitude)), slice(0, len(longitude))  # regridding says what is wrong with a single point
    reach = 2.0 * max(abs(to_latitude[1] - to_latitude[0]), abs(latitude[1] - latitude[0]))
    rows = around(latitude, to_latitude.min() - reach, to_latitude.max() + reach)
    turned = (to_longitude + 180.0) % 360.0 - 180.0
    west, east = turned.min(), turned.max()
    step = regridding.spacing(to_longitude)
    if east - west > (len(turned) + 1) * step or west - 3 * step < longitude[0] or east + 3 * step > longitude[-1]:
        return rows, slice(0, len(longitude))
    return rows, around(longitude, west - 3 * step, east + 3 * step)


def _check_time(group: Any, granule: Granule) -> None:
    """The file's own time against its name: a renamed file would put rain where there was none."""
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
    # The calendar says julian; between 1901 and 2099 its days are counted as everybody else's.
    base = np.datetime64(f"{match[2]}T{match[3] or '00:00:00'}", "ns")
    value = float(np.ma.asarray(variable[...]).ravel()[0])
    found = base + np.timedelta64(round(value * unit), "s")
    if abs(found - granule.start) >= granule.minutes * _MINUTE:
        raise SourceError(
            f"'{granule.path}' is named after {str(granule.start)[:16]}, and holds {str(found)[:16]}.",
            fix="give the file its own name back, or download it again",
        )


def _read_block(read: _Window, files: list[tuple[Granule | None, ...]], index: np.ndarray) -> np.ndarray:
    return np.stack([read(files[int(i)]) for i in np.atleast_1d(index)])

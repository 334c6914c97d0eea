"""GPM IMERG files as a lazy Dataset of precipitation totals in metres, each ending at its time.

Half-hourly granules contain a rate in mm/h and are labelled with the *start* of their half hour; a
total over six hours at 12 UTC is half the sum of the twelve granules that start at 06:00 … 11:30.
Daily files contain a day's amount. Names and layouts of V03 to V07: Huffman et al., IMERG Technical
Documentation, and the files themselves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import xarray as xr

from xaurora.errors import OptionError
from xaurora.fields.periods import cell_methods
from xaurora.sources import opening
from xaurora.sources.imerg import files, reading
from xaurora.utils import lazy
from xaurora.utils.types import Given, GridLike


def open_imerg(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    period: str = "6h",
    offset: str = "0h",
    grid: GridLike | None = None,
    min_valid: float = 0.9,
    quality: float | None = None,
    missing: str = "raise",
) -> xr.Dataset:
    """Open GPM IMERG as totals of precipitation.

    Lazy: each window of files is read when its values are requested.

    Parameters
    ----------
    paths : str, path, or sequence of them
        Half-hourly or daily files of V03 to V07, of one run and one version; globs are allowed.
    period : str
        Length of the totals: ``"6h"``, ``"24h"``, or ``"30min"`` for the half hours themselves.
        They end at multiples of it from 00 UTC on.
    offset : str
        Shift of these ends, as in ``resample``: with ``"3h"`` six-hour totals end at 03, 09, 15 and
        21 UTC.
    grid : Dataset, DataArray or float, optional
        Regrid conservatively to the latitudes and longitudes of these data, or of a global grid
        with this many degrees between points (ERA5: 0.25). By default the files' own 0.1°.
    min_valid : float
        Share of a window's half hours that must have values at a point. Totals are scaled up to the
        whole window, and are missing below this share.
    quality : float, optional
        Ignore half hours with a lower quality index (0 to 1, from V05 on).
    missing : {"raise", "keep"}
        What to do about a half hour without a file: raise, or count it as missing at every point.

    Returns
    -------
    Dataset
        ``tp (time, latitude, longitude)``, m, float32, the period ending at ``time``; and
        ``valid_fraction``, the share of each grid cell that has values. ``tp`` is the mean over
        that share, so that regridding conserves the sum of ``tp × valid_fraction × area``.

    Raises
    ------
    SourceError
        A file is not an IMERG granule, two have the same time, one is missing, or runs or versions
        are mixed.
    AccumulationError
        There is no complete window, or the files cannot give this period.

    References
    ----------
    Huffman et al. (2023), GPM IMERG Final Precipitation L3 Half Hourly 0.1° V07,
    doi:10.5067/GPM/IMERG/3B-HH/07.

    Examples
    --------
    >>> xaurora.open_imerg("imerg/2020/*.HDF5", grid=ds)  # doctest: +SKIP
    """
    _check_options(min_valid, quality, missing)
    length = files.minutes_of(period)
    shift = files.shift_of(offset)
    granules = sorted(files.describe(path) for path in opening.expand([paths]))
    files.check_one_version(granules)
    files.check_unique_times(granules)
    windows = files.windows(granules, length, min_valid, shift, keep=missing == "keep")
    latitude, longitude = reading.axes(granules[0])
    target = None if grid is None else reading.target_of(grid)
    if quality is not None:
        reading.check_quality(granules[0])
    read = reading.Window(
        granules[0].minutes, length, latitude, longitude, target, min_valid, quality
    )
    ends = np.array([end for end, _ in windows], dtype="datetime64[ns]")
    paths_of = [parts for _, parts in windows]
    dims = ("time", "latitude", "longitude")
    both = lazy.from_frames(
        reading.Windows(read, paths_of),
        ("time", "part", "latitude", "longitude"),
        (len(paths_of), 2, *read.shape),
        np.float32,
    )
    hours = length / 60
    methods = (
        cell_methods(int(hours))
        if hours.is_integer()
        else f"time: sum (interval: {length} minutes)"
    )
    first = granules[0]
    lat, lon = read.coordinates
    ds = xr.Dataset(
        {
            "tp": (
                dims,
                both[:, 0]._data,
                {
                    "units": "m",
                    "long_name": "Total precipitation",
                    "standard_name": "lwe_thickness_of_precipitation_amount",
                    "cell_methods": methods,
                },
            ),
            "valid_fraction": (
                dims,
                both[:, 1]._data,
                {"units": "1", "long_name": "share of the grid cell with values"},
            ),
        },
        {
            "time": ("time", ends, {"standard_name": "time", "long_name": "end of the period"}),
            "latitude": ("latitude", lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": (
                "longitude",
                lon,
                {"units": "degrees_east", "standard_name": "longitude"},
            ),
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
    return ds.chunk(time=1)


def _check_options(min_valid: Given, quality: Given, missing: Given) -> None:
    if not (isinstance(min_valid, int | float) and 0.0 < min_valid <= 1.0):
        raise OptionError(
            f"min_valid={min_valid!r} must be greater than 0 and at most 1.", fix="min_valid=0.9"
        )
    if quality is not None and not (isinstance(quality, int | float) and 0.0 <= quality <= 1.0):
        raise OptionError(f"quality={quality!r} must lie between 0 and 1.", fix="quality=0.4")
    if missing not in ("raise", "keep"):
        raise OptionError(f"missing={missing!r} must be 'raise' or 'keep'.", fix="missing='keep'")

"""Names and headers of IMERG files, and the files that make up each window."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from xaurora.errors import AccumulationError, SourceError
from xaurora.utils.types import Given

logger = logging.getLogger("xaurora")

_NAME = re.compile(
    r"3B-(?P<kind>HHR|DAY|MO)(?:-(?P<run>[ELF]))?\.[A-Z]{2}\.[A-Z]{3}\.3IMERG"
    r"\.(?P<date>\d{8})-S(?P<start>\d{6})-E\d{6}"
    r"(?:\.\d{2,4})?\.V(?P<version>\d{2})(?P<letter>[A-Z]?)"
)
_RUNS = {"E": "Early", "L": "Late", "F": "Final", None: "Final"}
_MINUTES = {"HHR": 30, "DAY": 1440}
H5: TypeAlias = Any
"""A file, group or variable of netCDF4 or h5py."""
MINUTE = np.timedelta64(60_000_000_000, "ns")


@dataclass(frozen=True, order=True)
class Granule:
    """One file: its start, its length, and the run and version that produced it.

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
        """Name of the file, without its folder."""
        return Path(self.path).name


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    """Open an HDF5 file while holding the lock of xarray's readers.

    The HDF5 library is not thread-safe, so only one reader per process may use it at a time.

    Raises
    ------
    SourceError
        It cannot be opened.
    """
    import netCDF4
    from xarray.backends.locks import HDF5_LOCK

    with HDF5_LOCK:
        try:
            file = netCDF4.Dataset(path)
        except (OSError, RuntimeError) as error:
            raise SourceError(
                f"'{path}' could not be opened as HDF5: {error}",
                fix="check that the download is complete",
            ) from error
        try:
            yield file
        finally:
            file.close()


def minutes_of(period: Given) -> int:
    """Return a period in minutes.

    Raises
    ------
    AccumulationError
        It is not a positive multiple of half an hour.
    """
    import pandas as pd

    try:
        minutes = pd.Timedelta(period) / pd.Timedelta(minutes=1)
    except (ValueError, TypeError):
        minutes = float("nan")
    if not (np.isfinite(minutes) and minutes > 0 and minutes % 30 == 0):
        raise AccumulationError(
            f"period={period!r} is not a multiple of half an hour, the time step of IMERG.",
            fix="period='6h'",
        )
    return int(minutes)


def shift_of(offset: Given) -> int:
    """Return the shift of the windows in minutes.

    Raises
    ------
    AccumulationError
        It is not a multiple of half an hour.
    """
    import pandas as pd

    try:
        minutes = pd.Timedelta(offset) / pd.Timedelta(minutes=1)
    except (ValueError, TypeError):
        minutes = float("nan")
    if not (np.isfinite(minutes) and minutes % 30 == 0):
        raise AccumulationError(
            f"offset={offset!r} is not a multiple of half an hour, the time step of IMERG.",
            fix="offset='3h'",
        )
    return int(minutes)


def is_imerg(path: str) -> bool:
    """Return whether a file has the name of an IMERG file."""
    return _NAME.search(Path(path).name) is not None


def describe(path: str) -> Granule:
    """Return what a file contains, from its name or else from its header.

    Raises
    ------
    SourceError
        It is not a half-hourly or daily IMERG file.
    """
    match = _NAME.search(Path(path).name) or _NAME.search(_header_name(path))
    if match is None:
        raise SourceError(
            f"'{path}' is not recognised as an IMERG file: neither its name nor its header is like"
            " 3B-HHR.MS.MRG.3IMERG.20200101-S000000-E002959.0000.V06B.HDF5.",
            fix="keep the original names of the files",
        )
    if match["kind"] not in _MINUTES:
        raise SourceError(
            f"'{path}' is a monthly file.", fix="use half-hourly (3B-HHR) or daily (3B-DAY) files"
        )
    date, start = match["date"], match["start"]
    stamp = f"{date[:4]}-{date[4:6]}-{date[6:]}T{start[:2]}:{start[2:4]}:{start[4:]}"
    try:
        when = np.datetime64(stamp, "ns")
    except ValueError:
        raise SourceError(
            f"'{path}' has an invalid time in its name ({stamp}).",
            fix="keep the original name of the file",
        ) from None
    return Granule(
        when,
        str(path),
        _MINUTES[match["kind"]],
        _RUNS[match["run"]],
        match["version"],
        match["letter"],
    )


def _header_name(path: str) -> str:
    with opened(path) as file:
        header = str(getattr(file, "FileHeader", ""))
    found = re.search(r"FileName=([^;\s]+)", header)
    return found[1] if found else ""


def check_one_version(granules: list[Granule]) -> None:
    """Raise if files of several runs or versions are mixed.

    Raises
    ------
    SourceError
        They are mixed.
    """
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
                f"IMERG {what} are mixed, and their data are not comparable ({listed}).",
                fix=(
                    "open one at a time, with a narrower glob; to use both, concatenate the"
                    " results: xr.concat([a, b], 'time')"
                ),
            )


def check_unique_times(granules: list[Granule]) -> None:
    """Raise if two files have the same time.

    Raises
    ------
    SourceError
        Two files have the same time.
    """
    for before, after in itertools.pairwise(granules):
        if before.start == after.start:
            raise SourceError(
                f"two files have the same time, {str(after.start)[:16]}: '{before.name}' and"
                f" '{after.name}'.",
                fix="remove one of them",
            )


def windows(
    granules: list[Granule], length: int, min_valid: float, shift: int = 0, *, keep: bool
) -> list[tuple[np.datetime64, tuple[Granule | None, ...]]]:
    """Return the end of each window and its granules in order.

    Windows end at multiples of their length from 00 UTC on, later by ``shift`` minutes. A missing
    granule is None, which ``keep`` allows.

    Raises
    ------
    AccumulationError
        The files cannot give totals of this length, or fill no window.
    SourceError
        Files are missing, and ``keep`` is False.
    """
    each = granules[0].minutes
    if length % each or shift % each:
        what = (
            "daily files, which only give totals over whole days" if each == 1440 else "half hours"
        )
        raise AccumulationError(
            f"totals over {length / 60:g} hours"
            + (f" with an offset of {shift / 60:g}" if shift % each else "")
            + f" are not possible with {what}.",
            fix="period='24h', or open the half-hourly files (3B-HHR)",
        )
    if not keep:
        for before, after in itertools.pairwise(granules):
            if (gap := (after.start - before.start) / MINUTE) != each:
                raise SourceError(
                    f"{int(gap // each) - 1} file(s) are missing between '{before.name}' and"
                    f" '{after.name}'.",
                    fix=(
                        "download them; or missing='keep', which gives totals only where at least"
                        " min_valid is present"
                    ),
                )
    count = length // each
    by_start = {g.start: g for g in granules}
    day = granules[0].start.astype("datetime64[D]").astype("datetime64[ns]")
    origin = day + shift % length * MINUTE
    span = length * MINUTE
    first = origin + ((granules[0].start - origin) // span) * span
    last = granules[-1].start + each * MINUTE
    out = []
    for k in range(int((last - first) // span) + 1):
        begin = first + k * span
        parts = tuple(by_start.get(begin + i * each * MINUTE) for i in range(count))
        there = sum(p is not None for p in parts)
        if there == count or (keep and there >= min_valid * count - 1e-9 and there):
            out.append((begin + span, parts))
    if not out:
        raise AccumulationError(
            f"the {len(granules)} file(s) ({granules[0].name} … {granules[-1].name}) fill no"
            f" window of {length / 60:g} hours that ends at a multiple of its length from"
            f" {shift // 60 % 24:02d}:{shift % 60:02d} UTC on.",
            fix=(
                f"open at least {count} consecutive files, or period='{each}min', or offset='3h'"
                " if they end at other hours"
                if each == 30
                else "open whole days"
            ),
        )
    used = sum(p is not None for _, parts in out for p in parts)
    if used < len(granules):
        logger.info(
            "%d of %d IMERG files are not part of a complete window and are ignored.",
            len(granules) - used,
            len(granules),
        )
    return out

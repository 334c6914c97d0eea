"""Bands of latitude of data that are read once, however many bands there are."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xaurora.errors import SaveError
from xaurora.utils import indexed, storage
from xaurora.utils.workers import in_order

if TYPE_CHECKING:
    from tqdm import tqdm

_READ = 128 * 1024**2  # bytes of the data to read at once


@dataclass(frozen=True)
class Band:
    """Some rows of all levels, ``(time, row, longitude)``, in the data or in a file.

    Rows are counted through all levels: the first row of the second level follows the last one of
    the first level.

    Parameters
    ----------
    da : DataArray, ``(time, [level,] latitude, longitude)``
    start, stop : int
        Rows.
    path : path, optional
        File that holds the values of this band.
    """

    da: xr.DataArray
    start: int
    stop: int
    path: Path | None = None

    @property
    def times(self) -> int:
        """Number of times."""
        return len(self.da)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.stop - self.start, self.da.shape[-1]

    @property
    def frame_size(self) -> int:
        """Bytes of one time."""
        return self.da.dtype.itemsize * self.shape[0] * self.shape[1]

    def read(self, first: int, stop: int) -> np.ndarray:
        """Return the values of some times."""
        if self.path is None:
            return read_rows(self.da, first, stop)[:, self.start : self.stop]
        count = (stop - first) * self.frame_size // self.da.dtype.itemsize
        values = np.fromfile(self.path, self.da.dtype, count, offset=first * self.frame_size)
        return values.reshape(-1, *self.shape)


def read_rows(da: xr.DataArray, first: int, stop: int) -> np.ndarray:
    """Return the values of some times, ``(time, row, longitude)``, with the rows of all levels."""
    values = indexed.read(da.variable[first:stop], str(da.name))
    return values.reshape(len(values), -1, da.shape[-1])


@contextlib.contextmanager
def bands_of(da: xr.DataArray, starts: Sequence[int], meter: tqdm) -> Iterator[list[Band]]:
    """Yield the bands of rows that begin at ``starts``; the data are read once.

    If there are several bands, the data are first copied to temporary files, one for each.

    Raises
    ------
    SaveError
        There is no space for the temporary files.
    """
    rows = int(np.prod(da.shape[1:-1]))
    stops = [*starts[1:], rows]
    if len(starts) == 1:
        yield [Band(da, 0, rows)]
        meter.update(len(da))
        return
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if da.nbytes > free:
        raise SaveError(
            f"the climatology of '{da.name}' needs {da.nbytes / 1e9:.3g} GB for temporary files,"
            f" but '{tempfile.gettempdir()}' has {free / 1e9:.3g} GB.",
            fix="set the environment variable TMPDIR to a folder with more space",
        )
    with tempfile.TemporaryDirectory(prefix="xaurora-") as folder:
        bands = [
            Band(da, start, stop, Path(folder) / f"{start}.raw")
            for start, stop in zip(starts, stops, strict=True)
        ]
        frame = max(da.nbytes // max(len(da), 1), 1)
        stored = int(da.encoding.get("preferred_chunks", {}).get(da.dims[0], 1))
        length = max(_READ // frame // stored, 1) * stored
        blocks = [(i, min(i + length, len(da))) for i in range(0, len(da), length)]
        for count in in_order(_copy, bands, blocks, name="xaurora-climatology"):
            meter.update(count)
        yield bands


def _copy(bands: list[Band], block: tuple[int, int]) -> int:
    """Copy some times to the file of each band."""
    first, stop = block
    values = read_rows(bands[0].da, first, stop)
    for band in bands:
        if band.path is None:
            continue
        part = np.ascontiguousarray(values[:, band.start : band.stop])
        with storage.wrap_write_errors(band.path):
            handle = os.open(band.path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                _write_all(handle, memoryview(part.tobytes()), first * band.frame_size)
            finally:
                os.close(handle)
    return stop - first


def _write_all(handle: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written

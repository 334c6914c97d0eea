"""Bands of latitude of data that are read once, however many bands there are."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import SaveError
from xaurora.utils import lazy

if TYPE_CHECKING:
    from tqdm import tqdm


@contextlib.contextmanager
def bands_of(da: xr.DataArray, rows: int, block: int, meter: tqdm) -> Iterator[list[xr.DataArray]]:
    """Yield bands of latitude of at most ``rows`` rows; the data are read once.

    If there are several bands, the data are first copied to temporary files, one for each, reading
    about ``block`` bytes at once.

    Raises
    ------
    SaveError
        There is no space for the temporary files.
    """
    count = -(-da.shape[-2] // rows)
    if count == 1:
        yield [da]
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
        yield list(_copied(da, rows, block, Path(folder), meter))


def _copied(
    da: xr.DataArray, rows: int, block: int, folder: Path, meter: tqdm
) -> Iterator[xr.DataArray]:
    """Copy the data, in one pass, to a file for each band, and yield the bands."""
    starts = range(0, da.shape[-2], rows)
    paths = [folder / f"{start}.raw" for start in starts]
    frame = max(da.dtype.itemsize * int(np.prod(da.shape[1:])), 1)
    stored = int(da.encoding.get("preferred_chunks", {}).get(da.dims[0], 1))
    length = max(block // frame // stored, 1) * stored
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for first in range(0, len(da), length):
            values = da.variable[first : first + length].values
            for start, file in zip(starts, files, strict=True):
                np.ascontiguousarray(values[..., start : start + rows, :]).tofile(file)
            meter.update(len(values))
    for start, path in zip(starts, paths, strict=True):
        shape = (*da.shape[:-2], min(rows, da.shape[-2] - start), da.shape[-1])
        made = lazy.from_frames(_FrameOfFile(path, shape[1:], da.dtype), da.dims, shape, da.dtype)
        yield xr.DataArray(made, name=da.name, attrs=da.attrs)


@dataclass(frozen=True)
class _FrameOfFile:
    """Reads frames of a file by their number."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __call__(self, number: int) -> np.ndarray:
        count = int(np.prod(self.shape))
        offset = number * count * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, count, offset=offset).reshape(self.shape)

"""Notice that a file or a local store was rewritten while it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xarray as xr

from xaurora.errors import SourceChangedError

_METADATA = ("zarr.json", ".zmetadata", ".zgroup")
Stamp = tuple[int, int, int]
"""Time of the last change in ns, bytes, and inode."""


class Unchanged:
    """The local files behind Datasets, as they were when this was made.

    A Zarr store is known by its metadata and those of its arrays, which change when it is written
    again or appended to, but not when a part is overwritten in place. Data in memory, and data
    without a local path such as those of a server, are not watched. Of files that were joined,
    xarray remembers the first.

    Parameters
    ----------
    datasets : Dataset or DataArray
        What is read.
    opened : Dataset, optional
        What they were made from, whose coordinates may know the file.
    """

    def __init__(
        self, *datasets: xr.Dataset | xr.DataArray, opened: xr.Dataset | None = None
    ) -> None:
        found = [v for ds in datasets for v in _variables(ds)]
        parts: list[Any] = [v for v in found if not v._in_memory]
        if parts:
            parts += [ds for ds in datasets if isinstance(ds, xr.Dataset)]
            parts += [] if opened is None else [opened, *_variables(opened)]
        sources = {str(part.encoding.get("source", "")) for part in parts} - {""}
        paths = {path for source in sources for path in _paths(source)}
        self.stamps = {path: _stamp(path) for path in sorted(paths)}

    def check(self) -> None:
        """Raise if one of the files has changed since.

        Raises
        ------
        SourceChangedError
            It names the file.
        """
        for path, stamp in self.stamps.items():
            if _stamp(path) != stamp:
                raise SourceChangedError(
                    f"'{path}' has changed while it was read: values read before and after may not"
                    " belong together.",
                    fix="wait until it is complete, open it again, and start again",
                )


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _variables(ds: xr.Dataset | xr.DataArray) -> list[xr.Variable]:
    return list(ds.variables.values()) if isinstance(ds, xr.Dataset) else [ds.variable]


def _paths(source: str) -> Iterator[Path]:
    """Yield the local files that tell whether a file or store has changed."""
    path = Path(source.removeprefix("file://"))
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (path / name for name in _METADATA if (path / name).exists())
        for pattern in ("*/zarr.json", "*/.zarray"):
            yield from path.glob(pattern)

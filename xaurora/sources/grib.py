"""GRIB files, through cfgrib, with an index that is kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import MissingExtraError, SourceError
from xaurora.utils import lazy, storage
from xaurora.utils.progress import progress_bar

_KEPT = 64  # indexes; each takes about 100 bytes a message
_SHOWN_AFTER = 2.0  # seconds


def read(path: str) -> list[xr.Dataset]:
    """Return the fields of a GRIB file, one Dataset for each set of dims. Nothing is decoded.

    The index of the messages, which takes about a millisecond for each, is kept in the user's
    cache until the file changes.

    Raises
    ------
    MissingExtraError
        If cfgrib is not installed.
    SourceError
        If the file is not GRIB, or a message in it is damaged.
    """
    try:
        import cfgrib
    except (ImportError, RuntimeError):
        raise MissingExtraError(
            f"'{path}' is GRIB, which needs cfgrib.", fix="pip install 'xaurora[grib]'"
        ) from None
    # cfgrib relies on xarray's merge defaults, which warn for every file
    with warnings.catch_warnings(), _index_of(path) as folder:
        warnings.simplefilter("ignore")
        try:
            pieces = cfgrib.open_datasets(
                os.path.abspath(path),
                backend_kwargs={"indexpath": f"{folder}/{{short_hash}}.idx", "errors": "raise"},
                decode_timedelta=True,
            )
        except Exception as error:
            raise SourceError(
                f"'{path}' could not be read as GRIB: {str(error) or type(error).__name__}",
                fix="check that the download is complete",
            ) from error
    return [_flatten_steps(piece) for piece in pieces]


@contextlib.contextmanager
def _index_of(path: str) -> Iterator[Path]:
    """Yield the folder of a file's index: the kept one, or a new one that is kept if all goes well.

    An index is a pickle. It is read only from a folder that nobody else can write to.
    """
    home = storage.cache_folder("grib")
    kept = home / _key(path) if home is not None and Path(path).is_file() else None
    if kept is not None and _is_sound(kept):
        kept.touch()
        yield kept
        return
    try:
        made = Path(tempfile.mkdtemp(prefix="new-", dir=home))
    except OSError:  # the disk of the cache is full
        home, made = None, Path(tempfile.mkdtemp(prefix="xaurora-"))
    try:
        with _with_progress(path):
            yield made
        if home is not None and kept is not None:
            shutil.rmtree(kept, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was faster
                made.rename(kept)
            _forget_oldest(home)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _key(path: str) -> str:
    """Return a name that changes with the file and with the version of cfgrib."""
    from importlib.metadata import version

    state = Path(path).stat()
    known = (os.path.abspath(path), state.st_size, state.st_mtime_ns, version("cfgrib"))
    return hashlib.sha256(repr(known).encode()).hexdigest()[:32]


def _is_sound(folder: Path) -> bool:
    """Return whether cfgrib can read the index in a folder; it would print why it cannot."""
    from cfgrib.messages import FileIndex

    try:
        files = list(folder.glob("*.idx"))
        return bool(files) and all(FileIndex.from_indexpath(str(file)) for file in files)
    except Exception:  # whatever a damaged pickle raises
        return False


def _forget_oldest(home: Path) -> None:
    """Remove the indexes that were used longest ago."""
    with contextlib.suppress(OSError):
        kept = sorted(home.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in kept[_KEPT:]:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _with_progress(path: str) -> Iterator[None]:
    """Show how far cfgrib is in a file while it indexes it."""
    from cfgrib.messages import FileStreamItems

    size = Path(path).stat().st_size if Path(path).is_file() else 0
    label = f"Indexing {Path(path).name}"
    real = FileStreamItems.__iter__

    def counted(self: FileStreamItems) -> Iterator[Any]:
        with progress_bar(total=size, label=label, unit="B", shown=True, after=_SHOWN_AFTER) as bar:
            for offset, message in real(self):
                start = offset[0] if isinstance(offset, tuple) else offset
                bar.update(int(start) - bar.n)
                yield offset, message

    FileStreamItems.__iter__ = counted
    try:
        yield
    finally:
        FileStreamItems.__iter__ = real


def _flatten_steps(ds: xr.Dataset) -> xr.Dataset:
    """Flatten the ``(time, step)`` dims of a GRIB forecast to one axis of valid times.

    Raises
    ------
    SourceError
        If several forecasts are valid at the same time.
    """
    if not {"time", "step"} <= set(ds.dims) or ds["valid_time"].ndim != 2:
        return ds
    attrs = {"standard_name": "time", "long_name": "time"}
    # one step after another
    valid = ds["valid_time"].transpose("step", "time").values.ravel()
    moving = {n: da.variable for n, da in ds.data_vars.items() if {"time", "step"} <= set(da.dims)}
    flat = ds.drop_vars(["valid_time", "time", "step", *moving], errors="ignore")
    flat = flat.drop_dims(["time", "step"], errors="ignore").assign_coords(
        time=("time", valid, attrs)
    )
    for name, variable in moving.items():
        steps = [variable.isel(step=i) for i in range(ds.sizes["step"])]
        flat[name] = lazy.concat(steps, "time")
    # cfgrib fills steps that the file lacks with NaN.
    probe = next(iter(flat.data_vars.values()))
    there = np.any([_steps_of(ds[name]) for name in moving], axis=0)
    flat = flat.isel(time=np.flatnonzero(there)).sortby("time")
    if flat.indexes["time"].has_duplicates:
        raise SourceError(
            "several forecasts in this GRIB file are valid at the same time.",
            fix="open it with cfgrib and keep one of them, for example ds.isel(step=slice(0, 12))",
        )
    leading = [d for d in probe.dims if d not in ("time", "step")]
    return flat.transpose("time", *leading)


def _steps_of(da: xr.DataArray) -> np.ndarray:
    """Return which steps of which times have a message, ``(step time)``, without decoding any."""
    source: Any = da.variable._data
    while not hasattr(source, "field_id_index") and hasattr(source, "array"):
        source = source.array
    if not hasattr(source, "field_id_index"):  # read before: some points say what was there
        few = {
            d: np.unique(np.linspace(0, n - 1, min(n, 12)).astype(int))
            for d, n in da.sizes.items()
            if d not in ("time", "step")
        }
        found = da.isel(few).notnull()
    else:
        shape = source.shape[: -source.geo_ndim]
        kept = [axis for axis, size in enumerate(shape) if size > 1]  # the others were squeezed
        values = np.zeros([shape[axis] for axis in kept], bool)
        for place in source.field_id_index:
            values[tuple(place[axis] for axis in kept)] = True
        found = xr.DataArray(values, dims=da.dims[: len(kept)])
    others = [d for d in found.dims if d not in ("time", "step")]
    return found.any(others).transpose("step", "time").values.ravel()

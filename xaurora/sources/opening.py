"""``xaurora.open``: surface, pressure-level and static files of many makes as one lazy Dataset."""

from __future__ import annotations

import glob
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import MissingExtraError, SourceError
from xaurora.fields import recognition
from xaurora.sources import joining
from xaurora.utils import zarr_stores as stores
from xaurora.utils.lazy import as_dask

_GRIB = (".grib", ".grib2", ".grb", ".grb2")
_PathLike = str | os.PathLike[str]


def open(
    *paths: _PathLike | Sequence[_PathLike],
    engine: str | None = None,
    chunks: Any = None,
) -> xr.Dataset:
    """Open files of ERA5, or of a forecast, as one Dataset.

    Lazy: reads coordinates, and one grid point of GRIB forecasts to find which of their steps are
    there.

    Parameters
    ----------
    *paths : str or path
        NetCDF, GRIB or Zarr; globs and URLs; surface, pressure-level and static files in any
        mixture.
    engine : str, optional
        Passed to :func:`xarray.open_dataset`; by default NetCDF 4 is read with h5netcdf, and else
        the file's ending decides.
    chunks : optional
        Passed to xarray: ``{}`` for dask with the file's own chunks. Files that continue one
        another in time always use dask.

    Returns
    -------
    Dataset
        In the files' own names. A surface ``z`` beside a pressure-level ``z`` is called
        ``geopotential_at_surface``; hourly precipitation is accumulated over six hours before it
        meets 6-hourly states; only times that all files share are kept.

    Raises
    ------
    SourceError
        A file is missing, cannot be read, or does not fit the others.
    MissingExtraError
        GRIB without ``xaurora[grib]``, a cloud URL without ``xaurora[cloud]``.

    Examples
    --------
    >>> xaurora.open("era5/*.nc")  # doctest: +SKIP
    >>> xaurora.open("surface.nc", "pressure_levels.nc", "static.nc", chunks={})  # doctest: +SKIP
    """
    files = expand(paths)
    pieces: list[xr.Dataset] = []
    for file in files:
        pieces.extend(_read(file, engine, chunks))
    pieces = [piece for piece in pieces if piece.data_vars]
    if not pieces:
        raise SourceError(
            "none of the files holds a variable.", fix="look at them with xr.open_dataset(path)"
        )
    if any(recognition.is_forecast(piece) for piece in pieces):
        if len(pieces) > 1:
            raise SourceError(
                "one of the files is a forecast, which is opened alone.",
                fix="xaurora.open(forecast), xaurora.open(fields)",
            )
        return pieces[0]
    return joining.combine(pieces)


def expand(paths: Sequence[Any]) -> list[str]:
    """Paths and globs → existing files, each once.

    Raises
    ------
    SourceError
        One of them is no path, or nothing is there.
    """
    flat: list[str] = []
    for path in paths:
        several = [path] if isinstance(path, str | os.PathLike) else path
        if not isinstance(several, Sequence) or not all(
            isinstance(p, str | os.PathLike) for p in several
        ):
            raise SourceError(f"{path!r} is no path.", fix="xaurora.open('era5/*.nc')")
        flat.extend(map(os.fspath, several))
    if not flat:
        raise SourceError("no path was given.", fix="xaurora.open('era5/*.nc')")
    files: list[str] = []
    for path in flat:
        if "://" in path or Path(path).exists():
            files.append(path)
        elif found := sorted(glob.glob(os.path.expanduser(path))):
            files.extend(found)
        else:
            raise SourceError(
                f"no file matches '{path}' (looked in {Path.cwd()}).",
                fix="give an existing path or glob",
            )
    return list(dict.fromkeys(files))


def _read(path: str, engine: str | None, chunks: Any) -> list[xr.Dataset]:
    suffix = Path(path.rstrip("/")).suffix.lower()
    if ".3IMERG." in Path(path).name:
        raise SourceError(f"'{path}' is GPM IMERG.", fix=f"xaurora.open_imerg('{path}')")
    if engine == "cfgrib" or (engine is None and suffix in _GRIB):
        return _read_grib(path, chunks)
    if path.startswith(("gs://", "gcs://")):
        try:
            import gcsfs  # noqa: F401
        except ImportError:
            raise MissingExtraError(
                f"'{path}' is on Google Cloud Storage.", fix="pip install 'xaurora[cloud]'"
            ) from None
    if engine is None and _is_hdf5(path):
        engine = "h5netcdf"
    if engine is None and (
        suffix == ".zarr" or any((Path(path) / name).exists() for name in ("zarr.json", ".zgroup"))
    ):
        engine = "zarr"
    options: dict[str, Any] = {"engine": engine, "chunks": chunks, "decode_timedelta": True}
    if engine == "zarr" and "://" not in path:
        options["consolidated"] = _is_consolidated(Path(path))
    try:
        opened = xr.open_dataset(path, **options)
        stores.refuse_unfinished(opened.attrs, path)
        return [opened]
    except SourceError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SourceError(
            f"'{path}' could not be opened: {error}",
            fix="give engine=..., or check that the download is complete",
        ) from error


def _is_hdf5(path: str) -> bool:
    """Whether a local file is NetCDF 4, to be read with h5netcdf: netCDF4 brings the process down
    when a file that holds strings, such as the ``expver`` of CDS files, is opened while it is
    open already (Unidata/netcdf-c, issue 2510; HDFGroup/hdf5, issue 5359).
    """
    if "://" in path or not Path(path).is_file():
        return False
    try:
        with Path(path).open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False  # opening it says what is wrong


def _is_consolidated(path: Path) -> bool:
    """Whether a store says so: xarray warns where it has to find out that it is not."""
    if (path / "zarr.json").is_file():
        try:
            return (
                json.loads((path / "zarr.json").read_text(encoding="utf-8")).get(
                    "consolidated_metadata"
                )
                is not None
            )
        except (OSError, ValueError, AttributeError):
            return False  # opening it says what is wrong
    return (path / ".zmetadata").is_file()


def _read_grib(path: str, chunks: Any) -> list[xr.Dataset]:
    try:
        import cfgrib
    except (ImportError, RuntimeError):
        raise MissingExtraError(f"'{path}' is GRIB.", fix="pip install 'xaurora[grib]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # cfgrib merges with xarray's defaults of the time and says so for every file
        try:
            # No index file: the folder of the data may be read-only, and a stale index is a trap.
            pieces = cfgrib.open_datasets(
                path, backend_kwargs={"indexpath": ""}, decode_timedelta=True
            )
        except Exception as error:
            raise SourceError(
                f"'{path}' could not be read as GRIB: {error}",
                fix="check that the download is complete",
            ) from error
    pieces = [_flatten_steps(piece) for piece in pieces]
    return [piece if chunks is None else piece.chunk(chunks) for piece in pieces]


def _flatten_steps(ds: xr.Dataset) -> xr.Dataset:
    """GRIB's (time, step) with a 2-D ``valid_time`` → one time axis of valid times."""
    if not {"time", "step"} <= set(ds.dims) or ds["valid_time"].ndim != 2:
        return ds
    valid = ds["valid_time"].values.ravel()
    ds = as_dask(ds, "time")
    flat = ds.drop_vars("valid_time").stack(_flat=("time", "step")).reset_index("_flat", drop=True)
    attrs = {"standard_name": "time", "long_name": "time"}
    flat = (
        flat.drop_vars([c for c in ("time", "step") if c in flat.coords])
        .rename(_flat="time")
        .assign_coords(time=("time", valid, attrs))
    )
    # Steps that the file lacks come as NaN throughout; points over the whole field tell (over sea
    # ERA5-Land has none).
    probe = next(iter(flat.data_vars.values()))
    there = np.zeros(flat.sizes["time"], bool)
    for da in flat.data_vars.values():
        few = {
            d: np.unique(np.linspace(0, n - 1, min(n, 12)).astype(int))
            for d, n in da.sizes.items()
            if d != "time"
        }
        values = da.isel(few).transpose("time", ...).values
        there |= np.isfinite(values).reshape(len(values), -1).any(axis=1)
    flat = flat.isel(time=np.flatnonzero(there)).sortby("time")
    if flat.indexes["time"].has_duplicates:
        raise SourceError(
            "several forecasts of this GRIB file hold for the same time.",
            fix="keep one, for example ds.isel(step=slice(0, 12)), before opening it here",
        )
    leading = [d for d in probe.dims if d not in ("time", "step")]
    return flat.transpose("time", *leading)

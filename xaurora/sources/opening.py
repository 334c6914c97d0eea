"""``xaurora.open``: open surface, pressure-level and static files as one lazy Dataset."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import LevelError, MissingVariableError, SourceError
from xaurora.fields import labels, recognition
from xaurora.sources import grib, joining, remote
from xaurora.utils import zarr_stores as stores
from xaurora.utils.types import Chunks

_GRIB = (".grib", ".grib2", ".grb", ".grb2")
_PathLike = str | os.PathLike[str]


def open(
    *paths: _PathLike | Sequence[_PathLike],
    engine: str | None = None,
    chunks: Chunks = None,
    variables: Sequence[str] | None = None,
    levels: Sequence[float] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Open files of ERA5, or of a forecast, as one Dataset.

    Lazy. Only coordinates are read, and for GRIB forecasts a sparse sample of grid points that
    shows which steps the file holds.

    Parameters
    ----------
    *paths : str or path
        NetCDF, GRIB or Zarr files, globs, URLs, or the names of public stores: ``"arco-era5"``,
        ``"weatherbench2:0.25deg"``, ``"weatherbench2:1.5deg"`` or ``"weatherbench2:5.625deg"``.
        Surface, pressure-level and static files can be mixed.
    engine : str, optional
        Passed to :func:`xarray.open_dataset`. By default NetCDF 4 is read with h5netcdf, and the
        engine for other formats is chosen from the file name's suffix.
    chunks : optional
        ``{}`` for dask arrays with the files' own chunks, or chunks by dim. By default variables
        are read when they are indexed, without dask.
    variables : sequence of str, optional
        Keep only these variables, given by their names in the files or by Aurora's (``"2t"``).
        Unrecognised variables can only be given by their names in the files.
    levels : sequence of float, optional
        Keep only these pressure levels in hPa.
    storage_options : mapping, optional
        For Zarr stores at a URL, passed to ``obstore.store.from_url``. Requests are anonymous by
        default.

    Returns
    -------
    Dataset
        With the variable names of the files. If there is both a surface ``z`` and a pressure-level
        ``z``, the surface one is renamed ``geopotential_at_surface``. Hourly precipitation is
        accumulated over six hours before it is merged with 6-hourly states. Only times that all
        files share are kept.

    Raises
    ------
    SourceError
        If a file is missing, cannot be read, or cannot be merged with the others.
    MissingVariableError
        If one of ``variables`` is not there.
    LevelError
        If one of ``levels`` is not there.
    MissingExtraError
        If a GRIB file is opened without ``xaurora[grib]``, or a cloud URL without
        ``xaurora[cloud]``.

    Examples
    --------
    >>> xaurora.open("era5/*.nc")  # doctest: +SKIP
    >>> xaurora.open("surface.nc", "pressure_levels.nc", "static.nc", chunks={})  # doctest: +SKIP
    """
    files = expand(paths)
    pieces: list[xr.Dataset] = []
    for file in files:
        pieces.extend(_read(file, engine, storage_options))
    pieces = [_with_ends(piece) for piece in pieces if piece.data_vars]
    if not pieces:
        raise SourceError(
            "the files contain no variables.", fix="inspect them with xr.open_dataset(path)"
        )
    if any(recognition.is_forecast(piece) for piece in pieces):
        if len(pieces) > 1:
            raise SourceError(
                "one of the files is a forecast, which must be opened on its own.",
                fix="xaurora.open(forecast), xaurora.open(fields)",
            )
        return _chunked(_selected(pieces[0], variables, levels), chunks)
    return _chunked(_selected(joining.combine(pieces), variables, levels), chunks)


def _with_ends(ds: xr.Dataset) -> xr.Dataset:
    """Relabel totals by the end of their period, if the file has time bounds."""
    if recognition.is_forecast(ds) or not any(
        "bounds" in c.attrs or "bounds" in c.encoding for c in ds.coords.values()
    ):
        return ds
    return labels.by_end(ds, recognition.recognise(ds))


def _selected(
    ds: xr.Dataset, variables: Sequence[str] | None, levels: Sequence[float] | None
) -> xr.Dataset:
    if variables is None and levels is None:
        return ds
    found = recognition.recognise(ds)
    if variables is not None:
        wanted = [variables] if isinstance(variables, str) else list(variables)
        sources = {key[1]: item.source for key, item in found.fields.items()}
        names = [n if n in ds else sources.get(n, n) for n in wanted]
        if missing := [n for n in names if n not in ds]:
            raise MissingVariableError(
                f"{missing} is not in the data, which hold {sorted(map(str, ds.data_vars))}.",
                fix=f"variables={sorted(sources.values())[:3]}",
            )
        ds = ds[names]
    if levels is not None and "level" in found.axes:
        dim = found.axes["level"].dim
        have = list(found.levels)
        wanted_levels = np.atleast_1d(np.asarray(levels, float)).tolist()
        if missing_levels := [v for v in wanted_levels if v not in have]:
            raise LevelError(
                f"the levels {missing_levels} hPa are not in the data, which have {have}.",
                fix=f"levels={have[:3]}",
            )
        if dim in ds.dims:
            ds = ds.isel({dim: [have.index(v) for v in wanted_levels]})
    return ds


def _chunked(ds: xr.Dataset, chunks: Chunks) -> xr.Dataset:
    """Return the data as dask arrays, by default with the chunks of the files."""
    if chunks is None or isinstance(chunks, str | int):
        return ds if chunks is None else ds.chunk(chunks)
    stored: dict[Any, Any] = {}
    for da in ds.data_vars.values():
        for dim, size in da.encoding.get("preferred_chunks", {}).items():
            stored[dim] = max(size, stored.get(dim, 1))
    return ds.chunk({dim: size for dim, size in {**stored, **chunks}.items() if dim in ds.dims})


def expand(paths: Sequence[Any]) -> list[str]:
    """Expand paths and globs to a list of existing files without duplicates.

    URLs are kept as they are.

    Raises
    ------
    SourceError
        If an argument is not a path, or nothing matches it.
    """
    flat: list[str] = []
    for path in paths:
        several = [path] if isinstance(path, str | os.PathLike) else path
        if not isinstance(several, Sequence) or not all(
            isinstance(p, str | os.PathLike) for p in several
        ):
            raise SourceError(f"{path!r} is not a path.", fix="xaurora.open('era5/*.nc')")
        flat.extend(map(os.fspath, several))
    if not flat:
        raise SourceError("no path was given.", fix="xaurora.open('era5/*.nc')")
    files: list[str] = []
    for path in flat:
        if "://" in path or Path(path).exists():
            files.append(path)
        elif (url := remote.url_of(path)) != path:
            files.append(url)
        elif found := sorted(glob.glob(os.path.expanduser(path))):
            files.extend(found)
        else:
            raise SourceError(
                f"no file matches '{path}' (current directory: {Path.cwd()}).",
                fix="give an existing path or glob",
            )
    return list(dict.fromkeys(files))


def read_as_stored(path: str) -> xr.Dataset:
    """Open one file as it is, such as a file of scores, without recognising fields in it."""
    return _read(expand([path])[0], None)[0]


def _read(
    path: str, engine: str | None, storage_options: Mapping[str, Any] | None = None
) -> list[xr.Dataset]:
    suffix = Path(path.rstrip("/")).suffix.lower()
    if ".3IMERG." in Path(path).name:
        raise SourceError(
            f"'{path}' is GPM IMERG, which xaurora.open does not read.",
            fix=f"xaurora.open_imerg('{path}')",
        )
    if engine == "cfgrib" or (engine is None and suffix in _GRIB):
        return grib.read(path)
    if engine in (None, "zarr") and remote.is_remote_zarr(path):
        opened = remote.open_zarr(path, storage_options)
        stores.require_complete(opened.attrs, path)
        return [opened]
    if engine is None and _is_hdf5(path):
        engine = "h5netcdf"
    if engine is None and (
        suffix == ".zarr" or any((Path(path) / name).exists() for name in ("zarr.json", ".zgroup"))
    ):
        engine = "zarr"
    options: dict[str, Any] = {"engine": engine, "chunks": None, "decode_timedelta": True}
    if engine == "zarr" and "://" not in path:
        options["consolidated"] = _is_consolidated(Path(path))
    try:
        opened = xr.open_dataset(path, **options)
        stores.require_complete(opened.attrs, path)
        return [opened]
    except SourceError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SourceError(
            f"'{path}' could not be opened: {error}",
            fix="give engine=..., or check that the download is complete",
        ) from error


def _is_hdf5(path: str) -> bool:
    """Return whether a path is a local NetCDF 4 file, which is read with h5netcdf.

    netCDF4 crashes the process when a file that holds strings, such as the ``expver`` of CDS files,
    is opened while it is already open (Unidata/netcdf-c, issue 2510; HDFGroup/hdf5, issue 5359).
    """
    if "://" in path or not Path(path).is_file():
        return False
    try:
        with Path(path).open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False  # opening it raises the error


def _is_consolidated(path: Path) -> bool:
    """Return whether a Zarr store has consolidated metadata.

    If ``consolidated`` is not given, xarray tries both and may warn.
    """
    if (path / "zarr.json").is_file():
        try:
            return (
                json.loads((path / "zarr.json").read_text(encoding="utf-8")).get(
                    "consolidated_metadata"
                )
                is not None
            )
        except (OSError, ValueError, AttributeError):
            return False  # opening it raises the error
    return (path / ".zmetadata").is_file()

"""Static fields from the file that comes with Aurora 1.5, read without running code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xaurora.errors import GridError, MissingVariableError, SourceError
from xaurora.fields.grid.lattice import Grid

_ALLOWED = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}
"""What a pickle of NumPy arrays calls; none of it runs code from the file."""
_CLOSE = 1e-3  # degrees


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def read_static_file(path: str | Path, names: tuple[str, ...], grid: Grid) -> dict[str, np.ndarray]:
    """Return static fields on a grid.

    Parameters
    ----------
    path : path
        A pickle or ``.npz`` of arrays ``(h, w)`` by name. They may be accompanied by ``latitude``
        and ``longitude`` (or ``lat`` and ``lon``); otherwise they cover the globe from 90° N and
        0° E, with both poles or without the southern one.
    names : tuple of str
        The fields wanted.
    grid : Grid
        Its points must be points of the file.

    Raises
    ------
    SourceError
        The file is missing or damaged, or would run code when it is read.
    MissingVariableError
        A field is not in it.
    GridError
        It has another grid.
    """
    path = Path(path)
    found = _arrays(path)
    if missing := [name for name in names if name not in found]:
        raise MissingVariableError(
            f"the static file '{path}' lacks {len(missing)} of {len(names)} fields:"
            f" {', '.join(missing)}.",
            fix=(
                "download it again (hf download microsoft/aurora aurora-v1.5-static.pickle), or add"
                " the static fields of ERA5 to the data"
            ),
        )
    fields = {name: np.asarray(found[name], np.float32) for name in names}
    shapes = {values.shape for values in fields.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise GridError(
            f"the fields in '{path}' have shapes {sorted(map(str, shapes))}, and one shape (rows,"
            " columns) is expected.",
            fix="static_file='aurora-v1.5-static.pickle', as it was published",
        )
    latitude, longitude = _axes(found, next(iter(shapes)))
    rows = _positions(latitude, grid.latitude, None)
    columns = _positions(longitude % 360.0, grid.true_longitude % 360.0, 360.0)
    if rows is None or columns is None:
        raise GridError(
            f"the static file '{path}' has {len(latitude)} × {len(longitude)} points, and points of"
            f" the data ({grid.shape[0]} × {grid.shape[1]}, from {grid.latitude[0]:g}°N"
            f" {grid.longitude[0]:g}°E) are not among them.",
            fix=(
                "add the static fields of ERA5 on the grid of the data, and leave static_file= out"
            ),
        )
    return {name: np.ascontiguousarray(v[np.ix_(rows, columns)]) for name, v in fields.items()}


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    """Return the arrays in a file."""
    if not path.is_file():
        raise SourceError(
            f"there is no static file '{path}'.",
            fix=(
                "hf download microsoft/aurora aurora-v1.5-static.pickle, and pass its path:"
                " static_file='path/to/aurora-v1.5-static.pickle'"
            ),
        )
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                file.seek(0)
                with np.load(file, allow_pickle=False) as stored:
                    found: Any = dict(stored)
            else:
                file.seek(0)
                found = _ArraysOnly(file).load()
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"the static file '{path}' is not a plain pickle of arrays ({error}): reading it could"
            " run code, so it was not read.",
            fix=(
                'if you trust it, convert it: python -c "import numpy, pickle; d ='
                f" pickle.load(open('{path}', 'rb')); numpy.savez('static.npz', **{{k:"
                " numpy.asarray(v) for k, v in d.items()})\"; then static_file='static.npz'"
            ),
        ) from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise SourceError(
            f"the static file '{path}' is damaged: {type(error).__name__}: {error}",
            fix="download it again: hf download microsoft/aurora aurora-v1.5-static.pickle",
        ) from error
    plain = isinstance(found, Mapping) and all(
        isinstance(v, np.ndarray) and np.issubdtype(v.dtype, np.number) for v in found.values()
    )
    if not plain:
        raise SourceError(
            f"the static file '{path}' holds no numeric arrays by name.",
            fix="static_file='aurora-v1.5-static.pickle', as it was published",
        )
    return found


def _axes(found: Mapping[str, np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return latitudes and longitudes of a file's fields."""
    rows, columns = shape
    for lat, lon in (("latitude", "longitude"), ("lat", "lon")):
        if (
            lat in found
            and lon in found
            and (found[lat].shape, found[lon].shape)
            == (
                (rows,),
                (columns,),
            )
        ):
            return np.asarray(found[lat], np.float64), np.asarray(found[lon], np.float64)
    spacing = 360.0 / columns
    return 90.0 - np.arange(rows) * spacing, np.arange(columns) * spacing


def _positions(stored: np.ndarray, wanted: np.ndarray, period: float | None) -> np.ndarray | None:
    """Return where the wanted coordinates are stored, or None if any is not."""
    distance = np.abs(stored[None] - wanted[:, None])
    if period is not None:
        distance = np.minimum(distance, period - distance)
    places = distance.argmin(axis=1)
    return places if (distance[np.arange(len(wanted)), places] < _CLOSE).all() else None

"""Base class of lazy arrays, which are computed from their source when they are indexed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from xaurora.errors import SourceError, XauroraError
from xaurora.utils.types import Given

_FAILURES = (OSError, ValueError, RuntimeError, KeyError, EOFError)


def read(variable: xr.Variable, name: str, when: str = "") -> np.ndarray:
    """Return the values of a variable.

    Raises
    ------
    SourceError
        If reading fails: a file is damaged or missing, or a server does not respond.
    """
    try:
        return np.asarray(variable.values)
    except XauroraError:
        raise
    except _FAILURES as error:
        raise SourceError(
            f"'{name}'{when} could not be read: {type(error).__name__}: {error}",
            fix="check that the file is complete, or that the server answers",
        ) from error


def is_lazy(variable: xr.Variable) -> bool:
    """Return whether values still have to be read."""
    return not variable._in_memory


class Indexed(BackendArray):
    """A lazy array, computed from its source when it is indexed."""

    def __init__(self, shape: tuple[int, ...], dtype: Given) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self.read
        )

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Return the values at integers, slices and arrays of integers, one for each dim."""
        raise NotImplementedError


def variable_of(
    array: Indexed, like: xr.Variable, dims: Sequence[Any] | None = None
) -> xr.Variable:
    """Return an array as a variable with the attributes, and by default the dims, of another."""
    kept = {k: like.encoding[k] for k in ("preferred_chunks", "source") if k in like.encoding}
    return xr.Variable(
        like.dims if dims is None else tuple(dims),
        indexing.LazilyIndexedArray(array),
        like.attrs,
        kept,
        fastpath=True,
    )


def as_array(variable: xr.Variable, like: xr.DataArray, coords: Given = None) -> xr.DataArray:
    """Return a variable as a DataArray, with the name and, by default, coordinates of another.

    The encoding, which says how chunks are stored, is kept; ``xr.DataArray`` drops it.
    """
    da = xr.DataArray(variable, like.coords if coords is None else coords, name=like.name)
    da.encoding = dict(variable.encoding)
    return da


# --- indices ---


def positions_at(index: Given, size: int) -> np.ndarray:
    """Return an integer, a slice or an array of integers as an array."""
    if isinstance(index, slice):
        return np.arange(*index.indices(size))
    return np.atleast_1d(np.asarray(index))


def positions_of(key: tuple[Any, ...], shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return the index of each dim as an array of positions."""
    return [positions_at(index, size) for index, size in zip(key, shape, strict=True)]


def has_arrays(key: tuple[Any, ...]) -> bool:
    """Return whether an index contains arrays of positions."""
    return any(isinstance(index, np.ndarray) and index.ndim for index in key)


def is_integer(index: Given) -> bool:
    """Return whether the index of one dim is an integer, which drops the dim."""
    return np.ndim(index) == 0 and not isinstance(index, slice)


def split_key(key: tuple[Any, ...], axis: int, size: int) -> tuple[np.ndarray, int, bool]:
    """Return the positions along an axis, its place in the result, and whether it is dropped."""
    place = sum(not is_integer(index) for index in key[:axis])
    return positions_at(key[axis], size), place, is_integer(key[axis])


def result_shape(
    key: tuple[Any, ...], shape: tuple[int, ...], known: dict[int, int] | None = None
) -> tuple[int, ...]:
    """Return the shape of the result. Axes in ``known`` have that length and are kept."""
    known = known or {}
    return tuple(
        known[axis] if axis in known else len(positions_at(index, size))
        for axis, (index, size) in enumerate(zip(key, shape, strict=True))
        if axis in known or not is_integer(index)
    )


def as_slice(positions: np.ndarray) -> np.ndarray | slice:
    """Return positions as a slice if they are evenly spaced, else unchanged.

    Several arrays of positions make a fancy index, which takes ten times as long to read.
    """
    if len(positions) == 0:
        return positions
    step = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    if step and positions.min() >= 0 and (np.diff(positions) == step).all():
        stop = int(positions[-1]) + (1 if step > 0 else -1)
        return slice(int(positions[0]), stop if stop >= 0 else None, step)
    return positions


# --- concatenation ---


class _Concatenated(Indexed):
    def __init__(self, parts: list[xr.Variable], axis: int) -> None:
        lengths = [part.shape[axis] for part in parts]
        shape = list(parts[0].shape)
        shape[axis] = sum(lengths)
        super().__init__(tuple(shape), np.result_type(*(part.dtype for part in parts)))
        self.parts, self.axis = parts, axis
        self.starts = np.concatenate([[0], np.cumsum(lengths)])

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted, place, single = split_key(key, self.axis, self.shape[self.axis])
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        numbers = np.unique(owners)
        if len(numbers) == 1:
            out = self._of_part(key, int(numbers[0]), wanted)
        else:
            out = np.empty(result_shape(key, self.shape, {self.axis: len(wanted)}), self.dtype)
            for number in numbers:
                here = owners == number
                values = self._of_part(key, int(number), wanted[here])
                out[(slice(None),) * place + (here,)] = values
        return out.take(0, place) if single else out.astype(self.dtype, copy=False)

    def _of_part(self, key: tuple[Any, ...], number: int, wanted: np.ndarray) -> np.ndarray:
        local = as_slice(wanted - self.starts[number])
        return self.parts[number][(*key[: self.axis], local, *key[self.axis + 1 :])].values


def join(parts: Sequence[xr.Variable], dim: str) -> xr.Variable:
    """Concatenate variables without dask arrays along ``dim``. Lazy if any of them is."""
    made = variable_of(_Concatenated(list(parts), parts[0].get_axis_num(dim)), parts[0])
    return made if any(map(is_lazy, parts)) else made.load()

"""Arrays that are read when they are indexed, without dask.

xarray reads only the indexed part of a variable, however long the file is. The
functions here keep that property through conversions, sums over time and concatenation, where
arithmetic would read the whole variable. With dask, every frame would traverse the task graph
of the whole archive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from xaurora.utils.dask_arrays import without_dask
from xaurora.utils.indexed import (
    Indexed,
    as_array,
    as_slice,
    has_arrays,
    is_integer,
    is_lazy,
    join,
    positions_of,
    result_shape,
    split_key,
    variable_of,
)
from xaurora.utils.types import Given

MISSING = -1
"""Position that stands for a missing frame, filled with NaN."""
NOTHING = -2
"""Position that stands for a frame of zeros."""
_BLOCK = 64 * 1024**2  # bytes of a block that is read at once

Function = Callable[[np.ndarray], Any]


# --- conversions ----------------------------------------------------------------------------------


class _Mapped(Indexed):
    def __init__(self, source: xr.Variable, function: Function, dtype: Given) -> None:
        super().__init__(source.shape, dtype)
        self.source, self.function = source, function

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        return self.function(self.source[key].values).astype(self.dtype, copy=False)


def map_values(variable: xr.Variable, function: Function, dtype: Given) -> xr.Variable:
    """Apply ``function`` to a variable lazily, to each part as it is read.

    Values in memory are converted at once.

    Parameters
    ----------
    variable : Variable
    function : callable
        Takes and returns arrays of the same shape, point by point.
    dtype : dtype
        Of the result.
    """
    variable = without_dask(variable)
    if not is_lazy(variable):
        return variable._replace(data=function(variable.values).astype(dtype, copy=False))
    return variable_of(_Mapped(variable, function, dtype), variable)


def map_array(da: xr.DataArray, function: Function, dtype: Given) -> xr.DataArray:
    """Return a DataArray with ``function`` of the values; see :func:`map_values`."""
    variable = map_values(da.variable, function, dtype)
    return as_array(variable, da)


class _Masked(Indexed):
    def __init__(self, source: xr.Variable, share: xr.Variable, least: float) -> None:
        super().__init__(source.shape, source.dtype)
        self.source, self.share, self.least = source, share, least

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        values, share = self.source[key].values, self.share[key].values
        return np.where(share >= self.least, values, np.nan).astype(self.dtype, copy=False)


def where_at_least(da: xr.DataArray, share: xr.DataArray, least: float) -> xr.DataArray:
    """Return the values where ``share``, with the same dims, is at least ``least``, else NaN."""
    source, mask = without_dask(da.variable), without_dask(share.variable)
    made = variable_of(_Masked(source, mask, least), source)
    return as_array(made, da)


class _Fields(Indexed):
    def __init__(
        self, source: xr.Variable, function: Function, shape: tuple[int, int], dtype: Given
    ) -> None:
        super().__init__((*source.shape[:-2], *shape), dtype)
        self.source, self.function = source, function

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        values = self.function(self.source[key[:-2]].values)
        rows, columns = key[-2:]
        values = values[..., columns]  # the integers last, because each drops an axis
        values = values[..., rows, :] if not is_integer(columns) else values[..., rows]
        return values.astype(self.dtype, copy=False)


def map_fields(
    variable: xr.Variable,
    function: Function,
    shape: tuple[int, int],
    dtype: Given,
    dims: Sequence[Any] | None = None,
) -> xr.Variable:
    """Apply ``function`` lazily to fields ``(..., h, w)``, when they are read.

    Parameters
    ----------
    variable : Variable, ``(..., h, w)``
    function : callable
        Takes arrays ``(..., h, w)`` and returns them on a grid of the given ``shape``.
    shape : (int, int)
        Rows and columns of the result.
    dtype : dtype
        Of the result.
    dims : sequence, optional
        Dims of the result, by default those of the variable.
    """
    variable = without_dask(variable)
    return variable_of(_Fields(variable, function, shape, dtype), variable, dims)


class _Frames(Indexed):
    def __init__(
        self, shape: tuple[int, ...], dtype: Given, function: Callable[[int], np.ndarray]
    ) -> None:
        super().__init__(shape, dtype)
        self.function = function

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted, _, single = split_key(key, 0, self.shape[0])
        rest = positions_of(key[1:], self.shape[1:])
        out = np.stack([self.function(int(i))[np.ix_(*rest)] for i in wanted])
        out = out.reshape(result_shape(key, self.shape, {0: len(wanted)}))
        return out[0] if single else out


def from_frames(
    function: Callable[[int], np.ndarray],
    dims: Sequence[Any],
    shape: tuple[int, ...],
    dtype: Given,
) -> xr.Variable:
    """Return a lazy variable whose slices along the first dim are computed by ``function``."""
    array = _Frames(shape, dtype, function)
    return xr.Variable(dims, indexing.LazilyIndexedArray(array), fastpath=True)


class _Taken(Indexed):
    def __init__(self, source: xr.Variable, axis: int, positions: np.ndarray) -> None:
        super().__init__(
            (*source.shape[:axis], len(positions), *source.shape[axis + 1 :]), source.dtype
        )
        self.source, self.axis, self.positions = source, axis, positions

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted, place, single = split_key(key, self.axis, self.shape[self.axis])
        chosen = self.positions[wanted]
        first = int(chosen.min(initial=len(self.source)))
        part = slice(first, int(chosen.max(initial=0)) + 1)
        values = self.source[(*key[: self.axis], part, *key[self.axis + 1 :])].values
        out = values.take(chosen - first, place)
        return out[(slice(None),) * place + (0,)] if single else out


def take(variable: xr.Variable, dim: str, positions: Sequence[int]) -> xr.Variable:
    """Return a variable at some positions along a dim.

    If a stored chunk holds several of them, it is read whole: Zarr's own selection of a list takes
    several times as long.
    """
    places = np.asarray(positions, int)
    stored = int(variable.encoding.get("preferred_chunks", {}).get(dim, 1))
    if not is_lazy(variable) or stored == 1 or not len(places):
        return variable.isel({dim: as_slice(places)})
    return variable_of(_Taken(variable, variable.get_axis_num(dim), places), variable)


# --- order of dims --------------------------------------------------------------------------------


class _Transposed(Indexed):
    def __init__(self, source: xr.Variable, axes: tuple[int, ...]) -> None:
        super().__init__(tuple(source.shape[axis] for axis in axes), source.dtype)
        self.source, self.axes = source, axes

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        stored = [key[self.axes.index(axis)] for axis in range(len(key))]
        values = self.source[tuple(stored)].values
        kept = [axis for axis in range(len(key)) if not is_integer(stored[axis])]
        return values.transpose([kept.index(axis) for axis in self.axes if axis in kept])


def transpose(variable: xr.Variable, dims: Sequence[Any]) -> xr.Variable:
    """Return a variable with its dims in another order.

    xarray's own lazy transpose reads point by point.
    """
    if variable.dims == tuple(dims) or not is_lazy(variable):
        return variable.transpose(*dims)
    axes = tuple(variable.get_axis_num(dim) for dim in dims)
    return variable_of(_Transposed(variable, axes), variable, dims)


class _Gathered(Indexed):
    """Values at indexed points of some dims. The dims of the index come first."""

    def __init__(self, source: xr.Variable, index: tuple[np.ndarray, ...]) -> None:
        self.count = index[0].ndim
        super().__init__((*index[0].shape, *source.shape[len(index) :]), source.dtype)
        self.source, self.index = source, index

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        chosen, rest = key[: self.count], key[self.count :]
        grid = np.ix_(*positions_of(chosen, self.shape[: self.count]))
        points = np.stack([index[grid].ravel() for index in self.index])
        unique, place = np.unique(points, axis=1, return_inverse=True)
        frames = [self.source[(*map(int, point), *rest)].values for point in unique.T]
        values = np.stack(frames)[place.ravel()]
        return values.reshape(result_shape(key, self.shape))


def gather(da: xr.DataArray, index: dict[str, np.ndarray], dims: Sequence[str]) -> xr.DataArray:
    """Select points along one or several dims, reading each point once. Lazy.

    Parameters
    ----------
    da : DataArray
    index : dict
        Dim → positions along it; all have the same shape.
    dims : sequence of str
        Names of the new dims, which come first.

    Returns
    -------
    DataArray
        Without coordinates along the new dims.
    """
    rest = [dim for dim in da.dims if dim not in index]
    source = transpose(without_dask(da.variable), [*index, *rest])
    array = _Gathered(source, tuple(np.asarray(values) for values in index.values()))
    made = xr.Variable((*dims, *rest), indexing.LazilyIndexedArray(array), da.attrs)
    coords = {name: c for name, c in da.coords.items() if not set(c.dims) & set(index)}
    return as_array(made, da, coords)


class _Expanded(Indexed):
    def __init__(self, source: xr.Variable) -> None:
        super().__init__((1, *source.shape), source.dtype)
        self.source = source

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        values = self.source[key[1:]].values
        return values if is_integer(key[0]) else values[None][key[0]]


def expand(variable: xr.Variable, dim: str) -> xr.Variable:
    """Prepend a dim of length 1. Lazy, unlike ``Variable.set_dims``."""
    if not is_lazy(variable):
        return variable.set_dims({dim: 1, **dict(variable.sizes)})
    return variable_of(_Expanded(variable), variable, (dim, *variable.dims))


# --- sums over time -------------------------------------------------------------------------------


class _Combined(Indexed):
    def __init__(
        self,
        source: xr.Variable,
        axis: int,
        positions: Given,
        weights: tuple[float, ...],
        clip: str | None,
        dtype: Given,
    ) -> None:
        shape = (*source.shape[:axis], len(positions), *source.shape[axis + 1 :])
        super().__init__(shape, dtype)
        self.source, self.axis, self.positions = source, axis, positions
        self.weights, self.clip = weights, clip
        self._last: tuple[Any, np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted, place, single = split_key(key, self.axis, self.shape[self.axis])
        shape = result_shape(key, self.shape, {self.axis: len(wanted)})
        out = np.empty(shape, self.dtype)
        frame = out.size // max(len(wanted), 1)
        length = max(_BLOCK // (8 * max(frame, 1)), 1)
        for start in range(0, len(wanted), length):
            part = slice(start, start + length)
            at = (slice(None),) * place + (part,)
            out[at] = self._sum(key, self.positions[wanted[part]], place, out[at].shape)
        return out[(slice(None),) * place + (0,)] if single else out

    def _sum(
        self, key: tuple[Any, ...], rows: np.ndarray, place: int, shape: tuple[int, ...]
    ) -> np.ndarray:
        needed = np.unique(rows[rows >= 0])
        values = self._frames(key, needed, place)
        total = np.zeros(shape, np.float64)
        for column, weight in zip(rows.T, self.weights, strict=True):
            if values is None:
                part = np.zeros(shape, np.float64)
            else:
                at = np.searchsorted(needed, np.maximum(column, needed[0]))
                part = values.take(at, place).astype(np.float64)
            for position, fill in ((MISSING, np.nan), (NOTHING, 0.0)):
                if (absent := column == position).any():
                    part[(slice(None),) * place + (absent,)] = fill
            if self.clip == "parts":
                part = np.clip(part, 0.0, None)
            total += part if weight == 1.0 else weight * part
        return np.asarray(np.clip(total, 0.0, None) if self.clip == "total" else total)

    def _frames(self, key: tuple[Any, ...], needed: np.ndarray, place: int) -> np.ndarray | None:
        """Read frames at increasing positions, consecutive ones with one read.

        The last frames are cached, because the sums of the next block start with them.
        """
        if not len(needed):
            return None
        before, after = key[: self.axis], key[self.axis + 1 :]
        rest = None if has_arrays((*before, *after)) else (before, after)
        known, values = np.array([], int), None
        if rest is not None and (last := self._last) is not None and last[0] == rest:
            known, values = last[1], last[2]
        kept = np.isin(needed, known)
        runs = np.split(needed[~kept], np.flatnonzero(np.diff(needed[~kept]) > 1) + 1)
        parts = [
            self.source[(*before, slice(int(run[0]), int(run[-1]) + 1), *after)].values
            for run in runs
            if len(run)
        ]
        if kept.any() and values is not None:
            parts.append(values.take(np.searchsorted(known, needed[kept]), place))
        out = parts[0] if len(parts) == 1 else np.concatenate(parts, place)
        if kept.any():
            out = out.take(np.argsort(np.concatenate([needed[~kept], needed[kept]])), place)
        if rest is not None:
            first = max(len(needed) - len(self.weights) + 1, 0)
            tail = out[(slice(None),) * place + (slice(first, None),)]
            few = len(needed) < 2 * len(self.weights)
            self._last = (rest, needed[first:], tail if few else tail.copy())
        return out


def combine_frames(
    da: xr.DataArray,
    dim: str,
    positions: Given,
    *,
    weights: Sequence[float] | None = None,
    clip: str | None = None,
    dtype: Given = None,
) -> xr.DataArray:
    """Return weighted sums of frames along a dim, in float64. Lazy if the data are.

    Parameters
    ----------
    da : DataArray
    dim : str
        Coordinates along it are kept if the result has as many frames.
    positions : ndarray of int, ``(n, parts)``, or what is indexed as one
        Frames that each value is summed from; :data:`MISSING` makes it NaN, and :data:`NOTHING` is
        a frame of zeros.
    weights : sequence of float, optional
        Of the parts, by default 1.
    clip : "parts" or "total", optional
        Whether negative parts or negative totals are set to zero.
    dtype : dtype, optional
        Of the result, by default that of the data.
    """
    variable = without_dask(da.variable)
    weights = (1.0,) * positions.shape[1] if weights is None else tuple(weights)
    array = _Combined(
        variable, variable.get_axis_num(dim), positions, weights, clip, dtype or da.dtype
    )
    made = variable_of(array, variable)
    if not is_lazy(variable):
        made = made.load()
    same = len(positions) == da.sizes[dim]
    coords = {name: c for name, c in da.coords.items() if same or dim not in c.dims}
    return as_array(made, da, coords)


# --- concatenation ---


def concat(parts: Sequence[xr.Variable], dim: str) -> xr.Variable:
    """Concatenate variables with the same dims along ``dim``. Lazy if any of them is."""
    return join([without_dask(part) for part in parts], dim)

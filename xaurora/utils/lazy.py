"""Arrays that are read when they are indexed, without dask.

xarray reads of a file's variable what is indexed and nothing else, however long the file is. The
functions here keep that property through conversions, sums over time and concatenation, where
arithmetic would read the whole variable. With dask, every frame would cost a walk through the graph
of the whole archive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from xaurora.errors import SourceError, XauroraError
from xaurora.utils.types import Given

MISSING = -1
"""Position of a frame that is not there: NaN."""
NOTHING = -2
"""Position of a frame of zeros."""
_BLOCK = 64 * 1024**2  # bytes of a block that is read at once
_MOST_FRAMES = 32  # of a block that dask computes

Function = Callable[[np.ndarray], Any]


_FAILURES = (OSError, ValueError, RuntimeError, KeyError, EOFError)


def read(variable: xr.Variable, name: str, when: str = "") -> np.ndarray:
    """Return the values of a variable.

    Raises
    ------
    SourceError
        They cannot be read: a file is damaged or gone, or a server does not answer.
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


class _Indexed(BackendArray):
    """An array computed from what its source holds at an index."""

    def __init__(self, shape: tuple[int, ...], dtype: Given) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self.read
        )

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Return the values at integers, slices and arrays of integers, one for each dim."""
        raise NotImplementedError


def _variable(array: _Indexed, like: xr.Variable, dims: Sequence[Any] | None = None) -> xr.Variable:
    chunks = like.encoding.get("preferred_chunks")
    return xr.Variable(
        like.dims if dims is None else tuple(dims),
        indexing.LazilyIndexedArray(array),
        like.attrs,
        {} if chunks is None else {"preferred_chunks": chunks},
        fastpath=True,
    )


def as_array(variable: xr.Variable, like: xr.DataArray, coords: Given = None) -> xr.DataArray:
    """Return a variable as a DataArray, with the name and, by default, coordinates of another.

    The encoding, which says how chunks are stored, is kept; ``xr.DataArray`` drops it.
    """
    da = xr.DataArray(variable, like.coords if coords is None else coords, name=like.name)
    da.encoding = dict(variable.encoding)
    return da


# --- conversions ----------------------------------------------------------------------------------


class _Mapped(_Indexed):
    def __init__(self, source: xr.Variable, function: Function, dtype: Given) -> None:
        super().__init__(source.shape, dtype)
        self.source, self.function = source, function

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        return self.function(self.source[key].values).astype(self.dtype, copy=False)


def map_values(variable: xr.Variable, function: Function, dtype: Given) -> xr.Variable:
    """Return ``function`` of the values, applied to each part as it is read.

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
    return _variable(_Mapped(variable, function, dtype), variable)


def map_array(da: xr.DataArray, function: Function, dtype: Given) -> xr.DataArray:
    """Return a DataArray with ``function`` of the values; see :func:`map_values`."""
    variable = map_values(da.variable, function, dtype)
    return as_array(variable, da)


class _Masked(_Indexed):
    def __init__(self, source: xr.Variable, share: xr.Variable, least: float) -> None:
        super().__init__(source.shape, source.dtype)
        self.source, self.share, self.least = source, share, least

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        values, share = self.source[key].values, self.share[key].values
        return np.where(share >= self.least, values, np.nan).astype(self.dtype, copy=False)


def where_at_least(da: xr.DataArray, share: xr.DataArray, least: float) -> xr.DataArray:
    """Return the values where ``share``, with the same dims, is at least ``least``, else NaN."""
    source, mask = without_dask(da.variable), without_dask(share.variable)
    made = _variable(_Masked(source, mask, least), source)
    return as_array(made, da)


class _Fields(_Indexed):
    def __init__(
        self, source: xr.Variable, function: Function, shape: tuple[int, int], dtype: Given
    ) -> None:
        super().__init__((*source.shape[:-2], *shape), dtype)
        self.source, self.function = source, function

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        values = self.function(self.source[key[:-2]].values)
        rows, columns = key[-2:]
        values = values[..., columns]  # the integers last, because each drops an axis
        values = values[..., rows, :] if not _is_integer(columns) else values[..., rows]
        return values.astype(self.dtype, copy=False)


def map_fields(
    variable: xr.Variable,
    function: Function,
    shape: tuple[int, int],
    dtype: Given,
    dims: Sequence[Any] | None = None,
) -> xr.Variable:
    """Return ``function`` of the fields ``(..., h, w)``, each applied when it is read.

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
    return _variable(_Fields(variable, function, shape, dtype), variable, dims)


def _positions(index: Given, size: int) -> np.ndarray:
    """Return an integer, a slice or an array of integers as an array."""
    if isinstance(index, slice):
        return np.arange(*index.indices(size))
    return np.atleast_1d(np.asarray(index))


def _positions_of(key: tuple[Any, ...], shape: tuple[int, ...]) -> list[np.ndarray]:
    return [_positions(index, size) for index, size in zip(key, shape, strict=True)]


def _has_arrays(key: tuple[Any, ...]) -> bool:
    return any(isinstance(index, np.ndarray) and index.ndim for index in key)


def _is_integer(index: Given) -> bool:
    return np.ndim(index) == 0 and not isinstance(index, slice)


def _split(key: tuple[Any, ...], axis: int, size: int) -> tuple[np.ndarray, int, bool]:
    """Return the positions along an axis, its place in the result, and whether it is dropped."""
    place = sum(not _is_integer(index) for index in key[:axis])
    return _positions(key[axis], size), place, _is_integer(key[axis])


def _result_shape(
    key: tuple[Any, ...], shape: tuple[int, ...], known: dict[int, int] | None = None
) -> tuple[int, ...]:
    """Return the shape of what is read; axes with a known length are kept."""
    known = known or {}
    return tuple(
        known[axis] if axis in known else len(_positions(index, size))
        for axis, (index, size) in enumerate(zip(key, shape, strict=True))
        if axis in known or not _is_integer(index)
    )


class _Frames(_Indexed):
    def __init__(
        self, shape: tuple[int, ...], dtype: Given, function: Callable[[int], np.ndarray]
    ) -> None:
        super().__init__(shape, dtype)
        self.function = function

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted, _, single = _split(key, 0, self.shape[0])
        rest = _positions_of(key[1:], self.shape[1:])
        out = np.stack([self.function(int(i))[np.ix_(*rest)] for i in wanted])
        out = out.reshape(_result_shape(key, self.shape, {0: len(wanted)}))
        return out[0] if single else out


def from_frames(
    function: Callable[[int], np.ndarray],
    dims: Sequence[Any],
    shape: tuple[int, ...],
    dtype: Given,
) -> xr.Variable:
    """Return a lazy variable whose values along the first dim ``function`` makes, one by one."""
    array = _Frames(shape, dtype, function)
    return xr.Variable(dims, indexing.LazilyIndexedArray(array), fastpath=True)


class _Taken(_Indexed):
    def __init__(self, source: xr.Variable, axis: int, positions: np.ndarray) -> None:
        super().__init__(
            (*source.shape[:axis], len(positions), *source.shape[axis + 1 :]), source.dtype
        )
        self.source, self.axis, self.positions = source, axis, positions

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted, place, single = _split(key, self.axis, self.shape[self.axis])
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
    return _variable(_Taken(variable, variable.get_axis_num(dim), places), variable)


# --- order of dims --------------------------------------------------------------------------------


class _Transposed(_Indexed):
    def __init__(self, source: xr.Variable, axes: tuple[int, ...]) -> None:
        super().__init__(tuple(source.shape[axis] for axis in axes), source.dtype)
        self.source, self.axes = source, axes

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        stored = [key[self.axes.index(axis)] for axis in range(len(key))]
        values = self.source[tuple(stored)].values
        kept = [axis for axis in range(len(key)) if not _is_integer(stored[axis])]
        return values.transpose([kept.index(axis) for axis in self.axes if axis in kept])


def transpose(variable: xr.Variable, dims: Sequence[Any]) -> xr.Variable:
    """Return a variable with its dims in another order.

    xarray's own lazy transpose reads point by point.
    """
    if variable.dims == tuple(dims) or not is_lazy(variable):
        return variable.transpose(*dims)
    axes = tuple(variable.get_axis_num(dim) for dim in dims)
    return _variable(_Transposed(variable, axes), variable, dims)


class _Gathered(_Indexed):
    """Values at chosen points of some dims, which come first and have the shape of the choice."""

    def __init__(self, source: xr.Variable, index: tuple[np.ndarray, ...]) -> None:
        self.count = index[0].ndim
        super().__init__((*index[0].shape, *source.shape[len(index) :]), source.dtype)
        self.source, self.index = source, index

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        chosen, rest = key[: self.count], key[self.count :]
        grid = np.ix_(*_positions_of(chosen, self.shape[: self.count]))
        points = np.stack([index[grid].ravel() for index in self.index])
        unique, place = np.unique(points, axis=1, return_inverse=True)
        frames = [self.source[(*map(int, point), *rest)].values for point in unique.T]
        values = np.stack(frames)[place.ravel()]
        return values.reshape(_result_shape(key, self.shape))


def gather(da: xr.DataArray, index: dict[str, np.ndarray], dims: Sequence[str]) -> xr.DataArray:
    """Return the values at points of one or several dims, each point read once. Lazy.

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


class _Expanded(_Indexed):
    def __init__(self, source: xr.Variable) -> None:
        super().__init__((1, *source.shape), source.dtype)
        self.source = source

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        values = self.source[key[1:]].values
        return values if _is_integer(key[0]) else values[None][key[0]]


def expand(variable: xr.Variable, dim: str) -> xr.Variable:
    """Return a variable with a first dim of length 1. xarray's own would read it."""
    if not is_lazy(variable):
        return variable.set_dims({dim: 1, **dict(variable.sizes)})
    return _variable(_Expanded(variable), variable, (dim, *variable.dims))


# --- sums over time -------------------------------------------------------------------------------


class _Combined(_Indexed):
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
        wanted, place, single = _split(key, self.axis, self.shape[self.axis])
        shape = _result_shape(key, self.shape, {self.axis: len(wanted)})
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
        """Read frames at increasing positions, those that follow each other at once.

        The last ones are kept: the sums of the next block begin with them.
        """
        if not len(needed):
            return None
        before, after = key[: self.axis], key[self.axis + 1 :]
        rest = None if _has_arrays((*before, *after)) else (before, after)
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
        What is set to zero where it is negative.
    dtype : dtype, optional
        Of the result, by default that of the data.
    """
    variable = without_dask(da.variable)
    weights = (1.0,) * positions.shape[1] if weights is None else tuple(weights)
    array = _Combined(
        variable, variable.get_axis_num(dim), positions, weights, clip, dtype or da.dtype
    )
    made = _variable(array, variable)
    if not is_lazy(variable):
        made = made.load()
    same = len(positions) == da.sizes[dim]
    coords = {name: c for name, c in da.coords.items() if same or dim not in c.dims}
    return as_array(made, da, coords)


# --- concatenation --------------------------------------------------------------------------------


class _Concatenated(_Indexed):
    def __init__(self, parts: list[xr.Variable], axis: int) -> None:
        lengths = [part.shape[axis] for part in parts]
        shape = list(parts[0].shape)
        shape[axis] = sum(lengths)
        super().__init__(tuple(shape), np.result_type(*(part.dtype for part in parts)))
        self.parts, self.axis = parts, axis
        self.starts = np.concatenate([[0], np.cumsum(lengths)])

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted, place, single = _split(key, self.axis, self.shape[self.axis])
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        numbers = np.unique(owners)
        if len(numbers) == 1:
            out = self._of_part(key, int(numbers[0]), wanted)
        else:
            out = np.empty(_result_shape(key, self.shape, {self.axis: len(wanted)}), self.dtype)
            for number in numbers:
                here = owners == number
                values = self._of_part(key, int(number), wanted[here])
                out[(slice(None),) * place + (here,)] = values
        return out.take(0, place) if single else out.astype(self.dtype, copy=False)

    def _of_part(self, key: tuple[Any, ...], number: int, wanted: np.ndarray) -> np.ndarray:
        local = as_slice(wanted - self.starts[number])
        return self.parts[number][(*key[: self.axis], local, *key[self.axis + 1 :])].values


def as_slice(positions: np.ndarray) -> Any:
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


def concat(parts: Sequence[xr.Variable], dim: str) -> xr.Variable:
    """Return variables with the same dims, one after another along ``dim``. Lazy if any is."""
    parts = [without_dask(part) for part in parts]
    made = _variable(_Concatenated(parts, parts[0].get_axis_num(dim)), parts[0])
    return made if any(map(is_lazy, parts)) else made.load()


# --- dask -----------------------------------------------------------------------------------------


def without_dask(variable: xr.Variable) -> xr.Variable:
    """Return a variable without dask: what is read of it is read directly, or in blocks.

    A dask array that only selects, orders, concatenates or rechunks stored arrays, as those of
    ``open_zarr(chunks={})`` and ``open_mfdataset`` do, is replaced by these arrays. What dask
    computes is computed in blocks of frames.
    """
    if variable.chunks is None:
        return variable
    found = _Graph(variable.data.dask).variable(variable.data.name)
    if found is not None and found.shape == variable.shape and found.dtype == variable.dtype:
        return xr.Variable(
            variable.dims, found._data, variable.attrs, variable.encoding, fastpath=True
        )
    made = _variable(_Computed(variable.data), variable)
    sizes = zip(variable.dims, variable.chunks, strict=True)
    made.encoding = {"preferred_chunks": {dim: chunks[0] for dim, chunks in sizes if chunks}}
    return made


def dataset_without_dask(ds: xr.Dataset) -> xr.Dataset:
    """Return a Dataset with its variables without dask; see :func:`without_dask`."""
    chunked = {name: da for name, da in ds.data_vars.items() if da.chunks is not None}
    return ds.assign({name: without_dask(da.variable) for name, da in chunked.items()})


class _Graph:
    """Looks for stored arrays under the layers of a dask array."""

    def __init__(self, graph: Given) -> None:
        self.layers: Any = getattr(graph, "layers", {})
        self.dependencies: Any = getattr(graph, "dependencies", {})

    def variable(self, name: str) -> xr.Variable | None:
        """Return the stored values of a layer, or None if they are computed."""
        found = self._find(name)
        return None if found is None else found[0]

    def _find(self, name: str) -> tuple[xr.Variable, Any] | None:
        """Return the values and, where they are known, the chunks of a layer."""
        layer = self.layers.get(name)
        if layer is None:
            return None
        if (stored := self.layers.get(f"original-{name}")) is not None:
            return self._stored(layer, stored[f"original-{name}"])
        kind = name.partition("-")[0]
        if kind == "rechunk" and len(self.dependencies[name]) == 1:
            found = self._find(next(iter(self.dependencies[name])))
            return None if found is None else (found[0], None)
        if kind == "transpose" and hasattr(layer, "output_indices"):
            return self._transposed(layer)
        if kind == "getitem" and len(self.dependencies[name]) == 1:
            return self._selected(name, layer, next(iter(self.dependencies[name])))
        if kind == "concatenate":
            return self._concatenated(name, layer)
        return None

    def _stored(self, layer: Given, array: Given) -> tuple[xr.Variable, Any] | None:
        slices = list(getattr(layer, "io_deps", {}).values())
        if len(slices) != 1 or not hasattr(slices[0], "chunks"):
            return None
        data = getattr(array, "array", array)  # without the adapter to dask
        if not isinstance(data, indexing.ExplicitlyIndexed | np.ndarray):
            return None
        return xr.Variable(_dims(array.ndim), data, fastpath=True), slices[0].chunks

    def _transposed(self, layer: Given) -> tuple[xr.Variable, Any] | None:
        ((name, order),) = layer.indices
        found = self._find(name) if isinstance(name, str) else None
        if found is None or set(order) != set(layer.output_indices):
            return None
        axes = [order.index(index) for index in layer.output_indices]
        variable = found[0].transpose(*(f"d{axis}" for axis in axes))
        chunks = None if found[1] is None else tuple(found[1][axis] for axis in axes)
        return variable._replace(dims=_dims(len(axes))), chunks

    def _selected(self, name: str, layer: Given, source: str) -> tuple[xr.Variable, Any] | None:
        found = self._find(source)
        if found is None or found[1] is None:
            return None
        variable, chunks = found
        selection = _Selection(name, layer, source, chunks)
        index, new = selection.read()
        if index is None:
            return None
        out = variable[tuple(as_slice(i) if np.ndim(i) else int(i) for i in index)]
        return out._replace(dims=_dims(out.ndim)), new

    def _concatenated(self, name: str, layer: Given) -> tuple[xr.Variable, Any] | None:
        ndim = len(next(iter(layer))) - 1
        owners = {axis: _along(layer, name, axis, ndim) for axis in range(ndim)}
        sources = {axis: [_key_of(v)[0] for v in found] for axis, found in owners.items()}
        axes = [axis for axis, names in sources.items() if len(set(names)) > 1]
        axis = axes[0] if axes else 0
        parts = [self._find(part) for part in dict.fromkeys(sources[axis])]
        if len(axes) > 1 or any(part is None or part[1] is None for part in parts):
            return None
        known: Any = parts
        variable = concat([part[0] for part in known], f"d{axis}")
        chunks = list(known[0][1])
        chunks[axis] = sum((tuple(part[1][axis]) for part in known), ())
        return variable, tuple(chunks)


class _Selection:
    """Reads from the tasks of a selection which positions of its source it takes."""

    def __init__(self, name: str, layer: Given, source: str, chunks: Given) -> None:
        self.name, self.layer, self.source = name, layer, source
        self.starts = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in chunks]

    def read(self) -> tuple[list[Any] | None, Any]:
        """Return an index of the source, or None, and the chunks of the result."""
        keys = [key for key in self.layer if isinstance(key, tuple) and key[0] == self.name]
        if not keys:
            return None, None
        ndim = len(keys[0]) - 1
        first = self.layer[(self.name, *(0,) * ndim)]
        index: list[Any] = [self._positions(first, axis) for axis in range(len(self.starts))]
        kept = [axis for axis, at in enumerate(index) if at is not None and np.ndim(at)]
        if any(at is None for at in index) or len(kept) != ndim:
            return None, None
        sizes = []
        for out, axis in enumerate(kept):
            blocks = [self._positions(t, axis) for t in _along(self.layer, self.name, out, ndim)]
            if any(block is None for block in blocks):
                return None, None
            sizes.append(tuple(len(block) for block in blocks))
            index[axis] = np.concatenate(blocks)
        return index, tuple(sizes)

    def _positions(self, task: Given, axis: int) -> Any:
        """Return the positions along an axis of the source that a task takes."""
        arguments = getattr(task, "args", None)
        function = getattr(getattr(task, "func", None), "__name__", "")
        if not arguments:
            return self._of_block(_key_of(task), axis)
        if function in ("getitem", "getter", "_getitem"):
            whole = self._of_block(_key_of(arguments[0]), axis)
            index = arguments[1]
            if function == "_getitem":  # a list of positions, kept in a task of its own
                index = self.layer[index.key].value[1]
            return None if whole is None else whole[index[axis]]
        if function == "concatenate_arrays":
            pieces, order, along = arguments
            parts = [self._positions(self.layer[ref.key], axis) for ref in pieces.args]
            if any(part is None for part in parts):
                return None
            order = self.layer[order.key].value[1]
            return np.concatenate(parts)[np.argsort(order)] if along == axis else parts[0]
        return None

    def _of_block(self, key: Given, axis: int) -> Any:
        if key in self.layer:  # slices come before lists, in the same layer
            task = self.layer[key]
            index = getattr(task, "args", ((), ()))[1]
            return None if any(map(_is_integer, index)) else self._positions(task, axis)
        if not isinstance(key, tuple) or key[0] != self.source:
            return None
        start, stop = self.starts[axis][key[1 + axis] : key[1 + axis] + 2]
        return np.arange(start, stop)


def _dims(ndim: int) -> tuple[str, ...]:
    return tuple(f"d{axis}" for axis in range(ndim))


def _along(layer: Given, name: str, axis: int, ndim: int) -> list[Any]:
    """Return the tasks of the blocks along one axis, at the start of the others."""
    out: list[Any] = []
    while (key := (name, *(0,) * axis, len(out), *(0,) * (ndim - axis - 1))) in layer:
        out.append(layer[key])
    return out


def _key_of(task: Given) -> Any:
    """Return the key that a task refers to: an alias, a reference or the key itself."""
    for attribute in ("target", "key"):
        if hasattr(task, attribute):
            return getattr(task, attribute)
    return task


class _Computed(_Indexed):
    """Values that dask computes: in blocks of frames, of which the last ones are kept."""

    def __init__(self, data: Given) -> None:
        super().__init__(data.shape, data.dtype)
        self.data = data
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        frame = max(self.dtype.itemsize * int(np.prod(self.shape[1:])), 1)
        chunk = data.chunks[0][0] if self.ndim and data.chunks[0] else 1
        self.length = max(min(_BLOCK // frame, _MOST_FRAMES) // max(chunk, 1), 1) * max(chunk, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def read(self, key: tuple[Any, ...]) -> np.ndarray:
        if not key or not _is_integer(key[0]):
            return self._compute(key)
        number = int(key[0]) // self.length
        with self._lock:
            if number not in self._kept:
                start = number * self.length
                block = self._compute((slice(start, start + self.length),))
                self._kept = {**dict(list(self._kept.items())[-1:]), number: block}
            block = self._kept[number]
        rest = _positions_of(key[1:], self.shape[1:])
        frame = block[int(key[0]) - number * self.length]
        return frame[np.ix_(*rest)].reshape(_result_shape(key[1:], self.shape[1:]))

    def _compute(self, key: tuple[Any, ...]) -> np.ndarray:
        data = self.data
        for axis in reversed(range(len(key))):  # integers drop an axis, so the last ones first
            data = data[(slice(None),) * axis + (key[axis],)]
        main = threading.current_thread() is threading.main_thread()
        return np.asarray(data.compute(scheduler="threads" if main else "synchronous"))

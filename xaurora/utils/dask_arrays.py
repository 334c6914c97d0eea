"""The stored arrays under dask arrays, and what dask computes in blocks."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from xaurora.utils.indexed import (
    Indexed,
    as_slice,
    is_integer,
    join,
    positions_of,
    result_shape,
    variable_of,
)
from xaurora.utils.local_chunks import decoded_in_place
from xaurora.utils.types import Given

_BLOCK = 64 * 1024**2  # bytes of a block
_MOST_FRAMES = 32  # of a block


def without_dask(variable: xr.Variable) -> xr.Variable:
    """Return a variable without dask: what is read of it is read directly, or in blocks.

    Chunks of local Zarr stores are decoded in place (:mod:`xaurora.utils.local_chunks`).

    A dask array that only selects, orders, concatenates or rechunks stored arrays, as those of
    ``open_zarr(chunks={})`` and ``open_mfdataset`` do, is replaced by these arrays. What dask
    computes is computed in blocks of frames.
    """
    if variable.chunks is None:
        return decoded_in_place(variable)
    found = _Graph(variable.data.dask).variable(variable.data.name)
    if found is not None and found.shape == variable.shape and found.dtype == variable.dtype:
        return decoded_in_place(
            xr.Variable(
                variable.dims, found._data, variable.attrs, variable.encoding, fastpath=True
            )
        )
    made = variable_of(_Computed(variable.data), variable)
    sizes = zip(variable.dims, variable.chunks, strict=True)
    made.encoding = {"preferred_chunks": {dim: chunks[0] for dim, chunks in sizes if chunks}}
    return made


def dataset_without_dask(ds: xr.Dataset) -> xr.Dataset:
    """Return a Dataset with its variables without dask; see :func:`without_dask`."""
    bare = {name: without_dask(da.variable) for name, da in ds.data_vars.items()}
    changed = {name: v for name, v in bare.items() if v is not ds[name].variable}
    return ds.assign(changed) if changed else ds


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
        variable = join([decoded_in_place(part[0]) for part in known], f"d{axis}")
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
            tasks = _along(self.layer, self.name, out, ndim)
            blocks = [at for t in tasks if (at := self._positions(t, axis)) is not None]
            if len(blocks) < len(tasks):
                return None, None
            sizes.append(tuple(len(block) for block in blocks))
            index[axis] = np.concatenate(blocks)
        return index, tuple(sizes)

    def _positions(self, task: Given, axis: int) -> np.ndarray | None:
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
            return None if whole is None else np.asarray(whole[index[axis]])
        if function == "concatenate_arrays":
            pieces, order, along = arguments
            found = [self._positions(self.layer[ref.key], axis) for ref in pieces.args]
            parts = [part for part in found if part is not None]
            if len(parts) < len(found):
                return None
            order = self.layer[order.key].value[1]
            return np.concatenate(parts)[np.argsort(order)] if along == axis else parts[0]
        return None

    def _of_block(self, key: Given, axis: int) -> np.ndarray | None:
        if key in self.layer:  # slices come before lists, in the same layer
            task = self.layer[key]
            index = getattr(task, "args", ((), ()))[1]
            return None if any(map(is_integer, index)) else self._positions(task, axis)
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


def _key_of(task: Given) -> str | tuple[Any, ...]:
    """Return the key that a task refers to: an alias, a reference or the key itself."""
    for attribute in ("target", "key"):
        if hasattr(task, attribute):
            return getattr(task, attribute)
    return task


class _Computed(Indexed):
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
        if not key or not is_integer(key[0]):
            return self._compute(key)
        number = int(key[0]) // self.length
        with self._lock:
            if number not in self._kept:
                start = number * self.length
                block = self._compute((slice(start, start + self.length),))
                self._kept = {**dict(list(self._kept.items())[-1:]), number: block}
            block = self._kept[number]
        rest = positions_of(key[1:], self.shape[1:])
        frame = block[int(key[0]) - number * self.length]
        return frame[np.ix_(*rest)].reshape(result_shape(key[1:], self.shape[1:]))

    def _compute(self, key: tuple[Any, ...]) -> np.ndarray:
        data = self.data
        for axis in reversed(range(len(key))):  # integers drop an axis, so the last ones first
            data = data[(slice(None),) * axis + (key[axis],)]
        main = threading.current_thread() is threading.main_thread()
        return np.asarray(data.compute(scheduler="threads" if main else "synchronous"))

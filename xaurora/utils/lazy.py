"""Conversion of lazy file-backed arrays to dask."""

from __future__ import annotations

from typing import Any

import xarray as xr

_LARGEST = 64 * 1024**2  # bytes of a dask chunk, at most


def as_dask(data: Any, dim: str) -> Any:
    """Return file-backed lazy data as dask arrays, chunked along ``dim`` as in the file.

    Data that are in memory or already dask arrays are unchanged. Arithmetic on a lazy array of a
    file would read all of it, whereas a dask array is read chunk by chunk.
    """
    arrays = data.variables.values() if isinstance(data, xr.Dataset) else [data.variable]
    lazy = [v for v in arrays if v.chunks is None and not v._in_memory and v.ndim]
    if not lazy:
        return data
    if dim not in data.dims:
        return data.chunk({})
    frame = max(sum(v.dtype.itemsize * v.size for v in lazy) // data.sizes[dim], 1)
    stored = min((int(v.encoding.get("preferred_chunks", {}).get(dim, 1)) for v in lazy), default=1)
    return data.chunk({dim: max(min(stored, _LARGEST // frame), 1)})

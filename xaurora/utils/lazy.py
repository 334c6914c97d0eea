"""Keeping lazy what is lazy."""

from __future__ import annotations

from typing import Any

import xarray as xr

_LARGEST = 64 * 1024**2  # bytes of a chunk


def as_dask(data: Any, dim: str) -> Any:
    """Lazy data of a file as dask, a chunk of the file along ``dim`` at a time; what is in memory
    or dask already stays as it is.

    Arithmetic on a lazy array of a file would read it whole; a dask array is read piece by piece.
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

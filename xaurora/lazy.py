"""Keeping lazy what is lazy."""

from __future__ import annotations

from typing import Any

import xarray as xr


def as_dask(data: Any, dim: str) -> Any:
    """Lazy data of a file as dask, one step of ``dim`` a chunk; what is in memory or dask already stays as it is.

    Arithmetic on a lazy array of a file would read it whole; a dask array is read piece by piece.
    """
    arrays = data.variables.values() if isinstance(data, xr.Dataset) else [data.variable]
    lazy = [v for v in arrays if v.chunks is None and not v._in_memory and v.ndim]
    return data.chunk({dim: 1} if dim in data.dims else {}) if lazy else data

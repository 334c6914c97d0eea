"""How Datasets are encoded in files."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr


def compressed(ds: xr.Dataset, *, zarr: bool = False) -> tuple[xr.Dataset, dict[str, Any]]:
    """Return a Dataset without the packing of its source, and the encoding to write it.

    Floating-point variables are compressed (Zarr compresses by itself), fields as float32. Integers
    that packed the input would round a forecast, or overflow.
    """
    out = ds.copy()
    encoding: dict[str, Any] = {}
    for name in out.variables:
        variable = out.variables[name]
        floating = np.issubdtype(variable.dtype, np.floating)
        kept = {} if floating else variable.encoding
        variable.encoding = {k: v for k, v in kept.items() if k in ("units", "calendar", "dtype")}
        if floating and name in out.data_vars:
            # Decoding packed values gives float64, of which a field has float32's digits at most.
            is_field = any(str(d).startswith("lat") for d in variable.dims)
            encoding[str(name)] = {"dtype": np.dtype("f4") if is_field else variable.dtype}
            if not zarr and variable.ndim:
                encoding[str(name)] |= {"zlib": True, "complevel": 1, "shuffle": True}
    return out, encoding

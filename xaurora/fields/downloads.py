"""Requests to the Climate Data Store for variables that are missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xaurora.fields import variables
from xaurora.fields.conventions import Fields
from xaurora.fields.variables import Variable

_OTHER_NAMES = {("static", "z"): "geopotential"}


def cds_name(variable: Variable) -> str:
    """Return the name of a variable in the Climate Data Store.

    Examples
    --------
    >>> cds_name(variables.BY_KEY["surface", "scaled_sd"])
    'snow_depth'
    """
    key = (variable.kind, variable.name)
    return _OTHER_NAMES.get(key) or (*variable.long_aliases, variable.weatherbench2)[0]


def request(
    missing: Sequence[tuple[str, str]], fields: Fields, levels: Sequence[float] | None
) -> str:
    """Return Python code that downloads variables for the grid and times of the data.

    Parameters
    ----------
    missing : sequence of tuple
        Kinds and names in the table of variables.
    fields : Fields
        The data, whose area, grid and first month are asked for.
    levels : sequence of float, optional
        Pressure levels in hPa.
    """
    lines = ["import cdsapi", "client = cdsapi.Client()"]
    flat = [key for key in missing if key[0] == "surface"]
    still = [key for key in missing if key[0] == "static"]
    aloft = [key for key in missing if key[0] == "atmos"]
    for keys, product, target in (
        (flat, "reanalysis-era5-single-levels", "surface.nc"),
        (aloft, "reanalysis-era5-pressure-levels", "levels.nc"),
        (still, "reanalysis-era5-single-levels", "static.nc"),
    ):
        if keys:
            names = [cds_name(variables.BY_KEY[key]) for key in keys]
            wanted = levels if keys is aloft else None
            when = _when(fields.times[:1] if keys is still else fields.times)
            lines.append(f'client.retrieve("{product}", {{')
            lines.append(f'    "product_type": ["reanalysis"], "variable": {_listed(names)},')
            if wanted is not None:
                lines.append(f'    "pressure_level": {_listed([f"{v:g}" for v in wanted])},')
            lines.append(f"    {when},")
            lines.append(f'    {_area(fields)}, "data_format": "netcdf",')
            lines.append(f'}}, "{target}")')
    return "\n".join(lines)


def _listed(values: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{v}"' for v in values) + "]"


def _when(times: np.ndarray) -> str:
    """Return the first month of the times; the other months need requests of their own."""
    first = times[0].astype("datetime64[M]")
    month = times[times.astype("datetime64[M]") == first]
    days = sorted({str(t)[8:10] for t in month.astype("datetime64[D]")})
    hours = sorted({str(t)[11:16] for t in month.astype("datetime64[m]")})
    return (
        f'"year": ["{str(first)[:4]}"], "month": ["{str(first)[5:7]}"], "day": {_listed(days)},'
        f' "time": {_listed(hours)}'
    )


def _area(fields: Fields) -> str:
    grid = fields.layout.grid
    step = grid.spacing
    text = f'"grid": [{step[1]:g}, {step[0]:g}]'  # longitude first
    if grid.is_global:
        return text
    north, south = float(grid.latitude[0]), float(grid.latitude[-1])
    west, east = float(grid.longitude[0]), float(grid.longitude[-1])
    return f'"area": [{north:g}, {west:g}, {south:g}, {east:g}], {text}'

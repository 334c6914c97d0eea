"""Find and read the axes of a Dataset: latitude, longitude, level, time and members."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr

from xaurora.errors import (
    CoordinateError,
    EnsembleError,
    GridError,
    LevelError,
    TimeError,
)
from xaurora.fields.found import LEVEL_UNITS, Axis, Recognition
from xaurora.fields.grid import lattice as grids
from xaurora.fields.unit_conversion import normalise_units

NAMES = {
    "time": ("time", "valid_time", "forecast_time", "date", "datetime"),
    "latitude": ("latitude", "lat", "nav_lat"),
    "longitude": ("longitude", "lon", "nav_lon"),
    "level": (
        "level",
        "pressure_level",
        "isobaricInhPa",
        "plev",
        "lev",
        "pressure",
        "isobaric",
        "levels",
    ),
    "number": ("number", "realization", "member", "ensemble", "ens"),
}


def find_axes(ds: xr.Dataset, found: Recognition) -> None:
    """Find the axes of a Dataset, and note problems with them."""
    import cf_xarray  # noqa: F401  (registers ds.cf; imported late because it costs 0.1 s)

    by_cf: dict[str, list[Hashable]] = ds.cf.coordinates  # slow: asked for once
    for axis, names in NAMES.items():
        cf_names = by_cf.get("vertical" if axis == "level" else axis, [])
        candidates = [n for n in (*cf_names, *names) if n in ds.coords or n in ds.dims]
        if axis == "level":
            candidates = [n for n in candidates if _is_pressure(ds, str(n))]
        if axis == "time":
            candidates = [
                n for n in candidates if n in ds.dims or (n in ds.coords and ds[n].ndim == 1)
            ]
        # Prefer dimension coordinates to other coordinates.
        candidates.sort(key=lambda n: n not in ds.dims)
        if candidates:
            name = str(candidates[0])
            dim = str(ds[name].dims[0]) if name in ds.coords and ds[name].ndim == 1 else name
            found.axes[axis] = Axis(name, dim)


def _is_pressure(ds: xr.Dataset, name: str) -> bool:
    if name not in ds.coords:
        return False
    attrs = ds[name].attrs
    if attrs.get("standard_name") == "air_pressure":
        return True
    units = normalise_units(attrs.get("units", ""))
    return units in LEVEL_UNITS or (units == "" and name in NAMES["level"])


def check_members(ds: xr.Dataset, found: Recognition) -> None:
    """Note a problem if the data hold several ensemble members."""
    axis = found.axes.get("number")
    if axis is not None and ds.sizes.get(axis.dim, 1) > 1:
        raise EnsembleError(
            f"the data have {ds.sizes[axis.dim]} ensemble members along '{axis.dim}', but a single"
            " one is expected.",
            fix=f"ds.isel({axis.dim}=0), or ds.mean('{axis.dim}')",
        )
    if ds.sizes.get("expver", 1) > 1:
        raise CoordinateError(
            "final and preliminary ERA5 (expver 1 and 5) are separate entries along 'expver', and"
            " each has missing times.",
            fix="ds = ds.sel(expver=1).combine_first(ds.sel(expver=5))",
        )


def read_grid(ds: xr.Dataset, found: Recognition) -> None:
    """Read the horizontal grid, and note problems with it."""
    for axis in ("latitude", "longitude"):
        if axis not in found.axes:
            raise CoordinateError(
                f"no {axis} was found among the coordinates {sorted(map(str, ds.coords))}.",
                fix=(
                    f"ds.rename({{'name_in_your_data': '{axis}'}}), or"
                    " ds['name_in_your_data'].attrs['units'] ="
                    f" 'degrees_{'north' if axis == 'latitude' else 'east'}'"
                ),
            )
        name = found.axes[axis].name
        if name not in ds.coords:
            raise CoordinateError(
                f"the dimension '{name}' has no {axis} values.",
                fix=(
                    f"ds.assign_coords({name}=...) with degrees"
                    f" {'north' if axis == 'latitude' else 'east'}"
                ),
            )
        if ds[name].ndim == 0:
            raise GridError(
                f"{axis} is a single value, so the data are a point or a line; a region is"
                " required.",
                fix=f"select a box: ds.sel({name}=slice(...)), or ds.isel({name}=[...])",
            )
        if ds[name].ndim != 1:
            raise GridError(
                f"{axis} is {ds[name].ndim}-dimensional, as on curvilinear or rotated grids;"
                " Aurora requires a regular latitude–longitude grid.",
                fix=(
                    "regrid first, for example with xesmf: xe.Regridder(ds,"
                    " xe.util.grid_global(0.25, 0.25), 'bilinear')(ds)"
                ),
            )
    found.grid = grids.from_axes(
        ds[found.axes["latitude"].name].values, ds[found.axes["longitude"].name].values
    )


def read_levels(ds: xr.Dataset, found: Recognition) -> None:
    """Read the pressure levels in hPa, and note problems with them."""
    axis = found.axes.get("level")
    if axis is None:
        if bare := [d for d in NAMES["level"] if d in ds.dims and d not in ds.coords]:
            raise LevelError(
                f"the dimension '{bare[0]}' has no pressure levels as values.",
                fix=f"ds = ds.assign_coords({bare[0]}=[...]) with the levels in hPa",
            )
        return
    values = np.atleast_1d(ds[axis.name].values).astype(np.float64)
    units = normalise_units(ds[axis.name].attrs.get("units", ""))
    if units not in LEVEL_UNITS:
        units = "Pa" if values.max() > 1100 else "hPa"  # Aurora's levels do not exceed 1000 hPa
        found.notes.append(f"'{axis.name}' has no units; {units} is assumed from its values.")
    levels = tuple(float(np.round(v * LEVEL_UNITS[units], 4)) for v in values)
    doubled = sorted({level for level in levels if levels.count(level) > 1})
    if doubled:
        raise LevelError(
            f"level(s) {doubled} hPa occur more than once.",
            fix=f"ds.drop_duplicates('{axis.dim}')",
        )
    found.levels = levels


def read_times(ds: xr.Dataset, found: Recognition) -> None:
    """Read the times, and note problems with them."""
    axis = found.axes.get("time")
    if axis is None or axis.dim not in ds.dims:
        raise TimeError(
            f"no time axis was found among the dimensions {sorted(map(str, ds.dims))}; Aurora"
            " needs two frames six hours apart.",
            fix=(
                "open all times together: xaurora.open('era5/*.nc'); or rename the time axis:"
                " ds.rename({'name_in_your_data': 'time'})"
            ),
        )
    coordinate = ds[axis.name] if axis.name in ds.coords else None
    valid = ds.coords.get("valid_time")
    if valid is not None and valid.dims == (axis.dim,):
        coordinate = valid  # in GRIB, `time` is the base time and `valid_time` the valid time
    if coordinate is None:
        raise TimeError(
            f"the dimension '{axis.dim}' has no times.",
            fix=f"ds.assign_coords({axis.dim}=pd.date_range(...))",
        )
    if (
        getattr(coordinate.dtype, "tz", None) is not None
    ):  # time-zone-aware: `values` would drop the zone and warn
        values = coordinate.to_index().tz_convert("UTC").tz_localize(None).to_numpy()
    else:
        values = coordinate.values
    if values.dtype == object and len(values) and getattr(values[0], "tzinfo", None) is not None:
        import pandas as pd

        values = pd.DatetimeIndex(values).tz_convert("UTC").tz_localize(None).to_numpy()
    if values.dtype == object and len(values) and hasattr(values[0], "timetuple"):
        if getattr(values[0], "calendar", "") not in (
            "standard",
            "gregorian",
            "proleptic_gregorian",
        ):
            raise TimeError(
                f"times are in the calendar {getattr(values[0], 'calendar', '?')!r}, but ERA5 uses"
                " the standard one.",
                fix=f"ds.convert_calendar('standard', dim='{axis.dim}', use_cftime=False)",
            )
        values = np.array([np.datetime64(v.isoformat(), "ns") for v in values])
    if not np.issubdtype(values.dtype, np.datetime64):
        raise TimeError(
            f"'{axis.name}' holds {values.dtype}, not times.",
            fix=_times_of(coordinate, axis),
        )
    values = values.astype("datetime64[ns]")
    if np.isnat(values).any():
        raise TimeError(
            f"{int(np.isnat(values).sum())} time(s) are missing (NaT).",
            fix=f"ds.dropna('{axis.dim}', subset=['{axis.name}'])",
        )
    unique, counts = np.unique(values, return_counts=True)
    if (counts > 1).any():
        raise TimeError(
            f"{int((counts > 1).sum())} time(s) occur more than once, the first is"
            f" {unique[counts > 1][0].astype('datetime64[m]')}.",
            fix=f"ds.drop_duplicates('{axis.dim}')",
        )
    if (np.diff(values) < np.timedelta64(0, "ns")).any():
        raise TimeError("times are not in order.", fix=f"ds.sortby('{axis.name}')")
    found.times = values


def _times_of(coordinate: xr.DataArray, axis: Axis) -> str:
    """Return how to make times of other values."""
    if " since " in str(coordinate.attrs.get("units", "")):
        return "xr.decode_cf(ds), or open the file without decode_times=False"
    name = coordinate.name
    if coordinate.dtype.kind in "UT":
        return f"ds.assign_coords({axis.dim}=ds['{name}'].values.astype('datetime64[ns]'))"
    dated = f"ds['{name}'].assign_attrs(units='hours since 1900-01-01')"
    return f"xr.decode_cf(ds.assign_coords({axis.dim}={dated})) with the actual units and start"


def note_expver(ds: xr.Dataset, found: Recognition) -> None:
    """Note where preliminary data (ERA5T) are mixed with final ones."""
    if "expver" in ds.coords and ds["expver"].ndim == 1 and "expver" not in ds.dims:
        values = {str(v).lstrip("0") for v in np.unique(ds["expver"].values.astype(str))}
        if len(values) > 1 and "5" in values:
            found.notes.append(
                "Preliminary ERA5T (expver 5) is mixed with final ERA5 (expver 1); it may still be"
                " revised."
            )
        elif values == {"5"}:
            found.notes.append(
                "All data are preliminary ERA5T (expver 5); they may still be revised."
            )

"""Conversion of a Dataset to canonical fields, and back to the user's own form.

A :class:`Layout` describes the original form. Everything here is lazy unless a docstring says
otherwise.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import AmbiguousVariableError, CoordinateError, TimeError, XauroraError
from xaurora.fields import labels, periods, variables
from xaurora.fields.found import LEVEL_UNITS, Axis, Field, Recognition
from xaurora.fields.grid import lattice as grids
from xaurora.fields.grid import patches
from xaurora.fields.recognition import recognise
from xaurora.fields.unit_conversion import is_rate, normalise_units
from xaurora.utils import dask_arrays, indexed, lazy

logger = logging.getLogger("xaurora")


@dataclass(frozen=True)
class Layout:
    """Original form of the data, from which it can be restored.

    Parameters
    ----------
    axes : dict
        Canonical axis name → :class:`Axis`.
    fields : dict
        ``(kind, canonical name)`` → :class:`Field`.
    grid : Grid
        Position of each canonical row and column in the data.
    levels : tuple of float
        All levels of the data, in their order, in hPa.
    source : Dataset
        Coordinates and attributes of the data, without the fields.
    times : ndarray of datetime64
        Valid time of each frame of the data.
    unusable : dict
        ``(kind, canonical name)`` → why a variable that only some models need cannot be used.
    """

    axes: dict[str, Axis]
    fields: dict[tuple[str, str], Field]
    grid: grids.Grid
    levels: tuple[float, ...]
    source: xr.Dataset
    times: np.ndarray
    unusable: dict[tuple[str, str], XauroraError] = field(default_factory=dict)

    def user_name(self, name: str) -> str:
        """Return the user's name of a canonical surface or atmospheric variable."""
        for kind in ("surface", "atmos"):
            if (kind, name) in self.fields:
                return self.fields[kind, name].source
        return name


@dataclass(frozen=True)
class Fields:
    """Canonical fields: three lazy Datasets, and the :class:`Layout` of the original data.

    ``surface`` is ``(time, latitude, longitude)``, ``static`` ``(latitude, longitude)``, ``atmos``
    ``(time, level, latitude, longitude)``. Names are Aurora's short names, units are SI, and the
    dtype is float32. Latitude is strictly decreasing, longitude increasing in the order of the
    domain. Levels are in hPa in the order of the data, and time is in UTC.
    """

    surface: xr.Dataset
    static: xr.Dataset
    atmos: xr.Dataset
    layout: Layout

    @property
    def times(self) -> np.ndarray:
        """Times of all frames, ``(time,)``, datetime64[ns], UTC."""
        reference = self.surface if self.surface.sizes.get("time") else self.atmos
        return reference["time"].values.astype("datetime64[ns]")

    @property
    def land(self) -> np.ndarray | None:
        """Land fraction, ``(h, w)``, if the data have it. Computed."""
        return self.static["lsm"].values if "lsm" in self.static else None

    @property
    def levels(self) -> tuple[float, ...]:
        """Pressure levels in hPa, in the order of the data."""
        return tuple(self.layout.levels)

    def select(
        self,
        *,
        surface: Iterable[str],
        static: Iterable[str],
        atmos: Iterable[str],
        levels: Iterable[float],
    ) -> Fields:
        """Select variables and levels."""
        wanted = [self.levels.index(level) for level in levels]
        out = self.atmos[list(atmos)]
        if wanted != list(range(len(self.levels))):
            taken = {n: lazy.take(da.variable, "level", wanted) for n, da in out.items()}
            levels_taken = {"level": self.atmos["level"].values[wanted]}
            out = xr.Dataset(taken, {**out.drop_vars("level").coords, **levels_taken})
        layout = replace(self.layout, levels=tuple(self.levels[i] for i in wanted))
        return Fields(self.surface[list(surface)], self.static[list(static)], out, layout)

    def crop(self, crop: patches.Crop) -> Fields:
        """Select the rows and columns that a crop keeps."""
        at = {"latitude": crop.rows, "longitude": crop.columns}
        layout = replace(self.layout, grid=crop.grid)
        still = self.static.isel(at) if len(self.static) else self.static
        return Fields(self.surface.isel(at), still, self.atmos.isel(at), layout)


# --- to canonical form ----------------------------------------------------------------------------


def standardise(
    ds: xr.Dataset, found: Recognition | None = None, *, own_values: bool = False
) -> Fields:
    """Return the canonical fields of a Dataset.

    Lazy, except that the first and last frames of a static field with a time axis are compared.

    Parameters
    ----------
    ds : Dataset
    found : Recognition, optional
        Result of :func:`recognise`, by default computed here.
    own_values : bool
        Keep values that change over time in their own units and precision, except rates. Scores
        then compare 1 mm with 1 mm, without the rounding of a conversion to metres in float32.

    Raises
    ------
    XauroraError
        The first of the problems that :func:`recognise` found.
    """
    found = recognise(ds) if found is None else found
    found.raise_first()
    if found.grid is None or found.times is None:
        raise CoordinateError(
            "the data have no horizontal grid or no times.",
            fix="ds.aurora.check() lists what is missing",
        )
    ds = labels.by_end(ds, found)
    coords_only = ds.drop_vars(list(ds.data_vars))
    layout = Layout(
        found.axes,
        found.fields,
        found.grid,
        found.levels,
        coords_only,
        found.times,
        {error.about: error for error in found.unusable.values() if error.about},
    )
    for note in found.notes:
        logger.info(note)
    parts: dict[str, dict[str, xr.Variable]] = {"surface": {}, "static": {}, "atmos": {}}
    for (kind, name), item in found.fields.items():
        parts[kind][name] = _canonical(ds[item.source], item, layout, own_values)
    coords: dict[str, Any] = {
        "time": found.times,
        "level": np.asarray(found.levels),
        "latitude": found.grid.latitude,
        "longitude": found.grid.longitude,
    }
    built = {}
    for kind, arrays in parts.items():
        dims = {dim for variable in arrays.values() for dim in variable.dims}
        if kind == "surface" and not parts["surface"] and not parts["atmos"]:
            dims.add("time")
        built[kind] = xr.Dataset(
            {name: arrays[name] for name in variables.order(kind, tuple(arrays))},
            {name: values for name, values in coords.items() if name in dims},
        )
    return Fields(built["surface"], built["static"], built["atmos"], layout)


def _canonical(da: xr.DataArray, item: Field, layout: Layout, own: bool) -> xr.Variable:
    """Return the bare variable: coordinates would cost more than a forecast of a small model."""
    axes, grid = layout.axes, layout.grid
    if item.variable.kind == "static" and axes["time"].dim in da.dims:
        da = _still(da, axes["time"].dim, item)
    bare = dask_arrays.without_dask(da.variable)
    known = {axis.dim for key, axis in axes.items() if key != "number"}
    at: dict[Any, Any] = {
        dim: 0 for dim in bare.dims if dim not in known
    }  # length 1: recognition rejects longer ones
    for axis, index in (("latitude", grid.rows), ("longitude", grid.columns)):
        if axes[axis].dim in bare.dims and not np.array_equal(index, np.arange(len(index))):
            at[axes[axis].dim] = indexed.as_slice(index)
    if at:
        bare = bare.isel(at)
    names = {
        "surface": ("time", "latitude", "longitude"),
        "static": ("latitude", "longitude"),
        "atmos": ("time", "level", "latitude", "longitude"),
    }[item.variable.kind]
    if missing := [axes[n].dim for n in names if axes[n].dim not in bare.dims]:
        raise TimeError(
            f"'{item.source}' has no dimension {missing}.",
            fix=f"ds['{item.source}'] = ds['{item.source}'].expand_dims({missing})",
        )
    bare = lazy.transpose(bare, [axes[n].dim for n in names])._replace(dims=names)
    own = own and item.variable.kind != "static" and not is_rate(str(item.attrs.get("units", "")))
    if not own and item.converted:
        to_canonical = functools.partial(_to_canonical, item.scale, item.offset)
        bare = lazy.map_values(bare, to_canonical, np.float32)
    elif not own and bare.dtype != np.float32:
        bare = lazy.map_values(bare, np.float32, np.float32)
    attrs = {
        **_statement(item),
        "units": str(item.attrs.get("units", item.variable.units)) if own else item.variable.units,
        "long_name": item.variable.long_name,
    }
    return bare._replace(attrs=attrs)


def _to_canonical(scale: float, offset: float, values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64) * scale + offset


def _statement(item: Field) -> dict[str, Any]:
    """Return the attribute with an accumulated variable's period, if it is known."""
    if not item.variable.accumulated:
        return {}
    hours = periods.declared_hours(item.source, item.attrs)
    return {} if hours is None else {"cell_methods": periods.cell_methods(hours)}


def _still(da: xr.DataArray, dim: str, item: Field) -> xr.DataArray:
    """Return the first frame of a static field after comparing it with the last one."""
    first = da.isel({dim: 0})
    if da.sizes[dim] > 1:
        last = da.isel({dim: -1})
        difference = float(np.abs(np.asarray(last.values, np.float64) - first.values).max())
        spread = float(np.ptp(np.asarray(first.values, np.float64)))
        # Packing to 16 bits changes a static field by up to 1/65536 of its range; two packings
        # differ by up to 0.004 in lsm.
        if difference > max(0.005, 1e-3 * spread):
            raise AmbiguousVariableError(
                f"'{item.source}' should not change over time, but differs by up to"
                f" {difference:.4g} between its first and last frame.",
                fix=(
                    f"ds['{item.source}'] = ds['{item.source}'].isel({dim}=0), if the first frame"
                    " is right"
                ),
            )
    return first


# --- back to the user's form ----------------------------------------------------------------------


def to_user_values(values: np.ndarray, item: Field) -> np.ndarray:
    """Convert canonical values to the user's units and dtype."""
    if item.converted:
        values = (values.astype(np.float64) - item.offset) / item.scale
    if np.issubdtype(item.dtype, np.floating):
        return values.astype(item.dtype, copy=False)
    return values.astype(np.float32, copy=False)  # integers in the file cannot hold a forecast


def user_positions(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices that order canonical rows and columns as in the user's data."""
    return np.argsort(layout.grid.rows, kind="stable"), np.argsort(
        layout.grid.columns, kind="stable"
    )


def restore(fields: Fields, levels: Iterable[float] | None = None) -> xr.Dataset:
    """Return canonical fields in the form of the user's data.

    This restores names, units, dimension order, grid order, dtype and attributes. It is meant for
    fields in memory: lazy ones are read. If the source contains all times, its other time
    coordinates (``expver`` and the like) are kept.
    """
    layout = fields.layout
    axes, source = layout.axes, layout.source
    wanted = set(fields.levels if levels is None else levels)
    rows, columns = user_positions(layout)
    index: dict[str, Any] = {
        axes["latitude"].dim: np.sort(layout.grid.rows),
        axes["longitude"].dim: np.sort(layout.grid.columns),
    }
    time_dim = axes["time"].dim
    times = fields.times
    coords = source.isel({d: i for d, i in index.items() if d in source.dims})
    position = {t: i for i, t in enumerate(layout.times)}
    if all(t in position for t in times):
        coords = coords.isel({time_dim: [position[t] for t in times]})
    else:
        name = axes["time"].name
        stale = [c for c in coords.coords if time_dim in coords[c].dims]
        attrs, encoding = source[name].attrs, source[name].encoding
        coords = coords.drop_vars(stale).assign_coords({name: (time_dim, times, attrs)})
        coords[name].encoding = {
            k: v for k, v in encoding.items() if k in ("units", "calendar", "dtype")
        }
    if "level" in axes and axes["level"].dim in coords.dims:
        all_levels = [float(v) for v in _all_levels(layout)]
        coords = coords.isel(
            {
                axes["level"].dim: [
                    all_levels.index(level) for level in all_levels if level in wanted
                ]
            }
        )
    out: dict[str, Any] = {}
    for (kind, name), item in layout.fields.items():
        part = getattr(fields, kind)
        if name not in part:
            continue
        da = part[name].isel(latitude=rows, longitude=columns)
        if kind == "atmos":
            order = [lv for lv in _all_levels(layout) if lv in wanted]
            have = [float(v) for v in part["level"].values]
            da = da.isel(level=[have.index(lv) for lv in order])
        names = {axes[n].dim: n for n in da.dims}
        variable = xr.Variable([axes[str(n)].dim for n in da.dims], da.data)
        for dim in item.dims:
            if dim not in names:
                size = len(times) if dim == time_dim else 1
                variable = variable.set_dims({dim: size, **dict(variable.sizes)})
        variable = variable.transpose(*item.dims)
        out[item.source] = (item.dims, to_user_values(variable.data, item), item.attrs)
    return coords.assign(out).assign_attrs(source.attrs)


def _all_levels(layout: Layout) -> list[float]:
    axis = layout.axes.get("level")
    if axis is None:
        return []
    values = np.atleast_1d(layout.source[axis.name].values).astype(np.float64)
    units = normalise_units(layout.source[axis.name].attrs.get("units", ""))
    factor = LEVEL_UNITS.get(units, 0.01 if values.max() > 1100 else 1.0)
    return [float(np.round(v * factor, 4)) for v in values]

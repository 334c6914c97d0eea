"""A Dataset as found → a :class:`Layout` → canonical fields, and back to the user's own form.

Everything here is lazy unless a docstring says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import AmbiguousVariableError, CoordinateError, TimeError
from xaurora.fields import periods, variables
from xaurora.fields.found import LEVEL_UNITS, Axis, Field, Recognition
from xaurora.fields.grid import lattice as grids
from xaurora.fields.grid import patches
from xaurora.fields.recognition import recognise
from xaurora.fields.unit_conversion import is_rate, normalise_units
from xaurora.utils.lazy import as_dask

logger = logging.getLogger("xaurora")


@dataclass(frozen=True)
class Layout:
    """All that is needed to give the data back as they came.

    Parameters
    ----------
    axes : dict
        Canonical axis name → :class:`Axis`.
    fields : dict
        ``(kind, canonical name)`` → :class:`Field`.
    grid : Grid
        Where each canonical row and column stands in the data.
    levels : tuple of float
        hPa, all that the data have, in their order.
    source : Dataset
        Coordinates and attributes of the data, without the fields.
    times : ndarray of datetime64
        When each frame of the data holds.
    """

    axes: dict[str, Axis]
    fields: dict[tuple[str, str], Field]
    grid: grids.Grid
    levels: tuple[float, ...]
    source: xr.Dataset
    times: np.ndarray

    def user_name(self, name: str) -> str:
        """The user's name of a canonical surface or atmospheric variable."""
        for kind in ("surface", "atmos"):
            if (kind, name) in self.fields:
                return self.fields[kind, name].source
        return name


@dataclass(frozen=True)
class Fields:
    """Canonical fields: three lazy Datasets and the :class:`Layout` that leads back.

    ``surface`` is ``(time, latitude, longitude)``, ``static`` ``(latitude, longitude)``, ``atmos``
    ``(time, level, latitude, longitude)``; Aurora's short names, SI units, float32, latitude
    strictly decreasing, longitude increasing in the order of the domain, levels in hPa in the order
    of the data, time in UTC.
    """

    surface: xr.Dataset
    static: xr.Dataset
    atmos: xr.Dataset
    layout: Layout

    @property
    def times(self) -> np.ndarray:
        """All times, ``(time,)``, datetime64[ns], UTC."""
        reference = self.surface if self.surface.sizes.get("time") else self.atmos
        return reference["time"].values.astype("datetime64[ns]")

    @property
    def levels(self) -> tuple[float, ...]:
        """hPa, in the order of the data."""
        return tuple(self.layout.levels)

    def select(
        self,
        *,
        surface: Iterable[str],
        static: Iterable[str],
        atmos: Iterable[str],
        levels: Iterable[float],
    ) -> Fields:
        """Just these variables and levels."""
        wanted = [self.levels.index(level) for level in levels]
        out = self.atmos[list(atmos)]
        if wanted != list(range(len(self.levels))):
            out = out.isel(level=wanted)
        layout = replace(self.layout, levels=tuple(self.levels[i] for i in wanted))
        return Fields(self.surface[list(surface)], self.static[list(static)], out, layout)

    def crop(self, crop: patches.Crop) -> Fields:
        """Just the kept rows and columns."""
        at = {"latitude": crop.rows, "longitude": crop.columns}
        layout = replace(self.layout, grid=crop.grid)
        return Fields(self.surface.isel(at), self.static.isel(at), self.atmos.isel(at), layout)


# --- to canonical form ----------------------------------------------------------------------------


def standardise(
    ds: xr.Dataset, found: Recognition | None = None, *, own_values: bool = False
) -> Fields:
    """Canonical fields of a Dataset. Lazy, except that the first and last frame of a static field
    with times are compared.

    Parameters
    ----------
    ds : Dataset
    found : Recognition, optional
    own_values : bool
        Leave values that change over time in their own units and precision (but for rates): scores
        compare 1 mm with 1 mm, not with what is left of it after metres in float32.

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
            fix="ds.aurora.check() says what is missing",
        )
    coords_only = ds.drop_vars(list(ds.data_vars))
    layout = Layout(found.axes, found.fields, found.grid, found.levels, coords_only, found.times)
    for note in found.notes:
        logger.info(note)
    parts: dict[str, dict[str, xr.DataArray]] = {"surface": {}, "static": {}, "atmos": {}}
    for (kind, name), item in found.fields.items():
        parts[kind][name] = _canonical(ds[item.source], item, layout, found.times, own_values)
    built = {}
    for kind, arrays in parts.items():
        built[kind] = xr.Dataset(
            {name: arrays[name] for name in variables.order(kind, tuple(arrays))}
        )  # type: ignore[arg-type]
    if not parts["surface"] and not parts["atmos"]:
        built["surface"] = built["surface"].assign_coords(time=found.times)
    return Fields(built["surface"], built["static"], built["atmos"], layout)


def _canonical(
    da: xr.DataArray, item: Field, layout: Layout, times: np.ndarray, own: bool
) -> xr.DataArray:
    axes, grid = layout.axes, layout.grid
    if item.variable.kind == "static" and axes["time"].dim in da.dims:
        da = _still(da, axes["time"].dim, item)
    # Without its coordinates: carrying those through each of these steps costs more than a forecast
    # of a small model.
    bare = da.variable
    known = {axis.dim for key, axis in axes.items() if key != "number"}
    at: dict[Any, Any] = {
        dim: 0 for dim in bare.dims if dim not in known
    }  # length 1: longer ones were refused
    for axis, index in (("latitude", grid.rows), ("longitude", grid.columns)):
        if axes[axis].dim in bare.dims and not np.array_equal(index, np.arange(len(index))):
            at[axes[axis].dim] = index
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
    bare = bare.transpose(*(axes[n].dim for n in names))._replace(dims=names)
    own = own and item.variable.kind != "static" and not is_rate(str(item.attrs.get("units", "")))
    if not own and (item.converted or bare.dtype != np.float32):
        # Arithmetic on a lazy array of a file would read it whole; a dask array is read frame by
        # frame.
        wide = as_dask(xr.DataArray(bare), "time")
        bare = (
            (wide.astype(np.float64) * item.scale + item.offset).astype(np.float32)
            if item.converted
            else wide.astype(np.float32)
        ).variable
    values = {
        "time": times,
        "level": np.asarray(layout.levels),
        "latitude": grid.latitude,
        "longitude": grid.longitude,
    }
    attrs = {
        **_statement(item),
        "units": str(item.attrs.get("units", item.variable.units)) if own else item.variable.units,
        "long_name": item.variable.long_name,
    }
    return xr.DataArray(
        bare._replace(attrs=attrs), {n: values[n] for n in names}, name=item.variable.name
    )


def _statement(item: Field) -> dict[str, Any]:
    """What an accumulated variable says of its period, kept under its canonical name."""
    if not item.variable.accumulated:
        return {}
    hours = periods.declared_hours(item.source, item.attrs)
    return {} if hours is None else {"cell_methods": periods.cell_methods(hours)}


def _still(da: xr.DataArray, dim: str, item: Field) -> xr.DataArray:
    """The first frame of a static field, after a look at the last one."""
    first = da.isel({dim: 0})
    if da.sizes[dim] > 1:
        last = da.isel({dim: -1})
        difference = float(np.abs(np.asarray(last.values, np.float64) - first.values).max())
        spread = float(np.ptp(np.asarray(first.values, np.float64)))
        # Packing to 16 bits moves a static field by up to 1/65536 of its range, and two packings by
        # up to 0.004 in lsm.
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
    """Canonical values in the user's units and dtype."""
    if item.converted:
        values = (values.astype(np.float64) - item.offset) / item.scale
    if np.issubdtype(item.dtype, np.floating):
        return values.astype(item.dtype, copy=False)
    return values.astype(np.float32, copy=False)  # integers in the file cannot hold a forecast


def user_positions(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """How to order canonical rows and columns as the user had them."""
    return np.argsort(layout.grid.rows, kind="stable"), np.argsort(
        layout.grid.columns, kind="stable"
    )


def restore(fields: Fields, levels: Iterable[float] | None = None) -> xr.Dataset:
    """Canonical fields in the user's names, units, dimension order, grid order, dtype and
    attributes.

    Meant for fields in memory: lazy ones are read. Times that the source has keep their other
    coordinates (``expver`` and the like).
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

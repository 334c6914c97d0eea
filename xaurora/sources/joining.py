"""Join Datasets: align grids and levels, concatenate along time, and attach static fields."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import CoordinateError, SourceError, TimeError
from xaurora.fields import periods, precipitation, recognition
from xaurora.fields.found import LEVEL_UNITS, Recognition
from xaurora.fields.unit_conversion import normalise_units
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.utils import lazy

logger = logging.getLogger("xaurora")


def combine(pieces: list[xr.Dataset]) -> xr.Dataset:
    """Combine the Datasets of several files into one, on a common grid and the shared times.

    Raises
    ------
    CoordinateError
        If a file has no latitude and longitude.
    TimeError
        If the times of a file cannot be read.
    SourceError
        If the files differ in grid, levels or units, or share no time.
    """
    found = [recognition.recognise(piece) for piece in pieces]
    for each in found:
        if each.grid is None:
            raise next(
                (p for p in each.problems if isinstance(p, CoordinateError)), each.problems[0]
            )
        moving = [key for key in each.fields if key[0] != "static"]
        if (
            moving
            and each.times is None
            and (bad := [p for p in each.problems if isinstance(p, TimeError)])
            and each.axes.get("time")
        ):
            raise bad[0]  # without times these fields would be treated as static
    dynamic = [i for i, r in enumerate(found) if _is_dynamic(r)]
    if not dynamic:
        return (
            pieces[0]
            if len(pieces) == 1
            else _merge_statics(pieces[0], found[0], pieces[1:], found[1:])
        )
    dynamic.sort(
        key=lambda i: not found[i].levels
    )  # the first one defines the order of the levels, so it must have levels
    reference = found[dynamic[0]]
    same_names = [_rename_axes(pieces[i], found[i], reference) for i in dynamic]
    same_names = _rename_surface_geopotential(
        same_names, [pieces[i] for i in range(len(pieces)) if i not in dynamic]
    )
    same_names = _stack_levels(same_names, reference)
    lead = same_names[0]
    aligned = [_same_grid(piece, lead, reference) for piece in same_names]
    time_dim = reference.axes["time"].dim
    groups = _concatenate(aligned, time_dim)
    merged = _meet(groups, time_dim)
    statics = [i for i in range(len(pieces)) if i not in dynamic]
    return _merge_statics(
        merged, reference, [pieces[i] for i in statics], [found[i] for i in statics]
    )


def _is_dynamic(found: Recognition) -> bool:
    if found.times is None:
        return False
    return any(kind != "static" for kind, _ in found.fields) or (
        not found.fields and len(found.times) > 1
    )


def _rename_axes(piece: xr.Dataset, found: Recognition, reference: Recognition) -> xr.Dataset:
    renames: dict[str, str] = {}
    for axis, there in reference.axes.items():
        here = found.axes.get(axis)
        if here is None or axis == "number":
            continue
        if here.dim != there.dim:
            renames[here.dim] = there.dim
        if here.name != there.name and here.name != here.dim:
            renames[here.name] = there.name
    renames = {old: new for old, new in renames.items() if old in piece.dims or old in piece.coords}
    clash = [new for new in renames.values() if new in piece.coords and new not in renames]
    return piece.drop_vars(clash).rename(renames) if renames else piece


def _rename_surface_geopotential(
    pieces: list[xr.Dataset], statics: list[xr.Dataset]
) -> list[xr.Dataset]:
    """Rename a surface ``z`` if there is also a pressure-level ``z``."""
    ranks = {piece["z"].ndim for piece in (*pieces, *statics) if "z" in piece}
    if len(ranks) < 2:
        return pieces
    deep = max(ranks)
    return [
        p.rename(z="geopotential_at_surface") if "z" in p and p["z"].ndim < deep else p
        for p in pieces
    ]


def _stack_levels(pieces: list[xr.Dataset], reference: Recognition) -> list[xr.Dataset]:
    """Concatenate Datasets that hold the same variables and times on different levels."""
    axis, time = reference.axes.get("level"), reference.axes["time"]
    if axis is None or axis.dim != axis.name:
        return pieces
    groups: dict[Hashable, list[xr.Dataset]] = {}
    for i, piece in enumerate(pieces):
        key: Hashable = i
        if axis.dim in piece.dims and time.dim in piece.dims:
            key = (frozenset(map(str, piece.data_vars)), tuple(piece[time.name].values.tolist()))
        groups.setdefault(key, []).append(piece)
    out = []
    for members in groups.values():
        levels = (
            [v for m in members for v in m[axis.name].values.tolist()] if len(members) > 1 else []
        )
        if len(members) > 1 and len(set(levels)) == len(levels):
            out.append(_concat(members, axis.dim))
        else:
            out.extend(members)
    return out


def _concat(members: list[xr.Dataset], dim: str) -> xr.Dataset:
    """Concatenate Datasets with the same variables along ``dim``. Lazy."""
    lead = members[0]
    joined = xr.concat(
        _same_coordinates([m.drop_vars(list(m.data_vars)) for m in members], dim),
        dim,
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    )
    values = {}
    for name, da in lead.data_vars.items():
        parts = [m[name].variable for m in members]
        values[name] = (
            lazy.concat([lazy.transpose(p, da.dims) for p in parts], dim)
            if dim in da.dims
            else da.variable
        )
    return joined.assign(values)


def _same_coordinates(members: list[xr.Dataset], dim: str) -> list[xr.Dataset]:
    """Give all Datasets the same coordinates along ``dim``, filling those that some lack.

    CDS files have ``expver`` only since 2024. Missing strings become empty, other values NaN.
    """
    extra = {name: m[name] for m in members for name in m.coords if m[name].dims == (dim,)}
    out = []
    for member in members:
        missing = {
            name: (dim, np.full(member.sizes[dim], "" if da.dtype.kind in "OSU" else np.nan))
            for name, da in extra.items()
            if name not in member.coords
        }
        others = [n for n in member.coords if n not in extra and any(n not in m for m in members)]
        out.append(member.drop_vars(others).assign_coords(missing))
    return out


def _drop_repeated(joined: xr.Dataset, members: list[xr.Dataset], dim: str) -> xr.Dataset:
    """Drop times that occur in several files, after checking that their values agree.

    Compares up to three such times.

    Raises
    ------
    SourceError
        They differ.
    """
    times = joined[dim].values
    repeated = np.unique(times[1:][times[1:] == times[:-1]])
    for time in repeated[np.unique(np.linspace(0, len(repeated) - 1, 3).astype(int))]:
        places = np.flatnonzero(times == time)
        for name, da in joined.data_vars.items():
            if dim not in da.dims:
                continue
            first, *others = (da.isel({dim: int(i)}).values for i in places)
            if any(not np.array_equal(first, other, equal_nan=True) for other in others):
                apart = max(float(np.nanmax(np.abs(first - other))) for other in others)
                files = [
                    str(m.encoding.get("source", "one of the files"))
                    for m in members
                    if (m[dim].values == time).any()
                ]
                raise SourceError(
                    f"several files hold '{name}' at {str(time)[:16]}, and they differ by up to"
                    f" {apart:.4g}: {', '.join(files)}.",
                    fix="open only one of them",
                )
    logger.info("%d time(s) are in several files, with the same values.", len(repeated))
    return joined.isel({dim: np.unique(times, return_index=True)[1]})


def _same_grid(piece: xr.Dataset, lead: xr.Dataset, reference: Recognition) -> xr.Dataset:
    """Return the Dataset in the order and with the coordinates of the reference grid and levels.

    Without identical coordinates, a later merge would treat rounding differences as new points.

    Raises
    ------
    SourceError
        If the grids or levels differ.
    """
    for axis in ("latitude", "longitude", "level"):
        if (
            axis not in reference.axes
            or reference.axes[axis].dim not in piece.dims
            or reference.axes[axis].dim not in lead.dims
        ):
            continue
        name, dim = reference.axes[axis].name, reference.axes[axis].dim
        here, there = piece[name].values.astype(np.float64), lead[name].values.astype(np.float64)
        if axis == "level" and piece[name].attrs.get("units") != lead[name].attrs.get("units"):
            here = here * _to_hpa(piece[name]) / _to_hpa(lead[name])
        distance = np.abs(here[None, :] - there[:, None])
        if axis == "longitude":
            distance = np.minimum(distance % 360.0, 360.0 - distance % 360.0)
        nearest = distance.argmin(axis=1)
        if here.shape != there.shape or distance[np.arange(len(there)), nearest].max() > 1e-3:
            raise SourceError(
                f"the files have different {axis}s: {len(here)} from {here[0]:g} to {here[-1]:g},"
                f" and {len(there)} from {there[0]:g} to {there[-1]:g}.",
                fix=f"select the same coordinates first, for example ds.sel({dim}=...)",
            )
        if not np.array_equal(nearest, np.arange(len(there))):
            piece = piece.isel({dim: nearest})
        piece = piece.assign_coords({name: lead[name]})
    return piece


def _to_hpa(level: xr.DataArray) -> float:
    return LEVEL_UNITS.get(normalise_units(level.attrs.get("units", "")), 1.0)


def _concatenate(pieces: list[xr.Dataset], time_dim: str) -> list[xr.Dataset]:
    """Concatenate Datasets with the same variables along time.

    Raises
    ------
    SourceError
        If units differ, times overlap, or a variable occurs in files with different variables.
    """
    by_names: dict[frozenset[str], list[xr.Dataset]] = {}
    for piece in pieces:
        by_names.setdefault(frozenset(map(str, piece.data_vars)), []).append(piece)
    groups = []
    for names, members in by_names.items():
        if len(members) > 1:
            for name in names:
                units = sorted({str(m[name].attrs.get("units", "none")) for m in members})
                if len(units) > 1:
                    raise SourceError(
                        f"'{name}' has different units in different files: {', '.join(units)}.",
                        fix="convert them to the same units first",
                    )
            members = sorted(members, key=lambda m: m[time_dim].values[:1].tolist())
            joined = _concat(members, time_dim)
            if not joined.indexes[time_dim].is_monotonic_increasing:
                joined = joined.sortby(time_dim)
            if joined.indexes[time_dim].has_duplicates:
                joined = _drop_repeated(joined, members, time_dim)
            groups.append(joined)
        else:
            groups.append(members[0])
    seen: dict[str, int] = {}
    for i, group in enumerate(groups):
        for name in map(str, group.data_vars):
            if name in seen:
                raise SourceError(
                    f"'{name}' is in several files whose other variables differ.",
                    fix=f"drop it from one: xr.open_dataset(path).drop_vars('{name}')",
                )
            seen[name] = i
    return groups


def _meet(groups: list[xr.Dataset], time_dim: str) -> xr.Dataset:
    """Merge Datasets on the times that they share.

    Accumulated variables with a shorter time step than the states are first summed over six hours.

    Raises
    ------
    SourceError
        If they share no time.
    """
    if len(groups) == 1:
        return groups[0]
    times = [group[time_dim].values for group in groups]
    steps = [periods.spacing_hours(t) if len(t) > 1 else float("inf") for t in times]
    rain = [_rain(group) for group in groups]
    state_step = max(
        (step for step, names in zip(steps, rain, strict=True) if not names), default=0.0
    )
    out = []
    for group, step, names in zip(groups, steps, rain, strict=True):
        finer = names and step < state_step != float("inf")
        out.append(_accumulated(group, names, time_dim) if finer else group)
    common = out[0][time_dim].values
    for group in out[1:]:
        common = np.intersect1d(common, group[time_dim].values)
    if not len(common):
        spans = "; ".join(
            f"{t[0].astype('datetime64[m]')} to {t[-1].astype('datetime64[m]')} every {s:g} h"
            for t, s in zip(times, steps, strict=True)
        )
        raise SourceError(
            f"the files share no time: {spans}.", fix="download files for the same period"
        )
    for group in out:
        if (lost := group.sizes[time_dim] - len(common)) > 0 and group.sizes[time_dim] > 0:
            logger.info(
                "%s: dropped %d time(s) that the other files lack.",
                ", ".join(sorted(map(str, group.data_vars))),
                lost,
            )
    cut = [group.sel({time_dim: common}) for group in out]
    return xr.merge(cut, compat="override", join="override", combine_attrs="override")


def _rain(group: xr.Dataset) -> list[str]:
    fields = recognition.recognise(group).fields
    return [item.source for item in fields.values() if item.variable.accumulated]


def _accumulated(group: xr.Dataset, names: list[str], time_dim: str) -> xr.Dataset:
    """Sum the named variables over six hours, and keep the times with a complete six hours."""
    for name in names:
        precipitation.check_not_running_totals(group[name], name=name, dim=time_dim)
    totals = {
        name: precipitation.accumulate(group[name], TIMESTEP_HOURS, name=name, dim=time_dim)
        for name in names
    }
    times = group[time_dim].values
    parts = {precipitation.value_period(name, group[name].attrs, times) for name in names}
    complete = precipitation.complete_times(times, min(parts))
    logger.info("%s: accumulated over %d hours.", ", ".join(names), TIMESTEP_HOURS)
    places = periods.TimeIndex(times).locate(complete)
    return group.assign(totals).isel({time_dim: places})


def _merge_statics(
    main: xr.Dataset,
    reference: Recognition,
    statics: list[xr.Dataset],
    found: list[Recognition],
) -> xr.Dataset:
    for piece, each in zip(statics, found, strict=True):
        time = each.axes.get("time")
        if time is not None and time.dim in piece.dims:
            piece = piece.isel({time.dim: 0}, drop=True)
        piece = _rename_axes(piece, each, reference).reset_coords(drop=True)
        piece = _cut_to(piece, main, reference)
        if "z" in piece and "z" in main:
            piece = piece.rename(z="geopotential_at_surface")
        fresh = [str(name) for name in piece.data_vars if name not in main]
        if known := [str(name) for name in piece.data_vars if name in main]:
            logger.info(
                "%s: in static and time-dependent files; the latter are used.", ", ".join(known)
            )
        main = main.assign({name: piece[name] for name in fresh})
    return main


def _cut_to(piece: xr.Dataset, main: xr.Dataset, reference: Recognition) -> xr.Dataset:
    """Select the grid points of the data from a static, usually global file.

    Longitude conventions may differ.

    Raises
    ------
    SourceError
        If the file does not cover the data, or has another grid.
    """
    index: dict[str, np.ndarray] = {}
    coords: dict[str, Any] = {}
    for axis in ("latitude", "longitude"):
        name, dim = reference.axes[axis].name, reference.axes[axis].dim
        have, want = piece[name].values.astype(np.float64), main[name].values.astype(np.float64)
        distance = np.abs(have[None, :] - want[:, None])
        if axis == "longitude":
            distance = np.minimum(distance % 360.0, 360.0 - distance % 360.0)
        nearest = distance.argmin(axis=1)
        step = np.abs(np.diff(want)).min() if len(want) > 1 else 1.0
        if distance[np.arange(len(want)), nearest].max() > 0.01 * step:
            raise SourceError(
                f"the static fields {sorted(map(str, piece.data_vars))} do not cover the {axis}s of"
                " the data, or are on another grid.",
                fix=(
                    "use static fields on the same grid, or regrid them (soil type by nearest"
                    " neighbour)"
                ),
            )
        index[dim], coords[name] = nearest, main[name]
    return piece.isel(index).assign_coords(coords)

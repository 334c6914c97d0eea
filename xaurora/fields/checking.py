"""``ds.aurora.check()``: every problem at once, each with the line that mends it, and what is legal
but unwise.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from xaurora.errors import MissingValuesError, TimeError, UnitsError, XauroraError
from xaurora.fields import (
    conventions,
    periods,
    precipitation,
    recognition,
    requirements,
    targets,
    variables,
)
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import lattice as grids
from xaurora.fields.recognition import Field, Recognition
from xaurora.fields.variables import TIMESTEP_HOURS

logger = logging.getLogger("xaurora")

_LOOKED_AT = 8  # frames of a large Dataset that are read in the search for NaN and for wrong units
_SMALL = 256 * 1024**2  # bytes; a Dataset in memory up to this size is read whole


class Problem(NamedTuple):
    """One problem: a stable code, what is wrong, and what to type."""

    code: str
    message: str
    fix: str


@dataclass
class Report:
    """What :meth:`check <xaurora.accessor.AuroraAccessor.check>` found.

    Attributes
    ----------
    problems : list of Problem
        What keeps the data from being used.
    notes : list of str
        What was converted, and what is legal but unwise.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = ["No problem found." if self.ok else f"{len(self.problems)} problem(s):"]
        for problem in self.problems:
            lines.append(f"  ✗ {problem.message}")
            if problem.fix:
                lines.append(f"    → {problem.fix}")
        if self.notes:
            lines.append("Notes:")
            lines += [f"  · {note}" for note in self.notes]
        return "\n".join(lines)

    __repr__ = __str__


def check(
    ds: xr.Dataset,
    target: str | Sequence[str] | None = None,
    needs: Callable[[Fields], requirements.Needs] | None = None,
) -> Report:
    """Look for everything that would go wrong. Reads a few frames, or all of a small Dataset in
    memory.

    Parameters
    ----------
    ds : Dataset
    target : str or sequence of str, optional
        Also look at these variables as something to learn.
    needs : callable, optional
        What the model needs, given the fields.
    """
    found = recognition.recognise(ds)
    notes = list(found.notes)
    if found.unrecognised:
        notes.append(f"Not recognised, and left alone: {', '.join(found.unrecognised)}.")
    errors = list(found.problems)

    def attempt(step: Callable[[], Any]) -> Any:
        try:
            return step()
        except XauroraError as error:
            errors.append(error)
            return None

    if found.times is not None:
        attempt(lambda: _check_times(found, notes))
    fields = (
        attempt(lambda: conventions.standardise(ds, _without_problems(found)))
        if found.grid is not None and found.times is not None and found.axes.get("time")
        else None
    )
    if fields is not None:
        wanted = attempt(lambda: needs(fields)) if needs is not None else None
        if wanted is not None:
            readable = (
                wanted if found.levels else replace(wanted, atmos=())
            )  # a level problem was named already
            attempt(lambda: requirements.check_variables(fields, readable))
            (
                attempt(lambda: requirements.levels_for(fields, wanted))
                if wanted.atmos and all(n in fields.atmos for n in wanted.atmos)
                else None
            )
            crop = attempt(
                lambda: grids.crop_to_patches(fields.layout.grid, wanted.patch_size, wanted.merges)
            )
            if crop is not None and crop.left_out:
                notes.append(f"Left out, because patches do not reach there: {crop.left_out}.")
            notes += requirements.notes_for(fields, wanted)
        if not any(error.code == "coordinate" for error in errors):
            errors += _check_values(ds, fields, wanted, notes)
        rain = [item for key, item in found.fields.items() if item.variable.accumulated]
        if target is not None:
            for name in attempt(lambda: targets.names_of(target)) or []:
                known = variables.find(name)
                if not any(
                    error.about and known and error.about[1] == known.name for error in errors
                ):
                    attempt(functools.partial(_check_target, ds, fields, name, notes))
        else:
            for item in rain:
                attempt(functools.partial(_check_rain, fields, item))
    return Report([Problem(e.code, e.message, e.fix) for e in errors], notes)


def _without_problems(found: Recognition) -> Recognition:
    """The same findings with the problems set aside, so that what is sound can be looked at
    further.
    """
    sound = {key: item for key, item in found.fields.items() if key[0] != "atmos" or found.levels}
    return Recognition(found.axes, sound, found.grid, found.levels, found.times)


def _check_times(found: Recognition, notes: list[str]) -> None:
    times = found.times
    if times is None or len(times) < 2:
        raise TimeError(
            "there is only one time, and Aurora needs two frames six hours apart.",
            fix="open at least two times",
        )
    steps = np.diff(times) / periods.HOUR
    spacing = periods.spacing_hours(times)
    there = set(times.tolist())
    if not any((t + np.timedelta64(6, "h")).item() in there for t in times):
        raise TimeError(
            f"times come every {spacing:g} hours, and no two are six hours apart.",
            fix="open 6-hourly or hourly data",
        )
    gaps = int((steps > max(spacing, 6)).sum())
    if gaps:
        where = times[np.flatnonzero(steps > max(spacing, 6))[0]]
        notes.append(
            f"{gaps} gap(s) in time, the first after {where.astype('datetime64[m]')}; samples"
            " across them are skipped, not bridged."
        )


def _check_target(ds: xr.Dataset, fields: Fields, target: str, notes: list[str]) -> None:
    if variables.find(target) is None and targets.key_of(fields, target) is None:
        fields = conventions.standardise(ds, targets.recognise(ds, [target]))
    (learnt,) = targets.resolve(fields, targets.names_of(target))
    targets.check_kinds([learnt])
    if not learnt.is_rain:
        notes.append(
            f"'{target}' is learnt as {learnt.variable.long_name.lower()}, in"
            f" {learnt.variable.units}."
        )
        return
    period = _check_rain(fields, learnt.item)
    notes.append(
        f"'{learnt.item.source}' holds {period}-hour totals"
        + ("; they are summed over 6 hours." if period != 6 else ".")
    )


def _check_rain(fields: Fields, item: Field) -> float:
    """Hours of the totals, which must lead to six-hour ones."""
    da = fields.surface[item.variable.name]
    period = precipitation.period_for(item.source, da.attrs, fields.times, TIMESTEP_HOURS)
    precipitation.refuse_running_totals(da, name=item.source)
    return period


def _check_values(
    ds: xr.Dataset, fields: Fields, wanted: requirements.Needs | None, notes: list[str]
) -> list[XauroraError]:
    errors: list[XauroraError] = []
    count = len(fields.times)
    in_memory = all(v._in_memory for v in ds.variables.values())
    whole = in_memory and ds.nbytes <= _SMALL
    looked = (
        np.arange(count)
        if whole
        else np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int))
    )
    if not whole and count > _LOOKED_AT:
        notes.append(
            f"{len(looked)} of {count} times were read in the search for missing values and wrong"
            " units."
        )
    for (kind, name), item in fields.layout.fields.items():
        part = getattr(fields, kind)
        if (
            wanted is not None
            and name not in getattr(wanted, kind)
            and not item.variable.accumulated
        ):
            continue
        da = part[name].isel(time=looked) if "time" in part[name].dims else part[name]
        missing, first, total = 0, None, 0.0
        for i in range(da.sizes.get("time", 1)):
            values = da.isel(time=i).values if "time" in da.dims else da.values
            bad = int((~np.isfinite(values)).sum())
            if bad and first is None and "time" in da.dims:
                first = da["time"].values[i]
            missing += bad
            total += bad == 0
        if missing and not item.variable.accumulated:
            dim = fields.layout.axes["longitude"].dim
            errors.append(
                MissingValuesError(
                    f"'{item.source}' has {missing} missing value(s)"
                    + (
                        f", the first at {first.astype('datetime64[m]')}"
                        if first is not None
                        else ""
                    )
                    + ", and Aurora takes none.",
                    fix=(
                        f"ds['{item.source}'] = ds['{item.source}'].interpolate_na('{dim}',"
                        f" fill_value='extrapolate').fillna(ds['{item.source}'].mean())"
                    ),
                )
            )
        elif missing:
            notes.append(
                f"'{item.source}' has {missing} missing value(s); they are left out of training and"
                " scores."
            )
        try:
            _refuse_implausible_field(fields, kind, name)
        except UnitsError as error:
            errors.append(error)
    return errors


def refuse_implausible(fields: Fields) -> None:
    """Raise :class:`UnitsError` for a field whose values contradict its units. Reads one frame of
    each variable.
    """
    for kind, name in fields.layout.fields:
        _refuse_implausible_field(fields, kind, name)


def warn_implausible(fields: Fields) -> None:
    """Log what :func:`refuse_implausible` would raise: a forecast is made, but the units look
    wrong.
    """
    try:
        refuse_implausible(fields)
    except UnitsError as error:
        logger.warning("%s", error)


def _refuse_implausible_field(fields: Fields, kind: str, name: str) -> None:
    item = fields.layout.fields[kind, name]
    da = getattr(fields, kind)[name]
    frame = da.isel(time=0).values if "time" in da.dims else da.values
    finite = frame[np.isfinite(frame)]
    if not finite.size:
        return
    mean, (low, high) = float(finite.mean(dtype=np.float64)), item.variable.plausible
    units = item.attrs.get("units", item.variable.units)
    if (kind, name) == ("atmos", "z"):
        expected = _standard_geopotential(np.asarray(fields.levels))
        low, high = float(expected.mean() * 0.5 - 8000), float(expected.mean() * 1.5 + 8000)
    if not low <= mean <= high:
        raise UnitsError(
            f"'{item.source}' says {units!r}, but its mean is {mean:.4g} {item.variable.units}"
            f" after conversion, and {low:.4g} to {high:.4g} is possible for"
            f" {item.variable.long_name.lower()}.",
            fix=(
                f"ds['{item.source}'].attrs['units'] = '...' with the units that the values are in,"
                f" one of {', '.join(variables.accepted_units(item.variable.units))}"
            ),
        )
    if item.variable.accumulated:
        hours = periods.declared_hours(item.source, item.attrs)
        if hours is None and len(fields.times) > 1 and periods.spacing_hours(fields.times) == 1:
            hours = 1
        _refuse_implausible_rain(da, item, hours, fields.layout.grid)


# m in one hour, and √h times as much in h hours: above the world's records (0.4 m, 0.84 m in 6 h,
# 1.8 m in 24 h; WMO)
_WETTEST = 0.42
_ABSURD = 0.05  # m in one hour, likewise: of which no hundredth of all points sees as much
_FAINT = 2e-6  # m in one hour; where rain varies as rain does, some of it is more
_TRACE = 1e-10  # m; below it is rounding
_GLOBAL_HOUR = (
    4e-5,
    3e-4,
    # m, mean over the globe and one hour: 0.12 mm by GPCP and ERA5, a third to twice and a half of it
)
_CHECKED = "xaurora_amounts_checked"
"""Attribute with which a user says that amounts are right, however odd they look."""


def refuse_implausible_target(target: targets.Target) -> None:
    """Raise :class:`UnitsError` for totals over six hours whose amounts cannot be. Reads a few
    frames.
    """
    if target.is_rain:
        grid = grids.from_axes(target.values["latitude"].values, target.values["longitude"].values)
        _refuse_implausible_rain(
            target.values.sel(time=target.times), target.item, TIMESTEP_HOURS, grid
        )


def _refuse_implausible_rain(
    da: xr.DataArray, item: Field, hours: float | None, grid: grids.Grid
) -> None:
    """Amounts that are far too large, far too small, or over a globe those of another period. Reads
    up to eight frames.
    """
    if item.attrs.get(_CHECKED):
        return
    count = da.sizes["time"]
    looked = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int))
    values = da.isel(time=looked).values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    units, top = item.attrs.get("units", item.variable.units), float(finite.max())
    longer = float(np.sqrt(hours or 24))
    if top > _WETTEST * longer or float(np.quantile(finite, 0.99)) > _ABSURD * longer:
        raise UnitsError(
            f"'{item.source}' says {units!r}, but holds {top:.3g} m in"
            f" {f'{hours:g} h' if hours else 'one period'}; the values are probably in mm.",
            fix=f"ds['{item.source}'].attrs['units'] = 'mm'",
        )
    aside = f"; if they are right, ds['{item.source}'].attrs['{_CHECKED}'] = 1"
    wet = finite[finite > _TRACE]
    # Noise of packing has few values, rain has many.
    many = wet.size > 0.2 * finite.size and wet.size >= 1000 and len(np.unique(wet)) >= 200
    if many and top < _FAINT * (hours or 1):
        raise UnitsError(
            f"'{item.source}' says {units!r} and rains at {wet.size / finite.size:.0%} of the"
            f" points, but never more than {top:.2g} m: such values are probably a rate, or in"
            " other units.",
            fix=f"ds['{item.source}'].attrs['units'] = 'kg m-2 s-1', if they are that" + aside,
        )
    if not grid.is_global or hours is None or len(looked) < 2 or not wet.size:
        return
    weights = np.broadcast_to(grids.latitude_weights(grid.latitude)[:, None], values.shape)
    there = np.isfinite(values)
    mean = float((np.where(there, values, 0.0) * weights).sum() / (there * weights).sum())
    if there.mean() < 0.9:
        return
    low, high = (edge * hours for edge in _GLOBAL_HOUR)
    if hours > 1 and mean < low and _GLOBAL_HOUR[0] <= mean <= _GLOBAL_HOUR[1]:
        raise UnitsError(
            f"'{item.source}' says that it holds {hours:g}-hour totals, but its mean over the globe"
            f" is {mean * 1e3:.2g} mm, that of one hour ({low * 1e3:.2g} to {high * 1e3:.2g} mm is"
            f" possible in {hours:g} h): 1-hour totals, downloaded every {hours:g} hours?",
            fix=f"download '{item.source}' for every hour, and take its cell_methods away" + aside,
        )
    if not low / 5 <= mean <= high * 10:  # far beyond what any season or year brings
        raise UnitsError(
            f"'{item.source}' says {units!r}, but its mean over the globe is {mean * 1e3:.2g} mm in"
            f" {hours:g} h, and {low * 1e3:.2g} to {high * 1e3:.2g} mm is possible: a rate, or"
            " other units?",
            fix=f"ds['{item.source}'].attrs['units'] = '...' with the units that the values are in"
            + aside,
        )


def _standard_geopotential(levels: np.ndarray) -> np.ndarray:
    """m2 s-2 at pressure levels in hPa; ICAO standard atmosphere, troposphere's formula, good to 10
    % above it.
    """
    return variables.GRAVITY * 44_330.8 * (1.0 - (levels / 1013.25) ** 0.190263)


def describe(ds: xr.Dataset) -> str:
    """One screen of what was recognised as what. Lazy."""
    if recognition.is_scores(ds):
        return _describe_scores(ds)
    if recognition.is_forecast(ds):
        return _describe_forecast(ds)
    found = recognition.recognise(ds)
    lines = ["xaurora: what was recognised"]
    if found.grid is not None:
        grid = found.grid
        where = "global" if grid.is_global else "region"
        lines.append(
            f"  grid       {where}, {grid.shape[0]} × {grid.shape[1]} at {grid.spacing[0]:.4g}° ×"
            f" {grid.spacing[1]:.4g}°, {grid.latitude[-1]:g} to {grid.latitude[0]:g}°N,"
            f" {grid.longitude[0]:g} to {grid.longitude[-1]:g}°E"
            + (", across Greenwich" if grid.crosses_greenwich else "")
        )
    if found.times is not None and len(found.times):
        times = found.times
        every = f" every {periods.spacing_hours(times):g} h" if len(times) > 1 else ""
        lines.append(
            f"  times      {len(times)}{every}, {times[0].astype('datetime64[m]')} to"
            f" {times[-1].astype('datetime64[m]')} UTC"
        )
    if found.levels:
        used = [v for v in found.levels if v in variables.LEVELS]
        lines.append(
            f"  levels     {', '.join(f'{v:g}' for v in found.levels)} hPa ({len(used)} of Aurora's"
            f" {len(variables.LEVELS)})"
        )
    for kind, label in (("surface", "surface"), ("atmos", "aloft"), ("static", "static")):
        items = [
            found.fields[kind, n]
            for n in variables.order(kind, tuple(n for k, n in found.fields if k == kind))
        ]  # type: ignore[arg-type]
        for i, item in enumerate(items):
            unit = item.attrs.get("units", "no units")
            change = f" → {item.variable.units}" if item.converted else ""
            lines.append(
                f"  {label if i == 0 else '':<10} {item.variable.name:<5} {item.source}"
                f" [{unit}{change}] {item.variable.long_name}"
            )
    if found.unrecognised:
        lines.append(f"  left alone {', '.join(found.unrecognised)}")
    if found.problems:
        lines.append(
            f"  {len(found.problems)} problem(s): ds.aurora.check() lists them with their mends"
        )
    return "\n".join(lines)


def _describe_scores(ds: xr.Dataset) -> str:
    carried = (
        "of each init time as well"
        if any("__" in str(c) for c in ds.coords)
        else "without their init times"
    )
    lines = [
        "xaurora: scores",
        f"  regions    {', '.join(map(str, np.atleast_1d(ds['region'].values)))}",
        (
            "  metrics   "
            f" {', '.join(map(str, np.atleast_1d(ds['metric'].values))) if 'metric' in ds.coords else '–'}"
        ),
        f"  variables  {', '.join(map(str, ds.data_vars))}",
        f"  over       {ds.attrs.get('number_of_init_times', '?')} init times, {carried}",
        (
            "  next       scorecard(path, baseline=...), xaurora.significance(scores, other),"
            " xaurora.combine_scores([...])"
        ),
    ]
    return "\n".join(lines)


def _describe_forecast(ds: xr.Dataset) -> str:
    init = "init_time" if "init_time" in ds.dims else "time"
    lead = "lead_time" if "lead_time" in ds.dims else "prediction_timedelta"
    hours = (
        [f"{v / periods.HOUR:g}" for v in ds[lead].values[:8]]
        if np.issubdtype(ds[lead].dtype, np.timedelta64)
        else ["?"]
    )
    lines = [
        "xaurora: a forecast",
        (
            f"  init times {ds.sizes[init]}, {str(ds[init].values[0])[:16]} to"
            f" {str(ds[init].values[-1])[:16]} UTC"
        ),
        f"  lead times {ds.sizes[lead]}: {', '.join(hours)}{' …' if ds.sizes[lead] > 8 else ''} h",
        f"  variables  {', '.join(map(str, ds.data_vars))}",
        "  next       evaluate(truth), plot(), to_weatherbench2()",
    ]
    return "\n".join(lines)

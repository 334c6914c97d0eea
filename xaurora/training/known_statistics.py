"""The first look, from statistics of the whole training period that were computed before."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import OptionError
from xaurora.fields import inputs, periods, recognition
from xaurora.fields.distribution import Distribution, Moments
from xaurora.fields.found import Axis
from xaurora.fields.grid.lattice import Grid
from xaurora.fields.targets import Target
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model.batch import STEP
from xaurora.training.plan import Plan

logger = logging.getLogger("xaurora")

_EDGE = 0.05
"""Share of the box in each direction that statistics may miss: patches drop some rows."""


def of_targets(plan: Plan, given: xr.Dataset) -> dict[str, Distribution]:
    """Return the climatology of each target.

    Parameters
    ----------
    plan : Plan
    given : Dataset
        From ``ds.aurora.statistics``.

    Raises
    ------
    OptionError
        A target is not in the statistics, or they are of other totals or of another region.
    """
    for t in plan.targets:
        _check(plan, given, t)
    _warn_of_other_times(plan, given)
    return {t.name: _distribution(given, t) for t in plan.targets}


def of_inputs(plan: Plan, given: xr.Dataset) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return mean and standard deviation of the inputs, or None if the statistics are not of them.

    The form is that of :func:`xaurora.fields.statistics.normalisation_statistics`.
    """
    form, levels = plan.fields.layout.fields, plan.fields.levels
    if not _covers(plan, given, plan.grid):
        return None
    surface = {str(n): str(form["surface", str(n)].source) for n in plan.fields.surface}
    atmos = {str(n): str(form["atmos", str(n)].source) for n in plan.fields.atmos}
    if not all(name in given for name in (*surface.values(), *atmos.values())):
        return None
    if not set(levels) <= set(given["level"].values.tolist() if "level" in given else ()):
        return None
    return {n: _pair(given[source]) for n, source in surface.items()}, {
        n: {f"{level:g}": _pair(given[source].sel(level=level)) for level in levels}
        for n, source in atmos.items()
    }


def digest(given: xr.Dataset) -> str:
    """Return a hash of the statistics."""
    out = hashlib.sha256()
    for name in sorted(map(str, given.variables)):
        out.update(name.encode())
        out.update(np.ascontiguousarray(given[name].values).astype(str).tobytes())
    return out.hexdigest()


def _pair(row: xr.DataArray) -> tuple[float, float]:
    mean, std = (float(row.sel(statistic=label)) for label in ("mean", "std"))
    return mean, std if std > 1e-12 * max(abs(mean), 1e-30) else 1.0


def _distribution(given: xr.Dataset, target: Target) -> Distribution:
    source = str(target.item.source)
    row = {str(label): float(v) for label, v in given[source].to_series().items()}
    histogram = given[f"{source}_histogram"]
    values = histogram[f"{source}_bin"].values.astype(np.float64)
    weights = histogram.values.astype(np.float64)
    weight = float(weights.sum())
    count = int(row["count"])
    out = Distribution(amounts=target.is_rain)
    out.histogram.add(values, weights)
    squares = row["std"] ** 2 * weight
    out.moments = Moments(count, weight, row["mean"], squares, row["min"], row["max"])
    if target.is_rain and row["wet_fraction"] > 0:
        share, wet = row["wet_fraction"], values[values > 0]
        squares = row["wet_log_std"] ** 2 * share * weight
        ends = float(np.log(wet[0])), float(np.log(row["max"]))
        out.log_wet = Moments(
            max(round(share * count), 1), share * weight, row["wet_log_mean"], squares, *ends
        )
        out.clipped = int(row["clipped"])
    return out


def _check(plan: Plan, given: xr.Dataset, target: Target) -> None:
    source = str(target.item.source)
    if f"{source}_histogram" not in given or source not in given:
        known = sorted(str(n) for n in given.data_vars if f"{n}_histogram" in given)
        raise OptionError(
            f"statistics= has no histogram of the target '{source}'; it has those of {known}.",
            fix=_fix(plan, target),
        )
    hours = periods.declared_hours(source, given[source].attrs)
    if target.is_rain and hours != TIMESTEP_HOURS:
        over = f"over {hours:g} hour(s)" if hours else "over a period that is not stated"
        raise OptionError(
            f"statistics= is of '{source}' {over}, but the target is its total over"
            f" {TIMESTEP_HOURS} hours.",
            fix=_fix(plan, target),
        )
    if not _covers(plan, given, plan.target_grid):
        raise OptionError(
            f"statistics= is of {inputs.place(_box(given))}, but the target is trained on"
            f" {inputs.place(inputs.box_of(plan.target_grid))}.",
            fix=_fix(plan, target),
        )


def _box(given: xr.Dataset) -> list[float]:
    return list(map(float, given.attrs["box"]))


def _covers(plan: Plan, given: xr.Dataset, grid: Grid) -> bool:
    """Return whether statistics are of a grid, apart from its edges."""
    box, wanted = _box(given), inputs.box_of(grid)
    height, width = max(wanted[1] - wanted[0], 1e-9), max(wanted[3], 1e-9)
    aside = abs((box[2] - wanted[2] + 180.0) % 360.0 - 180.0) if width < 360.0 else 0.0
    gaps = [abs(box[0] - wanted[0]) / height, abs(box[1] - wanted[1]) / height]
    gaps += [abs(box[3] - wanted[3]) / width, aside / width]
    edge = (1 + plan.needs.patch_size + plan.options.halo) * max(plan.grid.spacing)
    return max(gaps) <= max(_EDGE, edge / min(height, width))


def _warn_of_other_times(plan: Plan, given: xr.Dataset) -> None:
    start, end = (np.datetime64(given.attrs[key], "ns") for key in ("start", "end"))
    train, validation = plan.split.train, plan.split.validation
    last = train[-1] + STEP * plan.options.rollout_steps
    if end < train[0] or start > last:
        logger.warning(
            "statistics= is of %s to %s, and the training part of %s to %s: heads start at the"
            " climate of other times.",
            *(str(t)[:16] for t in (start, end, train[0], last)),
        )
    elif not plan.split.same and (shared := int(((validation > start) & (validation < end)).sum())):
        between = bool(((validation > train[0]) & (validation < last)).any())
        period = f"time={_period(plan)}" if not between else "the training times: ds.sel(time=...)"
        logger.warning(
            "statistics= includes the times of %d of %d validation samples. For an independent"
            " validation compute it with %s.",
            shared,
            len(validation),
            period,
        )


def _period(plan: Plan) -> tuple[str, str]:
    """Return the first and last hour of the targets of the training part."""
    train = plan.split.train
    ends = (train[0] + STEP, train[-1] + STEP * plan.options.rollout_steps)
    return str(ends[0])[:13], str(ends[1])[:13]


def _fix(plan: Plan, target: Target) -> str:
    """Return the code that computes the right statistics."""
    source, truth = str(target.item.source), plan.options.truth
    data = "ds" if truth is None else "truth"
    if plan.window is not None:
        layout = plan.fields.layout
        axes, ds = (layout.axes, layout.source) if truth is None else _axes_of(truth)
        data += f".isel({_selection(axes, ds, inputs.box_of(plan.target_grid))})"
    if target.is_rain and periods.declared_hours(source, target.item.attrs) != TIMESTEP_HOURS:
        data += f".aurora.accumulate('{source}').to_dataset(name='{source}')"
    return f"statistics={data}.aurora.statistics(['{source}'], time={_period(plan)})"


def _axes_of(ds: xr.Dataset) -> tuple[dict[str, Axis], xr.Dataset]:
    return recognition.recognise(ds).axes, ds


def _selection(axes: dict[str, Axis], ds: xr.Dataset, box: list[float]) -> str:
    """Return the arguments of ``isel`` that select a box, in whatever order the axes are."""
    south, north, west, width = box
    near = 1e-3  # degrees: coordinates are rounded
    latitude, longitude = axes["latitude"], axes["longitude"]
    lat = ds[latitude.name].values.astype(float)
    lon = (ds[longitude.name].values.astype(float) - west + near) % 360.0
    inside = (lat >= south - near) & (lat <= north + near), lon <= width + 2 * near
    return ", ".join(
        f"{axis.dim}={_runs(np.flatnonzero(there))}"
        for axis, there in zip((latitude, longitude), inside, strict=True)
    )


def _runs(places: np.ndarray) -> str:
    """Return places as a slice, or as several."""
    parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    ends = [(int(p[0]), int(p[-1]) + 1) for p in parts if len(p)]
    if len(ends) == 1:
        return "slice({}, {})".format(*ends[0])
    return f"np.r_[{', '.join(f'{a}:{b}' for a, b in ends)}]"

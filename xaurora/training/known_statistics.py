"""The first look, from statistics of the whole training period that were computed before."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import OptionError
from xaurora.fields import inputs, periods
from xaurora.fields.distribution import Distribution, Moments
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
    """Return mean and standard deviation of the inputs, or None if some are not in the statistics.

    The form is that of :func:`xaurora.fields.statistics.normalisation_statistics`.
    """
    form, levels = plan.fields.layout.fields, plan.fields.levels
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
    times = int(given.attrs["number_of_times"])
    apart = (np.datetime64(given.attrs["end"]) - np.datetime64(given.attrs["start"])) / max(
        times - 1, 1
    )
    if target.is_rain and (
        hours not in (None, TIMESTEP_HOURS) or (hours is None and times > 1 and apart < STEP)
    ):
        raise OptionError(
            f"statistics= is of '{source}' over {f'{hours:g} hours' if hours else apart}, but the"
            f" target is its total over {TIMESTEP_HOURS} hours.",
            fix=_fix(plan, target, totals=True),
        )
    box, wanted = list(map(float, given.attrs["box"])), inputs.box_of(plan.target_grid)
    height, width = max(wanted[1] - wanted[0], 1e-9), wanted[3]
    aside = abs((box[2] - wanted[2] + 180.0) % 360.0 - 180.0) if width < 360.0 else 0.0
    gaps = [abs(box[0] - wanted[0]) / height, abs(box[1] - wanted[1]) / height]
    gaps += [abs(box[3] - wanted[3]) / width, aside / width]
    halo = (1 + plan.needs.patch_size + (plan.options.halo or 0)) * max(plan.grid.spacing)
    if max(gaps) > max(_EDGE, halo / min(height, width)):
        raise OptionError(
            f"statistics= is of {inputs.place(box)}, but the target is trained on"
            f" {inputs.place(wanted)}.",
            fix=_fix(plan, target, box=wanted),
        )


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
        logger.warning(
            "statistics= includes the times of %d of %d validation samples. For an independent"
            " validation compute it with time=('%s', '%s').",
            shared,
            len(validation),
            *(str(t)[:16] for t in (train[0] + STEP, last)),
        )


def _fix(
    plan: Plan, target: Target, *, totals: bool = False, box: list[float] | None = None
) -> str:
    """Return the code that computes the right statistics."""
    source, name = target.item.source, "ds" if plan.options.truth is None else "truth"
    period = (plan.split.train[0] + STEP, plan.split.train[-1] + STEP * plan.options.rollout_steps)
    first, last = (str(t)[:16] for t in period)
    data = name
    if totals:
        data += f".assign({{'{source}': {name}.aurora.accumulate('{source}')}})"
    if box is not None:
        axes = {k: plan.fields.layout.axes[k].name for k in ("latitude", "longitude")}
        lat = plan.fields.layout.source[axes["latitude"]].values
        south, north = box[:2] if lat[0] < lat[-1] else box[1::-1]
        ranges = [f"{axes['latitude']}=slice({south:g}, {north:g})"]
        if box[3] < 360.0:
            west = box[2]
            if float(plan.fields.layout.source[axes["longitude"]].min()) < 0.0 and west > 180.0:
                west -= 360.0
            ranges.append(f"{axes['longitude']}=slice({west:g}, {west + box[3]:g})")
        data += f".sel({', '.join(ranges)})"
    return f"statistics={data}.aurora.statistics(['{source}'], time=('{first}', '{last}'))"

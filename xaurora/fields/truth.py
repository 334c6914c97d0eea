"""Targets from another Dataset: aligned in time and brought onto the grid of the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import KindError, TruthError, XauroraError
from xaurora.fields import conventions, periods, recognition
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import regridding
from xaurora.fields.targets import MIN_VALID_FRACTION, Target, _of_fields, recognise
from xaurora.fields.variables import TIMESTEP_HOURS, find
from xaurora.utils import lazy
from xaurora.utils.types import Given

logger = logging.getLogger("xaurora")


def truth_fields(truth: Given, fields: Fields, names: Sequence[str]) -> Fields:
    """Return the canonical fields of a truth: the targets, and variables shared with the data."""
    if not isinstance(truth, xr.Dataset):
        raise KindError(
            f"truth must be a Dataset of fields, got {type(truth).__name__}.",
            fix="finetune('tp', truth=ds_with_tp)",
        )
    if recognition.is_forecast(truth):
        raise KindError(
            "the truth is a forecast (it has lead times).", fix="truth=fields, with one time axis"
        )
    if "valid_fraction" in truth:  # from open_imerg: mask cells with little coverage
        share = truth["valid_fraction"]
        seen = {
            n: lazy.where_at_least(truth[n], share, MIN_VALID_FRACTION)
            for n in truth.data_vars
            if n != "valid_fraction" and truth[n].dims == share.dims
        }
        truth = truth.assign(seen).drop_vars("valid_fraction")
    found = recognise(truth, names)
    wanted = {
        ("surface", known.name if (known := find(name)) is not None else name) for name in names
    }
    wanted |= {key for key, item in found.fields.items() if item.source in names}
    shared = {key for key in found.fields if key in fields.layout.fields and key[0] == "surface"}
    found.problems = [p for p in found.problems if p.about is None or p.about in wanted]
    found.fields = {key: item for key, item in found.fields.items() if key in wanted | shared}
    found.raise_first()
    return conventions.standardise(truth, found)


_SHIFTS = tuple(h for h in range(-6, 7) if h)  # h; likely errors of a wrong time label


_COMPARED = 8  # frames


def check_shift(fields: Fields, right: Fields) -> None:
    """Raise if the times of the truth are shifted. Reads a few frames of the shared variables.

    A shift is detected if a shared variable agrees at another hour but not at its own. Without a
    shared variable, it is detected if all times of the truth differ from those of the data by the
    same number of hours.
    """
    ours, theirs = fields.times, right.times
    if not periods.TimeIndex(theirs).has(ours).any():
        raise TruthError(
            f"the truth ({_span(theirs)}) has no time in common with the data ({_span(ours)})."
            + _hint_of_offset(ours, theirs),
            fix="use a truth with values at the data's times",
        )
    same_grid = regridding.same(
        fields.layout.grid.latitude, right.layout.grid.latitude
    ) and regridding.same(fields.layout.grid.true_longitude, right.layout.grid.true_longitude)
    if same_grid and _is_compared(fields, right):
        return
    if (
        right.layout.source.attrs.get("xaurora_source") == "IMERG"
        or len(ours) != len(theirs)
        or len(ours) < 3
    ):
        return
    offset = theirs - ours
    # Only shifts shorter than Aurora's time step: a shift by whole steps may be another part of the
    # same record.
    if (offset == offset[0]).all() and np.timedelta64(0) < abs(offset[0]) < np.timedelta64(
        TIMESTEP_HOURS, "h"
    ):
        hours = offset[0] / periods.HOUR
        raise TruthError(
            f"the truth has as many times as the data, all shifted by {hours:+g} h, as if its"
            " labels were wrong.",
            fix=(
                f"truth.assign_coords(time=truth.time - np.timedelta64({int(hours)}, 'h')) if they"
                " are wrong; if they are right, select the data's times:"
                " truth.sel(time=slice(start, end))"
            ),
        )


def _comparable(fields: Fields, name: str) -> Target | None:
    """Return a variable in a form that can be compared: precipitation as six-hour totals.

    None if it cannot be brought into that form.
    """
    try:
        return _of_fields(fields, name)
    except XauroraError:
        return None


def _is_compared(fields: Fields, right: Fields) -> bool:
    """Compare the shared variables at the same time and at shifted times.

    Returns True if anything was compared. Raises if another time fits better than the same time.
    """
    compared = False
    for name in map(str, fields.surface):
        if name not in right.surface:
            continue
        mine, theirs = _comparable(fields, name), _comparable(right, name)
        if mine is None or theirs is None:
            continue
        place = periods.TimeIndex(theirs.values["time"].values)
        both = mine.times[periods.TimeIndex(theirs.times).has(mine.times)]
        looked = (
            [
                both[i]
                for i in np.unique(
                    np.linspace(0, len(both) - 1, min(len(both), _COMPARED)).astype(int)
                )
            ]
            if len(both)
            else []
        )
        frames = {t: mine.values.sel(time=t).values.astype(np.float64) for t in looked}
        frames = {t: v for t, v in frames.items() if np.isfinite(v).any()}
        if not frames:
            continue
        spread = float(np.nanstd(np.stack(list(frames.values()))))
        if not spread > 0:
            continue

        def misfit(
            hours: int,
            frames: dict[Any, np.ndarray] = frames,
            theirs: Target = theirs,
            place: periods.TimeIndex = place,
        ) -> float:
            parts = []
            for t, values in frames.items():
                i = int(place.locate(t + hours * periods.HOUR))
                if i >= 0:
                    apart = np.abs(theirs.values.isel(time=i).values - values)
                    if np.isfinite(apart).any():
                        parts.append(float(np.nanmean(apart)))
            return float(np.mean(parts)) if len(parts) >= min(3, len(frames)) else np.inf

        here = misfit(0)
        compared = compared or np.isfinite(here)
        best = min(_SHIFTS, key=misfit)
        if here > 0.01 * spread and misfit(best) < 0.05 * here:
            raise TruthError(
                f"the truth's '{right.layout.user_name(name)}' equals that of the data {abs(best)}"
                f" h {'earlier' if best > 0 else 'later'}: its times are off by {best:+d} h.",
                fix=f"truth.assign_coords(time=truth.time - np.timedelta64({best}, 'h'))",
            )
    return compared


def _span(times: np.ndarray) -> str:
    if not len(times):
        return "no times"
    return f"{len(times)} times, {str(times[0])[:16]} to {str(times[-1])[:16]}"


def _hint_of_offset(ours: np.ndarray, theirs: np.ndarray) -> str:
    if not len(theirs) or not len(ours) or theirs[-1] < ours[0] or theirs[0] > ours[-1]:
        return ""
    after = np.minimum(np.searchsorted(theirs, ours), len(theirs) - 1)
    nearest = min(np.abs(theirs[at] - ours).min() for at in (after, np.maximum(after - 1, 0)))
    return (
        f" The nearest times differ by {nearest / np.timedelta64(1, 'm'):g} minutes. xaurora"
        " labels totals with the end of their period."
    )


def onto_grid(target: Target, fields: Fields) -> Target:
    """Regrid a target to the fields' grid points, masked where too little of a cell has values."""
    grid, da = fields.layout.grid, target.values
    latitude, longitude = grid.latitude, grid.true_longitude
    method = "nearest" if target.variable.units == "category" else "conservative"
    same = regridding.same(da["latitude"].values, latitude) and regridding.same(
        da["longitude"].values % 360.0, longitude % 360.0
    )
    if not same:
        logger.info(
            "The truth's '%s' (%d × %d) is regridded to the data's grid (%d × %d), %s.",
            target.item.source,
            da.sizes["latitude"],
            da.sizes["longitude"],
            *grid.shape,
            "with the nearest point" if method == "nearest" else "conservatively",
        )
        da = regridding.onto(da, latitude, longitude, method=method, least=MIN_VALID_FRACTION)
    da = da.assign_coords(latitude=grid.latitude, longitude=grid.longitude)
    return replace(target, values=da)


def resolve_targets(
    fields: Fields, names: Sequence[str], truth: xr.Dataset | None = None
) -> list[Target]:
    """Return the targets, from the data or from a separate truth.

    Reads some frames to determine the accumulation period of precipitation.

    Raises
    ------
    TargetError
        A target is missing or is not a surface variable.
    TruthError
        The truth does not overlap the data in time or space, or is shifted in time.
    AccumulationError
        Six-hour totals cannot be computed.
    """
    if truth is None:
        return [_of_fields(fields, name) for name in names]
    right = truth_fields(truth, fields, names)
    check_shift(fields, right)
    return [onto_grid(_of_fields(right, name, where="truth"), fields) for name in names]


def history(past: xr.Dataset | None, fields: Fields, names: Sequence[str]) -> list[Target]:
    """Return past values of the targets on the fields' grid.

    They come from the fields themselves if ``past`` is None.

    Raises
    ------
    TargetError
        A target is missing.
    TruthError
        The past fields do not cover the grid.
    """
    if past is None:
        return [_of_fields(fields, name) for name in names]
    right = truth_fields(past, fields, names)
    return [onto_grid(_of_fields(right, name, where="past fields"), fields) for name in names]

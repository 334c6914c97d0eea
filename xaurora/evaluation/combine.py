"""Combine the scores of several files into those of all."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import xarray as xr

from xaurora.errors import KindError, TruthError
from xaurora.evaluation import metrics as _metrics
from xaurora.evaluation.aggregation import Slots, Table
from xaurora.evaluation.carried import carried, carriers
from xaurora.evaluation.frames import Frame, VariableInfo
from xaurora.evaluation.scores import build, extra_coords

logger = logging.getLogger("xaurora")


_SAME = ("grid", "regions_hash", "masked", "precipitation_hours", "lead_bins", "by")
"""Attributes that must be equal for scores to be combined."""


def combine(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Combine scores that each cover some of the init times, as if scored together.

    See :func:`xaurora.combine_scores`.

    Examples
    --------
    >>> halves = slice(0, 4), slice(4, None)
    >>> parts = [fc.isel(init_time=half).aurora.evaluate(ds) for half in halves]
    >>> whole = xaurora.combine_scores(parts)
    >>> whole.attrs["number_of_init_times"] == fc.sizes["init_time"]
    True
    """
    parts = list(parts)
    if not parts or not all(isinstance(p, xr.Dataset) and {"region"} <= set(p.dims) for p in parts):
        raise KindError(
            "the arguments must be Datasets of scores.",
            fix="xaurora.combine_scores([scores_of_may, scores_of_june])",
        )
    first = parts[0]
    if "level" in first.coords:  # the levels may be in a different order
        parts = [
            (
                p.sel(level=first["level"].values)
                if "level" in p.coords and set(p["level"].values) == set(first["level"].values)
                else p
            )
            for p in parts
        ]
    frames = [read(p) for p in parts]
    _check_alike(parts, frames)
    init_times = np.unique(np.concatenate([f.init_times for f, _ in frames]))
    leads = np.unique(np.concatenate([f.leads for f, _ in frames]))
    table = Table(len(init_times), len(leads), True)
    taken: dict[tuple[str, str], np.ndarray] = {}
    for f, t in frames:
        at = np.ix_(np.searchsorted(init_times, f.init_times), np.searchsorted(leads, f.leads))
        for key, slots in t.found.items():
            if key not in table.found:
                table.found[key] = Slots.empty(
                    slots.dims, (len(init_times), len(leads), *slots.mean.shape[2:])
                )
                taken[key] = np.zeros((len(init_times), len(leads)), bool)
            there = (slots.weight > 0).reshape(*slots.weight.shape[:2], -1).any(axis=2)
            if (taken[key][at] & there).any():
                raise TruthError(
                    "the same init time and lead time is scored in two of these Datasets.",
                    fix="split the init times so that they do not overlap",
                )
            taken[key][at] |= there
            target = table.found[key]
            kept = (slots.weight > 0) & np.ones(slots.mean.shape, bool)
            target.mean[at] = np.where(kept, slots.mean, target.mean[at])
            target.weight[at] += slots.weight
    attrs = dict(first.attrs)
    for name in ("fields_scored", "fields_without_truth"):
        attrs[name] = int(sum(p.attrs.get(name, 0) for p in parts))
    attrs["number_of_init_times"] = len(init_times)
    attrs["first_init_time"], attrs["last_init_time"] = (
        str(t.astype("datetime64[m]")) for t in (init_times.min(), init_times.max())
    )
    if lost := [str(n) for n in first.data_vars if str(n).endswith("_bias_map")]:
        logger.warning(
            "%s cannot be combined and is dropped; evaluate all init times at once to get it.",
            ", ".join(lost),
        )
    frame = frames[0][0]
    frame.init_times, frame.leads, frame.attrs = init_times, leads, attrs
    return build(table, frame)


def read(scores: xr.Dataset) -> tuple[Frame, Table]:
    """Return the frame and the area means of a Dataset of scores.

    Raises
    ------
    KindError
        If the scores do not carry values for each init time.
    """
    attrs = dict(scores.attrs)
    labels = {n: _metrics.ALIASES.get(n, n) for n in str(attrs.get("metrics", "")).split()}
    by = tuple(str(attrs.get("by", "")).split())
    init_times = (
        scores["init_time"].values.astype("datetime64[ns]")
        if "init_time" in scores.coords
        else np.array([], "datetime64[ns]")
    )
    variables: dict[str, VariableInfo] = {}
    levels = tuple(map(float, scores["level"].values)) if "level" in scores.coords else ()
    leads = (
        scores["carried_lead_time"].values
        if "carried_lead_time" in scores.coords
        else np.array([], "timedelta64[ns]")
    )
    table = Table(len(init_times), len(leads), True)
    bases = carriers(scores)
    if "carried_lead_time" not in scores.coords or not bases:
        carried(scores, str(next(iter(scores.data_vars), "tp")))
    bins = None
    if "lead_bin" in scores.dims:
        import json

        stored = json.loads(attrs["lead_bins"])
        bins = {k: np.array(v, "timedelta64[ns]") for k, v in stored.items()}
    for base, described in bases.items():
        canonical = str(described.get("xaurora_variable", base))
        mine: tuple[float, ...] = ()
        for statistic, (mean, weight) in carried(scores, base).items():
            has_level = "level" in mean.dims
            dims = tuple(map(str, mean.dims[3:]))
            extra = tuple(d for d in dims if d != "level")
            values, share = mean.values.astype(np.float64), weight.values.astype(np.float64)
            if has_level:
                keep = np.flatnonzero(np.isfinite(share).reshape(-1, share.shape[-1]).any(axis=0))
                values, share = values[..., keep], share[..., keep]
                mine = tuple(levels[k] for k in keep)
            table.found[canonical, statistic] = Slots(extra, values, np.nan_to_num(share))
        variables[canonical] = VariableInfo(
            base,
            str(described.get("units", "")),
            str(described.get("long_name", "")),
            canonical,
            mine,
        )
    coords = {}
    for name in extra_coords((), (), (), ()):
        if name in scores.coords:
            coords[name] = (name, scores[name].values, scores[name].attrs)
    frame = Frame(
        variables,
        [str(r) for r in scores["region"].values],
        init_times,
        leads,
        labels,
        by,
        bins,
        str(attrs.get("convention", "weatherbench2")),
        coords,
        attrs,
    )
    return frame, table


def _check_alike(parts: list[xr.Dataset], frames: list[tuple[Frame, Table]]) -> None:
    first = parts[0]
    names = [sorted(f.variables) for f, _ in frames]
    for (f, t), part in zip(frames[1:], parts[1:], strict=True):
        same = (
            f.regions == frames[0][0].regions
            and f.labels == frames[0][0].labels
            and f.by == frames[0][0].by
            and sorted(f.variables) == names[0]
            and all(
                np.array_equal(part[c], first[c]) for c in frames[0][0].coords if c in first.coords
            )
            and part.attrs.get("grid") == first.attrs.get("grid")
            and f.convention == frames[0][0].convention
            and set(t.found) == set(frames[0][1].found)
            and all(part.attrs.get(n) == first.attrs.get(n) for n in _SAME)
            and all(
                f.variables[n].units == v.units
                for n, v in frames[0][0].variables.items()
                if n in f.variables
            )
            and all(
                f.variables[n].levels == v.levels
                for n, v in frames[0][0].variables.items()
                if n in f.variables
            )
        )
        if not same:
            raise TruthError(
                "these scores differ in variables, units, levels, regions, metrics, thresholds,"
                " grid, bins or convention, and cannot be combined.",
                fix="evaluate all of them with the same arguments",
            )

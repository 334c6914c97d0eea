"""Sums → a Dataset of scores, and back: scores of files and workers add up. Knows nothing of torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import KindError, OptionError, TruthError
from xaurora.evaluation import metrics as _metrics
from xaurora.evaluation.aggregation import Slots, Table
from xaurora.evaluation.histograms import INTENSITY_EDGES, PIT_BINS, PROBABILITY_BINS

logger = logging.getLogger("xaurora")

MOST_KEPT = 128 * 1024**2
"""bytes of sums by init time that a Dataset of scores carries along, at most."""

BY = ("init_time", "season", "month", "hour", "year")
_SEPARATOR = "__"
_WEIGHT = "weight"

BESIDE = {
    "_intensity": (("truth_intensity", "truth_intensity", "share of the area by amount, truth"),),
    "_spectrum": (("truth_spectrum", "truth_spectrum", "zonal power by wavenumber, truth"),),
    "_reliability": (
        ("forecast_probability", "", "mean forecast probability of the bin"),
        ("bin_share", "bin_share", "share of all forecasts in the bin"),
    ),
}
"""What stands beside some metrics: name, statistic, words."""


@dataclass
class Described:
    """One variable of the scores.

    Parameters
    ----------
    name : str
        In the scores.
    units, long_name : str
    canonical : str
        ``kind/name`` in the table of variables, by which scores of different namings meet.
    levels : tuple of float
    """

    name: str
    units: str
    long_name: str
    canonical: str
    levels: tuple[float, ...] = ()


@dataclass
class Frame:
    """Everything about the scores but the sums.

    Parameters
    ----------
    variables : dict
        Key of the sums → :class:`Described`.
    regions : list of str
    init_times, leads : ndarray
    labels : dict
        Label of each metric → its name.
    by : tuple of str
        Time dims that are kept apart.
    lead_bins : dict, optional
        Label → first and last lead.
    convention : str
    coords : dict
        Of extra dims.
    attrs : dict
    """

    variables: dict[str, Described]
    regions: list[str]
    init_times: np.ndarray
    leads: np.ndarray
    labels: dict[str, str]
    by: tuple[str, ...]
    lead_bins: dict[str, np.ndarray] | None
    convention: str
    coords: dict[str, Any]
    attrs: dict[str, Any]


def groups_of(
    init_times: np.ndarray, leads: np.ndarray, by: Sequence[str]
) -> tuple[np.ndarray, list[tuple[Any, ...]]]:
    """Group of each field, ``(init, lead)``, by properties of the time it is valid at (or of the
    init time), and their values in order.
    """
    import pandas as pd

    valid = init_times[:, None] + leads[None]
    index = pd.DatetimeIndex(valid.ravel())
    columns: list[Any] = []
    for name in by:
        if name == "init_time":
            columns.append(np.repeat(init_times, len(leads)).tolist())
        elif name == "season":
            columns.append([("DJF", "MAM", "JJA", "SON")[m % 12 // 3] for m in index.month])
        else:
            columns.append([int(v) for v in getattr(index, name)])
    keys = list(zip(*columns, strict=True)) if columns else [()] * len(index)
    seasons = {"DJF": 0, "MAM": 1, "JJA": 2, "SON": 3}
    values = sorted(set(keys), key=lambda key: tuple(seasons.get(v, v) for v in key))
    place = {key: i for i, key in enumerate(values)}
    return np.array([place[key] for key in keys]).reshape(valid.shape), values


def lead_groups(
    leads: np.ndarray, bins: Mapping[str, Any] | None
) -> tuple[np.ndarray, dict[str, np.ndarray] | None]:
    """Bin of each lead, −1 for none.

    Raises
    ------
    OptionError
        Bins that are no dict of (first, last), or hold no lead.
    """
    if bins is None:
        return np.arange(len(leads)), None
    import pandas as pd

    if not isinstance(bins, Mapping) or not bins:
        raise OptionError(
            f"lead_bins={bins!r} is no dict of label → (first, last) lead.",
            fix="lead_bins={'day 1': ('6h', '24h')}",
        )
    out, found = np.full(len(leads), -1), {}
    for i, (label, ends) in enumerate(bins.items()):
        try:
            first, last = (pd.Timedelta(e).to_timedelta64() for e in ends)
        except (ValueError, TypeError) as why:
            raise OptionError(
                f"lead_bins: {label!r} is {ends!r}, no pair of durations.",
                fix="lead_bins={'day 1': ('6h', '24h')}",
            ) from why
        inside = (leads >= first) & (leads <= last)
        if not inside.any():
            raise OptionError(
                f"lead_bins: no lead time lies in {label!r}, {ends[0]} to {ends[1]}.",
                fix=f"leads are {', '.join(f'{h:g}h' for h in leads / np.timedelta64(1, 'h'))}",
            )
        if (out[inside] >= 0).any():
            raise OptionError(
                f"lead_bins: {label!r} overlaps another bin.", fix="every lead in one bin at most"
            )
        out[inside] = i
        found[str(label)] = np.array([first, last]).astype("timedelta64[ns]")
    return out, found


def build(table: Table, frame: Frame) -> xr.Dataset:
    """Scores of what was kept by init time, or added up by ``frame.by`` already."""
    to, values = groups_of(frame.init_times, frame.leads, frame.by)
    leads, _ = lead_groups(
        frame.leads,
        None if frame.lead_bins is None else {k: (v[0], v[1]) for k, v in frame.lead_bins.items()},
    )
    whole = table.sums(to, leads)
    count = (len(values), int(leads.max()) + 1)
    lead_dim = "lead_time" if frame.lead_bins is None else "lead_bin"
    data: dict[str, Any] = {}
    suffixes = list(dict.fromkeys(_metrics.METRICS[m].suffix for m in frame.labels.values()))
    plain = [label for label, m in frame.labels.items() if _metrics.METRICS[m].suffix in _SHARED]
    present: dict[str, list[tuple[str, np.ndarray, tuple[str, ...]]]] = {}
    all_levels = _levels(frame)
    for key, variable in frame.variables.items():
        means = {s: sums.means(frame.convention) for (k, s), sums in whole.items() if k == key}
        dims = {s: sums.dims for (k, s), sums in whole.items() if k == key}
        for suffix in suffixes:
            for label, name in frame.labels.items():
                metric = _metrics.METRICS[name]
                needed = _metrics.statistics_of(name, frame.convention)
                if metric.suffix != suffix or not needed or any(n not in means for n in needed):
                    continue
                value = _metrics.compute(name, {n: means[n] for n in needed})
                extra = _extra_dims(suffix, dims[needed[0]])
                full = (*_axes(frame, lead_dim), *extra, *(("level",) if variable.levels else ()))
                value = _arranged(value, count, full, frame, variable, all_levels)
                if suffix in _SHARED:
                    present.setdefault(variable.name + suffix, []).append((label, value, full))
                else:
                    out = variable.name + suffix if label == name else f"{variable.name}_{label}"
                    data[out] = (full, value, _attrs(variable, metric, label))
                    for beside, statistic, words in BESIDE.get(suffix, ()):
                        other = (
                            means[statistic]
                            if statistic
                            else _metrics._per_bin({n: means[n] for n in needed})[1]
                        )
                        share = _arranged(other, count, full, frame, variable, all_levels)
                        data[f"{variable.name}_{beside}"] = (
                            full,
                            share,
                            {**_attrs(variable, metric, beside), "long_name": words},
                        )
        if frame.attrs.get("masked") and "coverage" in means:
            full = (*_axes(frame, lead_dim), *(("level",) if variable.levels else ()))
            value = _arranged(means["coverage"], count, full, frame, variable, all_levels)
            present.setdefault(variable.name, []).append(("coverage", value, full))
    order = [*plain, "coverage"]
    there = {label for rows in present.values() for label, _, _ in rows}
    shown = [label for label in order if label in there]
    shared: dict[str, Any] = {}
    for out, rows in present.items():
        values_of = {label: value for label, value, _ in rows}
        full = rows[0][2]
        empty = np.full(rows[0][1].shape, np.nan)
        stacked = np.stack([values_of.get(label, empty) for label in shown])
        variable = next(
            v
            for v in frame.variables.values()
            if out.startswith(v.name) and out[len(v.name) :] in _SHARED
        )
        shared[out] = (
            ("metric", *full),
            stacked,
            _shared_attrs(variable, [label for label, _, _ in rows], frame.labels),
        )
    coords = _coords(frame, lead_dim, values, shown, all_levels, {**shared, **data})
    ordered = {
        name: shared[name]
        for v in frame.variables.values()
        for s in _SHARED
        if (name := v.name + s) in shared
    }
    ds = xr.Dataset(
        {**ordered, **data},
        coords,
        {"title": "Scores with WeatherBench2's definitions", **frame.attrs},
    )
    if table.one_by_one:
        ds = ds.assign_coords(_carried(table, frame, all_levels))
    return ds


_SHARED = ("", "_exceed", "_exceed_quantile")


def _extra_dims(suffix: str, dims: tuple[str, ...]) -> tuple[str, ...]:
    """Dims of the score: bins are summed over in those that stand by threshold."""
    return (
        tuple(d for d in dims if d != "probability_bin")
        if suffix == "_exceed"
        else ()
        if suffix == ""
        else dims
    )


def _axes(frame: Frame, lead_dim: str) -> tuple[str, ...]:
    return ("region", *frame.by, lead_dim)


def _arranged(
    value: np.ndarray,
    count: tuple[int, int],
    dims: tuple[str, ...],
    frame: Frame,
    variable: Described,
    all_levels: tuple[float, ...],
) -> np.ndarray:
    """``(group, lead, region, *extra, [level])`` → ``(region, *by, lead, *extra, [level])``, levels
    on the common axis.
    """
    _, values = groups_of(frame.init_times, frame.leads, frame.by)
    axes = [list(dict.fromkeys(v[i] for v in values)) for i in range(len(frame.by))]
    out = np.full((*(len(a) for a in axes), *value.shape[1:]), np.nan)
    for g, key in enumerate(values):
        out[tuple(a.index(v) for a, v in zip(axes, key, strict=True))] = value[g]
    out = np.moveaxis(out, len(axes) + 1, 0)
    if variable.levels and variable.levels != all_levels:
        wide = np.full((*out.shape[:-1], len(all_levels)), np.nan)
        wide[..., [all_levels.index(v) for v in variable.levels]] = out
        out = wide
    return out


def _levels(frame: Frame) -> tuple[float, ...]:
    longest = max((v.levels for v in frame.variables.values()), key=len, default=())
    more = [x for v in frame.variables.values() for x in v.levels if x not in longest]
    return (*longest, *dict.fromkeys(more))


def _attrs(variable: Described, metric: _metrics.Metric, label: str) -> dict[str, Any]:
    units = {
        "own": variable.units,
        "square": f"({variable.units})2" if variable.units else "",
        "": "1",
    }[metric.units]
    return {
        "units": units,
        "long_name": f"{variable.long_name}: {metric.words}",
        "xaurora_variable": variable.canonical,
    }


def _shared_attrs(
    variable: Described, labels: list[str], names: Mapping[str, str]
) -> dict[str, Any]:
    better = {m: _metrics.METRICS[names[m]].better for m in labels if m in names}
    return {
        "units": variable.units,
        "long_name": variable.long_name,
        "xaurora_variable": variable.canonical,
        "lower_is_better": " ".join(m for m, b in better.items() if b == "low"),
        "higher_is_better": " ".join(m for m, b in better.items() if b == "high"),
    }


def _coords(
    frame: Frame,
    lead_dim: str,
    values: list[tuple[Any, ...]],
    shown: list[str],
    all_levels: tuple[float, ...],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    coords: dict[str, Any] = {"metric": shown} if shown else {}
    coords["region"] = frame.regions
    for i, name in enumerate(frame.by):
        column = list(dict.fromkeys(v[i] for v in values))
        coords[name] = np.array(column, "datetime64[ns]") if name == "init_time" else column
    coords[lead_dim] = frame.leads if frame.lead_bins is None else list(frame.lead_bins)
    used = {d for dims, *_ in data.values() for d in dims}
    if "level" in used:
        coords["level"] = ("level", list(all_levels), {"units": "hPa"})
    coords |= {name: value for name, value in frame.coords.items() if name in used}
    if "rank" in used:
        size = next(v.shape[dims.index("rank")] for dims, v, *_ in data.values() if "rank" in dims)
        coords["rank"] = np.arange(size)
    if "zonal_wavenumber" in used:
        size = next(
            v.shape[d.index("zonal_wavenumber")]
            for d, v, *_ in data.values()
            if "zonal_wavenumber" in d
        )
        coords["zonal_wavenumber"] = np.arange(size)
    return coords


def extra_coords(thresholds_mm: Any, sizes: Any, quantiles: Any, levels: Any) -> dict[str, Any]:
    """Coordinates of the dims that scores may have."""
    middle = (np.arange(PROBABILITY_BINS) + 0.5) / PROBABILITY_BINS
    return {
        "threshold_mm": ("threshold_mm", list(thresholds_mm), {"units": "mm"}),
        "neighborhood_size": ("neighborhood_size", list(sizes), {"units": "grid points"}),
        "quantile": ("quantile", list(quantiles), {"long_name": "quantile of the climatology"}),
        "forecast_quantile": ("forecast_quantile", list(levels)),
        "probability_bin": (
            "probability_bin",
            middle,
            {"long_name": "middle of the bin of forecast probability"},
        ),
        "pit_bin": ("pit_bin", (np.arange(PIT_BINS) + 0.5) / PIT_BINS),
        "intensity_bin": (
            "intensity_bin",
            np.concatenate([[0.0], INTENSITY_EDGES]),
            {"units": "mm", "long_name": "lower end of the amount"},
        ),
    }


# --- sums that scores carry along -----------------------------------------------------------------


def _carried(table: Table, frame: Frame, all_levels: tuple[float, ...]) -> dict[str, Any]:
    """Area means of the statistics by init time, as coordinates: they are no scores, but scores of
    files add up by them.
    """
    out: dict[str, Any] = {}
    if "init_time" not in frame.by:
        out["init_time"] = frame.init_times
    out["carried_lead_time"] = frame.leads
    for (key, statistic), slots in table.found.items():
        variable = frame.variables[key]
        dims = (
            "init_time",
            "carried_lead_time",
            "region",
            *slots.dims,
            *(("level",) if variable.levels else ()),
        )

        def wide(values: np.ndarray, variable: Described = variable) -> np.ndarray:
            if not variable.levels or variable.levels == all_levels:
                return values
            full = np.full((*values.shape[:-1], len(all_levels)), np.nan)
            full[..., [all_levels.index(v) for v in variable.levels]] = values
            return full

        name = f"{variable.name}{_SEPARATOR}{statistic}"
        out[name] = (
            dims,
            wide(slots.mean),
            {
                "units": variable.units,
                "long_name": variable.long_name,
                "xaurora_variable": variable.canonical,
            },
        )
        out[name + _SEPARATOR + _WEIGHT] = (dims, wide(slots.weight))
    return out


def carriers(scores: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Variables whose init times are carried, with units, long name and what they are in the table
    of variables.
    """
    out: dict[str, dict[str, Any]] = {}
    for c in map(str, scores.coords):
        if _SEPARATOR in c and not c.endswith(_SEPARATOR + _WEIGHT):
            out.setdefault(c.split(_SEPARATOR)[0], dict(scores.coords[c].attrs))
    return out


def carried(scores: xr.Dataset, name: str) -> dict[str, tuple[xr.DataArray, xr.DataArray]]:
    """Of one variable: statistic → (area means, weights) by init time and lead.

    Raises
    ------
    KindError
        The scores carry none.
    """
    prefix = name + _SEPARATOR
    found = {
        str(c)[len(prefix) :]: scores.coords[c]
        for c in scores.coords
        if str(c).startswith(prefix) and not str(c).endswith(_SEPARATOR + _WEIGHT)
    }
    if not found:
        raise KindError(
            f"the scores of '{name}' do not carry their init times one by one, of which intervals"
            " are made"
            + (" (they would take more than 128 MB)." if "init_time" not in scores.coords else "."),
            fix=(
                "evaluate fewer regions or metrics: evaluate(truth, metrics=['rmse'],"
                " regions=['global'])"
            ),
        )
    return {s: (da, scores.coords[f"{prefix}{s}{_SEPARATOR}{_WEIGHT}"]) for s, da in found.items()}


def without_carried(scores: xr.Dataset) -> xr.Dataset:
    """Scores alone."""
    names = [c for c in scores.coords if _SEPARATOR in str(c)]
    out = scores.drop_vars([*names, "carried_lead_time"], errors="ignore")
    return (
        out.drop_vars("init_time")
        if "init_time" in out.coords and not any("init_time" in out[v].dims for v in out)
        else out
    )


_SAME = ("grid", "regions_hash", "masked", "precipitation_hours", "lead_bins", "by")
"""Attributes that scores must share to be added up."""


def combine(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Scores of files or workers that each scored some of the init times, as if all had been scored
    at once. See :func:`xaurora.combine_scores`.
    """
    parts = list(parts)
    if not parts or not all(isinstance(p, xr.Dataset) and {"region"} <= set(p.dims) for p in parts):
        raise KindError(
            "scores are combined, and these are none.",
            fix="xaurora.combine_scores([scores_of_may, scores_of_june])",
        )
    first = parts[0]
    if "level" in first.coords:  # the same levels in another order
        parts = [
            (
                p.sel(level=first["level"].values)
                if "level" in p.coords and set(p["level"].values) == set(first["level"].values)
                else p
            )
            for p in parts
        ]
    frames = [read(p) for p in parts]
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
                " grid, bins or convention, and cannot be added up.",
                fix="evaluate all of them with the same arguments",
            )
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
                    "the same init time and lead is scored in two of these.",
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
            "%s cannot be added up from scores, and are left out: evaluate all init times at once"
            " for them.",
            ", ".join(lost),
        )
    frame = frames[0][0]
    frame.init_times, frame.leads, frame.attrs = init_times, leads, attrs
    return build(table, frame)


def read(scores: xr.Dataset) -> tuple[Frame, Table]:
    """Frame and sums of a Dataset of scores that carries them."""
    attrs = dict(scores.attrs)
    labels = {n: _metrics.ALIASES.get(n, n) for n in str(attrs.get("metrics", "")).split()}
    by = tuple(str(attrs.get("by", "")).split())
    init_times = (
        scores["init_time"].values.astype("datetime64[ns]")
        if "init_time" in scores.coords
        else np.array([], "datetime64[ns]")
    )
    variables: dict[str, Described] = {}
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
        variables[canonical] = Described(
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

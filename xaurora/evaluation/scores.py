"""Build a Dataset of scores from sums, and recover the sums from it to combine scores.

Does not depend on torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from xaurora.evaluation import formulas
from xaurora.evaluation import metrics as _metrics
from xaurora.evaluation.aggregation import Table
from xaurora.evaluation.carried import carried_coords
from xaurora.evaluation.frames import Frame, VariableInfo, groups_of, lead_groups
from xaurora.evaluation.histograms import INTENSITY_EDGES, PIT_BINS, PROBABILITY_BINS
from xaurora.utils.types import Given

logger = logging.getLogger("xaurora")

MOST_KEPT = 128 * 1024**2
"""Maximum bytes of area means by init time that a Dataset of scores carries."""


COMPANIONS = {
    "_intensity": (("truth_intensity", "truth_intensity", "share of the area by amount, truth"),),
    "_spectrum": (("truth_spectrum", "truth_spectrum", "zonal power by wavenumber, truth"),),
    "_reliability": (
        ("forecast_probability", "", "mean forecast probability of the bin"),
        ("bin_share", "bin_share", "share of all forecasts in the bin"),
    ),
}
"""Variables that accompany some metrics: name, statistic, description."""


def build(table: Table, frame: Frame) -> xr.Dataset:
    """Build the Dataset of scores from values by init time, or from sums by ``frame.by``."""
    to, values = groups_of(frame.init_times, frame.leads, frame.by)
    leads, _ = lead_groups(
        frame.leads,
        None if frame.lead_bins is None else {k: (v[0], v[1]) for k, v in frame.lead_bins.items()},
    )
    whole = table.sums(to, leads)
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
                value = _arranged(value, frame, variable, all_levels)
                if suffix in _SHARED:
                    present.setdefault(variable.name + suffix, []).append((label, value, full))
                else:
                    out = variable.name + suffix if label == name else f"{variable.name}_{label}"
                    data[out] = (full, value, _attrs(variable, metric))
                    for beside, statistic, words in COMPANIONS.get(suffix, ()):
                        other = (
                            means[statistic]
                            if statistic
                            else formulas.per_bin({n: means[n] for n in needed})[1]
                        )
                        share = _arranged(other, frame, variable, all_levels)
                        data[f"{variable.name}_{beside}"] = (
                            full,
                            share,
                            {**_attrs(variable, metric), "long_name": words},
                        )
        if frame.attrs.get("masked") and "coverage" in means:
            full = (*_axes(frame, lead_dim), *(("level",) if variable.levels else ()))
            value = _arranged(means["coverage"], frame, variable, all_levels)
            present.setdefault(variable.name, []).append(("coverage", value, full))
    order = [*plain, "coverage"]
    there = {label for rows in present.values() for label, _, _ in rows}
    shown = [label for label in order if label in there]
    shared: dict[str, Any] = {}
    for out, rows in present.items():
        values_of = {label: value for label, value, _ in rows}
        empty = np.full(rows[0][1].shape, np.nan)
        stacked = np.stack([values_of.get(label, empty) for label in shown])
        variable = next(
            v
            for v in frame.variables.values()
            if out.startswith(v.name) and out[len(v.name) :] in _SHARED
        )
        shared[out] = (
            ("metric", *rows[0][2]),
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
        ds = ds.assign_coords(carried_coords(table, frame, all_levels))
    return ds


_SHARED = ("", "_exceed", "_exceed_quantile")


def _extra_dims(suffix: str, dims: tuple[str, ...]) -> tuple[str, ...]:
    """Return the dims of the score; metrics by threshold are summed over probability bins."""
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
    frame: Frame,
    variable: VariableInfo,
    all_levels: tuple[float, ...],
) -> np.ndarray:
    """Return the values as ``(region, *by, lead, *extra, [level])`` on the common levels.

    The input is ``(group, lead, region, *extra, [level])``.
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


def _attrs(variable: VariableInfo, metric: _metrics.Metric) -> dict[str, Any]:
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
    variable: VariableInfo, labels: list[str], names: Mapping[str, str]
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


def extra_coords(
    thresholds_mm: Given, sizes: Given, quantiles: Given, levels: Given
) -> dict[str, Any]:
    """Return the coordinates of the extra dims that scores may have."""
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

"""Scores as WeatherBench2 defines them: statistics per point, weighted means, metrics.

Does not depend on torch.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from xaurora.distributions import Family
from xaurora.errors import TruthError
from xaurora.evaluation import alignment, frames, scores, truths
from xaurora.evaluation import metrics as _metrics
from xaurora.evaluation.aggregation import AreaMeans
from xaurora.evaluation.alignment import Forecast
from xaurora.evaluation.arguments import (
    LEVELS,
    SIZES,
    THRESHOLDS_MM,
    check_options,
    check_weatherbench2,
    resolve_convention,
    resolve_groups,
)
from xaurora.evaluation.attributes import _hash, attributes, described, notes_on_scores
from xaurora.evaluation.blocks import Job, Plan
from xaurora.evaluation.climatology_fields import ClimatologyFields
from xaurora.evaluation.common import common_points
from xaurora.evaluation.engine import score_blocks
from xaurora.evaluation.jobs import Comparison, make_jobs
from xaurora.evaluation.layout import to_weatherbench2
from xaurora.evaluation.sample import Settings
from xaurora.evaluation.statistics import STATISTICS
from xaurora.fields.grid import regions as region_weights
from xaurora.fields.grid.regions import RegionLike
from xaurora.utils.types import Given

logger = logging.getLogger("xaurora")

__all__ = ["compare", "evaluate", "to_weatherbench2"]


def evaluate(
    ds: xr.Dataset,
    truth: xr.Dataset,
    **options: Any,  # noqa: ANN401 - those of compare()
) -> xr.Dataset:
    """Score a forecast.

    See :meth:`xaurora.accessor.AuroraAccessor.evaluate`.
    """
    return compare({"forecast": ds}, truth, **options)["forecast"]


def compare(
    forecasts: Mapping[str, xr.Dataset],
    truth: xr.Dataset,
    *,
    climatology: xr.Dataset | None = None,
    metrics: Sequence[str] | str | None = None,
    regions: RegionLike | None = None,
    thresholds_mm: Sequence[float] = THRESHOLDS_MM,
    neighborhood_sizes: Sequence[int] = SIZES,
    quantile_levels: Sequence[float] = LEVELS,
    skipna: bool = False,
    accumulate: str | None = None,
    regrid: str | None = None,
    by: Sequence[str] | str = (),
    lead_bins: Mapping[str, Any] | None = None,
    convention: str = "weatherbench2",
    engine: str = "xaurora",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, xr.Dataset]:
    """Score several forecasts at their common init times, lead times and valid points.

    Grid points are masked in all forecasts alike with ``skipna=True``, or if the truth has missing
    values by nature, as satellite data do.

    Parameters
    ----------
    forecasts : dict of Dataset
        Forecasts by label, in either layout. The scores have the names and units of the first one.
    truth, climatology, metrics, ...
        As for :meth:`xaurora.accessor.AuroraAccessor.evaluate`.

    Returns
    -------
    dict of Dataset
        Scores by label, as ``evaluate`` returns them. They can be passed to
        ``scores["mine"].aurora.scorecard(path, baseline={...})`` and
        :func:`xaurora.significance`.

    Raises
    ------
    XauroraError
        As for ``evaluate``, and if the forecasts share no init time, lead time or grid.

    Examples
    --------
    >>> simple = xaurora.persistence(ds, ["tp"], ["6h", "12h"])
    >>> found = xaurora.compare({"tuned": fc, "persistence": simple}, ds, metrics=["mae"])
    >>> sorted(found)
    ['persistence', 'tuned']
    """
    convention = resolve_convention(convention)
    check_options(forecasts, engine, thresholds_mm, neighborhood_sizes, quantile_levels, seed)
    labels = _metrics.check(metrics)
    explicit = metrics is not None and metrics != "all"
    by = resolve_groups(by)
    read = {label: alignment.read_forecast(ds, accumulate) for label, ds in forecasts.items()}
    read = _in_common(read)
    first = next(iter(read.values()))
    every = {key: item for f in reversed(read.values()) for key, item in f.fields.items()}
    right = truths.read_truth(truth, first, regrid, every)
    keys = alignment.matched_variables(read.values(), right)
    normals = ClimatologyFields(climatology, first) if climatology is not None else None
    if engine == "weatherbench2":
        check_weatherbench2(by, lead_bins, convention, thresholds_mm)
        from xaurora.evaluation import weatherbench2

        return {
            label: weatherbench2.evaluate(
                f, right, normals, keys, labels, regions, skipna=skipna, explicit=explicit
            )
            for label, f in read.items()
        }
    weights = region_weights.weights(
        first.latitude, first.longitude, regions, right.land(), convention=convention
    )
    settings = _settings(
        first, thresholds_mm, neighborhood_sizes, quantile_levels, convention, seed
    )
    laws = _laws(read, keys, labels, convention, explicit=explicit)
    jobs = make_jobs(
        Comparison(read, right, normals, keys, labels, explicit, metrics == "all", laws, settings)
    )
    masked = bool(skipna or right.masked)
    groups, by_init_time = _groups(first, by, lead_bins, jobs, len(weights) * len(read), settings)
    plan = Plan(
        read,
        right,
        normals,
        jobs,
        AreaMeans(weights),
        settings,
        laws,
        skipna,
        groups,
        by_init_time,
        "bias_map" in labels.values(),
    )
    tables, counts = score_blocks(plan, progress=progress)
    _log_counts(counts, len(jobs), masked)
    shared = {"convention": convention, "masked": int(masked), "regions_hash": _hash(weights)}
    shared |= {"metrics": " ".join(labels)} | ({"by": " ".join(by)} if by else {})
    _, bins = frames.lead_groups(first.leads, lead_bins)
    found = (normals.quantile_levels(key) for key in keys) if normals is not None else ()
    extra = scores.extra_coords(
        thresholds_mm, neighborhood_sizes, next((q for q in found if q), ()), quantile_levels
    )
    frame = frames.Frame(
        {}, list(weights), first.init_times, first.leads, labels, by, bins, convention, extra, {}
    )
    return _results(tables, counts, plan, frame, shared)


def _results(
    tables: Mapping[str, Any],
    counts: dict[str, Any],
    plan: Plan,
    frame: frames.Frame,
    shared: dict[str, Any],
) -> dict[str, xr.Dataset]:
    """Return the scores by label, from the tables of statistics."""
    out = {}
    first = next(iter(plan.forecasts.values()))
    for label, table in tables.items():
        scored = {key for key, _ in table.found}
        jobs = {"/".join(job.key): job for job in plan.jobs}
        own = plan.forecasts[label]
        frame_of_label = dataclasses.replace(
            frame,
            variables={key: described(job, plan) for key, job in jobs.items() if key in scored},
            attrs=attributes(
                own, first, counts, len(plan.jobs), shared, frame.lead_bins, normals_of(plan)
            ),
        )
        out[label] = scores.build(table, frame_of_label)
        if plan.maps:
            out[label] = out[label].assign(_maps(counts["maps"], label, plan.jobs, plan))
        if shared["masked"]:
            _log_coverage(label, out[label])
        for note in notes_on_scores(out[label]):
            logger.warning("%s: %s", label, note)
    return out


def normals_of(plan: Plan) -> Mapping[str, Any] | None:
    """Return the attributes of the climatology that the scores use, if any."""
    return plan.normals.ds.attrs if plan.normals is not None else None


def _settings(
    first: Forecast,
    thresholds_mm: Sequence[float],
    sizes: Sequence[int],
    levels: Sequence[float],
    convention: str,
    seed: int,
) -> Settings:
    wraps = region_weights.is_circumglobal(first.longitude)
    order = np.argsort(first.longitude % 360.0).tolist()
    return Settings(
        tuple(map(float, thresholds_mm)),
        tuple(map(int, sizes)),
        tuple(map(float, levels)),
        convention,
        wraps,
        seed,
        tuple(order) if convention == "weatherbenchx" and not wraps else (),
    )


_NEED_DISTRIBUTION = frozenset(
    ("crps", "brier", "bin_share", "pit", "quantile_coverage", "forecast_intensity")
)


def _laws(
    read: Mapping[str, Forecast],
    keys: list[tuple[str, str]],
    labels: Mapping[str, str],
    convention: str,
    *,
    explicit: bool,
) -> dict[tuple[str, tuple[str, str]], Family]:
    """Return the families of the forecasts' distributions, by label and key."""
    statistics = {s for m in labels.values() for s in _metrics.statistics_of(m, convention)}
    needed = explicit and bool(statistics & _NEED_DISTRIBUTION)
    found = {
        (label, key): alignment.distribution(f, f.fields[key], needed=needed)
        for label, f in read.items()
        for key in keys
        if key in f.fields
    }
    return {place: law for place, law in found.items() if law is not None}


def _in_common(read: dict[str, Forecast]) -> dict[str, Forecast]:
    """Select the common init times, lead times and grid points of all forecasts.

    Raises
    ------
    TruthError
        If there are none, or the grids or the periods of precipitation differ.
    """
    first_label, first = next(iter(read.items()))
    times, leads = first.init_times, first.leads
    for f in read.values():
        times, leads = times[np.isin(times, f.init_times)], leads[np.isin(leads, f.leads)]
    for label, f in read.items():
        if not len(times) or not len(leads):
            raise TruthError(
                f"the forecasts share no {'init time' if not len(times) else 'lead time'}:"
                f" {first_label!r} starts at {first.init_times[0].astype('datetime64[h]')},"
                f" {label!r} at {f.init_times[0].astype('datetime64[h]')}.",
                fix="forecast the same init times: predict(time=other['init_time'].values)",
            )
        amounts = (any(i.variable.accumulated for i in g.fields.values()) for g in (f, first))
        if f.hours != first.hours and all(amounts):
            raise TruthError(
                f"precipitation of {label!r} is accumulated over {f.hours} h, that of"
                f" {first_label!r} over {first.hours} h.",
                fix=f"accumulate='{max(f.hours, first.hours)}h'",
            )
    read = common_points(read)
    out = {}
    for label, f in read.items():
        dropped = len(f.init_times) - len(times)
        if dropped:
            logger.warning(
                "%s: dropped %d of %d init times that are not common to all forecasts.",
                label,
                dropped,
                len(f.init_times),
            )
        rows = [int(np.flatnonzero(f.init_times == t)[0]) for t in times]
        columns = [int(np.flatnonzero(f.leads == t)[0]) for t in leads]
        if rows != list(range(len(f.init_times))) or columns != list(range(len(f.leads))):
            f = dataclasses.replace(
                f, ds=f.ds.isel(init_time=rows, lead_time=columns), init_times=times, leads=leads
            )
        out[label] = f
    return out


def _groups(
    first: Forecast,
    by: tuple[str, ...],
    lead_bins: Given,
    jobs: list[Job],
    regions: int,
    settings: Settings,
) -> tuple[np.ndarray, bool]:
    """Return the group of each field, and whether every init time is a group of its own.

    Init times are kept apart if that takes little memory. Otherwise fields are grouped by ``by``.
    """
    frames.lead_groups(first.leads, lead_bins)
    sizes = {
        "threshold_mm": len(settings.thresholds_mm),
        "quantile": 8,
        "forecast_quantile": len(settings.levels),
        "neighborhood_size": len(settings.sizes),
        "probability_bin": 20,
        "pit_bin": 20,
        "intensity_bin": 42,
        "rank": 64,
        "zonal_wavenumber": len(first.longitude) // 2 + 1,
    }
    numbers = sum(
        int(np.prod([sizes[d] for d in STATISTICS[s].dims], initial=1)) * max(len(job.levels), 1)
        for job in jobs
        for s in job.statistics
    )
    shape = len(first.init_times), len(first.leads)
    if 16 * numbers * regions * shape[0] * shape[1] <= scores.MOST_KEPT:
        return np.repeat(np.arange(shape[0])[:, None], shape[1], axis=1), True
    logger.info(
        "these scores do not carry values for each init time, which would take more than 128 MB."
        " Confidence intervals cannot be computed without them."
    )
    return frames.groups_of(first.init_times, first.leads, by)[0], False


def _maps(
    maps: dict[tuple[str, tuple[str, str], int], Any],
    label: str,
    jobs: list[Job],
    plan: Plan,
) -> dict[str, Any]:
    """Return the mean error at every grid point, in the forecast's grid order.

    Dims are ``(map_lead_time, [map_level,] latitude, longitude)``.
    """
    out = {}
    for job in jobs:
        there = {k: v for (who, key, k), v in maps.items() if who == label and key == job.key}
        if not there:
            continue
        item, first = plan.item(job.key), plan.first
        shape = next(iter(there.values()))[0].shape
        values = np.full((len(first.leads), *shape), np.nan, np.float32)
        for k, (total, count) in there.items():
            with np.errstate(invalid="ignore", divide="ignore"):
                values[k] = np.where(count > 0, total / count, np.nan)
        dims = ("map_lead_time", *(("map_level",) if job.levels else ()), "latitude", "longitude")
        attrs = {
            "units": str(item.attrs.get("units", item.variable.units)),
            "long_name": f"{item.variable.long_name}: mean of f − y",
        }
        coords: dict[str, Any] = {
            "map_lead_time": first.leads,
            "latitude": first.latitude,
            "longitude": first.longitude,
        }
        if job.levels:
            coords["map_level"] = list(job.levels)
        out[f"{item.source}_bias_map"] = xr.DataArray(values, coords, dims, attrs=attrs)
    return out


def _log_counts(counts: dict[str, Any], jobs: int, masked: bool) -> None:
    if counts["without_truth"]:
        logger.warning(
            "%d of %d forecast fields have no truth at their valid time and are not scored.",
            -(-counts["without_truth"] // jobs),
            -(-(counts["without_truth"] + counts["scored"]) // jobs),
        )
    if counts["missing_truth"] and not masked:
        logger.warning(
            "the truth of %s has missing values, so scores of regions that contain them are NaN."
            " To score only points with values: evaluate(truth, skipna=True). To exclude an area:"
            " regions={'mine': mask}.",
            ", ".join(sorted(counts["missing_truth"])),
        )


def _log_coverage(label: str, ds: xr.Dataset) -> None:
    for name, da in ds.data_vars.items():
        if (
            "metric" in da.dims
            and "coverage" in ds["metric"].values
            and np.isfinite(da.sel(metric="coverage")).any()
        ):
            lowest = float(da.sel(metric="coverage").isel(region=0).min())
            logger.warning(
                "%s: %s is scored only where truth and forecasts have values, %.0f %% of %s.",
                label,
                name,
                100 * lowest,
                ds["region"].values[0],
            )

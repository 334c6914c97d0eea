"""Climatology in WeatherBench2's layout: hour × dayofyear.

The definitions are those of WeatherBench2's explicit method (``compute_climatology.py`` and
``utils.py``, commit 021c0b3; Rasp et al. 2024, doi:10.1029/2023MS004019). Every year is a circle of
366 days, and years without a 29 February repeat their last day. In a window around each day, the
weights of the days decrease linearly to zero at both ends. Does not depend on torch.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import OptionError
from xaurora.evaluation import baselines
from xaurora.evaluation.bands import bands_of
from xaurora.fields import periods, precipitation
from xaurora.fields.found import Recognition
from xaurora.fields.unit_conversion import conversion
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.utils import dask_arrays, indexed, lazy
from xaurora.utils.progress import progress_bar
from xaurora.utils.types import Given

if TYPE_CHECKING:
    from tqdm import tqdm

DRY_MM = {6: 0.1, 24: 0.25}
"""Hours of a total → amount in mm below which it is dry.

Sources: Rodwell et al. (2010), doi:10.1002/qj.656, and WeatherBench2.
"""
HEAVY = 2.0 / 3.0  # quantile of wet amounts above which they are heavy (Rodwell et al. 2010)
STATISTICS = ("mean", "std", "quantile")
_DAYS = 366
_BLOCK = 512 * 1024**2  # bytes of values in memory at once


def build(
    ds: xr.Dataset,
    names: Sequence[str] | str | None = None,
    *,
    window_days: int = 61,
    statistics: Sequence[str] | str = ("mean",),
    quantiles: Sequence[float] = (0.01, 0.1, 0.5, 0.9, 0.99),
    seeps: bool | Sequence[int] | int = True,
    progress: bool = False,
) -> xr.Dataset:
    """Compute a climatology by hour of the day and day of the year.

    Statistics are taken over all years and a window around each day. The data are computed, not
    lazy. The result is float32 with 366 × 4 fields per statistic, 6 GB for a global 0.25° variable.
    In addition about 1 GiB is held in memory. The data are read once: large grids are processed in
    bands of latitude, for which they are copied to temporary files.

    Parameters
    ----------
    ds : Dataset
        Fields or a truth (:func:`xaurora.open_imerg`), with any naming convention. Precipitation is
        summed over six hours first; daily totals are used unchanged.
    names : str or sequence of str, optional
        Variables in the data's own names; by default all that change over time.
    window_days : int
        Length of the window in days, odd; 61 in WeatherBench2.
    statistics : sequence of {"mean", "std", "quantile"}
        Statistics to compute, stored as ``name``, ``name_std`` and ``name_quantile`` (with dim
        ``quantile``).
    quantiles : sequence of float
        Levels for ``"quantile"``.
    seeps : bool or sequence of int
        Whether to add ``total_precipitation_6hr_seeps_dry_fraction`` and ``…_seeps_threshold`` (in
        metres) for precipitation, which SEEPS needs; or the periods in hours for which to add them,
        6 or 24. By default six hours, or a day if the data hold daily totals.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Dataset
        Dims ``(hour, dayofyear[, quantile][, level], latitude, longitude)``, with the data's own
        names and units. Days without a time in their window are dropped. Missing values are
        excluded from all statistics.

    Raises
    ------
    OptionError
        If the window is not odd and positive, a statistic is unknown, a quantile is out of range,
        or a SEEPS period is neither 6 nor 24 hours.
    SaveError
        If there is no space for temporary files.
    """
    if (
        isinstance(window_days, bool)
        or not isinstance(window_days, numbers.Integral)
        or window_days < 1
        or window_days % 2 == 0
    ):
        raise OptionError(
            f"window_days={window_days!r} is not an odd positive integer.",
            fix="window_days=61",
        )
    wanted_statistics = [statistics] if isinstance(statistics, str) else list(statistics)
    if unknown := [s for s in wanted_statistics if s not in STATISTICS]:
        raise OptionError(
            f"there is no statistic {unknown}; valid values are"
            f" {', '.join(map(repr, STATISTICS))}.",
            fix="statistics=['mean']",
        )
    q = np.atleast_1d(np.asarray(quantiles, float))
    if not ((q > 0) & (q < 1)).all():
        raise OptionError(
            f"all quantiles must be between 0 and 1, got {list(q)}.", fix="quantiles=[0.5, 0.9]"
        )
    hours_of_seeps = _seeps_hours(seeps)
    found, wanted = baselines._chosen(ds, names)
    plan = _Plan.of(
        found.times if found.times is not None else np.array([], "datetime64[ns]"), int(window_days)
    )
    out: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    jobs = _jobs(ds, found, wanted, wanted_statistics, hours_of_seeps)
    with progress_bar(
        total=sum(job.fields.sizes[job.time_dim] for job in jobs),
        label="climatology",
        unit="time",
        shown=progress,
    ) as meter:
        for job in jobs:
            out |= _run(job, plan, q, meter)
            coords |= {
                d: job.fields[d] for d in ("level", "latitude", "longitude") if d in job.fields.dims
            }
    if "quantile" in wanted_statistics:
        coords["quantile"] = q
    attrs = {"title": "Climatology", "window_days": window_days}
    return xr.Dataset(out, {"hour": plan.hours, "dayofyear": plan.days, **coords}, attrs)


def _seeps_hours(seeps: Given) -> list[int]:
    hours = ([6] if seeps else []) if isinstance(seeps, bool) else np.atleast_1d(seeps).tolist()
    if unknown := [h for h in hours if h not in DRY_MM]:
        raise OptionError(
            f"seeps={unknown} is not supported: the dry threshold is defined for totals over"
            f" {' and '.join(map(str, DRY_MM))} hours.",
            fix="seeps=6",
        )
    return hours


# --- samples of each day --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Position of each time on the circle of days, and weights of the days around each day.

    ``place`` holds arrays of time, hour and day indices. A last day of December may occur twice,
    for itself and for the 366th day that its year lacks. ``weights`` is ``(day, day)``.
    """

    hours: np.ndarray
    days: np.ndarray
    place: tuple[np.ndarray, np.ndarray, np.ndarray]
    weights: np.ndarray
    inside: np.ndarray

    @staticmethod
    def of(times: np.ndarray, window_days: int) -> _Plan:
        import pandas as pd

        index = pd.DatetimeIndex(times)
        hours = np.unique(index.hour)
        hour, day = np.searchsorted(hours, index.hour), index.day_of_year.to_numpy() - 1
        at = np.arange(len(times))
        last = (day == 364) & ~index.is_leap_year
        place = (
            np.concatenate([at, at[last]]),
            np.concatenate([hour, hour[last]]),
            np.concatenate([day, np.full(int(last.sum()), 365)]),
        )
        half = window_days // 2
        circle = np.arange(_DAYS)
        distance = np.abs(circle[:, None] - circle[None])
        distance = np.minimum(distance, _DAYS - distance)
        weights = (
            np.clip(1.0 - distance / half, 0.0, None) if half else (distance == 0).astype(float)
        )
        inside = distance <= half
        near = (weights[:, np.unique(place[2])] > 0).any(axis=1)
        return _Plan(hours, circle[near] + 1, place, weights[near], inside[near])


@dataclass(frozen=True)
class _Job:
    """One variable to read, renamed to the output's dims, and the statistics to compute."""

    name: str
    fields: xr.DataArray
    time_dim: str
    statistics: tuple[str, ...]
    dry: float | None
    seeps_name: str


def _jobs(
    ds: xr.Dataset,
    found: Recognition,
    wanted: list[str],
    statistics: list[str],
    hours: list[int],
) -> list[_Job]:
    time_dim = found.axes["time"].dim
    items = {item.source: item for item in found.fields.values()}
    times = found.times if found.times is not None else np.array([], "datetime64[ns]")
    jobs = []
    for name in wanted:
        if not items[name].variable.accumulated:
            da = baselines._public(baselines._six_hourly(ds, found, name), found)
            jobs.append(_Job(name, _ordered(da, time_dim), time_dim, tuple(statistics), None, ""))
            continue
        own = periods.declared_hours(name, dict(ds[name].attrs))
        shortest = (
            int(own)
            if own is not None and own > TIMESTEP_HOURS and own == int(own)
            else TIMESTEP_HOURS
        )
        wanted_hours = [shortest] if hours == [TIMESTEP_HOURS] and shortest in DRY_MM else hours
        raw = ds[name].assign_coords({time_dim: times})
        precipitation.check_not_running_totals(raw, name=name, dim=time_dim)
        for total in dict.fromkeys([shortest, *wanted_hours]):
            da = baselines._public(
                precipitation.accumulate(raw, total, name=name, dim=time_dim), found
            )
            dry = DRY_MM[total] * 1e-3 if total in wanted_hours else None
            if total == shortest or dry is not None:
                seeps_name = f"total_precipitation_{total}hr_seeps"
                mine = tuple(statistics) if total == shortest else ()
                jobs.append(_Job(name, _ordered(da, time_dim), time_dim, mine, dry, seeps_name))
    return jobs


def _ordered(da: xr.DataArray, time_dim: str) -> xr.DataArray:
    dims = [time_dim, *[d for d in ("level", "latitude", "longitude") if d in da.dims]]
    return indexed.as_array(lazy.transpose(dask_arrays.without_dask(da.variable), dims), da)


def _run(job: _Job, plan: _Plan, q: np.ndarray, meter: tqdm) -> dict[str, Any]:
    """Compute all statistics of one variable, by bands of latitude that fit into memory."""
    da = job.fields
    shape = da.shape[1:]
    whole_series = job.dry is not None or "quantile" in job.statistics
    per_row = int(np.prod(shape)) // shape[-2] * 8
    copies = len(da) if whole_series else 2 * len(plan.hours) * _DAYS
    rows = max(min(shape[-2], _BLOCK // max(per_row * copies, 1)), 1)
    to_metres = (
        (conversion(str(da.attrs.get("units", "m")), "m") or (1.0, 0.0))[0]
        if job.dry is not None
        else 1.0
    )
    joined: dict[str, np.ndarray] = {}
    with bands_of(da, rows, _BLOCK // 4, meter) as bands:
        for start, band in zip(range(0, shape[-2], rows), bands, strict=True):
            stop = start + band.shape[-2]
            for key, values in _band(band, job, plan, q, whole_series, to_metres).items():
                if key not in joined:
                    joined[key] = np.empty((*values.shape[:-2], *shape[-2:]), np.float32)
                joined[key][..., start:stop, :] = values
    attrs = dict(da.attrs)
    dims = ("hour", "dayofyear", *da.dims[1:])
    out: dict[str, Any] = {}
    for key, values in joined.items():
        if key == "mean":
            out[job.name] = (dims, values, attrs)
        elif key == "std":
            out[f"{job.name}_std"] = (dims, values, attrs)
        elif key == "quantile":
            out[f"{job.name}_quantile"] = (
                ("hour", "dayofyear", "quantile", *da.dims[1:]),
                values,
                attrs,
            )
        elif key == "dry":
            long_name = (
                f"fraction of totals below {job.dry * 1e3:g} mm" if job.dry is not None else ""
            )
            out[f"{job.seeps_name}_dry_fraction"] = (
                dims,
                values,
                {"units": "1", "long_name": long_name},
            )
        else:
            values *= np.float32(to_metres)
            long_name = "amount exceeded by one third of wet totals"
            out[f"{job.seeps_name}_threshold"] = (
                dims,
                values,
                {"units": "m", "long_name": long_name},
            )
    return out


def _band(
    band: xr.DataArray, job: _Job, plan: _Plan, q: np.ndarray, whole_series: bool, to_metres: float
) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    if set(job.statistics) & {"mean", "std"}:
        out |= _moments(band, job, plan)
    if whole_series:
        series = band.values.astype(np.float32)
        at = [[(h, d) for d in range(len(plan.days))] for h in range(len(plan.hours))]
        if "quantile" in job.statistics:
            out["quantile"] = np.stack(
                [[_quantiles(series, plan, h, d, q) for h, d in row] for row in at]
            )
        if job.dry is not None:
            threshold = np.float32(job.dry / to_metres)
            pairs = [[_seeps(series, plan, h, d, threshold) for h, d in row] for row in at]
            out["dry"] = np.stack([[p[0] for p in row] for row in pairs])
            out["heavy"] = np.stack([[p[1] for p in row] for row in pairs])
    return out


def _frames(band: xr.DataArray, time_dim: str) -> Iterator[tuple[int, np.ndarray]]:
    """Iterate over times and fields, read in blocks."""
    frame = max(band.dtype.itemsize * int(np.prod(band.shape[1:])), 1)
    length = max(min(_BLOCK // 8 // frame, 1000), 1)
    for start in range(0, band.sizes[time_dim], length):
        values = band.isel({time_dim: slice(start, start + length)}).values
        for i, one in enumerate(values):
            yield start + i, one.astype(np.float64)


def _moments(band: xr.DataArray, job: _Job, plan: _Plan) -> dict[str, np.ndarray]:
    """Compute the weighted mean and standard deviation.

    Sums by hour and day are accumulated first and smoothed afterwards.
    """
    size = (len(plan.hours), _DAYS, *band.shape[1:])
    sums, counts = np.zeros(size), np.zeros(size)
    with_std = "std" in job.statistics
    squares = np.zeros(size if with_std else (0,))
    # Subtracting a shift avoids cancellation in the variance of large values such as pressure.
    shift = np.nan_to_num(band.isel({job.time_dim: 0}).values.astype(np.float64))
    stands: dict[int, list[tuple[int, int]]] = {}
    for t, hour, day in zip(*plan.place, strict=True):
        stands.setdefault(int(t), []).append((int(hour), int(day)))
    for t, frame in _frames(band, job.time_dim):
        values = frame - shift
        there = np.isfinite(values)
        filled = np.where(there, values, 0.0)
        for at in stands[t]:
            sums[at] += filled
            counts[at] += there
            if with_std:
                squares[at] += filled**2

    def smooth(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.tensordot(plan.weights, x, axes=(1, 1)), 0, 1)

    total = smooth(counts)
    out = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(total > 0, smooth(sums) / total, np.nan)
        if "mean" in job.statistics:
            out["mean"] = mean + shift
        if with_std:
            out["std"] = np.sqrt(
                np.clip(np.where(total > 0, smooth(squares) / total, np.nan) - mean**2, 0.0, None)
            )
    return out


def _samples(
    series: np.ndarray, plan: _Plan, hour: int, day: int, *, edges: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of one hour in the window around a day, and their weights.

    With ``edges``, days with weight zero are included.
    """
    at, hours, days = plan.place
    chosen = (hours == hour) & (plan.inside[day][days] if edges else plan.weights[day][days] > 0)
    return series[at[chosen]], plan.weights[day][days[chosen]]


def _seeps(
    series: np.ndarray, plan: _Plan, hour: int, day: int, dry: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Return the unweighted fraction of dry totals in the window, and the threshold of heavy ones.

    The threshold is the weighted two-thirds quantile of wet totals.
    """
    values, _ = _samples(series, plan, hour, day, edges=True)
    seen = np.isfinite(values).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(seen > 0, (values < dry).sum(axis=0) / seen, np.nan)
    values, weights = _samples(series, plan, hour, day, edges=False)
    wet = np.where(values >= dry, values, np.nan)
    return share, weighted_quantile(wet, weights, np.array([HEAVY]))[0]


def _quantiles(series: np.ndarray, plan: _Plan, hour: int, day: int, q: np.ndarray) -> np.ndarray:
    return weighted_quantile(*_samples(series, plan, hour, day, edges=False), q)


def weighted_quantile(values: np.ndarray, weights: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Compute weighted quantiles along the first axis, for all points at once.

    The definition is that of xarray's ``DataArray.weighted(...).quantile``: Akinshin (2023),
    Weighted quantile estimators, arXiv:2304.07265, type 7 with Kish's effective sample size. NaN is
    skipped.

    Parameters
    ----------
    values : ndarray, ``(n, ...)``
    weights : ndarray, ``(n,)``
        Positive.
    q : ndarray, ``(k,)``
        Quantile levels.

    Returns
    -------
    ndarray, ``(k, ...)``
        NaN where there is no value.
    """
    if not len(values):
        return np.full((len(q), *values.shape[1:]), np.nan)
    order = np.argsort(values, axis=0)  # NaN is sorted last
    ranked = np.take_along_axis(values, order, axis=0).astype(np.float64)
    w = np.where(np.isfinite(ranked), weights[order], 0.0)
    total = w.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        effective = total**2 / (w**2).sum(axis=0)
        share = np.concatenate([np.zeros((1, *w.shape[1:])), np.cumsum(w / total, axis=0)])
        ranked = np.nan_to_num(ranked)
        out = []
        for one in q:
            h = (effective - 1.0) * one + 1.0
            u = np.maximum((h - 1.0) / effective, np.minimum(h / effective, share))
            out.append((ranked * np.diff(u * effective - h + 1.0, axis=0)).sum(axis=0))
    return np.where(total > 0, np.stack(out), np.nan)

"""Statistics in a window around each day of the year, at all points of a band of latitude.

The definitions are those of WeatherBench2, as in :mod:`xaurora.evaluation.climatology`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from xaurora.evaluation.bands import Band

_PLACES = 2**16
_POINTS = 256  # sorted together: their values fit into a processor's cache
HEAVY = 2.0 / 3.0  # quantile of wet amounts above which they are heavy (Rodwell et al. 2010)
_DAYS = 366
_READ = 32 * 1024**2  # bytes of a band to read at once


@dataclass(frozen=True)
class Days:
    """Hour and day of year of each time, and the window weights between days of the year.

    ``place`` contains arrays of time, hour and day indices. 31 December of a non-leap year occurs
    twice, as day 365 and as day 366. ``weights`` is ``(day, day)``.
    """

    hours: np.ndarray
    days: np.ndarray
    place: tuple[np.ndarray, np.ndarray, np.ndarray]
    weights: np.ndarray
    inside: np.ndarray

    @staticmethod
    def of(times: np.ndarray, window_days: int) -> Days:
        """Return the indices and weights for some times and a window length."""
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
        return Days(hours, circle[near] + 1, place, weights[near], inside[near])


@dataclass(frozen=True)
class Wanted:
    """Statistics to compute.

    Parameters
    ----------
    statistics : tuple of str
        ``"mean"``, ``"std"``, ``"quantile"``.
    quantiles : ndarray
    dry : float, optional
        For SEEPS: amount below which it is dry, in the units of the data.
    """

    statistics: tuple[str, ...]
    quantiles: np.ndarray
    dry: float | None = None

    @property
    def moments(self) -> bool:
        """Whether a mean or standard deviation is requested, which needs only daily sums."""
        return bool({"mean", "std"} & set(self.statistics))

    @property
    def series(self) -> bool:
        """Whether a quantile or SEEPS statistic is requested, which needs all values at once."""
        return self.dry is not None or "quantile" in self.statistics


def bytes_per_point(days: Days, wanted: Wanted, times: int) -> int:
    """Return a rough estimate of the memory in bytes that :func:`of_band` needs per point."""
    table = 8 * len(days.hours) * _DAYS
    moments = 7 * table * wanted.moments  # sums, counts and squares, and what smoothing makes
    # The values as read and as float32, and a window of one hour, sorted and with its weights.
    share = days.inside.mean() / max(len(days.hours), 1)
    series = int((8 + 68 * share) * times) * wanted.series
    quantiles = len(wanted.quantiles) * ("quantile" in wanted.statistics)
    return moments + series + 2 * table * (quantiles + 2 * (wanted.dry is not None))


def of_band(band: Band, days: Days, wanted: Wanted) -> dict[str, np.ndarray]:
    """Return the statistics of a band by name, ``(hour, day, [quantile,] row, longitude)``."""
    out: dict[str, np.ndarray] = {}
    series = band.read(0, band.times) if wanted.series else np.empty(0)
    if wanted.moments:
        frames = map(_as_float64, series) if wanted.series else _frames(band)
        out |= _moments(
            frames,
            band.shape,
            days,
            with_mean="mean" in wanted.statistics,
            with_std="std" in wanted.statistics,
        )
    if not wanted.series:
        return out
    series = series.astype(np.float32, copy=False)
    at = [[(h, d) for d in range(len(days.days))] for h in range(len(days.hours))]
    if "quantile" in wanted.statistics:
        q = wanted.quantiles
        out["quantile"] = np.stack(
            [[_quantiles(series, days, h, d, q) for h, d in row] for row in at]
        )
    if wanted.dry is not None:
        threshold = np.float32(wanted.dry)
        pairs = [[_seeps(series, days, h, d, threshold) for h, d in row] for row in at]
        out["dry"] = np.stack([[p[0] for p in row] for row in pairs])
        out["heavy"] = np.stack([[p[1] for p in row] for row in pairs])
    return out


def _as_float64(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64)


def _frames(band: Band) -> Iterator[np.ndarray]:
    """Iterate over the fields of all times, read in blocks."""
    length = max(min(_READ // band.frame_size, 1000), 1)
    for start in range(0, band.times, length):
        for one in band.read(start, min(start + length, band.times)):
            yield one.astype(np.float64)


def _moments(
    frames: Iterator[np.ndarray],
    shape: tuple[int, int],
    plan: Days,
    *,
    with_mean: bool,
    with_std: bool,
) -> dict[str, np.ndarray]:
    """Compute the weighted mean and standard deviation.

    Sums by hour and day are accumulated first and smoothed afterwards.
    """
    size = (len(plan.hours), _DAYS, *shape)
    sums, counts = np.zeros(size), np.zeros(size)
    squares = np.zeros(size if with_std else (0,))
    places: dict[int, list[tuple[int, int]]] = {}
    for t, hour, day in zip(*plan.place, strict=True):
        places.setdefault(int(t), []).append((int(hour), int(day)))
    shift = np.zeros(shape)
    for t, frame in enumerate(frames):
        if t == 0:  # subtracted, to avoid cancellation in the variance of values such as pressure
            shift = np.nan_to_num(frame)
        values = frame - shift
        there = np.isfinite(values)
        filled = np.where(there, values, 0.0)
        for at in places[t]:
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
        if with_mean:
            out["mean"] = mean + shift
        if with_std:
            out["std"] = np.sqrt(
                np.clip(np.where(total > 0, smooth(squares) / total, np.nan) - mean**2, 0.0, None)
            )
    return out


def _samples(
    series: np.ndarray, plan: Days, hour: int, day: int, *, edges: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of one hour in the window around a day, and their weights.

    With ``edges``, days with weight zero are included.
    """
    at, hours, days = plan.place
    chosen = (hours == hour) & (plan.inside[day][days] if edges else plan.weights[day][days] > 0)
    return series[at[chosen]], plan.weights[day][days[chosen]]


def _seeps(
    series: np.ndarray, plan: Days, hour: int, day: int, dry: np.float32
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


def _quantiles(series: np.ndarray, plan: Days, hour: int, day: int, q: np.ndarray) -> np.ndarray:
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
    points = values.reshape(len(values), -1)
    out = np.empty((len(q), points.shape[1]))
    for start in range(0, points.shape[1], _POINTS):
        part = slice(start, start + _POINTS)
        out[:, part] = _quantiles_of_points(points[:, part], weights, q)
    return out.reshape(len(q), *values.shape[1:])


def _order(values: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Return the order of each row's values, ``(points, n)``, those that are not finite last."""
    count = values.shape[1]
    if values.dtype != np.float32 or count > _PLACES:
        return np.argsort(np.where(finite, values, np.nan), axis=1)
    # Numbers sort as their bits do, those of negative ones inverted. With each number's place in
    # the bits below, sorting takes a fifth of the time of np.argsort.
    bits = values.view(np.uint32)
    bits = bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    keys = np.where(finite, bits, np.uint32(0xFFFFFFFF)).astype(np.uint64) * np.uint64(_PLACES)
    keys += np.arange(count, dtype=np.uint64)
    keys.sort(axis=1)
    return (keys & np.uint64(_PLACES - 1)).astype(np.int64)


def _quantiles_of_points(values: np.ndarray, weights: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return weighted quantiles, ``(k, points)``, of values ``(n, points)``."""
    values = np.ascontiguousarray(values.T)
    finite = np.isfinite(values)
    order = _order(values, finite)
    w = weights[order]
    if not finite.all():
        w[np.arange(len(weights)) >= finite.sum(axis=1)[:, None]] = 0.0
    upto = np.cumsum(w, axis=1)  # the weight of each value and all below it
    total, squares = upto[:, -1], np.einsum("pn,pn->p", w, w)
    rows, last = np.arange(len(values)), values.shape[1] - 1
    out = np.zeros((len(q), len(values)))
    with np.errstate(invalid="ignore", divide="ignore"):
        effective = total**2 / squares
        for found, one in zip(out, q, strict=True):
            h = (effective - 1.0) * one + 1.0
            low, high = (h - 1.0) * total / effective, h * total / effective
            # Only the few values between the two bounds count.
            begin, end = (upto <= low[:, None]).sum(axis=1), (upto < high[:, None]).sum(axis=1)
            end = np.minimum(end, last)
            for k in range(max(int((end - begin).max()) + 1, 0)):
                place = np.minimum(begin + k, last)
                above = np.minimum(upto[rows, place], high)
                below = np.maximum(np.where(place > 0, upto[rows, place - 1], 0.0), low)
                share = np.where(begin + k <= end, (above - below) * effective / total, 0.0)
                found += share * np.nan_to_num(values[rows, order[rows, place]].astype(np.float64))
    return np.where(total > 0, out, np.nan)

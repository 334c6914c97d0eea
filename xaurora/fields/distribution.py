"""Streaming moments and histograms that can be merged."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Moments:
    """Running weighted mean and sum of squared deviations, with count and extremes.

    References
    ----------
    Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, Am. Stat. 37,
    doi:10.1080/00031305.1983.10483115.
    """

    count: int = 0
    weight: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, values: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Merge in an array of any shape.

        ``weights`` has the shape of ``values``; by default all weights are one.
        """
        v = np.asarray(values, dtype=np.float64)
        if not v.size:
            return
        total = float(v.size) if weights is None else float(weights.sum())
        if total <= 0.0:
            return
        mean = float(v.mean()) if weights is None else float((weights * v).sum()) / total
        deviations = (v - mean) ** 2
        squares = float(deviations.sum() if weights is None else (weights * deviations).sum())
        low, high = float(v.min()), float(v.max())
        self.merge(Moments(v.size, total, mean, squares, low, high))

    def merge(self, other: Moments) -> None:
        """Merge in the moments of another pass."""
        if not other.count:
            return
        delta, total = other.mean - self.mean, self.weight + other.weight
        self.squares += other.squares + delta * delta * self.weight * other.weight / total
        self.mean += delta * other.weight / total
        self.weight, self.count = total, self.count + other.count
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return float(np.sqrt(self.squares / self.weight)) if self.weight else float("nan")


_SHIFT = 11  # dropped bits of the 23 bits of a float32's mantissa


BIN_WIDTH = 2.0 ** -(23 - _SHIFT)
"""Relative width of the histogram's bins: 1/4096."""


@dataclass(frozen=True)
class Bins:
    """The bins of a histogram that are not empty, to be merged into another one."""

    keys: np.ndarray
    weights: np.ndarray


class Histogram:
    """A mergeable histogram over all float32 numbers, in bins of :data:`BIN_WIDTH` relative width.

    A number's bin is its bit pattern without the last bits of the mantissa, so the range of values
    need not be known in advance.
    """

    _HALF = 1 << (31 - _SHIFT)

    def __init__(self) -> None:
        self._weights = np.zeros(2 * self._HALF, np.float64)
        self._used = (2 * self._HALF, 0)  # bins outside it are empty

    def add(self, values: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Merge in finite values."""
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.int32).ravel()
        keys = (
            np.where(bits >= 0, bits >> _SHIFT, -((bits & 0x7FFFFFFF) >> _SHIFT) - 1) + self._HALF
        )
        if not len(keys):
            return
        first = int(keys.min())
        found = np.bincount(keys - first, None if weights is None else weights.ravel())
        self._weights[first : first + len(found)] += found
        self._use(first, first + len(found))

    def merge(self, other: Histogram | Bins) -> None:
        """Merge in the histogram of another pass."""
        if isinstance(other, Bins):
            self._weights[other.keys] += other.weights
            if len(other.keys):
                self._use(int(other.keys[0]), int(other.keys[-1]) + 1)
        else:
            self._weights += other._weights
            self._use(*other._used)

    def _use(self, first: int, last: int) -> None:
        self._used = min(first, self._used[0]), max(last, self._used[1])

    def _keys(self) -> np.ndarray:
        """Return the bins that are not empty, in order."""
        first, last = self._used
        return np.flatnonzero(self._weights[first:last]) + first

    def packed(self) -> Bins:
        """Return the bins that are not empty, which take less memory."""
        keys = self._keys()
        return Bins(keys, self._weights[keys])

    def filled(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the centres of the non-empty bins, increasing, and their weights.

        The centre of the bin of zero is exactly zero.
        """
        keys = self._keys()
        place = keys - self._HALF
        negative = place < 0
        magnitude = np.where(negative, -place - 1, place).astype(np.int64)
        bits = ((magnitude << _SHIFT) + (1 << (_SHIFT - 1))).astype(np.int32)
        centres = bits.view(np.float32).astype(np.float64)
        centres[magnitude == 0] = 0.0
        return np.where(negative, -centres, centres), self._weights[keys]

    def quantile(self, q: float | np.ndarray) -> np.ndarray:
        """Return the smallest value that a share of at least ``q`` does not exceed.

        This is the inverse of the empirical distribution, accurate to the width of a bin.
        """
        centres, weights = self.filled()
        if not len(centres):
            return np.full(np.shape(q), np.nan)
        share = np.cumsum(weights) / weights.sum()
        return centres[np.minimum(np.searchsorted(share, np.asarray(q)), len(centres) - 1)]


@dataclass(frozen=True)
class PackedDistribution:
    """A part of a :class:`Distribution`, small enough to be sent to another process."""

    moments: Moments
    log_wet: Moments
    histogram: Bins
    clipped: int
    clipped_amount: float


@dataclass
class Distribution:
    """Statistics of one variable: moments, quantiles and, for amounts, the wet part.

    Parameters
    ----------
    amounts : bool
        Whether values are amounts. Negative amounts are noise: they are set to zero and counted.
        Wet amounts have moments of their own.
    """

    amounts: bool = False
    moments: Moments = field(default_factory=Moments)
    log_wet: Moments = field(default_factory=Moments)
    histogram: Histogram = field(default_factory=Histogram)
    clipped: int = 0
    clipped_amount: float = 0.0

    def add(self, values: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Merge in finite values."""
        v = np.asarray(values, np.float64)
        if self.amounts:
            negative = v < 0
            if negative.any():
                self.clipped += int(negative.sum())
                self.clipped_amount += float(-v[negative].sum())
                v = np.maximum(v, 0.0)
            wet = v > 0
            self.log_wet.add(np.log(v[wet]), None if weights is None else weights[wet])
        self.moments.add(v, weights)
        self.histogram.add(v, weights)

    def merge(self, other: Distribution | PackedDistribution) -> None:
        """Merge in the distribution of another pass."""
        self.moments.merge(other.moments)
        self.log_wet.merge(other.log_wet)
        self.histogram.merge(other.histogram)
        self.clipped += other.clipped
        self.clipped_amount += other.clipped_amount

    def packed(self) -> PackedDistribution:
        """Return what :meth:`merge` needs, in little memory."""
        return PackedDistribution(
            self.moments,
            self.log_wet,
            self.histogram.packed(),
            self.clipped,
            self.clipped_amount,
        )

    @property
    def wet_fraction(self) -> float:
        """Weighted share of amounts above zero."""
        return self.log_wet.weight / self.moments.weight if self.moments.weight else float("nan")

    def binned(self, count: int = 1500) -> tuple[np.ndarray, np.ndarray]:
        """Return the distribution in about ``count`` bins of nearly equal share.

        The result is the increasing centres of the bins and their shares, which sum to one.
        """
        centres, weights = self.histogram.filled()
        share = weights / weights.sum()
        before = np.cumsum(share) - share
        zero = centres == 0.0
        # Start a new bin when the current one has its share; exact zeros have a bin of their own.
        starts = np.diff(np.floor(before * count), prepend=-1.0) > 0
        starts |= zero | np.concatenate([[False], zero[:-1]])
        group = np.cumsum(starts) - 1
        shares = np.bincount(group, share)
        return np.bincount(group, share * centres) / shares, shares

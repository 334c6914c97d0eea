"""Aggregation: weighted means over area and init times that add up over chunks. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def area_mean(values: np.ndarray, weights: np.ndarray, *, skipna: bool) -> np.ndarray:
    """Weighted mean over the last two dims; missing values inside the region pass on, unless they are skipped.

    Parameters
    ----------
    values : ndarray, ``(..., h, w)``
    weights : ndarray, ``(h, w)``
        Zero outside the region.
    skipna : bool

    Returns
    -------
    ndarray, ``(...)``
    """
    rows, columns = np.nonzero(weights > 0)
    inside, w = values[..., rows, columns], weights[rows, columns]
    if skipna:
        there = np.isfinite(inside)
        total = (there * w).sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, np.where(there, inside, 0.0) @ w / total, np.nan)
    return inside @ w / w.sum()


class Means:
    """Running means over init times, by metric, region and lead; two of them can be merged.

    Parameters
    ----------
    skipna : bool
        Whether an init time whose area mean is missing is left out.
    """

    def __init__(self, *, skipna: bool) -> None:
        self.skipna = skipna
        self._sums: dict[tuple[str, str, int], np.ndarray] = {}
        self._counts: dict[tuple[str, str, int], np.ndarray] = {}

    def add(self, statistic: str, lead: int, by_region: Mapping[str, np.ndarray]) -> None:
        """Add the area means of one init time."""
        for region, value in by_region.items():
            value = np.asarray(value, dtype=np.float64)
            key = (statistic, region, lead)
            there = np.isfinite(value) if self.skipna else np.ones(value.shape, bool)
            self._sums[key] = self._sums.get(key, 0.0) + np.where(there, value, 0.0 if self.skipna else value)
            self._counts[key] = self._counts.get(key, 0) + there.astype(int)

    def merge(self, other: Means) -> Means:
        """The means of both."""
        out = Means(skipna=self.skipna)
        for part in (self, other):
            for key, value in part._sums.items():
                out._sums[key] = out._sums.get(key, 0.0) + value
                out._counts[key] = out._counts.get(key, 0) + part._counts[key]
        return out

    def mean(self, statistic: str, region: str, lead: int) -> np.ndarray | None:
        """The mean, or None if nothing was added."""
        key = (statistic, region, lead)
        if key not in self._sums:
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self._sums[key] / self._counts[key], dtype=np.float64)

"""Aggregation: area means by region, and sums over init times that can be added up.

Sums of different chunks, files and workers combine. Does not depend on torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def area_mean(values: np.ndarray, weights: np.ndarray, *, skipna: bool) -> np.ndarray:
    """Return the weighted mean over the last two dims.

    Missing values inside the region make the mean missing, unless ``skipna``.

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
    return AreaMeans({"": weights})(values, np.isfinite(values) if skipna else None)[0][0]


class AreaMeans:
    """Weighted means over regions, for many fields at once.

    For boxes, rows and columns separate, so that one matrix product serves all of them. Masks, land
    and polygons are summed over their bounding boxes. Values outside a region never affect its
    mean, not even NaN.

    Parameters
    ----------
    weights : dict of ndarray, ``(h, w)``
        Area weights by region, zero outside.
    """

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.names = list(weights)
        self.boxes: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self._masks: list[tuple[int, tuple[slice, slice], np.ndarray]] = []
        for r, w in enumerate(weights.values()):
            there = w > 0
            rows, columns = np.flatnonzero(there.any(axis=1)), np.flatnonzero(there.any(axis=0))
            inner = w[np.ix_(rows, columns)]
            if len(columns) and (inner == inner[:, :1]).all() and (inner > 0).all():
                self.boxes.append((r, rows, columns, inner[:, 0].copy()))
            else:
                box = (
                    (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
                    if len(rows)
                    else (slice(0, 0),) * 2
                )
                self._masks.append((r, box, np.ascontiguousarray(w[box])))
        shape = next(iter(weights.values())).shape
        self._columns, self._column_of = self._column_sets(shape[1])
        self.whole = np.array([w.sum() for w in weights.values()])

    def _column_sets(self, width: int) -> tuple[np.ndarray, list[int]]:
        sets: list[bytes] = []
        masks, place = [], []
        for _, _, columns, _ in self.boxes:
            mask = np.zeros(width)
            mask[columns] = 1.0
            if (key := mask.tobytes()) not in sets:
                sets.append(key)
                masks.append(mask)
            place.append(sets.index(key))
        return np.array(masks).T if masks else np.zeros((width, 0)), place

    def __call__(
        self, values: np.ndarray, valid: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return means, and the share of each region that they stand for.

        Parameters
        ----------
        values : ndarray, ``(..., h, w)``
        valid : ndarray of bool, optional
            Points that are included, broadcast against ``values``. By default all are, and NaN
            makes the mean missing.

        Returns
        -------
        tuple of ndarray, ``(region, ...)`` each
            Means, and the weight of the valid points as a share of the region's weight.
        """
        shape = values.shape
        flat = np.ascontiguousarray(values, dtype=np.float64).reshape(-1, *shape[-2:])
        if valid is None:
            means = self._sums(flat) / self.whole[:, None]
            return means.reshape(-1, *shape[:-2]), np.ones((len(self.names), *shape[:-2]))
        valid = np.broadcast_to(valid, shape).reshape(flat.shape)
        if valid.all():
            weights = np.repeat(self.whole[:, None], len(flat), axis=1)
            sums = self._sums(flat)
        else:
            weights = self._sums(valid.astype(np.float64))
            sums = self._sums(np.where(valid, flat, 0.0))
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.where(weights > 0, sums / weights, np.nan)
        share = weights / self.whole[:, None]
        return means.reshape(-1, *shape[:-2]), share.reshape(-1, *shape[:-2])

    def histogram(
        self,
        labels: np.ndarray,
        bins: int,
        values: np.ndarray | None = None,
        valid: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the share of each region's area by label, or that share times ``values``.

        Parameters
        ----------
        labels : ndarray of int, ``(h, w)``
            0 … bins − 1; −1 for a missing value, which makes the region's shares missing unless the
            point is not valid.
        bins : int
            Number of labels.
        values : ndarray, ``(h, w)``, optional
        valid : ndarray of bool, ``(h, w)``, optional
            Points that are included.

        Returns
        -------
        tuple of ndarray, ``(region, bins)`` and ``(region,)``
            Shares, and the share of the region that they stand for.
        """
        out, share = np.empty((len(self.names), bins)), np.ones(len(self.names))
        for r, at, weight in self._windows():
            label, w = labels[at].ravel(), weight.ravel()
            counts = w > 0 if valid is None else (w > 0) & valid[at].ravel()
            label, w = label[counts], w[counts]
            share[r] = w.sum() / self.whole[r]
            if (label < 0).any() or not len(label):
                out[r] = np.nan
                continue
            amount = w if values is None else w * values[at].ravel()[counts]
            out[r] = np.bincount(label, weights=amount, minlength=bins) / w.sum()
        return out, share

    def _windows(self) -> Iterable[tuple[int, Any, np.ndarray]]:
        for r, rows, columns, weight in self.boxes:
            yield r, np.ix_(rows, columns), np.repeat(weight[:, None], len(columns), axis=1)
        for r, box, weight in self._masks:
            yield r, box, weight

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """Return weighted sums, ``(k, h, w)`` → ``(region, k)``."""
        out = np.empty((len(self.names), len(values)))
        if self.boxes:
            by_columns = values @ self._columns
            clean = np.isfinite(by_columns).all()
            for (r, rows, columns, weight), at in zip(self.boxes, self._column_of, strict=True):
                if clean:
                    out[r] = by_columns[:, rows, at] @ weight
                else:  # zero times NaN is NaN, so points outside the box are not multiplied
                    out[r] = values[:, rows][:, :, columns].sum(axis=2) @ weight
        for r, box, weight in self._masks:
            inside = values[:, box[0], box[1]].reshape(len(values), -1)
            out[r] = inside @ weight.ravel()
            if not np.isfinite(out[r]).all():
                there = weight.ravel() > 0
                out[r] = inside[:, there] @ weight.ravel()[there]
        return out


@dataclass
class Sums:
    """Sums over init times of one statistic of one variable, by group, lead time and region.

    Parameters
    ----------
    dims : tuple of str
        Extra dims of the statistic.
    mean, count : ndarray, ``(group, lead, region, *extra, [level])``
        Sum of area means over init times, and the number of them.
    total, weight : ndarray
        Sum of area means times the share of the region that they stand for, and sum of the shares.
    """

    dims: tuple[str, ...]
    mean: np.ndarray
    count: np.ndarray
    total: np.ndarray
    weight: np.ndarray

    @staticmethod
    def zeros(dims: tuple[str, ...], shape: tuple[int, ...]) -> Sums:
        """Return sums that are all zero."""
        return Sums(dims, *(np.zeros(shape) for _ in range(4)))

    def add(self, group: int, lead: int, means: np.ndarray, share: np.ndarray) -> None:
        """Add the area means of one init time, ``(region, *extra)``.

        A share of zero means that there is no value.
        """
        there = share > 0
        kept = np.where(there, means, 0.0)
        at = (group, lead)
        self.mean[at] += kept
        self.count[at] += there
        self.total[at] += kept * share
        self.weight[at] += share

    def means(self, convention: str = "weatherbench2") -> np.ndarray:
        """Return means over init times.

        They are means of area means (WeatherBench2), or over all valid points with equal weight
        (WeatherBench-X).
        """
        top, bottom = (
            (self.mean, self.count) if convention == "weatherbench2" else (self.total, self.weight)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(top / bottom)


@dataclass
class Slots:
    """Area means of one statistic of one variable, kept separately for each init time.

    :meth:`sums` adds them up by group.

    Parameters
    ----------
    dims : tuple of str
        Extra dims of the statistic.
    mean : ndarray, ``(init, lead, region, *extra, [level])``
        Area means, NaN where there is none.
    weight : ndarray
        The share of the region that they stand for; zero where there is none.
    """

    dims: tuple[str, ...]
    mean: np.ndarray
    weight: np.ndarray

    @staticmethod
    def empty(dims: tuple[str, ...], shape: tuple[int, ...]) -> Slots:
        """Return empty slots."""
        return Slots(dims, np.full(shape, np.nan), np.zeros(shape))

    def add(self, group: int, lead: int, means: np.ndarray, share: np.ndarray) -> None:
        """Store the area means of one init time."""
        self.mean[group, lead], self.weight[group, lead] = means, share

    def sums(self, to: np.ndarray, leads: np.ndarray) -> Sums:
        """Return sums over init times and lead times with the same index.

        Parameters
        ----------
        to : ndarray of int, ``(init, lead)``
            Group of each field.
        leads : ndarray of int, ``(lead,)``
            New index of each lead time; −1 drops it.
        """
        out = Sums.zeros(
            self.dims,
            (int(to.max(initial=-1)) + 1, int(leads.max(initial=-1)) + 1, *self.mean.shape[2:]),
        )
        for old, new in enumerate(leads):
            if new < 0:
                continue
            there = self.weight[:, old] > 0
            kept = np.where(there, self.mean[:, old], 0.0)
            at = (to[:, old], np.full(len(to), new))
            np.add.at(out.mean, at, kept)
            np.add.at(out.count, at, there)
            np.add.at(out.total, at, kept * self.weight[:, old])
            np.add.at(out.weight, at, self.weight[:, old])
        return out


@dataclass
class Table:
    """Sums or slots by (variable, statistic).

    Parameters
    ----------
    groups, leads : int
        Number of groups and of lead times.
    one_by_one : bool
        Whether every init time is a group of its own.
    """

    groups: int
    leads: int
    one_by_one: bool
    found: dict[tuple[str, str], Any] = field(default_factory=dict)

    def add(
        self,
        key: tuple[str, str],
        dims: tuple[str, ...],
        group: int,
        lead: int,
        means: np.ndarray,
        share: np.ndarray,
    ) -> None:
        """Add the area means of one init time and lead time, ``(region, *extra)``."""
        if key not in self.found:
            shape = (self.groups, self.leads, *means.shape)
            self.found[key] = (
                Slots.empty(dims, shape) if self.one_by_one else Sums.zeros(dims, shape)
            )
        self.found[key].add(group, lead, means, share)

    def sums(self, to: np.ndarray, leads: np.ndarray) -> dict[tuple[str, str], Sums]:
        """Return sums by group and lead bin.

        If the groups are already added up, only lead times are combined.
        """
        if self.one_by_one:
            return {key: slots.sums(to, leads) for key, slots in self.found.items()}
        if (leads == np.arange(len(leads))).all():
            return dict(self.found)
        out = {}
        for key, have in self.found.items():
            new = Sums.zeros(
                have.dims, (self.groups, int(leads.max(initial=-1)) + 1, *have.mean.shape[2:])
            )
            for name in ("mean", "count", "total", "weight"):
                for old, place in enumerate(leads):
                    if place >= 0:
                        getattr(new, name)[:, place] += getattr(have, name)[:, old]
            out[key] = new
        return out

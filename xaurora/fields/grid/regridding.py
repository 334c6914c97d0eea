"""Regridding between regular grids: conservative for amounts, nearest point for categories.

Weights are the areas that cells share, exact on the sphere, also at the poles and where a cell is
cut. xarray-regrid 0.4.2 is not used: it gives no weight to rows at ±90° and weights partial cells
by degrees instead of by area. The two axes are separable, so the weights are two sparse matrices.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import GridError, TruthError
from xaurora.utils import indexed, lazy

_TOUCH = 1e-3  # of a cell; tolerance for coordinates that are rounded to float32
_LEAST_COVER = 0.5  # of a target row or column that the source must cover


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two axes hold the same points, up to float32 rounding."""
    if len(first) != len(second):
        return False
    step = abs(float(first[1] - first[0])) if len(first) > 1 else 1.0
    return bool(np.abs(np.asarray(first, float) - np.asarray(second, float)).max() <= _TOUCH * step)


def _latitude_weights(have: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Return the share of each target row's area in each source row, ``(h', h)``."""

    def bounds(latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half = 0.5 * abs(float(np.median(np.diff(latitude))))
        low, high = np.clip(latitude - half, -90.0, 90.0), np.clip(latitude + half, -90.0, 90.0)
        return np.sin(np.deg2rad(low)), np.sin(np.deg2rad(high))

    (low, high), (want_low, want_high) = bounds(have), bounds(want)
    shared = np.minimum(high[None], want_high[:, None]) - np.maximum(low[None], want_low[:, None])
    return np.clip(shared, 0.0, None) / (want_high - want_low)[:, None]


def _longitude_weights(have: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Return the share of each target column in each source column, ``(w', w)``.

    Longitudes may be in any convention.
    """
    half, want_half = 0.5 * spacing(have), 0.5 * spacing(want)
    # The shorter distance between two cell centres around the globe gives the overlap of the cells.
    apart = np.abs((have[None] - want[:, None] + 180.0) % 360.0 - 180.0)
    shared = np.minimum(np.minimum(half + want_half - apart, 2.0 * half), 2.0 * want_half)
    return np.clip(shared, 0.0, None) / (2.0 * want_half)


class Conservative:
    """Area-weighted means on a target grid, with the share of each target cell that has values.

    Parameters
    ----------
    latitude, longitude : ndarray
        Source axes, evenly spaced, in any order; longitude in any convention.
    to_latitude, to_longitude : ndarray
        Target axes, in the order of the result.

    Raises
    ------
    GridError
        An axis has a single point.
    TruthError
        The source leaves a row or column of the target mostly uncovered.
    """

    def __init__(
        self,
        latitude: np.ndarray,
        longitude: np.ndarray,
        to_latitude: np.ndarray,
        to_longitude: np.ndarray,
    ) -> None:
        from scipy.sparse import csr_array

        have = (np.asarray(latitude, np.float64), np.asarray(longitude, np.float64))
        want = (np.asarray(to_latitude, np.float64), np.asarray(to_longitude, np.float64))
        for name, axis in zip(("latitude", "longitude") * 2, (*have, *want), strict=True):
            if len(axis) < 2:
                raise GridError(
                    f"{name} has a single point, so it has no cells to average over.",
                    fix="use a grid of at least 2 × 2 points",
                )
        rows, columns = _latitude_weights(have[0], want[0]), _longitude_weights(have[1], want[1])
        for name, weights, h, w in (
            ("latitude", rows, have[0], want[0]),
            ("longitude", columns, have[1], want[1]),
        ):
            if weights.sum(axis=1).min() < _LEAST_COVER - _TOUCH:
                raise TruthError(
                    f"{name} runs from {h[0]:g} to {h[-1]:g}, but the target grid from {w[0]:g} to"
                    f" {w[-1]:g}.",
                    fix=(
                        "use data that cover the region, or select a smaller region:"
                        " ds.sel(latitude=slice(...), longitude=slice(...))"
                    ),
                )
        self._rows, self._columns = csr_array(rows), csr_array(columns)

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Regrid one field.

        Parameters
        ----------
        values : ndarray, ``(h, w)``
            NaN where values are missing.

        Returns
        -------
        tuple of ndarray, ``(h', w')`` each
            The mean over the valid part of each target cell (NaN if there is none), float64, and
            the valid fraction of the cell.
        """
        there = np.isfinite(values)
        amount = self._rows @ (np.where(there, values, 0.0).astype(np.float64) @ self._columns.T)
        share = self._rows @ (there.astype(np.float64) @ self._columns.T)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(share > 1e-9, amount / share, np.nan)
        return mean, np.clip(share, 0.0, 1.0)


def spacing(longitude: np.ndarray) -> float:
    """Return the spacing of longitudes that may jump across the date line or Greenwich."""
    gaps = np.diff(np.asarray(longitude, np.float64)) % 360.0
    return float(np.median(np.minimum(gaps, 360.0 - gaps)))


def nearest(
    latitude: np.ndarray, longitude: np.ndarray, to_latitude: np.ndarray, to_longitude: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the source points nearest to the target's.

    Raises
    ------
    TruthError
        A target point lies more than a cell away from every source point.
    """
    out = []
    for axis, have, want in (
        ("latitude", latitude, to_latitude),
        ("longitude", longitude, to_longitude),
    ):
        distance = np.abs(
            np.asarray(have, np.float64)[None] - np.asarray(want, np.float64)[:, None]
        )
        if axis == "longitude":
            distance = np.minimum(distance % 360.0, 360.0 - distance % 360.0)
        index = distance.argmin(axis=1)
        step = spacing(have) if len(have) > 1 else 1.0
        if distance[np.arange(len(want)), index].max() > step:
            raise TruthError(
                f"{axis} runs from {have[0]:g} to {have[-1]:g}, but the target grid from"
                f" {want[0]:g} to {want[-1]:g}.",
                fix="use data that cover the region",
            )
        out.append(index)
    return out[0], out[1]


def onto(
    da: xr.DataArray,
    latitude: np.ndarray,
    longitude: np.ndarray,
    *,
    method: str = "conservative",
    least: float = 0.5,
) -> xr.DataArray:
    """Regrid fields to another grid. Lazy: computed when they are read.

    Parameters
    ----------
    da : DataArray, ``(..., latitude, longitude)``
    latitude, longitude : ndarray
        Target axes.
    method : {"conservative", "nearest"}
        ``nearest`` is for categories, which cannot be averaged.
    least : float
        Minimum share of a target cell that must have values; NaN below it.

    Returns
    -------
    DataArray
        Same dims and attributes, float32.
    """
    have = (da["latitude"].values, da["longitude"].values)
    lead = [dim for dim in da.dims if dim not in ("latitude", "longitude")]
    coords: dict[Any, Any] = {
        **{dim: da[dim].values for dim in lead},
        "latitude": latitude,
        "longitude": longitude,
    }
    if method == "nearest":
        rows, columns = nearest(*have, latitude, longitude)
        return da.isel(latitude=rows, longitude=columns).assign_coords(coords)
    regrid = Conservative(*have, latitude, longitude)

    result = lazy.map_fields(
        lazy.transpose(da.variable, (*lead, "latitude", "longitude")),
        functools.partial(_regridded, regrid, least),
        (len(latitude), len(longitude)),
        np.float32,
    )
    return indexed.as_array(result, da, coords)


def _regridded(regrid: Conservative, least: float, values: np.ndarray) -> np.ndarray:
    """Return ``(..., h, w)`` on the other grid, NaN where too little of a cell has values."""
    fields = values.reshape(-1, *values.shape[-2:])
    out = []
    for mean, share in map(regrid, fields):
        out.append(np.where(share >= least, mean, np.nan).astype(np.float32))
    return np.stack(out).reshape(*values.shape[:-2], *out[0].shape)

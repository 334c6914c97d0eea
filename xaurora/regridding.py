"""From one regular latitude–longitude grid onto another: conservatively for amounts, by the nearest point for categories.

The weights are xarray-regrid's. Two of its ways need care (version 0.4.2): where a cell has no value it must be told so as a zero and a valid
fraction, and a target cell whose centre lies beyond the outermost source centre comes back empty. So values go in multiplied by their valid
fraction, the source is padded around the globe and by one row beyond each pole, and the ratio is taken at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import GridError, TruthError
from xaurora.lazy import as_dask

_TOUCH = 1e-3  # of a cell; coordinates are rounded to float32


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two axes hold the same points, up to float32 rounding."""
    if len(first) != len(second):
        return False
    step = abs(float(first[1] - first[0])) if len(first) > 1 else 1.0
    return bool(np.abs(np.asarray(first, float) - np.asarray(second, float)).max() <= _TOUCH * step)


def _onto(longitude: np.ndarray, start: float) -> np.ndarray:
    """Longitudes in [start, start + 360)."""
    return (np.asarray(longitude, np.float64) - start + 1e-9) % 360.0 + start - 1e-9


class Conservative:
    """Area-weighted means onto a target grid, with the share of each target cell that has values.

    Parameters
    ----------
    latitude, longitude : ndarray
        The source's, evenly spaced, monotonic; longitude in any convention.
    to_latitude, to_longitude : ndarray
        The target's, in the order that is wanted back.

    Raises
    ------
    GridError
        An axis is not evenly spaced, or has a single point.
    TruthError
        The source leaves a part of the target uncovered.
    """

    def __init__(
        self, latitude: np.ndarray, longitude: np.ndarray, to_latitude: np.ndarray, to_longitude: np.ndarray
    ) -> None:
        for name, axis in (("latitude", latitude), ("longitude", longitude), ("latitude", to_latitude), ("longitude", to_longitude)):  # fmt: skip
            if len(axis) < 2:
                raise GridError(
                    f"{name} has a single point, which has no cell to take the mean over.",
                    fix="give a grid of at least 2 × 2 points",
                )
        self.to_latitude, self.to_longitude = np.asarray(to_latitude, np.float64), np.asarray(to_longitude, np.float64)
        lat = np.asarray(latitude, np.float64)
        self.rows = np.argsort(lat)
        self.lat = lat[self.rows]
        self._target_rows = np.argsort(self.to_latitude)
        step_to = (
            abs(float(np.diff(self.to_longitude).mean()))
            if (np.diff(self.to_longitude) > 0).all()
            else spacing(self.to_longitude)
        )
        # The target decides where the circle is cut: half a cell west of its western edge.
        first = float(self.to_longitude[0])
        unwrapped = _onto(self.to_longitude, first)
        self._target_columns = np.argsort(unwrapped)
        self._target_lon = unwrapped[self._target_columns]
        lon = np.asarray(longitude, np.float64)
        step = spacing(lon)
        reach = 0.5 * (step_to + step) + step
        turned = _onto(lon, first - 180.0 + 0.5 * (self._target_lon[-1] - self._target_lon[0]))
        order = np.argsort(turned)
        turned = turned[order]
        wraps = 360.0 - (turned[-1] - turned[0]) < 1.5 * step
        if wraps:  # as much of the other side as the outermost target cells reach into
            count = min(int(np.ceil(reach / step)) + 1, len(order))
            low, high = self._target_lon[0] - reach, self._target_lon[-1] + reach
            turned = np.concatenate([turned[-count:] - 360.0, turned, turned[:count] + 360.0])
            order = np.concatenate([order[-count:], order, order[:count]])
            keep = (turned >= low - step) & (turned <= high + step)
            turned, order = turned[keep], order[keep]
        self.columns, self.lon = order, turned
        self._check_cover("latitude", self.lat, np.sort(self.to_latitude), poles=True)
        self._check_cover("longitude", self.lon, self._target_lon, poles=False)

    def _check_cover(self, axis: str, have: np.ndarray, want: np.ndarray, *, poles: bool) -> None:
        half, half_to = 0.5 * float(np.diff(have).mean()), 0.5 * float(np.diff(want).mean())
        low, high = have[0] - half, have[-1] + half
        want_low, want_high = want[0] - half_to, want[-1] + half_to
        if poles:
            want_low, want_high = max(want_low, -90.0), min(want_high, 90.0)
        slack = max(_TOUCH * half_to, 1.01 * half_to if not poles else half_to)
        if low > want_low + slack or high < want_high - slack:
            raise TruthError(
                f"{axis} runs from {have[0]:g} to {have[-1]:g}, and the grid that is wanted from {want[0]:g} to {want[-1]:g}.",
                fix="give data that cover the region, or cut the region: ds.sel(latitude=slice(...), longitude=slice(...))",
            )

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Regrid one field.

        Parameters
        ----------
        values : ndarray, ``(h, w)``
            NaN where there is none.

        Returns
        -------
        tuple of ndarray, ``(h', w')`` each
            The mean over the valid part of each target cell (NaN where there is none), float64, and the valid fraction.
        """
        import xarray_regrid  # noqa: F401  (registers .regrid)

        there = np.isfinite(values)[self.rows][:, self.columns].astype(np.float64)
        filled = np.where(np.isfinite(values), values, 0.0).astype(np.float64)[self.rows][:, self.columns]
        lat, spacing = self.lat, float(np.diff(self.lat).mean())
        pads = [(1, 0), (0, 1)]
        for side, (before, after) in zip((-1, 1), pads, strict=True):
            edge = lat[0] if side < 0 else lat[-1]
            if abs(edge + side * 0.5 * spacing) >= 90.0 - _TOUCH * spacing and abs(edge) < 90.0 - _TOUCH * spacing:
                # An empty row beyond the pole, so that a target point on the pole lies within the source.
                lat = np.concatenate([[edge - spacing], lat]) if side < 0 else np.concatenate([lat, [edge + spacing]])
                filled, there = (np.pad(v, ((before, after), (0, 0))) for v in (filled, there))
        source = xr.Dataset(
            {"amount": (("latitude", "longitude"), filled), "there": (("latitude", "longitude"), there)},
            {"latitude": lat, "longitude": self.lon},
        )
        target = xr.Dataset(coords={"latitude": self.to_latitude[self._target_rows], "longitude": self._target_lon})
        out = source.regrid.conservative(target, latitude_coord="latitude", skipna=False)
        amount, share = out["amount"].values, out["there"].values
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(share > 1e-9, amount / share, np.nan)
        rows, columns = np.argsort(self._target_rows), np.argsort(self._target_columns)
        back = lambda v: v[rows][:, columns]  # noqa: E731
        return back(mean), back(np.clip(np.nan_to_num(share), 0.0, 1.0))


def spacing(longitude: np.ndarray) -> float:
    """Spacing of longitudes that may jump across the date line or Greenwich."""
    gaps = np.diff(np.asarray(longitude, np.float64)) % 360.0
    return float(np.median(np.minimum(gaps, 360.0 - gaps)))


def nearest(
    latitude: np.ndarray, longitude: np.ndarray, to_latitude: np.ndarray, to_longitude: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the source points nearest to the target's.

    Raises
    ------
    TruthError
        A target point lies more than a cell away from every source point.
    """
    out = []
    for axis, have, want in (("latitude", latitude, to_latitude), ("longitude", longitude, to_longitude)):
        distance = np.abs(np.asarray(have, np.float64)[None] - np.asarray(want, np.float64)[:, None])
        if axis == "longitude":
            distance = np.minimum(distance % 360.0, 360.0 - distance % 360.0)
        index = distance.argmin(axis=1)
        step = spacing(have) if len(have) > 1 else 1.0
        if distance[np.arange(len(want)), index].max() > step:
            raise TruthError(
                f"{axis} runs from {have[0]:g} to {have[-1]:g}, and the grid that is wanted from {want[0]:g} to {want[-1]:g}.",
                fix="give data that cover the region",
            )
        out.append(index)
    return out[0], out[1]


def onto(
    da: xr.DataArray, latitude: np.ndarray, longitude: np.ndarray, *, method: str = "conservative", least: float = 0.5
) -> xr.DataArray:
    """Bring fields onto another grid. Lazy: frame by frame.

    Parameters
    ----------
    da : DataArray, ``(time, latitude, longitude)``
    latitude, longitude : ndarray
        The target's.
    method : {"conservative", "nearest"}
        ``nearest`` for categories, of which there is no mean.
    least : float
        Share of a target cell that must have values; NaN below.

    Returns
    -------
    DataArray
        Same dims and attributes, float32.
    """
    have = (da["latitude"].values, da["longitude"].values)
    coords: dict[str, Any] = {"time": da["time"].values, "latitude": latitude, "longitude": longitude}
    if method == "nearest":
        rows, columns = nearest(*have, latitude, longitude)
        return da.isel(latitude=rows, longitude=columns).assign_coords(coords)
    regrid = Conservative(*have, latitude, longitude)

    def block(values: np.ndarray) -> np.ndarray:
        out = np.empty((len(values), len(latitude), len(longitude)), np.float32)
        for i, frame in enumerate(values):
            mean, share = regrid(frame)
            out[i] = np.where(share >= least, mean, np.nan)
        return out

    lazy = as_dask(da, "time").data
    lazy = lazy.rechunk({0: 1, 1: -1, 2: -1})
    result = lazy.map_blocks(
        block,
        dtype=np.float32,
        chunks=(lazy.chunks[0], (len(latitude),), (len(longitude),)),
        meta=np.empty((0, 0, 0), np.float32),
    )
    return xr.DataArray(result, dims=("time", "latitude", "longitude"), coords=coords, name=da.name, attrs=da.attrs)

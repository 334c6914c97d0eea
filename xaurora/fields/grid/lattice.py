"""The horizontal grid: order, wrapping, the global patch lattice, cropping, halo and area weights.

Aurora's encoder gives every patch position and scale encodings that depend on the values of
latitude and longitude. A region must therefore be cropped along the *global* patch lattice, which
counts from 90°N and 0°E; otherwise all its encodings differ from those in pretraining.
:class:`Grid` stores the position of a domain on that lattice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xaurora.errors import CoordinateError, GridError

_IRREGULAR = 0.05  # of the spacing; float32 rounding gives 1e-4 at 0.1°, a Gaussian grid up to 0.04
_SNAP = 1e-2  # of the spacing; a coordinate this close to the global lattice is snapped to it


@dataclass(frozen=True)
class Grid:
    """A regular latitude–longitude domain, in canonical order.

    Parameters
    ----------
    latitude : ndarray, ``(h,)``
        Degrees north, strictly decreasing, float64.
    longitude : ndarray, ``(w,)``
        Degrees east, strictly increasing in the order of the domain. In a domain that crosses
        Greenwich or the date line they continue beyond 0 or 180 instead of jumping.
    rows, columns : ndarray of int, ``(h,)``, ``(w,)``
        Position of each canonical row and column in the original data.
    first_row, first_column : int
        Index of the first row and column on the global lattice, which starts at 90°N and 0°E.
    wraps : bool
        Whether the grid spans the whole circle of longitude.
    spacing : tuple of float
        Degrees between rows and between columns.
    """

    latitude: np.ndarray
    longitude: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    first_row: int
    first_column: int
    wraps: bool
    spacing: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.latitude), len(self.longitude)

    @property
    def is_global(self) -> bool:
        """Whether the grid covers the globe, apart from southern rows that patches drop."""
        reach = 1.5 * self.spacing[0]
        return (
            self.wraps
            and 90.0 - self.latitude[0] <= reach
            and self.latitude[-1] + 90.0 <= reach + 3 * self.spacing[0]
        )

    @property
    def true_longitude(self) -> np.ndarray:
        """Longitudes in [0, 360), ``(w,)``; they jump back where the domain crosses Greenwich."""
        return self.longitude % 360.0

    @property
    def crosses_greenwich(self) -> bool:
        """Whether longitudes in [0, 360) would not increase along the domain."""
        return bool((np.diff(self.true_longitude) < 0).any())

    @property
    def placed_longitude(self) -> np.ndarray:
        """Increasing longitudes in [0, 360), ``(w,)``.

        These are the true ones, or placeholders that start at zero if the true ones jump.
        """
        if not self.crosses_greenwich:
            return self.true_longitude
        return self.longitude - self.longitude[0]

    def take(self, rows: slice | np.ndarray, columns: slice | np.ndarray) -> Grid:
        """Return the sub-grid of some canonical rows and columns."""
        row_index = np.arange(len(self.latitude))[rows]
        column_index = np.arange(len(self.longitude))[columns]
        whole = len(column_index) == len(self.longitude)
        return Grid(
            latitude=self.latitude[row_index],
            longitude=self.longitude[column_index],
            rows=self.rows[row_index],
            columns=self.columns[column_index],
            first_row=self.first_row + int(row_index[0]),
            first_column=self.first_column + int(column_index[0]),
            wraps=self.wraps and whole,
            spacing=self.spacing,
        )


def from_axes(latitude: np.ndarray, longitude: np.ndarray) -> Grid:
    """Bring two axes into canonical order and locate them on the global lattice.

    Parameters
    ----------
    latitude : ndarray, ``(h,)``
        Degrees north in any order.
    longitude : ndarray, ``(w,)``
        Degrees east in any order and any convention (−180…180, 0…360, or a mixture that follows the
        domain).

    Raises
    ------
    CoordinateError
        A value is not finite, out of range, or duplicated (0° and 360° are the same meridian).
    GridError
        There are fewer than two rows or columns, or values are not evenly spaced.
    """
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    for name, values in (("latitude", lat), ("longitude", lon)):
        if len(values) < 2:
            raise GridError(
                f"{name} has {len(values)} value(s), but a region needs at least 12 by 12 grid"
                " points.",
                fix=(
                    "select a box instead of a point, for example ds.sel(latitude=slice(60, 50),"
                    " longitude=slice(0, 10))"
                ),
            )
        if not np.isfinite(values).all():
            raise CoordinateError(
                f"{name} contains values that are not finite.",
                fix=f"ds.isel({name}=np.isfinite(ds['{name}'].values))",
            )
    if lat.max() > 90 + 1e-4 or lat.min() < -90 - 1e-4:
        raise CoordinateError(
            f"latitude runs from {lat.min():g} to {lat.max():g}, but degrees north must lie"
            " between -90 and 90.",
            fix=(
                "ds.isel(latitude=abs(ds['latitude'].values) <= 90), if the others are right, or"
                " assign latitudes in degrees north"
            ),
        )
    lat = np.clip(lat, -90.0, 90.0)

    rows = np.argsort(-lat, kind="stable")
    lat = lat[rows]
    lat_spacing = _spacing("latitude", -lat)
    rows_to_pole = round(180.0 / lat_spacing)
    if abs(180.0 / lat_spacing - rows_to_pole) < 0.05 * rows_to_pole / len(lat):
        lat_spacing = (
            180.0 / rows_to_pole
        )  # without float32 rounding, which adds up towards the pole

    wrapped = np.mod(lon, 360.0)
    wrapped[wrapped > 360.0 - 1e-4] = (
        0.0  # −1e-7 is Greenwich, not the last column of a global grid
    )
    order = np.argsort(wrapped, kind="stable")
    steps = np.diff(np.append(wrapped[order], wrapped[order[0]] + 360.0))
    # Without the widest gap: for a region, the rest of the globe.
    apart = np.sort(steps[steps > 1e-6])[:-1]
    typical = float(np.median(apart)) if len(apart) else 360.0
    doubled = np.flatnonzero(steps < 0.01 * typical)
    if len(doubled):
        here, there = lon[order[doubled[0]]], lon[order[(doubled[0] + 1) % len(lon)]]
        raise CoordinateError(
            f"longitudes {min(here, there):g} and {max(here, there):g} are the same meridian, but"
            " both are present.",
            fix=(
                f"ds.isel(longitude=np.delete(np.arange({len(lon)}),"
                f" {sorted(order[doubled].tolist())}))"
            ),
        )
    # The domain starts after the widest gap; a global grid has none and starts at 0°E.
    gap = int(np.argmax(steps))
    wraps = bool(steps[gap] <= 1.5 * typical)
    if not wraps:
        order = np.roll(order, -(gap + 1))
    unwrapped = wrapped[order]
    unwrapped = np.where(unwrapped < unwrapped[0] - 1e-9, unwrapped + 360.0, unwrapped)
    lon_spacing = _spacing("longitude", unwrapped)

    unwrapped, first_column = _snap_longitude(unwrapped, lon_spacing)
    if unwrapped[-1] >= 360.0 and not wraps:
        unwrapped = unwrapped - 360.0  # a domain across Greenwich is written as −15 … 15
    from_pole = (90.0 - lat[0]) / lat_spacing
    first_row = int(np.floor(from_pole + _SNAP))
    return Grid(
        lat, unwrapped, rows, order, first_row, first_column, wraps, (lat_spacing, lon_spacing)
    )


def _spacing(name: str, increasing: np.ndarray) -> float:
    steps = np.diff(increasing)
    typical = float((increasing[-1] - increasing[0]) / (len(increasing) - 1))
    if typical <= 0 or (steps <= 1e-3 * typical).any():
        raise CoordinateError(
            f"{name} contains the same value twice.", fix=f"ds.drop_duplicates('{name}')"
        )
    worst = float(np.abs(steps - typical).max() / typical)
    if worst > _IRREGULAR:
        raise GridError(
            f"{name} is not evenly spaced: steps from {steps.min():.4g}° to {steps.max():.4g}°."
            " Aurora requires a regular latitude–longitude grid.",
            fix=f"select one contiguous box, or interpolate: ds.interp({name}=np.arange(...))",
        )
    return typical


def _snap_longitude(unwrapped: np.ndarray, spacing: float) -> tuple[np.ndarray, int]:
    """Remove float32 rounding from longitudes on a grid that divides the whole circle.

    Also returns the index of the first column on the global lattice.
    """
    count = round(360.0 / spacing)
    if abs(360.0 / spacing - count) > 0.05 * count / max(len(unwrapped), 2):
        return unwrapped, int(np.floor(unwrapped[0] / spacing + _SNAP)) % max(count, 1)
    step = 360.0 / count
    position = unwrapped / step
    index = np.round(position)
    offset = float(np.median(position - index))
    if abs(offset) < _SNAP:
        offset = 0.0
    elif abs(abs(offset) - 0.5) < _SNAP:
        offset = 0.5
        index = np.round(position - 0.5)
    snapped = (index + offset) * step
    first = int(np.floor(index[0] + (0 if offset >= 0 else -1))) % count
    if np.abs(snapped - unwrapped).max() <= _SNAP * step:
        return snapped, first
    return unwrapped, first

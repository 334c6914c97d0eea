"""The horizontal grid: order, wrap, the global patch lattice, cropping, halo, area weights.

Aurora's encoder gives every patch a position and a scale encoding that depend on latitude and
longitude as numbers. A region therefore has to be cut along the *global* patch lattice (patches
count from 90°N and 0°E), or every encoding is one that the model never met. :class:`Grid` knows
where on that lattice a domain lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xaurora.errors import CoordinateError, GridError, RegionError

_IRREGULAR = 0.05  # of the spacing; float32 rounding gives 1e-4 at 0.1°, a Gaussian grid up to 0.04
_SNAP = 1e-2  # of the spacing; a coordinate this close to the global lattice is taken to lie on it


@dataclass(frozen=True)
class Grid:
    """A regular latitude–longitude domain, in canonical order.

    Parameters
    ----------
    latitude : ndarray, ``(h,)``
        Degrees north, strictly decreasing, float64.
    longitude : ndarray, ``(w,)``
        Degrees east, strictly increasing in the order of the domain; a domain that crosses
        Greenwich or the date line goes on beyond 0 or 180 instead of jumping.
    rows, columns : ndarray of int, ``(h,)``, ``(w,)``
        Where each canonical row and column stands in the data as found.
    first_row, first_column : int
        Index of the first row and column on the global lattice, which starts at 90°N and 0°E.
    wraps : bool
        Whether east meets west.
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
        """Whether it covers the globe, but for the rows that patches may lose at the south pole."""
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
        """Longitudes in [0, 360) that increase, ``(w,)``: the true ones, or placeholders where
        those jump.
        """
        if not self.crosses_greenwich:
            return self.true_longitude
        return self.longitude - self.longitude[0]

    def take(self, rows: slice | np.ndarray, columns: slice | np.ndarray) -> Grid:
        """The sub-grid of some canonical rows and columns."""
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
    """Bring two axes into canonical order and find their place on the global lattice.

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
        A value is not finite, out of range, or there twice (0° and 360° are one meridian).
    GridError
        Fewer than two rows or columns, or values that are not evenly spaced.
    """
    lat, lon = np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)
    for name, values in (("latitude", lat), ("longitude", lon)):
        if len(values) < 2:
            raise GridError(
                f"{name} has {len(values)} value(s), and a region needs at least 12 by 12 grid"
                " points.",
                fix=(
                    "select a box instead of a point, for example ds.sel(latitude=slice(60, 50),"
                    " longitude=slice(0, 10))"
                ),
            )
        if not np.isfinite(values).all():
            raise CoordinateError(
                f"{name} holds values that are not finite.", fix=f"ds.dropna('{name}')"
            )
    if lat.max() > 90 + 1e-4 or lat.min() < -90 - 1e-4:
        raise CoordinateError(
            f"latitude runs from {lat.min():g} to {lat.max():g}, and degrees north lie between -90"
            " and 90.",
            fix=(
                "assign latitudes in degrees north, for example"
                " ds.assign_coords(latitude=np.rad2deg(ds.latitude))"
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
        )  # free of float32 rounding, which adds up on the way to the pole

    wrapped = np.mod(lon, 360.0)
    wrapped[wrapped > 360.0 - 1e-4] = 0.0  # −1e-7 is Greenwich, not the last column of the globe
    order = np.argsort(wrapped, kind="stable")
    steps = np.diff(np.append(wrapped[order], wrapped[order[0]] + 360.0))
    typical = float(
        np.median(np.sort(steps)[:-1])
    )  # without the widest: a region's way around the globe
    doubled = np.flatnonzero(steps < 0.01 * typical)
    if len(doubled):
        here, there = lon[order[doubled[0]]], lon[order[(doubled[0] + 1) % len(lon)]]
        raise CoordinateError(
            f"longitudes {min(here, there):g} and {max(here, there):g} are the same meridian, and"
            " both are there.",
            fix="drop one of them, for example ds.isel(longitude=slice(None, -1))",
        )
    # The domain begins after the widest gap; a whole globe has none and begins at 0°E.
    gap = int(np.argmax(steps))
    wraps = bool(steps[gap] <= 1.5 * typical)
    if not wraps:
        order = np.roll(order, -(gap + 1))
    unwrapped = wrapped[order]
    unwrapped = np.where(unwrapped < unwrapped[0] - 1e-9, unwrapped + 360.0, unwrapped)
    lon_spacing = _spacing("longitude", unwrapped)

    unwrapped, first_column = _snap_longitude(unwrapped, lon_spacing)
    if unwrapped[-1] >= 360.0 and not wraps:
        unwrapped = unwrapped - 360.0  # a domain across Greenwich reads best as −15 … 15
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
            f"{name} holds the same value twice.", fix=f"ds.drop_duplicates('{name}')"
        )
    worst = float(np.abs(steps - typical).max() / typical)
    if worst > _IRREGULAR:
        raise GridError(
            f"{name} is not evenly spaced: steps from {steps.min():.4g}° to {steps.max():.4g}°."
            " Aurora takes regular latitude–longitude grids.",
            fix=f"select one contiguous box, or interpolate: ds.interp({name}=np.arange(...))",
        )
    return typical


def _snap_longitude(unwrapped: np.ndarray, spacing: float) -> tuple[np.ndarray, int]:
    """Free longitudes of float32 rounding when they lie on a grid that closes around the globe."""
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


@dataclass(frozen=True)
class Crop:
    """What a patch size leaves of a grid.

    Parameters
    ----------
    rows, columns : slice
        Kept canonical rows and columns.
    grid : Grid
        The kept grid.
    left_out : str
        What was left out, in words; empty when nothing was.
    """

    rows: slice
    columns: slice
    grid: Grid
    left_out: str


def crop_to_patches(grid: Grid, patch_size: int = 4, merges: int = 2) -> Crop:
    """Cut a grid to whole patches of the global lattice.

    Parameters
    ----------
    grid : Grid
    patch_size : int
        Pixels along a patch's side.
    merges : int
        How often the backbone halves the resolution (twice in Aurora: three stages); each needs two
        rows and columns.

    Raises
    ------
    GridError
        A whole globe whose width is no multiple of the patch size.
    RegionError
        The region is smaller than the model can take.
    """
    rows = _whole_patches(grid.first_row, grid.shape[0], patch_size)
    if grid.wraps:
        if grid.shape[1] % patch_size:
            raise GridError(
                f"the globe has {grid.shape[1]} columns, which patches of {patch_size} cannot tile,"
                " and dropping columns would tear east from west.",
                fix=(
                    f"regrid to a width that {patch_size} divides, for example 1440, 900, 360 or"
                    " 240 columns"
                ),
            )
        columns = slice(0, grid.shape[1])
    else:
        columns = _whole_patches(grid.first_column, grid.shape[1], patch_size)
    height, width = max(rows.stop - rows.start, 0), max(columns.stop - columns.start, 0)
    smallest = (
        (2**merges // 2 + 1) * patch_size if merges else patch_size
    )  # each merge needs two rows and columns
    if height < smallest or width < smallest:
        raise RegionError(
            f"the region has {grid.shape[0]} × {grid.shape[1]} grid points, of which {height} ×"
            f" {width} fill whole patches; this model needs at least {smallest} × {smallest}.",
            fix=(
                f"take a larger box, for example {smallest + 2 * patch_size} ×"
                f" {smallest + 2 * patch_size} grid points"
            ),
        )
    kept = grid.take(rows, columns)
    parts = []
    if dropped := _names(grid.latitude, rows, "N"):
        parts.append(f"{len(dropped)} row(s): {_shorten(dropped)}")
    if dropped := _names(grid.longitude, columns, "E"):
        parts.append(f"{len(dropped)} column(s): {_shorten(dropped)}")
    return Crop(rows, columns, kept, "; ".join(parts))


def _whole_patches(first: int, count: int, patch_size: int) -> slice:
    start = (-first) % patch_size
    whole = max(count - start, 0) // patch_size * patch_size
    return slice(start, start + whole)


def _names(values: np.ndarray, kept: slice, suffix: str) -> list[str]:
    out = np.concatenate([values[: kept.start], values[kept.stop :]])
    return [f"{v:g}°{suffix}" for v in out]


def _shorten(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])}, …, {names[-1]}"


def trim(grid: Grid, halo: int) -> tuple[slice, slice]:
    """Rows and columns that remain when a halo is thrown away.

    A global grid has no edge in longitude, and a pole is no edge either: only sides at which the
    data end are trimmed.

    Raises
    ------
    RegionError
        Nothing would remain.
    """
    lat_spacing = grid.spacing[0]
    top = 0 if 90.0 - grid.latitude[0] < lat_spacing else halo
    # One row above the south pole is still the pole: patches drop the last row of 721.
    bottom = 0 if grid.latitude[-1] + 90.0 < 4 * lat_spacing else halo
    left = right = 0 if grid.wraps else halo
    rows = slice(top, grid.shape[0] - bottom)
    columns = slice(left, grid.shape[1] - right)
    if rows.stop <= rows.start or columns.stop <= columns.start:
        raise RegionError(
            f"a halo of {halo} grid points leaves nothing of {grid.shape[0]} × {grid.shape[1]}.",
            fix=f"halo={max(min(grid.shape) // 4, 0)} or a larger region",
        )
    return rows, columns


@dataclass(frozen=True)
class Window:
    """The part of a grid that a region covers, and the patches that shape it.

    Parameters
    ----------
    rows, columns : ndarray of int, ``(h,)``, ``(w,)``
        Canonical rows and columns of the region's bounding box; columns go on across the grid's
        seam.
    patch_rows, patch_columns : ndarray of int
        Patches that cover it, with a margin around.
    top, left : int
        Where the first row and column stand in the pixels of those patches.
    wraps : bool
        Whether its east meets its west.
    mask : ndarray of bool, ``(h, w)``, optional
        The cells inside, where they are not all of the bounding box.
    """

    rows: np.ndarray
    columns: np.ndarray
    patch_rows: np.ndarray
    patch_columns: np.ndarray
    top: int
    left: int
    wraps: bool
    mask: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), len(self.columns)


def window(grid: Grid, inside: np.ndarray, patch_size: int, margin: int) -> Window:
    """The window of a region in a grid that patches tile.

    Parameters
    ----------
    grid : Grid
    inside : ndarray of bool, ``(h, w)``
        Cells of the region; at least one.
    patch_size : int
    margin : int
        Patches around it that shape its cells too.
    """
    rows = np.flatnonzero(inside.any(axis=1))
    rows = np.arange(rows[0], rows[-1] + 1)
    there = np.flatnonzero(inside.any(axis=0))
    width = grid.shape[1]
    if grid.wraps:  # the widest gap is what lies outside
        gaps = np.diff(np.append(there, there[0] + width))
        start = int(there[(int(np.argmax(gaps)) + 1) % len(there)])
        count = width - int(gaps.max()) + 1
        if width - count < (2 * margin + 1) * patch_size:
            start, count = 0, width  # next to nothing would be left out
    else:
        start, count = int(there[0]), int(there[-1] - there[0] + 1)
    columns = np.arange(start, start + count)
    whole = grid.wraps and count == width
    first_row, last_row = rows[0] // patch_size, rows[-1] // patch_size
    top = max(first_row - margin, 0)
    patch_rows = np.arange(top, min(last_row + margin, grid.shape[0] // patch_size - 1) + 1)
    first, last = start // patch_size, (start + count - 1) // patch_size
    if whole:
        patch_columns = np.arange(width // patch_size)
        left = 0
    elif grid.wraps:
        patch_columns = np.arange(first - margin, last + margin + 1)
        left = int(patch_columns[0])
        patch_columns = patch_columns % (width // patch_size)
    else:
        left = max(first - margin, 0)
        patch_columns = np.arange(left, min(last + margin, width // patch_size - 1) + 1)
    box = inside[np.ix_(rows, columns % width)]
    return Window(
        rows=rows,
        columns=columns % width,
        patch_rows=patch_rows,
        patch_columns=patch_columns,
        top=int(rows[0]) - int(patch_rows[0]) * patch_size,
        left=start - left * patch_size,
        wraps=whole,
        mask=None if box.all() else box,
    )


def latitude_weights(latitude: np.ndarray, *, regional: bool | None = None) -> np.ndarray:
    """Area weights by latitude, normalised to mean 1, as WeatherBench2 defines them.

    A cell reaches to the midpoints between its latitude and its neighbours; ``w = sin(upper) −
    sin(lower)``. On a global grid the outermost cells reach to the poles. On a regional one they
    keep half a cell, or the edge rows would stand for everything up to the pole.

    Parameters
    ----------
    latitude : ndarray, ``(h,)``
        Degrees north, monotonic.
    regional : bool, optional
        By default a grid whose ends lie within one and a half cells of both poles is global.

    References
    ----------
    Rasp et al. (2024), WeatherBench 2, J. Adv. Model. Earth Syst., doi:10.1029/2023MS004019,
    section 2.4.
    """
    lat = np.asarray(latitude, dtype=np.float64)
    if len(lat) == 1:
        return np.ones(1)
    ascending = np.sort(lat)
    middle = (ascending[1:] + ascending[:-1]) / 2
    first_half, last_half = (ascending[1] - ascending[0]) / 2, (ascending[-1] - ascending[-2]) / 2
    if regional is None:
        reach = 3 * max(first_half, last_half)
        regional = not (ascending[0] <= -90 + reach and ascending[-1] >= 90 - reach)
    low, high = (
        (ascending[0] - first_half, ascending[-1] + last_half) if regional else (-90.0, 90.0)
    )
    bounds = np.deg2rad(np.clip(np.concatenate([[low], middle, [high]]), -90.0, 90.0))
    weights = np.diff(np.sin(bounds))
    weights = weights / weights.mean()
    return weights[np.argsort(np.argsort(lat))]

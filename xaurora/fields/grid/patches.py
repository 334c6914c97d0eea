"""The patches of a model on a grid: crops to whole patches, halos, and windows of a region."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xaurora.errors import GridError, RegionError
from xaurora.fields.grid.lattice import Grid


@dataclass(frozen=True)
class Crop:
    """Part of a grid that whole patches cover.

    Parameters
    ----------
    rows, columns : slice
        Kept canonical rows and columns.
    grid : Grid
        The kept grid.
    left_out : str
        Description of the rows and columns that are left out; empty if there are none.
    """

    rows: slice
    columns: slice
    grid: Grid
    left_out: str


def crop_to_patches(grid: Grid, patch_size: int = 4, merges: int = 2) -> Crop:
    """Crop a grid to whole patches of the global lattice.

    Parameters
    ----------
    grid : Grid
    patch_size : int
        Pixels along a patch's side.
    merges : int
        Number of times that the backbone halves the resolution (twice in Aurora, which has three
        stages). Each of them needs two rows and columns.

    Raises
    ------
    GridError
        The grid is global and its width is not a multiple of the patch size.
    RegionError
        The region is smaller than the model supports.
    """
    rows = whole_patches(grid.first_row, grid.shape[0], patch_size)
    if grid.wraps:
        if grid.shape[1] % patch_size:
            raise GridError(
                f"the global grid has {grid.shape[1]} columns, which is not a multiple of the"
                f" patch size {patch_size}, and dropping columns would break the connection"
                " between east and west.",
                fix=(
                    f"regrid to a multiple of {patch_size} columns, for example 1440, 900, 360 or"
                    " 240"
                ),
            )
        columns = slice(0, grid.shape[1])
    else:
        columns = whole_patches(grid.first_column, grid.shape[1], patch_size)
    height, width = max(rows.stop - rows.start, 0), max(columns.stop - columns.start, 0)
    smallest = (
        (2**merges // 2 + 1) * patch_size if merges else patch_size
    )  # each merge needs two rows and columns
    if height < smallest or width < smallest:
        raise RegionError(
            f"the region has {grid.shape[0]} × {grid.shape[1]} grid points, of which {height} ×"
            f" {width} fill whole patches; this model needs at least {smallest} × {smallest}.",
            fix=(
                f"select a larger box, for example {smallest + 2 * patch_size} ×"
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


def whole_patches(first: int, count: int, patch_size: int) -> slice:
    """Return the part of an axis that whole patches of the global lattice cover."""
    start = (-first) % patch_size
    whole = max(count - start, 0) // patch_size * patch_size
    return slice(start, start + whole)


def _names(values: np.ndarray, kept: slice, suffix: str) -> list[str]:
    out = np.concatenate([values[: kept.start], values[kept.stop :]])
    return [f"{v:g}°{suffix}" for v in out]


def _shorten(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])}, …, {names[-1]}"


def trim(grid: Grid, halo: int) -> tuple[slice, slice]:
    """Return the rows and columns that remain when a halo is removed.

    Only sides at which the data end are trimmed: a global grid has no edge in longitude, and a pole
    is not an edge either.

    Raises
    ------
    RegionError
        Nothing would remain.
    """
    lat_spacing = grid.spacing[0]
    top = 0 if 90.0 - grid.latitude[0] < lat_spacing else halo
    # The row next to the south pole counts as the pole, because Aurora drops the last of 721 rows.
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
    """Bounding box of a region in a grid, and the patches that determine its values.

    Parameters
    ----------
    rows, columns : ndarray of int, ``(h,)``, ``(w,)``
        Canonical rows and columns of the region's bounding box; columns continue across the seam of
        a global grid.
    patch_rows, patch_columns : ndarray of int
        Patches that cover it, including a margin.
    top, left : int
        Position of the first row and column in the pixels of those patches.
    wraps : bool
        Whether the window spans the whole circle of longitude.
    mask : ndarray of bool, ``(h, w)``, optional
        The cells inside the region, if it is not the whole bounding box.
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


def window_around(grid: Grid, inside: np.ndarray, patch_size: int, margin: int) -> Window:
    """Return the window of a region in a grid of whole patches.

    Parameters
    ----------
    grid : Grid
    inside : ndarray of bool, ``(h, w)``
        Cells of the region; at least one.
    patch_size : int
    margin : int
        Number of patches around the region that also influence its cells.
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
            start, count = 0, width  # too little would be left out
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

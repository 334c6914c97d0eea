"""Convert between Datasets and Batches, for the accessor."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr
from aurora import Batch

from xaurora.errors import KindError, MissingVariableError
from xaurora.fields import conventions, requirements
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import patches
from xaurora.fields.grid.lattice import Grid
from xaurora.fields.outputs import AMOUNTS, output_field
from xaurora.model import batch as batches
from xaurora.model.models import TABLE, V15_OUTPUT_ONLY
from xaurora.model.resolve import ModelLike, resolve
from xaurora.utils.types import TimesLike

logger = logging.getLogger("xaurora")


def to_batch(
    ds: xr.Dataset, time: TimesLike, model: ModelLike, static_file: str | Path | None = None
) -> Batch:
    """Convert a Dataset; see :meth:`xaurora.accessor.AuroraAccessor.to_batch`."""
    resolved = resolve(model, static_file=static_file)
    fields = conventions.standardise(ds)
    used, crop = requirements.select_and_crop(fields, resolved.needs(fields))
    times = batches.resolve_times(used.times, time)
    if time is None:
        times = times[-1:]
    if crop.left_out:
        logger.warning("Left out because the patches do not cover them: %s.", crop.left_out)
    return batches.to_batch(used, times)


def from_batch(ds: xr.Dataset, batch: Batch) -> xr.Dataset:
    """Convert a Batch; see :meth:`xaurora.accessor.AuroraAccessor.from_batch`."""
    if not isinstance(batch, Batch):
        raise KindError(
            f"batch must be an aurora.Batch, got {type(batch).__name__}.",
            fix="ds.aurora.from_batch(ds.aurora.to_batch())",
        )
    batch, fields = _with_outputs(batch, conventions.standardise(ds))
    levels = [float(v) for v in batch.metadata.atmos_levels]
    unknown = [n for n in batch.surf_vars if n not in fields.surface] + [
        n for n in batch.atmos_vars if n not in fields.atmos
    ]
    if unknown or [v for v in levels if v not in fields.levels]:
        raise MissingVariableError(
            f"the Batch holds {unknown or levels}, which this Dataset lacks.",
            fix="call from_batch() on the Dataset that to_batch() was called on",
        )
    chosen = fields.select(
        surface=batch.surf_vars,
        static=[n for n in batch.static_vars if n in fields.static],
        atmos=batch.atmos_vars,
        levels=levels,
    )
    latitude = batch.metadata.lat.detach().cpu().numpy().astype(np.float64)
    longitude = (
        getattr(batch, "longitude", batch.metadata.lon).detach().cpu().numpy().astype(np.float64)
    )
    return batches.from_batch(
        batch, chosen.crop(_window(fields.layout.grid, latitude, longitude, batch.spatial_shape))
    )


def _with_outputs(batch: Batch, fields: Fields) -> tuple[Batch, Fields]:
    """Return a Batch of Aurora 1.5 without its insolation, and its outputs as fields.

    Hourly totals of rain and snow, of which the model's scale goes below zero, are at least zero.
    """
    outputs = [n for n in batch.surf_vars if n in V15_OUTPUT_ONLY]
    surface = {
        n: v.clamp(min=0.0) if n in AMOUNTS else v
        for n, v in batch.surf_vars.items()
        if n != "insolation" or n in fields.surface
    }
    if len(surface) == len(batch.surf_vars) and not outputs:
        return batch, fields
    items = {("surface", n): output_field(fields, n, 1) for n in outputs}
    # A place for each, which the values of the Batch take.
    like = next(iter(fields.surface.variables[n] for n in fields.surface))
    places = {n: like for n in outputs if n not in fields.surface}
    layout = replace(fields.layout, fields={**fields.layout.fields, **items})
    wider = replace(fields, surface=fields.surface.assign(places), layout=layout)
    return replace(batch, surf_vars=surface), wider


def _window(
    grid: Grid, latitude: np.ndarray, longitude: np.ndarray, shape: tuple[int, int]
) -> patches.Crop:
    """Return the rows and columns of a grid that a Batch covers."""
    row = int(np.abs(grid.latitude - latitude[0]).argmin())
    if (np.diff(longitude) < 0).any() or not grid.crosses_greenwich:
        distance = np.abs(grid.true_longitude - longitude[0] % 360.0)
        column = int(np.minimum(distance, 360.0 - distance).argmin())
    else:
        column = _placeholder_column(grid, longitude, shape[1])
    rows, columns = slice(row, row + shape[0]), slice(column, column + shape[1])
    if rows.stop > grid.shape[0] or columns.stop > grid.shape[1]:
        rows, columns = (
            slice(0, grid.shape[0]),
            slice(0, grid.shape[1]),
        )  # batches.from_batch() raises because the grids differ
    return patches.Crop(rows, columns, grid.take(rows, columns), "")


def _placeholder_column(grid: Grid, longitude: np.ndarray, width: int) -> int:
    """Return the first column of a Batch whose longitudes are placeholders.

    Placeholders count from the region's first kept column.
    """
    if longitude[0] != 0.0:
        return int(np.abs(grid.true_longitude - longitude[0]).argmin())
    known = dict.fromkeys(spec.needs.patch_size for spec in TABLE.values())
    for patch in [*known, *(p for p in range(2, width + 1) if width % p == 0)]:
        columns = patches.whole_patches(grid.first_column, grid.shape[1], patch)
        if columns.stop - columns.start == width:
            return int(columns.start)
    return 0

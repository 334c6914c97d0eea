"""The grid points that forecasts have in common."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

import numpy as np

from xaurora.errors import TruthError
from xaurora.evaluation.alignment import Forecast

logger = logging.getLogger("xaurora")

_SAME = 1e-3  # degrees; coordinates in float32 at 0.25° are exact to 1e-5
_FEWEST = 2  # rows and columns


def common_points(forecasts: Mapping[str, Forecast]) -> dict[str, Forecast]:
    """Crop forecasts to the points that all of them have.

    A model leaves out rows and columns that do not fill a patch, so that its forecast of a region
    is smaller than one by persistence.

    Raises
    ------
    TruthError
        If the grids have other points where they overlap, or do not overlap.
    """
    first_label, first = next(iter(forecasts.items()))
    latitude, longitude = first.latitude, first.longitude
    for label, f in forecasts.items():
        rows = _shared(latitude, f.latitude)
        columns = _shared(longitude, f.longitude, circle=True)
        if rows is None or columns is None:
            raise TruthError(
                f"the grid of {label!r} differs from that of {first_label!r}: {len(f.latitude)} ×"
                f" {len(f.longitude)} and {len(first.latitude)} × {len(first.longitude)} points."
                " Scores on different grids are not comparable.",
                fix="regrid one forecast to the other's grid first",
            )
        latitude, longitude = latitude[rows[0]], longitude[columns[0]]
    out = {}
    for label, f in forecasts.items():
        rows = _shared(latitude, f.latitude)
        columns = _shared(longitude, f.longitude, circle=True)
        if rows is None or columns is None:  # cannot be: every grid contains the common points
            raise TruthError(f"{label!r} has other points.", fix="regrid it first")
        out[label] = _cropped(f, rows[1], columns[1])
    cropped = [label for label, f in forecasts.items() if _shape(f) != _shape(out[label])]
    if cropped:
        logger.warning(
            "Scored at the %d × %d points that all forecasts have; left out are rows and columns"
            " of %s.",
            *_shape(out[first_label]),
            ", ".join(
                f"{label!r} ({' × '.join(map(str, _shape(forecasts[label])))})" for label in cropped
            ),
        )
    return out


def _shape(f: Forecast) -> tuple[int, int]:
    return len(f.latitude), len(f.longitude)


def _cropped(f: Forecast, rows: np.ndarray, columns: np.ndarray) -> Forecast:
    if (len(rows), len(columns)) == _shape(f):
        return f
    at = {f.dims["latitude"]: rows, f.dims["longitude"]: columns}
    return dataclasses.replace(
        f, ds=f.ds.isel(at), latitude=f.latitude[rows], longitude=f.longitude[columns]
    )


def _shared(
    a: np.ndarray, b: np.ndarray, *, circle: bool = False
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the positions of the shared points in two coordinates, in the order of the first.

    None if the points between the shared ones differ, or there are too few.
    """
    apart = np.abs(a[:, None] - b[None, :])
    if circle:
        apart = np.minimum(apart % 360.0, -apart % 360.0)
    here, there = np.nonzero(apart <= _SAME)
    if len(here) < min(_FEWEST, len(a), len(b)):
        return None
    for positions in (here, there):
        # The shared points follow each other, in both; on a circle one gap may be its seam.
        steps = np.abs(np.diff(positions))
        if (steps > 1).sum() > int(circle) or (steps == 0).any():
            return None
    return here, there

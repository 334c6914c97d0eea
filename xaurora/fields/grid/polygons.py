"""Polygons on a latitude–longitude grid: GeoJSON and objects with ``__geo_interface__``.

Does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from xaurora.errors import RegionError
from xaurora.utils.types import Given

_KINDS = ("Polygon", "MultiPolygon", "Feature", "FeatureCollection", "GeometryCollection")


def is_polygon(shape: Given) -> bool:
    """Return whether an object is a polygon in a supported form."""
    return hasattr(shape, "__geo_interface__") or (
        isinstance(shape, Mapping) and shape.get("type") in _KINDS
    )


def _rings(name: str, shape: Given) -> Iterator[list[np.ndarray]]:
    """Yield polygons as lists of rings, outer ring first, ``(n, 2)`` in degrees east and north."""
    geometry = shape.__geo_interface__ if hasattr(shape, "__geo_interface__") else shape
    kind = geometry.get("type")
    if kind == "Feature":
        yield from _rings(name, geometry["geometry"])
    elif kind in ("FeatureCollection", "GeometryCollection"):
        for part in geometry["features" if kind == "FeatureCollection" else "geometries"]:
            yield from _rings(name, part)
    elif kind in ("Polygon", "MultiPolygon"):
        polygons = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
        for polygon in polygons:
            try:
                rings = [np.asarray(ring, np.float64)[:, :2] for ring in polygon]
            except (ValueError, TypeError, IndexError) as why:
                raise RegionError(
                    f"the coordinates of polygon {name!r} are not rings of (longitude, latitude).",
                    fix=(
                        "{'type': 'Polygon', 'coordinates': [[(5, 45), (15, 45), (10, 50), (5,"
                        " 45)]]}"
                    ),
                ) from why
            yield rings
    else:
        raise RegionError(
            f"region {name!r} has the type {kind!r}, which does not enclose an area.",
            fix=f"use one of {', '.join(_KINDS)}",
        )


def inside(name: str, shape: Given, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Return which grid points lie inside a polygon, ``(h, w)`` bool.

    Edges are straight in degrees; a ring may cross Greenwich or the date line.

    Raises
    ------
    RegionError
        It is not a polygon, or coordinates are out of range.
    """
    out = np.zeros((len(latitude), len(longitude)), bool)
    for rings in _rings(name, shape):
        within = np.zeros_like(out)
        for ring in rings:  # even–odd rule: points in holes flip back to outside
            if len(ring) < 3 or not np.isfinite(ring).all() or np.abs(ring[:, 1]).max() > 90.0:
                raise RegionError(
                    f"polygon {name!r} has a ring of {len(ring)} points; a ring needs at least 3"
                    " points, finite coordinates and latitudes within ±90°.",
                    fix="use coordinates (longitude, latitude)",
                )
            within ^= _inside_ring(ring, latitude, longitude)
        out |= within
    return out


def _inside_ring(ring: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Return which grid points lie inside a ring, by counting crossings of a ray to the east.

    Longitudes are unwrapped around the middle of the ring.
    """
    x = np.unwrap(ring[:, 0], period=360.0)
    y = ring[:, 1]
    middle = 0.5 * (x.min() + x.max())
    px = (longitude - middle + 180.0) % 360.0 - 180.0 + middle
    crossings = np.zeros((len(latitude), len(longitude)), bool)
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        rows = np.flatnonzero((latitude >= min(y0, y1)) & (latitude < max(y0, y1)))
        if len(rows):
            at = x0 + (latitude[rows] - y0) / (y1 - y0) * (x1 - x0)
            crossings[rows] ^= px[None] < at[:, None]
    return crossings

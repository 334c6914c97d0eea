"""Polygons on a latitude–longitude grid: GeoJSON, and anything with ``__geo_interface__``. Knows
nothing of torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xaurora.errors import RegionError

_KINDS = ("Polygon", "MultiPolygon", "Feature", "FeatureCollection", "GeometryCollection")


def is_polygon(shape: Any) -> bool:
    """Whether something is a polygon in a form that is known here."""
    return hasattr(shape, "__geo_interface__") or (
        isinstance(shape, Mapping) and shape.get("type") in _KINDS
    )


def _rings(name: str, shape: Any) -> Iterator[list[np.ndarray]]:
    """Polygons, each as its outer ring and its holes, ``(n, 2)`` in degrees east and north."""
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
                    f"the polygon {name!r} has coordinates that are no rings of (longitude,"
                    " latitude).",
                    fix=(
                        "{'type': 'Polygon', 'coordinates': [[(5, 45), (15, 45), (10, 50), (5,"
                        " 45)]]}"
                    ),
                ) from why
            yield rings
    else:
        raise RegionError(
            f"region {name!r} is of the kind {kind!r}, which has no inside.",
            fix=f"one of {', '.join(_KINDS)}",
        )


def inside(name: str, shape: Any, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Which grid points lie inside, ``(h, w)`` bool. Edges are straight in degrees; a ring may
    cross Greenwich or the date line.

    Raises
    ------
    RegionError
        Not a polygon, or coordinates out of range.
    """
    out = np.zeros((len(latitude), len(longitude)), bool)
    for rings in _rings(name, shape):
        within = np.zeros_like(out)
        for ring in rings:  # holes turn what they hold back: the even–odd rule
            if len(ring) < 3 or not np.isfinite(ring).all() or np.abs(ring[:, 1]).max() > 90.0:
                raise RegionError(
                    f"the polygon {name!r} has a ring of {len(ring)} points, or latitudes beyond"
                    " 90°.",
                    fix="coordinates are (longitude, latitude)",
                )
            within ^= _inside_ring(ring, latitude, longitude)
        out |= within
    return out


def _inside_ring(ring: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Crossings of a ray towards the east, counted; longitudes unrolled around the ring's own
    middle.
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

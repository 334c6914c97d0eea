"""Regions of WeatherBench2 and WeatherBench-X, user-defined regions, and their area weights.

Does not import torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from xaurora.errors import OptionError, RegionError
from xaurora.fields.grid import polygons
from xaurora.fields.grid.lattice import Grid
from xaurora.fields.grid.patches import Window, window_around
from xaurora.fields.grid.weights import latitude_weights
from xaurora.utils.types import Given

Box = tuple[float, float, float, float]
RegionLike: TypeAlias = "str | Box | Sequence[float] | xr.DataArray | Mapping[str, Any] | object"
"""A name, a box ``(south, north, west, east)``, a mask with coordinates, or a polygon (GeoJSON, or
anything with ``__geo_interface__``).
"""

# south, north, west, east; ends included. WeatherBench2, scripts/evaluate.py at commit 021c0b3
# (Rasp et al. 2024, doi:10.1029/2023MS004019, table 3, after ECMWF's scorecards).
BOXES: dict[str, tuple[Box, ...]] = {
    "global": ((-90.0, 90.0, 0.0, 360.0),),
    "tropics": ((-20.0, 20.0, 0.0, 360.0),),
    "extra-tropics": ((-90.0, -20.0, 0.0, 360.0), (20.0, 90.0, 0.0, 360.0)),
    "northern-hemisphere": ((20.0, 90.0, 0.0, 360.0),),
    "southern-hemisphere": ((-90.0, -20.0, 0.0, 360.0),),
    "europe": ((35.0, 75.0, -12.5, 42.5),),
    "north-america": ((25.0, 60.0, -120.0, -75.0),),
    "north-atlantic": ((25.0, 65.0, -70.0, -10.0),),
    "north-pacific": ((25.0, 60.0, 145.0, -130.0),),
    "east-asia": ((25.0, 60.0, 102.5, 150.0),),
    "ausnz": ((-45.0, -12.5, 120.0, 175.0),),
    "arctic": ((60.0, 90.0, 0.0, 360.0),),
    "antarctic": ((-90.0, -60.0, 0.0, 360.0),),
}
# WeatherBench-X, public_benchmark/run_benchmark_evaluation.py at commit 2047a84; scored only if
# named.
MORE_BOXES: dict[str, tuple[Box, ...]] = {
    "northern-africa": ((5.0, 32.5, -12.5, 37.5),),
    "southern-africa": ((-30.0, 5.0, 12.5, 37.5),),
    "south-america": ((-40.0, 5.0, -75.0, -45.0),),
    "west-asia": ((15.0, 60.0, 42.5, 102.5),),
    "south-east-asia": ((-12.5, 25.0, 95.0, 125.0),),
}
NAMED = BOXES | MORE_BOXES
WITH_LAND = ("global", "extra-tropics", "tropics", "domain")
"""Regions whose land version is scored by default if there is a land-sea mask."""


_ROUNDING = 1e-4  # degrees: coordinates stored as float32 differ from decimals by up to 3e-5


def _inside(latitude: np.ndarray, longitude: np.ndarray, box: Box) -> np.ndarray:
    """Return the points in a box, its edges included."""
    south, north, west, east = box
    rows = (latitude >= south - _ROUNDING) & (latitude <= north + _ROUNDING)
    if east - west >= 360.0:
        columns = np.ones(len(longitude), bool)
    else:
        width = (east - west) % 360.0
        columns = (longitude - west + _ROUNDING) % 360.0 <= width + 2.0 * _ROUNDING
    return rows[:, None] & columns[None, :]


def weights(
    latitude: np.ndarray,
    longitude: np.ndarray,
    wanted: Given = None,
    land: np.ndarray | None = None,
    *,
    convention: str = "weatherbench2",
    noun: str = "forecast",
) -> dict[str, np.ndarray]:
    """Return area weights by region, ``(h, w)`` each, zero outside.

    Parameters
    ----------
    latitude, longitude : ndarray
        Degrees, ``(h,)`` and ``(w,)``.
    wanted : optional
        Names (``"europe"``, ``"tropics_land"``, ``"domain"``), or a dict of boxes ``(south, north,
        west, east)``, DataArray masks with coordinates, and polygons (GeoJSON, or anything with
        ``__geo_interface__``, such as Shapely's), or one such box, mask or polygon. ``"edge"``
        stands for rings by distance from the domain's edge (:func:`edge_rings`). The default is the
        whole domain, and on a global grid all of WeatherBench2's regions.
    land : ndarray, ``(h, w)``, optional
        Land fraction, the weight of the ``_land`` versions.
    convention : {"weatherbench2", "weatherbenchx"}
        WeatherBench-X counts every cell with some land as land, and gives end rows half a cell even
        on a global grid.
    noun : {"forecast", "data"}
        What the grid is called in error messages.

    Raises
    ------
    RegionError
        A name is unknown, a box, mask or polygon is invalid, or no grid point lies inside.
    """
    longitude = np.asarray(longitude, dtype=np.float64)
    latitude = np.asarray(latitude, dtype=np.float64)
    if convention == "weatherbenchx":
        land = None if land is None else (land != 0).astype(np.float64)
    regional = True if convention == "weatherbenchx" else None
    area = np.repeat(latitude_weights(latitude, regional=regional)[:, None], len(longitude), axis=1)
    is_global = is_circumglobal(longitude) and np.ptp(latitude) > 160.0
    if wanted is None:
        names = list(BOXES) if is_global else ["domain"]
        if land is not None:
            names += [f"{n}_land" for n in names if n in WITH_LAND]
        chosen: dict[str, Any] = dict.fromkeys(names)
    elif isinstance(wanted, str):
        chosen = {wanted: None}
    elif isinstance(wanted, Mapping) and not polygons.is_polygon(wanted):
        chosen = dict(wanted)
    elif (
        isinstance(wanted, tuple)
        and len(wanted) == 4
        and all(isinstance(v, int | float) for v in wanted)
    ):
        chosen = {"box": wanted}
    elif isinstance(wanted, xr.DataArray):
        chosen = {"mask": wanted}
    elif polygons.is_polygon(wanted):
        chosen = {"polygon": wanted}
    elif isinstance(wanted, Sequence) and wanted and all(isinstance(v, str) for v in wanted):
        chosen = dict.fromkeys(wanted)
    else:
        option = "region" if noun == "data" else "regions"
        raise RegionError(
            f"{option}={wanted!r} must be names, a box (south, north, west, east), a mask, a"
            " polygon, or a dict of those.",
            fix="regions=['europe']",
        )
    if "edge" in chosen and chosen["edge"] is None:
        rings = edge_rings(latitude, longitude)
        chosen = {
            k: v
            for name, shape in chosen.items()
            for k, v in (rings.items() if name == "edge" else [(name, shape)])
        }
    out = {}
    for name, shape in chosen.items():
        out[name] = area * (
            _named(name, latitude, longitude, land, noun)
            if shape is None
            else _user_mask(name, shape, latitude, longitude)
        )
        if not (out[name] > 0).any():
            raise RegionError(
                f"region {name!r} contains no grid point of the {noun} ({latitude.min():g} to"
                f" {latitude.max():g}°N, {longitude.min():g} to {longitude.max():g}°E).",
                fix="regions=['domain'], or a box (south, north, west, east) inside the grid",
            )
    return out


def cells(grid: Grid, land: np.ndarray | None, region: RegionLike) -> np.ndarray:
    """Return which points of a grid lie in a region, ``(h, w)``, bool (:func:`one_region`)."""
    return np.asarray(one_region(grid, land, region) > 0)


def one_region(grid: Grid, land: np.ndarray | None, region: RegionLike) -> np.ndarray:
    """Return the area weights of a region, ``(h, w)``, zero outside.

    Parameters
    ----------
    grid : Grid
    land : ndarray, ``(h, w)``, optional
        Land fraction, for names that end in ``_land``.
    region : str, tuple, DataArray or polygon
        A name, a box ``(south, north, west, east)``, a mask, or a polygon.

    Raises
    ------
    RegionError
        The region is unknown or contains none of the grid.
    """
    wanted = {"region": region} if isinstance(region, list) else region
    try:
        found = weights(grid.latitude, grid.longitude, wanted, land, noun="data")
    except RegionError as error:
        raise RegionError(
            error.message, fix="region='europe', or region=(south, north, west, east)"
        ) from None
    if len(found) != 1:
        raise RegionError(
            f"region={region!r} names {len(found)} regions, but exactly one is expected.",
            fix="region='europe'",
        )
    return next(iter(found.values()))


def window_of(
    grid: Grid,
    land: np.ndarray | None,
    region: RegionLike,
    *,
    patch_size: int,
    margin: int,
    halo: int = 0,
) -> Window:
    """Return the window of a region in a grid of whole patches.

    Parameters
    ----------
    grid : Grid
    land : ndarray, ``(h, w)``, optional
        Land fraction, for names that end in ``_land``.
    region : str, tuple, DataArray or polygon
    patch_size : int
    margin : int
        Number of patches around the region that also influence its cells.
    halo : int
        Must be 0, because a halo cannot be combined with a region.

    Raises
    ------
    RegionError
        The region is unknown or contains none of the grid.
    OptionError
        A halo was given as well.
    """
    if halo:
        raise OptionError(
            "halo= removes the edges of regional data, and region= selects a part of what the"
            " backbone sees. They cannot be combined.",
            fix="region=..., halo=0",
        )
    return window_around(grid, cells(grid, land, region), patch_size, margin)


def is_circumglobal(longitude: np.ndarray) -> bool:
    """Return whether longitudes span the whole circle."""
    gaps = np.diff(np.asarray(longitude, np.float64)) % 360.0
    return (
        len(longitude) > 1
        and len(longitude) * float(np.median(np.minimum(gaps, 360.0 - gaps))) > 359.0
    )


def edge_rings(
    latitude: np.ndarray, longitude: np.ndarray, km: Sequence[float] | None = None
) -> dict[str, xr.DataArray]:
    """Return masks by distance to the nearest edge of the domain, for ``regions=``.

    Scores by ring show how far the influence of the edges reaches into the domain.

    Parameters
    ----------
    latitude, longitude : ndarray
        The forecast's grid, degrees.
    km : sequence of float, optional
        Inner bounds of the rings, starting with 0. The default is four rings of equal width and the
        remaining interior.

    Returns
    -------
    dict of DataArray
        ``"edge 0-100 km"`` → mask ``(latitude, longitude)``.

    Raises
    ------
    RegionError
        The grid covers the globe from pole to pole, so it has no edge.

    Examples
    --------
    >>> part = ds.sel(latitude=slice(60, -60), longitude=slice(0, 200))
    >>> list(xaurora.edge_rings(part.latitude.values, part.longitude.values, km=[0, 1000]))
    ['edge 0-1000 km', 'edge over 1000 km']
    """
    latitude, longitude = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    round_ = is_circumglobal(longitude)
    to_poles = np.ptp(latitude) > 160.0
    if round_ and to_poles:
        raise RegionError(
            "a global grid has no edge to measure distances from.", fix="regions=['global']"
        )
    km_per_degree = 111.195  # km, one degree of a great circle of the mean Earth radius, 6371 km
    rows = np.minimum(latitude - latitude.min(), latitude.max() - latitude) * km_per_degree
    east = np.abs((longitude - longitude[0]) % 360.0)
    columns = np.minimum(east, east.max() - east)
    narrowed = columns[None] * np.cos(np.deg2rad(latitude))[:, None] * km_per_degree
    distance = (
        np.repeat(rows[:, None], len(longitude), 1)
        if round_
        else narrowed
        if to_poles
        else np.minimum(rows[:, None], narrowed)
    )
    width = float(distance.max()) / 5
    bounds = (
        list(km)
        if km is not None
        else [round(i * width, -1 if width > 20 else 2) for i in range(5)]
    )
    if len(bounds) < 1 or bounds[0] != 0 or any(b <= a for a, b in itertools.pairwise(bounds)):
        raise RegionError(
            f"km={bounds} must be increasing distances that start with 0.",
            fix="km=(0, 100, 250, 500)",
        )
    out = {}
    for low, high in zip(bounds, [*bounds[1:], np.inf], strict=True):
        label = f"edge {low:g}-{high:g} km" if np.isfinite(high) else f"edge over {low:g} km"
        inside = (distance >= low) & (distance < high)
        if inside.any():
            out[label] = xr.DataArray(
                inside.astype(float),
                {"latitude": latitude, "longitude": longitude},
                ("latitude", "longitude"),
            )
    return out


def _named(
    name: str, latitude: np.ndarray, longitude: np.ndarray, land: np.ndarray | None, noun: str
) -> np.ndarray:
    base = name.removesuffix("_land")
    if base != "domain" and base not in NAMED:
        boxes = ", or a dict of boxes" if noun == "forecast" else ""
        raise RegionError(
            f"there is no region {name!r}; valid names are 'domain',"
            f" {', '.join(map(repr, NAMED))}, each also with '_land'{boxes}.",
            fix="regions=['europe']",
        )
    mask = np.ones((len(latitude), len(longitude)))
    if base != "domain":
        mask = np.any([_inside(latitude, longitude, box) for box in NAMED[base]], axis=0).astype(
            float
        )
    if name.endswith("_land"):
        if land is None:
            lacks = "data have" if noun == "data" else "truth has"
            raise RegionError(
                f"region {name!r} needs a land-sea mask, and the {lacks} none.",
                fix="truth['land_sea_mask'] = ...",
            )
        mask = mask * land  # the fraction is the weight, as in WeatherBench2
    return mask


def _aligned(
    name: str, mask: xr.DataArray, latitude: np.ndarray, longitude: np.ndarray
) -> np.ndarray:
    """Align a mask to the forecast's grid points. Its coordinates may be in any order.

    It is zero outside the mask's own grid.
    """
    lat = next((d for d in mask.dims if str(d).startswith("lat")), mask.dims[0])
    lon = next((d for d in mask.dims if str(d).startswith("lon")), mask.dims[-1])
    if lat not in mask.coords or lon not in mask.coords:
        raise RegionError(
            f"the mask {name!r} has no latitude and longitude coordinates, so its location is"
            " unknown.",
            fix=(
                "xr.DataArray(mask, {'latitude': fc['latitude'], 'longitude': fc['longitude']},"
                " ('latitude', 'longitude'))"
            ),
        )
    apart = np.abs(mask[lat].values[None, :] - latitude[:, None])
    distance = np.abs(mask[lon].values[None, :] - longitude[:, None]) % 360.0
    distance = np.minimum(distance, 360.0 - distance)
    rows, columns = apart.argmin(axis=1), distance.argmin(axis=1)
    values = mask.transpose(lat, lon).values[rows][:, columns].astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise RegionError(
            f"the mask {name!r} contains {'negative' if (values < 0).any() else 'missing'} values;"
            " mask values must be weights, 0 outside and 1 inside.",
            fix="mask.fillna(0)",
        )

    def step(axis: np.ndarray) -> float:
        return float(np.median(np.abs(np.diff(axis)))) if len(axis) > 1 else np.inf

    # A coarser mask applies to the points within half a step of its own; all others are outside.
    near = (apart.min(axis=1) <= 0.51 * step(mask[lat].values))[:, None] & (
        distance.min(axis=1) <= 0.51 * step(mask[lon].values)
    )[None]
    return np.where(near, values, 0.0)


def _user_mask(
    name: str, shape: RegionLike, latitude: np.ndarray, longitude: np.ndarray
) -> np.ndarray:
    if isinstance(shape, xr.DataArray) and shape.ndim == 2:
        return _aligned(name, shape, latitude, longitude)
    if polygons.is_polygon(shape):
        return polygons.inside(name, shape, latitude, longitude).astype(np.float64)
    numbers = isinstance(shape, Sequence | np.ndarray) and all(
        isinstance(v, int | float | np.number) for v in shape
    )
    values = np.asarray(shape, dtype=np.float64) if numbers else np.empty(0)
    if values.shape == (4,):
        south, north, west, east = map(float, values)
        if south >= north:
            raise RegionError(
                f"region {name!r}: south {south:g} is not below north {north:g}.",
                fix="use a box (south, north, west, east)",
            )
        return _inside(latitude, longitude, (south, north, west, east)).astype(float)
    raise RegionError(
        f"region {name!r} must be a box (south, north, west, east), a DataArray mask with latitude"
        " and longitude, or a polygon.",
        fix="regions={'alps': (44, 48, 5, 16)}",
    )

"""WeatherBench2's regions, boxes of one's own, and their area weights. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import RegionError
from xaurora.grid import latitude_weights

Box = tuple[float, float, float, float]

# south, north, west, east; ends included. WeatherBench2, scripts/evaluate.py at commit 021c0b3 (Rasp et al. 2024,
# doi:10.1029/2023MS004019, table 3, after ECMWF's scorecards).
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
WITH_LAND = ("global", "extra-tropics", "tropics", "domain")
"""Regions whose land version is scored by default where there is a land-sea mask."""


def _inside(latitude: np.ndarray, longitude: np.ndarray, box: Box) -> np.ndarray:
    south, north, west, east = box
    rows = (latitude >= south) & (latitude <= north)
    if east - west >= 360.0:
        columns = np.ones(len(longitude), bool)
    else:
        columns = (longitude - west) % 360.0 <= (east - west) % 360.0
    return rows[:, None] & columns[None, :]


def weights(
    latitude: np.ndarray,
    longitude: np.ndarray,
    wanted: Sequence[str] | Mapping[str, Any] | str | None = None,
    land: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Area weights by region, ``(h, w)`` each; zero outside.

    Parameters
    ----------
    latitude, longitude : ndarray
        Degrees, ``(h,)`` and ``(w,)``.
    wanted : optional
        Names (``"europe"``, ``"tropics_land"``, ``"domain"``), or a dict of boxes ``(south, north, west, east)`` and DataArray masks with coordinates, or one such box or mask; by
        default the whole domain, and on a global grid all of WeatherBench2's regions.
    land : ndarray, ``(h, w)``, optional
        Land fraction, which weighs the ``_land`` versions.

    Raises
    ------
    RegionError
        Unknown name, a box or mask that cannot be read, or no grid point inside.
    """
    longitude = np.asarray(longitude, dtype=np.float64)
    latitude = np.asarray(latitude, dtype=np.float64)
    area = np.repeat(latitude_weights(latitude)[:, None], len(longitude), axis=1)
    steps = np.abs(np.diff(longitude))
    is_global = len(longitude) * np.median(steps) > 359.0 and np.ptp(latitude) > 160.0
    if wanted is None:
        names = list(BOXES) if is_global else ["domain"]
        if land is not None:
            names += [f"{n}_land" for n in names if n in WITH_LAND]
        chosen: dict[str, Any] = dict.fromkeys(names)
    elif isinstance(wanted, str):
        chosen = {wanted: None}
    elif isinstance(wanted, Mapping):
        chosen = dict(wanted)
    elif isinstance(wanted, tuple) and len(wanted) == 4 and all(isinstance(v, int | float) for v in wanted):
        chosen = {"box": wanted}
    elif isinstance(wanted, xr.DataArray):
        chosen = {"mask": wanted}
    elif isinstance(wanted, Sequence) and wanted and all(isinstance(v, str) for v in wanted):
        chosen = dict.fromkeys(wanted)
    else:
        raise RegionError(
            f"regions={wanted!r} are neither names, a box (south, north, west, east), a mask, nor a dict of those.",
            fix="regions=['europe']",
        )
    out = {}
    for name, shape in chosen.items():
        out[name] = area * (
            _named(name, latitude, longitude, land) if shape is None else _own(name, shape, latitude, longitude)
        )
        if not (out[name] > 0).any():
            raise RegionError(
                f"region {name!r} holds no grid point of the forecast ({latitude.min():g} to {latitude.max():g}°N, {longitude.min():g} to {longitude.max():g}°E).",
                fix="regions=['domain'], or a box (south, north, west, east) inside",
            )
    return out


def _named(name: str, latitude: np.ndarray, longitude: np.ndarray, land: np.ndarray | None) -> np.ndarray:
    base = name.removesuffix("_land")
    if base != "domain" and base not in BOXES:
        raise RegionError(
            f"there is no region {name!r}; valid are 'domain', {', '.join(map(repr, BOXES))}, each also with '_land', or a dict of boxes.",
            fix="regions=['europe']",
        )
    mask = np.ones((len(latitude), len(longitude)))
    if base != "domain":
        mask = np.any([_inside(latitude, longitude, box) for box in BOXES[base]], axis=0).astype(float)
    if name.endswith("_land"):
        if land is None:
            raise RegionError(
                f"region {name!r} needs a land-sea mask, and the truth holds none.",
                fix="truth['land_sea_mask'] = ...",
            )
        mask = mask * land  # the fraction is the weight, as in WeatherBench2
    return mask


def _aligned(mask: xr.DataArray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """A mask with coordinates on the forecast's grid points, whatever its order."""
    lat = next((d for d in mask.dims if str(d).startswith("lat")), mask.dims[0])
    lon = next((d for d in mask.dims if str(d).startswith("lon")), mask.dims[-1])
    rows = np.abs(mask[lat].values[None, :] - latitude[:, None]).argmin(axis=1)
    distance = np.abs(mask[lon].values[None, :] - longitude[:, None]) % 360.0
    columns = np.minimum(distance, 360.0 - distance).argmin(axis=1)
    return mask.transpose(lat, lon).values[rows][:, columns].astype(np.float64)


def _own(name: str, shape: Any, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    if isinstance(shape, xr.DataArray) and shape.ndim == 2:
        return _aligned(shape, latitude, longitude)
    numbers = isinstance(shape, Sequence | np.ndarray) and all(isinstance(v, int | float | np.number) for v in shape)
    values = np.asarray(shape, dtype=np.float64) if numbers else np.empty(0)
    if values.shape == (4,):
        south, north, west, east = map(float, values)
        if south >= north:
            raise RegionError(
                f"region {name!r}: south {south:g} is not below north {north:g}.",
                fix="boxes are (south, north, west, east)",
            )
        return _inside(latitude, longitude, (south, north, west, east)).astype(float)
    raise RegionError(
        f"region {name!r} is neither a box (south, north, west, east) nor a DataArray mask with latitude and longitude.",
        fix="regions={'alps': (44, 48, 5, 16)}",
    )

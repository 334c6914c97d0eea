"""Maps of forecasts, truth and differences, and overviews of targets.

Each function returns Matplotlib axes and takes ``ax=``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import (
    OptionError,
)
from xaurora.fields import variables
from xaurora.fields.periods import declared_hours
from xaurora.fields.unit_conversion import conversion

if TYPE_CHECKING:
    from cartopy.crs import PlateCarree

    from xaurora.utils.types import AnyAxes

RAIN_STEPS_MM = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 50)
"""Steps of the colour scale in mm per six hours.

Uneven, as usual in precipitation maps: half of all rain is drizzle, and heavier amounts must stay
distinguishable.
"""
_RAIN_COLOURS = (
    "#e3f2fb",
    "#bcdff5",
    "#8cc5ee",
    "#55a3e0",
    "#2b7cc4",
    "#1f5aa6",
    "#3b3a8f",
    "#6a2c8a",
    "#a0287d",
)


def pyplot() -> ModuleType:
    """Return matplotlib.pyplot, imported on first use."""
    import matplotlib.pyplot as plt

    return plt


def rain_colours() -> tuple[Any, Any]:
    """Return the colour map and norm of precipitation maps: white below 0.1 mm."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap(list(_RAIN_COLOURS[:-1]), name="rain").with_extremes(
        under="white", over=_RAIN_COLOURS[-1], bad="0.85"
    )
    return colours, BoundaryNorm(RAIN_STEPS_MM, len(RAIN_STEPS_MM) - 1)


def field(
    da: xr.DataArray,
    *,
    title: str = "",
    rain: bool | None = None,
    symmetric: bool = False,
    limits: tuple[float, float] | None = None,
    bar: bool = True,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw a map of one field, with coastlines.

    Parameters
    ----------
    da : DataArray
        Two dims, latitude and longitude. Precipitation may be in any unit of length.
    title : str
    rain : bool, optional
        Draw in mm, with the uneven steps of precipitation maps. By default for precipitation.
    symmetric : bool
        Centre the colours on zero, for differences.
    limits : tuple of float, optional
        Ends of the colour scale.
    bar : bool
        Whether to draw the colour bar.
    ax : matplotlib axes, optional
        Axes to draw into, also those of a Cartopy projection
        (``plt.subplot(projection=cartopy.crs.Robinson())``). By default new ones in degrees.

    Returns
    -------
    matplotlib axes
    """
    plt = pyplot()
    da = single_map(da)
    if da.ndim != 2:
        raise OptionError(
            f"a map needs two dims, but '{da.name}' has {list(da.dims)}.",
            fix="da.isel(init_time=0, lead_time=0)",
        )
    lat, lon = da.dims
    if da[lat].ndim != 1 or str(lat).startswith("lon"):
        da = da.transpose()
        lat, lon = da.dims
    longitude = da[lon].values.astype(float)
    if (
        np.diff(longitude) < 0
    ).any():  # keep longitude increasing across Greenwich or the date line
        longitude = np.where(longitude < longitude[0], longitude + 360.0, longitude)
    rain = _is_rain(da) if rain is None else rain
    values, units = da.values.astype(float), str(da.attrs.get("units", ""))
    if rain:
        values, units = values * _to_mm(units), "mm"
    if ax is None:
        _, ax = plt.subplots(figsize=panel_size(da, 4.2), layout="constrained")
    options: dict[str, Any] = {"shading": "nearest", "rasterized": True}
    projected = hasattr(ax, "projection")
    if projected:
        options["transform"] = _degrees()
    extend = "neither"
    if rain and not symmetric:
        options["cmap"], options["norm"] = rain_colours()
        extend = "both"
    elif symmetric:
        top = limits[1] if limits else float(np.nanquantile(np.abs(values), 0.995)) or 1.0
        options |= {"cmap": "BrBG" if rain else "RdBu_r", "vmin": -top, "vmax": top}
        extend = "both"
    elif limits:
        options |= {"vmin": limits[0], "vmax": limits[1]}
    mesh = ax.pcolormesh(longitude, da[lat].values, values, **options)
    if not projected:
        # A degree of longitude is as wide as it is in the middle of the map; on a globe, as a
        # degree of latitude.
        middle = np.cos(np.deg2rad(float(da[lat].mean())))
        ax.set_aspect(1.0 / max(middle, 0.3) if np.ptp(longitude) < 120 else 1.0)
        ax.set_xlabel("longitude")
        ax.set_ylabel("latitude")
    ax.set_title(title, fontsize=10)
    coastlines(ax)
    if bar:
        label = "" if units == "1" else units
        if rain and (hours := declared_hours(str(da.name), da.attrs)):
            label = f"{units} in {hours:g} h"
        ax.figure.colorbar(mesh, ax=ax, label=label, shrink=0.85, extend=extend)
    return ax


def panel_size(da: xr.DataArray, height: float = 3.8) -> tuple[float, float]:
    """Return the size in inches of a map with its colour bar, which has no room to spare.

    Parameters
    ----------
    da : DataArray
        Latitude and longitude last.
    height : float
        In inches, with title and labels.
    """
    lat, lon = (da[d].values.astype(float) for d in da.dims[-2:])
    wide = np.ptp(np.rad2deg(np.unwrap(np.deg2rad(lon)))) if len(lon) > 1 else 1.0
    ratio = wide / max(float(np.ptp(lat)), 1e-6)
    if wide < 120:
        ratio *= max(np.cos(np.deg2rad(float(lat.mean()))), 0.3)
    return float(np.clip((height - 1.0) * ratio, 1.8, 8.0)) + 1.7, height


_DETAILED = 60.0  # degrees; narrower maps have the coastlines of 1:50 million


def coastlines(ax: AnyAxes) -> None:
    """Draw Natural Earth's coastlines into a map in degrees, or one of a Cartopy projection.

    They come with the package (public domain, 1:110 million, and 1:50 million for maps that are
    narrower than 60°).
    """
    from matplotlib.collections import LineCollection

    style: dict[str, Any] = {"colors": "0.25", "linewidths": 0.6}
    if hasattr(ax, "projection"):
        lines = [line for line in _coastlines("110m") if len(line) > 1]
        ax.add_collection(LineCollection(lines, transform=_degrees(), **style), autolim=False)
        return
    (west, east), (south, north) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    kept = []
    for line in _coastlines("50m" if east - west < _DETAILED else "110m"):
        (left, low), (right, high) = line.min(axis=0), line.max(axis=0)
        if high < south or low > north:
            continue
        # The map may use any longitude convention.
        kept += [
            line + np.array([turn, 0.0])
            for turn in (-360.0, 0.0, 360.0)
            if right + turn >= west and left + turn <= east
        ]
    if kept:
        ax.add_collection(LineCollection(kept, **style), autolim=False)


def _degrees() -> PlateCarree:
    """Return Cartopy's coordinate system of longitude and latitude."""
    import cartopy.crs

    return cartopy.crs.PlateCarree()


@functools.cache
def _coastlines(scale: str) -> tuple[np.ndarray, ...]:
    """Return coastlines, each ``(n, 2)`` of longitude and latitude in degrees."""
    with np.load(Path(__file__).parents[1] / "assets" / "coastlines.npz") as stored:
        points = stored[f"points_{scale}"].astype(np.float32) / 100.0
        return tuple(np.split(points, np.cumsum(stored[f"lengths_{scale}"])[:-1]))


def _is_rain(da: xr.DataArray) -> bool:
    known = variables.find(str(da.name))
    return known is not None and known.accumulated


def _to_mm(units: str) -> float:
    scale = conversion(units, "m")
    return 1e3 * (scale[0] if scale else 1.0)


def single_map(da: xr.DataArray) -> xr.DataArray:
    """Return a field without ensemble members: their mean."""
    members = [d for d in ("number", "realization", "member", "ensemble") if d in da.dims]
    return da.mean(members[0], keep_attrs=True) if members else da

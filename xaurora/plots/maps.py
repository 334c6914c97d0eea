"""Maps of forecasts, truth and differences, and overviews of targets.

Each function returns Matplotlib axes and takes ``ax=``.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import (
    OptionError,
)
from xaurora.fields import variables
from xaurora.fields.unit_conversion import conversion

if TYPE_CHECKING:
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


def pyplot() -> Any:
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
    """Draw a map of one field.

    Coastlines are drawn if Cartopy is installed.

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
        Axes to draw into, also those of a Cartopy projection. By default new ones.

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
        _, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    options: dict[str, Any] = {"shading": "nearest", "rasterized": True}
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
    ax.set_aspect(
        1.0 / max(np.cos(np.deg2rad(float(da[lat].mean()))), 0.3)
        if np.ptp(longitude) < 120
        else "auto"
    )
    ax.set_xlabel("longitude")
    ax.set_ylabel("latitude")
    ax.set_title(title, fontsize=10)
    coastlines(ax)
    if bar:
        ax.figure.colorbar(
            mesh, ax=ax, label="" if units == "1" else units, shrink=0.85, extend=extend
        )
    return ax


def coastlines(ax: AnyAxes) -> None:
    """Draw coastlines into a map in degrees, or nothing if they are not available.

    Cartopy is an optional dependency. It downloads its 1:110 million coastlines once and then reads
    them from a file.
    """
    lines = _coastlines()
    if not lines:
        return
    limits = ax.get_xlim(), ax.get_ylim()
    for line in lines:
        x = np.asarray(line[:, 0])
        for turn in (-360.0, 0.0, 360.0):  # the map may use any longitude convention
            if x.max() + turn >= limits[0][0] and x.min() + turn <= limits[0][1]:
                ax.plot(
                    x + turn, line[:, 1], color="0.25", linewidth=0.6, scalex=False, scaley=False
                )
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])


@functools.cache
def _coastlines() -> tuple[np.ndarray, ...]:
    try:
        from cartopy.io import shapereader

        path = shapereader.natural_earth(resolution="110m", category="physical", name="coastline")
        return tuple(
            np.asarray(part.coords)
            for geometry in shapereader.Reader(path).geometries()
            for part in getattr(geometry, "geoms", [geometry])
        )
    except (
        Exception
    ):  # Cartopy is not installed or cannot download its file; coastlines are optional
        return ()


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

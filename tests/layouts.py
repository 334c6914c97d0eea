"""Hypothesis strategies: Datasets in the layouts that people have, beside the canonical values they
stand for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from hypothesis import strategies as st

# canonical name → (names in files, unit, value → that unit, typical value, spread)
_SURFACE = {
    "2t": (
        ("t2m", "2m_temperature", "VAR_2T"),
        (("K", 1.0, 0.0), ("degC", 1.0, 273.15)),
        280.0,
        15.0,
    ),
    "10u": (
        ("u10", "10m_u_component_of_wind"),
        (("m s**-1", 1.0, 0.0), ("km/h", 1 / 3.6, 0.0)),
        0.0,
        8.0,
    ),
    "10v": (("v10", "10m_v_component_of_wind"), (("m/s", 1.0, 0.0),), 0.0, 8.0),
    "msl": (
        ("msl", "mean_sea_level_pressure"),
        (("Pa", 1.0, 0.0), ("hPa", 100.0, 0.0)),
        101_000.0,
        1000.0,
    ),
}
_ATMOS = {
    "z": (("z", "geopotential"), (("m**2 s**-2", 1.0, 0.0),), 30_000.0, 2000.0),
    "u": (("u", "u_component_of_wind"), (("m s-1", 1.0, 0.0),), 10.0, 10.0),
    "v": (("v", "v_component_of_wind"), (("m s-1", 1.0, 0.0),), 0.0, 10.0),
    "t": (("t", "temperature"), (("K", 1.0, 0.0), ("°C", 1.0, 273.15)), 260.0, 20.0),
    "q": (
        ("q", "specific_humidity"),
        (("kg kg**-1", 1.0, 0.0), ("g kg-1", 1e-3, 0.0)),
        0.004,
        0.001,
    ),
}


@dataclass
class Made:
    """A Dataset, and by canonical name the scale that leads from its values to canonical ones."""

    ds: xr.Dataset
    scales: dict[tuple[str, str], float]
    names: dict[tuple[str, str], str]


@st.composite
def layouts(draw: st.DrawFn) -> Made:
    """ERA5-like Datasets: any order of latitude and dims, any longitude convention, units, dtypes,
    names, levels, statics.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    spacing = draw(st.sampled_from([0.25, 0.4, 1.0]))
    rows, columns = draw(st.integers(16, 22)), draw(st.integers(16, 22))
    north = round(draw(st.integers(-20, 60)) / spacing) * spacing
    west = round(draw(st.sampled_from([-8.0, 4.0, 100.0, 174.0, 352.0])) / spacing) * spacing
    lat = north - np.arange(rows) * spacing
    lon = west + np.arange(columns) * spacing
    convention = draw(st.sampled_from(["0-360", "180", "as it runs"]))
    if convention == "0-360":
        lon = lon % 360
    elif convention == "180":
        lon = (lon + 180) % 360 - 180
    if draw(st.booleans()):
        lat = lat[::-1]
    if draw(st.booleans()):
        lat, lon = lat.astype("float32"), lon.astype("float32")
    dims = draw(
        st.sampled_from(
            [
                ("time", "level", "latitude", "longitude"),
                ("valid_time", "pressure_level", "lat", "lon"),
                ("time", "isobaricInhPa", "latitude", "longitude"),
            ]
        )
    )
    time_dim, level_dim, lat_dim, lon_dim = dims
    levels = np.array(
        draw(st.permutations([1000.0, 850.0, 500.0, 775.0]))[: draw(st.integers(3, 4))]
    )
    if not {1000.0, 850.0, 500.0} <= set(levels):
        levels = np.array([850.0, 1000.0, 500.0])
    times = np.datetime64("2021-02-27T18", "ns") + np.arange(3) * np.timedelta64(6, "h")
    dtype = draw(st.sampled_from(["float32", "float64"]))
    surface_order = draw(st.permutations([time_dim, lat_dim, lon_dim]))
    atmos_order = draw(st.permutations([time_dim, level_dim, lat_dim, lon_dim]))
    sizes = {time_dim: 3, level_dim: len(levels), lat_dim: rows, lon_dim: columns}
    data, scales, names = {}, {}, {}
    pick = draw(st.integers(0, 2))
    for kind, table, order in (
        ("surface", _SURFACE, surface_order),
        ("atmos", _ATMOS, atmos_order),
    ):
        for name, (aliases, units, centre, spread) in table.items():
            unit, scale, offset = units[draw(st.integers(0, len(units) - 1))]
            canonical = centre + spread * rng.standard_normal([sizes[d] for d in order])
            source = aliases[pick % len(aliases)]
            data[source] = (
                list(order),
                ((canonical - offset) / scale).astype(dtype),
                {"units": unit, "note": name},
            )
            scales[kind, name], names[kind, name] = (
                (scale if (scale, offset) != (1.0, 0.0) or dtype != "float32" else 0.0),
                source,
            )
    with_time = draw(st.booleans())
    static_order = [time_dim, lat_dim, lon_dim] if with_time else [lat_dim, lon_dim]
    for name, source, unit in (
        ("lsm", "lsm", "(0 - 1)"),
        ("z", "geopotential_at_surface", "m**2 s**-2"),
        ("slt", "slt", "1"),
    ):
        flat = rng.integers(0, 2, (rows, columns)).astype(dtype)
        values = np.broadcast_to(flat, (3, rows, columns)).copy() if with_time else flat
        data[source] = (static_order, values, {"units": unit})
        scales["static", name], names["static", name] = (0.0 if dtype == "float32" else 1.0), source
    coords = {
        time_dim: times,
        level_dim: (level_dim, levels, {"units": draw(st.sampled_from(["hPa", "millibars"]))}),
        lat_dim: (lat_dim, lat, {"units": "degrees_north"}),
        lon_dim: (lon_dim, lon, {"units": "degrees_east"}),
    }
    return Made(xr.Dataset(data, coords, {"source": "made for a test"}), scales, names)

"""The variables that Aurora 1.5 takes besides those of other models; a part of the table."""

from __future__ import annotations

import functools

from xaurora.fields.variable import Variable

_auxiliary = functools.partial(Variable, auxiliary=True)

TABLE: tuple[Variable, ...] = (
    _auxiliary(
        *("stl1", "surface", "K", "Soil temperature level 1", "soil_temperature_level_1"),
        masked=True,
        plausible=(180.0, 350.0),
        extremes=(150.0, 370.0),
    ),
    _auxiliary(
        *("swvl1", "surface", "m3 m-3", "Volumetric soil water layer 1"),
        "volumetric_soil_water_layer_1",
        masked=True,
        plausible=(-0.01, 1.0),
        extremes=(-0.1, 1.1),
    ),
    _auxiliary(
        *("ci", "surface", "1", "Sea ice cover", "sea_ice_cover"),
        ("siconc",),
        masked=True,
        bounds=(0.0, 1.0),
        plausible=(-0.01, 1.01),
        extremes=(-0.01, 1.01),
    ),
    _auxiliary(
        *("scaled_sd", "surface", "m", "Snow depth in water equivalent", "snow_depth"),
        ("sd",),
        masked=True,
        plausible=(-0.01, 10.1),
        extremes=(-0.01, 10.1),
    ),
    _auxiliary("insolation", "surface", "1", "Insolation", "insolation"),
    _auxiliary(
        *("i10fg", "surface", "m s-1", "Instantaneous 10 metre wind gust"),
        "instantaneous_10m_wind_gust",
        plausible=(0.0, 120.0),
        extremes=(-1.0, 130.0),
    ),
    _auxiliary(
        *("blh", "surface", "m", "Boundary layer height", "boundary_layer_height"),
        plausible=(0.0, 6_000.0),
    ),
    _auxiliary(
        "anor",
        "static",
        "rad",
        "Angle of sub-gridscale orography",
        "angle_of_sub_gridscale_orography",
    ),
    _auxiliary(
        "isor",
        "static",
        "1",
        "Anisotropy of sub-gridscale orography",
        "anisotropy_of_sub_gridscale_orography",
    ),
    _auxiliary(
        "slor",
        "static",
        "1",
        "Slope of sub-gridscale orography",
        "slope_of_sub_gridscale_orography",
    ),
    _auxiliary(
        "sdfor",
        "static",
        "m",
        "Standard deviation of filtered subgrid orography",
        "standard_deviation_of_filtered_subgrid_orography",
    ),
    _auxiliary(
        "sdor", "static", "m", "Standard deviation of orography", "standard_deviation_of_orography"
    ),
    _auxiliary("cvh", "static", "1", "High vegetation cover", "high_vegetation_cover"),
    _auxiliary("cvl", "static", "1", "Low vegetation cover", "low_vegetation_cover"),
    _auxiliary("tvh", "static", "category", "Type of high vegetation", "type_of_high_vegetation"),
    _auxiliary("tvl", "static", "category", "Type of low vegetation", "type_of_low_vegetation"),
    _auxiliary("cl", "static", "1", "Lake cover", "lake_cover"),
    _auxiliary("dl", "static", "m", "Lake depth", "lake_depth"),
)

"""The table of variables: canonical names, names in files, and units.

Canonical names are Aurora's short names (``2t``, ``10u``, ``z``, ...), canonical units are SI. All
code that recognises, converts or labels a variable reads this table, of which the variables that
only Aurora 1.5 takes are in :mod:`xaurora.fields.variables_v15`.

Sources: the parameter database of ECMWF (GRIB short names, units), the CDS' NetCDF names, the
schemas of ARCO-ERA5 and WeatherBench2 (long names), CF standard names version 86.
"""

from __future__ import annotations

from xaurora.fields import variables_v15
from xaurora.fields.variable import Variable

TIMESTEP_HOURS = 6  # h, the time step of all supported Aurora models
LEVELS = (
    50,
    100,
    150,
    200,
    250,
    300,
    400,
    500,
    600,
    700,
    850,
    925,
    1000,
)  # hPa, Aurora's pressure levels

TABLE: tuple[Variable, ...] = (
    # Aurora's own variables
    Variable(
        "2t",
        "surface",
        "K",
        "2 metre temperature",
        "2m_temperature",
        ("t2m", "VAR_2T", "t_2m", "tas"),
        ("air_temperature",),
        plausible=(180.0, 340.0),
        extremes=(165.0, 340.0),
    ),
    Variable(
        "10u",
        "surface",
        "m s-1",
        "10 metre U wind component",
        "10m_u_component_of_wind",
        ("u10", "VAR_10U", "uas"),
        plausible=(-120.0, 120.0),
        extremes=(-110.0, 110.0),
    ),
    Variable(
        "10v",
        "surface",
        "m s-1",
        "10 metre V wind component",
        "10m_v_component_of_wind",
        ("v10", "VAR_10V", "vas"),
        plausible=(-120.0, 120.0),
        extremes=(-110.0, 110.0),
    ),
    Variable(
        "msl",
        "surface",
        "Pa",
        "Mean sea level pressure",
        "mean_sea_level_pressure",
        ("mslp", "psl", "prmsl"),
        ("air_pressure_at_mean_sea_level", "air_pressure_at_sea_level"),
        plausible=(85_000.0, 110_000.0),
        extremes=(85_000.0, 111_000.0),
    ),
    Variable(
        "lsm",
        "static",
        "1",
        "Land-sea mask",
        "land_sea_mask",
        ("land_sea_mask",),
        ("land_binary_mask", "land_area_fraction"),
        plausible=(0.0, 1.0),
    ),
    Variable(
        "z",
        "static",
        "m2 s-2",
        "Geopotential at the surface",
        "geopotential_at_surface",
        ("z_surface", "z_sfc", "zs", "phis", "orography", "orog"),
        ("surface_geopotential", "geopotential", "surface_altitude"),
        plausible=(-5_000.0, 90_000.0),
    ),
    Variable(
        "slt",
        "static",
        "category",
        "Soil type",
        "soil_type",
        ("soil_type",),
        ("soil_type",),
        plausible=(0.0, 8.0),
    ),
    Variable(
        "z",
        "atmos",
        "m2 s-2",
        "Geopotential",
        "geopotential",
        ("zg", "gh", "geopotential_height"),
        ("geopotential", "geopotential_height"),
    ),
    Variable(
        "u",
        "atmos",
        "m s-1",
        "U component of wind",
        "u_component_of_wind",
        ("ua",),
        ("eastward_wind",),
        plausible=(-200.0, 200.0),
        extremes=(-250.0, 250.0),
    ),
    Variable(
        "v",
        "atmos",
        "m s-1",
        "V component of wind",
        "v_component_of_wind",
        ("va",),
        ("northward_wind",),
        plausible=(-200.0, 200.0),
        extremes=(-250.0, 250.0),
    ),
    Variable(
        "t",
        "atmos",
        "K",
        "Temperature",
        "temperature",
        ("ta",),
        ("air_temperature",),
        plausible=(150.0, 340.0),
        extremes=(140.0, 350.0),
    ),
    Variable(
        "q",
        "atmos",
        "kg kg-1",
        "Specific humidity",
        "specific_humidity",
        ("hus",),
        ("specific_humidity",),
        plausible=(-1e-3, 0.06),
        extremes=(-0.001, 0.06),
    ),
    # further input variables of tiny models
    Variable(
        "2d",
        "surface",
        "K",
        "2 metre dewpoint temperature",
        "2m_dewpoint_temperature",
        ("d2m", "VAR_2D"),
        ("dew_point_temperature",),
        plausible=(150.0, 320.0),
        extremes=(130.0, 315.0),
    ),
    Variable(
        "sp",
        "surface",
        "Pa",
        "Surface pressure",
        "surface_pressure",
        ("ps",),
        ("surface_air_pressure",),
        plausible=(45_000.0, 110_000.0),
        extremes=(25_000.0, 111_000.0),
    ),
    Variable(
        "skt",
        "surface",
        "K",
        "Skin temperature",
        "skin_temperature",
        (),
        ("surface_temperature",),
        plausible=(180.0, 350.0),
        extremes=(150.0, 370.0),
    ),
    Variable(
        "sst",
        "surface",
        "K",
        "Sea surface temperature",
        "sea_surface_temperature",
        (),
        ("sea_surface_temperature",),
        masked=True,
        plausible=(260.0, 320.0),
        extremes=(260.0, 320.0),
    ),
    Variable(
        "tcw",
        "surface",
        "kg m-2",
        "Total column water",
        "total_column_water",
        (),
        (),
        plausible=(0.0, 120.0),
        extremes=(-1.0, 150.0),
    ),
    Variable(
        "tcwv",
        "surface",
        "kg m-2",
        "Total column water vapour",
        "total_column_water_vapour",
        (),
        ("atmosphere_mass_content_of_water_vapor",),
        plausible=(0.0, 120.0),
        extremes=(-1.0, 150.0),
    ),
    Variable(
        "tcc",
        "surface",
        "1",
        "Total cloud cover",
        "total_cloud_cover",
        (),
        ("cloud_area_fraction",),
        bounds=(0.0, 1.0),
        plausible=(-0.01, 1.01),
        extremes=(-0.01, 1.01),
    ),
    Variable(
        "lcc",
        "surface",
        "1",
        "Low cloud cover",
        "low_cloud_cover",
        (),
        ("low_type_cloud_area_fraction",),
        bounds=(0.0, 1.0),
        plausible=(-0.01, 1.01),
        extremes=(-0.01, 1.01),
    ),
    Variable(
        "mcc",
        "surface",
        "1",
        "Medium cloud cover",
        "medium_cloud_cover",
        (),
        ("medium_type_cloud_area_fraction",),
        bounds=(0.0, 1.0),
        plausible=(-0.01, 1.01),
        extremes=(-0.01, 1.01),
    ),
    Variable(
        "hcc",
        "surface",
        "1",
        "High cloud cover",
        "high_cloud_cover",
        (),
        ("high_type_cloud_area_fraction",),
        bounds=(0.0, 1.0),
        plausible=(-0.01, 1.01),
        extremes=(-0.01, 1.01),
    ),
    Variable(
        "100u",
        "surface",
        "m s-1",
        "100 metre U wind component",
        "100m_u_component_of_wind",
        ("u100",),
        plausible=(-150.0, 150.0),
        extremes=(-130.0, 130.0),
    ),
    Variable(
        "100v",
        "surface",
        "m s-1",
        "100 metre V wind component",
        "100m_v_component_of_wind",
        ("v100",),
        plausible=(-150.0, 150.0),
        extremes=(-130.0, 130.0),
    ),
    *variables_v15.TABLE,
    # targets
    Variable(
        "tp",
        "surface",
        "m",
        "Total precipitation",
        "total_precipitation_6hr",
        (
            "total_precipitation",
            "total_precipitation_1hr",
            "scaled_tp_1h",
            "precipitation",
            "mtpr",
            "avg_tprate",
            "tprate",
            "mean_total_precipitation_rate",
            "pr",
            "precip",
            "prcp",
            "prec",
            "rain",
            "rainfall",
            "precipitationCal",
            "APCP",
            "apcp",
            "PRATE",
            "prate",
            "PRECTOT",
            "PRECTOTCORR",
        ),
        (
            "lwe_thickness_of_precipitation_amount",
            "precipitation_amount",
            "precipitation_flux",
            "lwe_precipitation_rate",
        ),
        long_aliases=("total_precipitation",),
        accumulated=True,
        plausible=(-1e-4, 0.5),
    ),
    Variable(
        "cp",
        "surface",
        "m",
        "Convective precipitation",
        "convective_precipitation",
        ("prc", "mcpr", "avg_cpr", "crr", "ACPCP", "PRECCON"),
        (
            "convective_precipitation_amount",
            "lwe_thickness_of_convective_precipitation_amount",
            "convective_precipitation_flux",
            "lwe_convective_precipitation_rate",
        ),
        long_aliases=("convective_precipitation",),
        accumulated=True,
        plausible=(-1e-4, 0.5),
    ),
    Variable(
        "lsp",
        "surface",
        "m",
        "Large-scale precipitation",
        "large_scale_precipitation",
        ("mlspr", "avg_lsprate", "lsrr", "NCPCP", "PRECLSC"),
        (
            "large_scale_precipitation_amount",
            "lwe_thickness_of_large_scale_precipitation_amount",
            "large_scale_precipitation_flux",
            "stratiform_precipitation_amount",
            "lwe_thickness_of_stratiform_precipitation_amount",
            "stratiform_precipitation_flux",
        ),
        long_aliases=("large_scale_precipitation",),
        accumulated=True,
        plausible=(-1e-4, 0.5),
    ),
    Variable(
        "sf",
        "surface",
        "m",
        "Snowfall",
        "snowfall",
        ("snowfall", "prsn", "msr", "avg_tsrwe", "scaled_sf_1h", "PRECSNO"),
        (
            "snowfall_amount",
            "lwe_thickness_of_snowfall_amount",
            "snowfall_flux",
            "lwe_snowfall_rate",
        ),
        long_aliases=("snowfall",),
        accumulated=True,
        plausible=(-1e-4, 0.5),
    ),
    Variable(
        "ro",
        "surface",
        "m",
        "Runoff",
        "runoff",
        ("runoff", "mror", "avg_rorwe", "mrro", "RUNOFF"),
        ("runoff_amount", "runoff_flux"),
        long_aliases=("runoff",),
        accumulated=True,
        plausible=(-1e-4, 0.5),
    ),
)

SURFACE = ("2t", "10u", "10v", "msl")
"""Surface variables of the pretrained Auroras, in their order."""
STATIC = ("lsm", "z", "slt")
"""Static variables of the pretrained Auroras, in their order."""
ATMOS = ("z", "u", "v", "t", "q")
"""Atmospheric variables of the pretrained Auroras, in their order."""

BY_KEY: dict[tuple[str, str], Variable] = {(v.kind, v.name): v for v in TABLE}
_ORDER = {key: i for i, key in enumerate(BY_KEY)}


def order(kind: str, names: set[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Return names of one kind in the order of the table, which is Aurora's."""
    last = len(_ORDER)  # names that are not in the table come last
    return tuple(sorted(names, key=lambda name: (_ORDER.get((kind, name), last), name)))


def find(name: str) -> Variable | None:
    """Return the surface or atmospheric variable of a canonical name or a name in files.

    None if the name is unknown.
    """
    for variable in TABLE:
        if variable.kind != "static" and name in (
            variable.name,
            variable.weatherbench2,
            *variable.aliases,
        ):
            return variable
    return None

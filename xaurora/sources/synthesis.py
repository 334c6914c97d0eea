"""Seeded ERA5-like data whose rain has a known conditional distribution.

The score of a perfect forecast is therefore known. Two smooth Gaussian fields A and B drift, by
default two columns eastward per step, and evolve as AR(1) processes. A determines temperature,
pressure and wind, B the moisture on pressure levels. Rain depends on ``W = 1.2 A + 0.9 B`` at the
same time, with independent noise at every grid point. Given the state at init time, W six hours
later is normal with known mean and standard deviation, so that the distribution of rain is known
exactly: see :class:`~xaurora.sources.laws.Law`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import OptionError
from xaurora.fields.periods import cell_methods
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.sources.laws import crps, law_of
from xaurora.sources.synthetic_inputs import inputs_of_v15
from xaurora.utils.types import Given

MOTIONS = {"east": 2, "west": -2, "fast": 4, "storm": 8, "still": 0}
"""Drifts that ``motion=`` accepts, in columns eastward per step."""
_MODELS = ("small", "v1.5")
MEMORY = 0.9  # AR(1) coefficient of A and B
WEIGHT_A, WEIGHT_B = 1.2, 0.9  # W = 1.2 A + 0.9 B


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Return white noise smoothed with a Gaussian of ``scale`` grid points, with unit variance.

    It is periodic in longitude and not in latitude.
    """
    rows, columns = shape
    tall = (
        2 * rows
    )  # periodic over twice the height, of which half is kept: the poles stay independent
    ky, kx = np.fft.fftfreq(tall)[:, None], np.fft.rfftfreq(columns)[None, :]
    response = np.exp(-2.0 * (np.pi * scale) ** 2 * (ky**2 + kx**2))
    field = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((tall, columns))) * response, s=(tall, columns)
    )
    full = np.exp(-4.0 * (np.pi * scale) ** 2 * (ky**2 + np.fft.fftfreq(columns)[None, :] ** 2))
    return field[:rows] / np.sqrt(full.mean())


def synthetic(
    *,
    shape: tuple[int, int] = (32, 64),
    times: int = 400,
    levels: tuple[float, ...] = (500.0, 700.0, 850.0),
    seed: int = 0,
    rain: str = "hurdle",
    motion: str = "east",
    start: str = "2020-01-01T00",
    model: str = "small",
) -> xr.Dataset:
    """Make ERA5-like fields on a global grid, every six hours, with rain of a known distribution.

    The Dataset is in memory.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of a global grid without poles.
    times : int
        Number of times.
    levels : tuple of float
        Pressure levels in hPa.
    seed : int
        The same seed gives the same data.
    rain : str
        Distribution of rain. ``"hurdle"`` and ``"drizzle-free"`` belong to no family of heads.
        ``"hurdle_lognormal"``, ``"hurdle_gamma"``, ``"censored_normal"`` (with drizzle down to
        zero) and ``"csgd"`` are exactly that family given the state six hours before.
    motion : {"east", "west", "fast", "storm", "still"}
        Drift of the fields: two columns per step eastward or westward, four (``"fast"``) or eight
        (``"storm"``) eastward, or none. If the drift exceeds a patch of the model, the fields near
        a point do not show what falls there in the next six hours.
    start : str
        First time.
    model : {"small", "v1.5"}
        ``"v1.5"`` adds the further inputs of Aurora 1.5.

    Returns
    -------
    Dataset
        With CDS names: ``t2m u10 v10 msl tp``, ``z u v t q`` on pressure levels, and static ``lsm
        slt geopotential_at_surface``. ``tp`` is in metres over the six hours ending at ``time``.

    Raises
    ------
    OptionError
        If a size is too small, ``rain``, ``motion`` or ``model`` is unknown, or ``start`` is not a
        time.

    Examples
    --------
    >>> ds = xaurora.synthetic(shape=(8, 16), times=3)
    >>> ds["tp"].sizes["time"], ds["tp"].attrs["cell_methods"]
    (3, 'time: sum (interval: 6 hours)')
    """
    law = law_of(rain)
    if not isinstance(motion, str) or motion not in MOTIONS:
        raise OptionError(
            f"motion={motion!r} is not known; valid values are {', '.join(map(repr, MOTIONS))}.",
            fix="motion='east'",
        )
    if model not in _MODELS:
        raise OptionError(
            f"model={model!r}: there are synthetic inputs for {', '.join(map(repr, _MODELS))}.",
            fix="model='v1.5'",
        )
    drift = MOTIONS[motion]
    first = _first(start)
    _check_sizes(shape, times, levels, seed)
    rng = np.random.default_rng(seed)
    rows, columns = shape
    lat = 90.0 - (np.arange(rows) + 0.5) * 180.0 / rows
    lon = np.arange(columns) * 360.0 / columns
    time = first + np.arange(times) * np.timedelta64(TIMESTEP_HOURS, "h")
    fresh = np.sqrt(1.0 - MEMORY**2)
    a, b = (np.empty((times, rows, columns)) for _ in range(2))
    for field in (a, b):
        field[0] = _smooth_noise(rng, shape, 2.0)
        for i in range(1, times):
            field[i] = MEMORY * np.roll(field[i - 1], drift, axis=-1) + fresh * _smooth_noise(
                rng, shape, 2.0
            )
    w = WEIGHT_A * a + WEIGHT_B * b
    # The expectation of W given the state one step before. The state before the first one is
    # drawn at random.
    if law.ahead:
        before = np.concatenate([_before(w[:1], rng, shape, drift), w[:-1]])
        w = MEMORY * np.roll(before, drift, axis=-1)
    tp = law.sample(w, rng)

    hills = _smooth_noise(rng, shape, 3.0)
    data = _variables(a, b, tp, warmth=np.cos(np.deg2rad(lat)), levels=levels, hills=hills)
    if model == "v1.5":
        data |= inputs_of_v15(a, b, hills, lat)
    coords = {
        "time": ("time", time, {"standard_name": "time"}),
        "level": (
            "level",
            np.asarray(levels, dtype=float),
            {"units": "hPa", "standard_name": "air_pressure", "positive": "down"},
        ),
        "latitude": ("latitude", lat, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": ("longitude", lon, {"units": "degrees_east", "standard_name": "longitude"}),
    }
    attrs = {
        "title": "Synthetic fields with a known distribution of rain (xaurora.synthetic)",
        "rain_law": rain,
        "motion": motion,
        "seed": seed,
        "Conventions": "CF-1.11",
    }
    return xr.Dataset(data, coords, attrs)


def _check_sizes(shape: Given, times: Given, levels: Given, seed: Given) -> None:
    whole = (
        times,
        seed,
        *(shape if isinstance(shape, tuple | list) and len(shape) == 2 else ("", "")),
    )
    if (
        not all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in whole)
        or seed < 0
    ):
        raise OptionError(
            "times and seed must be integers, shape a pair of integers, and seed at least 0, got"
            f" times={times!r}, seed={seed!r}, shape={shape!r}.",
            fix="xaurora.synthetic(shape=(32, 64), times=400, seed=0)",
        )
    if times < 1 or min(shape) < 4 or not levels:
        raise OptionError(
            "at least 1 time, 4 × 4 grid points and 1 level are needed, got"
            f" times={times}, shape={shape}, levels={levels}.",
            fix="xaurora.synthetic()",
        )


def _variable(
    values: np.ndarray,
    units: str,
    long_name: str,
    dims: tuple[str, ...] = ("time", "latitude", "longitude"),
    **attrs: str,
) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
    return dims, values.astype(np.float32), {"units": units, "long_name": long_name, **attrs}


def _variables(
    a: np.ndarray,
    b: np.ndarray,
    tp: np.ndarray,
    *,
    warmth: np.ndarray,
    levels: Sequence[float],
    hills: np.ndarray,
) -> dict[str, Any]:
    """Return the variables, computed from two smooth fields ``(time, h, w)`` and precipitation.

    ``warmth`` is by latitude, ``hills`` a smooth field ``(h, w)``.
    """
    warm = warmth[:, None]
    height = np.asarray(levels)[:, None, None]
    pressure = height / 1000.0
    aa, bb = a[:, None], b[:, None]
    on_levels = ("time", "level", "latitude", "longitude")
    static = ("latitude", "longitude")
    hills = np.maximum(hills, 0.0)
    temperature = 220.0 + 60.0 * pressure + 25.0 * warm[None, None] * pressure + 4.0 * aa
    return {
        "t2m": _variable(
            255.0 + 40.0 * warm + 6.0 * a,
            "K",
            "2 metre temperature",
            standard_name="air_temperature",
        ),
        "u10": _variable(5.0 + 4.0 * a - 2.0 * b, "m s-1", "10 metre U wind component"),
        "v10": _variable(3.0 * b, "m s-1", "10 metre V wind component"),
        "msl": _variable(
            101_300.0 - 900.0 * a,
            "Pa",
            "Mean sea level pressure",
            standard_name="air_pressure_at_mean_sea_level",
        ),
        "tp": _variable(tp, "m", "Total precipitation", cell_methods=cell_methods(TIMESTEP_HOURS)),
        "z": _variable(
            9.80665 * 7400.0 * -np.log(pressure) - 900.0 * aa * (1.2 - pressure),
            "m2 s-2",
            "Geopotential",
            on_levels,
            standard_name="geopotential",
        ),
        "u": _variable(
            10.0 + 5.0 * aa - 3.0 * bb * pressure,
            "m s-1",
            "U component of wind",
            on_levels,
            standard_name="eastward_wind",
        ),
        "v": _variable(
            (4.0 - pressure) * bb,
            "m s-1",
            "V component of wind",
            on_levels,
            standard_name="northward_wind",
        ),
        "t": _variable(temperature, "K", "Temperature", on_levels, standard_name="air_temperature"),
        "q": _variable(
            0.006 * pressure**2 * (0.3 + warm) * np.exp(0.3 * bb),
            "kg kg-1",
            "Specific humidity",
            on_levels,
            standard_name="specific_humidity",
        ),
        "lsm": _variable(
            (hills > 0.2).astype(float),
            "1",
            "Land-sea mask",
            static,
            standard_name="land_binary_mask",
        ),
        "slt": _variable(
            np.where(hills > 0.2, 1.0 + (hills * 4).astype(int) % 7, 0.0), "1", "Soil type", static
        ),
        "geopotential_at_surface": _variable(
            8000.0 * hills, "m2 s-2", "Geopotential at the surface", static
        ),
    }


def _first(start: Given) -> np.datetime64:
    import pandas as pd

    try:
        stamp = pd.Timestamp(str(start))
    except (ValueError, OverflowError):
        stamp = pd.NaT
    if pd.isna(stamp) or not 1700 <= stamp.year <= 2200 or stamp.tzinfo is not None:
        raise OptionError(
            f"start must be a UTC time between 1700 and 2200 without a time zone, got {start!r}.",
            fix="start='2020-01-01T00'",
        )
    return stamp.to_datetime64().astype("datetime64[ns]")


def _steps(ds: xr.Dataset, lead_hours: int) -> int:
    """Return the number of rollout steps of a lead time, for a Dataset from :func:`synthetic`.

    Raises
    ------
    OptionError
        If ``ds`` is not such a Dataset or not complete, or the lead time is not valid.
    """
    if "rain_law" not in ds.attrs or "motion" not in ds.attrs:
        raise OptionError(
            "ds is not a Dataset from xaurora.synthetic, or its attributes were dropped.",
            fix="xaurora.synthetic()",
        )
    if (
        lead_hours <= 0
        or lead_hours % TIMESTEP_HOURS
        or lead_hours // TIMESTEP_HOURS >= ds.sizes["time"]
    ):
        raise OptionError(
            f"lead_hours must be a positive multiple of {TIMESTEP_HOURS} that fits into the"
            f" {ds.sizes['time']} times, got {lead_hours!r}.",
            fix="lead_hours=6",
        )
    spacing = np.diff(ds["longitude"].values)
    if (
        abs(float(spacing.mean()) * ds.sizes["longitude"] - 360.0) > 1e-6
        or (np.diff(ds["time"].values) != np.timedelta64(TIMESTEP_HOURS, "h")).any()
    ):
        raise OptionError(
            "the exact scores need all longitudes and all times, because the fields drift around"
            " the globe.",
            fix="compute the scores first, then select",
        )
    return lead_hours // TIMESTEP_HOURS


def _before(
    first: np.ndarray, rng: np.random.Generator, shape: tuple[int, int], drift: int
) -> np.ndarray:
    """Draw a field of W that may have preceded the first one.

    The process is the same backwards in time.
    """
    size = np.sqrt((WEIGHT_A**2 + WEIGHT_B**2) * (1.0 - MEMORY**2))
    return np.roll(MEMORY * first + size * _smooth_noise(rng, shape, 2.0), -drift, axis=-1)


def wetness(ds: xr.Dataset) -> xr.DataArray:
    """Return ``W = 1.2 A + 0.9 B`` of synthetic fields, ``(time, latitude, longitude)``.

    A is computed from ``t2m`` and B from ``v10``.
    """
    warm = np.cos(np.deg2rad(ds["latitude"]))
    a = (ds["t2m"].astype(np.float64) - 255.0 - 40.0 * warm) / 6.0
    b = ds["v10"].astype(np.float64) / 3.0
    return (WEIGHT_A * a + WEIGHT_B * b).transpose("time", "latitude", "longitude")


def _next_wetness(ds: xr.Dataset, steps: int) -> tuple[xr.DataArray, float]:
    """Return the mean and standard deviation of the wetness a number of steps ahead.

    Both are conditional on the state.
    """
    law = law_of(ds.attrs["rain_law"])
    mean = MEMORY**steps * wetness(ds).roll(
        longitude=MOTIONS[ds.attrs.get("motion", "east")] * steps
    )
    whole = WEIGHT_A**2 + WEIGHT_B**2
    if (
        law.ahead
    ):  # wetness is MEMORY · W of the step before, which is unknown from the second step on
        variance = MEMORY**2 * whole * (1.0 - MEMORY ** (2 * (steps - 1)))
    else:
        variance = whole * (1.0 - MEMORY ** (2 * steps))
    return mean, float(np.sqrt(variance))


def perfect_crps(ds: xr.Dataset, lead_hours: int = TIMESTEP_HOURS) -> xr.DataArray:
    """Return the CRPS in metres of a forecast that knows the distribution and the initial state.

    Parameters
    ----------
    ds : Dataset
        From :func:`synthetic`, with all its times in order.
    lead_hours : int
        A multiple of six.

    Returns
    -------
    DataArray
        CRPS with dims ``(init_time, latitude, longitude)``, for the init times whose truth is in
        ``ds``.
    """
    steps = _steps(ds, lead_hours)
    mean, spread = _next_wetness(ds, steps)
    truth = ds["tp"].transpose("time", "latitude", "longitude").values[steps:].astype(np.float64)
    mean = mean.isel(time=slice(None, -steps))
    score = crps(law_of(ds.attrs["rain_law"]), mean.values, spread, truth)
    return xr.DataArray(
        score,
        dims=("init_time", "latitude", "longitude"),
        coords={
            "init_time": mean["time"].values,
            "latitude": ds["latitude"],
            "longitude": ds["longitude"],
        },
        name="crps",
    )


def climatology_crps(ds: xr.Dataset, lead_hours: int = TIMESTEP_HOURS) -> xr.DataArray:
    """Return the CRPS in metres of a forecast that knows the distribution but not the state.

    Parameters and result are those of :func:`perfect_crps`.
    """
    steps = _steps(ds, lead_hours)
    truth = ds["tp"].transpose("time", "latitude", "longitude").values[steps:].astype(np.float64)
    law = law_of(ds.attrs["rain_law"])
    spread = float(np.sqrt(WEIGHT_A**2 + WEIGHT_B**2)) * (MEMORY if law.ahead else 1.0)
    score = crps(law, np.zeros_like(truth), spread, truth)
    return xr.DataArray(
        score,
        dims=("init_time", "latitude", "longitude"),
        coords={
            "init_time": ds["time"].values[:-steps],
            "latitude": ds["latitude"],
            "longitude": ds["longitude"],
        },
        name="crps",
    )

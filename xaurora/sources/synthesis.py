"""Seeded ERA5-like data whose rain follows a known law of the state, so that the score of a perfect
forecaster is known.

Two smooth Gaussian fields A and B drift, two columns eastward a step unless asked otherwise, and
are renewed as AR(1) processes. A shows in temperature, pressure and wind, B in the moisture aloft.
Rain depends on ``W = 1.2 A + 0.9 B`` at its own time, with noise of its own at every grid point.
Given the state at init time, W six hours later is normal with known mean and spread, so that the
distribution of rain is known exactly: :class:`Law`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import OptionError
from xaurora.fields.periods import cell_methods
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.sources.laws import crps, law_of

MOTIONS = {"east": 2, "west": -2, "fast": 4, "storm": 8, "still": 0}
"""Laws of motion that ``motion=`` takes: columns eastward a step."""
MEMORY = 0.9  # AR(1) coefficient of A and B
WEIGHT_A, WEIGHT_B = 1.2, 0.9  # W = 1.2 A + 0.9 B


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """White noise smoothed with a Gaussian of ``scale`` grid points, variance one; periodic in
    longitude, not in latitude.
    """
    rows, columns = shape
    tall = (
        2 * rows
    )  # periodic over twice the height, of which half is taken: no pole touches the other
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
) -> xr.Dataset:
    """ERA5-like fields on a global grid, every six hours, with rain of a known law. In memory.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of a global grid without poles.
    times : int
        How many.
    levels : tuple of float
        hPa.
    seed : int
        Same seed, same data.
    rain : str
        The law: ``"hurdle"``, which no family of heads is like; ``"drizzle-free"``; or exactly one
        of the families given the state six hours before: ``"hurdle_lognormal"``,
        ``"hurdle_gamma"``, ``"censored_normal"`` (with drizzle down to zero), ``"csgd"``.
    motion : {"east", "west", "fast", "storm", "still"}
        The law of motion: fields drift two columns a step eastward or westward, four or eight
        eastward, or not at all. Beyond a patch of the model, what falls at a point in six hours is
        not to be seen near it now.
    start : str
        First time.

    Returns
    -------
    Dataset
        CDS names: ``t2m u10 v10 msl tp``, ``z u v t q`` on levels, ``lsm slt
        geopotential_at_surface``; ``tp`` in metres over the six hours that end at ``time``.

    Raises
    ------
    OptionError
        A size that is not positive, an unknown law, or no time.

    Examples
    --------
    >>> ds = synthetic(shape=(8, 16), times=3)
    >>> ds["tp"].sizes["time"], ds["tp"].attrs["cell_methods"]
    (3, 'time: sum (interval: 6 hours)')
    """
    law = law_of(rain)
    if not isinstance(motion, str) or motion not in MOTIONS:
        raise OptionError(
            f"there is no motion {motion!r}; valid are {', '.join(map(repr, MOTIONS))}.",
            fix="motion='east'",
        )
    drift = MOTIONS[motion]
    first = _first(start)
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
            f"times={times!r}, seed={seed!r}, shape={shape!r}: whole numbers are needed, and a seed"
            " of at least 0.",
            fix="xaurora.synthetic(shape=(32, 64), times=400, seed=0)",
        )
    if times < 1 or min(shape) < 4 or not levels:
        raise OptionError(
            f"times={times}, shape={shape}, levels={levels}: at least 1 time, 4 × 4 points and 1"
            " level are needed.",
            fix="xaurora.synthetic()",
        )
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
    # what the state one step before lets one expect; before the first there is none, and it is
    # drawn
    if law.ahead:
        before = np.concatenate([_before(w[:1], rng, shape, drift), w[:-1]])
        w = MEMORY * np.roll(before, drift, axis=-1)
    tp = law.sample(w, rng)

    def out(
        values: np.ndarray,
        units: str,
        long_name: str,
        dims: tuple[str, ...] = ("time", "latitude", "longitude"),
        **attrs: str,
    ) -> Any:
        return dims, values.astype(np.float32), {"units": units, "long_name": long_name, **attrs}

    warm = np.cos(np.deg2rad(lat))[:, None]
    height = np.asarray(levels)[:, None, None]
    pressure = height / 1000.0
    aa, bb = a[:, None], b[:, None]
    aloft = ("time", "level", "latitude", "longitude")
    flat = ("latitude", "longitude")
    hills = np.maximum(_smooth_noise(rng, shape, 3.0), 0.0)
    temperature = 220.0 + 60.0 * pressure + 25.0 * warm[None, None] * pressure + 4.0 * aa
    data = {
        "t2m": out(
            255.0 + 40.0 * warm + 6.0 * a,
            "K",
            "2 metre temperature",
            standard_name="air_temperature",
        ),
        "u10": out(5.0 + 4.0 * a - 2.0 * b, "m s-1", "10 metre U wind component"),
        "v10": out(3.0 * b, "m s-1", "10 metre V wind component"),
        "msl": out(
            101_300.0 - 900.0 * a,
            "Pa",
            "Mean sea level pressure",
            standard_name="air_pressure_at_mean_sea_level",
        ),
        "tp": out(tp, "m", "Total precipitation", cell_methods=cell_methods(TIMESTEP_HOURS)),
        "z": out(
            9.80665 * 7400.0 * -np.log(pressure) - 900.0 * aa * (1.2 - pressure),
            "m2 s-2",
            "Geopotential",
            aloft,
            standard_name="geopotential",
        ),
        "u": out(
            10.0 + 5.0 * aa - 3.0 * bb * pressure,
            "m s-1",
            "U component of wind",
            aloft,
            standard_name="eastward_wind",
        ),
        "v": out(
            (4.0 - pressure) * bb,
            "m s-1",
            "V component of wind",
            aloft,
            standard_name="northward_wind",
        ),
        "t": out(temperature, "K", "Temperature", aloft, standard_name="air_temperature"),
        "q": out(
            0.006 * pressure**2 * (0.3 + warm) * np.exp(0.3 * bb),
            "kg kg-1",
            "Specific humidity",
            aloft,
            standard_name="specific_humidity",
        ),
        "lsm": out(
            (hills > 0.2).astype(float),
            "1",
            "Land-sea mask",
            flat,
            standard_name="land_binary_mask",
        ),
        "slt": out(
            np.where(hills > 0.2, 1.0 + (hills * 4).astype(int) % 7, 0.0), "1", "Soil type", flat
        ),
        "geopotential_at_surface": out(
            8000.0 * hills, "m2 s-2", "Geopotential at the surface", flat
        ),
    }
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
        "title": "Synthetic fields with rain of a known law (xaurora.synthetic)",
        "rain_law": rain,
        "motion": motion,
        "seed": seed,
        "Conventions": "CF-1.11",
    }
    return xr.Dataset(data, coords, attrs)


def _first(start: Any) -> np.datetime64:
    import pandas as pd

    try:
        stamp = pd.Timestamp(str(start))
    except (ValueError, OverflowError):
        stamp = pd.NaT
    if pd.isna(stamp) or not 1700 <= stamp.year <= 2200 or stamp.tzinfo is not None:
        raise OptionError(
            f"start={start!r} is no time between 1700 and 2200, in UTC.",
            fix="start='2020-01-01T00'",
        )
    return stamp.to_datetime64().astype("datetime64[ns]")


def _steps(ds: xr.Dataset, lead_hours: int) -> int:
    """Rollout steps of a lead time, for fields that are as :func:`synthetic` made them."""
    if "rain_law" not in ds.attrs or "motion" not in ds.attrs:
        raise OptionError(
            "these are no fields of xaurora.synthetic, or their attributes are gone.",
            fix="xaurora.synthetic()",
        )
    if (
        lead_hours <= 0
        or lead_hours % TIMESTEP_HOURS
        or lead_hours // TIMESTEP_HOURS >= ds.sizes["time"]
    ):
        raise OptionError(
            f"lead_hours={lead_hours!r} is no positive multiple of {TIMESTEP_HOURS} within the"
            f" {ds.sizes['time']} times.",
            fix="lead_hours=6",
        )
    spacing = np.diff(ds["longitude"].values)
    if (
        abs(float(spacing.mean()) * ds.sizes["longitude"] - 360.0) > 1e-6
        or (np.diff(ds["time"].values) != np.timedelta64(TIMESTEP_HOURS, "h")).any()
    ):
        raise OptionError(
            "the exact scores need all longitudes and every time: the fields drift around the"
            " globe.",
            fix="score first, then select",
        )
    return lead_hours // TIMESTEP_HOURS


def _before(
    first: np.ndarray, rng: np.random.Generator, shape: tuple[int, int], drift: int
) -> np.ndarray:
    """A field of W that may have gone before the first: the same process runs backwards in the same
    way.
    """
    size = np.sqrt((WEIGHT_A**2 + WEIGHT_B**2) * (1.0 - MEMORY**2))
    return np.roll(MEMORY * first + size * _smooth_noise(rng, shape, 2.0), -drift, axis=-1)


def wetness(ds: xr.Dataset) -> xr.DataArray:
    """``W = 1.2 A + 0.9 B`` read back off synthetic fields: A from ``t2m``, B from ``v10``;
    ``(time, latitude, longitude)``.
    """
    warm = np.cos(np.deg2rad(ds["latitude"]))
    a = (ds["t2m"].astype(np.float64) - 255.0 - 40.0 * warm) / 6.0
    b = ds["v10"].astype(np.float64) / 3.0
    return (WEIGHT_A * a + WEIGHT_B * b).transpose("time", "latitude", "longitude")


def _next_wetness(ds: xr.Dataset, steps: int) -> tuple[xr.DataArray, float]:
    """Mean and spread, given the state, of what the law takes for wetness so many steps on."""
    law = law_of(ds.attrs["rain_law"])
    mean = MEMORY**steps * wetness(ds).roll(
        longitude=MOTIONS[ds.attrs.get("motion", "east")] * steps
    )
    whole = WEIGHT_A**2 + WEIGHT_B**2
    if (
        law.ahead
    ):  # the law takes MEMORY · W of the step before, which is unknown from the second step on
        variance = MEMORY**2 * whole * (1.0 - MEMORY ** (2 * (steps - 1)))
    else:
        variance = whole * (1.0 - MEMORY ** (2 * steps))
    return mean, float(np.sqrt(variance))


def perfect_crps(ds: xr.Dataset, lead_hours: int = TIMESTEP_HOURS) -> xr.DataArray:
    """CRPS in metres of the forecaster that knows the law and the state at init time.

    Parameters
    ----------
    ds : Dataset
        From :func:`synthetic`, with its times in sequence.
    lead_hours : int
        A multiple of six.

    Returns
    -------
    DataArray
        ``(init_time, latitude, longitude)``, for the init times whose truth is in ``ds``.
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
    """CRPS in metres of the forecaster that knows the law but not the state; like
    :func:`perfect_crps`.
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

"""The further inputs of Aurora 1.5 in synthetic data: smooth functions of the same two fields."""

from __future__ import annotations

from typing import Any

import numpy as np

_FLAT = ("time", "latitude", "longitude")
_STILL = ("latitude", "longitude")


def inputs_of_v15(
    a: np.ndarray, b: np.ndarray, hills: np.ndarray, lat: np.ndarray
) -> dict[str, Any]:
    """Return variables with CDS names, of plausible sizes.

    Parameters
    ----------
    a, b : ndarray, ``(time, h, w)``
        The fields that determine all others.
    hills : ndarray, ``(h, w)``
        Where it is above 0.2 there is land.
    lat : ndarray, ``(h,)``
        Degrees.

    Returns
    -------
    dict
        Name → dims, values in float32 and attributes. Sea ice is NaN over land, as in ERA5.
    """
    warm = np.cos(np.deg2rad(lat))[:, None]
    land, high = hills > 0.2, np.maximum(hills, 0.0)
    cold = 1.0 - warm

    def share(x: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-x))

    def moving(values: np.ndarray, units: str, name: str) -> tuple[Any, ...]:
        values = np.broadcast_to(values, a.shape)
        return _FLAT, values.astype(np.float32), {"units": units, "long_name": name}

    def still(values: np.ndarray, units: str, name: str) -> tuple[Any, ...]:
        values = np.broadcast_to(values, hills.shape)
        return _STILL, values.astype(np.float32), {"units": units, "long_name": name}

    ice = np.where(land, np.nan, share(20.0 * (cold - 0.7) - a))
    wet = share(b)
    return {
        "d2m": moving(250.0 + 38.0 * warm + 5.0 * a + b, "K", "2 metre dewpoint temperature"),
        "tcwv": moving(
            np.minimum(40.0 * warm * np.exp(0.3 * b), 140.0), "kg m-2", "Total column water vapour"
        ),
        "tcc": moving(share(b - 0.3 * a), "1", "Total cloud cover"),
        "u100": moving(7.0 + 5.0 * a - 2.5 * b, "m s-1", "100 metre U wind component"),
        "v100": moving(4.0 * b, "m s-1", "100 metre V wind component"),
        "sp": moving(101_300.0 - 900.0 * a - 8_000.0 * high, "Pa", "Surface pressure"),
        "lcc": moving(0.8 * share(b - a), "1", "Low cloud cover"),
        "mcc": moving(0.7 * wet, "1", "Medium cloud cover"),
        "hcc": moving(0.6 * share(a + b), "1", "High cloud cover"),
        "skt": moving(254.0 + 41.0 * warm + 7.0 * a, "K", "Skin temperature"),
        "stl1": moving(256.0 + 40.0 * warm + 2.0 * a, "K", "Soil temperature level 1"),
        "swvl1": moving(
            np.where(land, 0.2 + 0.1 * wet, 0.0), "m3 m-3", "Volumetric soil water layer 1"
        ),
        "siconc": moving(ice, "1", "Sea ice area fraction"),
        "sd": moving(
            np.where(land, np.maximum(cold - 0.4 - 0.05 * a, 0.0), 0.0),
            "m of water equivalent",
            "Snow depth",
        ),
        "anor": still(np.where(land, np.arctan(high), 0.0), "radians", "Angle of orography"),
        "isor": still(np.where(land, 0.5, 0.0), "1", "Anisotropy of orography"),
        "slor": still(0.05 * high, "1", "Slope of sub-gridscale orography"),
        "sdfor": still(6.0 * high, "m", "Standard deviation of filtered subgrid orography"),
        "sdor": still(9.0 * high, "m", "Standard deviation of orography"),
        "cvh": still(np.where(land, 0.6 * warm, 0.0), "1", "High vegetation cover"),
        "cvl": still(np.where(land, 0.3, 0.0), "1", "Low vegetation cover"),
        "tvh": still(_types(land, warm, (3, 4, 5, 6, 18, 19)), "1", "Type of high vegetation"),
        "tvl": still(
            _types(land, warm, (1, 2, 7, 9, 10, 11, 13, 16, 17)), "1", "Type of low vegetation"
        ),
        "cl": still(np.where(land, 0.02, 0.0), "1", "Lake cover"),
        "dl": still(np.where(land, 10.0, 40.0), "m", "Lake total depth"),
    }


def _types(land: np.ndarray, warm: np.ndarray, known: tuple[int, ...]) -> np.ndarray:
    """Return categories by latitude over land, and 0 elsewhere."""
    place = np.minimum((warm * len(known)).astype(int), len(known) - 1)
    return np.where(land, np.take(known, place), 0)

"""Insolation at the top of the atmosphere, which Aurora 1.5 takes as an input."""

from __future__ import annotations

import numpy as np

_OBLIQUITY = 23.4441 * np.pi / 180.0
_ECCENTRICITY = 0.016715
_PERIHELION = 282.7 * np.pi / 180.0  # longitude of perihelion


def insolation(time: np.datetime64, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Return the cosine of the solar zenith angle over the squared distance to the sun.

    It is negative at night. The formula, its rounding and the orbital elements of 1995 are those of
    ``aurora.insolation`` (microsoft-aurora 2.0.1), on which Aurora 1.5 was trained.

    Parameters
    ----------
    time : datetime64
        UTC.
    latitude, longitude : ndarray, ``(h,)`` and ``(w,)``
        Degrees.

    Returns
    -------
    ndarray, ``(h, w)``
        float32, in units of the solar constant.
    """
    stamp = time.astype("datetime64[us]")
    days = np.float32((stamp - stamp.astype("datetime64[Y]")) / np.timedelta64(1, "D"))
    root = np.sqrt(1 - _ECCENTRICITY**2.0)
    mean = _ECCENTRICITY * (1.0 + root) * np.sin(_PERIHELION)
    mean = mean + 2.0 * np.pi * (days - 80.5) / 365.0
    true = mean + 2.0 * _ECCENTRICITY * np.sin(mean - _PERIHELION)
    declination = np.float32(np.arcsin(np.sin(_OBLIQUITY) * np.sin(true)))
    distance = np.float32(
        (1.0 - _ECCENTRICITY**2.0) / (1.0 + _ECCENTRICITY * np.cos(true - _PERIHELION))
    )
    lat = np.pi / 180.0 * latitude.astype(np.float32)[:, None]
    hour = (2 * np.pi * (days + longitude.astype(np.float32)[None] / 360.0)).astype(np.float32)
    height = np.sin(lat) * np.sin(declination) - np.cos(lat) * np.cos(declination) * np.cos(hour)
    return np.asarray(height * distance**-2.0, np.float32)

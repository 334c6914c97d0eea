"""Area weights of latitudes."""

from __future__ import annotations

import numpy as np


def latitude_weights(latitude: np.ndarray, *, regional: bool | None = None) -> np.ndarray:
    """Return area weights by latitude, normalised to mean 1, as WeatherBench2 defines them.

    A cell reaches to the midpoints between its latitude and its neighbours; ``w = sin(upper) −
    sin(lower)``. On a global grid the outermost cells reach to the poles. On a regional one they
    extend by half a cell, as otherwise the edge rows would represent everything up to the pole.

    Parameters
    ----------
    latitude : ndarray, ``(h,)``
        Degrees north, monotonic.
    regional : bool, optional
        By default a grid whose ends lie within one and a half cells of both poles is global.

    References
    ----------
    Rasp et al. (2024), WeatherBench 2, J. Adv. Model. Earth Syst., doi:10.1029/2023MS004019,
    section 2.4.
    """
    lat = np.asarray(latitude, dtype=np.float64)
    if len(lat) == 1:
        return np.ones(1)
    ascending = np.sort(lat)
    middle = (ascending[1:] + ascending[:-1]) / 2
    first_half, last_half = (ascending[1] - ascending[0]) / 2, (ascending[-1] - ascending[-2]) / 2
    if regional is None:
        reach = 3 * max(first_half, last_half)
        regional = not (ascending[0] <= -90 + reach and ascending[-1] >= 90 - reach)
    low, high = (
        (ascending[0] - first_half, ascending[-1] + last_half) if regional else (-90.0, 90.0)
    )
    bounds = np.deg2rad(np.clip(np.concatenate([[low], middle, [high]]), -90.0, 90.0))
    weights = np.diff(np.sin(bounds))
    weights = weights / weights.mean()
    return weights[np.argsort(np.argsort(lat))]

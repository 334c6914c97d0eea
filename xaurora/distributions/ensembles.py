"""The CRPS of an ensemble, and ranks of past fields for the Schaake shuffle."""

from __future__ import annotations

import numpy as np


def ensemble_crps(members: np.ndarray, y: np.ndarray, *, fair: bool = True) -> np.ndarray:
    """Return the CRPS of an ensemble with members along the first axis.

    ``E|X−y| − ½E|X−X'|``. With ``fair``, the second mean is divided by M(M−1) instead of M²
    (probability-weighted moments), as WeatherBench2 does (Zamo and Naveau 2018,
    doi:10.1007/s11004-017-9709-7).
    """
    count = members.shape[0]
    skill = np.abs(members - y).mean(axis=0)
    ranked = np.sort(members, axis=0)
    weights = (2 * np.arange(1, count + 1) - count - 1).reshape((-1,) + (1,) * (members.ndim - 1))
    pairs = count * (count - 1) if fair else count * count
    if count == 1:
        return skill
    return skill - (weights * ranked).sum(axis=0) / pairs


def ranks_of(past: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the rank of every past field at every grid point, 0 … n−1.

    Where it is often dry, most past fields are equal: all zero. Breaking ties at random at each
    point would destroy the spatial structure of the members, and breaking them in the same order
    everywhere would make the members perfectly dependent in space. Ties are therefore broken by
    the rain nearby: among fields that are dry at a point, the one with more rain around it ranks
    higher, as if its rain had spread.

    Parameters
    ----------
    past : ndarray, ``(n, h, w)``
        Amounts, without NaN.
    rng : numpy.random.Generator
        Breaks the ties that remain.

    Returns
    -------
    ndarray of int, ``(n, h, w)``
    """
    from scipy.ndimage import gaussian_filter

    near, far = (
        gaussian_filter(past.astype(np.float64), (0, scale, scale), truncate=6.0)
        for scale in (2.0, 8.0)
    )
    last = np.broadcast_to(rng.permutation(len(past)).reshape(-1, 1, 1), past.shape)
    order = np.lexsort((last, far, near, past), axis=0)  # the last key is the primary one
    ranks = np.empty(past.shape, np.int64)
    np.put_along_axis(ranks, order, np.arange(len(past)).reshape(-1, 1, 1), axis=0)
    return ranks


def plotting_positions(count: int) -> np.ndarray:
    """Return the probabilities ``(i + ½)/n`` that the members represent."""
    return (np.arange(count) + 0.5) / count

"""Ensembles: their CRPS, and members that keep the dependence of past fields."""

from __future__ import annotations

import numpy as np


def ensemble_crps(members: np.ndarray, y: np.ndarray, *, fair: bool = True) -> np.ndarray:
    """CRPS of an ensemble, members along the first axis.

    ``E|X−y| − ½E|X−X'|``; fair divides the second mean by M(M−1) (probability-weighted moments), as
    WeatherBench2 does (Zamo and Naveau 2018, doi:10.1007/s11004-017-9709-7).
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
    """Rank of every past field at every grid point, 0 … n−1, ties broken by the rain nearby.

    Where it is often dry, most past fields are equal: all zero. Broken at random at each point,
    ties would tear the members apart; broken in one order everywhere, they would march in step.
    Among fields that are dry at a point, the one with more rain around it ranks higher, which is
    how its rain would have spread.

    Parameters
    ----------
    past : ndarray, ``(n, h, w)``
        Amounts, without NaN.
    rng : numpy.random.Generator
        For what is still tied.

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
    order = np.lexsort((last, far, near, past), axis=0)  # the last key counts first
    ranks = np.empty(past.shape, np.int64)
    np.put_along_axis(ranks, order, np.arange(len(past)).reshape(-1, 1, 1), axis=0)
    return ranks


def plotting_positions(count: int) -> np.ndarray:
    """Probabilities ``(i + ½)/n`` that members stand for."""
    return (np.arange(count) + 0.5) / count

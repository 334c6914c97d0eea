"""Neighbourhoods for the fractions skill score.

Reference: Roberts and Lean (2008), doi:10.1175/2007MWR2123.1. Does not depend on torch.
"""

from __future__ import annotations

import numpy as np

from xaurora.evaluation.aggregation import AreaMeans
from xaurora.evaluation.sample import Sample


def share_over(over: np.ndarray, size: int, *, wraps: bool) -> np.ndarray:
    """Return the fraction of a square neighbourhood above the threshold, ``(..., h, w)``.

    It is zero where the neighbourhood extends beyond the grid, as in WeatherBench-X
    (``spatial.convolve2d_wrap_longitude``). Points near an edge then add nothing to the numerator
    or the denominator of the score.

    Parameters
    ----------
    over : ndarray, ``(..., h, w)``
        1 where the threshold is exceeded, else 0.
    size : int
        Width of the neighbourhood in grid points, odd.
    wraps : bool
        Whether the grid is periodic in longitude.
    """
    from scipy.ndimage import uniform_filter1d

    if size == 1:
        return over
    half = size // 2
    if size > min(over.shape[-2:]):
        return np.zeros_like(over)
    out = uniform_filter1d(
        uniform_filter1d(over, size, axis=-2, mode="wrap"), size, axis=-1, mode="wrap"
    )
    out = np.round(out * size * size) / (size * size)  # removes rounding errors of the running sum
    out[..., :half, :] = 0.0
    out[..., -half:, :] = 0.0
    if not wraps:
        out[..., :half] = 0.0
        out[..., -half:] = 0.0
    return out


def fractions(s: Sample, areas: AreaMeans, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return area means of the squared fractions or of their squared difference.

    Parameters
    ----------
    s : Sample
    areas : AreaMeans
    what : {"error", "forecast", "truth"}
        Squared difference of the fractions, or square of the forecast's or the truth's.

    Returns
    -------
    tuple of ndarray, ``(region, size, threshold)`` each
        Means, and the shares of the region that they stand for. A neighbourhood with a missing
        value has no fraction: it is not scored if the sample has a mask, and makes the mean
        missing otherwise.
    """
    cache = s.__dict__.setdefault("_fractions", {})
    if not cache:
        sizes, thresholds = s.settings.sizes, s.thresholds
        order = np.array(s.settings.order or range(s.y.shape[-1]))
        back = np.argsort(order)

        def share(over: np.ndarray, size: int) -> np.ndarray:
            return share_over(over[..., order].astype(np.float64), size, wraps=s.settings.wraps)[
                ..., back
            ]

        missing = ~(np.isfinite(s.f) & np.isfinite(s.y))
        if s.valid is not None:
            missing = missing | ~s.valid
        shape = (3, len(areas.names), len(sizes), len(thresholds))
        means, shares = np.empty(shape), np.empty(shape)
        for a, size in enumerate(sizes):
            touched = missing
            if missing.any():
                touched = missing | (share(missing, size) > 0)
            for b, t in enumerate(thresholds):
                f, y = share(s.f > t, size), share(s.y > t, size)
                parts = np.stack([(f - y) ** 2, f**2, y**2])
                valid = None if s.valid is None else ~touched
                mean, part = areas(
                    parts if valid is not None else np.where(touched, np.nan, parts), valid
                )
                means[:, :, a, b], shares[:, :, a, b] = mean.T, part.T
        cache |= {
            key: (means[i], shares[i]) for i, key in enumerate(("error", "forecast", "truth"))
        }
    return cache[what]

"""Student's t-test for the mean of a series whose neighbours are alike.

The statistic is the mean over its standard error as if neighbours were independent. How large it
gets by chance for an autoregressive series of the first order is simulated, for the number of
values and the correlation at hand. Block bootstraps and variances corrected for autocorrelation
need many more values than a month of forecasts has: at 40 values with a correlation of 0.9 they
find a difference in a third of the cases where there is none.
"""

from __future__ import annotations

import functools

import numpy as np

FEWEST = 10  # values; fewer say too little about the correlation
_MOST = 1000  # values beyond which the quantiles no longer change
_TRIALS = 4000
_CORRELATIONS = np.concatenate([np.arange(-0.3, 0.9, 0.1), np.arange(0.9, 0.9951, 0.01)])
# Correlations are estimated with an error. So that too small ones do not lead to too small
# quantiles, this many standard errors are added, times 1/sqrt(number). Found by simulation, see
# benchmarks/significance.py.
_CAUTION = 11.5


def interval(series: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return half the width of the mean's confidence interval, and the p-value of a mean of zero.

    Parameters
    ----------
    series : ndarray, ``(n, ...)``
        Values in the order of time; NaN where there is none.
    level : float
        Confidence level.

    Returns
    -------
    tuple of ndarray
        NaN where there are fewer than :data:`FEWEST` values.
    """
    from scipy.stats import t as student

    there = np.isfinite(series)
    counts = there.sum(axis=0)
    half, p = (np.full(series.shape[1:], np.nan) for _ in range(2))
    filled = np.where(there, series, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=0) / counts
        apart = np.where(there, series - mean, 0.0)
        squares = (apart**2).sum(axis=0)
        error = np.sqrt(squares / (counts - 1) / counts)
        found = (apart[1:] * apart[:-1]).sum(axis=0) / squares
    found = np.nan_to_num(found)
    for count in np.unique(counts[counts >= FEWEST]):
        medians, samples = _simulated(min(int(count), _MOST))
        correlation = np.interp(found, medians, _CORRELATIONS)
        spread = np.sqrt(np.clip(1.0 - correlation**2, 0.0, 1.0) / count)
        caution = _CAUTION / np.sqrt(count) * np.clip(correlation, 0.0, 1.0) * spread
        correlation = np.clip(correlation + caution, _CORRELATIONS[0], _CORRELATIONS[-1])
        limit = np.interp(correlation, _CORRELATIONS, np.quantile(samples, level, axis=1))
        here = counts == count
        half[here] = (limit * error)[here]
        # Beyond the trials, the tail of Student's t with the degrees of freedom of as many
        # independent values as the series is worth.
        worth = np.maximum(count * (1.0 - correlation) / (1.0 + correlation), 2.0)
        freedom = np.maximum(worth - 1.0, 1.0)
        scale = limit / student.ppf(0.5 * (1.0 + level), freedom)
        with np.errstate(invalid="ignore", divide="ignore"):
            one = 2.0 * student.sf(np.abs(mean) / error / scale, freedom)
        p[here] = np.where(error > 0, one, 1.0)[here]
    return half, p


def interval_hac(series: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the same as :func:`interval` by the test of Diebold and Mariano.

    The variance of the mean is that of Newey and West (1987), with weights that fall linearly to
    zero beyond ``h = 4 (n/100)^(2/9)`` lags, with the correction of Harvey, Leybourne and Newbold
    (1997) for short series and Student's t with n − 1 degrees of freedom. It is the usual test, and
    finds differences by chance more often than its level says if neighbours are very much alike
    (``benchmarks/significance.py``).

    References
    ----------
    Diebold and Mariano (1995), doi:10.1080/07350015.1995.10524599; Harvey et al. (1997),
    doi:10.1016/S0169-2070(96)00719-4.

    Parameters
    ----------
    series : ndarray, ``(n, ...)``
        Values in the order of time; NaN where there is none.
    level : float
        Confidence level.
    """
    from scipy.stats import t as student

    there = np.isfinite(series)
    counts = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, series, 0.0).sum(axis=0) / counts
        apart = np.where(there, series - mean, 0.0)
        lags = np.floor(4.0 * (counts / 100.0) ** (2.0 / 9.0))
        variance = (apart**2).sum(axis=0) / counts
        for lag in range(1, int(np.max(lags, initial=0)) + 1):
            weight = np.clip(1.0 - lag / (lags + 1.0), 0.0, None)
            variance += 2.0 * weight * (apart[lag:] * apart[:-lag]).sum(axis=0) / counts
        # h lags and the value itself are a horizon of h + 1.
        horizon = lags + 1.0
        harvey = (counts + 1.0 - 2.0 * horizon + horizon * (horizon - 1.0) / counts) / counts
        error = np.sqrt(np.maximum(variance, 0.0) / counts / harvey)
        enough = (counts >= FEWEST) & (harvey > 0)
        freedom = np.maximum(counts - 1.0, 1.0)
        half = np.where(enough, student.ppf(0.5 * (1.0 + level), freedom) * error, np.nan)
        p = np.where(error > 0, 2.0 * student.sf(np.abs(mean) / error, freedom), 1.0)
    return half, np.where(enough, p, np.nan)


TESTS = {
    "autoregressive": (interval, "t-test of paired init times, autoregressive of the first order"),
    "diebold_mariano": (
        interval_hac,
        "Diebold–Mariano test with Newey–West variance and Harvey's correction",
    ),
}
"""Tests of a mean: the function, and its name in words."""


@functools.lru_cache(maxsize=32)
def _simulated(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return medians of the estimated correlation, and sizes of the statistic, by correlation.

    Of :data:`_TRIALS` series of ``count`` values each, with a fixed seed.
    """
    rng = np.random.default_rng(20_240_601)
    phi = _CORRELATIONS[:, None]
    x = rng.standard_normal((1, _TRIALS)) / np.sqrt(1.0 - phi**2)
    first = x
    total, squares, products = x.copy(), x**2, np.zeros_like(x)
    for _ in range(count - 1):
        before, x = x, phi * x + rng.standard_normal((1, _TRIALS))
        total += x
        squares += x**2
        products += x * before
    mean = total / count
    squares = squares - count * mean**2
    products = products - mean * (2.0 * total - first - x) + (count - 1) * mean**2
    error = np.sqrt(squares / (count - 1) / count)
    return np.median(products / squares, axis=1), np.abs(mean) / error


def false_discovery(p: np.ndarray, rate: float) -> float:
    """Return the largest p-value of a discovery if a share of at most ``rate`` is to be false.

    The procedure of Benjamini and Hochberg (1995), doi:10.1111/j.2517-6161.1995.tb02031.x, which
    also holds for the positive dependence of neighbouring leads, levels and regions.

    Examples
    --------
    >>> false_discovery(np.array([0.001, 0.02, 0.04, 0.5]), 0.05)
    0.02
    """
    ranked = np.sort(p[np.isfinite(p)])
    below = ranked <= rate * np.arange(1, len(ranked) + 1) / max(len(ranked), 1)
    return float(ranked[np.flatnonzero(below)[-1]]) if below.any() else 0.0

"""The t-test of correlated values: false positives, power, gaps, and many tests at once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from xaurora.evaluation import autocorrelation


def _series(rng: np.random.Generator, count: int, correlation: float, trials: int) -> np.ndarray:
    """Autoregressive series of the first order, ``(count, trials)``."""
    noise = rng.standard_normal((count, trials))
    out = np.empty_like(noise)
    out[0] = noise[0] / np.sqrt(1 - correlation**2)
    for i in range(1, count):
        out[i] = correlation * out[i - 1] + noise[i]
    return out


@pytest.mark.parametrize("count", [40, 60, 120, 365])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.8, 0.9])
def test_false_positives_are_as_many_as_it_says(count: int, correlation: float) -> None:
    """At 5 %, between 3 and 7 %; 4000 trials leave a standard error of 0.35 %."""
    rng = np.random.default_rng(count + int(10 * correlation))
    half, p = autocorrelation.interval(_series(rng, count, correlation, 4000), 0.95)
    assert 0.03 <= (p < 0.05).mean() <= 0.07
    values = _series(rng, count, correlation, 4000)
    half, p = autocorrelation.interval(values, 0.95)
    np.testing.assert_array_equal(np.abs(values.mean(axis=0)) > half, p < 0.05)


def test_independent_values_give_students_t() -> None:
    """Within the few per cent that the estimated correlation costs."""
    from scipy.stats import t

    values = np.random.default_rng(0).standard_normal((200, 300))
    half, _ = autocorrelation.interval(values, 0.95)
    plain = t.ppf(0.975, 199) * values.std(axis=0, ddof=1) / np.sqrt(200)
    assert np.median(half / plain) == pytest.approx(1.0, abs=0.08)


def test_a_difference_is_found() -> None:
    values = _series(np.random.default_rng(1), 120, 0.5, 500) + 0.8
    _, p = autocorrelation.interval(values, 0.95)
    assert (p < 0.05).mean() > 0.9


def test_gaps_are_left_out() -> None:
    values = _series(np.random.default_rng(2), 60, 0.3, 4)
    values[40:, 1] = np.nan
    values[5:, 2] = np.nan
    half, p = autocorrelation.interval(values, 0.95)
    alone, _ = autocorrelation.interval(values[:40, 1:2], 0.95)
    assert half[1] == pytest.approx(alone[0], rel=1e-12)
    assert np.isnan(half[2])
    assert np.isnan(p[2])
    assert np.isfinite(half[[0, 1, 3]]).all()


def test_values_that_are_all_the_same() -> None:
    half, p = autocorrelation.interval(np.zeros((30, 2)), 0.95)
    assert (half == 0).all()
    assert (p == 1).all()


def test_false_discoveries() -> None:
    """Of a thousand tests with nothing to find, hardly any are discoveries; true ones remain."""
    rng = np.random.default_rng(3)
    nothing = rng.random(1000)
    assert (nothing <= autocorrelation.false_discovery(nothing, 0.05)).sum() <= 1
    mixed = np.concatenate([nothing, rng.random(100) * 1e-4])
    found = mixed <= autocorrelation.false_discovery(mixed, 0.05)
    assert found[1000:].all()
    assert found[:1000].sum() < 0.1 * found.sum()
    assert autocorrelation.false_discovery(np.full(4, np.nan), 0.05) == 0.0


def test_diebold_mariano_by_hand() -> None:
    """The definition, written out for one series."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal(50) + 0.3
    half, p = autocorrelation.interval_hac(x[:, None], 0.95)
    n, lags = len(x), int(4 * (50 / 100) ** (2 / 9))
    d = x - x.mean()
    variance = (d @ d) / n
    for lag in range(1, lags + 1):
        variance += 2 * (1 - lag / (lags + 1)) * (d[lag:] @ d[:-lag]) / n
    h = lags + 1
    harvey = (n + 1 - 2 * h + h * (h - 1) / n) / n
    error = np.sqrt(variance / n / harvey)
    assert half[0] == pytest.approx(stats.t.ppf(0.975, n - 1) * error, rel=1e-12)
    assert p[0] == pytest.approx(2 * stats.t.sf(abs(x.mean()) / error, n - 1), rel=1e-12)


def test_diebold_mariano_keeps_its_level_without_correlation() -> None:
    """And finds too much where neighbours are alike, which is why it is not the default."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((60, 4000))
    _, p = autocorrelation.interval_hac(x, 0.95)
    assert 0.035 < (p < 0.05).mean() < 0.065
    for i in range(1, 60):
        x[i] = 0.8 * x[i - 1] + 0.6 * x[i]
    _, p = autocorrelation.interval_hac(x, 0.95)
    assert (p < 0.05).mean() > 0.15
    short, _ = autocorrelation.interval_hac(x[:5], 0.95)
    assert np.isnan(short).all()

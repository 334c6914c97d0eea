"""Formulas of metrics: functions of the means of statistics, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Means = Mapping[str, np.ndarray]


def one(name: str) -> Callable[[Means], np.ndarray]:
    """Return the formula of a metric that is one mean."""
    return lambda m: m[name]


def root(name: str) -> Callable[[Means], np.ndarray]:
    """Return the formula of a metric that is the square root of a mean."""
    return lambda m: np.sqrt(m[name])


def acc(m: Means) -> np.ndarray:
    """Return the anomaly correlation coefficient."""
    if "anomaly_correlation" in m:
        return m["anomaly_correlation"]
    return m["anomaly_covariance"] / np.sqrt(
        m["squared_forecast_anomaly"] * m["squared_truth_anomaly"]
    )


def sedi(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return the symmetric extremal dependence index.

    Ferro and Stephenson (2011), doi:10.1175/WAF-D-10-05030.1. Rates are kept away from 0 and 1 as
    in WeatherBench-X.
    """
    h, f = np.clip(a / (a + c), 1e-6, 1 - 1e-6), np.clip(b / (b + d), 1e-6, 1 - 1e-6)
    top = np.log(f) - np.log(h) + np.log(1 - h) - np.log(1 - f)
    return top / (np.log(f) + np.log(h) + np.log(1 - h) + np.log(1 - f))


def ets(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return the equitable threat score."""
    by_chance = (a + b) * (a + c) / (a + b + c + d)
    return (a - by_chance) / (a + b + c - by_chance)


BINS = ("bin_share", "bin_probability", "bin_observed")


def per_bin(m: Means) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return share, mean probability and observed frequency by bin, and the overall frequency."""
    share = m["bin_share"]
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(share > 0, m["bin_probability"] / share, 0.0)
        o = np.where(share > 0, m["bin_observed"] / share, 0.0)
    return share, p, o, m["bin_observed"].sum(axis=-1)


def reliability(m: Means) -> np.ndarray:
    """Return the reliability term of the Brier score."""
    share, p, o, _ = per_bin(m)
    return (share * (p - o) ** 2).sum(axis=-1)


def resolution(m: Means) -> np.ndarray:
    """Return the resolution term of the Brier score."""
    share, _, o, mean = per_bin(m)
    return (share * (o - mean[..., None]) ** 2).sum(axis=-1)


def uncertainty(m: Means) -> np.ndarray:
    """Return the uncertainty term of the Brier score."""
    mean = m["bin_observed"].sum(axis=-1)
    return mean * (1.0 - mean)


def roc_area(m: Means) -> np.ndarray:
    """Return the area under the curve of hit rate over false alarm rate (Mason 1982).

    The warning threshold is lowered one probability bin at a time.
    """
    hits = np.flip(m["bin_observed"], -1).cumsum(axis=-1)
    alarms = np.flip(m["bin_share"] - m["bin_observed"], -1).cumsum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        h, f = hits / hits[..., -1:], alarms / alarms[..., -1:]
    start = np.zeros((*h.shape[:-1], 1))
    h, f = np.concatenate([start, h], -1), np.concatenate([start, f], -1)
    return 0.5 * ((h[..., 1:] + h[..., :-1]) * np.diff(f, axis=-1)).sum(axis=-1)


def brier_skill(m: Means) -> np.ndarray:
    """Return the Brier skill score against the observed frequency."""
    mean = m["bin_observed"].sum(axis=-1)
    return 1.0 - m["brier"] / (mean * (1.0 - mean))


def fss(m: Means) -> np.ndarray:
    """Return the fractions skill score."""
    return 1.0 - m["fractions_error"] / (m["forecast_fractions"] + m["truth_fractions"])


_NO_POWER = 1e-6  # of the sum over all waves; packing to 16 bits leaves noise of 1e-9


def blur(m: Means) -> np.ndarray:
    """Return the power of the shorter half of the waves, forecast over truth.

    Waves in which the truth has no power are left out: smooth or coarse data would give a ratio of
    rounding errors.
    """
    f, y = m["forecast_spectrum"], m["truth_spectrum"]
    waves = np.moveaxis(y, WAVE, 0)[1:]
    total = np.expand_dims(np.where(np.isfinite(waves), waves, 0.0).sum(axis=0), WAVE)
    with np.errstate(invalid="ignore"):
        there = np.isfinite(y) & (y > _NO_POWER * total)
    longest = np.argmax(
        np.where(there, np.arange(f.shape[WAVE]).reshape(-1, *(1,) * (f.ndim - WAVE - 1)), -1),
        axis=WAVE,
    )
    number = np.arange(f.shape[WAVE]).reshape(-1, *(1,) * (f.ndim - WAVE - 1))
    short = there & (number > np.expand_dims(longest, WAVE) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN where no short wave is left
        return np.where(short, f, 0.0).sum(WAVE) / np.where(short, y, 0.0).sum(WAVE)


WAVE = 3  # axis of the wavenumber in means (group, lead, region, wavenumber[, level])


# Of the contingency table: hits a, false alarms b, misses c, correct negatives d.
CONTINGENCY: dict[str, tuple[Callable[[Any, Any, Any, Any], Any], str, str]] = {
    "recall": (lambda a, b, c, d: a / (a + c), "high", "probability of detection, a/(a+c)"),
    "falsealarmrate": (lambda a, b, c, d: b / (a + b), "low", "false alarm ratio, b/(a+b)"),
    "precision": (lambda a, b, c, d: a / (a + b), "high", "success ratio, a/(a+b)"),
    "pofd": (lambda a, b, c, d: b / (b + d), "low", "probability of false detection, b/(b+d)"),
    "csi": (lambda a, b, c, d: a / (a + b + c), "high", "critical success index, a/(a+b+c)"),
    "ets": (ets, "high", "equitable threat score, (a−r)/(a+b+c−r), r = (a+b)(a+c)/n"),
    "hss": (
        lambda a, b, c, d: 2 * (a * d - b * c) / ((a + c) * (c + d) + (a + b) * (b + d)),
        "high",
        "Heidke skill score, 2(ad−bc)/((a+c)(c+d)+(a+b)(b+d))",
    ),
    "sedi": (sedi, "high", "symmetric extremal dependence index"),
    "f1score": (lambda a, b, c, d: 2 * a / (2 * a + b + c), "high", "2a/(2a+b+c)"),
    "accuracy": (lambda a, b, c, d: (a + d) / (a + b + c + d), "high", "(a+d)/n"),
    "frequencybias": (
        lambda a, b, c, d: (a + b) / (a + c),
        "one",
        "forecast over observed frequency, (a+b)/(a+c)",
    ),
    "truepositives": (lambda a, b, c, d: a, "", "share of hits, a/n"),
    "falsepositives": (lambda a, b, c, d: b, "", "share of false alarms, b/n"),
    "falsenegatives": (lambda a, b, c, d: c, "", "share of misses, c/n"),
    "truenegatives": (lambda a, b, c, d: d, "", "share of correct negatives, d/n"),
}

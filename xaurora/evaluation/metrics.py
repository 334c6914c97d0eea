"""Metrics: what is made of means of statistics. Knows nothing of torch.

=======  ==========================================================  =========================================================
name     formula                                                     note
=======  ==========================================================  =========================================================
mse      mean over init times of the area mean of (f − y)²
rmse     √mse                                                        the root is taken last, as WeatherBench2 does
mae      … of \\|f − y\\|
bias     … of f − y
acc      mean over init times of Σw f'y' / √(Σw f'² · Σw y'²)        anomalies from the climatology of the valid time, uncentred
crps     … of ∫ (F(x) − 1{y ≤ x})² dx                                from a head's parameters, or of an ensemble (fair)
=======  ==========================================================  =========================================================

Reference: Rasp et al. (2024), WeatherBench 2, J. Adv. Model. Earth Syst., doi:10.1029/2023MS004019, section 3.
"""

from __future__ import annotations

import numpy as np

from xaurora.errors import OptionError

METRICS = ("rmse", "mse", "mae", "bias", "acc", "crps")
"""Names that ``metrics=`` takes."""

STATISTIC = {
    "rmse": "squared_error",
    "mse": "squared_error",
    "mae": "absolute_error",
    "bias": "error",
    "acc": "acc",
    "crps": "crps",
}


def check(names: object) -> list[str]:
    """Resolve ``metrics=``.

    Raises
    ------
    OptionError
        Unknown metric.
    """
    if names is None:
        return list(METRICS)
    chosen = [names] if isinstance(names, str) else list(names)  # type: ignore[call-overload]
    if unknown := [n for n in chosen if n not in METRICS]:
        raise OptionError(
            f"there is no metric {unknown}; valid are {', '.join(map(repr, METRICS))}.", fix="metrics=['rmse', 'crps']"
        )
    return chosen


def from_mean(metric: str, mean: np.ndarray) -> np.ndarray:
    """A metric from the mean of its statistic."""
    return np.sqrt(mean) if metric == "rmse" else mean


def anomaly_correlation(forecast: np.ndarray, truth: np.ndarray, weights: np.ndarray, *, skipna: bool) -> np.ndarray:
    """ACC of one init time in one region; anomalies ``(..., h, w)``."""
    from xaurora.evaluation.aggregation import area_mean

    both = area_mean(forecast * truth, weights, skipna=skipna)
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / np.sqrt(
            area_mean(forecast**2, weights, skipna=skipna) * area_mean(truth**2, weights, skipna=skipna)
        )

"""Statistics: what is computed at every point, before any averaging. Knows nothing of torch.

Each takes forecast and truth of one init time and lead, ``(..., h, w)`` float64, and gives an array of the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xaurora.distributions import FAMILIES, ensemble_crps


def squared_error(forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``(f − y)²``."""
    return (forecast - truth) ** 2


def absolute_error(forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``|f − y|``."""
    return np.abs(forecast - truth)


def error(forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``f − y``."""
    return forecast - truth


def crps_of_members(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Fair CRPS of an ensemble, members along the first axis."""
    return ensemble_crps(members, truth, fair=True)


def crps_of_parameters(
    family: str, params: Mapping[str, np.ndarray], truth_m: np.ndarray, epsilon: float
) -> np.ndarray:
    """CRPS in metres from a head's parameters; NaN where the truth is."""
    y = np.where(np.isfinite(truth_m), np.maximum(truth_m, 0.0), 0.0)
    score = FAMILIES[family].crps(params, y, epsilon)
    return np.where(np.isfinite(truth_m), score, np.nan)

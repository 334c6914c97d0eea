"""Statistics: what is computed at every point, before any averaging. Knows nothing of torch.

Each takes forecast and truth of one init time and lead, ``(..., h, w)`` float64, and gives an array of the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xaurora.distributions import Family, ensemble_crps


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
    family: Family, params: Mapping[str, np.ndarray], truth: np.ndarray, *, rain: bool
) -> np.ndarray:
    """CRPS in canonical units from a head's parameters; NaN where the truth is, or the parameters are."""
    there = np.isfinite(truth)
    y = np.where(there, truth, 0.0)
    score = family.crps(params, np.maximum(y, 0.0) if rain else y)
    return np.where(there, score, np.nan)

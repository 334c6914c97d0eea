"""Boxes and their edges."""

from __future__ import annotations

import numpy as np
import pytest

from xaurora.fields.grid import regions


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [0.1, 0.25, 0.3])
def test_edges_of_boxes_are_included_however_they_are_rounded(dtype: type, step: float) -> None:
    latitude = (60.0 - step * np.arange(200)).astype(dtype)
    longitude = (step * np.arange(200)).astype(dtype)
    south, north = round(60 - 50 * step, 6), round(60 - 10 * step, 6)
    west, east = round(20 * step, 6), round(90 * step, 6)
    mask = regions.weights(latitude, longitude, {"box": (south, north, west, east)})["box"] > 0
    assert mask.any(axis=1).sum() == 41
    assert mask.any(axis=0).sum() == 71

"""Weighted quantiles of the windows of a climatology, beside xarray's."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from xaurora.evaluation import windows

Q = np.array([0.0001, 0.01, 0.5, 2 / 3, 0.99, 0.9999])


def _xarray(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    da = xr.DataArray(values, dims=("sample", "point"))
    weighted = da.weighted(xr.DataArray(weights, dims="sample"))
    return weighted.quantile(Q, dim="sample", skipna=True).values


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(0, 2**31),
    st.sampled_from(["gaussian", "rain", "ties"]),
    st.sampled_from([0.0, 0.3, 0.95]),
    st.sampled_from([np.float32, np.float64]),
)
def test_quantiles_are_xarrays(
    count: int, seed: int, kind: str, missing: float, dtype: type
) -> None:
    """Negative values, ties, zeros and holes, in both precisions, which sort differently."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 5, (count, 7)) if kind == "gaussian" else rng.gamma(0.2, 1, (count, 7))
    values = (np.round(values) - 1 if kind == "ties" else values).astype(dtype)
    values[rng.random(values.shape) < missing] = np.nan
    weights = rng.random(count) + 1e-3
    found = windows.weighted_quantile(values, weights, Q)
    # Sums of up to 70 weights in another order.
    np.testing.assert_allclose(found, _xarray(values.astype(float), weights), rtol=1e-9, atol=1e-9)


def test_infinite_values_are_left_out() -> None:
    values = np.array([[-np.inf, 1.0], [2.0, np.inf], [3.0, 4.0], [-1.0, np.nan]], np.float32)
    found = windows.weighted_quantile(values, np.ones(4), Q)
    expected = _xarray(np.where(np.isfinite(values), values, np.nan).astype(float), np.ones(4))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("points", [windows._POINTS - 1, windows._POINTS, 2 * windows._POINTS + 1])
def test_points_do_not_depend_on_each_other(points: int) -> None:
    values = np.random.default_rng(0).normal(size=(31, points)).astype(np.float32)
    weights = np.linspace(0.1, 1, 31)
    together = windows.weighted_quantile(values.reshape(31, 1, points), weights, Q)[:, 0]
    for place in (0, points - 1):
        alone = windows.weighted_quantile(values[:, [place]], weights, Q)[:, 0]
        np.testing.assert_array_equal(together[:, place], alone)
    assert together.shape == (len(Q), points)

"""Forecasts are compared at the points that all of them have."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors


@pytest.fixture(scope="module")
def region() -> xr.Dataset:
    """21 × 21 points across Greenwich."""
    ds = xaurora.synthetic(shape=(64, 128), times=12)
    ds = ds.isel(latitude=slice(8, 29)).roll(longitude=10, roll_coords=True)
    return ds.isel(longitude=slice(0, 21))


def _forecast(ds: xr.Dataset) -> xr.Dataset:
    return xaurora.persistence(ds, ["t2m", "tp"], ["6h"])


def test_a_smaller_grid_is_scored_where_both_are(
    region: xr.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    small = region.isel(latitude=slice(0, 20), longitude=slice(1, 21))
    with caplog.at_level(logging.WARNING, "xaurora"):
        scores = xaurora.compare({"model": _forecast(small), "p": _forecast(region)}, region)
    assert "20 × 20 points that all forecasts have" in caplog.text
    assert "'p' (21 × 21)" in caplog.text
    for ds in scores.values():
        assert ds.attrs["grid"] == "20 × 20"
    alone = _forecast(small).aurora.evaluate(region)
    for label in ("model", "p"):
        np.testing.assert_allclose(
            scores[label]["t2m"].sel(metric="rmse"), alone["t2m"].sel(metric="rmse"), rtol=1e-12
        )


def test_coordinates_may_differ_by_rounding_and_order(region: xr.Dataset) -> None:
    turned = region.isel(latitude=slice(None, None, -1))
    turned = turned.assign_coords(longitude=turned["longitude"].astype("f4") % 360.0)
    scores = xaurora.compare({"a": _forecast(region), "b": _forecast(turned)}, region)
    np.testing.assert_allclose(
        scores["a"]["t2m"].sel(metric="rmse"), scores["b"]["t2m"].sel(metric="rmse"), rtol=1e-6
    )


def test_other_points_are_not_compared(region: xr.Dataset) -> None:
    for other in (
        region.isel(latitude=slice(None, None, 2)),
        region.assign_coords(latitude=region["latitude"] - 1.0),
    ):
        with pytest.raises(errors.TruthError, match="differs from that of 'a'"):
            xaurora.compare({"a": _forecast(region), "b": _forecast(other)}, region)

"""Frames shifted along longitude are found, and moving weather is not taken for them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xaurora


def _shifted(ds: xr.Dataset, name: str, where: slice, columns: int) -> xr.Dataset:
    out = ds.copy(deep=True)
    out[name].values[where] = np.roll(out[name].values[where], columns, axis=-1)
    return out


@pytest.fixture(scope="module")
def world() -> xr.Dataset:
    """A month of a globe with coasts: temperature has a pattern that stays."""
    ds = xaurora.synthetic(shape=(16, 32), times=120)
    rng = np.random.default_rng(3)
    coasts = np.cumsum(rng.standard_normal((16, 32)), axis=1)
    coasts -= np.linspace(0.0, 1.0, 32) * coasts[:, -1:]
    weather = ds["t2m"].values - ds["t2m"].values.mean(axis=(0, 2), keepdims=True)
    ds["t2m"].values[:] += 5.0 * coasts - 0.7 * weather
    return ds


def _problems(ds: xr.Dataset) -> list[str]:
    return [p.message for p in ds.aurora.check(model="tiny").problems if "shifted" in p.message]


@pytest.mark.parametrize("columns", [-7, 5, 15])
def test_a_shifted_frame_is_named(world: xr.Dataset, columns: int) -> None:
    (message,) = _problems(_shifted(world, "msl", slice(50, 51), columns))
    degrees = abs(columns) * 11.25
    way = "east" if columns > 0 else "west"
    assert message.startswith(
        f"'msl' at 2020-01-13T12:00 is shifted by {degrees:.3g}° to the {way}"
    )


def test_a_shifted_second_half_is_found_in_memory_and_in_a_store(
    world: xr.Dataset, tmp_path: object
) -> None:
    """Of a store a few frames are read, of which hardly two are on both sides of the change."""
    broken = _shifted(world, "t2m", slice(60, None), 16)
    (message,) = _problems(broken)
    assert "shifted by 180°" in message
    broken.chunk(time=1).to_zarr(f"{tmp_path}/a.zarr", consolidated=False)
    stored = xr.open_zarr(f"{tmp_path}/a.zarr", chunks=None, consolidated=False)
    assert _problems(stored)


def test_moving_weather_is_no_shift(
    world: xr.Dataset, norway: xr.Dataset, europe: xr.Dataset
) -> None:
    assert _problems(world) == []
    for seed in range(3):
        assert _problems(xaurora.synthetic(shape=(16, 32), times=60, seed=seed)) == []
    for real in (norway, europe):
        assert _problems(real) == []
    north = world.isel(latitude=slice(0, 8), longitude=slice(0, 20))
    assert _problems(north) == []

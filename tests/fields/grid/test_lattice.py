"""Order, wrap, the global patch lattice, halo, weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xaurora import errors
from xaurora.fields.grid import lattice as grid
from xaurora.fields.grid import patches
from xaurora.fields.grid.weights import latitude_weights


def _axis(start: float, step: float, count: int) -> np.ndarray:
    return start + np.arange(count) * step


@given(
    st.sampled_from([0.1, 0.25, 0.4, 1.0, 1.5, 2.5]),
    st.integers(-400, 400),
    st.integers(4, 30),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["as it runs", "0-360", "180"]),
)
def test_a_region_has_the_same_place_however_it_is_written(
    step: float, first: int, count: int, flip: bool, single: bool, convention: str
) -> None:
    lon = first * step + np.arange(count) * step
    there = {"as it runs": lon, "0-360": lon % 360, "180": (lon + 180) % 360 - 180}[convention]
    lat = _axis(90.0 - 20 * step, -step, 8)
    if flip:
        there, lat = there[::-1], lat[::-1]
    if single:
        there, lat = there.astype("float32"), lat.astype("float32")
    found = grid.from_axes(lat, there)
    assert (np.diff(found.latitude) < 0).all()
    assert (np.diff(found.longitude) > 0).all()
    assert not found.wraps
    assert found.first_row == 20
    assert found.first_column == first % round(360 / step)
    np.testing.assert_allclose(
        np.cos(np.deg2rad(found.longitude)), np.cos(np.deg2rad(lon)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("rows", "columns", "step"),
    [(721, 1440, 0.25), (720, 1440, 0.25), (451, 900, 0.4), (181, 360, 1.0)],
)
def test_a_globe_wraps_and_starts_at_greenwich(rows: int, columns: int, step: float) -> None:
    lat, lon = _axis(90, -step, rows), _axis(-180, step, columns)
    found = grid.from_axes(lat, lon.astype("float32"))
    assert found.wraps
    assert found.longitude[0] == 0.0
    assert found.first_row == found.first_column == 0
    crop = patches.crop_to_patches(found)
    assert crop.grid.shape == (rows // 4 * 4, columns)
    assert crop.left_out.startswith(f"{rows % 4} row" if rows % 4 else "")


def test_0_4_degrees_drops_three_rows() -> None:
    crop = patches.crop_to_patches(grid.from_axes(_axis(90, -0.4, 451), _axis(0, 0.4, 900)))
    assert crop.left_out == "3 row(s): -89.2°N, -89.6°N, -90°N"


def test_half_cells_lie_on_the_lattice() -> None:
    found = grid.from_axes(90 - (np.arange(32) + 0.5) * 180 / 32, np.arange(64) * 360 / 64)
    assert (found.first_row, found.first_column, found.wraps) == (0, 0, True)


def test_a_region_is_cut_along_the_global_patches() -> None:
    found = grid.from_axes(_axis(69.75, -0.25, 61), _axis(-7.25, 0.25, 61))
    crop = patches.crop_to_patches(found)
    assert crop.grid.latitude[0] == 69.0  # row 84 from the pole
    assert crop.grid.longitude[0] == -7.0  # column 1412
    assert crop.grid.first_row % 4 == crop.grid.first_column % 4 == 0
    assert crop.grid.crosses_greenwich


def test_both_ends_of_the_circle() -> None:
    with pytest.raises(errors.CoordinateError, match="0 and 360 are the same meridian") as error:
        grid.from_axes(_axis(60, -1, 30), np.arange(361.0))
    assert "isel(longitude=np.delete(np.arange(361), [0]))" in error.value.fix
    with pytest.raises(errors.CoordinateError, match="same meridian"):
        grid.from_axes(_axis(60, -1, 30), np.arange(-180.0, 181.0))


@pytest.mark.parametrize(
    ("lat", "lon", "kind", "match"),
    [
        (np.array([50.0, 49.0, 49.0, 48.0]), np.arange(4.0), errors.CoordinateError, "twice"),
        (np.array([50.0, 49.0, 45.0, 44.0]), np.arange(4.0), errors.GridError, "not evenly spaced"),
        (np.array([50.0, 49.0, np.nan]), np.arange(4.0), errors.CoordinateError, "not finite"),
        (
            np.array([95.0, 94.0, 93.0]),
            np.arange(4.0),
            errors.CoordinateError,
            "latitude runs from",
        ),
        (np.array([50.0]), np.arange(4.0), errors.GridError, "needs at least"),
        (np.arange(20.0), np.array([0.0, 1, 2, 7, 8, 9]), errors.GridError, "not evenly spaced"),
    ],
)
def test_bad_axes(lat: np.ndarray, lon: np.ndarray, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        grid.from_axes(lat, lon)


def test_too_small_and_untileable() -> None:
    with pytest.raises(errors.RegionError, match="needs at least 12 × 12"):
        patches.crop_to_patches(grid.from_axes(_axis(50, -0.25, 12), _axis(0.25, 0.25, 12)))
    with pytest.raises(errors.GridError, match="not a multiple of the patch size"):
        patches.crop_to_patches(
            grid.from_axes(_axis(89, -2, 90), np.arange(0, 360, 360 / 90.0)), patch_size=4
        )


def test_halo_leaves_poles_and_the_wrap_alone() -> None:
    globe = grid.from_axes(_axis(90, -1.0, 180), np.arange(360.0))
    assert patches.trim(globe, 8) == (slice(0, 180), slice(0, 360))
    arctic = grid.from_axes(_axis(90, -1.0, 40), np.arange(360.0))
    assert patches.trim(arctic, 8) == (slice(0, 32), slice(0, 360))
    region = grid.from_axes(_axis(60, -1.0, 40), _axis(0, 1.0, 40))
    assert patches.trim(region, 8) == (slice(8, 32), slice(8, 32))
    with pytest.raises(errors.RegionError, match="leaves nothing"):
        patches.trim(region, 20)


def test_weights_of_a_globe_reach_the_poles_and_those_of_a_region_do_not() -> None:
    lat = _axis(90, -30.0, 7)
    expected = np.diff(np.sin(np.deg2rad([-90, -75, -45, -15, 15, 45, 75, 90])))
    np.testing.assert_allclose(latitude_weights(lat), expected / expected.mean())
    dropped = np.diff(np.sin(np.deg2rad([-90, -45, -15, 15, 45, 75, 90])))[::-1]  # 720 rows of 721
    np.testing.assert_allclose(latitude_weights(lat[lat > -90]), dropped / dropped.mean())
    region = np.array([60.0, 50.0, 40.0])
    w = np.diff(np.sin(np.deg2rad([35, 45, 55, 65])))[::-1]
    np.testing.assert_allclose(latitude_weights(region), w / w.mean())
    np.testing.assert_allclose(latitude_weights(region[::-1]), (w / w.mean())[::-1])

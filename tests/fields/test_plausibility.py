"""Values that do not occur on Earth, wherever in the data they stand, and no false alarm."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typed_fixes
import xarray as xr

import xaurora
from xaurora import errors
from xaurora.fields import conventions, plausibility
from xaurora.fields.variables import TABLE

QUICK: dict[str, Any] = {"model": "tiny", "steps": 3, "validations": 1, "progress": False}


def _late(ds: xr.Dataset, change: Callable[[xr.Dataset, int], None], *, first: int) -> xr.Dataset:
    """Return a copy with a fault in all frames from ``first`` on."""
    out = ds.copy(deep=True)
    for i in range(first, ds.sizes["time"]):
        change(out, i)
    return out


def _celsius(ds: xr.Dataset, i: int) -> None:
    ds["t2m"].values[i] -= 273.15


def _no_pressure(ds: xr.Dataset, i: int) -> None:
    ds["msl"].values[i] = 0.0


def _patch(ds: xr.Dataset, i: int) -> None:
    ds["u10"].values[i, 3:5, 7:9] = -9999.0


def _every_second(ds: xr.Dataset, i: int) -> None:
    if i % 2:
        ds["v"].values[i] = 0.0


def _one_level(ds: xr.Dataset, i: int) -> None:
    ds["t"].values[i, 1] = 0.0


FAULTS = {
    "degrees Celsius in the second half": (_celsius, "'t2m'"),
    "no pressure": (_no_pressure, "'msl'"),
    "patches of -9999": (_patch, "'u10' is -9999"),
    "every second frame is zero": (_every_second, "'v'"),
    "one level is zero": (_one_level, "is 0 K at every point"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_late_fault_is_found_by_check(fields: xr.Dataset, tmp_path: Path, name: str) -> None:
    """In data in memory, and in a store of which a few frames are read."""
    change, words = FAULTS[name]
    broken = _late(fields, change, first=fields.sizes["time"] // 2)
    report = broken.aurora.check("tp", model="tiny")
    assert any(words in p.message for p in report.problems), report
    broken.chunk(time=1).to_zarr(tmp_path / "a.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False)
    report = stored.aurora.check("tp", model="tiny")
    assert any(words in p.message for p in report.problems), report


@pytest.mark.parametrize("name", FAULTS)
def test_a_late_fault_is_skipped_in_training_and_said_in_a_forecast(
    fields: xr.Dataset, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, words = FAULTS[name]
    broken = _late(fields, change, first=fields.sizes["time"] - 6)
    part = {"train": ("2020-01-01", "2020-01-08"), "validation": ("2020-01-09", None)}
    with caplog.at_level(logging.WARNING, "xaurora"):
        broken.aurora.finetune("tp", out=tmp_path / "run", **QUICK, **part)
    assert words in caplog.text
    assert "is skipped" in caplog.text
    with pytest.raises(errors.ImplausibleValuesError, match=words[:5]):
        broken.aurora.finetune("tp", out=tmp_path / "strict", strict=True, **QUICK, **part)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "xaurora"):
        broken.aurora.predict("6h", model="tiny", time=broken["time"].values[-2], progress=False)
    assert words in caplog.text


def test_the_message_says_where_and_when(fields: xr.Dataset) -> None:
    broken = fields.copy(deep=True)
    broken["msl"].values[30, 4, 5] = -32767.0
    (problem,) = broken.aurora.check(model="tiny").problems
    lat, lon = float(fields["latitude"][4]), float(fields["longitude"][5])
    when = np.datetime_as_string(fields["time"].values[30], unit="m")
    assert f"-3.277e+04 Pa at {lat:.2f}°N {lon:.2f}°E at {when}" in problem.message
    assert "1 of 512 values" in problem.message
    fixed = broken.copy()
    fixed["msl"].attrs["xaurora_values_checked"] = 1
    assert fixed.aurora.check(model="tiny").ok


def test_a_frame_that_is_repeated(fields: xr.Dataset) -> None:
    broken = fields.copy(deep=True)
    broken["t2m"].values[21] = broken["t2m"].values[20]
    (problem,) = broken.aurora.check(model="tiny").problems
    assert "'t2m' is the same at 2020-01-06T00:00 and at 2020-01-06T06:00" in problem.message


def test_a_constant_field_of_few_columns() -> None:
    ds = xaurora.synthetic(shape=(16, 32), times=4).isel(latitude=slice(12), longitude=slice(12))
    ds["t2m"].values[2] = 280.0
    (problem,) = ds.aurora.check(model="tiny").problems
    assert "280 K at every point at 2020-01-01T12:00" in problem.message


def test_of_large_fields_some_points_tell_units_and_repeats() -> None:
    ds = xaurora.synthetic(shape=(240, 480), times=4, levels=(850.0,))
    assert ds.aurora.check(model="tiny").ok
    warm = ds.copy(deep=True)
    warm["t"].values[2] -= 273.15
    (problem,) = warm.aurora.check(model="tiny").problems
    assert problem.code == "units"
    ds["u"].values[3] = ds["u"].values[1]
    (problem,) = ds.aurora.check(model="tiny").problems
    assert "is the same at" in problem.message


def test_large_fields_are_looked_at_in_turn() -> None:
    """A single wrong row of a large field is found within sixteen frames."""
    ds = xaurora.synthetic(shape=(64, 128), times=20)
    fields = conventions.standardise(ds)
    item = fields.layout.fields["surface", "2t"]
    found = 0
    for i in range(16):
        frame = fields.surface["2t"].values[i].copy()
        frame[33, 5] = 0.0
        try:
            plausibility.check_frame(frame, item, fields, fields.times[i])
        except errors.ImplausibleValuesError:
            found += 1
    assert found == 1


@pytest.mark.parametrize("value", [-9999.0, -1e-3, -32767.0])
def test_negative_totals_are_no_dry_days(
    fields: xr.Dataset, tmp_path: Path, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    """An undecoded fill value in many frames ends the run; in one it is left out and named."""
    many = fields.copy(deep=True)
    many["tp"].values[1::2, 2:4, 3:5] = value
    with pytest.raises(errors.ImplausibleValuesError, match=r"'tp' is -.* mm in 6 h at .*°N"):
        many.aurora.finetune("tp", out=tmp_path / "many", **QUICK)
    one = fields.copy(deep=True)
    one["tp"].values[5, 2, 3] = value
    with caplog.at_level(logging.WARNING, "xaurora"):
        one.aurora.finetune("tp", out=tmp_path / "one", **QUICK)
    assert "'tp' is -" in caplog.text
    fc = fields.aurora.predict("6h", model="tiny", time=fields["time"].values[4], progress=False)
    rain = fields["tp"].isel(time=[5]).values[None]
    fc = fc.assign(tp=(fc["t2m"].dims, rain, fields["tp"].attrs))
    with pytest.raises(errors.UnitsError, match=r"minimum of 'tp' of the truth is -") as error:
        fc.aurora.evaluate(one)
    assert "truth['tp'].where(truth['tp'] >= 0)" in error.value.fix
    masked = one.assign(tp=one["tp"].where(one["tp"] >= 0))
    assert np.isfinite(fc.aurora.evaluate(masked, skipna=True)["tp"].sel(metric="rmse")).all()


def test_packing_noise_is_no_fault(fields: xr.Dataset, tmp_path: Path) -> None:
    noisy = fields.copy(deep=True)
    noisy["tp"].values[noisy["tp"].values == 0] = -3e-7
    assert noisy.aurora.check("tp", model="tiny").ok
    noisy.aurora.finetune("tp", out=tmp_path / "run", **QUICK)


def test_an_implausible_truth_is_said_once_in_scores(
    fields: xr.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    broken = fields.copy(deep=True)
    broken["t2m"].values[10:20, 3, 3] = -9999.0
    fc = xaurora.persistence(fields, ["t2m"], ["6h", "12h"])
    with caplog.at_level(logging.WARNING, "xaurora"):
        fc.aurora.evaluate(broken)
    lines = [r.message for r in caplog.records if "of the truth lies between -9999" in r.message]
    assert len(lines) == 1
    assert "2020-01-03T" in lines[0]


def test_real_data_are_plausible(norway: xr.Dataset, europe: xr.Dataset) -> None:
    for ds in (norway, europe):
        found = [p for p in ds.aurora.check().problems if p.code in ("implausible_values", "units")]
        assert not found


@pytest.mark.parametrize("level", [1, 10, 50, 200, 500, 850, 1000])
def test_heights_on_record_are_plausible(level: int) -> None:
    """Ranges of geopotential height in ERA5, in metres, rounded outwards."""
    records = {
        1: (43_500, 50_500),
        10: (27_400, 32_700),
        50: (18_200, 21_400),
        200: (10_300, 12_900),
        500: (4_550, 6_050),
        850: (700, 1_720),
        1000: (-900, 450),
    }
    z = next(v for v in TABLE if (v.kind, v.name) == ("atmos", "z"))
    limits = plausibility.extremes_of(z, (float(level),))
    assert limits is not None
    low, high = (9.80665 * v for v in records[level])
    assert limits[0][0] <= low
    assert high <= limits[1][0]


# Climates near the ends of what occurs: t2m in K, its spread, sea level pressure in Pa, wind in
# m s-1, specific humidity at 1000 hPa in kg kg-1, geopotential of the surface in m2 s-2, rain in m
# over six hours where it rains and the share of points where it does. Values are of ERA5 in such
# places (Hersbach et al. 2020, doi:10.1002/qj.3803, and the WMO's archive of extremes).
CLIMATES: dict[str, tuple[float, ...]] = {
    "polar night over Antarctica": (205.0, 7.0, 101_000.0, 8.0, 5e-6, 3.2e4, 5e-5, 0.02),
    "Siberian winter": (228.0, 8.0, 106_500.0, 2.0, 1e-4, 3e3, 1e-4, 0.05),
    "Tibetan plateau": (270.0, 10.0, 101_500.0, 6.0, 2e-3, 5.0e4, 5e-4, 0.1),
    "tropical ocean": (301.0, 1.5, 100_900.0, 5.0, 0.019, 0.0, 2e-2, 0.7),
    "monsoon with cloudbursts": (299.0, 2.0, 99_800.0, 8.0, 0.02, 2e3, 3e-2, 0.9),
    "typhoon": (299.0, 2.0, 93_000.0, 25.0, 0.02, 0.0, 3e-2, 0.9),
    "desert in summer": (316.0, 5.0, 100_500.0, 4.0, 4e-3, 4e3, 1e-4, 0.005),
    "storm over the ocean": (280.0, 4.0, 95_500.0, 22.0, 6e-3, 0.0, 4e-3, 0.6),
}


@pytest.mark.parametrize("climate", CLIMATES)
def test_climates_at_the_ends_of_what_occurs_give_no_alarm(climate: str) -> None:
    warm, spread, pressure, wind, humid, surface, rain, wet = CLIMATES[climate]
    rng = np.random.default_rng(0)
    ds = xaurora.synthetic(shape=(16, 32), times=6).isel(
        latitude=slice(0, 12), longitude=slice(0, 16)
    )
    ds = ds.assign_coords(
        latitude=("latitude", 40 - np.arange(12.0), ds["latitude"].attrs),
        longitude=("longitude", 90 + np.arange(16.0), ds["longitude"].attrs),
    )

    def noise(name: str) -> np.ndarray:
        return rng.standard_normal(ds[name].shape)

    lapse = np.array([-45.0, -25.0, -12.0])[:, None, None]  # K, from 2 m to 500, 700, 850 hPa
    dry = np.array([0.02, 0.2, 0.6])[:, None, None]  # of the humidity at 1000 hPa
    values = {
        "t2m": warm + spread * noise("t2m"),
        "msl": pressure + 800 * noise("msl"),
        "u10": wind * noise("u10"),
        "v10": wind * noise("v10"),
        "t": np.maximum(warm + lapse, 205.0) + 3 * noise("t"),
        "q": np.maximum(humid * dry * np.exp(0.5 * noise("q")), 1e-7),
        "u": 2 * wind * noise("u"),
        "v": 2 * wind * noise("v"),
        "geopotential_at_surface": surface + 100 * noise("geopotential_at_surface"),
        "tp": np.where(rng.random(ds["tp"].shape) < wet, rain * noise("tp") ** 2 / 2, 0.0),
    }
    ds = ds.assign({n: ds[n].copy(data=v.astype(np.float32)) for n, v in values.items()})
    report = ds.aurora.check("tp", model="tiny")
    assert report.ok, report


@pytest.mark.parametrize(("name", "wrong"), [("swvl1", -0.4), ("stl1", 90.0)])
def test_a_mask_keeps_the_zeros_of_points_without_soil(name: str, wrong: float) -> None:
    ds = xaurora.synthetic(shape=(8, 16), times=6, model="v1.5")
    ds[name].values[:, 1] = 0.0
    ds[name].values[3, 2, :3] = wrong
    (problem,) = ds.aurora.check(model="tiny-v1.5").problems
    assert problem.code == "implausible_values"
    fix = typed_fixes.find(problem.fix, ())[0]
    masked = fix.apply(ds)[name]
    assert masked.isnull().sum() == 3
    assert bool((masked[:, 1] == 0).all())

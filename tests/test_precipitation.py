"""Six-hour totals."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xaurora
from xaurora import errors, precipitation


def _rain(hours: int, step: int = 1, **attrs: str) -> xr.DataArray:
    time = np.datetime64("2020-01-01T00", "ns") + np.arange(hours) * np.timedelta64(step, "h")
    values = np.random.default_rng(0).random((hours, 2, 3)).astype("float32") * 1e-3
    return xr.DataArray(
        values, dims=("time", "latitude", "longitude"), coords={"time": time}, name="tp", attrs={"units": "m", **attrs}
    )


def test_europe_equals_a_hand_made_sum(europe: xr.Dataset) -> None:
    totals = europe.aurora.accumulate("tp", "6h")
    hourly = europe["tp"].values
    assert np.isnan(totals.values[:5]).all()
    for t in (5, 12, 23):  # hours t−5 … t
        np.testing.assert_allclose(totals.values[t], sum(hourly[t - k] for k in range(6)), rtol=1e-7)
    assert totals.attrs["cell_methods"] == "time: sum (interval: 6 hours)"
    assert totals.attrs["units"] == "m"


def test_a_gap_is_not_bridged() -> None:
    rain = _rain(24).isel(time=[i for i in range(24) if i != 10])
    totals = precipitation.accumulate(rain, 6)
    missing = np.isnan(totals.values).all(axis=(1, 2))
    hours = (totals["time"].dt.hour).values
    assert set(hours[missing]) == {0, 1, 2, 3, 4, 11, 12, 13, 14, 15}


@given(st.sampled_from([1, 2, 3, 6, 12, 24]))
def test_any_multiple(hours: int) -> None:
    rain = _rain(30)
    totals = precipitation.accumulate(rain, hours)
    np.testing.assert_allclose(totals.values[29], rain.values[30 - hours :].sum(axis=0, dtype="float64"), rtol=1e-6)


def test_three_hourly_totals_that_say_so() -> None:
    rain = _rain(10, 3, cell_methods="time: sum (interval: 3 hours)")
    np.testing.assert_allclose(precipitation.accumulate(rain, 6).values[4], rain.values[3:5].sum(axis=0), rtol=1e-6)


def test_what_cannot_be_accumulated() -> None:
    with pytest.raises(errors.AccumulationError, match="1-hour totals") as error:
        precipitation.accumulate(_rain(8, 6), 6)
    assert "cell_methods" in error.value.fix
    with pytest.raises(errors.AccumulationError, match="24-hour totals, of which no 6-hour"):
        precipitation.accumulate(_rain(8, 24, cell_methods="time: sum (interval: 24 hours)"), 6)
    with pytest.raises(errors.AccumulationError, match="the hours between are missing"):
        precipitation.accumulate(_rain(8, 6, cell_methods="time: sum (interval: 1 hour)"), 6)
    assert precipitation.accumulate(_rain(8, 6).rename("total_precipitation_6hr"), 6).notnull().all()


def test_one_hour_totals_at_six_hour_spacing_are_refused_everywhere(fields: xr.Dataset, tmp_path) -> None:
    ds = fields.copy()
    ds["tp"] = fields["tp"].copy()
    del ds["tp"].attrs["cell_methods"]
    assert [p.code for p in ds.aurora.check("tp").problems] == ["accumulation"]
    assert [p.code for p in ds.aurora.check().problems] == ["accumulation"]
    out = tmp_path / "run"
    with pytest.raises(errors.AccumulationError, match="1-hour totals"):
        ds.aurora.finetune("tp", model="tiny", out=out, progress=False)
    assert not out.exists()
    with pytest.raises(errors.AccumulationError, match="1-hour totals"):
        ds.aurora.accumulate("tp")
    ds["tp"].attrs["cell_methods"] = "time: sum (interval: 6 hours)"
    assert ds.aurora.check("tp").ok


def test_yukon_grib_equals_netcdf(data) -> None:
    pytest.importorskip("cfgrib", reason="cfgrib is not installed")
    folder = data / "era5_yukon_2023-01"
    grib, flat = xaurora.open(folder / "surface.grib"), xaurora.open(folder / "accumulated.nc")
    a = grib.aurora.accumulate("tp").transpose("time", "latitude", "longitude")
    b = flat.aurora.accumulate("tp").transpose("valid_time", "latitude", "longitude")
    np.testing.assert_array_equal(
        grib["tp"].transpose("time", "latitude", "longitude").values,
        flat["tp"].transpose("valid_time", "latitude", "longitude").values,
    )
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a["time"].values, b["valid_time"].values)


def test_negative_noise_is_clipped() -> None:
    rain = _rain(12) - 5e-4
    totals = precipitation.target_totals(rain.assign_attrs(units="m"), name="tp")
    assert float(totals.min()) == 0.0


def test_accumulate_wants_rain(fields: xr.Dataset) -> None:
    with pytest.raises(errors.MissingVariableError, match="not an accumulated variable"):
        fields.aurora.accumulate("t2m")
    with pytest.raises(errors.MissingVariableError, match="'rain' is not in the data"):
        fields.aurora.accumulate("rain")
    with pytest.raises(errors.LeadTimeError, match="no positive whole number of hours"):
        fields.aurora.accumulate("tp", "soon")

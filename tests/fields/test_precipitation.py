"""Six-hour totals."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xaurora
from xaurora import errors
from xaurora.fields import precipitation


def _rain(hours: int, step: int = 1, **attrs: str) -> xr.DataArray:
    time = np.datetime64("2020-01-01T00", "ns") + np.arange(hours) * np.timedelta64(step, "h")
    values = np.random.default_rng(0).random((hours, 2, 3)).astype("float32") * 1e-3
    return xr.DataArray(
        values,
        dims=("time", "latitude", "longitude"),
        coords={"time": time},
        name="tp",
        attrs={"units": "m", **attrs},
    )


def test_europe_equals_a_hand_made_sum(europe: xr.Dataset) -> None:
    totals = europe.aurora.accumulate("tp", "6h")
    hourly = europe["tp"].values
    assert np.isnan(totals.values[:5]).all()
    for t in (5, 12, 23):  # hours t−5 … t
        np.testing.assert_allclose(
            totals.values[t], sum(hourly[t - k] for k in range(6)), rtol=1e-7
        )
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
    np.testing.assert_allclose(
        totals.values[29], rain.values[30 - hours :].sum(axis=0, dtype="float64"), rtol=1e-6
    )


def test_three_hourly_totals_that_say_so() -> None:
    rain = _rain(10, 3, cell_methods="time: sum (interval: 3 hours)")
    np.testing.assert_allclose(
        precipitation.accumulate(rain, 6).values[4], rain.values[3:5].sum(axis=0), rtol=1e-6
    )


def test_what_cannot_be_accumulated() -> None:
    with pytest.raises(errors.AccumulationError, match="1-hour totals") as error:
        precipitation.accumulate(_rain(8, 6), 6)
    assert "cell_methods" in error.value.fix
    with pytest.raises(
        errors.AccumulationError, match="24-hour totals, from which 6-hour totals cannot"
    ):
        precipitation.accumulate(_rain(8, 24, cell_methods="time: sum (interval: 24 hours)"), 6)
    with pytest.raises(errors.AccumulationError, match="the hours between are missing"):
        precipitation.accumulate(_rain(8, 6, cell_methods="time: sum (interval: 1 hour)"), 6)
    assert (
        precipitation.accumulate(_rain(8, 6).rename("total_precipitation_6hr"), 6).notnull().all()
    )


def test_one_hour_totals_at_six_hour_spacing_are_refused_everywhere(
    fields: xr.Dataset, tmp_path
) -> None:
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
    first = slice(80)  # reading GRIB is slow, and summing reads every hour six times
    grib, flat = grib[["tp"]].isel(time=first).load(), flat.isel(valid_time=first)
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
    totals = precipitation.accumulate(rain.assign_attrs(units="m"), 6, name="tp", clip=True)
    np.testing.assert_allclose(
        totals.values[5], rain.values[:6].clip(min=0.0).sum(axis=0), rtol=1e-6
    )
    assert float(precipitation.accumulate(rain.assign_attrs(units="m"), 6, name="tp").min()) < 0.0


def test_accumulate_wants_rain(fields: xr.Dataset) -> None:
    with pytest.raises(errors.MissingVariableError, match="not an accumulated variable"):
        fields.aurora.accumulate("t2m")
    with pytest.raises(errors.MissingVariableError, match="'rain' is not in the data"):
        fields.aurora.accumulate("rain")
    with pytest.raises(errors.LeadTimeError, match="not a positive whole number of hours"):
        fields.aurora.accumulate("tp", "soon")


def _globe(tp: np.ndarray, **attrs: str) -> xr.Dataset:
    """Hourly amounts on a small grid, as a Dataset."""
    time = np.datetime64("2020-01-01T01", "ns") + np.arange(len(tp)) * np.timedelta64(1, "h")
    coords = {
        "time": time,
        "latitude": ("latitude", np.arange(50.0, 46.0, -1.0), {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(5.0), {"units": "degrees_east"}),
    }
    return xr.Dataset(
        {"tp": (("time", "latitude", "longitude"), tp, {"units": "m", **attrs})}, coords
    )


def _hourly(hours: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(rng.random((hours, 4, 5)) < 0.4, rng.gamma(0.5, 2e-3, (hours, 4, 5)), 0.0)


@pytest.mark.parametrize(("every", "start"), [(24, 0), (12, 6)])
def test_running_totals_are_taken_apart(every: int, start: int) -> None:
    """ERA5-Land runs on from 00 UTC for a day, whose last value stands at 00 UTC of the next; MARS
    forecasts from 06 and 18.
    """
    hourly = _hourly(72)
    running = np.zeros_like(hourly)
    for i in range(72):
        hour = i + 1  # of the label, 01 UTC first
        fresh = (hour - 1 - start) % every == 0
        running[i] = hourly[i] + (0.0 if fresh or i == 0 else running[i - 1])
    ds = _globe(running)
    got = ds.aurora.deaccumulate("tp", every=f"{every}h", start=start)
    first = 0 if start == 0 else 6  # before it the base time is not there
    known = np.isfinite(got.values).all(axis=(1, 2))
    assert known[first:].all()
    np.testing.assert_allclose(got.values[first:], hourly[first:], atol=1e-12)
    assert got.attrs["cell_methods"] == "time: sum (interval: 1 hour)"
    totals = ds.assign(tp=got).aurora.accumulate("tp", "6h")
    np.testing.assert_allclose(totals.values[17], hourly[12:18].sum(axis=0), rtol=1e-6)
    with pytest.raises(errors.AccumulationError, match="which is not a base time"):
        ds.aurora.deaccumulate("tp", every=f"{every}h", start=(start + 3) % every)


def test_running_totals_with_packing_noise_and_gaps() -> None:
    hourly = _hourly(48)
    running = np.concatenate([np.cumsum(hourly[:24], 0), np.cumsum(hourly[24:], 0)])
    noisy = running + np.random.default_rng(1).uniform(-4e-6, 4e-6, running.shape)
    got = _globe(noisy).isel(time=[i for i in range(48) if i != 30]).aurora.deaccumulate("tp")
    assert float(got.min()) == 0.0
    assert np.isnan(got.sel(time="2020-01-02T08")).all(), "the hour after a gap is not known"
    with pytest.raises(errors.AccumulationError, match="do not divide the 10 hours"):
        _globe(running).isel(time=slice(0, None, 3)).aurora.deaccumulate("tp", every="10h")
    with pytest.raises(errors.MissingVariableError, match="'rain' is not in the data"):
        _globe(running).aurora.deaccumulate("rain")
    with pytest.raises(errors.AccumulationError, match="grows from hour to hour") as caught:
        precipitation.check_not_running_totals(
            _globe(np.cumsum(_hourly(60) + 2e-4, 0))["tp"], name="tp"
        )
    assert "deaccumulate" in caught.value.fix


def test_a_forecasts_running_totals() -> None:
    steps = _hourly(12).reshape(3, 4, 4, 5)
    running = np.cumsum(steps, axis=1)
    fc = xr.Dataset(
        {"tp": (("init_time", "lead_time", "latitude", "longitude"), running, {"units": "m"})},
        {
            "init_time": np.datetime64("2020-01-01", "ns") + np.arange(3) * np.timedelta64(12, "h"),
            "lead_time": (np.arange(1, 5) * np.timedelta64(6, "h")).astype("timedelta64[ns]"),
            "latitude": ("latitude", np.arange(50.0, 46.0, -1.0), {"units": "degrees_north"}),
            "longitude": ("longitude", np.arange(5.0), {"units": "degrees_east"}),
        },
    )
    got = fc.aurora.deaccumulate("tp")
    np.testing.assert_allclose(got.values, steps, atol=1e-12)
    assert got.attrs["cell_methods"] == "time: sum (interval: 6 hours)"
    day = fc.assign(tp=got).aurora.accumulate("tp", "24h")
    np.testing.assert_allclose(day.values[:, 3], running[:, 3], rtol=1e-6)
    with pytest.raises(errors.AccumulationError, match="even steps from the init time"):
        fc.isel(lead_time=[0, 2]).aurora.deaccumulate("tp")


@pytest.mark.parametrize(
    ("units", "factor"),
    [("kg m-2 s-1", 1e3 / 3600), ("mm/hr", 1e3), ("m s**-1", 1 / 3600), ("mm d-1", 24e3)],
)
def test_a_flux_becomes_an_amount_by_its_period(units: str, factor: float) -> None:
    hourly = _hourly(24)
    amount = _globe(hourly).aurora.accumulate("tp", "6h")
    flux = _globe(hourly * factor)
    flux["tp"].attrs = {"units": units, "long_name": "Mean total precipitation rate"}
    flux = flux.rename(tp="mtpr")
    got = flux.aurora.accumulate("mtpr", "6h")
    assert got.attrs["units"] == "m"
    np.testing.assert_allclose(got.values, amount.values, rtol=1e-6)
    six = flux.isel(time=slice(5, None, 6))
    with pytest.raises(errors.UnitsError, match="its averaging period is unknown"):
        six.aurora.accumulate("mtpr", "6h")
    six["mtpr"].attrs["cell_methods"] = "time: mean (interval: 6 hours)"
    np.testing.assert_allclose(
        six.aurora.accumulate("mtpr", "6h").values[0], 6 * hourly[5], rtol=1e-6
    )
    stats = flux.aurora.statistics("mtpr", weights=None, progress=False)["mtpr"]
    assert float(stats.sel(statistic="mean")) == pytest.approx(hourly.mean(), rel=1e-9)


def test_an_amount_beside_its_rate_is_what_is_taken() -> None:
    ds = _globe(_hourly(24))
    ds["mtpr"] = (ds["tp"] / 3.6).assign_attrs(units="kg m-2 s-1")
    assert ds.aurora.accumulate("tp", "6h").attrs["units"] == "m"
    assert "'mtpr', a rate, is ignored in favour of 'tp'." in str(ds.aurora.check())


def test_negative_noise_is_clipped_for_the_user_and_counted() -> None:
    tp = _hourly(24)
    tp[3:9, 0, 0] = -1e-8
    ds = _globe(tp)
    assert float(ds.aurora.accumulate("tp", "6h").min()) == 0.0
    assert int(ds.aurora.statistics("tp", progress=False)["tp"].sel(statistic="clipped")) == 6


def test_running_totals_are_refused_wherever_they_are_summed(tmp_path) -> None:
    running = np.concatenate(
        [np.cumsum(_hourly(24) * (day > 1) + 2e-4 * (day > 1), axis=0) for day in range(4)]
    )  # two dry days first
    wide = np.repeat(running, 3, axis=2)
    time = np.datetime64("2020-01-01T01", "ns") + np.arange(96) * np.timedelta64(1, "h")
    coords = {
        "time": time,
        "latitude": ("latitude", np.arange(50.0, 46.0, -1.0), {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(15.0), {"units": "degrees_east"}),
    }
    ds = xr.Dataset({"tp": (("time", "latitude", "longitude"), wide, {"units": "m"})}, coords)
    states = xr.Dataset({"t2m": ds["tp"].isel(time=slice(5, None, 6)) * 0 + 280.0})
    states["t2m"].attrs["units"] = "K"
    ds.to_netcdf(tmp_path / "tp.nc")
    states.to_netcdf(tmp_path / "t2m.nc")
    for call in (
        lambda: ds.aurora.accumulate("tp", "6h"),
        lambda: xaurora.persistence(ds, ["tp"]),
        lambda: xaurora.climatology(ds, ["tp"]),
        lambda: xaurora.open(tmp_path / "tp.nc", tmp_path / "t2m.nc"),
    ):
        with pytest.raises(errors.AccumulationError, match="grows from hour to hour"):
            call()


def test_other_periods_names_and_whole_numbers() -> None:
    hourly = _hourly(48)
    whole = _globe(np.round(hourly * 1e3).astype(np.int32))
    whole["tp"].attrs["units"] = "mm"
    got = whole.aurora.accumulate("tp", "6h")
    assert np.isnan(got.values[:5]).all()
    np.testing.assert_allclose(got.values[5], whole["tp"].values[:6].sum(axis=0))
    half = _globe(hourly, cell_methods="time: sum (interval: 30 minutes)")
    half = half.assign_coords(time=half["time"].values[0] + np.arange(48) * np.timedelta64(30, "m"))
    np.testing.assert_allclose(
        half.aurora.accumulate("tp", "6h").values[11], hourly[:12].sum(axis=0), rtol=1e-6
    )
    days = _globe(hourly, cell_methods="time: sum (interval: 1 day)").isel(time=slice(23, None, 24))
    assert (
        days.aurora.accumulate("tp", "24h").attrs["cell_methods"]
        == "time: sum (interval: 24 hours)"
    )
    named = _globe(hourly).isel(time=slice(23, None, 24)).rename(tp="total_precipitation_24hr")
    np.testing.assert_array_equal(
        named.aurora.accumulate("total_precipitation_24hr", "24h").values, hourly[23::24]
    )
    grib = (
        _globe(hourly)
        .rename(time="step_number")
        .assign_coords(valid_time=("step_number", _globe(hourly)["time"].values))
    )
    grib = grib.drop_vars("step_number").rename(step_number="time")
    np.testing.assert_allclose(
        grib.aurora.accumulate("tp", "6h").values[5], hourly[:6].sum(axis=0), rtol=1e-6
    )


def test_grib_steps_are_kept_where_the_corner_is_sea() -> None:
    from xaurora.sources import grib

    hours = np.arange(1, 13) * np.timedelta64(1, "h").astype("timedelta64[ns]")
    base = np.datetime64("2020-01-01", "ns") + np.arange(2) * np.timedelta64(12, "h")
    values = np.random.default_rng(0).random((2, 12, 4, 5))
    values[:, :, 0, 0] = np.nan
    values[1, 6:] = np.nan
    ds = xr.Dataset(
        {"tp": (("time", "step", "latitude", "longitude"), values)},
        {
            "time": base,
            "step": hours,
            "valid_time": (("time", "step"), base[:, None] + hours[None]),
        },
    )
    flat = grib._flatten_steps(ds)
    assert flat.sizes["time"] == 18
    np.testing.assert_array_equal(flat["tp"].values[:12], values[0])


def test_what_amounts_cannot_be_is_refused_and_what_they_can_is_not(europe: xr.Dataset) -> None:
    def problems(factor: float, units: str, **attrs: object) -> str:
        tp = (europe["tp"] * factor).assign_attrs({**europe["tp"].attrs, "units": units, **attrs})
        return str(
            [p.message for p in europe.assign(tp=tp).aurora.check("tp", model="tiny").problems]
        )

    assert problems(1.0, "m") == "[]"
    assert "probably in mm" in problems(1e3, "m")  # mm called metres
    assert "probably a rate" in problems(1e3 / 3600, "kg m-2")
    assert "probably a rate" in problems(1.0, "mm")  # metres called mm
    assert problems(1.0, "mm", xaurora_values_checked=1) == "[]"
    noise = np.where(np.random.default_rng(0).random((24, 41, 41)) < 0.5, 4.3e-19, 8.6e-19)
    dry = europe.assign(tp=europe["tp"].copy(data=noise.astype("float32")))
    assert dry.aurora.check("tp", model="tiny").ok, "a desert's noise of packing is no rate"
    globe = xaurora.synthetic(shape=(16, 32), times=12)
    for factor in (1e3 / 21600 * 1e-3, 20.0):
        odd = globe.assign(tp=(globe["tp"] * factor).assign_attrs(globe["tp"].attrs))
        said = str(odd.aurora.check("tp", model="tiny").problems)
        assert "its global mean" in said or "probably a rate" in said or "reaches 0.4" in said


def test_a_total_needs_all_its_hours() -> None:
    hourly = np.datetime64("2020-01-01", "ns") + np.arange(24) * np.timedelta64(1, "h")
    np.testing.assert_array_equal(precipitation.complete_times(hourly, 1), hourly[5:])
    lacking = np.delete(hourly, 12)
    expected = np.concatenate([hourly[5:12], hourly[18:]])
    np.testing.assert_array_equal(precipitation.complete_times(lacking, 1), expected)

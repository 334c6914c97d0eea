"""Regions, baselines, climatologies, and what cannot be scored. The scores themselves are in
test_scores.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xaurora
from xaurora import distributions, errors
from xaurora.evaluation import baselines, climatology
from xaurora.evaluation.compare import evaluate
from xaurora.fields.grid import regions


def _set(oracle: Path, name: str) -> dict[str, xr.Dataset]:
    return {
        f: xr.open_dataset(oracle / name / f"{f}.nc", decode_timedelta=True)
        for f in ("forecast", "truth", "climatology", "weatherbench2")
    }


def test_default_regions_of_a_globe(oracle: Path) -> None:
    case = _set(oracle, "global_deterministic")
    scores = case["forecast"].aurora.evaluate(case["truth"], metrics=["rmse"])
    assert set(map(str, scores["region"].values)) == set(
        map(str, case["weatherbench2"]["region"].values)
    )
    assert list(scores["metric"].values) == ["rmse"]


# --- by hand ---


def _small() -> tuple[xr.Dataset, xr.Dataset]:
    lat, lon = np.array([50.0, 49.0, 48.0]), np.array([10.0, 11.0])
    time = np.datetime64("2020-01-01T00", "ns") + np.arange(4) * np.timedelta64(6, "h")
    truth = xr.Dataset(
        {
            "t2m": (
                ("time", "latitude", "longitude"),
                np.arange(24.0).reshape(4, 3, 2),
                {"units": "K"},
            )
        },
        {"time": time, "latitude": lat, "longitude": lon},
    )
    forecast = xr.Dataset(
        {
            "t2m": (
                ("init_time", "lead_time", "latitude", "longitude"),
                truth["t2m"].values[1:3][:, None] + np.array([1.0, -2.0])[:, None, None, None],
                {"units": "K"},
            )
        },
        {
            "init_time": time[:2],
            "lead_time": [np.timedelta64(6, "h").astype("timedelta64[ns]")],
            "latitude": lat,
            "longitude": lon,
        },
    )
    return forecast, truth


def test_metrics_by_hand() -> None:
    forecast, truth = _small()
    scores = evaluate(forecast, truth)["t2m"].sel(region="domain").isel(lead_time=0)
    # errors are +1 everywhere at the first init time, −2 at the second
    for metric, expected in {"mse": 2.5, "rmse": np.sqrt(2.5), "mae": 1.5, "bias": -0.5}.items():
        assert float(scores.sel(metric=metric)) == pytest.approx(expected, rel=1e-12)


def test_units_orders_and_names_do_not_matter() -> None:
    forecast, truth = _small()
    celsius = truth.isel(latitude=slice(None, None, -1)).rename(
        t2m="2m_temperature", latitude="lat", longitude="lon"
    )
    celsius["2m_temperature"] = (celsius["2m_temperature"] - 273.15).assign_attrs(units="degC")
    xr.testing.assert_allclose(evaluate(forecast, celsius), evaluate(forecast, truth))
    wb2 = forecast.rename(
        init_time="time", lead_time="prediction_timedelta", t2m="2m_temperature"
    ).drop_attrs()
    again = evaluate(wb2, truth)
    np.testing.assert_allclose(
        again["2m_temperature"].values, evaluate(forecast, truth)["t2m"].values
    )


def test_missing_truth_passes_on_unless_skipped(caplog) -> None:
    forecast, truth = _small()
    holes = truth.copy(deep=True)
    holes["t2m"][1, 0, 0] = np.nan
    assert bool(evaluate(forecast, holes)["t2m"].isnull().all())
    skipped = evaluate(forecast, holes, skipna=True)["t2m"].sel(metric="mae", region="domain")
    assert float(skipped.isel(lead_time=0)) == pytest.approx(1.5)
    late = forecast.assign_coords(init_time=forecast["init_time"] + np.timedelta64(12, "h"))
    scores = evaluate(late, truth)
    assert scores.attrs["fields_scored"] == 1
    assert scores.attrs["fields_without_truth"] == 1
    assert "1 of 2 forecast fields have no truth" in caplog.text


def test_crps_from_parameters_is_in_the_forecasts_units(fields: xr.Dataset, tuned) -> None:
    forecast = fields.aurora.predict(
        "6h", model=tuned, time=fields["time"].values[30:32], progress=False
    )
    scores = forecast.aurora.evaluate(fields, regions=["global"], metrics="crps")
    y = fields["tp"].sel(time=forecast["valid_time"].values.ravel()).values.astype("float64")
    law = distributions.from_attrs(forecast["tp"].attrs)
    by_hand = law.crps(
        {p: forecast[f"tp_{p}"].values[:, 0].astype("float64") for p in law.parameters}, y
    )
    from xaurora.fields.grid.weights import latitude_weights

    w = latitude_weights(fields["latitude"].values)[:, None] * np.ones((1, 32))
    expected = (by_hand * w).sum() / w.sum() / 2
    assert float(
        scores["tp"].sel(metric="crps", region="global").isel(lead_time=0)
    ) == pytest.approx(expected, rel=1e-9)


# --- regions ---


def test_boxes_and_masks() -> None:
    lat, lon = np.arange(60.0, 29.0, -1.0), np.arange(350.0, 380.0) % 360
    found = regions.weights(
        lat,
        lon,
        {
            "alps": (44, 48, 5, 16),
            "greenwich": (40, 50, -5, 5),
            "mask": xr.DataArray(
                lat[::-1, None] > np.zeros((1, 30)) + 45,
                dims=("lat", "lon"),
                coords={"lat": lat[::-1], "lon": lon},
            ),
        },
    )
    assert (found["alps"] > 0).sum() == 5 * 12
    assert (found["greenwich"] > 0).sum() == 11 * 11
    assert (found["mask"] > 0).sum() == 15 * 30
    assert (found["mask"][:15] > 0).all()
    assert (regions.weights(lat, lon, (44, 48, 5, 16))["box"] > 0).sum() == 5 * 12
    for wanted, match in (
        (["atlantis"], "there is no region 'atlantis'"),
        ({"odd": (1, 2, 3)}, "must be a box"),
        ({"upside": (50, 40, 0, 5)}, "is not below north"),
        (["ausnz"], "contains no grid point"),
        (["domain_land"], "needs a land-sea mask"),
    ):
        with pytest.raises(errors.RegionError, match=match):
            regions.weights(lat, lon, wanted)


# --- baselines ---


def test_persistence_repeats_the_field(fields: xr.Dataset) -> None:
    forecast = xaurora.persistence(fields, ["t2m", "tp", "z"], ["6h", "24h"])
    assert forecast["z"].dims == ("init_time", "lead_time", "level", "latitude", "longitude")
    np.testing.assert_array_equal(forecast["t2m"].values[3, 1], fields["t2m"].values[3])
    scores = forecast.aurora.evaluate(fields, regions="global", metrics=["mae"])
    by_hand = np.abs(fields["t2m"].values[1:].astype(float) - fields["t2m"].values[:-1]).mean(
        axis=(0, 2)
    )
    from xaurora.fields.grid.weights import latitude_weights

    w = latitude_weights(fields["latitude"].values)
    assert float(scores["t2m"].isel(lead_time=0, metric=0, region=0)) == pytest.approx(
        (by_hand * w).sum() / w.sum(), rel=1e-6
    )


def test_persistence_of_hourly_rain(europe: xr.Dataset) -> None:
    forecast = xaurora.persistence(europe, "tp", "6h")
    assert str(forecast["init_time"].values[0])[:13] == "2020-01-01T05"
    np.testing.assert_allclose(
        forecast["tp"].values[0, 0], europe["tp"].values[:6].sum(axis=0), rtol=1e-6
    )


def test_climatology_is_a_weighted_mean(fields: xr.Dataset) -> None:
    normals = xaurora.climatology(fields, ["t2m", "t"], statistics=["mean", "std"])
    assert normals["t"].dims == ("hour", "dayofyear", "level", "latitude", "longitude")
    assert list(normals["hour"].values) == [0, 6, 12, 18]
    noon = fields["t2m"].isel(time=fields["time"].dt.hour == 12)
    days = pd.DatetimeIndex(noon["time"].values).day_of_year.to_numpy()
    weight = 1 - np.abs(days - 5) / 30  # zero at both ends of the window of 61 days
    expected = (noon.values * weight[:, None, None]).sum(axis=0) / weight.sum()
    np.testing.assert_allclose(normals["t2m"].sel(hour=12, dayofyear=5).values, expected, rtol=1e-5)
    spread = np.sqrt(
        (weight[:, None, None] * (noon.values.astype(float) - expected) ** 2).sum(axis=0)
        / weight.sum()
    )
    np.testing.assert_allclose(
        normals["t2m_std"].sel(hour=12, dayofyear=5).values, spread, rtol=1e-4
    )
    assert 366 in normals["dayofyear"].values  # the year is a circle
    assert 200 not in normals["dayofyear"].values


def _years_of_rain() -> xr.Dataset:
    """Three years, one of them a leap year, every six hours on a few points, with holes."""
    rng = np.random.default_rng(0)
    time = np.arange(
        np.datetime64("2019-01-01", "ns"), np.datetime64("2022-01-01", "ns"), np.timedelta64(6, "h")
    )
    tp = np.where(
        rng.random((len(time), 4, 5)) < 0.5, rng.gamma(0.6, 2e-3, (len(time), 4, 5)), 0.0
    ).astype(np.float32)
    tp[:, 0, 0] = 0.0  # a desert
    tp[::7, 1, 1] = np.nan
    coords = {
        "time": time,
        "latitude": ("latitude", np.arange(40.0, 44.0), {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(5.0), {"units": "degrees_east"}),
    }
    attrs = {"units": "m", "cell_methods": "time: sum (interval: 6 hours)"}
    return xr.Dataset({"tp": (("time", "latitude", "longitude"), tp, attrs)}, coords)


@pytest.mark.parametrize("units", ["m", "mm"])
def test_seeps_climatology_as_weatherbench2_makes_it(units: str) -> None:
    """Against WeatherBench2's way written out with xarray: years stacked, a 366th day, wrapped,
    rolled, weighted.
    """
    ds = _years_of_rain()
    if units == "mm":
        ds["tp"] = (ds["tp"] * 1e3).assign_attrs(ds["tp"].attrs | {"units": "mm"})
    normals = xaurora.climatology(ds, "tp", statistics=["mean", "quantile"], quantiles=[0.9])
    dry = normals["total_precipitation_6hr_seeps_dry_fraction"]
    heavy = normals["total_precipitation_6hr_seeps_threshold"]
    assert dry.dims == heavy.dims == ("hour", "dayofyear", "latitude", "longitude")
    assert heavy.attrs["units"] == "m"
    assert normals.sizes["dayofyear"] == 366
    metres = ds["tp"] * (1e-3 if units == "mm" else 1.0)
    for hour, day in ((6, 60), (18, 366), (0, 1)):
        by_year = []
        for _, one in metres.sel(time=metres["time"].dt.hour == hour).groupby("time.year"):
            year = one.assign_coords(time=one["time"].dt.dayofyear).reindex(time=np.arange(1, 367))
            if np.isnan(year.values[365]).all():
                year.values[365] = one.values[
                    -1
                ]  # a year without a 29 February repeats its last day
            by_year.append(year)
        stacked = xr.concat(by_year, "year").pad(time=30, mode="wrap")
        window = (
            stacked.isel(time=slice(day - 1, day + 60)).rename(time="window").drop_vars("window")
        )
        triangle = np.concatenate([np.linspace(0, 1, 31), np.linspace(1, 0, 31)[1:]])
        weights = xr.DataArray(triangle, dims="window").broadcast_like(
            window.isel(latitude=0, longitude=0)
        )
        at = {"hour": hour, "dayofyear": day}
        seen = window.notnull().sum(("year", "window"))
        share = (window < 1e-4).sum(("year", "window")) / seen
        np.testing.assert_allclose(
            dry.sel(at).values, share.transpose(*dry.dims[2:]).values, rtol=1e-5
        )
        wet = window.where(window >= 1e-4)
        expected = (
            wet.weighted(weights).quantile(2 / 3, dim=("year", "window")).transpose(*dry.dims[2:])
        )
        np.testing.assert_allclose(heavy.sel(at).values, expected.values, rtol=2e-5)
        assert np.isnan(heavy.sel(at).values[0, 0])  # never wet
        assert dry.sel(at).values[0, 0] == 1.0
        all_of = (
            window.weighted(weights).quantile(0.9, dim=("year", "window")).transpose(*dry.dims[2:])
        )
        factor = 1e3 if units == "mm" else 1.0
        np.testing.assert_allclose(
            normals["tp_quantile"].sel(at).values[0], factor * all_of.values, rtol=2e-5
        )
        mean = window.weighted(weights).mean(("year", "window")).transpose(*dry.dims[2:])
        np.testing.assert_allclose(normals["tp"].sel(at).values, factor * mean.values, rtol=2e-5)


def test_seeps_of_days_and_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    ds = _years_of_rain().isel(time=slice(0, 400))
    both = xaurora.climatology(ds, "tp", seeps=[6, 24], window_days=31)
    assert "total_precipitation_24hr_seeps_threshold" in both
    totals = ds["tp"].rolling(time=4).sum()
    chosen = totals.sel(
        time=(totals["time"].dt.hour == 12) & (abs(totals["time"].dt.dayofyear - 40) <= 15)
    )
    share = (chosen < 2.5e-4).sum("time") / chosen.notnull().sum("time")
    got = both["total_precipitation_24hr_seeps_dry_fraction"].sel(hour=12, dayofyear=40)
    np.testing.assert_allclose(got.values, share.values, rtol=1e-5)
    monkeypatch.setattr(climatology, "_MEMORY", 1)  # one row at a time
    # Sums of other shapes are added in another order; the results are float32.
    xr.testing.assert_allclose(
        xaurora.climatology(ds, "tp", seeps=[6, 24], window_days=31), both, rtol=1e-6
    )
    assert not [n for n in xaurora.climatology(ds, "tp", seeps=False) if "seeps" in n]


def test_a_climatology_of_daily_totals() -> None:
    ds = _years_of_rain().isel(time=slice(0, 800))
    days = ds.assign(tp=ds.aurora.accumulate("tp", "24h")).isel(time=slice(3, None, 4))
    for normals in (
        xaurora.climatology(days),
        xaurora.climatology(days, "tp", seeps=24, window_days=np.int64(61)),
    ):
        assert "total_precipitation_24hr_seeps_threshold" in normals
        assert normals["tp"].sizes["hour"] == 1
    assert list(xaurora.climatology(days, seeps=False).data_vars) == ["tp"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"window_days": 60}, "window_days=60"),
        ({"statistics": "median"}, "there is no statistic"),
        ({"statistics": "quantile", "quantiles": [1.5]}, "between 0 and 1"),
        ({"seeps": 12}, "the dry threshold is defined"),
    ],
)
def test_bad_climatologies(fields: xr.Dataset, options: dict, match: str) -> None:
    with pytest.raises(errors.OptionError, match=match):
        climatology.build(fields, ["tp"], **options)


def test_climatology_as_a_forecast_has_no_anomaly_to_correlate(fields: xr.Dataset) -> None:
    normals = xaurora.climatology(fields, ["t2m"])
    like = xaurora.persistence(fields, ["t2m"], ["6h"])
    forecast = baselines.climatology_forecast(normals, like)
    np.testing.assert_array_equal(
        forecast["t2m"].values[0, 0], normals["t2m"].sel(hour=6, dayofyear=1).values
    )
    scores = forecast.aurora.evaluate(fields, climatology=normals, regions="global")
    assert np.isnan(float(scores["t2m"].sel(metric="acc").isel(lead_time=0, region=0)))
    summer = like.assign_coords(init_time=like["init_time"] + np.timedelta64(180, "D"))
    with pytest.raises(errors.TruthError, match="has no hours or days"):
        baselines.climatology_forecast(normals, summer)


# --- what does not fit ---


def test_what_cannot_be_scored(fields: xr.Dataset, tuned) -> None:
    forecast = fields.aurora.predict(
        "6h", model=tuned, time=fields["time"].values[30], progress=False
    )
    for call, kind, match in (
        (
            lambda: forecast.aurora.evaluate(forecast),
            errors.KindError,
            "is a forecast",
        ),
        (
            lambda: forecast.aurora.evaluate(
                fields.assign_coords(time=fields["time"] + np.timedelta64(900, "D"))
            ),
            errors.TruthError,
            "no valid time",
        ),
        (
            lambda: forecast.aurora.evaluate(fields.isel(latitude=slice(0, 8))),
            errors.TruthError,
            "no grid points at the forecast's latitudes",
        ),
        (
            lambda: forecast.aurora.evaluate(
                fields[["lsm", "tp"]].rename(tp="colour").drop_attrs(deep=True)
            ),
            errors.TruthError,
            "share no variable",
        ),
        (
            lambda: forecast.aurora.evaluate(fields, metrics=["rsme"]),
            errors.OptionError,
            "there is no metric",
        ),
        (
            lambda: forecast.aurora.evaluate(fields, metrics=["acc"]),
            errors.OptionError,
            "acc needs a climatology",
        ),
        (
            lambda: forecast.aurora.evaluate(fields, climatology=fields),
            errors.TruthError,
            "dims hour and dayofyear",
        ),
        (
            lambda: forecast.drop_vars("tp_shift").aurora.evaluate(fields, metrics=["crps"]),
            errors.TruthError,
            "tp_shift",
        ),
        (lambda: fields.aurora.scorecard(), errors.KindError, "expected scores with dims"),
        (lambda: xaurora.persistence(fields, "hail"), errors.MissingVariableError, "hail"),
        (
            lambda: xaurora.persistence(fields, "tp", "soon"),
            errors.LeadTimeError,
            "not a positive duration",
        ),
    ):
        with pytest.raises(kind, match=match):
            call()
    odd = forecast.copy()
    odd["tp"] = odd["tp"].assign_attrs(distribution="pareto")
    with pytest.raises(errors.TruthError, match="pareto"):
        odd.aurora.evaluate(fields)
    hourly = fields.copy()
    hourly["tp"] = fields["tp"].copy()
    hourly["tp"].attrs.pop("cell_methods")
    with pytest.raises(errors.AccumulationError, match="1-hour totals"):
        forecast.aurora.evaluate(hourly)


def test_to_weatherbench2(fields: xr.Dataset, tuned) -> None:
    forecast = fields.aurora.predict(
        "12h", model=tuned, time=fields["time"].values[30:32], progress=False
    )
    out = forecast.aurora.to_weatherbench2()
    assert {"time", "prediction_timedelta", "latitude", "longitude", "level"} == set(out.dims)
    assert out["total_precipitation_6hr"].attrs["units"] == "m"
    assert {"2m_temperature", "geopotential", "total_precipitation_6hr"} <= set(out.data_vars)
    assert (np.diff(out["latitude"]) > 0).all()
    assert "crps" not in out.aurora.evaluate(fields, regions="global")["metric"].values
    again = out.aurora.evaluate(fields, regions="global", metrics=["rmse"])
    first = forecast.aurora.evaluate(fields, regions="global", metrics=["rmse"])
    np.testing.assert_allclose(again["2m_temperature"].values, first["t2m"].values, rtol=1e-10)


def test_normals_of_the_scored_days_are_marked(
    fields: xr.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    forecast = xaurora.persistence(fields.isel(time=slice(20, 28)), ["t2m"], ["6h"])
    normals = xaurora.climatology(fields, ["t2m"])
    scores = forecast.aurora.evaluate(fields, climatology=normals)
    assert "rests on the scored times: 8 of 8 valid times" in caplog.text
    assert "rests on 1 year" in scores.attrs["xaurora_notes"]
    caplog.clear()
    without = xaurora.climatology(fields, ["t2m"], leave_out=forecast)
    assert without.attrs["climatology_left_out"] == 1
    forecast.aurora.evaluate(fields, climatology=without)
    assert "scored times" not in caplog.text
    days = np.unique(forecast["valid_time"].values.astype("datetime64[D]"))
    kept = fields.sel(time=~np.isin(fields["time"].values.astype("datetime64[D]"), days))
    by_hand = xaurora.climatology(kept, ["t2m"])
    np.testing.assert_array_equal(without["t2m"], by_hand["t2m"])
    with pytest.raises(errors.OptionError, match="leaves none of the 40 times"):
        xaurora.climatology(fields, ["t2m"], leave_out=fields["time"].values)
    with pytest.raises(errors.OptionError, match="a forecast or times"):
        xaurora.climatology(fields, ["t2m"], leave_out="scored")


def test_waves_without_power_say_nothing_about_blur() -> None:
    """A truth of two long waves, and a forecast with rounding noise beside them."""
    longitude = np.arange(64) * (360 / 64)
    waves = np.cos(np.deg2rad(longitude)) + 0.5 * np.cos(np.deg2rad(3 * longitude))
    truth = 280.0 + np.broadcast_to(waves, (5, 16, 64))
    noise = 1e-3 * np.random.default_rng(0).standard_normal(truth.shape)
    coords = {
        "time": np.datetime64("2020-01-01", "ns") + np.arange(5) * np.timedelta64(6, "h"),
        "latitude": np.linspace(80, -80, 16),
        "longitude": longitude,
    }
    dims = ("time", "latitude", "longitude")
    ds = xr.Dataset({"t2m": (dims, truth, {"units": "K"})}, coords)
    fc = xaurora.persistence(ds.assign(t2m=ds["t2m"] + noise), ["t2m"], ["6h"])
    scores = fc.aurora.evaluate(ds, metrics=["blur"], regions=["global"])
    assert float(scores["t2m"].sel(metric="blur").squeeze()) == pytest.approx(1.0, abs=0.01)

"""Scores against the figures of WeatherBench2 and WeatherBench-X, against the package ``scores``,
and by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xaurora
from xaurora import distributions, errors
from xaurora.evaluation import metrics
from xaurora.evaluation.spectra import zonal_power
from xaurora.fields.grid.weights import latitude_weights

SETS = ("global_deterministic", "global_ensemble", "regional_deterministic")
MM = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
CONVENTIONS = {"weatherbench2": "weatherbench2", "weatherbenchx": "weatherbenchx"}


def _open(oracle: Path, which: str, name: str) -> xr.Dataset:
    return xr.open_dataset(oracle / which / f"{name}.nc", decode_timedelta=True)


def _figures(oracle: Path, which: str, package: str) -> dict[tuple[str, str], xr.DataArray]:
    """(variable, metric) → figures, in the layout of this package; regions without a grid point
    left out.
    """
    ds = _open(oracle, which, package)
    out = {}
    if package == "weatherbench2":
        for name in map(str, ds.data_vars):
            for metric in map(str, ds["metric"].values):
                if ds[name].sel(metric=metric).notnull().any():
                    out[name, metric] = ds[name].sel(metric=metric, drop=True)
        return out
    there = ds["rmse.2m_temperature"].notnull().all("lead_time")
    for key in map(str, ds.data_vars):
        metric, name = key.split(".")
        da = ds[key].isel(region=np.flatnonzero(there.values))
        if "threshold_value" in da.dims:
            da = da.assign_coords(threshold_value=da["threshold_value"] * 1e3).rename(
                threshold_value="threshold_mm"
            )
            name += "_fss" if metric == "fss" else "_exceed"
        out[name, metric] = da
    return out


@pytest.mark.parametrize("package", CONVENTIONS)
@pytest.mark.parametrize("which", SETS)
def test_every_figure_of_the_oracle(oracle: Path, which: str, package: str) -> None:
    figures = _figures(oracle, which, package)
    regions = list(map(str, next(iter(figures.values()))["region"].values))
    scores = _open(oracle, which, "forecast").aurora.evaluate(
        _open(oracle, which, "truth"),
        climatology=_open(oracle, which, "climatology"),
        metrics=sorted({metric for _, metric in figures}),
        regions=regions,
        thresholds_mm=MM,
        convention=CONVENTIONS[package],
    )
    compared = 0
    for (name, metric), want in figures.items():
        got = scores[name] if name.endswith("_fss") else scores[name].sel(metric=metric)
        want = want.transpose(*got.dims)
        np.testing.assert_array_equal(got.isnull(), want.isnull(), err_msg=f"{name} {metric}")
        # Relative 1e-6; SEEPS 1e-5, because of a float32 mean in WeatherBench2. A bias, a debiased
        # Brier score and FSS pass through zero, where what is left of rounding has no relative
        # size: there 1e-6 of the largest.
        tolerance = 1e-5 if "seeps" in metric else 1e-6
        size = np.abs(want)
        if metric in ("bias", "debiased_brier_score_mm", "fss"):
            size = xr.full_like(want, float(size.max()))
        worst = float((np.abs(got - want) / size.where(size > 0, 1e-12)).max())
        assert worst < tolerance, (name, metric, worst)
        compared += int(want.notnull().sum())
    assert compared > 600


def test_the_two_packages_differ_where_they_say(oracle: Path) -> None:
    case = {
        n: _open(oracle, "global_deterministic", n) for n in ("forecast", "truth", "climatology")
    }
    one, other = (
        case["forecast"].aurora.evaluate(
            case["truth"],
            climatology=case["climatology"],
            metrics=["acc", "rmse"],
            regions=["global", "global_land"],
            convention=c,
        )
        for c in ("wb2", "WeatherBench-X")
    )
    same = one["2m_temperature"].sel(region="global", metric="rmse")
    np.testing.assert_allclose(
        same, other["2m_temperature"].sel(region="global", metric="rmse"), rtol=1e-12
    )
    for name, at in (
        ("acc", {"region": "global", "metric": "acc"}),
        ("land", {"region": "global_land", "metric": "rmse"}),
    ):
        assert not np.allclose(
            one["2m_temperature"].sel(at), other["2m_temperature"].sel(at), rtol=1e-9
        ), name
    with pytest.raises(errors.OptionError, match="values are 'weatherbench2' and 'weatherbenchx'"):
        case["forecast"].aurora.evaluate(case["truth"], convention="ecmwf")


# --- a case that can be done by hand --------------------------------------------------------------


def _case(
    values: np.ndarray,
    y: np.ndarray,
    *,
    name: str = "tp",
    lat: np.ndarray | None = None,
    **attrs: object,
) -> tuple[xr.Dataset, xr.Dataset]:
    """A forecast of one lead and its truth, mm: ``values`` are ``(init, [number,] h, w)``, ``y``
    ``(init, h, w)``.
    """
    h, w = y.shape[-2:]
    lat = (
        np.linspace(-0.5, 0.5, h) if lat is None else lat
    )  # near the equator, rows weigh the same to 1e-4
    lon = np.arange(w) * 1.0 + 10.0
    init = np.datetime64("2020-01-01T00", "ns") + np.arange(len(y)) * np.timedelta64(6, "h")
    rain = (
        {"units": "mm", "cell_methods": "time: sum (interval: 6 hours)"}
        if name == "tp"
        else {"units": "K"}
    )
    dims = (
        "init_time",
        "lead_time",
        *(("number",) if values.ndim == 4 else ()),
        "latitude",
        "longitude",
    )
    coords = {"latitude": lat, "longitude": lon}
    fc = xr.Dataset(
        {name: (dims, values[:, None], {**rain, **attrs})},
        {
            "init_time": init,
            "lead_time": [np.timedelta64(6, "h").astype("timedelta64[ns]")],
            **coords,
        },
    )
    truth = xr.Dataset(
        {name: (("time", "latitude", "longitude"), y, rain)},
        {"time": init + np.timedelta64(6, "h"), **coords},
    )
    return fc, truth


def _one(scores: xr.Dataset, name: str, **at: object) -> float:
    return float(scores[name].sel(region="domain", **at).isel(lead_time=0))


def test_the_contingency_table_by_hand() -> None:
    # 1 row of 10 equal cells: 3 hits, 2 false alarms, 1 miss, 4 correct negatives
    f = np.array([[[2, 2, 2, 2, 2, 0, 0, 0, 0, 0]]], float)
    y = np.array([[[2, 2, 2, 0, 0, 2, 0, 0, 0, 0]]], float)
    f, y = np.repeat(f, 2, axis=1), np.repeat(y, 2, axis=1)
    fc, truth = _case(f, y)
    names = [
        "pod",
        "far",
        "csi",
        "ets",
        "hss",
        "sedi",
        "f1",
        "accuracy",
        "frequency_bias",
        "pofd",
        "precision",
        "hits",
        "false_alarms",
        "misses",
        "correct_negatives",
    ]
    got = fc.aurora.evaluate(truth, metrics=names, thresholds_mm=(1.0,))
    a, b, c, d = 0.3, 0.2, 0.1, 0.4
    r = (a + b) * (a + c)
    h, x = a / (a + c), b / (b + d)
    want = {
        "pod": 0.75,
        "far": 0.4,
        "csi": 0.5,
        "ets": (a - r) / (a + b + c - r),
        "hss": 2 * (a * d - b * c) / ((a + c) * (c + d) + (a + b) * (b + d)),
        "sedi": (
            (np.log(x) - np.log(h) + np.log(1 - h) - np.log(1 - x))
            / (np.log(x) + np.log(h) + np.log(1 - h) + np.log(1 - x))
        ),
        "f1": 2 / 3,
        "accuracy": 0.7,
        "frequency_bias": 1.25,
        "pofd": 1 / 3,
        "precision": 0.6,
        "hits": a,
        "false_alarms": b,
        "misses": c,
        "correct_negatives": d,
    }
    assert want["ets"] == pytest.approx(0.25)
    assert want["hss"] == pytest.approx(0.4)
    for name, value in want.items():
        assert _one(got, "tp_exceed", metric=name, threshold_mm=1.0) == pytest.approx(
            value, rel=1e-12
        ), name


def test_seeps_by_hand() -> None:
    """Rodwell et al. (2010): with p1 = 0.5 a forecast of heavy where it is dry costs ½(1/p1 +
    3/(2+p1)) = 1.6.
    """
    f = np.array([[[0.0, 1.0, 9.0, 0.0, 9.0, 0.0]] * 2])
    y = np.array([[[0.0, 1.0, 9.0, 9.0, 0.0, 0.0]] * 2])
    fc, truth = _case(f, y)
    grid = {"latitude": fc["latitude"], "longitude": fc["longitude"]}
    p1 = np.full((2, 6), 0.5)
    p1[:, 5] = 0.9  # too dry a climate: left out
    normal = xr.Dataset(
        {
            "total_precipitation_6hr_seeps_dry_fraction": (
                ("hour", "dayofyear", "latitude", "longitude"),
                p1[None, None],
            ),
            "total_precipitation_6hr_seeps_threshold": (
                ("hour", "dayofyear", "latitude", "longitude"),
                np.full((1, 1, 2, 6), 5e-3),
                {"units": "m"},
            ),
        },
        {"hour": [6], "dayofyear": [1], **grid},
    )
    got = fc.aurora.evaluate(truth, metrics="seeps", climatology=normal)
    dry_for_heavy, heavy_for_dry = 0.5 * 4 / 0.5, 0.5 * (1 / 0.5 + 3 / 2.5)
    assert _one(got, "tp", metric="seeps") == pytest.approx(
        (dry_for_heavy + heavy_for_dry) / 5, rel=1e-12
    )


@pytest.mark.parametrize(("convention", "cost"), [("weatherbench2", 0.0), ("weatherbenchx", 4.0)])
def test_seeps_of_a_total_on_the_threshold(convention: str, cost: float) -> None:
    """In WeatherBench2 a total of just the threshold is neither dry nor light, and costs nothing;
    in WeatherBench-X it is dry. With p1 = 0.5 dry for heavy costs ½ · 4 / (1 - p1) = 4.
    """
    fc, truth = _case(np.full((1, 2, 2), 0.1), np.full((1, 2, 2), 9.0))
    grid = {"latitude": fc["latitude"], "longitude": fc["longitude"]}
    dims = ("hour", "dayofyear", "latitude", "longitude")
    normal = xr.Dataset(
        {
            "total_precipitation_6hr_seeps_dry_fraction": (dims, np.full((1, 1, 2, 2), 0.5)),
            "total_precipitation_6hr_seeps_threshold": (
                dims,
                np.full((1, 1, 2, 2), 5e-3),
                {"units": "m"},
            ),
        },
        {"hour": [6], "dayofyear": [1], **grid},
    )
    got = fc.aurora.evaluate(truth, metrics="seeps", climatology=normal, convention=convention)
    assert _one(got, "tp", metric="seeps") == pytest.approx(cost)


def test_brier_reliability_and_roc_by_hand() -> None:
    # probabilities 0, ½, 1 of more than 1 mm from two members; four cells
    members = np.array([[[0.0, 0.0, 2.0, 2.0]] * 2, [[0.0, 2.0, 2.0, 2.0]] * 2])[None]
    y = np.array([[[0.0, 2.0, 2.0, 0.0]] * 2])
    fc, truth = _case(members, y)
    got = fc.aurora.evaluate(truth, metrics="all", thresholds_mm=(1.0,))
    at = {"threshold_mm": 1.0}
    assert _one(got, "tp_exceed", metric="brier_score_mm", **at) == pytest.approx(
        (0 + 0.25 + 0 + 1) / 4
    )
    assert _one(got, "tp_exceed", metric="debiased_brier_score_mm", **at) == pytest.approx(
        (0.25 - 0.25 + 1) / 4
    )
    # bins: 0 (one cell, o=0), ½ (one, o=1), 1 (two, o=½); ō = ½
    assert _one(got, "tp_exceed", metric="brier_reliability", **at) == pytest.approx(
        0.25 * 0.25 + 0.5 * 0.25
    )
    assert _one(got, "tp_exceed", metric="brier_resolution", **at) == pytest.approx(
        0.25 * 0.25 + 0.25 * 0.25
    )
    assert _one(got, "tp_exceed", metric="brier_uncertainty", **at) == pytest.approx(0.25)
    assert _one(got, "tp_exceed", metric="brier_skill", **at) == pytest.approx(
        1 - (1.25 / 4) / 0.25
    )
    # warn at 1: hit ½, false alarm ½; at ½: 1, ½; always: 1, 1 → area ½·½·½ + ½·1 = 0.625
    assert _one(got, "tp_exceed", metric="roc_area", **at) == pytest.approx(0.625)
    observed = got["tp_reliability"].sel(region="domain", threshold_mm=1.0).isel(lead_time=0)
    assert observed.dropna("probability_bin").values.tolist() == [0.0, 1.0, 0.5] or np.allclose(
        observed.values[[0, 10, 19]], [0, 1, 0.5]
    )
    assert got["tp_bin_share"].sel(region="domain", threshold_mm=1.0).isel(lead_time=0).values[
        [0, 10, 19]
    ].tolist() == [0.25, 0.25, 0.5]


def test_ensemble_scores_by_hand() -> None:
    members = np.array([1.0, 3.0])[None, :, None, None] * np.ones((1, 2, 2, 3))
    y = np.full((1, 2, 3), 2.5)
    fc, truth = _case(members, y)
    got = fc.aurora.evaluate(truth, metrics="all")
    want = {
        "crps_skill": 1.0,
        "crps_spread": 2.0,
        "crps": 0.0,
        "crps_ensemble": 0.5,
        "mean_rmse": 0.5,
        "ensemble_mean_mse": 0.25,
        "ensemble_variance": 2.0,
        "ensemble_stddev": np.sqrt(2.0),
        "debiased_ensemble_mean_mse": 0.25 - 1.0,
        "spread_skill_ratio": np.sqrt(8.0),
        "energy_score_skill": 1.0,
        "energy_score_spread": 2.0,
        "energy_score": 0.0,
        "rmse": 0.5,
        "bias": -0.5,
    }
    for name, value in want.items():
        assert _one(got, "tp", metric=name) == pytest.approx(value, abs=1e-12), name
    assert np.isnan(_one(got, "tp", metric="unbiased_mean_rmse"))
    assert got["tp_rank_histogram"].sel(region="domain").isel(lead_time=0).values.tolist() == [
        0.0,
        1.0,
        0.0,
    ]


def test_ties_of_ranks_are_broken_evenly() -> None:
    fc, truth = _case(np.zeros((8, 4, 20, 20)), np.zeros((8, 20, 20)))
    ranks = (
        fc.aurora.evaluate(truth, metrics="rank_histogram")["tp_rank_histogram"]
        .sel(region="domain")
        .isel(lead_time=0)
    )
    np.testing.assert_allclose(ranks, 0.2, atol=0.03)  # 3200 draws: standard deviation 0.007
    again = (
        fc.aurora.evaluate(truth, metrics="rank_histogram")["tp_rank_histogram"]
        .sel(region="domain")
        .isel(lead_time=0)
    )
    np.testing.assert_array_equal(ranks, again)


def test_fss_by_hand() -> None:
    """Roberts and Lean (2008): one wet cell beside another is a miss at one grid point, and half a
    hit at three.
    """
    f, y = np.zeros((1, 9, 9)), np.zeros((1, 9, 9))
    f[0, 4, 4], y[0, 4, 5] = 5.0, 5.0
    fc, truth = _case(f, y)
    got = fc.aurora.evaluate(truth, metrics="fss", thresholds_mm=(1.0,), neighborhood_sizes=(1, 3))[
        "tp_fss"
    ]
    got = got.sel(region="domain", threshold_mm=1.0).isel(lead_time=0)
    assert float(got.sel(neighborhood_size=1)) == pytest.approx(0.0)
    # 9 of 9 cells each are 1/9 in 3 × 3; six are common, three on either side are not
    assert float(got.sel(neighborhood_size=3)) == pytest.approx(1 - 6 / 18, abs=1e-4)


def test_a_neighbourhood_that_holds_a_hole_has_no_share() -> None:
    f, y = np.zeros((1, 9, 9)), np.zeros((1, 9, 9))
    f[0, 4, 4], y[0, 4, 5], y[0, 0, 0] = 5.0, 5.0, np.nan
    fc, truth = _case(f, y)
    assert fc.aurora.evaluate(truth, metrics="fss")["tp_fss"].isnull().all()
    skipped = fc.aurora.evaluate(
        truth, metrics="fss", thresholds_mm=(1.0,), neighborhood_sizes=(3,), skipna=True
    )["tp_fss"]
    assert float(skipped.sel(region="domain").squeeze()) == pytest.approx(1 - 6 / 18, abs=1e-4)


def test_spectra_and_blur_by_hand() -> None:
    x = np.arange(16)
    row = 3.0 + 2.0 * np.cos(2 * np.pi * 2 * x / 16) + 1.0 * np.sin(2 * np.pi * 6 * x / 16)
    power = zonal_power(row[None], circle=True)[0]
    np.testing.assert_allclose(power[[0, 2, 6]], [9.0, 2.0, 0.5], rtol=1e-12)
    assert power.sum() == pytest.approx((row**2).mean(), rel=1e-12)  # Parseval
    assert (
        zonal_power(np.linspace(0, 5, 16)[None], circle=False)[0][1:].max() < 1e-25
    )  # a slope is no small scale
    lat, lon = np.linspace(-80, 80, 9), np.arange(16) * 22.5
    init = np.array(["2020-01-01T00"], "datetime64[ns]")
    y = np.broadcast_to(row, (1, 9, 16))
    smooth = np.broadcast_to(
        3.0 + 2.0 * np.cos(2 * np.pi * 2 * x / 16) + 0.5 * np.sin(2 * np.pi * 6 * x / 16),
        (1, 9, 16),
    )
    fc = xr.Dataset(
        {
            "t2m": (
                ("init_time", "lead_time", "latitude", "longitude"),
                smooth[:, None],
                {"units": "K"},
            )
        },
        {
            "init_time": init,
            "lead_time": [np.timedelta64(6, "h").astype("timedelta64[ns]")],
            "latitude": lat,
            "longitude": lon,
        },
    )
    truth = xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), y, {"units": "K"})},
        {"time": init + np.timedelta64(6, "h"), "latitude": lat, "longitude": lon},
    )
    got = fc.aurora.evaluate(truth, metrics=["blur", "spectrum"], regions=["global", "tropics"])
    assert float(got["t2m"].sel(metric="blur", region="global").squeeze()) == pytest.approx(
        0.25, rel=1e-9
    )
    spectrum = got["t2m_spectrum"].sel(region="tropics").squeeze()
    assert float(spectrum.sel(zonal_wavenumber=6)) == pytest.approx(0.125, rel=1e-9)
    assert float(
        got["t2m_truth_spectrum"].sel(region="tropics", zonal_wavenumber=6).squeeze()
    ) == pytest.approx(0.5, rel=1e-9)


def _lognormal(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[xr.Dataset, xr.Dataset]:
    """A calibrated hurdle-lognormal forecast and draws of it, mm."""
    p, mu = 0.3 + 0.5 * rng.random(shape), rng.normal(0.0, 0.5, shape)
    y = np.where(rng.random(shape) < p, np.exp(mu + 0.7 * rng.standard_normal(shape)), 0.0)
    law = distributions.HurdleLognormal()
    mean = np.asarray(law.mean({"p": p, "mu": mu, "sigma": np.full(shape, 0.7)})) * 1e3
    fc, truth = _case(mean, y, **distributions.to_attrs(law))
    for name, values in (("p", p), ("mu", mu), ("sigma", np.full(shape, 0.7))):
        fc[f"tp_{name}"] = (fc["tp"].dims, values[:, None], {"parameter_of": "tp"})
    return fc, truth


def test_a_calibrated_distribution_looks_calibrated() -> None:
    fc, truth = _lognormal((30, 20, 20), np.random.default_rng(0))
    got = fc.aurora.evaluate(
        truth,
        metrics=[
            "pit",
            "quantile_coverage",
            "quantile_score",
            "brier_reliability",
            "reliability",
            "crps",
            "intensity",
        ],
    )
    # 12,000 draws: a bin of 0.05 has a standard deviation of 0.002
    np.testing.assert_allclose(got["tp_pit"].sel(region="domain").squeeze(), 0.05, atol=0.01)
    coverage = got["tp_quantile_coverage"].sel(region="domain").squeeze()
    # With mass at zero, the truth is at or below a zero quantile more often than its level.
    assert (coverage >= coverage["forecast_quantile"] - 0.015).all()
    assert float(coverage.sel(forecast_quantile=0.95)) == pytest.approx(0.95, abs=0.01)
    assert (
        float(got["tp_exceed"].sel(metric="brier_reliability", threshold_mm=1.0).squeeze()) < 0.003
    )
    forecast, observed = (
        got[n].sel(region="domain").squeeze() for n in ("tp_intensity", "tp_truth_intensity")
    )
    assert float(forecast.sum()) == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(forecast, observed, atol=0.015)


def test_crps_of_quantiles_tends_to_that_of_the_distribution() -> None:
    fc, truth = _lognormal((4, 8, 8), np.random.default_rng(1))
    law = distributions.from_attrs(fc["tp"].attrs)
    levels = (np.arange(200) + 0.5) / 200
    params = {n: fc[f"tp_{n}"].values for n in law.parameters}
    stacked = np.stack([np.asarray(law.quantile(params, q)) * 1e3 for q in levels], axis=2)
    alone = fc[["tp"]].drop_attrs()
    alone["tp"].attrs = {"units": "mm", "cell_methods": fc["tp"].attrs["cell_methods"]}
    dims = ("init_time", "lead_time", "quantile", "latitude", "longitude")
    alone["tp_quantile"] = (dims, stacked)
    alone = alone.assign_coords(quantile=levels)
    one = fc.aurora.evaluate(truth, metrics="crps")
    other = alone.aurora.evaluate(truth, metrics="crps")
    assert _one(other, "tp", metric="crps") == pytest.approx(
        _one(one, "tp", metric="crps"), rel=5e-3
    )


def test_wind_vectors_and_activity_by_hand() -> None:
    fc, truth = _case(np.full((1, 2, 3), 4.0), np.full((1, 2, 3), 1.0), name="t2m")
    for ds in (fc, truth):
        ds["u10"], ds["v10"] = (
            ds["t2m"].assign_attrs(units="m s-1"),
            (2 * ds["t2m"]).assign_attrs(units="m s-1"),
        )
    normal = xr.Dataset(
        {
            n: (
                ("hour", "dayofyear", "latitude", "longitude"),
                np.full((1, 1, 2, 3), 2.0),
                fc[n].attrs,
            )
            for n in ("t2m", "u10", "v10")
        },
        {"hour": [6], "dayofyear": [1], "latitude": fc["latitude"], "longitude": fc["longitude"]},
    )
    got = fc.aurora.evaluate(truth, climatology=normal)
    assert _one(got, "10m_wind_vector", metric="rmse") == pytest.approx(np.sqrt(9 + 36))
    assert _one(got, "t2m", metric="prediction_activity") == pytest.approx(2.0)
    assert _one(got, "t2m", metric="acc") == pytest.approx(-1.0)


def test_climatological_quantiles_by_hand() -> None:
    f, y = np.array([[[3.0, 3.0, 0.0, 0.0]] * 2]), np.array([[[3.0, 0.0, 3.0, 0.0]] * 2])
    fc, truth = _case(f, y)
    dims = ("hour", "dayofyear", "quantile", "latitude", "longitude")
    normal = xr.Dataset(
        {
            "tp": (
                ("hour", "dayofyear", "latitude", "longitude"),
                np.ones((1, 1, 2, 4)),
                fc["tp"].attrs,
            ),
            "tp_quantile": (dims, np.full((1, 1, 1, 2, 4), 2.0), fc["tp"].attrs),
        },
        {
            "hour": [6],
            "dayofyear": [1],
            "quantile": [0.9],
            "latitude": fc["latitude"],
            "longitude": fc["longitude"],
        },
    )
    got = fc.aurora.evaluate(
        truth, metrics=["quantile_csi", "quantile_frequencybias"], climatology=normal
    )
    assert _one(got, "tp_exceed_quantile", metric="quantile_csi", quantile=0.9) == pytest.approx(
        1 / 3
    )
    assert _one(
        got, "tp_exceed_quantile", metric="quantile_frequencybias", quantile=0.9
    ) == pytest.approx(1.0)


# --- against the package scores -------------------------------------------------------------------


def test_agrees_with_the_package_scores() -> None:
    """nci/scores on random data with holes; its weights are ours."""
    other = pytest.importorskip("scores")
    from scores import categorical, continuous, probability

    assert other.__version__
    rng = np.random.default_rng(3)
    lat = np.linspace(30.0, 60.0, 12)
    members = rng.gamma(0.6, 3.0, (6, 5, 12, 16))
    y = rng.gamma(0.6, 3.0, (6, 12, 16))
    y[rng.random(y.shape) < 0.1] = np.nan
    members[rng.random(members.shape) < 0.01] = np.nan
    fc, truth = _case(members, y, lat=lat)
    got = fc.aurora.evaluate(
        truth, skipna=True, metrics="all", thresholds_mm=(1.0,), convention="weatherbenchx"
    )
    f, t = (
        fc["tp"].isel(lead_time=0, drop=True),
        truth["tp"].rename(time="init_time").assign_coords(init_time=fc["init_time"]),
    )
    # One joint mask: points where truth and every member have values.
    there = t.notnull() & f.notnull().all("number")
    f, t = f.where(there), t.where(there)
    weights = xr.DataArray(latitude_weights(lat), {"latitude": lat}, "latitude") * xr.ones_like(t)
    mean = f.mean("number", skipna=False)
    crps = {
        m: probability.crps_for_ensemble(f, t, "number", method=m, weights=weights)
        for m in ("fair", "ecdf")
    }
    want = {
        "mse": continuous.mse(mean, t, weights=weights),
        "mae": continuous.mae(mean, t, weights=weights),
        "rmse": continuous.rmse(mean, t, weights=weights),
        "bias": continuous.additive_bias(mean, t, weights=weights),
        "crps": crps["fair"],
        "crps_ensemble": crps["ecdf"],
    }
    for name, value in want.items():
        assert _one(got, "tp", metric=name) == pytest.approx(float(value), rel=1e-9), name
    brier = probability.brier_score_for_ensemble(
        f,
        t,
        "number",
        1.0,
        fair_correction=False,
        event_threshold_operator=__import__("operator").gt,
        weights=weights,
    )
    assert _one(got, "tp_exceed", metric="brier_score_mm", threshold_mm=1.0) == pytest.approx(
        float(np.squeeze(brier)), rel=1e-9
    )
    fair = probability.brier_score_for_ensemble(
        f,
        t,
        "number",
        1.0,
        fair_correction=True,
        event_threshold_operator=__import__("operator").gt,
        weights=weights,
    )
    assert _one(
        got, "tp_exceed", metric="debiased_brier_score_mm", threshold_mm=1.0
    ) == pytest.approx(float(np.squeeze(fair)), rel=1e-9)
    # Its contingency tables know no weights: rows that weigh the same do not need them.
    flat, flat_truth = _case(
        np.nan_to_num(members[:, 0]),
        np.nan_to_num(y),
        lat=np.array([-1.0, 1.0]).repeat(6) * np.linspace(0.1, 0.6, 12),
    )
    flat, flat_truth = (
        flat.isel(latitude=[0, -1]).assign_coords(latitude=[-1.0, 1.0]),
        flat_truth.isel(latitude=[0, -1]).assign_coords(latitude=[-1.0, 1.0]),
    )
    ours = flat.aurora.evaluate(flat_truth, thresholds_mm=(1.0,))
    a, b = (
        flat["tp"].isel(lead_time=0, drop=True),
        flat_truth["tp"].rename(time="init_time").assign_coords(init_time=flat["init_time"]),
    )
    table = categorical.BinaryContingencyManager((a > 1.0).astype(float), (b > 1.0).astype(float))
    for name, theirs in {
        "recall": "probability_of_detection",
        "falsealarmrate": "false_alarm_ratio",
        "csi": "critical_success_index",
        "ets": "equitable_threat_score",
        "hss": "heidke_skill_score",
        "sedi": "symmetric_extremal_dependence_index",
        "f1score": "f1_score",
        "accuracy": "accuracy",
        "frequencybias": "frequency_bias",
        "pofd": "probability_of_false_detection",
    }.items():
        assert _one(ours, "tp_exceed", metric=name, threshold_mm=1.0) == pytest.approx(
            float(getattr(table, theirs)()), rel=1e-9
        ), name


# --- sums add up ----------------------------------------------------------------------------------


def _random(seed: int, *, members: bool) -> tuple[xr.Dataset, xr.Dataset]:
    rng = np.random.default_rng(seed)
    shape = (7, 3, *((4,) if members else ()), 8, 10)
    values, y = (
        rng.gamma(0.6, 3.0, shape).astype("float32"),
        rng.gamma(0.6, 3.0, (16, 8, 10)).astype("float32"),
    )
    lat, lon = np.linspace(50, 57, 8), np.arange(10.0)
    init = np.datetime64("2020-01-01T00", "ns") + np.arange(7) * np.timedelta64(12, "h")
    dims = ("init_time", "lead_time", *(("number",) if members else ()), "latitude", "longitude")
    attrs = {"units": "mm", "cell_methods": "time: sum (interval: 6 hours)"}
    lead = (np.array([6, 12, 18]) * np.timedelta64(1, "h")).astype("timedelta64[ns]")
    fc = xr.Dataset(
        {"tp": (dims, values, attrs)},
        {"init_time": init, "lead_time": lead, "latitude": lat, "longitude": lon},
    )
    times = np.datetime64("2020-01-01T06", "ns") + np.arange(16) * np.timedelta64(6, "h")
    truth = xr.Dataset(
        {"tp": (("time", "latitude", "longitude"), y, attrs)},
        {"time": times, "latitude": lat, "longitude": lon},
    )
    return fc, truth


def _close(one: xr.Dataset, other: xr.Dataset) -> None:
    for name in one.data_vars:
        np.testing.assert_allclose(
            one[name].transpose(*other[name].dims),
            other[name],
            rtol=1e-12,
            atol=1e-15,
            err_msg=str(name),
        )


@settings(max_examples=8, deadline=None)
@given(
    st.tuples(*(st.integers(1, n) for n in (7, 3, 4, 8, 10))),
    st.integers(1, 16),
    st.booleans(),
    st.booleans(),
)
def test_chunks_do_not_matter(
    sizes: tuple[int, ...], truth_size: int, members: bool, holes: bool
) -> None:
    fc, truth = _random(0, members=members)
    if holes:
        truth["tp"][3:5, 2, 3:6] = np.nan
    options = {"metrics": "all", "skipna": holes, "seed": 3}
    whole = fc.aurora.evaluate(truth, **options)
    chunks = dict(
        zip(("init_time", "lead_time", "number", "latitude", "longitude"), sizes, strict=True)
    )
    if not members:
        chunks.pop("number")
    again = fc.chunk(chunks).aurora.evaluate(
        truth.chunk(time=truth_size, latitude=sizes[3]), **options
    )
    _close(whole, again)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=7, max_size=7).filter(lambda v: len(set(v)) > 1),
    st.booleans(),
    st.sampled_from(["weatherbench2", "weatherbenchx"]),
)
def test_files_add_up(part_of: list[int], holes: bool, convention: str) -> None:
    """Any split of the init times, each part scored for itself, through NetCDF and back."""
    fc, truth = _random(1, members=True)
    if holes:
        truth["tp"][3:5, 2, 3:6] = np.nan
    options = {
        "metrics": ["rmse", "bias", "crps", "ets", "fss", "brier_reliability", "ensemble_stddev"],
        "skipna": holes,
        "convention": convention,
    }
    whole = fc.aurora.evaluate(truth, **options)
    parts = [
        fc.isel(init_time=[i for i, p in enumerate(part_of) if p == k]).aurora.evaluate(
            truth, **options
        )
        for k in sorted(set(part_of))
    ]
    parts = [xr.load_dataset(p.to_netcdf(), decode_timedelta=True) for p in parts]
    joined = xaurora.combine_scores(parts)
    _close(whole, joined)
    assert joined.attrs["number_of_init_times"] == 7
    with pytest.raises(errors.TruthError, match="scored in two of these"):
        xaurora.combine_scores([whole, parts[0]])
    other = fc.aurora.evaluate(truth, **{**options, "metrics": ["rmse"]})
    with pytest.raises(errors.TruthError, match="cannot be combined"):
        xaurora.combine_scores([whole, other])


def test_groups_of_time_and_lead() -> None:
    fc, truth = _random(2, members=False)
    one_by_one = fc.aurora.evaluate(truth, metrics=["mse"], by="init_time")["tp"]
    assert one_by_one.dims == ("metric", "region", "init_time", "lead_time")
    whole = fc.aurora.evaluate(truth, metrics=["mse"])["tp"]
    np.testing.assert_allclose(one_by_one.mean("init_time"), whole, rtol=1e-12)
    hours = fc.aurora.evaluate(truth, metrics=["mse"], by=["hour"])["tp"]
    valid = fc["init_time"] + fc["lead_time"]
    at6 = (
        one_by_one.where((valid.dt.hour == 6).transpose("init_time", "lead_time"))
        .mean("init_time")
        .sel(lead_time=fc["lead_time"][0])
    )
    np.testing.assert_allclose(hours.sel(hour=6).isel(lead_time=0), at6, rtol=1e-12)
    assert set(hours["hour"].values) == {0, 6, 12, 18}
    seasons = fc.aurora.evaluate(truth, metrics=["mse"], by="season")["tp"]
    np.testing.assert_allclose(seasons.sel(season="DJF"), whole, rtol=1e-12)
    bins = fc.aurora.evaluate(
        truth, metrics=["mse"], lead_bins={"early": ("6h", "12h"), "late": ("18h", "18h")}
    )["tp"]
    np.testing.assert_allclose(
        bins.sel(lead_bin="early"), whole.isel(lead_time=[0, 1]).mean("lead_time"), rtol=1e-12
    )
    for options, match in (
        ({"by": "week"}, r"by=\['week'\] is not known"),
        ({"lead_bins": {"late": ("30h", "48h")}}, "no lead time lies in 'late'"),
        ({"lead_bins": {"a": ("6h", "12h"), "b": ("12h", "18h")}}, "overlaps another"),
        ({"lead_bins": {"a": "6h"}}, "must be a pair of durations"),
        ({"lead_bins": ["6h"]}, "must be a dict"),
    ):
        with pytest.raises(errors.OptionError, match=match):
            fc.aurora.evaluate(truth, metrics=["mse"], **options)


def test_metric_names() -> None:
    assert set(metrics.ALIASES.values()) <= set(metrics.METRICS)
    assert set(metrics.STANDARD) <= set(metrics.METRICS)
    with pytest.raises(errors.OptionError, match="did you mean 'rmse'"):
        metrics.check(["rsme"])
    with pytest.raises(errors.OptionError, match="no metric was given"):
        metrics.check([])


def test_scores_say_what_they_are() -> None:
    fc, truth = _case(np.full((1, 2, 3), 4.0), np.full((1, 2, 3), 1.0))
    scores = fc.aurora.evaluate(truth)
    assert repr(scores.aurora).startswith("xaurora: scores")
    assert "domain" in repr(scores.aurora)
    with pytest.raises(errors.KindError, match="expected a forecast"):
        scores.aurora.evaluate(truth)


def test_results_as_weatherbench2_writes_them() -> None:
    fc, truth = _case(np.full((1, 2, 3), 4.0), np.full((1, 2, 3), 1.0))
    scores = fc.aurora.evaluate(
        truth, metrics=["rmse", "mse", "csi", "fss"], thresholds_mm=(2.0,), neighborhood_sizes=(1,)
    )
    out = scores.aurora.to_weatherbench2()
    assert set(out.data_vars) == {
        "total_precipitation_6hr",
        "total_precipitation_6hr_exceed",
        "total_precipitation_6hr_fss",
    }
    assert out["total_precipitation_6hr"].attrs["units"] == "m"
    at = out["total_precipitation_6hr"].sel(region="domain").squeeze()
    assert float(at.sel(metric="rmse")) == pytest.approx(3e-3)
    assert float(at.sel(metric="mse")) == pytest.approx(9e-6)
    assert float(out["total_precipitation_6hr_exceed"].sel(metric="csi").squeeze()) == 0.0
    assert not [c for c in out.coords if "__" in str(c)]


def test_the_page_lists_every_metric() -> None:
    """``docs/evaluation.md`` has a row for each, but for the twins at climatological quantiles."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(
        encoding="utf-8"
    )
    for name, metric in metrics.METRICS.items():
        if not name.startswith("quantile_") or name in ("quantile_coverage", "quantile_score"):
            assert f"| `{name}` | {metric.words.replace('|', chr(92) + '|')} |" in page, name


def test_the_page_quotes_the_report() -> None:
    root = Path(__file__).resolve().parents[2]
    report = json.loads((root / "benchmarks" / "reports" / "evaluation.json").read_text())
    page = (root / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert f"in {100 * report['time_over_xarray']:.0f} %\nof the time" in page
    assert f"at most {report['rows'][0]['peak_mb']:.0f}\nMB" in page
    assert report["time_over_xarray"] <= 1.5
    assert report["rows"][0]["peak_mb"] < 1000


def test_more_of_the_package_scores() -> None:
    """SEEPS, FSS, quantile score, ROC area and rank histogram, on random data; with holes where the
    other takes them.
    """
    pytest.importorskip("scores")
    from scores import categorical, continuous, probability, spatial

    rng = np.random.default_rng(5)
    lat = np.linspace(-0.011, 0.011, 12)  # so near the equator that rows weigh the same to 1e-7
    members = rng.gamma(0.5, 4.0, (5, 6, 12, 14))
    members[rng.random(members.shape) < 0.4] = 0.0
    y = rng.gamma(0.5, 4.0, (5, 12, 14))
    y[rng.random(y.shape) < 0.4] = 0.0
    holes = y.copy()
    holes[rng.random(y.shape) < 0.1] = np.nan
    fc, truth = _case(members, holes, lat=lat)
    f = fc["tp"].isel(lead_time=0, drop=True)
    t = truth["tp"].rename(time="init_time").assign_coords(init_time=fc["init_time"])
    got = fc.aurora.evaluate(
        truth,
        skipna=True,
        metrics=["quantile_score", "roc_area", "rank_histogram"],
        thresholds_mm=(1.0,),
        convention="weatherbenchx",
    )
    for level in (0.25, 0.5, 0.95):
        want = continuous.quantile_score(
            f.quantile(level, "number").drop_vars("quantile"), t, level
        )
        mine = got["tp_quantile_score"].sel(region="domain", forecast_quantile=level).squeeze()
        assert float(mine) == pytest.approx(float(want), rel=1e-6)
    p, o = (f > 1.0).mean("number").where(t.notnull()), (t > 1.0).where(t.notnull()).astype(float)
    roc = probability.roc_curve_data(p, o, [0.0, *(np.arange(1, 7) / 6 - 0.05), 1.0])
    assert _one(got, "tp_exceed", metric="roc_area", threshold_mm=1.0) == pytest.approx(
        float(roc["AUC"]), rel=1e-6
    )
    no_ties, wet = _case(members + rng.random(members.shape) * 1e-3, holes + 5e-4, lat=lat)
    ranks = no_ties.aurora.evaluate(
        wet, skipna=True, metrics="rank_histogram", convention="weatherbenchx"
    )["tp_rank_histogram"]
    one, other = (
        no_ties["tp"].isel(lead_time=0, drop=True),
        wet["tp"].rename(time="init_time").assign_coords(init_time=no_ties["init_time"]),
    )
    np.testing.assert_allclose(
        ranks.sel(region="domain").squeeze(),
        probability.rank_histogram(one, other, "number"),
        rtol=1e-6,
    )
    single, dense = _case(members[:, 0], y, lat=lat)
    a, b = (
        single["tp"].isel(lead_time=0, drop=True),
        dense["tp"].rename(time="init_time").assign_coords(init_time=single["init_time"]),
    )
    fss = single.aurora.evaluate(
        dense, metrics="fss", thresholds_mm=(1.0, 5.0), neighborhood_sizes=(3, 5)
    )["tp_fss"]
    for threshold in (1.0, 5.0):
        for size in (3, 5):
            want = spatial.fss_2d(
                a,
                b,
                event_threshold=threshold,
                window_size=(size, size),
                spatial_dims=("latitude", "longitude"),
                threshold_operator=np.greater,
            )
            mine = fss.sel(
                region="domain", threshold_mm=threshold, neighborhood_size=size
            ).squeeze()
            assert float(mine) == pytest.approx(float(want), rel=1e-6)
    # SEEPS: its light and heavy rain are those of Rodwell et al., two thirds and one third of what
    # is wet
    p1 = xr.DataArray(
        0.2 + 0.5 * rng.random((12, 14)),
        {"latitude": lat, "longitude": single["longitude"]},
        ("latitude", "longitude"),
    )
    heavy = xr.full_like(p1, 4.0)
    want = categorical.seeps(a, t, p1, heavy, dry_light_threshold=0.1, mask_clim_extremes=True)
    normal = xr.Dataset(
        {
            "total_precipitation_6hr_seeps_dry_fraction": p1.expand_dims(
                hour=[0, 6, 12, 18], dayofyear=range(1, 9)
            ),
            "total_precipitation_6hr_seeps_threshold": (
                (heavy * 1e-3)
                .assign_attrs(units="m")
                .expand_dims(hour=[0, 6, 12, 18], dayofyear=range(1, 9))
            ),
        }
    )
    seeps = single.aurora.evaluate(
        truth, skipna=True, metrics="seeps", climatology=normal, convention="weatherbenchx"
    )
    assert _one(seeps, "tp", metric="seeps") == pytest.approx(float(want), rel=1e-6)

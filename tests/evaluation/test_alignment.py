"""What is scored against what: truths, grids, masks, periods, common cells, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import distributions, errors
from xaurora.fields.grid import regions

H6 = np.timedelta64(6, "h")
RAIN = {"units": "mm", "cell_methods": "time: sum (interval: 6 hours)"}


def _fields(
    *,
    names: tuple[str, ...] = ("tp",),
    times: int = 12,
    shape: tuple[int, int] = (6, 8),
    hours: int = 6,
    seed: int = 0,
) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    time = np.datetime64("2020-01-01T00", "ns") + np.arange(times) * np.timedelta64(hours, "h")
    lat, lon = np.linspace(50, 45, shape[0]), 5.0 + np.arange(shape[1])
    rain = {**RAIN, "cell_methods": f"time: sum (interval: {hours} hours)"}
    data = {
        n: (
            ("time", "latitude", "longitude"),
            rng.gamma(0.6, 3.0, (times, *shape)),
            rain if n == "tp" else {"units": "K"},
        )
        for n in names
    }
    return xr.Dataset(data, {"time": time, "latitude": lat, "longitude": lon})


def _forecast(
    truth: xr.Dataset,
    *,
    inits: int = 6,
    leads: tuple[int, ...] = (6, 12),
    members: int = 0,
    noise: float = 0.3,
) -> xr.Dataset:
    rng = np.random.default_rng(1)
    init = truth["time"].values[:inits]
    lead = (np.array(leads) * np.timedelta64(1, "h")).astype("timedelta64[ns]")
    valid = xr.DataArray(init[:, None] + lead[None], dims=("init_time", "lead_time"))
    out = {}
    for name in truth.data_vars:
        da = truth[name].sel(time=valid).drop_vars("time")
        da = da.expand_dims(number=members, axis=2) if members else da
        values = np.abs(da.values + noise * rng.standard_normal(da.shape))
        out[name] = (da.dims, values, truth[name].attrs)
    return xr.Dataset(
        out,
        {
            "init_time": init,
            "lead_time": lead,
            "latitude": truth["latitude"],
            "longitude": truth["longitude"],
        },
    )


# --- periods of rain ------------------------------------------------------------------------------


def test_totals_over_a_day_from_members() -> None:
    truth = _fields(times=16)
    fc = _forecast(truth, leads=(6, 12, 18, 24, 30), members=3, inits=4)
    scores = fc.aurora.evaluate(truth, accumulate="24h", metrics=["rmse", "bias"])
    rmse = scores["tp"].sel(metric="rmse", region="domain")
    assert rmse.notnull().values.tolist() == [
        False,
        False,
        False,
        True,
        True,
    ]  # a whole day has passed
    day = sum(fc["tp"].mean("number").isel(lead_time=i) for i in range(4))
    want = np.stack([truth["tp"].values[i + 1 : i + 5].sum(axis=0) for i in range(4)])
    from xaurora.fields.grid.weights import latitude_weights

    w = latitude_weights(fc["latitude"].values)[:, None] * np.ones((1, 8))
    error = ((day.values - want) * w).sum(axis=(1, 2)) / w.sum()
    got = float(scores["tp"].sel(metric="bias", region="domain", lead_time="24h"))
    assert got == pytest.approx(
        error.mean(), rel=1e-5
    )  # members are summed in the forecast's precision
    assert scores.attrs["precipitation_hours"] == 24


def test_hourly_lead_times_are_summed() -> None:
    """As Aurora 1.5 gives its own rain: hour by hour."""
    hourly = _fields(times=30, hours=1)
    fc = _forecast(hourly, leads=tuple(range(1, 13)), inits=6, noise=0.0)
    six = (
        hourly["tp"]
        .rolling(time=6)
        .sum()
        .assign_attrs(RAIN)
        .to_dataset(name="tp")
        .isel(time=slice(5, None))
    )
    scores = fc.aurora.evaluate(six, metrics="mae")
    there = scores["tp"].sel(metric="mae", region="domain").dropna("lead_time")
    assert (there["lead_time"] / np.timedelta64(1, "h")).values.tolist() == [6.0, 12.0]
    assert float(there.max()) < 1e-5
    again = fc.aurora.evaluate(hourly, metrics="mae")  # hours of the truth are summed as well
    assert float(again["tp"].max()) < 1e-5


def test_a_distribution_has_no_daily_sum() -> None:
    truth = _fields()
    fc = _forecast(truth, leads=(6, 12, 18, 24), inits=3)
    fc["tp"].attrs |= distributions.to_attrs(distributions.HurdleLognormal())
    for name in ("p", "mu", "sigma"):
        fc[f"tp_{name}"] = fc["tp"] * 0 + 0.5
        fc[f"tp_{name}"].attrs = {"parameter_of": "tp"}
    with pytest.raises(errors.KindError, match="distribution of sums over 24 hours"):
        fc.aurora.evaluate(truth, accumulate="24h")
    for metric in ("fss", "spectrum", "blur"):
        with pytest.raises(errors.KindError, match="measures spatial structure"):
            fc.aurora.evaluate(truth, metrics=metric)
    everything = fc.aurora.evaluate(truth, metrics="all")
    assert "tp_fss" not in everything
    assert "tp_spectrum" not in everything
    assert "tp_pit" in everything
    lost = fc.drop_vars("tp_mu").aurora.evaluate(truth)
    assert "crps" not in lost["metric"].values  # the error of its mean is no CRPS


# --- masks, grids, common cells -------------------------------------------------------------------


def _as_imerg(truth: xr.Dataset) -> xr.Dataset:
    """Rain as a satellite sees it: nothing poleward of 48° here."""
    seen = truth.where(truth["latitude"] < 48.0)
    seen["valid_fraction"] = seen["tp"].notnull().astype(float)
    return seen.assign_attrs(xaurora_source="IMERG")


def test_a_truth_that_is_masked_by_nature(caplog) -> None:
    truth = _fields()
    fc = _forecast(truth)
    scores = fc.aurora.evaluate(_as_imerg(truth), metrics=["rmse", "csi"])
    south = fc.aurora.evaluate(
        truth,
        metrics=["rmse", "csi"],
        regions={
            "domain": xr.DataArray(
                (truth["latitude"].values < 48.0)[:, None] * np.ones((1, 8)),
                {"latitude": truth["latitude"], "longitude": truth["longitude"]},
                ("latitude", "longitude"),
            )
        },
    )
    for name in ("tp", "tp_exceed"):
        metric = "rmse" if name == "tp" else "csi"
        np.testing.assert_allclose(
            scores[name].sel(metric=metric), south[name].sel(metric=metric), rtol=1e-12
        )
    from xaurora.fields.grid.weights import latitude_weights

    w = latitude_weights(truth["latitude"].values)
    share = w[truth["latitude"].values < 48.0].sum() / w.sum()
    assert float(
        scores["tp"].sel(metric="coverage", region="domain").isel(lead_time=0)
    ) == pytest.approx(share)
    assert f"{100 * share:.0f} % of domain" in caplog.text


def test_all_that_are_compared_share_their_cells() -> None:
    """Persistence of a masked truth is masked as well: the others lose those cells too."""
    truth = _fields()
    seen = _as_imerg(truth)
    seen["tp"][3, 4, 2] = np.nan
    fc = _forecast(truth)
    other = xaurora.persistence(seen[["tp"]].assign_attrs(seen.attrs), "tp", ["6h", "12h"])
    got = xaurora.compare({"mine": fc, "persistence": other}, seen, metrics=["rmse"])
    cover = [got[n]["tp"].sel(metric="coverage").values for n in ("mine", "persistence")]
    np.testing.assert_array_equal(*cover)
    alone = fc.aurora.evaluate(seen, metrics=["rmse"])
    assert (cover[0] < alone["tp"].sel(metric="coverage").values).any()
    assert got["mine"].attrs["number_of_init_times"] == 6


def test_holes_elsewhere_pass_on_and_say_how_to_mask(caplog) -> None:
    truth = _fields(names=("tp", "t2m"))
    truth["t2m"][3, 2, 2] = np.nan
    fc = _forecast(truth.fillna(1.0))
    scores = fc.aurora.evaluate(truth)
    assert scores["t2m"].isnull().any()
    assert scores["tp"].sel(metric="rmse").notnull().all()
    assert "skipna=True" in caplog.text
    skipped = fc.aurora.evaluate(truth, skipna=True)
    assert skipped["t2m"].sel(metric="rmse").notnull().all()


def test_a_truth_on_another_grid() -> None:
    fine = _fields(shape=(12, 16))
    fine = fine.assign_coords(
        latitude=np.linspace(50.25, 44.75, 12), longitude=4.75 + 0.5 * np.arange(16)
    )
    from xaurora.fields.grid.regridding import onto

    lat, lon = np.linspace(50, 45, 6), 5.0 + np.arange(8)
    coarse = onto(fine["tp"], lat, lon).to_dataset(name="tp").compute()
    coarse["tp"].attrs = RAIN
    fc = _forecast(coarse, noise=0.0)
    with pytest.raises(errors.TruthError, match="regrid='conservative'"):
        fc.aurora.evaluate(fine)
    scores = fc.aurora.evaluate(fine, regrid="conservative", metrics="mae")
    assert float(scores["tp"].max()) < 1e-6
    with pytest.raises(errors.OptionError, match="not a regridding method"):
        fc.aurora.evaluate(fine, regrid="linear")


def test_forecasts_that_share_nothing() -> None:
    truth = _fields()
    fc = _forecast(truth)
    later = fc.assign_coords(init_time=fc["init_time"] + np.timedelta64(90, "D"))
    with pytest.raises(errors.TruthError, match="share no init time"):
        xaurora.compare({"a": fc, "b": later}, truth)
    elsewhere = fc.assign_coords(latitude=fc["latitude"] + 10)
    with pytest.raises(errors.TruthError, match="differs from that of 'a'"):
        xaurora.compare({"a": fc, "b": elsewhere}, truth)
    for wrong in ({}, fc, {"a": 3}):
        with pytest.raises(errors.KindError, match="dict of Datasets"):
            xaurora.compare(wrong, truth)
    half = xaurora.compare(
        {"a": fc, "b": fc.isel(init_time=slice(2, None), lead_time=[1])}, truth, metrics="rmse"
    )
    assert half["a"].sizes["lead_time"] == 1
    np.testing.assert_array_equal(half["a"]["tp"], half["b"]["tp"])


# --- refused by name ------------------------------------------------------------------------------


def test_rain_that_cannot_be() -> None:
    truth = _fields()
    fc = _forecast(truth)
    with pytest.raises(errors.UnitsError, match="precipitation cannot be negative"):
        fc.assign(tp=(fc["tp"] - 5).assign_attrs(RAIN)).aurora.evaluate(truth)
    noise = fc["tp"].values.copy()
    noise[0, 0, 0, 0] = -1e-6  # mm, as packing leaves it
    fc.copy(data={"tp": noise}).aurora.evaluate(truth)
    said_metres = fc.assign(tp=fc["tp"].assign_attrs(units="m"))
    with pytest.raises(errors.UnitsError, match="look like millimetres"):
        said_metres.aurora.evaluate(truth)
    with pytest.raises(errors.UnitsError, match="look like millimetres"):
        fc.aurora.evaluate(truth.assign(tp=truth["tp"].assign_attrs(units="m")))
    in_metres = (fc["tp"] * 1e-3).assign_attrs(RAIN)  # said to be millimetres
    with pytest.raises(errors.UnitsError, match="times smaller than the other"):
        fc.assign(tp=in_metres).aurora.evaluate(truth)
    with pytest.raises(errors.UnitsError, match=r"of the truth is .* times smaller"):
        fc.aurora.evaluate(truth.assign(tp=(truth["tp"] * 1e-3).assign_attrs(RAIN)))


def test_degrees_that_are_said_to_be_kelvins() -> None:
    truth = _fields(names=("t2m",))
    truth["t2m"] = (truth["t2m"] + 280).assign_attrs(units="K")
    fc = _forecast(truth)
    with pytest.raises(errors.UnitsError, match="273 K colder"):
        fc.assign(t2m=(fc["t2m"] - 273.15).assign_attrs(units="K")).aurora.evaluate(truth)
    right = fc.assign(t2m=(fc["t2m"] - 273.15).assign_attrs(units="degC")).aurora.evaluate(
        truth, metrics="bias"
    )
    np.testing.assert_allclose(
        right["t2m"], fc.aurora.evaluate(truth, metrics="bias")["t2m"], atol=1e-9
    )


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"metrics": "seeps"}, errors.TruthError, "seeps needs a climatology"),
        ({"metrics": "prediction_activity"}, errors.OptionError, "needs a climatology"),
        ({"metrics": "rank_histogram"}, errors.OptionError, "no members"),
        ({"metrics": "brier"}, errors.OptionError, "has none"),
        ({"metrics": "quantile_score"}, errors.OptionError, "has none"),
        ({"metrics": "pit"}, errors.OptionError, "score of a distribution"),
        ({"metrics": "quantile_csi"}, errors.TruthError, "quantiles of the climatology"),
        ({"thresholds_mm": (5, 1)}, errors.OptionError, "increasing amounts"),
        ({"thresholds_mm": ()}, errors.OptionError, "increasing amounts"),
        ({"thresholds_mm": 1.0}, errors.OptionError, "increasing amounts"),
        ({"thresholds_mm": ["a"]}, errors.OptionError, "increasing amounts"),
        ({"neighborhood_sizes": 3}, errors.OptionError, "odd numbers"),
        ({"metrics": 5}, errors.OptionError, "a name or a list of names"),
        ({"climatology": 5}, errors.KindError, "climatology must be a Dataset"),
        ({"seed": -1}, errors.OptionError, "non-negative integer"),
        ({"neighborhood_sizes": (2,)}, errors.OptionError, "odd numbers"),
        ({"quantile_levels": (5,)}, errors.OptionError, "between 0 and 1"),
        ({"regions": "atlantis"}, errors.RegionError, "no region 'atlantis'"),
        ({"engine": "magic"}, errors.OptionError, "engine='magic'"),
        ({"accumulate": "9h"}, errors.AccumulationError, "9-hour totals cannot be computed"),
    ],
)
def test_what_is_refused(options: dict, error: type, match: str) -> None:
    truth = _fields()
    with pytest.raises(error, match=match):
        _forecast(truth).aurora.evaluate(truth, **options)


def test_rain_scores_without_rain() -> None:
    truth = _fields(names=("t2m",))
    with pytest.raises(errors.OptionError, match="score of precipitation"):
        _forecast(truth).aurora.evaluate(truth, metrics=["ets"])


def test_climatologies_that_lack_something() -> None:
    truth = _fields(names=("tp", "t2m"))
    fc = _forecast(truth)
    normal = xaurora.climatology(truth, ["t2m"], window_days=31)
    with pytest.raises(errors.TruthError, match=r"no field of 'tp', which acc needs"):
        fc.aurora.evaluate(truth, climatology=normal, metrics=["acc"])
    default = fc.aurora.evaluate(truth, climatology=normal)  # not named: left out, and said
    assert default["tp"].sel(metric="acc").isnull().all()
    with pytest.raises(errors.TruthError, match="lacks hour 00"):
        fc.aurora.evaluate(truth, climatology=normal.isel(hour=slice(1, None)))
    with pytest.raises(errors.TruthError, match="total_precipitation_6hr_seeps"):
        fc.aurora.evaluate(truth, climatology=normal, metrics="seeps")


def test_engine_of_weatherbench2_says_how_to_get_it(oracle: Path) -> None:
    try:
        import weatherbench2  # noqa: F401
    except ImportError:
        truth = _fields()
        with pytest.raises(
            errors.MissingExtraError,
            match=r"git\+https://github\.com/google-research/weatherbench2",
        ):
            _forecast(truth).aurora.evaluate(truth, engine="weatherbench2")
        pytest.skip("weatherbench2 is not installed: its classes were not run")
    for which in ("global_deterministic", "global_ensemble", "regional_deterministic"):
        case = {
            n: xr.open_dataset(oracle / which / f"{n}.nc", decode_timedelta=True)
            for n in ("forecast", "truth", "climatology")
        }
        metrics = [
            "rmse",
            "mae",
            "bias",
            "acc",
            "seeps",
            *(["crps", "energy_score", "ensemble_stddev"] if "ensemble" in which else []),
        ]
        options = {
            "climatology": case["climatology"],
            "metrics": metrics,
            "regions": ["europe", "domain", "domain_land"],
        }
        theirs = case["forecast"].aurora.evaluate(case["truth"], engine="weatherbench2", **options)
        ours = case["forecast"].aurora.evaluate(case["truth"], **options)
        for name in theirs.data_vars:
            got = ours[name].transpose(*theirs[name].dims)
            np.testing.assert_allclose(
                theirs[name], got, rtol=1e-5, atol=1e-5 * float(np.abs(got).max())
            )


# --- regions --------------------------------------------------------------------------------------


def test_polygons() -> None:
    lat, lon = np.arange(60.0, 39.0, -1.0), np.arange(0.0, 31.0)
    triangle = {"type": "Polygon", "coordinates": [[(5, 45), (15, 45), (10, 55), (5, 45)]]}
    inside = regions.weights(lat, lon, {"t": triangle})["t"] > 0
    assert inside[lat == 46, lon == 10].all()
    assert not inside[lat == 54, lon == 6].any()
    assert abs(inside.sum() - 50) < 12  # half of 10 × 10 degrees
    hole = {
        "type": "Polygon",
        "coordinates": [
            [(0, 40), (30, 40), (30, 60), (0, 60)],
            [(10, 45), (20, 45), (20, 55), (10, 55)],
        ],
    }
    ring = regions.weights(lat, lon, hole)["polygon"] > 0
    assert not ring[lat == 50, lon == 15].any()
    assert ring[lat == 50, lon == 5].all()

    shape = type("Shape", (), {})()
    shape.__geo_interface__ = {
        "type": "MultiPolygon",
        "coordinates": [
            triangle["coordinates"],
            [[(20.5, 50.5), (24.5, 50.5), (24.5, 54.5), (20.5, 54.5)]],
        ],
    }

    both = regions.weights(lat, lon, {"m": shape})["m"] > 0
    assert both.sum() == inside.sum() + 16
    # across the date line, on a grid from 0 to 360
    wide = np.arange(0.0, 360.0, 5.0)
    fiji = {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": [[(171, -20), (-171, -20), (-171, 20), (171, 20)]],
        },
    }
    across = regions.weights(np.arange(-30.0, 31.0, 5.0), wide, {"fiji": fiji})["fiji"] > 0
    assert set(wide[across.any(axis=0)]) == {175.0, 180.0, 185.0}
    for wrong, match in (
        ({"type": "Polygon", "coordinates": [[(5, 45), (15, 45)]]}, "ring of 2 points"),
        ({"type": "Polygon", "coordinates": [[(45, 95), (45, 99), (50, 99)]]}, "within ±90"),
        ({"type": "Polygon", "coordinates": ["ab"]}, "are not rings"),
        (
            {"type": "FeatureCollection", "features": [{"type": "Point", "coordinates": (1, 2)}]},
            "does not enclose an area",
        ),
    ):
        with pytest.raises(errors.RegionError, match=match):
            regions.weights(lat, lon, {"x": wrong})


def test_rings_from_the_edge() -> None:
    truth = _fields(names=("t2m",), shape=(24, 30))
    fc = _forecast(truth)
    edge = fc["t2m"].values
    edge[..., [0, -1], :] += 50.0
    edge[..., :, [0, -1]] += 50.0
    scores = fc.copy(data={"t2m": edge}).aurora.evaluate(truth, regions="edge", metrics="rmse")
    rings = scores["t2m"].sel(metric="rmse").isel(lead_time=0)
    assert rings.sizes["region"] >= 3
    assert float(rings[0]) > 5 * float(rings[-1])
    own = xaurora.edge_rings(fc["latitude"].values, fc["longitude"].values, km=(0, 50))
    assert list(own) == ["edge 0-50 km", "edge over 50 km"]
    total = sum(own.values())
    assert (total == 1).all()
    with pytest.raises(errors.RegionError, match="start with 0"):
        xaurora.edge_rings(fc["latitude"].values, fc["longitude"].values, km=(10, 50))
    with pytest.raises(errors.RegionError, match="no edge"):
        xaurora.edge_rings(np.linspace(90, -90, 19), np.arange(0, 360, 10.0))


def test_masks_that_do_not_reach() -> None:
    """A mask of another place holds nothing here; a coarser one serves its neighbourhood."""
    lat, lon = np.linspace(50, 45, 6), 5.0 + np.arange(8)
    far = xr.DataArray(
        np.ones((3, 3)),
        {"latitude": [10.0, 11.0, 12.0], "longitude": [5.0, 6.0, 7.0]},
        ("latitude", "longitude"),
    )
    with pytest.raises(errors.RegionError, match="no grid point"):
        regions.weights(lat, lon, {"far": far})
    with pytest.raises(errors.RegionError, match="missing values"):
        regions.weights(lat, lon, {"far": far.where(far > 2)})
    coarse = xr.DataArray(
        np.array([[1.0, 0.0], [0.0, 0.0]]),
        {"latitude": [49.0, 46.0], "longitude": [6.5, 10.5]},
        ("latitude", "longitude"),
    )
    inside = regions.weights(lat, lon, {"c": coarse})["c"] > 0
    assert inside.sum() == 3 * 4


# --- baselines ------------------------------------------------------------------------------------


def test_a_probabilistic_climatology() -> None:
    time = np.concatenate(
        [
            np.arange(np.datetime64(f"{y}-01-01T00", "ns"), np.datetime64(f"{y}-01-04", "ns"), H6)
            for y in (2017, 2018, 2019, 2020)
        ]
    )
    rng = np.random.default_rng(0)
    ds = xr.Dataset(
        {
            "t2m": (
                ("time", "latitude", "longitude"),
                rng.standard_normal((len(time), 3, 4)),
                {"units": "K"},
            )
        },
        {"time": time, "latitude": [50.0, 49.0, 48.0], "longitude": [5.0, 6.0, 7.0, 8.0]},
    )
    like = _forecast(ds.sel(time="2020"), inits=3)
    out = xaurora.probabilistic_climatology(ds, like)
    assert out["t2m"].dims == ("init_time", "lead_time", "number", "latitude", "longitude")
    assert out.sizes["number"] == 3  # 2020 itself is left out
    want = ds["t2m"].sel(time="2018-01-01T06")
    np.testing.assert_array_equal(out["t2m"].isel(init_time=0, lead_time=0, number=1), want)
    scores = out.aurora.evaluate(ds)
    assert (
        0.6 < float(scores["t2m"].sel(metric="spread_skill_ratio").mean()) < 1.1
    )  # √(3/4) for three members, drawn few times
    assert xaurora.probabilistic_climatology(ds, like, exclude_year=False).sizes["number"] == 4
    with pytest.raises(errors.TruthError, match="needs at least two"):
        xaurora.probabilistic_climatology(ds.sel(time=slice("2019", "2020")), like)
    with pytest.raises(errors.OptionError, match="window_days"):
        xaurora.probabilistic_climatology(ds, like, window_days=-1)


def test_published_scores(tmp_path: Path) -> None:
    every = xaurora.published_scores()
    assert {"ifs_hres", "ifs_ens", "graphcast"} <= set(every)
    one = every["ifs_hres"]
    assert one["tp"].dims == ("metric", "region", "lead_time")
    assert one.attrs["grid"] == "121 × 240"
    assert "WeatherBench" in one.attrs["source"]
    daily = xaurora.published_scores(models=["ifs_ens"], hours=24)["ifs_ens"]
    # FIELD figure of the site: IFS ENS, 24 h, day 1, 0.25°: RMSE of the mean 3.89 mm
    assert float(
        daily["tp"].sel(metric="mean_rmse", lead_time="24h").squeeze()
    ) * 1e3 == pytest.approx(3.89, abs=0.01)
    own = tmp_path / "own.csv"
    header = "model,metric,variable,lead_hours,resolution,value"
    own.write_text(f"{header}\nmine,rmse,6h_precipitation,6,64x32,0.001\n")
    assert float(xaurora.published_scores(own)["mine"]["tp"].squeeze()) == 0.001
    for text, match in (
        ("model,metric\na,b\n", "no columns"),
        ("", "no columns"),
        (
            f"{header}\nm,rmse,6h_precipitation,six,6x3,1\n",
            "cannot be read",
        ),
    ):
        own.write_text(text)
        with pytest.raises(errors.SourceError, match=match):
            xaurora.published_scores(own)
    with pytest.raises(errors.SourceError, match="cannot be read"):
        xaurora.published_scores(tmp_path / "none.csv")
    with pytest.raises(errors.OptionError, match="no published scores of"):
        xaurora.published_scores(models="aurora_9")
    with pytest.raises(errors.OptionError, match="hours=12"):
        xaurora.published_scores(hours=12)


# --- where it runs --------------------------------------------------------------------------------


def test_scoring_needs_no_torch(tmp_path: Path) -> None:
    """In a process where torch and aurora cannot be imported: scores, significance, card and
    pictures.
    """
    truth = _fields(times=24)
    fc = _forecast(truth, inits=14)
    fc.to_netcdf(tmp_path / "fc.nc")
    truth.to_netcdf(tmp_path / "truth.nc")
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'aurora', 'lightning', 'timm', 'peft'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import matplotlib; matplotlib.use('Agg')
import xarray as xr, xaurora
fc = xr.open_dataset({str(tmp_path / "fc.nc")!r}, decode_timedelta=True)
truth = xr.open_dataset({str(tmp_path / "truth.nc")!r})
normals = xaurora.climatology(truth)
both = {{'mine': fc, 'climatology': xaurora.climatology_forecast(normals, fc)}}
got = xaurora.compare(both, truth, climatology=normals, metrics='all')
xaurora.significance(got['mine'], got['climatology'])
page, baseline = {str(tmp_path / "card.html")!r}, {{'climatology': got['climatology']}}
got['mine'].aurora.scorecard(page, baseline=baseline, forecast=fc, truth=truth)
fc.aurora.to_weatherbench2()
assert not any(m.partition('.')[0] in ('torch', 'aurora') for m in sys.modules)
print('scored')
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "scored", done.stderr[-2000:]


def test_stays_lazy_until_it_is_scored() -> None:
    import dask

    truth = _fields().chunk(time=1)
    fc = _forecast(truth.compute()).chunk(init_time=1)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    with dask.config.set(scheduler=fail):
        xaurora.persistence(truth, "tp", "6h").aurora.to_weatherbench2()
        fc.aurora.to_weatherbench2()


# --- several forecasts, units, levels -------------------------------------------------------------


def test_one_unit_for_all_that_are_compared() -> None:
    truth = _fields(times=40)
    fc = _forecast(truth, inits=30)
    metres = fc.assign(tp=(fc["tp"] * 1e-3).assign_attrs({**RAIN, "units": "m"}))
    got = xaurora.compare({"mm": fc, "m": metres}, truth, metrics=["rmse", "mse", "csi"])
    np.testing.assert_allclose(got["m"]["tp"], got["mm"]["tp"], rtol=1e-9)
    assert got["m"]["tp"].attrs["units"] == "mm"
    apart = metres.aurora.evaluate(truth, metrics=["rmse", "mse", "csi"])
    told = xaurora.significance(got["mm"], apart)  # converted
    assert float(np.abs(told["tp"].sel(estimate="skill")).max()) < 1e-9
    card = got["mm"].aurora.scorecard(baseline={"m": apart})
    assert all(np.allclose(r.relative("m"), 0, atol=1e-9) for r in card.rows if r.metric == "rmse")
    assert not any(mark.any() for r in card.rows for mark in r.marks.values())
    with pytest.raises(errors.TruthError, match="cannot be combined"):
        xaurora.combine_scores([got["mm"], apart])
    daily = fc.assign(
        tp=fc["tp"].assign_attrs({**RAIN, "cell_methods": "time: sum (interval: 24 hours)"})
    )
    other = daily.aurora.evaluate(
        _fields(times=40, hours=6).assign(tp=truth["tp"]), metrics=["rmse"]
    )
    with pytest.raises(errors.TruthError, match="over 6 h in one and over 24 h"):
        xaurora.significance(got["mm"], other)
    with pytest.raises(errors.TruthError, match="threshold_mm"):
        xaurora.significance(
            fc.aurora.evaluate(truth, metrics="csi", thresholds_mm=(1, 2)),
            fc.aurora.evaluate(truth, metrics="csi", thresholds_mm=(5, 10)),
        )
    alone = [fc.aurora.evaluate(truth, metrics=m) for m in ("csi", "fss")]
    for scores in alone:  # without the plain variable as well
        assert len(xaurora.significance(scores, scores).data_vars) == 1
        xr.testing.assert_allclose(
            xaurora.combine_scores([scores])[next(iter(scores.data_vars))],
            scores[next(iter(scores.data_vars))],
        )


def _aloft(members: int = 0) -> tuple[xr.Dataset, xr.Dataset]:
    rng = np.random.default_rng(2)
    time = np.datetime64("2020-01-01T00", "ns") + np.arange(8) * H6
    coords = {
        "level": [500.0, 850.0],
        "latitude": np.linspace(50, 45, 6),
        "longitude": 5.0 + np.arange(8),
    }
    y = 250 + rng.standard_normal((8, 2, 6, 8))
    truth = xr.Dataset(
        {"t": (("time", "level", "latitude", "longitude"), y, {"units": "K"})},
        {"time": time, **coords},
    )
    values = y[1:7][:, None] + 0.5 * rng.standard_normal((6, 1, 2, 6, 8))
    dims = ("init_time", "lead_time", "level", "latitude", "longitude")
    if members:
        values = values[:, :, None] + 0.5 * rng.standard_normal((6, 1, members, 2, 6, 8))
        dims = ("init_time", "lead_time", "number", "level", "latitude", "longitude")
    lead = [np.timedelta64(6, "h").astype("timedelta64[ns]")]
    return (
        xr.Dataset(
            {"t": (dims, values, {"units": "K"})},
            {"init_time": time[:6], "lead_time": lead, **coords},
        ),
        truth,
    )


def test_ranks_on_levels_and_in_parts() -> None:
    """Ties are broken by the sample, so that parts add up to the whole."""
    fc, truth = _aloft(members=3)
    fc, truth = fc.round(0), truth.round(0)
    whole = fc.aurora.evaluate(truth, metrics="all")
    assert whole["t_rank_histogram"].dims == ("region", "lead_time", "rank", "level")
    np.testing.assert_allclose(whole["t_rank_histogram"].sum("rank"), 1.0)
    parts = [
        fc.isel(init_time=slice(a, b)).aurora.evaluate(truth, metrics="rank_histogram")
        for a, b in ((0, 2), (2, 6))
    ]
    joined = xaurora.combine_scores(parts)["t_rank_histogram"]
    np.testing.assert_allclose(
        joined, whole["t_rank_histogram"].transpose(*joined.dims), rtol=1e-12
    )


def test_levels_of_several() -> None:
    fc, truth = _aloft()
    got = xaurora.compare({"both": fc, "one": fc.sel(level=[850.0])}, truth, metrics="rmse")
    assert got["both"]["level"].values.tolist() == [850.0]
    parts = [fc.isel(init_time=slice(0, 3)), fc.isel(init_time=slice(3, 6), level=[1, 0])]
    joined = xaurora.combine_scores([p.aurora.evaluate(truth, metrics="rmse") for p in parts])
    whole = fc.aurora.evaluate(truth, metrics="rmse")
    np.testing.assert_allclose(
        joined["t"].sel(level=whole["level"]).transpose(*whole["t"].dims), whole["t"], rtol=1e-12
    )
    with pytest.raises(errors.TruthError, match="cannot be combined"):
        xaurora.combine_scores(
            [
                fc.isel(init_time=slice(0, 3)).sel(level=[500.0]).aurora.evaluate(truth),
                fc.isel(init_time=slice(3, 6)).sel(level=[850.0]).aurora.evaluate(truth),
            ]
        )


def test_lead_bins_of_parts() -> None:
    truth = _fields(times=16)
    fc = _forecast(truth, leads=(6, 12, 18, 24))
    options = {"metrics": "rmse", "lead_bins": {"day 1": ("6h", "24h")}}
    whole = fc.aurora.evaluate(truth, **options)
    joined = xaurora.combine_scores(
        [
            fc.isel(lead_time=slice(a, b)).aurora.evaluate(truth, **options)
            for a, b in ((0, 2), (2, 4))
        ]
    )
    np.testing.assert_allclose(joined["tp"], whole["tp"], rtol=1e-12)


def test_quantiles_and_probabilities_in_other_units() -> None:
    truth = _fields()
    fc = _forecast(truth)
    q = np.stack([fc["tp"].values * s for s in (0.5, 1.0, 1.5)], axis=2)
    dims = ("init_time", "lead_time", "quantile", "latitude", "longitude")
    mine = fc.assign(tp_quantile=(dims, q, {"units": "mm"})).assign_coords(
        quantile=[0.25, 0.5, 0.75]
    )
    other = fc.assign(tp_quantile=(dims, q * 1e-3, {"units": "m"})).assign_coords(
        quantile=[0.25, 0.5, 0.75]
    )
    one, two = (f.aurora.evaluate(truth, metrics="crps")["tp"] for f in (mine, other))
    np.testing.assert_allclose(one, two, rtol=1e-9)
    p = (q > 1.0).astype(float)[:, :, :1]
    dims = ("init_time", "lead_time", "threshold", "latitude", "longitude")
    in_metres = fc.assign(tp_probability=(dims, p)).assign_coords(
        threshold=("threshold", [1e-3], {"units": "m"})
    )
    assert np.isfinite(
        in_metres.aurora.evaluate(truth, metrics="brier")["tp_exceed"].sel(
            metric="brier", threshold_mm=1.0
        )
    ).all()
    with pytest.raises(errors.OptionError, match="has probability at"):
        in_metres.aurora.evaluate(truth, metrics="brier", thresholds_mm=(3.0,))
    holes = p.copy()
    holes[0, 0, 0, 0, 0] = np.nan
    masked = fc.assign(tp_probability=(dims, holes)).assign_coords(
        threshold=("threshold", [1.0], {"units": "mm"})
    )
    assert (
        masked.aurora.evaluate(truth, metrics="brier", skipna=True)["tp_exceed"]
        .sel(metric="brier", threshold_mm=1.0)
        .notnull()
        .all()
    )


def test_a_daily_forecast_against_a_climatology_of_six_hours() -> None:
    truth = _fields(times=16)
    fc = _forecast(truth, leads=(6, 12, 18, 24), members=2)
    normal = xaurora.climatology(truth, ["tp"], window_days=31)
    with pytest.raises(
        errors.TruthError, match="precipitation is over 6 h, the forecast's over 24 h"
    ):
        fc.aurora.evaluate(truth, climatology=normal, metrics=["acc"], accumulate="24h")
    with pytest.raises(errors.AccumulationError, match="holds no precipitation"):
        _forecast(_fields(names=("t2m",))).aurora.evaluate(
            _fields(names=("t2m",)), accumulate="24h"
        )


def test_leads_as_numbers_and_single_times() -> None:
    truth = _fields(times=16)
    fc = _forecast(truth)
    normal = xaurora.climatology(truth, ["tp"], window_days=31)
    numbers = fc.assign_coords(lead_time=("lead_time", [6, 12], {"units": "hours"}))
    one, two = (xaurora.climatology_forecast(normal, f) for f in (fc, numbers))
    xr.testing.assert_allclose(one, two)
    assert xaurora.climatology_forecast(normal, fc.isel(init_time=0)).sizes["init_time"] == 1
    for wrong, match in (
        (lambda: xaurora.climatology_forecast(normal, truth), "like= must be a forecast"),
        (lambda: xaurora.climatology_forecast(truth, fc), "dims hour and dayofyear"),
    ):
        with pytest.raises((errors.KindError, errors.TruthError), match=match):
            wrong()
    extra = fc.assign_coords(time=("init_time", fc["init_time"].values))
    xr.testing.assert_allclose(extra.aurora.evaluate(truth)["tp"], fc.aurora.evaluate(truth)["tp"])
    with pytest.raises(errors.KindError, match="holds no init time"):
        fc.isel(init_time=slice(0, 0)).aurora.evaluate(truth)


@pytest.mark.thorough
@pytest.mark.slow
def test_memory_does_not_grow_with_init_times(tmp_path: Path) -> None:
    """Peak of a fresh process at 100 and at 10,000 init times of tiny fields; what is carried of
    each is a few hundred bytes.
    """
    code = """
import sys, numpy as np, xarray as xr, xaurora, logging
logging.disable(logging.WARNING)
count = int(sys.argv[1])
time = np.datetime64('2000-01-01', 'ns') + np.arange(count + 1) * np.timedelta64(6, 'h')
rng = np.random.default_rng(0)
import dask.array as da
lat, lon = np.linspace(50, 45, 6), np.arange(8.0)
attrs = {'units': 'mm', 'cell_methods': 'time: sum (interval: 6 hours)'}
y = da.random.default_rng(0).gamma(0.6, 3.0, (count + 1, 6, 8), chunks=(50, 6, 8))
grid = {'latitude': lat, 'longitude': lon}
truth = xr.Dataset({'tp': (('time', *grid), y, attrs)}, {'time': time, **grid})
lead = [np.timedelta64(6, 'h').astype('timedelta64[ns]')]
fc = xr.Dataset(
    {'tp': (('init_time', 'lead_time', *grid), y[1:][:, None] * 1.1, attrs)},
    {'init_time': time[:-1], 'lead_time': lead, **grid},
)
fc.aurora.evaluate(truth, progress=False)
status = open('/proc/self/status')
print(next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) / 1024)
"""
    peaks = [
        float(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code, str(n)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for n in (100, 10_000)
    ]
    # 10,000 × 49 numbers × 16 bytes are 8 MB; the graph of 200 dask chunks and their times take
    # some more.
    assert peaks[1] < peaks[0] + 60, peaks

"""Mistakes that users and reviewers met across several methods, and memory that must not grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers import make_aurora, run_script

import xaurora
import xaurora.fields.recognition
from xaurora import errors
from xaurora.fields import precipitation


def _states(fields: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    return (
        fields[["t2m", "u10", "v10", "msl", "lsm", "slt", "geopotential_at_surface"]],
        fields[["z", "u", "v", "t", "q"]],
    )


def test_files_in_another_order_are_brought_into_one(fields: xr.Dataset, tmp_path) -> None:
    surface, aloft = _states(fields)
    surface.to_netcdf(tmp_path / "a.nc")
    aloft[["z", "u", "v"]].to_netcdf(tmp_path / "b.nc")
    turned = aloft[["t", "q"]].isel(level=slice(None, None, -1), latitude=slice(None, None, -1))
    turned = turned.assign_coords(longitude=(turned["longitude"] + 180) % 360 - 180).sortby(
        "longitude"
    )
    turned["longitude"].attrs = {"units": "degrees_east"}
    turned.assign_coords(level=("level", turned["level"].values * 100, {"units": "Pa"})).to_netcdf(
        tmp_path / "c.nc"
    )
    ds = xaurora.open(str(tmp_path / "*.nc"))
    for name in ("t", "q", "z", "t2m"):
        np.testing.assert_array_equal(
            ds[name].sel(longitude=90.0, latitude=fields["latitude"][3]).values,
            fields[name].sel(longitude=90.0, latitude=fields["latitude"][3]).values,
        )
    assert ds.aurora.check().ok
    aloft[["t", "q"]].isel(level=[0, 2]).to_netcdf(tmp_path / "fewer.nc")
    with pytest.raises(errors.SourceError, match="different levels"):
        xaurora.open(tmp_path / "a.nc", tmp_path / "b.nc", tmp_path / "fewer.nc")


def test_one_file_a_level(fields: xr.Dataset, tmp_path) -> None:
    surface, aloft = _states(fields)
    surface.to_netcdf(tmp_path / "surface.nc")
    for i, level in enumerate(("a", "b", "c")):
        aloft.isel(level=[i]).to_netcdf(tmp_path / f"{level}.nc")
    ds = xaurora.open(str(tmp_path / "*.nc"))
    np.testing.assert_array_equal(ds["q"].sel(level=fields["level"]).values, fields["q"].values)
    assert ds.aurora.check().ok


def test_units_that_change_between_files(fields: xr.Dataset, tmp_path) -> None:
    fields.isel(time=slice(0, 20)).to_netcdf(tmp_path / "a.nc")
    later = fields.isel(time=slice(20, None)).copy()
    later["tp"] = (later["tp"] * 1000).assign_attrs({**fields["tp"].attrs, "units": "mm"})
    later.to_netcdf(tmp_path / "b.nc")
    with pytest.raises(errors.SourceError, match="different units"):
        xaurora.open(str(tmp_path / "*.nc"))


def test_broken_times_do_not_make_a_static(fields: xr.Dataset, tmp_path) -> None:
    surface, aloft = _states(fields)
    aloft.to_netcdf(tmp_path / "b.nc")
    surface.isel(time=slice(None, None, -1)).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(errors.TimeError, match="not in order"):
        xaurora.open(str(tmp_path / "*.nc"))


def test_statics_with_times_of_their_own(fields: xr.Dataset, tmp_path) -> None:
    statics = (
        fields[["lsm", "slt", "geopotential_at_surface"]]
        .expand_dims(time=pd.date_range("1979-01-01", periods=2))
        .transpose("time", ...)
    )
    statics.to_netcdf(tmp_path / "a.nc")
    fields.drop_vars(list(statics.data_vars)).to_netcdf(tmp_path / "b.nc")
    ds = xaurora.open(str(tmp_path / "*.nc"))
    assert ds.sizes["time"] == 40
    assert ds["lsm"].dims == ("latitude", "longitude")


def test_a_single_level_is_no_surface(fields: xr.Dataset) -> None:
    for ds in (fields.isel(level=1), fields.isel(level=1).drop_vars("t2m")):
        with pytest.raises(errors.LevelError, match="on a single level"):
            ds.aurora.to_batch()
        assert "2t" not in {
            key[1]
            for key in xaurora.fields.recognition.recognise(
                ds.drop_vars("t2m", errors="ignore")
            ).fields
        }
    assert fields.isel(level=[1]).aurora.check(model="tiny").ok


def test_running_totals_are_refused(europe: xr.Dataset, tmp_path) -> None:
    """What ERA5-Land gives: totals since midnight."""
    hourly = europe["tp"].values
    running = np.concatenate([np.cumsum(hourly[:24], axis=0)])
    ds = europe.assign(tp=(europe["tp"].dims, running, europe["tp"].attrs))
    assert [p.code for p in ds.aurora.check("tp", model="tiny").problems] == ["accumulation"]
    with pytest.raises(errors.AccumulationError, match="totals since a base time"):
        ds.aurora.finetune("tp", model="tiny", out=tmp_path / "run", progress=False)
    precipitation.check_not_running_totals(europe["tp"], name="tp")  # hourly rain passes


def test_a_forecast_must_say_what_its_rain_is(fields: xr.Dataset) -> None:
    forecast = xaurora.persistence(fields, ["tp"], ["6h"])
    forecast["tp"].attrs.pop("cell_methods")
    with pytest.raises(errors.AccumulationError, match="does not declare its accumulation period"):
        forecast.aurora.evaluate(fields)


def test_one_time_of_a_forecast_is_a_forecast(fields: xr.Dataset, tuned) -> None:
    forecast = fields.aurora.predict(
        "12h", model=tuned, time=fields["time"].values[30:32], progress=False
    )
    whole = forecast.aurora.evaluate(fields, regions="global")
    np.testing.assert_allclose(
        forecast.isel(lead_time=1).aurora.evaluate(fields, regions="global")["tp"].values[..., 0],
        whole["tp"].values[..., 1],
    )
    one = forecast.isel(init_time=0).aurora.evaluate(fields, regions="global")
    assert one.attrs["number_of_init_times"] == 1
    out = forecast.isel(init_time=0).aurora.to_weatherbench2()
    assert out["2m_temperature"].dims[:2] == ("time", "prediction_timedelta")


def test_rain_of_a_forecast_adds_up_over_leads(fields: xr.Dataset, tuned) -> None:
    forecast = fields.aurora.predict(
        "24h", model=tuned, time=fields["time"].values[5], quantiles=[0.9], progress=False
    )
    day = forecast.aurora.accumulate("tp", "24h")
    np.testing.assert_allclose(day.values[0, 3], forecast["tp"].values[0].sum(axis=0), rtol=1e-6)
    assert np.isnan(day.values[0, :3]).all()
    assert day.attrs["cell_methods"] == "time: sum (interval: 24 hours)"
    with pytest.raises(errors.AccumulationError, match="holds quantiles, which do not add up"):
        forecast.aurora.accumulate("tp_quantile", "24h")


def test_valid_times_lead_back(fields: xr.Dataset) -> None:
    """GRIB: the dimension holds base times, `valid_time` when the fields hold."""
    ds = fields.assign_coords(valid_time=("time", fields["time"].values + np.timedelta64(6, "h")))
    batch = ds.aurora.to_batch(ds["valid_time"].values[10])
    back = ds.aurora.from_batch(batch)
    np.testing.assert_array_equal(back["t2m"].values, fields["t2m"].values[9:11])
    np.testing.assert_array_equal(back["valid_time"].values, ds["valid_time"].values[9:11])


def test_times_with_a_zone(fields: xr.Dataset) -> None:
    aware = fields.assign_coords(time=pd.DatetimeIndex(fields["time"].values, tz="UTC"))
    assert aware.aurora.to_batch().metadata.time == fields.aurora.to_batch().metadata.time


def test_sea_surface_temperature_does_not_stop_tiny(fields: xr.Dataset) -> None:
    ds = fields.assign(sst=fields["t2m"].where(fields["lsm"] < 0.5).assign_attrs(units="K"))
    assert ds.aurora.check("tp", model="tiny").ok
    assert "sst" not in ds.aurora.to_batch(model="tiny").surf_vars


def test_hourly_totals_beside_six_hour_ones(fields: xr.Dataset) -> None:
    both = fields.rename(tp="total_precipitation_6hr").assign(
        total_precipitation=(fields["tp"] / 6).assign_attrs(units="m")
    )
    found = xaurora.fields.recognition.recognise(both)
    assert found.fields["surface", "tp"].source == "total_precipitation_6hr"
    assert both.aurora.check("total_precipitation_6hr").ok


def test_frozen_on_top_of_full_can_be_loaded(fields: xr.Dataset, little_small, tmp_path) -> None:
    import torch

    torch.manual_seed(0)
    torch.save(little_small().state_dict(), tmp_path / "small.ckpt")
    full = fields.aurora.finetune(
        "tp",
        model="small",
        weights=tmp_path / "small.ckpt",
        strategy="full",
        steps=1,
        out=tmp_path / "full",
        progress=False,
    )
    frozen = fields.aurora.finetune(
        "tp", model=full, strategy="frozen", steps=1, out=tmp_path / "frozen", progress=False
    )
    assert xaurora.load(tmp_path / "frozen").hash == frozen.hash
    with pytest.raises(errors.OptionError, match="holds its own weights"):
        xaurora.load(tmp_path / "frozen", weights=tmp_path / "small.ckpt")


def test_models_with_other_steps_are_refused(fields: xr.Dataset) -> None:
    import datetime

    model = make_aurora(timestep=datetime.timedelta(hours=12))
    with pytest.raises(errors.OptionError, match="time step of 12 hours"):
        fields.aurora.predict("12h", model=model)


def test_options_without_effect_are_refused(
    fields: xr.Dataset, tuned, aurora_model, tmp_path
) -> None:
    t = fields["time"].values[5]
    for call, kind in (
        (
            lambda: fields.aurora.predict("6h", model=aurora_model, weights="file.ckpt", time=t),
            errors.OptionError,
        ),
        (
            lambda: fields.aurora.finetune(
                "tp", model=aurora_model, weights="file.ckpt", out=tmp_path / "run"
            ),
            errors.OptionError,
        ),
        (
            lambda: fields.aurora.predict(
                "6h", model=tuned, variables=["t2m"], quantiles=[0.5], time=t
            ),
            errors.OptionError,
        ),
        (
            lambda: fields.aurora.predict("6h", model=tuned, variables=[], time=t),
            errors.OptionError,
        ),
        (lambda: fields.aurora.predict("6h", model=tuned, time=[]), errors.InitTimeError),
        (lambda: fields.aurora.predict("6h", model=""), errors.OptionError),
        (
            lambda: fields.aurora.finetune(["tp", 3], model="tiny", out=tmp_path / "run"),
            errors.TargetError,
        ),
        (lambda: fields.aurora.finetune("tp", model="tiny", steps="many"), errors.OptionError),
        (
            lambda: fields.aurora.finetune("tp", model="tiny", learning_rate="fast"),
            errors.OptionError,
        ),
        (lambda: fields.aurora.finetune("tp", model="tiny", seed=None), errors.OptionError),
        (lambda: fields.aurora.finetune("tp", model="tiny", out=3), errors.OptionError),
        (lambda: fields.aurora.from_batch("a batch"), errors.KindError),
        (lambda: fields.aurora.accumulate(["tp"]), errors.MissingVariableError),
        (lambda: xaurora.open(None), errors.SourceError),
    ):
        with pytest.raises(kind):
            call()
    assert not (tmp_path / "run").exists()
    forecast = fields.aurora.predict(
        pd.to_timedelta(["6h"]),
        model=tuned,
        time=t,
        quantiles=0.5,
        thresholds_mm=np.array([1, 5]),
        progress=False,
    )
    assert forecast.sizes["threshold"] == 2
    for regions in ([], 3, {"a": "b"}):
        with pytest.raises(errors.RegionError):
            forecast.aurora.evaluate(fields, regions=regions)
    for truth in (None, "truth.nc", fields["tp"]):
        with pytest.raises(errors.KindError):
            forecast.aurora.evaluate(truth)
    scores = forecast.aurora.evaluate(fields, regions=(-30, 30, 0, 90))
    assert list(scores["region"].values) == ["box"]
    with pytest.raises(errors.KindError, match="not a Dataset of scores"):
        scores.aurora.scorecard(baseline=forecast)


def test_a_foreign_folder_is_seen_before_training(fields: xr.Dataset, tmp_path) -> None:
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "best" / "precious.txt").write_text("mine")
    with pytest.raises(errors.OptionError, match="is not a tuned model"):
        fields.aurora.finetune("tp", model="tiny", out=tmp_path / "run", progress=False)


def test_nan_is_found_before_anything_is_written(fields: xr.Dataset, tmp_path) -> None:
    ds = fields.copy(deep=True)
    ds["u10"][:, 3, 4] = np.nan
    with pytest.raises(errors.MissingValuesError, match="u10"):
        ds.aurora.finetune("tp", model=make_aurora(), steps=2, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_accumulating_a_file_reads_nothing(fields: xr.Dataset, tmp_path, monkeypatch) -> None:
    hours = fields["time"].values[0] + np.arange(48) * np.timedelta64(1, "h")
    tp = xr.Dataset(
        {
            "tp": (
                ("time", "latitude", "longitude"),
                np.ones((48, 16, 32), "float32"),
                {"units": "m"},
            )
        },
        {"time": hours, "latitude": fields["latitude"], "longitude": fields["longitude"]},
    )
    tp.to_netcdf(tmp_path / "tp.nc")
    opened = xr.open_dataset(tmp_path / "tp.nc")
    totals = precipitation.accumulate(opened["tp"], 6)
    assert not totals.variable._in_memory
    assert float(totals[10].max()) == 6.0


def test_climatology_of_targets_with_holes() -> None:
    from xaurora.training.validation import climatology_crps

    rng = np.random.default_rng(0)
    truth = rng.random((10, 2, 3)) * 1e-3
    truth[7:, 0, 0] = np.nan
    truth[:, 1, 2] = np.nan
    expected, weights = [], []
    for i in range(2):
        for j in range(3):
            y = truth[np.isfinite(truth[:, i, j]), i, j]
            if len(y):
                expected.append(
                    np.abs(y[:, None] - y[None]).sum() / (len(y) * (len(y) - 1)) / 2
                )  # pairs of two
                weights.append(len(y))
    assert climatology_crps(truth, np.ones((2, 1))) == pytest.approx(
        np.average(expected, weights=weights), rel=1e-9
    )


def test_a_store_of_other_units_is_another_forecast(fields: xr.Dataset, tuned, tmp_path) -> None:
    t = fields["time"].values[5:7]
    fields.aurora.predict("6h", model=tuned, time=t, store=tmp_path / "fc.zarr", progress=False)
    celsius = fields.assign(t2m=(fields["t2m"] - 273.15).assign_attrs(units="degC"))
    with pytest.raises(errors.SaveError, match="holds another forecast"):
        celsius.aurora.predict(
            "6h", model=tuned, time=t, store=tmp_path / "fc.zarr", progress=False
        )


# --- memory does not grow with the number of samples ---

MARGIN = 18e6
"""Bytes: more than two runs of one thing differ by. 200 samples hold 22 MB of fields."""

SETUP = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from aurora import Aurora
import xaurora
torch.manual_seed(0)
small = Aurora(
    surf_vars=("2t", "msl"), static_vars=("lsm",), atmos_vars=("t",), encoder_depths=(1, 1),
    decoder_depths=(1, 1), encoder_num_heads=(2, 4), decoder_num_heads=(4, 2), embed_dim=32,
    num_heads=2, use_lora=False, latent_levels=2,
)
ds = xaurora.open(sys.argv[1]).isel(time=slice(0, int(sys.argv[2]) + 2))
"""
TASKS = {
    "finetune on latents": (
        'ds.aurora.finetune("tp", model=small, steps=16, batch_size=4, latents=sys.argv[3] +'
        ' "/l.zarr", validations=1, checkpoint_every=1000, out=sys.argv[3] + "/run",'
        " progress=False)"
    ),
    "finetune": (
        'ds.aurora.finetune("tp", model=small, strategy="full", steps=10, validations=1,'
        ' checkpoint_every=1000, out=sys.argv[3] + "/run", progress=False)'
    ),
    "predict": (
        'ds.aurora.predict("6h", model=small, variables=["t2m"], batch_size=20, store=sys.argv[3] +'
        ' "/fc.zarr", progress=False)'
    ),
}


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """262 times of fields that take 110 kB each, on disk."""
    rng = np.random.default_rng(0)
    count, shape = 262, (48, 96)
    axes = {"latitude": 90 - (np.arange(48) + 0.5) * 3.75, "longitude": np.arange(96) * 3.75}
    times = np.datetime64("2010-01-01", "ns") + np.arange(count) * np.timedelta64(6, "h")
    dims = ("time", "latitude", "longitude")

    def field(mean: float, std: float, *more: int) -> np.ndarray:
        return (mean + std * rng.standard_normal((count, *more, *shape))).astype(np.float32)

    rain = {"units": "m", "cell_methods": "time: sum (interval: 6 hours)"}
    data = {
        "t2m": (dims, field(280, 10), {"units": "K"}),
        "msl": (dims, field(101_000, 900), {"units": "Pa"}),
        "t": (("time", "level", *dims[1:]), field(260, 9, 2), {"units": "K"}),
        "tp": (dims, np.maximum(field(0, 1e-3), 0), rain),
        "lsm": (dims[1:], rng.random(shape).astype(np.float32), {"units": "1"}),
    }
    ds = xr.Dataset(
        data, {"time": times, "level": ("level", [500.0, 850.0], {"units": "hPa"}), **axes}
    )
    path = tmp_path_factory.mktemp("long") / "long.zarr"
    ds.aurora.prepare(path, model=None, progress=False)
    return path


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_memory_does_not_grow_with_the_samples(long: Path, tmp_path: Path, task: str) -> None:
    peaks = []
    for count in (60, 260):
        out = tmp_path / f"{count}"
        out.mkdir()
        read = (
            'print([int(l.split()[1]) for l in open("/proc/self/status") if'
            ' l.startswith("VmHWM")][0] * 1024)'
        )
        code = f"{SETUP}\n{TASKS[task]}\n{read}"
        peaks.append(int(run_script(code, long, count, out, timeout=900).split()[-1]))
    assert peaks[1] - peaks[0] < MARGIN, [f"{p / 1e6:.0f} MB" for p in peaks]

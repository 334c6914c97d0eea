"""Forecasts: equal to upstream's rollout, in the user's own form, to memory and to a store."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from aurora import rollout
from helpers import Script, make_aurora

import xaurora
from xaurora import errors
from xaurora.forecasting import job
from xaurora.forecasting.request import lead_steps
from xaurora.model.resolve import resolve


def _close(a: np.ndarray, b: np.ndarray) -> None:
    """Another batch size or thread split moves results by about 1e-6 of the maximum; see the
    field's own scale, not single values.
    """
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("clipped", [False, True], ids=["plain", "inputs clipped between steps"])
def test_equals_upstreams_rollout_to_the_bit(
    fields: xr.Dataset, aurora_model, clipped: bool
) -> None:
    if clipped:
        bounds = {"2t": {"min": 260.0, "max": 285.0}, "q": {"min": 0.0, "max": None}}
        aurora_model = make_aurora(rollout_input_clipping=bounds)
    t = fields["time"].values[5]
    forecast = fields.aurora.predict("18h", model=aurora_model, time=t, progress=False)
    with torch.inference_mode():
        reference = list(
            rollout(aurora_model, fields.aurora.to_batch(t, model=aurora_model), steps=3)
        )
    names = {"2t": "t2m", "10u": "u10", "10v": "v10", "msl": "msl"}
    for i, step in enumerate(reference):
        for name, values in step.surf_vars.items():
            np.testing.assert_array_equal(forecast[names[name]].values[0, i], values[0, 0].numpy())
        for name, values in step.atmos_vars.items():
            np.testing.assert_array_equal(forecast[name].values[0, i], values[0, 0].numpy())
    assert float(forecast["t2m"].std()) > 0
    np.testing.assert_array_equal(
        forecast["valid_time"].values[0], t + np.array([6, 12, 18]) * np.timedelta64(1, "h")
    )


def test_several_init_times_equal_a_batch_of_them(fields: xr.Dataset, aurora_model) -> None:
    times = fields["time"].values[[2, 9]]
    forecast = fields.aurora.predict(["12h"], model=aurora_model, time=times, progress=False)
    assert forecast.sizes["lead_time"] == 1
    with torch.inference_mode():
        reference = list(
            rollout(aurora_model, fields.aurora.to_batch(times, model=aurora_model), steps=2)
        )[-1]
    for i in range(2):
        _close(forecast["t2m"].values[i, 0], reference.surf_vars["2t"][i, 0].numpy())
        for k in range(3):
            _close(forecast["q"].values[i, 0, k], reference.atmos_vars["q"][i, 0, k].numpy())


def test_a_given_model_is_left_as_it_was(fields: xr.Dataset) -> None:
    model = make_aurora().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fields.aurora.predict(
        "6h", model=model, time=fields["time"].values[3], precision="bf16", progress=False
    )
    assert model.training
    assert not model.autocast_backbone
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_users_own_form(fields: xr.Dataset, tuned) -> None:
    other = (
        fields.isel(latitude=slice(None, None, -1))
        .assign_coords(longitude=(fields["longitude"] + 180) % 360 - 180)
        .sortby("longitude")
    )
    other["t2m"] = (other["t2m"] - 273.15).assign_attrs(units="degC")
    other["tp"] = (other["tp"] * 1000).assign_attrs({**fields["tp"].attrs, "units": "mm"})
    other = other.rename(t2m="VAR_2T").transpose("latitude", "longitude", "time", "level")
    t = fields["time"].values[20]
    a = fields.aurora.predict(
        "12h", model=tuned, time=t, quantiles=[0.5, 0.9], thresholds_mm=[1.0], progress=False
    )
    b = other.aurora.predict(
        "12h", model=tuned, time=t, quantiles=[0.5, 0.9], thresholds_mm=[1.0], progress=False
    )
    np.testing.assert_array_equal(b["latitude"].values, other["latitude"].values)
    np.testing.assert_array_equal(b["longitude"].values, other["longitude"].values)
    again = (
        b.assign_coords(longitude=b["longitude"] % 360)
        .sortby("longitude")
        .sortby("latitude", ascending=False)
    )
    _close(again["VAR_2T"].values + 273.15, a["t2m"].values)
    _close(again["tp"].values / 1000, a["tp"].values)
    _close(again["tp_quantile"].values / 1000, a["tp_quantile"].values)
    assert b["tp"].attrs["units"] == "mm"
    assert b["tp"].attrs["cell_methods"] == "time: sum (interval: 6 hours)"
    assert b["VAR_2T"].attrs["units"] == "degC"
    assert a["tp"].dims == ("init_time", "lead_time", "latitude", "longitude")


def test_rain_of_a_forecast_is_consistent(fields: xr.Dataset, tuned) -> None:
    forecast = fields.aurora.predict(
        "12h",
        model=tuned,
        time=fields["time"].values[20:22],
        quantiles=[0.1, 0.5, 0.99],
        thresholds_mm=[0, 1, 10],
        progress=False,
    )
    assert float(forecast["tp"].min()) >= 0
    q, p = forecast["tp_quantile"].values, forecast["tp_probability"].values
    assert (np.diff(q, axis=2) >= 0).all()
    assert (np.diff(p, axis=2) <= 0).all()
    assert p.min() >= 0
    assert p.max() <= 1
    assert {"tp_shape", "tp_scale", "tp_shift"} <= set(forecast.data_vars)
    assert forecast["tp"].attrs["distribution"] == "csgd"
    for word in ("xaurora_base", "xaurora_weights", "xaurora_versions", "xaurora_input"):
        assert word in forecast.attrs


def test_variables_are_chosen(fields: xr.Dataset, tuned) -> None:
    forecast = fields.aurora.predict(
        "6h", model=tuned, time=fields["time"].values[3], variables=["tp", "u"], progress=False
    )
    assert set(forecast.data_vars) == {"tp", "tp_shape", "tp_scale", "tp_shift", "u"}
    with pytest.raises(errors.MissingVariableError, match="cannot be forecast"):
        fields.aurora.predict("6h", model=tuned, variables=["wind"], progress=False)


def test_halo_is_trimmed(norway: xr.Dataset) -> None:
    t = "2025-06-03T12"
    whole = norway.aurora.predict("6h", model="tiny", time=t, progress=False)
    inner = norway.aurora.predict("6h", model="tiny", time=t, halo=8, progress=False)
    assert (inner.sizes["latitude"], inner.sizes["longitude"]) == (44, 44)
    xr.testing.assert_equal(
        inner["t2m"], whole["t2m"].isel(latitude=slice(8, 52), longitude=slice(8, 52))
    )


def test_norway_for_a_day(norway: xr.Dataset, caplog) -> None:
    forecast = norway.aurora.predict(
        "24h", model="tiny", time=["2025-06-02T00", "2025-06-05T18"], progress=False
    )
    assert set(forecast.data_vars) == {"t2m", "u10", "v10", "msl", "z", "u", "v", "t", "q"}
    assert list(forecast["lead_time"].values / np.timedelta64(1, "h")) == [6, 12, 18, 24]
    assert list(forecast["level"].values) == [1000, 925, 850, 700]
    assert bool(np.isfinite(forecast["z"]).all())
    assert "random weights" in caplog.text


def test_the_model_tuned_last_is_taken(fields: xr.Dataset, tuned, monkeypatch) -> None:
    from xaurora.model import tuned as module

    monkeypatch.setattr(module, "_last", None)
    with pytest.raises(errors.NoModelError, match="none was tuned in this session") as error:
        fields.aurora.predict("6h")
    assert "model='small'" in error.value.fix
    module.remember(tuned)
    a = fields.sel(time=slice("2020-01-02", "2020-01-03")).aurora.predict("6h", progress=False)
    assert "tp" in a


@pytest.mark.parametrize("lead", ["5h", "0h", "-6h", "soon", ["6h", "7h"], [], None, 6.5, "6min"])
def test_leads_that_are_none(fields: xr.Dataset, lead: object) -> None:
    with pytest.raises(errors.LeadTimeError):
        fields.aurora.predict(lead, model="tiny")


def test_leads() -> None:
    assert lead_steps("1 day") == [1, 2, 3, 4]
    assert lead_steps(np.timedelta64(12, "h")) == [1, 2]
    assert lead_steps(["24h", "6h"]) == [1, 4]


def test_options_that_do_not_fit(fields: xr.Dataset, tuned, aurora_model, tmp_path) -> None:
    for options, match in (
        ({"model": "huge"}, "there is no model 'huge'"),
        ({"model": tuned, "precision": "fp8"}, "precision must be one of .*, got 'fp8'"),
        ({"model": tuned, "quantiles": [1.5]}, "must lie between"),
        ({"model": tuned, "thresholds_mm": [-1]}, "must lie between"),
        ({"model": tuned, "halo": -1}, "must be a non-negative integer"),
        ({"model": tuned, "weights": "file.ckpt"}, "weights= applies to a model given by name"),
        ({"model": "tiny", "weights": "file.ckpt"}, "weights= applies to pretrained models"),
        ({"model": aurora_model, "quantiles": [0.5]}, "need a model with a head"),
    ):
        with pytest.raises(errors.OptionError, match=match):
            fields.aurora.predict("6h", progress=False, **options)
    for method in ("predict", "finetune", "to_batch", "check"):
        forecast = fields.aurora.predict(
            "6h", model=tuned, time=fields["time"].values[3], progress=False
        )
        if method == "check":
            assert [p.code for p in forecast.aurora.check().problems] == ["kind"]
            continue
        with pytest.raises(errors.KindError, match="is a forecast"):
            getattr(forecast.aurora, method)(**({"model": "tiny"} if method != "to_batch" else {}))
    for call in (lambda: fields.aurora.evaluate(fields), fields.aurora.to_weatherbench2):
        with pytest.raises(errors.KindError):
            call()


def test_a_store_equals_memory_and_goes_on(
    fields: xr.Dataset, tuned, tmp_path, monkeypatch
) -> None:
    times = fields["time"].values[[3, 4, 5, 6]]
    whole = fields.aurora.predict("12h", model=tuned, time=times, progress=False)
    real, calls = job.Job._forecast, []

    def fail_at_third(self, module, place, *others):
        calls.append(place)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, module, place, *others)

    monkeypatch.setattr(job.Job, "_forecast", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        fields.aurora.predict(
            "12h", model=tuned, time=times, store=tmp_path / "fc.zarr", progress=False
        )
    stored = fields.aurora.predict(
        "12h", model=tuned, time=times, store=tmp_path / "fc.zarr", progress=False
    )
    assert len(calls) == 5  # two finished, one interrupted, two after
    for name in whole:
        _close(stored[name].values, whole[name].values)
    with pytest.raises(errors.SaveError, match="holds another forecast"):
        fields.aurora.predict(
            "6h", model=tuned, time=times, store=tmp_path / "fc.zarr", progress=False
        )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(errors.SaveError, match="is not a forecast store"):
        fields.aurora.predict(
            "6h", model=tuned, time=times, store=tmp_path / "other", progress=False
        )
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"


def test_several_init_times_at_once_and_several_devices(
    fields: xr.Dataset, tuned, tmp_path
) -> None:
    times = fields["time"].values[3:8]
    one = fields.aurora.predict("12h", model=tuned, time=times, progress=False)
    for options in (
        {"batch_size": 2},
        {"devices": 2},
        {"batch_size": 3, "devices": 2, "store": tmp_path / "fc.zarr"},
    ):
        other = fields.aurora.predict("12h", model=tuned, time=times, progress=False, **options)
        np.testing.assert_array_equal(other["init_time"].values, times)
        for name in one:
            _close(other[name].values, one[name].values)
    for bad, what in (
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"devices": 99}, "devices=99"),
        ({"compile": "yes"}, "compile must be True or False"),
    ):
        with pytest.raises(errors.OptionError, match=what):
            fields.aurora.predict("6h", model=tuned, progress=False, **bad)


def test_surface_alone_is_as_with_all_levels(fields: xr.Dataset, aurora_model) -> None:
    """At the last step nothing on levels is decoded that is not asked for; what is decoded is the
    same to the bit.
    """
    when = fields["time"].values[5]
    whole = fields.aurora.predict("12h", model=aurora_model, time=when, progress=False)
    for names in (["t2m"], ["msl", "u10"], ["t2m", "t"], ["q"]):
        few = fields.aurora.predict(
            "12h", model=aurora_model, time=when, variables=names, progress=False
        )
        assert set(few.data_vars) == set(names)
        for name in names:
            np.testing.assert_array_equal(few[name].values, whole[name].values)


@pytest.mark.parametrize(
    "region", [(-20, 40, 100, 200), (30, 70, -30, 40), "tropics", (-90, -40, 10, 60)]
)
def test_a_region_is_cut_from_the_globe(fields: xr.Dataset, tuned, region) -> None:
    """The model sees the globe; across Greenwich and at a pole as well."""
    when = fields["time"].values[5]
    whole = fields.aurora.predict("12h", model=tuned, time=when, quantiles=[0.5], progress=False)
    part = fields.aurora.predict(
        "12h", model=tuned, time=when, quantiles=[0.5], region=region, progress=False
    )
    assert part["tp"].size < whole["tp"].size
    at = {d: part[d].values for d in ("latitude", "longitude")}
    for name in whole:
        _close(part[name].values, whole[name].sel(at).values)
    south, north, west, east = (-20, 20, 0, 360) if region == "tropics" else region
    assert part["latitude"].min() >= south
    assert part["latitude"].max() <= north
    inside = (fields["longitude"].values - west) % 360 <= (east - west)
    assert part.sizes["longitude"] == (
        inside.sum() if east - west < 360 else fields.sizes["longitude"]
    )
    with pytest.raises(errors.OptionError, match="halo="):
        fields.aurora.predict("6h", model=tuned, time=when, region=region, halo=4, progress=False)


def test_a_region_of_a_model_that_takes_its_target(fields: xr.Dataset, tmp_path) -> None:
    model = fields.aurora.finetune(
        "tp",
        model="tiny",
        strategy="full",
        as_input=True,
        steps=2,
        validations=1,
        out=tmp_path / "run",
        progress=False,
    )
    when = fields["time"].values[8]
    whole = fields.aurora.predict("12h", model=model, time=when, progress=False)
    part = fields.aurora.predict(
        "12h", model=model, time=when, region=(-30, 30, 40, 120), progress=False
    )
    at = {d: part[d].values for d in ("latitude", "longitude")}
    for name in whole:
        _close(part[name].values, whole[name].sel(at).values)


def test_a_region_that_is_none(fields: xr.Dataset, tuned) -> None:
    for bad, what in (
        ("atlantis", "there is no region"),
        ((50, 40, 0, 10), "not below north"),
        ((1.0, 1.1, 1.0, 1.1), "no grid point of the data"),
    ):
        with pytest.raises(errors.RegionError, match=what):
            fields.aurora.predict("6h", model=tuned, region=bad, progress=False)


def test_compile_that_is_not_available(
    fields: xr.Dataset, aurora_model, monkeypatch, caplog
) -> None:
    when = fields["time"].values[5]
    plain = fields.aurora.predict("6h", model=aurora_model, time=when, progress=False)

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no compiler was found")

    monkeypatch.setattr(torch, "compile", broken)
    found = fields.aurora.predict("6h", model=aurora_model, time=when, compile=True, progress=False)
    xr.testing.assert_identical(found, plain)
    said = [r.getMessage() for r in caplog.records if "compile" in r.getMessage()]
    assert len(said) == 1
    assert "no compiler was found" in said[0]


def test_blocks_are_compiled_and_left_as_they_were(
    fields: xr.Dataset, aurora_model, monkeypatch
) -> None:
    when, made = fields["time"].values[5], []
    plain = fields.aurora.predict("6h", model=aurora_model, time=when, progress=False)
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **k: made.append(f) or real(f, backend="eager", **k)
    )
    found = fields.aurora.predict("6h", model=aurora_model, time=when, compile=True, progress=False)
    assert len(made) == 1, "all blocks share what is compiled"
    for name in plain:
        _close(found[name].values, plain[name].values)
    assert not any("forward" in m.__dict__ for m in aurora_model.modules())


def test_a_killed_run_goes_on(tuned, tmp_path) -> None:
    store, folder = tmp_path / "fc.zarr", tuned.save(tmp_path / "model")
    code = f"""
import xaurora
ds = xaurora.synthetic(shape=(16, 32), times=24)
ds.aurora.predict("12h", model={str(folder)!r}, store={str(store)!r}, progress=False)
"""
    script = Script(code)
    deadline = time.monotonic() + 120
    while not store.exists() and time.monotonic() < deadline and script.is_running:
        time.sleep(0.02)
    time.sleep(0.3)
    script.kill()
    script.wait()
    ds = xaurora.synthetic(shape=(16, 32), times=24)
    resumed = ds.aurora.predict("12h", model=folder, store=store, progress=False)
    whole = ds.aurora.predict("12h", model=folder, progress=False)
    for name in whole:
        _close(resumed[name].values, whole[name].values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fc.zarr", "model"]


@pytest.mark.parametrize("how", ["netcdf", "zarr"])
def test_scores_are_the_same_after_reopening(
    fields: xr.Dataset, tuned, tmp_path: Path, how: str
) -> None:
    forecast = fields.aurora.predict(
        "12h", model=tuned, time=fields["time"].values[30:33], progress=False
    )
    path = tmp_path / ("fc.nc" if how == "netcdf" else "fc.zarr")
    forecast.to_netcdf(path) if how == "netcdf" else forecast.to_zarr(path, consolidated=False)
    again = xaurora.open(path)
    xr.testing.assert_allclose(again.load(), forecast)
    xr.testing.assert_identical(again.aurora.evaluate(fields), forecast.aurora.evaluate(fields))
    plain = xr.open_dataset(
        path,
        decode_timedelta=False,
        engine="netcdf4" if how == "netcdf" else "zarr",
        **({} if how == "netcdf" else {"consolidated": False}),
    )
    xr.testing.assert_identical(plain.aurora.evaluate(fields), forecast.aurora.evaluate(fields))


def test_to_batch_takes_what_a_model_takes(europe: xr.Dataset) -> None:
    with pytest.raises(errors.MissingVariableError, match="2t"):
        europe.aurora.to_batch()
    batch = europe.aurora.to_batch(model="tiny")
    assert list(batch.surf_vars) == ["10u", "10v", "2d", "sp", "tcw"]
    assert len(batch.metadata.atmos_levels) == 10
    assert resolve("small").needs(None).surface == ("2t", "10u", "10v", "msl")


def test_rain_alone_is_not_decoded_with_the_rest(fields: xr.Dataset, tuned) -> None:
    """The same rain to the bit, and the decoder runs only for steps that another one stands on."""
    times = fields["time"].values[10:12]
    whole = fields.aurora.predict("12h", model=tuned, time=times, progress=False)
    calls = []

    def count(module, args, output) -> None:
        if output.surf_vars:
            calls.append(1)

    handle = tuned.model.base.decoder.register_forward_hook(count)
    try:
        alone = fields.aurora.predict(
            "12h", model=tuned, time=times, variables=["tp"], progress=False
        )
        assert len(calls) == len(times)  # of two steps each the first
        calls.clear()
        first = fields.aurora.predict(
            "6h", model=tuned, time=times, variables=["tp"], thresholds_mm=(1.0,), progress=False
        )
        assert not calls
    finally:
        handle.remove()
    assert "t2m" not in alone
    for name in alone.data_vars:
        np.testing.assert_array_equal(alone[name], whole[name])
    np.testing.assert_array_equal(first["tp"].isel(lead_time=0), whole["tp"].isel(lead_time=0))


def test_a_forecast_larger_than_memory_is_refused_before_it_starts(
    fields: xr.Dataset, tuned, tmp_path, monkeypatch
) -> None:
    from xaurora.forecasting import store

    times = fields["time"].values[[3, 4]]
    made = fields.aurora.predict("12h", model=tuned, time=times, progress=False)
    size = sum(da.nbytes for da in made.data_vars.values())
    monkeypatch.setattr(store, "free_host_memory", lambda: size)
    fields.aurora.predict("12h", model=tuned, time=times, progress=False)
    monkeypatch.setattr(store, "free_host_memory", lambda: size - 1)
    monkeypatch.setattr(job.Job, "run", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(
        errors.MemoryTooSmallError, match=r"2 init time\(s\) × 2 lead time"
    ) as error:
        fields.aurora.predict("12h", model=tuned, time=times, progress=False)
    assert "store=" in error.value.fix
    monkeypatch.undo()
    monkeypatch.setattr(store, "free_host_memory", lambda: 0)
    stored = fields.aurora.predict(
        "12h", model=tuned, time=times, store=tmp_path / "fc.zarr", progress=False
    )
    np.testing.assert_array_equal(stored["tp"], made["tp"])


def test_chunks_of_a_store_are_some_leads(fields: xr.Dataset, tuned, tmp_path, monkeypatch) -> None:
    """Chunks that the leads do not fill, several init times at once, leads with gaps."""
    from xaurora.forecasting import store

    monkeypatch.setattr(store, "_CHUNK", 2 * 16 * 32 * 4)
    times, leads = fields["time"].values[[3, 4, 5]], ["6h", "12h", "24h"]
    options = {"model": tuned, "time": times, "members": 3, "past": fields, "progress": False}
    made = fields.aurora.predict(leads, batch_size=2, **options)
    stored = fields.aurora.predict(leads, batch_size=2, store=tmp_path / "fc.zarr", **options)
    assert stored["tp_mean"].encoding["chunks"] == (1, 2, 16, 32)
    assert stored["tp"].encoding["chunks"][:3] == (1, 1, 2)
    for name in made.data_vars:
        np.testing.assert_array_equal(stored[name], made[name])


def test_data_unlike_those_that_the_model_was_tuned_on(
    fields: xr.Dataset, tuned, caplog: pytest.LogCaptureFixture
) -> None:
    """Another spacing and fewer levels are said by ``predict`` and ``check``."""
    coarse = xaurora.synthetic(shape=(8, 16), times=6)
    fewer = fields.isel(level=[0, 1])
    for ds, words in ((coarse, "The grid spacing is 22.5"), (fewer, "The pressure levels ['")):
        caplog.clear()
        with caplog.at_level("WARNING", "xaurora"), contextlib.suppress(errors.LevelError):
            ds.aurora.predict("6h", model=tuned, time=ds["time"].values[3], progress=False)
            assert words in caplog.text
        notes = ds.aurora.check(model=tuned).notes
        assert any(words in note for note in notes) or not ds.aurora.check(model=tuned).ok
    caplog.clear()
    with caplog.at_level("WARNING", "xaurora"):
        fields.aurora.predict("6h", model=tuned, time=fields["time"].values[3], progress=False)
    assert "tuned" not in caplog.text


def test_results_lie_in_memory_of_their_own(fields: xr.Dataset) -> None:
    """Freed, they go back to the system, although freed memory is kept during a forecast."""
    forecast = fields.aurora.predict(
        "6h", model=make_aurora(), time=fields["time"].values[-1], progress=False
    )
    owner = forecast["t2m"].values
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, memoryview | mmap.mmap)
    values = forecast["t2m"].values
    before = values.copy()
    child = os.fork()
    if not child:
        values[:] = 0.0
        os._exit(0)
    os.waitpid(child, 0)
    assert np.array_equal(values, before), "a forked process has its own copy"

"""Targets: any surface variable, several, from a truth of their own, and used as inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import xaurora
from xaurora import errors
from xaurora.fields.grid.weights import latitude_weights

QUICK = {
    "model": "tiny",
    "strategy": "full",
    "steps": 4,
    "batch_size": 2,
    "validations": 1,
    "progress": False,
}
H = np.timedelta64(1, "h")


@pytest.fixture(scope="module")
def rich(fields: xr.Dataset) -> xr.Dataset:
    """The small globe with total column water vapour, cloud cover in percent and a variable nobody
    knows.
    """
    w = fields["v10"] / 3.0
    cloud = (50.0 + 45.0 * w).clip(0.0, 100.0).astype("float32")
    return fields.assign(
        tcwv=(20.0 + 5.0 * w)
        .astype("float32")
        .assign_attrs(units="kg m-2", long_name="Total column water vapour"),
        tcc=cloud.assign_attrs(units="%", long_name="Total cloud cover"),
        smell=(w * 2.0 + 1.0)
        .astype("float64")
        .assign_attrs(units="sniff", long_name="Smell of rain"),
    )


def test_several_targets_of_several_kinds(rich: xr.Dataset, tmp_path: Path) -> None:
    names = ["tp", "tcwv", "tcc", "smell"]
    tuned = rich.aurora.finetune(names, out=tmp_path / "run", **QUICK)
    families = {n: tuned.heads[n].options.family for n in tuned.targets}
    assert families["tcwv"] == families["smell"] == "normal"
    assert families["tcc"] == "bounded_normal"
    assert tuned.heads["tcc"].options.bounds == (0.0, 1.0)
    assert tuned.heads["tp"].law.name != "normal"
    assert not set(tuned.needs.surface) & set(names), "what is to be learnt is no input"
    assert {"validation_crps_mm", "validation_tcwv_crps", "validation_tcc_crps"} <= set(
        tuned.config["scores"]
    )
    assert "tcwv with a normal head" in tuned.summary()

    loaded = xaurora.load(tmp_path / "run")
    t = rich["time"].values[5:7]
    states = rich.drop_vars(["smell"])
    forecast = states.aurora.predict(
        "12h", model=loaded, time=t, quantiles=[0.1, 0.9], thresholds_mm=[1], progress=False
    )
    assert forecast["tcc"].attrs["units"] == "%"
    cloud = forecast["tcc"].values
    assert cloud.min() >= 0
    assert cloud.max() <= 100
    assert cloud.max() > 2, "in the data's own percent, not as a fraction"
    assert forecast["smell"].attrs["units"] == "sniff"
    assert float(forecast["tcwv"].mean()) == pytest.approx(20.0, abs=5.0)
    assert forecast["tcc_quantile"].dims == forecast["tp_quantile"].dims
    assert (forecast["tcc_quantile"].diff("quantile") >= 0).all()
    assert "tcc_probability" not in forecast
    scores = forecast.aurora.evaluate(rich, metrics=["rmse", "crps"], regions="global")
    for name in names:
        assert np.isfinite(scores[name].sel(metric="crps")).all(), name
    assert "smell" in forecast.aurora.to_weatherbench2()
    assert float(
        rich.aurora.statistics("smell", weights=None, progress=False)["smell"].sel(statistic="mean")
    ) == pytest.approx(float(rich["smell"].mean()))
    assert xaurora.persistence(rich, ["smell"], ["6h"])["smell"].sizes["lead_time"] == 1
    # percent: the CRPS of a fraction, a hundred times
    law = xaurora.distributions.BoundedNormal(0.0, 1.0)
    y = rich["tcc"].sel(time=forecast["valid_time"].values[0, 0]).values.astype(float) / 100.0
    params = {k: forecast[f"tcc_{k}"].values[0, 0].astype(float) for k in ("mu", "sigma")}
    one = forecast.isel(init_time=[0], lead_time=[0]).aurora.evaluate(
        rich, metrics=["crps"], regions="global"
    )
    area = latitude_weights(rich["latitude"].values)[:, None]
    assert float(one["tcc"].values.ravel()[0]) == pytest.approx(
        100.0 * float((law.crps(params, y) * area).mean()), rel=1e-6
    )
    only = states.aurora.predict("6h", model=loaded, time=t[0], variables=["tcwv"], progress=False)
    assert sorted(only.data_vars) == ["tcwv", "tcwv_mu", "tcwv_sigma"]


@pytest.mark.slow
def test_a_gaussian_target_is_learnt(tmp_path: Path) -> None:
    ds = xaurora.synthetic(shape=(8, 16), times=200)
    ds = ds.assign(
        tcwv=(20.0 + 5.0 * ds["v10"] / 3.0).astype("float32").assign_attrs(units="kg m-2")
    )
    tuned = ds.aurora.finetune("tcwv", out=tmp_path / "run", **{**QUICK, "steps": 80})
    scores = tuned.config["scores"]
    # B six hours on has a share of 0.19 of its variance that nobody can know: 0.44 of the
    # climatology's CRPS is the best there is
    assert scores["validation_crps"] < 0.8 * scores["validation_climatology_crps"]


def test_own_units_give_the_same_forecast(europe: xr.Dataset, tmp_path: Path) -> None:
    """Metres, millimetres, kg m-2, and the mean flux of each hour."""
    region = europe.isel(latitude=slice(0, 24), longitude=slice(0, 24))
    metres = region["tp"].astype(np.float64)
    forms = {
        "m": metres.assign_attrs(region["tp"].attrs),
        "mm": (metres * 1e3).assign_attrs(units="mm"),
        "kg m-2": (metres * 1e3).assign_attrs(units="kg m**-2"),
        "flux": (
            (metres * (1e3 / 3600.0)).assign_attrs(
                units="kg m-2 s-1", standard_name="precipitation_flux"
            )
        ),
    }
    out = {}
    for name, tp in forms.items():
        ds = region.assign(tp=tp)
        tuned = ds.aurora.finetune("tp", out=tmp_path / name.replace(" ", ""), **QUICK)
        out[name] = ds.aurora.predict(
            "6h", model=tuned, time=ds["time"].values[6], variables=["tp"], progress=False
        )
    factor = {"m": 1e3, "mm": 1.0, "kg m-2": 1.0, "flux": 1e3}
    for name, forecast in out.items():
        np.testing.assert_allclose(
            forecast["tp"].values * factor[name],
            out["mm"]["tp"].values,
            rtol=1e-4,
            atol=1e-6,
            err_msg=name,
        )
    assert out["mm"]["tp"].attrs["units"] == "mm"
    assert out["flux"]["tp"].attrs["units"] == "m"  # what falls in six hours is an amount


# --- a truth of its own ---------------------------------------------------------------------------


def test_a_truth_on_the_same_grid_is_the_target(fields: xr.Dataset, tmp_path: Path) -> None:
    own = fields.aurora.finetune("tp", out=tmp_path / "own", **QUICK)
    turned = fields[["tp"]].isel(latitude=slice(None, None, -1))
    turned = turned.assign_coords(longitude=(turned["longitude"] + 180) % 360 - 180).sortby(
        "longitude"
    )
    turned["tp"] = (turned["tp"] * 1e3).assign_attrs(fields["tp"].attrs | {"units": "mm"})
    turned["longitude"].attrs["units"] = "degrees_east"
    other = fields.drop_vars("tp").aurora.finetune(
        "tp", truth=turned, out=tmp_path / "other", **QUICK
    )
    assert other.config["targets"]["tp"]["from_truth"]
    for a, b in zip(own.history, other.history, strict=True):
        assert b["head_loss"] == pytest.approx(a["head_loss"], rel=1e-4)


def test_a_truth_on_another_grid_is_regridded_conservatively(
    fields: xr.Dataset, tmp_path: Path
) -> None:
    """Halving every cell changes no mean over the cells that they make up."""
    fine = fields[["tp"]]
    rows, columns = np.repeat(np.arange(16), 2), np.repeat(np.arange(32), 2)
    lat = 90.0 - (np.arange(32) + 0.5) * 180.0 / 32
    lon = np.arange(64) * 360.0 / 64 - 360.0 / 128
    tp = xr.DataArray(
        fine["tp"].values[:, rows][:, :, columns],
        dims=("time", "latitude", "longitude"),
        coords={
            "time": fine["time"],
            "latitude": ("latitude", lat, {"units": "degrees_north"}),
            "longitude": ("longitude", lon % 360.0, {"units": "degrees_east"}),
        },
        attrs=fields["tp"].attrs,
    )
    truth = tp.to_dataset(name="tp").sortby("longitude").chunk(time=1)
    own = fields.aurora.finetune("tp", out=tmp_path / "own", **QUICK)
    other = fields.drop_vars("tp").aurora.finetune(
        "tp", truth=truth, out=tmp_path / "other", **QUICK
    )
    a, b = (m.config["targets"]["tp"]["statistics"] for m in (own, other))
    assert b["mean"] == pytest.approx(a["mean"], rel=1e-5)
    assert b["max"] == pytest.approx(a["max"], rel=1e-4)


def test_categories_go_to_the_nearest_point() -> None:
    from xaurora.fields.grid import regridding

    lat, lon = np.array([2.0, 1.0, 0.0]), np.arange(4.0)
    da = xr.DataArray(
        np.arange(12.0).reshape(1, 3, 4),
        dims=("time", "latitude", "longitude"),
        coords={"time": [0], "latitude": lat, "longitude": lon},
    )
    out = regridding.onto(da, np.array([1.9, 0.2]), np.array([0.4, 2.6]), method="nearest")
    np.testing.assert_array_equal(out.values[0], [[0.0, 3.0], [8.0, 11.0]])
    with pytest.raises(errors.TruthError, match="runs from"):
        regridding.onto(da, np.array([1.9, 0.2]), np.array([10.0, 12.0]), method="nearest")


def _refuses(call, kind: type, match: str, out: Path) -> None:
    with pytest.raises(kind, match=match):
        call(out=out)
    assert not out.exists(), "nothing half-written stays behind"


def test_truths_that_do_not_fit_are_refused(
    europe: xr.Dataset, fields: xr.Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    one_hour = europe[["tp"]].assign_coords(time=europe["time"] + H)

    def tune(ds: xr.Dataset, truth: object, **more: object):
        return lambda out: ds.aurora.finetune("tp", truth=truth, out=out, **{**QUICK, **more})

    # the data hold tp as well, or another variable that the truth holds, or nothing that could be
    # compared
    _refuses(tune(europe, one_hour), errors.TruthError, r"its times are off by \+1 h", out)
    shifted = europe.assign_coords(time=europe["time"] - H)
    _refuses(
        tune(europe.drop_vars("tp"), shifted), errors.TruthError, r"its times are off by -1 h", out
    )
    _refuses(tune(europe.drop_vars("tp"), one_hour), errors.TruthError, "all shifted by .1 h", out)
    # totals over other periods than the data's, and gaps at the start, hide nothing
    totals = europe[["tp"]].assign(tp=europe.aurora.accumulate("tp", "6h"))
    _refuses(
        tune(europe, totals.assign_coords(time=europe["time"] + H)),
        errors.TruthError,
        r"are off by \+1 h",
        out,
    )
    late = fields[["tp"]].isel(time=slice(0, 39)).copy(deep=True)
    late["tp"][:2] = np.nan
    late = late.assign_coords(time=fields["time"].values[1:])
    _refuses(tune(fields, late), errors.TruthError, r"are off by \+6 h", out)
    six = fields[["tp"]].assign_coords(time=fields["time"] + H)
    _refuses(
        tune(fields, six),
        errors.TruthError,
        "no time in common with the data .* differ by 60 minutes",
        out,
    )
    old = fields[["tp"]].assign_coords(time=fields["time"] - np.timedelta64(20 * 365, "D"))
    _refuses(tune(fields, old), errors.TruthError, "no time in common", out)
    part = fields[["tp"]].isel(latitude=slice(4, 12), longitude=slice(0, 20, 1))
    part = part.assign_coords(longitude=part["longitude"] + 1.0)
    part["longitude"].attrs["units"] = "degrees_east"
    _refuses(tune(fields.drop_vars("tp"), part), errors.TruthError, "but the target grid", out)
    _refuses(tune(fields, fields["tp"]), errors.KindError, "truth must be a Dataset", out)
    _refuses(
        tune(fields, xaurora.persistence(fields, ["tp"])), errors.KindError, "is a forecast", out
    )
    _refuses(tune(fields, fields[["t2m"]]), errors.TargetError, "'tp' is not in the truth", out)
    four = europe[["tp"]].isel(time=slice(0, None, 6))
    _refuses(tune(europe.drop_vars("tp"), four), errors.AccumulationError, "is 6-hourly", out)
    # a truth that fits is taken, also one that starts a step later
    later = fields.isel(time=slice(0, 30)).drop_vars("tp")
    assert tune(later, fields[["tp"]].isel(time=slice(1, 31)), steps=1)(
        out=tmp_path / "later"
    ).targets == ["tp"]
    assert tune(europe.drop_vars("tp"), europe[["tp"]], steps=1)(out=out).targets == ["tp"]


def test_mixed_expver_is_refused(fields: xr.Dataset, tmp_path: Path) -> None:
    versions = np.where(np.arange(40) < 30, "0001", "0005")
    mixed = fields.assign_coords(expver=("time", versions))
    _refuses(
        lambda out: mixed.aurora.finetune("tp", out=out, **QUICK),
        errors.TargetError,
        "mixes final ERA5",
        tmp_path / "run",
    )
    assert any("mixes final" in p.message for p in mixed.aurora.check("tp").problems)
    final = mixed.isel(time=[str(v).lstrip("0") == "1" for v in mixed.expver.values])
    assert final.aurora.finetune("tp", out=tmp_path / "run", **{**QUICK, "steps": 1}).targets == [
        "tp"
    ]


def test_all_dry_is_refused(fields: xr.Dataset, tmp_path: Path) -> None:
    for where in (slice(0, 31), slice(31, None)):
        dry = fields.copy(deep=True)
        dry["tp"][where] = 0.0
        _refuses(
            lambda out, dry=dry: dry.aurora.finetune("tp", out=out, **QUICK),
            errors.SplitError,
            "dry everywhere in the training or validation part",
            tmp_path / "run",
        )
    still = fields.assign(tcwv=(fields["t2m"] * 0.0 + 7.0).assign_attrs(units="kg m-2"))
    _refuses(
        lambda out: still.aurora.finetune("tcwv", out=out, **QUICK),
        errors.SplitError,
        "is constant in space and time",
        tmp_path / "run",
    )


def test_one_hour_totals_that_claim_six_are_refused_over_the_globe() -> None:
    """By magnitude: 0.1 mm in six hours, averaged over the globe, is what falls in one."""
    ds = xaurora.synthetic(shape=(16, 32), times=12)
    assert 3e-4 < float(ds["tp"].mean()) < 1.5e-3
    hour = ds.assign(tp=(ds["tp"] * (1.2e-4 / float(ds["tp"].mean()))).assign_attrs(ds["tp"].attrs))
    assert "1-hour totals, downloaded every 6 hours" in hour.aurora.check("tp").problems[0].message
    with pytest.raises(errors.UnitsError, match="that of one hour"):
        hour.aurora.finetune("tp", progress=False, model="tiny")
    with pytest.raises(errors.UnitsError, match="that of one hour"):
        ds.drop_vars("tp").aurora.finetune("tp", truth=hour[["tp"]], progress=False, model="tiny")
    tiny = ds.assign(tp=(ds["tp"] * 1e-6).assign_attrs(ds["tp"].attrs))
    assert "probably a rate" in tiny.aurora.check("tp").problems[0].message


# --- as an input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["full", "frozen"])
def test_as_input_starts_as_if_it_were_not_there(
    fields: xr.Dataset, tmp_path: Path, strategy: str
) -> None:
    common = {**QUICK, "strategy": strategy, "steps": 1}
    plain = fields.aurora.finetune("tp", out=tmp_path / "plain", **common)
    fed = fields.aurora.finetune("tp", as_input=True, out=tmp_path / "fed", **common)
    # the embedding starts at zero: the first loss is the same to rounding (one more summand in the
    # convolution)
    assert fed.history[0]["head_loss"] == pytest.approx(plain.history[0]["head_loss"], rel=1e-5)
    embedding = fed.model.base.encoder.surf_token_embeds.weights["tp"]
    assert float(embedding.detach().abs().max()) > 0, "and is trained"
    assert "fed back: tp" in fed.summary()


def test_as_input_forecasts_save_and_load(fields: xr.Dataset, tmp_path: Path) -> None:
    fed = fields.aurora.finetune("tp", as_input=True, out=tmp_path / "fed", **QUICK)
    with torch.no_grad():  # so that what it does shows
        fed.model.base.encoder.surf_token_embeds.weights["tp"].normal_(std=0.3)
    fed.save(tmp_path / "saved")
    loaded = xaurora.load(tmp_path / "saved")
    t = fields["time"].values[5]
    a, b = (fields.aurora.predict("18h", model=m, time=t, progress=False) for m in (fed, loaded))
    xr.testing.assert_identical(a["tp"], b["tp"])
    wet = fields.copy(deep=True)
    wet["tp"][5] *= 3.0
    changed = wet.aurora.predict("18h", model=loaded, time=t, progress=False)
    assert not np.allclose(changed["tp"], a["tp"]), "the encoder sees it"
    assert not np.allclose(changed["t2m"].isel(lead_time=2), a["t2m"].isel(lead_time=2))
    with pytest.raises(errors.TargetError, match="'tp' is not in the data"):
        fields.drop_vars("tp").aurora.predict("6h", model=loaded, time=t, progress=False)
    holes = fields.copy(deep=True)
    holes["tp"][5, 3, 3] = np.nan
    with pytest.raises(errors.MissingValuesError, match="'tp' has 1 missing value"):
        holes.aurora.predict("6h", model=loaded, time=t, progress=False)


def test_a_rollout_feeds_the_heads_mean_back(fields: xr.Dataset, tmp_path: Path) -> None:
    """What stands under the target's name after a step, and enters the next, is the head's mean in
    the encoder's form.
    """
    from xaurora.fields import conventions, targets, truth
    from xaurora.fields import requirements as needs
    from xaurora.model import batch, rollout

    fed = fields.aurora.finetune("tp", as_input=True, out=tmp_path / "fed", **QUICK)
    canonical = conventions.standardise(fields)
    cut, _ = needs.select_and_crop(canonical, fed.needs)
    cut = targets.with_inputs(cut, truth.history(None, canonical, ["tp"]), fed.model.inputs)
    with torch.inference_mode():
        first, second = rollout.steps(fed.model, batch.to_batch(cut, [fields["time"].values[5]]), 2)
    for step in (first, second):
        mean = fed.head.mean(fed.head.parameters_of(step.raw["tp"]))
        expected = torch.log1p(mean / fed.model.inputs["tp"].epsilon)
        assert torch.equal(step.prediction.surf_vars["tp"][:, 0], expected)
        assert float(expected.max()) > 0


def test_as_input_with_hourly_rain_skips_times_without_a_whole_total(
    europe: xr.Dataset, tmp_path: Path
) -> None:
    fed = europe.aurora.finetune("tp", as_input=True, out=tmp_path / "fed", **QUICK)
    assert fed.config["training"]["samples"] == 7  # of twelve, those from 11 UTC on
    assert fed.config["training"]["skipped"]["without the target at one of the input times"] == 5
    forecast = europe.aurora.predict("6h", model=fed, variables=["tp"], progress=False)
    assert str(forecast["init_time"].values[0])[:13] == "2020-01-01T11"
    with pytest.raises(errors.InitTimeError, match="lack a value at that time or six hours"):
        europe.aurora.predict("6h", model=fed, time="2020-01-01T07", progress=False)


def test_frozen_and_fed_keeps_the_artefact_small(
    fields: xr.Dataset, aurora_model, tmp_path: Path
) -> None:
    fed = fields.aurora.finetune(
        "tp", model=aurora_model, as_input=True, steps=2, out=tmp_path / "run", progress=False
    )
    assert not (tmp_path / "run" / "best" / "model.safetensors").exists()
    assert "tp" not in aurora_model.encoder.surf_token_embeds.weights, (
        "the caller's model is left alone"
    )
    loaded = xaurora.load(tmp_path / "run", base=aurora_model)
    t = fields["time"].values[5]
    for model in (fed, loaded):
        assert "tp" in model.model.inputs
    a, b = (
        fields.aurora.predict("6h", model=m, time=t, progress=False)["tp"] for m in (fed, loaded)
    )
    xr.testing.assert_identical(a, b)
    assert "tp" not in aurora_model.encoder.surf_token_embeds.weights
    # going on from there, with the same target among the inputs
    further = fields.aurora.finetune(
        "tp", model=loaded, steps=2, out=tmp_path / "further", progress=False
    )
    again = xaurora.load(tmp_path / "further", base=aurora_model)
    a, b = (
        fields.aurora.predict("6h", model=m, time=t, progress=False)["tp"] for m in (further, again)
    )
    xr.testing.assert_identical(a, b)
    other = fields.assign(smell=(fields["v10"] * 2.0).assign_attrs(units="sniff"))
    with pytest.raises(errors.OptionError, match=r"tuned with .'tp'. among its inputs"):
        other.aurora.finetune("smell", model=loaded, out=tmp_path / "other", progress=False)


def test_fed_targets_with_gaps_and_going_on(rich: xr.Dataset, tmp_path: Path) -> None:
    holes = rich.assign(
        tp=rich["tp"].where(rich["time"] != rich["time"][10]).assign_attrs(rich["tp"].attrs)
    )
    fed = holes.aurora.finetune("tp", as_input=True, out=tmp_path / "fed", **QUICK)
    assert fed.config["training"]["skipped"]["without the target at one of the input times"] == 2
    late = rich[["tp"]].isel(time=slice(5, None))
    on = rich.drop_vars("tp").aurora.finetune(
        "tp", truth=late, model=fed, out=tmp_path / "on", steps=1, progress=False
    )
    assert on.config["training"]["skipped"]["without the target at one of the input times"] > 0
    wetter = rich.assign(tp=(rich["tp"] * 3.0).assign_attrs(rich["tp"].attrs))
    again = wetter.aurora.finetune(
        "tp", model=fed, as_input=True, out=tmp_path / "again", steps=1, progress=False
    )
    assert again.model.inputs == fed.model.inputs, (
        "the encoder goes on reading what it has learnt to read"
    )


@pytest.mark.parametrize("name", ["a.b", "values", "type", "x/y"])
def test_odd_names_are_learnt_saved_and_forecast(
    rich: xr.Dataset, tmp_path: Path, name: str
) -> None:
    ds = rich.rename(smell=name)
    tuned = ds.aurora.finetune(name, out=tmp_path / "run", **{**QUICK, "steps": 1})
    loaded = xaurora.load(tmp_path / "run")
    forecast = ds.aurora.predict(
        "6h", model=loaded, time=ds["time"].values[5], variables=[name], progress=False
    )
    assert name in forecast
    assert tuned.targets == loaded.targets
    if name == "values":
        with pytest.raises(errors.OptionError, match="cannot be the name of an encoder input"):
            ds.aurora.finetune(name, as_input=True, out=tmp_path / "no", **QUICK)


def test_a_target_twice_or_empty_is_refused(fields: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(errors.TargetError, match="occurs more than once"):
        fields.aurora.finetune(["tp", "total_precipitation"], out=tmp_path / "run", **QUICK)
    assert fields.aurora.check(["tp", "msl"], model="tiny").ok
    empty = fields.assign(tp=(fields["tp"] * np.nan).assign_attrs(fields["tp"].attrs))
    with pytest.raises(errors.MissingVariableError, match="contains only missing values"):
        empty.aurora.plot("tp")


def test_a_target_that_the_model_predicts_is_refused(
    fields: xr.Dataset, aurora_model, tmp_path: Path
) -> None:
    with pytest.raises(errors.TargetError, match="this model already predicts"):
        fields.aurora.finetune("t2m", model=aurora_model, out=tmp_path / "run", progress=False)
    tuned = fields.aurora.finetune("t2m", out=tmp_path / "run", **{**QUICK, "steps": 1})
    assert "2t" not in tuned.needs.surface
    assert tuned.targets == ["2t"]
    forecast = fields.aurora.predict(
        "6h", model=tuned, time=fields["time"].values[5], progress=False
    )
    assert forecast["t2m"].attrs["distribution"] == "normal"


def test_a_truth_in_memory_on_a_grid_of_its_own(fields: xr.Dataset, tmp_path: Path) -> None:
    truth = fields[["tp"]].interp(
        latitude=np.arange(87.75, -88.0, -4.5),
        longitude=np.arange(0.0, 360.0, 5.0),
        method="nearest",
    )
    truth["tp"].attrs.update(fields["tp"].attrs)
    masked = truth.where(abs(truth["latitude"]) <= 60.0)
    tuned = fields.aurora.finetune("tp", truth=masked, out=tmp_path / "run", **QUICK)
    assert np.isfinite([e["loss"] for e in tuned.history]).all()

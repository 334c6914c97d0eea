"""Heads and adapters on Aurora 1.5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import xaurora
from xaurora import LatentOptions, TunedAurora, errors
from xaurora.model.tiny import build_tiny_v15
from xaurora.sources import synthesis


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(times=460, seed=7, model="v1.5")


def tune(ds: xr.Dataset, out: Any, **options: Any) -> TunedAurora:
    options = {"model": "tiny-v1.5", "steps": 3, "batch_size": 2, "workers": 0} | options
    return ds.aurora.finetune("tp", out=out, progress=False, **options)


@pytest.mark.thorough
def test_a_frozen_head_gains_most_of_what_is_achievable(ds: xr.Dataset, tmp_path) -> None:
    """Training takes 15 s alone: a score near the achievable one needs some hundred steps."""
    past, present = ds.isel(time=slice(None, 400)), ds.isel(time=slice(400, None))
    tuned = tune(
        past, tmp_path / "run", model="tiny-v1.5-pretrained", steps=70, batch_size=4, validations=1
    )
    fc = present.aurora.predict("6h", model=tuned, variables=["tp"], progress=False)
    fc = fc.isel(init_time=slice(None, -1))
    found = fc.aurora.evaluate(present, metrics=["crps"], progress=False)
    crps = found["tp"].sel(metric="crps", region="global").item()
    weights = np.cos(np.deg2rad(ds.latitude))

    def of(field: xr.DataArray) -> float:
        return field.sel(init_time=fc.init_time).weighted(weights).mean().item()

    best, normal = of(synthesis.perfect_crps(ds)), of(synthesis.climatology_crps(ds))
    assert (normal - crps) / (normal - best) >= 0.9


@pytest.mark.parametrize("model", ["tiny-v1.5", "tiny-v1.5-ensemble"])
def test_latents_change_no_weights(ds: xr.Dataset, tmp_path, model: str) -> None:
    few = ds.isel(time=slice(None, 40))
    with_latents = tune(few, tmp_path / "a", model=model, latents=LatentOptions(dtype="float32"))
    without = tune(few, tmp_path / "b", model=model, latents=False)
    for name, values in with_latents.heads.state_dict().items():
        # Latents are computed one sample at a time: another batch size, another order of sums.
        # AdamW divides by the gradient's size, so a weight may differ by 1 % of its step of 1e-3.
        torch.testing.assert_close(values, without.heads.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["frozen", "decoder", "lora", "full"])
def test_strategies_train_save_and_forecast(ds: xr.Dataset, tmp_path, strategy: str) -> None:
    few = ds.isel(time=slice(None, 40))
    base_loss = {} if strategy == "frozen" else {"base_loss": 1.0}
    tuned = tune(few, tmp_path / "run", strategy=strategy, **base_loss)
    assert np.isfinite(tuned.history[-1]["loss"])
    again = xaurora.load(tmp_path / "run")
    assert again.needs == tuned.needs
    forecasts = [
        few.aurora.predict("12h", model=m, time=few.time.values[20], progress=False)
        for m in (tuned, again)
    ]
    assert "sf" not in forecasts[0]  # it would take six forward passes for each of the head's
    snow = few.aurora.predict(
        "6h", model=tuned, time=few.time.values[20], variables=["tp", "sf"], progress=False
    )
    assert snow["sf"].attrs["cell_methods"] == "time: sum (interval: 6 hours)"
    for name in ("tp", "t2m", "blh", "sd"):
        np.testing.assert_array_equal(forecasts[0][name].values, forecasts[1][name].values)
    assert "tp_shape" in forecasts[0]  # the head's rain, not the base's own
    with pytest.raises(errors.LeadTimeError, match="heads of tp forecast steps of 6 hours"):
        few.aurora.predict("6h", step="1h", model=tuned, progress=False)


@pytest.fixture(scope="module")
def with_snow(ds: xr.Dataset) -> xr.Dataset:
    few = ds.isel(time=slice(None, 16))
    snow = few.tp.where(few.t2m < 275, 0.0)
    return few.assign(sf=snow.assign_attrs(few.tp.attrs, long_name="Snowfall"))


@pytest.mark.parametrize("latents", [LatentOptions(dtype="float32"), False])
def test_own_heads_begin_as_the_model_and_share_latents_with_others(
    with_snow: xr.Dataset, tmp_path, latents: LatentOptions | bool
) -> None:
    """Rain of a head that has not learnt is the model's own, at both lead times."""
    tuned = with_snow.aurora.finetune(
        ["tp", "sf"],
        model="tiny-v1.5-pretrained",
        head={"tp": "own", "sf": "csgd"},
        steps=2,
        head_learning_rate=1e-12,
        latents=latents,
        workers=0,
        out=tmp_path / "run",
        progress=False,
    )
    options = {"time": with_snow.time.values[9], "progress": False}
    again = xaurora.load(tmp_path / "run")
    fc = with_snow.aurora.predict("12h", model=again, variables=["tp", "sf"], **options)
    own = with_snow.aurora.predict("12h", model="tiny-v1.5-pretrained", variables="tp", **options)
    # The same operations in the same order, but for the layer that is applied to six hours at once.
    np.testing.assert_allclose(fc.tp, own.tp, rtol=1e-5, atol=1e-8)
    assert "sf_shape" in fc
    assert "tp_value" not in fc
    whole = with_snow.aurora.predict("6h", model=tuned, variables=["tp", "t2m"], **options)
    np.testing.assert_array_equal(whole.tp, fc.tp.isel(lead_time=[0]))


def test_own_heads_learn_with_and_without_latents(with_snow: xr.Dataset, tmp_path) -> None:
    options = {"model": "tiny-v1.5-pretrained", "head": "own", "target": "sf", "steps": 4}
    runs = [
        with_snow.aurora.finetune(
            **options, latents=kept, workers=0, out=tmp_path / str(i), progress=False
        )
        for i, kept in enumerate((LatentOptions(dtype="float32"), False))
    ]
    first, second = (run.heads.state_dict() for run in runs)
    own = runs[0].model.base.decoder.surf_heads["scaled_sf_1h"]
    assert not torch.equal(first["heads.of_sf.trunk.out.weight"], own.weight)
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=1e-4, atol=1e-5)  # as above
    with pytest.raises(errors.OptionError, match="predicts a single value"):
        with_snow.aurora.predict("6h", model=runs[0], members=2, progress=False)


def test_own_heads_of_an_ensemble_see_the_noise_of_each_hour(
    with_snow: xr.Dataset, tmp_path
) -> None:
    """Member 0 is the model's own, whether only the head runs or the hours before it too."""
    model = "tiny-v1.5-ensemble"
    untrained = {"head": "own", "head_learning_rate": 1e-12, "latents": False}
    tuned = tune(with_snow, tmp_path / "run", model=model, **untrained)
    options = {"time": with_snow.time.values[9], "progress": False}
    own = with_snow.aurora.predict("12h", model=model, members=2, variables="tp", **options)
    for names in (["tp"], ["tp", "t2m"], ["tp", "sf"]):
        fc = with_snow.aurora.predict("12h", model=tuned, variables=names, **options)
        np.testing.assert_allclose(fc.tp, own.tp.sel(number=0), rtol=1e-5, atol=1e-8)


def test_own_amounts_beside_a_target_that_is_an_input(with_snow: xr.Dataset, tmp_path) -> None:
    tuned = tune(with_snow, tmp_path / "run", as_input=True, latents=False)
    options = {"time": with_snow.time.values[9], "model": tuned, "progress": False}
    both = with_snow.aurora.predict("12h", variables=["tp", "sf"], **options)
    alone = with_snow.aurora.predict("12h", variables=["tp"], **options)
    np.testing.assert_array_equal(both.tp, alone.tp)
    assert np.isfinite(both.sf).all()


def test_own_heads_can_be_followed_by_others(with_snow: xr.Dataset, tmp_path) -> None:
    first = tune(with_snow, tmp_path / "own", head="own", steps=1)
    assert "tp with Aurora's own head" in first.summary()
    assert "neighbours" not in (tmp_path / "own" / "best" / "README.md").read_text()
    again = tune(with_snow, tmp_path / "again", head="own", steps=1, model=first, latents=False)
    other = tune(with_snow, tmp_path / "other", steps=1, model=again, latents=False)
    assert other.heads["tp"].options.family == "csgd"


@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_own_heads_train_the_backbone_through_six_hours(
    with_snow: xr.Dataset, tmp_path, strategy: str
) -> None:
    tuned = tune(with_snow, tmp_path / "run", steps=1, head="own", strategy=strategy, base_loss=0.0)
    assert np.isfinite(tuned.history[-1]["gradient_norm"])
    assert tuned.history[-1]["gradient_norm"] > 0


def test_own_heads_need_a_model_that_has_them(ds: xr.Dataset, tmp_path) -> None:
    few = ds.isel(time=slice(None, 16))
    for target, model, words in (
        ("tp", "tiny", "decoder of 'tp', but model 'tiny' has none"),
        ("sst", "tiny-v1.5", "the head 'own' is for precipitation, but 'sst' is"),
    ):
        few = few.assign(sst=few.t2m.assign_attrs(long_name="SST", standard_name="x"))
        with pytest.raises(errors.OptionError, match=words):
            few.aurora.finetune(target, model=model, head="own", out=tmp_path / "r", steps=1)
    estimate = few.aurora.estimate("tp", model="tiny-v1.5", head="own")
    assert estimate.total - estimate.trainable == sum(
        p.numel() for p in build_tiny_v15(stochastic=False).parameters()
    )


def test_what_is_missing_is_named_before_training(ds: xr.Dataset, tmp_path) -> None:
    with pytest.raises(errors.MissingVariableError, match="tcwv"):
        tune(ds.isel(time=slice(None, 40)).drop_vars("tcwv"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_estimate(ds: xr.Dataset) -> None:
    few = ds.isel(time=slice(None, 40))
    estimate = few.aurora.estimate("tp", model="v1.5", device="gpu", strategy="frozen")
    # The published model has 1.26 billion parameters.
    assert 1.25e9 < estimate.total < 1.27e9

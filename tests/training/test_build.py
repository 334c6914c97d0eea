"""Heads and adapters on Aurora 1.5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import xaurora
from xaurora import LatentOptions, TunedAurora, errors
from xaurora.sources import synthesis


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(times=460, seed=7, model="v1.5")


def tune(ds: xr.Dataset, out: Any, **options: Any) -> TunedAurora:
    options = {"model": "tiny-v1.5", "steps": 3, "batch_size": 2, "workers": 0} | options
    return ds.aurora.finetune("tp", out=out, progress=False, **options)


def test_a_frozen_head_gains_most_of_what_is_achievable(ds: xr.Dataset, tmp_path) -> None:
    """Training takes 15 s alone: a score near the achievable one needs some hundred steps."""
    past, present = ds.isel(time=slice(None, 400)), ds.isel(time=slice(400, None))
    tuned = tune(past, tmp_path / "run", model="tiny-v1.5-pretrained", steps=120, batch_size=4)
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


def test_what_is_missing_is_named_before_training(ds: xr.Dataset, tmp_path) -> None:
    with pytest.raises(errors.MissingVariableError, match="tcwv"):
        tune(ds.isel(time=slice(None, 40)).drop_vars("tcwv"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_estimate(ds: xr.Dataset) -> None:
    few = ds.isel(time=slice(None, 40))
    estimate = few.aurora.estimate("tp", model="v1.5", device="gpu", strategy="frozen")
    # The published model has 1.26 billion parameters.
    assert 1.25e9 < estimate.total < 1.27e9

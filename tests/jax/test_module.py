"""Forecasts with ``engine="jax"``."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from helpers import make_aurora, run_script

import xaurora
from xaurora.errors import MissingExtraError, OptionError


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(shape=(16, 32), times=24)


def _equal(found: xr.Dataset, expected: xr.Dataset, limit: float) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        error = np.abs(found[name].values - values.values).max()
        assert error <= limit * np.abs(values.values).max(), name


def test_forecasts_are_those_of_torch(ds: xr.Dataset, tuned: xaurora.TunedAurora) -> None:
    """All of a tuned model's output, with a last batch that is filled up."""
    asked = {"lead": "12h", "model": tuned, "quantiles": [0.9], "progress": False}
    times = ds["time"].values[1:4]
    expected = ds.aurora.predict(time=times, **asked)
    found = ds.aurora.predict(time=times, engine="jax", batch_size=2, **asked)
    _equal(found, expected, 1e-4)
    assert found.attrs["xaurora_engine"] == "jax"
    assert found["t2m"].dtype == expected["t2m"].dtype


def test_a_region_and_a_store(ds: xr.Dataset, tuned: xaurora.TunedAurora, tmp_path: Path) -> None:
    """A window of the globe has the values that it has in the whole forecast."""
    asked = {"model": tuned, "engine": "jax", "progress": False}
    times = ds["time"].values[1:3]
    whole = ds.aurora.predict(time=times, **asked)
    part = ds.aurora.predict(
        time=times, region=(0, 40, 40, 100), store=tmp_path / "f.zarr", **asked
    )
    there = whole.sel(latitude=part["latitude"], longitude=part["longitude"])
    _equal(part, there, 1e-5)


def test_bf16_is_as_good_as_in_torch(ds: xr.Dataset, tuned: xaurora.TunedAurora) -> None:
    """Beside float32, errors of both engines are alike, and there are some."""
    asked = {"model": tuned, "time": ds["time"].values[2], "progress": False}
    exact = ds.aurora.predict(**asked)
    torch, ours = (ds.aurora.predict(precision="bf16", engine=e, **asked) for e in ("torch", "jax"))
    for name in exact:
        errors = [float(((v[name] - exact[name]) ** 2).mean() ** 0.5) for v in (torch, ours)]
        assert 0.5 * errors[0] < errors[1] < 1.5 * errors[0], name


def test_64_bit_mode_makes_no_difference(ds: xr.Dataset, tuned: xaurora.TunedAurora) -> None:
    asked = {"model": tuned, "engine": "jax", "time": ds["time"].values[2], "progress": False}
    usual = ds.aurora.predict(**asked)
    with jax.enable_x64(True):
        _equal(ds.aurora.predict(**asked), usual, 1e-5)


def test_a_region_across_greenwich() -> None:
    ds = xaurora.synthetic(shape=(32, 64), times=3)
    east = ds.isel(latitude=slice(4, 28)).roll(longitude=12, roll_coords=True)
    box = east.isel(longitude=slice(0, 24))
    box = box.assign_coords(longitude=(box["longitude"] + 180) % 360 - 180)
    model = make_aurora()
    asked = {"model": model, "progress": False}
    _equal(box.aurora.predict(engine="jax", **asked), box.aurora.predict(**asked), 1e-5)


TWO_DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
import numpy as np
import xaurora
from helpers import make_aurora
ds = xaurora.synthetic(shape=(16, 32), times=24)
model = make_aurora(
    surf_vars=("2t",), static_vars=("lsm",), atmos_vars=("q",), encoder_depths=(1, 1),
    decoder_depths=(1, 1), encoder_num_heads=(2, 4), decoder_num_heads=(4, 2),
)
asked = dict(model=model, progress=False, lead="6h", time=ds.time.values[1:4])
one = ds.aurora.predict(**asked)
two = ds.aurora.predict(engine="jax", devices=2, batch_size=2, **asked)
for name in one:
    assert abs(one[name] - two[name]).max() <= 1e-5 * abs(one[name]).max(), name
run = dict(model=model, steps=3, validations=1, progress=False)
a = ds.aurora.finetune(batch_size=4, out=sys.argv[1] + "/a", **run)
b = ds.aurora.finetune(engine="jax", batch_size=2, devices=2, out=sys.argv[1] + "/b", **run)
np.testing.assert_allclose(*([h["loss"] for h in m.history] for m in (a, b)), rtol=1e-4)
"""


def test_two_devices_share_a_batch(tmp_path: Path) -> None:
    """On two devices a forecast and a run are those of Torch. A process of its own has them."""
    run_script(TWO_DEVICES, tmp_path)


def test_more_devices_than_there_are(ds: xr.Dataset) -> None:
    with pytest.raises(
        OptionError, match=r"devices=9, but JAX sees 1 device\(s\) of the kind 'cpu'"
    ) as e:
        ds.aurora.predict(model="tiny-pretrained", engine="jax", devices=9, progress=False)
    assert e.value.fix == "devices=1"


def test_the_extra_is_named(ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "equinox", None)
    for call in (
        lambda: ds.aurora.predict(model="tiny-pretrained", engine="jax"),
        lambda: ds.aurora.finetune(model="tiny-pretrained", engine="jax"),
        lambda: ds.aurora.sensitivity(
            "t2m", region="europe", model="tiny-pretrained", engine="jax"
        ),
    ):
        with pytest.raises(MissingExtraError, match="requires the package equinox") as error:
            call()
        assert 'pip install "xaurora[jax]"' in error.value.fix


def test_what_the_engine_lacks_is_named(ds: xr.Dataset) -> None:
    with pytest.raises(OptionError, match="does not support compile=True"):
        ds.aurora.predict(model="tiny-pretrained", engine="jax", compile=True)
    with pytest.raises(OptionError, match="engine must be one of 'torch', 'jax'"):
        ds.aurora.predict(model="tiny-pretrained", engine="tensorflow")
    with pytest.raises(OptionError, match="strategy='peft', replay_buffer"):
        ds.aurora.finetune(
            model="tiny-pretrained", strategy="peft", engine="jax", rollout_steps=2, replay_buffer=8
        )


WITHOUT = """
import sys, xaurora
ds = xaurora.synthetic(shape=(16, 32), times=3)
ds.aurora.predict(model="tiny-pretrained", progress=False)
print(sorted({m.partition(".")[0] for m in sys.modules} & {"jax", "equinox", "optax"}))
"""


def test_nothing_of_jax_is_imported_without_it() -> None:
    assert run_script(WITHOUT).strip().endswith("[]")

"""Training with the optimiser in host memory, beside training on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import xaurora
from xaurora import TunedAurora, errors
from xaurora.training.loop import Trainer

QUICK: dict[str, Any] = {
    "model": "tiny-pretrained",
    "strategy": "full",
    "steps": 3,
    "progress": False,
    "validations": 2,
    "optimizer_state": "device",
    "activation_checkpointing": False,
}
FURTHER = {"gradient_accumulation": 2, "ema": 0.9, "batch_size": 2}


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(shape=(8, 16), times=40)


def _losses(tuned: TunedAurora) -> np.ndarray:
    return np.array([entry["loss"] for entry in tuned.history])


def _same_weights(one: TunedAurora, other: TunedAurora) -> bool:
    mine, yours = one.model.state_dict(), other.model.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[k], yours[k]) for k in mine)


@pytest.mark.parametrize("precision", ["32", "bf16", "bf16-all"])
def test_every_way_of_saving_memory_trains_the_same(
    ds: xr.Dataset, tmp_path: Path, precision: str
) -> None:
    """To the bit on a CPU, where the same kernels run: also with several batches in a step and a
    moving average. bf16 weights are what autocast makes of the float32 ones.
    """
    options = {**QUICK, "precision": precision, **FURTHER}
    plain = ds.aurora.finetune("tp", out=tmp_path / "plain", **options)
    assert len(set(_losses(plain))) == 3
    way = {"activation_checkpointing": "offload", "optimizer_state": "host"}
    saved = ds.aurora.finetune("tp", out=tmp_path / "saved", **{**options, **way})
    assert np.array_equal(_losses(saved), _losses(plain))
    assert _same_weights(saved, plain)
    assert next(saved.model.parameters()).dtype == torch.float32
    for part in ("best", "last"):
        one, other = (
            xaurora.load(tmp_path / "saved" / part),
            xaurora.load(tmp_path / "plain" / part),
        )
        assert _same_weights(one, other), part


def test_a_run_is_resumed_in_another_way(
    ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**QUICK, "precision": "bf16", "checkpoint_every": 1}
    plain = ds.aurora.finetune("tp", out=tmp_path / "plain", **options)
    real = Trainer._record

    def stop(self: Trainer, entry: dict[str, Any]) -> None:
        if entry["step"] == 2:
            raise KeyboardInterrupt
        real(self, entry)

    monkeypatch.setattr(Trainer, "_record", stop)
    way = {"activation_checkpointing": True, "optimizer_state": "host"}
    with pytest.raises(KeyboardInterrupt):
        ds.aurora.finetune("tp", out=tmp_path / "run", **{**options, **way})
    monkeypatch.setattr(Trainer, "_record", real)
    resumed = ds.aurora.finetune("tp", out=tmp_path / "run", resume=True, **options)
    assert np.array_equal(_losses(resumed), _losses(plain))
    assert _same_weights(resumed, plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_trains_the_same(ds: xr.Dataset, tmp_path: Path) -> None:
    """Within rounding, as AdamW on the host and on a GPU round differently."""
    options = {**QUICK, "precision": "32", **FURTHER}
    plain = ds.aurora.finetune("tp", out=tmp_path / "plain", **options)
    way = {"activation_checkpointing": "offload", "optimizer_state": "host"}
    saved = ds.aurora.finetune("tp", out=tmp_path / "saved", **{**options, **way})
    np.testing.assert_allclose(_losses(saved), _losses(plain), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"devices": 2}, "trains on one device only"),
        ({"precision": "fp16"}, "has no scaling of the loss"),
    ],
)
def test_what_does_not_go_with_it(ds: xr.Dataset, options: dict[str, Any], what: str) -> None:
    with pytest.raises(errors.OptionError, match=what) as caught:
        ds.aurora.finetune("tp", **{**QUICK, "optimizer_state": "host", **options})
    assert "optimizer_state='device'" in str(caught.value)

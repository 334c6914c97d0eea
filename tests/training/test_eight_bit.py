"""Training with moments of eight bits, beside float32."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import xaurora
from xaurora import StrategyOptions, TunedAurora, errors
from xaurora.training import eight_bit
from xaurora.training.loop import Trainer

pytest.importorskip("torchao")

QUICK: dict[str, Any] = {
    "model": "tiny-pretrained",
    "strategy": StrategyOptions("decoder", layers=1),
    "steps": 6,
    "progress": False,
    "validations": 1,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(shape=(16, 32), times=40)


def _losses(tuned: TunedAurora) -> np.ndarray:
    return np.array([entry["loss"] for entry in tuned.history])


def test_it_learns_nearly_the_same_and_resumes_exactly(
    ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ds.aurora.finetune("tp", out=tmp_path / "plain", **QUICK)
    options = {**QUICK, "optimizer_state": "8bit"}
    whole = ds.aurora.finetune("tp", out=tmp_path / "whole", **options)
    # The first step has the same gradient; of later updates eight bits keep about two digits.
    assert _losses(whole)[0] == _losses(plain)[0]
    np.testing.assert_allclose(_losses(whole), _losses(plain), rtol=0.02)
    assert not np.array_equal(_losses(whole)[2:], _losses(plain)[2:])
    assert xaurora.load(tmp_path / "whole").hash == whole.hash
    assert [e["learning_rate"] for e in whole.history] == pytest.approx(
        [e["learning_rate"] for e in plain.history]
    )
    real = Trainer._record

    def stop(self: Trainer, entry: dict[str, Any]) -> None:
        if entry["step"] == 5:
            raise KeyboardInterrupt
        real(self, entry)

    monkeypatch.setattr(Trainer, "_record", stop)
    with pytest.raises(KeyboardInterrupt):
        ds.aurora.finetune("tp", out=tmp_path / "run", **options)
    monkeypatch.setattr(Trainer, "_record", real)
    with pytest.raises(errors.OptionError, match="moments="):
        ds.aurora.finetune("tp", out=tmp_path / "run", resume=True, **QUICK)
    again = ds.aurora.finetune("tp", out=tmp_path / "run", resume=True, **options)
    assert again.hash == whole.hash
    assert np.array_equal(_losses(again), _losses(whole))


def test_nothing_else_runs_uncompiled(
    ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the step of the optimiser, and it leaves no trace if a run stops before it."""
    stance, seen = torch._dynamo.eval_frame._stance, []
    before = stance.stance

    def stop(*_: Any) -> Any:
        seen.append(torch._dynamo.eval_frame._stance.stance)
        raise KeyboardInterrupt

    monkeypatch.setattr("xaurora.training.losses.step_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        ds.aurora.finetune("tp", out=tmp_path / "run", optimizer_state="8bit", **QUICK)
    assert seen == [before]
    assert torch._dynamo.eval_frame._stance.stance == before


def test_memory_is_counted_as_it_is() -> None:
    parameters = [torch.nn.Parameter(torch.ones(s)) for s in ((64, 128), (100, 50), (7,), (4096,))]
    adamw = eight_bit.adamw(
        [{"params": parameters, "lr": 1e-3}], weight_decay=0.0, betas=(0.9, 0.9)
    )
    for p in parameters:
        p.grad = torch.ones_like(p)
    with eight_bit.compiled_on(torch.device("cpu")):
        adamw.step()
    held = 0
    for state in adamw.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            moment: Any = state[key]
            parts = [moment]
            if hasattr(moment, "codes"):
                parts = [moment.codes, moment.scale, moment.qmap]
            held += sum(part.nbytes for part in parts)
    assert eight_bit.Moments(parameters).nbytes == held


def test_an_estimate_takes_less(ds: xr.Dataset) -> None:
    asked: dict[str, Any] = {"model": "tiny", "strategy": "full", "device": "gpu"}
    asked |= {"activation_checkpointing": True, "head": "hurdle_lognormal"}
    plain, less = (
        ds.aurora.estimate("tp", optimizer_state=state, **asked) for state in ("device", "8bit")
    )
    # 6 bytes of 8 for each weight that trains. Small tensors keep theirs, and float32 moments take
    # some memory of their own while they are updated.
    assert 5.9 <= (plain.memory - less.memory) / plain.trainable <= 7


def test_without_torchao(ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(errors.MissingExtraError, match="requires the package torchao") as caught:
        ds.aurora.finetune("tp", out=tmp_path / "run", optimizer_state="8bit", **QUICK)
    assert "xaurora[eight-bit]" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"parallel": "fsdp"}, "does not shard moments"),
        ({"engine": "jax"}, "optimizer_state='8bit'"),
    ],
)
def test_what_does_not_go_with_it(ds: xr.Dataset, options: dict[str, Any], match: str) -> None:
    with pytest.raises(errors.OptionError, match=match):
        ds.aurora.finetune("tp", optimizer_state="8bit", **QUICK, **options)

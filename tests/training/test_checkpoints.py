"""A run that an earlier version began is continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import xarray as xr
from helpers import exact_patch_areas

from xaurora import HeadOptions, StrategyOptions, errors
from xaurora.utils import locks

SAVED = Path(__file__).resolve().parents[1] / "saved"


def test_a_run_of_an_earlier_version_goes_on(
    fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_patch_areas(monkeypatch)
    shutil.copytree(SAVED / "stopped", tmp_path / "run")
    resumed = fields.aurora.finetune(
        "tp",
        model="tiny-pretrained",
        strategy=StrategyOptions("lora", rank=2),
        head=HeadOptions("csgd", width=8),
        steps=8,
        batch_size=2,
        validations=2,
        checkpoint_every=2,
        ema=0.9,
        latents=False,
        out=tmp_path / "run",
        resume=True,
        progress=False,
    )
    expected = json.loads((SAVED / "losses.json").read_text())
    # 1e-5: other machines add float32 in another order.
    assert [e["loss"] for e in resumed.history] == pytest.approx(expected, rel=1e-5)


def test_a_folder_that_another_run_writes_to_is_refused(fields: xr.Dataset, tmp_path: Path) -> None:
    options = {"model": "tiny", "steps": 1, "validations": 1, "progress": False}
    out = tmp_path / "runs" / "tp"
    with (
        locks.only_writer(out, argument="out="),
        pytest.raises(errors.BusyError, match="is being written by process"),
    ):
        fields.aurora.finetune("tp", **options, out=out)
    assert not out.exists()
    fields.aurora.finetune("tp", **options, out=out)
    store = tmp_path / "fc.zarr"
    with (
        locks.only_writer(store, argument="store="),
        pytest.raises(errors.BusyError, match="another store="),
    ):
        fields.aurora.predict(model=out, store=store, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    fields: xr.Dataset, tmp_path: Path
) -> None:
    """It may have saved its best model already."""
    options = {"model": "tiny", "steps": 2, "validations": 1, "progress": False, "out": tmp_path}
    fields.aurora.finetune("tp", **options)
    shutil.rmtree(tmp_path / "checkpoint")
    with pytest.raises(errors.SaveError, match="contains a tuned model; it would be lost"):
        fields.aurora.finetune("tp", **options)
    fields.aurora.finetune("tp", resume=True, **options)
    assert (tmp_path / "checkpoint" / "run.json").exists()

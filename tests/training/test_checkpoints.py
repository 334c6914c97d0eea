"""A run that an earlier version began is continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import xarray as xr
from helpers import exact_patch_areas

from xaurora import HeadOptions, StrategyOptions

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

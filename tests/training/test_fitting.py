"""How a step is made to fit into the memory of a device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

import xaurora
from xaurora import errors
from xaurora.training import costs, fitting
from xaurora.training import plan as planning
from xaurora.training.fitting import Choice
from xaurora.training.options import FinetuneOptions
from xaurora.training.plan import Plan

SMALL: dict[str, Any] = {
    "model": "tiny",
    "strategy": "full",
    "head": "hurdle_lognormal",
    "batch_size": 4,
}
"""A head with few operations, and everywhere the same shapes.

Without values an operation takes as long as with them, and ten times as long with new shapes.
"""


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(shape=(16, 32), times=16)


@pytest.fixture(scope="module")
def tried(ds: xr.Dataset) -> list[Choice]:
    """All ways in which a step of a GPU may run, from the fastest."""
    return fitting.find(_plan(ds), 0.0, gpu=True)


def _plan(ds: xr.Dataset, **options: Any) -> Plan:
    given = {"target": "tp", **SMALL, **options}
    return planning.plan(ds, FinetuneOptions(**given))


@pytest.mark.parametrize(
    ("options", "gpu", "expected"),
    [
        ({}, True, [0, 1, 2, 3, 4]),
        ({}, False, [0, 1]),
        ({"strategy": "lora"}, True, [0, 1, 2]),
        ({"strategy": "frozen"}, True, [0]),
        ({"precision": "fp16"}, True, [0, 1, 2]),
        ({"optimizer_state": "host"}, False, [3]),
        ({"optimizer_state": "device"}, True, [0, 1, 2]),
        ({"activation_checkpointing": False, "optimizer_state": "device"}, True, [0]),
        ({"activation_checkpointing": "offload"}, True, [2, 4]),
        ({"activation_checkpointing": True}, False, [1]),
        ({"optimizer_state": "8bit"}, True, [5, 6, 7]),
        ({"optimizer_state": "8bit", "activation_checkpointing": False}, False, [5]),
    ],
    ids=str,
)
def test_what_the_options_leave_open(
    ds: xr.Dataset, options: dict[str, Any], gpu: bool, expected: list[int]
) -> None:
    found = fitting.measures_for(_plan(ds, **options), gpu=gpu)
    wanted = [(*fitting.MEASURES, *fitting._EIGHT_BIT)[i] for i in expected]
    assert [(m.checkpointing, m.optimizer_state) for m in found] == [
        (m.checkpointing, m.optimizer_state) for m in wanted
    ]


def test_each_takes_less_memory_of_a_gpu_and_more_of_the_host(
    ds: xr.Dataset, tried: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = [c.estimate.memory for c in tried]
    assert peaks[0] > peaks[1] > peaks[3], "storing, recomputing, and with the optimiser elsewhere"
    assert tried[3].estimate.host >= 16 * tried[3].estimate.trainable > 0 == tried[1].estimate.host
    known = iter(c.estimate for c in tried)
    monkeypatch.setattr(fitting, "estimate_plan", lambda *a, gpu: next(known))
    between = (peaks[0] + peaks[1]) / 2
    assert fitting.find(_plan(ds), between, gpu=True)[-1].measure == fitting.MEASURES[1]


def test_the_fastest_that_fits_is_used(
    ds: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**SMALL, "progress": False}
    plain = ds.aurora.estimate("tp", **options)
    memory = plain.memory - 2**20
    with caplog.at_level(logging.INFO, "xaurora"):
        ds.aurora.finetune("tp", memory=memory, out=tmp_path / "run", steps=1, **options)
    said = next(r.getMessage() for r in caplog.records if r.getMessage().startswith("Memory:"))
    assert "everything stays on the device" in said
    assert "activations are recomputed" in said
    assert "1.3 times as long" in said
    found = ds.aurora.estimate("tp", memory=memory, **options)
    assert found.fits
    assert found.way == "activations are recomputed"
    assert found.way in str(found)


def test_where_nothing_fits_the_error_names_what_would(ds: xr.Dataset, tmp_path: Path) -> None:
    options = {**SMALL, "precision": "bf16", "steps": 1, "progress": False}
    with pytest.raises(errors.MemoryTooSmallError, match="than this run takes") as caught:
        ds.aurora.finetune("tp", memory="1 MB", out=tmp_path / "run", **options)
    for part in ("batch_size=1", "strategy='lora'", "strategy='frozen'", "recomputed"):
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
    fix = caught.value.fix.split(" or ")[-1]
    namespace: dict[str, Any] = eval(f"dict({fix})")
    ds.aurora.finetune("tp", out=tmp_path / "run", **options, **namespace)
    head_alone = {**SMALL, "strategy": "frozen"}
    assert not ds.aurora.estimate("tp", memory="1 MB", **head_alone).fits


def test_a_host_that_is_too_small_is_refused(
    ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(ds, optimizer_state="host")
    monkeypatch.setattr(fitting, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(fitting, "free_memory", lambda where: 10**7)
    monkeypatch.setattr(costs, "free_memory", lambda where: 10**7)
    monkeypatch.setattr(fitting, "free_host_memory", lambda: 1000)
    with pytest.raises(errors.MemoryTooSmallError, match="of host memory, and 1 KiB are free"):
        fitting.choose(plan)


def test_a_gpu_is_estimated_on_any_machine(ds: xr.Dataset) -> None:
    there = ds.aurora.estimate("tp", device="gpu", **SMALL)
    assert there.device == "GPU"
    card = ds.aurora.estimate("tp", device="gpu", memory="24 GB", **SMALL)
    assert card.fits
    assert card.available == 24e9
    if not torch.cuda.is_available():
        assert "available" not in str(there), "it is not there, so that nothing is known to be free"
    with pytest.raises(errors.OptionError, match="device must be one of"):
        ds.aurora.estimate("tp", model="tiny", device="tpu")


def test_cards_are_compared(ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xaurora.training.estimate._COMPARED", ("tiny",))
    monkeypatch.setattr("xaurora.training.estimate.STRATEGIES", ("lora",))
    options = {**SMALL, "strategy": "frozen"}
    found = ds.aurora.estimate("tp", **options, compare=True, device="gpu")
    assert found.cards == dict.fromkeys(costs.CARDS, 1.0)
    table = found.table()
    assert all(f"{card} GB" in table for card in costs.CARDS)
    assert table.count("1.0 ×") == 2 * len(costs.CARDS)

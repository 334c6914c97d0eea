"""One process and several: the same losses, artefacts that load anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import run_script

import xaurora
from xaurora import errors
from xaurora.training import parallel
from xaurora.training.options import TrainingOptions

SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
import xaurora
ds = xaurora.synthetic(shape=(16, 32), times=40)
if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    tuned = ds.aurora.finetune(
        "tp", model="tiny", out=sys.argv[1], learning_rate=5e-5, progress=False, **options
    )
    print(tuned.hash)
"""


def _train(
    tmp_path: Path, name: str, options: dict[str, Any], *, launcher: tuple[str, ...] = ()
) -> list[float]:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [
        *(launcher or (sys.executable,)),
        str(script),
        str(tmp_path / name),
        json.dumps(options),
    ]
    environment = {
        k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")
    }
    if not launcher and "devices" not in options:
        printed = run_script(SCRIPT, tmp_path / name, json.dumps(options))
        return _losses_of(tmp_path / name, printed)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return _losses_of(tmp_path / name, done.stdout)


def _losses_of(run: Path, printed: str) -> list[float]:
    hashes = {line.split()[-1] for line in printed.splitlines() if "sha256:" in line}
    assert hashes == {xaurora.load(run).hash}, "every process returns the model that was saved"
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    options = {"strategy": "full", "steps": 8}
    one = _train(tmp_path, "one", {**options, "batch_size": 2})
    assert len(one) == 8
    ddp = _train(tmp_path, "ddp", {**options, "devices": 2})
    assert ddp == pytest.approx(one, rel=1e-5)
    fsdp = _train(tmp_path, "fsdp", {**options, "devices": 2, "parallel": "fsdp"})
    assert fsdp == pytest.approx(one, rel=1e-5)
    # a checkpoint of shards is whole: it was loaded above in a process of its own kind, and has
    # every tensor of the other
    a, b = (xaurora.load(tmp_path / n).model.state_dict() for n in ("one", "fsdp"))
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert not list(tmp_path.glob("*/checkpoint/state.pt"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("ddp", {"strategy": "lora", "rollout_steps": 3, "push_forward": True, "steps": 3}),
        (
            "ddp",
            {"strategy": "decoder", "rollout_steps": 2, "gradient_accumulation": 2, "steps": 3},
        ),
        ("fsdp", {"strategy": "peft", "ema": 0.9, "activation_checkpointing": True, "steps": 3}),
        ("fsdp", {"strategy": "frozen", "steps": 3}),
    ],
    ids=lambda v: v if isinstance(v, str) else v["strategy"],
)
def test_every_strategy_runs_on_two(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    one = _train(tmp_path, "one", {**options, "batch_size": 2})
    two = _train(tmp_path, "two", {**options, "devices": 2, "parallel": mode})
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_two_processes_share_latents(tmp_path: Path) -> None:
    """Several epochs: each process reads what the other has made. 1e-4: bfloat16 is the same in
    both, sums over processes are not.
    """
    options = {"strategy": "frozen", "epochs": 3, "latents": True, "validations": 1}
    one = _train(tmp_path, "one", {**options, "batch_size": 2})
    (tmp_path / "latents").rename(tmp_path / "of_one")
    two = _train(tmp_path, "two", {**options, "devices": 2})
    assert two == pytest.approx(one, rel=1e-4)
    stores = [
        sorted(p.name for p in next((tmp_path / n).iterdir()).glob("latents/c.*"))
        for n in ("of_one", "latents")
    ]
    assert stores[0] == stores[1]
    assert len(stores[0]) > 30


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=29517",
    )
    options = {"strategy": "frozen", "steps": 3}
    one = _train(tmp_path, "one", {**options, "batch_size": 2})
    two = _train(tmp_path, "two", options, launcher=torchrun)
    assert two == pytest.approx(one, rel=1e-5)


def test_processes_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.OptionError, match="devices=99, but this machine has") as error:
        parallel.resolve_devices(TrainingOptions(devices=99))
    assert "devices=" in error.value.fix
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    settled = parallel.resolve_devices(TrainingOptions())
    assert (settled.devices, settled.num_nodes) == (1, 2)
    with pytest.raises(errors.OptionError, match="torchrun started 2 processes"):
        parallel.resolve_devices(TrainingOptions(devices=2, num_nodes=2))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setattr(parallel, "_is_script", lambda: False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(errors.OptionError, match="interactive session"):
        parallel.resolve_devices(TrainingOptions(num_nodes=2))

"""One process and several: the same losses, artefacts that load anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import xaurora
from xaurora import errors
from xaurora.training import parallel
from xaurora.training.options import TrainingOptions

SCRIPT = f"""
import json, sys, torch
torch.set_num_threads(1)
sys.path.append({str(Path(__file__).parents[1])!r})
import helpers, xaurora
helpers.shrink_tiny()
ds = xaurora.synthetic(shape=(8, 16), times=24)
if __name__ == "__main__":
    for name, options in json.loads(sys.argv[2]).items():
        out = sys.argv[1] + "/" + name
        tuned = ds.aurora.finetune("tp", model="tiny", out=out, progress=False, **options)
        print(name, tuned.hash)
"""
SAME = {"learning_rate": 5e-5, "validations": 1, "checkpoint_every": 1000}
CASES: dict[str, dict[str, Any]] = {
    "fsdp-full": {"strategy": "full", "steps": 2, "parallel": "fsdp"},
    "ddp-lora": {
        "strategy": "lora",
        "rollout_steps": 3,
        "push_forward": True,
        "gradient_accumulation": 2,
        "steps": 2,
    },
    "fsdp-peft": {
        "strategy": "peft",
        "ema": 0.9,
        "activation_checkpointing": True,
        "steps": 2,
        "parallel": "fsdp",
    },
    "shared/ddp-latents": {"strategy": "frozen", "epochs": 2, "latents": True},
}


def _run(folder: Path, cases: dict[str, dict[str, Any]], *launcher: str, before: str = "") -> None:
    """Train in a program of its own, which may start others."""
    script = folder / "train.py"
    script.write_text(before + SCRIPT)
    known = ("LOCAL_RANK", "RANK", "WORLD_SIZE")
    done = subprocess.run(
        [*(launcher or (sys.executable,)), str(script), str(folder), json.dumps(cases)],
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k not in known} | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in cases:
        hashes = {s.split()[1] for s in done.stdout.splitlines() if s.split()[:1] == [name]}
        saved = xaurora.load(folder / name).hash
        assert hashes == {saved}, "every process returns the model that was saved"


def _losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def _losses_of_one(folder: Path, options: dict[str, Any]) -> list[float]:
    """The same in this process, with the samples of both."""
    options = {k: v for k, v in options.items() if k != "parallel"}
    ds = xaurora.synthetic(shape=(8, 16), times=24)
    ds.aurora.finetune(
        "tp", model="tiny", batch_size=2, out=folder / "one", progress=False, **SAME, **options
    )
    return _losses(folder / "one")


@pytest.mark.slow  # two processes import everything and train all cases, one after another
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    two = tmp_path / "two"
    two.mkdir()
    _run(two, {name: {**SAME, **options, "devices": 2} for name, options in CASES.items()})
    for case, options in CASES.items():
        one = _losses_of_one(tmp_path / case, options)
        assert len(one) == options.get("steps", len(one)) > 0, case
        # Latents are the same bfloat16 in both, but the sums over processes are not.
        rel = 1e-4 if "latents" in case else 1e-5
        assert _losses(two / case) == pytest.approx(one, rel=rel), case
    # Over several epochs each process reads what the other has made.
    stores = [
        sorted(p.name for p in next((folder / "latents").iterdir()).glob("latents/c.*"))
        for folder in (tmp_path / "shared/ddp-latents", two / "shared")
    ]
    assert stores[0] == stores[1]
    assert len(stores[0]) > 15
    # A checkpoint of shards is whole.
    runs = (tmp_path / "fsdp-full" / "one", two / "fsdp-full")
    a, b = (xaurora.load(run).model.state_dict() for run in runs)
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert not list(two.glob("*/checkpoint/state.pt"))


SLOW_LOOK = """
import datetime, time, torch
from xaurora.training import finetune, parallel
launch, real = parallel.launch, finetune.scan_targets
def launch_impatient(options):
    fabric = launch(options)
    torch.distributed.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=3))
    return fabric
parallel.launch = launch_impatient
finetune.scan_targets = lambda *args: (time.sleep(6), real(*args))[1]
"""


@pytest.mark.slow
def test_torchrun_and_a_first_look_that_takes_longer_than_processes_wait(tmp_path: Path) -> None:
    """A collective operation would end the run after the process group's timeout."""
    options = {"strategy": "frozen", "steps": 2}
    run = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    _run(tmp_path, {"two": {**SAME, **options}}, sys.executable, *run, before=SLOW_LOOK)
    assert _losses(tmp_path / "two") == pytest.approx(_losses_of_one(tmp_path, options), rel=1e-5)


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

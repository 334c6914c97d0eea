"""The artefact: saved whole or not at all, loaded with care."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trust
import xarray as xr
from helpers import Script, exact_patch_areas, make_aurora, run_script

import xaurora
from xaurora import errors
from xaurora.utils import storage


def test_saved_and_loaded_elsewhere(fields: xr.Dataset, tuned, tmp_path: Path) -> None:
    folder = tuned.save(tmp_path / "model")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "head.safetensors",
        "history.json",
        "model.safetensors",
        "normalisation.json",
    ]
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    loaded = xaurora.load(moved)
    assert loaded.hash == tuned.hash
    assert loaded.history == tuned.history
    assert loaded.summary().split("\n")[0] == tuned.summary().split("\n")[0]
    t = fields["time"].values[10]
    a, b = (fields.aurora.predict("12h", model=m, time=t, progress=False) for m in (tuned, moved))
    xr.testing.assert_equal(a, b)
    card = (moved / "README.md").read_text()
    for part in ("strategy | full", "csgd", "trained on", "sha256:", "xaurora.load"):
        assert part in card
    for file in moved.iterdir():
        assert b"pickle" not in file.read_bytes()[:200]


def test_another_process_predicts_the_same(fields: xr.Dataset, tuned, tmp_path: Path) -> None:
    folder = tuned.save(tmp_path / "model")
    code = f"""
import xaurora, numpy as np
ds = xaurora.synthetic(shape=(16, 32), times=40)
fc = ds.aurora.predict("6h", model={str(folder)!r}, time=ds["time"].values[10], progress=False)
fc.to_netcdf({str(tmp_path / "fc.nc")!r})
"""
    run_script(code)
    here = fields.aurora.predict("6h", model=tuned, time=fields["time"].values[10], progress=False)
    there = xr.open_dataset(tmp_path / "fc.nc", decode_timedelta=True)
    np.testing.assert_allclose(there["tp"].values, here["tp"].values, rtol=1e-4, atol=1e-8)


def test_the_head_alone_for_a_frozen_base(fields: xr.Dataset, little_small, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(little_small().state_dict(), tmp_path / "small.ckpt")
    options = {
        "model": "small",
        "weights": tmp_path / "small.ckpt",
        "steps": 2,
        "out": tmp_path / "run",
        "progress": False,
    }
    tuned = fields.aurora.finetune("tp", **options)
    folder = tmp_path / "run" / "best"
    assert not (folder / "model.safetensors").exists()
    size = sum(f.stat().st_size for f in folder.iterdir())
    assert size < 2 * sum(p.numel() * 4 for p in tuned.heads.parameters()) + 1e5
    loaded = xaurora.load(folder, weights=tmp_path / "small.ckpt")
    assert loaded.hash == tuned.hash
    torch.manual_seed(1)
    torch.save(little_small().state_dict(), tmp_path / "other.ckpt")
    with pytest.raises(errors.CheckpointError, match="the base model has other weights"):
        xaurora.load(folder, weights=tmp_path / "other.ckpt")


def test_a_given_base_is_asked_for(fields: xr.Dataset, tmp_path: Path) -> None:
    base = make_aurora()
    tuned = fields.aurora.finetune("tp", model=base, steps=2, out=tmp_path / "run", progress=False)
    with pytest.raises(errors.CheckpointError, match="given as an object"):
        xaurora.load(tmp_path / "run")
    assert xaurora.load(tmp_path / "run", base=base).hash == tuned.hash
    with pytest.raises(errors.CheckpointError, match="other weights"):
        xaurora.load(tmp_path / "run", base=make_aurora(seed=5))


def test_damage_is_found(tuned, tmp_path: Path) -> None:
    def copy() -> Path:
        target = tmp_path / f"copy{random.random()}"
        return Path(tuned.save(target))

    for name in ("head.safetensors", "model.safetensors", "normalisation.json"):
        folder = copy()
        raw = bytearray((folder / name).read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        (folder / name).write_bytes(raw)
        with pytest.raises(errors.CheckpointError, match="is damaged"):
            xaurora.load(folder)
        folder = copy()
        (folder / name).unlink()
        with pytest.raises(errors.CheckpointError, match="lacks the file"):
            xaurora.load(folder)
    folder = copy()
    (folder / "config.json").write_text("{")
    with pytest.raises(errors.CheckpointError, match="damaged"):
        xaurora.load(folder)
    folder = copy()
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"levels": 4', '"levels": 3'))
    with pytest.raises(
        errors.CheckpointError, match=r"config\.json' is damaged: its contents differ"
    ):
        xaurora.load(folder)
    config = json.loads(text)
    (folder / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(errors.CheckpointError, match="format 99"):
        xaurora.load(folder)
    with pytest.raises(errors.CheckpointError, match="there is no tuned model"):
        xaurora.load(tmp_path / "nothing")


def test_every_damaged_byte_is_refused_or_makes_no_difference() -> None:
    """Of an artefact and a checkpoint; benchmarks/trust.py changes every byte."""
    examples: list[str] = []
    found = trust.byte_flips(5, examples)
    assert len(found) == 7
    for name, counts in found.items():
        assert not any(counts[bad] for bad in trust.BAD), (name, counts, examples[:2])
        assert counts["refused"] > 50 or name.endswith("README.md")


def test_a_full_disk_leaves_the_old_artefact_whole(tuned, tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: the write fails inside safetensors."""
    folder = tuned.save(tmp_path / "model")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old[1]))
    try:
        with pytest.raises(errors.SaveError, match="could not be written") as error:
            tuned.save(folder, overwrite=True)
        with pytest.raises(errors.SaveError):
            tuned.save(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert error.value.fix
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_real_full_disk(tuned, tmp_path: Path) -> None:
    """A file system of one megabyte, where the machine lets one be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("this machine does not let a small file system be mounted")
    try:
        with pytest.raises(errors.SaveError, match="could not be written"):
            tuned.save(disk / "model")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_killed_while_saving_again_and_again(tuned, tmp_path: Path) -> None:
    """SIGKILL at random moments of a loop that does nothing but save: there is always one whole
    artefact.
    """
    folder = tuned.save(tmp_path / "model")
    code = f"""
import xaurora
tuned = xaurora.load({str(folder)!r})
print("ready", flush=True)
n = 0
while True:
    tuned.history = [{{"step": n, "loss": 0.0}}]
    tuned.save({str(folder)!r}, overwrite=True)
    n += 1
"""
    generator = random.Random(0)
    seen = set()
    for _ in range(6):
        script = Script(code)
        while "ready" not in script.output and script.is_running:
            time.sleep(0.01)
        time.sleep(0.05 + 0.4 * generator.random())
        script.kill()
        assert script.wait() == -signal.SIGKILL, script.output
        loaded = xaurora.load(folder)
        assert loaded.hash == tuned.hash
        seen.add(loaded.history[-1]["step"])
    tuned.save(folder, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model"
    ]  # what killed writers left is swept away
    assert seen


def test_without_a_swap_the_old_folder_is_recovered(tuned, tmp_path: Path, monkeypatch) -> None:
    """File systems that cannot exchange two names: killed between the two renames, the old folder
    stands beside and is found.
    """
    folder = tuned.save(tmp_path / "model")
    monkeypatch.setattr(storage.ctypes, "CDLL", lambda *a, **k: object())
    tuned.save(folder, overwrite=True)
    assert xaurora.load(folder).hash == tuned.hash
    real, calls = os.rename, []

    def killed(a, b) -> None:
        calls.append(b)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        tuned.save(folder, overwrite=True)
    assert not folder.exists()
    monkeypatch.setattr(os, "rename", real)
    assert xaurora.load(folder).hash == tuned.hash


def test_what_is_no_model_is_not_overwritten(tuned, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("words")
    with pytest.raises(errors.SaveError, match="is not a tuned model"):
        tuned.save(tmp_path / "thesis")
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.SaveError):
        tuned.save(tmp_path / "file")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "words"


def test_errors_say_why(tmp_path: Path) -> None:
    assert "choose a folder that you may write to" in str(
        storage.save_error(tmp_path, OSError(errno.EACCES, "Permission denied"))
    )
    assert "No space left" in str(
        storage.save_error(tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    )

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(errors.SaveError, match="No space left"):
        storage.replace_file(tmp_path / "a.txt", fail)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(errors.SaveError("it failed", fix="free space")))
    assert (error.message, error.fix, type(error)) == ("it failed", "free space", errors.SaveError)
    assert str(errors.GridError("bad")) == "bad"
    assert "Fix: this" in str(errors.MissingVariableError("bad", fix="this"))
    assert isinstance(error, OSError)


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """Whoever has the old file open reads it to the end: it was swapped out, not written over."""
    path = tmp_path / "a.txt"
    path.write_text("old and whole")
    with path.open() as reader:
        storage.replace_file(path, lambda p: p.write_text("new"))
        assert reader.read() == "old and whole"
    assert path.read_text() == "new"


SAVED = Path(__file__).resolve().parents[1] / "saved"


def test_an_artefact_of_an_earlier_version_gives_its_forecast(
    fields: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_patch_areas(monkeypatch)
    tuned = xaurora.load(SAVED / "artefact")
    with xr.open_dataset(SAVED / "forecast_exact_areas.nc", decode_timedelta=True) as expected:
        times = expected["init_time"].values
        forecast = fields.aurora.predict(
            "12h", model=tuned, time=times, quantiles=[0.9], progress=False
        )
        for name in expected.data_vars:
            # Other machines add float32 in another order.
            np.testing.assert_allclose(
                forecast[name].values, expected[name].values, rtol=1e-4, atol=1e-8, err_msg=name
            )


def test_a_forecast_of_an_earlier_version_has_its_scores(fields: xr.Dataset) -> None:
    with xaurora.open(SAVED / "forecast.nc") as forecast:
        scores = forecast.aurora.evaluate(fields, regions=["global", "tropics"], progress=False)
    with xr.open_dataset(SAVED / "scores.nc", decode_timedelta=True) as known:
        for name in known.data_vars:
            np.testing.assert_allclose(
                scores[name].values, known[name].values, rtol=1e-12, atol=1e-15, err_msg=name
            )

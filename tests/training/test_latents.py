"""Latents of a frozen backbone: computed once, and the same training."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import Script, make_aurora, run_script

import xaurora
from xaurora import errors
from xaurora.training import costs, latent_store
from xaurora.training.nested_options import LatentOptions
from xaurora.training.options import TrainingOptions
from xaurora.utils.checks import byte_count

STEPS = 21  # more than two epochs
FAST = {"strategy": "frozen", "steps": STEPS, "validations": 2, "progress": False}
ONCE = {**FAST, "steps": 2, "validations": 1}


def _losses(tuned: xaurora.TunedAurora) -> np.ndarray:
    return np.array([entry["loss"] for entry in tuned.history])


@pytest.fixture(scope="module")
def fields() -> xr.Dataset:
    """A third of the times elsewhere: most tests train twice."""
    return xaurora.synthetic(shape=(16, 32), times=14)


@pytest.fixture(scope="module")
def base() -> torch.nn.Module:
    return make_aurora()


@pytest.fixture(scope="module")
def reference(fields: xr.Dataset, base, tmp_path_factory) -> xaurora.TunedAurora:
    """The backbone run in every step."""
    out = tmp_path_factory.mktemp("reference") / "run"
    return fields.aurora.finetune("tp", model=base, latents=False, out=out, **FAST)


@pytest.fixture(scope="module")
def filled(fields: xr.Dataset, base, tmp_path_factory) -> tuple[Path, xaurora.TunedAurora]:
    """A store, not to be changed, and the model that was trained on it."""
    out = tmp_path_factory.mktemp("filled")
    store = out / "l.zarr"
    return store, fields.aurora.finetune("tp", model=base, latents=store, out=out / "run", **FAST)


@pytest.mark.parametrize("levels", ["all", "surface"])
def test_float32_gives_the_same_to_the_bit(fields: xr.Dataset, base, tmp_path, levels: str) -> None:
    head = xaurora.HeadOptions(latents=levels)
    a = fields.aurora.finetune(
        "tp", model=base, head=head, latents=False, out=tmp_path / "a", **FAST
    )
    kept = LatentOptions(dtype="float32")
    b = fields.aurora.finetune(
        "tp", model=base, head=head, latents=kept, out=tmp_path / "b", **FAST
    )
    np.testing.assert_array_equal(_losses(a), _losses(b))
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name
    assert a.config["scores"] == b.config["scores"]


def test_bfloat16_gives_the_same_loss_curve(fields: xr.Dataset, base, reference, tmp_path) -> None:
    """1e-3 on epoch means: bfloat16 has 8 bits, and its errors are independent over thousands of
    latents.
    """
    tuned = fields.aurora.finetune("tp", model=base, latents=True, out=tmp_path / "run", **FAST)
    count = reference.config["training"]["samples"]
    for first in range(0, STEPS - count, count):
        epoch = slice(first, first + count)
        assert _losses(tuned)[epoch].mean() == pytest.approx(
            _losses(reference)[epoch].mean(), rel=1e-3
        )
    stores = list((tmp_path / "latents").iterdir())
    assert len(stores) == 1
    assert tuned.config["scores"]["validation_crps_mm"] == pytest.approx(
        reference.config["scores"]["validation_crps_mm"], rel=1e-3
    )


def test_several_samples_at_once(fields: xr.Dataset, base, tmp_path) -> None:
    """1e-6: a batch of the backbone differs from one sample at a time in the last bits."""
    kept = LatentOptions(dtype="float32")
    a = fields.aurora.finetune(
        "tp", model=base, latents=False, batch_size=4, out=tmp_path / "a", **FAST
    )
    b = fields.aurora.finetune(
        "tp", model=base, latents=kept, batch_size=4, out=tmp_path / "b", **FAST
    )
    np.testing.assert_allclose(_losses(a)[:14], _losses(b)[:14], rtol=2e-5)
    assert _losses(a).mean() == pytest.approx(_losses(b).mean(), rel=1e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch(
    fields: xr.Dataset, base, tmp_path
) -> None:
    options = {**FAST, "steps": 4, "validations": 1, "latents": True}
    whole = fields.aurora.finetune("tp", model=base, batch_size=4, out=tmp_path / "a", **options)
    parts = fields.aurora.finetune(
        "tp", model=base, batch_size=2, gradient_accumulation=2, out=tmp_path / "b", **options
    )
    for a, b in zip(whole.history, parts.history, strict=True):  # sums in another order
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4)


def _count_backbone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from xaurora.model.aurora import AuroraWithHead

    calls: list[int] = []
    real = AuroraWithHead.latents
    monkeypatch.setattr(
        AuroraWithHead, "latents", lambda self, batch: calls.append(1) or real(self, batch)
    )
    return calls


def test_each_sample_is_computed_once_and_shared(
    fields: xr.Dataset, base, tmp_path, monkeypatch
) -> None:
    calls = _count_backbone(monkeypatch)
    first = fields.aurora.finetune("tp", model=base, out=tmp_path / "a", **FAST)
    samples = first.config["training"]["samples"] + first.config["training"]["validation_samples"]
    assert len(calls) == samples
    again = fields.aurora.finetune("tp", model=base, out=tmp_path / "b", **FAST)
    assert len(calls) == samples
    np.testing.assert_array_equal(_losses(first), _losses(again))
    other = xaurora.HeadOptions(family="hurdle_gamma", depth=3)  # another head of another run
    fields.aurora.finetune("tp", model=base, head=other, seed=3, out=tmp_path / "c", **FAST)
    assert len(calls) == samples
    assert len(list((tmp_path / "latents").iterdir())) == 1


@pytest.mark.slow
def test_a_store_of_something_else_is_never_used(fields: xr.Dataset, base, tmp_path) -> None:
    path = tmp_path / "mine.zarr"
    fields.aurora.finetune("tp", model=base, latents=path, out=tmp_path / "a", **ONCE)
    before = sorted(p.name for p in (path / "latents").iterdir())
    moved = fields.assign(t2m=fields["t2m"] + 0.5)
    cases = {
        "weights": (fields, {"model": make_aurora(seed=1)}),
        "region": (fields, {"model": base, "region": (-30, 30, 0, 120)}),
        "shape": (fields, {"model": base, "head": xaurora.HeadOptions(latents="surface")}),
        "dtype": (
            fields,
            {"model": base, "latents": LatentOptions(path=str(path), dtype="float32")},
        ),
        "precision": (fields, {"model": base, "precision": "bf16"}),
        "other fields": (moved, {"model": base}),
    }
    for what, (ds, options) in cases.items():
        with pytest.raises(errors.LatentsError, match=what):
            ds.aurora.finetune("tp", **{"latents": path, **options}, out=tmp_path / "b", **ONCE)
    assert sorted(p.name for p in (path / "latents").iterdir()) == before
    # Left to itself each finds a store of its own.
    for what, (ds, options) in cases.items():
        if what != "dtype":
            options = {"latents": True, **options}
            ds.aurora.finetune("tp", **options, out=tmp_path / "auto" / what, **ONCE)
    assert len(list((tmp_path / "auto" / "latents").iterdir())) == len(cases) - 1


def test_the_same_weights_set_to_other_windows(fields: xr.Dataset, tmp_path) -> None:
    """Windows, heads and statistics stand in no tensor, and change the latents."""
    a, b, c = (make_aurora(**o) for o in ({}, {"window_size": (2, 4, 8)}, {}))
    c.surf_stats = {"2t": (250.0, 40.0)}
    b.load_state_dict(a.state_dict())
    fields.aurora.finetune("tp", model=a, latents=tmp_path / "l.zarr", out=tmp_path / "a", **FAST)
    for other in (b, c):
        with pytest.raises(errors.LatentsError, match="configuration"):
            fields.aurora.finetune(
                "tp", model=other, latents=tmp_path / "l.zarr", out=tmp_path / "b", **FAST
            )


def test_one_corrected_frame_is_noticed(fields: xr.Dataset, base, filled, tmp_path) -> None:
    corrected = fields.copy(deep=True)
    corrected["t2m"].values[6] += 30.0
    with pytest.raises(errors.LatentsError, match="computed from other fields"):
        corrected.aurora.finetune("tp", model=base, latents=filled[0], out=tmp_path / "b", **FAST)


def test_a_damaged_store_of_nobodys_name(
    fields: xr.Dataset, base, reference, tmp_path, caplog
) -> None:
    first = fields.aurora.finetune("tp", model=base, out=tmp_path / "a", **FAST)
    store = next((tmp_path / "latents").iterdir())
    (store / "latents" / "c.tmp").write_text("somebody's")
    fields.aurora.finetune("tp", model=base, out=tmp_path / "b", **FAST)
    (store / "zarr.json").write_text("{")
    again = fields.aurora.finetune("tp", model=base, out=tmp_path / "c", **FAST)
    np.testing.assert_array_equal(_losses(first), _losses(again))
    assert any("A new store is created beside it" in r.getMessage() for r in caplog.records)
    assert len(list((tmp_path / "latents").iterdir())) == 2


def test_a_store_that_is_removed_while_it_is_filled(
    fields: xr.Dataset, base, reference, tmp_path, monkeypatch, caplog
) -> None:
    real, written = latent_store.LatentStore.write, []

    def removes(self, place, values, inputs):
        written.append(place)
        if len(written) == 4:
            shutil.rmtree(self.path)
        real(self, place, values, inputs)

    monkeypatch.setattr(latent_store.LatentStore, "write", removes)
    kept = LatentOptions(path=str(tmp_path / "l.zarr"), dtype="float32")
    tuned = fields.aurora.finetune("tp", model=base, latents=kept, out=tmp_path / "run", **FAST)
    np.testing.assert_array_equal(_losses(tuned), _losses(reference))
    assert any("was removed" in r.getMessage() for r in caplog.records)
    assert not (tmp_path / "l.zarr").exists()


def test_what_is_there_and_is_no_store(fields: xr.Dataset, base, tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "precious.txt").write_text("mine")
    with pytest.raises(errors.LatentsError, match="is not a store of latents"):
        fields.aurora.finetune(
            "tp", model=base, latents=tmp_path / "photos", out=tmp_path / "run", **FAST
        )
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["precious.txt"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["changed", "cut", "empty", "digest"])
def test_a_damaged_chunk_is_computed_again(
    fields: xr.Dataset, base, filled, tmp_path, monkeypatch, caplog, how: str
) -> None:
    store, whole = filled
    shutil.copytree(store, tmp_path / "l.zarr")
    part = "inputs" if how == "digest" else "latents"
    chunk = sorted(p for p in (tmp_path / "l.zarr" / part).iterdir() if p.name.startswith("c."))[0]
    raw = bytearray(chunk.read_bytes())
    if how in ("changed", "digest"):
        raw[len(raw) // 2] ^= 0xFF
    chunk.write_bytes(b"" if how == "empty" else bytes(raw[:1000]) if how == "cut" else bytes(raw))
    calls = _count_backbone(monkeypatch)
    with caplog.at_level(logging.WARNING, "xaurora"):
        again = fields.aurora.finetune(
            "tp", model=base, latents=tmp_path / "l.zarr", out=tmp_path / "b", **FAST
        )
    assert len(calls) == 1
    assert any("are damaged" in r.getMessage() for r in caplog.records)
    np.testing.assert_array_equal(_losses(whole), _losses(again))
    calls.clear()
    fields.aurora.finetune(
        "tp", model=base, latents=tmp_path / "l.zarr", out=tmp_path / "c", **FAST
    )
    assert not calls


def test_a_full_disk_ends_the_store_and_not_the_training(
    fields: xr.Dataset, base, reference, tmp_path, monkeypatch, caplog
) -> None:
    real, written = latent_store.LatentStore.write, []

    def full(self, place, values, inputs):
        if len(written) == 5:
            raise errors.SaveError("No space left on device.", fix="free space")
        written.append(place)
        real(self, place, values, inputs)

    monkeypatch.setattr(latent_store.LatentStore, "write", full)
    kept = LatentOptions(dtype="float32")
    tuned = fields.aurora.finetune("tp", model=base, latents=kept, out=tmp_path / "run", **FAST)
    np.testing.assert_array_equal(_losses(tuned), _losses(reference))
    said = [r.getMessage() for r in caplog.records if "no longer stored" in r.getMessage()]
    assert len(said) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_really_full(fields: xr.Dataset, base, reference, tmp_path, caplog) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", str(small)], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        kept = LatentOptions(path=str(small / "l.zarr"), dtype="float32", size="1 GB")
        tuned = fields.aurora.finetune("tp", model=base, latents=kept, out=tmp_path / "run", **FAST)
        np.testing.assert_array_equal(_losses(tuned), _losses(reference))
        assert any("no longer stored" in r.getMessage() for r in caplog.records)
        left = list((small / "l.zarr").rglob("*.partial"))
        assert not left
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_that_cannot_be_written(
    fields: xr.Dataset, base, reference, tmp_path, monkeypatch, caplog
) -> None:
    def denied(self):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(latent_store.LatentStore, "_create", denied)
    tuned = fields.aurora.finetune(
        "tp", model=base, latents=LatentOptions(dtype="float32"), out=tmp_path / "r", **FAST
    )
    np.testing.assert_array_equal(_losses(tuned), _losses(reference))
    assert any("kept in memory only" in r.getMessage() for r in caplog.records)


def test_the_size_is_kept(fields: xr.Dataset, base, reference, tmp_path, caplog) -> None:
    one = 4 * 4 * 8 * 64 * 4  # levels, patches, channels, bytes
    kept = LatentOptions(path=str(tmp_path / "l.zarr"), dtype="float32", size=7.5 * one)
    tuned = fields.aurora.finetune("tp", model=base, latents=kept, out=tmp_path / "run", **FAST)
    chunks = [p for p in (tmp_path / "l.zarr" / "latents").iterdir() if p.name.startswith("c.")]
    assert [p.stat().st_size - 4 for p in chunks] == [one] * 7
    assert any("reached its limit" in r.getMessage() for r in caplog.records)
    np.testing.assert_array_equal(_losses(tuned), _losses(reference))


def test_killed_while_it_is_made(fields: xr.Dataset, tmp_path, monkeypatch) -> None:
    code = f"""
import sys, torch, xaurora
from helpers import make_aurora
ds = xaurora.synthetic(shape=(16, 32), times=14)
ds.aurora.finetune(
    "tp", model=make_aurora(), latents={str(tmp_path / "l.zarr")!r}, strategy="frozen",
    steps={STEPS},
    out={str(tmp_path / "killed")!r}, validations=2, progress=False,
)
"""
    script = Script(code)
    deadline, chunks = time.monotonic() + 120, 0
    while chunks < 4 and time.monotonic() < deadline and script.is_running:
        time.sleep(0.002)
        folder = tmp_path / "l.zarr" / "latents"
        chunks = sum(n.startswith("c.") for n in os.listdir(folder)) if folder.is_dir() else 0
    script.kill()
    script.wait()
    assert chunks >= 4
    base = make_aurora()
    calls = _count_backbone(monkeypatch)
    went_on = fields.aurora.finetune(
        "tp", model=base, latents=tmp_path / "l.zarr", out=tmp_path / "a", **FAST
    )
    samples = (
        went_on.config["training"]["samples"] + went_on.config["training"]["validation_samples"]
    )
    assert len(calls) <= samples - 4 + 1
    shutil.rmtree(tmp_path / "l.zarr")
    anew = fields.aurora.finetune(
        "tp", model=base, latents=tmp_path / "l.zarr", out=tmp_path / "b", **FAST
    )
    np.testing.assert_array_equal(_losses(went_on), _losses(anew))


def test_two_processes_share_a_store(tmp_path) -> None:
    code = f"""
import sys, torch, xaurora
torch.set_num_threads(1)
from helpers import make_aurora
ds = xaurora.synthetic(shape=(16, 32), times=14)
r = ds.aurora.finetune(
    "tp", model=make_aurora(), latents={str(tmp_path / "l.zarr")!r}, strategy="frozen",
    steps={STEPS},
    out=sys.argv[1], validations=2, progress=False, seed=int(sys.argv[2]),
)
print([e["loss"] for e in r.history][-3:])
"""
    both = [Script(code, tmp_path / f"r{i}", i) for i in (0, 1)]
    assert [script.wait() for script in both] == [0, 0], both[0].output + both[1].output
    alone = run_script(code, tmp_path / "r2", 0)
    assert alone.splitlines()[-1] == both[0].output.splitlines()[-1]
    files = [p.name for p in (tmp_path / "l.zarr" / "latents").iterdir()]
    assert not [n for n in files if n.endswith(".partial")]


def test_resume_from_latents_is_exact(fields: xr.Dataset, base, tmp_path, monkeypatch) -> None:
    options = {**FAST, "checkpoint_every": 8}
    whole = fields.aurora.finetune("tp", model=base, out=tmp_path / "whole", **options)
    from xaurora.training import loop as training

    real = training.Trainer.take_step

    class Killed(BaseException): ...

    def dies(self, *args):
        if self.progress.step == 13:
            raise Killed
        return real(self, *args)

    monkeypatch.setattr(training.Trainer, "take_step", dies)
    with pytest.raises(Killed):
        fields.aurora.finetune("tp", model=base, out=tmp_path / "run", **options)
    monkeypatch.undo()
    resumed = fields.aurora.finetune("tp", model=base, out=tmp_path / "run", resume=True, **options)
    np.testing.assert_array_equal(_losses(whole), _losses(resumed))
    monkeypatch.setattr(training.Trainer, "take_step", dies)
    with pytest.raises(Killed):
        fields.aurora.finetune("tp", model=base, out=tmp_path / "other", **options)
    monkeypatch.undo()
    with pytest.raises(
        errors.OptionError, match="kept_latents='bfloat16' in the checkpoint and None now"
    ):
        fields.aurora.finetune(
            "tp", model=base, out=tmp_path / "other", resume=True, latents=False, **options
        )


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"strategy": "full"}, "strategy='full'"),
        ({"rollout_steps": 2}, "rollout_steps=2"),
        ({"as_input": True}, "as_input=True"),
        ({"latents": "maybe/there"}, None),
        ({"latents": 3}, "latents must be .*got 3"),
    ],
)
def test_where_latents_cannot_be_kept(
    fields: xr.Dataset, base, tmp_path, more: dict, what: str | None
) -> None:
    options = {
        "latents": True,
        "steps": 2,
        "strategy": "frozen",
        "progress": False,
        "out": tmp_path / "run",
        **more,
    }
    if what is None:
        options["latents"] = tmp_path / "maybe" / "there.zarr"
        fields.aurora.finetune("tp", model=base, **options)
        assert (tmp_path / "maybe" / "there.zarr").is_dir()
        return
    with pytest.raises(errors.OptionError, match=what):
        fields.aurora.finetune("tp", model=base, **options)
    if "latents" not in more:
        fields.aurora.finetune("tp", model=base, **{**options, "latents": "auto"})
        assert not (tmp_path / "latents").exists()


def test_options() -> None:
    assert byte_count("size", "2 GB") == 2e9
    assert byte_count("size", " 1.5GiB ") == 1.5 * 2**30
    for bad in ("much", "-1 GB", "1 GW", 0, True):
        with pytest.raises(errors.OptionError, match="size must be an amount of bytes"):
            LatentOptions(size=bad)
    with pytest.raises(errors.OptionError, match=r"dtype must be one of .*, got 'float16'"):
        LatentOptions(dtype="float16")
    assert TrainingOptions(latents="".join(["au", "to"])).latents == "auto"
    assert TrainingOptions(latents="runs/l.zarr").latents == LatentOptions(path="runs/l.zarr")


def test_times_that_are_not_on_the_hour(fields: xr.Dataset, base, tmp_path, caplog) -> None:
    shifted = fields.assign_coords(time=fields["time"] + np.timedelta64(30, "m"))
    a = shifted.aurora.finetune("tp", model=base, latents=False, out=tmp_path / "a", **FAST)
    b = shifted.aurora.finetune(
        "tp", model=base, latents=LatentOptions(dtype="float32"), out=tmp_path / "b", **FAST
    )
    np.testing.assert_array_equal(_losses(a), _losses(b))
    assert any("not on the full hour" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("region", [(-30, 30, 0, 120), (20, 75, -40, 60), "northern-hemisphere"])
def test_a_region_with_latents_is_the_region_without(
    fields: xr.Dataset, base, tmp_path, region
) -> None:
    kept = LatentOptions(dtype="float32")
    a = fields.aurora.finetune(
        "tp", model=base, region=region, latents=False, out=tmp_path / "a", **FAST
    )
    b = fields.aurora.finetune(
        "tp", model=base, region=region, latents=kept, out=tmp_path / "b", **FAST
    )
    np.testing.assert_array_equal(_losses(a), _losses(b))
    assert a.model.window is None
    # What is scored in training is what a forecast of the region is scored as.
    when = fields["time"].values[-3]
    forecast = fields.aurora.predict("6h", model=a, region=region, time=when, progress=False)
    whole = fields.aurora.predict("6h", model=a, time=when, progress=False)
    at = {d: forecast[d].values for d in ("latitude", "longitude")}
    np.testing.assert_allclose(
        forecast["tp"].values, whole["tp"].sel(at).values, rtol=1e-5, atol=1e-9
    )


def test_a_mask_and_a_region_that_moves_the_base(fields: xr.Dataset, base, tmp_path) -> None:
    mask = (fields["lsm"] * 0 + 1.0).where(
        (fields["latitude"] > 0) & (fields["longitude"] < 90), 0.0
    )
    tuned = fields.aurora.finetune("tp", model=base, region=mask, out=tmp_path / "a", **FAST)
    assert "8 × 8" in tuned.config["training"]["region"]
    full = fields.aurora.finetune(
        "tp",
        model=base,
        region=mask,
        strategy="full",
        steps=3,
        validations=1,
        out=tmp_path / "b",
        progress=False,
    )
    assert np.isfinite(_losses(full)).all()
    for bad in ({"halo": 2}, {"as_input": True}):
        with pytest.raises(errors.OptionError, match="region="):
            fields.aurora.finetune(
                "tp", model=base, region=mask, out=tmp_path / "c", **{**FAST, **bad}
            )
    with pytest.raises(errors.RegionError, match="there is no region"):
        fields.aurora.finetune("tp", model=base, region="atlantis", out=tmp_path / "c", **FAST)


def test_estimate_counts_the_store(
    fields: xr.Dataset, base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "measure_rate", lambda plan, where: 1e9)  # else it varies
    with_, without = (
        fields.aurora.estimate("tp", model=base, epochs=10, latents=latents, progress=False)
        for latents in (True, False)
    )
    assert with_.seconds < without.seconds
    part = fields.aurora.estimate(
        "tp", model=base, epochs=10, region=(-30, 30, 0, 120), progress=False
    )
    assert part.disk < with_.disk
    one = 4 * 4 * 8 * 64 * 2
    assert with_.disk - without.disk == pytest.approx(11 * one, abs=2 * one)

"""What a training will take, before it is begun."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import estimates
import numpy as np
import pytest
import torch
import xarray as xr
from aurora import Aurora
from helpers import make_aurora

import xaurora
from xaurora import errors
from xaurora.fields.grid import lattice
from xaurora.model import execution, hashing, memory, placement, weights
from xaurora.model.options import StrategyOptions
from xaurora.training import costs, estimate, fitting, known_costs
from xaurora.training.loop import Trainer
from xaurora.training.simulate import StepCost


def test_the_count_of_live_bytes_is_exact() -> None:
    counter = memory.LiveBytes()
    with counter:
        a = torch.zeros(1000)
        b = a + 1.0
        assert counter.live == counter.peak == 8000
        view = b[10:]
        assert counter.live == 8000
        del a, b
        assert counter.live == 4000, "a view keeps its storage"
        del view
        assert counter.live == 0
        assert counter.peak == 8000
        torch.ones(20, 30) @ torch.ones(30, 40)
    assert counter.flops == 2 * 20 * 30 * 40
    assert counter.peak == 4 * (20 * 30 + 30 * 40 + 20 * 40)


def _shallow_aurora() -> Aurora:
    """Fewer blocks: each takes as long without values as with them."""
    return make_aurora(
        encoder_depths=(1, 1),
        decoder_depths=(1, 1),
        encoder_num_heads=(2, 4),
        decoder_num_heads=(4, 2),
    )


QUICK_HEAD = "hurdle_lognormal"  # few operations


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "full", "activation_checkpointing": True, "head": QUICK_HEAD},
        {"strategy": "lora", "rollout_steps": 2, "push_forward": True, "head": QUICK_HEAD},
        {"strategy": "frozen", "precision": "bf16"},
        pytest.param(
            {"strategy": StrategyOptions("peft", method="dora"), "ema": 0.9, "head": QUICK_HEAD},
            marks=pytest.mark.thorough,
        ),
        {"strategy": "full", "target": "all", "rollout_steps": 3, "replay_buffer": 3},
    ],
    ids=str,
)
def test_imagined_steps_take_what_real_ones_take(
    fields: xr.Dataset, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code, with and without values: the same bytes at the peak."""
    fields = fields.isel(time=slice(16))
    options = {"target": "tp", "model": _shallow_aurora(), "validations": 1, **options}
    estimate = fields.aurora.estimate(**options)
    peaks = []
    real = Trainer.take_step

    def counted(self: Any, *args: Any) -> Any:
        counter = memory.LiveBytes()
        state = [v for part in self.optimisation.adamw.state.values() for v in part.values()]
        for tensor in [
            *self.module.parameters(),
            *self.module.buffers(),
            *state,
            *(self.optimisation.average or {}).values(),
        ]:
            counter.track(tensor)
        with counter:
            out = real(self, *args)
        peaks.append(counter.peak)
        return out

    monkeypatch.setattr(Trainer, "take_step", counted)
    fields.aurora.finetune(**options, steps=3, progress=False, workers=0, out=tmp_path / "run")
    imagined = sum(v for k, v in estimate.parts.items() if k not in ("slack", "frames"))
    # the batch that is read counts in one and not in the other; steps of the gamma function's slope
    # depend on values
    assert imagined == pytest.approx(max(peaks), rel=0.1)


@pytest.mark.thorough
@pytest.mark.slow
def test_within_a_fifth_of_what_a_process_takes(tmp_path: Path) -> None:
    """One case of docs/memory.md, in a process of its own; benchmarks/estimates.py has others."""
    ds = xaurora.synthetic(shape=(48, 64), times=10, levels=estimates.LEVELS).chunk(time=1)
    ds.to_zarr(tmp_path / "48x64.zarr", mode="w", consolidated=False)
    case = {"model": "tiny", "strategy": "lora", "shape": (48, 64), "batch_size": 4}
    (row,) = estimates.run([case], tmp_path)
    assert row["estimated"] == pytest.approx(row["measured"], rel=0.2)


@pytest.mark.thorough
@pytest.mark.slow
def test_bases_and_strategies_side_by_side(
    fields: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "STRATEGIES", ("frozen", "full"))
    monkeypatch.setattr(estimate, "_COMPARED", ("small",))
    found = fields.aurora.estimate(
        "tp", head=QUICK_HEAD, model="tiny", batch_size=2, compare=True, progress=False
    )
    rows = {(e.model, e.strategy): e for e in [found, *found.others]}
    assert {m for m, _ in rows} == {"tiny", "small"}
    assert len(rows) == 4
    assert not any(e.problem for e in rows.values())
    by = {s: rows["small", s] for s in ("frozen", "full")}
    assert by["frozen"].memory < by["full"].memory
    assert by["frozen"].trainable < by["full"].trainable
    assert by["frozen"].disk < by["full"].disk
    assert rows["small", "full"].total == pytest.approx(113e6, rel=0.02)
    text = str(found)
    for part in ("at the peak", "a step", "reads", "disk", "trains", "small", "full"):
        assert part in text


def _resident() -> int:
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if "VmHWM" in line
    )


def test_no_weights_are_needed_and_none_are_made(fields: xr.Dataset) -> None:
    before = _resident()
    found = fields.aurora.estimate("tp", model="base", strategy="frozen", head=QUICK_HEAD)
    assert found.memory > found.parts["weights"] > 4.5e9
    assert _resident() - before < 1e9, "1.3 billion parameters were imagined, not made"


@pytest.mark.slow
def test_what_does_not_fit_says_what_to_change(
    fields: xr.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for module in (costs, fitting):
        monkeypatch.setattr(module, "free_memory", lambda where: 5 * 1024**2)
    # Of bf16 and LoRA there are the fewest changes to try.
    options = {
        "model": "tiny",
        "strategy": "lora",
        "precision": "bf16",
        "batch_size": 2,
        "head": QUICK_HEAD,
    }
    found = fields.aurora.estimate("tp", **options)
    assert not found.fits
    assert found.way == "activations are recomputed", "the least that is possible"
    advice = "\n".join(found.advice)
    assert "batch_size=1, gradient_accumulation=2" in advice
    assert "strategy='frozen'" in advice
    cost = StepCost(
        10**8, {"activations": 10**8}, 1, 1, {"all": 1, "adapter": 0, "head": 1, "trainable": 1}
    )
    with monkeypatch.context() as quick:  # two steps without values take twice as long
        quick.setattr(costs, "cost_of_step", lambda plan, where, gpu: cost)
        further = fields.aurora.estimate(
            "tp", model="tiny", strategy="full", rollout_steps=2, activation_checkpointing=False
        )
    assert "push_forward=True" in "\n".join(further.advice)
    assert "activation_checkpointing=True" in "\n".join(further.advice)
    # Each takes seconds.
    monkeypatch.setattr(fitting, "advice", lambda plan, gpu: found.advice)
    with caplog.at_level(logging.WARNING, "xaurora"):
        fields.aurora.finetune(
            "tp", steps=1, validations=1, progress=False, out=tmp_path / "run", **options
        )
    assert any("does not fit" in r.message and "batch_size=1" in r.message for r in caplog.records)
    caplog.clear()
    for module in (costs, fitting):
        monkeypatch.setattr(module, "free_memory", lambda where: 64 * 1024**3)
    with caplog.at_level(logging.WARNING, "xaurora"):
        fields.aurora.finetune(
            "tp", steps=1, validations=1, progress=False, out=tmp_path / "b", **options
        )
    assert not caplog.records


@pytest.mark.usefixtures("timed_steps")
def test_a_model_that_was_given_stays_as_it_was(fields: xr.Dataset) -> None:
    base = _shallow_aurora()
    before = hashing.state_hash(base)
    assert fields.aurora.estimate("tp", model=base, strategy="peft").measured
    assert hashing.state_hash(base) == before
    assert not any(".lora_" in n for n, _ in base.named_parameters())
    with pytest.raises(errors.OptionError, match="has no option lr="):
        fields.aurora.estimate("tp", lr=1e-3)
    with pytest.raises(errors.TargetError):
        fields.aurora.estimate("hail")


def test_lazy_data_are_counted(fields: xr.Dataset, tmp_path: Path) -> None:
    fields.to_netcdf(tmp_path / "fields.nc")
    lazy = xaurora.open(tmp_path / "fields.nc", chunks={})
    found = lazy.aurora.estimate("tp", model="tiny")
    assert found.parts["frames"] > 0
    assert found.bytes_read > 0
    assert fields.aurora.estimate("tp", model="tiny").bytes_read == 0


def test_a_step_is_counted_once(fields: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its run is; every other option counts anew."""
    counted, cost = [], StepCost(1, {}, 1, 1, {"all": 1, "adapter": 0, "head": 1, "trainable": 1})
    monkeypatch.setattr(known_costs, "_known", {})
    monkeypatch.setattr(known_costs, "simulate", lambda plan, *a, **k: counted.append(plan) or cost)
    for options, expected in (
        ({}, 1),
        ({"steps": 7, "validations": 2, "seed": 3}, 1),
        ({"batch_size": 2}, 2),
        ({"region": (-30, 30, 0, 90)}, 3),
        ({"head": "hurdle_lognormal"}, 4),
        ({"model": "tiny-pretrained"}, 5),
        ({"precision": "bf16"}, 6),
        ({"batch_size": 2, "epochs": 3}, 6),
    ):
        fields.aurora.estimate("tp", **{"model": "tiny", **options})
        assert len(counted) == expected, options
    fields.isel(latitude=slice(8)).aurora.estimate("tp", model="tiny")
    assert len(counted) == 7
    for _ in range(2):  # its weights may change
        fields.aurora.estimate("tp", model=_shallow_aurora())
    assert len(counted) == 9


@pytest.mark.usefixtures("timed_steps")
def test_short_steps_are_run_and_timed(fields: xr.Dataset) -> None:
    found = fields.aurora.estimate("tp", model="tiny")
    assert found.measured
    assert "timed here" in str(found)
    assert 0.0 < found.step_seconds < costs.MEASURED_BELOW


# --- recomputing ---


def _gradients(base: Any, batch: Any, how: Any) -> tuple[dict[str, torch.Tensor], int]:
    base.zero_grad(set_to_none=True)
    counter = memory.LiveBytes()
    grid = lattice.from_axes(np.asarray(batch.metadata.lat), np.asarray(batch.metadata.lon))
    place = contextlib.nullcontext() if how is None else placement.on_grid(base, grid)
    with counter, place, how(base) if how is not None else contextlib.nullcontext():
        out = base(batch)
        loss = sum(
            v.square().mean() / v.detach().square().mean()
            for v in (*out.surf_vars.values(), *out.atmos_vars.values())
        )
        loss.backward()
    return {
        n: p.grad.clone() for n, p in base.named_parameters() if p.grad is not None
    }, counter.peak


def test_recomputing_once_gives_the_same_gradients(fields: xr.Dataset) -> None:
    """And no higher peak than upstream's, which recomputes several times over."""
    ds = xaurora.synthetic(shape=(48, 96), times=3, levels=(500.0, 700.0, 850.0))
    batch = ds.aurora.to_batch(model=make_aurora())
    base = make_aurora(seed=1)
    plain, most = _gradients(base, batch, None)
    again, ours = _gradients(base, batch, execution.activation_checkpointing)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        scale = float(gradient.abs().max())
        assert float((again[name] - gradient).abs().max()) <= 1e-5 * scale, name
    stock = make_aurora(seed=1)
    stock.configure_activation_checkpointing()
    _, theirs = _gradients(stock, batch, None)
    assert ours <= theirs < most


def test_loading_takes_the_weights_once(little_small: type, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base = little_small()
    save_file(base.state_dict(), tmp_path / "small.safetensors")
    before = (tmp_path / "small.safetensors").read_bytes()[-1000:]
    loaded = weights.load_pretrained("small", tmp_path / "small.safetensors")
    assert hashing.state_hash(loaded) == hashing.state_hash(base)
    assert all(p.requires_grad for p in loaded.parameters())
    assert not any(t.is_meta for t in [*loaded.parameters(), *loaded.buffers()])
    with torch.no_grad():
        for p in loaded.parameters():
            p.add_(1.0)
    assert (tmp_path / "small.safetensors").read_bytes()[-1000:] == before, (
        "training does not write into the file"
    )

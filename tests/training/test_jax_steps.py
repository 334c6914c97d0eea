"""Training with ``engine="jax"``: the same steps as in Torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import make_aurora

import xaurora
from xaurora.training.jax_steps import JaxOptimisation
from xaurora.training.optimisation import Optimisation

# Small, because compiling is what takes time here.
MODEL = make_aurora(
    surf_vars=("2t", "msl"),
    static_vars=("lsm",),
    atmos_vars=("q",),
    encoder_depths=(1, 1),
    decoder_depths=(1, 1),
    encoder_num_heads=(2, 4),
    decoder_num_heads=(4, 2),
)
RUNS: dict[str, dict[str, Any]] = {
    "frozen, on latents, in a region": {
        "strategy": "frozen",
        "steps": 8,
        "region": "tropics",
        "batch_size": 4,  # of 15 samples, so that the last step of an epoch has a batch of three
        "ema": 0.9,
        "head": "csgd",
    },
    "LoRA": {"strategy": "lora", "steps": 4},
    "full, a rollout of two steps": {"strategy": "full", "steps": 4, "rollout_steps": 2},
}


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(shape=(16, 32), times=24)


def _finetune(ds: xr.Dataset, out: Path, **options: Any) -> xaurora.TunedAurora:
    asked = {"model": MODEL, "batch_size": 2, "validations": 1, "progress": False, **options}
    return ds.aurora.finetune("tp", out=out, **asked)


@pytest.mark.parametrize(
    "run",
    [pytest.param(name, marks=[pytest.mark.thorough] * name.startswith("full")) for name in RUNS],
)
def test_losses_and_gradients_are_those_of_torch(
    run: str, ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients agree to 1e-4 of the largest in each tensor, losses of all steps to 1e-4.

    The gradient of the decoder's first queries is left out: it is a difference of nearly equal
    numbers, a millionth of all others.
    """
    first: dict[str, dict[str, np.ndarray]] = {}
    for engine, kind in (("torch", Optimisation), ("jax", JaxOptimisation)):
        clip = kind.clip

        def keep(self: Any, engine: str = engine, clip: Any = clip) -> float:
            if engine not in first and engine == "jax":
                first[engine] = {n: v.numpy() for n, v in self._named(self.gradient).items()}
            elif engine not in first:
                first[engine] = {n: p.grad.numpy().copy() for n, p in self.parameters.items()}
            return clip(self)

        monkeypatch.setattr(kind, "clip", keep)
    both = [_finetune(ds, tmp_path / e, engine=e, **RUNS[run]) for e in ("torch", "jax")]
    assert set(first["torch"]) == set(first["jax"])
    for name, expected in first["torch"].items():
        largest = np.abs(expected).max()
        if "level_decoder.layers.0.0.to_q" not in name:
            assert np.abs(first["jax"][name] - expected).max() <= 1e-4 * largest, name
    losses = [[entry["loss"] for entry in tuned.history] for tuned in both]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    keys = set(both[0].history[0])
    assert keys == set(both[1].history[0])


def test_what_one_engine_trained_the_other_predicts(ds: xr.Dataset, tmp_path: Path) -> None:
    tuned = _finetune(ds, tmp_path / "run", engine="jax", strategy="lora", steps=4)
    again = xaurora.load(tmp_path / "run" / "best", base=MODEL)
    asked = {"time": ds["time"].values[2], "progress": False}
    fields = [
        ds.aurora.predict(model=m, engine=e, **asked)["tp"].values
        for m, e in ((tuned, "torch"), (again, "torch"), (again, "jax"))
    ]
    assert np.array_equal(fields[0], fields[1])
    assert np.abs(fields[2] - fields[0]).max() < 1e-4 * fields[0].max()


EIGHT_STEPS: dict[str, Any] = {
    "strategy": "frozen",
    "steps": 8,
    "checkpoint_every": 2,
    "ema": 0.9,
}


@pytest.fixture(scope="module")
def whole(ds: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> xaurora.TunedAurora:
    return _finetune(ds, tmp_path_factory.mktemp("whole") / "run", engine="jax", **EIGHT_STEPS)


@pytest.mark.parametrize("second", ["jax", "torch"])
def test_a_stopped_run_goes_on_in_either_engine(
    second: str,
    ds: xr.Dataset,
    whole: xaurora.TunedAurora,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Losses after the break are those of a run without one; other kernels round differently."""
    asked = EIGHT_STEPS
    step, count = JaxOptimisation.step, []

    def interrupted(self: JaxOptimisation, number: int) -> None:
        step(self, number)
        count.append(number)
        if len(count) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(JaxOptimisation, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _finetune(ds, tmp_path / "run", engine="jax", **asked)
    resumed = _finetune(ds, tmp_path / "run", engine=second, resume=True, **asked)
    losses = [[entry["loss"] for entry in tuned.history] for tuned in (whole, resumed)]
    np.testing.assert_allclose(*losses, rtol=0 if second == "jax" else 1e-5)
    saved = [torch.cat([p.flatten() for p in m.model.head.parameters()]) for m in (whole, resumed)]
    assert (saved[0] - saved[1]).abs().max() <= (0 if second == "jax" else 1e-5)

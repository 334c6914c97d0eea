"""Encoder and decoder in strips, beside the whole grid at once."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from aurora import Batch
from helpers import make_aurora

from xaurora.fields.grid import lattice
from xaurora.fields.grid.lattice import Grid
from xaurora.model import execution, placement, strips
from xaurora.model.batch import metadata

LEVELS = (100.0, 250.0, 500.0, 700.0, 850.0)
GLOBE = lattice.from_axes(90 - (np.arange(36) + 0.5) * 5, np.arange(64) * 360 / 64)
ACROSS_GREENWICH = lattice.from_axes(60 - np.arange(28) * 0.5, -8 + np.arange(32) * 0.5)


def _batch(grid: Grid, samples: int) -> Batch:
    torch.manual_seed(3)
    h, w = grid.shape
    times = [np.datetime64("2020-01-01", "ns")] * samples
    return Batch(
        {n: torch.randn(samples, 2, h, w) + 280 for n in ("2t", "10u", "10v", "msl")},
        {n: torch.rand(h, w) for n in ("lsm", "z", "slt")},
        {n: torch.randn(samples, 2, len(LEVELS), h, w) for n in ("z", "u", "v", "t", "q")},
        metadata(grid, times, LEVELS),
    )


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("grid", [GLOBE, ACROSS_GREENWICH], ids=["globe", "across Greenwich"])
def test_strips_are_the_whole(grid: Grid, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base, batch = make_aurora().train(), _batch(grid, samples)
    found = []
    for most in (10**6, 3 * grid.shape[1] // 4):
        monkeypatch.setattr(strips, "PATCHES_IN_TRAINING", most)
        monkeypatch.setattr(strips, "LEVELS", 2 if found else 13)
        with placement.on_grid(base, grid):
            out = base(batch)
            assert (out.metadata.atmos_levels, out.metadata.rollout_step) == (LEVELS, 1)
            values = {**out.surf_vars, **{f"{n} upper": v for n, v in out.atmos_vars.items()}}
            sum(v.float().mean() / v.detach().std() for v in values.values()).backward()
        gradients = {n: p.grad.clone() for n, p in base.named_parameters() if p.grad is not None}
        base.zero_grad()
        found.append((values, gradients))
    (whole, whole_gradients), (cut, cut_gradients) = found
    assert list(cut) == list(whole)
    # Matrix products over fewer rows at a time, and sums of gradients in another order.
    for name, values in whole.items():
        scale = (values - values.mean()).abs().max()
        assert (cut[name] - values).abs().max() <= 1e-5 * scale.clamp_min(values.abs().max()), name
    for name, gradient in whole_gradients.items():
        assert (cut_gradients[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_frozen_decoder_trains_others_in_two_strips(
    recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, batch = make_aurora().train(), _batch(GLOBE, 1)
    found: list[Any] = []
    decoded: list[int] = []
    base.decoder.requires_grad_(False)
    base.decoder.level_decoder.register_forward_hook(lambda _, args, out: decoded.append(len(out)))
    for most in (10**6, 1):
        monkeypatch.setattr(strips, "SPLIT_FROZEN_ABOVE", most)
        with placement.on_grid(base, GLOBE), contextlib.ExitStack() as stack:
            if recomputes:
                stack.enter_context(execution.activation_checkpointing(base))
            out = base(batch)
            assert out.atmos_vars["t"].shape[-2:] == GLOBE.shape
            sum(v.mean() / v.detach().std() for v in out.atmos_vars.values()).backward()
        gradients = {n: p.grad.clone() for n, p in base.named_parameters() if p.grad is not None}
        base.zero_grad()
        found.append((out, gradients))
    (whole, whole_gradients), (cut, cut_gradients) = found
    patches = 9 * 16
    again = [patches] if recomputes else []
    assert decoded == [patches, *again, 64, 80, *([80, 64] if recomputes else [])]
    # Matrix products over fewer rows at a time, and sums of gradients in another order.
    for name, values in whole.atmos_vars.items():
        assert (cut.atmos_vars[name] - values).abs().max() <= 1e-5 * values.abs().max(), name
    for name, gradient in whole_gradients.items():
        assert (cut_gradients[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max(), name


def test_strips_are_about_as_high(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "PATCHES", 100)
    with torch.no_grad():
        heights = [rows.stop - rows.start for rows in strips._rows(45, 30)]
    assert sum(heights) == 45
    assert max(heights) * 30 <= 120
    assert max(heights) - min(heights) <= 1
    with torch.no_grad():
        assert len(list(strips._rows(3, 1000))) == 3, "at least one row"

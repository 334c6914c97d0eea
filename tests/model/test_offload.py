"""Block inputs in host memory: the same gradients, and fewer bytes."""

from __future__ import annotations

import contextlib

import pytest
import torch
from aurora import Aurora
from helpers import make_aurora

import xaurora
from xaurora.model import execution, placement
from xaurora.model.memory import LiveBytes
from xaurora.model.offload import HostActivations

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    ),
]


def _gradients(
    base: Aurora, batch: object, grid: object, *, offload: bool | None
) -> tuple[dict[str, torch.Tensor], int, HostActivations | None]:
    base.zero_grad(set_to_none=True)
    counter, host = LiveBytes(), None
    with counter, contextlib.ExitStack() as stack:
        stack.enter_context(placement.on_grid(base, grid))
        if offload is not None:
            how = execution.activation_checkpointing(base, offload=offload)
            host = stack.enter_context(how)
        out = base(batch)
        parts = (*out.surf_vars.values(), *out.atmos_vars.values())
        sum(v.square().mean() / v.detach().square().mean() for v in parts).backward()
    gradients = {n: p.grad.clone() for n, p in base.named_parameters() if p.grad is not None}
    return gradients, counter.peak, host


@pytest.mark.parametrize("device", DEVICES)
def test_offloading_changes_no_gradient(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xaurora.model.offload._SMALLEST", 2**10)
    ds = xaurora.synthetic(shape=(48, 96), times=3, levels=(500.0, 700.0, 850.0))
    base = make_aurora().train().to(device)
    batch = ds.aurora.to_batch(model=base)
    grid = xaurora.fields.grid.lattice.from_axes(
        batch.metadata.lat.numpy(), batch.metadata.lon.numpy()
    )
    plain, _, _ = _gradients(base, batch, grid, offload=None)
    again, recomputed, empty = _gradients(base, batch, grid, offload=False)
    moved, offloaded, host = _gradients(base, batch, grid, offload=True)
    assert empty is not None
    assert host is not None
    assert empty.peak == 0
    assert host.bytes == 0, "everything came back"
    assert host.peak > 10**6, "the inputs of the blocks"
    for name, gradient in plain.items():
        assert torch.equal(again[name], moved[name]), name
        assert (moved[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    if device == "cpu":
        assert offloaded <= recomputed


def test_tensors_that_are_not_needed_again_are_forgotten() -> None:
    """A forward pass whose graph is dropped, and one without gradients."""
    host = HostActivations()
    x = torch.randn(600, 600, requires_grad=True)
    out = host(lambda x: (x * 2).exp(), x)
    assert host.bytes == x.nbytes
    del out
    assert host.bytes == 0
    host(lambda x: (x * 2).exp(), x).sum().backward()
    assert host.bytes == 0
    with torch.no_grad():
        host(lambda x: (x * 2).exp(), x)
    assert host.bytes == 0

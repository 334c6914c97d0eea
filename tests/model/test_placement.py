"""What runs in place on a grid, and what does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import xarray as xr
from aurora import Batch
from helpers import make_aurora
from torch.utils._python_dispatch import TorchDispatchMode

from xaurora.fields.grid import lattice
from xaurora.model import execution, placement

Run = Callable[[], Batch]


class Operations(TorchDispatchMode):
    """Counts the calls of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def _on_grid(base: torch.nn.Module, fields: xr.Dataset) -> tuple[Batch, Run]:
    batch = fields.aurora.to_batch(model=base)
    grid = lattice.from_axes(batch.metadata.lat.numpy(), batch.metadata.lon.numpy())

    def run() -> Batch:
        with torch.no_grad(), placement.on_grid(base, grid):
            return base(batch)

    return batch, run


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_hidden_layers_are_activated_in_place(
    fields: xr.Dataset, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_aurora()
    execution.set_precision(base, precision, torch.device("cpu"))
    batch, run = _on_grid(base, fields)
    with torch.no_grad():
        stock = base(batch)
    with Operations() as inplace:
        ours = run()
    monkeypatch.setattr(placement, "_hidden_activations", lambda base: [])
    with Operations() as copying:
        plain = run()
    count = copying.calls["aten.gelu.default"]
    assert count > 0
    assert inplace.calls["aten.gelu_.default"] == count
    assert inplace.calls["aten.gelu.default"] == copying.calls["aten.gelu_.default"] == 0
    for name, values in plain.atmos_vars.items():
        assert torch.equal(ours.atmos_vars[name], values)
        if precision == "32":
            assert torch.equal(stock.atmos_vars[name], values)


def test_values_that_something_else_reads_are_not_overwritten(fields: xr.Dataset) -> None:
    base = make_aurora()
    _, run = _on_grid(base, fields)
    block = base.backbone.encoder_layers[0].blocks[0]
    seen: list[torch.Tensor] = []
    block.mlp.fc1.register_forward_hook(lambda module, args, out: seen.append(out))
    run()
    assert float(seen[0].min()) < -0.2, "before the activation, whose least value is -0.17"

    class Kept(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = torch.nn.GELU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            before = x.clone()
            out = self.act(x)
            assert torch.equal(x, before)
            return out

    block.mlp.act = Kept()
    run()

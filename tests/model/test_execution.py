"""Precision of a model, and where its weights are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import make_aurora

from xaurora.fields.grid import lattice
from xaurora.model import execution, hashing, placement

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["bf16", "bf16-all", "32"])
def test_reduced_weights_give_the_same_forecast_to_the_bit(
    fields: xr.Dataset, precision: str
) -> None:
    base = make_aurora()
    execution.set_precision(base, precision, CPU)
    batch, before = fields.aurora.to_batch(model=base), hashing.state_hash(base)
    grid = lattice.from_axes(batch.metadata.lat.numpy(), batch.metadata.lon.numpy())
    kept = base.backbone.encoder_layers[0].blocks[0].attn.qkv.weight
    with torch.no_grad(), placement.on_grid(base, grid):
        plain = base(batch)
        with execution.reduced_weights(base, keep=[kept]):
            reduced = base(batch)
            dtypes = {p.dtype for p in base.backbone.parameters()}
            assert kept.dtype == torch.float32
            assert (torch.bfloat16 in dtypes) == (precision != "32")
            assert next(base.parameters()).dtype == torch.float32, "upstream's type of the data"
    for name, values in plain.surf_vars.items():
        assert torch.equal(reduced.surf_vars[name], values)
    assert hashing.state_hash(base) == before


def test_precisions_reach_what_they_say(fields: xr.Dataset) -> None:
    base = make_aurora()
    configuration = hashing.configuration_hash(base)
    expected = {
        "32": (False, False),
        "tf32": (False, False),
        "bf16": (True, False),
        "bf16-tf32": (True, False),
        "bf16-all": (True, True),
    }
    before, described = torch.get_float32_matmul_precision(), set()
    for precision, (backbone, ends) in expected.items():
        execution.set_precision(base, precision, CPU)
        assert (base.autocast_backbone, base.autocast_encoder) == (backbone, ends)
        assert base.autocast_decoder == ends
        assert hashing.configuration_hash(base) == configuration, "precision is named elsewhere"
        described.add(execution.described_precision(base, precision))
        with execution.tf32(precision):
            high = torch.get_float32_matmul_precision() == "high"
            assert high == ("tf32" in precision)
        assert torch.get_float32_matmul_precision() == before
    assert len(described) == 5, "latents of one precision are not those of another"


def test_a_module_comes_back_as_it_was() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    before = dict(module.state_dict(keep_vars=True).items())
    pointers = {name: v.data_ptr() for name, v in before.items()}
    with execution.moved(module, torch.device("meta")):
        assert all(p.is_meta for p in module.parameters())
    after = module.state_dict(keep_vars=True)
    assert {name: v.data_ptr() for name, v in after.items()} == pointers
    assert np.isfinite(module(torch.ones(2, 3)).detach().numpy()).all()

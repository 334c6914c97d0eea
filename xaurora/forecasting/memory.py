"""The memory that a forecast takes, found by running a step on tensors without values."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from aurora import Batch
from torch._subclasses.fake_tensor import FakeTensorMode

from xaurora.errors import MemoryTooSmallError
from xaurora.fields.grid.lattice import Grid
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model import execution, memory, placement, rollout
from xaurora.model.aurora import AuroraWithHead, needs_of_instance
from xaurora.model.batch import metadata

_SIMULATED_ABOVE = 0.25  # of what is free: forecasts that certainly need less are not simulated
_PER_POINT = 1200  # bytes per point and sample for every 100 channels: above all measurements
_RESERVED = 1.1  # what Torch reserves on a GPU, relative to what is allocated


def forward_peak(
    module: AuroraWithHead,
    grid: Grid,
    levels: Sequence[float],
    *,
    samples: int = 1,
    precision: str = "32",
    gpu: bool = False,
    head_only: bool = False,
) -> int:
    """Return the peak bytes of tensors in a forecast of one step.

    Parameters
    ----------
    module : AuroraWithHead
        Its tensors may be on the meta device.
    grid : Grid
    levels : sequence of float
        Pressure levels in hPa.
    samples : int
        Init times in a batch.
    precision : str
    gpu : bool
        Whether a GPU runs it, which holds the weights of the backbone in the precision they are
        computed in.
    head_only : bool
        Whether Aurora's own variables are not decoded.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    twin = memory.fake_copy(module)
    execution.set_precision(twin.base, precision, torch.device("cpu"))
    if gpu:
        with execution.reduced_weights(twin.base):
            fake = memory.fake_copy(twin, mode, "cpu")
    else:
        fake = memory.fake_copy(twin, mode, "cpu")
    fake.eval().requires_grad_(False)
    base, (height, width) = fake.base, grid.shape
    counter = memory.LiveBytes()
    for tensor in [*fake.parameters(), *fake.buffers()]:
        counter.track(tensor)
    casts = memory.casts_of_gpus() if gpu else contextlib.nullcontext()
    with mode, counter, casts, memory.cleared_mask_cache(), torch.no_grad():
        batch = Batch(
            {n: torch.rand(samples, 2, height, width) for n in needs_of_instance(base).surface},
            {n: torch.rand(height, width) for n in base.static_vars},
            {n: torch.rand(samples, 2, len(levels), height, width) for n in base.atmos_vars},
            metadata(grid, [np.datetime64("2020-01-01", "ns")] * samples, tuple(levels)),
        )
        with placement.on_grid(fake, grid):
            # With hourly lead times, the encoding is kept for the next one.
            hours = (1, TIMESTEP_HOURS) if base.variable_lead_time else (TIMESTEP_HOURS,)
            for _ in rollout.leads(fake, batch, hours, head_only=head_only):
                pass
    return counter.peak


def check_memory(
    module: AuroraWithHead,
    grid: Grid,
    levels: Sequence[float],
    devices: Sequence[torch.device],
    *,
    samples: int,
    precision: str,
    head_only: bool = False,
) -> None:
    """Raise if a forecast does not fit into what is free on its devices.

    Weights that are there already are not counted.

    Raises
    ------
    MemoryTooSmallError
        It names what would take less.
    """
    device, weights = devices[0], sum(p.nbytes for p in module.parameters())
    gpu = device.type == "cuda"
    there = weights if next(module.parameters()).device.type == device.type else 0
    copies = 1 if gpu else len(devices)  # that share the memory of the host
    free, points = memory.free_memory(device), grid.shape[0] * grid.shape[1] * samples
    rough = points * _PER_POINT * module.base.encoder.embed_dim / 100
    if weights + copies * rough < _SIMULATED_ABOVE * free:
        return
    if precision == "auto":
        precision = "bf16" if module.base.autocast_backbone else "32"

    def needed(samples: int, precision: str) -> float:
        peak = forward_peak(
            module,
            grid,
            levels,
            samples=samples,
            precision=precision,
            gpu=gpu and not there,
            head_only=head_only,
        )
        return copies * _RESERVED * max(peak - there, 0)

    needs = needed(samples, precision)
    if needs <= free:
        return
    fixes = {
        "batch_size=1": (1, precision) if samples > 1 else None,
        "precision='bf16'": (samples, "bf16") if precision in ("32", "tf32") else None,
        "precision='bf16-all'": (samples, "bf16-all") if gpu else None,
    }
    fits = [words for words, case in fixes.items() if case is not None and needed(*case) <= free]
    raise MemoryTooSmallError(
        f"a forecast of {samples} init time(s) on {grid.shape[0]} × {grid.shape[1]} points needs"
        f" about {needs / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.",
        fix=fits[0] if fits else "regional data: ds.sel(latitude=..., longitude=...)",
    )

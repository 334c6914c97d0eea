"""Run Aurora on a region as if it lay in the globe."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from aurora import Aurora, AuroraV1p5, Batch
from aurora.model import perceiver, swin3d

from xaurora.fields import sun
from xaurora.fields.grid.lattice import Grid
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.batch import from_utc
from xaurora.model.blocks import BlockForward
from xaurora.model.strips import DecoderForward, EncoderForward, replaced, replaced_forward


@contextlib.contextmanager
def on_grid(model: Aurora | AuroraWithHead, grid: Grid) -> Iterator[None]:
    """Run Aurora on a grid that may be a region of the globe.

    On a global grid the only effect on results is that heads use context across the date line.

    Two limitations of microsoft-aurora 2.0.1 are worked around until the context ends:

    - ``compute_3d_shifted_window_mask`` joins the left and right edges (``swin3d.py``; the layers
      never pass ``warped``). In a region the western edge would attend to the eastern one.
    - ``Metadata`` cannot hold longitudes that cross Greenwich (``batch.py``), and position
      encodings use longitude as a number: −15° is not 345° to the model. The encoder gets the true
      longitudes on a shallow copy, which skips the check. Aurora 1.5 computes its insolation from
      the true longitudes as well.

    Work and memory are saved as well: blocks copy less (:mod:`xaurora.model.blocks`), encoder and
    decoder run in strips on large grids (:mod:`xaurora.model.strips`), their Perceivers compute the
    same queries at every patch once (:func:`_project_shared_query`), and without gradients hidden
    layers are activated in place.

    The backward pass must run inside the context as well: with activation checkpointing the blocks
    run again there.
    """
    base = model.base if isinstance(model, AuroraWithHead) else model
    handles: list[Any] = []
    trunks = [m for m in model.modules() if hasattr(m, "wraps")]
    window = model.window if isinstance(model, AuroraWithHead) else None
    for trunk in trunks:
        trunk.wraps = grid.wraps if window is None else window.wraps
    if grid.crosses_greenwich:
        longitude = torch.from_numpy(grid.true_longitude.copy())

        def true_longitude(
            module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            batch = copy.copy(args[0])
            batch.metadata = copy.copy(batch.metadata)
            batch.metadata.lon = longitude.to(batch.metadata.lon)
            return (batch, *args[1:]), kwargs

        handles.append(base.encoder.register_forward_pre_hook(true_longitude, with_kwargs=True))
    forwards: dict[torch.nn.Module, Any] = {
        module: BlockForward(module, wraps=grid.wraps)
        for module in base.modules()
        if isinstance(module, swin3d.Swin3DTransformerBlock)
    }
    forwards |= {
        base.encoder: EncoderForward(base.encoder),
        base.decoder: DecoderForward(base.decoder),
    }
    for module in [*base.encoder.modules(), *base.decoder.modules()]:
        query: Any = getattr(module, "to_q", None)
        if isinstance(module, perceiver.PerceiverAttention) and type(query) is torch.nn.Linear:
            forwards[query] = functools.partial(_project_shared_query, query)
    forwards |= {gelu: functools.partial(_activate, gelu) for gelu in _hidden_activations(base)}
    with contextlib.ExitStack() as stack:
        if isinstance(base, AuroraV1p5):
            stack.enter_context(replaced(base, "_update_insolation", _insolation_on(grid)))
        for module, forward in forwards.items():
            stack.enter_context(replaced_forward(module, forward))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for trunk in trunks:
                trunk.wraps = False


def _insolation_on(grid: Grid) -> Callable[[Batch], Batch]:
    """Return what computes the insolation of Aurora 1.5's predictions on the true grid."""

    def update(prediction: Batch) -> Batch:
        if "insolation" not in prediction.surf_vars:
            return prediction
        like = prediction.surf_vars["insolation"]
        values = np.stack(
            [
                sun.insolation(from_utc(t), grid.latitude, grid.true_longitude)
                for t in prediction.metadata.time
            ]
        )
        sky = torch.from_numpy(values)[:, None].to(like)
        return dataclasses.replace(
            prediction, surf_vars={**prediction.surf_vars, "insolation": sky}
        )

    return update


def placed_blocks(base: Aurora) -> list[BlockForward]:
    """Return how the blocks of a model run inside :func:`on_grid`."""
    found = (module.__dict__.get("forward") for module in base.modules())
    return [forward for forward in found if isinstance(forward, BlockForward)]


def placed_ends(base: Aurora) -> tuple[EncoderForward, DecoderForward]:
    """Return how encoder and decoder of a model run inside :func:`on_grid`."""
    return base.encoder.__dict__["forward"], base.decoder.__dict__["forward"]


def _hidden_activations(base: Aurora) -> Iterator[torch.nn.GELU]:
    """Yield the GELUs whose input is the output of a linear layer that nothing else reads."""
    for module in base.modules():
        linear: Any
        if isinstance(module, swin3d.MLP):
            linear, gelu = module.fc1, module.act
        elif isinstance(module, perceiver.MLP):
            linear, gelu = module.net[0], module.net[1]
        else:
            continue
        known = type(linear) is torch.nn.Linear and type(gelu) is torch.nn.GELU
        if known and not linear._forward_hooks:
            yield gelu


def _activate(gelu: torch.nn.GELU, x: torch.Tensor) -> torch.Tensor:
    """Return the GELU of a tensor. The tensor is overwritten if no gradient is recorded."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.nn.functional.gelu(x, approximate=gelu.approximate)
    return torch.ops.aten.gelu_(x, approximate=gelu.approximate)


_ROWS = 512


def _project_shared_query(query: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Compute the queries of a Perceiver's first layer once instead of at every patch.

    They are the same everywhere: ``aurora/model/decoder.py`` expands one embedding of the levels
    over all patches, ``aurora/model/encoder.py`` its latent levels.
    """
    patches = -(-_ROWS // x.shape[1]) if x.ndim == 3 else 0
    if x.ndim == 3 and x.stride(0) == 0 and x.shape[0] > patches:
        # Several patches are computed, so that the matrix is large enough for the same
        # multiplication as the full one. The results were bit-identical wherever compared.
        return torch.nn.functional.linear(x[:patches], query.weight, query.bias)[:1].expand(
            x.shape[0], -1, -1
        )
    return torch.nn.functional.linear(x, query.weight, query.bias)

"""Precision, compilation and activation checkpointing of an Aurora."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from aurora import Aurora
from aurora.model.swin3d import WindowAttention

from xaurora.model.options import check_precision
from xaurora.model.placement import placed_blocks, placed_ends
from xaurora.model.windows import run_block

logger = logging.getLogger("xaurora")


def precision_on(precision: str, device: torch.device) -> str:
    """Return the precision of the backbone on a device: ``"32"``, ``"bf16"`` or ``"fp16"``.

    ``"auto"`` is bf16 on a GPU that supports it, else float32.

    Raises
    ------
    OptionError
        If there is no such precision.
    """
    check_precision("precision", precision)
    if precision != "auto":
        return precision
    # Without emulation: a GPU that only emulates bf16 is slower with it.
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if capable else "32"


def set_precision(base: Aurora, precision: str, device: torch.device) -> None:
    """Autocast the backbone alone, as upstream does.

    Encoder, decoder and head stay in float32.
    """
    use = precision_on(precision, device)
    base.autocast_backbone = use != "32"
    base.autocast_dtype = torch.float16 if use == "fp16" else torch.bfloat16
    for module in base.modules():
        # upstream's workaround for overflow of float16 in attention
        if isinstance(module, WindowAttention):
            module.use_fp16_safe_attention = use == "fp16"


def uses_fp16(base: Aurora) -> bool:
    """Return whether the backbone runs in float16, whose small gradients need loss scaling."""
    return bool(base.autocast_backbone) and base.autocast_dtype == torch.float16


def recomputes(wanted: bool | str, accelerated: bool, *, trains_base: bool) -> bool:
    """Return whether activations are recomputed: on a GPU if the base trains, or as requested."""
    if wanted == "auto":
        return trains_base and accelerated
    return bool(wanted)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a device of Torch or JAX ran out of memory."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "RESOURCE_EXHAUSTED" in f"{error}"


_VARIANTS = 64  # of a compiled block: stages, shifted or not, with and without gradients


@contextlib.contextmanager
def compiled(base: Aurora) -> Iterator[None]:
    """Run the backbone's blocks through ``torch.compile``, inside ``on_grid``.

    All blocks share one function, compiled once for each shape. If compilation fails, a warning is
    logged once and the blocks run uncompiled.
    """
    import torch._dynamo

    made: list[Any] = []
    failed: list[str] = []

    def run(*args: Any) -> torch.Tensor:
        if not failed:
            try:
                if not made:
                    made.append(torch.compile(run_block, dynamic=False))
                return made[0](*args)
            except (
                RuntimeError,
                ImportError,
                OSError,
                NotImplementedError,
                AttributeError,
            ) as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                failed.append(type(error).__name__)
                logger.warning(
                    "compile=True: torch.compile is not available here (%s: %s); the blocks run"
                    " uncompiled, with the same results.",
                    type(error).__name__,
                    (str(error).strip().splitlines() or ["no reason given"])[0],
                )
        return run_block(*args)

    blocks = placed_blocks(base)
    for block in blocks:
        block.run = run
    try:
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            yield
    finally:
        for block in blocks:
            block.run = run_block


@contextlib.contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Keep cuDNN's attention out of the backward pass.

    On an H200 with Torch 2.11 its gradient in bf16 was NaN (``ScaledDotProductCudnnAttention``), in
    the first step of every run that trains the backbone. The other kernels give finite gradients.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextlib.contextmanager
def activation_checkpointing(base: Aurora) -> Iterator[None]:
    """Recompute blocks, encoder and decoder in the backward pass, inside ``on_grid``.

    Upstream's ``configure_activation_checkpointing`` nests wrappers around backbone, layers and
    blocks, so that the forward pass runs several times, and it renames parameters. This wraps each
    block, and each strip of encoder and decoder, once.
    """
    from torch.utils.checkpoint import checkpoint

    parts = [*placed_blocks(base), *placed_ends(base)]
    for part in parts:
        part.around = functools.partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for part in parts:
            part.around = None

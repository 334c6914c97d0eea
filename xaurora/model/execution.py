"""Precision, compilation and activation checkpointing of an Aurora."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from aurora import Aurora
from aurora.model.swin3d import Swin3DTransformerBlock, WindowAttention

from xaurora.model.options import check_precision

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


@contextlib.contextmanager
def compiled(base: Aurora) -> Iterator[None]:
    """Run the backbone's blocks through ``torch.compile``.

    If compilation fails, a warning is logged once and the blocks run uncompiled.
    """
    blocks = [m for m in base.modules() if isinstance(m, Swin3DTransformerBlock)]
    failed: list[str] = []

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        made: list[Any] = []

        def run(*args: Any, **kwargs: Any) -> Any:
            if not failed:
                try:
                    if not made:
                        made.append(torch.compile(forward, dynamic=False))
                    return made[0](*args, **kwargs)
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
            return forward(*args, **kwargs)

        return run

    for block in blocks:
        block.forward = wrap(block.forward)
    try:
        with warnings.catch_warnings():
            # Upstream caches the masks of shifted windows. Compiled code bypasses the cache and
            # computes the same masks again.
            warnings.filterwarnings(
                "ignore", message="Dynamo detected a call to a `functools.lru_cache`"
            )
            yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


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
    """Recompute blocks, encoder and decoder in the backward pass (activation checkpointing).

    Upstream's ``configure_activation_checkpointing`` nests wrappers around backbone, layers and
    blocks, so that the forward pass runs several times, and it renames parameters. This wraps each
    module once and removes the wrappers on exit.
    """
    from torch.utils.checkpoint import checkpoint

    modules = [m for m in base.modules() if isinstance(m, Swin3DTransformerBlock)]
    modules += [base.encoder, base.decoder]

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        def again(*args: Any, **kwargs: Any) -> Any:
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        return again

    for module in modules:
        module.forward = wrap(module.forward)
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)

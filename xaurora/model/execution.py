"""Precision, compilation and activation checkpointing of an Aurora."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Collection, Iterator
from typing import Any

import torch
from aurora import Aurora
from aurora.model.swin3d import WindowAttention
from torch.utils.checkpoint import checkpoint

from xaurora.model.blocks import run_block
from xaurora.model.offload import HostActivations
from xaurora.model.options import check_precision
from xaurora.model.placement import placed_blocks, placed_ends

logger = logging.getLogger("xaurora")


def precision_on(precision: str, device: torch.device) -> str:
    """Return the precision on a device: that of the options, without ``"auto"``.

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
    """Autocast the backbone, and with ``"bf16-all"`` encoder and decoder.

    The head stays in float32. TF32 is a setting of the process (:func:`tf32`).
    """
    use = precision_on(precision, device)
    base.autocast_backbone = use not in ("32", "tf32")
    base.autocast_encoder = base.autocast_decoder = use == "bf16-all"
    base.autocast_dtype = torch.float16 if use == "fp16" else torch.bfloat16
    for module in base.modules():
        # upstream's workaround for overflow of float16 in attention
        if isinstance(module, WindowAttention):
            module.use_fp16_safe_attention = use == "fp16"


def described_precision(base: Aurora, precision: str) -> str:
    """Return the precision of latents as text."""
    if base.autocast_backbone and precision in ("bf16-all", "bf16-tf32"):
        return precision
    if base.autocast_backbone:
        return str(base.autocast_dtype).removeprefix("torch.")
    return "tf32" if precision == "tf32" else "float32"


@contextlib.contextmanager
def tf32(precision: str) -> Iterator[None]:
    """Let GPUs round the matrix products of float32 to TF32, if a precision says so.

    It has no effect on other devices.
    """
    before = torch.get_float32_matmul_precision()
    if precision in ("tf32", "bf16-tf32"):
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def uses_fp16(base: Aurora) -> bool:
    """Return whether the backbone runs in float16, whose small gradients need loss scaling."""
    return bool(base.autocast_backbone) and base.autocast_dtype == torch.float16


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

    def run(*args: Any) -> torch.Tensor:  # noqa: ANN401 - those of run_block()
        if not failed:
            try:
                if not made:
                    made.append(torch.compile(run_block, dynamic=False))
                with torch._dynamo.config.patch(recompile_limit=_VARIANTS):  # of this thread
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
def activation_checkpointing(base: Aurora, *, offload: bool = False) -> Iterator[HostActivations]:
    """Recompute blocks, encoder and decoder in the backward pass, inside ``on_grid``.

    Upstream's ``configure_activation_checkpointing`` nests wrappers around backbone, layers and
    blocks, so that the forward pass runs several times, and it renames parameters. This wraps each
    block, and each strip of encoder and decoder, once.

    Parameters
    ----------
    base : aurora.Aurora
    offload : bool
        Whether the inputs of blocks wait in host memory.

    Yields
    ------
    HostActivations
        What waits there. It is empty without ``offload``.
    """
    host = HostActivations()
    parts: list[Any] = [*placed_blocks(base), *placed_ends(base)]
    for part in parts:
        part.around = host if offload else functools.partial(checkpoint, use_reentrant=False)
    try:
        yield host
    finally:
        for part in parts:
            part.around = None


@contextlib.contextmanager
def reduced_weights(base: Aurora, *, keep: Collection[torch.nn.Parameter] = ()) -> Iterator[None]:
    """Keep weights of the backbone in the precision that it computes in.

    Autocast converts the weights of linear layers in each step; converted once, they take half the
    memory and give the same results to the bit. The float32 weights come back on exit.

    Parameters
    ----------
    base : aurora.Aurora
    keep : collection of torch.nn.Parameter
        Weights that stay as they are, such as those that train.
    """
    stay = {id(p) for p in keep}
    found = {
        id(p): p
        for module in base.backbone.modules()
        if type(module) is torch.nn.Linear and base.autocast_backbone
        for p in module.parameters(recurse=False)
        if id(p) not in stay
    }
    held = [(p, p.data) for p in found.values()]
    try:
        for p in found.values():
            p.data = p.data.to(base.autocast_dtype)
        yield
    finally:
        for p, values in held:
            p.data = values


@contextlib.contextmanager
def moved(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Run a module on another device. Its own tensors stay where they are, and come back on exit.

    Nothing is copied back, so that changes made on the device are lost.
    """
    values = [(p, p.data) for p in module.parameters()]
    held = [(m, dict(m._parameters), dict(m._buffers)) for m in module.modules()]
    try:
        module.to(device)
        yield
    finally:
        for part, parameters, buffers in held:
            part._parameters.update(parameters)
            part._buffers.update(buffers)
        for p, value in values:
            p.data = value

"""Count the bytes of live tensors and their peak, also for computations on fake tensors."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from xaurora.utils.memory import free_host_memory

M = TypeVar("M", bound=nn.Module)


class LiveBytes(TorchDispatchMode):
    """Count the storage of every tensor that an operation creates, until it is freed.

    Scratch memory inside an operation is not counted. With fake tensors (:func:`fake_copy`) nothing
    is computed or allocated, and the count is the same. A boolean test on values, such as whether
    all latitudes are in range, then gives True, so that the computation continues.

    Attributes
    ----------
    live, peak : int
        Current and largest number of bytes.
    flops : int
        Floating-point operations of matrix products and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._known: set[int] = set()

    def track(self, tensor: torch.Tensor) -> None:
        """Count a tensor that existed before."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if func is torch.ops.prim.device.default and hasattr(args[0], "fake_device"):
            return args[0].fake_device  # asked for more often than anything is computed
        if func is torch.ops.aten._local_scalar_dense.default and is_fake(args[0]):
            # Numbers: the dropout rate when a model is built on the meta device, later the count of
            # optimiser steps.
            return True if args[0].dtype == torch.bool else 0 if args[0].is_meta else 1
        if func is torch.ops.aten.index.Tensor and is_fake(args[0]) and _is_mask(args):
            return func(
                args[0].flatten(),
                [torch.empty(args[0].numel(), dtype=torch.long, device=args[0].device)],
            )
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(getattr(func, "_overloadpacket", None))
        if count is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=out))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self.track(value)
        return out


@contextlib.contextmanager
def casts_of_gpus() -> Iterator[None]:
    """Under autocast, run layer norms of fake tensors in float32, as GPUs do and CPUs do not."""
    functional: Any = torch.nn.functional
    layer_norm = functional.layer_norm

    def cast(x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        is_cast = torch.is_autocast_enabled(x.device.type) and is_fake(x)
        return layer_norm(x.float() if is_cast else x, *args, **kwargs)

    functional.layer_norm = cast
    try:
        yield
    finally:
        functional.layer_norm = layer_norm


def _is_mask(args: tuple[Any, ...]) -> bool:
    """Return whether an index is a boolean mask of the whole tensor.

    How many elements it selects depends on values, so all of them are assumed.
    """
    index = args[1]
    return (
        len(index) == 1
        and index[0] is not None
        and index[0].dtype == torch.bool
        and index[0].shape == args[0].shape
    )


def is_fake(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has a shape but no values."""
    return type(tensor).__name__ == "FakeTensor" or tensor.is_meta


@contextlib.contextmanager
def cleared_mask_cache() -> Iterator[None]:
    """Clear upstream's cache of masks on entry and exit.

    Upstream caches the masks of shifted windows (``lru_cache`` in ``aurora/model/swin3d.py``). A
    mask without values must not be found there by a later computation on real tensors.
    """
    from aurora.model.swin3d import compute_3d_shifted_window_mask as masks

    masks.cache_clear()
    try:
        yield
    finally:
        masks.cache_clear()


def free_memory(where: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if where.type == "cuda":  # memory reserved by Torch but not allocated counts as free
        return (
            int(torch.cuda.mem_get_info()[0])
            + torch.cuda.memory_reserved()
            - torch.cuda.memory_allocated()
        )
    return free_host_memory()


def fake_copy(module: M, mode: FakeTensorMode | None = None, device: str = "meta") -> M:
    """Return a copy of a module whose parameters and buffers have shapes but no values.

    Parameters
    ----------
    module : torch.nn.Module
        Its tensors may be on the meta device, which takes no memory either.
    mode : FakeTensorMode, optional
        Makes the tensors fake tensors on ``device``.
    device : str
        Device of the tensors.
    """
    memo: dict[int, Any] = {}
    with mode or contextlib.nullcontext():
        for tensor in [*module.parameters(), *module.buffers()]:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            memo[id(tensor)] = (
                nn.Parameter(empty, requires_grad=tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else empty
            )
    return copy.deepcopy(module, memo)

"""How many bytes of tensors are alive, and the most that ever were: exact, and also for
computations that are only imagined.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class LiveBytes(TorchDispatchMode):
    """Counts the storage of every tensor that an operation makes, until it is freed.

    Scratch space inside an operation is not seen. With fake tensors (:func:`imagined`) nothing is
    computed or allocated, and the count is the same; a question about values (is any latitude out
    of range?) is then answered with yes, it is as it should be.

    Attributes
    ----------
    live, peak : int
        Bytes now, and the most so far.
    flops : int
        Floating-point operations of matrix products and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._known: set[int] = set()

    def track(self, tensor: torch.Tensor) -> None:
        """Count a tensor that was there before."""
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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and _is_fake(args[0]):
            # Of numbers: a rate of dropout when a model is made on the meta device, a count of
            # steps later.
            return True if args[0].dtype == torch.bool else 0 if args[0].is_meta else 1
        if func is torch.ops.aten.index.Tensor and _is_fake(args[0]) and _is_mask(args):
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


def _is_mask(args: Any) -> bool:
    """Whether an index is a mask of the whole tensor; how much it lets through is a question about
    values: all, at most.
    """
    index = args[1]
    return (
        len(index) == 1
        and index[0] is not None
        and index[0].dtype == torch.bool
        and index[0].shape == args[0].shape
    )


def _is_fake(tensor: Any) -> bool:
    return type(tensor).__name__ == "FakeTensor" or tensor.is_meta


@contextlib.contextmanager
def without_traces() -> Iterator[None]:
    """Upstream keeps the masks of shifted windows in a cache (``lru_cache`` in
    ``aurora/model/swin3d.py``): one without values must not be found there by a later
    computation that has them."""
    from aurora.model.swin3d import compute_3d_shifted_window_mask as masks

    masks.cache_clear()
    try:
        yield
    finally:
        masks.cache_clear()


def imagined(
    module: nn.Module, mode: FakeTensorMode | None = None, device: str = "meta"
) -> nn.Module:
    """A copy of a module whose parameters and buffers have shapes and no values.

    Parameters
    ----------
    module : torch.nn.Module
        Its tensors may lie on the meta device, which takes no memory either.
    mode : FakeTensorMode, optional
        With it, tensors pretend to lie on ``device``.
    device : str
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

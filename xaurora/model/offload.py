"""Inputs of recomputed blocks in host memory, while the device does not need them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")

_SMALLEST = 1024**2  # bytes: smaller tensors stay, their copies would only cost time


@dataclass(eq=False)
class _Kept:
    """A tensor that left the device.

    ``host`` is its copy, None for a tensor without values. ``back`` is the tensor on the device
    again, once it has been asked for, and ``ready`` tells when it is complete.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    bytes: int
    host: torch.Tensor | None = None
    back: torch.Tensor | None = None
    ready: torch.cuda.Event | None = None


class HostActivations:
    """Activation checkpointing whose inputs wait for the backward pass in host memory.

    Called as ``around`` of a block (:class:`xaurora.model.blocks.BlockForward`). On a GPU copies
    run on a stream of their own, beside the computation: the input of a block leaves while the
    block runs, and while a block is recomputed the input of the one before comes back.

    Attributes
    ----------
    bytes, peak : int
        Bytes in host memory now, and at most.
    """

    def __init__(self) -> None:
        self.bytes = self.peak = 0
        self._order: list[weakref.ref[_Kept]] = []  # the graph holds them
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, run: Callable[..., T], *args: object) -> T:
        """Run a function of tensors, and again in the backward pass."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            return checkpoint(run, *args, use_reentrant=False)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _Kept:
        if tensor.nbytes < _SMALLEST or not tensor.is_floating_point():
            return tensor
        kept = _Kept(tensor.shape, tensor.dtype, tensor.device, tensor.nbytes)
        if isinstance(tensor, FakeTensor):
            pass
        elif tensor.is_cuda:
            kept.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            stream = self._beside(tensor.device)
            with torch.cuda.stream(stream):
                kept.host.copy_(tensor.detach(), non_blocking=True)
            tensor.record_stream(stream)
        else:
            with _disable_current_modes():  # bytes of the host are not counted as the device's
                kept.host = tensor.detach().clone()
        self.bytes += kept.bytes
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(kept, self._freed, kept.bytes)
        self._order.append(weakref.ref(kept))
        return kept

    def _freed(self, size: int) -> None:
        self.bytes -= size

    def _unpack(self, kept: torch.Tensor | _Kept) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        self._fetch(kept)
        while self._order and self._order[-1]() in (None, kept):
            self._order.pop()
        if self._order and (following := self._order[-1]()) is not None:
            self._fetch(following)  # needed next
        if kept.ready is not None:
            torch.cuda.current_stream(kept.device).wait_event(kept.ready)
        back, kept.back = kept.back, None
        assert back is not None
        return back

    def _fetch(self, kept: _Kept) -> None:
        """Copy a tensor back to its device, if that has not begun."""
        if kept.back is not None:
            return
        kept.back = torch.empty(kept.shape, dtype=kept.dtype, device=kept.device)
        if kept.host is None:
            return
        if kept.device.type != "cuda":
            kept.back.copy_(kept.host)
            return
        stream = self._beside(kept.device)
        with torch.cuda.stream(stream):
            kept.back.copy_(kept.host, non_blocking=True)
            kept.ready = stream.record_event()
        kept.back.record_stream(stream)

    def _beside(self, device: torch.device) -> torch.cuda.Stream:
        """Return the stream of copies, after everything that was computed so far."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        return self._stream

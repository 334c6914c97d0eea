"""An optimiser in host memory, for weights whose gradients and state do not fit on the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from xaurora.model.aurora import AuroraWithHead
from xaurora.training.optimisation import Optimisation
from xaurora.training.options import TrainingOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class HostOptimisation(Optimisation):
    """Trains float32 weights in host memory, and copies them to the device after each step.

    The device holds the weights in the precision that they are computed in, and each gradient only
    until it has been copied. Float32 weights, gradients, moments and their moving average are on
    the host, where Torch's fused AdamW runs. Results are those of :class:`Optimisation`: autocast
    rounds the same float32 weights to the same values. Only the gradients of one rollout's steps
    are summed in the precision of the weights.

    Parameters
    ----------
    fabric : Fabric
    module : AuroraWithHead
        What runs on the device.
    twin : AuroraWithHead
        A copy of it in float32 on the host, whose weights train.
    groups : list of dict
        Parameter groups of ``module``.
    options : TrainingOptions
    total : int
        Optimiser steps of the run.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: AuroraWithHead,
        twin: AuroraWithHead,
        groups: list[dict[str, Any]],
        options: TrainingOptions,
        *,
        total: int,
    ) -> None:
        names = {id(p): name for name, p in module.named_parameters()}
        weights = dict(twin.named_parameters())
        mine = [{**g, "params": [weights[names[id(p)]] for p in g["params"]]} for g in groups]
        on_device = [p for g in groups for p in g["params"]]
        super().__init__(fabric, module, groups, options, total=total, sharded=False, trained=mine)
        self._pairs = list(zip(on_device, self.parameters.values(), strict=True))
        self._arriving: list[tuple[torch.Tensor, torch.nn.Parameter]] = []
        for parameter, weight in self._pairs:
            parameter.register_post_accumulate_grad_hook(_Sender(weight, self._arriving))
        self.push()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss to those on the host."""
        super().backward(loss)
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        for gradient, weight in self._arriving:
            if weight.grad is None:  # a copy: the next gradient arrives in the same place
                weight.grad = gradient.to(weight.dtype, copy=gradient.is_pinned())
            else:
                weight.grad.add_(gradient)
        self._arriving.clear()

    def clip(self) -> float:
        """Clip the gradient, and return its norm before that."""
        return float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.options.clip))

    def step(self, number: int) -> None:
        """Update the weights on the host, and copy them to the device."""
        super().step(number)
        self.push()

    @torch.no_grad()
    def push(self) -> None:
        """Copy the weights to the device."""
        for parameter, weight in self._pairs:
            parameter.copy_(weight)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the moving average in place of the weights, if there is one."""
        if self.average is None:
            yield
            return
        try:
            with super().averaged():
                self.push()
                yield
        finally:
            self.push()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        super().load_state(state)
        self.push()


class _Sender:
    """Sends a gradient to the host when it is complete, and frees it on the device."""

    def __init__(
        self, weight: torch.nn.Parameter, arriving: list[tuple[torch.Tensor, torch.nn.Parameter]]
    ) -> None:
        self.weight, self.arriving = weight, arriving
        self.buffer: torch.Tensor | None = None  # pinned

    def __call__(self, parameter: torch.Tensor) -> None:
        gradient: Any = parameter.grad
        parameter.grad = None
        if gradient.is_cuda:
            if self.buffer is None:
                self.buffer = torch.empty(gradient.shape, dtype=gradient.dtype, pin_memory=True)
            gradient = self.buffer.copy_(gradient, non_blocking=True)
        self.arriving.append((gradient, self.weight))

"""The regularised incomplete gamma functions for Torch, with a gradient in the shape, which Torch
itself does not have.

The derivative in the shape is a central difference in float64 with a small step; its error is about
1e-10, of a function between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

_STEP = 2e-5  # of the shape; truncation (h²) and rounding (1e-16/h) meet there


def _slope(
    function: Callable[..., torch.Tensor], shape: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """``∂function/∂shape``; float64 tensors of one shape in and out."""
    step = _STEP * shape
    return (function(shape + step, x) - function(shape - step, x)) / (2.0 * step)


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: torch.Tensor, x: torch.Tensor, sign: float) -> torch.Tensor:
        a, t = torch.broadcast_tensors(shape, x)
        function = torch.special.gammaincc if sign > 0 else torch.special.gammainc
        ctx.save_for_backward(shape, x)
        ctx.sign = sign
        return function(a.double(), t.double()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        shape, x = ctx.saved_tensors
        a, t = (v.double() for v in torch.broadcast_tensors(shape, x))
        weight = upstream.double()
        by_shape = by_x = None
        if ctx.needs_input_grad[0]:
            if ctx.sign > 0:
                slope = _slope(torch.special.gammaincc, a, t)
            else:  # towards one the other tail is the one in which nothing cancels
                slope = _slope(torch.special.gammainc, a, t)
                high = torch.special.gammainc(a, t) > 0.5
                slope[high] = -_slope(torch.special.gammaincc, a[high], t[high])
            by_shape = (weight * slope).to(shape.dtype).sum_to_size(shape.shape)
        if ctx.needs_input_grad[1]:
            density = torch.exp((a - 1.0) * torch.log(t) - t - torch.special.gammaln(a))
            by_x = (-ctx.sign * weight * density).to(x.dtype).sum_to_size(x.shape)
        return by_shape, by_x, None


def gamma_above(shape: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``Q(shape, x)``, differentiable once in both; ``x`` must be positive where its gradient is
    asked for.
    """
    return _Tail.apply(shape, x, 1.0)


def gamma_below(shape: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``P(shape, x)``, in the same way."""
    return _Tail.apply(shape, x, -1.0)

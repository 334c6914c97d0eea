"""The regularised incomplete gamma functions for Torch, with a gradient in the shape, which Torch itself does not have.

The derivative in the shape is a central difference in float64 with a small step, taken on the smaller tail, where nothing cancels: its error is
about 1e-9 of the function's scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

_STEP = 2e-5  # of the shape; truncation (h²) and rounding (1e-16/h) meet there


def _slope(shape: torch.Tensor, x: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """``∂Q/∂shape``; float64 tensors of one shape in and out."""
    out = torch.zeros_like(x)
    for mask, function, sign in (
        ((above <= 0.5) & (x > 0), torch.special.gammaincc, 1.0),
        ((above > 0.5) & (x > 0), torch.special.gammainc, -1.0),
    ):
        a, t = shape[mask], x[mask]
        step = _STEP * a
        out[mask] = sign * (function(a + step, t) - function(a - step, t)) / (2.0 * step)
    return out


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: torch.Tensor, x: torch.Tensor, sign: float) -> torch.Tensor:
        a, t = torch.broadcast_tensors(shape, x)
        function = torch.special.gammaincc if sign > 0 else torch.special.gammainc
        value = function(a.double(), t.double())
        ctx.save_for_backward(shape, x, value)
        ctx.sign = sign
        return value.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        shape, x, value = ctx.saved_tensors
        a, t = (v.double() for v in torch.broadcast_tensors(shape, x))
        weight = ctx.sign * upstream.double()
        by_shape = by_x = None
        if ctx.needs_input_grad[0]:
            slope = _slope(a, t, value if ctx.sign > 0 else 1.0 - value)
            by_shape = (weight * slope).to(shape.dtype).sum_to_size(shape.shape)
        if ctx.needs_input_grad[1]:
            density = torch.exp((a - 1.0) * torch.log(t) - t - torch.special.gammaln(a))
            by_x = (-weight * density).to(x.dtype).sum_to_size(x.shape)
        return by_shape, by_x, None


def gamma_above(shape: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``Q(shape, x)``, differentiable once in both; ``x`` must be positive where its gradient is asked for."""
    return _Tail.apply(shape, x, 1.0)


def gamma_below(shape: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``P(shape, x)``, in the same way."""
    return _Tail.apply(shape, x, -1.0)

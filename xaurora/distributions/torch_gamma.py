"""The regularised incomplete gamma functions for Torch, with a gradient in the shape.

Torch has no such gradient. Here it is a central difference in float64 with a small step, with an
error of about 1e-10 for a function between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

STEP = 2e-5  # relative to the shape; balances truncation (h²) and rounding (1e-16/h)


def _slope(
    function: Callable[..., torch.Tensor], shape: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """Return ``∂function/∂shape``; all tensors are float64 and of one shape."""
    step = STEP * shape
    return (function(shape + step, x) - function(shape - step, x)) / (2.0 * step)


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(  # PyTorch sets the context's attributes as it likes
        ctx: Any,  # noqa: ANN401
        shape: torch.Tensor,
        x: torch.Tensor,
        sign: float,
    ) -> torch.Tensor:
        a, t = torch.broadcast_tensors(shape, x)
        function = torch.special.gammaincc if sign > 0 else torch.special.gammainc
        ctx.save_for_backward(shape, x)
        ctx.sign = sign
        return function(a.double(), t.double()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        upstream: torch.Tensor,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        shape, x = ctx.saved_tensors
        a, t = (v.double() for v in torch.broadcast_tensors(shape, x))
        weight = upstream.double()
        by_shape = by_x = None
        if ctx.needs_input_grad[0]:
            if ctx.sign > 0:
                slope = _slope(torch.special.gammaincc, a, t)
            else:  # close to one, the difference of the other tail does not cancel
                slope = _slope(torch.special.gammainc, a, t)
                high = torch.special.gammainc(a, t) > 0.5
                slope[high] = -_slope(torch.special.gammaincc, a[high], t[high])
            by_shape = (weight * slope).to(shape.dtype).sum_to_size(shape.shape)
        if ctx.needs_input_grad[1]:
            density = torch.exp((a - 1.0) * torch.log(t) - t - torch.special.gammaln(a))
            by_x = (-ctx.sign * weight * density).to(x.dtype).sum_to_size(x.shape)
        return by_shape, by_x, None


def gamma_above(shape: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ``Q(shape, x)``, differentiable once in both arguments.

    ``x`` must be positive where its gradient is needed.
    """
    return _Tail.apply(shape, x, 1.0)


def gamma_below(shape: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ``P(shape, x)``, differentiable like :func:`gamma_above`."""
    return _Tail.apply(shape, x, -1.0)

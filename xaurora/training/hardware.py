"""What this machine has: device, free memory, floating-point rate."""

from __future__ import annotations

import functools
import math
import time

import numpy as np
import torch

from xaurora.model import execution, models
from xaurora.training.plan import Plan


def device() -> torch.device:
    """Return the device that training would use."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_size(plan: Plan) -> tuple[int, int]:
    """Return the number of parameters of a plan's base, and the width of its embedding."""
    base = plan.tuned.model.base if plan.tuned is not None else plan.model.instance
    if base is not None:
        return sum(p.numel() for p in base.parameters()), base.encoder.embed_dim
    spec = models.spec_of(plan.name)
    return spec.parameters, spec.width


def measure_rate(plan: Plan, where: torch.device) -> float:
    """Return floating-point operations per second, forward and backward, measured once.

    Times two layers of the model's width; takes about a second.
    """
    rows = plan.grid.shape[0] * plan.grid.shape[1] // plan.needs.patch_size**2 * 4
    precision = execution.precision_on(plan.options.precision, where)
    return _rate_of_layers(model_size(plan)[1], int(np.clip(rows, 512, 8192)), precision, where)


@functools.cache
def _rate_of_layers(width: int, tokens: int, precision: str, where: torch.device) -> float:
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    layers = torch.nn.Sequential(
        torch.nn.LayerNorm(2 * width),
        torch.nn.Linear(2 * width, 8 * width),
        torch.nn.GELU(),
        torch.nn.Linear(8 * width, 2 * width),
    ).to(where)
    x = torch.zeros(tokens, 2 * width, device=where)
    flops = 3 * 2 * 2 * tokens * 16 * width**2
    best = math.inf
    for _ in range(4):
        began = time.perf_counter()
        with torch.autocast(where.type, dtype=half, enabled=precision not in ("32", "tf32")):
            out = layers(x)
        out.float().sum().backward()
        if where.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return flops / best

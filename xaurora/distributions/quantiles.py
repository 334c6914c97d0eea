"""A distribution of precipitation given by quantiles of wet amounts.

It is dry with probability ``1 − p``. Given rain, ``Q(0) = 0`` and ``Q(τᵢ) = qᵢ``, linear in
between. Above ``q_K`` the survival function falls as ``(1−τ_K) e^{−(x−q_K)/s}``, with ``s`` taken
from the last two quantiles. Amounts are in metres. No parametric family is assumed, and the
probability of exactly zero is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xaurora.distributions.namespace import Array, namespace

TINY = 1e-12  # m; smallest length of a tail, which avoids division by zero


def tail_scale(values: Sequence[Any], levels: Sequence[float]) -> Array:
    """Return the decay length of the tail in metres."""
    xp = namespace(values[-1])
    steepness = math.log((1.0 - levels[-2]) / (1.0 - levels[-1]))
    return xp.maximum((values[-1] - values[-2]) / steepness, xp.like(TINY, values[-1]))


def _segments(
    p: Array, values: Sequence[Any], levels: Sequence[float]
) -> list[tuple[Any, Any, Any, Any]]:
    """Return the start and end of each linear piece of F, and the values of F there."""
    xp = namespace(values[-1])
    ends = [xp.zeros_like(values[0]), *values]
    heights = [1.0 - p + p * level for level in (0.0, *levels)]
    return [(ends[i], ends[i + 1], heights[i], heights[i + 1]) for i in range(len(values))]


def crps(p: Array, values: Sequence[Any], levels: Sequence[float], y: Array) -> Array:
    """Return the CRPS in metres, integrated exactly over the linear pieces and the tail.

    Parameters
    ----------
    p : array
        Probability of rain.
    values : sequence of array
        Quantiles of wet amounts in metres, non-decreasing.
    levels : sequence of float
        Their probabilities, increasing, in (0, 1).
    y : array
        Observed amount, metres, ≥ 0.
    """
    xp = namespace(values[-1])
    total = 0.0 * (y + values[-1])
    for start, end, low, high in _segments(p, values, levels):
        width = end - start
        there = width > TINY
        safe = xp.where(there, width, xp.ones_like(width))
        # `cut` is where the observation divides the piece, through which F rises linearly.
        cut = xp.minimum(xp.maximum(y, start), end)
        middle = xp.where(there, low + (high - low) * (cut - start) / safe, high + 0.0 * cut)
        total = total + (cut - start) * (low * low + low * middle + middle * middle) / 3.0
        up_low, up_high = 1.0 - middle, 1.0 - high
        total = total + (end - cut) * (up_low * up_low + up_low * up_high + up_high * up_high) / 3.0
    rest, last = p * (1.0 - levels[-1]), values[-1]
    scale = tail_scale(values, levels)
    beyond = xp.maximum(y - last, xp.zeros_like(y - last))
    left = xp.exp(-beyond / scale)
    # ∫F² up to y: with the tail's survival S = rest·e^{−u}, (1 − S)² = 1 − 2S + S².
    total = (
        total
        + beyond
        - 2.0 * rest * scale * (1.0 - left)
        + 0.5 * rest * rest * scale * (1.0 - left * left)
    )
    return xp.clamp_value(total + 0.5 * rest * rest * scale * left * left)


def mean(p: Array, values: Sequence[Any], levels: Sequence[float]) -> Array:
    """Return the mean amount in metres."""
    ends = [namespace(values[-1]).zeros_like(values[0]), *values]
    heights = [0.0, *levels]
    total = 0.0 * values[-1]
    for i in range(len(values)):
        total = total + (heights[i + 1] - heights[i]) * 0.5 * (ends[i] + ends[i + 1])
    return p * (total + (1.0 - levels[-1]) * (values[-1] + tail_scale(values, levels)))


def cdf(p: Array, values: Sequence[Any], levels: Sequence[float], y: Array) -> Array:
    """Return ``P(tp ≤ y)`` for ``y`` ≥ 0 in metres."""
    xp = namespace(values[-1])
    y = xp.like(y, values[-1])
    out = 1.0 - p + 0.0 * (y + values[-1])
    for start, end, low, high in _segments(p, values, levels):
        width = end - start
        share = (y - start) / xp.where(width > TINY, width, xp.like(TINY, width))
        share = xp.minimum(xp.maximum(share, xp.zeros_like(share)), xp.ones_like(share))
        # A piece of zero length has all of its probability at its end.
        share = xp.where(
            width > TINY, share, xp.where(y >= end, xp.ones_like(share), xp.zeros_like(share))
        )
        out = out + (high - low) * share
    beyond = xp.maximum(y - values[-1], xp.zeros_like(out))
    return out + p * (1.0 - levels[-1]) * (1.0 - xp.exp(-beyond / tail_scale(values, levels)))


def quantile(p: Array, values: Sequence[Any], levels: Sequence[float], q: Array) -> Array:
    """Return the amount in metres not exceeded with probability ``q`` in (0, 1)."""
    xp = namespace(values[-1])
    q = xp.like(q, values[-1])
    rank = xp.maximum(
        (q - (1.0 - p)) / p, xp.zeros_like(q + p)
    )  # among wet amounts; zero where dry
    out = 0.0 * (rank + values[-1])
    ends = [xp.zeros_like(values[0]), *values]
    heights = [0.0, *levels]
    for i in range(len(values)):
        share = (rank - heights[i]) / (heights[i + 1] - heights[i])
        share = xp.minimum(xp.maximum(share, xp.zeros_like(share)), xp.ones_like(share))
        out = out + (ends[i + 1] - ends[i]) * share
    past = xp.minimum((1.0 - rank) / (1.0 - levels[-1]), xp.ones_like(rank))
    return out - tail_scale(values, levels) * xp.log(past)

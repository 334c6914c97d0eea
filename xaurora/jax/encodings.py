"""Fourier expansions of a batch's place and time, computed by upstream's functions in float64."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import torch
from aurora import Aurora as TorchAurora
from aurora.model import fourier
from aurora.model.posencoding import pos_scale_enc

from xaurora.jax.layers import Array
from xaurora.jax.weights import to_jax


class Encodings(NamedTuple):
    """Fourier expansions of a batch's place and time.

    ``position`` and ``scale`` are ``(l, d)`` for the patches of one level, ``levels`` ``(c, d)``
    and ``levels_out`` ``(c, 2 d)`` for the pressure levels, ``lead_time`` and ``time`` ``(b, d)``.
    """

    position: Array
    scale: Array
    levels: Array
    levels_out: Array
    lead_time: Array
    time: Array


def encodings(
    base: TorchAurora,
    latitude: np.ndarray,
    longitude: np.ndarray,
    levels: Sequence[float],
    times: Sequence[datetime],
    lead_hours: float | Sequence[float] | None = None,
) -> Encodings:
    """Return the Fourier expansions of a batch, computed by upstream's functions.

    Parameters
    ----------
    base : aurora.Aurora
    latitude, longitude : ndarray
        Of the grid, degrees; true longitudes, which may decrease across Greenwich.
    levels : sequence of float
        Pressure levels, hPa.
    times : sequence of datetime
        Time-zone aware init times of the samples.
    lead_hours : float or sequence of float, optional
        By default the model's own step.
    """
    d = base.encoder.embed_dim
    with torch.inference_mode():
        position, scale = pos_scale_enc(
            d,
            torch.as_tensor(latitude, dtype=torch.float32),
            torch.as_tensor(longitude, dtype=torch.float32),
            base.patch_size,
            pos_expansion=fourier.pos_expansion,
            scale_expansion=fourier.scale_expansion,
        )
        at = torch.tensor(list(levels))
        levels_in, levels_out = (fourier.levels_expansion(at, width) for width in (d, 2 * d))
    lead, stamps = time_encodings(base, times, lead_hours)
    return Encodings(
        to_jax(position), to_jax(scale), to_jax(levels_in), to_jax(levels_out), lead, stamps
    )


def time_encodings(
    base: TorchAurora, times: Sequence[datetime], lead_hours: float | Sequence[float] | None = None
) -> tuple[Array, Array]:
    """Return the expansions of the lead time and of the time, ``(b, d)``."""
    d = base.encoder.embed_dim
    hours = base.timestep.total_seconds() / 3600.0 if lead_hours is None else lead_hours
    leads = np.broadcast_to(np.asarray(hours, np.float32), (len(times),)).copy()
    updated = base.encoder.use_updated_lead_time_embedding
    expansion = fourier.lead_time_expansion_v3 if updated else fourier.lead_time_expansion
    with torch.inference_mode():
        stamps = torch.tensor([t.timestamp() / 3600 for t in times], dtype=torch.float32)
        return (
            to_jax(expansion(torch.from_numpy(leads), d)),
            to_jax(fourier.absolute_time_expansion(stamps, d)),
        )

"""The gradient of a forecast quantity with respect to the initial state, in JAX."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import torch
from aurora import Batch

from xaurora.jax import precision
from xaurora.jax.aurora import Frames
from xaurora.jax.encodings import Encodings, time_encodings
from xaurora.jax.layers import Array
from xaurora.jax.module import Form, JaxModule, Net, forward
from xaurora.jax.weights import to_torch
from xaurora.model.heads import DistributionHead


class Observable(Hashable, Protocol):
    """What gives a quantity at each point; hashable, as it is compiled into the program."""

    def of(
        self,
        surface: Mapping[str, Array],
        atmos: Mapping[str, Array],
        raw: Mapping[str, Array],
        heads: Mapping[str, DistributionHead],
    ) -> Array:
        """Return the quantity ``(b, h, w)`` from a prediction."""


@functools.partial(jax.jit, static_argnames=("form", "observable", "steps"))
def _gradient(
    net: Net,
    frames: Frames,
    static: dict[str, Array],
    places: Encodings,
    weight: Array,
    *,
    form: Form,
    observable: Observable,
    steps: int,
) -> tuple[Array, Frames]:
    heads = dict(form.heads)

    def one(frames: Frames, at: tuple[Array, Array]) -> tuple[Frames, Array]:
        step, time = at
        place = places._replace(time=time)
        prediction, raw = forward(net, frames, static, place, step, None, form)
        assert prediction is not None  # the form decodes
        found = observable.of(prediction.surface, prediction.atmos, raw, heads)
        return net.base.advance(frames, prediction), (found[0] * weight).sum()

    def quantity(frames: Frames) -> Array:
        numbers = jnp.arange(steps, dtype=jnp.int32)
        _, values = jax.lax.scan(jax.checkpoint(one), frames, (numbers, places.time))
        return values[-1]

    return jax.value_and_grad(quantity)(frames)


def gradient(
    module: JaxModule,
    batch: Batch,
    steps: int,
    observable: Observable,
    weight: np.ndarray,
) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the weighted sum of a quantity and its gradient.

    Parameters
    ----------
    module : JaxModule
    batch : aurora.Batch
        One init time with its history.
    steps : int
        Six-hour steps to the forecast.
    observable : Observable
        Gives the quantity at each point.
    weight : ndarray, ``(h, w)``

    Returns
    -------
    tuple
        The quantity, and its gradients by surface and atmospheric variable, canonical units.
    """
    frames, static, place, _ = module.inputs_of(batch)
    times = [[t + module.base.timestep * k for t in batch.metadata.time] for k in range(steps)]
    encoded = np.stack([np.asarray(time_encodings(module.base, t)[1]) for t in times])
    with precision.exact():
        value, found = _gradient(
            module.net,
            frames,
            static,
            place._replace(time=encoded),
            weight.astype(np.float32),
            form=module.form(),
            observable=observable,
            steps=steps,
        )
    return (
        float(value),
        {n: to_torch(v) for n, v in found.surface.items()},
        {n: to_torch(v) for n, v in found.atmos.items()},
    )

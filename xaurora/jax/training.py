"""Losses, gradients and AdamW in JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from xaurora.jax.aurora import Frames
from xaurora.jax.encodings import Encodings
from xaurora.jax.layers import Array
from xaurora.jax.module import Form, Net, forward, raw_of

Sums = dict[str, Array]


class Truth(NamedTuple):
    """The truth of one step, or of all steps of a rollout along a first axis.

    ``targets`` and ``weights`` are ``(b, h, w)`` by target: values within the family's range, and
    area weights that are zero without truth. ``surface`` ``(b, h, w)`` and ``atmos``
    ``(b, c, h, w)`` are the state, empty if it is not scored. ``share`` ``(b,)`` is each sample's
    share of the batch's mean: zero for those that only fill it up.
    """

    targets: dict[str, Any]
    weights: dict[str, Any]
    surface: dict[str, Any]
    atmos: dict[str, Any]
    share: Any


class Scales(NamedTuple):
    """What errors of the base's own variables are divided by and weighted with.

    ``surface`` and ``atmos`` hold scales, ``weights`` a weight for each kind and variable, and
    ``area`` ``(h, w)`` relative cell areas that are zero in the halo.
    """

    surface: dict[str, Any]
    atmos: dict[str, Any]
    weights: dict[str, dict[str, Any]]
    area: Any


class Task(NamedTuple):
    """What a gradient's program computes; hashable. ``base_loss`` weights the base's variables."""

    form: Form
    steps: int = 1
    push_forward: bool = False
    base_loss: float = 0.0


def _over_area(values: Array, area: Array, share: Array) -> Array:
    """Return the area-weighted mean of ``(b, ..., h, w)``."""
    by_sample = (values * area).sum(axis=(-2, -1)) / area.sum()
    return (by_sample.reshape(len(share), -1).mean(axis=1) * share).sum()


def mean(values: Array, weight: Array, share: Array) -> Array:
    """Return the weighted mean over points, averaged over samples; samples without any give 0."""
    total = (jnp.where(weight > 0, values, 0.0) * weight).sum(axis=(-2, -1))
    return (total / jnp.maximum(weight.sum(axis=(-2, -1)), 1e-12) * share).sum()


def step_loss(
    prediction: Frames | None,
    raw: Mapping[str, Array],
    truth: Truth,
    scales: Scales,
    task: Task,
) -> tuple[Array, Sums]:
    """Return the loss of a step and its parts, as :func:`xaurora.training.losses.step_loss`."""
    parts: Sums = {}
    score = jnp.zeros((), jnp.float32)
    heads = task.form.heads
    for name, head in heads:
        params, y, weight = head.parameters_of(raw[name]), truth.targets[name], truth.weights[name]
        own = mean(head.loss(params, y), weight, truth.share)
        score = score + own / len(heads)
        if len(heads) > 1:
            parts[f"{name}_loss"] = own
        error = jax.lax.stop_gradient(head.mean(params)) - y
        parts[f"{name}:squares"] = mean(error**2, weight, truth.share)
        parts[f"{name}:absolute"] = mean(jnp.abs(error), weight, truth.share)
    if heads:
        parts["head_loss"] = score
    if task.base_loss and prediction is not None and (truth.surface or truth.atmos):
        total = squares = absolute = jnp.zeros((), jnp.float32)
        count = len(truth.surface) + len(truth.atmos)
        for kind, found, own_truth in (
            ("surface", prediction.surface, truth.surface),
            ("atmos", prediction.atmos, truth.atmos),
        ):
            for name, values in own_truth.items():
                scale = getattr(scales, kind)[name]
                error = jnp.abs(found[name][:, 0] - values) / scale
                own = _over_area(error, scales.area, truth.share)
                total = total + scales.weights[kind][name] * own
                absolute = absolute + own
                squares = squares + _over_area(error**2, scales.area, truth.share)
        parts |= {
            "base_loss": total / count,
            "base:squares": squares / count,
            "base:absolute": absolute / count,
        }
        score = score + task.base_loss * total / count
    return score, {name: jax.lax.stop_gradient(v) for name, v in parts.items()}


def rollout_loss(
    net: Net,
    frames: Frames,
    static: dict[str, Array],
    places: Encodings,
    truths: Truth,
    scales: Scales,
    task: Task,
) -> tuple[Array, Sums]:
    """Return the mean loss over a rollout, and its parts.

    ``places`` and ``truths`` have the step as their first axis where they depend on it. Each step
    is recomputed in the backward pass, so that memory holds one step and the states between them.
    """

    def one(
        net: Net, frames: Frames, at: tuple[Array, Array, Truth]
    ) -> tuple[Frames, tuple[Array, Sums]]:
        step, time, truth = at
        place = places._replace(time=time)
        prediction, raw = forward(net, frames, static, place, step, None, task.form)
        loss = step_loss(prediction, raw, truth, scales, task)
        if prediction is None or task.steps == 1:
            return frames, loss
        following = net.base.advance(frames, prediction)
        return jax.lax.stop_gradient(following) if task.push_forward else following, loss

    if task.steps == 1:
        first = jax.tree.map(lambda v: v[0], (places.time, truths))
        return one(net, frames, (jnp.int32(0), *first))[1]
    numbers = jnp.arange(task.steps, dtype=jnp.int32)
    _, (losses, parts) = jax.lax.scan(
        jax.checkpoint(functools.partial(one, net)), frames, (numbers, places.time, truths)
    )
    return losses.mean(), {name: v.mean(axis=0) for name, v in parts.items()}


def latents_loss(
    net: Net, latents: Array, truths: Truth, scales: Scales, task: Task
) -> tuple[Array, Sums]:
    """Return the loss of the heads on stored latents ``(b, c, hp, wp, d)``, and its parts."""
    truth = jax.tree.map(lambda v: v[0], truths)
    raw = raw_of(net, latents, task.form)
    return step_loss(None, raw, truth, scales, task)


@functools.partial(jax.jit, static_argnames=("task", "loss"))
def gradient(
    trained: Net,
    held: Net,
    inputs: tuple[Any, ...],
    weight: Array,
    before: Net | None,
    *,
    task: Task,
    loss: Callable[..., tuple[Array, Sums]],
) -> tuple[Net, Array, Sums]:
    """Return the gradient of a batch added to that of earlier ones, the loss and its parts.

    Parameters
    ----------
    trained, held : Net
        The weights that train and the others; each has None in place of the other's.
    inputs : tuple
        Of ``loss``, after the net.
    weight : array
        The batch's weight in the step.
    before : Net, optional
        Gradient of the step's earlier batches.
    task : Task
    loss : callable
        :func:`rollout_loss` or :func:`latents_loss`.
    """

    def scalar(trained: Net) -> tuple[Array, Sums]:
        return loss(eqx.combine(trained, held), *inputs, task)

    (value, parts), found = jax.value_and_grad(scalar, has_aux=True)(trained)
    found = jax.tree.map(lambda v: (v * weight).astype(v.dtype), found)
    if before is not None:
        found = jax.tree.map(jnp.add, before, found)
    return found, value, parts


class Optimizer:
    """AdamW with clipping and a learning rate for each group, by optax.

    Parameters
    ----------
    clip, weight_decay : float
    betas : tuple of float
    """

    def __init__(self, clip: float, weight_decay: float, betas: tuple[float, float]) -> None:
        self.chain = optax.chain(
            optax.clip_by_global_norm(clip),
            optax.scale_by_adam(*betas),
            optax.add_decayed_weights(weight_decay),
        )

        @jax.jit
        def update(
            trained: Net,
            state: optax.OptState,
            gradient: Net,
            rates: Net,
        ) -> tuple[Net, optax.OptState]:
            change, state = self.chain.update(gradient, state, trained)
            moved = jax.tree.map(
                lambda p, c, r: (p - r * c).astype(p.dtype), trained, change, rates
            )
            return moved, state

        self.update = update

    def start(self, trained: Net) -> optax.OptState:
        """Return the state before the first step, placed like the weights.

        Placed otherwise, the second step would be another program and compile again.
        """
        place = jax.tree.leaves(trained)[0].sharding
        return jax.device_put(self.chain.init(trained), place)


norm = jax.jit(optax.tree.norm)
combine = eqx.combine


def adam_state(state: optax.OptState) -> optax.ScaleByAdamState:
    """Return AdamW's moments and count of steps."""
    return state[1]


def with_adam_state(
    state: optax.OptState, count: int | Array, first: Net, second: Net
) -> optax.OptState:
    """Return the state of the chain with other moments."""
    return (state[0], optax.ScaleByAdamState(jnp.asarray(count), first, second), *state[2:])


@jax.jit
def averaged(average: Net, trained: Net, decay: Array) -> Net:
    """Return the moving average of the weights after a step."""
    return jax.tree.map(
        lambda a, p: (a + (p - a) * (1.0 - decay)).astype(a.dtype), average, trained
    )


def split(net: Net, names: Net, trainable: set[str]) -> tuple[Net, Net]:
    """Return the weights that train and the others, each with None in place of the other's."""
    trained, held = eqx.partition(net, jax.tree.map(lambda name: name in trainable, names))
    return trained if jax.tree.leaves(trained.base) else heads_of(trained), held


def heads_of(net: Net) -> Net:
    """Return a net without its base, which has many more arrays for a call to go through."""
    return Net(None, net.trunks)  # type: ignore[arg-type]

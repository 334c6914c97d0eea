"""Aurora with heads, run by JAX behind the interface of the Torch module."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import time as clock
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from aurora import Aurora as TorchAurora
from aurora import Batch
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xaurora.errors import OptionError
from xaurora.fields.grid.lattice import Grid
from xaurora.fields.grid.patches import Window
from xaurora.fields.targets import InputForm
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.jax import precision
from xaurora.jax.aurora import Aurora, Frames, with_mode
from xaurora.jax.backbone import Mode
from xaurora.jax.encodings import Encodings, encodings, time_encodings
from xaurora.jax.heads import Trunk, trunks_of
from xaurora.jax.layers import Array
from xaurora.jax.settings import check_supported
from xaurora.jax.weights import State, to_jax, to_torch
from xaurora.model import adapters
from xaurora.model.aurora import SIX_HOURS, AuroraWithHead, Lead, Step
from xaurora.model.heads import DistributionHead

logger = logging.getLogger("xaurora")

T = TypeVar("T")
Place: TypeAlias = "jax.Device | NamedSharding"
"""Where JAX puts an array."""

_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Net(eqx.Module):
    """Everything that has weights: Aurora and the trunks of its heads, by target."""

    base: Aurora
    trunks: dict[str, Trunk]


class Form(NamedTuple):
    """The shape of a program: what it computes of one step.

    ``rows`` and ``columns`` are the patches that the heads see, ``cut`` is the part of their output
    that is kept (top, left, height, width); None for the whole grid. ``heads`` are the heads by
    target, which give means to the targets among the inputs.
    """

    shape: tuple[int, int]
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    cut: tuple[int, int, int, int] | None = None
    heads: tuple[tuple[str, DistributionHead], ...] = ()
    inputs: tuple[tuple[str, InputForm], ...] = ()
    decodes: bool = True
    atmos: tuple[str, ...] | None = None


def windowed(latents: Array, net: Net, form: Form) -> Array:
    """Return the decoder's input as latents of the patches that the heads see."""
    levels, rows, columns = net.base.size(form.shape)
    latents = latents.reshape(latents.shape[0], levels, rows, columns, -1)
    if form.rows is not None and form.columns is not None:
        latents = latents[:, :, np.asarray(form.rows)][:, :, :, np.asarray(form.columns)]
    return latents


def raw_of(net: Net, latents: Array, form: Form) -> dict[str, Array]:
    """Return the raw output of the heads ``(b, n, h, w)``, by target."""
    out = {name: trunk(latents) for name, trunk in net.trunks.items()}
    if form.cut is None:
        return out
    top, left, height, width = form.cut
    return {n: v[..., top : top + height, left : left + width] for n, v in out.items()}


def forward(
    net: Net,
    frames: Frames,
    static: dict[str, Array],
    place: Encodings,
    step: Array,
    noise: Array | None,
    form: Form,
) -> tuple[Frames | None, dict[str, Array]]:
    """Run one six-hour step.

    Returns
    -------
    tuple
        The prediction, or None if the form does not decode it, and the heads' raw output.
    """
    latents = net.base.latents(frames, static, place, step, noise)
    raw = raw_of(net, windowed(latents, net, form), form)
    if not form.decodes:
        return None, raw
    prediction = net.base.decode(latents, form.shape, place, form.atmos)
    heads = dict(form.heads)
    surface = dict(prediction.surface)
    for name, own in form.inputs:
        head = heads[name]
        mean = head.mean(head.parameters_of(raw[name]))
        surface[name] = (mean if own.epsilon is None else jnp.log1p(mean / own.epsilon))[:, None]
    return Frames(surface, prediction.atmos), raw


_step = jax.jit(forward, static_argnames="form")


@functools.partial(jax.jit, static_argnames="form")
def _latents(
    net: Net, frames: Frames, static: dict[str, Array], place: Encodings, step: Array, form: Form
) -> Array:
    return windowed(net.base.latents(frames, static, place, step), net, form)


@functools.partial(jax.jit, static_argnames="form")
def _heads(net: Net, latents: Array, form: Form) -> dict[str, Array]:
    return raw_of(net, latents, form)


def _as_batch(timestep: timedelta, batch: Batch, prediction: Frames, count: int) -> Batch:
    """Return the first samples of a prediction as the Batch one step after another."""
    meta = batch.metadata
    following = tuple(t + timestep for t in meta.time)
    return Batch(
        {n: to_torch(v)[:count] for n, v in prediction.surface.items()},
        batch.static_vars,
        {n: to_torch(v)[:count] for n, v in prediction.atmos.items()},
        dataclasses.replace(meta, time=following, rollout_step=meta.rollout_step + 1),
    )


class JaxModule(AuroraWithHead):
    """An :class:`~xaurora.model.aurora.AuroraWithHead` whose steps are computed by JAX.

    Parameters
    ----------
    module : AuroraWithHead
        Its Torch modules hold the weights that are saved, and are the source of those in JAX.
    grid : Grid
        Of the data.
    levels : sequence of float
        Pressure levels of the data, hPa.
    count : int
        Number of devices that share a batch.
    recompute : bool
        Whether to recompute encoder, blocks and decoder in the backward pass.
    net : Net, optional
        Weights of the same module that are in JAX already.

    Attributes
    ----------
    net : Net
        The weights in JAX.
    """

    def __init__(
        self,
        module: AuroraWithHead,
        grid: Grid,
        levels: Sequence[float],
        *,
        count: int = 1,
        recompute: bool = False,
        net: Net | None = None,
    ) -> None:
        super().__init__(module.base, module.head, None, module.adapter, module.window)
        self.inputs = dict(module.inputs)  # the base already has them
        self.grid, self.levels = grid, tuple(float(v) for v in levels)
        self.recompute = recompute
        precision.use_compilation_cache()
        self.devices = precision.devices(count)
        check_supported(self.base)
        if "insolation" in self.base.surf_vars or self.base.backbone.stochastic:
            raise OptionError(
                f"engine='jax' does not make forecasts with {type(self.base).__name__} yet.",
                fix="engine='torch'",
            )
        self.net = self._build() if net is None else self._adjusted(net)
        self._place: Encodings | None = None
        self._static: dict[str, Array] | None = None
        self._compiled: set[Any] = set()
        self._samples = 0

    def _parts(self) -> tuple[TorchAurora, dict[str, DistributionHead], State, State]:
        """Return the base, the heads, and the state dicts of both."""
        base = self.base
        if self.adapter is not None and self.adapter.peft is not None:
            base, adapter = copy.deepcopy((base, self.adapter))
            adapters.merge(base, adapter)
        state = self.head.heads.state_dict() if self.head is not None else {}
        trunks = {k: v for k, v in state.items() if ".trunk." in k}
        return base, self.heads, State(base.state_dict()), State(trunks)

    def _assembled(
        self,
        base: TorchAurora,
        heads: Mapping[str, DistributionHead],
        state: State,
        trunks: State,
    ) -> Net:
        wraps = self.grid.wraps if self.window is None else self.window.wraps
        made = with_mode(Aurora.of(state, base, self.levels), self._mode(base))
        net = Net(made, trunks_of(trunks, heads, wraps=wraps))
        trunks.check_all_taken()
        return net

    def _adjusted(self, net: Net) -> Net:
        """Return weights that are in JAX already with this module's grid and precision."""
        wraps = self.grid.wraps if self.window is None else self.window.wraps
        trunks = {n: dataclasses.replace(t, wraps=wraps) for n, t in net.trunks.items()}
        return Net(with_mode(net.base, self._mode(self.base)), trunks)

    def _mode(self, base: TorchAurora) -> Mode:
        low = _DTYPES.get(base.autocast_dtype, "float32")
        dtype = low if base.autocast_backbone else "float32"
        return Mode(self.grid.wraps, self.recompute, dtype)

    def _build(self) -> Net:
        """Return the weights of the Torch modules in JAX, on all devices."""
        return jax.device_put(self._assembled(*self._parts()), self._on_all())

    @functools.cached_property
    def names(self) -> Net:
        """The net with the names of its parameters as leaves."""
        base, heads, state, trunks = self._parts()
        as_name = State(state.tensors, lambda name, _: f"base.{name}")
        of_head = State(trunks.tensors, lambda name, _: f"head.heads.{name}")
        return self._assembled(base, heads, as_name, of_head)

    def refresh(self) -> None:
        """Take the weights from the Torch modules again, after they have changed."""
        self.net = self._build()

    @torch.no_grad()
    def write_back(self, names: set[str]) -> None:
        """Copy weights into the Torch modules, by the names that they have there."""
        own = dict(self.named_parameters())
        found = zip(jax.tree.leaves(self.names), jax.tree.leaves(self.net), strict=True)
        for name, values in found:
            if name in names:
                own[name].copy_(to_torch(values))

    # --- what the programs take ---

    def _on_all(self) -> Place:
        if len(self.devices) == 1:
            return self.devices[0]
        return NamedSharding(Mesh(np.array(self.devices), ("sample",)), PartitionSpec())

    def _by_sample(self) -> Place:
        if len(self.devices) == 1:
            return self.devices[0]
        return NamedSharding(Mesh(np.array(self.devices), ("sample",)), PartitionSpec("sample"))

    def padded_size(self, count: int, *, alone: bool = False) -> int:
        """Return the size that a batch is filled up to.

        Devices share it evenly, and it is that of the largest batch so far, so that a smaller one
        runs in the same program; without the latter if the batch stands ``alone``.
        """
        shared = len(self.devices)
        size = -(-count // shared) * shared
        if alone:
            return size
        self._samples = max(self._samples, size)
        return self._samples

    def filled(self, values: torch.Tensor, *, alone: bool = False) -> torch.Tensor:
        """Return ``(b, ...)`` with its last sample repeated up to the padded size."""
        more = self.padded_size(len(values), alone=alone) - len(values)
        return torch.cat([values, values[-1:].expand(more, *values.shape[1:])]) if more else values

    def filled_times(self, batch: Batch, *, alone: bool = False) -> list[datetime]:
        """Return the init times of a filled batch."""
        times = list(batch.metadata.time)
        return times + times[-1:] * (self.padded_size(len(times), alone=alone) - len(times))

    def inputs_of(self, batch: Batch, *, alone: bool = False) -> tuple[Any, ...]:
        """Return the frames, static fields and encodings of a Batch, and its rollout step.

        The batch is filled up (:meth:`padded_size`).
        """
        times = self.filled_times(batch, alone=alone)

        def filled(values: torch.Tensor) -> Array:
            return jax.device_put(to_jax(self.filled(values, alone=alone)), self._by_sample())

        known = [n for n in self.base.surf_vars if n in batch.surf_vars]
        frames = Frames(
            {n: filled(batch.surf_vars[n]) for n in known},
            {n: filled(batch.atmos_vars[n]) for n in self.base.atmos_vars},
        )
        if self._place is None:
            found = encodings(
                self.base, self.grid.latitude, self.grid.true_longitude, self.levels, times
            )
            self._place = jax.device_put(found, self._on_all())
            still = {n: to_jax(batch.static_vars[n]) for n in self.base.static_vars}
            self._static = jax.device_put(still, self._on_all())
        lead, at = (jax.device_put(v, self._by_sample()) for v in time_encodings(self.base, times))
        place = self._place._replace(lead_time=lead, time=at)
        step = np.int32(batch.metadata.rollout_step)
        return frames, self._static, place, step

    def form(self, *, decodes: bool = True, atmos: Sequence[str] | None = None) -> Form:
        """Return the shape of a step's program."""
        shape, window = self.grid.shape, self.window
        chosen = None if atmos is None else tuple(n for n in self.base.atmos_vars if n in atmos)
        form = Form(
            shape,
            heads=tuple(self.heads.items()),
            inputs=tuple(self.inputs.items()),
            decodes=decodes,
            atmos=chosen,
        )
        if window is None:
            return form
        return form._replace(
            rows=tuple(map(int, window.patch_rows)),
            columns=tuple(map(int, window.patch_columns)),
            cut=(window.top, window.left, *window.shape),
        )

    # --- the interface of the Torch module ---

    def with_window(self, window: Window | None) -> AuroraWithHead:
        """Return the same base and head in JAX, whose heads see another part of the grid."""
        plain = AuroraWithHead.with_window(self, window)
        other = JaxModule(
            plain,
            self.grid,
            self.levels,
            count=len(self.devices),
            recompute=self.recompute,
            net=self.net,
        )
        other.training = self.training
        return other

    def forward(
        self,
        batch: Batch,
        latents: torch.Tensor | None = None,
        *,
        head_only: bool = False,
        atmos: Sequence[str] | None = None,
        lead: Lead = SIX_HOURS,
    ) -> Step:
        """Run one six-hour step, or only the heads on stored latents, as in Torch."""
        assert lead.hours == TIMESTEP_HOURS  # bases with hourly lead times are refused before
        if latents is not None:
            raw = self._timed(_heads, self.net, to_jax(latents), form=self.form(decodes=False))
            return Step(None, {name: to_torch(v) for name, v in raw.items()})
        form = self.form(decodes=not (head_only and self.head is not None), atmos=atmos)
        frames, static, place, step = self.inputs_of(batch)
        prediction, raw = self._timed(_step, self.net, frames, static, place, step, None, form=form)
        count = len(batch.metadata.time)
        tensors = {name: to_torch(v)[:count] for name, v in raw.items()}
        if prediction is None:
            return Step(None, tensors)
        return Step(_as_batch(self.base.timestep, batch, prediction, count), tensors)

    @torch.no_grad()
    def latents(self, batch: Batch) -> torch.Tensor:
        """Return the latents that the heads see, ``(b, c, hp, wp, d)``, float32."""
        frames, static, place, step = self.inputs_of(batch, alone=True)
        found = self._timed(_latents, self.net, frames, static, place, step, form=self.form())
        return to_torch(found)[: len(batch.metadata.time)]

    def _timed(self, program: Callable[..., T], *args: object, form: Form) -> T:
        """Run a program; say so when it has to be compiled first."""
        key = (id(program), form, self._samples)
        with precision.exact():
            if key in self._compiled:
                return program(*args, form=form)
            began = clock.perf_counter()
            logger.info("JAX compiles a program for %d × %d points.", *form.shape)
            out = jax.block_until_ready(program(*args, form=form))
            logger.info("Compiled and run once in %.1f s.", clock.perf_counter() - began)
        self._compiled.add(key)
        return out

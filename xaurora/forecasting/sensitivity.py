"""Sensitivities: the gradient of a forecast quantity with respect to every input field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from aurora import Batch
from torch._subclasses.fake_tensor import FakeTensorMode

from xaurora import jax as jax_engine
from xaurora.errors import (
    InitTimeError,
    LeadTimeError,
    MemoryTooSmallError,
    MissingVariableError,
    OptionError,
)
from xaurora.fields import conventions, plausibility, requirements, targets
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import regions
from xaurora.forecasting.options import PredictOptions
from xaurora.forecasting.predict import last_tuned, load_module
from xaurora.forecasting.request import Request, lead_steps, resolve_request, target_field
from xaurora.model import batch as batches
from xaurora.model import execution, memory, placement, rollout
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.heads import DISTRIBUTIONS
from xaurora.model.normalisation import atmos_statistics, surface_statistics
from xaurora.model.options import check_engine
from xaurora.model.resolve import ModelLike, check_engine_supports, resolve
from xaurora.utils import checks
from xaurora.utils.progress import log_line

if TYPE_CHECKING:
    from aurora import Aurora

    from xaurora.distributions.namespace import Array
    from xaurora.fields.found import Field
    from xaurora.fields.grid.regions import RegionLike
    from xaurora.model.heads.base import DistributionHead
    from xaurora.utils.types import LeadsLike, TimesLike

STATISTICS = ("mean", "probability")


@dataclass(frozen=True)
class SensitivityOptions:
    """All arguments of ``ds.aurora.sensitivity``; see there."""

    name: str
    region: RegionLike
    time: TimesLike = None
    lead: LeadsLike = "24h"
    model: ModelLike | None = None
    weights: str | Path | None = None
    static_file: str | Path | None = None
    statistic: str = "mean"
    threshold_mm: float | None = None
    level: float | None = None
    per_std: bool = False
    engine: str = "torch"
    progress: bool = True

    def __post_init__(self) -> None:
        check_engine("engine", self.engine)
        for argument in ("level", "threshold_mm"):
            value = getattr(self, argument)
            if value is not None and not checks.is_number(value):
                raise OptionError(
                    f"{argument} must be a number, got {value!r}.", fix=f"{argument}=1"
                )
        if self.statistic not in STATISTICS:
            raise OptionError(
                f"statistic must be one of {', '.join(map(repr, STATISTICS))}, got"
                f" {self.statistic!r}.",
                fix="statistic='mean'",
            )
        if (self.statistic == "probability") != (self.threshold_mm is not None):
            raise OptionError(
                "statistic='probability' and threshold_mm= belong together: the chance of more than"
                f" an amount. Got statistic={self.statistic!r},"
                f" threshold_mm={self.threshold_mm!r}.",
                fix="statistic='probability', threshold_mm=1.0",
            )


class Observable(NamedTuple):
    """The quantity that is differentiated, at each point; hashable.

    ``kind`` is ``"target"``, ``"surface"`` or ``"atmos"``, ``level`` the place of a pressure level,
    and ``threshold`` an amount in metres, for the chance of more.
    """

    kind: str
    name: str
    level: int | None = None
    threshold: float | None = None

    def of(
        self,
        surface: Mapping[str, Array],
        atmos: Mapping[str, Array],
        raw: Mapping[str, Array],
        heads: Mapping[str, DistributionHead],
    ) -> Array:
        """Return the quantity ``(b, h, w)`` from a prediction, of Torch or JAX."""
        if self.kind == "surface":
            return surface[self.name][:, 0]
        if self.kind == "atmos":
            return atmos[self.name][:, 0, self.level]
        head = heads[self.name]
        params = head.parameters_of(raw[self.name])
        if self.threshold is None:
            return head.mean(params)
        return head.probability_above(params, self.threshold)


@dataclass(frozen=True)
class Question:
    """A quantity of one forecast, to be differentiated."""

    module: AuroraWithHead
    fields: Fields
    batch: Batch
    steps: int
    observable: Observable
    weight: np.ndarray


def sensitivity(ds: xr.Dataset, options: SensitivityOptions) -> xr.Dataset:
    """Return a gradient; see :meth:`xaurora.accessor.AuroraAccessor.sensitivity`."""
    if options.engine == "jax":
        jax_engine.check_installed()
    steps = _last_step(options.lead)
    given = last_tuned() if options.model is None else options.model
    model = resolve(given, options.weights, options.static_file)
    known = model.tuned.config["targets"] if model.tuned is not None else {}
    if model.tuned is not None and model.tuned.model.inputs:
        raise OptionError(
            f"the model takes {list(model.tuned.model.inputs)} as input, which sensitivity() does"
            " not support.",
            fix="a model that was tuned without as_input=True",
        )
    found = targets.recognise(ds, list(known))
    found.raise_first()
    fields = conventions.standardise(ds, found)
    needs = model.needs(fields)
    check_engine_supports(options.engine, needs)
    used, _ = requirements.select_and_crop(fields, needs)
    time = _one_time(used, options.time)
    asked = PredictOptions(variables=[options.name], lead=options.lead)
    # Of member 0, if the model draws members; its own rain, summed over hours, is not supported.
    plain = replace(needs, draws_members=False, output_only=())
    try:
        request = resolve_request(asked, fields, plain, known)
    except MissingVariableError as error:
        names = [fields.layout.fields["surface", n].source for n in needs.state]
        raise MissingVariableError(
            error.message.removeprefix("variables="),
            fix=f"ds.aurora.sensitivity({names[0]!r}, ...)",
        ) from None
    observable = _observable(options, request, used, known)
    area = regions.one_region(used.layout.grid, used.land, options.region)
    plausibility.warn_implausible(fields, needs)
    module = load_module(model, needs, used, progress=options.progress)
    question = Question(
        module, used, batches.to_batch(used, [time]), steps, observable, area / area.sum()
    )
    log_line(
        f"Differentiating {options.name} over {6 * steps} hours with respect to"
        f" {len(needs.surface) + len(needs.atmos)} variables at two times, in about"
        f" {_check_memory(question, options.engine) / 1e9:.2g} GB of memory.",
        shown=options.progress,
    )
    value, gradient = (_in_jax if options.engine == "jax" else _in_torch)(question)
    item = (
        target_field(fields, observable.name, known[observable.name])
        if observable.kind == "target"
        else used.layout.fields[observable.kind, observable.name]
    )
    return _as_dataset(question, options, value, gradient, item, time)


def _last_step(lead: LeadsLike) -> int:
    steps = lead_steps(lead)
    if len(steps) > 1 and np.asarray(lead, dtype=object).ndim > 0:
        raise LeadTimeError(
            f"lead={lead!r} holds {len(steps)} lead times; a sensitivity is of one forecast.",
            fix="lead='24h'",
        )
    return steps[-1]


def _one_time(fields: Fields, wanted: TimesLike) -> np.datetime64:
    times = batches.resolve_times(fields.times, wanted)
    if wanted is not None and len(times) > 1:
        raise InitTimeError(
            f"time={wanted!r} selects {len(times)} init times; a sensitivity is of one forecast.",
            fix=f"time='{str(times[0])[:13]}'",
        )
    return times[-1]


def _observable(
    options: SensitivityOptions,
    request: Request,
    fields: Fields,
    known: Mapping[str, Any],
) -> Observable:
    threshold = None if options.threshold_mm is None else float(options.threshold_mm) * 1e-3
    family = known[request.targets[0]]["head"]["options"]["family"] if request.targets else ""
    rain = family in DISTRIBUTIONS
    if threshold is not None and (not rain or threshold < 0):
        raise OptionError(
            f"threshold_mm={options.threshold_mm!r} needs a distribution of precipitation and an"
            f" amount of at least 0; {options.name!r} {'has one' if rain else 'has none'}.",
            fix="statistic='mean'",
        )
    if options.level is not None and not request.atmos:
        raise OptionError(
            f"level={options.level!r} applies to variables on pressure levels; {options.name!r} is"
            " not one.",
            fix="leave level out",
        )
    if request.targets:
        return Observable("target", request.targets[0], None, threshold)
    if request.surface:
        return Observable("surface", request.surface[0])
    levels = [float(v) for v in fields.levels]
    if options.level is None or float(options.level) not in levels:
        raise OptionError(
            f"{options.name!r} has the levels {', '.join(f'{v:g}' for v in levels)} hPa,"
            f" and level={options.level!r} is none of them.",
            fix=f"level={levels[len(levels) // 2]:g}",
        )
    return Observable("atmos", request.atmos[0], levels.index(float(options.level)))


def _in_torch(question: Question) -> tuple[float, Batch]:
    """Return the quantity and its gradient, a Batch in canonical units."""
    module = question.module
    device = _device()
    before = [p.requires_grad for p in module.parameters()]
    trained = [m for m in module.modules() if m.training]
    here = next(module.parameters()).device
    try:
        module.to(device).eval().requires_grad_(False)
        value, gradients = _differentiate(question, module, question.batch)
    finally:
        module.to(here)
        for part in trained:
            part.training = True
        for parameter, required in zip(module.parameters(), before, strict=True):
            parameter.requires_grad_(required)
    named = iter(v.detach().cpu() for v in gradients)
    surface = {n: next(named) for n in question.batch.surf_vars}
    atmos = {n: next(named) for n in question.batch.atmos_vars}
    return float(value.detach()), Batch(surface, {}, atmos, question.batch.metadata)


def _differentiate(
    question: Question, module: AuroraWithHead, batch: Batch
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the quantity and its gradients by variable, also on tensors without values."""
    with (
        torch.enable_grad(),
        placement.on_grid(module, question.fields.layout.grid),
        execution.activation_checkpointing(module.base),
        execution.without_cudnn_attention(),
    ):
        batch = rollout.prepare(module, batch)
        inputs = [*batch.surf_vars.values(), *batch.atmos_vars.values()]
        for values in inputs:
            values.requires_grad_(True)
        for step in rollout.steps(module, batch, question.steps):  # earlier ones are not kept
            prediction, raw = step.prediction, step.raw
        found = question.observable.of(
            prediction.surf_vars, prediction.atmos_vars, raw, module.heads
        )
        weight = torch.from_numpy(question.weight).to(found)
        value = (found[0] * weight).sum()
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    return value, [
        torch.zeros_like(v) if g is None else g for v, g in zip(inputs, gradients, strict=True)
    ]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _needed(question: Question) -> int:
    """Return the peak bytes of tensors, by going through the same steps without values."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module = memory.fake_copy(question.module, mode, "cpu")
    module.eval().requires_grad_(False)
    counter = memory.LiveBytes()
    for tensor in [*module.parameters(), *module.buffers()]:
        counter.track(tensor)
    with mode, counter, memory.cleared_mask_cache():
        batch = question.batch._fmap(torch.empty_like)
        _differentiate(question, module, batch)
    return counter.peak


def _check_memory(question: Question, engine: str) -> int:
    """Return the bytes needed, and raise if they are more than what is free.

    They are those of Torch. JAX recomputes the same parts and may be on another device, so that it
    is not refused.

    Raises
    ------
    MemoryTooSmallError
        It says how much is needed and free.
    """
    needed = _needed(question)
    free = memory.free_memory(_device())
    if engine == "torch" and needed > free:
        raise MemoryTooSmallError(
            f"the gradient over {question.steps} step(s) needs about {needed / 1e9:.1f} GB, and"
            f" {free / 1e9:.1f} GB are free.",
            fix="a shorter lead=, or regional data: ds.sel(latitude=..., longitude=...)",
        )
    return needed


def _in_jax(question: Question) -> tuple[float, Batch]:
    """Return the quantity and its gradient, computed by JAX."""
    from xaurora.jax.module import JaxModule
    from xaurora.jax.sensitivity import gradient

    fields = question.fields
    module = JaxModule(question.module, fields.layout.grid, fields.levels, recompute=True)
    batch = rollout.prepare(module, question.batch)
    value, surface, atmos = gradient(
        module, batch, question.steps, question.observable, question.weight
    )
    return value, Batch(surface, {}, atmos, question.batch.metadata)


def _as_dataset(
    question: Question,
    options: SensitivityOptions,
    value: float,
    gradient: Batch,
    item: Field,
    time: np.datetime64,
) -> xr.Dataset:
    """Return the gradient in the user's names, order and units."""
    base, fields = question.module.base, question.fields
    layout = fields.layout
    # The quantity's own unit: a change in it is a change in canonical units over `scale`.
    chance = question.observable.threshold is not None
    out_scale = 1.0 if chance else 1.0 / item.scale
    out_units = "1" if chance else str(item.attrs.get("units", ""))
    plain, units = {}, {}
    for (kind, name), own in layout.fields.items():
        scale = 1.0 / (own.scale * out_scale)  # restore() divides by it
        if options.per_std:
            scale = 1.0 / out_scale
        plain[kind, name] = replace(own, scale=scale, offset=0.0, dtype=np.dtype("float32"))
        units[own.source] = out_units if options.per_std else _per(out_units, own.attrs)
    if options.per_std:
        gradient = _times_std(gradient, base, [float(v) for v in fields.levels])
    shown = Fields(fields.surface, fields.static, fields.atmos, replace(layout, fields=plain))
    out = batches.from_batch(gradient, shown)
    names = {o.source for (k, _), o in layout.fields.items() if k != "static"}
    out = out[[n for n in out.data_vars if n in names]]
    per = " per standard deviation" if options.per_std else ""
    for name in map(str, out.data_vars):
        long_name = str(out[name].attrs.get("long_name", name))
        out[name].attrs = {
            "units": units[name],
            "long_name": f"sensitivity of {options.name} to {long_name}{per}",
        }
    region = _described(options.region, question)
    out.attrs = {
        "xaurora_sensitivity": options.name,
        "xaurora_quantity": value if chance else (value - item.offset) * out_scale,
        "xaurora_quantity_units": out_units,
        "xaurora_statistic": options.statistic,
        "xaurora_init_time": str(time)[:16],
        "xaurora_lead_hours": 6 * question.steps,
        "xaurora_region": region,
        "xaurora_engine": options.engine,
    }
    if options.threshold_mm is not None:
        out.attrs["xaurora_threshold_mm"] = float(options.threshold_mm)
    return out


def _per(units: str, attrs: Mapping[str, Any]) -> str:
    own = str(attrs.get("units", ""))
    return f"{units} / ({own})" if own not in ("", "1") else units


def _described(region: RegionLike, question: Question) -> str:
    """Return a region's name, or the box given or around it: south, north, west, east."""
    if isinstance(region, str):
        return region
    if isinstance(region, tuple | list) and all(isinstance(v, int | float) for v in region):
        return json.dumps([float(v) for v in region])
    grid = question.fields.layout.grid
    latitude = grid.latitude[question.weight.any(axis=1)]
    longitude = np.sort(grid.longitude[question.weight.any(axis=0)] % 360.0)
    gaps = np.diff(longitude, append=longitude[0] + 360.0)
    last = int(gaps.argmax())  # the box begins after the widest gap
    west, east = longitude[(last + 1) % len(longitude)], longitude[last]
    return json.dumps([float(v) for v in (latitude.min(), latitude.max(), west, east)])


def _times_std(gradient: Batch, base: Aurora, levels: list[float]) -> Batch:
    """Return the gradient per standard deviation of each variable, on each level."""
    surface = {n: v * surface_statistics(base, n)[1] for n, v in gradient.surf_vars.items()}
    atmos = {}
    for name, values in gradient.atmos_vars.items():
        scale = torch.tensor([s for _, s in atmos_statistics(base, name, levels)])
        atmos[name] = values * scale[:, None, None]
    return Batch(surface, {}, atmos, gradient.metadata)

"""``predict``: run forecasts, and return a Dataset or write a Zarr store."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from xaurora import jax as jax_engine
from xaurora.errors import InitTimeError, NoModelError
from xaurora.fields import conventions, plausibility, requirements, statistics, targets, truth
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import patches, regions
from xaurora.fields.grid.lattice import Grid
from xaurora.fields.grid.patches import Crop, Window
from xaurora.fields.requirements import Needs
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.forecasting.job import Job, inference, resolve_devices
from xaurora.forecasting.members import PastOrder
from xaurora.forecasting.memory import check_memory
from xaurora.forecasting.options import PredictOptions
from xaurora.forecasting.provenance import global_attributes
from xaurora.forecasting.request import Request, lead_hours, resolve_request
from xaurora.forecasting.store import Sink, to_memory, to_store
from xaurora.forecasting.writer import Writer
from xaurora.model import batch, hashing, heads, tuned, weights
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.resolve import ResolvedModel, check_engine_supports, resolve
from xaurora.model.tiny import build_tiny
from xaurora.model.tuned import TunedAurora
from xaurora.utils.allocator import freed_memory_kept
from xaurora.utils.locks import only_writer

logger = logging.getLogger("xaurora")

_RANDOM = (
    "model=%r has random weights: it only tests that the data work, and its output is not a"
    " forecast."
)


def predict(ds: xr.Dataset, options: PredictOptions) -> xr.Dataset:
    """Forecast. See :meth:`xaurora.accessor.AuroraAccessor.predict`."""
    if options.engine == "jax":
        jax_engine.check_installed()
    given = last_tuned() if options.model is None else options.model
    model = resolve(given, options.weights, options.static_file)
    known = model.tuned.config["targets"] if model.tuned is not None else {}
    found = targets.recognise(ds, list(known))
    found.raise_first()
    fields = conventions.standardise(ds, found)
    needs = model.needs(fields)
    hours = lead_hours(options.lead, options.step, needs.lead_step_hours)
    check_engine_supports(options.engine, needs)
    used, crop = requirements.select_and_crop(fields, needs)
    times = sorted(dict.fromkeys(batch.resolve_times(used.times, options.time)))
    if model.tuned is not None and model.tuned.model.inputs:
        explicit = options.time is not None
        used, times = _with_inputs(model.tuned, fields, used, crop, times, explicit=explicit)
    halo = options.halo
    if halo is None:
        halo = model.tuned.halo if model.tuned is not None else 0
    part, window = _part(options, used, model, needs.patch_size, halo)
    request = resolve_request(options, fields, needs, known)
    order = (
        _past_order(options, fields, request, crop, part)
        if options.members and request.targets
        else None
    )
    plausibility.warn_implausible(fields, needs)
    _warn(used, crop, needs, hours[-1], built_here=model.built_here)
    module = load_module(model, needs, used, progress=options.progress)
    attrs = global_attributes(model, module, used, times[0] - batch.STEP)
    # Resuming a store relies on this hash, so it is recomputed if the user can have changed the
    # model. Otherwise a cached hash is enough.
    ours = model.instance is None and model.tuned is None
    attrs["xaurora_weights"] = hashing.state_hash(module, cached=ours or options.store is None)
    attrs |= {"xaurora_halo": halo, "xaurora_precision": options.precision}
    if window is not None:
        name = isinstance(options.region, str)
        box = json.dumps(_box(used.layout.grid, window))
        attrs["xaurora_region"] = options.region if name else box
    if request.own_members:
        attrs["xaurora_members"] = f"{options.members}, drawn by the model"
    if order is not None:
        attrs["xaurora_members"] = f"{options.members}, Schaake shuffle of past fields"
        attrs["xaurora_members_past"] = order.digest
    writer = Writer(fields, used, part, request, module.heads, known, times, attrs)
    # Heads whose means are inputs of the next step run on the whole grid.
    job = Job(module, used, request, part, None if module.inputs else window, order, options)
    modules, devices = _replicas(module, used, options, stay=model.instance is not None)
    if options.engine == "torch":
        check_memory(
            module,
            used.layout.grid,
            used.levels,
            devices,
            samples=min(options.batch_size, len(times)),
            precision=options.precision,
            head_only=not (request.surface or request.atmos or request.outputs)
            and hours[-1] == TIMESTEP_HOURS,
        )
    else:
        attrs["xaurora_engine"] = "jax"
    with contextlib.ExitStack() as stack:
        on_cpu = options.engine == "torch" and devices[0].type == "cpu"
        stack.enter_context(freed_memory_kept(on=on_cpu))
        replicas = [
            stack.enter_context(inference(m, job, device))
            for m, device in zip(modules, devices, strict=True)
        ]

        def run(times: list[np.datetime64], first: int, sink: Sink) -> None:
            job.run(times, first, replicas, sink)

        if options.store is not None:
            path = Path(options.store)
            stack.enter_context(only_writer(path, argument="store=", wait=options.wait))
            return to_store(path, writer, run, options.progress, overwrite=options.overwrite)
        return to_memory(writer, run, options.progress)


def _replicas(
    module: AuroraWithHead, fields: Fields, options: PredictOptions, *, stay: bool
) -> tuple[list[AuroraWithHead], list[torch.device]]:
    """Return the modules that share the init times, and the device of each."""
    if options.engine == "jax":
        from xaurora.jax.module import JaxModule

        # One program shares the samples of a batch among all devices.
        grid, count = fields.layout.grid, options.devices
        return [JaxModule(module, grid, fields.levels, count=count)], [torch.device("cpu")]
    devices = resolve_devices(module, options.devices, stay=stay)
    if len(devices) == 1:
        return [module], devices
    # Copies share the tensors until each moves its own to a device.
    shared: dict[int, torch.Tensor] = {
        id(p): torch.nn.Parameter(p.data, p.requires_grad) for p in module.parameters()
    }
    shared |= {id(b): b for b in module.buffers()}
    return [module, *(copy.deepcopy(module, dict(shared)) for _ in devices[1:])], devices


Part = tuple[slice | np.ndarray, slice | np.ndarray]


def _part(
    options: PredictOptions, fields: Fields, model: ResolvedModel, patch_size: int, halo: int
) -> tuple[Part, Window | None]:
    """Return the rows and columns of the output, and the window of a region."""
    grid = fields.layout.grid
    if options.region is None:
        return patches.trim(grid, halo), None
    own = model.tuned.heads.items() if model.tuned is not None and model.tuned.targets else ()
    window = regions.window_of(
        grid,
        fields.land,
        options.region,
        patch_size=patch_size,
        margin=heads.patch_margin(head.options for _, head in own),
        halo=halo,
    )
    return (window.rows, window.columns), window


def _past_order(
    options: PredictOptions, fields: Fields, request: Request, crop: Crop, part: Part
) -> PastOrder:
    """Return the past ranks that give members their spatial and temporal structure."""
    rows, columns = (
        np.arange(n)[kept][inner]
        for n, kept, inner in zip(
            fields.layout.grid.shape, (crop.rows, crop.columns), part, strict=True
        )
    )
    return PastOrder(
        options.past, fields, request.targets, request.steps, options.members, rows, columns
    )


def _warn(fields: Fields, crop: Crop, needs: Needs, last: int, *, built_here: bool) -> None:
    if not fields.layout.grid.is_global and last > TIMESTEP_HOURS and not built_here:
        logger.warning(
            "A region is rolled out over %d steps without data outside it: errors grow inwards"
            " from its edges (docs/regions.md).",
            last // TIMESTEP_HOURS,
        )
    if crop.left_out:
        logger.warning(
            "Dropped, outside whole patches of size %d: %s.", needs.patch_size, crop.left_out
        )


def _box(grid: Grid, window: Window) -> list[float]:
    """Return the bounds of a window: south, north, west, east."""
    return [
        float(grid.latitude[window.rows[-1]]),
        float(grid.latitude[window.rows[0]]),
        float(grid.longitude[window.columns[0]]),
        float(grid.longitude[window.columns[-1]]),
    ]


def _with_inputs(
    model: TunedAurora,
    fields: Fields,
    used: Fields,
    crop: Crop,
    times: list[np.datetime64],
    *,
    explicit: bool,
) -> tuple[Fields, list[np.datetime64]]:
    """Add the targets that the model takes as inputs, and drop init times without them.

    Raises
    ------
    InitTimeError
        If none is left, or one of the init times given explicitly lacks them.
    """
    names = list(model.model.inputs)
    found = [
        replace(t, values=t.values.isel(latitude=crop.rows, longitude=crop.columns))
        for t in truth.history(None, fields, names)
    ]
    complete = set.intersection(*(set(t.times.astype("datetime64[ns]").tolist()) for t in found))
    kept = [t for t in times if {t.item(), (t - batch.STEP).item()} <= complete]
    if not kept or (explicit and len(kept) < len(times)):
        raise InitTimeError(
            f"the model takes {names} as input, but {len(times) - len(kept)} of {len(times)} init"
            " time(s) lack a value at that time or six hours earlier.",
            fix="add the target to the data; for tp, all hours of the 12 up to the init time",
        )
    return targets.with_inputs(used, found, model.model.inputs), kept


def last_tuned() -> TunedAurora:
    """Return the model that was tuned last in this session.

    Raises
    ------
    NoModelError
        If there is none.
    """
    model = tuned.last()
    if model is None:
        raise NoModelError(
            "no model was given, and none was tuned in this session.",
            fix=(
                "model='runs/...' for a tuned model, model='small' for the untuned base (without"
                " tp), or ds.aurora.finetune(target='tp') first"
            ),
        )
    logger.info("predict: using the last tuned model (%s).", model.path)
    return model


def load_module(
    model: ResolvedModel, needs: Needs, fields: Fields, *, progress: bool
) -> AuroraWithHead:
    """Return the model with its heads, if it has any."""
    if model.tuned is not None:
        return model.tuned.model
    if model.instance is not None:
        return AuroraWithHead(model.instance)
    if model.spec is not None and model.spec.adapts_to_data:
        logger.warning(_RANDOM, model.name)
        count = len(fields.times)
        times = fields.times[np.unique(np.linspace(0, count - 1, min(count, 40)).astype(int))]
        found: Any = statistics.normalisation_statistics(fields, list(times), progress=progress)
        return AuroraWithHead(build_tiny(needs, *found))
    if model.spec is not None and model.spec.random_weights:
        logger.warning(_RANDOM, model.name)
    return AuroraWithHead(weights.load_pretrained(model.name, model.weights))

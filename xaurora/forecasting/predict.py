"""``predict``: from init times to a forecast Dataset or Zarr store."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from aurora import Aurora

from xaurora.errors import (
    InitTimeError,
    NoModelError,
    OptionError,
)
from xaurora.fields import conventions, plausibility, requirements, targets, truth
from xaurora.fields import statistics as normalisation
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import lattice as grids
from xaurora.fields.grid import patches, regions
from xaurora.fields.requirements import Needs
from xaurora.forecasting.job import Job, inference, resolve_devices
from xaurora.forecasting.members import PastOrder
from xaurora.forecasting.provenance import global_attributes
from xaurora.forecasting.request import (
    as_list,
    check_levels,
    check_members,
    lead_steps,
    resolve_request,
)
from xaurora.forecasting.store import to_store
from xaurora.forecasting.writer import Writer
from xaurora.model import aurora as models
from xaurora.model import batch as batches
from xaurora.model import bridge, hashing, tuned
from xaurora.model.tiny import build_tiny
from xaurora.model.tuned import TunedAurora
from xaurora.training import options as config
from xaurora.utils.progress import watched

logger = logging.getLogger("xaurora")


# --- options --------------------------------------------------------------------------------------


def predict(
    ds: xr.Dataset,
    lead: Any = "6h",
    *,
    model: Any = None,
    weights: str | Path | None = None,
    time: Any = None,
    variables: Sequence[str] | None = None,
    quantiles: Sequence[float] = (),
    thresholds_mm: Sequence[float] = (),
    members: int = 0,
    past: xr.Dataset | None = None,
    halo: int | None = None,
    region: Any = None,
    store: str | Path | None = None,
    batch_size: int = 1,
    devices: int = 1,
    compile: bool = False,
    precision: str = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Forecast. See :meth:`xaurora.accessor.AuroraAccessor.predict`."""
    steps = lead_steps(lead)
    config.check_precision(precision)
    config.check_running(batch_size=batch_size, devices=devices, compile=compile)
    quantiles, thresholds_mm = (list(dict.fromkeys(as_list(v))) for v in (quantiles, thresholds_mm))
    if isinstance(model, Aurora) and weights is not None:
        raise OptionError(
            "weights= applies to a model given by name, but the given model already has weights.",
            fix="model='small', weights='file.ckpt'",
        )
    check_levels("quantiles", quantiles, 0.0, 1.0)
    check_levels("thresholds_mm", thresholds_mm, 0.0, 2000.0)
    check_members(members, past)
    if model is None:
        model = _last_tuned()
    elif (
        isinstance(model, str | Path)
        and model not in requirements.MODELS
        and str(model)
        and Path(model).is_dir()
    ):
        model = tuned.load(model, weights=weights)
        weights = None
    needs = bridge.needs_for(model)
    learnt = model.config["targets"] if isinstance(model, TunedAurora) else {}
    found = targets.recognise(ds, list(learnt))
    found.raise_first()
    fields = conventions.standardise(ds, found)
    wanted = needs(fields)
    cut, crop = requirements.fit(fields, wanted)
    times = batches.resolve_times(cut.times, time)
    if isinstance(model, TunedAurora) and model.model.inputs:
        cut, times = _with_inputs(model, fields, cut, crop, times, chosen=time is not None)
    halo = config.check_halo(
        halo if halo is not None else (model.halo if isinstance(model, TunedAurora) else 0)
    )
    grid = cut.layout.grid
    part: tuple[Any, Any] = patches.trim(grid, halo)
    window = None
    if region is not None:
        window = _window(region, cut, model, wanted.patch_size, halo)
        part = (window.rows, window.columns)
    request = resolve_request(
        fields, wanted, model, steps, variables, quantiles, thresholds_mm, members
    )
    order = None
    if members:
        rows, columns = (
            np.arange(n)[kept][inner]
            for n, kept, inner in zip(
                fields.layout.grid.shape, (crop.rows, crop.columns), part, strict=True
            )
        )
        order = PastOrder(past, fields, request.targets, steps, members, rows, columns)
    plausibility.warn_implausible(fields)
    if not cut.layout.grid.is_global and steps[-1] > 1 and not wanted.model.startswith("tiny"):
        logger.warning(
            "A region is rolled out over %d steps without data outside it: errors grow inwards"
            " from its edges (docs/regions.md).",
            steps[-1],
        )
    if crop.left_out:
        logger.warning(
            "Left out, because they do not fill a patch of %d: %s.",
            wanted.patch_size,
            crop.left_out,
        )

    module = _module(model, weights, wanted, cut, progress)
    # Resuming a store relies on this hash. A forecast in memory need not read all weights
    # each time.
    weights_hash = hashing.state_hash(module, remembered=store is None)
    attrs = global_attributes(
        model, module, weights_hash, cut, times[0] - batches.STEP, halo, precision
    )
    attrs["xaurora_configuration"] = hashing.configuration_hash(module.base)
    if window is not None:
        attrs["xaurora_region"] = (
            region if isinstance(region, str) else json.dumps(_box(grid, window))
        )
    if order is not None:
        attrs["xaurora_members"] = f"{members}, Schaake shuffle of past fields"
        attrs["xaurora_members_past"] = order.digest
    writer = Writer(fields, cut, part, request, module.head, learnt, times, attrs)
    # Heads whose means are inputs of the next step run on the whole grid.
    seen = None if module.inputs else window
    job = Job(module, cut, request, part, seen, order, precision, batch_size)
    places = resolve_devices(model, module, devices)
    modules = [module, *(copy.deepcopy(module) for _ in places[1:])]
    with contextlib.ExitStack() as stack:
        replicas = [
            stack.enter_context(inference(m, job, place, compile=compile))
            for m, place in zip(modules, places, strict=True)
        ]
        if store is not None:
            return to_store(
                Path(store),
                writer,
                lambda left: job.run(list(left), replicas),
                progress,
                batch_size,
            )
        blocks = list(
            watched(job.run(times, replicas), "predict", shown=progress, total=len(times))
        )
    return writer.dataset(blocks)


def _window(region: Any, cut: Fields, model: Any, patch_size: int, halo: int) -> patches.Window:
    """Return the part of the grid to forecast."""
    if halo:
        raise OptionError(
            "halo= discards the edges of regional data, while region= selects a part of the"
            " model's grid; they cannot be combined.",
            fix="predict(region=..., halo=0)",
        )
    heads_: Any = model.model.head if isinstance(model, TunedAurora) else None
    margin = max(
        [1, *(h.options.neighbours // 2 for _, h in heads_.items())] if heads_ is not None else [1]
    )
    return patches.window_around(cut.layout.grid, regions.cells(cut, region), patch_size, margin)


def _box(grid: grids.Grid, window: patches.Window) -> list[float]:
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
    cut: Fields,
    crop: patches.Crop,
    times: list[np.datetime64],
    *,
    chosen: bool,
) -> tuple[Fields, list[np.datetime64]]:
    """Add the targets that the model takes as inputs, and drop init times without them.

    Raises
    ------
    InitTimeError
        If none is left, or one of the init times given explicitly lacks them.
    """
    learnt = [
        replace(t, values=t.values.isel(latitude=crop.rows, longitude=crop.columns))
        for t in truth.history(None, fields, list(model.model.inputs))
    ]
    whole = set.intersection(*(set(t.times.astype("datetime64[ns]").tolist()) for t in learnt))
    there = [t for t in times if {t.item(), (t - batches.STEP).item()} <= whole]
    if not there or (chosen and len(there) < len(times)):
        raise InitTimeError(
            f"the model takes {list(model.model.inputs)} as input, but {len(times) - len(there)}"
            f" of {len(times)} init time(s) lack it at the init time or six hours before.",
            fix="add the target to the data, for every hour of the six before both times",
        )
    return targets.with_inputs(cut, learnt, model.model.inputs), there


def _last_tuned() -> TunedAurora:
    model = tuned.last()
    if model is None:
        raise NoModelError(
            "no model was named, and none was tuned in this session.",
            fix=(
                "model='runs/...' for a tuned model, model='small' for the untuned base (without"
                " tp), or ds.aurora.finetune(target='tp') first"
            ),
        )
    logger.info("predict: using the last tuned model (%s).", model.path)
    return model


# --- running --------------------------------------------------------------------------------------


def _module(
    model: Any, weights: Any, needs: Needs, cut: Fields, progress: bool
) -> models.AuroraWithHead:
    if isinstance(model, TunedAurora):
        if weights is not None:
            raise OptionError(
                "weights= applies to a model given by name, but a tuned model has its own weights.",
                fix=(
                    "xaurora.load(path, weights='file.ckpt') if the weights of its base must be"
                    " given"
                ),
            )
        return model.model
    if isinstance(model, Aurora):
        return models.AuroraWithHead(model)
    if model == "tiny":
        if weights is not None:
            raise OptionError(
                "weights= applies to a pretrained model, but 'tiny' is created with random"
                " weights.",
                fix="model='small', weights='file.ckpt'",
            )
        logger.warning(
            "model='tiny' has random weights: it only tests that the data work, and its output is"
            " not a forecast."
        )
        times = cut.times[
            np.unique(np.linspace(0, len(cut.times) - 1, min(len(cut.times), 40)).astype(int))
        ]
        return models.AuroraWithHead(
            build_tiny(needs, *normalisation.statistics_of(cut, list(times), progress=progress))
        )
    return models.AuroraWithHead(weights.load_pretrained(model, weights))

"""Init times in, forecast Dataset or Zarr store out."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from aurora import Aurora, Batch

from xaurora.errors import (
    InitTimeError,
    LeadTimeError,
    MissingVariableError,
    NoModelError,
    OptionError,
)
from xaurora.fields import checking, conventions, periods, requirements, targets
from xaurora.fields import statistics as normalisation
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import lattice as grids
from xaurora.fields.grid import regions
from xaurora.fields.requirements import Needs
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.forecasting import members as ensembles
from xaurora.forecasting.members import PastOrder
from xaurora.forecasting.writer import Request, Writer, target_field, to_store
from xaurora.model import aurora as models
from xaurora.model import batch as batches
from xaurora.model import bridge, execution, hashing, placement, rollout, tuned
from xaurora.model.heads import RAIN
from xaurora.model.loader import Loader, ahead
from xaurora.model.tiny import build_tiny
from xaurora.model.tuned import TunedAurora
from xaurora.training import options as config
from xaurora.utils.progress import watched

logger = logging.getLogger("xaurora")


# --- options --------------------------------------------------------------------------------------


def lead_steps(lead: Any) -> list[int]:
    """Rollout steps of ``lead=``: all up to a single value, just those of a list.

    Raises
    ------
    LeadTimeError
        A lead is no positive multiple of six hours.

    Examples
    --------
    >>> lead_steps("24h"), lead_steps(["6h", "1 day"])
    ([1, 2, 3, 4], [1, 4])
    """
    import pandas as pd

    several = isinstance(lead, list | tuple | np.ndarray | pd.Index) or (
        isinstance(lead, xr.DataArray) and lead.ndim == 1
    )
    values = list(lead.values if isinstance(lead, xr.DataArray) else lead) if several else [lead]
    steps = []
    for value in values:
        try:
            hours = periods.hours_of(value)
        except LeadTimeError:
            hours = -1
        if hours <= 0 or hours % TIMESTEP_HOURS:
            raise LeadTimeError(
                f"lead={value!r} is no positive multiple of {TIMESTEP_HOURS} hours, which is"
                " Aurora's time step.",
                fix="lead='6h', '24h' or ['6h', '24h']",
            )
        steps.append(hours // TIMESTEP_HOURS)
    if not steps:
        raise LeadTimeError("lead=[] names no lead time.", fix="lead='24h'")
    return sorted(set(steps)) if several else list(range(1, steps[0] + 1))


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
    quantiles, thresholds_mm = (
        list(dict.fromkeys(_several(v))) for v in (quantiles, thresholds_mm)
    )
    if isinstance(model, Aurora) and weights is not None:
        raise OptionError(
            "weights= belongs to a named model, and one with weights was given.",
            fix="model='small', weights='file.ckpt'",
        )
    _check_levels("quantiles", quantiles, 0.0, 1.0)
    _check_levels("thresholds_mm", thresholds_mm, 0.0, 2000.0)
    _check_members(members, past)
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
    part: tuple[Any, Any] = grids.trim(grid, halo)
    window = None
    if region is not None:
        window = _window(region, cut, model, wanted.patch_size, halo)
        part = (window.rows, window.columns)
    request = _request(fields, wanted, model, steps, variables, quantiles, thresholds_mm, members)
    order = None
    if members:
        rows, columns = (
            np.arange(n)[kept][inner]
            for n, kept, inner in zip(
                fields.layout.grid.shape, (crop.rows, crop.columns), part, strict=True
            )
        )
        order = PastOrder(past, fields, request.targets, steps, members, rows, columns)
    checking.warn_implausible(fields)
    if not cut.layout.grid.is_global and steps[-1] > 1 and not wanted.model.startswith("tiny"):
        logger.warning(
            "A region is rolled out over %d steps without knowing what lies outside: errors grow"
            " inwards from its edges (docs/regions.md).",
            steps[-1],
        )
    if crop.left_out:
        logger.warning(
            "Left out, because patches of %d do not reach there: %s.",
            wanted.patch_size,
            crop.left_out,
        )

    module = _module(model, weights, wanted, cut, progress)
    # The resumption of a store rests on it; a forecast in memory has no need to read all weights
    # each time.
    weights_hash = hashing.state_hash(module, remembered=store is None)
    attrs = _provenance(model, module, weights_hash, cut, times[0] - batches.STEP, halo, precision)
    attrs["xaurora_configuration"] = hashing.configuration_hash(module.base)
    if window is not None:
        attrs["xaurora_region"] = (
            region if isinstance(region, str) else json.dumps(_box(grid, window))
        )
    if order is not None:
        attrs["xaurora_members"] = f"{members}, Schaake shuffle of past fields"
        attrs["xaurora_members_past"] = order.digest
    writer = Writer(fields, cut, part, request, module.head, learnt, times, attrs)
    # Heads whose means go back into the next step are run on all of the grid.
    seen = None if module.inputs else window
    job = _Job(module, cut, request, part, seen, order, precision, batch_size)
    places = _devices(model, module, devices)
    modules = [module, *(copy.deepcopy(module) for _ in places[1:])]
    with contextlib.ExitStack() as stack:
        replicas = [
            stack.enter_context(_inference(m, job, place, compile=compile))
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


def _window(region: Any, cut: Fields, model: Any, patch_size: int, halo: int) -> grids.Window:
    """The part of the grid that is forecast."""
    if halo:
        raise OptionError(
            "halo= throws away the edges of regional data, and region= takes a part of what the"
            " backbone sees.",
            fix="predict(region=..., halo=0)",
        )
    heads_: Any = model.model.head if isinstance(model, TunedAurora) else None
    margin = max(
        [1, *(h.options.neighbours // 2 for _, h in heads_.items())] if heads_ is not None else [1]
    )
    return grids.window(cut.layout.grid, regions.cells(cut, region), patch_size, margin)


def _box(grid: grids.Grid, window: grids.Window) -> list[float]:
    """South, north, west, east."""
    return [
        float(grid.latitude[window.rows[-1]]),
        float(grid.latitude[window.rows[0]]),
        float(grid.longitude[window.columns[0]]),
        float(grid.longitude[window.columns[-1]]),
    ]


def _check_members(members: Any, past: Any) -> None:
    if (
        isinstance(members, bool)
        or not isinstance(members, int | np.integer)
        or members < 0
        or members == 1
    ):
        raise OptionError(
            f"members={members!r} is no whole number of at least 2 (or 0 for none).",
            fix="members=50",
        )
    if past is not None and not members:
        raise OptionError(
            "past= orders members, and none are asked for.",
            fix="predict(members=50, past=ds_of_the_past)",
        )


def _with_inputs(
    model: TunedAurora,
    fields: Fields,
    cut: Fields,
    crop: grids.Crop,
    times: list[np.datetime64],
    *,
    chosen: bool,
) -> tuple[Fields, list[np.datetime64]]:
    """Add the targets that the model takes as inputs; init times without them are left out, or
    refused if they were named.
    """
    learnt = [
        replace(t, values=t.values.isel(latitude=crop.rows, longitude=crop.columns))
        for t in targets.history(None, fields, list(model.model.inputs))
    ]
    whole = set.intersection(*(set(t.times.astype("datetime64[ns]").tolist()) for t in learnt))
    there = [t for t in times if {t.item(), (t - batches.STEP).item()} <= whole]
    if not there or (chosen and len(there) < len(times)):
        raise InitTimeError(
            f"the model takes {list(model.model.inputs)} as input, and {len(times) - len(there)} of"
            f" {len(times)} init time(s) lack it, or the one six hours before.",
            fix="add the target to the data, for every hour of the six before both times",
        )
    return targets.with_inputs(cut, learnt, model.model.inputs), there


def _several(values: Any) -> list[float]:
    """One number, or several, as a list of Python's."""
    return [
        v.item() if isinstance(v, np.generic) else v
        for v in ([values] if np.ndim(values) == 0 else values)
    ]


def _check_levels(name: str, values: Sequence[float], low: float, high: float) -> None:
    for value in values:
        if not (isinstance(value, int | float) and low < value < high) and not (
            name == "thresholds_mm" and value == 0
        ):
            raise OptionError(
                f"{name}={list(values)!r}: {value!r} does not lie between {low:g} and {high:g}.",
                fix=f"{name}={[0.1, 0.5, 0.9] if name == 'quantiles' else [0.1, 1, 10]}",
            )


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
    logger.info("predict: using the model tuned last (%s).", model.path)
    return model


def _request(
    fields: Fields,
    needs: Needs,
    model: Any,
    steps: list[int],
    names: Sequence[str] | None,
    quantiles: Sequence[float],
    thresholds: Sequence[float],
    members: int,
) -> Request:
    learnt = model.config["targets"] if isinstance(model, TunedAurora) else {}
    wanted = bool(quantiles or thresholds or members)
    if wanted and not learnt:
        raise OptionError(
            "quantiles, thresholds_mm and members need a model with a head for tp, and this one has"
            " none.",
            fix="ds.aurora.finetune(target='tp') first",
        )
    if members and (
        single := [
            n for n, info in learnt.items() if info["head"]["options"]["family"] == "deterministic"
        ]
    ):
        raise OptionError(
            f"members= asks for a distribution, and the head of {single} is deterministic: all"
            " members would be the same.",
            fix="finetune with head='auto'",
        )
    if thresholds and not any(info["rain"] for info in learnt.values()):
        raise OptionError(
            f"thresholds_mm are of precipitation, and this model learnt {list(learnt)}.",
            fix="quantiles=[0.5]",
        )
    surface, atmos, heads = list(needs.surface), list(needs.atmos), list(learnt)
    if names is not None:
        if isinstance(names, str):
            names = [names]
        sources = {fields.layout.fields["surface", n].source: ("surface", n) for n in needs.surface}
        sources |= {fields.layout.fields["atmos", n].source: ("atmos", n) for n in needs.atmos}
        sources |= {
            target_field(fields, n, info).source: ("target", n) for n, info in learnt.items()
        }
        canonical = {
            n: key
            for key in sources.values()
            for n in [key[1]]
            if [k[1] for k in sources.values()].count(n) == 1
        }
        lookup = {**canonical, **sources}
        if unknown := [n for n in names if n not in lookup]:
            raise MissingVariableError(
                f"variables={list(names)}: {unknown} cannot be forecast; this model gives"
                f" {sorted(sources)}.",
                fix=f"variables={sorted(sources)[:2]}",
            )
        keys = [lookup[n] for n in names]
        surface = [n for n in surface if ("surface", n) in keys]
        atmos = [n for n in atmos if ("atmos", n) in keys]
        heads = [n for n in heads if ("target", n) in keys]
        if not keys:
            raise OptionError(
                "variables=[] names no variable.", fix=f"variables={sorted(sources)[:2]}"
            )
        if wanted and not heads:
            raise OptionError(
                f"quantiles, thresholds_mm and members are those of {', '.join(learnt)}, which is"
                " not among variables.",
                fix=(
                    f"variables={[*names, *(target_field(fields, n, info).source for n, info in learnt.items())]}"
                ),
            )
    return Request(
        steps,
        surface,
        atmos,
        heads,
        tuple(map(float, quantiles)),
        tuple(map(float, thresholds)),
        int(members),
    )


# --- running --------------------------------------------------------------------------------------


def _module(
    model: Any, weights: Any, needs: Needs, cut: Fields, progress: bool
) -> models.AuroraWithHead:
    if isinstance(model, TunedAurora):
        if weights is not None:
            raise OptionError(
                "weights= belongs to a named model, and a tuned model has its own.",
                fix="xaurora.load(path, weights='file.ckpt') if its base has to be given",
            )
        return model.model
    if isinstance(model, Aurora):
        return models.AuroraWithHead(model)
    if model == "tiny":
        if weights is not None:
            raise OptionError(
                "weights= belongs to a pretrained model, and 'tiny' is made here.",
                fix="model='small', weights='file.ckpt'",
            )
        logger.warning(
            "model='tiny' has random weights: this shows that the data fit, and is no forecast."
        )
        times = cut.times[
            np.unique(np.linspace(0, len(cut.times) - 1, min(len(cut.times), 40)).astype(int))
        ]
        return models.AuroraWithHead(
            build_tiny(needs, *normalisation.statistics_of(cut, list(times), progress=progress))
        )
    return models.AuroraWithHead(weights.load_pretrained(model, weights))


def _devices(model: Any, module: models.AuroraWithHead, count: int) -> list[torch.device]:
    """Where to run: a given Aurora where it is, others on the GPU; several GPUs share the init
    times.
    """
    here = next(module.parameters()).device
    if count == 1:
        return [
            (
                torch.device("cuda")
                if torch.cuda.is_available() and not isinstance(model, Aurora)
                else here
            )
        ]
    cuda = torch.cuda.is_available()
    there = torch.cuda.device_count() if cuda else os.cpu_count() or 1
    if count > there:
        raise OptionError(
            f"devices={count}, and this machine has {there}"
            f" {'GPU(s)' if cuda else 'processor(s) and no GPU'}.",
            fix=f"devices={there}",
        )
    return [torch.device("cuda", i) if cuda else torch.device("cpu") for i in range(count)]


@contextlib.contextmanager
def _inference(
    module: models.AuroraWithHead, job: _Job, device: torch.device, *, compile: bool
) -> Iterator[models.AuroraWithHead]:
    """The module in evaluation mode, on the device, in place; all of it is undone afterwards."""
    base = module.base
    before = (
        next(base.parameters()).device,
        base.autocast_backbone,
        base.autocast_dtype,
    )
    trained = [m for m in module.modules() if m.training]
    for part in trained:
        part.training = False
    if before[0] != device:
        module.to(device)
    if job.precision != "auto":  # else the model's own setting holds, as in upstream's rollout
        execution.set_precision(base, job.precision, device)
    module.window = job.window
    try:
        with (
            placement.placed(module, job.cut.layout.grid),
            execution.compiled(base) if compile else contextlib.nullcontext(),
        ):
            yield module
    finally:
        module.window = None
        for part in trained:
            part.training = True
        if before[0] != device:
            module.to(before[0])
        base.autocast_backbone, base.autocast_dtype = before[1:]


_FRAMES = 256 * 1024**2  # bytes of states kept: each is the history of the next init time


@dataclass(frozen=True)
class _Job:
    """What is forecast, and how.

    Parameters
    ----------
    module : AuroraWithHead
    cut : Fields
    request : Request
    part : tuple of slice or ndarray
        Rows and columns that are put out.
    window : Window, optional
        Of a region: raw output of the heads has its shape already.
    order : PastOrder, optional
    precision : str
    batch_size : int
    """

    module: models.AuroraWithHead
    cut: Fields
    request: Request
    part: tuple[Any, Any]
    window: grids.Window | None
    order: PastOrder | None
    precision: str
    batch_size: int

    def run(
        self, times: list[np.datetime64], replicas: list[models.AuroraWithHead]
    ) -> Iterator[dict[str, np.ndarray]]:
        """The forecasts of init times, in their order; inputs are read while those before are
        computed.
        """
        loader = Loader(self.cut, {}, budget=_FRAMES)
        groups = [times[i : i + self.batch_size] for i in range(0, len(times), self.batch_size)]
        several = ahead(groups, loader.batch, 1 if len(groups) > 1 else 0)
        if len(replicas) == 1:
            try:
                for inits, batch in several:
                    yield from self.forecast(replicas[0], inits, batch)
            finally:
                loader.close()
            return
        free: queue.SimpleQueue[models.AuroraWithHead] = queue.SimpleQueue()
        for replica in replicas:
            free.put(replica)

        def one(item: tuple[list[np.datetime64], Batch]) -> list[dict[str, np.ndarray]]:
            replica = free.get()
            try:
                return self.forecast(replica, *item)
            finally:
                free.put(replica)

        try:
            for _, blocks in ahead(several, one, len(replicas)):
                yield from blocks
        finally:
            loader.close()

    def forecast(
        self, module: models.AuroraWithHead, inits: list[np.datetime64], batch: Batch
    ) -> list[dict[str, np.ndarray]]:
        """The forecasts from some init times: of each, canonical arrays ``(lead, [level,] h, w)``
        by name, of the part that is put out.
        """
        with torch.inference_mode():
            return self._forecast(module, inits, batch)

    def _forecast(
        self, module: models.AuroraWithHead, inits: list[np.datetime64], batch: Batch
    ) -> list[dict[str, np.ndarray]]:
        heads: Any = module.head
        request, (rows, columns) = self.request, self.part
        ranks = [self.order.ranks(init) if self.order is not None else {} for init in inits]
        out: list[dict[str, list[np.ndarray]]] = [{} for _ in inits]

        def keep(key: str, values: torch.Tensor, *, cut: bool = True) -> None:
            """Values ``(b, ..., h, w)``."""
            found = values.float().cpu().numpy()
            if cut:
                found = found[..., rows, :][..., columns]
            for own, one in zip(out, found, strict=True):
                own.setdefault(key, []).append(one)

        whole = self.window is None  # else the heads give the region alone
        # A step that the next one stands on is decoded in any case; the last one only for what is
        # asked of it.
        alone = not request.surface and not request.atmos
        stepping = rollout.steps(
            module, batch, request.steps[-1], head_alone=alone, atmos=tuple(request.atmos)
        )
        for i, step in enumerate(stepping):
            if i + 1 not in request.steps:
                continue
            for name in request.surface:
                keep(f"surface/{name}", step.prediction.surf_vars[name][:, 0])
            for name in request.atmos:
                keep(f"atmos/{name}", step.prediction.atmos_vars[name][:, 0])
            for target in request.targets:
                head = heads[target]
                params = head.parameters_of(step.raw[target])
                keep(f"{target}/mean", head.mean(params), cut=whole)
                for name, values in params.items():
                    keep(f"{target}/{name}", values, cut=whole)
                for q in request.quantiles:
                    keep(f"{target}/quantile/{q}", head.quantile(params, q), cut=whole)
                for threshold in request.thresholds if head.options.family in RAIN else ():
                    above = head.probability_above(params, threshold * 1e-3)
                    keep(f"{target}/probability/{threshold}", above, cut=whole)
                for b, own in enumerate(ranks):
                    if target in own:
                        inner = {
                            k: v[b][rows, :][:, columns] if whole else v[b]
                            for k, v in params.items()
                        }
                        drawn = ensembles.draw(head, inner, own[target][request.steps.index(i + 1)])
                        out[b].setdefault(f"{target}/members", []).append(drawn)
        return [{key: np.stack(values) for key, values in own.items()} for own in out]


def _provenance(
    model: Any,
    module: models.AuroraWithHead,
    weights_hash: str,
    cut: Fields,
    first_time: np.datetime64,
    halo: int,
    precision: str,
) -> dict[str, Any]:
    name = (
        model
        if isinstance(model, str)
        else (
            model.config["base"]["name"] if isinstance(model, TunedAurora) else type(model).__name__
        )
    )
    first = batches.frame(cut, first_time)
    digest = hashlib.sha256(
        b"".join(
            np.ascontiguousarray(v).tobytes() for part in first.values() for v in part.values()
        )
    ).hexdigest()
    out = {
        "title": "Forecast by Aurora with xaurora",
        "Conventions": "CF-1.11",
        "xaurora_base": str(name),
        "xaurora_weights": weights_hash,
        "xaurora_versions": json.dumps(tuned.versions()),
        "xaurora_input": (
            f"{cut.times[0].astype('datetime64[m]')} to {cut.times[-1].astype('datetime64[m]')}"
        ),
        "xaurora_input_hash": f"sha256:{digest}",
        "xaurora_halo": halo,
        "xaurora_precision": precision,
    }
    if isinstance(model, TunedAurora):
        out["xaurora_strategy"] = model.config["strategy"]
        out["xaurora_base_weights"] = model.config["base"]["hash"]
    return out

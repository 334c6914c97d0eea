"""Init times in, forecast Dataset or Zarr store out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from aurora import Aurora

from xaurora import batch as batches
from xaurora import bridge, checking, config, conventions, normalisation, periods, requirements, rollout, targets, tuned
from xaurora import grid as grids
from xaurora import members as ensembles
from xaurora import model as models
from xaurora.conventions import Fields
from xaurora.errors import InitTimeError, LeadTimeError, MissingVariableError, NoModelError, OptionError
from xaurora.forecasts import Request, Writer, target_field, to_store
from xaurora.heads import RAIN
from xaurora.members import PastOrder
from xaurora.progress import watched
from xaurora.requirements import Needs
from xaurora.tiny import build_tiny
from xaurora.tuned import TunedAurora
from xaurora.variables import TIMESTEP_HOURS

logger = logging.getLogger("xaurora")


# --- options ----------------------------------------------------------------------------------------------------------


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
                f"lead={value!r} is no positive multiple of {TIMESTEP_HOURS} hours, which is Aurora's time step.",
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
    store: str | Path | None = None,
    precision: str = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Forecast. See :meth:`xaurora.accessor.AuroraAccessor.predict`."""
    steps = lead_steps(lead)
    config.check_precision(precision)
    quantiles, thresholds_mm = (list(dict.fromkeys(_several(v))) for v in (quantiles, thresholds_mm))
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
    elif isinstance(model, str | Path) and model not in requirements.MODELS and str(model) and Path(model).is_dir():
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
    halo = config.check_halo(halo if halo is not None else (model.halo if isinstance(model, TunedAurora) else 0))
    trim = grids.trim(cut.layout.grid, halo)
    request = _request(fields, wanted, model, steps, variables, quantiles, thresholds_mm, members)
    order = None
    if members:
        rows, columns = (np.arange(n)[part][inner] for n, part, inner in zip(fields.layout.grid.shape, (crop.rows, crop.columns), trim, strict=True))  # fmt: skip
        order = PastOrder(past, fields, request.targets, steps, members, rows, columns)
    checking.warn_implausible(fields)
    if not cut.layout.grid.is_global and steps[-1] > 1 and not wanted.model.startswith("tiny"):
        logger.warning(
            "A region is rolled out over %d steps without knowing what lies outside: errors grow inwards from its edges (docs/regions.md).",
            steps[-1],
        )
    if crop.left_out:
        logger.warning("Left out, because patches of %d do not reach there: %s.", wanted.patch_size, crop.left_out)

    module = _module(model, weights, wanted, cut, progress)
    attrs = _provenance(model, module, cut, times[0] - batches.STEP, halo, precision)
    if order is not None:
        attrs["xaurora_members"] = f"{members}, Schaake shuffle of past fields"
        attrs["xaurora_members_past"] = order.digest
    writer = Writer(fields, cut, trim, request, module.head, learnt, times, attrs)
    device = torch.device(
        "cuda" if torch.cuda.is_available() and not isinstance(model, Aurora) else next(module.parameters()).device
    )
    with _inference(module, cut.layout.grid, precision, device):
        if store is not None:
            return to_store(Path(store), writer, lambda t: _one(module, cut, t, request, trim, order), progress)
        blocks = [_one(module, cut, t, request, trim, order) for t in watched(times, "predict", shown=progress)]
    return writer.dataset(blocks)


def _check_members(members: Any, past: Any) -> None:
    if isinstance(members, bool) or not isinstance(members, int | np.integer) or members < 0 or members == 1:
        raise OptionError(f"members={members!r} is no whole number of at least 2 (or 0 for none).", fix="members=50")
    if past is not None and not members:
        raise OptionError(
            "past= orders members, and none are asked for.", fix="predict(members=50, past=ds_of_the_past)"
        )


def _with_inputs(
    model: TunedAurora, fields: Fields, cut: Fields, crop: grids.Crop, times: list[np.datetime64], *, chosen: bool
) -> tuple[Fields, list[np.datetime64]]:
    """Add the targets that the model takes as inputs; init times without them are left out, or refused if they were named."""
    learnt = [
        replace(t, values=t.values.isel(latitude=crop.rows, longitude=crop.columns))
        for t in targets.history(None, fields, list(model.model.inputs))
    ]
    whole = set.intersection(*(set(t.times.astype("datetime64[ns]").tolist()) for t in learnt))
    there = [t for t in times if {t.item(), (t - batches.STEP).item()} <= whole]
    if not there or (chosen and len(there) < len(times)):
        raise InitTimeError(
            f"the model takes {list(model.model.inputs)} as input, and {len(times) - len(there)} of {len(times)} init time(s) lack it, or the one six hours before.",
            fix="add the target to the data, for every hour of the six before both times",
        )
    return targets.with_inputs(cut, learnt, model.model.inputs), there


def _several(values: Any) -> list[float]:
    """One number, or several, as a list of Python's."""
    return [v.item() if isinstance(v, np.generic) else v for v in ([values] if np.ndim(values) == 0 else values)]


def _check_levels(name: str, values: Sequence[float], low: float, high: float) -> None:
    for value in values:
        if not (isinstance(value, int | float) and low < value < high) and not (name == "thresholds_mm" and value == 0):
            raise OptionError(
                f"{name}={list(values)!r}: {value!r} does not lie between {low:g} and {high:g}.",
                fix=f"{name}={[0.1, 0.5, 0.9] if name == 'quantiles' else [0.1, 1, 10]}",
            )


def _last_tuned() -> TunedAurora:
    model = tuned.last()
    if model is None:
        raise NoModelError(
            "no model was named, and none was tuned in this session.",
            fix="model='runs/...' for a tuned model, model='small' for the untuned base (without tp), or ds.aurora.finetune(target='tp') first",
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
            "quantiles, thresholds_mm and members need a model with a head for tp, and this one has none.",
            fix="ds.aurora.finetune(target='tp') first",
        )
    if members and (
        single := [n for n, info in learnt.items() if info["head"]["options"]["family"] == "deterministic"]
    ):
        raise OptionError(
            f"members= asks for a distribution, and the head of {single} is deterministic: all members would be the same.",
            fix="finetune with head='auto'",
        )
    if thresholds and not any(info["rain"] for info in learnt.values()):
        raise OptionError(
            f"thresholds_mm are of precipitation, and this model learnt {list(learnt)}.", fix="quantiles=[0.5]"
        )
    surface, atmos, heads = list(needs.surface), list(needs.atmos), list(learnt)
    if names is not None:
        if isinstance(names, str):
            names = [names]
        sources = {fields.layout.fields["surface", n].source: ("surface", n) for n in needs.surface}
        sources |= {fields.layout.fields["atmos", n].source: ("atmos", n) for n in needs.atmos}
        sources |= {target_field(fields, n, info).source: ("target", n) for n, info in learnt.items()}
        canonical = {
            n: key for key in sources.values() for n in [key[1]] if [k[1] for k in sources.values()].count(n) == 1
        }
        lookup = {**canonical, **sources}
        if unknown := [n for n in names if n not in lookup]:
            raise MissingVariableError(
                f"variables={list(names)}: {unknown} cannot be forecast; this model gives {sorted(sources)}.",
                fix=f"variables={sorted(sources)[:2]}",
            )
        keys = [lookup[n] for n in names]
        surface = [n for n in surface if ("surface", n) in keys]
        atmos = [n for n in atmos if ("atmos", n) in keys]
        heads = [n for n in heads if ("target", n) in keys]
        if not keys:
            raise OptionError("variables=[] names no variable.", fix=f"variables={sorted(sources)[:2]}")
        if wanted and not heads:
            raise OptionError(
                f"quantiles, thresholds_mm and members are those of {', '.join(learnt)}, which is not among variables.",
                fix=f"variables={[*names, *(target_field(fields, n, info).source for n, info in learnt.items())]}",
            )
    return Request(
        steps, surface, atmos, heads, tuple(map(float, quantiles)), tuple(map(float, thresholds)), int(members)
    )


# --- running ----------------------------------------------------------------------------------------------------------


def _module(model: Any, weights: Any, needs: Needs, cut: Fields, progress: bool) -> models.AuroraWithHead:
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
        logger.warning("model='tiny' has random weights: this shows that the data fit, and is no forecast.")
        times = cut.times[np.unique(np.linspace(0, len(cut.times) - 1, min(len(cut.times), 40)).astype(int))]
        return models.AuroraWithHead(
            build_tiny(needs, *normalisation.statistics_of(cut, list(times), progress=progress))
        )
    return models.AuroraWithHead(models.load_pretrained(model, weights))


@contextlib.contextmanager
def _inference(module: models.AuroraWithHead, grid: grids.Grid, precision: str, device: torch.device) -> Iterator[None]:
    """Evaluation mode, on the device, in place; all of it is undone afterwards."""
    base = module.base
    before = (
        module.training,
        base.training,
        next(base.parameters()).device,
        base.autocast_backbone,
        base.autocast_dtype,
    )
    module.eval().to(device)
    if precision != "auto":  # else the model's own setting holds, as in upstream's rollout
        models.set_precision(base, precision, device)
    try:
        with torch.inference_mode(), models.placed(module, grid):
            yield
    finally:
        module.train(before[0])
        base.train(before[1])
        module.to(before[2])
        base.autocast_backbone, base.autocast_dtype = before[3], before[4]


def _one(
    module: models.AuroraWithHead,
    cut: Fields,
    init: np.datetime64,
    request: Request,
    trim: tuple[slice, slice],
    order: PastOrder | None,
) -> dict[str, np.ndarray]:
    """The forecast from one init time: canonical arrays ``(lead, [level,] h, w)`` by name, halo trimmed."""
    heads: Any = module.head
    ranks = order.ranks(init) if order is not None else {}
    out: dict[str, list[np.ndarray]] = {}

    def keep(key: str, values: torch.Tensor) -> None:
        out.setdefault(key, []).append(values.float().cpu().numpy()[..., trim[0], trim[1]])

    # A step that the next one stands on is decoded in any case; the last one only for what is asked of it.
    head_alone = not request.surface and not request.atmos
    batch = batches.to_batch(cut, [init])
    for i, step in enumerate(rollout.steps(module, batch, request.steps[-1], head_alone=head_alone)):
        if i + 1 not in request.steps:
            continue
        for name in request.surface:
            keep(f"surface/{name}", step.prediction.surf_vars[name][0, 0])
        for name in request.atmos:
            keep(f"atmos/{name}", step.prediction.atmos_vars[name][0, 0])
        for target in request.targets:
            head = heads[target]
            params = head.parameters_of(step.raw[target])
            keep(f"{target}/mean", head.mean(params)[0])
            for name, values in params.items():
                keep(f"{target}/{name}", values[0])
            for q in request.quantiles:
                keep(f"{target}/quantile/{q}", head.quantile(params, q)[0])
            for threshold in request.thresholds if head.options.family in RAIN else ():
                keep(f"{target}/probability/{threshold}", head.probability_above(params, threshold * 1e-3)[0])
            if target in ranks:
                inner = {k: v[0][trim] for k, v in params.items()}
                drawn = ensembles.draw(head, inner, ranks[target][request.steps.index(i + 1)])
                out.setdefault(f"{target}/members", []).append(drawn)
    return {key: np.stack(values) for key, values in out.items()}


def _provenance(
    model: Any, module: models.AuroraWithHead, cut: Fields, first_time: np.datetime64, halo: int, precision: str
) -> dict[str, Any]:
    name = (
        model
        if isinstance(model, str)
        else model.config["base"]["name"]
        if isinstance(model, TunedAurora)
        else type(model).__name__
    )
    first = batches.frame(cut, first_time)
    digest = hashlib.sha256(
        b"".join(np.ascontiguousarray(v).tobytes() for part in first.values() for v in part.values())
    ).hexdigest()
    out = {
        "title": "Forecast by Aurora with xaurora",
        "Conventions": "CF-1.11",
        "xaurora_base": str(name),
        "xaurora_weights": models.state_hash(module),
        "xaurora_versions": json.dumps(tuned.versions()),
        "xaurora_input": f"{cut.times[0].astype('datetime64[m]')} to {cut.times[-1].astype('datetime64[m]')}",
        "xaurora_input_hash": f"sha256:{digest}",
        "xaurora_halo": halo,
        "xaurora_precision": precision,
    }
    if isinstance(model, TunedAurora):
        out["xaurora_strategy"] = model.config["strategy"]
        out["xaurora_base_weights"] = model.config["base"]["hash"]
    return out

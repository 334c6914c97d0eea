"""``finetune``: from a Dataset to everything that the training loop needs."""

from __future__ import annotations

import copy
import datetime
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from aurora import Aurora

from xaurora import batch as batches
from xaurora import (
    checking,
    config,
    conventions,
    heads,
    normalisation,
    precipitation,
    recognition,
    requirements,
    samples,
    strategies,
    training,
    tuned,
)
from xaurora import grid as grids
from xaurora import model as models
from xaurora.batch import STEP
from xaurora.conventions import Fields
from xaurora.errors import OptionError, SplitError, TargetError
from xaurora.progress import say, watched
from xaurora.tiny import build_tiny
from xaurora.tuned import TunedAurora
from xaurora.variables import TIMESTEP_HOURS, find

logger = logging.getLogger("xaurora")


def finetune(
    ds: xr.Dataset,
    target: str = "tp",
    *,
    model: Any = "small",
    weights: str | Path | None = None,
    strategy: str = "frozen",
    head: str | heads.HeadOptions = "auto",
    train: Any = None,
    validation: Any = None,
    halo: int = 0,
    out: str | Path | None = None,
    options: config.TrainingOptions | None = None,
) -> TunedAurora:
    """Fine-tune an Aurora so that it also predicts ``target``. See :meth:`xaurora.accessor.AuroraAccessor.finetune`."""
    options = options or config.TrainingOptions()
    strategies.check_strategy(strategy)
    head_options = heads.options_for(head)
    config.check_halo(halo)
    folder = _out_folder(out, target)

    found = recognition.recognise(ds)
    found.raise_first()
    fields = conventions.standardise(ds, found)
    source, totals, period = _target(fields, target)
    if isinstance(model, str | Path) and model not in requirements.MODELS and str(model) and Path(model).is_dir():
        model, weights = tuned.load(model, weights=weights), None
    name, base = _resolve_model(model)
    if base is not None and weights is not None:
        raise OptionError(
            "weights= belongs to a named model, and one with weights was given.",
            fix="model='small', weights='file.ckpt'",
        )
    needs = requirements.needs_of(name, fields) if base is None else _needs_of(model, base)
    cut, crop = requirements.fit(fields, needs)
    checking.refuse_implausible(fields)
    if crop.left_out:
        logger.info("Left out, because patches of %d do not reach there: %s.", needs.patch_size, crop.left_out)
    totals = totals.isel(latitude=crop.rows, longitude=crop.columns)
    grid = cut.layout.grid
    trim = grids.trim(grid, halo)

    chosen = samples.index(cut.times, samples.whole_totals(fields.times, period))
    logger.info("%s", chosen)
    parts = samples.split(chosen, train, validation)
    chosen_train, rain = _drop_without_truth(totals, parts.train, trim, options.progress)
    chosen_validation, _ = _drop_without_truth(totals, parts.validation, trim, False)
    if rain.clipped:
        logger.info(
            "%d negative amounts of %s were set to zero, %.3g mm in all.",
            rain.clipped,
            source,
            rain.clipped_amount * 1e3,
        )

    _refuse_missing(cut, np.union1d(chosen_train, chosen_validation))
    if base is None:
        base = _make_base(name, weights, needs, cut, chosen_train, options)
    original_hash = models.state_hash(base)
    levels, width = models.latent_size(base)
    rain_head = _make_head(model, head_options, levels, width, needs.patch_size, rain, options.seed)
    module = models.AuroraWithHead(base, rain_head)
    moves_base = strategy != "frozen"
    groups = strategies.apply(
        module, strategy, trains_base_outputs=moves_base and options.base_loss > 0, learning_rate=options.learning_rate
    )

    meta: dict[str, Any] = {
        "target": "tp",
        "strategy": strategy,
        "head": {**rain_head.config(), "family": head_options.family},
        "base": tuned.describe_base(
            base, name, saved=moves_base or name == "tiny" or _holds_its_base(model), original_hash=original_hash
        ),
        "halo": halo,
        "target_statistics": {
            "mean_m": rain.amounts.mean,
            "std_m": rain.amounts.std,
            "wet_fraction": rain.wet_fraction,
            "max_m": rain.amounts.high,
            "count": rain.amounts.count,
        },
        "training": {
            "samples": len(chosen_train),
            "validation_samples": len(chosen_validation),
            "validated_on_training_samples": parts.same,
            "start": str((chosen_train[0] - STEP).astype("datetime64[m]")),
            "end": str((chosen_train[-1] + STEP).astype("datetime64[m]")),
            "region": _describe_region(grid),
            "grid_spacing": list(grid.spacing),
            "batch_size": options.batch_size,
            "steps": options.total_steps(len(chosen_train)),
            "seed": options.seed,
            "options": asdict(options),
            "skipped": chosen.skipped,
        },
        "parameters": [asdict(part) for part in strategies.table(module)],
        "versions": tuned.versions(),
        "made": tuned.now(),
    }
    if not grid.is_global and not moves_base and name != "tiny":
        logger.warning(
            "The data are regional and the backbone stays frozen: a pretrained Aurora was made for the globe, and sees here what it never saw. "
            "Better give it the globe, or strategy='full'; docs/regions.md says more."
        )
    same = " (the same ones)" if parts.same else ""
    if chosen.skipped:
        say(str(chosen), shown=options.progress)
    say(
        f"{len(chosen_train)} training samples, {len(chosen_validation)} to validate{same}; to {folder}",
        shown=options.progress,
    )
    say(strategies.render(strategies.table(module)), shown=options.progress)
    result = TunedAurora(module, needs, meta)
    loader = samples.Loader(cut, totals, with_next_state=moves_base and options.base_loss > 0)
    training.fit(result, loader, groups, chosen_train, chosen_validation, grid, trim, options, folder, moves_base)
    tuned.remember(result)
    return result


# --- before training --------------------------------------------------------------------------------------------------


def _out_folder(out: str | Path | None, target: str) -> Path:
    if out is not None and not isinstance(out, str | Path):
        raise OptionError(f"out={out!r} is no path.", fix="out='runs/tp'")
    if out is not None:
        folder = Path(out)
        for part in ("best", "last"):
            if (folder / part).exists() and not (folder / part / "config.json").exists():
                raise OptionError(
                    f"'{folder / part}' is there and is no tuned model; it would be overwritten.",
                    fix="choose another out=",
                )
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"out='{folder}' is a file.", fix="out='runs/tp'")
        return folder
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{target}-{stamp}"


def _target(fields: Fields, target: str) -> tuple[str, xr.DataArray, int]:
    """The target's name in the data, its six-hour totals, and the period of its values."""
    if not isinstance(target, str):
        raise TargetError(f"target={target!r} is no name of a variable.", fix="target='tp'")
    known = find(target)
    by_source = {item.source: key for key, item in fields.layout.fields.items()}
    key = by_source.get(target) or (("surface", known.name) if known is not None else None)
    if key is None or key not in fields.layout.fields:
        there = sorted(item.source for k, item in fields.layout.fields.items() if k[0] == "surface")
        raise TargetError(
            f"the target {target!r} is not in the data; surface variables there are {there}.",
            fix="add it: xaurora.open('states.nc', 'tp.nc')",
        )
    item = fields.layout.fields[key]
    if not item.variable.accumulated or key[0] != "surface":
        learnable = sorted(i.source for i in fields.layout.fields.values() if i.variable.accumulated)
        raise TargetError(
            f"{target!r} ({item.variable.long_name.lower()}) is not precipitation; the heads there are model precipitation alone"
            + (f", here {learnable}." if learnable else ", of which the data hold none."),
            fix="target='tp'",
        )
    da = fields.surface[item.variable.name]
    period = precipitation.period_for(item.source, da.attrs, fields.times, TIMESTEP_HOURS)
    precipitation.refuse_running_totals(da, name=item.source)
    return item.source, precipitation.accumulate(da, TIMESTEP_HOURS, name=item.source), period


def _resolve_model(model: Any) -> tuple[str, Aurora | None]:
    """A name, and a copy of the base where an object was given: what the caller holds is not trained under their hands."""
    if isinstance(model, TunedAurora):
        return str(model.config["base"]["name"]), copy.deepcopy(model.model.base)
    if isinstance(model, Aurora):
        return "given", copy.deepcopy(model)
    if isinstance(model, str) and model in requirements.MODELS:
        return model, None
    raise requirements.unknown_model(model)


def _holds_its_base(model: Any) -> bool:
    """Whether the base is that of an earlier tuning, which stands in no published checkpoint."""
    return isinstance(model, TunedAurora) and bool(model.config["base"]["saved"])


def _needs_of(model: Any, base: Aurora) -> requirements.Needs:
    return model.needs if isinstance(model, TunedAurora) else models.needs_of_instance(base)


_SCANNED = 4 * 1024**3  # bytes of frames


def _refuse_missing(cut: Fields, init_times: np.ndarray) -> None:
    """Find NaN before anything is written: in all frames up to 4 GiB, else in as many of them evenly spaced."""
    frames = np.unique(np.concatenate([init_times - STEP, init_times, init_times + STEP]))
    rows, columns = cut.layout.grid.shape
    size = 4 * rows * columns * (len(cut.surface) + len(cut.atmos) * len(cut.levels))
    count = min(len(frames), max(_SCANNED // size, 20))
    for t in frames[np.unique(np.linspace(0, len(frames) - 1, count).astype(int))]:
        batches.frame(cut, t)
    batches.statics(cut)


def _make_base(
    name: str, weights: Any, needs: requirements.Needs, cut: Fields, train: np.ndarray, options: config.TrainingOptions
) -> Aurora:
    if name != "tiny":
        return models.load_pretrained(name, weights)
    if weights is not None:
        raise OptionError(
            "weights= belongs to a pretrained model, and 'tiny' is made here.", fix="model='small', weights='file.ckpt'"
        )
    frames = np.unique(np.concatenate([train - STEP, train, train + STEP]))
    surface, atmos = normalisation.statistics_of(cut, list(frames), progress=options.progress)
    return build_tiny(needs, surface, atmos, options.seed)


def _make_head(
    model: Any,
    options: heads.HeadOptions,
    levels: int,
    width: int,
    patch_size: int,
    rain: normalisation.RainMoments,
    seed: int,
) -> Any:
    if isinstance(model, TunedAurora) and model.head.options == replace(
        options, epsilon=options.epsilon or model.head.epsilon
    ):
        return copy.deepcopy(model.head)  # go on with what was learnt
    options = options.for_climate(rain.amounts.mean)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        head = heads.build(options, levels, width, patch_size)
    in_z = rain.in_z(head.epsilon)
    head.initialise(heads.Climatology(rain.wet_fraction, in_z["mean"], in_z["median"], in_z["crps"]))
    return head


def _drop_without_truth(
    totals: xr.DataArray, init_times: np.ndarray, trim: tuple[slice, slice], progress: bool
) -> tuple[np.ndarray, normalisation.RainMoments]:
    """Init times whose target has values inside the halo, and the climatology of those targets. Reads them once."""
    rain = normalisation.RainMoments()
    position = {t: i for i, t in enumerate(totals["time"].values.astype("datetime64[ns]"))}
    kept = []
    for t in watched(init_times, "target", shown=progress):
        values = totals.isel(time=position[t + STEP]).values[trim]
        values = values[np.isfinite(values)]
        if values.size:
            rain.add(values)
            kept.append(t)
    if not kept:
        raise SplitError(
            "the target has no value in any sample of this part.",
            fix="check the target: ds['tp'].isnull().mean(('latitude', 'longitude'))",
        )
    if rain.wet == 0:
        raise SplitError(
            "the target is dry everywhere in this part, so that nothing can be learnt or scored.",
            fix="take a longer period or a wetter region",
        )
    return np.array(kept, dtype="datetime64[ns]"), rain


def _describe_region(grid: grids.Grid) -> str:
    if grid.is_global:
        return f"global, {grid.shape[0]} × {grid.shape[1]}"
    return f"{grid.latitude[-1]:g} to {grid.latitude[0]:g}°N, {grid.longitude[0]:g} to {grid.longitude[-1]:g}°E, {grid.shape[0]} × {grid.shape[1]}"

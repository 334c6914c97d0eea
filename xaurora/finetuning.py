"""``finetune``: from a Dataset to everything that the training loop needs."""

from __future__ import annotations

import copy
import datetime
import functools
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from aurora import Aurora

from xaurora import (
    adapters,
    checking,
    checkpoints,
    config,
    conventions,
    curves,
    heads,
    loading,
    normalisation,
    parallel,
    requirements,
    samples,
    storage,
    strategies,
    targets,
    training,
    tuned,
)
from xaurora import batch as batches
from xaurora import grid as grids
from xaurora import model as models
from xaurora import validation as validation_
from xaurora.batch import STEP
from xaurora.conventions import Fields
from xaurora.errors import OptionError, SplitError
from xaurora.progress import say, watched
from xaurora.tiny import build_tiny
from xaurora.tuned import TunedAurora
from xaurora.variables import Variable

logger = logging.getLogger("xaurora")


def finetune(
    ds: xr.Dataset,
    target: str | Sequence[str] = "tp",
    *,
    truth: xr.Dataset | None = None,
    model: Any = "small",
    weights: str | Path | None = None,
    strategy: Any = "frozen",
    head: Any = "auto",
    as_input: bool = False,
    train: Any = None,
    validation: Any = None,
    halo: int = 0,
    out: str | Path | None = None,
    options: config.TrainingOptions | None = None,
) -> TunedAurora:
    """Fine-tune an Aurora so that it also predicts ``target``. See :meth:`xaurora.accessor.AuroraAccessor.finetune`."""
    options = parallel.settle(options or config.TrainingOptions())
    how = config.strategy_of(strategy)
    names = targets.names_of(target)
    every = targets.ALL in names
    names = [n for n in names if n != targets.ALL]
    _check_all(every, names, how, options)
    config.check_halo(halo)
    _check_heads(head, names)
    if options.resume and out is None:
        raise OptionError(
            "resume=True goes on with a run, and out= does not say which.", fix="out='runs/tp', resume=True"
        )
    folder = _out_folder(out, re.sub(r"[^\w-]", "_", "-".join(names) or targets.ALL))
    run = checkpoints.check(folder, resume=options.resume)
    fabric = parallel.launch(options)
    folder = Path(fabric.broadcast(str(folder)))  # its name may hold the time of day
    if fabric.global_rank:
        options = replace(options, progress=False)

    found = targets.recognise(ds, () if truth is not None else names)
    found.raise_first()
    fields = conventions.standardise(ds, found)
    learnt = targets.resolve(fields, names, truth)
    targets.check_kinds(learnt)
    targets.refuse_doubled(learnt)
    chosen_heads = {t.name: _head_options(head, name, t.variable) for name, t in zip(names, learnt, strict=True)}
    if isinstance(model, str | Path) and model not in requirements.MODELS and str(model) and Path(model).is_dir():
        model, weights = tuned.load(model, weights=weights), None
    name, base, adapter = _resolve_model(model, how)
    merged = _has_adapter(model) and adapter is None
    if base is not None and weights is not None:
        raise OptionError(
            "weights= belongs to a named model, and one with weights was given.",
            fix="model='small', weights='file.ckpt'",
        )
    needs = requirements.needs_of(name, fields, [t.name for t in learnt]) if base is None else _needs_of(model, base)
    targets.refuse_own([t.name for t in learnt if t.name in needs.surface])
    cut, crop = requirements.fit(fields, needs)
    checking.refuse_implausible(fields)
    if truth is not None:
        for t in learnt:
            checking.refuse_implausible_target(t)
    if crop.left_out:
        logger.info("Left out, because patches of %d do not reach there: %s.", needs.patch_size, crop.left_out)
    learnt = [replace(t, values=t.values.isel(latitude=crop.rows, longitude=crop.columns)) for t in learnt]
    grid = cut.layout.grid
    trim = grids.trim(grid, halo)

    whole = functools.reduce(np.intersect1d, [t.times for t in learnt]) if learnt else cut.times
    fed = as_input or (isinstance(model, TunedAurora) and bool(model.model.inputs))
    if fed:
        targets.refuse_as_input([t.name for t in learnt])
    chosen = samples.index(cut.times, whole, also_input=fed, steps=options.rollout_steps)
    if fed:
        chosen = samples.without_holes(chosen, [t.values for t in learnt])
    logger.info("%s", chosen)
    parts = samples.split(chosen, train, validation, steps=options.rollout_steps, also_input=fed)
    # Once, for all processes.
    looked = _look(learnt, parts, grid, trim, options) if fabric.global_rank == 0 else None
    chosen_train, chosen_validation, seen = fabric.broadcast(looked)
    for t in learnt:
        if seen[t.name].clipped:
            logger.info(
                "%d negative amounts of %s were set to zero, %.3g mm in all.",
                seen[t.name].clipped,
                t.item.source,
                seen[t.name].clipped_amount * 1e3,
            )

    forms = {t.name: _input_form(t, seen[t.name]) for t in learnt} if as_input else {}
    if isinstance(model, TunedAurora) and model.model.inputs:
        # What the encoder has learnt to read keeps the form it was learnt in.
        forms = {**forms, **model.model.inputs} if as_input else model.model.inputs
        if missing := [n for n in forms if n not in {t.name for t in learnt}]:
            raise OptionError(
                f"the model was tuned with {missing} among its inputs, and goes on with them alone.",
                fix=f"target={list(forms)!r}, as_input=True",
            )
    if forms:
        cut = targets.with_inputs(cut, learnt, forms)
    scratch = name == "tiny" and base is None
    _refuse_missing(cut, np.union1d(chosen_train, chosen_validation), after=not forms)
    if base is None:
        base = _make_base(name, weights, needs, cut, chosen_train, options, fabric, without=tuple(forms))
    original_hash = models.state_hash(base)
    if isinstance(model, TunedAurora) and not _holds_its_base(model):
        original_hash = str(model.config["base"]["hash"])  # of the published base, without the embeddings of inputs
    levels, width = models.latent_size(base)
    heads_ = {
        t.name: _make_head(
            model, t.name, chosen_heads[t.name], levels, width, needs.patch_size, seen[t.name], options.seed
        )
        for t in learnt
    }
    if adapter is None and how.name in ("lora", "peft"):
        adapter = adapters.install(base, how, options.seed)
    module = models.AuroraWithHead(base, heads.HeadSet(heads_), forms, adapter)
    moves_base = how.name != "frozen"
    scores_base = moves_base and options.base_loss > 0
    groups = strategies.apply(
        module,
        how,
        trains_base_outputs=scores_base,
        learning_rate=options.learning_rate,
        head_learning_rate=options.head_learning_rate,
        rollout_steps=options.rollout_steps,
        push_forward=options.push_forward,
        replay=options.replay is not None,
        scratch=scratch,
    )
    moves_weights = how.name in ("decoder", "full")

    meta: dict[str, Any] = {
        "targets": {t.name: _describe(t, heads_[t.name], seen[t.name], truth is not None) for t in learnt},
        "inputs": {n: asdict(form) for n, form in forms.items()},
        "all": every,
        "strategy": how.name,
        "strategy_options": asdict(how),
        "base": tuned.describe_base(
            base,
            name,
            saved=moves_weights or name == "tiny" or _holds_its_base(model) or merged,
            original_hash=original_hash,
        ),
        "halo": halo,
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
            "options": {k: v for k, v in asdict(replace(options, logger=None)).items() if k != "logger"},
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
    if note := _seen_before(name, model, chosen_validation):
        logger.warning("%s", note)
        meta["training"]["note"] = note
    same = " (the same ones)" if parts.same else ""
    if chosen.skipped:
        say(str(chosen), shown=options.progress)
    say(
        f"{len(chosen_train)} training samples, {len(chosen_validation)} to validate{same}; to {folder}",
        shown=options.progress,
    )
    say(strategies.render(strategies.table(module)), shown=options.progress)
    result = TunedAurora(module, needs, meta)
    settings = checkpoints.settings_of(
        asdict(replace(options, logger=None)),
        target=[*([targets.ALL] if every else []), *(t.name for t in learnt)],
        model=name,
        base=original_hash,
        strategy=asdict(how),
        head={n: asdict(h.options) for n, h in heads_.items()},
        inputs=sorted(forms),
        halo=halo,
        region=meta["training"]["region"],
        train=samples.describe(chosen_train),
        validation=samples.describe(chosen_validation),
    )
    if run is not None:
        checkpoints.compare(folder, run["settings"], settings)
    if run is not None and run.get("finished"):
        say(f"The run in {folder} has finished; nothing is left to do.", shown=options.progress)
        result = _finished(result, folder)
    else:
        if fabric.global_rank == 0:
            _begin(folder, run)
        fabric.barrier()
        task = validation_.Task(
            {t.name: ("_mm", 1e3) if t.is_rain else ("", 1.0) for t in learnt},
            scores_base,
            every,
            options.rollout_steps,
        )
        loader = loading.Loader(cut, {t.name: t.values for t in learnt}, with_state=scores_base)
        work = training.Work(
            result, loader, groups, chosen_train, chosen_validation, grid, trim, task, moves_base, settings
        )
        training.fit(fabric, work, options, folder, run)
        if fabric.global_rank == 0:
            _draw_history(result, folder)
    tuned.remember(result)
    return result


def _look(
    learnt: list[targets.Target],
    parts: samples.Split,
    grid: grids.Grid,
    trim: tuple[slice, slice],
    options: config.TrainingOptions,
) -> tuple[np.ndarray, np.ndarray, dict[str, normalisation.Distribution]]:
    """Init times with truth, and the climatology of the targets in training. Reads the targets once."""
    if not learnt:
        return parts.train, parts.validation, {}
    train, seen = _drop_without_truth(learnt, parts.train, grid, trim, options)
    validation, _ = _drop_without_truth(learnt, parts.validation, grid, trim, replace(options, progress=False))
    return train, validation, seen


def _check_all(every: bool, names: list[str], how: config.StrategyOptions, options: config.TrainingOptions) -> None:
    if not every:
        return
    if how.name == "frozen":
        raise OptionError(
            "target='all' trains Aurora's own variables, and strategy='frozen' leaves all that makes them as it is.",
            fix="strategy='full' or 'lora'" + (f", or target={names!r}" if names else ", or target='tp'"),
        )
    if not options.base_loss:
        raise OptionError(
            "target='all' trains Aurora's own variables, and base_loss=0 turns their loss off.", fix="base_loss=1.0"
        )


def _begin(folder: Path, run: dict[str, Any] | None) -> None:
    """Before the first step: what an earlier, finished run left is out of date."""
    if run is None:
        shutil.rmtree(folder / checkpoints.FOLDER, ignore_errors=True)
        (folder / "learning.png").unlink(missing_ok=True)


def _finished(result: TunedAurora, folder: Path) -> TunedAurora:
    """A run that has ended, as it ended."""
    for part in ("best", "last"):
        storage.recover(folder / part)
    best = folder / "best"
    saved = tuned.read_config(best)
    result.config = {k: v for k, v in saved.items() if k in result.config or k == "scores"}
    result.take(best)
    result.history = tuned.read_history(best)
    result.path = best
    result.model.eval().requires_grad_(True)
    return result


def _draw_history(result: TunedAurora, folder: Path) -> None:
    """``learning.png`` beside the artefact."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    curves.learning_curves(result.history, figure=figure)
    storage.replace_file(folder / "learning.png", lambda path: figure.savefig(path, dpi=110, format="png"))


PRETRAINED_UNTIL = np.datetime64("2021-01-01")
"""Aurora was pretrained on ERA5 of 1979 to 2020 (Bodnar et al. 2025, doi:10.1038/s41586-025-09005-y, supplement C)."""


def _seen_before(name: str, model: Any, validation: np.ndarray) -> str:
    """A note where a pretrained base has seen the years that validate."""
    if name not in ("small", "base", "finetuned") or not (validation < PRETRAINED_UNTIL).any():
        return ""
    return (
        f"{int((validation < PRETRAINED_UNTIL).sum())} of {len(validation)} validation samples lie before 2021: the pretrained Aurora has seen those years, "
        "so that its own variables score too well there, and rain may. Later years judge fairly: train=('2016', '2019'), validation='2021'."
    )


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


def _check_heads(head: Any, names: list[str]) -> None:
    if isinstance(head, dict) and (unknown := [n for n in head if n not in names]):
        raise OptionError(
            f"head= names {unknown}, which are not among the targets {names}.", fix=f"head={{{names[0]!r}: 'auto'}}"
        )
    for one in head.values() if isinstance(head, dict) else [head]:
        heads.options_for(one, "normal")


def _head_options(head: Any, name: str, variable: Variable) -> heads.HeadOptions:
    """The head of one target; ``"auto"`` goes by the variable's kind."""
    one = head.get(name, "auto") if isinstance(head, dict) else head
    kind = heads.AUTO_RAIN if variable.accumulated else "bounded_normal" if variable.bounds else "normal"
    options = heads.options_for(one, kind)
    if (options.family in heads.RAIN) != variable.accumulated:
        raise OptionError(
            f"the head {options.family!r} is for {'amounts of precipitation' if options.family in heads.RAIN else 'variables that are no amounts'}, "
            f"and {name!r} is {variable.long_name.lower()}.",
            fix=f"head={{{name!r}: {kind!r}}}",
        )
    if options.family == "bounded_normal" and options.bounds is None:
        if variable.bounds is None:
            raise OptionError(
                f"the range of {name!r} is not known.",
                fix="head=HeadOptions(family='bounded_normal', bounds=(lower, upper))",
            )
        return replace(options, bounds=variable.bounds)
    return options


def _input_form(target: targets.Target, seen: normalisation.Distribution) -> targets.InputForm:
    if not target.is_rain:
        return targets.InputForm(None, seen.moments.mean, max(seen.moments.std, 1e-12))
    epsilon = min(max(seen.moments.mean, heads.EPSILON_RANGE[0]), heads.EPSILON_RANGE[1])
    values, shares = seen.binned()
    z = np.log1p(values / epsilon)
    return targets.InputForm(epsilon, 0.0, max(float(np.sqrt(shares @ (z - shares @ z) ** 2)), 1e-6))


def _describe(target: targets.Target, head: Any, seen: normalisation.Distribution, from_truth: bool) -> dict[str, Any]:
    m = seen.moments
    statistics: dict[str, Any] = {"mean": m.mean, "std": m.std, "min": m.low, "max": m.high, "count": m.count}
    if target.is_rain:
        statistics |= {
            "wet_fraction": seen.wet_fraction,
            "wet_log_mean": seen.log_wet.mean,
            "wet_log_std": seen.log_wet.std,
            "clipped": seen.clipped,
        }
    tails = {f"{q:g}": float(seen.histogram.quantile(q)) for q in (0.5, 0.9, 0.99, 0.999, 0.9999)}
    return {
        "source": target.item.source,
        "long_name": target.variable.long_name,
        "units": target.variable.units,
        "rain": target.is_rain,
        "from_truth": from_truth,
        "head": head.config(),
        "statistics": {**statistics, "quantiles": tails},
    }


def _resolve_model(model: Any, how: config.StrategyOptions) -> tuple[str, Aurora | None, adapters.Adapter | None]:
    """A name, a copy of the base where an object was given (what the caller holds is not trained under their hands), and its adapter."""
    if isinstance(model, TunedAurora):
        copied = copy.deepcopy(model.model)
        adapter = copied.adapter
        if adapter is not None and how != adapter.options and how.name != "frozen":
            adapters.merge(copied.base, adapter)  # another strategy goes on from what it made of the weights
            adapter = None
        return str(model.config["base"]["name"]), copied.base, adapter
    if isinstance(model, Aurora):
        return "given", copy.deepcopy(model), None
    if isinstance(model, str) and model in requirements.MODELS:
        return model, None, None
    raise requirements.unknown_model(model)


def _has_adapter(model: Any) -> bool:
    return isinstance(model, TunedAurora) and model.model.adapter is not None


def _holds_its_base(model: Any) -> bool:
    """Whether the base is that of an earlier tuning, which stands in no published checkpoint."""
    return isinstance(model, TunedAurora) and bool(model.config["base"]["saved"])


def _needs_of(model: Any, base: Aurora) -> requirements.Needs:
    return model.needs if isinstance(model, TunedAurora) else models.needs_of_instance(base)


_SCANNED = 4 * 1024**3  # bytes of frames


def _refuse_missing(cut: Fields, init_times: np.ndarray, *, after: bool = True) -> None:
    """Find NaN before anything is written: in all frames up to 4 GiB, else in as many of them evenly spaced."""
    parts = [init_times - STEP, init_times] + ([init_times + STEP] if after else [])
    frames = np.unique(np.concatenate(parts))
    rows, columns = cut.layout.grid.shape
    size = 4 * rows * columns * (len(cut.surface) + len(cut.atmos) * len(cut.levels))
    count = min(len(frames), max(_SCANNED // size, 20))
    for t in frames[np.unique(np.linspace(0, len(frames) - 1, count).astype(int))]:
        batches.frame(cut, t)
    batches.statics(cut)


def _make_base(
    name: str,
    weights: Any,
    needs: requirements.Needs,
    cut: Fields,
    train: np.ndarray,
    options: config.TrainingOptions,
    fabric: Any,
    without: tuple[str, ...] = (),
) -> Aurora:
    if name != "tiny":
        return models.load_pretrained(name, weights)
    if weights is not None:
        raise OptionError(
            "weights= belongs to a pretrained model, and 'tiny' is made here.", fix="model='small', weights='file.ckpt'"
        )
    statistics = None
    if fabric.global_rank == 0:  # once, for all processes
        frames = np.unique(np.concatenate([train + STEP * k for k in range(-1, options.rollout_steps + 1)]))
        plain = replace(cut, surface=cut.surface.drop_vars(list(without)))
        statistics = normalisation.statistics_of(plain, list(frames), progress=options.progress)
    surface, atmos = fabric.broadcast(statistics)
    return build_tiny(needs, surface, atmos, options.seed)


def _make_head(
    model: Any,
    name: str,
    options: heads.HeadOptions,
    levels: int,
    width: int,
    patch_size: int,
    seen: normalisation.Distribution,
    seed: int,
) -> heads.DistributionHead:
    if isinstance(model, TunedAurora) and name in model.targets:
        before = model.heads[name]
        if before.options == (replace(options, epsilon=before.options.epsilon) if options.epsilon is None else options):
            return copy.deepcopy(before)  # go on with what was learnt
    options = options.for_climate(seen.moments.mean)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        head = heads.build(options, levels, width, patch_size)
    values, shares = seen.binned()
    if options.bounds is not None:
        values = values.clip(*options.bounds)
    head.initialise(heads.Climatology(values, shares))
    return head


def _drop_without_truth(
    learnt: list[targets.Target],
    init_times: np.ndarray,
    grid: grids.Grid,
    trim: tuple[slice, slice],
    options: config.TrainingOptions,
) -> tuple[np.ndarray, dict[str, normalisation.Distribution]]:
    """Init times whose targets have values inside the halo, and the climatology of those targets by area. Reads them once."""
    seen = {t.name: normalisation.Distribution(amounts=t.is_rain) for t in learnt}
    position = {t.name: samples.positions(t.values) for t in learnt}
    area = np.broadcast_to(grids.latitude_weights(grid.latitude)[:, None], grid.shape)[trim]
    whole: dict[int, bool] = {}  # by valid time: windows of a rollout overlap, and each time counts once
    kept = []
    for time in watched(init_times, "target", shown=options.progress):
        fine = True
        for valid in (time + STEP * k for k in range(1, options.rollout_steps + 1)):
            key = int(valid.astype("datetime64[ns]").astype(np.int64))
            if key not in whole:
                found = {t.name: t.values.isel(time=position[t.name][key]).values[trim] for t in learnt}
                there = {name: np.isfinite(values) for name, values in found.items()}
                whole[key] = all(mask.any() for mask in there.values())
                if whole[key]:
                    for name, values in found.items():
                        seen[name].add(values[there[name]], area[there[name]])
            fine = fine and whole[key]
        if fine:
            kept.append(time)
    if not kept:
        raise SplitError(
            "the target has no value in any sample of this part.",
            fix=f"check the target: ds['{learnt[0].item.source}'].isnull().mean(('latitude', 'longitude'))",
        )
    for t in learnt:
        if t.is_rain and not seen[t.name].log_wet.count:
            raise SplitError(
                "the target is dry everywhere in this part, so that nothing can be learnt or scored.",
                fix="take a longer period or a wetter region",
            )
        if not seen[t.name].moments.high > seen[t.name].moments.low:
            raise SplitError(
                f"the target '{t.item.source}' is the same everywhere and always in this part ({seen[t.name].moments.high:g}).",
                fix="take another target, a longer period or a larger region",
            )
    return np.array(kept, dtype="datetime64[ns]"), seen


def _describe_region(grid: grids.Grid) -> str:
    if grid.is_global:
        return f"global, {grid.shape[0]} × {grid.shape[1]}"
    return f"{grid.latitude[-1]:g} to {grid.latitude[0]:g}°N, {grid.longitude[0]:g} to {grid.longitude[-1]:g}°E, {grid.shape[0]} × {grid.shape[1]}"

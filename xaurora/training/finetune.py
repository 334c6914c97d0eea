"""``finetune``: from a Dataset to everything that the training loop needs."""

from __future__ import annotations

import copy
import datetime
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from aurora import Aurora

from xaurora.errors import MemoryTooSmallError, OptionError, SaveError, SplitError
from xaurora.fields import statistics as normalisation
from xaurora.fields import targets
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import lattice as grids
from xaurora.model import adapters, execution, hashing, heads, strategies, tuned, weights
from xaurora.model import aurora as models
from xaurora.model import batch as batches
from xaurora.model import loader as loading
from xaurora.model.batch import STEP
from xaurora.model.tiny import build_tiny
from xaurora.model.tuned import TunedAurora
from xaurora.training import checkpoints, curves, latents, parallel, samples
from xaurora.training import estimate as estimation
from xaurora.training import loop as training
from xaurora.training import options as config
from xaurora.training import plan as planning
from xaurora.training import validation as validation_
from xaurora.training.plan import Plan
from xaurora.utils import storage
from xaurora.utils.progress import say, watched

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
    region: Any = None,
    out: str | Path | None = None,
    options: config.TrainingOptions | None = None,
) -> TunedAurora:
    """Fine-tune an Aurora so that it also predicts ``target``. See
    :meth:`xaurora.accessor.AuroraAccessor.finetune`.
    """
    options = parallel.settle(options or config.TrainingOptions())
    how = config.strategy_of(strategy)
    names = planning.check_arguments(
        target, how, head, halo, options, truth=truth, as_input=as_input
    )
    if options.resume and out is None:
        raise OptionError(
            "resume=True goes on with a run, and out= does not say which.",
            fix="out='runs/tp', resume=True",
        )
    folder = _out_folder(out, re.sub(r"[^\w-]", "_", "-".join(names)))
    resume = options.resume
    fabric = parallel.launch(options)
    folder = Path(fabric.broadcast(str(folder)))  # its name may hold the time of day
    run = parallel.first(fabric, lambda: checkpoints.check(folder, resume=resume))
    if run is not None and not run.get("finished"):
        checkpoints.refuse_unseen(folder)
    if fabric.global_rank:
        options = replace(options, progress=False)
    plan = planning.plan(
        ds,
        target,
        truth=truth,
        model=model,
        weights=weights,
        how=how,
        head=head,
        as_input=as_input,
        train=train,
        validation=validation,
        halo=halo,
        region=region,
        options=options,
        named=isinstance(strategy, str),
    )
    logger.info("%s", plan.chosen)
    if plan.crop.left_out:
        logger.info(
            "Left out, because patches of %d do not reach there: %s.",
            plan.needs.patch_size,
            plan.crop.left_out,
        )
    if fabric.global_rank == 0:
        common = {
            "truth": truth,
            "weights": weights,
            "head": head,
            "as_input": as_input,
            "train": train,
        }
        common |= {"validation": validation, "halo": halo, "region": region, "options": options}
        if warning := estimation.warn_if_too_large(ds, target, plan, common):
            logger.warning("%s", warning)
    # Once, for all processes.
    looked = parallel.first(fabric, lambda: _look(plan))
    made = _build(plan, looked, fabric)
    meta = _describe_run(plan, looked, made, truth is not None)
    _warn(plan, looked, meta)
    kept = planning.kept_latents(plan)
    settings = _settings(plan, looked, made, meta, kept)
    if run is not None:
        checkpoints.compare(folder, run["settings"], settings)
    if plan.chosen.skipped:
        say(str(plan.chosen), shown=options.progress)
    same = " (the same ones)" if plan.parts.same else ""
    say(
        f"{len(looked.train)} training samples, {len(looked.validation)} to validate{same}; to"
        f" {folder}",
        shown=options.progress,
    )
    say(strategies.render(strategies.table(made.module)), shown=options.progress)
    result = TunedAurora(made.module, plan.needs, meta)
    if run is not None and run.get("finished"):
        say(f"The run in {folder} has finished; nothing is left to do.", shown=options.progress)
        result = _finished(result, folder)
    else:
        parallel.first(fabric, lambda: _begin(folder, run))
        units = {t.name: ("_mm", 1e3) if t.is_rain else ("", 1.0) for t in plan.learnt}
        loader = loading.Loader(
            made.cut,
            {t.name: t.values for t in plan.learnt},
            scored=plan.cut if plan.scores_base else None,
            pin=fabric.device.type == "cuda",
        )

        def scan(init_times: np.ndarray) -> None:
            _refuse_missing(plan, loader, init_times, after=not made.forms)

        if kept is not None:
            loader.latents = _latents(plan, looked, made, kept, loader, fabric, folder, scan)
        else:
            scan(np.union1d(looked.train, looked.validation))
        work = training.Work(
            result=result,
            loader=loader,
            groups=made.groups,
            train=looked.train,
            validation=looked.validation,
            grid=plan.grid,
            trim=plan.trim,
            task=validation_.Task(units, plan.scores_base, plan.every, options.rollout_steps),
            moves_base=plan.moves_base,
            target_grid=plan.target_grid,
            target_trim=plan.target_trim,
            settings=settings,
        )
        try:
            training.fit(fabric, work, options, folder, run)
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryTooSmallError(
                f"the GPU has too little memory for this training ({str(error).splitlines()[0]}).",
                fix=(
                    "print(ds.aurora.estimate(...)) with the same arguments says what to change;"
                    " activation_checkpointing=True first"
                ),
            ) from error
        finally:
            result.model.window = made.module.window = None
        if fabric.global_rank == 0:
            _draw_history(result, folder)
    tuned.remember(result)
    return result


@dataclass(frozen=True)
class _Looked:
    """Init times with truth, and the climatology of the targets in training."""

    train: np.ndarray
    validation: np.ndarray
    seen: dict[str, normalisation.Distribution]


@dataclass(frozen=True)
class _Made:
    """The model, and what trains of it."""

    module: models.AuroraWithHead
    cut: Fields
    forms: dict[str, targets.InputForm]
    original_hash: str
    groups: list[dict[str, Any]]


def _build(plan: Plan, looked: _Looked, fabric: Any) -> _Made:
    """The model with its heads and its adapter, frozen where the strategy says so."""
    model, options, how = plan.model, plan.options, plan.how
    forms = (
        {t.name: _input_form(t, looked.seen[t.name]) for t in plan.learnt} if plan.as_input else {}
    )
    if isinstance(model, TunedAurora) and model.model.inputs:
        # What the encoder has learnt to read keeps the form it was learnt in.
        forms = {**forms, **model.model.inputs} if plan.as_input else dict(model.model.inputs)
        if missing := [n for n in forms if n not in {t.name for t in plan.learnt}]:
            raise OptionError(
                f"the model was tuned with {missing} among its inputs, and goes on with them"
                " alone.",
                fix=f"target={list(forms)!r}, as_input=True",
            )
    cut = targets.with_inputs(plan.cut, plan.learnt, forms) if forms else plan.cut
    base = plan.base
    if base is None:
        base = _make_base(plan, cut, looked.train, fabric, without=tuple(forms))
    original_hash = hashing.state_hash(base)
    if isinstance(model, TunedAurora) and not planning.holds_its_base(model):
        original_hash = str(
            model.config["base"]["hash"]
        )  # of the published base, without the embeddings of inputs
    levels, width = models.latent_size(base)
    patch, seed = plan.needs.patch_size, options.seed
    heads_ = {
        t.name: _make_head(
            model, t.name, plan.heads[t.name], levels, width, patch, looked.seen[t.name], seed
        )
        for t in plan.learnt
    }
    adapter = plan.adapter
    models.extend(base, forms)  # before the adapter, which may wrap what this adds to
    if adapter is None and how.name in ("lora", "peft"):
        adapter = adapters.install(base, how, seed)
    module = models.AuroraWithHead(base, heads.HeadSet(heads_), forms, adapter)
    module.window = plan.window
    return _Made(module, cut, forms, original_hash, plan.groups(module))


def _describe_run(plan: Plan, looked: _Looked, made: _Made, from_truth: bool) -> dict[str, Any]:
    """What the artefact says of itself."""
    options, module = plan.options, made.module
    heads_: Any = module.head
    saved = plan.how.name in ("decoder", "full") or plan.name == "tiny" or plan.merged
    return {
        "targets": {
            t.name: _describe(t, heads_[t.name], looked.seen[t.name], from_truth)
            for t in plan.learnt
        },
        "inputs": {n: asdict(form) for n, form in made.forms.items()},
        "all": plan.every,
        "strategy": plan.how.name,
        "strategy_options": asdict(plan.how),
        "base": tuned.describe_base(
            module.base,
            plan.name,
            saved=saved or planning.holds_its_base(plan.model),
            original_hash=made.original_hash,
            adapter=module.adapter,
        ),
        "halo": plan.halo,
        "training": {
            "samples": len(looked.train),
            "validation_samples": len(looked.validation),
            "validated_on_training_samples": plan.parts.same,
            "start": str((looked.train[0] - STEP).astype("datetime64[m]")),
            "end": str((looked.train[-1] + STEP * options.rollout_steps).astype("datetime64[m]")),
            "region": planning.describe_region(plan.target_grid),
            "grid_spacing": list(plan.grid.spacing),
            "batch_size": options.batch_size,
            "steps": options.total_steps(len(looked.train)),
            "seed": options.seed,
            "options": {
                k: v
                for k, v in asdict(replace(options, logger=None, latents="auto")).items()
                if k not in ("logger", "latents")
            },
            "skipped": plan.chosen.skipped,
        },
        "parameters": [asdict(part) for part in strategies.table(module)],
        "versions": tuned.versions(),
        "made": tuned.now(),
    }


def _settings(
    plan: Plan,
    looked: _Looked,
    made: _Made,
    meta: dict[str, Any],
    kept: config.LatentOptions | None,
) -> dict[str, Any]:
    """What a resumed run must have in common with the one that stopped."""
    heads_: Any = made.module.head
    return checkpoints.settings_of(
        asdict(replace(plan.options, logger=None)),
        target=[*([targets.ALL] if plan.every else []), *(t.name for t in plan.learnt)],
        model=plan.name,
        base=made.original_hash,
        start=hashing.state_hash(made.module.base),
        targets={
            n: [d.moments.count, d.moments.mean, d.moments.std] for n, d in looked.seen.items()
        },
        strategy=asdict(plan.how),
        head={n: asdict(h.options) for n, h in heads_.items()},
        inputs=sorted(made.forms),
        halo=plan.halo,
        region=meta["training"]["region"],
        kept_latents=kept.dtype if kept is not None else None,
        train=samples.describe(looked.train),
        validation=samples.describe(looked.validation),
    )


def _warn(plan: Plan, looked: _Looked, meta: dict[str, Any]) -> None:
    """Say what may make the result worse than it looks."""
    if not plan.grid.is_global and not plan.moves_base and not plan.name.startswith("tiny"):
        logger.warning(
            "The data are regional and the backbone stays frozen: a pretrained Aurora was made for"
            " the globe, and sees here what it never saw. Better give it the globe, or"
            " strategy='full'; docs/regions.md says more."
        )
    if note := _seen_before(plan.name, plan.model, looked.validation):
        logger.warning("%s", note)
        meta["training"]["note"] = note
    total = plan.options.total_steps(len(looked.train))
    if plan.options.warmup is not None and plan.options.warmup >= total:
        logger.warning(
            "warmup=%d, and the run has %d steps: its rate will not get to its peak.",
            plan.options.warmup,
            total,
        )
    for t in plan.learnt:
        seen = looked.seen[t.name]
        if seen.clipped:
            logger.info(
                "%d negative amounts of %s were set to zero, %.3g mm in all.",
                seen.clipped,
                t.item.source,
                seen.clipped_amount * 1e3,
            )


def _look(plan: Plan) -> _Looked:
    """Read the targets once: which init times have truth, and what they are like in training."""
    if not plan.learnt:
        return _Looked(plan.parts.train, plan.parts.validation, {})
    train, seen = _drop_without_truth(plan, plan.parts.train, progress=plan.options.progress)
    validation, _ = _drop_without_truth(plan, plan.parts.validation, progress=False)
    return _Looked(train, validation, seen)


def _latents(
    plan: Plan,
    looked: _Looked,
    made: _Made,
    kept: config.LatentOptions,
    loader: loading.Loader,
    fabric: Any,
    folder: Path,
    scan: Callable[[np.ndarray], None],
) -> latents.Latents:
    """What is read instead of running the backbone in every step."""
    module, options, cut = made.module, plan.options, made.cut
    surface = all(h.options.latents == "surface" for h in _heads_of(module))
    execution.set_precision(module.base, options.precision, fabric.device)
    shape = latents.shape_of(module, plan.grid.shape, plan.needs.patch_size, surface=surface)
    window = plan.window
    static = {
        n: hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest()[:16]
        for n, v in batches.statics(cut).items()
    }
    versions = tuned.versions()
    base = module.base
    description = {
        "weights": hashing.state_hash(base),
        "configuration": hashing.configuration_hash(base),
        "grid": [
            *plan.grid.shape,
            float(plan.grid.latitude[0]),
            float(plan.grid.true_longitude[0]),
            *plan.grid.spacing,
        ],
        "variables": [*map(str, cut.surface), *map(str, cut.atmos)],
        "levels": list(cut.levels),
        "static fields": static,
        "region": (
            "all" if window is None else [window.patch_rows.tolist(), window.patch_columns.tolist()]
        ),
        "precision": (
            str(base.autocast_dtype).removeprefix("torch.") if base.autocast_backbone else "float32"
        ),
        "versions": {n: versions.get(n, "") for n in ("xaurora", "microsoft-aurora", "torch")},
    }
    wanted = np.union1d(looked.train, looked.validation)
    in_memory = all(
        v._in_memory for part in (cut.surface, cut.atmos) for v in part.variables.values()
    )
    store = None
    try:
        store = latents.open_store(
            folder.parent / "latents",
            kept,
            shape,
            description,
            wanted,
            lambda t: loader.batch([t]),
            scan,
            checked=len(wanted) if in_memory else latents.CHECKED,
        )
    except SaveError as error:
        logger.warning("Latents are kept in memory alone: %s", error.message)
    if store is not None:
        there = sum(store.has(p) for t in wanted if (p := latents.slot(t)) is not None)
        say(
            f"Latents: {there} of {len(wanted)} samples are stored in {store.path},"
            f" {store.sample_bytes / 1e6:.3g} MB each; the others are added when they are first"
            " seen.",
            shown=options.progress,
        )
    return latents.Latents(store, kept.dtype, shape[0])


def _heads_of(module: models.AuroraWithHead) -> list[heads.DistributionHead]:
    """The heads of a module."""
    found: Any = module.head
    return [head for _, head in found.items()]


def _begin(folder: Path, run: dict[str, Any] | None) -> None:
    """Before the first step: what an earlier, finished run left is out of date."""
    if run is None:
        if (folder / "best").is_dir():
            logger.info("'%s' holds a run that has finished; a new one takes its place.", folder)
        checkpoints.discard(folder)
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
    shutil.rmtree(folder / "replay", ignore_errors=True)
    return result


def _draw_history(result: TunedAurora, folder: Path) -> None:
    """``learning.png`` beside the artefact."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    curves.learning_curves(result.history, figure=figure)
    storage.replace_file(
        folder / "learning.png", lambda path: figure.savefig(path, dpi=110, format="png")
    )


PRETRAINED_UNTIL = {"small": 2021, "base": 2021, "finetuned": 2022}
"""First year that was not trained on: ERA5 to 2020, and for the fine-tuned one IFS HRES to 2021
(Bodnar et al. 2025, doi:10.1038/s41586-025-09005-y, supplements C and D)."""


def _seen_before(name: str, model: Any, validation: np.ndarray) -> str:
    """A note where the base has seen what validates: in pretraining, or when it was tuned before."""
    if isinstance(model, TunedAurora):
        start, end = (np.datetime64(model.config["training"][k]) for k in ("start", "end"))
        if count := int(((validation >= start) & (validation <= end)).sum()):
            return (
                f"{count} of {len(validation)} validation samples lie in the time that the model"
                f" was tuned on before ({start} to {end}): it will score too well there. Validate"
                " with other years."
            )
    if name not in PRETRAINED_UNTIL:
        return ""
    first = PRETRAINED_UNTIL[name]
    count = int((validation < np.datetime64(f"{first}-01-01")).sum())
    if not count:
        return ""
    return (
        f"{count} of {len(validation)} validation samples lie before {first}: the pretrained Aurora"
        " has seen those years, so that its own variables score too well there, and rain may."
        f" Later years judge fairly: validation='{first}'."
    )


# --- before training ------------------------------------------------------------------------------


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


def _input_form(target: targets.Target, seen: normalisation.Distribution) -> targets.InputForm:
    if not target.is_rain:
        return targets.InputForm(None, seen.moments.mean, max(seen.moments.std, 1e-12))
    epsilon = min(max(seen.moments.mean, heads.EPSILON_RANGE[0]), heads.EPSILON_RANGE[1])
    values, shares = seen.binned()
    z = np.log1p(values / epsilon)
    return targets.InputForm(
        epsilon, 0.0, max(float(np.sqrt(shares @ (z - shares @ z) ** 2)), 1e-6)
    )


def _describe(
    target: targets.Target, head: Any, seen: normalisation.Distribution, from_truth: bool
) -> dict[str, Any]:
    m = seen.moments
    statistics: dict[str, Any] = {
        "mean": m.mean,
        "std": m.std,
        "min": m.low,
        "max": m.high,
        "count": m.count,
    }
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


_SCANNED = 4 * 1024**3  # bytes of frames


def _refuse_missing(
    plan: Plan, loader: loading.Loader, init_times: np.ndarray, *, after: bool = True
) -> None:
    """Find NaN before anything is written: in all frames up to 4 GiB, else in as many of them
    evenly spaced. What is read stays in the loader while it fits."""
    if not len(init_times):
        return
    steps = plan.options.rollout_steps
    after = after and (plan.scores_base or steps > 1)  # else no later state is ever read
    parts = [init_times - STEP, init_times] + (
        [init_times + STEP * k for k in range(1, steps + 1)] if after else []
    )
    frames = np.unique(np.concatenate(parts))
    count = min(len(frames), max(_SCANNED // loader.frame_bytes, 20))
    chosen = list(frames[np.unique(np.linspace(0, len(frames) - 1, count).astype(int))])
    room = int(min(loading.AHEAD, loader.budget / 2 // loader.frame_bytes))
    reading = loading.ahead(chosen, loader.frame, plan.options.workers, room)
    for _ in watched(reading, "look", unit="time", shown=plan.options.progress, total=len(chosen)):
        pass


def _make_base(
    plan: Plan, cut: Fields, train: np.ndarray, fabric: Any, without: tuple[str, ...] = ()
) -> Aurora:
    options = plan.options
    if plan.name != "tiny":
        return weights.load_pretrained(plan.name, plan.weights)

    def statistics() -> Any:
        frames = np.unique(
            np.concatenate([train + STEP * k for k in range(-1, options.rollout_steps + 1)])
        )
        plain = replace(cut, surface=cut.surface.drop_vars(list(without)))
        return normalisation.statistics_of(plain, list(frames), progress=options.progress)

    surface, atmos = parallel.first(fabric, statistics)  # once, for all processes
    return build_tiny(plan.needs, surface, atmos, options.seed)


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
        if before.options == (
            replace(options, epsilon=before.options.epsilon) if options.epsilon is None else options
        ):
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
    plan: Plan, init_times: np.ndarray, *, progress: bool
) -> tuple[np.ndarray, dict[str, normalisation.Distribution]]:
    """Init times whose targets have values inside the halo, and the climatology of those targets by
    area. Reads them once.
    """
    learnt, grid, trim, steps = (
        plan.learnt,
        plan.target_grid,
        plan.target_trim,
        plan.options.rollout_steps,
    )
    seen = {t.name: normalisation.Distribution(amounts=t.is_rain) for t in learnt}
    position = {t.name: samples.positions(t.values) for t in learnt}
    area = np.broadcast_to(grids.latitude_weights(grid.latitude)[:, None], grid.shape)[trim]
    whole: dict[
        int, bool
    ] = {}  # by valid time: windows of a rollout overlap, and each time counts once
    valid = {_stamp(time + STEP * k): None for time in init_times for k in range(1, steps + 1)}

    def read(key: int) -> dict[str, np.ndarray]:
        return {t.name: t.values.isel(time=position[t.name][key]).values[trim] for t in learnt}

    reading = loading.ahead(valid, read, plan.options.workers, loading.AHEAD)
    for key, found in watched(reading, "target", shown=progress, total=len(valid)):
        there = {name: np.isfinite(values) for name, values in found.items()}
        whole[key] = all(mask.any() for mask in there.values())
        if whole[key]:
            for name, values in found.items():
                seen[name].add(values[there[name]], area[there[name]])
    kept = [
        time
        for time in init_times
        if all(whole[_stamp(time + STEP * k)] for k in range(1, steps + 1))
    ]
    if not kept:
        raise SplitError(
            "the target has no value in any sample of this part.",
            fix=(
                f"check the target: ds['{learnt[0].item.source}'].isnull().mean(('latitude',"
                " 'longitude'))"
            ),
        )
    for t in learnt:
        if t.is_rain and not seen[t.name].log_wet.count:
            raise SplitError(
                "the target is dry everywhere in this part, so that nothing can be learnt or"
                " scored.",
                fix="take a longer period or a wetter region",
            )
        if not seen[t.name].moments.high > seen[t.name].moments.low:
            raise SplitError(
                f"the target '{t.item.source}' is the same everywhere and always in this part"
                f" ({seen[t.name].moments.high:g}).",
                fix="take another target, a longer period or a larger region",
            )
    return np.array(kept, dtype="datetime64[ns]"), seen


def _stamp(time: np.datetime64) -> int:
    return int(time.astype("datetime64[ns]").astype(np.int64))

"""``finetune``: from a Dataset to a trained model."""

from __future__ import annotations

import datetime
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from xaurora.errors import MemoryTooSmallError, OptionError, SaveError
from xaurora.model import batch as batches
from xaurora.model import execution, hashing, strategies, tuned
from xaurora.model import loader as loading
from xaurora.model.tuned import TunedAurora
from xaurora.training import checkpoints, curves, latent_store, latents, parallel
from xaurora.training import estimate as estimation
from xaurora.training import loop as training
from xaurora.training import options as config
from xaurora.training import plan as planning
from xaurora.training import validation as validation_
from xaurora.training.build import BuiltModel, build_model, heads_of
from xaurora.training.describe import describe_run, settings_of_run, warn
from xaurora.training.plan import Plan
from xaurora.training.scan import TargetScan, refuse_missing, scan_targets
from xaurora.utils import provenance, storage
from xaurora.utils.progress import say

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
    """Fine-tune an Aurora so that it also predicts ``target``.

    See :meth:`xaurora.accessor.AuroraAccessor.finetune`.
    """
    options = parallel.settle(options or config.TrainingOptions())
    how = config.strategy_of(strategy)
    names = planning.check_arguments(
        target, how, head, halo, options, truth=truth, as_input=as_input
    )
    if options.resume and out is None:
        raise OptionError(
            "resume=True needs the folder of the run to resume, but out= is not set.",
            fix="out='runs/tp', resume=True",
        )
    folder = _out_folder(out, re.sub(r"[^\w-]", "_", "-".join(names)))
    resume = options.resume
    fabric = parallel.launch(options)
    folder = Path(fabric.broadcast(str(folder)))  # the name may contain the current time
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
            "Left out, because they do not fill a patch of %d: %s.",
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
    # Only the first process reads, for all of them.
    looked = parallel.first(fabric, lambda: scan_targets(plan))
    made = build_model(plan, looked, fabric)
    meta = describe_run(plan, looked, made, truth is not None)
    warn(plan, looked, meta)
    kept = planning.kept_latents(plan)
    settings = settings_of_run(plan, looked, made, meta, kept)
    if run is not None:
        checkpoints.compare(folder, run["settings"], settings)
    if plan.chosen.skipped:
        say(str(plan.chosen), shown=options.progress)
    same = " (the same ones)" if plan.parts.same else ""
    say(
        f"{len(looked.train)} training samples, {len(looked.validation)} validation samples{same};"
        f" output in {folder}",
        shown=options.progress,
    )
    say(strategies.render(strategies.table(made.module)), shown=options.progress)
    result = TunedAurora(made.module, plan.needs, meta)
    if run is not None and run.get("finished"):
        say(f"The run in {folder} has already finished.", shown=options.progress)
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
            refuse_missing(plan, loader, init_times, after=not made.forms)

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
                f"the GPU ran out of memory ({str(error).splitlines()[0]}).",
                fix=(
                    "print(ds.aurora.estimate(...)) with the same arguments lists what to change;"
                    " try activation_checkpointing=True first"
                ),
            ) from error
        finally:
            result.model.window = made.module.window = None
        if fabric.global_rank == 0:
            _draw_history(result, folder)
    tuned.remember(result)
    return result


def _latents(
    plan: Plan,
    looked: TargetScan,
    made: BuiltModel,
    kept: config.LatentOptions,
    loader: loading.Loader,
    fabric: Any,
    folder: Path,
    scan: Callable[[np.ndarray], None],
) -> latents.Latents:
    """Return the source of latents, read instead of running the backbone in every step."""
    module, options, cut = made.module, plan.options, made.cut
    surface = all(h.options.latents == "surface" for h in heads_of(module))
    execution.set_precision(module.base, options.precision, fabric.device)
    shape = latents.shape_of(module, plan.grid.shape, plan.needs.patch_size, surface=surface)
    window = plan.window
    static = {
        n: hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest()[:16]
        for n, v in batches.statics(cut).items()
    }
    versions = provenance.versions()
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
            checked=len(wanted) if in_memory else latent_store.CHECKED,
        )
    except SaveError as error:
        logger.warning("Latents are kept in memory only: %s", error.message)
    if store is not None:
        there = sum(store.has(p) for t in wanted if (p := latent_store.slot(t)) is not None)
        say(
            f"Latents: {there} of {len(wanted)} samples are stored in {store.path},"
            f" {store.sample_bytes / 1e6:.3g} MB each; the others are added when they are first"
            " used.",
            shown=options.progress,
        )
    return latents.Latents(store, kept.dtype, shape[0])


def _begin(folder: Path, run: dict[str, Any] | None) -> None:
    """Delete what an earlier, finished run left in the folder, unless this run is resumed."""
    if run is None:
        if (folder / "best").is_dir():
            logger.info("'%s' contains a finished run; it will be overwritten.", folder)
        checkpoints.discard(folder)
        (folder / "learning.png").unlink(missing_ok=True)


def _finished(result: TunedAurora, folder: Path) -> TunedAurora:
    """Return the saved result of a finished run."""
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
    """Save the learning curves as ``learning.png`` beside the artefact."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    curves.learning_curves(result.history, figure=figure)
    storage.replace_file(
        folder / "learning.png", lambda path: figure.savefig(path, dpi=110, format="png")
    )


# --- before training ------------------------------------------------------------------------------


def _out_folder(out: str | Path | None, target: str) -> Path:
    if out is not None and not isinstance(out, str | Path):
        raise OptionError(f"out={out!r} must be a path.", fix="out='runs/tp'")
    if out is not None:
        folder = Path(out)
        for part in ("best", "last"):
            if (folder / part).exists() and not (folder / part / "config.json").exists():
                raise OptionError(
                    f"'{folder / part}' exists but is not a tuned model; it would be overwritten.",
                    fix="choose another out=",
                )
        if folder.exists() and not folder.is_dir():
            raise OptionError(
                f"out='{folder}' must be a folder, but is a file.", fix="out='runs/tp'"
            )
        return folder
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{target}-{stamp}"

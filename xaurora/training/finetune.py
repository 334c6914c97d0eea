"""``finetune``: from a Dataset to a tuned model."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import MemoryTooSmallError, OptionError, SaveError
from xaurora.fields import plausibility, targets
from xaurora.model import artefact, execution, strategies, tuned
from xaurora.model.loader import Guards, Loader
from xaurora.model.tuned import TunedAurora
from xaurora.training import (
    checkpoints,
    curves,
    eight_bit,
    fitting,
    latent_store,
    latents,
    loop,
    parallel,
    steps,
)
from xaurora.training.build import BuiltModel, build_model
from xaurora.training.describe import describe_latents, describe_run, settings_of_run, warn
from xaurora.training.loop import Run
from xaurora.training.nested_options import LatentOptions
from xaurora.training.options import FinetuneOptions
from xaurora.training.plan import Plan, check_options, plan
from xaurora.training.scan import TargetScan, keep, scan_targets
from xaurora.training.sound import Skipped, SoundReader
from xaurora.utils import figures, storage
from xaurora.utils.allocator import freed_memory_kept
from xaurora.utils.locks import only_writer
from xaurora.utils.progress import log_line

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger("xaurora")


def finetune(ds: xr.Dataset, options: FinetuneOptions) -> TunedAurora:
    """Fine-tune an Aurora so that it also predicts the target.

    See :meth:`xaurora.accessor.AuroraAccessor.finetune`.
    """
    if options.engine == "jax":
        _check_jax(options)
    else:
        options = parallel.resolve_devices(options)
    check_options(options)
    if options.optimizer_state == "8bit":
        eight_bit.check_installed()
    folder = _out_folder(options)
    # In JAX one process shares a batch among all devices.
    fabric = parallel.launch(replace(options, devices=1) if options.engine == "jax" else options)
    folder = Path(fabric.broadcast(str(folder)))  # the name may contain the current time
    with contextlib.ExitStack() as stack:
        writer = only_writer(folder, argument="out=", wait=options.wait)
        parallel.run_on_first(fabric, lambda: stack.enter_context(writer))
        result = _train(ds, options, folder, fabric)
    result.model = result.model.with_window(None)
    tuned.remember(result)
    return result


def _train(ds: xr.Dataset, options: FinetuneOptions, folder: Path, fabric: Fabric) -> TunedAurora:
    """Train in a folder that no other process writes to."""
    checkpoint = parallel.run_on_first(
        fabric,
        lambda: checkpoints.check(folder, resume=options.resume, overwrite=options.overwrite),
    )
    if checkpoint is not None and not checkpoint.get("finished"):
        checkpoints.check_visible(folder)
    if fabric.global_rank:
        options = replace(options, progress=False)
    made = plan(ds, options)
    _log_plan(made)
    if options.engine == "torch":
        planned = made
        measure = parallel.run_on_first(fabric, lambda: fitting.choose(planned))
        made = fitting.with_measure(made, measure)
    # Only the first process reads, for all of them.
    scan = parallel.run_on_first(fabric, lambda: scan_targets(made, folder))
    model = build_model(made, scan)
    if options.engine == "jax":
        _check_for_jax(model)
    description = describe_run(made, scan, model)
    warn(made, scan, description)
    settings = settings_of_run(made, scan, model)
    if checkpoint is not None:
        checkpoints.compare(folder, checkpoint["settings"], settings)
    _log_run(made, scan, model, folder)
    result = TunedAurora(model.module, made.needs, description)
    if checkpoint is not None and checkpoint.get("finished"):
        log_line(f"The run in {folder} has already finished.", shown=options.progress)
        _load_finished(result, folder)
    else:
        parallel.run_on_first(fabric, lambda: _clear(folder, checkpoint))
        loader = _open_loader(made, scan, model, fabric, folder)
        parallel.run_on_first(fabric, lambda: keep(made, scan, folder))
        run = Run(made, scan, model, loader, result, settings, folder)
        try:
            with freed_memory_kept(on=options.engine == "torch" and fabric.device.type == "cpu"):
                loop.fit(fabric, run, checkpoint)
        except RuntimeError as error:
            if not execution.is_out_of_memory(error):
                raise
            raise MemoryTooSmallError(
                f"the device ran out of memory ({str(error).splitlines()[0]}).",
                fix=(
                    "memory='20GB', or another limit below what the device has, so that less is"
                    " kept on it; print(ds.aurora.estimate(...)) lists what else to change"
                ),
            ) from error
        if fabric.global_rank == 0:
            _draw_history(result, folder)
    return result


def _check_jax(options: FinetuneOptions) -> None:
    """Raise if the engine or its devices are missing."""
    from xaurora import jax

    jax.check_installed()
    from xaurora.jax import precision

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            "engine='jax' trains in one process, but torchrun or a cluster started"
            f" {os.environ['WORLD_SIZE']}.",
            fix="start one process; devices=n shares each batch among its devices",
        )
    precision.devices(options.devices)


def _check_for_jax(model: BuiltModel) -> None:
    """Raise if the model has something that the engine lacks, before data are read for it."""
    from xaurora.jax.settings import check_supported

    check_supported(model.module.base)
    if steps.has_dropout(model.module):
        raise OptionError(
            "engine='jax' does not support dropout, and this model has some where it trains.",
            fix="engine='torch', or StrategyOptions('lora', dropout=0)",
        )


def _log_plan(made: Plan) -> None:
    logger.info("%s", made.samples)
    if made.left_out:
        logger.info(
            "Dropped, outside whole patches of size %d: %s.",
            made.needs.patch_size,
            made.left_out,
        )


def _log_run(made: Plan, scan: TargetScan, model: BuiltModel, folder: Path) -> None:
    shown = made.options.progress
    if made.samples.skipped:
        log_line(str(made.samples), shown=shown)
    same = " (identical to the training samples)" if made.split.same else ""
    log_line(
        f"{len(scan.train)} training samples, {len(scan.validation)} validation samples{same};"
        f" output in {folder}",
        shown=shown,
    )
    log_line(strategies.render(strategies.table(model.module)), shown=shown)


def _open_loader(
    made: Plan, scan: TargetScan, model: BuiltModel, fabric: Fabric, folder: Path
) -> Loader:
    """Return the loader, after checking that some samples can be read."""
    loader = Loader(
        model.fields,
        {t.name: t.values for t in made.targets},
        scored=made.fields if made.scores_base else None,
        pin=fabric.device.type == "cuda",
        guards=Guards(
            targets={
                t.name: functools.partial(plausibility.check_target_frame, t) for t in made.targets
            }
        ),
    )

    def check(init_times: np.ndarray) -> None:
        """Read a few samples, before anything is written."""
        options, count = made.options, len(init_times)
        reader = SoundReader(
            loader,
            init_times,
            options.rollout_steps,
            made.target_trim,
            Skipped(),
            strict=options.strict,
        )
        reader.check(init_times[np.unique([0, count // 2, count - 1])] if count else [])

    init_times = np.union1d(scan.train, scan.validation)
    kept = made.latents
    if kept is None:
        check(init_times)
    else:
        execution.set_precision(model.module.base, made.options.precision, fabric.device)
        store = _open_latent_store(made, model, kept, loader, folder, init_times, check)
        loader.latents = latents.Latents(store, kept.dtype)
    return loader


def _open_latent_store(
    made: Plan,
    model: BuiltModel,
    kept: LatentOptions,
    loader: Loader,
    folder: Path,
    init_times: np.ndarray,
    check: Callable[[np.ndarray], None],
) -> latents.LatentStore | None:
    """Open the latent store, or return None if its folder is not writable."""
    fields = model.fields
    in_memory = all(
        v._in_memory for part in (fields.surface, fields.atmos) for v in part.variables.values()
    )
    try:
        store = latents.open_store(
            folder.parent / "latents",
            kept,
            latents.shape_of(model.module, made.grid.shape, made.needs.patch_size),
            describe_latents(made, model),
            init_times,
            lambda t: loader.batch([t]),
            check,
            checked=len(init_times) if in_memory else latent_store.CHECKED,
        )
    except SaveError as error:
        logger.warning("Latents are kept in memory only: %s", error.message)
        return None
    indices = [latent_store.time_index(t) for t in init_times]
    stored = sum(store.has(i) for i in indices if i is not None)
    log_line(
        f"Latents: {stored} of {len(init_times)} samples are stored in {store.path},"
        f" {store.sample_bytes / 1e6:.3g} MB each; the others are added when they are first used.",
        shown=made.options.progress,
    )
    return store


def _clear(folder: Path, checkpoint: dict[str, Any] | None) -> None:
    """Delete what an earlier, finished run left in the folder, unless this run is resumed."""
    if checkpoint is None:
        if (folder / "best").is_dir():
            logger.info("'%s' contains a finished run; it will be overwritten.", folder)
        checkpoints.discard(folder)
        (folder / "learning.png").unlink(missing_ok=True)


def _load_finished(result: TunedAurora, folder: Path) -> None:
    """Load what a finished run has saved."""
    for part in ("best", "last"):
        storage.recover(folder / part)
    best = folder / "best"
    saved = artefact.read_json(best / "config.json")
    result.config = {k: v for k, v in saved.items() if k in result.config or k == "scores"}
    result.load_weights(best)
    result.history = artefact.read_json(best / "history.json")
    result.path = best
    result.model.eval().requires_grad_(True)
    shutil.rmtree(folder / "replay", ignore_errors=True)


def _draw_history(result: TunedAurora, folder: Path) -> None:
    """Save the learning curves as ``learning.png`` beside the artefact."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    curves.learning_curves(result.history, figure=figure)
    figures.save(figure, folder / "learning.png", dpi=110)


def _out_folder(options: FinetuneOptions) -> Path:
    """Return the folder of the run, by default one named after the targets and the time."""
    if options.out is None:
        name = re.sub(r"[^\w-]", "_", "-".join(targets.names_of(options.target)))[:60]
        return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder = storage.output_path(options.out)
    for part in ("best", "last"):
        if (folder / part).exists() and not (folder / part / "config.json").exists():
            raise OptionError(
                f"'{folder / part}' exists but is not a tuned model; it would be overwritten.",
                fix="choose another out=",
            )
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"out='{folder}' must be a folder, but is a file.", fix="out='runs/tp'")
    return folder

"""The training loop: steps, validation, checkpoints, and what is kept."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xaurora.errors import TrainingError
from xaurora.model import execution, placement
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.loader import Loader, Sample
from xaurora.model.tuned import TunedAurora
from xaurora.training import checkpoints, parallel
from xaurora.training.build import BuiltModel
from xaurora.training.checkpoints import Progress
from xaurora.training.guard import LossGuard
from xaurora.training.host_optimisation import HostOptimisation
from xaurora.training.journal import Log, Stop, best_line, step_entry
from xaurora.training.keeping import Kept
from xaurora.training.losses import Domain, Domains
from xaurora.training.optimisation import Optimisation
from xaurora.training.plan import Plan
from xaurora.training.samples import Microbatch
from xaurora.training.scan import TargetScan
from xaurora.training.sound import Skipped, SoundReader, read_ahead
from xaurora.training.steps import BatchRunner, ReplayRunner
from xaurora.training.validation import (
    MOST_VALIDATED,
    Processes,
    Task,
    Validator,
    format_scores,
)
from xaurora.utils.progress import log_line, progress_bar

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Run:
    """A run: a plan, what was read and built for it, and where it goes.

    Parameters
    ----------
    plan : Plan
    scan : TargetScan
    model : BuiltModel
    loader : Loader
    result : TunedAurora
        What training fills.
    settings : dict
        What a resumed run must have in common.
    folder : path
    """

    plan: Plan
    scan: TargetScan
    model: BuiltModel
    loader: Loader
    result: TunedAurora
    settings: dict[str, Any]
    folder: Path


def fit(fabric: Fabric, run: Run, checkpoint: dict[str, Any] | None) -> None:
    """Train from the beginning, or resume from a checkpoint. All processes must call this."""
    options, module = run.plan.options, run.model.module
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    if options.optimizer_state == "host" or parallel.is_sharded(options, fabric):
        # The artefact is saved from a copy on the host: the weights that train there, or those that
        # are gathered from the shards.
        run.result.model = copy.deepcopy(module)
    with torch.random.fork_rng(devices=devices), contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # A step returns views, which nothing here modifies in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        torch.manual_seed(options.seed + 1000 * fabric.global_rank)
        stack.enter_context(placement.on_grid(module, run.plan.grid))
        stack.enter_context(execution.without_cudnn_attention())
        stack.enter_context(execution.tf32(options.precision))
        accelerated = fabric.device.type == "cuda"
        precision = options.precision
        if options.engine == "jax":
            accelerated, precision = _on_jax_device(precision)
        execution.set_precision(module.base, precision, fabric.device)
        if options.engine == "torch":
            stack.enter_context(_reduced(run, fabric))
        if options.compile:
            stack.enter_context(execution.compiled(module.base))
        recomputes = options.activation_checkpointing
        if recomputes == "auto":  # in PyTorch it has been decided by what fits
            recomputes = options.engine == "jax" and accelerated and run.plan.trains_base
        if options.engine == "jax":
            module = _in_jax(run, recomputes=bool(recomputes))
        elif recomputes:
            offload = options.activation_checkpointing == "offload"
            stack.enter_context(execution.activation_checkpointing(module.base, offload=offload))
        trainer = Trainer(fabric, run, module)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        try:
            trainer.train()
            trainer.finish()
        finally:
            run.loader.close()
            if run.loader.latents is not None:
                run.loader.latents.close()


def _reduced(run: Run, fabric: Fabric) -> contextlib.AbstractContextManager[None]:
    """Keep weights on the device in the precision they are computed in, if others are kept too."""
    plan, module = run.plan, run.model.module
    trained = [p for g in run.model.groups for p in g["params"]]
    sharded = parallel.is_sharded(plan.options, fabric)
    if plan.options.optimizer_state == "host":
        return execution.reduced_weights(module.base)
    if plan.saves_base or plan.strategy.name == "peft" or fabric.device.type == "cpu" or sharded:
        return contextlib.nullcontext()
    return execution.reduced_weights(module.base, keep=trained)


def _on_jax_device(precision: str) -> tuple[bool, str]:
    """Return whether JAX runs on a GPU or TPU, and the precision that ``"auto"`` is there."""
    import jax

    accelerated = jax.devices()[0].platform != "cpu"
    return accelerated, "bf16" if precision == "auto" and accelerated else precision


def _in_jax(run: Run, *, recomputes: bool) -> AuroraWithHead:
    """Return the run's model in JAX; its Torch modules hold what is saved."""
    from xaurora.jax.module import JaxModule

    plan, options = run.plan, run.plan.options
    return JaxModule(
        run.model.module,
        plan.grid,
        plan.fields.levels,
        count=options.devices,
        recompute=recomputes,
    )


def _stepper(
    fabric: Fabric, run: Run, module: AuroraWithHead, total: int, domains: Domains
) -> tuple[Any, Any]:
    """Return the optimisation and the runner of batches, of the engine that was chosen."""
    plan, groups, options = run.plan, run.model.groups, run.plan.options
    if options.engine == "jax":
        from xaurora.training.jax_steps import JaxBatchRunner, JaxOptimisation

        traced: Any = module
        in_jax = JaxOptimisation(traced, groups, options, total=total)
        return in_jax, JaxBatchRunner(traced, plan, run.loader, in_jax, domains)
    if options.optimizer_state == "host":
        optimisation: Optimisation = HostOptimisation(
            fabric, module, run.result.model, groups, options, total=total
        )
    else:
        sharded = parallel.is_sharded(options, fabric)
        optimisation = Optimisation(fabric, module, groups, options, total=total, sharded=sharded)
    runner = BatchRunner(fabric, module, plan, run.loader, optimisation, domains)
    return optimisation, runner


class Trainer:
    """One training run."""

    def __init__(self, fabric: Fabric, run: Run, module: AuroraWithHead) -> None:
        plan, scan = run.plan, run.scan
        self.fabric, self.run, self.options, self.result = fabric, run, plan.options, run.result
        self.module = module
        self.total = plan.options.total_steps(len(scan.train))
        self.domains = Domains(
            Domain.of(plan.grid, plan.trim, fabric.device),
            Domain.of(plan.target_grid, plan.target_trim, fabric.device),
        )
        self.optimisation, self.batches = _stepper(fabric, run, module, self.total, self.domains)
        self.kept = Kept(fabric, run.folder, plan.options, module, run.result)
        self.skipped = Skipped()
        self.reader = self._reader(scan.train)
        replay = plan.options.replay
        self.replay = (
            ReplayRunner(self.batches, replay, self.reader, run.folder) if replay else None
        )
        self.guard = LossGuard()
        self.progress = Progress()
        self.task = Task.of(plan)
        count = min(len(scan.validation), MOST_VALIDATED)
        self.interim = scan.validation[
            np.unique(np.linspace(0, len(scan.validation) - 1, count).astype(int))
        ]
        self.validator = self._validator(self.interim)
        self.log = Log(run.folder, writes=self.is_first)
        self.shown = plan.options.progress and self.is_first

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.fabric.global_rank == 0

    def _reader(self, init_times: np.ndarray) -> SoundReader:
        return SoundReader(
            self.run.loader,
            init_times,
            self.options.rollout_steps,
            self.run.plan.target_trim,
            self.skipped,
            strict=self.options.strict,
        )

    def _validator(self, init_times: np.ndarray) -> Validator:
        total = partial(parallel.total, self.fabric)
        processes = Processes(self.fabric.global_rank, self.fabric.world_size, total)
        size = self.options.batch_size
        reader = self._reader(init_times)
        return Validator(self.task, reader, init_times, self.domains, size, processes)

    # --- the loop ---

    def train(self) -> None:
        """Train until the last step, or until early stopping."""
        options, progress = self.options, self.progress
        count = min(options.validations, self.total)
        validated = {round(self.total * (i + 1) / count) for i in range(count)}
        keep = options.checkpoint_steps(self.total)
        smooth = math.nan
        if self.replay is not None and not len(self.replay.buffer):
            self.replay.buffer.fill()
        bar = progress_bar(total=self.total, label="finetune", unit="step", shown=self.shown)
        ahead = read_ahead(
            self.reader,
            options,
            (self.fabric.global_rank, self.fabric.world_size),
            progress.step,
            reads=self.replay is None,
        )
        with Stop() as stop, self.log, bar as meter:
            meter.update(progress.step)
            for times, batches in parallel.raise_together(self.fabric, ahead):
                entry = self.take_step(times, batches)
                smooth = (
                    entry["loss"] if math.isnan(smooth) else 0.95 * smooth + 0.05 * entry["loss"]
                )
                progress.step += 1
                last = progress.step == self.total
                if progress.step in validated:
                    last = self._validate(entry) or last
                self._record(entry)
                meter.update(1)
                meter.set_postfix_str(self._postfix(smooth, entry), refresh=False)
                asked = parallel.any_process(self.fabric, stop.signal is not None)
                if asked and not last:
                    self.save_checkpoint()
                    self.log.__exit__()
                    log_line(
                        f"Stopped at step {progress.step} of {self.total}; resume=True continues.",
                        shown=self.is_first,
                    )
                    stop.again()
                if last:
                    break
                if progress.step % keep == 0:
                    self.save_checkpoint()

    def take_step(
        self, times: list[np.datetime64], batches: list[tuple[Microbatch, Sample]]
    ) -> dict[str, Any]:
        """Take one optimiser step, and return its line of the log."""
        self.batches.train_mode()
        if self.replay is not None:
            times, sums = self.replay.run(self.progress.step / self.total)
        else:
            sums = self.batches.run(batches)
        stacked = torch.stack([v.double() for v in sums.values()])
        means = dict(zip(sums, parallel.total(self.fabric, stacked).tolist(), strict=True))
        if not self.guard.accept(means["loss"]):
            raise self._diverged(means["loss"], times, "loss")
        if self.replay is not None:
            self.replay.return_to_buffer()
        norm = self.optimisation.clip()
        if not self.optimisation.skips_overflows and not math.isfinite(norm):
            raise self._diverged(math.nan, times, "gradient")
        self.optimisation.step(self.progress.step)
        entry = step_entry(self.progress.step + 1, means, norm, self.task)
        return entry | self.optimisation.learning_rates()

    def _record(self, entry: dict[str, Any]) -> None:
        self.result.history.append(entry)
        self.log.write(entry)
        if self.options.logger is not None:
            values = {k: v for k, v in entry.items() if k != "step"}
            self.fabric.log_dict(values, step=self.progress.step)

    def _postfix(self, smooth: float, entry: dict[str, Any]) -> str:
        best = ""
        if math.isfinite(self.progress.best):
            best = f" best {format_scores(self.result.config['scores'], self.task)}"
        return f"loss {smooth:.4f} rate {entry['learning_rate']:.1e}{best}"

    def _diverged(self, loss: float, times: list[np.datetime64], what: str) -> TrainingError:
        """Save a checkpoint if the weights are still usable, and return the error."""
        progress, folder = self.progress, self.run.folder
        kept, best = [], None
        # Only if there is no earlier checkpoint: the current weights may be finite but useless.
        worth_saving = not progress.saved and progress.step and not self.guard.is_exploded(loss)
        if worth_saving and self.optimisation.is_finite():
            self.optimisation.zero_grad()
            self.save_checkpoint()
        if progress.saved:
            kept.append(
                f"the last good state (step {progress.saved}) is in '{folder / checkpoints.FOLDER}'"
            )
        if math.isfinite(progress.best):
            best = folder / "best"
            kept.append(f"the best so far is in '{best}'")
        return self.guard.error(loss, progress.step, times, what=what, kept=kept, best=best)

    # --- validation, and what is kept ---

    def _validate(self, entry: dict[str, Any]) -> bool:
        """Score the model and keep the best. Return whether to stop early."""
        progress, patience = self.progress, self.options.early_stopping
        self.batches.left_train_mode()
        with self.optimisation.averaged():
            scores = self.validator.score(self.module)
            entry.update(scores)
            if scores["validation_skill_score"] > progress.best:
                progress.best, progress.waited = scores["validation_skill_score"], 0
                self.result.config["scores"] = {**scores, "step": progress.step}
                self.kept.save("best", [*self.result.history, entry])
            else:
                progress.waited += 1
        return patience is not None and progress.waited >= patience

    def save_checkpoint(self) -> None:
        """Write everything that is needed to resume."""
        parallel.run_on_first(self.fabric, self.log.sync)
        run = {
            "settings": self.run.settings,
            "scores": self.result.config.get("scores", {}),
            "recent": self.guard.recent,
        }
        buffer = self.replay.buffer if self.replay is not None else None
        checkpoints.save_run(
            self.fabric, self.run.folder, self.progress, self.optimisation, buffer, run
        )

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        buffer = self.replay.buffer if self.replay is not None else None
        self.progress = checkpoints.restore_run(
            self.fabric, self.run.folder, self.optimisation, buffer, checkpoint
        )
        if checkpoint["scores"]:
            self.result.config["scores"] = checkpoint["scores"]
        self.guard.recent = checkpoint["recent"]
        self.result.history[:] = self.log.keep(self.progress.step)
        log_line(f"Resuming at step {self.progress.step} of {self.total}.", shown=self.shown)

    def finish(self) -> None:
        """Save the last model, return to the best, and score it on all validation samples."""
        result, progress, folder = self.result, self.progress, self.run.folder
        if not math.isfinite(progress.best):
            raise TrainingError(
                "no validation gave a finite score, so no model was kept.",
                fix="a smaller learning_rate",
            )
        best = result.config["scores"]
        with self.optimisation.averaged():
            last = {k: v for k, v in result.history[-1].items() if k.startswith("validation")}
            result.config["scores"] = {**last, "step": progress.step}
            self.kept.save("last", result.history)
        # Freed before the best is loaded, otherwise memory would peak here.
        self.optimisation.release()
        best = self.kept.load_best(best, set(self.optimisation.parameters))
        if self.options.optimizer_state == "host":
            self.optimisation.push()
        if self.options.engine == "jax":
            self.module.refresh()  # type: ignore[operator]
        result.config["scores"] = best
        if len(self.interim) < len(self.run.scan.validation):
            final = self._validator(self.run.scan.validation).score(self.module)
            result.config["scores"] = {**final, "step": best["step"]}
        result.model.to("cpu")
        execution.set_precision(result.model.base, "32", torch.device("cpu"))
        # As they were built: Torch uses other kernels for parameters without gradient, and
        # forecasts would differ in the last bit.
        result.model.eval().requires_grad_(True)
        result.config["training"]["steps"] = progress.step
        result.config["training"]["broken"] = self.skipped.described()
        if count := len(self.skipped.reasons):
            log_line(f"{count} sample(s) could not be read and were skipped.", shown=self.shown)

        def save() -> None:
            result.save(folder / "best", overwrite=True)
            settings, step = self.run.settings, progress.step
            checkpoints.finish(folder, {"settings": settings, "step": step, "total": self.total})

        parallel.run_on_first(self.fabric, save)
        result.path = folder / "best"
        line = best_line(result.config["scores"], progress.step, self.total, self.task)
        log_line(f"{line}; saved in {folder / 'best'}", shown=self.shown)

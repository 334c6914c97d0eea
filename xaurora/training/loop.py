"""The training loop, on Lightning Fabric: steps, validation and checkpoints.

The best and the last model are saved.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xaurora.errors import TrainingError, XauroraError
from xaurora.fields.grid import lattice as grids
from xaurora.fields.grid.weights import latitude_weights
from xaurora.model import aurora as models
from xaurora.model import execution, placement, rollout
from xaurora.model import loader as loading
from xaurora.model.loader import Loader, Sample, Share
from xaurora.model.tuned import TunedAurora
from xaurora.training import checkpoints, losses, parallel
from xaurora.training import options as config
from xaurora.training.journal import Log, Stop
from xaurora.training.losses import Trim
from xaurora.training.replay import ReplayBuffer
from xaurora.training.validation import Task, Validator, prefix, told
from xaurora.utils.progress import bar, say

_MOST_VALIDATED = 100  # samples in a validation during training; the final one scores all
_EXPLOSION = 1e3  # a loss this many times the recent losses counts as an explosion
_WATCHED = 50  # number of recent losses that are kept


@dataclass(frozen=True)
class Work:
    """What is trained, and on which data.

    Parameters
    ----------
    result : TunedAurora
        The result, filled in by training.
    loader : Loader
    groups : list of dict
        Parameter groups.
    train, validation : ndarray of datetime64
        Init times.
    grid : Grid
    trim : tuple of slice
        Rows and columns inside the halo.
    task : Task
        How the model is scored.
    moves_base : bool
        Whether the strategy trains the base.
    target_grid, target_trim : Grid, tuple of slice
        Grid on which the targets are trained: the whole grid or a region of it.
    settings : dict
        Settings that must be the same in a resumed run.
    """

    result: TunedAurora
    loader: Loader
    groups: list[dict[str, Any]]
    train: np.ndarray
    validation: np.ndarray
    grid: grids.Grid
    trim: Trim
    task: Task
    moves_base: bool
    target_grid: grids.Grid
    target_trim: Trim
    settings: dict[str, Any]


def fit(
    fabric: Any,
    work: Work,
    options: config.TrainingOptions,
    folder: Path,
    run: dict[str, Any] | None,
) -> None:
    """Train from the beginning or resume from ``run``. All processes must call this."""
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    module = work.result.model
    if fabric.world_size > 1 and options.parallel == "fsdp":
        # The artefact is saved from an unsharded copy, into which the shards are gathered.
        work.result.model = copy.deepcopy(module)
    with torch.random.fork_rng(devices=devices), contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # A step returns views, which nothing here modifies in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        torch.manual_seed(options.seed + 1000 * fabric.global_rank)
        stack.enter_context(placement.placed(module, work.grid))
        training = _Training(fabric, work, module, options, folder, stack)
        if run is not None:
            training.restore(run)
        try:
            training.loop()
            training.close()
        finally:
            work.loader.close()
            if work.loader.latents is not None:
                work.loader.latents.close()


class _Training:
    """State and methods of one training run."""

    def __init__(
        self,
        fabric: Any,
        work: Work,
        module: models.AuroraWithHead,
        options: config.TrainingOptions,
        folder: Path,
        stack: contextlib.ExitStack,
    ) -> None:
        self.fabric, self.work, self.module, self.options, self.folder = (
            fabric,
            work,
            module,
            options,
            folder,
        )
        self.stack, self.rank, self.world = stack, fabric.global_rank, fabric.world_size
        self.sharded = work.result.model is not module
        execution.set_precision(module.base, options.precision, fabric.device)
        checkpointing = options.activation_checkpointing
        if options.compile:
            stack.enter_context(execution.compiled(module.base))
        if (
            work.moves_base and fabric.device.type == "cuda"
            if checkpointing == "auto"
            else bool(checkpointing)
        ):
            stack.enter_context(execution.recomputed(module.base))
        # By name, because sharding replaces the parameter objects.
        names = {id(p): name for name, p in module.named_parameters()}
        groups = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in work.groups]
        self.runner = fabric.setup_module(module, move_to_device=not self.sharded)
        parameters = dict(module.named_parameters())
        self.moving = {name: parameters[name] for g in groups for name in g["params"]}
        self.rates = [g["lr"] for g in groups]
        self._near = self._dropouts(module)
        self._trains = False
        groups = [{**g, "params": [parameters[name] for name in g["params"]]} for g in groups]
        # The fused optimiser makes one pass over memory. Sharded parameters and meta devices need
        # the plain one.
        fused = not self.sharded and all(p.is_floating_point() for g in groups for p in g["params"])
        self.adamw = torch.optim.AdamW(
            groups, weight_decay=options.weight_decay, betas=(0.9, 0.95), fused=fused
        )
        self.optimizer = fabric.setup_optimizers(self.adamw)
        self.scaler = torch.amp.GradScaler(
            fabric.device.type, enabled=execution.uses_fp16(module.base)
        )
        self.total = options.total_steps(len(work.train))
        self.warmup = options.warmup_steps(self.total)
        self.area = _area(work.grid, fabric.device)
        self.part = (_area(work.target_grid, fabric.device), work.target_trim)
        self.base_loss = options.base_loss if work.task.base else 0.0
        self.average = (
            {k: p.detach().clone() for k, p in self.moving.items()}
            if options.ema is not None
            else None
        )
        self.replay = self._replay(options.replay) if options.replay is not None else None
        self._made: list[tuple[int, Any]] = []
        self.step = 0
        self.saved = 0
        self.best = -math.inf
        self.waited = 0
        self.recent: list[float] = []
        count = min(len(work.validation), _MOST_VALIDATED)
        self.interim = work.validation[
            np.unique(np.linspace(0, len(work.validation) - 1, count).astype(int))
        ]
        self.validator = self._validator(self.interim)
        self.log = Log(folder, writes=self.rank == 0)

    @staticmethod
    def _dropouts(module: torch.nn.Module) -> dict[int, bool]:
        """Return, by id of each dropout module, whether its parent has trainable parameters."""
        out: dict[int, bool] = {}
        for parent in module.modules():
            for child in parent.modules():
                if _drops(child):
                    # the innermost parent with parameters comes last and decides
                    own = [p.requires_grad for p in parent.parameters()]
                    out[id(child)] = any(own) if own else out.get(id(child), True)
        return out

    def _validator(self, init_times: np.ndarray) -> Validator:
        w = self.work
        return Validator(
            w.task,
            w.loader,
            init_times,
            self.area,
            w.trim,
            self.options.batch_size,
            self.rank,
            self.world,
            self._sum,
            self.part,
        )

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.world == 1:
            return values.cpu()
        return self.fabric.all_reduce(values.to(self.fabric.device), reduce_op="sum").cpu()

    def _replay(self, options: config.ReplayOptions) -> ReplayBuffer:
        own = self.work.train[self.rank :: self.world]
        own = own if len(own) else self.work.train[:1]
        share = config.ReplayOptions(-(-options.size // self.world), options.refresh, options.grow)
        folder = self.folder / "replay" / f"{self.rank}"
        return ReplayBuffer(
            folder, share, self.options.rollout_steps, own, self.options.seed + 1000 * self.rank
        )

    # --- the loop ---

    def rate(self, step: int) -> float:
        """Return the factor on the learning rate at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.options.schedule == "constant":
            return 1.0
        return 0.05 + 0.95 * 0.5 * (
            1.0 + math.cos(math.pi * (step - self.warmup) / max(self.total - self.warmup, 1))
        )

    def loop(self) -> None:
        """Train until the last step or early stopping."""
        options, task = self.options, self.work.task
        count = min(options.validations, self.total)
        scored = {round(self.total * (i + 1) / count) for i in range(count)}
        keep = options.checkpoint_steps(self.total)
        smooth = math.nan
        if self.replay is not None and not len(self.replay):
            self.replay.fill()
        with (
            Stop() as stop,
            self.log,
            bar(
                total=self.total,
                label="finetune",
                unit="step",
                shown=options.progress and self.rank == 0,
            ) as meter,
        ):
            meter.update(self.step)
            for times, samples in self._together(self._samples()):
                entry = self._one_step(times, samples)
                smooth = (
                    entry["loss"] if math.isnan(smooth) else 0.95 * smooth + 0.05 * entry["loss"]
                )
                self.step += 1
                last = self.step == self.total
                if self.step in scored:
                    last = self._validate(entry) or last
                self.work.result.history.append(entry)
                self.log.write(entry)
                if options.logger is not None:
                    self.fabric.log_dict(
                        {k: v for k, v in entry.items() if k != "step"}, step=self.step
                    )
                meter.update(1)
                best = (
                    f" best {told(self.work.result.config['scores'], task)}"
                    if math.isfinite(self.best)
                    else ""
                )
                meter.set_postfix_str(
                    f"loss {smooth:.4f} rate {entry['learning_rate']:.1e}{best}", refresh=False
                )
                asked = (
                    stop.signal is not None
                    if self.world == 1
                    else bool(self._sum(torch.tensor(float(stop.signal is not None))))
                )
                if asked and not last:
                    self.save_checkpoint()
                    self.log.__exit__()
                    say(
                        f"Stopped at step {self.step} of {self.total}; resume=True continues it.",
                        shown=self.rank == 0,
                    )
                    stop.again()
                if last:
                    break
                if self.step % keep == 0:
                    self.save_checkpoint()

    def _samples(self) -> Iterator[tuple[list[np.datetime64], list[tuple[Share, Sample | None]]]]:
        """Yield the init times and this process's batches of each step, read in advance."""
        options = self.options
        chosen = loading.order(
            self.work.train, options.samples_a_step, self.total, options.seed, self.step
        )

        def read(times: list[np.datetime64]) -> list[tuple[Share, Sample | None]]:
            parts = loading.shares(times, options.gradient_accumulation, self.rank, self.world)
            if self.replay is not None:
                return [(part, None) for part in parts]
            return [
                (part, self.work.loader.read(part.init_times, options.rollout_steps))
                for part in parts
            ]

        # Prefetch as many steps as fit into half the budget of the loader.
        each = (
            self.work.loader.frame_bytes
            * (2 + options.rollout_steps)
            * options.batch_size
            * options.gradient_accumulation
        )
        room = int(min(loading.AHEAD, self.work.loader.budget / 2 // each))
        return loading.ahead(chosen, read, options.workers, room)

    def _together(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield items; if reading fails in one process, raise in all of them."""
        if self.world == 1:
            yield from items
            return
        while True:
            item, error = None, None
            try:
                item = next(items)
            except StopIteration:
                return
            except XauroraError as found:
                error = found
            if float(self._sum(torch.tensor(float(error is not None)))):
                raise error or TrainingError(
                    "another process could not read its samples.",
                    fix="see the output of that process",
                )
            yield item

    def _one_step(
        self, times: list[np.datetime64], samples: list[tuple[Share, Sample | None]]
    ) -> dict[str, Any]:
        self._train_mode()
        sums: dict[str, torch.Tensor] = {}
        if self.replay is not None:
            times = self._replayed(sums)
        else:
            for i, (share, sample) in enumerate(samples):
                assert sample is not None
                self._forecasts(sample, share.weight, sums, final=i + 1 == len(samples))
        numbers = dict(
            zip(
                sums,
                self._sum(torch.stack([v.double() for v in sums.values()])).tolist(),
                strict=True,
            )
        )
        self._refuse_broken(numbers["loss"], times)
        self._put_back()
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.adamw)
        norm = self.fabric.clip_gradients(
            self.runner, self.optimizer, max_norm=self.options.clip, error_if_nonfinite=False
        )
        norm = float(parallel.whole(norm))
        if not self.scaler.is_enabled() and not math.isfinite(norm):
            self._refuse_broken(math.nan, times, "gradient")
        factor = self.rate(self.step)
        for group, rate in zip(self.adamw.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if self.scaler.is_enabled():
            self.scaler.step(self.adamw)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            # A smaller decay at first, so that the initial weights do not dominate the average.
            decay = min(float(self.options.ema or 0.0), (1.0 + self.step) / (10.0 + self.step))
            with torch.no_grad():
                for name, p in self.moving.items():
                    self.average[name].lerp_(p.detach(), 1.0 - decay)
        return self._entry(numbers, norm)

    def _train_mode(self) -> None:
        """Set training mode, but keep dropout off in modules without trainable parameters.

        Dropout in a frozen adapter would only add noise to the head's input.
        """
        if (
            self._trains
        ):  # already set; iterating over all modules takes as long as a step of the head
            return
        self._trains = True
        self.runner.train()
        for module in self.module.modules():
            if _drops(module) and not self._near[id(module)]:
                module.eval()

    def _forecasts(
        self, sample: Sample, weight: float, sums: dict[str, torch.Tensor], *, final: bool
    ) -> None:
        """Run forward and backward passes of one batch of forecasts."""
        if sample.batch is None:
            self._read(sample, weight, sums, final=final)
            return
        count = len(sample.truths)
        push = self.options.push_forward
        batch = rollout.prepare(self.module, sample.batch)
        total: Any = 0.0
        with contextlib.ExitStack() as held:
            if not push:
                held.enter_context(self._unsynced(not final))
            stepping = rollout.steps(self.module, batch, count, run=self.runner, push_forward=push)
            for k in range(count):
                with self._unsynced(push and not (final and k + 1 == count)):
                    step = next(stepping)
                    loss, parts = losses.of_step(
                        self.module,
                        step,
                        sample.truths[k],
                        self.area,
                        self.work.trim,
                        self.base_loss,
                        self.part,
                    )
                    _add(sums, {"loss": loss.detach(), **parts}, weight / count)
                    if push:
                        self._backward(loss * (weight / count))
                    else:
                        total = total + loss
                    del step
            if not push:
                self._backward(total * (weight / count))

    def _read(
        self, sample: Sample, weight: float, sums: dict[str, torch.Tensor], *, final: bool
    ) -> None:
        """Run forward and backward passes of the heads on stored latents."""
        latents = self.work.loader.latents.of(self.module, sample, self.fabric.device)
        with self._unsynced(not final):
            step = self.runner(None, latents=latents)
            loss, parts = losses.of_step(
                self.module, step, sample.truths[0], self.area, self.work.trim, 0.0, self.part
            )
            _add(sums, {"loss": loss.detach(), **parts}, weight)
            self._backward(loss * weight)

    def _unsynced(self, wanted: bool) -> Any:
        """Return a context that defers gradient synchronisation if ``wanted``.

        It is only entered when needed: Fabric's context for FSDP turns synchronisation off when it
        is left (``lightning_fabric/strategies/model_parallel.py``).
        """
        if wanted and self.world > 1:
            return self.fabric.no_backward_sync(self.runner)
        return contextlib.nullcontext()

    def _backward(self, loss: torch.Tensor) -> None:
        # Gradients are averaged over processes, while the weights sum to one over all processes.
        self.fabric.backward(
            self.scaler.scale(loss * self.world) if self.scaler.is_enabled() else loss * self.world
        )

    def _replayed(self, sums: dict[str, torch.Tensor]) -> list[np.datetime64]:
        """Advance forecasts from the buffer by one step and return their init times.

        They run one at a time, because a Batch has one rollout step for all its samples.
        """
        assert self.replay is not None
        count = self.options.batch_size * self.options.gradient_accumulation
        times = []
        for i in range(count):
            place = self.replay.draw(
                self.step / self.total, [p for p, _ in self._made], fresh=i == 0
            )
            entry = self.replay.entries[place]
            times.append(entry.time)
            batch = rollout.prepare(self.module, self.replay.batch(entry, self.work.loader))
            with self._unsynced(i + 1 < count):
                step = self.runner(batch)
                truth = self.work.loader.truth([entry.next_time])
                loss, parts = losses.of_step(
                    self.module, step, truth, self.area, self.work.trim, self.base_loss, self.part
                )
                weight = 1.0 / (count * self.world)
                _add(sums, {"loss": loss.detach(), **parts}, weight)
                self._backward(loss * weight)
            if entry.done + 1 < self.options.rollout_steps:
                self._made.append(
                    (place, rollout.detach(rollout.advance(self.module, batch, step.prediction)))
                )
            else:
                self._made.append((place, None))
            del step
        return times

    def _put_back(self) -> None:
        """Return the advanced forecasts to the buffer, once the loss is known to be finite."""
        for place, following in self._made:
            if self.replay is not None and following is None:
                self.replay.renew(place)
            elif self.replay is not None:
                self.replay.store(place, following)
        self._made = []

    def _entry(self, numbers: dict[str, float], norm: float) -> dict[str, Any]:
        """Return one entry of the log."""
        task = self.work.task
        entry: dict[str, Any] = {"step": self.step + 1}
        entry |= {k: v for k, v in numbers.items() if ":" not in k}
        for i, (name, (unit, factor)) in enumerate(task.units.items()):
            front = f"training_{prefix(i, name)}"
            entry[f"{front}rmse{unit}"] = math.sqrt(numbers[f"{name}:squares"]) * factor
            entry[f"{front}mae{unit}"] = numbers[f"{name}:absolute"] * factor
        if "base:squares" in numbers:
            entry["training_base_rmse"] = math.sqrt(numbers["base:squares"])
            entry["training_base_mae"] = numbers["base:absolute"]
        entry["gradient_norm"] = norm
        entry["learning_rate"] = float(self.adamw.param_groups[0]["lr"])
        if len(self.rates) > 1:
            entry |= {f"learning_rate_{g['name']}": float(g["lr"]) for g in self.adamw.param_groups}
        return entry

    def _refuse_broken(self, loss: float, times: list[np.datetime64], what: str = "loss") -> None:
        """Raise if the loss is not finite or has exploded, after saving what is still usable."""
        # The largest recent loss counts as well as the median: over a desert nearly all losses are
        # close to zero, and a shower is not an explosion.
        usual = (
            max(float(np.median(self.recent)), 0.1 * max(self.recent), 1e-2)
            if len(self.recent) >= 10
            else math.inf
        )
        exploded = math.isfinite(loss) and loss > _EXPLOSION * usual > 0
        if math.isfinite(loss) and not exploded:
            self.recent = [*self.recent[1 - _WATCHED :], loss]
            return
        kept = []
        if not self.saved and self.step and not exploded and self._sound():
            # Saved only if there is no earlier checkpoint: finite weights may still be bad.
            self.optimizer.zero_grad(set_to_none=True)
            self.save_checkpoint()
        if self.saved:
            kept.append(
                f"the last good state (step {self.saved}) is in"
                f" '{self.folder / checkpoints.FOLDER}'"
            )
        if math.isfinite(self.best):
            kept.append(f"the best so far is in '{self.folder / 'best'}'")
        named = ", ".join(str(t.astype("datetime64[m]")) for t in times)
        raise TrainingError(
            f"the {what} became {loss:g}"
            + (f", more than {_EXPLOSION:g} times the recent losses," if exploded else "")
            + f" at step {self.step}, at init time(s) {named}."
            + (f" {_capital('; '.join(kept))}." if kept else ""),
            fix=(
                "check those fields with ds.aurora.check(), correct them and use resume=True; or"
                " use a smaller learning_rate in another out="
            )
            + (f", from model='{self.folder / 'best'}'" if math.isfinite(self.best) else ""),
        )

    def _sound(self) -> bool:
        return all(
            bool(torch.isfinite(parallel.whole(p.detach())).all()) for p in self.moving.values()
        )

    # --- validation, and what is kept ---

    def _validate(self, entry: dict[str, Any]) -> bool:
        """Score the model and save it if it is the best. Return whether to stop early."""
        result = self.work.result
        self._trains = False
        with self._averaged():
            scores = self.validator.score(self.module)
            entry.update(scores)
            if scores["validation_skill_score"] > self.best:
                self.best, self.waited = scores["validation_skill_score"], 0
                result.config["scores"] = {**scores, "step": self.step}
                self._keep("best", [*result.history, entry])
            else:
                self.waited += 1
        return (
            self.options.early_stopping is not None and self.waited >= self.options.early_stopping
        )

    def _keep(self, name: str, history: list[dict[str, Any]]) -> None:
        """Save the complete artefact from the first process."""
        result = self.work.result
        self._gather()

        def save() -> None:
            TunedAurora(result.model, result.needs, result.config, history).save(self.folder / name)

        parallel.first(self.fabric, save)

    def _gather(self) -> None:
        """Gather sharded weights into the copy that is saved."""
        if not self.sharded:
            return
        whole = {n: parallel.whole(v.detach()).cpu() for n, v in self.module.state_dict().items()}
        self.work.result.model.load_state_dict(whole)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Swap the moving average in for the weights."""
        if self.average is None:
            yield
            return
        with torch.no_grad():
            held = {n: p.detach().clone() for n, p in self.moving.items()}
            for name, p in self.moving.items():
                p.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.moving.items():
                    p.copy_(held[name])

    def close(self) -> None:
        """Save the last model, restore the best one and score it on all validation samples."""
        result, work, options = self.work.result, self.work, self.options
        entry = result.history[-1]
        if not math.isfinite(self.best):
            raise TrainingError(
                "no validation gave a finite score, so no best model was saved.",
                fix="a smaller learning_rate",
            )
        best = result.config["scores"]
        with self._averaged():
            result.config["scores"] = {
                **{k: v for k, v in entry.items() if k.startswith("validation")},
                "step": self.step,
            }
            self._keep("last", result.history)
        # Free the training state before loading the best model, or memory would peak here.
        self.adamw.state.clear()
        self.average = None
        if self.rank == 0:
            best = result.take(self.folder / "best", {n.removeprefix("base.") for n in self.moving})
        best = self.fabric.broadcast(best)
        if self.world > 1:
            for p in result.model.parameters():
                p.data.copy_(self.fabric.broadcast(p.detach().cpu()))
        if self.sharded:
            state = result.model.state_dict()
            with torch.no_grad():
                for name, tensor in self.module.state_dict().items():
                    tensor.copy_(parallel.like(state[name], tensor))
        result.config["scores"] = best
        if len(self.interim) < len(work.validation):
            final = self._validator(work.validation).score(self.module)
            result.config["scores"] = {**final, "step": best["step"]}
        model = result.model
        model.to("cpu")
        execution.set_precision(model.base, "32", torch.device("cpu"))
        model.eval()
        # As in a newly built model: Torch picks other kernels for parameters without gradients, and
        # forecasts would differ in the last bit.
        model.requires_grad_(True)
        result.config["training"]["steps"] = self.step

        def save() -> None:
            result.save(self.folder / "best")
            checkpoints.finish(
                self.folder, {"settings": work.settings, "step": self.step, "total": self.total}
            )

        parallel.first(self.fabric, save)
        result.path = self.folder / "best"
        scores = result.config["scores"]
        early = (
            f" (stopped after {self.step} of {self.total} steps)" if self.step < self.total else ""
        )
        rival = "persistence" if not work.task.units else "climatology"
        say(
            f"Best at step {scores['step']}{early}: {'CRPS' if work.task.units else 'loss'}"
            f" {told(scores, work.task)}, {rival} {told(scores, work.task, 'climatology_crps')};"
            f" saved in {self.folder / 'best'}",
            shown=options.progress and self.rank == 0,
        )

    # --- checkpoints ---

    def save_checkpoint(self) -> None:
        """Save everything needed to resume."""
        weights = {n: parallel.whole(p.detach()).cpu() for n, p in self.moving.items()}
        optimizer = {
            name: {
                k: parallel.whole(v).cpu() if torch.is_tensor(v) else v
                for k, v in self.adamw.state[p].items()
            }
            for name, p in self.moving.items()
            if p in self.adamw.state
        }
        average = (
            {n: parallel.whole(v).cpu() for n, v in self.average.items()}
            if self.average is not None
            else None
        )
        random = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        tensors = {
            "weights": weights,
            "optimizer": optimizer,
            "average": average,
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            "random": self._everyones(random),
        }
        run = {
            "settings": self.work.settings,
            "step": self.step,
            "total": self.total,
            "best": self.best if math.isfinite(self.best) else None,
            "scores": self.work.result.config.get("scores", {}),
            "waited": self.waited,
            "recent": self.recent,
            "replay": self._everyones(self.replay.state() if self.replay is not None else None),
        }

        def save() -> None:
            self.log.sync()
            checkpoints.save(self.folder, run, tensors)

        parallel.first(self.fabric, save)
        if self.replay is not None:
            self.replay.checkpointed()
        self.saved = self.step

    def _everyones(self, value: Any) -> list[Any]:
        """Gather a value from every process, in rank order."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(out, value)
        return out

    def restore(self, run: dict[str, Any]) -> None:
        """Resume from a checkpoint.

        Raises
        ------
        CheckpointError
            If it does not fit the model or is damaged.
        """
        state = checkpoints.read_tensors(self.folder)
        checkpoints.compare_tensors(self.folder, "weights", self._shapes(), state["weights"])
        flat = {
            f"{n} {k}": v
            for n, part in state["optimizer"].items()
            for k, v in part.items()
            if k != "step"
        }
        if flat:
            shapes = {
                f"{n} {k}": p for n, p in self._shapes().items() for k in ("exp_avg", "exp_avg_sq")
            }
            checkpoints.compare_tensors(self.folder, "optimiser's state", shapes, flat)
        with torch.no_grad():
            for name, p in self.moving.items():
                p.copy_(parallel.like(state["weights"][name], p))
                if name in state["optimizer"]:
                    self.adamw.state[p] = {
                        k: v if k == "step" else parallel.like(v, p)
                        for k, v in state["optimizer"][name].items()
                    }
                if self.average is not None:
                    self.average[name].copy_(parallel.like(state["average"][name], p))
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        random = state["random"][self.rank]
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.fabric.device)
        if self.replay is not None:
            self.replay.restore(run["replay"][self.rank])
        self.step = self.saved = run["step"]
        self.best = -math.inf if run["best"] is None else run["best"]
        if run["scores"]:
            self.work.result.config["scores"] = run["scores"]
        self.waited, self.recent = run["waited"], run["recent"]
        checkpoints.check_best(self.folder, expected=math.isfinite(self.best))
        self.work.result.history[:] = self.log.keep(self.step)
        say(
            f"Resuming at step {self.step} of {self.total}.",
            shown=self.options.progress and self.rank == 0,
        )

    def _shapes(self) -> dict[str, torch.Tensor]:
        return dict(self.moving)  # a sharded parameter reports its full shape


def _drops(module: torch.nn.Module) -> bool:
    """Return whether a module is dropout or timm's stochastic depth."""
    return isinstance(module, torch.nn.Dropout) or type(module).__name__ == "DropPath"


def _area(grid: grids.Grid, device: torch.device) -> torch.Tensor:
    """Return the relative cell areas, ``(h, 1)``."""
    return torch.from_numpy(latitude_weights(grid.latitude)).float().to(device)[:, None]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _add(sums: dict[str, torch.Tensor], parts: dict[str, torch.Tensor], weight: float) -> None:
    for name, value in parts.items():
        sums[name] = sums.get(name, torch.zeros_like(value)) + value * weight

"""One optimiser step: the forward and backward passes of its batches."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xaurora.model import rollout
from xaurora.model.aurora import AuroraWithHead, Step
from xaurora.model.loader import Loader, Sample, Truth
from xaurora.training import losses
from xaurora.training.losses import Domains
from xaurora.training.nested_options import ReplayOptions
from xaurora.training.optimisation import Optimisation
from xaurora.training.plan import Plan
from xaurora.training.replay import Entry, ReplayBuffer
from xaurora.training.samples import Microbatch
from xaurora.training.sound import SoundReader

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_fabric import Fabric

Sums = dict[str, torch.Tensor]


class BatchRunner:
    """Runs the batches of an optimiser step, and adds their gradients.

    Parameters
    ----------
    fabric : Fabric
    module : AuroraWithHead
    plan : Plan
    loader : Loader
    optimisation : Optimisation
    domains : Domains
        Where the base's variables and the targets are scored.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: AuroraWithHead,
        plan: Plan,
        loader: Loader,
        optimisation: Optimisation,
        domains: Domains,
    ) -> None:
        self.fabric, self.module, self.options = fabric, module, plan.options
        self.loader, self.optimisation, self.domains = loader, optimisation, domains
        self.base_loss = plan.options.base_loss if plan.scores_base else 0.0
        self.trainable_dropouts = _trainable_dropouts(module)
        self._in_train_mode = False

    def train_mode(self) -> None:
        """Set training mode. Dropout acts only where parameters train, not in a frozen adapter."""
        if self._in_train_mode:  # walking through all modules takes as long as a head's own step
            return
        self._in_train_mode = True
        self.optimisation.runner.train()
        for module in self.module.modules():
            if _is_dropout(module) and not self.trainable_dropouts[id(module)]:
                module.eval()

    def left_train_mode(self) -> None:
        """Note that validation has set evaluation mode."""
        self._in_train_mode = False

    def run(self, batches: list[tuple[Microbatch, Sample]]) -> Sums:
        """Run this process's batches of a step; return the weighted means that are logged."""
        sums: Sums = {}
        for i, (microbatch, sample) in enumerate(batches):
            final = i + 1 == len(batches)
            if sample.batch is None:
                self._run_on_latents(sample, microbatch.weight, sums, final=final)
            else:
                self._run_rollout(sample, microbatch.weight, sums, final=final)
        return sums

    def loss_of(self, step: Step, truth: Truth, weight: float, sums: Sums) -> torch.Tensor:
        """Return the loss of a forecast step, and add its parts to the weighted means."""
        loss, parts = losses.step_loss(self.module, step, truth, self.domains, self.base_loss)
        for name, value in {"loss": loss.detach(), **parts}.items():
            sums[name] = sums.get(name, 0.0) + value * weight
        return loss

    def _run_rollout(self, sample: Sample, weight: float, sums: Sums, *, final: bool) -> None:
        count, push = len(sample.truths), self.options.push_forward
        unsynced = self.optimisation.unsynced
        batch = rollout.prepare(self.module, sample.batch)
        total: Any = 0.0
        with contextlib.ExitStack() as held:
            if not push:
                held.enter_context(unsynced(not final))
            steps = rollout.steps(
                self.module, batch, count, run=self.optimisation.runner, push_forward=push
            )
            for k in range(count):
                with unsynced(push and not (final and k + 1 == count)):
                    step = next(steps)
                    loss = self.loss_of(step, sample.truths[k], weight / count, sums)
                    if push:
                        self.optimisation.backward(loss * (weight / count))
                    else:
                        total = total + loss
                    del step
            if not push:
                self.optimisation.backward(total * (weight / count))

    def _run_on_latents(self, sample: Sample, weight: float, sums: Sums, *, final: bool) -> None:
        latents = self.loader.latents.of(self.module, sample, self.fabric.device)
        with self.optimisation.unsynced(not final):
            step = self.optimisation.runner(None, latents=latents)
            loss = self.loss_of(step, sample.truths[0], weight, sums)
            self.optimisation.backward(loss * weight)


class ReplayRunner:
    """Advances forecasts of the replay buffer by one step each.

    Parameters
    ----------
    batches : BatchRunner
    options : ReplayOptions
    reader : SoundReader
        Of the training samples of all processes.
    folder : path
        Of the run.
    """

    def __init__(
        self, batches: BatchRunner, options: ReplayOptions, reader: SoundReader, folder: Path
    ) -> None:
        self.batches, self.reader = batches, reader
        init_times = reader.init_times
        rank, world = batches.fabric.global_rank, batches.fabric.world_size
        own = init_times[rank::world]
        self.buffer = ReplayBuffer(
            folder / "replay" / f"{rank}",
            ReplayOptions(-(-options.size // world), options.refresh, options.grow),
            batches.options.rollout_steps,
            own if len(own) else init_times[:1],
            batches.options.seed + 1000 * rank,
        )
        self._advanced: list[tuple[int, Any]] = []

    def run(self, progress: float) -> tuple[list[np.datetime64], Sums]:
        """Advance as many forecasts as a step takes.

        Each runs on its own, because a Batch has one rollout step for all its samples.

        Returns
        -------
        tuple
            Their init times, and the weighted means that are logged.
        """
        batches, times = self.batches, []
        sums: Sums = {}
        module, optimisation = batches.module, batches.optimisation
        count = batches.options.batch_size * batches.options.gradient_accumulation
        weight = 1.0 / (count * batches.fabric.world_size)
        for i in range(count):
            place = self.buffer.draw(progress, [p for p, _ in self._advanced], fresh=i == 0)
            entry = self._sound_entry(place)
            times.append(entry.time)
            batch = rollout.prepare(module, self.buffer.batch(entry, batches.loader))
            with optimisation.unsynced(i + 1 < count):
                step = optimisation.runner(batch)
                truth = batches.loader.truth([entry.next_time])
                loss = batches.loss_of(step, truth, weight, sums)
                optimisation.backward(loss * weight)
            following = None
            if entry.done + 1 < batches.options.rollout_steps:
                following = rollout.detach(rollout.advance(module, batch, step.prediction))
            self._advanced.append((place, following))
            del step
        return times, sums

    def _sound_entry(self, place: int) -> Entry:
        """Return an entry of the buffer; a new one starts from a sample that can be read."""
        entry = self.buffer.entries[place]
        if not entry.done and (time := self.reader.sound(entry.time)) != entry.time:
            self.buffer.start(place, time)
        return self.buffer.entries[place]

    def return_to_buffer(self) -> None:
        """Store the advanced forecasts, once the loss has been accepted."""
        for place, following in self._advanced:
            if following is None:
                self.buffer.renew(place)
            else:
                self.buffer.store(place, following)
        self._advanced = []


def has_dropout(module: torch.nn.Module) -> bool:
    """Return whether a module is random in training where it has parameters that train."""
    trained = _trainable_dropouts(module)
    rates = {id(m): getattr(m, "p", None) or getattr(m, "drop_prob", 0.0) for m in module.modules()}
    return any(used and rates[key] for key, used in trained.items())


def _is_dropout(module: torch.nn.Module) -> bool:
    """Return whether a module is random in training: dropout, or timm's stochastic depth."""
    return isinstance(module, torch.nn.Dropout) or type(module).__name__ == "DropPath"


def _trainable_dropouts(module: torch.nn.Module) -> dict[int, bool]:
    """Return, by id of each dropout module, whether what it belongs to has trainable parameters.

    It belongs to the innermost module around it that has parameters.
    """
    out: dict[int, bool] = {}

    def visit(part: torch.nn.Module) -> tuple[list[bool], list[int]]:
        """Return which parameters are trainable, and the dropouts that belong to none yet."""
        trainable = [p.requires_grad for p in part.parameters(recurse=False)]
        dropouts = [id(part)] if _is_dropout(part) else []
        for child in part.children():
            below, undecided = visit(child)
            trainable += [any(below)] if below else []
            dropouts += undecided
        if trainable:
            out.update(dict.fromkeys(dropouts, any(trainable)))
            dropouts = []
        return trainable, dropouts

    _, without_parameters = visit(module)
    return out | dict.fromkeys(without_parameters, True)

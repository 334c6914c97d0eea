"""Training in JAX behind the interface of the Torch steps: batches, and the optimiser."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch
from aurora import Batch

from xaurora.jax import precision
from xaurora.jax import training as engine
from xaurora.jax.encodings import time_encodings
from xaurora.jax.module import JaxModule, Net
from xaurora.jax.weights import to_jax, to_torch
from xaurora.model import rollout
from xaurora.model.loader import Loader, Sample, Truth
from xaurora.model.normalisation import atmos_statistics, surface_statistics
from xaurora.training import losses, optimisation
from xaurora.training.losses import Domains
from xaurora.training.options import TrainingOptions
from xaurora.training.plan import Plan
from xaurora.training.samples import Microbatch

Sums = dict[str, torch.Tensor]


class JaxOptimisation:
    """What :class:`~xaurora.training.optimisation.Optimisation` is in Torch.

    The weights that train live here, in JAX. The Torch modules get them when the model is scored or
    saved (:meth:`averaged`). A checkpoint has the form of Torch's, so that either engine resumes
    it.

    Parameters
    ----------
    module : JaxModule
    groups : list of dict
        Parameter groups, with ``lr`` and ``name``.
    options : TrainingOptions
    total : int
        Optimiser steps of the run.
    """

    skips_overflows = False

    def __init__(
        self,
        module: JaxModule,
        groups: list[dict[str, Any]],
        options: TrainingOptions,
        *,
        total: int,
    ) -> None:
        self.module, self.options, self.total = module, options, total
        known = {id(p): name for name, p in module.named_parameters()}
        self.groups = [
            {"name": g.get("name", ""), "lr": g["lr"], "names": [known[id(p)] for p in g["params"]]}
            for g in groups
        ]
        rates = {name: g["lr"] for g in self.groups for name in g["names"]}
        self.trained, self.held = engine.split(module.net, module.names, set(rates))
        self._names = engine.split(module.names, module.names, set(rates))[0]
        self._rates = jax.tree.map(lambda name: np.float32(rates[name]), self._names)
        self.factor = 0.0
        self.optimizer = engine.Optimizer(options.clip, options.weight_decay, optimisation.BETAS)
        self.state_of_chain = self.optimizer.start(self.trained)
        self.average = self.trained if options.ema is not None else None
        self.gradient: Net | None = None
        own = dict(module.named_parameters())
        self.parameters = {name: own[name] for name in jax.tree.leaves(self._names)}

    def rate_factor(self, step: int) -> float:
        """Return the factor on the peak learning rate at a step, counted from 0."""
        return optimisation.rate_factor(self.options, self.total, step)

    def clip(self) -> float:
        """Return the norm of the gradient. It is clipped in :meth:`step`."""
        with precision.exact():
            return float(engine.norm(self.gradient))

    def step(self, number: int) -> None:
        """Update the weights and their moving average. ``number`` counts from 0."""
        self.factor = self.rate_factor(number)
        rates = jax.tree.map(lambda rate: np.float32(rate * self.factor), self._rates)
        with precision.exact():
            self.trained, self.state_of_chain = self.optimizer.update(
                self.trained, self.state_of_chain, self.gradient, rates
            )
            if self.average is not None:
                decay = optimisation.ema_decay(self.options, number)
                self.average = engine.averaged(self.average, self.trained, np.float32(decay))
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.gradient = None

    def learning_rates(self) -> dict[str, float]:
        """Return the present learning rates, as they are logged."""
        return optimisation.logged_rates([(g["name"], g["lr"] * self.factor) for g in self.groups])

    def is_finite(self) -> bool:
        """Return whether all weights that train are finite."""
        return all(bool(np.isfinite(np.asarray(v)).all()) for v in jax.tree.leaves(self.trained))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the module the moving average if there is one, otherwise the present weights."""
        kept = self.trained if self.average is None else self.average
        self.module.net = engine.combine(kept, self.held)
        self.write_back()
        try:
            yield
        finally:
            self.module.net = engine.combine(self.trained, self.held)

    def write_back(self) -> None:
        """Copy the module's weights into its Torch modules."""
        self.module.write_back(set(self.parameters))

    def release(self) -> None:
        """Free the optimiser's state and the moving average."""
        self.state_of_chain = self.average = None

    # --- checkpoints ---

    def _named(self, net: Net) -> dict[str, torch.Tensor]:
        names, values = jax.tree.leaves(self._names), jax.tree.leaves(net)
        return {n: to_torch(v) for n, v in zip(names, values, strict=True)}

    def _as_net(self, tensors: dict[str, torch.Tensor]) -> Net:
        net = jax.tree.map(lambda name: to_jax(tensors[name]), self._names)
        return jax.device_put(net, jax.tree.leaves(self.trained)[0].sharding)

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint needs, in the form of Torch's."""
        adam = engine.adam_state(self.state_of_chain)
        first, second = self._named(adam.mu), self._named(adam.nu)
        count = torch.tensor(float(adam.count))
        moments = {
            name: {"step": count.clone(), "exp_avg": first[name], "exp_avg_sq": second[name]}
            for name in first
        }
        return {
            "weights": self._named(self.trained),
            "optimizer": moments if int(adam.count) else {},
            "average": self._named(self.average) if self.average is not None else None,
            "scaler": None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned, or Torch's."""
        self.trained = self._as_net(state["weights"])
        if moments := state["optimizer"]:
            count = int(next(iter(moments.values()))["step"])
            first, second = (
                self._as_net({name: own[key] for name, own in moments.items()})
                for key in ("exp_avg", "exp_avg_sq")
            )
            self.state_of_chain = engine.with_adam_state(
                self.state_of_chain, jax.numpy.int32(count), first, second
            )
        if self.average is not None:
            self.average = self._as_net(state["average"])
        self.module.net = engine.combine(self.trained, self.held)


class JaxBatchRunner:
    """What :class:`~xaurora.training.steps.BatchRunner` is in Torch.

    Parameters
    ----------
    module : JaxModule
    plan : Plan
    loader : Loader
    optimisation : JaxOptimisation
    domains : Domains
    """

    def __init__(
        self,
        module: JaxModule,
        plan: Plan,
        loader: Loader,
        optimisation: JaxOptimisation,
        domains: Domains,
    ) -> None:
        self.module, self.options, self.loader = module, plan.options, loader
        self.optimisation, self.domains = optimisation, domains
        self.task = engine.Task(
            module.form(),
            plan.options.rollout_steps,
            plan.options.push_forward,
            plan.options.base_loss if plan.scores_base else 0.0,
        )
        self.scales = self._scales(plan)

    def train_mode(self) -> None:
        """Do nothing: this engine has no dropout."""

    def left_train_mode(self) -> None:
        """Do nothing: this engine has no dropout."""

    def _scales(self, plan: Plan) -> engine.Scales:
        base, levels = self.module.base, self.module.levels
        rows, columns = self.domains.base.trim
        area = np.zeros(plan.grid.shape, np.float32)
        area[rows, columns] = self.domains.base.area.numpy()[rows]
        return engine.Scales(
            {n: np.float32(surface_statistics(base, n)[1]) for n in base.surf_vars},
            {
                n: np.array([s for _, s in atmos_statistics(base, n, levels)], np.float32)[
                    :, None, None
                ]
                for n in base.atmos_vars
            },
            {
                kind: {n: np.float32(losses.base_weight(kind, n)) for n in names}
                for kind, names in (("surface", base.surf_vars), ("atmos", base.atmos_vars))
            },
            area,
        )

    def run(self, batches: list[tuple[Microbatch, Sample]]) -> Sums:
        """Add up the gradients of a step's batches; return the weighted means that are logged."""
        sums: Sums = {}
        self.module.net = engine.combine(self.optimisation.trained, self.optimisation.held)
        for microbatch, sample in batches:
            if sample.batch is None:
                cpu = torch.device("cpu")
                found = self.loader.latents.of(self.module, sample, cpu)
                latents = to_jax(self.module.filled(found))
                inputs: tuple[Any, ...] = (latents, self._truths(sample), self.scales)
                loss: Callable[..., tuple[engine.Array, engine.Sums]] = engine.latents_loss
                held = engine.heads_of(self.optimisation.held)
            else:
                batch = rollout.prepare(self.module, sample.batch)
                frames, static, place, _ = self.module.inputs_of(batch)
                place = place._replace(time=self._times(batch))
                inputs = (frames, static, place, self._truths(sample), self.scales)
                loss, held = engine.rollout_loss, self.optimisation.held
            with precision.exact():
                gradient, value, parts = engine.gradient(
                    self.optimisation.trained,
                    held,
                    inputs,
                    np.float32(microbatch.weight),
                    self.optimisation.gradient,
                    task=self.task,
                    loss=loss,
                )
            self.optimisation.gradient = gradient
            for name, own in {"loss": value, **parts}.items():
                sums[name] = sums.get(name, torch.zeros(())) + float(own) * microbatch.weight
        return sums

    def _times(self, batch: Batch) -> np.ndarray:
        """Return the time encodings of all steps, ``(k, b, d)``."""
        base, times = self.module.base, self.module.filled_times(batch)
        return np.stack(
            [
                np.asarray(time_encodings(base, [t + base.timestep * k for t in times])[1])
                for k in range(self.task.steps)
            ]
        )

    def _truths(self, sample: Sample) -> engine.Truth:
        """Return the truths of all steps, with the step as the first axis."""
        steps = [self._truth(truth, len(sample.init_times)) for truth in sample.truths]
        return jax.tree.map(lambda *v: np.stack(v), *steps)

    def _truth(self, truth: Truth, count: int) -> engine.Truth:
        def filled(values: torch.Tensor) -> np.ndarray:
            return self.module.filled(values).numpy()

        domain = self.domains.targets
        rows, columns = domain.trim
        targets, weights = {}, {}
        for name, head in self.module.heads.items():
            target = truth.targets[name]
            weight = torch.zeros(target.shape)
            inside = torch.isfinite(target) * domain.area
            weight[..., rows, columns] = inside[..., rows, columns]
            targets[name] = filled(losses.valid_target(head, target))
            weights[name] = filled(weight)
        state = truth.state if self.task.base_loss and truth.state is not None else {}
        return engine.Truth(
            targets,
            weights,
            {
                n: filled(v)
                for n, v in state.get("surface", {}).items()
                if n not in self.module.inputs
            },
            {n: filled(v) for n, v in state.get("atmos", {}).items()},
            np.where(np.arange(self.module.padded_size(count)) < count, 1.0 / count, 0.0).astype(
                np.float32
            ),
        )

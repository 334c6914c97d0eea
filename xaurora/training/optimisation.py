"""The optimiser of a run: AdamW, schedule, loss scaling and moving average of the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from xaurora.model import execution
from xaurora.model.aurora import AuroraWithHead
from xaurora.training import eight_bit, parallel
from xaurora.training.options import TrainingOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_FLOOR = 0.05  # of the peak learning rate, at the end of the cosine
BETAS = (0.9, 0.95)  # Bodnar et al. (2025), supplement D


class Optimisation:
    """Everything that changes the weights.

    Parameters
    ----------
    fabric : Fabric
    module : AuroraWithHead
    groups : list of dict
        Parameter groups, with ``lr`` and ``name``.
    options : TrainingOptions
    total : int
        Optimiser steps of the run.
    sharded : bool
        Whether the weights are sharded over devices.
    trained : list of dict, optional
        Groups of the parameters that the optimiser changes in place of those of ``groups``, which
        are the module's.

    Attributes
    ----------
    runner : module
        What runs the module, wrapped for distributed training.
    parameters : dict
        Parameters that train, by name. Sharding replaces the parameter objects, names stay.
    average : dict or None
        Moving average of the parameters.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: AuroraWithHead,
        groups: list[dict[str, Any]],
        options: TrainingOptions,
        *,
        total: int,
        sharded: bool,
        trained: list[dict[str, Any]] | None = None,
    ) -> None:
        self.fabric, self.options, self.total = fabric, options, total
        names = {id(p): name for name, p in module.named_parameters()}
        by_name = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in groups]
        self.runner = fabric.setup_module(module, move_to_device=not sharded)
        found = dict(module.named_parameters())
        if trained is None:
            trained = [{**g, "params": [found[name] for name in g["params"]]} for g in by_name]
        self.parameters = {
            name: p
            for named, own in zip(by_name, trained, strict=True)
            for name, p in zip(named["params"], own["params"], strict=True)
        }
        self.rates = [g["lr"] for g in by_name]
        self.eight_bit = options.optimizer_state == "8bit"
        how: dict[str, Any] = {"weight_decay": options.weight_decay, "betas": BETAS}
        if self.eight_bit:
            self.adamw = eight_bit.adamw(trained, **how)
        else:
            # The fused optimiser makes one pass over memory. Sharded parameters need the plain one.
            self.adamw = torch.optim.AdamW(trained, fused=not sharded, **how)
        self.optimizer: Any = fabric.setup_optimizers(self.adamw)
        self.scaler = torch.amp.GradScaler(
            fabric.device.type, enabled=execution.uses_fp16(module.base)
        )
        self.average = (
            {name: p.detach().clone() for name, p in self.parameters.items()}
            if options.ema is not None
            else None
        )

    def rate_factor(self, step: int) -> float:
        """Return the factor on the peak learning rate at a step, counted from 0."""
        return rate_factor(self.options, self.total, step)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss.

        Gradients are averaged over processes, while the weights of a step's batches add up to one
        over all of them.
        """
        loss = loss * self.fabric.world_size
        self.fabric.backward(self.scaler.scale(loss) if self.scaler.is_enabled() else loss)

    def unsynced(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which gradients are not yet exchanged between processes.

        It is never entered without need: on exit Fabric's context for FSDP turns synchronisation
        off (``lightning_fabric/strategies/model_parallel.py``).
        """
        if wanted and self.fabric.world_size > 1:
            return self.fabric.no_backward_sync(self.runner)
        return nullcontext()

    def clip(self) -> float:
        """Clip the gradient, and return its norm before that."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.adamw)
        norm: Any = self.fabric.clip_gradients(
            self.runner, self.optimizer, max_norm=self.options.clip, error_if_nonfinite=False
        )
        return float(parallel.gather(norm))

    @property
    def skips_overflows(self) -> bool:
        """Whether steps whose gradient is not finite are left out, as loss scaling does."""
        return self.scaler.is_enabled()

    def step(self, number: int) -> None:
        """Update the weights and their moving average. ``number`` counts from 0."""
        factor = self.rate_factor(number)
        for group, rate in zip(self.adamw.param_groups, self.rates, strict=True):
            if torch.is_tensor(group["lr"]):  # compiled kernels read it
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor
        with eight_bit.compiled_on(self.fabric.device) if self.eight_bit else nullcontext():
            if self.scaler.is_enabled():
                self.scaler.step(self.adamw)
                self.scaler.update()
            else:
                self.optimizer.step()
        self.zero_grad()
        if self.average is not None:
            decay = ema_decay(self.options, number)
            with torch.no_grad():
                for name, p in self.parameters.items():
                    self.average[name].lerp_(p.detach(), 1.0 - decay)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def learning_rates(self) -> dict[str, float]:
        """Return the present learning rates, as they are logged."""
        groups = self.adamw.param_groups
        return logged_rates([(g.get("name", ""), float(g["lr"])) for g in groups])

    def is_finite(self) -> bool:
        """Return whether all weights that train are finite."""
        return all(
            bool(torch.isfinite(parallel.gather(p.detach())).all())
            for p in self.parameters.values()
        )

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the moving average in place of the weights, if there is one."""
        if self.average is None:
            yield
            return
        with torch.no_grad():
            held = {name: p.detach().clone() for name, p in self.parameters.items()}
            for name, p in self.parameters.items():
                p.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(held[name])

    def release(self) -> None:
        """Free the optimiser's state and the moving average."""
        self.adamw.state.clear()
        self.average = None

    # --- checkpoints ---

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint needs, gathered from all devices."""
        optimizer = {
            name: {
                key: parallel.gather(v).cpu() if torch.is_tensor(v) else v
                for key, v in self.adamw.state[p].items()
            }
            for name, p in self.parameters.items()
            if p in self.adamw.state
        }

        def gathered(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
            return {name: parallel.gather(v.detach()).cpu() for name, v in tensors.items()}

        return {
            "weights": gathered(self.parameters),
            "optimizer": optimizer,
            "average": gathered(self.average) if self.average is not None else None,
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(parallel.shard_like(state["weights"][name], p))
                if name in state["optimizer"]:
                    self.adamw.state[p] = {
                        key: v if key == "step" else parallel.shard_like(v, p)
                        for key, v in state["optimizer"][name].items()
                    }
                if self.average is not None:
                    self.average[name].copy_(parallel.shard_like(state["average"][name], p))
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def rate_factor(options: TrainingOptions, total: int, step: int) -> float:
    """Return the factor on the peak learning rate at a step of ``total``, counted from 0."""
    warmup = options.warmup_steps(total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(total - warmup, 1)
    return _FLOOR + (1.0 - _FLOOR) * 0.5 * (1.0 + math.cos(math.pi * progress))


def ema_decay(options: TrainingOptions, step: int) -> float:
    """Return the decay of the moving average at a step, counted from 0.

    Its memory is short at first, otherwise the initial weights would dominate.
    """
    return min(float(options.ema or 0.0), (1.0 + step) / (10.0 + step))


def logged_rates(groups: list[tuple[str, float]]) -> dict[str, float]:
    """Return the learning rates of named groups, as they are logged."""
    out = {"learning_rate": groups[0][1]}
    if len(groups) > 1:
        out |= {f"learning_rate_{name}": rate for name, rate in groups}
    return out

"""Costs of training steps that were simulated before."""

from __future__ import annotations

import torch

from xaurora.training.plan import Plan
from xaurora.training.simulate import StepCost, simulate

_known: dict[tuple[object, ...], StepCost] = {}

_OF_THE_RUN = (
    *("epochs", "steps", "validations", "checkpoint_every", "early_stopping", "resume"),
    *("overwrite", "wait", "workers", "first_look", "strict", "seed", "progress", "logger"),
    *("truth", "statistics", "train", "validation", "out", "memory", "weights"),
)
"""Options that change no step."""


def cost_of_step(plan: Plan, where: torch.device, *, gpu: bool) -> StepCost:
    """Return the cost of a training step, as :func:`xaurora.training.simulate.simulate` counts it.

    At 0.25° that takes up to half a minute, so the costs of named models are kept. The user may
    change the others.
    """
    if plan.tuned is not None or plan.model.instance is not None:
        return simulate(plan, where, gpu=gpu)
    key = _key(plan, where, gpu=gpu)
    if key not in _known:
        _known[key] = simulate(plan, where, gpu=gpu)
    return _known[key]


def _key(plan: Plan, where: torch.device, *, gpu: bool) -> tuple[object, ...]:
    """Return all that the cost of a step can depend on, for a model that is known by its name."""
    options = {**vars(plan.options), **dict.fromkeys(_OF_THE_RUN)}
    targets = [(t.name, t.is_rain) for t in plan.targets]
    what = (plan.trains_base_variables, plan.target_is_input, plan.heads, targets, plan.strategy)
    described = repr((options, what, plan.needs, plan.fields.levels, plan.window))
    grid = (plan.grid.latitude.tobytes(), plan.grid.true_longitude.tobytes())
    return (plan.name, described, *grid, where, gpu)

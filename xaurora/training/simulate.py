"""Go through training steps with tensors that have shapes and no values."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from aurora import Aurora, Batch
from torch._subclasses.fake_tensor import FakeTensorMode

from xaurora.fields import targets
from xaurora.model import adapters, execution, heads, placement, rollout
from xaurora.model import aurora as models
from xaurora.model.batch import metadata
from xaurora.model.loader import Truth
from xaurora.model.memory import LiveBytes, imagined, without_traces
from xaurora.model.tiny import TinyAurora
from xaurora.training import latents, losses
from xaurora.training import plan as planning
from xaurora.training.plan import Plan


@dataclass(frozen=True)
class Counted:
    """Cost of one step.

    Peak bytes of tensors in total and by part, floating-point operations of a step and of its first
    forward pass, numbers of parameters, and number of values in a sample's latents.
    """

    peak: int
    parts: dict[str, int]
    flops: int
    forward_flops: int
    parameters: dict[str, int]
    latents: int = 0


def simulate(plan: Plan, where: torch.device) -> Counted:
    """Run two training steps with tensors that have no values, and count their cost.

    The second step includes the optimiser state.
    """
    options = plan.options
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module, forms = meta_module(plan)
    groups = plan.groups(module)
    chosen = {id(p) for g in groups for p in g["params"]}
    names = {n for n, p in module.named_parameters() if id(p) in chosen}
    kept = planning.kept_latents(plan)
    base_parameters = dict(module.base.named_parameters())
    added = sum(
        p.numel() for n, p in base_parameters.items() if module.adapter and module.adapter.adds(n)
    )
    own = sum(p.numel() for p in base_parameters.values()) - added
    head: Any = module.head
    fake: Any = imagined(module, mode, where.type)
    fake.window = plan.window
    moving = [p for n, p in fake.named_parameters() if n in names]
    count = {
        "all": own,
        "adapter": added,
        "head": sum(p.numel() for p in head.parameters()),
        "trainable": sum(p.numel() for p in moving),
    }
    execution.set_precision(fake.base, options.precision, where)
    recompute = options.activation_checkpointing
    recompute = plan.moves_base and where.type == "cuda" if recompute == "auto" else bool(recompute)
    counter = LiveBytes()
    for tensor in [*fake.parameters(), *fake.buffers()]:
        counter.track(tensor)
    weights = counter.live
    rows = plan.grid.shape[0]
    forward = 0
    with mode, counter, contextlib.ExitStack() as stack:
        stack.enter_context(without_traces())
        stack.enter_context(placement.placed(fake, plan.grid))
        if recompute:
            stack.enter_context(execution.recomputed(fake.base))
        average = [torch.empty_like(p) for p in moving] if options.ema is not None else []
        optimizer = torch.optim.AdamW(moving, lr=1e-3)
        area = torch.empty(rows, 1, device=where)
        part = (torch.empty(plan.target_grid.shape[0], 1, device=where), plan.target_trim)
        for _ in range(2):
            counter.flops = 0
            if kept is not None:
                forward = _on_latents(plan, fake, counter, forms, (area, part))
                torch.nn.utils.clip_grad_norm_(moving, options.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                continue
            batch = rollout.prepare(fake, _batch(plan, forms))
            total: Any = 0.0
            length = 1 if options.replay is not None else options.rollout_steps
            stepping = rollout.steps(fake, batch, length, push_forward=options.push_forward)
            for k in range(length):
                step = next(stepping)
                loss, parts = losses.of_step(
                    fake,
                    step,
                    _truth(plan),
                    area,
                    plan.trim,
                    options.base_loss if plan.scores_base else 0.0,
                    part,
                )
                forward = counter.flops if k == 0 else forward
                if options.push_forward:
                    loss.backward()
                else:
                    total = total + loss
                del step, loss, parts
            if not options.push_forward:
                total.backward()
            del total, stepping, batch
            torch.nn.utils.clip_grad_norm_(moving, options.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        del average
    trainable = 4 * count["trainable"]
    known = {"weights": weights, "gradients": trainable, "optimiser": 2 * trainable}
    if options.ema is not None:
        known["average"] = trainable
    activations = max(counter.peak - sum(known.values()), 0)
    flops = counter.flops * options.gradient_accumulation
    if options.replay is not None:  # forecasts of the buffer run one at a time
        flops *= options.batch_size
    size = int(np.prod(_latents_shape(plan, fake))) if kept is not None else 0
    return Counted(counter.peak, {**known, "activations": activations}, flops, forward, count, size)


def meta_module(plan: Plan) -> tuple[models.AuroraWithHead, dict[str, targets.InputForm]]:
    """Return the model as finetune would build it, on the meta device, and its input forms."""
    forms = {
        t.name: targets.InputForm(1e-4 if t.is_rain else None, 0.0, 1.0)
        for t in plan.learnt
        if plan.fed
    }
    with LiveBytes():  # supplies the values that model construction reads
        base: Aurora
        adapter = plan.adapter
        if plan.base is not None:
            # A copy, so that the plan can still be run after the estimate.
            copied: Any = imagined(models.AuroraWithHead(plan.base, None, None, adapter))
            base, adapter = copied.base, copied.adapter
        elif plan.name.startswith("tiny"):
            surface = dict.fromkeys(plan.needs.surface, (0.0, 1.0))
            levels = {f"{v:g}": (0.0, 1.0) for v in plan.needs.levels or ()}
            with torch.device("meta"):
                base = TinyAurora(plan.needs, surface, dict.fromkeys(plan.needs.atmos, levels))
        else:
            with torch.device("meta"):
                base = models._CLASSES[plan.name]()
        if adapter is None and plan.how.name in ("lora", "peft"):
            adapter = adapters.install(base, plan.how)
        levels_, width = models.latent_size(base)
        built = {
            t.name: heads.build(
                plan.heads[t.name].for_climate(1e-3), levels_, width, plan.needs.patch_size
            )
            for t in plan.learnt
        }
        return models.AuroraWithHead(base, heads.HeadSet(built), forms, adapter), forms


def _batch(plan: Plan, forms: dict[str, targets.InputForm]) -> Batch:
    b, (h, w) = (1 if plan.options.replay is not None else plan.options.batch_size), plan.grid.shape
    levels = plan.cut.levels
    surface = [*plan.needs.surface, *(n for n in forms if n not in plan.needs.surface)]
    times = [plan.chosen.init_times[0]] * b
    return Batch(
        {n: torch.empty(b, 2, h, w) for n in surface},
        {n: torch.empty(h, w) for n in plan.needs.static},
        {n: torch.empty(b, 2, len(levels), h, w) for n in plan.needs.atmos},
        metadata(plan.grid, times, levels),
    )


def _truth(plan: Plan) -> Truth:
    b, (h, w) = (1 if plan.options.replay is not None else plan.options.batch_size), plan.grid.shape
    own = plan.target_grid.shape
    state = None
    if plan.scores_base:
        state = {
            "surface": {n: torch.empty(b, h, w) for n in plan.needs.surface},
            "atmos": {n: torch.empty(b, len(plan.cut.levels), h, w) for n in plan.needs.atmos},
        }
    return Truth({t.name: torch.empty(b, *own) for t in plan.learnt}, state)


def _latents_shape(plan: Plan, module: Any) -> tuple[int, ...]:
    surface = all(h.options.latents == "surface" for _, h in module.head.items())
    return latents.shape_of(module, plan.grid.shape, plan.needs.patch_size, surface=surface)


def _on_latents(
    plan: Plan, fake: Any, counter: LiveBytes, forms: dict[str, targets.InputForm], areas: Any
) -> int:
    """Run a training step on kept latents: compute those of one sample, then train the heads.

    Returns the floating-point operations of computing the latents. The counter is left with those
    of the head step.
    """
    area, part = areas
    single = replace(plan, options=replace(plan.options, batch_size=1))
    fake.latents(rollout.prepare(fake, _batch(single, forms)))
    forward = counter.flops
    counter.flops = 0
    values = torch.empty(plan.options.batch_size, *_latents_shape(plan, fake), device=area.device)
    step = fake(None, latents=values)
    loss, _ = losses.of_step(fake, step, _truth(plan), area, plan.trim, 0.0, part)
    loss.backward()
    return forward

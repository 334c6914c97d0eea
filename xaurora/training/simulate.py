"""Go through training steps with tensors that have shapes and no values."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from aurora import Aurora, Batch
from torch._subclasses.fake_tensor import FakeTensorMode

from xaurora.fields.targets import InputForm
from xaurora.model import adapters, execution, heads, placement, rollout
from xaurora.model.adapters import Adapter
from xaurora.model.aurora import AuroraWithHead, latent_size
from xaurora.model.batch import metadata
from xaurora.model.loader import Truth
from xaurora.model.memory import LiveBytes, casts_of_gpus, cleared_mask_cache, fake_copy
from xaurora.model.offload import HostActivations
from xaurora.model.tiny import TinyAurora
from xaurora.model.weights import load_pretrained, model_class
from xaurora.training import eight_bit, latents, losses
from xaurora.training.losses import Domain, Domains
from xaurora.training.plan import Plan

Forms: TypeAlias = dict[str, InputForm]


@dataclass(frozen=True)
class StepCost:
    """Cost of one step.

    Peak bytes of tensors in total and by part, floating-point operations of a step and of its first
    forward pass, numbers of parameters, number of values in a sample's latents, and bytes that a
    GPU's step keeps in host memory.
    """

    peak: int
    parts: dict[str, int]
    flops: int
    forward_flops: int
    parameters: dict[str, int]
    latents: int = 0
    host: int = 0


# Bytes of each parameter that trains on the host: its weight and the model's own, the gradient and
# two moments in float32, and a pinned gradient in bf16.
_ON_HOST = 22


def simulate(plan: Plan, where: torch.device, *, gpu: bool | None = None) -> StepCost:
    """Run a training step with tensors that have no values, and count its cost.

    It includes the optimiser state, as every step after the first does.

    Parameters
    ----------
    plan : Plan
    where : torch.device
        Device of the tensors.
    gpu : bool, optional
        Whether the step is that of a GPU, by default if ``where`` is one. On a CPU, a GPU's step is
        counted with the data types that it would have there.
    """
    options = plan.options
    gpu = where.type == "cuda" if gpu is None else gpu
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module, forms = meta_module(plan)
    on_host = options.optimizer_state == "host"
    set_up_precision(plan, module, where, gpu=gpu)
    with weights_of_step(plan, module, gpu=gpu):
        fake = fake_copy(module, mode, where.type)
    counter = LiveBytes()
    with mode, casts_of_gpus() if gpu and where.type == "cpu" else contextlib.nullcontext():
        weights, forward, offloaded = count_step(plan, fake, forms, where, counter)
    names = _moving(plan, module)
    moving = [p for n, p in fake.named_parameters() if n in names]
    parameters = _count_parameters(module, moving)
    trainable = 4 * parameters["trainable"]
    moments = 2 * trainable
    if options.optimizer_state == "8bit":
        with mode:
            moments = eight_bit.Moments(moving).nbytes
    in_host = offloaded + _ON_HOST * parameters["trainable"] if on_host else offloaded
    known = {"weights": weights}
    if not on_host:
        known |= {"gradients": trainable, "optimiser": moments}
    if options.ema is not None and on_host:
        in_host += trainable
    elif options.ema is not None:
        known["average"] = trainable
    activations = max(counter.peak - sum(known.values()), 0)
    flops = counter.flops * options.gradient_accumulation
    if options.replay is not None:  # forecasts of the buffer run one at a time
        flops *= options.batch_size
    shape = latents.shape_of(fake, plan.grid.shape, plan.needs.patch_size)
    return StepCost(
        peak=counter.peak,
        parts={**known, "activations": activations},
        flops=flops,
        forward_flops=forward,
        parameters=parameters,
        latents=int(np.prod(shape)) if plan.latents is not None else 0,
        host=in_host,
    )


def count_step(
    plan: Plan, module: AuroraWithHead, forms: Forms, where: torch.device, counter: LiveBytes
) -> tuple[int, int, int]:
    """Run a step, with values or without, and count the bytes of its tensors.

    Returns
    -------
    tuple of int
        Bytes of the weights, operations of the first forward pass (the others are left in the
        counter), and most bytes of activations in host memory.
    """
    names = _moving(plan, module)
    moving = [p for n, p in module.named_parameters() if n in names]
    for tensor in [*module.parameters(), *module.buffers()]:
        counter.track(tensor)
    weights = counter.live
    on_host = plan.options.optimizer_state == "host"
    with counter, _prepared(plan, module, where) as host:
        average = []
        if on_host:
            for parameter in moving:  # gradients leave as soon as they are complete
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
        elif plan.options.ema is not None:
            average = [torch.empty_like(p) for p in moving]
        optimizer: torch.optim.AdamW | eight_bit.Moments | None = None
        if plan.options.optimizer_state == "8bit":
            optimizer = eight_bit.Moments(moving)
        elif not on_host:
            optimizer = _with_state(moving)
        counter.flops = 0
        forward = _one_step(plan, module, forms, where, optimizer, moving, counter)
        del average
    return weights, forward, host.peak


@contextlib.contextmanager
def weights_of_step(plan: Plan, module: AuroraWithHead, *, gpu: bool) -> Iterator[None]:
    """Keep weights in the precision that they are computed in, where training does."""
    on_host = plan.options.optimizer_state == "host"
    kept = plan.saves_base or plan.strategy.name == "peft" or plan.options.parallel == "fsdp"
    if not on_host and (not gpu or kept):
        yield
        return
    names = () if on_host else _moving(plan, module)
    keep = [p for n, p in module.named_parameters() if n in names]
    with execution.reduced_weights(module.base, keep=keep):
        yield


def set_up_precision(plan: Plan, module: AuroraWithHead, where: torch.device, *, gpu: bool) -> None:
    """Set the precision of a step; that of a GPU is bf16 by default, whatever this machine has."""
    precision = plan.options.precision
    if precision == "auto":
        precision = "bf16" if gpu else "32"
    execution.set_precision(module.base, precision, where)


def _forget_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def measure(plan: Plan, where: torch.device) -> tuple[float, float]:
    """Run the same steps with values, and return the seconds of a step and of a forward pass.

    Only for models whose weights are there already or are made here (:func:`can_measure`).
    """
    options = plan.options
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not changed
        real, forms = real_module(plan)
    real.to(where)
    names = _moving(plan, real)
    moving = [p for n, p in real.named_parameters() if n in names]
    execution.set_precision(real.base, options.precision, where)
    steps, forwards = [], []
    with _prepared(plan, real, where):
        optimizer = _with_state(moving)
        for _ in range(_TIMED):
            began = _now(where)
            _one_step(plan, real, forms, where, optimizer, moving, None)
            steps.append(_now(where) - began)
        batch = rollout.prepare(real, _batch(plan, forms, 1)).to(where)
        with torch.no_grad():
            for _ in range(_TIMED):
                began = _now(where)
                real.latents(batch) if plan.latents is not None else real(batch)
                forwards.append(_now(where) - began)
    # The first one of each allocates memory and fills caches.
    times = options.gradient_accumulation * (options.batch_size if options.replay else 1)
    return min(steps[1:]) * times, min(forwards[1:])


_TIMED = 4


def can_measure(plan: Plan) -> bool:
    """Return whether the model can be built without fetching weights."""
    return plan.model.built_here or plan.tuned is not None or plan.model.instance is not None


def real_module(plan: Plan) -> tuple[AuroraWithHead, Forms]:
    """Return a copy of the model with values, and its input forms."""
    _, forms = meta_module(plan)
    if plan.tuned is not None:
        base = copy.deepcopy(plan.tuned.model.base)
    elif plan.model.instance is not None:
        base = copy.deepcopy(plan.model.instance)
    elif plan.model.spec is not None and not plan.model.spec.adapts_to_data:
        base = load_pretrained(plan.name)
    else:
        surface = dict.fromkeys(plan.needs.surface, (0.0, 1.0))
        levels = {f"{v:g}": (0.0, 1.0) for v in plan.needs.levels or ()}
        base = TinyAurora(plan.needs, surface, dict.fromkeys(plan.needs.atmos, levels))
    adapter = plan.tuned.model.adapter if plan.tuned is not None else None
    if adapter is None and plan.strategy.name in ("lora", "peft"):
        adapter = adapters.install(base, plan.strategy)
    return _with_heads(plan, base, adapter, forms), forms


def _now(where: torch.device) -> float:
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _moving(plan: Plan, module: AuroraWithHead) -> set[str]:
    """Return the names of the parameters that train."""
    trained = {id(p) for g in plan.groups(module) for p in g["params"]}
    return {n for n, p in module.named_parameters() if id(p) in trained}


@contextlib.contextmanager
def _prepared(plan: Plan, module: AuroraWithHead, where: torch.device) -> Iterator[HostActivations]:
    """Put a module on the plan's grid, and recompute activations where the plan does."""
    wanted = plan.options.activation_checkpointing
    with contextlib.ExitStack() as stack:
        stack.enter_context(cleared_mask_cache())
        stack.enter_context(placement.on_grid(module, plan.grid))
        host = HostActivations()
        if plan.trains_base and wanted in (True, "offload"):
            host = stack.enter_context(
                execution.activation_checkpointing(module.base, offload=wanted == "offload")
            )
        yield host


def _with_state(moving: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """Return an optimiser that has its state, as in every step after the first."""
    optimizer = torch.optim.AdamW(moving, lr=1e-6, fused=True)
    for parameter in moving:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _one_step(
    plan: Plan,
    module: AuroraWithHead,
    forms: Forms,
    where: torch.device,
    optimizer: torch.optim.AdamW | eight_bit.Moments | None,
    moving: list[torch.nn.Parameter],
    counter: LiveBytes | None,
) -> int:
    """Run one step; return the operations of the first forward pass, if they are counted.

    ``optimizer`` is None if it is in host memory.
    """
    domains = Domains(
        Domain(torch.ones(plan.grid.shape[0], 1, device=where), plan.trim),
        Domain(torch.ones(plan.target_grid.shape[0], 1, device=where), plan.target_trim),
    )
    if plan.latents is not None:
        forward = _step_on_latents(plan, module, counter, forms, domains)
    else:
        forward = _step(plan, module, counter, forms, domains)
    if optimizer is not None:
        torch.nn.utils.clip_grad_norm_(moving, plan.options.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return forward


def _count_parameters(module: AuroraWithHead, moving: list[torch.nn.Parameter]) -> dict[str, int]:
    """Return the numbers of parameters: of the base, its adapter and the heads, and trainable."""
    base, head, adapter = dict(module.base.named_parameters()), module.head, module.adapter
    added = sum(p.numel() for n, p in base.items() if adapter is not None and adapter.adds(n))
    return {
        "all": sum(p.numel() for p in base.values()) - added,
        "adapter": added,
        "head": sum(p.numel() for p in head.parameters()) if head is not None else 0,
        "trainable": sum(p.numel() for p in moving),
    }


def _step(
    plan: Plan, fake: AuroraWithHead, counter: LiveBytes | None, forms: Forms, domains: Domains
) -> int:
    """Run the forward and backward passes of a step.

    Returns
    -------
    int
        Operations of the first forward pass.
    """
    options = plan.options
    batch = rollout.prepare(fake, _batch(plan, forms, options.batch_size))
    total: Any = 0.0
    length = 1 if options.replay is not None else options.rollout_steps
    weight = options.base_loss if plan.scores_base else 0.0
    stepping = rollout.steps(fake, batch, length, push_forward=options.push_forward)
    forward = 0
    for k in range(length):
        step = next(stepping)
        loss, parts = losses.step_loss(fake, step, _truth(plan), domains, weight)
        if counter is not None and k == 0:
            forward = counter.flops
        if options.push_forward:
            loss.backward()
        else:
            total = total + loss
        del step, loss, parts
    if not options.push_forward:
        total.backward()
    return forward


def meta_module(plan: Plan) -> tuple[AuroraWithHead, Forms]:
    """Return the model as finetune would build it, on the meta device, and its input forms."""
    forms = {
        t.name: InputForm(1e-4 if t.is_rain else None, 0.0, 1.0)
        for t in plan.targets
        if plan.target_is_input
    }
    with LiveBytes():  # supplies the values that model construction reads
        base, adapter = _meta_base(plan)
        if adapter is None and plan.strategy.name in ("lora", "peft"):
            adapter = adapters.install(base, plan.strategy)
        return _with_heads(plan, base, adapter, forms), forms


def _with_heads(plan: Plan, base: Aurora, adapter: Adapter | None, forms: Forms) -> AuroraWithHead:
    """Return a base with new heads, as in a climate of moderate rain."""
    size, patch_size = latent_size(base), plan.needs.patch_size
    built = {
        t.name: heads.build(plan.heads[t.name].for_climate(1e-3), *size, patch_size)
        for t in plan.targets
    }
    return AuroraWithHead(base, heads.HeadSet(built), forms, adapter, plan.window)


def _meta_base(plan: Plan) -> tuple[Aurora, Adapter | None]:
    """Return the base without values, and the adapter that continues to train."""
    if plan.tuned is not None:
        before = plan.tuned.model
        copied = fake_copy(AuroraWithHead(before.base, adapter=before.adapter))
        if plan.merges_adapter and copied.adapter is not None:
            adapters.merge(copied.base, copied.adapter)
            return copied.base, None
        return copied.base, copied.adapter
    if plan.model.instance is not None:
        return fake_copy(plan.model.instance), None
    with torch.device("meta"):
        if plan.model.built_here and not plan.needs.output_only:
            surface = dict.fromkeys(plan.needs.surface, (0.0, 1.0))
            levels = {f"{v:g}": (0.0, 1.0) for v in plan.needs.levels or ()}
            return TinyAurora(plan.needs, surface, dict.fromkeys(plan.needs.atmos, levels)), None
        return model_class(plan.name)(), None


def _batch(plan: Plan, forms: Forms, samples: int) -> Batch:
    b, (h, w) = (1 if plan.options.replay is not None else samples), plan.grid.shape
    levels = plan.fields.levels
    surface = [*plan.needs.surface, *(n for n in forms if n not in plan.needs.surface)]
    times = [plan.samples.init_times[0]] * b
    return Batch(
        {n: torch.rand(b, 2, h, w) for n in surface},
        {n: torch.rand(h, w) for n in plan.needs.static},
        {n: torch.rand(b, 2, len(levels), h, w) for n in plan.needs.atmos},
        metadata(plan.grid, times, levels),
    )


def _truth(plan: Plan) -> Truth:
    b, (h, w) = (1 if plan.options.replay is not None else plan.options.batch_size), plan.grid.shape
    own = plan.target_grid.shape
    state = None
    if plan.scores_base:
        state = {
            "surface": {n: torch.rand(b, h, w) for n in plan.needs.state},
            "atmos": {n: torch.rand(b, len(plan.fields.levels), h, w) for n in plan.needs.atmos},
        }
    # Rain of a millimetre, or values of order one: what scores cost depends on them.
    size = {t.name: 1e-3 if t.is_rain else 1.0 for t in plan.targets}
    return Truth({n: torch.rand(b, *own) * scale for n, scale in size.items()}, state)


def _step_on_latents(
    plan: Plan, fake: AuroraWithHead, counter: LiveBytes | None, forms: Forms, domains: Domains
) -> int:
    """Simulate a training step on stored latents.

    Computes the latents of one sample, and then trains the heads on a batch of latents.

    Returns
    -------
    int
        Operations of the backbone. The counter is left with those of the heads.
    """
    forward = 0
    if counter is not None:  # else it is timed apart
        fake.latents(rollout.prepare(fake, _batch(plan, forms, 1)))
        forward, counter.flops = counter.flops, 0
    shape = latents.shape_of(fake, plan.grid.shape, plan.needs.patch_size)
    values = torch.zeros(plan.options.batch_size, *shape, device=domains.base.area.device)
    step = fake(None, latents=values)
    loss, _ = losses.step_loss(fake, step, _truth(plan), domains, 0.0)
    loss.backward()
    return forward

"""Estimate of a training run's cost, made by running its steps on tensors without values.

The peak memory of tensors is exact: the code is that of training, but nothing is computed or
allocated. What a process takes beyond its tensors (slack of the allocator, scratch space inside
operations) comes from measurements with ``benchmarks/estimates.py``. Time is the number of
floating-point operations divided by a rate, which is measured on this machine with a few layers of
the model's width.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from xaurora.errors import CheckpointError, XauroraError
from xaurora.model import execution
from xaurora.model.loader import MAX_CACHED
from xaurora.model.memory import free_memory
from xaurora.model.options import STRATEGIES, StrategyOptions
from xaurora.training import parallel, reads
from xaurora.training import plan as planning
from xaurora.training.hardware import device, measure_rate, model_size
from xaurora.training.options import FinetuneOptions
from xaurora.training.plan import Plan
from xaurora.training.simulate import StepCost, can_measure, measure, simulate
from xaurora.utils import html
from xaurora.utils.progress import track

# CPU memory beyond tensors. Tensors allocated and freed within a step fragment the allocator's
# heap; weights and the optimiser state do not. Measured by benchmarks/estimates.py --calibrate, on
# other combinations than those of docs/memory.md.
SLACK = 1.5
FIXED = 60 * 1024**2  # bytes
_GPU_SLACK = 0.1  # share that Torch reserves beyond what is allocated; not measured
_FRAMES_KEPT = 2 * 1024**3  # bytes: the budget of the loader
_ADVICE_BELOW = 0.9  # of the free memory
GIB = 1024**3

logger = logging.getLogger("xaurora")


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a training run.

    Parameters
    ----------
    model, strategy, device : str
    memory : int
        Peak memory in bytes on the device that computes. On a CPU this includes the cached frames.
    parts : dict of int
        Bytes by part: weights, gradients, optimiser, activations (the rest of the peak), cached
        frames, slack.
    available : int
        Free bytes on that device now.
    step_seconds, seconds : float
        Rough time of one step, and of all steps including validation.
    measured : bool
        Whether steps were run and timed, rather than their operations counted.
    steps : int
    bytes_read : int
        Total bytes read from the source of the data, before compression.
    first_look : int
        Those of them that are read before the first step.
    disk : int
        Largest number of bytes that the run keeps on disk.
    trainable, total : int
        Numbers of parameters.
    advice : list of str
        Changes to make if the run does not fit into memory.
    others : list of Estimate
        Estimates for other bases and strategies, if requested.
    problem : str
        Why no estimate could be made.
    """

    model: str
    strategy: str
    device: str
    memory: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    available: int = 0
    step_seconds: float = math.nan
    seconds: float = math.nan
    measured: bool = False
    steps: int = 0
    bytes_read: int = 0
    first_look: int = 0
    disk: int = 0
    trainable: int = 0
    total: int = 0
    advice: list[str] = field(default_factory=list)
    others: list[Estimate] = field(default_factory=list)
    problem: str = ""

    @property
    def fits(self) -> bool:
        """Whether the estimated memory is available."""
        return not self.problem and self.memory <= self.available

    @property
    def margin(self) -> float:
        """Factor by which the time may be shorter or longer."""
        return _MARGIN_TIMED if self.measured else _MARGIN_COUNTED

    def _repr_html_(self) -> str:
        return html.text_block(str(self))

    def __str__(self) -> str:
        if self.problem:
            return f"model {self.model!r}, strategy {self.strategy!r}: {self.problem}"
        lines = [
            f"model {self.model!r}, strategy {self.strategy!r}, on the {self.device}",
            (
                f"  memory     {_size(self.memory)} at the peak, {_size(self.available)}"
                f" available: {'it fits' if self.fits else 'it does not fit'}"
            ),
            "             "
            + ", ".join(f"{name} {_size(value)}" for name, value in self.parts.items()),
            (
                f"  time       about {_span(self.step_seconds)} a step"
                f" ({'timed here' if self.measured else 'from its operations'}),"
                f" {_span(self.seconds / self.margin)} to {_span(self.seconds * self.margin)} for"
                f" {self.steps} steps with set-up and validation"
            ),
            f"  reads      {_size(self.bytes_read)}, {_size(self.first_look)} of it at the start",
            f"  disk       {_size(self.disk)}",
            f"  trains     {self.trainable:,} of {self.total:,} parameters",
        ]
        lines += [f"  try        {line}" for line in self.advice]
        if self.others:
            lines += ["", self.table()]
        return "\n".join(lines)

    __repr__ = __str__

    def table(self) -> str:
        """Return all estimates side by side, as text."""
        lines = [
            f"{'model':<17}{'strategy':<10}{'memory':>10}{'step':>10}{'total':>10}"
            f"{'disk':>10}{'trains':>16}"
        ]
        for e in [self, *self.others]:
            if e.problem:
                lines.append(f"{e.model:<17}{e.strategy:<10}  {e.problem.splitlines()[0]}")
                continue
            mark = "" if e.fits else "  does not fit"
            lines.append(
                f"{e.model:<17}{e.strategy:<10}{_size(e.memory):>10}{_span(e.step_seconds):>10}"
                f"{_span(e.seconds):>10}{_size(e.disk):>10}{e.trainable:>16,}{mark}"
            )
        return "\n".join(lines)


def estimate(ds: xr.Dataset, options: FinetuneOptions, *, compare: bool = False) -> Estimate:
    """Estimate the cost of a run. See :meth:`xaurora.accessor.AuroraAccessor.estimate`."""
    if options.engine == "jax":
        logger.warning(
            "estimate() counts the steps of engine='torch'. JAX took up to 1.7 times the memory of"
            " a step, and compiles first (docs/jax.md)."
        )
        options = replace(options, engine="torch")
    options = parallel.resolve_devices(options)
    if options.weights is not None and not Path(options.weights).is_file():
        raise CheckpointError(
            f"there is no checkpoint file '{options.weights}'.", fix="weights='path/to/file.ckpt'"
        )
    made = planning.plan(ds, options)
    first = estimate_plan(made, ds, times=True)
    if not first.fits:
        first = replace(first, advice=advice(made))
    if not compare:
        return first
    cases: list[tuple[Any, str]] = [(m, s) for m in _COMPARED for s in STRATEGIES]
    cases += [(options.model, s) for s in STRATEGIES if made.name not in _COMPARED]
    cases = [(m, s) for m, s in cases if not (m == options.model and s == made.strategy.name)]
    others = [
        _try_estimate(ds, replace(options, model=m, strategy=StrategyOptions(s), weights=None))
        for m, s in track(cases, "estimate", unit="case", shown=options.progress)
    ]
    return replace(first, others=others)


_COMPARED = ("small", "base")


def _try_estimate(ds: xr.Dataset, options: FinetuneOptions) -> Estimate:
    """Return an estimate, or one whose ``problem`` says why there is none."""
    try:
        return estimate_plan(planning.plan(ds, options), ds)
    except XauroraError as error:
        name = options.model if isinstance(options.model, str) else type(options.model).__name__
        strategy = options.strategy_options.name
        return Estimate(name, strategy, device().type.upper(), problem=error.message)


_MARGIN_TIMED = 1.5  # the factors that benchmarks/estimate_times.py finds
_MARGIN_COUNTED = 3.0
_SET_UP = 1.5  # seconds to build a model, and to save it in the end
_LOOP = 0.008  # seconds around each step: logging, reading ahead, the schedule
_WRITTEN = 4e8  # bytes in a second that artefacts and checkpoints are written at
_CHEAP = 2.0  # seconds by their operations, up to which steps are run and timed


def estimate_plan(plan: Plan, ds: xr.Dataset | None = None, *, times: bool = False) -> Estimate:
    """Return the estimate for a plan.

    With ``times``, a few steps are run and timed if they are cheap.
    """
    where, options = device(), plan.options
    cost = simulate(plan, where)
    # The truth is not read here, so samples that will turn out to have none are still counted.
    split = plan.split
    steps = options.total_steps(len(split.train))
    frames = reads.states_needed(plan)
    parts, lasting = dict(cost.parts), 0
    parts["frames"] = (
        min(min(frames, MAX_CACHED) * _frame_bytes(plan), _FRAMES_KEPT) if _is_lazy(plan) else 0
    )
    latents = plan.latents
    stored_latents = 0.0
    if latents is not None:
        count = len(split.train) + len(split.validation)
        each = cost.latents * (2 if latents.dtype == "bfloat16" else 4)
        limit = latents.size if isinstance(latents.size, float) else math.inf
        stored_latents = min(count * each, limit)
        parts["latents"] = min(min(count, MAX_CACHED) * each, _FRAMES_KEPT)
    if where.type == "cpu":
        lasting = sum(parts.get(k, 0) for k in ("weights", "optimiser", "average"))
        slack = max(cost.peak - lasting, 0) * (SLACK - 1.0)
        if options.activation_checkpointing is True:
            # computed twice, in more and smaller pieces
            slack += int(parts["activations"] * (SLACK - 1.0))
        parts["slack"] = int(slack) + FIXED
    else:
        parts["slack"] = int(cost.peak * _GPU_SLACK)
    rate = measure_rate(plan, where)
    step, forward = cost.flops / rate, cost.forward_flops / _together(plan) / rate
    measured = (
        times
        and can_measure(plan)
        and 3.0 * (step + forward) < _CHEAP
        and 2 * cost.peak < free_memory(where)
    )
    if measured:
        step, forward = measure(plan, where)
    module = cost.parameters
    artefact = 4 * (module["head"] + (module["all"] if plan.saves_base else module["adapter"]))
    checkpoint = 4 * module["trainable"] * (3 + (options.ema is not None))
    written = artefact * (1 + options.validations) + 2 * checkpoint
    replay = 2 * options.replay.size * _frame_bytes(plan) if options.replay is not None else 0
    read = reads.of_run(plan, ds, steps) if _is_lazy(plan) else reads.NOTHING
    return Estimate(
        model=plan.name,
        strategy=plan.strategy.name,
        device="GPU" if where.type == "cuda" else "CPU",
        memory=_memory(plan, cost, parts, where),
        parts={k: int(v) for k, v in parts.items() if v},
        available=free_memory(where),
        step_seconds=step,
        seconds=_seconds(plan, step, forward, steps) + _SET_UP + written / _WRITTEN,
        measured=measured,
        steps=steps,
        bytes_read=read.total,
        first_look=read.first_look,
        disk=int(3 * artefact + 2 * checkpoint + replay + stored_latents),
        trainable=module["trainable"],
        total=module["all"] + module["adapter"] + module["head"],
    )


def _memory(plan: Plan, cost: StepCost, parts: dict[str, int], where: torch.device) -> int:
    """Return the peak memory of the device that computes; on a CPU of all its processes."""
    options = plan.options
    memory = cost.peak + (parts["slack"] if where.type != "cpu" else 0)
    if options.parallel == "fsdp":  # weights, gradients and the optimiser state are sharded
        shared = sum(parts.get(k, 0) for k in ("weights", "gradients", "optimiser", "average"))
        memory -= int(shared * (1.0 - 1.0 / options.world_size))
    if where.type == "cpu":
        memory = (memory + parts["slack"] + parts["frames"]) * options.devices
        memory += parts.get("latents", 0)
    return int(memory)


def _together(plan: Plan) -> int:
    """Return the samples of a step's first forward pass."""
    one = plan.options.replay is not None or plan.latents is not None
    return 1 if one else plan.options.batch_size


def _seconds(plan: Plan, step: float, forward: float, steps: int) -> float:
    """Return the time of all steps and validations, given that of one step and one forward pass."""
    options, validation = plan.options, len(plan.split.validation)
    scored = reads.samples_scored(plan, steps)
    training = steps * (step + _LOOP)
    if plan.latents is None:
        return training + scored * options.rollout_steps * forward / options.world_size
    # The latents of each sample are computed once, when it is first seen. After that, steps and
    # validations run only the heads.
    seen = min(len(plan.split.train), steps * options.samples_per_step) + validation
    return training + (scored * step / 3 / options.batch_size + seen * forward) / options.world_size


def _frame_bytes(plan: Plan) -> int:
    """Return the bytes of one state and its targets as float32."""
    rows, columns = plan.grid.shape
    count = len(plan.needs.surface) + len(plan.needs.atmos) * len(plan.fields.levels)
    return 4 * rows * columns * (count + len(plan.targets))


def _is_lazy(plan: Plan) -> bool:
    """Return whether states have to be read from disk rather than being in memory."""
    parts = [*plan.fields.surface.variables.values(), *plan.fields.atmos.variables.values()]
    return any(not v._in_memory for v in parts)


def advice(plan: Plan) -> list[str]:
    """Return changes, one at a time and then combined, with the memory that each would take."""
    options, strategy = plan.options, plan.strategy
    where = device()
    changes: dict[str, dict[str, Any]] = {}
    if options.batch_size > 1:
        more = options.gradient_accumulation * options.batch_size
        changes[f"batch_size=1, gradient_accumulation={more}"] = {
            "batch_size": 1,
            "gradient_accumulation": more,
        }
    recomputes = execution.recomputes(
        options.activation_checkpointing, where.type == "cuda", trains_base=True
    )
    if plan.trains_base and not recomputes:
        changes["activation_checkpointing=True"] = {"activation_checkpointing": True}
    if options.rollout_steps > 1 and not options.push_forward and options.replay is None:
        changes["push_forward=True"] = {"push_forward": True}
    if execution.precision_on(options.precision, where) == "32":
        changes["precision='bf16'"] = {"precision": "bf16"}
    found = {words: plan.with_changes(**changed) for words, changed in changes.items()}
    if strategy.name in ("full", "decoder"):
        found["strategy='lora'"] = plan.with_changes(strategy=StrategyOptions("lora"))
    if plan.trains_base and plan.targets:
        found["strategy='frozen'"] = plan.with_changes(strategy=StrategyOptions("frozen"))
    together = {key: value for changed in changes.values() for key, value in changed.items()}
    if len(together) > 1:
        found["all of these with the same strategy"] = plan.with_changes(**together)
    out = []
    for words, changed_plan in found.items():
        estimated = estimate_plan(changed_plan)
        fits = ", which fits" if estimated.fits else ""
        out.append(f"{words}: {_size(estimated.memory)}{fits}")
    return [
        *out,
        "a smaller part of the data: ds.sel(latitude=..., longitude=...); memory is proportional"
        " to its area",
    ]


_SIMULATED_ABOVE = 0.25  # of the free memory: runs that certainly need less are not simulated
# bytes per grid point and sample for every 100 channels of the embedding: above all measurements
_ACTIVATIONS = 6000


def warn_if_too_large(plan: Plan, ds: xr.Dataset) -> str:
    """Return a warning for a run that may not fit into memory, or an empty string.

    Runs that are far too small to matter are not simulated.
    """
    options, (rows, columns) = plan.options, plan.grid.shape
    free = free_memory(device())
    parameters, width = model_size(plan)
    points = rows * columns * options.batch_size * options.rollout_steps
    if 16 * parameters + points * _ACTIVATIONS * width / 100 < _SIMULATED_ABOVE * free:
        return ""
    found = estimate_plan(plan, ds)
    if found.fits and found.memory <= _ADVICE_BELOW * found.available:
        return ""
    verb = "may not fit" if found.fits else "does not fit"
    return (
        f"This run needs about {_size(found.memory)} of memory and {_size(found.available)} are"
        f" free: it {verb}. Possible changes: {'; '.join(advice(plan))}."
    )


def _size(count: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 1024**2)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"

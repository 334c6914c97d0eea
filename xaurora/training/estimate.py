"""Estimate of a training run's cost, made by running its steps on tensors without values.

The peak memory of tensors is exact: the code is that of training, but nothing is computed or
allocated. What a process takes beyond its tensors (slack of the allocator, scratch space inside
operations) comes from measurements with ``benchmarks/estimates.py``. Time is the number of
floating-point operations divided by a rate, which is measured on this machine with a few layers of
the model's width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from xaurora.errors import CheckpointError, OptionError, XauroraError
from xaurora.fields import requirements, targets
from xaurora.model import loader as loading
from xaurora.model.batch import STEP
from xaurora.training import options as config
from xaurora.training import parallel
from xaurora.training import plan as planning
from xaurora.training.hardware import device, free_memory, measure_rate
from xaurora.training.options import StrategyOptions, TrainingOptions
from xaurora.training.plan import Plan
from xaurora.training.simulate import simulate
from xaurora.utils.progress import watched

# CPU memory beyond tensors. Tensors allocated and freed within a step fragment the allocator's
# heap; weights and the optimiser state do not. Measured by benchmarks/estimates.py --calibrate, on
# other combinations than those of docs/memory.md.
SLACK = 1.5
FIXED = 60 * 1024**2  # bytes
_GPU_SLACK = 0.1  # share that Torch reserves beyond what is allocated; not measured
_FRAMES_KEPT = 2 * 1024**3  # bytes: the budget of the loader
_ADVICE_BELOW = 0.9  # of the free memory
GIB = 1024**3


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
    steps : int
    bytes_read : int
        Total bytes read from the source of the data.
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
    steps: int = 0
    bytes_read: int = 0
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
                f"  time       about {_span(self.step_seconds)} a step, {_span(self.seconds)} for"
                f" {self.steps} steps with validation"
            ),
            f"  reads      {_size(self.bytes_read)}",
            f"  disk       {_size(self.disk)}",
            f"  trains     {self.trainable:,} of {self.total:,} parameters",
        ]
        lines += [f"  to change  {line}" for line in self.advice]
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


def estimate(
    ds: xr.Dataset,
    target: Any = "tp",
    *,
    truth: xr.Dataset | None = None,
    model: Any = "small",
    weights: Any = None,
    strategy: Any = "frozen",
    head: Any = "auto",
    as_input: bool = False,
    train: Any = None,
    validation: Any = None,
    halo: int = 0,
    region: Any = None,
    out: Any = None,
    options: TrainingOptions | None = None,
    compare: bool = False,
) -> Estimate:
    """Estimate the cost of a run. See :meth:`xaurora.accessor.AuroraAccessor.estimate`."""
    options = parallel.settle(options or TrainingOptions())
    if options.resume and out is None:
        raise OptionError(
            "resume=True needs the folder of the run to resume, but out= is not set.",
            fix="out='runs/tp', resume=True",
        )
    if weights is not None and not Path(weights).is_file():
        raise CheckpointError(
            f"there is no checkpoint file '{weights}'.", fix="weights='path/to/file.ckpt'"
        )
    common = {
        "truth": truth,
        "weights": weights,
        "head": head,
        "as_input": as_input,
        "train": train,
        "validation": validation,
        "halo": halo,
        "region": region,
        "options": options,
    }
    how = config.strategy_of(strategy)
    named_alone = isinstance(strategy, str)
    first = of_plan(
        planning.plan(ds, target, model=model, how=how, named=named_alone, **common), ds
    )
    if not first.fits:
        first = replace(first, advice=_advice(ds, target, model, how, common))
    if not compare:
        return first
    named = model if isinstance(model, str) and model in requirements.MODELS else first.model
    cases = [(m, s) for m in ("small", "base") for s in config.STRATEGIES]
    cases += [(model, s) for s in config.STRATEGIES if named not in ("small", "base")]
    cases = [(m, s) for m, s in cases if not (m == model and s == how.name)]
    others = [
        _tried(ds, target, m, StrategyOptions(s), {**common, "weights": None})
        for m, s in watched(cases, "estimate", unit="case", shown=options.progress)
    ]
    return replace(first, others=others)


def _tried(
    ds: xr.Dataset, target: Any, model: Any, how: StrategyOptions, common: dict[str, Any]
) -> Estimate:
    """Return an estimate, or one whose ``problem`` says why there is none."""
    name = model if isinstance(model, str) else type(model).__name__
    try:
        return of_plan(planning.plan(ds, target, model=model, how=how, **common), ds)
    except XauroraError as error:
        return Estimate(str(name), how.name, device().type.upper(), problem=error.message)


def of_plan(plan: Plan, ds: xr.Dataset | None = None) -> Estimate:
    """Return the estimate for a plan."""
    where, options = device(), plan.options
    counted = simulate(plan, where)
    # The truth is not read here, so samples that will turn out to have none are still counted.
    count = len(plan.parts.train)
    steps = options.total_steps(count)
    frame = _frame_bytes(plan)
    frames = len(_frames(plan, plan.parts.train)) + len(_frames(plan, plan.parts.validation))
    lazy = _is_lazy(plan)
    kept = min(min(frames, loading.KEPT) * frame, _FRAMES_KEPT) if lazy else 0
    lasting = 0
    slack = int(counted.peak * _GPU_SLACK)
    memory = counted.peak + slack
    if options.parallel == "fsdp":  # weights, gradients and the optimiser state are sharded
        shared = sum(
            counted.parts.get(k, 0) for k in ("weights", "gradients", "optimiser", "average")
        )
        memory -= int(shared * (1.0 - 1.0 / options.world_size))
    if where.type == "cpu":
        memory -= slack
        lasting = sum(counted.parts.get(k, 0) for k in ("weights", "optimiser", "average"))
        slack = int(max(counted.peak - lasting, 0) * (SLACK - 1.0)) + FIXED
        if options.activation_checkpointing is True:
            slack += int(
                counted.parts["activations"] * (SLACK - 1.0)
            )  # computed twice, in more and smaller pieces
        memory = (memory + slack + kept) * options.devices  # all processes on this machine
    parts = {**counted.parts, "frames": kept, "slack": slack}
    rate = measure_rate(plan, where)
    step = counted.flops / rate
    validations = min(options.validations, steps)
    scored = min(len(plan.parts.validation), 100) * validations
    scored += len(plan.parts.validation) if len(plan.parts.validation) > 100 else 0
    reused = planning.kept_latents(plan)
    once_forward = counted.forward_flops / (
        1 if options.replay is not None or reused else options.batch_size
    )
    seconds = (
        steps * step + scored * options.rollout_steps * once_forward / rate / options.world_size
    )
    latent_bytes = 0
    if reused is not None:
        # The latents of each sample are computed once. After that, steps and validations run only
        # the heads.
        different = count + len(plan.parts.validation)
        seconds = (
            steps * step + scored * step / 3 / options.batch_size + different * once_forward / rate
        ) / options.world_size
        one = counted.latents * (2 if reused.dtype == "bfloat16" else 4)
        latent_bytes = int(
            min(different * one, reused.size if isinstance(reused.size, float) else math.inf)
        )
        parts["latents"] = min(min(different, loading.KEPT) * one, _FRAMES_KEPT)
        if where.type == "cpu":
            memory += parts["latents"]
    epochs = (
        1
        if reused is not None or frames <= loading.KEPT
        else -(-steps * options.samples_a_step // count)
    )
    stored = _stored_bytes(plan, ds)
    module = counted.parameters
    once = 4 * (module["head"] + (module["all"] if _saves_base(plan) else module["adapter"]))
    checkpoint = 4 * module["trainable"] * (3 + (options.ema is not None))
    replay = 0
    if options.replay is not None:
        replay = 2 * options.replay.size * frame
    return Estimate(
        model=plan.name,
        strategy=plan.how.name,
        device="GPU" if where.type == "cuda" else "CPU",
        memory=int(memory),
        parts={k: int(v) for k, v in parts.items() if v},
        available=free_memory(where),
        step_seconds=step,
        seconds=seconds,
        steps=steps,
        bytes_read=int(stored * frames * epochs),
        disk=int(3 * once + 2 * checkpoint + replay + latent_bytes),
        trainable=module["trainable"],
        total=module["all"] + module["adapter"] + module["head"],
    )


def _frames(plan: Plan, init_times: np.ndarray) -> np.ndarray:
    """Return the times of all states that the samples need."""
    last = plan.options.rollout_steps if plan.scores_base or plan.learnt else 0
    return np.unique(np.concatenate([init_times + STEP * k for k in range(-1, last + 1)]))


def _frame_bytes(plan: Plan) -> int:
    """Return the bytes of one state and its targets as float32."""
    rows, columns = plan.grid.shape
    fields = (
        len(plan.needs.surface) + len(plan.needs.atmos) * len(plan.cut.levels) + len(plan.learnt)
    )
    return 4 * rows * columns * fields


def _is_lazy(plan: Plan) -> bool:
    """Return whether states have to be read from disk rather than being in memory."""
    parts = [*plan.cut.surface.variables.values(), *plan.cut.atmos.variables.values()]
    return any(not v._in_memory for v in parts)


def _stored_bytes(plan: Plan, ds: xr.Dataset | None) -> float:
    """Return the bytes read from storage for one state.

    Whole chunks are read, even if only a part is needed.
    """
    if ds is None:
        return float(_frame_bytes(plan))
    total = 0.0
    items = [plan.cut.layout.fields["surface", n] for n in plan.needs.surface]
    items += [plan.cut.layout.fields["atmos", n] for n in plan.needs.atmos]
    for item in [*items, *(t.item for t in plan.learnt)]:
        if str(item.source) not in ds or ds[item.source].variable._in_memory:
            continue
        da = ds[item.source]
        stored = da.encoding.get("preferred_chunks", {})
        chunks = {str(d): int(stored.get(d, 0)) or max(da.chunksizes.get(d, (1,))) for d in da.dims}
        size = da.dtype.itemsize
        for dim in da.dims:
            whole = int(da.sizes[dim])
            if str(dim) == plan.cut.layout.axes["time"].dim:
                size *= max(chunks[str(dim)], 1)
            else:
                size *= whole  # upper bound: a region may need fewer chunks
        total += size
    return total


def _saves_base(plan: Plan) -> bool:
    moved = plan.how.name in ("decoder", "full") or plan.merged
    return moved or plan.name == "tiny" or planning.holds_its_base(plan.model)


def _advice(
    ds: xr.Dataset, target: Any, model: Any, how: StrategyOptions, common: dict[str, Any]
) -> list[str]:
    """Return suggested changes with the memory each would take, one at a time and then combined."""
    options: TrainingOptions = common["options"]
    changes: list[tuple[str, dict[str, Any], StrategyOptions]] = []
    if options.batch_size > 1:
        more = options.gradient_accumulation * options.batch_size
        changes.append(
            (
                f"batch_size=1, gradient_accumulation={more}",
                {"batch_size": 1, "gradient_accumulation": more},
                how,
            )
        )
    where = device()
    gpu = where.type == "cuda"
    recomputes = options.activation_checkpointing is True or (
        options.activation_checkpointing == "auto" and gpu
    )
    half = (
        gpu
        and options.precision == "auto"
        and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if how.name != "frozen" and not recomputes:
        changes.append(("activation_checkpointing=True", {"activation_checkpointing": True}, how))
    if options.rollout_steps > 1 and not options.push_forward and options.replay is None:
        changes.append(("push_forward=True", {"push_forward": True}, how))
    if options.precision in ("32", "auto") and not half:
        changes.append(("precision='bf16'", {"precision": "bf16"}, how))
    if how.name in ("full", "decoder"):
        changes.append(("strategy='lora'", {}, StrategyOptions("lora")))
    if how.name != "frozen" and target != targets.ALL:
        changes.append(("strategy='frozen'", {}, StrategyOptions("frozen")))
    out = []
    together: dict[str, Any] = {}
    for words, changed, strategy in changes:
        if strategy == how:
            together |= changed
        found = _changed(ds, target, model, strategy, common, changed)
        out.append(f"{words}: {_size(found.memory)}{', which fits' if found.fits else ''}")
    if len(together) > 1:
        found = _changed(ds, target, model, how, common, together)
        out.append(
            "all of these combined, with the same strategy:"
            f" {_size(found.memory)}{', which fits' if found.fits else ''}"
        )
    out.append(
        "a smaller part of the data: ds.sel(latitude=..., longitude=...); memory is proportional"
        " to its area"
    )
    return out


_LOOKED_AT = 0.25  # of the free memory: runs that certainly need less are not simulated
# bytes per grid point and sample for every 100 channels of the embedding: above all measurements
_ACTIVATIONS = 6000


def warn_if_too_large(ds: xr.Dataset, target: Any, plan: Plan, common: dict[str, Any]) -> str:
    """Return a warning for a run that may not fit into memory, or an empty string.

    The string is also empty if the run is far too small to matter.

    Parameters
    ----------
    ds, target
        Arguments of finetune.
    plan : Plan
    common : dict
        The other arguments of finetune.
    """
    where = device()
    free = free_memory(where)
    named = {"tiny": (4e6, 128), "tiny-pretrained": (4e6, 128), "small": (1.2e8, 256)}.get(
        plan.name, (1.3e9, 512)
    )
    parameters, width = named
    if plan.base is not None:
        parameters = sum(p.numel() for p in plan.base.parameters())
        width = plan.base.encoder.embed_dim
    points = (
        plan.grid.shape[0]
        * plan.grid.shape[1]
        * plan.options.batch_size
        * plan.options.rollout_steps
    )
    if 16 * parameters + points * _ACTIVATIONS * width / 100 < _LOOKED_AT * free:
        return ""
    found = of_plan(plan, ds)
    if found.fits and found.memory <= _ADVICE_BELOW * found.available:
        return ""
    advice = _advice(ds, target, plan.model, plan.how, common)
    verb = "may not fit" if found.fits else "does not fit"
    return (
        f"This run needs about {_size(found.memory)} of memory and {_size(found.available)} are"
        f" free: it {verb}. Possible changes: " + "; ".join(advice) + "."
    )


def _changed(
    ds: xr.Dataset,
    target: Any,
    model: Any,
    how: StrategyOptions,
    common: dict[str, Any],
    changed: dict[str, Any],
) -> Estimate:
    return of_plan(
        planning.plan(
            ds,
            target,
            model=model,
            how=how,
            **{**common, "options": replace(common["options"], **changed)},
        )
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

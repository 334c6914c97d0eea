"""``estimate``: what a training would cost, found by going through its steps with tensors that have
shapes and no values.

The peak of tensors is exact: the same code runs as in training, and nothing is computed or
allocated. What a process takes beyond its tensors (the allocator's slack, scratch space inside
operations) was measured once: ``benchmarks/estimates.py``. Time is the number of floating-point
operations over a rate that is measured here, on a few layers of the model's width.
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

# A process beyond its tensors on the CPU: what comes and goes in a step leaves holes in the
# allocator's heap; weights and the optimiser's state do not. Measured by benchmarks/estimates.py
# --calibrate, on other combinations than those of docs/memory.md.
SLACK = 1.5
FIXED = 60 * 1024**2  # bytes
_GPU_SLACK = 0.1  # of what Torch keeps beyond what it has given out; not measured
_FRAMES_KEPT = 2 * 1024**3  # bytes, the loader's budget
_ADVICE_BELOW = 0.9  # of the memory that is free
GIB = 1024**3


@dataclass(frozen=True)
class Estimate:
    """What a training would cost.

    Parameters
    ----------
    model, strategy, device : str
    memory : int
        Bytes at the peak, on the device that computes; on a CPU with the frames that are kept.
    parts : dict of int
        Bytes of weights, gradients, optimiser, activations (what remains of the peak), frames kept,
        slack.
    available : int
        Bytes that are free there now.
    step_seconds, seconds : float
        A step, and all steps with validation; rough.
    steps : int
    bytes_read : int
        From the data's source, in all.
    disk : int
        Bytes that the run writes and keeps at most.
    trainable, total : int
        Parameters.
    advice : list of str
        What to change if it does not fit.
    others : list of Estimate
        Other bases and strategies, where they were asked for.
    problem : str
        Why there is no estimate.
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
        """Whether the memory that is free would do."""
        return not self.problem and self.memory <= self.available

    def __str__(self) -> str:
        if self.problem:
            return f"model {self.model!r}, strategy {self.strategy!r}: {self.problem}"
        lines = [
            f"model {self.model!r}, strategy {self.strategy!r}, on the {self.device}",
            (
                f"  memory     {_size(self.memory)} at the peak, of {_size(self.available)} that"
                f" are free: {'it fits' if self.fits else 'it does not fit'}"
            ),
            "             "
            + ", ".join(f"{name} {_size(value)}" for name, value in self.parts.items()),
            (
                f"  time       about {_span(self.step_seconds)} a step, {_span(self.seconds)} for"
                f" {self.steps} steps and their validations"
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
        """All estimates side by side, as text."""
        lines = [
            f"{'model':<17}{'strategy':<10}{'memory':>10}{'a step':>10}{'in all':>10}{'disk':>10}{'trains':>16}"
        ]
        for e in [self, *self.others]:
            if e.problem:
                lines.append(f"{e.model:<17}{e.strategy:<10}  {e.problem.splitlines()[0]}")
                continue
            mark = "" if e.fits else "  does not fit"
            lines.append(
                f"{e.model:<17}{e.strategy:<10}{_size(e.memory):>10}{_span(e.step_seconds):>10}{_span(e.seconds):>10}{_size(e.disk):>10}{e.trainable:>16,}{mark}"
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
    """See :meth:`xaurora.accessor.AuroraAccessor.estimate`."""
    options = parallel.settle(options or TrainingOptions())
    if options.resume and out is None:
        raise OptionError(
            "resume=True goes on with a run, and out= does not say which.",
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
    """An estimate, or why there is none."""
    name = model if isinstance(model, str) else type(model).__name__
    try:
        return of_plan(planning.plan(ds, target, model=model, how=how, **common), ds)
    except XauroraError as error:
        return Estimate(str(name), how.name, device().type.upper(), problem=error.message)


def of_plan(plan: Plan, ds: xr.Dataset | None = None) -> Estimate:
    """The estimate of one plan."""
    where, options = device(), plan.options
    counted = simulate(plan, where)
    # Training times and truth are read later, so that samples without truth are still counted in.
    count = len(plan.parts.train)
    steps = options.total_steps(count)
    frame = _frame_bytes(plan)
    frames = len(_frames(plan, plan.parts.train)) + len(_frames(plan, plan.parts.validation))
    lazy = _is_lazy(plan)
    kept = min(min(frames, loading.KEPT) * frame, _FRAMES_KEPT) if lazy else 0
    lasting = 0
    slack = int(counted.peak * _GPU_SLACK)
    memory = counted.peak + slack
    if options.parallel == "fsdp":  # weights, gradients and the optimiser's state are shared out
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
            )  # made twice, in more and smaller pieces
        memory = (memory + slack + kept) * options.devices  # all processes of this machine
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
        # Each sample's latents are made once; after that steps and validations are the heads'
        # alone.
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
    """States that samples touch."""
    last = plan.options.rollout_steps if plan.scores_base or plan.learnt else 0
    return np.unique(np.concatenate([init_times + STEP * k for k in range(-1, last + 1)]))


def _frame_bytes(plan: Plan) -> int:
    """Bytes of a state and its targets as they are read: float32."""
    rows, columns = plan.grid.shape
    fields = (
        len(plan.needs.surface) + len(plan.needs.atmos) * len(plan.cut.levels) + len(plan.learnt)
    )
    return 4 * rows * columns * fields


def _is_lazy(plan: Plan) -> bool:
    """Whether states have to be read, or are in memory as they are."""
    parts = [*plan.cut.surface.variables.values(), *plan.cut.atmos.variables.values()]
    return any(not v._in_memory for v in parts)


def _stored_bytes(plan: Plan, ds: xr.Dataset | None) -> float:
    """Bytes that reading one state takes from where it is stored: whole chunks, however little of
    them is needed.
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
                size *= whole  # a region may lie in fewer chunks; this is the most that is read
        total += size
    return total


def _saves_base(plan: Plan) -> bool:
    moved = plan.how.name in ("decoder", "full") or plan.merged
    return moved or plan.name == "tiny" or planning.holds_its_base(plan.model)


def _advice(
    ds: xr.Dataset, target: Any, model: Any, how: StrategyOptions, common: dict[str, Any]
) -> list[str]:
    """Changes, one at a time and then together, each with the memory that it would take."""
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
            "all of these with the same strategy:"
            f" {_size(found.memory)}{', which fits' if found.fits else ''}"
        )
    out.append(
        "a smaller part of the data: ds.sel(latitude=..., longitude=...); memory goes with its area"
    )
    return out


_LOOKED_AT = (
    0.25  # of the memory that is free: trainings that are sure to stay below are not gone through
)
# bytes a grid point and sample for every hundred channels of the embedding, more than was ever
# found
_ACTIVATIONS = 6000


def warn_if_too_large(ds: xr.Dataset, target: Any, plan: Plan, common: dict[str, Any]) -> str:
    """What to say before a training starts that may not fit; empty where it fits, or where it is
    far too small to matter.

    Parameters
    ----------
    ds, target
        As finetune was given them.
    plan : Plan
    common : dict
        Its other arguments.
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
        f"This training needs about {_size(found.memory)}, and {_size(found.available)} are free:"
        f" it {verb}. To change: " + "; ".join(advice) + "."
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

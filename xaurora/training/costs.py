"""Estimate of a training run's cost, made by running its steps on tensors without values.

The peak memory of tensors is exact: the code is that of training, but nothing is computed or
allocated. What a process takes beyond its tensors (slack of the allocator, scratch space inside
operations) comes from measurements with ``benchmarks/estimates.py``. Time is the number of
floating-point operations divided by a rate, which is measured on this machine with a few layers of
the model's width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import xarray as xr

from xaurora.model.loader import MAX_CACHED
from xaurora.model.memory import free_memory
from xaurora.training import reads
from xaurora.training.hardware import device, measure_rate
from xaurora.training.known_costs import cost_of_step
from xaurora.training.plan import Plan
from xaurora.training.simulate import StepCost, can_measure, measure
from xaurora.utils import html

# CPU memory beyond tensors. Tensors allocated and freed within a step fragment the allocator's
# heap; weights and the optimiser state do not. Measured by benchmarks/estimates.py --calibrate, on
# other combinations than those of docs/memory.md.
SLACK = 1.5
FIXED = 60 * 1024**2  # bytes
# Share that Torch reserves beyond what is allocated. On an H200 with room to spare it was 0.1 to
# 0.6 (benchmarks/cards.py); when a card is full, Torch gives back what it has cached.
_GPU_SLACK = 0.1
_FRAMES_KEPT = 2 * 1024**3  # bytes: the budget of the loader
GIB = 1024**3
CARDS = (8, 12, 16, 24, 40, 80)
"""Memory of common GPUs in GB."""


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
    available : float
        Bytes that may be used on that device: ``memory=``, or what is free now.
    host : int
        Bytes that a GPU's steps keep in host memory.
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
    way : str
        How the step saves memory.
    cards : dict of float
        For GPUs that it fits on, by their memory in GB (:data:`CARDS`): how many times as long a
        step takes as in memory without limit. Only if compared.
    """

    model: str
    strategy: str
    device: str
    memory: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    available: float = 0
    host: int = 0
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
    way: str = ""
    cards: dict[int, float] = field(default_factory=dict)

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
            f"  memory     {format_size(self.memory)} at the peak{self._availability()}",
            "             "
            + ", ".join(f"{name} {format_size(value)}" for name, value in self.parts.items()),
            "  time       unknown on this machine"
            if math.isnan(self.step_seconds)
            else (
                f"  time       about {_span(self.step_seconds)} a step"
                f" ({'timed here' if self.measured else 'from its operations'}),"
                f" {_span(self.seconds / self.margin)} to {_span(self.seconds * self.margin)} for"
                f" {self.steps} steps with set-up and validation"
            ),
            f"  reads      {format_size(self.bytes_read)}, {format_size(self.first_look)} of it at"
            " the start",
            f"  disk       {format_size(self.disk)}",
            f"  trains     {self.trainable:,} of {self.total:,} parameters",
        ]
        if self.host:
            lines.insert(3, f"             {format_size(self.host)} in host memory")
        if self.way:
            lines.insert(3, f"             {self.way}")
        lines += [f"  try        {line}" for line in self.advice]
        if self.others:
            lines += ["", self.table()]
        return "\n".join(lines)

    __repr__ = __str__

    def _availability(self) -> str:
        if math.isinf(self.available):
            return ""
        fits = "it fits" if self.fits else "it does not fit"
        return f", {format_size(self.available)} available: {fits}"

    def table(self) -> str:
        """Return all estimates side by side, as text.

        For a GPU, its last columns tell by card how many times as long a step takes as in memory
        without limit, if it fits.
        """
        cards = any(e.cards for e in [self, *self.others])
        lines = [
            f"{'model':<17}{'strategy':<10}{'memory':>10}{'step':>10}{'total':>10}"
            f"{'disk':>10}{'trains':>16}"
            + ("".join(f"{card:>6} GB" for card in CARDS) if cards else "")
        ]
        for e in [self, *self.others]:
            if e.problem:
                lines.append(f"{e.model:<17}{e.strategy:<10}  {e.problem.splitlines()[0]}")
                continue
            mark = "" if e.fits else "  does not fit"
            lines.append(
                f"{e.model:<17}{e.strategy:<10}"
                f"{format_size(e.memory):>10}{_span(e.step_seconds):>10}"
                f"{_span(e.seconds):>10}{format_size(e.disk):>10}{e.trainable:>16,}"
                + "".join(
                    f"{f'{e.cards[card]:.1f} ×' if card in e.cards else '-':>9}"
                    for card in (CARDS if cards else ())
                )
                + mark
            )
        return "\n".join(lines)


_MARGIN_TIMED = 1.5  # the factors that benchmarks/estimate_times.py finds
_MARGIN_COUNTED = 3.0
_SET_UP = 1.5  # seconds to build a model, and to save it in the end
_LOOP = 0.008  # seconds around each step: logging, reading ahead, the schedule
_WRITTEN = 4e8  # bytes in a second that artefacts and checkpoints are written at
MEASURED_BELOW = 2.0  # seconds by their operations, up to which steps are run and timed


def estimate_plan(
    plan: Plan,
    ds: xr.Dataset | None = None,
    *,
    times: bool = False,
    gpu: bool | None = None,
) -> Estimate:
    """Return the estimate for a plan.

    Parameters
    ----------
    plan : Plan
    ds : Dataset, optional
    times : bool
        Whether a few steps are run and timed if they are cheap.
    gpu : bool, optional
        Whether a GPU trains, by default if there is one.
    """
    where, options = device(), plan.options
    gpu = where.type == "cuda" if gpu is None else gpu
    cost = cost_of_step(plan, where, gpu=gpu)
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
    if not gpu:
        lasting = sum(parts.get(k, 0) for k in ("weights", "optimiser", "average"))
        slack = max(cost.peak - lasting, 0) * (SLACK - 1.0)
        if options.activation_checkpointing is True:
            # computed twice, in more and smaller pieces
            slack += int(parts["activations"] * (SLACK - 1.0))
        parts["slack"] = int(slack) + FIXED
    else:
        parts["slack"] = int(cost.peak * _GPU_SLACK)
    there = gpu == (where.type == "cuda")
    rate = measure_rate(plan, where) if there else math.nan
    step, forward = cost.flops / rate, cost.forward_flops / _together(plan) / rate
    measured = (
        times
        and there
        and can_measure(plan)
        and 3.0 * (step + forward) < MEASURED_BELOW
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
        device="GPU" if gpu else "CPU",
        memory=_memory(plan, cost, parts, gpu=gpu),
        parts={k: int(v) for k, v in parts.items() if v},
        available=available(plan, gpu=gpu),
        host=cost.host,
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


def available(plan: Plan, *, gpu: bool) -> float:
    """Return the bytes that may be used: without limit on a GPU that is not there."""
    where = device()
    if plan.options.memory is not None:
        return plan.options.memory
    return free_memory(where) if gpu == (where.type == "cuda") else math.inf


def _memory(plan: Plan, cost: StepCost, parts: dict[str, int], *, gpu: bool) -> int:
    """Return the peak memory of the device that computes; on a CPU of all its processes."""
    options = plan.options
    memory = cost.peak + (parts["slack"] if gpu else 0)
    if options.parallel == "fsdp":  # weights, gradients and the optimiser state are sharded
        shared = sum(parts.get(k, 0) for k in ("weights", "gradients", "optimiser", "average"))
        memory -= int(shared * (1.0 - 1.0 / options.world_size))
    if not gpu:
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


def format_size(count: float) -> str:
    """Return a number of bytes as text."""
    for unit, size in (("GiB", GIB), ("MiB", 1024**2)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"


def _span(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"

"""Choose how a training step runs, so that it fits into the memory of the device."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import xarray as xr

from xaurora.errors import MemoryTooSmallError
from xaurora.model import execution
from xaurora.model.memory import free_memory
from xaurora.model.options import StrategyOptions
from xaurora.training.costs import Estimate, estimate_plan, format_size
from xaurora.training.hardware import device, model_size
from xaurora.training.plan import Plan
from xaurora.utils.memory import free_host_memory

logger = logging.getLogger("xaurora")

_SIMULATED_ABOVE = 0.25  # of the memory: steps that certainly need less are not simulated
# bytes per grid point and sample for every 100 channels of the embedding: above all measurements
_ACTIVATIONS = 6000
_ADVICE_BELOW = 0.9  # of the free memory


@dataclass(frozen=True)
class Measure:
    """A way to run a step in less memory.

    Parameters
    ----------
    checkpointing : bool or str
        ``activation_checkpointing=``.
    optimizer_state : str
    words : str
        What it does.
    slower : float
        Rough factor on the time of a step, relative to storing everything: 1.3 was measured on CPUs
        (``benchmarks/checkpointing.py``), offloading took no longer than recomputing on an H200
        (``benchmarks/cards.py``), and that of the host follows from its memory's speed.
    """

    checkpointing: bool | str
    optimizer_state: str
    words: str
    slower: float


MEASURES = (
    Measure(False, "device", "everything stays on the device", 1.0),
    Measure(True, "device", "activations are recomputed", 1.3),
    Measure("offload", "device", "activations are recomputed, inputs of blocks offloaded", 1.3),
    Measure(True, "host", "activations are recomputed, the optimiser is on the host", 1.6),
    Measure(
        "offload",
        "host",
        "activations are recomputed, inputs of blocks offloaded, the optimiser is on the host",
        1.6,
    ),
)
"""From the fastest to the one that takes the least memory, all with the same result."""
_EIGHT_BIT = tuple(
    replace(m, optimizer_state="8bit", words=f"{m.words}, moments take 8 bits")
    for m in MEASURES
    if m.optimizer_state == "device"
)
_BY_OPTIONS = {(m.checkpointing, m.optimizer_state): m for m in (*MEASURES, *_EIGHT_BIT)} | {
    (False, "host"): Measure(False, "host", "the optimiser is on the host", 1.3)
}


@dataclass(frozen=True)
class Choice:
    """A plan whose step runs in one of these ways, and its estimate."""

    plan: Plan
    measure: Measure
    estimate: Estimate

    def __str__(self) -> str:
        return f"{self.measure.words}: {format_size(self.estimate.memory)}"


def measures_for(plan: Plan, *, gpu: bool) -> list[Measure]:
    """Return the ways in which a plan's step may run: those that its options leave open."""
    options = plan.options
    few_train = plan.strategy.name in ("frozen", "lora", "peft")
    host_serves = gpu and not few_train and options.world_size == 1 and options.precision != "fp16"
    wanted, state = options.activation_checkpointing, options.optimizer_state

    def is_open(measure: Measure) -> bool:
        if wanted == "auto":
            helps = plan.trains_base and (gpu or measure.checkpointing != "offload")
            if measure.checkpointing and not helps:
                return False
        if state == "auto":
            return measure.optimizer_state == "device" or (
                measure.optimizer_state == "host" and host_serves
            )
        return measure.optimizer_state == state

    found = [m for m in (*MEASURES, *_EIGHT_BIT) if is_open(m)]
    if wanted != "auto":
        found = [_BY_OPTIONS[wanted, m.optimizer_state] for m in found]
    if not found:  # nothing is recomputed, because only a head trains
        found = [_BY_OPTIONS[False, state]]
    return list(dict.fromkeys(found))


def with_measure(plan: Plan, measure: Measure) -> Plan:
    """Return a plan whose step runs in this way."""
    return plan.with_changes(
        activation_checkpointing=measure.checkpointing, optimizer_state=measure.optimizer_state
    )


def least(plan: Plan, *, gpu: bool) -> Plan:
    """Return the plan whose step takes the least memory."""
    return with_measure(plan, measures_for(plan, gpu=gpu)[-1])


def find(plan: Plan, budget: float, ds: xr.Dataset | None = None, *, gpu: bool) -> list[Choice]:
    """Return the ways that were tried, the last of which fits if any does.

    On a GPU that is here, what leaves it must fit into host memory, too.
    """
    tried = []
    host = free_host_memory() if gpu and device().type == "cuda" else math.inf
    for measure in measures_for(plan, gpu=gpu):
        made = with_measure(plan, measure)
        tried.append(Choice(made, measure, estimate_plan(made, ds, gpu=gpu)))
        if tried[-1].estimate.memory <= budget and tried[-1].estimate.host <= host:
            break
    return tried


def choose(plan: Plan) -> Measure:
    """Return the fastest way of running a plan's steps that fits, and log it.

    Steps that are certainly small enough are not simulated. If nothing fits into the free memory,
    a warning says what to change.

    Raises
    ------
    MemoryTooSmallError
        If ``memory=`` is given and nothing fits, or if the host has too little memory for what the
        options put there.
    """
    where, options = device(), plan.options
    gpu = where.type == "cuda"
    free = float(free_memory(where))
    budget = options.memory if options.memory is not None else free
    ways = measures_for(plan, gpu=gpu)
    if options.memory is None and _is_small(plan, free):
        return ways[0]
    tried = find(plan, budget, gpu=gpu)
    chosen = tried[-1]
    if chosen.estimate.memory > budget and options.memory is not None:
        raise _nothing_fits(plan, chosen, budget, gpu=gpu)
    if (left := chosen.estimate.host) > (host := free_host_memory()) and gpu:
        found = _changes(plan, gpu=gpu)
        fits = [words for words, size in found.items() if size <= budget and "frozen" in words]
        raise MemoryTooSmallError(
            f"{chosen.measure.words}: this takes {format_size(left)} of host memory, and"
            f" {format_size(host)} are free. {_listed(found)}.",
            fix=(fits or ["regional data: ds.sel(latitude=..., longitude=...)"])[0],
        )
    if len(ways) > 1:
        logger.info(
            "Memory: %s may be used. %s. A step takes about %.1f times as long as in memory"
            " without limit.",
            format_size(budget),
            "; ".join(map(str, tried)),
            chosen.measure.slower,
        )
    if chosen.estimate.memory > _ADVICE_BELOW * budget and options.memory is None:
        verb = "may not fit" if chosen.estimate.memory <= budget else "does not fit"
        logger.warning(
            "This run needs about %s of memory and %s are free: it %s. Possible changes: %s.",
            format_size(chosen.estimate.memory),
            format_size(free),
            verb,
            "; ".join(advice(chosen.plan, gpu=gpu)),
        )
    return chosen.measure


def _is_small(plan: Plan, free: float) -> bool:
    """Return whether a plan's step certainly needs much less than what is free."""
    options, (rows, columns) = plan.options, plan.grid.shape
    parameters, width = model_size(plan)
    points = rows * columns * options.batch_size * options.rollout_steps
    return 16 * parameters + points * _ACTIVATIONS * width / 100 < _SIMULATED_ABOVE * free


def _nothing_fits(plan: Plan, chosen: Choice, budget: float, *, gpu: bool) -> MemoryTooSmallError:
    """Return the error that names what would fit."""
    needed = math.ceil(chosen.estimate.memory / 1e8) / 10
    found = _changes(plan, gpu=gpu)
    fits = [words for words, size in found.items() if size <= budget]
    return MemoryTooSmallError(
        f"memory= allows {format_size(budget)}, less than this run takes:"
        f" {format_size(chosen.estimate.memory)} if {chosen.measure.words}. {_listed(found)}.",
        fix=" or ".join([*fits[:2], f"memory='{needed:g}GB'"]),
    )


def _changes(plan: Plan, *, gpu: bool) -> dict[str, int]:
    """Return changes of the options, and the least memory that a step takes with each."""
    options, strategy = plan.options, plan.strategy
    where = device()
    changes: dict[str, dict[str, Any]] = {}
    if options.batch_size > 1:
        more = options.gradient_accumulation * options.batch_size
        changes[f"batch_size=1, gradient_accumulation={more}"] = {
            "batch_size": 1,
            "gradient_accumulation": more,
        }
    if plan.trains_base and options.activation_checkpointing is False:
        changes["activation_checkpointing=True"] = {"activation_checkpointing": True}
    if options.rollout_steps > 1 and not options.push_forward and options.replay is None:
        changes["push_forward=True"] = {"push_forward": True}
    if not gpu and execution.precision_on(options.precision, where) == "32":
        changes["precision='bf16'"] = {"precision": "bf16"}
    found = {words: plan.with_changes(**changed) for words, changed in changes.items()}
    if strategy.name in ("full", "decoder"):
        found["strategy='lora'"] = plan.with_changes(strategy=StrategyOptions("lora"))
    if plan.trains_base and plan.targets:
        found["strategy='frozen'"] = plan.with_changes(strategy=StrategyOptions("frozen"))
    together = {key: value for changed in changes.values() for key, value in changed.items()}
    if len(together) > 1:
        found[", ".join(changes)] = plan.with_changes(**together)
    return {
        words: estimate_plan(least(changed, gpu=gpu), gpu=gpu).memory
        for words, changed in found.items()
    }


def _listed(changes: dict[str, int]) -> str:
    return "; ".join(f"{words}: {format_size(size)}" for words, size in changes.items())


def advice(plan: Plan, *, gpu: bool) -> list[str]:
    """Return changes, one at a time and then combined, with the memory that each would take."""
    budget = plan.options.memory or free_memory(device())
    return [
        *(
            f"{words}: {format_size(size)}{', which fits' if size <= budget else ''}"
            for words, size in _changes(plan, gpu=gpu).items()
        ),
        "a smaller part of the data: ds.sel(latitude=..., longitude=...); memory is proportional"
        " to its area",
    ]

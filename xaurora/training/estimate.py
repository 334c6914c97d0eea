"""The estimate of a training run, alone or beside other bases and strategies."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from xaurora.errors import CheckpointError, OptionError, XauroraError
from xaurora.model.options import STRATEGIES, StrategyOptions
from xaurora.training import fitting, parallel
from xaurora.training import plan as planning
from xaurora.training.costs import CARDS, MEASURED_BELOW, Estimate, available, estimate_plan
from xaurora.training.hardware import device as present_device
from xaurora.training.options import FinetuneOptions
from xaurora.training.plan import Plan
from xaurora.utils.progress import track

logger = logging.getLogger("xaurora")

DEVICES = ("auto", "cpu", "gpu")
_COMPARED = ("small", "base")


def estimate(
    ds: xr.Dataset, options: FinetuneOptions, *, compare: bool = False, device: str = "auto"
) -> Estimate:
    """Estimate the cost of a run. See :meth:`xaurora.accessor.AuroraAccessor.estimate`."""
    gpu = _is_gpu(device)
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
    first = _estimated(made, ds, gpu=gpu, times=True, cards=compare and gpu)
    if not first.fits:
        first = replace(first, advice=fitting.advice(made, gpu=gpu))
    if not compare:
        return first
    cases: list[tuple[Any, str]] = [(m, s) for m in _COMPARED for s in STRATEGIES]
    cases += [(options.model, s) for s in STRATEGIES if made.name not in _COMPARED]
    cases = [(m, s) for m, s in cases if not (m == options.model and s == made.strategy.name)]
    others = [
        _try_estimate(
            ds, replace(options, model=m, strategy=StrategyOptions(s), weights=None), gpu=gpu
        )
        for m, s in track(cases, "estimate", unit="case", shown=options.progress)
    ]
    return replace(first, others=others)


def _is_gpu(device: str) -> bool:
    if device not in DEVICES:
        raise OptionError(
            f"device must be one of {', '.join(map(repr, DEVICES))}, got {device!r}.",
            fix="device='gpu'",
        )
    return present_device().type == "cuda" if device == "auto" else device == "gpu"


def _estimated(
    plan: Plan, ds: xr.Dataset, *, gpu: bool, times: bool = False, cards: bool = False
) -> Estimate:
    """Return the estimate of a plan that runs in the fastest way that fits, and where it fits."""
    budget = available(plan, gpu=gpu)
    tried = fitting.find(plan, 0.0 if cards else budget, ds, gpu=gpu)
    chosen = next((c for c in tried if c.estimate.memory <= budget), tried[-1])
    found = chosen.estimate
    if times and found.step_seconds < MEASURED_BELOW:
        found = estimate_plan(chosen.plan, ds, times=True, gpu=gpu)
    if len(fitting.measures_for(plan, gpu=gpu)) > 1:
        found = replace(found, way=chosen.measure.words)
    if not cards:
        return found
    fits = {
        card: min((c.measure.slower for c in tried if c.estimate.memory <= card * 1e9), default=0.0)
        for card in CARDS
    }
    return replace(found, cards={card: slower for card, slower in fits.items() if slower})


def _try_estimate(ds: xr.Dataset, options: FinetuneOptions, *, gpu: bool) -> Estimate:
    """Return an estimate, or one whose ``problem`` says why there is none."""
    try:
        return _estimated(planning.plan(ds, options), ds, gpu=gpu, cards=gpu)
    except XauroraError as error:
        name = options.model if isinstance(options.model, str) else type(options.model).__name__
        strategy = options.strategy_options.name
        return Estimate(name, strategy, "GPU" if gpu else "CPU", problem=error.message)

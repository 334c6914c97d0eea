""""""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from xaurora.fields import targets
from xaurora.fields.distribution import Distribution
from xaurora.fields.grid import lattice as grids
from xaurora.model import hashing, strategies, tuned
from xaurora.model.batch import STEP
from xaurora.model.tuned import TunedAurora
from xaurora.training import checkpoints, describe, samples
from xaurora.training import options as config
from xaurora.training import plan as planning
from xaurora.training.build import BuiltModel
from xaurora.training.plan import Plan
from xaurora.training.scan import TargetScan
from xaurora.utils import provenance

logger = logging.getLogger("xaurora")


def describe_run(
    plan: Plan, looked: TargetScan, made: BuiltModel, from_truth: bool
) -> dict[str, Any]:
    """Return the description of the run that is saved with the artefact."""
    options, module = plan.options, made.module
    heads_: Any = module.head
    saved = plan.how.name in ("decoder", "full") or plan.name == "tiny" or plan.merged
    return {
        "targets": {
            t.name: _describe(t, heads_[t.name], looked.seen[t.name], from_truth)
            for t in plan.learnt
        },
        "inputs": {n: asdict(form) for n, form in made.forms.items()},
        "all": plan.every,
        "strategy": plan.how.name,
        "strategy_options": asdict(plan.how),
        "base": tuned.describe_base(
            module.base,
            plan.name,
            saved=saved or planning.holds_its_base(plan.model),
            original_hash=made.original_hash,
            adapter=module.adapter,
        ),
        "halo": plan.halo,
        "training": {
            "samples": len(looked.train),
            "validation_samples": len(looked.validation),
            "validated_on_training_samples": plan.parts.same,
            "start": str((looked.train[0] - STEP).astype("datetime64[m]")),
            "end": str((looked.train[-1] + STEP * options.rollout_steps).astype("datetime64[m]")),
            "region": describe.describe_region(plan.target_grid),
            "grid_spacing": list(plan.grid.spacing),
            "batch_size": options.batch_size,
            "steps": options.total_steps(len(looked.train)),
            "seed": options.seed,
            "options": {
                k: v
                for k, v in asdict(replace(options, logger=None, latents="auto")).items()
                if k not in ("logger", "latents")
            },
            "skipped": plan.chosen.skipped,
        },
        "parameters": [asdict(part) for part in strategies.table(module)],
        "versions": provenance.versions(),
        "made": provenance.now(),
    }


def settings_of_run(
    plan: Plan,
    looked: TargetScan,
    made: BuiltModel,
    meta: dict[str, Any],
    kept: config.LatentOptions | None,
) -> dict[str, Any]:
    """Return the settings that must be the same in a resumed run."""
    heads_: Any = made.module.head
    return checkpoints.settings_of(
        asdict(replace(plan.options, logger=None)),
        target=[*([targets.ALL] if plan.every else []), *(t.name for t in plan.learnt)],
        model=plan.name,
        base=made.original_hash,
        start=hashing.state_hash(made.module.base),
        targets={
            n: [d.moments.count, d.moments.mean, d.moments.std] for n, d in looked.seen.items()
        },
        strategy=asdict(plan.how),
        head={n: asdict(h.options) for n, h in heads_.items()},
        inputs=sorted(made.forms),
        halo=plan.halo,
        region=meta["training"]["region"],
        kept_latents=kept.dtype if kept is not None else None,
        train=samples.describe(looked.train),
        validation=samples.describe(looked.validation),
    )


def warn(plan: Plan, looked: TargetScan, meta: dict[str, Any]) -> None:
    """Log conditions that may make the result worse than the scores suggest."""
    if not plan.grid.is_global and not plan.moves_base and not plan.name.startswith("tiny"):
        logger.warning(
            "The data are regional and the backbone is frozen, but a pretrained Aurora was"
            " trained on global data and may perform poorly on a region. Use global data or"
            " strategy='full'; see docs/regions.md."
        )
    if note := _seen_before(plan.name, plan.model, looked.validation):
        logger.warning("%s", note)
        meta["training"]["note"] = note
    total = plan.options.total_steps(len(looked.train))
    if plan.options.warmup is not None and plan.options.warmup >= total:
        logger.warning(
            "warmup=%d, but the run has only %d steps: the learning rate will not reach its peak.",
            plan.options.warmup,
            total,
        )
    for t in plan.learnt:
        seen = looked.seen[t.name]
        if seen.clipped:
            logger.info(
                "%d negative amounts of %s were set to zero, %.3g mm in all.",
                seen.clipped,
                t.item.source,
                seen.clipped_amount * 1e3,
            )


PRETRAINED_UNTIL = {"small": 2021, "base": 2021, "finetuned": 2022}
"""First year not used in pretraining: ERA5 to 2020, and for the fine-tuned model IFS HRES to 2021
(Bodnar et al. 2025, doi:10.1038/s41586-025-09005-y, supplements C and D)."""


def _seen_before(name: str, model: Any, validation: np.ndarray) -> str:
    """Return a note if the base was trained on validation samples, or an empty string.

    It may have seen them in pretraining or in an earlier tuning.
    """
    if isinstance(model, TunedAurora):
        start, end = (np.datetime64(model.config["training"][k]) for k in ("start", "end"))
        if count := int(((validation >= start) & (validation <= end)).sum()):
            return (
                f"{count} of {len(validation)} validation samples lie in the period that the model"
                f" was tuned on before ({start} to {end}): scores there will be too good. Use"
                " other years for validation."
            )
    if name not in PRETRAINED_UNTIL:
        return ""
    first = PRETRAINED_UNTIL[name]
    count = int((validation < np.datetime64(f"{first}-01-01")).sum())
    if not count:
        return ""
    return (
        f"{count} of {len(validation)} validation samples lie before {first}: the pretrained"
        " Aurora was trained on those years, so the scores of its own variables are too good, and"
        f" those of rain may be. For a fair comparison use later years: validation='{first}'."
    )


def _describe(
    target: targets.Target, head: Any, seen: Distribution, from_truth: bool
) -> dict[str, Any]:
    m = seen.moments
    statistics: dict[str, Any] = {
        "mean": m.mean,
        "std": m.std,
        "min": m.low,
        "max": m.high,
        "count": m.count,
    }
    if target.is_rain:
        statistics |= {
            "wet_fraction": seen.wet_fraction,
            "wet_log_mean": seen.log_wet.mean,
            "wet_log_std": seen.log_wet.std,
            "clipped": seen.clipped,
        }
    tails = {f"{q:g}": float(seen.histogram.quantile(q)) for q in (0.5, 0.9, 0.99, 0.999, 0.9999)}
    return {
        "source": target.item.source,
        "long_name": target.variable.long_name,
        "units": target.variable.units,
        "rain": target.is_rain,
        "from_truth": from_truth,
        "head": head.config(),
        "statistics": {**statistics, "quantiles": tails},
    }


def describe_region(grid: grids.Grid) -> str:
    """Return a text description of a grid's extent and shape."""
    if grid.is_global:
        return f"global, {grid.shape[0]} × {grid.shape[1]}"
    return (
        f"{grid.latitude[-1]:g} to {grid.latitude[0]:g}°N, {grid.longitude[0]:g} to"
        f" {grid.longitude[-1]:g}°E, {grid.shape[0]} × {grid.shape[1]}"
    )

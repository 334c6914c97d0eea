"""What a run and its artefact say about themselves."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict
from typing import Any

import numpy as np

from xaurora.fields import inputs, targets
from xaurora.fields.distribution import Distribution
from xaurora.fields.grid.lattice import Grid
from xaurora.fields.targets import Target
from xaurora.model import artefact, execution, frames, hashing, strategies
from xaurora.model.batch import STEP
from xaurora.model.heads import DistributionHead
from xaurora.training import checkpoints, samples
from xaurora.training.build import BuiltModel
from xaurora.training.plan import Plan
from xaurora.training.scan import TargetScan
from xaurora.utils import provenance

logger = logging.getLogger("xaurora")


def describe_run(plan: Plan, scan: TargetScan, model: BuiltModel) -> dict[str, Any]:
    """Return the description of the run that is saved with the artefact."""
    options, module = plan.options, model.module
    from_truth = options.truth is not None
    return {
        "targets": {
            t.name: _describe_target(t, model.heads[t.name], scan.climatology[t.name], from_truth)
            for t in plan.targets
        },
        "inputs": {n: asdict(form) for n, form in model.forms.items()},
        "all": plan.trains_base_variables,
        "strategy": plan.strategy.name,
        "strategy_options": asdict(plan.strategy),
        "base": artefact.describe_base(
            module.base,
            plan.name,
            saved=plan.saves_base,
            original_hash=model.base_hash,
            adapter=module.adapter,
        ),
        "halo": options.halo,
        "training": {
            "samples": len(scan.train),
            "validation_samples": len(scan.validation),
            "validated_on_training_samples": plan.split.same,
            "start": str((scan.train[0] - STEP).astype("datetime64[m]")),
            "end": str((scan.train[-1] + STEP * options.rollout_steps).astype("datetime64[m]")),
            "region": describe_region(plan.target_grid),
            "grid_spacing": list(plan.grid.spacing),
            "levels": list(plan.fields.levels),
            "inputs": {**inputs.describe(plan.fields), **scan.inputs},
            "batch_size": options.batch_size,
            "steps": options.total_steps(len(scan.train)),
            "seed": options.seed,
            "options": options.training_values(),
            "skipped": plan.samples.skipped,
        },
        "parameters": [asdict(part) for part in strategies.table(module)],
        "versions": provenance.versions(),
        "made": provenance.now(),
    }


def settings_of_run(plan: Plan, scan: TargetScan, model: BuiltModel) -> dict[str, Any]:
    """Return the settings that must be the same in a resumed run."""
    latents = plan.latents
    return checkpoints.settings_of(
        plan.options.training_values(),
        target=[*([targets.ALL] if plan.trains_base_variables else []), *scan.climatology],
        model=plan.name,
        base=model.base_hash,
        start=hashing.state_hash(model.module.base, cached=True),
        targets={
            n: [d.moments.count, d.moments.mean, d.moments.std] for n, d in scan.climatology.items()
        },
        strategy=asdict(plan.strategy),
        head={n: asdict(h.options) for n, h in model.heads.items()},
        inputs=sorted(model.forms),
        halo=plan.options.halo,
        region=describe_region(plan.target_grid),
        kept_latents=latents.dtype if latents is not None else None,
        **({"moments": "8bit"} if plan.options.optimizer_state == "8bit" else {}),
        train=samples.describe(scan.train),
        validation=samples.describe(scan.validation),
    )


def describe_latents(plan: Plan, model: BuiltModel) -> dict[str, Any]:
    """Return everything that the latents of a run depend on, which names their store."""
    fields, base, window = model.fields, model.module.base, plan.window
    versions = provenance.versions()
    return {
        "weights": hashing.state_hash(base, cached=True),
        "configuration": hashing.configuration_hash(base),
        "grid": [
            *plan.grid.shape,
            float(plan.grid.latitude[0]),
            float(plan.grid.true_longitude[0]),
            *plan.grid.spacing,
        ],
        "variables": [*map(str, fields.surface), *map(str, fields.atmos)],
        "levels": list(fields.levels),
        "static fields": {
            name: hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
            for name, values in frames.statics(fields).items()
        },
        "region": (
            "all" if window is None else [window.patch_rows.tolist(), window.patch_columns.tolist()]
        ),
        "precision": execution.described_precision(base, plan.options.precision),
        **({"hours": "all six"} if any(h.sums_hours for h in plan.heads.values()) else {}),
        "versions": {n: versions.get(n, "") for n in ("xaurora", "microsoft-aurora", "torch")},
    }


def warn(plan: Plan, scan: TargetScan, description: dict[str, Any]) -> None:
    """Log conditions that may make the result worse than the scores suggest."""
    if not plan.grid.is_global and not plan.trains_base and not plan.model.built_here:
        logger.warning(
            "The data are regional and the backbone is frozen, but a pretrained Aurora was"
            " trained on global data and may perform poorly on a region. Use global data or"
            " strategy='full'; see docs/regions.md."
        )
    if note := _overlap_note(plan, scan.validation):
        logger.warning("%s", note)
        description["training"]["note"] = note
    total = plan.options.total_steps(len(scan.train))
    if plan.options.warmup is not None and plan.options.warmup >= total:
        logger.warning(
            "warmup=%d, but the run has only %d steps: the learning rate will not reach its peak.",
            plan.options.warmup,
            total,
        )
    for t in plan.targets:
        seen = scan.climatology[t.name]
        if seen.clipped:
            logger.info(
                "%d negative amounts of %s were set to zero%s.",
                seen.clipped,
                t.item.source,
                f", {seen.clipped_amount * 1e3:.3g} mm in all" if seen.clipped_amount else "",
            )


def _overlap_note(plan: Plan, validation: np.ndarray) -> str:
    """Return a note if the base was trained on validation samples, or an empty string.

    It may have seen them in pretraining or in an earlier tuning.
    """
    if plan.tuned is not None:
        start, end = (np.datetime64(plan.tuned.config["training"][k]) for k in ("start", "end"))
        if count := int(((validation >= start) & (validation <= end)).sum()):
            return (
                f"{count} of {len(validation)} validation samples lie in the period that the model"
                f" was tuned on before ({start} to {end}): scores there will be too good. Use"
                " other years for validation."
            )
    first = plan.model.spec.first_unseen_year if plan.model.spec is not None else None
    if first is None:
        return ""
    count = int((validation < np.datetime64(f"{first}-01-01")).sum())
    if not count:
        return ""
    return (
        f"{count} of {len(validation)} validation samples lie before {first}: the pretrained"
        " Aurora was trained on those years, so the scores of its own variables are too good, and"
        f" those of rain may be. For a fair comparison use later years: validation='{first}'."
    )


def _describe_target(
    target: Target, head: DistributionHead, seen: Distribution, from_truth: bool
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
    shares = (0.5, 0.9, 0.99, 0.999, 0.9999)
    found = seen.histogram.quantile(np.array(shares))
    tails = {f"{q:g}": float(value) for q, value in zip(shares, found, strict=True)}
    return {
        "source": target.item.source,
        "long_name": target.variable.long_name,
        "units": target.variable.units,
        "rain": target.is_rain,
        "from_truth": from_truth,
        "head": head.config(),
        "statistics": {**statistics, "quantiles": tails},
    }


def describe_region(grid: Grid) -> str:
    """Return a text description of a grid's extent and shape."""
    if grid.is_global:
        return f"global, {grid.shape[0]} × {grid.shape[1]}"
    return (
        f"{grid.latitude[-1]:g} to {grid.latitude[0]:g}°N, {grid.longitude[0]:g} to"
        f" {grid.longitude[-1]:g}°E, {grid.shape[0]} × {grid.shape[1]}"
    )

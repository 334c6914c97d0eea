"""Build the model of a plan: base, heads, adapter, and what trains of it."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from aurora import Aurora

from xaurora.fields import targets
from xaurora.fields.conventions import Fields
from xaurora.fields.distribution import Distribution
from xaurora.fields.outputs import HOURLY
from xaurora.fields.targets import InputForm, Target
from xaurora.model import adapters, hashing, heads, weights
from xaurora.model.adapters import Adapter
from xaurora.model.aurora import AuroraWithHead, add_inputs, latent_size
from xaurora.model.normalisation import surface_statistics
from xaurora.model.tiny import build_tiny
from xaurora.training.plan import Plan
from xaurora.training.scan import TargetScan

logger = logging.getLogger("xaurora")


@dataclass(frozen=True)
class BuiltModel:
    """The model, its inputs and its parameter groups.

    Parameters
    ----------
    module : AuroraWithHead
    fields : Fields
        What the encoder reads: the plan's fields, and targets among the inputs.
    forms : dict of InputForm
        Form of each target among the inputs.
    base_hash : str
        Hash of the base before training, or of the published base of a tuned model.
    groups : list of dict
        Parameter groups of what trains.
    """

    module: AuroraWithHead
    fields: Fields
    forms: dict[str, InputForm]
    base_hash: str
    groups: list[dict[str, Any]]

    @property
    def heads(self) -> dict[str, heads.DistributionHead]:
        """The heads, by target."""
        return self.module.heads


def build_model(plan: Plan, scan: TargetScan) -> BuiltModel:
    """Build the model with its heads and adapter, and freeze what the strategy does not train."""
    forms = _input_forms(plan, scan)
    fields = targets.with_inputs(plan.fields, plan.targets, forms) if forms else plan.fields
    base, adapter = _copy_of_base(plan)
    if base is None:
        base = _new_base(plan, scan)
    base_hash = hashing.state_hash(base, cached=True)
    if plan.tuned is not None and not plan.base_was_tuned:
        # The published base's, without the embeddings of targets among the inputs.
        base_hash = str(plan.tuned.config["base"]["hash"])
    built = {t.name: _build_head(plan, t, base, scan.climatology[t.name]) for t in plan.targets}
    add_inputs(base, forms)  # before the adapter, which may wrap the modules extended here
    if adapter is None and plan.strategy.name in ("lora", "peft"):
        adapter = adapters.install(base, plan.strategy, plan.options.seed)
    module = AuroraWithHead(base, heads.HeadSet(built), forms, adapter, plan.window)
    return BuiltModel(module, fields, forms, base_hash, plan.groups(module))


def _copy_of_base(plan: Plan) -> tuple[Aurora | None, Adapter | None]:
    """Return a copy of the base that was given, so that training does not change it."""
    if plan.tuned is not None:
        copied = copy.deepcopy(plan.tuned.model).cpu()
        if copied.adapter is not None and plan.merges_adapter:
            logger.info(
                "The adapter of the given model is merged into its weights, and strategy=%r"
                " trains from there.",
                plan.strategy.name,
            )
            adapters.merge(copied.base, copied.adapter)
            return copied.base, None
        return copied.base, copied.adapter
    base = plan.model.instance
    return (None if base is None else copy.deepcopy(base).cpu()), None


def _input_forms(plan: Plan, scan: TargetScan) -> dict[str, InputForm]:
    """Return the forms in which targets enter the encoder.

    Inputs that the encoder was trained on keep the form they were trained in.
    """
    before = dict(plan.tuned.model.inputs) if plan.tuned is not None else {}
    if not plan.options.as_input:
        return before
    return {t.name: _input_form(t, scan.climatology[t.name]) for t in plan.targets} | before


def _input_form(target: Target, climatology: Distribution) -> InputForm:
    moments = climatology.moments
    if not target.is_rain:
        return InputForm(None, moments.mean, max(moments.std, 1e-12))
    low, high = heads.EPSILON_RANGE
    epsilon = min(max(moments.mean, low), high)
    values, shares = climatology.binned()
    z = np.log1p(values / epsilon)
    spread = float(np.sqrt(shares @ (z - shares @ z) ** 2))
    return InputForm(epsilon, 0.0, max(spread, 1e-6))


def _new_base(plan: Plan, scan: TargetScan) -> Aurora:
    """Return a named base with its weights, or a new tiny one with the statistics of the data."""
    if scan.normalisation is None:
        return weights.load_pretrained(plan.name, plan.model.weights)
    return build_tiny(plan.needs, *scan.normalisation, plan.options.seed)


def _build_head(
    plan: Plan, target: Target, base: Aurora, climatology: Distribution
) -> heads.DistributionHead:
    """Return a new head that starts at the climatology, or the trained one of a tuned model."""
    options = plan.heads[target.name]
    if plan.tuned is not None and target.name in plan.tuned.targets:
        before = plan.tuned.heads[target.name]
        same = before.options.family == options.family
        epsilon = before.options.epsilon if options.epsilon is None else options.epsilon
        if same and before.options == replace(options, epsilon=epsilon):
            return copy.deepcopy(before)
    options = options.for_climate(climatology.moments.mean)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.options.seed + 1)
        head = heads.build(options, *latent_size(base), plan.needs.patch_size)
    if isinstance(head, heads.OwnHead):
        name = HOURLY[target.name]
        head.start_from(base.decoder.surf_heads[name], *surface_statistics(base, name))
    values, shares = climatology.binned()
    if options.bounds is not None:
        values = values.clip(*options.bounds)
    head.initialise(heads.Climatology(values, shares))
    return head

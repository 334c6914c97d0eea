"""Build the model of a plan: base, heads, adapter, and what trains of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from aurora import Aurora

from xaurora.errors import OptionError
from xaurora.fields import statistics as normalisation
from xaurora.fields import targets
from xaurora.fields.conventions import Fields
from xaurora.fields.distribution import Distribution
from xaurora.model import adapters, hashing, heads, weights
from xaurora.model import aurora as models
from xaurora.model.batch import STEP
from xaurora.model.tiny import build_tiny
from xaurora.model.tuned import TunedAurora
from xaurora.training import parallel
from xaurora.training import plan as planning
from xaurora.training.plan import Plan
from xaurora.training.scan import TargetScan


@dataclass(frozen=True)
class BuiltModel:
    """The model, its inputs and its parameter groups."""

    module: models.AuroraWithHead
    cut: Fields
    forms: dict[str, targets.InputForm]
    original_hash: str
    groups: list[dict[str, Any]]


def build_model(plan: Plan, looked: TargetScan, fabric: Any) -> BuiltModel:
    """Build the model with its heads and adapter, and freeze what the strategy does not train."""
    model, options, how = plan.model, plan.options, plan.how
    forms = (
        {t.name: _input_form(t, looked.seen[t.name]) for t in plan.learnt} if plan.as_input else {}
    )
    if isinstance(model, TunedAurora) and model.model.inputs:
        # Inputs that the encoder was trained on keep the form they were trained in.
        forms = {**forms, **model.model.inputs} if plan.as_input else dict(model.model.inputs)
        if missing := [n for n in forms if n not in {t.name for t in plan.learnt}]:
            raise OptionError(
                f"the model was tuned with {missing} among its inputs, and goes on with them"
                " alone.",
                fix=f"target={list(forms)!r}, as_input=True",
            )
    cut = targets.with_inputs(plan.cut, plan.learnt, forms) if forms else plan.cut
    base = plan.base
    if base is None:
        base = _make_base(plan, cut, looked.train, fabric, without=tuple(forms))
    original_hash = hashing.state_hash(base)
    if isinstance(model, TunedAurora) and not planning.holds_its_base(model):
        original_hash = str(
            model.config["base"]["hash"]
        )  # hash of the published base, without the embeddings of target inputs
    levels, width = models.latent_size(base)
    patch, seed = plan.needs.patch_size, options.seed
    heads_ = {
        t.name: _make_head(
            model, t.name, plan.heads[t.name], levels, width, patch, looked.seen[t.name], seed
        )
        for t in plan.learnt
    }
    adapter = plan.adapter
    models.extend(base, forms)  # before the adapter, which may wrap the modules extended here
    if adapter is None and how.name in ("lora", "peft"):
        adapter = adapters.install(base, how, seed)
    module = models.AuroraWithHead(base, heads.HeadSet(heads_), forms, adapter)
    module.window = plan.window
    return BuiltModel(module, cut, forms, original_hash, plan.groups(module))


def heads_of(module: models.AuroraWithHead) -> list[heads.DistributionHead]:
    """Return the heads of a module."""
    found: Any = module.head
    return [head for _, head in found.items()]


def _input_form(target: targets.Target, seen: Distribution) -> targets.InputForm:
    if not target.is_rain:
        return targets.InputForm(None, seen.moments.mean, max(seen.moments.std, 1e-12))
    epsilon = min(max(seen.moments.mean, heads.EPSILON_RANGE[0]), heads.EPSILON_RANGE[1])
    values, shares = seen.binned()
    z = np.log1p(values / epsilon)
    return targets.InputForm(
        epsilon, 0.0, max(float(np.sqrt(shares @ (z - shares @ z) ** 2)), 1e-6)
    )


def _make_base(
    plan: Plan, cut: Fields, train: np.ndarray, fabric: Any, without: tuple[str, ...] = ()
) -> Aurora:
    options = plan.options
    if plan.name != "tiny":
        return weights.load_pretrained(plan.name, plan.weights)

    def statistics() -> Any:
        frames = np.unique(
            np.concatenate([train + STEP * k for k in range(-1, options.rollout_steps + 1)])
        )
        plain = replace(cut, surface=cut.surface.drop_vars(list(without)))
        return normalisation.statistics_of(plain, list(frames), progress=options.progress)

    surface, atmos = parallel.first(fabric, statistics)  # read by the first process only
    return build_tiny(plan.needs, surface, atmos, options.seed)


def _make_head(
    model: Any,
    name: str,
    options: heads.HeadOptions,
    levels: int,
    width: int,
    patch_size: int,
    seen: Distribution,
    seed: int,
) -> heads.DistributionHead:
    if isinstance(model, TunedAurora) and name in model.targets:
        before = model.heads[name]
        if before.options == (
            replace(options, epsilon=before.options.epsilon) if options.epsilon is None else options
        ):
            return copy.deepcopy(before)  # continue from the trained head
    options = options.for_climate(seen.moments.mean)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        head = heads.build(options, levels, width, patch_size)
    values, shares = seen.binned()
    if options.bounds is not None:
        values = values.clip(*options.bounds)
    head.initialise(heads.Climatology(values, shares))
    return head

"""Resolve a Dataset and arguments into a plan of what is trained on what.

``finetune`` and ``estimate`` both start from a plan, before anything expensive is run.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from aurora import Aurora

from xaurora.errors import OptionError
from xaurora.fields import conventions, plausibility, requirements, targets
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import lattice as grids
from xaurora.fields.grid import patches, regions
from xaurora.fields.requirements import Needs
from xaurora.fields.variables import Variable
from xaurora.model import adapters, heads, strategies, tuned
from xaurora.model import aurora as models
from xaurora.model.tuned import TunedAurora
from xaurora.training import options as config
from xaurora.training import samples
from xaurora.training.options import LatentOptions, StrategyOptions, TrainingOptions

logger = logging.getLogger("xaurora")


@dataclass(frozen=True)
class Plan:
    """What is to be trained, and on which data.

    Parameters
    ----------
    options, how : TrainingOptions, StrategyOptions
    every : bool
        Whether Aurora's own variables are a target (``target="all"``).
    learnt : list of Target
        Targets with a head, on the grid that the model sees.
    heads : dict of HeadOptions
        Head options by target.
    as_input, fed : bool
        Whether ``as_input=True`` was given, and whether the model has target inputs at all.
    name : str
        Name of the base.
    model : object
        The model as given, or as loaded from a path.
    base : Aurora, optional
        A copy of the base, if a model was given as an object.
    weights : path, optional
    adapter : Adapter, optional
        The adapter of the given model, if it continues to train.
    merged : bool
        Whether an adapter of the given model was merged into its weights.
    needs : Needs
    cut : Fields
        The fields that the model takes from the data.
    crop : Crop
    grid : Grid
    trim : tuple of slice
        Rows and columns inside the halo.
    halo : int
    window : Window, optional
        The region on which the targets are trained.
    target_grid, target_trim : Grid, tuple of slice
        Grid of the targets, and the rows and columns of it that are scored.
    chosen : Index
        Init times that form samples.
    parts : Split
        Their split into training and validation.
    """

    options: TrainingOptions
    how: StrategyOptions
    every: bool
    learnt: list[targets.Target]
    heads: dict[str, heads.HeadOptions]
    as_input: bool
    fed: bool
    name: str
    model: Any
    base: Aurora | None
    weights: str | Path | None
    adapter: adapters.Adapter | None
    merged: bool
    needs: Needs
    cut: Fields
    crop: patches.Crop
    grid: grids.Grid
    trim: tuple[slice, slice]
    halo: int
    window: patches.Window | None
    target_grid: grids.Grid
    target_trim: tuple[slice, slice]
    chosen: samples.Index
    parts: samples.Split

    @property
    def moves_base(self) -> bool:
        """Whether the strategy trains any weights of the base."""
        return self.how.name != "frozen"

    @property
    def scores_base(self) -> bool:
        """Whether Aurora's own variables are scored."""
        return self.moves_base and self.options.base_loss > 0

    @property
    def scratch(self) -> bool:
        """Whether the base is created here with random weights."""
        return self.name == "tiny" and self.base is None

    def groups(self, module: models.AuroraWithHead) -> list[dict[str, Any]]:
        """Freeze what the strategy does not train, and return the parameter groups of the rest."""
        options = self.options
        return strategies.apply(
            module,
            self.how,
            trains_base_outputs=self.scores_base,
            learning_rate=options.learning_rate,
            head_learning_rate=options.head_learning_rate,
            rollout_steps=options.rollout_steps,
            push_forward=options.push_forward,
            replay=options.replay is not None,
            scratch=self.scratch,
        )


def check_arguments(
    target: Any,
    how: StrategyOptions,
    head: Any,
    halo: Any,
    options: TrainingOptions,
    *,
    truth: Any = None,
    as_input: Any = False,
) -> list[str]:
    """Check arguments before any data are read, and return the target names, including ``all``.

    Raises
    ------
    XauroraError
        If an argument is invalid.
    """
    names = targets.names_of(target)
    learnt = [n for n in names if n != targets.ALL]
    _check_all(targets.ALL in names, learnt, how, options)
    config.check_halo(halo)
    if as_input not in (True, False):
        raise OptionError(f"as_input={as_input!r} must be True or False.", fix="as_input=True")
    if not learnt:
        for name, value, nothing in (
            ("head", head, "auto"),
            ("truth", truth, None),
            ("as_input", as_input, False),
        ):
            if value is not nothing and not (isinstance(value, str) and value == nothing):
                raise OptionError(
                    f"{name}= applies to targets with a head, but target='all' has none.",
                    fix="target=['all', 'tp']",
                )
    else:
        _check_heads(head, learnt)
    if options.resume not in (True, False):
        raise OptionError(f"resume={options.resume!r} must be True or False.", fix="resume=True")
    return names


def plan(
    ds: xr.Dataset,
    target: str | Sequence[str],
    *,
    truth: xr.Dataset | None,
    model: Any,
    weights: str | Path | None,
    how: StrategyOptions,
    head: Any,
    as_input: bool,
    train: Any,
    validation: Any,
    halo: int,
    options: TrainingOptions,
    region: Any = None,
    named: bool = False,
) -> Plan:
    """Resolve all arguments into a plan.

    Reads a few frames of a target if its values have to be inspected, and nothing else. If only the
    name of a strategy was given (``named``), the adapter of a given model continues to train with
    its own options.

    Raises
    ------
    XauroraError
        If ``check()`` would report a problem, the model, target or head is unknown, or there are
        too few samples for a split.
    """
    names = check_arguments(target, how, head, halo, options, truth=truth, as_input=as_input)
    every = targets.ALL in names
    names = [n for n in names if n != targets.ALL]
    found = targets.recognise(ds, () if truth is not None else names)
    found.raise_first()
    fields = conventions.standardise(ds, found)
    learnt = truth.resolve_targets(fields, names, truth)
    targets.check_kinds(learnt)
    targets.refuse_doubled(learnt)
    chosen_heads = {
        t.name: _head_options(head, name, t.variable) for name, t in zip(names, learnt, strict=True)
    }
    if (
        isinstance(model, str | Path)
        and model not in requirements.MODELS
        and str(model)
        and Path(model).is_dir()
    ):
        model, weights = tuned.load(model, weights=weights), None
    if named and isinstance(model, TunedAurora) and model.model.adapter is not None:
        there = model.model.adapter.options
        how = there if there.name == how.name else how
    name, base, adapter = _resolve_model(model, how)
    if base is not None and weights is not None:
        raise OptionError(
            "weights= applies to a model given by name, but the given model already has weights.",
            fix="model='small', weights='file.ckpt'",
        )
    if name == "tiny" and weights is not None:
        raise OptionError(
            "weights= applies to a pretrained model, but 'tiny' is created with random weights.",
            fix="model='small', weights='file.ckpt'",
        )
    needs = (
        requirements.needs_of(name, fields, [t.name for t in learnt])
        if base is None
        else _needs_of(model, base)
    )
    targets.refuse_own([t.name for t in learnt if t.name in needs.surface])
    cut, crop = requirements.fit(fields, needs)
    plausibility.refuse_implausible(fields)
    if truth is not None:
        for t in learnt:
            plausibility.refuse_implausible_target(t)
    learnt = [
        replace(t, values=t.values.isel(latitude=crop.rows, longitude=crop.columns)) for t in learnt
    ]
    grid = cut.layout.grid
    window = None
    if region is not None:
        window = _window(region, cut, needs.patch_size, chosen_heads, halo)
        learnt = [replace(t, values=_inside(t.values, window)) for t in learnt]
    fed = as_input or (isinstance(model, TunedAurora) and bool(model.model.inputs))
    if fed:
        if window is not None:
            raise OptionError(
                "region= trains the target on part of the grid, but as_input=True needs it on the"
                " whole grid.",
                fix="remove one of the two arguments",
            )
        targets.refuse_as_input([t.name for t in learnt])
        own = list(model.model.inputs) if isinstance(model, TunedAurora) else []
        if missing := [n for n in own if n not in {t.name for t in learnt}]:
            raise OptionError(
                f"the model was tuned with {missing} among its inputs, and can only be tuned"
                " further with them as targets.",
                fix=f"target={[*([targets.ALL] if every else []), *own]!r}",
            )
    whole = functools.reduce(np.intersect1d, [t.times for t in learnt]) if learnt else cut.times
    chosen = samples.index(cut.times, whole, also_input=fed, steps=options.rollout_steps)
    if fed:
        chosen = samples.without_holes(chosen, [t.values for t in learnt])
    return Plan(
        options=options,
        how=how,
        every=every,
        learnt=learnt,
        heads=chosen_heads,
        as_input=as_input,
        fed=fed,
        name=name,
        model=model,
        base=base,
        weights=weights,
        adapter=adapter,
        merged=_has_adapter(model) and adapter is None,
        needs=needs,
        cut=cut,
        crop=crop,
        grid=grid,
        trim=patches.trim(grid, halo),
        halo=int(halo),
        window=window,
        target_grid=grid if window is None else grid.take(window.rows, window.columns),
        target_trim=patches.trim(grid, halo) if window is None else (slice(None), slice(None)),
        chosen=chosen,
        parts=samples.split(chosen, train, validation, steps=options.rollout_steps, also_input=fed),
    )


def _window(
    region: Any, cut: Fields, patch_size: int, chosen: dict[str, heads.HeadOptions], halo: int
) -> patches.Window:
    """Return the part of the grid where the targets are trained."""
    if not chosen:
        raise OptionError(
            "region= is the region of a target with a head, but target='all' has none.",
            fix="remove region=",
        )
    if halo:
        raise OptionError(
            "halo= discards the edges of regional data, while region= selects a part of the"
            " model's grid; they cannot be combined.",
            fix="remove one of the two arguments",
        )
    inside = regions.cells(cut, region)
    margin = max(1, *(options.neighbours // 2 for options in chosen.values()))
    return patches.window_around(cut.layout.grid, inside, patch_size, margin)


def _inside(values: xr.DataArray, window: patches.Window) -> xr.DataArray:
    """Return a target cropped to a region, with NaN in cells of the bounding box outside it."""
    part = values.isel(latitude=window.rows, longitude=window.columns)
    if window.mask is None:
        return part
    return part.where(xr.DataArray(window.mask, dims=("latitude", "longitude")))


def kept_latents(plan: Plan) -> LatentOptions | None:
    """Return how latents are kept in this run, or None if the backbone runs in every step.

    Raises
    ------
    OptionError
        If keeping latents was requested but is not possible.
    """
    options, wanted = plan.options, plan.options.latents
    if wanted is False:
        return None
    why = ""
    if plan.how.name != "frozen":
        why = f"strategy={plan.how.name!r} trains the weights that produce them"
    elif options.rollout_steps > 1:
        why = f"rollout_steps={options.rollout_steps} starts later steps from forecasts"
    elif plan.fed:
        why = "as_input=True trains the encoder's embedding of the target"
    elif options.parallel == "fsdp":
        why = "parallel='fsdp' needs all processes to run the model together"
    if why and wanted == "auto":
        return None
    if why:
        raise OptionError(
            f"latents can only be kept while the backbone is unchanged, but {why}.",
            fix="latents='auto'",
        )
    if wanted == "auto":
        seen = options.total_steps(len(plan.parts.train)) * options.samples_a_step
        return LatentOptions() if seen > len(plan.parts.train) else None
    return wanted if isinstance(wanted, LatentOptions) else LatentOptions()


def _check_all(
    every: bool, names: list[str], how: config.StrategyOptions, options: config.TrainingOptions
) -> None:
    if not every:
        return
    if how.name == "frozen":
        raise OptionError(
            "target='all' trains Aurora's own variables, but strategy='frozen' keeps all their"
            " weights fixed.",
            fix="strategy='full' or 'lora'"
            + (f", or target={names!r}" if names else ", or target='tp'"),
        )
    if not options.base_loss:
        raise OptionError(
            "target='all' trains Aurora's own variables, but base_loss=0 turns their loss off.",
            fix="base_loss=1.0",
        )


def _check_heads(head: Any, names: list[str]) -> None:
    if isinstance(head, dict) and (unknown := [n for n in head if n not in names]):
        raise OptionError(
            f"head= has entries for {unknown}, which are not among the targets {names}.",
            fix=f"head={{{names[0]!r}: 'auto'}}",
        )
    for one in head.values() if isinstance(head, dict) else [head]:
        heads.options_for(one, "normal")


def _head_options(head: Any, name: str, variable: Variable) -> heads.HeadOptions:
    """Return the head options of one target; ``"auto"`` depends on the kind of variable."""
    one = head.get(name, "auto") if isinstance(head, dict) else head
    kind = (
        heads.AUTO_RAIN
        if variable.accumulated
        else "bounded_normal"
        if variable.bounds
        else "normal"
    )
    options = heads.options_for(one, kind)
    if (options.family in heads.RAIN) != variable.accumulated:
        raise OptionError(
            f"the head {options.family!r} is "
            f"{'for precipitation' if options.family in heads.RAIN else 'not for precipitation'},"
            f" but {name!r} is {variable.long_name.lower()}.",
            fix=f"head={{{name!r}: {kind!r}}}",
        )
    if options.family == "bounded_normal" and options.bounds is None:
        if variable.bounds is None:
            raise OptionError(
                f"the valid range of {name!r} is not known.",
                fix="head=HeadOptions(family='bounded_normal', bounds=(lower, upper))",
            )
        return replace(options, bounds=variable.bounds)
    return options


def _resolve_model(
    model: Any, how: config.StrategyOptions
) -> tuple[str, Aurora | None, adapters.Adapter | None]:
    """Return the name of the base, a copy of it, and its adapter.

    The copy is None for a model given by name. An object given by the caller is copied, so that
    training does not modify it.
    """
    if isinstance(model, TunedAurora):
        copied = copy.deepcopy(model.model)
        adapter = copied.adapter
        if adapter is not None and how != adapter.options and how.name != "frozen":
            logger.info(
                "The adapter of the given model is merged into its weights, and strategy=%r"
                " trains from there.",
                how.name,
            )
            adapters.merge(copied.base, adapter)
            adapter = None
        return str(model.config["base"]["name"]), copied.base, adapter
    if isinstance(model, Aurora):
        return "given", copy.deepcopy(model), None
    if isinstance(model, str) and model in requirements.MODELS:
        return model, None, None
    raise requirements.unknown_model(model)


def holds_its_base(model: Any) -> bool:
    """Return whether the base comes from an earlier tuning rather than a published checkpoint."""
    return isinstance(model, TunedAurora) and bool(model.config["base"]["saved"])


def _has_adapter(model: Any) -> bool:
    return isinstance(model, TunedAurora) and model.model.adapter is not None


def _needs_of(model: Any, base: Aurora) -> requirements.Needs:
    return model.needs if isinstance(model, TunedAurora) else models.needs_of_instance(base)

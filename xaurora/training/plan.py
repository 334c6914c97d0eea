"""From a Dataset and arguments to what will be trained on what, before anything is spent:
``finetune`` and ``estimate`` share it.
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
    """What is to be trained on what.

    Parameters
    ----------
    options, how : TrainingOptions, StrategyOptions
    every : bool
        Whether Aurora's own variables are a target.
    learnt : list of Target
        The other targets, on the model's part of the grid.
    heads : dict of HeadOptions
        By target.
    as_input, fed : bool
        Whether the targets are to become inputs, and whether any are.
    name : str
        Of the base.
    model : object
        As it was given, or loaded.
    base : Aurora, optional
        A copy of the base where a model was given.
    weights : path, optional
    adapter : Adapter, optional
        That the base has, and that goes on training.
    merged : bool
        Whether an adapter that the base had was added to its weights.
    needs : Needs
    cut : Fields
        What the model takes of the data.
    crop : Crop
    grid : Grid
    trim : tuple of slice
        Rows and columns inside the halo.
    halo : int
    window : Window, optional
        The region where the targets are learnt.
    target_grid, target_trim : Grid, tuple of slice
        The targets' own.
    chosen : Index
        Init times that make a sample.
    parts : Split
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
        """Whether the strategy trains anything of the base."""
        return self.how.name != "frozen"

    @property
    def scores_base(self) -> bool:
        """Whether Aurora's own variables are scored."""
        return self.moves_base and self.options.base_loss > 0

    @property
    def scratch(self) -> bool:
        """Whether the base is made here, of random weights."""
        return self.name == "tiny" and self.base is None

    def groups(self, module: models.AuroraWithHead) -> list[dict[str, Any]]:
        """Freeze what does not train; the rest by learning rate."""
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
    """Raise for arguments that cannot be, before any data are looked at; returns the targets'
    names, ``all`` among them.
    """
    names = targets.names_of(target)
    learnt = [n for n in names if n != targets.ALL]
    _check_all(targets.ALL in names, learnt, how, options)
    config.check_halo(halo)
    if as_input not in (True, False):
        raise OptionError(f"as_input={as_input!r} is neither True nor False.", fix="as_input=True")
    if not learnt:
        for name, value, nothing in (
            ("head", head, "auto"),
            ("truth", truth, None),
            ("as_input", as_input, False),
        ):
            if value is not nothing and not (isinstance(value, str) and value == nothing):
                raise OptionError(
                    f"{name}= belongs to a target with a head, and target='all' has none.",
                    fix="target=['all', 'tp']",
                )
    else:
        _check_heads(head, learnt)
    if options.resume not in (True, False):
        raise OptionError(
            f"resume={options.resume!r} is neither True nor False.", fix="resume=True"
        )
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
    """Resolve everything. Reads a few frames of a target that has to be looked at, and no others. A
    strategy that was ``named`` alone goes on with the adapter that the model has, whatever its
    options.

    Raises
    ------
    XauroraError
        What ``check()`` would list; an unknown model, target or head; too few samples for a split.
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
            "weights= belongs to a named model, and one with weights was given.",
            fix="model='small', weights='file.ckpt'",
        )
    if name == "tiny" and weights is not None:
        raise OptionError(
            "weights= belongs to a pretrained model, and 'tiny' is made here.",
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
                "region= learns the target in a part of the grid, and as_input=True needs it on all"
                " of it.",
                fix="leave one of them out",
            )
        targets.refuse_as_input([t.name for t in learnt])
        own = list(model.model.inputs) if isinstance(model, TunedAurora) else []
        if missing := [n for n in own if n not in {t.name for t in learnt}]:
            raise OptionError(
                f"the model was tuned with {missing} among its inputs, and goes on with them"
                " alone.",
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
    """Where the targets are learnt."""
    if not chosen:
        raise OptionError(
            "region= is where a target is learnt, and target='all' has none with a head.",
            fix="leave region out",
        )
    if halo:
        raise OptionError(
            "halo= throws away the edges of regional data, and region= takes a part of what the"
            " backbone sees.",
            fix="leave one of them out",
        )
    inside = regions.cells(cut, region)
    margin = max(1, *(options.neighbours // 2 for options in chosen.values()))
    return patches.window_around(cut.layout.grid, inside, patch_size, margin)


def _inside(values: xr.DataArray, window: patches.Window) -> xr.DataArray:
    """A target in a region; NaN in cells of its box that lie outside."""
    part = values.isel(latitude=window.rows, longitude=window.columns)
    if window.mask is None:
        return part
    return part.where(xr.DataArray(window.mask, dims=("latitude", "longitude")))


def kept_latents(plan: Plan) -> LatentOptions | None:
    """How latents are kept in a training, or None where the backbone runs in every step.

    Raises
    ------
    OptionError
        They were asked for, and cannot be kept.
    """
    options, wanted = plan.options, plan.options.latents
    if wanted is False:
        return None
    why = ""
    if plan.how.name != "frozen":
        why = f"strategy={plan.how.name!r} trains what makes them"
    elif options.rollout_steps > 1:
        why = f"rollout_steps={options.rollout_steps} starts later steps from forecasts"
    elif plan.fed:
        why = "as_input=True trains what the encoder makes of the target"
    elif options.parallel == "fsdp":
        why = "parallel='fsdp' runs all processes at once"
    if why and wanted == "auto":
        return None
    if why:
        raise OptionError(
            f"latents can be kept where the backbone stays as it is, and {why}.",
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
            "target='all' trains Aurora's own variables, and strategy='frozen' leaves all that"
            " makes them as it is.",
            fix="strategy='full' or 'lora'"
            + (f", or target={names!r}" if names else ", or target='tp'"),
        )
    if not options.base_loss:
        raise OptionError(
            "target='all' trains Aurora's own variables, and base_loss=0 turns their loss off.",
            fix="base_loss=1.0",
        )


def _check_heads(head: Any, names: list[str]) -> None:
    if isinstance(head, dict) and (unknown := [n for n in head if n not in names]):
        raise OptionError(
            f"head= names {unknown}, which are not among the targets {names}.",
            fix=f"head={{{names[0]!r}: 'auto'}}",
        )
    for one in head.values() if isinstance(head, dict) else [head]:
        heads.options_for(one, "normal")


def _head_options(head: Any, name: str, variable: Variable) -> heads.HeadOptions:
    """The head of one target; ``"auto"`` goes by the variable's kind."""
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
            f"the head {options.family!r} is for"
            f" {'amounts of precipitation' if options.family in heads.RAIN else 'variables that are no amounts'},"
            f" and {name!r} is {variable.long_name.lower()}.",
            fix=f"head={{{name!r}: {kind!r}}}",
        )
    if options.family == "bounded_normal" and options.bounds is None:
        if variable.bounds is None:
            raise OptionError(
                f"the range of {name!r} is not known.",
                fix="head=HeadOptions(family='bounded_normal', bounds=(lower, upper))",
            )
        return replace(options, bounds=variable.bounds)
    return options


def _resolve_model(
    model: Any, how: config.StrategyOptions
) -> tuple[str, Aurora | None, adapters.Adapter | None]:
    """A name, a copy of the base where an object was given (what the caller holds is not trained
    under their hands), and its adapter.
    """
    if isinstance(model, TunedAurora):
        copied = copy.deepcopy(model.model)
        adapter = copied.adapter
        if adapter is not None and how != adapter.options and how.name != "frozen":
            logger.info(
                "The adapter that the model was tuned with is added to its weights, from which"
                " strategy=%r goes on.",
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
    """Whether the base is that of an earlier tuning, which stands in no published checkpoint."""
    return isinstance(model, TunedAurora) and bool(model.config["base"]["saved"])


def _has_adapter(model: Any) -> bool:
    return isinstance(model, TunedAurora) and model.model.adapter is not None


def _needs_of(model: Any, base: Aurora) -> requirements.Needs:
    return model.needs if isinstance(model, TunedAurora) else models.needs_of_instance(base)

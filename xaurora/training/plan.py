"""Resolve a Dataset and options into a plan of what is trained on what.

``finetune`` and ``estimate`` both start from a plan, before anything expensive is run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import OptionError
from xaurora.fields import conventions, plausibility, requirements, targets, truth
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import patches, regions
from xaurora.fields.grid.lattice import Grid
from xaurora.fields.outputs import HOURLY
from xaurora.fields.requirements import Needs
from xaurora.fields.targets import Target
from xaurora.fields.variables import Variable
from xaurora.model import heads, strategies
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.options import StrategyOptions
from xaurora.model.resolve import ResolvedModel, check_engine_supports, resolve
from xaurora.training import samples
from xaurora.training.nested_options import LatentOptions
from xaurora.training.options import FinetuneOptions
from xaurora.training.samples import Index, Split
from xaurora.utils import lazy

if TYPE_CHECKING:
    from xaurora.model.tuned import TunedAurora


@dataclass(frozen=True)
class Plan:
    """What is trained on what.

    Parameters
    ----------
    options : FinetuneOptions
    strategy : StrategyOptions
        With the options of an adapter that continues to train.
    model : ResolvedModel
        The base, not copied and not changed.
    trains_base_variables : bool
        Whether Aurora's own variables are a target.
    targets : list of Target
        The other targets, cropped to the model's part of the grid.
    heads : dict of HeadOptions
        By target.
    target_is_input : bool
        Whether any target is also fed to the encoder.
    needs : Needs
    fields : Fields
        The fields that the model takes from the data.
    left_out : str
        Rows and columns that do not fill a patch, in words.
    window : Window, optional
        The region on which the targets are trained.
    samples : Index
        Init times that form samples.
    split : Split
        Their split into training and validation.
    """

    options: FinetuneOptions
    strategy: StrategyOptions
    model: ResolvedModel
    trains_base_variables: bool
    targets: list[Target]
    heads: dict[str, heads.HeadOptions]
    target_is_input: bool
    needs: Needs
    fields: Fields
    left_out: str
    window: patches.Window | None
    samples: Index
    split: Split

    @property
    def name(self) -> str:
        """Name of the base."""
        return self.model.name

    @property
    def tuned(self) -> TunedAurora | None:
        """The tuned model that training continues from."""
        return self.model.tuned

    @property
    def grid(self) -> Grid:
        """Grid of the model's input."""
        return self.fields.layout.grid

    @property
    def trim(self) -> tuple[slice, slice]:
        """Rows and columns inside the halo."""
        return patches.trim(self.grid, self.options.halo)

    @property
    def target_grid(self) -> Grid:
        """Grid of the targets."""
        window = self.window
        return self.grid if window is None else self.grid.take(window.rows, window.columns)

    @property
    def target_trim(self) -> tuple[slice, slice]:
        """Rows and columns of the targets' grid that are scored."""
        return self.trim if self.window is None else (slice(None), slice(None))

    @property
    def trains_base(self) -> bool:
        """Whether the strategy trains any weights of the base."""
        return self.strategy.name != "frozen"

    @property
    def scores_base(self) -> bool:
        """Whether Aurora's own variables are scored."""
        return self.trains_base and self.options.base_loss > 0

    @property
    def random_base(self) -> bool:
        """Whether the base is created here with random weights."""
        spec = self.model.spec
        return spec is not None and spec.random_weights and self.tuned is None

    @property
    def built_for_data(self) -> bool:
        """Whether the base is built for the variables and statistics of the data."""
        spec = self.model.spec
        return spec is not None and spec.adapts_to_data and self.tuned is None

    @property
    def merges_adapter(self) -> bool:
        """Whether the adapter of the given model is merged into its weights before training."""
        adapter = self.tuned.model.adapter if self.tuned is not None else None
        return adapter is not None and self.trains_base and self.strategy != adapter.options

    @property
    def base_was_tuned(self) -> bool:
        """Whether the base comes from an earlier tuning rather than a published checkpoint."""
        return self.tuned is not None and bool(self.tuned.config["base"]["saved"])

    @property
    def saves_base(self) -> bool:
        """Whether the artefact holds the weights of the base."""
        return (
            self.strategy.name in ("decoder", "full")
            or (self.model.spec is not None and self.model.spec.random_weights)
            or self.merges_adapter
            or self.base_was_tuned
        )

    @property
    def latents(self) -> LatentOptions | None:
        """How latents are kept, or None if the backbone runs in every step.

        Raises
        ------
        OptionError
            If keeping latents was requested but is not possible.
        """
        return _latent_options(self)

    def groups(self, module: AuroraWithHead) -> list[dict[str, Any]]:
        """Freeze what the strategy does not train, and return the parameter groups of the rest."""
        options = self.options
        schedule = strategies.Schedule(
            trains_base_outputs=self.scores_base,
            rollout_steps=options.rollout_steps,
            push_forward=options.push_forward,
            replay=options.replay is not None,
            learning_rate=options.learning_rate,
            head_learning_rate=options.head_learning_rate,
            random_base=self.random_base,
        )
        return strategies.apply(module, self.strategy, schedule)

    def with_changes(
        self,
        *,
        strategy: StrategyOptions | None = None,
        **options: Any,  # noqa: ANN401 - those of TrainingOptions
    ) -> Plan:
        """Return the plan with other training options, such as ``batch_size=1``."""
        strategy = strategy or self.strategy
        changed = replace(self.options, strategy=strategy, **options)
        return replace(self, strategy=strategy, options=changed)


def check_options(options: FinetuneOptions) -> tuple[bool, list[str]]:
    """Check the options that depend on each other, before any data are read.

    Returns
    -------
    tuple
        Whether Aurora's own variables are trained, and the names of the other targets.

    Raises
    ------
    XauroraError
        If options contradict each other, or there is no such strategy, target or head.
    """
    names = targets.names_of(options.target)
    trains_base_variables = targets.ALL in names
    names = [n for n in names if n != targets.ALL]
    if trains_base_variables:
        _check_base_variables(options, names)
    if names:
        _check_heads(options.head, names)
    else:
        for name, given in (
            ("head", options.head != "auto"),
            ("truth", options.truth is not None),
            ("as_input", options.as_input),
            ("region", options.region is not None),
            ("statistics", options.statistics is not None),
        ):
            if given:
                raise OptionError(
                    f"{name}= applies to targets with a head, but target='all' has none.",
                    fix="target=['all', 'tp']",
                )
    if options.region is not None and options.as_input:
        raise _region_needs_no_input()
    return trains_base_variables, names


def plan(ds: xr.Dataset, options: FinetuneOptions) -> Plan:
    """Resolve options into a plan.

    Reads a few frames of a target if its values have to be inspected, and nothing else.

    Raises
    ------
    XauroraError
        If ``check()`` would report a problem, the model, target or head is unknown, or there are
        too few samples for a split.
    """
    trains_base_variables, names = check_options(options)
    found = targets.recognise(ds, () if options.truth is not None else names)
    found.raise_first()
    fields = conventions.standardise(ds, found)
    wanted = truth.resolve_targets(fields, names, options.truth)
    targets.check_kinds(wanted)
    targets.check_duplicates(wanted)
    head_options = {
        t.name: _head_options(options.head, name, t.variable)
        for name, t in zip(names, wanted, strict=True)
    }
    model = resolve(options.model, options.weights, options.static_file)
    needs = model.needs(fields, [t.name for t in wanted])
    check_engine_supports(options.engine, needs)
    targets.check_not_predicted([t.name for t in wanted if t.name in needs.surface])
    _check_own_heads(head_options, needs)
    used, crop = requirements.select_and_crop(fields, needs)
    plausibility.check_plausible(fields, needs)
    if options.truth is not None:
        for t in wanted:
            plausibility.check_plausible_target(t)
    wanted = [
        replace(t, values=t.values.isel(latitude=crop.rows, longitude=crop.columns)) for t in wanted
    ]
    window = None
    if options.region is not None:
        window = regions.window_of(
            used.layout.grid,
            used.land,
            options.region,
            patch_size=needs.patch_size,
            margin=heads.patch_margin(head_options.values()),
            halo=options.halo,
        )
        wanted = [replace(t, values=_crop_to_window(t.values, window)) for t in wanted]
    given_inputs = list(model.tuned.model.inputs) if model.tuned is not None else []
    target_is_input = options.as_input or bool(given_inputs)
    if target_is_input:
        if window is not None:
            raise _region_needs_no_input()
        _check_inputs([t.name for t in wanted], given_inputs, trains_base_variables)
    complete = functools.reduce(np.intersect1d, [t.times for t in wanted]) if wanted else used.times
    steps = options.rollout_steps
    index = samples.index(used.times, complete, also_input=target_is_input, steps=steps)
    if target_is_input and len(index.init_times) <= options.first_look:
        index = samples.drop_missing_inputs(index, [t.values for t in wanted])
    return Plan(
        options=options,
        strategy=_continued_strategy(options, model),
        model=model,
        trains_base_variables=trains_base_variables,
        targets=wanted,
        heads=head_options,
        target_is_input=target_is_input,
        needs=needs,
        fields=used,
        left_out=crop.left_out,
        window=window,
        samples=index,
        split=samples.split(
            index, options.train, options.validation, steps=steps, also_input=target_is_input
        ),
    )


def _continued_strategy(options: FinetuneOptions, model: ResolvedModel) -> StrategyOptions:
    """Return the strategy.

    If only its name was given, the adapter of a given model continues to train with its own
    options.
    """
    strategy = options.strategy_options
    adapter = model.tuned.model.adapter if model.tuned is not None else None
    if isinstance(options.strategy, str) and adapter is not None:
        return adapter.options if adapter.options.name == strategy.name else strategy
    return strategy


def _region_needs_no_input() -> OptionError:
    return OptionError(
        "region= trains the target on part of the grid, but as_input=True needs it on the whole"
        " grid.",
        fix="remove one of the two arguments",
    )


def _check_inputs(names: Sequence[str], given: list[str], trains_base_variables: bool) -> None:
    """Raise if the targets cannot be the inputs that the encoder takes."""
    targets.check_input_names(names)
    if missing := [n for n in given if n not in names]:
        raise OptionError(
            f"the model was tuned with {missing} among its inputs, and can only be tuned further"
            " with them as targets.",
            fix=f"target={[*([targets.ALL] if trains_base_variables else []), *given]!r}",
        )


def _crop_to_window(values: xr.DataArray, window: patches.Window) -> xr.DataArray:
    """Return a target cropped to a region, with NaN in cells of the bounding box outside it."""
    part = values.isel(latitude=window.rows, longitude=window.columns)
    if window.mask is None:
        return part
    inside = functools.partial(_inside, window.mask)
    return part.copy(
        data=lazy.map_fields(part.variable, inside, window.mask.shape, part.dtype)._data
    )


def _inside(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(mask, values, np.nan)


def _latent_options(plan: Plan) -> LatentOptions | None:
    options, wanted = plan.options, plan.options.latents
    if wanted is False:
        return None
    why = ""
    if plan.trains_base:
        why = f"strategy={plan.strategy.name!r} trains the weights that produce them"
    elif options.rollout_steps > 1:
        why = f"rollout_steps={options.rollout_steps} starts later steps from forecasts"
    elif plan.target_is_input:
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
        used = options.total_steps(len(plan.split.train)) * options.samples_per_step
        return LatentOptions() if used > len(plan.split.train) else None
    return wanted if isinstance(wanted, LatentOptions) else LatentOptions()


def _check_base_variables(options: FinetuneOptions, names: list[str]) -> None:
    if options.strategy_options.name == "frozen":
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


def _check_heads(head: heads.HeadLike, names: list[str]) -> None:
    if isinstance(head, dict) and (unknown := [n for n in head if n not in names]):
        raise OptionError(
            f"head= has entries for {unknown}, which are not among the targets {names}.",
            fix=f"head={{{names[0]!r}: 'auto'}}",
        )
    for one in head.values() if isinstance(head, dict) else [head]:
        heads.options_for(one, "normal")


def _check_own_heads(options: Mapping[str, heads.HeadOptions], needs: Needs) -> None:
    """Raise if the base has no decoder of its own for a target that is to be tuned with it."""
    for name, own in options.items():
        if own.family == heads.OWN and HOURLY.get(name) not in needs.output_only:
            raise OptionError(
                f"head='own' tunes a model's own decoder of {name!r}, but model {needs.model!r} has"
                " none.",
                fix="model='v1.5' with target='tp' or 'sf', or head='auto'",
            )


def _head_options(head: heads.HeadLike, name: str, variable: Variable) -> heads.HeadOptions:
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
    if options.for_amounts != variable.accumulated:
        raise OptionError(
            f"the head {options.family!r} is "
            f"{'for precipitation' if options.for_amounts else 'not for precipitation'},"
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

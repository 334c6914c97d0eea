"""The requested output: lead times, variables, quantiles, thresholds and members."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import (
    LeadTimeError,
    MissingVariableError,
    OptionError,
)
from xaurora.fields import periods
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field
from xaurora.fields.outputs import AMOUNTS, output_field
from xaurora.fields.requirements import Needs
from xaurora.fields.unit_conversion import is_rate
from xaurora.fields.variables import BY_KEY, TIMESTEP_HOURS, Variable
from xaurora.forecasting.options import PredictOptions
from xaurora.model.heads.options import SINGLE
from xaurora.utils.types import Given, LeadsLike


def lead_steps(lead: LeadsLike) -> list[int]:
    """Return the rollout steps of six hours for ``lead=``; see :func:`lead_hours`.

    Examples
    --------
    >>> lead_steps("24h"), lead_steps(["6h", "1 day"])
    ([1, 2, 3, 4], [1, 4])
    """
    return [hours // TIMESTEP_HOURS for hours in lead_hours(lead)]


def lead_hours(
    lead: LeadsLike, step: LeadsLike | None = None, shortest: int = TIMESTEP_HOURS
) -> list[int]:
    """Return lead times in hours: all up to a single value, or those in a list.

    Parameters
    ----------
    lead : str, timedelta, or a list of them
        Multiples of ``step``.
    step : str or timedelta, optional
        Time between them, by default six hours.
    shortest : int
        Hours between the forecasts of the model.

    Raises
    ------
    LeadTimeError
        If a lead time is not a positive multiple of ``step``, or the model has no such step.

    Examples
    --------
    >>> lead_hours("3h", "1h", shortest=1)
    [1, 2, 3]
    """
    import pandas as pd

    spacing = step_hours(step, shortest)
    several = isinstance(lead, list | tuple | np.ndarray | pd.Index) or (
        isinstance(lead, xr.DataArray) and lead.ndim == 1
    )
    found: Any = lead.values if isinstance(lead, xr.DataArray) else lead
    out = []
    for value in list(found) if several else [lead]:
        hours = _hours(value)
        if hours <= 0 or hours % spacing:
            own = f"Aurora's time step of {spacing} hours"
            hourly = shortest < TIMESTEP_HOURS and step is None
            raise LeadTimeError(
                f"lead={value!r} must be a positive multiple of"
                f" {own if step is None else f'{step=}'}.",
                fix="lead='6h', step='1h'" if hourly else "lead='6h', '24h' or ['6h', '24h']",
            )
        out.append(hours)
    if not out:
        raise LeadTimeError("lead=[] contains no lead time.", fix="lead='24h'")
    return sorted(set(out)) if several else list(range(spacing, out[0] + 1, spacing))


def step_hours(step: LeadsLike | None, shortest: int) -> int:
    """Return the hours between lead times.

    Raises
    ------
    LeadTimeError
        If the model has no such step.
    """
    if step is None:
        return TIMESTEP_HOURS
    hours = _hours(step)
    known = [h for h in range(shortest, TIMESTEP_HOURS + 1) if TIMESTEP_HOURS % h == 0]
    if hours in known:
        return hours
    if hours > 0 and TIMESTEP_HOURS % hours == 0:
        raise LeadTimeError(
            f"step={step!r}, but this model forecasts every {TIMESTEP_HOURS} hours.",
            fix="model='v1.5', which forecasts every hour, or step='6h'",
        )
    raise LeadTimeError(
        f"step={step!r} must be one of {', '.join(f'{h}h' for h in known)}.",
        fix=f"step='{known[0]}h'",
    )


def _hours(value: Given) -> int:
    """Return a duration in hours, or -1 if it is none or not a whole number of them."""
    try:
        return periods.hours_of(value)
    except LeadTimeError:
        return -1


def resolve_request(
    options: PredictOptions, fields: Fields, needs: Needs, targets: Mapping[str, Any]
) -> Request:
    """Resolve the options into the output requested for every init time.

    Parameters
    ----------
    options : PredictOptions
    fields : Fields
        The data, whose variable names ``variables=`` may use.
    needs : Needs
    targets : dict
        Entries of the targets in the tuned model's config, by name.

    Raises
    ------
    OptionError
        If the model has no head for what is requested.
    MissingVariableError
        If the model does not predict a variable.
    """
    own_members = needs.draws_members and not targets
    if own_members:
        _check_members(options)
    else:
        _check_distribution(options, needs, targets)
    surface, atmos, heads = list(needs.state), list(needs.atmos), list(targets)
    # A head's forecast of rain replaces the base's own.
    outputs = [n for n in needs.output_only if AMOUNTS.get(n, n) not in targets]
    hours = lead_hours(options.lead, options.step, needs.lead_step_hours)
    period = step_hours(options.step, needs.lead_step_hours)
    if targets and period != TIMESTEP_HOURS:
        raise LeadTimeError(
            f"step={options.step!r}, but the heads of {', '.join(targets)} forecast steps of"
            f" {TIMESTEP_HOURS} hours.",
            fix="leave step= out, or model='v1.5' without a head",
        )
    if options.variables is not None:
        keys = _selected(options, fields, needs, targets, outputs)
        surface = [n for n in surface if ("surface", n) in keys]
        atmos = [n for n in atmos if ("atmos", n) in keys]
        heads = [n for n in heads if ("target", n) in keys]
        outputs = [n for n in outputs if ("output", n) in keys]
    elif targets:  # amounts need a forward pass for each of the six hours, and heads one
        outputs = [n for n in outputs if n not in AMOUNTS]
    return Request(
        hours,
        surface,
        atmos,
        heads,
        tuple(map(float, options.quantiles)),
        tuple(map(float, options.thresholds_mm)),
        options.members,
        outputs,
        period,
        own_members,
    )


def _check_members(options: PredictOptions) -> None:
    """Raise if a model that draws members is asked for something else."""
    if not options.members:
        raise OptionError(
            "this model draws ensemble members, but members=0.",
            fix="members=8, or model='v1.5' for a single forecast",
        )
    if options.quantiles or options.thresholds_mm or options.past is not None:
        raise OptionError(
            "quantiles, thresholds_mm and past belong to heads, and this model has members of its"
            " own.",
            fix="members=8 alone; fc['tp'].quantile([0.1, 0.9], 'number') gives quantiles",
        )


def _check_distribution(options: PredictOptions, needs: Needs, targets: Mapping[str, Any]) -> None:
    """Raise if the heads cannot give the members, quantiles or probabilities requested."""
    if options.members and not targets and needs.output_only:
        raise OptionError(
            f"members={options.members}, but model {needs.model!r} makes a single forecast.",
            fix="model='v1.5-ensemble', which draws members",
        )
    if options.wants_distribution and not targets:
        raise OptionError(
            "quantiles, thresholds_mm and members need a model with a head for tp, but this model"
            " has none.",
            fix="ds.aurora.finetune(target='tp') first",
        )
    single = [name for name, info in targets.items() if info["head"]["options"]["family"] in SINGLE]
    if options.members and single:
        raise OptionError(
            f"members= needs a distribution, but the head of {single} predicts a single value, so"
            " all members would be the same.",
            fix="finetune with head='auto'",
        )
    if options.thresholds_mm and not any(info["rain"] for info in targets.values()):
        raise OptionError(
            f"thresholds_mm applies to precipitation, but this model predicts {list(targets)}.",
            fix="quantiles=[0.5]",
        )


def _selected(
    options: PredictOptions,
    fields: Fields,
    needs: Needs,
    targets: Mapping[str, Any],
    outputs: Sequence[str],
) -> list[tuple[str, str]]:
    """Return the kinds and canonical names of ``variables=``."""
    names = options.variables
    names = [names] if isinstance(names, str) else list(names or ())
    own = {name: target_field(fields, name, info).source for name, info in targets.items()}
    sources = {fields.layout.fields["surface", n].source: ("surface", n) for n in needs.state}
    sources |= {fields.layout.fields["atmos", n].source: ("atmos", n) for n in needs.atmos}
    sources |= {output_field(fields, n, TIMESTEP_HOURS).source: ("output", n) for n in outputs}
    sources |= {source: ("target", n) for n, source in own.items()}
    counts = Counter(name for _, name in sources.values())
    lookup = {key[1]: key for key in sources.values() if counts[key[1]] == 1} | sources
    lookup = _other_names(sources) | lookup
    example = f"variables={sorted(sources)[:2]}"
    if unknown := [n for n in names if n not in lookup]:
        raise MissingVariableError(
            f"variables={names}: {unknown} cannot be forecast; this model predicts"
            f" {sorted(sources)}.",
            fix=example,
        )
    if not names:
        raise OptionError("variables=[] contains no variable.", fix=example)
    keys = [lookup[n] for n in names]
    if targets and options.wants_distribution and not any(k == "target" for k, _ in keys):
        raise OptionError(
            f"quantiles, thresholds_mm and members apply to {', '.join(targets)}, which is not"
            " among variables.",
            fix=f"variables={[*names, *own.values()]}",
        )
    return keys


def _other_names(sources: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Return all names of the surface variables and outputs that a model predicts."""
    out: dict[str, tuple[str, str]] = {}
    for kind, name in sources.values():
        variable = BY_KEY.get(("surface", AMOUNTS.get(name, name)))
        if variable is not None and kind != "atmos":
            names = (variable.name, variable.weatherbench2, *variable.aliases)
            out |= dict.fromkeys(names, (kind, name))
    return out


@dataclass(frozen=True)
class Request:
    """The output wanted for every init time.

    Parameters
    ----------
    hours : list of int
        Lead times.
    surface, atmos : list of str
        State variables.
    targets : list of str
        Variables with a head.
    quantiles, thresholds : tuple of float
        Of the targets.
    members : int
        Number of members.
    outputs : list of str
        Variables that the base predicts and does not read, in its own names.
    period : int
        Hours that amounts among them are summed over.
    own_members : bool
        Whether the base draws the members, of all variables.
    """

    hours: list[int]
    surface: list[str]
    atmos: list[str]
    targets: list[str]
    quantiles: tuple[float, ...]
    thresholds: tuple[float, ...]
    members: int = 0
    outputs: list[str] = field(default_factory=list)
    period: int = TIMESTEP_HOURS
    own_members: bool = False

    @property
    def steps(self) -> list[int]:
        """Rollout steps of six hours, for targets."""
        return [hours // TIMESTEP_HOURS for hours in self.hours]

    @property
    def amounts(self) -> list[str]:
        """Amounts among the outputs, in the base's names."""
        return [name for name in self.outputs if name in AMOUNTS]

    @property
    def model_hours(self) -> list[int]:
        """Lead times that the base runs: of amounts, every hour of the period."""
        length = self.period if self.amounts else 1
        return sorted({end - k for end in self.hours for k in range(length)})


def target_field(fields: Fields, name: str, target_info: dict[str, Any]) -> Field:
    """Return the output field of a target: as in the data, or as in training if it is not there.

    Parameters
    ----------
    fields : Fields
    name : str
        Canonical name.
    target_info : dict
        Entry of the target in the tuned model's config.
    """
    known = BY_KEY.get(("surface", name))
    variable = known or Variable(
        name, "surface", target_info["units"], target_info["long_name"], name
    )
    item = fields.layout.fields.get(("surface", name))
    if item is not None and not is_rate(str(item.attrs.get("units", ""))):
        return item
    # A mean rate in the data becomes an amount in the forecast: the total over six hours.
    source = item.source if item is not None else name if known else str(target_info["source"])
    attrs = {"units": variable.units, "long_name": variable.long_name}
    return Field(variable, source, 1.0, 0.0, np.dtype("float32"), (), attrs)

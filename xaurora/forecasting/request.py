"""The requested output: lead times, variables, quantiles, thresholds and members."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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
from xaurora.fields.requirements import Needs
from xaurora.fields.unit_conversion import is_rate
from xaurora.fields.variables import BY_KEY, TIMESTEP_HOURS, Variable
from xaurora.forecasting.options import PredictOptions
from xaurora.utils.types import LeadsLike


def lead_steps(lead: LeadsLike) -> list[int]:
    """Return the rollout steps for ``lead=``: all steps up to a single value, or those in a list.

    Raises
    ------
    LeadTimeError
        If a lead time is not a positive multiple of six hours.

    Examples
    --------
    >>> lead_steps("24h"), lead_steps(["6h", "1 day"])
    ([1, 2, 3, 4], [1, 4])
    """
    import pandas as pd

    several = isinstance(lead, list | tuple | np.ndarray | pd.Index) or (
        isinstance(lead, xr.DataArray) and lead.ndim == 1
    )
    found: Any = lead.values if isinstance(lead, xr.DataArray) else lead
    values = list(found) if several else [lead]
    steps = []
    for value in values:
        try:
            hours = periods.hours_of(value)
        except LeadTimeError:
            hours = -1
        if hours <= 0 or hours % TIMESTEP_HOURS:
            raise LeadTimeError(
                f"lead={value!r} must be a positive multiple of Aurora's time step of"
                f" {TIMESTEP_HOURS} hours.",
                fix="lead='6h', '24h' or ['6h', '24h']",
            )
        steps.append(hours // TIMESTEP_HOURS)
    if not steps:
        raise LeadTimeError("lead=[] contains no lead time.", fix="lead='24h'")
    return sorted(set(steps)) if several else list(range(1, steps[0] + 1))


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
    _check_distribution(options, targets)
    surface, atmos, heads = list(needs.surface), list(needs.atmos), list(targets)
    if options.variables is not None:
        keys = _selected(options, fields, needs, targets)
        surface = [n for n in surface if ("surface", n) in keys]
        atmos = [n for n in atmos if ("atmos", n) in keys]
        heads = [n for n in heads if ("target", n) in keys]
    return Request(
        lead_steps(options.lead),
        surface,
        atmos,
        heads,
        tuple(map(float, options.quantiles)),
        tuple(map(float, options.thresholds_mm)),
        options.members,
    )


def _check_distribution(options: PredictOptions, targets: Mapping[str, Any]) -> None:
    """Raise if the heads cannot give the members, quantiles or probabilities requested."""
    if options.wants_distribution and not targets:
        raise OptionError(
            "quantiles, thresholds_mm and members need a model with a head for tp, but this model"
            " has none.",
            fix="ds.aurora.finetune(target='tp') first",
        )
    single = [
        name
        for name, info in targets.items()
        if info["head"]["options"]["family"] == "deterministic"
    ]
    if options.members and single:
        raise OptionError(
            f"members= needs a distribution, but the head of {single} is deterministic, so all"
            " members would be the same.",
            fix="finetune with head='auto'",
        )
    if options.thresholds_mm and not any(info["rain"] for info in targets.values()):
        raise OptionError(
            f"thresholds_mm applies to precipitation, but this model predicts {list(targets)}.",
            fix="quantiles=[0.5]",
        )


def _selected(
    options: PredictOptions, fields: Fields, needs: Needs, targets: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return the kinds and canonical names of ``variables=``."""
    names = options.variables
    names = [names] if isinstance(names, str) else list(names or ())
    own = {name: target_field(fields, name, info).source for name, info in targets.items()}
    sources = {fields.layout.fields["surface", n].source: ("surface", n) for n in needs.surface}
    sources |= {fields.layout.fields["atmos", n].source: ("atmos", n) for n in needs.atmos}
    sources |= {source: ("target", n) for n, source in own.items()}
    counts = Counter(name for _, name in sources.values())
    lookup = {key[1]: key for key in sources.values() if counts[key[1]] == 1} | sources
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
    if options.wants_distribution and not any(kind == "target" for kind, _ in keys):
        raise OptionError(
            f"quantiles, thresholds_mm and members apply to {', '.join(targets)}, which is not"
            " among variables.",
            fix=f"variables={[*names, *own.values()]}",
        )
    return keys


@dataclass(frozen=True)
class Request:
    """The output wanted for every init time."""

    steps: list[int]
    surface: list[str]
    atmos: list[str]
    targets: list[str]
    quantiles: tuple[float, ...]
    thresholds: tuple[float, ...]
    members: int = 0


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

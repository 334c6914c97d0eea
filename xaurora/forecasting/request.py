""""""

from __future__ import annotations

from collections.abc import Sequence
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
from xaurora.model.tuned import TunedAurora


def lead_steps(lead: Any) -> list[int]:
    """Return the rollout steps of ``lead=``: all up to a single value, or exactly those of a list.

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
    values = list(lead.values if isinstance(lead, xr.DataArray) else lead) if several else [lead]
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


def check_members(members: Any, past: Any) -> None:
    if (
        isinstance(members, bool)
        or not isinstance(members, int | np.integer)
        or members < 0
        or members == 1
    ):
        raise OptionError(
            f"members={members!r} must be 0 or an integer of at least 2.",
            fix="members=50",
        )
    if past is not None and not members:
        raise OptionError(
            "past= is used only for members, but members=0.",
            fix="predict(members=50, past=ds_of_the_past)",
        )


def as_list(values: Any) -> list[float]:
    """Return one number, or several, as a list of Python numbers."""
    return [
        v.item() if isinstance(v, np.generic) else v
        for v in ([values] if np.ndim(values) == 0 else values)
    ]


def check_levels(name: str, values: Sequence[float], low: float, high: float) -> None:
    for value in values:
        if not (isinstance(value, int | float) and low < value < high) and not (
            name == "thresholds_mm" and value == 0
        ):
            raise OptionError(
                f"{name}={list(values)!r}: {value!r} must be between {low:g} and {high:g}.",
                fix=f"{name}={[0.1, 0.5, 0.9] if name == 'quantiles' else [0.1, 1, 10]}",
            )


def resolve_request(
    fields: Fields,
    needs: Needs,
    model: Any,
    steps: list[int],
    names: Sequence[str] | None,
    quantiles: Sequence[float],
    thresholds: Sequence[float],
    members: int,
) -> Request:
    learnt = model.config["targets"] if isinstance(model, TunedAurora) else {}
    wanted = bool(quantiles or thresholds or members)
    if wanted and not learnt:
        raise OptionError(
            "quantiles, thresholds_mm and members need a model with a head for tp, but this model"
            " has none.",
            fix="ds.aurora.finetune(target='tp') first",
        )
    if members and (
        single := [
            n for n, info in learnt.items() if info["head"]["options"]["family"] == "deterministic"
        ]
    ):
        raise OptionError(
            f"members= needs a distribution, but the head of {single} is deterministic, so all"
            " members would be the same.",
            fix="finetune with head='auto'",
        )
    if thresholds and not any(info["rain"] for info in learnt.values()):
        raise OptionError(
            f"thresholds_mm applies to precipitation, but this model predicts {list(learnt)}.",
            fix="quantiles=[0.5]",
        )
    surface, atmos, heads = list(needs.surface), list(needs.atmos), list(learnt)
    if names is not None:
        if isinstance(names, str):
            names = [names]
        sources = {fields.layout.fields["surface", n].source: ("surface", n) for n in needs.surface}
        sources |= {fields.layout.fields["atmos", n].source: ("atmos", n) for n in needs.atmos}
        sources |= {
            target_field(fields, n, info).source: ("target", n) for n, info in learnt.items()
        }
        canonical = {
            n: key
            for key in sources.values()
            for n in [key[1]]
            if [k[1] for k in sources.values()].count(n) == 1
        }
        lookup = {**canonical, **sources}
        if unknown := [n for n in names if n not in lookup]:
            raise MissingVariableError(
                f"variables={list(names)}: {unknown} cannot be forecast; this model predicts"
                f" {sorted(sources)}.",
                fix=f"variables={sorted(sources)[:2]}",
            )
        keys = [lookup[n] for n in names]
        surface = [n for n in surface if ("surface", n) in keys]
        atmos = [n for n in atmos if ("atmos", n) in keys]
        heads = [n for n in heads if ("target", n) in keys]
        if not keys:
            raise OptionError(
                "variables=[] contains no variable.", fix=f"variables={sorted(sources)[:2]}"
            )
        if wanted and not heads:
            raise OptionError(
                f"quantiles, thresholds_mm and members apply to {', '.join(learnt)}, which is not"
                " among variables.",
                fix=(
                    f"variables={[*names, *(target_field(fields, n, info).source for n, info in learnt.items())]}"
                ),
            )
    return Request(
        steps,
        surface,
        atmos,
        heads,
        tuple(map(float, quantiles)),
        tuple(map(float, thresholds)),
        int(members),
    )


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


def target_field(fields: Fields, name: str, learnt: dict[str, Any]) -> Field:
    """Return the user's form of a target, or the form it was trained in if the data lack it.

    Parameters
    ----------
    fields : Fields
    name : str
        Canonical name.
    learnt : dict
        Entry of the target in the tuned model's config.
    """
    known = BY_KEY.get(("surface", name))
    variable = known or Variable(name, "surface", learnt["units"], learnt["long_name"], name)
    item = fields.layout.fields.get(("surface", name))
    if item is not None and not is_rate(str(item.attrs.get("units", ""))):
        return item
    # A mean rate in the data becomes an amount in the forecast: the total over six hours.
    source = item.source if item is not None else name if known else str(learnt["source"])
    attrs = {"units": variable.units, "long_name": variable.long_name}
    return Field(variable, source, 1.0, 0.0, np.dtype("float32"), (), attrs)

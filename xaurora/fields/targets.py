"""What is learnt: finding the target in the data or in a truth of its own, and bringing it onto the
fields' grid and times.

Everything here is lazy but for the looks that are said in the docstrings.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import OptionError, TargetError
from xaurora.fields import precipitation, recognition, variables
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field, Recognition
from xaurora.fields.variables import TIMESTEP_HOURS, Variable, find

logger = logging.getLogger("xaurora")

ALL = "all"
"""Among the targets: Aurora's own variables."""

LEAST_VALID = 0.5
"""Share of a grid cell that must have values in the truth for it to be learnt from."""


@dataclass(frozen=True)
class Target:
    """One variable to learn.

    Parameters
    ----------
    item : Field
        How the data, or the truth, have it.
    values : DataArray, ``(time, latitude, longitude)``
        Canonical units, on the fields' grid; precipitation as six-hour totals, negative noise left
        in to be counted.
    times : ndarray of datetime64
        Times that have a whole value.
    """

    item: Field
    values: xr.DataArray
    times: np.ndarray

    @property
    def variable(self) -> Variable:
        """Its entry in the table."""
        return self.item.variable

    @property
    def name(self) -> str:
        """Canonical name."""
        return self.item.variable.name

    @property
    def is_rain(self) -> bool:
        """Whether it is an amount."""
        return self.item.variable.accumulated


def names_of(target: Any) -> list[str]:
    """Resolve ``target=`` to names, in the order given.

    Raises
    ------
    TargetError
        No name of a variable, none at all, or one twice.
    """
    names = [target] if isinstance(target, str) else target
    if (
        not isinstance(names, list | tuple)
        or not names
        or not all(isinstance(n, str) for n in names)
    ):
        raise TargetError(
            f"target={target!r} is no name of a variable, nor several.", fix="target='tp'"
        )
    if len(set(names)) < len(names):
        raise TargetError(
            f"target={target!r} names a variable twice.", fix=f"target={sorted(set(names))}"
        )
    return list(names)


def recognise(ds: xr.Dataset, names: Sequence[str]) -> Recognition:
    """Recognise the data; a target that the table does not know is taken as it is, in its own
    units.
    """
    found = recognition.recognise(ds)
    sources = {item.source for item in found.fields.values()}
    for name in names:
        if name not in sources and find(name) is None:
            recognition.add_generic(ds, name, found)
    return found


def key_of(fields: Fields, name: str) -> tuple[str, str] | None:
    """Kind and canonical name of a variable by its own or its canonical name."""
    for key, item in fields.layout.fields.items():
        if item.source == name:
            return key
    known = find(name)
    key = ("surface", known.name if known is not None else name)
    return key if key in fields.layout.fields else None


def refuse_doubled(learnt: Sequence[Target]) -> None:
    """Raise for one variable under two names."""
    names = [t.name for t in learnt]
    if doubled := sorted({n for n in names if names.count(n) > 1}):
        raise TargetError(
            f"{doubled} is named twice among the targets.",
            fix=f"target={list(dict.fromkeys(names))}",
        )


def _of_fields(fields: Fields, name: str, *, where: str = "data") -> Target:
    key = key_of(fields, name)
    if key is None:
        there = sorted(item.source for k, item in fields.layout.fields.items() if k[0] == "surface")
        raise TargetError(
            f"the target {name!r} is not in the {where}; surface variables there are {there}.",
            fix=(
                "add it: xaurora.open('states.nc', 'tp.nc')"
                if where == "data"
                else "a truth that holds it"
            ),
        )
    item = fields.layout.fields[key]
    if key[0] != "surface":
        raise TargetError(
            f"{name!r} ({item.variable.long_name.lower()}) is no surface variable with a time axis,"
            " and heads predict those alone.",
            fix="target='tp'",
        )
    da = fields.surface[item.variable.name]
    _refuse_mixed(fields, item)
    if not item.variable.accumulated:
        return Target(item, da, fields.times)
    period = precipitation.period_for(item.source, da.attrs, fields.times, TIMESTEP_HOURS)
    precipitation.refuse_running_totals(da, name=item.source)
    totals = precipitation.accumulate(da, TIMESTEP_HOURS, name=item.source)
    whole = precipitation.whole_times(fields.times, period)
    if not len(whole):
        raise TargetError(
            f"no time of '{item.source}' has all of its {TIMESTEP_HOURS // period} parts, so that"
            f" no {TIMESTEP_HOURS}-hour total can be made.",
            fix=f"download '{item.source}' for every {period} hour(s)",
        )
    return Target(item, totals, whole)


def _refuse_mixed(fields: Fields, item: Field) -> None:
    """Preliminary and final ERA5 in one target: what is learnt would change when the preliminary
    part is revised.
    """
    source = fields.layout.source
    if "expver" not in source.coords or source["expver"].dims != (fields.layout.axes["time"].dim,):
        return
    values = {str(v).lstrip("0") for v in np.unique(source["expver"].values.astype(str))} - {
        "",
        "nan",
    }
    if len(values) > 1:
        dim = fields.layout.axes["time"].dim
        raise TargetError(
            f"'{item.source}' mixes final ERA5 with preliminary ERA5T (expver"
            f" {', '.join(sorted(values))}), which may still be revised.",
            fix=(
                f"ds = ds.isel({dim}=[str(v).lstrip('0') == '1' for v in ds.expver.values]) keeps"
                " what is final; ds.drop_vars('expver') if you want both"
            ),
        )


# --- a truth of its own ---------------------------------------------------------------------------


# --- the target as an input -----------------------------------------------------------------------


@dataclass(frozen=True)
class InputForm:
    """How a target enters Aurora's encoder: rain as ``log1p(tp / ε)``, anything else as it is.

    Parameters
    ----------
    epsilon : float or None
        Metres; None leaves values alone.
    location, scale : float
        What the encoder normalises with. The location of rain is zero, so that dry stays zero.
    """

    epsilon: float | None
    location: float
    scale: float


def with_inputs(cut: Fields, targets: Sequence[Target], forms: dict[str, InputForm]) -> Fields:
    """Fields that hold the targets, in the form the encoder takes, among their surface variables."""
    extra = {}
    layout_fields = dict(cut.layout.fields)
    for target in targets:
        form = forms[target.name]
        da = (
            target.values.reindex(time=cut.surface["time"].values)
            if len(target.values["time"]) != len(cut.times)
            or (target.values["time"].values != cut.times).any()
            else target.values
        )
        if form.epsilon is not None:
            da = xr.ufuncs.log1p(da.clip(min=0.0) / form.epsilon)
        extra[target.name] = da.astype(np.float32).assign_coords(
            latitude=cut.surface["latitude"], longitude=cut.surface["longitude"]
        )
        layout_fields["surface", target.name] = target.item
    return replace(
        cut, surface=cut.surface.assign(extra), layout=replace(cut.layout, fields=layout_fields)
    )


def refuse_own(names: Sequence[str]) -> None:
    """Raise for targets that the model predicts itself."""
    if names:
        raise TargetError(
            f"{list(names)} is among the variables that this model predicts itself.",
            fix=(
                "strategy='full' tunes the model's own variables beside the target; or"
                " model='tiny', which learns it as something new"
            ),
        )


_TAKEN = (
    "values",
    "keys",
    "items",
    "get",
    "pop",
    "clear",
    "copy",
    "update",
    "type",
    "float",
    "half",
    "double",
    "to",
    "train",
    "eval",
)


def refuse_as_input(names: Sequence[str]) -> None:
    """Raise for names that Torch's dictionary of embeddings cannot have."""
    if bad := [n for n in names if n in _TAKEN]:
        raise OptionError(
            f"{bad} cannot be fed to the encoder under this name.",
            fix=f"ds.rename({{{bad[0]!r}: '{bad[0]}_target'}})",
        )


def check_kinds(targets: Sequence[Target]) -> None:
    """Raise for a target that no head can model."""
    for target in targets:
        if target.variable.units == "category":
            raise OptionError(
                f"'{target.item.source}' is a category, and heads predict amounts and other"
                " continuous variables.",
                fix="target='tp'",
            )


def unit_of(variable: variables.Variable) -> tuple[str, float]:
    """Unit that scores are told in, and the factor to it: millimetres for amounts."""
    return ("mm", 1e3) if variable.accumulated else (variable.units, 1.0)

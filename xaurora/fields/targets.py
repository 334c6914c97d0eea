"""Target variables: finding them in the data or the truth, and regridding them to the fields.

Everything here is lazy, except where a docstring says that frames are read.
"""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from xaurora.errors import OptionError, TargetError
from xaurora.fields import precipitation, recognition, variables
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field, Recognition
from xaurora.fields.periods import TimeIndex
from xaurora.fields.variables import TIMESTEP_HOURS, Variable, find
from xaurora.utils import lazy
from xaurora.utils.types import Given

logger = logging.getLogger("xaurora")

ALL = "all"
"""Entry of the targets that stands for Aurora's own variables."""

MIN_VALID_FRACTION = 0.5
"""Minimum share of a grid cell with valid truth. Cells below it are masked."""


@dataclass(frozen=True)
class Target:
    """One target variable.

    Parameters
    ----------
    item : Field
        The variable as recognised in the data or the truth.
    values : DataArray, ``(time, latitude, longitude)``
        Canonical units, on the fields' grid. Precipitation is in six-hour totals, with negative
        noise kept so that it can be counted.
    times : ndarray of datetime64
        Times with a complete value.
    """

    item: Field
    values: xr.DataArray
    times: np.ndarray

    @property
    def variable(self) -> Variable:
        """Entry in the table of variables."""
        return self.item.variable

    @property
    def name(self) -> str:
        """Canonical name."""
        return self.item.variable.name

    @property
    def is_rain(self) -> bool:
        """Whether the variable is an accumulated amount."""
        return self.item.variable.accumulated


def names_of(target: Given) -> list[str]:
    """Return the names in ``target=`` as a list, in the order given.

    Raises
    ------
    TargetError
        It is not a name or a list of names, is empty, or contains a name twice.
    """
    names = [target] if isinstance(target, str) else target
    if (
        not isinstance(names, list | tuple)
        or not names
        or not all(isinstance(n, str) for n in names)
    ):
        raise TargetError(
            f"target={target!r} must be the name of a variable or a list of names.",
            fix="target='tp'",
        )
    if len(set(names)) < len(names):
        raise TargetError(
            f"target={target!r} names a variable twice.", fix=f"target={sorted(set(names))}"
        )
    return list(names)


def recognise(ds: xr.Dataset, names: Sequence[str]) -> Recognition:
    """Recognise the data, including targets that are not in the table of variables.

    Such a target is kept as it is, in its own units.
    """
    found = recognition.recognise(ds)
    sources = {item.source for item in found.fields.values()}
    for name in names:
        if name not in sources and find(name) is None:
            recognition.add_generic(ds, name, found)
    return found


def key_of(fields: Fields, name: str) -> tuple[str, str] | None:
    """Return the kind and canonical name of a variable, given its own or its canonical name."""
    for key, item in fields.layout.fields.items():
        if item.source == name:
            return key
    known = find(name)
    key = ("surface", known.name if known is not None else name)
    return key if key in fields.layout.fields else None


def check_duplicates(targets: Sequence[Target]) -> None:
    """Raise if a variable occurs twice among the targets, possibly under two names."""
    names = [t.name for t in targets]
    if doubled := sorted({n for n in names if names.count(n) > 1}):
        raise TargetError(
            f"{doubled} occurs more than once among the targets.",
            fix=f"target={list(dict.fromkeys(names))}",
        )


def _of_fields(fields: Fields, name: str, *, where: str = "data") -> Target:
    key = key_of(fields, name)
    if key is None:
        there = sorted(item.source for k, item in fields.layout.fields.items() if k[0] == "surface")
        raise TargetError(
            f"the target {name!r} is not in the {where}; its surface variables are {there}.",
            fix=_fix_missing(fields, name) if where == "data" else "use a truth that contains it",
        )
    item = fields.layout.fields[key]
    if key[0] != "surface":
        raise TargetError(
            f"{name!r} ({item.variable.long_name.lower()}) is not a surface variable with a time"
            " axis. Heads predict only those.",
            fix="target='tp'",
        )
    da = fields.surface[item.variable.name]
    _check_mixed(fields, item)
    if not item.variable.accumulated:
        return Target(item, da, fields.times)
    period = precipitation.check_period(item.source, da.attrs, fields.times, TIMESTEP_HOURS)
    precipitation.check_not_running_totals(da, name=item.source)
    totals = precipitation.accumulate(da, TIMESTEP_HOURS, name=item.source)
    whole = precipitation.complete_times(fields.times, period)
    if not len(whole):
        raise TargetError(
            f"no time of '{item.source}' has all {TIMESTEP_HOURS // period} values before it, so no"
            f" {TIMESTEP_HOURS}-hour total can be computed.",
            fix=f"download '{item.source}' for every {period} hour(s)",
        )
    return Target(item, totals, whole)


def _fix_missing(fields: Fields, name: str) -> str:
    """Return how to get a target: a file with a known variable, or what is in the data."""
    if find(name) is not None:
        return f"add it: xaurora.open('states.nc', '{name}.nc')"
    there = {k[1]: item.source for k, item in fields.layout.fields.items() if k[0] == "surface"}
    close = difflib.get_close_matches(name, there.values(), n=1)
    best = close[0] if close else there.get("tp")
    return f"target={best!r}" if best else f"choose one of them: target={min(there.values())!r}"


def _check_mixed(fields: Fields, item: Field) -> None:
    """Raise if a target mixes preliminary and final ERA5.

    The target would change when the preliminary part is revised.
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
                " the final data; ds.drop_vars('expver') keeps both"
            ),
        )


# --- the target as an input -----------------------------------------------------------------------


@dataclass(frozen=True)
class InputForm:
    """Transformation of a target for Aurora's encoder.

    Rain enters as ``log1p(tp / ε)``, other variables unchanged.

    Parameters
    ----------
    epsilon : float or None
        Metres; None leaves values unchanged.
    location, scale : float
        Normalisation in the encoder. The location of rain is zero, so that dry values stay zero.
    """

    epsilon: float | None
    location: float
    scale: float


def with_inputs(cut: Fields, targets: Sequence[Target], forms: dict[str, InputForm]) -> Fields:
    """Return fields with the targets, transformed for the encoder, among the surface variables."""
    extra = {}
    layout_fields = dict(cut.layout.fields)
    for target in targets:
        form = forms[target.name]
        da = target.values
        if not np.array_equal(da["time"].values, cut.times):
            places = TimeIndex(da["time"].values).locate(cut.times)
            da = lazy.combine_frames(da, "time", places[:, None])
        values = lazy.map_values(
            da.variable, functools.partial(_encoder_input, form.epsilon), np.float32
        )
        extra[target.name] = values
        layout_fields["surface", target.name] = target.item
    return replace(
        cut, surface=cut.surface.assign(extra), layout=replace(cut.layout, fields=layout_fields)
    )


def _encoder_input(epsilon: float | None, values: np.ndarray) -> np.ndarray:
    return values if epsilon is None else np.log1p(np.clip(values, 0.0, None) / epsilon)


def check_not_predicted(names: Sequence[str]) -> None:
    """Raise for targets that the model itself predicts."""
    if names:
        raise TargetError(
            f"{list(names)} cannot be targets, because this model already predicts them.",
            fix=(
                "strategy='full' tunes the model's own variables as well as the target; or"
                " model='tiny', which can learn it as a new variable"
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


def check_input_names(names: Sequence[str]) -> None:
    """Raise for names that PyTorch's dictionary of embeddings does not accept as keys."""
    if bad := [n for n in names if n in _TAKEN]:
        raise OptionError(
            f"{bad} cannot be the name of an encoder input, because PyTorch reserves it.",
            fix=f"ds.rename({{{bad[0]!r}: '{bad[0]}_target'}})",
        )


def check_kinds(targets: Sequence[Target]) -> None:
    """Raise for a target that no head can model."""
    for target in targets:
        if target.variable.units == "category":
            raise OptionError(
                f"'{target.item.source}' is a category; heads predict only amounts and other"
                " continuous variables.",
                fix="target='tp'",
            )


def unit_of(variable: variables.Variable) -> tuple[str, float]:
    """Return the unit of scores and the factor that converts to it: millimetres for amounts."""
    return ("mm", 1e3) if variable.accumulated else (variable.units, 1.0)

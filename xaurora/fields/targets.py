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

from xaurora.errors import KindError, OptionError, TargetError, TruthError, XauroraError
from xaurora.fields import conventions, periods, precipitation, recognition, variables
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import regridding
from xaurora.fields.recognition import Field, Recognition
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


def resolve(fields: Fields, names: Sequence[str], truth: xr.Dataset | None = None) -> list[Target]:
    """The targets, from the data or from a truth of its own. Reads some frames to see what
    precipitation is.

    Raises
    ------
    TargetError
        A target is not there, or is no surface variable.
    TruthError
        The truth does not overlap the data in time or space, or is shifted in time.
    AccumulationError
        Six-hour totals cannot be made.
    """
    if truth is None:
        return [_of_fields(fields, name) for name in names]
    right = _truth_fields(truth, fields, names)
    _refuse_shift(fields, right)
    return [_onto_grid(_of_fields(right, name, where="truth"), fields) for name in names]


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


def _truth_fields(truth: Any, fields: Fields, names: Sequence[str]) -> Fields:
    if not isinstance(truth, xr.Dataset):
        raise KindError(
            f"truth= is a Dataset of fields, and this is {type(truth).__name__}.",
            fix="finetune('tp', truth=ds_with_tp)",
        )
    if recognition.is_forecast(truth):
        raise KindError(
            "the truth is a forecast (it has lead times).", fix="truth=fields with one time axis"
        )
    if "valid_fraction" in truth:  # of open_imerg: cells that are hardly seen are no truth
        share = truth["valid_fraction"]
        seen = {
            n: truth[n].where(share >= LEAST_VALID)
            for n in truth.data_vars
            if n != "valid_fraction" and truth[n].dims == share.dims
        }
        truth = truth.assign(seen).drop_vars("valid_fraction")
    found = recognise(truth, names)
    wanted = {
        ("surface", known.name if (known := find(name)) is not None else name) for name in names
    }
    wanted |= {key for key, item in found.fields.items() if item.source in names}
    shared = {key for key in found.fields if key in fields.layout.fields and key[0] == "surface"}
    found.problems = [p for p in found.problems if p.about is None or p.about in wanted]
    found.fields = {key: item for key, item in found.fields.items() if key in wanted | shared}
    found.raise_first()
    return conventions.standardise(truth, found)


_SHIFTS = tuple(h for h in range(-6, 7) if h)  # hours that a mistaken label is likely to be off by
_COMPARED = 8  # frames


def _refuse_shift(fields: Fields, right: Fields) -> None:
    """Raise for a truth whose times are off. Reads a few frames of what both hold.

    Two signs tell. A variable that both hold is the same at another hour and not at its own. Or,
    where they share none, the truth has the data's very times, all moved by the same hours, as if
    relabelled.
    """
    ours, theirs = fields.times, right.times
    if not np.isin(ours, theirs).any():
        raise TruthError(
            f"the truth ({_span(theirs)}) shares no time with the data ({_span(ours)})."
            + _hint_of_offset(ours, theirs),
            fix="give a truth that holds values at the data's times",
        )
    same_grid = regridding.same(
        fields.layout.grid.latitude, right.layout.grid.latitude
    ) and regridding.same(fields.layout.grid.true_longitude, right.layout.grid.true_longitude)
    if same_grid and _is_compared(fields, right):
        return
    if (
        right.layout.source.attrs.get("xaurora_source") == "IMERG"
        or len(ours) != len(theirs)
        or len(ours) < 3
    ):
        return
    offset = theirs - ours
    # Less than a step of Aurora's: what is moved by whole steps may well be another stretch of the
    # same record.
    if (offset == offset[0]).all() and np.timedelta64(0) < abs(offset[0]) < np.timedelta64(
        TIMESTEP_HOURS, "h"
    ):
        hours = offset[0] / periods.HOUR
        raise TruthError(
            f"the truth has as many times as the data, all moved by {hours:+g} h, as if its labels"
            " were off.",
            fix=(
                f"truth.assign_coords(time=truth.time - np.timedelta64({int(hours)}, 'h')) if they"
                " are; if they are right, cut it to the data's times: truth.sel(time=slice(start,"
                " end))"
            ),
        )


def _comparable(fields: Fields, name: str) -> Target | None:
    """A variable in a form that two Datasets can be compared in: precipitation over six hours."""
    try:
        return _of_fields(fields, name)
    except XauroraError:
        return None


def _is_compared(fields: Fields, right: Fields) -> bool:
    """Compare what both hold, at the same time and at others; raises where it fits better
    elsewhere. True if anything was compared.
    """
    compared = False
    for name in map(str, fields.surface):
        if name not in right.surface:
            continue
        mine, theirs = _comparable(fields, name), _comparable(right, name)
        if mine is None or theirs is None:
            continue
        place = {
            t: i
            for i, t in enumerate(theirs.values["time"].values.astype("datetime64[ns]").tolist())
        }
        whole = set(theirs.times.astype("datetime64[ns]").tolist())
        both = [t for t in mine.times.astype("datetime64[ns]") if t.item() in whole]
        looked = (
            [
                both[i]
                for i in np.unique(
                    np.linspace(0, len(both) - 1, min(len(both), _COMPARED)).astype(int)
                )
            ]
            if both
            else []
        )
        frames = {t: mine.values.sel(time=t).values.astype(np.float64) for t in looked}
        frames = {t: v for t, v in frames.items() if np.isfinite(v).any()}
        if not frames:
            continue
        spread = float(np.nanstd(np.stack(list(frames.values()))))
        if not spread > 0:
            continue

        def misfit(
            hours: int,
            frames: dict[Any, np.ndarray] = frames,
            theirs: Target = theirs,
            place: dict[Any, int] = place,
        ) -> float:
            parts = []
            for t, values in frames.items():
                i = place.get((t + hours * periods.HOUR).astype("datetime64[ns]").item())
                if i is not None:
                    apart = np.abs(theirs.values.isel(time=i).values - values)
                    if np.isfinite(apart).any():
                        parts.append(float(np.nanmean(apart)))
            return float(np.mean(parts)) if len(parts) >= min(3, len(frames)) else np.inf

        here = misfit(0)
        compared = compared or np.isfinite(here)
        best = min(_SHIFTS, key=misfit)
        if here > 0.01 * spread and misfit(best) < 0.05 * here:
            raise TruthError(
                f"the truth's '{right.layout.user_name(name)}' is that of the data {abs(best)} h"
                f" {'earlier' if best > 0 else 'later'}: its times are off by {best:+d} h.",
                fix=f"truth.assign_coords(time=truth.time - np.timedelta64({best}, 'h'))",
            )
    return compared


def _span(times: np.ndarray) -> str:
    if not len(times):
        return "no times"
    return f"{len(times)} times, {str(times[0])[:16]} to {str(times[-1])[:16]}"


def _hint_of_offset(ours: np.ndarray, theirs: np.ndarray) -> str:
    if not len(theirs) or not len(ours) or theirs[-1] < ours[0] or theirs[0] > ours[-1]:
        return ""
    nearest = np.abs(theirs[:, None] - ours[None]).min()
    return (
        f" Its times lie {nearest / np.timedelta64(1, 'm'):g} minutes beside them: totals are"
        " labelled with the end of their period."
    )


def _onto_grid(target: Target, fields: Fields) -> Target:
    """The target at the data's grid points; masked where too little of a cell has values."""
    grid, da = fields.layout.grid, target.values
    latitude, longitude = grid.latitude, grid.true_longitude
    method = "nearest" if target.variable.units == "category" else "conservative"
    same = regridding.same(da["latitude"].values, latitude) and regridding.same(
        da["longitude"].values % 360.0, longitude % 360.0
    )
    if not same:
        logger.info(
            "The truth's '%s' (%d × %d) is brought onto the data's grid (%d × %d), %s.",
            target.item.source,
            da.sizes["latitude"],
            da.sizes["longitude"],
            *grid.shape,
            "by the nearest point" if method == "nearest" else "conservatively",
        )
        da = regridding.onto(da, latitude, longitude, method=method, least=LEAST_VALID)
    da = da.assign_coords(latitude=grid.latitude, longitude=grid.longitude)
    return replace(target, values=da)


def history(past: xr.Dataset | None, fields: Fields, names: Sequence[str]) -> list[Target]:
    """Past values of targets on the fields' grid; from the fields themselves where ``past`` is
    None.

    Raises
    ------
    TargetError
        A target is not there.
    TruthError
        The past does not cover the grid.
    """
    if past is None:
        return [_of_fields(fields, name) for name in names]
    right = _truth_fields(past, fields, names)
    return [_onto_grid(_of_fields(right, name, where="past fields"), fields) for name in names]


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

"""Checks behind ``ds.aurora.check()``: all problems at once with their fixes, and notes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
import xarray as xr

from xaurora.errors import (
    MissingValuesError,
    MissingVariableError,
    SourceError,
    TimeError,
    XauroraError,
    printable,
)
from xaurora.fields import (
    conventions,
    derived,
    implausible,
    periods,
    plausibility,
    precipitation,
    recognition,
    requirements,
    targets,
    truth,
    variables,
)
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field, Recognition
from xaurora.fields.grid import patches
from xaurora.fields.plausibility import FRAMES_SAMPLED
from xaurora.fields.requirements import Needs
from xaurora.fields.shifts import Shifts
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.utils import html, indexed

T = TypeVar("T")
logger = logging.getLogger("xaurora")

_SMALL = 256 * 1024**2  # bytes; a Dataset in memory up to this size is read whole


class Problem(NamedTuple):
    """One problem: a stable code, the message, and the code or action that fixes it."""

    code: str
    message: str
    fix: str


@dataclass
class Report:
    """Result of :meth:`check <xaurora.accessor.AuroraAccessor.check>`.

    Attributes
    ----------
    problems : list of Problem
        Problems that prevent the data from being used.
    notes : list of str
        Conversions, and what is allowed but not recommended.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = ["No problem found." if self.ok else f"{len(self.problems)} problem(s):"]
        for problem in self.problems:
            lines.append(f"  ✗ {problem.message}")
            if problem.fix:
                lines.append(f"    → {problem.fix}")
        if self.notes:
            lines.append("Notes:")
            lines += [f"  · {note}" for note in self.notes]
        return printable("\n".join(lines))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title = "No problem found." if self.ok else f"{len(self.problems)} problem(s)"
        return html.findings(title, [(p.message, p.fix) for p in self.problems], self.notes)


def check(
    ds: xr.Dataset,
    target: str | Sequence[str] | None = None,
    needs: Callable[[Fields], Needs] | None = None,
    notes_for: Callable[[Fields, Needs], list[str]] | None = None,
) -> Report:
    """Find all problems of a Dataset. Reads a few frames, or all of a small Dataset in memory.

    Parameters
    ----------
    ds : Dataset
    target : str or sequence of str, optional
        Variables to check as targets.
    needs : callable, optional
        Function of the fields that returns what the model needs.
    notes_for : callable, optional
        Function of the fields and these needs that returns what is allowed but unwise.
    """
    found = recognition.recognise(ds)
    notes = list(found.notes)
    if found.unrecognised:
        notes.append(f"Not recognised and ignored: {', '.join(found.unrecognised)}.")
    errors = list(found.problems)

    def attempt(step: Callable[[], T]) -> T | None:
        try:
            return step()
        except XauroraError as error:
            errors.append(error)
            return None

    if found.times is not None:
        attempt(lambda: _check_times(found, notes))
    readable = _without_problems(found)
    fields = (
        attempt(lambda: conventions.standardise(ds, readable))
        if found.grid is not None and found.times is not None and found.axes.get("time")
        else None
    )
    notes += readable.notes
    if fields is not None:
        wanted = attempt(lambda: needs(fields)) if needs is not None else None
        if wanted is not None:
            wanted_here = (
                replace(wanted, atmos=()) if any(e.code == "level" for e in errors) else wanted
            )  # the problem with the levels is already listed
            attempt(lambda: requirements.check_variables(fields, wanted_here))
            if wanted.atmos and all(n in fields.atmos for n in wanted.atmos):
                attempt(lambda: requirements.levels_for(fields, wanted))
            crop = attempt(
                lambda: patches.crop_to_patches(
                    fields.layout.grid, wanted.patch_size, wanted.merges
                )
            )
            if crop is not None and crop.left_out:
                notes.append(f"Left out because no whole patch covers them: {crop.left_out}.")
            attempt(functools.partial(_read_static, fields, wanted, errors))
            notes += notes_for(fields, wanted) if notes_for is not None else []
        if not any(error.code == "coordinate" for error in errors):
            errors += _check_values(ds, fields, wanted, notes)
        # Other amounts are checked if they are targets.
        rain = [item for key, item in found.fields.items() if key == ("surface", "tp")]
        if target is not None:
            for name in attempt(lambda: targets.names_of(target)) or []:
                known = variables.find(name)
                if not any(
                    error.about and known and error.about[1] == known.name for error in errors
                ):
                    attempt(functools.partial(_check_target, ds, fields, name, notes))
        else:
            for item in rain:
                attempt(functools.partial(_check_rain, fields, item))
    return Report([Problem(e.code, e.message, _fix_of(e)) for e in errors], notes)


def _read_static(fields: Fields, needs: Needs, errors: Sequence[XauroraError]) -> None:
    """Read static inputs that are made from others or come from a file, unless some are missing."""
    if not needs.computed or any(error.code == "missing_variable" for error in errors):
        return
    used, _ = requirements.select_with_gaps(fields, needs)
    for name in used.static:
        indexed.read(used.static[name].variable, str(name))


def _fix_of(error: XauroraError) -> str:
    """Return the fix of an error, and the request that downloads what is missing."""
    if not isinstance(error, MissingVariableError) or not error.request:
        return error.fix
    return f"{error.fix}. From the Climate Data Store, month by month:\n{error.request}"


def _without_problems(found: Recognition) -> Recognition:
    """Return the findings without their problems, so that the valid part can be checked further."""
    sound = {key: item for key, item in found.fields.items() if key[0] != "atmos" or found.levels}
    return Recognition(
        found.axes,
        sound,
        found.grid,
        found.levels,
        found.times,
        found.bounds,
        unusable=found.unusable,
    )


def _check_times(found: Recognition, notes: list[str]) -> None:
    times = found.times
    if times is None or len(times) < 2:
        raise TimeError(
            "there is only one time, but Aurora needs two frames six hours apart.",
            fix="open at least two times",
        )
    steps = np.diff(times) / periods.HOUR
    spacing = periods.spacing_hours(times)
    if not periods.TimeIndex(times).has(times + np.timedelta64(6, "h")).any():
        raise TimeError(
            f"times are {spacing:g} hours apart, and no two are six hours apart.",
            fix="open 6-hourly or hourly data",
        )
    gaps = int((steps > max(spacing, 6)).sum())
    if gaps:
        where = times[np.flatnonzero(steps > max(spacing, 6))[0]]
        notes.append(
            f"{gaps} gap(s) in time, the first after {where.astype('datetime64[m]')}; samples"
            " across gaps are skipped."
        )


def _check_target(ds: xr.Dataset, fields: Fields, target: str, notes: list[str]) -> None:
    if variables.find(target) is None and targets.key_of(fields, target) is None:
        fields = conventions.standardise(ds, targets.recognise(ds, [target]))
    (learnt,) = truth.resolve_targets(fields, targets.names_of(target))
    targets.check_kinds([learnt])
    if not learnt.is_rain:
        notes.append(
            f"Target '{target}' is recognised as {learnt.variable.long_name.lower()}, in"
            f" {learnt.variable.units}."
        )
        return
    period = _check_rain(fields, learnt.item)
    notes.append(
        f"'{learnt.item.source}' holds {period}-hour totals"
        + ("; they are summed over 6 hours." if period != 6 else ".")
    )


def _check_rain(fields: Fields, item: Field) -> float:
    """Return the period of the totals in hours, which must yield six-hour totals."""
    da = fields.surface[item.variable.name]
    period = precipitation.check_period(item.source, da.attrs, fields.times, TIMESTEP_HOURS)
    precipitation.check_not_running_totals(da, name=item.source)
    return period


def _check_values(
    ds: xr.Dataset, fields: Fields, wanted: requirements.Needs | None, notes: list[str]
) -> list[XauroraError]:
    errors: list[XauroraError] = []
    count = len(fields.times)
    in_memory = all(v._in_memory for v in ds.variables.values())
    whole = in_memory and ds.nbytes <= _SMALL
    looked = np.arange(count) if whole else _sampled(count)
    if not whole and count > FRAMES_SAMPLED:
        notes.append(
            f"{len(looked)} of {count} times were read to find missing values and wrong units."
        )
    for (kind, name), item in fields.layout.fields.items():
        if (
            item.variable.auxiliary
            if wanted is None
            else name not in wanted.read[kind] and not item.variable.accumulated
        ):
            continue
        zeros = derived.ZeroFill(fields, name) if wanted and name in wanted.filled else None
        errors += _problems_of(fields, kind, name, looked, notes, zeros)
    return errors


def _sampled(count: int) -> np.ndarray:
    """Return positions of frames over the whole period, in pairs that follow each other."""
    if count <= FRAMES_SAMPLED:
        return np.arange(count)
    first = np.linspace(0, count - 2, FRAMES_SAMPLED // 2).astype(int)
    return np.unique(np.concatenate([first, first + 1]))


def _problems_of(
    fields: Fields,
    kind: str,
    name: str,
    looked: np.ndarray,
    notes: list[str],
    zeros: derived.ZeroFill | None,
) -> list[XauroraError]:
    """Return what is wrong with the values of a variable; reads frames one by one.

    ``zeros`` fills its missing values, if the model allows them.
    """
    item, da = fields.layout.fields[kind, name], getattr(fields, kind)[name]
    moving = "time" in da.dims
    repeats = plausibility.Repeats(item, fields)
    shifts = Shifts(item, fields.layout.grid)
    missing, first, infinite = 0, None, False
    problem: XauroraError | None = None
    times = fields.times
    for place in looked if moving else [0]:
        # The variable alone: selecting from a DataArray selects all its coordinates too.
        time = times[place]
        when = f" at {time.astype('datetime64[m]')}" if moving else ""
        try:
            values = indexed.read(
                da.variable[int(place)] if moving else da.variable, item.source, when
            )
        except SourceError as error:
            return [error]
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        missing += bad
        infinite |= bad > 0 and bool(np.isinf(values).any())
        if bad and zeros is not None:
            problem = problem or _raised(functools.partial(zeros.check, values))
            values = np.nan_to_num(values, nan=0.0)
        elif bad and first is None and moving:
            first = time
        if problem is None:
            whole = not bad or zeros is not None
            at = time if moving else None
            problem = _problem_of_frame(values, fields, (kind, name), at, whole, repeats, shifts)
    problem = problem or _raised(shifts.finish)
    problem = problem or _raised(lambda: plausibility.check_amounts(fields, kind, name))
    errors = [] if problem is None else [problem]
    if missing and zeros is not None and not errors:
        notes.append(f"'{item.source}' has {missing} missing value(s), {zeros.treatment}.")
    elif missing and item.variable.accumulated:
        notes.append(
            f"'{item.source}' has {missing} missing value(s), which are excluded from training"
            " and scores."
        )
    elif missing and zeros is None:
        errors.append(_missing(fields, item, missing, first, infinite))
    return errors


def _missing(
    fields: Fields, item: Field, missing: int, first: np.datetime64 | None, infinite: bool
) -> MissingValuesError:
    when = f", the first at {first.astype('datetime64[m]')}" if first is not None else ""
    also = " or infinite" if infinite else ""
    return MissingValuesError(
        f"'{item.source}' has {missing} missing{also} value(s){when}, but Aurora does not accept"
        " missing values.",
        fix=implausible.filled(item, fields, infinite=infinite),
    )


def _problem_of_frame(
    values: np.ndarray,
    fields: Fields,
    key: tuple[str, str],
    time: np.datetime64 | None,
    whole: bool,
    repeats: plausibility.Repeats,
    shifts: Shifts,
) -> XauroraError | None:
    """Return what is wrong with the values of a frame, or None.

    ``time`` is None for static fields. ``whole`` says whether no value is missing.
    """
    item, found = fields.layout.fields[key], None
    if time is not None:  # zeros everywhere say nothing about units
        found = _raised(lambda: plausibility.check_constant(values, item, fields, time))
    found = found or _raised(lambda: plausibility.check_mean(fields, *key, values, time))
    if found is not None or time is None or not whole:
        return found
    return (
        _raised(lambda: plausibility.check_frame(values, item, fields, time, whole=True))
        or _raised(lambda: repeats.check(values, time))
        or _raised(lambda: shifts.add(values, time))
    )


def _raised(check: Callable[[], None]) -> XauroraError | None:
    try:
        check()
    except XauroraError as error:
        return error
    return None

"""Selection of training samples and their split into training and validation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import OptionError, SplitError
from xaurora.fields import periods
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model import batch as batches
from xaurora.model.loader import time_positions
from xaurora.utils.types import PeriodLike

logger = logging.getLogger("xaurora")

STEP = batches.STEP
NO_INPUT = "without the target at one of the input times"
FEWEST_FOR_SPLIT = 5
"""Fewest samples that can be split: the last fifth must contain at least one."""


@dataclass(frozen=True)
class Index:
    """Init times that form samples, and counts of those skipped by reason."""

    init_times: np.ndarray
    skipped: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{len(self.init_times)} samples"
        left = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items() if count)
        return f"{text}; skipped {left}" if left else text


def index(
    times: np.ndarray, target_times: np.ndarray, *, also_input: bool = False, steps: int = 1
) -> Index:
    """Return the init times whose history, later states and targets are complete.

    Gaps are skipped and counted, never interpolated.

    Parameters
    ----------
    times : ndarray of datetime64, ``(time,)``
        Times of the states.
    target_times : ndarray of datetime64
        Times at which the target is available. For precipitation: a complete six-hour total.
    also_input : bool
        Whether the target is also required at both times of the history.
    steps : int
        Number of six-hour steps in a training forecast.
    """
    states, targets = periods.TimeIndex(times), periods.TimeIndex(target_times)
    after = [times + STEP * k for k in range(1, steps + 1)]
    conditions = {
        "without the frame six hours before": [states.has(times - STEP)],
        "without the state six hours after": [states.has(times + STEP)],
        "without the states of the whole rollout": [states.has(t) for t in after],
        "without a complete target": [targets.has(t) for t in after],
        NO_INPUT: [targets.has(times), targets.has(times - STEP)] if also_input else [],
    }
    kept, skipped = np.ones(len(times), bool), {}
    for reason, parts in conditions.items():
        still = kept & np.logical_and.reduce([np.ones(len(times), bool), *parts])
        if lost := int(kept.sum() - still.sum()):
            skipped[reason] = lost
        kept = still
    return Index(times[kept].astype("datetime64[ns]"), skipped)


def drop_missing_inputs(samples: Index, inputs: Sequence[xr.DataArray]) -> Index:
    """Drop init times whose history has missing values in a target that is also an input.

    Reads the targets once.

    Parameters
    ----------
    samples : Index
    inputs : sequence of DataArray
        ``(time, h, w)``.
    """
    whole: set[int] | None = None
    needed = np.unique(np.concatenate([samples.init_times - STEP, samples.init_times]))
    for da in inputs:
        place = time_positions(da)
        fine = {
            int(t.astype(np.int64))
            for t in needed
            if np.isfinite(da.isel(time=place[int(t.astype(np.int64))]).values).all()
        }
        whole = fine if whole is None else whole & fine
    keep = [
        t
        for t in samples.init_times
        if {int(t.astype(np.int64)), int((t - STEP).astype(np.int64))} <= (whole or set())
    ]
    lost = len(samples.init_times) - len(keep)
    skipped = {**samples.skipped}
    if lost:
        skipped[NO_INPUT] = skipped.get(NO_INPUT, 0) + lost
    return Index(np.array(keep, dtype="datetime64[ns]"), skipped)


@dataclass(frozen=True)
class Split:
    """Init times for training and for validation.

    Parameters
    ----------
    train, validation : ndarray of datetime64
    same : bool
        Whether both hold the same samples, because the data are too short to leave a gap.
    dropped : int
        Number of samples left out because their window crosses the split.
    """

    train: np.ndarray
    validation: np.ndarray
    same: bool = False
    dropped: int = 0


def split(
    samples: Index,
    train: PeriodLike = None,
    validation: PeriodLike = None,
    *,
    steps: int = 1,
    also_input: bool = False,
) -> Split:
    """Split samples in time so that no sample window overlaps the other part.

    A window runs from a sample's history to its last target.

    Parameters
    ----------
    samples : Index
    train, validation : optional
        A slice, a year, or a pair ``("2016", "2023")``, both ends included. By default the last
        fifth is used for validation.
    steps : int
        Number of six-hour steps in a forecast, which sets the length of the window.
    also_input : bool
        Whether the target is also an input. The window then starts six hours earlier, because the
        total at the first input time covers them.

    Raises
    ------
    SplitError
        If there are too few samples, a part is empty, or the parts overlap.
    """
    times = samples.init_times
    if not len(times):
        why = (
            "; ".join(f"{count} times {reason}" for reason, count in samples.skipped.items())
            or "the data have no times"
        )
        raise SplitError(
            f"no samples: a sample needs the state at its init time and {TIMESTEP_HOURS} hours"
            f" earlier, and the state and target {TIMESTEP_HOURS} hours later ({why}).",
            fix="open a longer period without gaps, with 6-hourly states and hourly tp",
        )
    # The total at the older frame covers the six hours before it, excluding the first instant.
    window = _Window(
        (STEP * 2).astype("timedelta64[ns]") - np.timedelta64(1, "ns") if also_input else STEP,
        STEP * steps,
    )
    if train is None and validation is None:
        return _default_split(times, window)
    given = {"train": train, "validation": validation}
    chosen = _parts(times, window, given)
    for name, part in chosen.items():
        if len(part):
            continue
        other = "validation" if name == "train" else "train"
        wrong = name if given[name] is not None else other
        what = "contains no samples" if wrong == name else f"leaves no samples for {name}"
        raise SplitError(
            f"{wrong}={given[wrong]!r} {what}; samples run from {_name(times[0])} to"
            f" {_name(times[-1])}.",
            fix=_working_split(times, window, given) or "open a longer period of data",
        )
    if len(shared := window.shared(chosen["train"], chosen["validation"])):
        raise SplitError(
            f"training and validation overlap: the windows of {len(shared)} validation sample(s),"
            f" the first at {_name(shared[0])}, overlap training windows, so scores would be too"
            " optimistic.",
            fix=f"leave a gap of {window.hours} hours between train and validation",
        )
    return Split(
        chosen["train"],
        chosen["validation"],
        dropped=len(times) - len(chosen["train"]) - len(chosen["validation"]),
    )


def _parts(
    times: np.ndarray, window: _Window, given: Mapping[str, PeriodLike]
) -> dict[str, np.ndarray]:
    """Return the samples for training and validation; what is not given is what lies outside."""
    try:
        bounds = {n: periods.bounds(n, value) for n, value in given.items() if value is not None}
    except OptionError as error:
        raise OptionError(
            error.message, fix=_working_split(times, window, given) or error.fix
        ) from None
    chosen = {name: times[window.inside(times, *b)] for name, b in bounds.items()}
    for name, other in (("train", "validation"), ("validation", "train")):
        if name not in chosen:
            chosen[name] = times[window.outside(times, *bounds[other])]
    return chosen


def _working_split(
    times: np.ndarray, window: _Window, given: Mapping[str, PeriodLike]
) -> str | None:
    """Return whole days for the periods that were given, as arguments, or None if there are none.

    Training gets as many samples as leave some for validation.
    """
    days = np.unique(times.astype("datetime64[D]"))
    first, last = (
        str(day) for day in (days[0], (times[-1] + window.after).astype("datetime64[D]"))
    )
    for cut in range(len(days) * 4 // 5, 0, -1):
        for start in range(cut, len(days)):
            found = {"train": (first, str(days[cut - 1])), "validation": (str(days[start]), last)}
            found = {name: found[name] for name in found if given[name] is not None}
            parts = _parts(times, window, found)
            if all(map(len, parts.values())) and not len(window.shared(**parts)):
                return ", ".join(f"{name}={value!r}" for name, value in found.items())
            if len(found) == 1 or start > cut + 3:
                break
    return None


def _default_split(times: np.ndarray, window: _Window) -> Split:
    if len(times) < FEWEST_FOR_SPLIT:
        raise SplitError(
            f"there are {len(times)} sample(s), but a split into training and validation needs at"
            f" least {FEWEST_FOR_SPLIT}.",
            fix="open a longer period of data",
        )
    count = -(-len(times) // 5)
    validation = times[-count:]
    train = times[times + window.after < validation[0] - window.before]
    if not len(train):
        logger.warning(
            "The %d samples span too short a period for separate training and validation windows."
            " All of them are used for both, so the scores measure how well the data are fitted,"
            " not forecast skill.",
            len(times),
        )
        return Split(times, times, same=True)
    return Split(train, validation, dropped=len(times) - len(train) - count)


@dataclass(frozen=True)
class _Window:
    """The period around an init time that a sample depends on, from ``before`` to ``after``."""

    before: np.timedelta64
    after: np.timedelta64

    @property
    def hours(self) -> int:
        return int(np.ceil((self.before + self.after) / np.timedelta64(1, "h")))

    def inside(self, times: np.ndarray, start: np.datetime64, end: np.datetime64) -> np.ndarray:
        # A period given by the user must contain all states. The accumulation period of the first
        # total may start before it.
        return np.asarray((times - STEP >= start) & (times + self.after <= end))

    def outside(self, times: np.ndarray, start: np.datetime64, end: np.datetime64) -> np.ndarray:
        return np.asarray((times + self.after < start) | (times - self.before > end))

    def shared(self, train: np.ndarray, validation: np.ndarray) -> np.ndarray:
        """Return the validation samples whose window overlaps that of a training sample."""
        first, last = np.sort(train) - self.before, np.sort(train) + self.after
        # All windows have the same length, so it is enough to check the last training sample that
        # starts before the window's end.
        place = np.searchsorted(first, validation + self.after, side="right") - 1
        return np.asarray(
            validation[(place >= 0) & (last[np.maximum(place, 0)] >= validation - self.before)]
        )


def _name(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


def describe(init_times: np.ndarray) -> dict[str, Any]:
    """Return a summary of the samples: count, first and last time, and a hash of all times."""
    stamps = np.ascontiguousarray(init_times.astype("datetime64[ns]").astype(np.int64))
    return {
        "samples": len(init_times),
        "from": _name(init_times[0]),
        "to": _name(init_times[-1]),
        "hash": hashlib.sha256(stamps.tobytes()).hexdigest()[:16],
    }


def shuffled_batches(
    times: np.ndarray, size: int, total: int, seed: int, start: int = 0
) -> Iterator[list[np.datetime64]]:
    """Yield the init times of each optimiser step, reshuffled every epoch.

    The last step of an epoch may have fewer samples.

    Parameters
    ----------
    times : ndarray of datetime64
        Init times of all samples.
    size : int
        Samples per step, over all devices.
    total : int
        Number of steps.
    seed : int
        Seed of the shuffle.
    start : int
        Number of steps to skip. The remaining steps are the same as without skipping.
    """
    rng = np.random.default_rng(seed)
    done = 0
    while done < total:
        shuffled = times[rng.permutation(len(times))]
        for first in range(0, len(shuffled), size):
            if done == total:
                return
            done += 1
            if done > start:
                yield list(shuffled[first : first + size])


@dataclass(frozen=True)
class Microbatch:
    """One batch of a step for this process: its samples, and their weight in the step's mean."""

    init_times: list[np.datetime64]
    weight: float


def split_batch(
    times: Sequence[np.datetime64], parts: int, rank: int, world: int
) -> list[Microbatch]:
    """Return this process's batches of a step.

    The step's samples are split into ``world × parts`` batches of nearly equal size, of which this
    process gets ``parts``. No sample is used twice. A batch that would be empty gets one sample of
    weight zero, because every process must take part in every step.
    """
    chunks = np.array_split(np.arange(len(times)), world * parts)[rank * parts : (rank + 1) * parts]
    return [
        (
            Microbatch([times[i] for i in chunk], len(chunk) / len(times))
            if len(chunk)
            else Microbatch([times[0]], 0.0)
        )
        for chunk in chunks
    ]

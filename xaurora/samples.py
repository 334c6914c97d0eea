"""Which times make a sample, how they split, and reading them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from aurora import Batch

from xaurora import batch as batches
from xaurora import periods
from xaurora.conventions import Fields
from xaurora.errors import SplitError
from xaurora.variables import TIMESTEP_HOURS

logger = logging.getLogger("xaurora")

STEP = batches.STEP
NO_INPUT = "whose history lacks the target"
FEWEST_FOR_SPLIT = 5
"""The last fifth of fewer samples is less than one of them."""


@dataclass(frozen=True)
class Index:
    """Init times that make a sample, and why others do not."""

    init_times: np.ndarray
    skipped: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{len(self.init_times)} samples"
        left = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items() if count)
        return f"{text} ({left})" if left else text


def index(times: np.ndarray, target_times: np.ndarray, *, also_input: bool = False) -> Index:
    """Init times whose history, next state and target are all there; a gap is skipped and counted, never bridged.

    Parameters
    ----------
    times : ndarray of datetime64, ``(time,)``
        States.
    target_times : ndarray of datetime64
        Times that have the target: for precipitation a whole six-hour total.
    also_input : bool
        Whether the target is needed at the two times of the history as well.
    """
    states, targets = set(times.tolist()), set(target_times.tolist())
    kept, skipped = (
        [],
        {
            "without the frame six hours before": 0,
            "without the state six hours after": 0,
            "without a whole six-hour total": 0,
            NO_INPUT: 0,
        },
    )
    for t in times:
        if (t - STEP).item() not in states:
            skipped["without the frame six hours before"] += 1
        elif (t + STEP).item() not in states:
            skipped["without the state six hours after"] += 1
        elif (t + STEP).item() not in targets:
            skipped["without a whole six-hour total"] += 1
        elif also_input and not {t.item(), (t - STEP).item()} <= targets:
            skipped[NO_INPUT] += 1
        else:
            kept.append(t)
    return Index(np.array(kept, dtype="datetime64[ns]"), {k: v for k, v in skipped.items() if v})


def without_holes(samples: Index, inputs: Sequence[xr.DataArray]) -> Index:
    """Leave out init times whose history has a gap in a target that is an input. Reads the targets once.

    Parameters
    ----------
    samples : Index
    inputs : sequence of DataArray
        ``(time, h, w)``.
    """
    whole: set[int] | None = None
    needed = np.unique(np.concatenate([samples.init_times - STEP, samples.init_times]))
    for da in inputs:
        place = _positions(da)
        fine = {
            int(t.astype(np.int64))
            for t in needed
            if np.isfinite(da.isel(time=place[int(t.astype(np.int64))]).values).all()
        }
        whole = fine if whole is None else whole & fine
    keep = [
        t for t in samples.init_times if {int(t.astype(np.int64)), int((t - STEP).astype(np.int64))} <= (whole or set())
    ]
    lost = len(samples.init_times) - len(keep)
    skipped = {**samples.skipped}
    if lost:
        skipped[NO_INPUT] = skipped.get(NO_INPUT, 0) + lost
    return Index(np.array(keep, dtype="datetime64[ns]"), skipped)


@dataclass(frozen=True)
class Split:
    """Init times to train on and to validate with.

    Parameters
    ----------
    train, validation : ndarray of datetime64
    same : bool
        Whether the two are the same samples, because the data are too short for a gap.
    dropped : int
        Samples left out because their window crosses the split.
    """

    train: np.ndarray
    validation: np.ndarray
    same: bool = False
    dropped: int = 0


def split(samples: Index, train: Any = None, validation: Any = None) -> Split:
    """Split in time, so that no sample's window (history to target) touches the other part.

    Parameters
    ----------
    samples : Index
    train, validation : optional
        A slice, a year, or a pair ``("2016", "2023")``, ends included. By default the last fifth validates.

    Raises
    ------
    SplitError
        Too few samples, an empty part, or parts that overlap.
    """
    times = samples.init_times
    if not len(times):
        why = (
            "; ".join(f"{count} times {reason}" for reason, count in samples.skipped.items())
            or "the data hold no times"
        )
        raise SplitError(
            f"no time makes a sample: a sample is a frame, the one {TIMESTEP_HOURS} hours before, and the state and rain {TIMESTEP_HOURS} hours after ({why}).",
            fix="open a longer, gap-free stretch of 6-hourly states with hourly tp",
        )
    if train is None and validation is None:
        return _default_split(times)
    bounds = {
        name: periods.bounds(name, value)
        for name, value in (("train", train), ("validation", validation))
        if value is not None
    }
    chosen = {name: times[_inside(times, *b)] for name, b in bounds.items()}
    if "train" not in chosen:
        start, end = bounds["validation"]
        chosen["train"] = times[(times + STEP < start) | (times - STEP > end)]
    if "validation" not in chosen:
        start, end = bounds["train"]
        chosen["validation"] = times[(times - STEP > end) | (times + STEP < start)]
    for name, part in chosen.items():
        if not len(part):
            raise SplitError(
                f"{name}={(train if name == 'train' else validation)!r} leaves no sample; samples run from {_name(times[0])} to {_name(times[-1])}.",
                fix=f"{name}=('{str(times[0])[:10]}', '{str(times[-1])[:10]}') or a part of it",
            )
    if len(shared := np.intersect1d(_frames(chosen["train"]), _frames(chosen["validation"]))):
        raise SplitError(
            f"training and validation share {len(shared)} time(s) in their samples' windows, the first {_name(shared[0])}; scores would be too good.",
            fix="leave a gap of 12 hours between train and validation",
        )
    return Split(
        chosen["train"], chosen["validation"], dropped=len(times) - len(chosen["train"]) - len(chosen["validation"])
    )


def _default_split(times: np.ndarray) -> Split:
    if len(times) < FEWEST_FOR_SPLIT:
        raise SplitError(
            f"there are {len(times)} sample(s), and a split into training and validation needs at least {FEWEST_FOR_SPLIT}.",
            fix="open a longer stretch of data",
        )
    count = -(-len(times) // 5)
    validation = times[-count:]
    train = times[times + STEP < validation[0] - STEP]
    if not len(train):
        logger.warning(
            "The %d samples span too short a time for a validation part whose windows do not cross into training; all of them train, and "
            "the same ones are scored: the scores say how well the data are fitted, not how good a forecast is.",
            len(times),
        )
        return Split(times, times, same=True)
    return Split(train, validation, dropped=len(times) - len(train) - count)


def _inside(times: np.ndarray, start: np.datetime64, end: np.datetime64) -> np.ndarray:
    return np.asarray((times - STEP >= start) & (times + STEP <= end))


def _frames(times: np.ndarray) -> np.ndarray:
    return np.unique(np.concatenate([times - STEP, times, times + STEP]))


def _name(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


@dataclass
class Sample:
    """What one training step reads: input, the next state, and the targets.

    ``targets`` holds ``(b, h, w)`` by name, canonical units (metres for precipitation), float32, NaN where there is no truth;
    ``next_state`` holds canonical arrays ``(b, h, w)`` and ``(b, c, h, w)`` by kind and name, or None when it is not scored.
    """

    batch: Batch
    targets: dict[str, torch.Tensor]
    next_state: dict[str, dict[str, torch.Tensor]] | None
    init_times: list[np.datetime64]


class Loader:
    """Reads samples, keeping frames it has read while they fit a budget of memory.

    Parameters
    ----------
    fields : Fields
        Cut to the model (:func:`xaurora.requirements.fit`).
    targets : dict of DataArray
        By name, ``(time, h, w)``, canonical units, on the same grid.
    with_next_state : bool
        Whether the base's own variables are scored too.
    budget : int
        Bytes of frames to keep.
    """

    def __init__(
        self,
        fields: Fields,
        targets: Mapping[str, xr.DataArray],
        *,
        with_next_state: bool,
        budget: int = 2 * 1024**3,
    ) -> None:
        self.fields, self.targets, self.with_next_state, self.budget = fields, targets, with_next_state, budget
        self.still = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in batches.statics(fields).items()}
        self._frames: OrderedDict[int, dict[str, dict[str, np.ndarray]]] = OrderedDict()
        self._read: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._held = 0
        self._index = {name: _positions(da) for name, da in targets.items()}

    def _frame(self, time: np.datetime64) -> dict[str, dict[str, np.ndarray]]:
        key = int(time.astype(np.int64))
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key]
        values = batches.frame(self.fields, time)
        self._frames[key] = values
        self._held += _size(values)
        self._shrink()
        return values

    def _shrink(self) -> None:
        while self._held > self.budget and len(self._frames) > 3:
            self._held -= _size(self._frames.popitem(last=False)[1])
        while self._held > self.budget and len(self._read) > 1:
            self._held -= self._read.popitem(last=False)[1].nbytes

    def target_at(self, name: str, time: np.datetime64) -> np.ndarray:
        """A target at a valid time, ``(h, w)``, canonical units, float32."""
        key = (name, int(time.astype(np.int64)))
        if key not in self._read:
            self._read[key] = self.targets[name].isel(time=self._index[name][key[1]]).values.astype(np.float32)
            self._held += self._read[key].nbytes
            self._shrink()
        return self._read[key]

    def read(self, init_times: Sequence[np.datetime64]) -> Sample:
        """One batch."""
        needed = {t for init in init_times for t in (init - STEP, init)}
        frames = {t: self._frame(t) for t in sorted(needed)}
        batch = batches.assemble(frames, self.still, init_times, self.fields.layout.grid, self.fields.levels)
        targets = {
            name: torch.from_numpy(np.stack([self.target_at(name, t + STEP) for t in init_times]))
            for name in self.targets
        }
        following = None
        if self.with_next_state:
            nexts = [self._frame(t + STEP) for t in init_times]
            following = {
                kind: {name: torch.from_numpy(np.stack([n[kind][name] for n in nexts])) for name in nexts[0][kind]}
                for kind in ("surface", "atmos")
            }
        return Sample(batch, targets, following, list(init_times))


def _positions(da: xr.DataArray) -> dict[int, int]:
    return {int(t): i for i, t in enumerate(da["time"].values.astype("datetime64[ns]").astype(np.int64))}


def _size(frame: dict[str, dict[str, np.ndarray]]) -> int:
    return sum(v.nbytes for part in frame.values() for v in part.values())

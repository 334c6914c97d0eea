"""Samples that can be read: a missing or broken one is replaced by the next, counted and named."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from xaurora.errors import (
    ImplausibleValuesError,
    MissingValuesError,
    SourceError,
    XauroraError,
)
from xaurora.model.loader import MAX_PREFETCH, Loader, Sample, prefetch
from xaurora.training import samples
from xaurora.training.options import TrainingOptions
from xaurora.training.samples import Microbatch

logger = logging.getLogger("xaurora")

_IN_A_ROW = 20  # broken samples, after which the data are taken to be broken
_NAMED = 10  # broken samples, each with a line of its own in the log
BROKEN = (ImplausibleValuesError, MissingValuesError, SourceError)


class Skipped:
    """What was skipped, by init time: shared by all that read samples of a run."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def __contains__(self, time: np.datetime64) -> bool:
        return _name(time) in self.reasons

    def add(self, time: np.datetime64, reason: str) -> None:
        """Note a sample, and log it if it is one of the first."""
        with self._lock:
            if time in self:
                return
            self.reasons[_name(time)] = reason
            count = len(self.reasons)
        if count <= _NAMED:
            more = "; further ones are counted only" if count == _NAMED else ""
            logger.warning("The sample at %s is skipped: %s%s", _name(time), reason, more)

    def described(self) -> dict[str, Any]:
        """Return the number of samples skipped, and the first of them with their reasons."""
        first = dict(sorted(self.reasons.items())[:_NAMED])
        return {"count": len(self.reasons), "first": first} if first else {}


class SoundReader:
    """Reads samples, and replaces those that cannot be read.

    A sample is replaced by the next one in the order of ``init_times``, so that every process and
    every resumed run replaces it by the same. It is broken if a frame cannot be read, contains
    NaN or physically implausible values, or if a target has no value in it at all.

    Parameters
    ----------
    loader : Loader
    init_times : ndarray of datetime64
        All samples that may be read.
    steps : int
        Number of six-hour steps in a forecast.
    trim : tuple of slice
        Rows and columns of the targets that count.
    skipped : Skipped
    strict : bool
        Whether to raise instead.
    """

    def __init__(
        self,
        loader: Loader,
        init_times: np.ndarray,
        steps: int,
        trim: tuple[slice, slice],
        skipped: Skipped,
        *,
        strict: bool,
    ) -> None:
        self.loader, self.init_times, self.steps = loader, init_times, steps
        self.trim, self.skipped, self.strict = trim, skipped, strict
        self._place = {_name(t): i for i, t in enumerate(init_times)}

    def read(self, times: Sequence[np.datetime64]) -> Sample:
        """Return the sample of forecasts from the given init times.

        Raises
        ------
        XauroraError
            ``strict`` is set and a sample is broken, or many are in a row.
        """
        chosen = [self._next(t) for t in times]
        try:
            sample = self.loader.read(chosen, self.steps)
        except BROKEN:
            if self.strict:
                raise
        else:
            if not (bad := self._without_truth(sample)):
                return sample
            if self.strict:
                raise _no_truth(chosen[bad[0]])
        return self.loader.read([self.sound(t) for t in chosen], self.steps)

    def sound(self, time: np.datetime64) -> np.datetime64:
        """Return the init time, or the first one after it whose sample can be read."""
        error: XauroraError = MissingValuesError(
            f"none of the {len(self.init_times)} samples can be read.",
            fix="strict=True stops at the first one and names it",
        )
        for candidate in self._from(time)[:_IN_A_ROW]:
            try:
                if not self._without_truth(self.loader.read([candidate], self.steps)):
                    return candidate
                error = _no_truth(candidate)
            except BROKEN as broken:
                error = broken
            if self.strict:
                raise error
            self.skipped.add(candidate, error.message)
        raise error

    def check(self, times: Sequence[np.datetime64]) -> None:
        """Raise if none of some samples can be read."""
        errors = []
        for time in times:
            try:
                self.loader.read([time], self.steps)
                if not self.strict:
                    return
            except BROKEN as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _from(self, time: np.datetime64) -> list[np.datetime64]:
        place = self._place[_name(time)]
        ordered = np.concatenate([self.init_times[place:], self.init_times[:place]])
        return [
            t for t in ordered[: _IN_A_ROW + len(self.skipped.reasons)] if t not in self.skipped
        ]

    def _next(self, time: np.datetime64) -> np.datetime64:
        if time not in self.skipped:
            return time
        return next(iter(self._from(time)), time)

    def _without_truth(self, sample: Sample) -> list[int]:
        """Return the samples of a batch in which a target has no value at any point."""
        bad: set[int] = set()
        for truth in sample.truths:
            for values in truth.targets.values():
                there = torch.isfinite(values[(slice(None), *self.trim)]).flatten(1).any(dim=1)
                bad |= set(torch.nonzero(~there).flatten().tolist())
        return sorted(bad)


def _no_truth(time: np.datetime64) -> MissingValuesError:
    return MissingValuesError(
        f"a target has no value at any point in the six hours after {_name(time)}.",
        fix="strict=False skips such samples",
    )


def _name(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


def read_ahead(
    reader: SoundReader,
    options: TrainingOptions,
    place: tuple[int, int],
    step: int,
    *,
    reads: bool,
) -> Iterator[tuple[list[np.datetime64], list[tuple[Microbatch, Sample]]]]:
    """Yield each step's init times and this process's batches, empty without ``reads``.

    Parameters
    ----------
    reader : SoundReader
        Of the training samples.
    options : TrainingOptions
    place : tuple of int
        Number of this process, and of all processes.
    step : int
        The first step.
    reads : bool
        Whether data are read.
    """
    loader, train = reader.loader, reader.init_times
    total = options.total_steps(len(train))
    drawn = samples.shuffled_batches(train, options.samples_per_step, total, options.seed, step)

    def read(times: list[np.datetime64]) -> list[tuple[Microbatch, Sample]]:
        if not reads:
            return []
        parts = samples.split_batch(times, options.gradient_accumulation, *place)
        return [(p, reader.read(p.init_times)) for p in parts]

    # As far ahead as half the loader's budget allows.
    frames = (2 + options.rollout_steps) * options.batch_size * options.gradient_accumulation
    room = int(min(MAX_PREFETCH, loader.budget / 2 // (loader.frame_bytes * frames)))
    return prefetch(drawn, read, options.workers, room)

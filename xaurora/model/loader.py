"""Read training samples: cache states and targets, and prefetch in threads."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import os
import threading
import time as clock
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import xarray as xr
from aurora import Batch

from xaurora.errors import XauroraError
from xaurora.fields.conventions import Fields
from xaurora.fields.periods import TimeIndex
from xaurora.model import batch as batches
from xaurora.model import frames
from xaurora.model.aurora import AuroraWithHead
from xaurora.utils import indexed
from xaurora.utils.unchanged import Unchanged

STEP = batches.STEP
MAX_CACHED = 64
"""Largest number of states and targets in the cache. Samples that are close in time share them, and
memory does not grow with the data.
"""
REQUESTS = 64
"""Variables that are requested from a slow store at the same time."""
_DECODED = min(max(os.cpu_count() or 1, 2), 4)
"""Variables of a fast store that are decoded at the same time."""
_LARGE = 64 * 1024**2  # bytes of a frame; small ones are read faster by one thread
_SLOW = 0.02  # seconds per request
_FAST = 100e6  # bytes per second
MAX_PREFETCH = 32
"""Largest number of steps that are prefetched from a slow store."""
T = TypeVar("T")
R = TypeVar("R")


class LatentSource(Protocol):
    """Source of latents that replace inputs, :class:`xaurora.training.latents.Latents`."""

    def find(self, time: np.datetime64) -> torch.Tensor | None:
        """Return the latents of an init time, if they are stored."""

    def of(self, module: AuroraWithHead, sample: Sample, device: torch.device) -> torch.Tensor:
        """Return the latents of a sample, computing those that are missing."""

    def close(self) -> None:
        """Finish writing."""


@dataclass
class Truth:
    """The truth that one forecast step is scored against.

    ``targets`` holds ``(b, h, w)`` by name, canonical units (metres for precipitation), float32,
    NaN where there is no truth. ``state`` holds canonical arrays ``(b, h, w)`` and ``(b, c, h, w)``
    by kind and name, or None if the state is not scored.
    """

    targets: dict[str, torch.Tensor]
    state: dict[str, dict[str, torch.Tensor]] | None


@dataclass
class Sample:
    """The data of one training forecast: its input, and the truth of each of its steps.

    If latents are stored, ``latents`` holds those that were found, with None for the others,
    ``missing`` holds a Batch with one init time for each of the others, and ``batch`` is None.
    """

    batch: Batch | None
    truths: list[Truth]
    init_times: list[np.datetime64]
    latents: list[torch.Tensor | None] | None = None
    missing: list[Batch] = field(default_factory=list)


@dataclass(frozen=True)
class Guards:
    """What is done about physically implausible values.

    Parameters
    ----------
    frames : {"raise", "warn", "off"}
        For states.
    targets : dict of callable
        By target: called with its values and their time, and raises if they are impossible.
    """

    frames: frames.Guard = "raise"
    targets: Mapping[str, Callable[[np.ndarray, np.datetime64], None]] = field(default_factory=dict)


class Loader:
    """Read samples, and cache frames within a memory budget. It is thread-safe.

    Parameters
    ----------
    fields : Fields
        Fields reduced to what the model takes
        (:func:`xaurora.fields.requirements.select_and_crop`).
    targets : dict of DataArray
        By name, ``(time, h, w)``, canonical units, on the same grid.
    scored : Fields, optional
        Aurora's own variables, if they are scored, without targets that are inputs.
    budget, most : int
        Bytes of frames to cache, and largest number of frames.
    latents : Latents, optional
        Stored latents, read instead of inputs (:mod:`xaurora.training.latents`).
    readers : int
        Number of variables that are requested at the same time if the store is slow; a few are if
        it is fast. With 0 they are read one after another.
    guards : Guards, optional
        What is done about physically implausible values.
    pin : bool
        Put inputs into pinned memory, from which a GPU copies faster.

    Notes
    -----
    Every read raises :class:`~xaurora.errors.SourceChangedError` if a local file behind the data
    was rewritten since.
    """

    def __init__(
        self,
        fields: Fields,
        targets: Mapping[str, xr.DataArray],
        *,
        scored: Fields | None = None,
        budget: int = 2 * 1024**3,
        latents: LatentSource | None = None,
        readers: int = REQUESTS,
        pin: bool = False,
        most: int = MAX_CACHED,
        guards: Guards | None = None,
    ) -> None:
        self.latents: Any = latents
        self.pin, self.most, self.guards = pin, most, guards or Guards()
        self.fields, self.targets, self.scored, self.budget = fields, targets, scored, budget
        self.still = {
            name: torch.from_numpy(np.ascontiguousarray(v))
            for name, v in frames.statics(fields).items()
        }
        self._unchanged = Unchanged(
            fields.surface, fields.atmos, *targets.values(), opened=fields.layout.source
        )
        self._kept: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self._reading: dict[tuple[str, int], concurrent.futures.Future[Any]] = {}
        self._places = TimeIndex(fields.times)
        # Many threads help only with a slow store, and data in memory need none.
        lazy = any(
            not v._in_memory
            for part in (fields.surface, fields.atmos)
            for v in part.variables.values()
        )
        self._slow: bool | None = None if lazy else False
        self._pools = tuple(
            concurrent.futures.ThreadPoolExecutor(count, "xaurora-request")
            for count in ((min(_DECODED, readers), readers) if lazy and readers else ())
        )
        self._index = {name: time_positions(da) for name, da in targets.items()}

    def _remember(self, key: tuple[str, int], read: Callable[[], T], size: Callable[[T], int]) -> T:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            waiting = self._reading.get(key)
            if waiting is None:
                mine = self._reading[key] = concurrent.futures.Future()
        if waiting is not None:  # another thread is reading it
            return waiting.result()
        return self._finish([key], [mine], lambda: [read()], size)[0]

    def _finish(
        self,
        keys: list[tuple[str, int]],
        promised: list[concurrent.futures.Future[Any]],
        read: Callable[[], Sequence[Any]],
        size: Callable[[Any], int],
    ) -> Sequence[Any]:
        """Read what was promised, and keep it. Errors may stand for single values."""
        found: Sequence[Any]
        try:
            found = read()
            self._unchanged.check()
        except BaseException as error:
            found = [error] * len(keys)
        with self._lock:
            for key, values in zip(keys, found, strict=True):
                del self._reading[key]
                if not isinstance(values, BaseException):
                    self._kept[key] = values
                    self._held += size(values)
            while (self._held > self.budget and len(self._kept) > 3) or len(self._kept) > self.most:
                _, dropped = self._kept.popitem(last=False)
                self._held -= _size(dropped) if isinstance(dropped, dict) else dropped.nbytes
        for mine, values in zip(promised, found, strict=True):
            if isinstance(values, BaseException):
                mine.set_exception(values)
            else:
                mine.set_result(values)
        for values in found:
            if isinstance(values, BaseException):
                raise values
        return found

    @property
    def frame_bytes(self) -> int:
        """Bytes of one state."""
        rows, columns = self.fields.layout.grid.shape
        return (
            4
            * rows
            * columns
            * (len(self.fields.surface) + len(self.fields.atmos) * len(self.fields.levels))
        )

    def _frame(self, fields: Fields, time: np.datetime64) -> frames.Frame:
        place = self._places[_key(time)]
        return self._timed(lambda **how: [frames.read(fields, time, index=place, **how)])[0]

    def _pair(self, times: list[np.datetime64]) -> list[frames.Frame | XauroraError]:
        """Read two times at once, or each for itself if that fails: the other may be sound."""
        places = [self._places[_key(t)] for t in times]
        try:
            pair = self._timed(lambda **how: frames.read_pair(self.fields, times, places, **how))
            return list(pair)
        except XauroraError:
            return [self._frame_or_error(t) for t in times]

    def _frame_or_error(self, time: np.datetime64) -> frames.Frame | XauroraError:
        try:
            return self._frame(self.fields, time)
        except XauroraError as error:
            return error

    def _timed(self, read: Callable[..., list[frames.Frame]]) -> list[frames.Frame]:
        """Read with as many threads as help, and find out whether the store is slow."""
        began = clock.perf_counter()
        pool = None
        if self._pools and (self._slow or self.frame_bytes > _LARGE):
            pool = self._pools[bool(self._slow)]
        found = read(pool=pool, guard=self.guards.frames)
        if self._slow is None:
            took = clock.perf_counter() - began
            in_turn = sum(map(len, found[0].values())) / (1 if pool is None else _DECODED)
            self._slow = took > _SLOW * in_turn and took > sum(map(_size, found)) / _FAST
        return found

    def _history(self, init: np.datetime64) -> dict[np.datetime64, frames.Frame]:
        """Return the state at an init time and the one before, read together if neither is here."""
        times = [init - STEP, init]
        keys = [("", _key(t)) for t in times]
        with self._lock:
            together = not any(key in self._kept or key in self._reading for key in keys)
            if together:
                own: list[concurrent.futures.Future[Any]] = [
                    concurrent.futures.Future() for _ in keys
                ]
                self._reading.update(zip(keys, own, strict=True))
        if not together:
            return {t: self.frame(t) for t in times}
        return dict(
            zip(times, self._finish(keys, own, lambda: self._pair(times), _size), strict=True)
        )

    def close(self) -> None:
        """Shut down the threads that read variables."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        self._pools = ()

    def frame(self, time: np.datetime64) -> frames.Frame:
        """Return the state at a time, ``(h, w)`` and ``(c, h, w)``, canonical units, float32."""
        return self._remember(("", _key(time)), lambda: self._frame(self.fields, time), _size)

    def _scored(self, time: np.datetime64) -> frames.Frame:
        assert self.scored is not None
        if set(self.scored.surface) == set(self.fields.surface):
            return self.frame(time)  # the frame is cached as input
        fields = self.scored
        return self._remember((" scored", _key(time)), lambda: self._frame(fields, time), _size)

    def target_at(self, name: str, time: np.datetime64) -> np.ndarray:
        """Return a target at a valid time, ``(h, w)``, canonical units, float32."""

        def read() -> np.ndarray:
            variable = self.targets[name].variable[self._index[name][_key(time)]]
            values = indexed.read(variable, name, f" at {time.astype('datetime64[m]')}")
            if name in self.guards.targets:
                self.guards.targets[name](values, time)
            return values.astype(np.float32)

        return self._remember((name, _key(time)), read, lambda values: values.nbytes)

    def batch(self, init_times: Sequence[np.datetime64]) -> Batch:
        """Return the input of forecasts: the states at the init times and six hours before."""
        states: dict[np.datetime64, frames.Frame] = {}
        for init in init_times:
            if init in states or init - STEP in states:
                states |= {t: self.frame(t) for t in (init - STEP, init) if t not in states}
            else:
                states |= self._history(init)
        batch = batches.assemble(
            states, self.still, init_times, self.fields.layout.grid, self.fields.levels
        )
        return batch._fmap(torch.Tensor.pin_memory) if self.pin else batch

    def truth(self, times: Sequence[np.datetime64]) -> Truth:
        """Return the truth at valid times."""
        targets = {
            name: torch.from_numpy(np.stack([self.target_at(name, t) for t in times]))
            for name in self.targets
        }
        state = None
        if self.scored is not None:
            scored = [self._scored(t) for t in times]
            state = {
                kind: {
                    name: torch.from_numpy(np.stack([f[kind][name] for f in scored]))
                    for name in scored[0][kind]
                }
                for kind in ("surface", "atmos")
            }
        return Truth(targets, state)

    def read(self, init_times: Sequence[np.datetime64], steps: int = 1) -> Sample:
        """Return the sample of forecasts of ``steps`` steps from the given init times."""
        truths = [self.truth([t + STEP * k for t in init_times]) for k in range(1, steps + 1)]
        if self.latents is None:
            return Sample(self.batch(init_times), truths, list(init_times))
        found = [self.latents.find(t) for t in init_times]
        missing = [
            self.batch([t]) for t, latents in zip(init_times, found, strict=True) if latents is None
        ]
        return Sample(None, truths, list(init_times), found, missing)


def _key(time: np.datetime64) -> int:
    return int(time.astype("datetime64[ns]").astype(np.int64))


def _size(frame: frames.Frame) -> int:
    return sum(v.nbytes for part in frame.values() for v in part.values())


def prefetch(
    items: Iterable[T], read: Callable[[T], R], workers: int, most: int | None = None
) -> Iterator[tuple[T, R]]:
    """Yield each item with its result, in order, while threads read the following items.

    Parameters
    ----------
    items : iterable
        Arguments of ``read``.
    read : callable
        Reads one item, in a thread if ``workers`` is positive.
    workers : int
        Number of threads. With 0 each item is read when it is requested.
    most : int, optional
        Largest number of items to prefetch, by default ``workers``. The number grows by one, with
        one more thread, whenever the next item is not ready in time.
    """
    if not workers:
        for item in items:
            yield item, read(item)
        return
    source = iter(items)
    most = max(workers, most or workers)
    depth = workers + 1
    with concurrent.futures.ThreadPoolExecutor(most, thread_name_prefix="xaurora-read") as pool:
        waiting: collections.deque[tuple[T, concurrent.futures.Future[R]]] = collections.deque(
            (item, pool.submit(read, item)) for item in itertools.islice(source, depth)
        )
        first = True
        try:
            while waiting:
                item, future = waiting.popleft()
                if not first and not future.done() and depth <= most:
                    depth += 1
                first = False
                result = future.result()
                for following in itertools.islice(source, depth - len(waiting)):
                    waiting.append((following, pool.submit(read, following)))
                yield item, result
        finally:
            for _, future in waiting:
                future.cancel()


def time_positions(da: xr.DataArray) -> TimeIndex:
    """Return the index of each time along a DataArray's axis, by nanoseconds since 1970."""
    return TimeIndex(da["time"].values)

"""Where a forecast goes, lead by lead: into memory, or into a Zarr store.

Of a forecast that is stored, only the chunks that are being filled are in memory.
"""

from __future__ import annotations

import logging
import math
import mmap
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
from tqdm import tqdm

from xaurora.errors import MemoryTooSmallError
from xaurora.forecasting.writer import Output, Writer
from xaurora.utils import storage
from xaurora.utils import zarr_stores as stores
from xaurora.utils.memory import free_host_memory
from xaurora.utils.progress import log_line, progress_bar

logger = logging.getLogger("xaurora")


_REQUEST = "xaurora_request"
_CHUNK = 64 * 1024**2  # largest size of a chunk in bytes, unless one field is larger


class Sink(Protocol):
    """Takes a forecast, in any order of init times, from several threads."""

    def put(self, place: slice, lead: int, block: dict[str, np.ndarray], number: int = 0) -> None:
        """Take one lead of some init times: canonical arrays ``(init_time, ...)`` by key.

        ``number`` is that of a member, if the model draws members itself.
        """


Run = Callable[[list[np.datetime64], int, Sink], None]
"""Computes the forecasts from init times, given the number of the first, and fills a sink."""


def to_memory(writer: Writer, run: Run, progress: bool) -> xr.Dataset:
    """Return a forecast as a Dataset.

    Raises
    ------
    MemoryTooSmallError
        If it does not fit into the free memory.
    """
    size, free = writer.size(), free_host_memory()
    log_line(f"predict: {_described(writer)}, in memory", shown=progress and size > 1e9)
    if size > free:
        raise MemoryTooSmallError(
            f"the forecast takes {size / 1e9:.3g} GB ({_described(writer)}), and {free / 1e9:.3g}"
            " GB of memory are free.",
            fix="store='forecast.zarr', which writes it to disk lead by lead",
        )
    with _bar(writer, len(writer.times), progress) as meter:
        sink = _Memory(writer, meter)
        run(list(writer.times), 0, sink)
    return xr.Dataset(sink.data, writer.coords(), writer.attrs)


def _mapped(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return an array in memory of its own, which goes back when the array is freed.

    The memory is private: a forked process changes its own copy. Other systems than Linux, where
    freed memory is not kept, need none.
    """
    if sys.platform != "linux":
        return np.empty(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    return np.ndarray(shape, dtype, buffer=mmap.mmap(-1, max(size, 1), access=mmap.ACCESS_COPY))


class _Memory:
    """Arrays of the whole forecast."""

    def __init__(self, writer: Writer, meter: tqdm) -> None:
        self.writer, self.meter = writer, meter
        self.data: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]] = {}
        self.lock = threading.Lock()

    def put(self, place: slice, lead: int, block: dict[str, np.ndarray], number: int = 0) -> None:
        shape, dims = self.writer.outer
        for one in self.writer.outputs(block):
            with self.lock:
                if one.name not in self.data:
                    values = _mapped((*shape, *one.values.shape[1:]), one.values.dtype)
                    self.data[one.name] = (*dims, *one.dims), values, one.attrs
            at = (place, lead, number) if "number" in dims else (place, lead)
            self.data[one.name][1][at] = one.values
        with self.lock:
            self.meter.update(place.stop - place.start)


def to_store(
    path: Path, writer: Writer, run: Run, progress: bool, *, overwrite: bool = False
) -> xr.Dataset:
    """Write a forecast to a store, while the next leads are computed.

    Init times that an interrupted run has finished are not computed again.
    """
    signature = writer.signature(xr.Dataset(coords=writer.coords()))
    done = 0
    if path.exists():
        written = stores.count_written_pieces(
            path,
            _REQUEST,
            signature,
            what="forecast store",
            argument="store=",
            differs="other weights, init times, leads, variables or region",
            overwrite=overwrite,
        )
        if written is None:
            with storage.wrap_write_errors(path):
                shutil.rmtree(path)
        done = written or 0
        if done:
            logger.info(
                "%s: %d of %d init times are already stored.", path, done, len(writer.times)
            )
    left = list(writer.times[done:])
    if left:
        log_line(f"predict: {_described(writer)} before compression, to {path}", shown=progress)
        with (
            ThreadPoolExecutor(1, thread_name_prefix="xaurora-write") as pool,
            _bar(writer, len(left), progress) as meter,
        ):
            sink = _Store(path, writer, signature, done, pool, meter)
            run(left, done, sink)
            sink.wait()
    return xr.open_dataset(
        path, engine="zarr", chunks={}, consolidated=False, decode_timedelta=True
    )


class _Store:
    """Chunks of a store, each written by a thread when it is full."""

    def __init__(
        self,
        path: Path,
        writer: Writer,
        signature: str,
        done: int,
        pool: ThreadPoolExecutor,
        meter: tqdm,
    ) -> None:
        self.path, self.writer, self.signature = path, writer, signature
        self.done, self.pool, self.meter = done, pool, meter
        self.finished: set[int] = set()
        self.buffers: dict[tuple[int, str], np.ndarray] = {}
        self.writing: dict[tuple[int, str], Future[None]] = {}
        self.lock = threading.Lock()

    def put(self, place: slice, lead: int, block: dict[str, np.ndarray], number: int = 0) -> None:
        with self.lock:
            if not self.path.exists():
                self._create(list(self.writer.outputs(block)))
        last = len(self.writer.leads) - 1
        for one in self.writer.outputs(block):
            key, length = (place.start, one.name), self._leads(one)
            if key not in self.buffers:
                self._wait_for(key)  # so that there are never two buffers of one variable
                shape = len(one.values), min(length, last + 1 - lead), *one.values.shape[1:]
                self.buffers[key] = np.empty(shape, one.values.dtype)
            buffer = self.buffers[key]
            buffer[:, lead % length] = one.values
            if lead % length == length - 1 or lead == last:
                there: tuple[Any, ...] = place, slice(lead + 1 - buffer.shape[1], lead + 1)
                if self.writer.own_members:
                    there = (*there, number)
                self.writing[key] = self.pool.submit(self._write, one.name, there, buffer)
                del self.buffers[key], buffer
        with self.lock:
            self.meter.update(place.stop - place.start)
        if lead == last and number == max(self.writer.own_members - 1, 0):
            self.writing[place.start, ""] = self.pool.submit(self._record, place)

    def wait(self) -> None:
        """Wait until all is written."""
        for key in list(self.writing):
            self._wait_for(key)

    def _wait_for(self, key: tuple[int, str]) -> None:
        if (future := self.writing.pop(key, None)) is not None:
            future.result()

    def _leads(self, one: Output) -> int:
        """Return the number of leads in a chunk."""
        field_size = one.values.nbytes // len(one.values)
        return int(np.clip(_CHUNK // max(field_size, 1), 1, len(self.writer.leads)))

    def _write(self, name: str, there: tuple[Any, ...], values: np.ndarray) -> None:
        import zarr

        with storage.wrap_write_errors(self.path):
            group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
            array: Any = group[name]
            array[there] = values

    def _record(self, place: slice) -> None:
        """Record how many init times are finished without a gap."""
        self.finished |= set(range(place.start, place.stop))
        while self.done in self.finished:
            self.done += 1
        with storage.wrap_write_errors(self.path):
            stores.record_written_pieces(self.path, self.done)

    def _create(self, outputs: list[Output]) -> None:
        """Create an empty store of the right shape, with chunks of some leads of one init time."""
        import dask.array

        shape, dims = self.writer.outer
        data, encoding = {}, {}
        for one in outputs:
            whole = *shape, *one.values.shape[1:]
            # A single task that is never run, for any number of init times. The encoding sets the
            # chunks on disk.
            empty = dask.array.full(whole, np.nan, dtype=one.values.dtype, chunks=-1)
            data[one.name] = ((*dims, *one.dims), empty, one.attrs)
            members = [1] if self.writer.own_members else []
            chunks = [1, self._leads(one), *members, *one.values.shape[1:]]
            if "number" in one.dims:
                field_size = one.values[0, 0].nbytes
                chunks[2] = int(np.clip(_CHUNK // max(field_size, 1), 1, chunks[2]))
            encoding[one.name] = {"chunks": tuple(chunks)}
        attrs = {**self.writer.attrs, _REQUEST: self.signature}
        with storage.wrap_write_errors(self.path):
            stores.create(self.path, xr.Dataset(data, self.writer.coords(), attrs), encoding)


def _described(writer: Writer) -> str:
    return (
        f"{len(writer.times)} init time(s) × {len(writer.leads)} lead time(s),"
        f" {writer.size() / 1e9:.3g} GB"
    )


def _bar(writer: Writer, inits: int, progress: bool) -> tqdm:
    return progress_bar(
        total=inits * len(writer.leads) * max(writer.own_members, 1),
        label="predict",
        unit="step",
        shown=progress,
    )

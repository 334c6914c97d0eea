"""Store of frozen-backbone outputs, computed once for each sample and then read by training.

The store is a Zarr group whose first axis counts hours since 1900, so the position of a sample does
not depend on what else is stored. Positions without data take no disk space. Each sample is one
chunk with a checksum, written to a temporary file and then renamed, so a killed process leaves no
partial chunk, and two processes that write the same sample write the same bytes. Each sample is
stored with a digest of the fields it was computed from.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aurora import Batch

from xaurora.errors import LatentsError, SaveError
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.heads.base import HeadSet
from xaurora.model.loader import Sample
from xaurora.training.latent_store import (
    _LENGTH,
    CHECKED,
    FORMAT,
    LatentStore,
    digest,
    key_of,
    time_index,
)
from xaurora.training.nested_options import LatentOptions
from xaurora.utils import storage

logger = logging.getLogger("xaurora")

_KEPT = 64  # samples in memory beside a store: then memory does not grow with their number
_WAITING = 4  # samples that wait to be written


class Latents:
    """Source of latents for training, used instead of running the backbone.

    Latents come from memory or from the store, or are computed when needed and then kept.

    Parameters
    ----------
    store : Store, optional
        Without a store, latents are kept in memory only, up to ``budget``.
    dtype : {"bfloat16", "float32"}
        New latents are rounded to it at once, so that results do not depend on whether a sample was
        stored.
    budget : int
        Bytes to keep in memory.
    """

    def __init__(self, store: LatentStore | None, dtype: str, budget: int = 2 * 1024**3) -> None:
        self.store, self.budget = store, budget
        # With a store, samples can be read again from disk. Without one, keep as many as fit.
        self.most = _KEPT if store is not None else _LENGTH
        self.dtype = getattr(torch, dtype)
        self.made = 0
        self._kept: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._writing: list[Future[None]] = []
        self._writes = store is not None
        self._told: set[str] = set()

    def find(self, time: np.datetime64) -> torch.Tensor | None:
        """Return the latents ``(c, hp, wp, d)`` of an init time, or None. Thread-safe."""
        place = time_index(time)
        if place is None:
            return None
        if (kept := self._in_memory(place)) is not None:
            return kept
        found = self.store.read(place) if self.store is not None else None
        if found is not None:
            self._remember(place, found)
        return found

    def _in_memory(self, place: int) -> torch.Tensor | None:
        with self._lock:
            if place in self._kept:
                self._kept.move_to_end(place)
            return self._kept.get(place)

    def _remember(self, place: int, values: torch.Tensor) -> None:
        size = values.numel() * values.element_size()
        with self._lock:
            if place not in self._kept:
                self._kept[place] = values
                self._held += size
            while len(self._kept) > 1 and (self._held > self.budget or len(self._kept) > self.most):
                _, dropped = self._kept.popitem(last=False)
                self._held -= dropped.numel() * dropped.element_size()

    def of(self, module: AuroraWithHead, sample: Sample, device: torch.device) -> torch.Tensor:
        """Return the latents ``(b, c, hp, wp, d)`` of a sample, float32, on the device.

        Call it inside :func:`~xaurora.model.placement.on_grid`. Missing latents are computed one
        init time at a time, so that they do not depend on the batch a sample is in.
        """
        parts = []
        missing = iter(sample.missing)
        for time, found in zip(sample.init_times, sample.latents or [], strict=True):
            if found is None:
                batch, place = next(missing), time_index(time)
                found = (
                    self._in_memory(place) if place is not None else None
                )  # computed since the first look-up
                found = self._make(module, batch, time) if found is None else found
            parts.append(found)
        whole = torch.stack(parts)
        if device.type == "cuda":
            whole = whole.pin_memory().to(device, non_blocking=True)
        return whole.float()

    def _make(self, module: AuroraWithHead, batch: Batch, time: np.datetime64) -> torch.Tensor:
        from xaurora.model import rollout

        values = module.latents(rollout.prepare(module, batch))[0]
        values = values.to(self.dtype).cpu().contiguous()
        self.made += 1
        place = time_index(time)
        if place is None:
            self._say(
                "times",
                "Latents of init times that are not on the full hour cannot be stored; they are"
                " computed each time.",
            )
            return values
        self._remember(place, values)
        if self.store is not None and self._writes and not self.store.has(place):
            if not self.store.fits_another():
                self._writes, self.most = False, _LENGTH
                self._say(
                    "limit",
                    f"The store of latents '{self.store.path}' has reached its limit of"
                    f" {self.store.limit / 1e9:.3g} GB with {self.store.count} samples; further"
                    " samples are computed each time. Use LatentOptions(size='...') to raise the"
                    " limit.",
                )
            else:
                self._write(place, values, batch)
        return values

    def _write(self, place: int, values: torch.Tensor, batch: Batch) -> None:
        """Write a sample in a background thread while the next one is computed."""
        store = self.store
        if store is None:
            return

        def work() -> None:
            store.write(place, values, digest(batch))

        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="xaurora-latents")
        self._writing.append(self._pool.submit(work))
        self._collect(_WAITING)

    def _collect(self, left: int) -> None:
        """Wait until at most ``left`` writes are pending.

        If a write fails, for example on a full disk, storing stops and training continues.
        """
        while self._writing and (len(self._writing) > left or self._writing[0].done()):
            try:
                self._writing.pop(0).result()
            except SaveError as error:
                self._writes, self.most = False, _LENGTH
                self._say(
                    "disk",
                    "Latents are no longer stored; training continues without storing them:"
                    f" {error.message}",
                )

    def _say(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s", text)

    def close(self) -> None:
        """Wait until all samples are written."""
        self._collect(0)
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def open_store(
    folder: Path,
    options: LatentOptions,
    shape: tuple[int, ...],
    description: Mapping[str, Any],
    init_times: np.ndarray,
    read: Callable[[np.datetime64], Batch],
    scan: Callable[[np.ndarray], None],
    *,
    checked: int = CHECKED,
) -> LatentStore:
    """Open or create the store for a run: the named one, or a matching one in ``folder``.

    Parameters
    ----------
    folder : path
        Folder of stores without a name given by the user.
    options : LatentOptions
    shape : tuple of int
    description : dict
    init_times : ndarray of datetime64
        Init times that this run needs.
    read : callable
        Function from an init time to a Batch of one. Used to compare stored samples with the data.
    scan : callable
        Function that checks the inputs of init times that are not stored. It is called before a
        store is created.
    checked : int
        Number of stored samples to compare with the data.

    Raises
    ------
    LatentsError
        If the named store holds other latents.
    SaveError
        If the store cannot be written.
    """
    limit = options.size if options.size is None else float(options.size)

    def opened(path: Path) -> LatentStore:
        new = not path.exists()
        if new:
            scan(init_times)
        store = LatentStore(path, shape, options.dtype, description, limit)
        if not new:
            scan(
                np.array(
                    [t for t in init_times if (p := time_index(t)) is None or not store.has(p)],
                    "datetime64[ns]",
                )
            )
        return store

    if options.path is not None:
        store = opened(storage.output_path(options.path))
        if (wrong := _of_other_fields(store, init_times, read, checked)) is not None:
            raise LatentsError(
                f"the latents in '{store.path}' were computed from other fields (those at"
                f" {wrong.astype('datetime64[h]')} differ) and are not used.",
                fix="choose another latents= path, or remove the existing store",
            )
        return store
    # The name also depends on the fields of the first sample, so other data get another store.
    key = key_of(
        {
            **description,
            "format": FORMAT,
            "shape": list(shape),
            "dtype": options.dtype,
            "first": digest(read(init_times[0])).hex(),
        }
    )
    number = 0
    while True:
        path = folder / (f"{key}.zarr" if not number else f"{key}-{number}.zarr")
        number += 1
        try:
            store = opened(path)
        except LatentsError as error:  # damaged, or not a store of latents
            logger.warning("%s A new store is created beside it.", error.message)
            continue
        if _of_other_fields(store, init_times, read, checked) is None:
            return store


def _of_other_fields(
    store: LatentStore, init_times: np.ndarray, read: Callable[[np.datetime64], Batch], checked: int
) -> np.datetime64 | None:
    """Return an init time whose stored latents were computed from other fields, or None.

    Up to ``checked`` of the stored init times, evenly spaced, are compared.
    """
    there = [t for t in init_times if (place := time_index(t)) is not None and store.has(place)]
    if not there:
        # Nothing to compare. What is stored at other times is assumed to be of the same source.
        return None
    chosen = np.unique(np.linspace(0, len(there) - 1, min(len(there), checked)).astype(int))
    for i in chosen:
        place = time_index(there[i])
        known = store.inputs_of(place) if place is not None else None
        if known is not None and known != digest(read(there[i])):
            return there[i]
    return None


def shape_of(
    module: AuroraWithHead, grid_shape: tuple[int, int], patch_size: int
) -> tuple[int, ...]:
    """Return the shape of a sample's latents: levels, patch rows, patch columns, channels.

    There is one level if all heads read the surface latent alone, and five more if one of them
    sums hourly amounts.
    """
    base = module.base
    head = module.head or HeadSet({})
    levels = 1 if head.surface_only else base.encoder.latent_levels
    if head.sums_hours:
        levels += TIMESTEP_HOURS - 1
    rows, columns = (n // patch_size for n in grid_shape)
    if module.window is not None:
        rows, columns = len(module.window.patch_rows), len(module.window.patch_columns)
    return (levels, rows, columns, 2 * base.encoder.embed_dim)

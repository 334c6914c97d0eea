"""The store of frozen-backbone outputs: each sample's latents are computed once, and training reads
them instead of running the backbone.

A Zarr group whose first axis counts the hours since 1900, so that a sample has its place whatever
was stored before it; what is not there takes no room. Each sample is one chunk with a checksum,
written to a file beside and moved into its place: a kill leaves no half of one, and two processes
that write the same sample write the same bytes. Beside it stands a digest of the fields that it was
computed from.
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
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.loader import Sample
from xaurora.training.latent_store import _SLOTS, CHECKED, FORMAT, LatentStore, digest, key_of, slot
from xaurora.training.options import LatentOptions

logger = logging.getLogger("xaurora")

_KEPT = 64  # samples in memory beside a store: then memory does not grow with their number
_WAITING = 4  # samples that wait to be written


class Latents:
    """What training reads instead of running the backbone: from memory, from the store, or made on
    the spot and kept.

    Parameters
    ----------
    store : Store, optional
        Without one they are kept in memory alone, as far as that goes.
    dtype : {"bfloat16", "float32"}
        What is made is rounded to it at once, so that a run gives the same whether a sample was
        stored or not.
    levels : int
        Latent levels that the heads read, from the surface up.
    budget : int
        Bytes to keep in memory.
    """

    def __init__(
        self, store: LatentStore | None, dtype: str, levels: int, budget: int = 2 * 1024**3
    ) -> None:
        self.store, self.levels, self.budget = store, levels, budget
        # What is on disk is read again; without a disk as many are kept as fit.
        self.most = _KEPT if store is not None else _SLOTS
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
        """The latents ``(c, hp, wp, d)`` of an init time, or None. Several threads may ask."""
        place = slot(time)
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
        """The latents of a sample, ``(b, c, hp, wp, d)``, float32, on the device; inside
        :func:`xaurora.model.aurora.placed`.

        What was not found is made, one init time at a time: then it does not depend on the batch
        that it came in.
        """
        parts = []
        missing = iter(sample.missing)
        for time, found in zip(sample.init_times, sample.latents or [], strict=True):
            if found is None:
                batch, place = next(missing), slot(time)
                found = (
                    self._in_memory(place) if place is not None else None
                )  # made since it was looked for
                found = self._make(module, batch, time) if found is None else found
            parts.append(found)
        whole = torch.stack(parts)
        if device.type == "cuda":
            whole = whole.pin_memory().to(device, non_blocking=True)
        return whole.float()

    def _make(self, module: AuroraWithHead, batch: Batch, time: np.datetime64) -> torch.Tensor:
        from xaurora.model import rollout

        values = (
            module.latents(rollout.prepare(module, batch))[0, : self.levels]
            .to(self.dtype)
            .cpu()
            .contiguous()
        )
        self.made += 1
        place = slot(time)
        if place is None:
            self._say(
                "times",
                "Init times that are not on the hour have no place in a store of latents; theirs"
                " are computed each time.",
            )
            return values
        self._remember(place, values)
        if self.store is not None and self._writes and not self.store.has(place):
            if not self.store.fits_another():
                self._writes, self.most = False, _SLOTS
                self._say(
                    "limit",
                    f"The store of latents '{self.store.path}' has reached its limit of"
                    f" {self.store.limit / 1e9:.3g} GB with {self.store.count} samples; the others"
                    " are computed each time. LatentOptions(size='...') allows more.",
                )
            else:
                self._write(place, values, batch)
        return values

    def _write(self, place: int, values: torch.Tensor, batch: Batch) -> None:
        """In a thread, while the next sample is computed."""
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
        """Wait until so few are left to be written; a disk that is full ends the writing, and not
        the training.
        """
        while self._writing and (len(self._writing) > left or self._writing[0].done()):
            try:
                self._writing.pop(0).result()
            except SaveError as error:
                self._writes, self.most = False, _SLOTS
                self._say(
                    "disk",
                    f"Latents are no longer stored, and training goes on without: {error.message}",
                )

    def _say(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s", text)

    def close(self) -> None:
        """Wait until all is written."""
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
    """The store for this training: the one that was named, or the one in ``folder`` that fits.

    Parameters
    ----------
    folder : path
        Where stores lie that were not named.
    options : LatentOptions
    shape : tuple of int
    description : dict
    init_times : ndarray of datetime64
        That this training needs.
    read : callable
        Init time → Batch of one: some of what is stored is compared with the data.
    scan : callable
        Looks for what is wrong with the inputs of init times that are not stored, before a store is
        made.
    checked : int
        How many stored samples are compared with the data.

    Raises
    ------
    LatentsError
        The store that was named is of something else.
    SaveError
        It cannot be written.
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
                    [t for t in init_times if (p := slot(t)) is None or not store.has(p)],
                    "datetime64[ns]",
                )
            )
        return store

    if options.path is not None:
        store = opened(Path(options.path))
        if (wrong := _of_other_fields(store, init_times, read, checked)) is not None:
            raise LatentsError(
                f"the latents in '{store.path}' were computed from other fields (those of"
                f" {wrong.astype('datetime64[h]')} differ); they are not used.",
                fix="another latents= path, or remove that one",
            )
        return store
    # Its name holds what the first sample is made of as well: other data find another store.
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
        except LatentsError as error:  # damaged, or somebody else's
            logger.warning("%s Another one is made beside it.", error.message)
            continue
        if _of_other_fields(store, init_times, read, checked) is None:
            return store


def _of_other_fields(
    store: LatentStore, init_times: np.ndarray, read: Callable[[np.datetime64], Batch], checked: int
) -> np.datetime64 | None:
    """An init time whose stored latents come from other fields than the data's, among a few that
    are looked at.
    """
    there = [t for t in init_times if (place := slot(t)) is not None and store.has(place)]
    if not there:
        # Other data may have been stored at other times: a store holds one source.
        return None
    chosen = np.unique(np.linspace(0, len(there) - 1, min(len(there), checked)).astype(int))
    for i in chosen:
        place = slot(there[i])
        known = store.inputs_of(place) if place is not None else None
        if known is not None and known != digest(read(there[i])):
            return there[i]
    return None


def shape_of(
    module: AuroraWithHead, grid_shape: tuple[int, int], patch_size: int, *, surface: bool
) -> tuple[int, ...]:
    """Shape of a sample's latents: levels, patches, channels."""
    base = module.base
    rows, columns = (n // patch_size for n in grid_shape)
    if module.window is not None:
        rows, columns = len(module.window.patch_rows), len(module.window.patch_columns)
    return (1 if surface else base.encoder.latent_levels, rows, columns, 2 * base.encoder.embed_dim)

"""A Zarr store of a forecast that grows init time by init time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xaurora.forecasting.writer import Writer
from xaurora.utils import storage
from xaurora.utils import zarr_stores as stores
from xaurora.utils.progress import track

logger = logging.getLogger("xaurora")


_REQUEST = "xaurora_request"


def to_store(
    path: Path,
    writer: Writer,
    run: Callable[[np.ndarray], Iterable[dict[str, np.ndarray]]],
    progress: bool,
    together: int = 1,
) -> xr.Dataset:
    """Write a forecast to a store, each init time while the next one is computed.

    Init times that an interrupted run has finished are not computed again.

    Parameters
    ----------
    path : path
    writer : Writer
    run : callable
        Function from init times to an iterable of their canonical arrays.
    progress : bool
    together : int
        Number of init times written at once.
    """
    coords = xr.Dataset(coords=writer.coords())
    signature = writer.signature(coords)
    done = 0
    if path.exists():
        done = stores.count_written_pieces(
            path,
            _REQUEST,
            signature,
            what="forecast store",
            argument="store=",
            differs="other weights, init times, leads, variables or region",
        )
        if done:
            logger.info(
                "%s: %d of %d init times are already stored.", path, done, len(writer.times)
            )

    def write(first: int, blocks: list[dict[str, np.ndarray]]) -> None:
        parts = [writer.variables(block) for block in blocks]
        with storage.wrap_write_errors(path):
            if not path.exists():
                _create(path, parts[0], coords, {**writer.attrs, _REQUEST: signature})
            fields = xr.Dataset(
                {
                    name: (("init_time", *dims), np.stack([p[name][1] for p in parts]))
                    for name, (dims, _, _) in parts[0].items()
                }
            )
            fields.to_zarr(
                path, region={"init_time": slice(first, first + len(blocks))}, consolidated=False
            )
            stores.record_written_pieces(path, first + len(blocks))

    left = writer.times[done:]
    with ThreadPoolExecutor(1, thread_name_prefix="xaurora-write") as pool:
        writing: Future[None] | None = None
        waiting: list[dict[str, np.ndarray]] = []
        forecasts = (
            track(run(left), "predict", shown=progress, total=len(left)) if len(left) else ()
        )
        for i, block in enumerate(forecasts, 1):
            waiting.append(block)
            if len(waiting) == together or i == len(left):
                if writing is not None:
                    writing.result()
                writing = pool.submit(write, done + i - len(waiting), waiting)
                waiting = []
        if writing is not None:
            writing.result()
    return xr.open_dataset(
        path, engine="zarr", chunks={}, consolidated=False, decode_timedelta=True
    )


def _create(path: Path, parts: dict[str, Any], coords: xr.Dataset, attrs: dict[str, Any]) -> None:
    """Create an empty store of the right shape."""
    import dask.array

    count = coords.sizes["init_time"]
    data, encoding = {}, {}
    for name, (dims, values, own) in parts.items():
        # A single task that is never run, for any number of init times. The encoding sets the
        # chunks on disk.
        empty = dask.array.full((count, *values.shape), np.nan, dtype=values.dtype, chunks=-1)
        data[name] = (("init_time", *dims), empty, own)
        encoding[name] = {"chunks": (1, *values.shape)}
    stores.create(path, xr.Dataset(data, coords.coords, attrs), encoding)

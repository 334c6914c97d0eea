"""Work in parallel: on the threads of this process, or on the workers of a dask cluster."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from xaurora.utils.types import Given

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_THREADS = 8


def in_order(
    function: Callable[[State, Item], Result],
    state: State,
    items: Sequence[Item],
    *,
    client: Given = None,
    name: str = "xaurora",
) -> Iterator[Result]:
    """Call ``function(state, item)`` for every item in parallel; yields the results in order.

    Only a few more items than there are workers are under way at a time.

    Parameters
    ----------
    function : callable
        A function of a module, so that other processes can import it.
    state : object
        Sent to each worker once.
    items : sequence
    client : distributed.Client, optional
        Where to compute; by default the active client, or else threads of this process. An item
        whose worker dies is computed by another one.
    name : str
        Name of the threads.
    """
    client = active_client() if client is None else client
    if client is not None:
        sent = client.scatter(state, broadcast=True, hash=False)
        ahead = 4 * max(sum(client.nthreads().values()), 1)
        yield from _queued(lambda i: client.submit(function, sent, i, pure=False), items, ahead)
        return
    threads = min(count(), max(len(items), 1))
    if threads == 1:
        yield from (function(state, item) for item in items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        yield from _queued(lambda i: pool.submit(function, state, i), items, 2 * threads)


def _queued(submit: Callable[[Item], Given], items: Sequence[Item], ahead: int) -> Iterator[Given]:
    waiting: deque[Given] = deque()
    try:
        for item in items:
            waiting.append(submit(item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def count() -> int:
    """Return the number of threads that :func:`in_order` uses in this process."""
    return max(min(os.cpu_count() or 1, _MOST_THREADS), 1)


def active_client() -> Given:
    """Return the active dask.distributed client of the user, or None."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None

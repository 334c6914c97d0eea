"""Work on threads and on a cluster gives the same, also when a worker dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import distributed
import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora.utils import workers


def _broken(factor: int, item: int) -> int:
    return factor // item


def test_results_are_in_order_and_few_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "count", lambda: 3)
    begun: list[int] = []

    def work(factor: int, item: int) -> int:
        begun.append(item)
        time.sleep(0.001 * (item % 3))
        return factor * item

    results = workers.in_order(work, 10, range(40))
    assert next(results) == 0
    assert len(begun) <= 2 * 3
    assert list(results) == [10 * i for i in range(1, 40)]


def test_an_error_stops_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "count", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        list(workers.in_order(_broken, 1, [2, 1, 0, *range(1, 500)]))


@pytest.fixture(scope="module")
def client() -> Iterator[distributed.Client]:
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    # Its nannies leave MALLOC_TRIM_THRESHOLD_ in this process's environment, and later tests
    # measure the memory of processes.
    with (
        mock.patch.dict(os.environ),
        distributed.LocalCluster(**options, silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _while_a_worker_dies(client: distributed.Client, compute: Callable[[], Any]) -> Any:
    """Kill one of two workers as soon as it has something to do."""
    client.wait_for_workers(2)
    pids = list(client.run(os.getpid).values())
    finished = threading.Event()

    def kill() -> None:
        while not finished.wait(0.01):
            if any(client.processing().values()):
                os.kill(pids[0], signal.SIGKILL)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        return compute()
    finally:
        finished.set()
        killer.join()


def _same(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.data_vars) == set(other.data_vars)
    for name in one.data_vars:
        np.testing.assert_allclose(one[name].values, other[name].values, rtol=1e-12)


@pytest.mark.slow  # workers are started anew
def test_every_verb_on_a_cluster(
    client: distributed.Client, fields: xr.Dataset, tmp_path: Path, monkeypatch: Any
) -> None:
    """The same results as without; in two of them a worker is killed on the way."""
    fc = xaurora.persistence(fields, ["tp", "t2m", "u10", "v10", "t"], ["6h", "24h"]).load()
    verbs: dict[str, Callable[[], xr.Dataset]] = {
        "evaluate": lambda: fc.aurora.evaluate(
            fields,
        ),
        "climatology": lambda: xaurora.climatology(
            fields, ["tp", "t"], statistics=("mean", "std", "quantile")
        ),
        "statistics": lambda: fields.aurora.statistics(["tp", "t2m", "t"], progress=False),
    }
    monkeypatch.setattr("xaurora.evaluation.climatology._MEMORY", 300_000_000)
    monkeypatch.setattr("xaurora.fields.statistics._CHUNKS", 1)
    there = {name: verb() for name, verb in verbs.items() if name != "evaluate"}
    there["evaluate"] = _while_a_worker_dies(client, verbs["evaluate"])
    store = _while_a_worker_dies(
        client,
        lambda: fields.aurora.prepare(tmp_path / "there.zarr", model="tiny", progress=False),
    )
    monkeypatch.setattr(workers, "active_client", lambda: None)
    for name, verb in verbs.items():
        _same(there[name], verb())
    _same(store, fields.aurora.prepare(tmp_path / "here.zarr", model="tiny", progress=False))

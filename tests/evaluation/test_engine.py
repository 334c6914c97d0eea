"""The evaluation loop: what it reads, and in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from archives import CountingStore
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import xaurora
from xaurora.evaluation import blocks

COORDS = ("time", "latitude", "longitude", "level", "init_time", "lead_time", "valid_time")


def _stored(ds: xr.Dataset, **chunks: int) -> tuple[xr.Dataset, CountingStore]:
    """Return a Dataset that is stored with these chunks, and the store that counts its reads."""
    memory = MemoryStore()
    encoding = {
        name: {"chunks": tuple(chunks.get(str(d), n) for d, n in da.sizes.items())}
        for name, da in ds.data_vars.items()
    }
    ds.to_zarr(memory, encoding=encoding, consolidated=False)
    store = CountingStore(memory)
    found = xr.open_zarr(store, chunks=None, consolidated=False, decode_timedelta=True)
    store.requests.clear()
    return found, store


def _chunks_read(store: CountingStore) -> int:
    return sum(n for key, n in store.requests.items() if key.split("/")[0] not in COORDS)


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return xaurora.synthetic(shape=(8, 16), times=60).drop_vars(
        ["lsm", "slt", "z_sfc"], errors="ignore"
    )


@pytest.fixture(scope="module")
def forecast(truth: xr.Dataset) -> xr.Dataset:
    leads = [f"{6 * i}h" for i in range(1, 41)]
    names = ["tp", "u10", "v10", "t2m", "t", "u", "v"]
    return xaurora.persistence(truth, names, leads).isel(init_time=slice(2, 12)).load()


@pytest.fixture(scope="module")
def scores(truth: xr.Dataset, forecast: xr.Dataset) -> xr.Dataset:
    return forecast.aurora.evaluate(truth)


@pytest.mark.parametrize("chunks", [(1, 40), (4, 3), (10, 1)], ids=lambda c: f"{c[0]}x{c[1]}")
def test_each_chunk_is_read_once(
    truth: xr.Dataset, forecast: xr.Dataset, scores: xr.Dataset, chunks: tuple[int, int]
) -> None:
    """Forty leads; winds need their components too, and the truth has chunks of seven times."""
    fc, of_forecast = _stored(forecast, init_time=chunks[0], lead_time=chunks[1])
    y, of_truth = _stored(truth, time=7)
    there = fc.aurora.evaluate(y)
    assert not of_forecast.repeated
    assert not of_truth.repeated
    blocks = -(-10 // chunks[0]) * -(-40 // chunks[1])
    assert _chunks_read(of_forecast) == blocks * len(forecast.data_vars)
    needed = np.searchsorted(truth["time"], np.unique(forecast["valid_time"])) // 7
    assert _chunks_read(of_truth) == len(np.unique(needed)) * len(forecast.data_vars)
    for name in scores.data_vars:  # sums are added in another order
        np.testing.assert_allclose(there[name], scores[name], rtol=1e-11, atol=1e-12)


def test_two_forecasts_with_other_chunks(truth: xr.Dataset, forecast: xr.Dataset) -> None:
    one, of_one = _stored(forecast, init_time=1, lead_time=40)
    other, of_other = _stored(forecast, init_time=5, lead_time=2)
    xaurora.compare({"one": one, "other": other}, truth)
    assert not of_one.repeated
    assert not of_other.repeated


def test_truths_that_are_kept_have_a_limit(
    truth: xr.Dataset, forecast: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for two fields, truths are read again, and the scores are the same."""
    forecast = forecast.isel(lead_time=slice(10))
    here = forecast.aurora.evaluate(truth)
    y, of_truth = _stored(truth, time=1)
    monkeypatch.setattr(blocks, "_BLOCK", 1)  # a field at a time
    monkeypatch.setattr(blocks, "_SMALL", 1)
    monkeypatch.setattr("xaurora.evaluation.truths._KEPT", 2 * 8 * 16 * 4)
    there = forecast.aurora.evaluate(y)
    assert of_truth.repeated
    for name in here.data_vars:
        np.testing.assert_allclose(there[name], here[name], rtol=1e-11, atol=1e-12)


@given(
    inits=st.integers(1, 9),
    leads=st.integers(1, 9),
    chunk=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    block=st.integers(1, 100),
)
@settings(max_examples=30, deadline=None)
def test_blocks_cover_each_field_once(
    inits: int, leads: int, chunk: tuple[int, int], block: int
) -> None:
    """And follow each other in the order of valid times."""

    class Fields:
        def __init__(self) -> None:
            step = np.timedelta64(6, "h")
            self.init_times = np.datetime64("2020-01-01", "ns") + np.arange(inits) * step
            self.leads = np.arange(1, leads + 1) * step
            self.fields = {("surface", "tp"): type("F", (), {"source": "tp"})}

        def field_size(self, name: str) -> int:
            return blocks._BLOCK // block

        def chunk(self, name: str) -> tuple[int, int]:
            return min(chunk[0], inits), min(chunk[1], leads)

    made: Any = Fields()
    job = blocks.Job(("surface", "tp"), (("surface", "tp"),), (), ())
    plan: Any = type("P", (), {"first": made, "forecasts": {"a": made}, "jobs": [job]})
    seen = np.zeros((inits, leads), int)
    last = np.datetime64("1900-01-01", "ns")
    for one in blocks.blocks_of(plan):
        seen[one.init, one.lead] += 1
        until = made.init_times[one.init][-1] + made.leads[one.lead][-1]
        assert until >= last
        last = until
        assert one.init.start % min(chunk[0], inits) == 0
        assert one.lead.start % min(chunk[1], leads) == 0
    assert (seen == 1).all()

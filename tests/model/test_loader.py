"""The loader: what it reads, how often, how far ahead, and what it holds."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
import time

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import make_aurora
from zarr.storage import LocalStore, WrapperStore

import xaurora
from xaurora import errors
from xaurora.fields import conventions, requirements
from xaurora.model import batch, frames
from xaurora.model import loader as loading
from xaurora.model.memory import LiveBytes
from xaurora.model.models import needs_of


def _cut(ds: xr.Dataset):
    fields = conventions.standardise(ds)
    return requirements.select_and_crop(fields, needs_of("tiny", fields, ["tp"]))[0]


@pytest.fixture(scope="module")
def stored(fields: xr.Dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    fields.aurora.prepare(path, model="tiny", progress=False)
    return path


def test_a_sample_is_the_batch(fields: xr.Dataset, stored) -> None:
    times = [fields["time"].values[i] for i in (3, 9, 4)]
    cut, lazy = _cut(fields), _cut(xaurora.open(stored))
    want = batch.to_batch(cut, times)
    for loader in (
        loading.Loader(cut, {}),
        loading.Loader(lazy, {}),
        loading.Loader(lazy, {}, readers=0, budget=1),
    ):
        got = loader.batch(times)
        for part in ("surf_vars", "atmos_vars", "static_vars"):
            for name, value in getattr(want, part).items():
                assert torch.equal(value, getattr(got, part)[name])
        assert got.metadata.time == want.metadata.time
        loader.close()


def test_a_frame_is_read_once_by_many_threads(fields: xr.Dataset, monkeypatch) -> None:
    cut, reads, real = _cut(fields), [], frames.read

    def slowly(*args, **kwargs):
        reads.append(args[1])
        time.sleep(0.05)
        return real(*args, **kwargs)

    monkeypatch.setattr(frames, "read", slowly)
    loader = loading.Loader(cut, {})
    when = fields["time"].values[5]
    threads = [threading.Thread(target=loader.batch, args=([when],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 2


def test_history_is_read_at_once_and_not_copied(stored) -> None:
    """Both states in one request for each variable, unless one of them is here already."""
    cut = _cut(xaurora.open(stored))
    loader = loading.Loader(cut, {})
    init = cut.times[5]
    got = loader.batch([init])
    t2m = loader.frame(init)["surface"]["2t"]
    assert np.shares_memory(got.surf_vars["2t"].numpy(), t2m)
    assert got.surf_vars["2t"].is_contiguous()
    following = loader.batch([cut.times[6]])
    assert np.array_equal(following.surf_vars["2t"][0, 0].numpy(), t2m)
    assert not np.shares_memory(following.surf_vars["2t"].numpy(), t2m)
    several = loader.batch([cut.times[9], cut.times[5]])
    assert torch.equal(several.surf_vars["2t"][1], got.surf_vars["2t"][0])
    loader.close()


def test_a_batch_is_not_the_users_own_array(fields: xr.Dataset) -> None:
    two = fields.isel(time=slice(2)).copy(deep=True)
    before = two.copy(deep=True)
    batch_of_two = two.aurora.to_batch(model="tiny")
    for tensor in (*batch_of_two.surf_vars.values(), *batch_of_two.atmos_vars.values()):
        tensor.zero_()
    xr.testing.assert_identical(two, before)


def test_training_leaves_the_frames_as_they_were_read(stored, tmp_path, monkeypatch) -> None:
    """Batches of one share the memory of cached frames."""
    seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    real = loading.Loader.frame

    def frame(self: loading.Loader, time: np.datetime64) -> frames.Frame:
        found = real(self, time)
        for part in found.values():
            for values in part.values():
                seen.setdefault(id(values), (values, values.copy()))
        return found

    monkeypatch.setattr(loading.Loader, "frame", frame)
    ds = xaurora.open(stored)
    for strategy in ("full", "frozen"):
        ds.aurora.finetune(
            "tp",
            model="tiny",
            strategy=strategy,
            steps=4,
            validations=1,
            rollout_steps=2 if strategy == "full" else 1,
            out=tmp_path / strategy,
            progress=False,
        )
    assert seen
    assert all(np.array_equal(now, before) for now, before in seen.values())


def test_the_times_of_a_broken_chunk_are_named(stored, tmp_path) -> None:
    path = shutil.copytree(stored, tmp_path / "broken.zarr")
    for chunk in (path / "t2m" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    cut = _cut(xaurora.open(path))
    before, init = (str(t)[:16] for t in cut.times[6:8])
    loader = loading.Loader(cut, {})
    with pytest.raises(errors.SourceError, match=f"at {before} could not be read"):
        loader.batch([cut.times[7]])
    with pytest.raises(errors.SourceError, match=f"at {init} could not be read"):
        loader.frame(cut.times[7])
    loader.close()
    with pytest.raises(errors.SourceError, match=f"at {before} or {init} could not be read"):
        batch.to_batch(cut, [cut.times[7]])


def test_a_broken_frame_leaves_the_one_read_with_it(stored, monkeypatch) -> None:
    """Also for a thread that waits for the sound one meanwhile."""
    cut = _cut(xaurora.open(stored))
    loader = loading.Loader(cut, {})
    broken, sound = cut.times[6], cut.times[7]
    real, begun, waiting = frames._read_all, threading.Event(), threading.Event()

    def some_fail(fields, place, times, *more):
        if broken in times:
            begun.set()
            waiting.wait(10)
            raise errors.SourceError(f"broken at {times}", fix="copy it again")
        return real(fields, place, times, *more)

    monkeypatch.setattr(frames, "_read_all", some_fail)
    found: list[object] = []

    def run(what, *args) -> None:
        try:
            found.append(what(*args))
        except errors.SourceError as error:
            found.append(error)

    first = threading.Thread(target=run, args=(loader.batch, [sound]))
    first.start()
    assert begun.wait(10)
    second = threading.Thread(target=run, args=(loader.frame, sound))
    second.start()
    waiting.set()
    for thread in (first, second):
        thread.join()
    assert sorted(isinstance(one, errors.SourceError) for one in found) == [False, True]
    error = next(one for one in found if isinstance(one, errors.SourceError))
    assert str(sound) not in str(error)
    assert loader.batch([cut.times[8]]).metadata.time
    loader.close()


def test_a_failed_read_is_everyones_error_and_not_kept(fields: xr.Dataset, monkeypatch) -> None:
    cut, real = _cut(fields), frames.read
    loader = loading.Loader(cut, {})
    monkeypatch.setattr(frames, "read", lambda *a, **k: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        loader.frame(fields["time"].values[5])
    monkeypatch.setattr(frames, "read", real)
    assert loader.frame(fields["time"].values[5])


def test_order_is_kept_and_the_depth_grows_only_while_it_waits() -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def read(i: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.03)
        with lock:
            running[0] -= 1
        return i * i

    assert list(loading.prefetch(range(40), read, 2, 8)) == [(i, i * i) for i in range(40)]
    assert most[0] == 8
    most[0] = 0
    for _ in loading.prefetch(range(12), read, 2, 8):
        time.sleep(0.06)  # who computes longer than it takes to read is never waited for
    assert most[0] <= 3
    assert [r for _, r in loading.prefetch(range(5), read, 0)] == [0, 1, 4, 9, 16]
    asked = []
    some = loading.prefetch((asked.append(i) or i for i in itertools.count()), read, 2, 4)
    next(some)
    some.close()
    assert len(asked) < 10


class _Slow(WrapperStore):
    """A store that answers after 50 ms, and counts what it is asked for at the same time."""

    now = most = 0

    async def get(self, *args, **kwargs):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.05)
            return await self._store.get(*args, **kwargs)
        finally:
            self.now -= 1


@pytest.mark.parametrize(
    ("workers", "readers", "samples", "fewest", "most"),
    [(0, 0, 2, 1, 2), (2, 16, 8, 12, 32)],
    ids=["one by one", "ahead"],
)
def test_a_slow_store_is_asked_for_much_at_once(
    stored, workers: int, readers: int, samples: int, fewest: int, most: int
) -> None:
    """As many requests at the same time as there are readers, each of both states of a sample."""
    slow = _Slow(LocalStore(stored, read_only=True))
    ds = xr.open_dataset(slow, engine="zarr", consolidated=False, chunks=None)
    loader = loading.Loader(_cut(ds), {}, readers=readers, budget=1)
    slow.most = 0
    init = [[t] for t in loader.fields.times[1 : 2 * samples : 2]]
    assert len(list(loading.prefetch(init, loader.batch, workers, 16))) == samples
    loader.close()
    assert fewest <= slow.most <= most


def test_what_is_kept_stays_within_the_budget(fields: xr.Dataset) -> None:
    cut = _cut(fields)
    loader = loading.Loader(cut, {})
    loader.budget = 5 * loader.frame_bytes
    for t in cut.times:
        loader.frame(t)
    assert len(loader._kept) == 5
    assert loader._held == 5 * loader.frame_bytes


def test_an_infinite_value_is_found(fields: xr.Dataset) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        broken = fields.copy(deep=True)
        broken["t2m"].values[7, 3, 3] = bad
        with pytest.raises(xaurora.errors.MissingValuesError, match="t2m"):
            loading.Loader(_cut(broken), {}).frame(fields["time"].values[7])
    huge = fields.copy(deep=True)
    huge["msl"].values[7] = 3e38  # a sum of these overflows, and each is a number
    guards = loading.Guards("off")
    assert loading.Loader(_cut(huge), {}, guards=guards).frame(fields["time"].values[7])


def test_the_queries_of_the_decoder_are_the_same(fields: xr.Dataset, monkeypatch) -> None:
    """To 1e-6 of the largest, with gradients, at fewer operations."""
    from xaurora.fields.grid import lattice as grids
    from xaurora.model import placement

    monkeypatch.setattr(
        placement, "_ROWS", 6
    )  # two of the 32 patches: else there are too few of them to leave any out
    base = make_aurora()
    globe = grids.from_axes(fields["latitude"].values, fields["longitude"].values)
    example = fields.aurora.to_batch(model=base)
    found = []
    for inside in (False, True):
        base.zero_grad()
        with LiveBytes() as counter:
            if inside:
                with placement.on_grid(base, globe):
                    out = base(example)
            else:
                out = base(example)
            out.atmos_vars["t"].sum().backward()
        found.append(
            (
                out.atmos_vars["t"].detach(),
                {n: p.grad.clone() for n, p in base.named_parameters() if p.grad is not None},
                counter.flops,
            )
        )
    assert (found[0][0] - found[1][0]).abs().max() <= 1e-6 * found[0][0].abs().max()
    assert found[1][2] < found[0][2]
    assert found[0][1].keys() == found[1][1].keys()
    for name, want in found[0][1].items():
        assert (want - found[1][1][name]).abs().max() <= 1e-4 * want.abs().max() + 1e-8, name
    assert not any("forward" in m.__dict__ for m in base.modules())

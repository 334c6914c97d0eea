"""Measure throughput and memory, compared with stock microsoft-aurora in the same run.

    pytest benchmarks/ --benchmark-only

Where stock code can do the same work, it runs alternately with xaurora's, so that other load on the
machine affects both. ``ratio`` is the median of stock's seconds divided by the median of xaurora's.
Peaks are of the tensors: the most bytes that exist at once. ``of peak`` is the share of the
machine's own matrix product rate that a step reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
import torch
import xarray as xr
from cases import SMALL_HEAD, Size

import xaurora
from xaurora.fields import conventions, requirements
from xaurora.model import loader as loading
from xaurora.model.models import needs_of
from xaurora.training import latent_store

pytest.importorskip("pytest_benchmark")


def pair(
    benchmark: Any,
    ours: Callable[[], Any],
    stock: Callable[[], Any] | None,
    rounds: int,
    samples: int = 1,
    *,
    warm: bool = False,
    **info: Any,
) -> None:
    """Run ``stock`` before each round of ``ours``, and add the results to ``extra_info``.

    Both run once before, unless they are ``warm``.
    """
    beside: list[float] = []
    for run in (ours, stock):
        if run is not None and not warm:
            run()

    def setup() -> None:
        if stock is not None:
            began = time.perf_counter()
            stock()
            beside.append(time.perf_counter() - began)

    benchmark.pedantic(ours, setup=setup, rounds=rounds, iterations=1)
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(info, samples_a_second=samples / median)
    if beside:
        benchmark.extra_info.update(
            stock_seconds=statistics.median(beside), ratio=statistics.median(beside) / median
        )


def skip_slow_products(size: Size, precision: str) -> None:
    """Skip a case whose matrix products would take many times as long as in float32."""
    on_cpu = size.device.type == "cpu" and size.name != "smoke"
    if precision == "bf16" and on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no instructions for bfloat16")


@contextlib.contextmanager
def _timed_steps() -> Iterator[list[tuple[float, float]]]:
    """Note when each training step begins and ends."""
    from xaurora.training.loop import Trainer

    spans: list[tuple[float, float]] = []
    real = Trainer.take_step

    def timed(self: Any, *args: Any) -> Any:
        began = time.perf_counter()
        out = real(self, *args)
        spans.append((began, time.perf_counter()))
        return out

    Trainer.take_step = timed  # type: ignore[method-assign]
    try:
        yield spans
    finally:
        Trainer.take_step = real  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def data(size: Size) -> xr.Dataset:
    return cases.fields(size)


@pytest.fixture(scope="module")
def base(size: Size) -> Any:
    return cases.build(size).eval()


@pytest.fixture(scope="module")
def tuned(data: xr.Dataset, base: Any, tmp_path_factory: Any) -> Any:
    """Return a tuned model with an untrained head: its output does not matter here."""
    from xaurora.fields import requirements as needs
    from xaurora.model.aurora import AuroraWithHead
    from xaurora.model.tuned import TunedAurora

    known = needs.Needs("given")
    heads = cases.head_of(base)
    described = {
        "targets": {
            "tp": {
                "head": heads["tp"].config(),
                "statistics": {},
                "source": "tp",
                "long_name": "Total precipitation",
                "units": "m",
                "rain": True,
                "from_truth": False,
            }
        },
        "base": {"name": "given", "hash": "none", "saved": False},
        "inputs": {},
        "strategy": "frozen",
        "training": {},
    }
    return TunedAurora(AuroraWithHead(base, heads), known, described)


# --- forecasts ------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="forecast of 6 hours, one init time")
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("what", ["all variables", "t2m alone", "tp alone"])
def test_predict(
    benchmark: Any,
    size: Size,
    data: xr.Dataset,
    base: Any,
    tuned: Any,
    peak: float,
    stock_code: Any,
    pairs: int,
    what: str,
    precision: str,
) -> None:
    skip_slow_products(size, precision)
    when = data["time"].values[-1]
    names = {"all variables": None, "t2m alone": ["t2m"], "tp alone": ["tp"]}[what]
    model = tuned if what == "tp alone" else base
    before = base.autocast_backbone, base.autocast_dtype
    base.autocast_backbone, base.autocast_dtype = precision == "bf16", torch.bfloat16
    try:
        stock = stock_code.case(how="predict", precision=precision)
        # A given Aurora runs on its own device; a tuned model is moved to the GPU automatically.
        pair(
            benchmark,
            lambda: data.aurora.predict(
                "6h", model=model, time=when, variables=names, progress=False
            ),
            stock,
            pairs + 1 if precision == "32" else pairs,
        )
        if precision == "32" and names is None:
            flops = cases.forward_operations(
                base, data.aurora.to_batch(when, model=base).to(size.device)
            )
            benchmark.extra_info["of_matrix_peak"] = flops / benchmark.stats.stats.median / peak
    finally:
        base.autocast_backbone, base.autocast_dtype = before


@pytest.mark.benchmark(group="forecast of 6 hours, one init time")
def test_accessor_overhead(
    benchmark: Any, data: xr.Dataset, base: Any, stock_code: Any, pairs: int
) -> None:
    """Measure Dataset → Batch → Dataset as a share of the forward pass."""
    when = data["time"].values[-1]
    stock = stock_code.case(how="predict")
    pair(
        benchmark,
        lambda: data.aurora.from_batch(data.aurora.to_batch(when, model=base)),
        stock,
        pairs,
    )
    share = 1.0 / benchmark.extra_info["ratio"]
    benchmark.extra_info["note"] = f"{100 * share:.1f} % of the forward pass"


@pytest.mark.once
@pytest.mark.benchmark(group="many init times to a store, tiny model")
@pytest.mark.parametrize("batch_size", [1, 8])
def test_predict_to_a_store(benchmark: Any, tmp_path: Path, batch_size: int) -> None:
    ds = xaurora.synthetic(shape=(32, 64), times=34)
    made: list[int] = []

    def run() -> None:
        made.append(1)
        store = tmp_path / f"fc{len(made)}.zarr"
        ds.aurora.predict(
            "6h", model="tiny-pretrained", store=store, batch_size=batch_size, progress=False
        )

    pair(benchmark, run, None, 2, samples=32)


# --- training steps -------------------------------------------------------------------------------


@pytest.mark.benchmark(group="training step, batch 1")
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointing"])
@pytest.mark.parametrize("strategy", ["frozen", "latents", "lora", "full"])
def test_training_step(
    benchmark: Any,
    size: Size,
    data: xr.Dataset,
    stack: Any,
    peak: float,
    stock_code: Any,
    pairs: int,
    strategy: str,
    checkpointing: bool,
    precision: str,
) -> None:
    """Measure a training step with each strategy, beside stock code.

    With ``checkpointing``, stock code has upstream's policy, and xaurora its own.
    """
    if strategy in ("frozen", "latents") and checkpointing:
        pytest.skip("no activations are stored for a backward pass through the backbone")
    skip_slow_products(size, precision)
    how = "frozen" if strategy == "latents" else strategy
    stock = stock_code.case(how=how, checkpointing=checkpointing, precision=precision)
    ours = cases.own_step(size, data, strategy, checkpointing, precision, {}, stack)
    flops, mine = ours.counted()
    _, theirs = stock.counted()
    pair(benchmark, ours, stock, pairs if precision == "32" else 1, warm=True)
    info = benchmark.extra_info
    info.update(peak_bytes=mine, stock_peak_bytes=theirs)
    if precision == "32" and strategy != "latents":
        info["of_matrix_peak"] = flops / benchmark.stats.stats.median / peak


@pytest.mark.benchmark(group="head on stored latents, beside the backbone in each step")
@pytest.mark.parametrize("head", ["default", "small"])
@pytest.mark.parametrize("levels", ["surface", "all"])
def test_head_on_latents(
    benchmark: Any,
    size: Size,
    data: xr.Dataset,
    base: Any,
    stack: Any,
    stock_code: Any,
    tmp_path: Path,
    pairs: int,
    levels: str,
    head: str,
) -> None:
    """Measure a step whose sample is read from the store on disk.

    ``small`` is a two-layer MLP for each patch, 256 wide, with a censored normal law.
    """
    options: dict[str, Any] = {"latents": levels, **(SMALL_HEAD if head == "small" else {})}
    stock = stock_code.case(how="frozen", head=options)
    step, read = _reading_step(size, data, options, tmp_path, stack)
    with ThreadPoolExecutor(1) as pool:  # reads the next sample during a step, as in training
        waiting = [pool.submit(read)]

        def run() -> None:
            values = waiting.pop().result()
            waiting.append(pool.submit(read))
            step(values)

        for _ in range(5):
            run()
        pair(benchmark, run, None, 40)
        waiting.pop().result()
    times = []
    for _ in range(pairs + 1):
        began = time.perf_counter()
        stock()
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[1:])
    benchmark.extra_info.update(stock_seconds=seconds, ratio=seconds / benchmark.stats.stats.median)


def _reading_step(
    size: Size, data: xr.Dataset, options: dict[str, Any], folder: Path, stack: Any
) -> tuple[Any, Any]:
    """Return a training step of a head on latents, and a reader of a store of 100 samples."""
    from xaurora.model import rollout as stepping
    from xaurora.model.aurora import AuroraWithHead
    from xaurora.model.placement import on_grid
    from xaurora.training import losses

    base = cases.build(size).requires_grad_(False)
    module = AuroraWithHead(base, cases.head_of(base, **options))
    batch = data.aurora.to_batch(data["time"].values[-2], model=base)
    truth = cases.truth_of(data, batch)
    from xaurora.fields.grid import lattice as grids

    grid = grids.from_axes(np.asarray(batch.metadata.lat), np.asarray(batch.metadata.lon))
    stack.enter_context(on_grid(module, grid))
    values = module.latents(stepping.prepare(module, batch))[0].to(torch.bfloat16).cpu()
    values = values[: 1 if options["latents"] == "surface" else None].contiguous()
    count = 100 if values.numel() < 1e8 else 4
    store = latent_store.LatentStore(folder / "l.zarr", tuple(values.shape), "bfloat16", {}, 1e12)
    for i in range(count):
        store.write(i, values, bytes(16))
    rng = np.random.default_rng(0)
    moving = list(module.head.parameters())
    optimizer = torch.optim.AdamW(moving, lr=1e-5, fused=True)
    domain = losses.Domain.of(grid, (slice(None), slice(None)), size.device)
    domains = losses.Domains(domain, domain)

    def step(one: torch.Tensor) -> None:
        found = module(None, latents=one[None].to(size.device).float())
        loss, _ = losses.step_loss(module, found, truth, domains, 0.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        cases.sync(size.device)

    return step, lambda: store.read(int(rng.integers(count)))


@pytest.mark.once
@pytest.mark.benchmark(group="finetune as a whole, frozen, AuroraSmall, default head")
def test_an_epoch(benchmark: Any, size: Size, base: Any, stock_code: Any, tmp_path: Path) -> None:
    """Measure the first epoch of ``finetune``, which builds its store, and later epochs.

    Both are compared with as many stock steps.
    """
    ds = cases.fields(size, times=14)
    stock = stock_code.case(how="frozen")
    options: dict[str, Any] = {"model": base, "epochs": 4, "validations": 1, "progress": False}
    with _timed_steps() as spans:
        benchmark.pedantic(
            lambda: ds.aurora.finetune("tp", out=tmp_path / "run", **options),
            rounds=1,
            iterations=1,
        )
    stamps = [began for began, _ in spans]
    count = len(stamps) // 4
    first = stamps[count] - stamps[0]
    later = (stamps[-1] - stamps[2 * count]) / (len(stamps) - 1 - 2 * count) * count
    times = []
    for _ in range(4):
        began = time.perf_counter()
        stock()
        times.append(time.perf_counter() - began)
    epoch = statistics.median(times[1:]) * count
    benchmark.extra_info.update(
        stock_seconds=epoch,
        ratio=epoch / first,
        samples_a_second=count / first,
        later_ratio=epoch / later,
        note=(
            f"first epoch of {count}: {first:.3g} s, later ones {later:.2g} s ({epoch / later:.0f}"
            " times stock's speed)"
        ),
    )


@pytest.mark.once
@pytest.mark.benchmark(group="the loop around a step, tiny model, 32 × 64")
@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("all", {"strategy": "full", "batch_size": 4, "steps": 12}),
        (["all", "tp"], {"strategy": "full", "batch_size": 4, "steps": 12}),
        ("tp", {"strategy": "frozen", "batch_size": 8, "steps": 40}),
    ],
    ids=["all variables, batch 4", "and tp, batch 4", "tp on latents, batch 8"],
)
def test_loop(benchmark: Any, tmp_path: Path, target: Any, options: dict[str, Any]) -> None:
    """Measure a step of ``finetune`` from one to the next; stock is a bare loop over one batch."""
    ds = xaurora.synthetic(shape=(32, 64), times=40)
    options = {"model": "tiny", "validations": 1, "progress": False, **options}
    with _timed_steps() as spans:
        tuned = benchmark.pedantic(
            lambda: ds.aurora.finetune(target, out=tmp_path / "run", **options),
            rounds=1,
            iterations=1,
        )
    ours = statistics.median(np.diff([began for began, _ in spans])[len(spans) // 4 :])
    note = f"{1e3 * ours:.0f} ms a step"
    if options["strategy"] == "full":
        stock = _bare_loop(tuned.model.base, ds, options["batch_size"])
        benchmark.extra_info["ratio"] = stock / ours
        note += f", stock {1e3 * stock:.0f} ms"
    benchmark.extra_info["note"] = note


def _bare_loop(base: Any, ds: xr.Dataset, samples: int) -> float:
    """Return the seconds of a step on Aurora's own variables, written with upstream's code."""
    base = base.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-5)
    batch = ds.aurora.to_batch(ds["time"].values[2 : 2 + samples], model=base)
    given = {**batch.surf_vars, **batch.atmos_vars}
    times = []
    for _ in range(8):
        began = time.perf_counter()
        said = base(batch)
        found = {**said.surf_vars, **said.atmos_vars}
        loss: Any = sum(
            (v[:, 0] - given[n][:, -1]).abs().mean() / given[n].std() for n, v in found.items()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


# --- reading --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: Any) -> Path:
    """Write fields of the default size to a training store."""
    path = tmp_path_factory.mktemp("stored") / "training.zarr"
    cases.fields(cases.SIZES["default"], times=40).aurora.prepare(path, progress=False)
    return path


def _arrays(path: Path) -> list[Any]:
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    return [group[n] for n in ("t2m", "u10", "v10", "msl", "t", "u", "v", "q", "z")]


def _cut(ds: xr.Dataset) -> Any:
    found = conventions.standardise(ds)
    return requirements.select_and_crop(found, needs_of("small", found))[0]


@pytest.mark.once
@pytest.mark.benchmark(group="loader, 96 × 160, 8.7 MB a sample")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_loader(benchmark: Any, stored: Path, threads: int) -> None:
    """Load all frames once; stock is plain zarr with as many threads."""
    arrays, cut = _arrays(stored), _cut(xaurora.open(stored))

    def ours() -> None:
        loader = loading.Loader(cut, {}, most=3)
        for _ in loading.prefetch([[t] for t in cut.times[1::2]], loader.batch, threads):
            pass
        loader.close()

    def plain() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda i: [a[i] for a in arrays], range(40)))

    pair(benchmark, ours, plain, 6, samples=20)
    size = sum(a.nbytes for a in arrays)
    benchmark.extra_info["note"] = f"{size / benchmark.stats.stats.median / 1e6:.0f} MB/s"


@pytest.mark.once
@pytest.mark.benchmark(group="loader, 96 × 160, 8.7 MB a sample")
def test_one_sample(benchmark: Any, stored: Path) -> None:
    """Load one Batch; stock reads the same two frames with plain zarr."""
    arrays, cut = _arrays(stored), _cut(xaurora.open(stored))
    times = iter(list(range(1, 40, 2)) * 9)
    again = iter(list(range(1, 40, 2)) * 9)
    loader = loading.Loader(cut, {}, most=3)

    def plain() -> None:
        i = next(again)
        for j in (i - 1, i):
            _ = [a[j] for a in arrays]

    pair(benchmark, lambda: loader.batch([cut.times[next(times)]]), plain, 30)


@pytest.mark.once
@pytest.mark.benchmark(group="loader, 96 × 160, 8.7 MB a sample")
def test_first_batch(benchmark: Any, stored: Path) -> None:
    """Measure the time from an open store to the first Batch."""
    ds = xaurora.open(stored)

    def run() -> None:
        cut = _cut(ds)
        loading.Loader(cut, {}).batch([cut.times[5]])

    pair(benchmark, run, None, 5)


@pytest.mark.once
@pytest.mark.benchmark(group="training from a store that answers after 50 ms")
def test_slow_store(benchmark: Any, tmp_path: Path) -> None:
    """Measure the share of time spent in steps, once 20 of 50 have run.

    The model is small, so that a step takes about 50 ms.
    """
    from aurora import Aurora
    from zarr.storage import LocalStore, WrapperStore

    class Slow(WrapperStore):
        async def get(self, *args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0.05)
            return await self._store.get(*args, **kwargs)

    xaurora.synthetic(shape=(32, 64), times=80).aurora.prepare(
        tmp_path / "a.zarr", model="tiny-pretrained", progress=False
    )
    store = Slow(LocalStore(tmp_path / "a.zarr", read_only=True))
    ds = xr.open_dataset(store, engine="zarr", consolidated=False, chunks=None)
    torch.manual_seed(0)
    base = Aurora(
        encoder_depths=(2, 2, 2),
        decoder_depths=(2, 2, 2),
        encoder_num_heads=(2, 4, 8),
        decoder_num_heads=(8, 4, 2),
        embed_dim=48,
        num_heads=2,
        use_lora=False,
    )
    options: dict[str, Any] = {"model": base, "strategy": "full", "steps": 50, "validations": 1}
    options |= {"checkpoint_every": 999, "progress": False}
    with _timed_steps() as spans:
        benchmark.pedantic(
            lambda: ds.aurora.finetune("tp", out=tmp_path / "run", **options),
            rounds=1,
            iterations=1,
        )
    warm = np.array(spans[20:])
    busy = float((warm[:-1, 1] - warm[:-1, 0]).sum() / (warm[-1, 0] - warm[0, 0]))
    benchmark.extra_info.update(
        busy=busy,
        note=(
            f"busy {100 * busy:.1f} % of the time, {1e3 * (warm[:, 1] - warm[:, 0]).mean():.0f} ms"
            " a step"
        ),
    )


# --- statistics, evaluation, growth ---------------------------------------------------------------


@pytest.mark.once
@pytest.mark.benchmark(group="statistics and evaluation")
def test_statistics(benchmark: Any, stored: Path) -> None:
    ds = xaurora.open(stored)
    pair(
        benchmark,
        lambda: ds.aurora.statistics(["t2m", "tp", "t"], progress=False),
        None,
        2,
        samples=40,
    )


@pytest.mark.once
@pytest.mark.benchmark(group="statistics and evaluation")
def test_evaluate(benchmark: Any, stored: Path) -> None:
    ds = xaurora.open(stored)[["t2m", "msl", "tp"]].load()
    forecast = xaurora.persistence(ds, leads=["6h", "12h"])
    pair(benchmark, lambda: forecast.aurora.evaluate(ds, progress=False), None, 2, samples=38)


@pytest.mark.once
@pytest.mark.benchmark(group="growth with the grid, AuroraSmall, forecast of 6 hours")
@pytest.mark.parametrize("shape", [(48, 80), (96, 160), (144, 240)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_grid_size(
    benchmark: Any, size: Size, base: Any, stock_code: Any, pairs: int, shape: tuple[int, int]
) -> None:
    ds = cases.fields(size, times=2, shape=shape)
    stock = stock_code.case(how="predict", shape=shape)
    rounds = max(pairs - 1, 1)
    pair(benchmark, lambda: ds.aurora.predict("6h", model=base, progress=False), stock, rounds)
    points = shape[0] * shape[1]
    benchmark.extra_info["note"] = (
        f"{1e6 * benchmark.stats.stats.median / points:.0f} µs a grid point"
    )

"""PyTorch and JAX beside stock PyTorch: forecasts and training steps of AuroraSmall.

    python benchmarks/engines.py            # writes benchmarks/reports/engines.json
    python benchmarks/engines.py --size smoke --rounds 2

The three run in turn in one process, so that other load affects all alike. Compiling is timed
apart, without the cache on disk. Peaks are those of a process of its own for each case.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import cases
import jax
import numpy as np
import torch
from cases import LEVELS, SIZES, Size

from xaurora.fields.grid import lattice
from xaurora.jax import precision
from xaurora.jax import training as engine
from xaurora.jax.encodings import time_encodings
from xaurora.jax.module import JaxModule
from xaurora.jax.weights import to_jax
from xaurora.model import adapters, rollout, strategies
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.normalisation import atmos_statistics, surface_statistics
from xaurora.model.options import resolve_strategy
from xaurora.training import losses, optimisation
from xaurora.utils import provenance

REPORT = Path(__file__).parent / "reports" / "engines.json"
CASES = ("forward", "full", "lora", "latents")
TITLES = {
    "forward": "forward pass",
    "full": "full training step",
    "lora": "LoRA training step",
    "latents": "head on stored latents",
}


def jax_module(size: Size, ds: Any, how: str) -> tuple[JaxModule, Any, list[str]]:
    """Return the module in JAX, a prepared batch, and the names of the parameters that train."""
    base = cases.build(size)
    options = resolve_strategy({"latents": "frozen", "forward": "full"}.get(how, how))
    adapter = adapters.install(base, options, 0) if how == "lora" else None
    module = AuroraWithHead(base, cases.head_of(base), None, adapter)
    schedule = strategies.Schedule(trains_base_outputs=how in ("full", "lora"))
    groups = strategies.apply(module, options, schedule)
    batch = ds.aurora.to_batch(ds["time"].values[-2], model=base)
    grid = lattice.from_axes(np.asarray(batch.metadata.lat), np.asarray(batch.metadata.lon))
    in_jax = JaxModule(module, grid, LEVELS)
    known = {id(p): name for name, p in in_jax.named_parameters()}
    return (
        in_jax,
        rollout.prepare(in_jax, batch),
        [known[id(p)] for g in groups for p in g["params"]],
    )


def jax_case(size: Size, ds: Any, how: str) -> Callable[[], None]:
    """Return a forward pass or a training step in JAX."""
    module, batch, names = jax_module(size, ds, how)
    base = module.base
    frames, static, place, step = module.inputs_of(batch)
    if how == "forward":
        run = jax.jit(lambda net, *args: net.base(*args))

        def forward() -> None:
            with precision.exact():
                jax.block_until_ready(run(module.net, frames, static, place, step))

        return forward
    truth = cases.truth_of(ds, batch)
    area = np.asarray(losses.Domain.of(module.grid, (slice(None),) * 2, torch.device("cpu")).area)
    weight = np.broadcast_to(area, module.grid.shape).astype(np.float32)
    state: Any = truth.state
    truths = jax.tree.map(
        lambda v: np.asarray(v)[None],
        engine.Truth(
            {"tp": truth.targets["tp"].numpy()},
            {"tp": weight[None]},
            {n: v.numpy() for n, v in state["surface"].items()},
            {n: v.numpy() for n, v in state["atmos"].items()},
            np.ones(1, np.float32),
        ),
    )
    scales = engine.Scales(
        {n: np.float32(surface_statistics(base, n)[1]) for n in base.surf_vars},
        {
            n: np.array([s for _, s in atmos_statistics(base, n, LEVELS)], np.float32)[
                :, None, None
            ]
            for n in base.atmos_vars
        },
        {
            kind: {n: np.float32(losses.base_weight(kind, n)) for n in kept}
            for kind, kept in (("surface", base.surf_vars), ("atmos", base.atmos_vars))
        },
        weight,
    )
    task = engine.Task(module.form(), base_loss=1.0 if how in ("full", "lora") else 0.0)
    place = place._replace(time=np.asarray(time_encodings(base, batch.metadata.time)[1])[None])
    inputs: tuple[Any, ...] = (frames, static, place, truths, scales)
    loss: Any = engine.rollout_loss
    if how == "latents":
        kept = module.latents(batch).to(torch.bfloat16)
        inputs, loss = (to_jax(kept.float()), truths, scales), engine.latents_loss
    trained, held = engine.split(module.net, module.names, set(names))
    if how == "latents":
        held = engine.heads_of(held)
    optimizer = engine.Optimizer(1.0, 0.01, optimisation.BETAS)
    rates = jax.tree.map(lambda _: np.float32(1e-5), trained)
    now: list[Any] = [trained, optimizer.start(trained)]

    def train() -> None:
        with precision.exact():
            found, _, _ = engine.gradient(
                now[0], held, inputs, np.float32(1), None, task=task, loss=loss
            )
            now[:] = optimizer.update(now[0], now[1], found, rates)
            jax.block_until_ready(now[0])

    return train


def torch_case(size: Size, ds: Any, how: str, stack: contextlib.ExitStack) -> Callable[[], None]:
    """Return the same with xaurora on PyTorch."""
    if how != "forward":
        return cases.own_step(size, ds, how, False, "32", {}, stack)
    base = cases.build(size).eval()
    when = ds["time"].values[-2]
    return lambda: ds.aurora.predict("6h", model=base, time=when, progress=False)


def stock_case(size: Size, ds: Any, how: str) -> Callable[[], None]:
    """Return the same with microsoft-aurora alone; a head on latents has to run the backbone."""
    if how != "forward":
        return cases.stock_step(size, ds, "frozen" if how == "latents" else how, False, "32", {})
    base = cases.build(size).eval()
    return cases.stock_forecast(base, ds.aurora.to_batch(ds["time"].values[-2], model=base))


def peak(size: Size, name: str, how: str) -> int:
    """Return the peak memory of one case in a process of its own, bytes."""
    arguments = [sys.executable, __file__, "--size", size.name, "--peak", name, how]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def made(size: Size, name: str, how: str, stack: contextlib.ExitStack) -> Callable[[], None]:
    """Return a case of one of the three."""
    ds = cases.fields(size)
    if name == "stock":
        return stock_case(size, ds, how)
    if name == "torch":
        return torch_case(size, ds, how, stack)
    return jax_case(size, ds, how)


def main() -> None:
    """Time all cases and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="default", choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = SIZES[given.size]
    torch.set_num_threads(os.cpu_count() or 1)
    if given.peak:
        with contextlib.ExitStack() as stack:
            run = made(size, *given.peak, stack)
            gc.collect()
            cases.resident(reset=True)
            for _ in range(2):
                run()
        print(cases.resident())
        return
    rows = []
    for how in given.cases:
        with contextlib.ExitStack() as stack:
            runs = {name: made(size, name, how, stack) for name in ("stock", "torch", "jax")}
            times: dict[str, list[float]] = {name: [] for name in runs}
            for name in ("stock", "torch"):
                runs[name]()
            began = time.perf_counter()
            runs["jax"]()
            first = time.perf_counter() - began
            runs["jax"]()
            for _ in range(given.rounds):
                for name, run in runs.items():
                    began = time.perf_counter()
                    run()
                    times[name].append(time.perf_counter() - began)
        seconds = {name: statistics.median(v) for name, v in times.items()}
        row = {
            "case": TITLES[how],
            "seconds": {n: round(v, 3) for n, v in seconds.items()},
            "jax_over_stock": round(seconds["jax"] / seconds["stock"], 2),
            "jax_over_torch": round(seconds["jax"] / seconds["torch"], 2),
            "compile_s": round(first - seconds["jax"], 1),
        }
        del runs
        gc.collect()
        row["peak_gb"] = {n: round(peak(size, n, how) / 1e9, 2) for n in ("stock", "torch", "jax")}
        rows.append(row)
        print(json.dumps(row), flush=True)
    report = {
        "size": f"{size.model.__name__}, {size.shape[0]} × {size.shape[1]}, 13 levels, float32",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].platform}",
        "versions": {**provenance.versions(), "jax": jax.__version__},
        "cases": rows,
    }
    if size.name == "default":
        REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

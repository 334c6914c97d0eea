"""Forecasts and training steps at 0.25° on a GPU: peak memory and time, beside stock Aurora.

    python benchmarks/cards.py    # writes benchmarks/reports/cards-<device>.json

Weights are random with active modulation, precision is bf16 in the backbone (autocast) unless said,
data are random ERA5-like fields in memory. Steps run as ``finetune`` runs them: the same optimiser,
on the device or the host, and the same contexts. Peaks are ``max_memory_allocated`` after set-up; a
time is that of the fastest step after the first.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import numpy as np
import torch
import xarray as xr
from cases import SIZES, Size

from xaurora.fields.grid import lattice
from xaurora.model import adapters, execution, placement, rollout, strategies
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.options import resolve_strategy
from xaurora.model.tiny import randomise_modulation
from xaurora.training import losses, parallel
from xaurora.training.host_optimisation import HostOptimisation
from xaurora.training.losses import Domain, Domains
from xaurora.training.optimisation import Optimisation
from xaurora.training.options import FinetuneOptions
from xaurora.utils import provenance

REPORTS = Path(__file__).parent / "reports"


@dataclass(frozen=True)
class Case:
    """A forecast or a training step."""

    size: str
    how: str  # predict, latents, lora, full
    stock: bool = False
    precision: str = "bf16"
    checkpointing: bool | str = False
    optimizer_state: str = "device"
    compile: bool = False

    def __str__(self) -> str:
        return " ".join(f"{v}" for v in self.__dict__.values())


def _predicts(size: str) -> list[Case]:
    return [
        Case(size, "predict", stock=True),
        Case(size, "predict"),
        Case(size, "predict", precision="32"),
        Case(size, "predict", precision="tf32"),
        Case(size, "predict", precision="bf16-tf32"),
        Case(size, "predict", precision="bf16-all"),
        Case(size, "predict", compile=True),
        Case(size, "predict", precision="bf16-all", compile=True),
    ]


def _steps(size: str, how: str) -> list[Case]:
    found = [
        Case(size, how, stock=True, checkpointing=True),
        Case(size, how, checkpointing=True),
        Case(size, how, checkpointing="offload"),
        Case(size, how, checkpointing=True, compile=True),
        Case(size, how, checkpointing=True, precision="bf16-all", compile=True),
    ]
    if how == "full":
        found += [
            Case(size, how, checkpointing=True, optimizer_state="host"),
            Case(size, how, checkpointing="offload", optimizer_state="host"),
        ]
    return found


CASES = [
    *_predicts("base-0.25"),
    *_steps("base-0.25", "lora"),
    *_steps("base-0.25", "full"),
    Case("base-0.25", "latents"),
    *_predicts("small-0.25"),
    *_steps("small-0.25", "full"),
    Case("small-0.25", "full"),
    Case("small-0.25", "full", stock=True),
]
"""All cases, from the one that matters most."""


def build(size: Size, *, lora: bool = False) -> Any:
    """Build the model on the device, with random weights and active modulation."""
    torch.manual_seed(0)
    with torch.device(size.device):
        base = size.model(use_lora=lora)
    randomise_modulation(base)
    return base


def own_predict(case: Case, size: Size, ds: xr.Dataset) -> Iterator[Callable[[], None]]:
    """Yield a forecast of one step as ``predict`` runs it, without writing it."""
    base = build(size).eval()
    execution.set_precision(base, case.precision, size.device)
    module = AuroraWithHead(base)
    batch = ds.aurora.to_batch(ds["time"].values[-1], model=base)
    with contextlib.ExitStack() as stack:
        base.cpu()
        stack.enter_context(execution.reduced_weights(base))
        stack.enter_context(execution.moved(module, size.device))
        batch = rollout.prepare(module, batch.to(size.device))
        stack.enter_context(execution.tf32(case.precision))
        stack.enter_context(placement.on_grid(module, _grid(batch)))
        if case.compile:
            stack.enter_context(execution.compiled(base))

        def run() -> None:
            with torch.inference_mode():
                for _ in rollout.steps(module, batch, 1):
                    pass
            cases.sync(size.device)

        yield run


def _grid(batch: Any) -> lattice.Grid:
    meta = batch.metadata
    return lattice.from_axes(np.asarray(meta.lat.cpu()), np.asarray(meta.lon.cpu()))


def own_step(case: Case, size: Size, ds: xr.Dataset) -> Iterator[Callable[[], None]]:
    """Yield a training step as ``finetune`` runs it."""
    how = resolve_strategy("frozen" if case.how == "latents" else case.how)
    base = build(size)
    base.cpu()
    adapter = adapters.install(base, how, 0) if how.name == "lora" else None
    head = cases.head_of(base)
    execution.set_precision(base, case.precision, size.device)
    module = AuroraWithHead(base, head, None, adapter)
    scores_base = how.name != "frozen"
    groups = strategies.apply(module, how, strategies.Schedule(trains_base_outputs=scores_base))
    trained = [p for g in groups for p in g["params"]]
    options = FinetuneOptions(
        target="tp",
        strategy=how,
        steps=10,
        optimizer_state=case.optimizer_state,
        precision=case.precision,
    )
    on_host = case.optimizer_state == "host"
    batch = ds.aurora.to_batch(ds["time"].values[-2], model=base)
    truth = cases.truth_of(ds, batch)
    domain = Domain.of(_grid(batch), (slice(None), slice(None)), size.device)
    fabric = parallel.launch(options)
    with contextlib.ExitStack() as stack:
        twin = copy.deepcopy(module) if on_host else None
        stack.enter_context(execution.reduced_weights(base, keep=() if on_host else trained))
        stack.enter_context(placement.on_grid(module, _grid(batch)))
        stack.enter_context(execution.without_cudnn_attention())
        stack.enter_context(execution.tf32(case.precision))
        if case.compile:
            stack.enter_context(execution.compiled(base))
        if case.checkpointing:
            stack.enter_context(
                execution.activation_checkpointing(base, offload=case.checkpointing == "offload")
            )
        optimisation: Any = (
            HostOptimisation(fabric, module, twin, groups, options, total=10)
            if twin is not None
            else Optimisation(fabric, module, groups, options, total=10, sharded=False)
        )
        module.train(scores_base)
        batch = rollout.prepare(module, batch.to(size.device))
        kept = None
        if case.how == "latents":
            kept = module.latents(batch).to(torch.bfloat16).cpu()
            base.backbone.cpu()

        def run(number: list[int] = [0]) -> None:  # noqa: B006 - counts its calls
            if kept is not None:
                step = optimisation.runner(None, latents=kept.to(size.device).float())
            else:
                step = next(iter(rollout.steps(module, batch, 1, run=optimisation.runner)))
            loss, _ = losses.step_loss(
                module, step, truth, Domains(domain, domain), 1.0 if scores_base else 0.0
            )
            del step
            optimisation.backward(loss)
            optimisation.clip()
            optimisation.step(number[0])
            number[0] += 1
            cases.sync(size.device)

        yield run


def measure(case: Case, ds: xr.Dataset, steps: int) -> dict[str, Any]:
    """Run a case and return its row of the report."""
    size = SIZES[case.size]
    if case.stock and case.how == "predict":
        base = build(size).eval()
        execution.set_precision(base, case.precision, size.device)
        batch = ds.aurora.to_batch(ds["time"].values[-1], model=base).to(size.device)
        runs: Any = iter([cases.stock_forecast(base, batch)])
    elif case.stock:
        runs = iter(
            [cases.stock_step(size, ds, case.how, bool(case.checkpointing), case.precision, {})]
        )
    elif case.how == "predict":
        runs = own_predict(case, size, ds)
    else:
        runs = own_step(case, size, ds)
    row = {**case.__dict__}
    for run in runs:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        row |= {
            "first_s": round(seconds[0], 3),
            "seconds": round(min(seconds[1:]), 3),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
            "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        }
        del run
    return row


def main() -> None:
    """Run the cases and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["base-0.25", "small-0.25"])
    parser.add_argument("--hows", nargs="+", default=["predict", "latents", "lora", "full"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", nargs="+", type=int, help="numbers of the cases, from 0")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after these")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    began = time.perf_counter()
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "CPU"
    path = arguments.out or REPORTS / f"cards-{device.lower().replace(' ', '-')}.json"
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {device}",
        "versions": provenance.versions(),
        "rows": [],
    }
    data: dict[tuple[int, int], xr.Dataset] = {}
    for number, case in enumerate(CASES):
        if case.size not in arguments.sizes or case.how not in arguments.hows:
            continue
        if arguments.only is not None and number not in arguments.only:
            continue
        if time.perf_counter() - began > arguments.seconds:
            break
        shape = SIZES[case.size].shape
        ds = data.setdefault(shape, cases.fields(SIZES[case.size], times=3))
        try:
            row = measure(case, ds, arguments.steps)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            traceback.print_exc()
            row = {**case.__dict__, "error": f"{type(error).__name__}: {str(error)[:200]}"}
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
        report["rows"].append(row)
        print(f"{time.perf_counter() - began:.0f} s", row, flush=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

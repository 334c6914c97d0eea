"""Check on a GPU what a CPU cannot show: memory beside the estimate, precision, compilation.

    python benchmarks/gpu.py    # writes benchmarks/reports/gpu-<name of the GPU>.json

Weights are random. Memory is the largest that Torch allocated for tensors in three steps of
``finetune``, on a global 0.25° grid with 13 levels. Each part is measured even if another fails,
and what failed is in the report.
"""

from __future__ import annotations

import gc
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import numpy as np
import torch
import xarray as xr

import xaurora
from xaurora.utils import provenance

ROOT = Path(__file__).resolve().parents[1]
MEMORY = [
    ("small-0.25", {"strategy": "frozen", "precision": "bf16"}),
    ("small-0.25", {"strategy": "lora", "precision": "bf16"}),
    ("small-0.25", {"strategy": "full", "precision": "bf16"}),
    ("base-0.25", {"strategy": "frozen", "precision": "bf16"}),
    ("base-0.25", {"strategy": "lora", "precision": "bf16"}),
    ("base-0.25", {"strategy": "full", "precision": "bf16"}),
]


def memory(ds: xr.Dataset, size: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train three steps, and return measured and estimated bytes and the seconds of a step."""
    run = {"steps": 3, "validations": 1, "latents": False, "progress": False, **options}
    model = cases.build(cases.SIZES[size]).to("cpu")
    estimated = ds.aurora.estimate("tp", model=model, **run)
    _clear()
    stamps = []
    from xaurora.training import loop

    real = loop.Trainer.take_step

    def timed(self: Any, *args: Any) -> Any:
        began = time.perf_counter()
        entry = real(self, *args)
        torch.cuda.synchronize()
        stamps.append(time.perf_counter() - began)
        return entry

    loop.Trainer.take_step = timed  # type: ignore[method-assign]
    try:
        ds.aurora.finetune("tp", model=model, out=folder / f"{size}-{options}", **run)
    finally:
        loop.Trainer.take_step = real  # type: ignore[method-assign]
    peak = torch.cuda.max_memory_allocated()
    return {
        "measured": peak,
        "estimated": estimated.memory,
        "ratio": round(estimated.memory / peak, 3),
        "seconds": round(float(np.median(stamps[1:])), 3),
        "parts": estimated.parts,
    }


def forecast(ds: xr.Dataset, size: str, **options: Any) -> tuple[xr.Dataset, dict[str, Any]]:
    """Forecast 24 hours twice, and return the second with its seconds and memory."""
    model = cases.build(cases.SIZES[size]).eval()
    when = ds["time"].values[-1]
    seconds = []
    for _ in range(2):
        _clear()
        began = time.perf_counter()
        out = ds.aurora.predict("24h", model=model, time=when, progress=False, **options)
        seconds.append(round(time.perf_counter() - began, 2))
    return out, {"seconds": seconds, "peak": torch.cuda.max_memory_allocated()}


def forecasts(ds: xr.Dataset, size: str) -> list[dict[str, Any]]:
    """Compare forecasts in other precisions, and compiled ones, with the plain one."""
    plain, row = forecast(ds, size)
    rows = [{"options": {}, **row}]
    for options in ({"precision": "bf16"}, {"compile": True}):
        try:
            other, row = forecast(ds, size, **options)
        except Exception as error:  # the report says so
            rows.append({"options": options, "error": f"{type(error).__name__}: {error}"[:500]})
            continue
        apart = {
            str(n): float(np.abs(other[n] - plain[n]).max() / np.abs(plain[n]).max()) for n in plain
        }
        rows.append({"options": options, **row, "largest difference": apart})
    return rows


def precision() -> list[dict[str, Any]]:
    """Train a head and a LoRA of the tiny model in each precision, and return their CRPS."""
    ds = xaurora.synthetic(shape=(32, 64), times=400)
    rows = []
    for strategy in ("frozen", "lora", "full"):
        for how in ("32", "bf16", "fp16"):
            with tempfile.TemporaryDirectory() as folder:
                tuned = ds.aurora.finetune(
                    "tp",
                    model="tiny-pretrained",
                    strategy=strategy,
                    precision=how,
                    steps=300,
                    batch_size=4,
                    out=Path(folder) / "run",
                    progress=False,
                )
            scores = {k: v for k, v in tuned.config["scores"].items() if "crps" in k}
            rows.append({"strategy": strategy, "precision": how, **scores})
    return rows


def _clear() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Measure every part and write the report."""
    name = torch.cuda.get_device_name()
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {name}",
        "versions": provenance.versions(),
        "memory": [],
    }
    path = ROOT / "benchmarks" / "reports" / f"gpu-{name.lower().replace(' ', '-')}.json"
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
    ds = cases.fields(cases.SIZES["small-0.25"], times=8)

    def add(part: str, row: dict[str, Any], made: Callable[[], Any]) -> None:
        began = time.perf_counter()
        try:
            found = made()
        except Exception as error:  # the report says so, and the other parts are measured
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        rows = found if isinstance(found, list) else [{**row, **found}]
        report.setdefault(part, []).extend(rows)
        print(part, round(time.perf_counter() - began), "s", rows, flush=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
        _clear()

    add("precision", {}, precision)
    with tempfile.TemporaryDirectory() as folder:
        for size, options in MEMORY:
            row = {"size": size, **options}
            add("memory", row, lambda s=size, o=options: memory(ds, s, o, Path(folder)))
    for size in ("small-0.25", "base-0.25"):
        add(f"forecasts {size}", {}, lambda s=size: forecasts(ds, s))


if __name__ == "__main__":
    main()

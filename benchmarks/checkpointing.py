"""Compare xaurora's activation checkpointing, which recomputes once, with upstream's.

    python benchmarks/checkpointing.py    # writes benchmarks/reports/checkpointing.json

AuroraSmall, 96 × 160, a full training step, five interleaved rounds. Times are of whole steps
(forward, backward, AdamW) in one process. In every round the variants run one after the other, so
that other load on the machine affects all of them equally. Peaks are bytes of tensors
(``max_memory_allocated`` on a GPU), which do not vary between runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aurora import AuroraSmallPretrained, Batch

import xaurora
from xaurora.fields.grid import lattice
from xaurora.model import execution, placement
from xaurora.model.memory import LiveBytes
from xaurora.model.tiny import randomise_modulation
from xaurora.utils import provenance

ROOT = Path(__file__).resolve().parents[1]
HOWS = ("none", "stock", "once")


def build(stock: bool, device: torch.device) -> Any:
    """Build AuroraSmall with the same random weights and active modulation each time."""
    torch.manual_seed(0)
    base = AuroraSmallPretrained()
    randomise_modulation(base)
    if stock:
        base.configure_activation_checkpointing()
    return base.to(device).train()


def step(base: Any, batch: Batch, optimizer: Any, how: str) -> float:
    """Run one training step and return its loss."""
    with contextlib.ExitStack() as stack:
        if how == "once":
            meta = batch.metadata
            grid = lattice.from_axes(np.asarray(meta.lat.cpu()), np.asarray(meta.lon.cpu()))
            stack.enter_context(placement.on_grid(base, grid))
            stack.enter_context(execution.activation_checkpointing(base))
        out = base(batch)
        parts = (*out.surf_vars.values(), *out.atmos_vars.values())
        loss: Any = sum(v.abs().mean() / v.detach().abs().mean() for v in parts)
        loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def gradients(base: Any) -> dict[str, torch.Tensor]:
    """Return the gradients by upstream's own names: its checkpointing renames parameters."""
    found = {
        n.replace("_checkpoint_wrapped_module.", ""): p.grad.clone()
        for n, p in base.named_parameters()
        if p.grad is not None
    }
    base.zero_grad(set_to_none=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", type=int, nargs=2, default=(96, 160))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ds = xaurora.synthetic(
        shape=tuple(options.shape), times=3, levels=(300.0, 500.0, 700.0, 850.0, 1000.0)
    )
    bases = {"stock": build(True, device), "once": build(False, device)}
    bases["none"] = bases["once"]
    batch = ds.aurora.to_batch(model=bases["once"]).to(device)
    peaks, found = {}, {}
    for how in HOWS:
        counter = LiveBytes()
        for p in bases[how].parameters():
            counter.track(p)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with counter:
            step(bases[how], batch, None, how)
        peaks[how] = torch.cuda.max_memory_allocated() if device.type == "cuda" else counter.peak
        found[how] = gradients(bases[how])
    worst = max(
        float((found[how][n] - g).abs().max() / g.abs().max().clamp(min=1e-30))
        for how in ("once",)
        for n, g in found["none"].items()
    )
    found.clear()
    optimizers = {k: torch.optim.AdamW(bases[k].parameters(), lr=1e-6) for k in ("stock", "once")}
    optimizers["none"] = optimizers["once"]
    seconds: dict[str, list[float]] = {how: [] for how in HOWS}
    for round_ in range(options.rounds + 1):  # the first round is a warm-up
        for how in HOWS:
            began = time.perf_counter()
            step(bases[how], batch, optimizers[how], how)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:
                seconds[how].append(time.perf_counter() - began)
        print({how: round(v[-1], 2) for how, v in seconds.items() if v}, flush=True)
    machine = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    report = {
        "date": provenance.now(),
        "versions": provenance.versions(),
        "machine": machine,
        "shape": list(options.shape),
        "seconds": seconds,
        "peaks": peaks,
        "speed_over_stock": float(
            np.median([a / b for a, b in zip(seconds["stock"], seconds["once"], strict=True)])
        ),
        "gradient_difference": worst,
    }
    path = ROOT / "benchmarks" / "reports" / "checkpointing.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k not in ("seconds", "versions")}))


if __name__ == "__main__":
    main()

"""How long ``estimate()`` says that training takes, beside how long it takes.

    python benchmarks/estimate_times.py

Six settings of the strategies, each in this process after a first run that fills caches. Writes
``benchmarks/reports/estimate_times.json``.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import xaurora
from xaurora.utils import provenance

REPORT = Path(__file__).parent / "reports" / "estimate_times.json"
COMMON: dict[str, Any] = {"target": "tp", "batch_size": 4, "validations": 3, "progress": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "frozen, latents kept": {"strategy": "frozen", "steps": 120},
    "frozen, without latents": {"strategy": "frozen", "latents": False, "steps": 60},
    "decoder": {"strategy": "decoder", "steps": 60},
    "LoRA": {"strategy": "lora", "steps": 60},
    "full": {"strategy": "full", "steps": 60},
    "full, two steps of rollout": {"strategy": "full", "rollout_steps": 2, "steps": 30},
}


def main() -> None:
    """Run all settings."""
    torch.set_num_threads(os.cpu_count() or 1)
    ds = xaurora.synthetic(shape=(32, 64), times=160)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ds.aurora.finetune(model="tiny-pretrained", out=f"{folder}/first", **{**COMMON, "steps": 2})
        for i, (name, options) in enumerate(SETTINGS.items()):
            given = {"model": "tiny-pretrained", **COMMON, **options}
            estimated = ds.aurora.estimate(**given)
            out = Path(folder) / f"own-{i}" / "run"
            began = time.perf_counter()
            ds.aurora.finetune(out=out, **given)
            taken = time.perf_counter() - began
            rows.append(
                {
                    "setting": name,
                    "estimated_s": round(estimated.seconds, 2),
                    "taken_s": round(taken, 2),
                    "ratio": round(estimated.seconds / taken, 2),
                }
            )
            print(rows[-1], flush=True)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "versions": provenance.versions(),
        "rows": rows,
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

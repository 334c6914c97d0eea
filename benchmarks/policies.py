"""Train in every way that saves memory, and compare the losses with those of the plain step.

    python benchmarks/policies.py    # writes benchmarks/reports/policies-<device>.json

``tiny-pretrained``, 50 steps, batches of two, on synthetic fields. A row holds the largest relative
difference of the losses from those of the run that stores everything on the device.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import xaurora
from xaurora.training.fitting import MEASURES, Measure
from xaurora.utils import provenance

REPORTS = Path(__file__).parent / "reports"


def losses(
    ds: xr.Dataset, strategy: str, precision: str, measure: Measure, steps: int
) -> np.ndarray:
    """Return the loss of each step."""
    with tempfile.TemporaryDirectory() as folder:
        tuned = ds.aurora.finetune(
            "tp",
            model="tiny-pretrained",
            strategy=strategy,
            precision=precision,
            activation_checkpointing=measure.checkpointing,
            optimizer_state=measure.optimizer_state,
            steps=steps,
            batch_size=2,
            validations=1,
            out=Path(folder) / "run",
            progress=False,
        )
    return np.array([entry["loss"] for entry in tuned.history])


def main() -> None:
    """Run all rows and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    ds = xaurora.synthetic(shape=(32, 64), times=60)
    rows: list[dict[str, Any]] = []
    for strategy in ("lora", "full"):
        for precision in ("32", "bf16"):
            plain = losses(ds, strategy, precision, MEASURES[0], arguments.steps)
            for measure in MEASURES[1:]:
                found = losses(ds, strategy, precision, measure, arguments.steps)
                rows.append(
                    {
                        "strategy": strategy,
                        "precision": precision,
                        "activation_checkpointing": measure.checkpointing,
                        "optimizer_state": measure.optimizer_state,
                        "largest_difference": float(np.max(np.abs(found / plain - 1.0))),
                        "last_loss": float(found[-1]),
                    }
                )
                print(rows[-1], flush=True)
    report = {
        "machine": f"{platform.machine()}, {device}",
        "versions": provenance.versions(),
        "steps": arguments.steps,
        "rows": rows,
    }
    path = arguments.out or REPORTS / f"policies-{device.lower().replace(' ', '-')}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Train a few steps in every precision, with and without cuDNN's attention.

    python benchmarks/precision.py    # writes benchmarks/reports/precision-<device>.json

A row says whether all gradients were finite, and the CRPS after four steps. On a CPU there is one
attention kernel, and the rows with and without cuDNN are the same.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import xarray as xr

import xaurora
from xaurora.errors import TrainingError
from xaurora.model import execution
from xaurora.utils import provenance

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES, PRECISIONS = ("frozen", "lora", "full"), ("32", "bf16", "fp16")


def run(ds: xr.Dataset, strategy: str, precision: str, *, cudnn: bool) -> dict[str, Any]:
    """Train four steps of ``tiny-pretrained``, and return the row of the report."""
    row: dict[str, Any] = {"strategy": strategy, "precision": precision, "cudnn_attention": cudnn}
    allowed = mock.patch.object(execution, "without_cudnn_attention", contextlib.nullcontext)
    with tempfile.TemporaryDirectory() as folder, allowed if cudnn else contextlib.nullcontext():
        try:
            tuned = ds.aurora.finetune(
                "tp",
                model="tiny-pretrained",
                strategy=strategy,
                precision=precision,
                steps=4,
                batch_size=4,
                validations=1,
                out=Path(folder) / "run",
                progress=False,
            )
        except TrainingError as error:
            return {**row, "error": error.message.partition(",")[0]}
    return {**row, "crps_mm": round(tuned.config["scores"]["validation_crps_mm"], 4)}


def main() -> None:
    """Run all rows and write the report."""
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "CPU"
    ds = xaurora.synthetic(shape=(32, 64), times=60)
    rows = []
    for strategy, precision, cudnn in itertools.product(STRATEGIES, PRECISIONS, (False, True)):
        rows.append(run(ds, strategy, precision, cudnn=cudnn))
        print(rows[-1], flush=True)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {device}",
        "versions": provenance.versions(),
        "rows": rows,
    }
    name = device.lower().replace(" ", "-")
    path = ROOT / "benchmarks" / "reports" / f"precision-{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

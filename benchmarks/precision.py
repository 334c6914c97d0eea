"""Train a few steps in every precision, with and without cuDNN's attention.

    python benchmarks/precision.py             # writes benchmarks/reports/precision-<device>.json
    python benchmarks/precision.py --scores    # writes benchmarks/reports/precision-scores-….json

A row says whether all gradients were finite, and the CRPS after four steps. On a CPU there is one
attention kernel, and the rows with and without cuDNN are the same.

The scores are those of forecasts of trained tiny models: a head trained in float32 forecasts in
each precision, and a full model is trained and forecasts in each.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import sys
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


FORECASTS = ("32", "tf32", "bf16", "bf16-tf32", "bf16-all")
STATE = ("t2m", "u10", "v10", "msl", "t", "u", "v", "q", "z")


def scores_of(ds: xr.Dataset, tuned: xaurora.TunedAurora, precision: str) -> dict[str, float]:
    """Return the CRPS of rain and the RMSE of Aurora's variables, at 6 h."""
    forecast = ds.aurora.predict(
        "6h",
        model=tuned,
        time=ds["time"].values[250:-2],
        variables=(*STATE, "tp"),
        precision=precision,
        batch_size=8,
        progress=False,
    )
    found = forecast.aurora.evaluate(ds, progress=False).sel(region="global")
    metrics = {"tp": "crps", **dict.fromkeys(STATE, "rmse")}
    return {f"{n} {m}": float(found[n].sel(metric=m).mean()) for n, m in metrics.items()}


def score_rows() -> list[dict[str, Any]]:
    """Return what each precision does to scores, relative to float32."""
    ds = xaurora.synthetic(shape=(32, 64), times=320, seed=3)
    past = ds.isel(time=slice(None, 240))
    rows = []
    options = {"model": "tiny-pretrained", "batch_size": 8, "validations": 1, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        head = past.aurora.finetune(
            "tp", out=Path(folder) / "a", steps=400, latents=True, **options
        )
        for precision in FORECASTS:
            rows.append({"trained": "head in 32", "forecast": precision})
            rows[-1] |= scores_of(ds, head, precision)
            print(rows[-1], flush=True)
        for precision in ("32", "bf16", "bf16-all"):
            full = past.aurora.finetune(
                "tp",
                strategy="full",
                out=Path(folder) / f"full-{precision}",
                steps=100,
                precision=precision,
                **options,
            )
            rows.append({"trained": f"full in {precision}", "forecast": precision})
            rows[-1] |= scores_of(ds, full, precision)
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run all rows and write the report."""
    scores = "--scores" in sys.argv
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "CPU"
    ds = xaurora.synthetic(shape=(32, 64), times=60)
    rows = score_rows() if scores else []
    products = itertools.product(STRATEGIES, PRECISIONS, (False, True))
    for strategy, precision, cudnn in () if scores else products:
        rows.append(run(ds, strategy, precision, cudnn=cudnn))
        print(rows[-1], flush=True)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {device}",
        "versions": provenance.versions(),
        "rows": rows,
    }
    name = ("scores-" if scores else "") + device.lower().replace(" ", "-")
    path = ROOT / "benchmarks" / "reports" / f"precision-{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

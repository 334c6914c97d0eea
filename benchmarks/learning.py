"""How much of what can be learnt is learnt: the default head on synthetic rain of known laws.

    python benchmarks/learning.py            # writes benchmarks/reports/learning.json and docs/learning.md

For each law a ``tiny`` Aurora is trained from scratch (``strategy="full"``) and scored on times that it has not seen, beside the
forecaster that knows the law but not the state (climatology) and the one that knows both (perfect).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import torch

import xaurora
from xaurora import synthesis, tuned
from xaurora.grid import latitude_weights

ROOT = Path(__file__).resolve().parents[1]


def learn(rain: str, head: str, *, times: int, steps: int, seed: int) -> dict[str, float | str]:
    """Train and score once."""
    ds = xaurora.synthetic(times=times, rain=rain, seed=seed)
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        model = ds.aurora.finetune(
            "tp", model="tiny", strategy="full", head=head, steps=steps, batch_size=4, out=Path(out) / "run", seed=seed
        )
        seconds = time.monotonic() - began
    count = model.config["training"]["validation_samples"]
    area = latitude_weights(ds["latitude"].values)[:, None]

    def mean(score) -> float:
        return float((score.isel(init_time=slice(-count, None)).values * area).mean()) * 1e3

    perfect, climate = mean(synthesis.perfect_crps(ds)), mean(synthesis.climatology_crps(ds))
    got = model.config["scores"]["validation_crps_mm"]
    forecast = ds.aurora.predict(
        "6h", model=model, time=ds["time"].values[-1 - count : -1], variables=["tp"], progress=False
    )
    truth = ds["tp"].sel(time=forecast["valid_time"].values[:, 0]).values
    return {
        "law": rain,
        "head": head,
        "samples": model.config["training"]["samples"],
        "held_out": count,
        "steps": steps,
        "seconds": round(seconds, 1),
        "climatology": climate,
        "perfect": perfect,
        "crps": got,
        "gain": (climate - got) / (climate - perfect),
        "mean_ratio": float((forecast["tp"].values[:, 0] * area).mean() / (truth * area).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=600)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [
        learn(rain, head, times=options.times, steps=options.steps, seed=options.seed)
        for rain in synthesis.LAWS
        for head in ("auto", "deterministic")
    ]
    report = {
        "date": tuned.now(),
        "versions": tuned.versions(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        + ("GPU " + torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"),
        "rows": rows,
    }
    path = ROOT / "benchmarks" / "reports" / "learning.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    (ROOT / "docs" / "learning.md").write_text(page(report))
    print(page(report))


def page(report: dict) -> str:
    lines = [
        "# How much of what can be learnt is learnt",
        "",
        "Written by `benchmarks/learning.py` from `benchmarks/reports/learning.json`. `xaurora.synthetic` makes fields whose rain follows a known law, so that the",
        "CRPS of a perfect forecaster (who knows law and state) and of the climatology (who knows the law alone) are known. A `tiny` Aurora is",
        "trained from scratch, everything moving, and scored on the last fifth of the times, which it has not seen. The share is what it",
        "gains of the difference between the two.",
        "",
        "| law of rain | head | samples | steps of 4 | s | climatology, mm | perfect, mm | CRPS, mm | share gained | forecast mean / true mean |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['law']} | {r['head']} | {r['samples']} | {r['steps']} | {r['seconds']:.0f} | {r['climatology']:.3f} | {r['perfect']:.3f} "
        f"| {r['crps']:.3f} | **{r['gain']:.2f}** | {r['mean_ratio']:.2f} |"
        for r in report["rows"]
    ]
    lines += [
        "",
        "The law `hurdle` has drizzle, `drizzle-free` has none. The `deterministic` head gives one value, whose CRPS is its absolute error: that it",
        "gains less is the price of saying nothing about its own uncertainty, and its mean is too low because it is a median.",
        "",
        f"{report['date']}; {report['machine']}; " + ", ".join(f"{k} {v}" for k, v in report["versions"].items()) + ".",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

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
import xarray as xr

import xaurora
from xaurora import synthesis, tuned
from xaurora.grid import latitude_weights

HELD_OUT = 120  # init times
ROOT = Path(__file__).resolve().parents[1]


def learn(rain: str, head: str, *, times: int, steps: int, seed: int) -> dict[str, float | str]:
    """Train and score once."""
    ds = xaurora.synthetic(times=times + HELD_OUT + 2, rain=rain, seed=seed)
    past = ds.isel(time=slice(None, times))
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        model = past.aurora.finetune(
            "tp", model="tiny", strategy="full", head=head, steps=steps, batch_size=4, out=Path(out) / "run", seed=seed
        )
        seconds = time.monotonic() - began
    # No frame of these was seen, neither in training nor in choosing the best state.
    init_times = ds["time"].values[times + 1 : times + 1 + HELD_OUT]
    forecast = ds.aurora.predict("6h", model=model, time=init_times, variables=["tp"], progress=False)
    area = latitude_weights(ds["latitude"].values)[:, None]

    def mean(score: xr.DataArray) -> float:
        return float((score.sel(init_time=init_times).values * area).mean()) * 1e3

    perfect, climate = mean(synthesis.perfect_crps(ds)), mean(synthesis.climatology_crps(ds))
    scores = forecast.aurora.evaluate(ds, regions="global", metrics=["crps", "mae"])["tp"].isel(lead_time=0, region=0)
    # One value is a distribution, too: its CRPS is its absolute error.
    got = float(scores.sel(metric="crps" if head != "deterministic" else "mae")) * 1e3
    truth = ds["tp"].sel(time=forecast["valid_time"].values[:, 0]).values
    return {
        "law": rain,
        "head": head,
        "samples": model.config["training"]["samples"],
        "held_out": HELD_OUT,
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
        "trained from scratch, everything moving, and scored on 120 later times, which neither training nor the choice of the best state has seen.",
        "The share is what it gains of the difference between the two.",
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

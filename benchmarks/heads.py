"""Compare all heads on synthetic precipitation of known laws, and on the law of real totals.

    python benchmarks/heads.py               # writes benchmarks/reports/heads.json, docs/heads.md
    python benchmarks/heads.py --data DIR    # also fits the real totals in DIR

For each law and head, a ``tiny`` Aurora is trained from scratch (``strategy="full"``) and scored on
times that it was not trained on. It is compared with a forecaster that knows the law but not the
state (climatology) and one that knows both (perfect).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
THRESHOLDS_MM = (0.1, 1.0, 5.0, 10.0)
HELD_OUT = 100  # init times
LAWS = {
    "hurdle_lognormal": "lognormal amounts, no drizzle",
    "censored_normal": "continuous drizzle down to zero",
    "csgd": "censored shifted gamma",
    "hurdle_gamma": "gamma amounts, no drizzle",
    "hurdle": "separate drizzle and heavy precipitation, W unknown: no head matches",
}


def learn(job: tuple[str, str, int, int, int, int]) -> dict[str, Any]:
    """Train and score one head on one law, with the given number of threads."""
    rain, head, times, steps, seed, threads = job
    import torch

    import xaurora
    from xaurora import distributions
    from xaurora.fields.grid.weights import latitude_weights
    from xaurora.model import heads
    from xaurora.sources import synthesis

    torch.set_num_threads(threads)
    ds = xaurora.synthetic(shape=(24, 48), times=times + HELD_OUT + 2, rain=rain, seed=seed)
    past = ds.isel(time=slice(None, times))
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        model = past.aurora.finetune(
            "tp",
            model="tiny",
            strategy="full",
            head=head,
            steps=steps,
            batch_size=4,
            out=Path(out) / "run",
            seed=seed,
            progress=False,
        )
        seconds = time.monotonic() - began
    # These times were used neither in training nor in choosing the best state.
    init_times = ds["time"].values[times + 1 : times + 1 + HELD_OUT]
    forecast = ds.aurora.predict(
        "6h", model=model, time=init_times, variables=["tp"], progress=False
    )
    area = latitude_weights(ds["latitude"].values)[:, None]
    truth = ds["tp"].sel(time=forecast["valid_time"].values[:, 0]).values.astype(np.float64)

    def mean(values: np.ndarray) -> float:
        return float((values * area).mean() / area.mean())

    perfect, climate = (
        mean(score(ds).sel(init_time=init_times).values) * 1e3
        for score in (synthesis.perfect_crps, synthesis.climatology_crps)
    )
    scores = forecast.aurora.evaluate(ds, regions="global", metrics=["crps"])["tp"]
    crps = float(scores.values.ravel()[0]) * 1e3
    family = heads.options_for(head, heads.AUTO_RAIN).family
    law = distributions.from_attrs(forecast["tp"].attrs)
    names = law.parameters if family != "deterministic" else ()
    params = {p: forecast[f"tp_{p}"].values[:, 0].astype(np.float64) for p in names}
    params = params or {"value": forecast["tp"].values[:, 0].astype(np.float64)}
    upper = law.cdf(params, truth)
    pit = np.where(truth > 0, upper, np.random.default_rng(seed).random(truth.shape) * upper)
    brier, bias = {}, {}
    for threshold in THRESHOLDS_MM:
        seen = truth > threshold * 1e-3
        base = mean(seen)
        chance = 1.0 - law.cdf(params, np.full_like(truth, threshold * 1e-3))
        brier[threshold] = 1.0 - mean((chance - seen) ** 2) / (base * (1.0 - base))
        bias[threshold] = mean(forecast["tp"].values[:, 0] > threshold * 1e-3) / base
    return {
        "law": rain,
        "head": head,
        "samples": model.config["training"]["samples"],
        "steps": steps,
        "seconds_a_step": seconds / steps,
        "climatology": climate,
        "perfect": perfect,
        "crps": crps,
        "gain": (climate - crps) / (climate - perfect),
        "mean_ratio": mean(forecast["tp"].values[:, 0].astype(np.float64)) / mean(truth),
        "coverage": None if family == "deterministic" else mean((pit > 0.05) & (pit < 0.95)),
        "brier_skill": brier,
        "frequency_bias": bias,
    }


def marginal(totals: np.ndarray, head: str) -> dict[str, Any]:
    """Return the scores of a head's family, fitted to the distribution of real totals.

    The fit uses the head's own score and no state.
    """
    import torch

    from xaurora.fields.distribution import Distribution
    from xaurora.model import heads

    seen = Distribution(amounts=True)
    seen.add(totals)
    values, shares = seen.binned()
    torch.manual_seed(0)
    fitted = heads.build(heads.HeadOptions(family=head).for_climate(seen.moments.mean), 4, 16, 4)
    fitted.initialise(heads.Climatology(values, shares))
    params = {
        k: v.double() for k, v in fitted.parameters_of(torch.zeros(1, fitted.outputs, 1, 1)).items()
    }
    y = torch.as_tensor(values)[None, None]
    score = float((fitted.law.crps(params, y) * torch.as_tensor(shares)).sum()) * 1e3
    f = np.cumsum(shares)
    own = float((f * (1.0 - f))[:-1] @ np.diff(values)) * 1e3
    exceed = {t: float(fitted.probability_above(params, t * 1e-3)) for t in THRESHOLDS_MM}
    often = {t: float(shares[values > t * 1e-3].sum()) for t in THRESHOLDS_MM}
    skill = {
        t: -((exceed[t] - o) ** 2) / (o * (1.0 - o)) if 0 < o < 1 else None
        for t, o in often.items()
    }
    upper = fitted.law.cdf(params, y).numpy().ravel()
    lower = np.where(values > 0, upper, 0.0)
    width = np.maximum(upper - lower, 1e-12)
    inside = np.clip(np.minimum(upper, 0.95) - np.maximum(lower, 0.05), 0.0, None) / width
    inside = np.where(values > 0, (upper > 0.05) & (upper < 0.95), inside)
    return {
        "head": head,
        "epsilon": fitted.options.epsilon,
        "crps": score,
        "empirical": own,
        "mean_ratio": float(fitted.mean(params)) / seen.moments.mean,
        "coverage": None if head == "deterministic" else float(shares @ inside),
        "brier_skill": skill,
        "frequency_bias": {t: exceed[t] / o if o else None for t, o in often.items()},
    }


def real_totals(folder: Path) -> dict[str, np.ndarray]:
    """Return the six-hour totals of the real data sets that are in the folder."""
    import xaurora

    out = {}
    for name, files in (
        ("Europe, one winter day", [folder / "era5_europe_2020-01-01" / "ERA5_2020-01-01_tp.nc"]),
        ("Yukon, January", [folder / "era5_yukon_2023-01" / "accumulated.nc"]),
    ):
        if files[0].exists():
            totals = xaurora.open(*files).aurora.accumulate("tp", "6h").values
            out[name] = totals[np.isfinite(totals)].astype(np.float64)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=600)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=2, help="number of parallel processes, one thread each"
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="reuse the training results of the last report, fit the real totals, write the page",
    )
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    from xaurora.model import heads
    from xaurora.utils import provenance

    jobs = [
        (law, head, options.times, options.steps, options.seed, 1)
        for law in LAWS
        for head in heads.RAIN
    ]
    path = ROOT / "benchmarks" / "reports" / "heads.json"
    before = json.loads(path.read_text()) if options.keep else {}
    jobs = [] if options.keep else jobs
    context = multiprocessing.get_context("spawn")
    rows = before.get("rows", [])
    with concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for row in pool.map(learn, jobs):
            print(f"{row['law']:<18} {row['head']:<18} share {row['gain']:.3f}", flush=True)
            rows.append(row)
    fits = {
        name: [marginal(y, head) for head in heads.RAIN]
        for name, y in real_totals(options.data).items()
    }
    report = {
        "date": before.get("date", provenance.now()),
        "versions": provenance.versions(),
        "machine": f"{platform.machine()}, one thread a run, {options.jobs} runs at once, no GPU",
        "auto": heads.AUTO_RAIN,
        "rows": rows,
        "marginal": fits,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    report = json.loads(path.read_text())
    (ROOT / "docs" / "heads.md").write_text(page(report))
    print(page(report))


def page(report: dict[str, Any]) -> str:
    """Return the text of the page."""
    rows = report["rows"]
    auto = [r for r in rows if r["head"] == report["auto"]]
    lines = [
        "# Comparison of heads",
        "",
        "Written by `benchmarks/heads.py` from `benchmarks/reports/heads.json`.",
        "`xaurora.synthetic(rain=...)` makes fields whose precipitation follows a known law.",
        "The CRPS of a perfect forecaster, who knows the law and the state, and of the",
        "climatology, which knows only the law, are therefore known. For each law and head, a",
        (
            "`tiny` Aurora is trained from scratch with all parameters trainable, for"
            f" {rows[0]['steps']} steps"
        ),
        (
            f"of 4 on {rows[0]['samples']} samples. It is scored on {HELD_OUT} later times, used"
            " neither in training nor"
        ),
        "in choosing the best state.",
        "",
        (
            f'`head="auto"` is `{report["auto"]}`. Over the laws it achieves at least'
            f" {min(r['gain'] for r in auto):.2f} of the attainable"
        ),
        (
            "gain in CRPS (the best head of each law:"
            f" {min(max(r['gain'] for r in rows if r['law'] == law) for law in LAWS):.2f}). Its"
            f" mean is {min(r['mean_ratio'] for r in auto):.2f} to"
            f" {max(r['mean_ratio'] for r in auto):.2f} of the"
        ),
        (
            f"true mean, and its 90 % interval covers {100 * min(r['coverage'] for r in auto):.0f}"
            f" to {100 * max(r['coverage'] for r in auto):.0f} %. The table of real totals at"
        ),
        "the end shows how it differs from the other three-parameter families.",
        "",
        "- **share**: the fraction achieved of the difference in CRPS (in mm) between",
        "  climatology and the perfect forecaster. 1 is the maximum.",
        "- **Brier skill** at a threshold, relative to the climatological frequency.",
        "- **mean**: forecast mean divided by true mean. **bias**: how often the forecast mean",
        "  exceeds 1 mm, divided by how often the truth does.",
        "- **coverage** of the 90 % interval (randomised where it is dry).",
        "- **ms**: milliseconds for a training step of the whole model, batch 4, one thread.",
        "  Several runs shared the machine.",
    ]
    for law, described in LAWS.items():
        lines += [
            "",
            f"## `rain={law!r}`: {described}",
            "",
            (
                "| head | share | Brier skill 0.1 mm | 1 mm | 5 mm | 10 mm | mean | bias 1 mm |"
                " coverage | ms |"
            ),
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for r in rows:
            if r["law"] == law:
                brier = " | ".join(f"{v:.2f}" for v in r["brier_skill"].values())
                cover = "" if r["coverage"] is None else f"{100 * r['coverage']:.0f} %"
                own = " (own family)" if r["head"] == law else ""
                lines.append(
                    f"| {r['head']}{own} | **{r['gain']:.2f}** | {brier} | {r['mean_ratio']:.2f} |"
                    f" {r['frequency_bias']['1.0']:.2f} | {cover} |"
                    f" {1e3 * r['seconds_a_step']:.0f} |"
                )
    if report["marginal"]:
        lines += [
            "",
            "## Real totals, without any state",
            "",
            "This table shows how well a family can represent the distribution of real six-hour",
            "totals of ERA5. Each family is fitted to all totals of a set together, by the head's",
            "own score. The columns are its CRPS divided by that of the totals' own distribution",
            "(1 is perfect), the Brier skill relative to the observed frequency (0 is perfect),",
            "its mean divided by the mean of the totals, how often it exceeds 1 mm divided by how",
            "often the totals do, and the coverage of its 90 % interval.",
            "",
            (
                "| totals | head | CRPS over the best | Brier skill 0.1 mm | 1 mm | 5 mm | 10 mm |"
                " mean | bias 1 mm | coverage |"
            ),
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, fits in report["marginal"].items():
            for f in fits:
                brier = " | ".join(
                    "none" if v is None else f"{v:.3f}" for v in f["brier_skill"].values()
                )
                bias = f["frequency_bias"]["1.0"]
                cover = "" if f["coverage"] is None else f"{100 * f['coverage']:.0f} %"
                lines.append(
                    f"| {name} | {f['head']} | {f['crps'] / f['empirical']:.3f} | {brier} |"
                    f" {f['mean_ratio']:.2f} | {bias:.2f} | {cover} |"
                )
    lines += [
        "",
        "The `deterministic` head gives one value, whose CRPS is its absolute error. It gains",
        "less because it does not represent its own uncertainty, and its mean is too low",
        "because it is a median.",
        "",
        f"{report['date']}; {report['machine']}; "
        + ", ".join(f"{k} {v}" for k, v in report["versions"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

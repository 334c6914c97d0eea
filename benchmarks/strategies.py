"""Compare untuned, frozen, decoder, LoRA, PEFT and full from the same start on the same data.

    python benchmarks/strategies.py               # writes benchmarks/reports/strategies.json,
                                                  # docs/strategies.md and its figure
    python benchmarks/strategies.py --keep        # rewrites the page and the figure from the report
    python benchmarks/strategies.py --pretrain    # makes the start in xaurora/assets; takes forty
                                                  # minutes on one core

The start is a ``tiny`` Aurora pretrained on the state variables of ``xaurora.synthetic`` under five
laws of motion, as Aurora was on the weather. It was never trained on precipitation. Each strategy
runs in a separate process, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "xaurora" / "assets"
TRAINED, HELD_OUT = 400, 60  # times, init times
MOTION = "east"  # two columns a step, half a patch
LEADS = ("6h", "12h", "18h", "24h")
STATE = ("t2m", "u10", "v10", "msl")
COMMON = {"steps": 200, "batch_size": 4}
CASES: dict[str, dict[str, Any]] = {
    "untuned": {"strategy": "frozen", "steps": 1, "learning_rate": 1e-12},
    "frozen": {"strategy": "frozen"},
    "frozen, random backbone": {"strategy": "frozen", "random": True},
    "decoder": {"strategy": "decoder", "learning_rate": 3e-4, "head_learning_rate": 1e-3},
    "lora": {"strategy": "lora", "learning_rate": 1e-3},
    "peft": {"strategy": "peft", "learning_rate": 1e-3},
    "lora, then peft": {"strategy": "lora", "learning_rate": 1e-3, "steps": 100, "then": "peft"},
    "full": {"strategy": "full", "learning_rate": 3e-4, "head_learning_rate": 1e-3},
    "full, rain alone": {
        "strategy": "full",
        "learning_rate": 3e-4,
        "head_learning_rate": 1e-3,
        "base_loss": 0.0,
    },
}
# Precipitation moves by two patches, eight columns a step: farther than the head can see.
FAR: dict[str, dict[str, Any]] = {
    "far: untuned": {**CASES["untuned"], "motion": "storm"},
    "far: frozen": {"strategy": "frozen", "motion": "storm"},
    "far: frozen, random backbone": {"strategy": "frozen", "random": True, "motion": "storm"},
}


def pretrain(out: Path) -> None:
    """Pretrain a ``tiny`` on state variables of several laws of motion, and save it in bfloat16.

    A second training adds more of the hardest motion.
    """
    from xaurora.sources.synthesis import MOTIONS

    motions = list(MOTIONS)
    with tempfile.TemporaryDirectory() as folder:
        tuned = _pretrained(
            motions, 1000, (100, 200), "tiny", {"steps": 3600}, Path(folder) / "first"
        )
        more = [*motions, "storm", "storm"]
        options = {"steps": 1500, "learning_rate": 1.2e-3}
        tuned = _pretrained(more, 800, (300, 400), tuned, options, Path(folder) / "second")
    keep(tuned, out)


def _pretrained(
    motions: list[str],
    times: int,
    seeds: tuple[int, int],
    model: Any,
    options: dict[str, Any],
    out: Path,
) -> Any:
    """Train on ``times`` times of each motion, a year apart, and validate on 20 others."""
    import xarray as xr

    import xaurora
    from xaurora.sources.synthesis import MOTIONS

    still = ["lsm", "slt", "geopotential_at_surface"]
    parts = [
        xaurora.synthetic(times=count, seed=seed + i, motion=motion, start=f"{year + i}-01-01T00")
        for count, seed, year, chosen in (
            (times, seeds[0], 2000, motions),
            (20, seeds[1], 2010, list(MOTIONS)),
        )
        for i, motion in enumerate(chosen)
    ]
    ds = xr.concat([p.drop_vars([*still, "tp"]) for p in parts], "time").assign(
        {n: parts[0][n] for n in still}
    )
    split = {"train": ("2000", f"{2000 + len(motions)}"), "validation": ("2010", "2015")}
    return ds.aurora.finetune(
        "all", model=model, strategy="full", batch_size=4, out=out, workers=0, **split, **options
    )


def keep(tuned: Any, out: Path) -> None:
    """Write a pretrained tiny in the format that ``model="tiny-pretrained"`` reads."""
    import torch
    from safetensors.torch import save_file

    base = tuned.model.base
    out.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in base.state_dict().items()}
    save_file(state, out / "tiny.safetensors")
    about = {
        "what": (
            "tiny Aurora, pretrained on the state variables of xaurora.synthetic under the motions"
            " east, west, fast, storm and still"
        ),
        "made": tuned.config["made"],
        "versions": tuned.config["versions"],
        "steps": tuned.config["training"]["steps"],
        "samples": tuned.config["training"]["samples"],
        "scores": tuned.config["scores"],
        "surface": base.surf_stats,
        "atmos": base.atmos_stats,
    }
    (out / "tiny.json").write_text(json.dumps(about, indent=1) + "\n")


def resident(what: str) -> int:
    """Return the bytes of this process: ``VmRSS`` is the current value, ``VmHWM`` the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    return 0


def learn(name: str) -> dict[str, Any]:
    """Train and score one case, in this process."""
    import time

    import matplotlib.figure
    import peft
    import scipy.stats
    import torch

    import xaurora
    from xaurora.fields.grid.weights import latitude_weights
    from xaurora.model.tiny import build_tiny
    from xaurora.model.weights import load_pretrained
    from xaurora.sources import synthesis
    from xaurora.training import curves
    from xaurora.training import finetune as finetuning

    assert all((matplotlib.figure, peft, scipy.stats, curves, finetuning))
    case = {**COMMON, **{**CASES, **FAR}[name]}
    then, scrambled, motion = (
        case.pop("then", None),
        case.pop("random", False),
        case.pop("motion", MOTION),
    )
    ds = xaurora.synthetic(times=TRAINED + HELD_OUT + 6, motion=motion)
    past = ds.isel(time=slice(None, TRAINED))
    torch.nn.functional.linear(torch.zeros(8, 8), torch.zeros(8, 8))
    before = resident("VmRSS")
    base: Any = "tiny-pretrained"
    if scrambled:
        real: Any = load_pretrained(base)
        from xaurora.model.models import TABLE

        base = build_tiny(TABLE["tiny-pretrained"].needs, real.surf_stats, real.atmos_stats, seed=7)
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        tuned = past.aurora.finetune(
            "tp", model=base, out=Path(out) / "run", progress=False, validations=5, **case
        )
        if then:
            tuned = past.aurora.finetune(
                "tp",
                model=tuned,
                out=Path(out) / "then",
                progress=False,
                validations=5,
                **{**case, "strategy": then},
            )
        seconds = time.monotonic() - began
        peak = resident("VmHWM") - before
    steps = case["steps"] * (2 if then else 1)
    # These times were used neither in training nor in choosing the best state.
    init_times = ds["time"].values[TRAINED + 1 : TRAINED + 1 + HELD_OUT]
    forecast = ds.aurora.predict(
        LEADS[-1], model=tuned, time=init_times, variables=["tp", *STATE], progress=False
    )
    scores = forecast.aurora.evaluate(ds, regions="global", metrics=["crps", "rmse"])
    area = latitude_weights(ds["latitude"].values)[:, None]
    area = area / area.mean()

    def exact(scorer: Any, hours: int) -> float:
        return float((scorer(ds, hours).sel(init_time=init_times).values * area).mean()) * 1e3

    row: dict[str, Any] = {
        "case": name,
        "samples": tuned.config["training"]["samples"],
        "trainable": {r["name"]: r["trainable"] for r in tuned.config["parameters"]}["all"],
        "total": {r["name"]: r["total"] for r in tuned.config["parameters"]}["all"],
        "peak": peak,
        "seconds_a_step": seconds / steps if name != "untuned" else None,
        "crps": [],
        "share": [],
        "rmse": [],
        "state": [],
        "blur": [],
    }
    for i, lead in enumerate(LEADS):
        hours = int(lead[:-1])
        crps = float(scores["tp"].sel(metric="crps").values.ravel()[i]) * 1e3
        climate, perfect = (
            exact(synthesis.climatology_crps, hours),
            exact(synthesis.perfect_crps, hours),
        )
        row["crps"].append(crps)
        row["share"].append((climate - crps) / (climate - perfect))
        row["rmse"].append(float(scores["tp"].sel(metric="rmse").values.ravel()[i]) * 1e3)
        state = [
            float(scores[n].sel(metric="rmse").values.ravel()[i]) / float(ds[n].std("time").mean())
            for n in STATE
        ]
        row["state"].append(float(np.mean(state)))
        row["blur"].append(blur(forecast["t2m"].isel(lead_time=i), ds["t2m"]))
    return row


def blur(forecast: Any, truth: Any) -> float:
    """Return the zonal power at wavelengths of 4 to 8 grid points, divided by the truth's.

    1 is as sharp as the truth, less is blurred.
    """
    there = truth.sel(time=forecast["valid_time"].values)
    power = [np.abs(np.fft.rfft(v.values, axis=-1)) ** 2 for v in (forecast, there)]
    columns = forecast.sizes["longitude"]
    small = slice(columns // 8, columns // 4 + 1)
    return float(power[0][..., small].mean() / power[1][..., small].mean())


def figure(report: dict[str, Any], path: Path) -> None:
    """Plot the shares by lead time, the state, and the cost."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(12, 4.4), layout="constrained")
    axes = fig.subplots(1, 3)
    hours = [int(lead[:-1]) for lead in LEADS]
    shown = [r for r in report["rows"] if r["case"] in CASES and r["case"] != "untuned"]
    for i, r in enumerate(shown):
        style = {"color": f"C{i}", "marker": "o", "linestyle": "--" if "," in r["case"] else "-"}
        axes[0].plot(hours, np.array(r["share"]) * 100, label=r["case"], **style)
        axes[1].plot(hours, r["state"], **style)
        axes[2].scatter(
            r["trainable"], r["share"][3] * 100, color=f"C{i}", s=r["peak"] / 2e6, alpha=0.8
        )
    untuned = next(r for r in report["rows"] if r["case"] == "untuned")
    axes[1].plot(hours, untuned["state"], color="black", linestyle=":", label="untuned")
    axes[0].set_ylabel("share of the CRPS of rain that can be gained, %")
    axes[0].set_ylim(-40, 105)
    axes[0].axhline(0, color="0.7", linewidth=0.8)
    axes[1].set_ylabel("RMSE of the state over its standard deviation")
    axes[1].legend(frameon=False)
    for ax in axes[:2]:
        ax.set_xticks(hours)
        ax.set_xlabel("lead time in h")
    axes[2].set_xscale("log")
    axes[2].set_xlabel("parameters that train")
    axes[2].set_ylabel("share at +24 h, % (size: peak memory)")
    fig.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(shown),
        frameon=False,
        fontsize=8,
    )
    fig.savefig(path, dpi=130)


def page(report: dict[str, Any]) -> str:
    """Return the text of the page."""
    rows = {r["case"]: r for r in report["rows"]}
    frozen, full, lora, peft = rows["frozen"], rows["full"], rows["lora"], rows["peft"]
    alone, untuned, scrambled = (
        rows["full, rain alone"],
        rows["untuned"],
        rows["frozen, random backbone"],
    )
    far, far_scrambled = rows["far: frozen"], rows["far: frozen, random backbone"]

    def share(r: dict[str, Any], lead: int = 0) -> str:
        return f"{r['share'][lead]:.2f}"

    lines = [
        "# LoRA or freezing?",
        "",
        "Written by `benchmarks/strategies.py` from `benchmarks/reports/strategies.json`.",
        "",
        "The start is a `tiny` Aurora that was pretrained on the state variables of",
        "`xaurora.synthetic` under five laws of motion, as Aurora was on the weather",
        '(`model="tiny-pretrained"`). It was never trained on precipitation. Each strategy',
        (
            f"trains it on the same {frozen['samples']} samples, with {COMMON['steps']} steps of"
            f" {COMMON['batch_size']}, and is scored on {HELD_OUT}"
        ),
        "later init times. A perfect forecaster's CRPS is known. **share** is the fraction",
        "of the attainable gain over the climatology: 1 is the maximum, and values below 0 are",
        "worse than the climatology. The fields drift two columns a step, half a patch of the",
        "model.",
        "",
        (
            "| strategy | trains | peak memory | ms a step | CRPS +6 h | share +6 h | share +24 h |"
            " RMSE of rain +6 h | +24 h | state +24 h | sharpness +6 h | +24 h |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in (r for r in report["rows"] if r["case"] in CASES):
        time_ = "" if r["seconds_a_step"] is None else f"{1e3 * r['seconds_a_step']:.0f}"
        lines.append(
            f"| {r['case']} | {r['trainable']:,} | {r['peak'] / 1e6:.0f} MB | {time_} |"
            f" {r['crps'][0]:.3f} mm | **{r['share'][0]:.2f}** | {r['share'][3]:.2f} |"
            f" {r['rmse'][0]:.2f} mm | {r['rmse'][3]:.2f} mm | {r['state'][3]:.2f} |"
            f" {r['blur'][0]:.2f} | {r['blur'][3]:.2f} |"
        )
    lines += [
        "",
        "- **trains**: the number of trainable parameters. The untuned row has a head that",
        "  predicts only the climatology.",
        "- **state**: RMSE of the surface state divided by its standard deviation, averaged",
        "  over four variables. Later lead times depend on this state.",
        "- **sharpness**: zonal power of 2 m temperature at wavelengths of 4 to 8 grid points,",
        "  divided by that of the truth. Below 1 is blurred.",
        "- **ms a step** includes validation and saving, on one thread.",
        "",
        "![Share of the attainable gain by lead time, state and cost](strategies.png)",
        "",
        "## Results",
        "",
        (
            "**Is freezing enough?** At +6 h, yes: the head on the frozen backbone achieves"
            f" {share(frozen)}"
        ),
        (
            f"of the attainable gain, and training everything achieves {share(full)}. At longer"
            " lead times"
        ),
        "the base has to forecast the state first, and the effect of a strategy on the base",
        f"matters: {share(frozen, 3)} and {share(full, 3)} at +24 h.",
        "",
        "**Does the backbone matter, or only the head?** On a backbone of random weights the",
        (
            f"same head achieves {share(scrambled)} at +6 h, which is as much: the fields drift"
            " half a patch, and"
        ),
        "the head itself sees its surroundings. At +12 h, after one step of the base itself,",
        (
            f"the shares are {share(frozen, 1)} with the pretrained backbone and"
            f" {share(scrambled, 1)} with the random one. Where"
        ),
        'precipitation comes from two patches away (`motion="storm"`, eight columns a step),',
        (
            f"the pretrained backbone also matters at +6 h: {share(far)} against"
            f" {share(far_scrambled)}. This tiny model"
        ),
        "forecasts those storms less well than the slower motions.",
        "",
        (
            f"**LoRA or freezing?** LoRA achieves {share(lora)} at +6 h and {share(lora, 3)} at +24"
            " h, and freezing"
        ),
        (
            f"achieves {share(frozen)} and {share(frozen, 3)}. LoRA also trains the base, at"
            f" {lora['seconds_a_step'] / frozen['seconds_a_step']:.1f} times the time of a step"
        ),
        (
            f"and {lora['peak'] / frozen['peak']:.1f} times the memory. Compared with full"
            " fine-tuning, it saves memory for"
        ),
        "gradients and the optimiser. On such a small model the saving is small: LoRA takes",
        (
            f"{lora['peak'] / full['peak']:.2f} of the memory. For AuroraSmall, see"
            " [memory](memory.md)."
        ),
        "",
        "**Aurora's own LoRA, PEFT, or both?** Aurora's own LoRA adapts only attention and",
        "depends on the rollout step. PEFT's adapts attention and MLP, offers more methods, and",
        (
            f"is saved in a format that other tools read. They achieve {share(lora)} and"
            f" {share(peft)} at +6 h, and"
        ),
        (
            f"{share(lora, 3)} and {share(peft, 3)} at +24 h. One after the other (the first merged"
            " into the weights)"
        ),
        f"achieves {share(rows['lora, then peft'])} and {share(rows['lora, then peft'], 3)}:",
        "no more than either alone."
        if rows["lora, then peft"]["share"][0] <= max(lora["share"][0], peft["share"][0]) + 0.01
        else "a little more than either alone.",
        "",
        "**Is training on precipitation alone enough?** Not for forecasts beyond +6 h. With",
        (
            f"`base_loss=0` the state's error at +24 h is {alone['state'][3]:.2f} of its standard"
            " deviation, against"
        ),
        (
            f"{untuned['state'][3]:.2f} untuned and {full['state'][3]:.2f} with the default, and"
            f" the share at +24 h is {share(alone, 3)} instead of"
        ),
        f"{share(full, 3)}.",
        "",
        "**Do these results apply to the real Aurora?** These are synthetic fields, a tiny",
        "model and one seed. The ranking of the costs carries over, and so does the need to",
        "preserve the state. Measure on your own data: the script's cases are arguments of",
        "`finetune`. WeatherPEFT reports plain LoRA far behind full tuning for regional",
        "precipitation.",
        "",
        f"{report['date']}; {report['machine']}; "
        + ", ".join(f"{k} {v}" for k, v in report["versions"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pretrain", action="store_true")
    parser.add_argument(
        "--keep", action="store_true", help="rewrite the page and the figure from the report"
    )
    parser.add_argument("--one", help="run one case and print the result as JSON")
    parser.add_argument(
        "--only", nargs="*", help="rerun these cases; take the others from the report"
    )
    options = parser.parse_args()
    path = ROOT / "benchmarks" / "reports" / "strategies.json"
    if options.pretrain:
        pretrain(ASSETS)
        return
    if options.one:
        print(json.dumps(learn(options.one)))
        return
    from xaurora.utils import provenance

    before = json.loads(path.read_text()) if path.exists() else {"rows": []}
    kept = {r["case"]: r for r in before["rows"]} if options.keep or options.only else {}
    rows = []
    for name in {**CASES, **FAR}:
        if name in kept and name not in (options.only or ()):
            rows.append(kept[name])
            continue
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        r = rows[-1]
        print(
            f"{name}: share {r['share'][0]:.3f}, at +24 h {r['share'][3]:.3f}, state"
            f" {r['state'][3]:.3f}",
            flush=True,
        )
    report = {
        "date": before.get("date") if options.keep else provenance.now(),
        "versions": provenance.versions(),
        "machine": f"{platform.machine()}, one thread, no GPU",
        "rows": rows,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    figure(report, ROOT / "docs" / "strategies.png")
    (ROOT / "docs" / "strategies.md").write_text(page(report))


if __name__ == "__main__":
    main()

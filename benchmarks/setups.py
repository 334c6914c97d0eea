"""Compare the published ways of fine-tuning Aurora, on synthetic fields and on ERA5 over Norway.

    python benchmarks/setups.py           # writes benchmarks/reports/setups.json, docs/setups.md
                                          # and its figure
    python benchmarks/setups.py --keep    # rewrites the page and the figure from the report

Each setup starts from the same model and is scored by lead time on init times that were not used in
training. Their scores do not influence any choice (``validations=1``). The interval comes from a
block bootstrap over init times of the difference from the untuned start.
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
START = 10  # training steps of the tiny model that is the start for Norway
LEADS = ("6h", "12h", "18h", "24h")
STATE = {"synthetic": ("t2m", "u10", "v10", "msl"), "norway": ("t2m", "u10", "v10", "msl")}

# Arguments for a pretrained Aurora. TINY overrides them for the tiny models used here, with higher
# rates and fewer steps.
RECIPES: dict[str, dict[str, Any]] = {
    "1 full, one step": {
        "strategy": "full",
        "learning_rate": 5e-5,
        "schedule": "constant",
        "warmup": 1000,
    },
    "2 two steps": {"strategy": "full", "rollout_steps": 2, "learning_rate": 5e-5},
    "3 LoRA, push-forward": {
        "strategy": "lora",
        "rollout_steps": 3,
        "push_forward": True,
        "learning_rate": 5e-5,
    },
    "4 replay buffer": {
        "strategy": "lora",
        "rollout_steps": 4,
        "replay_buffer": 200,
        "learning_rate": 5e-5,
    },
    "5 head, batch 1, bf16": {"strategy": "frozen", "batch_size": 1, "precision": "bf16"},
    "6 IMERG as target": {"strategy": "frozen"},
}
TINY: dict[str, dict[str, Any]] = {
    "1 full, one step": {"learning_rate": 3e-4, "warmup": 20, "steps": 200},
    "2 two steps": {"learning_rate": 3e-4, "steps": 120},
    "3 LoRA, push-forward": {"learning_rate": 3e-3, "steps": 120},
    "4 replay buffer": {"learning_rate": 3e-3, "steps": 200},
    "5 head, batch 1, bf16": {"steps": 300, "batch_size": 1},
    "6 IMERG as target": {"steps": 150},
}


def synthetic() -> tuple[Any, Any, dict[str, Any]]:
    """Return the fields, their training part, and the start model."""
    import xaurora

    ds = xaurora.synthetic(times=360, seed=11)
    past = ds.isel(time=slice(None, 300))
    return ds, past, {"model": "tiny-pretrained"}


def norway(folder: Path) -> tuple[Any, Any]:
    """Return a week of real six-hourly ERA5 without precipitation, and its split."""
    import xaurora

    files = folder / "era5_norway_2025-06"
    ds = xaurora.open(files / "pressure_levels.nc", files / "surface.nc").load()
    return ds, {
        "train": ("2025-06-01", "2025-06-05T00"),
        "validation": ("2025-06-05T06", "2025-06-08"),
    }


def imerg_like(ds: Any) -> Any:
    """Return precipitation as a satellite would observe it.

    It is on a separate grid and has no values poleward of 60°.
    """
    truth = ds[["tp"]].interp(
        latitude=np.arange(87.75, -88.0, -4.5),
        longitude=np.arange(0.0, 360.0, 5.0),
        method="nearest",
    )
    truth["tp"].attrs.update(ds["tp"].attrs)
    return truth.where(abs(truth["latitude"]) <= 60.0).assign_attrs(ds.attrs)


def errors(forecast: Any, ds: Any, name: str, kind: str) -> np.ndarray:
    """Return the area mean of an error, ``(init_time, lead_time)``, NaN where there is no truth."""
    from xaurora import distributions
    from xaurora.fields.grid.weights import latitude_weights

    axis = (
        "latitude" if "latitude" in ds.dims else next(d for d in ds[name].dims if "lat" in str(d))
    )
    time = next(d for d in ds[name].dims if "time" in str(d))
    weight = latitude_weights(forecast[axis].values)[:, None]
    cut = ds[name].sel({axis: forecast[axis], "longitude": forecast["longitude"]})
    cut = cut.transpose(time, axis, "longitude")
    have = {t: i for i, t in enumerate(cut[time].values)}
    values = forecast[name].transpose("init_time", "lead_time", axis, "longitude").values
    valid = forecast["valid_time"].values
    out = np.full(valid.shape, np.nan)
    law = distributions.from_attrs(forecast[name].attrs) if kind == "crps" else None
    for i, j in np.ndindex(*valid.shape):
        if valid[i, j] in have:
            y = cut.values[have[valid[i, j]]].astype(float)
            if law is None:
                field = np.abs(values[i, j] - y) if kind == "mae" else (values[i, j] - y) ** 2
            else:
                params = {
                    p: forecast[f"{name}_{p}"].values[i, j].astype(float) for p in law.parameters
                }
                field = law.crps(params, y)
            out[i, j] = float(np.nansum(field * weight) / np.sum(np.isfinite(field) * weight))
    return out


def bootstrap(start: np.ndarray, tuned: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean relative gain over the start, and its 95 % interval.

    A circular block bootstrap over init times, in blocks of two days (or a third of a shorter
    series), because neighbouring times are correlated.
    """
    kept = np.isfinite(start).any(axis=1)
    gain = np.nanmean((start - tuned)[kept], axis=1) / np.nanmean(start)
    rng = np.random.default_rng(seed)
    block = max(min(8, len(gain) // 3), 1)
    first = rng.integers(len(gain), size=(4000, -(-len(gain) // block), 1))
    place = (first + np.arange(block)).reshape(4000, -1)[:, : len(gain)] % len(gain)
    means = gain[place].mean(axis=1)
    return float(gain.mean()), *map(float, np.quantile(means, (0.025, 0.975)))


def run(name: str, where: str, data: Path, scale: float = 1.0) -> dict[str, Any]:
    """Train one setup, and score it and its untuned start.

    A ``scale`` below one takes that share of the steps, samples and init times.
    """
    options = {**RECIPES[name], **TINY[name], "validations": 1, "progress": False}
    options["steps"] = max(int(options["steps"] * scale), 2)
    options.setdefault("batch_size", 4)
    target: Any = ["all", "tp"]
    with tempfile.TemporaryDirectory() as out:
        if where == "synthetic":
            ds, past, start = synthetic()
            past = past.isel(time=slice(-max(int(past.sizes["time"] * scale), 20), None))
            target = "tp"
            if name.startswith("6"):
                options["truth"] = imerg_like(past)
            untuned = past.aurora.finetune(
                "tp",
                **start,
                strategy="frozen",
                steps=1,
                learning_rate=1e-12,
                out=Path(out) / "u",
                progress=False,
            )
            scored, kind = ["tp"], "crps"
            init_times = ds["time"].values[301:355]
        else:
            ds, split = norway(data)
            past = ds
            head_alone = options["strategy"] == "frozen"
            known = ds.drop_vars("t2m") if head_alone else ds
            untuned = known.aurora.finetune(
                "all",
                model="tiny",
                strategy="full",
                steps=max(int(START * scale), 2),
                batch_size=4,
                out=Path(out) / "u",
                validations=1,
                progress=False,
                **split,
            )
            start = {"model": untuned}
            target = "t2m" if head_alone else "all"
            options |= split
            if head_alone:  # the start is a head that predicts only the climatology
                untuned = ds.aurora.finetune(
                    "t2m",
                    **start,
                    strategy="frozen",
                    steps=1,
                    learning_rate=1e-12,
                    out=Path(out) / "h",
                    progress=False,
                    **split,
                )
            scored, kind = (["t2m"], "crps") if head_alone else (list(STATE[where]), "mse")
            time = next(str(d) for d in ds.dims if "time" in str(d))
            init_times = ds[time].values[18:-1]
        init_times = init_times[: max(int(len(init_times) * scale), 4)]
        tuned = past.aurora.finetune(target, **start, **options, out=Path(out) / "run")
        leads = LEADS if not (where == "norway" and scored == ["t2m"]) else LEADS[:1]
        shown = (
            scored
            if scored == ["t2m"]
            else [*STATE[where], *(["tp"] if where == "synthetic" else [])]
        )
        before, after = (
            ds.aurora.predict(
                list(leads), model=m, time=init_times, variables=shown, progress=False
            )
            for m in (untuned, tuned)
        )
    a, b = (
        np.mean(
            [errors(f, ds, n, kind) / np.nanmean(errors(before, ds, n, kind)) for n in scored],
            axis=0,
        )
        for f in (before, after)
    )
    curves: dict[str, Any] = {}
    for variable in shown:
        curves[variable] = {
            label: {
                "rmse": np.sqrt(np.nanmean(errors(f, ds, variable, "mse"), axis=0)).tolist(),
                "mae": np.nanmean(errors(f, ds, variable, "mae"), axis=0).tolist(),
            }
            for label, f in (("untuned", before), ("tuned", after))
        }
    trained = min(options.get("rollout_steps", 1), len(leads))
    gain = bootstrap(a[:, :trained], b[:, :trained])
    return {
        "setup": name,
        "where": where,
        "scored": scored,
        "score": kind,
        "steps": options["steps"],
        "gain": gain,
        "curves": curves,
        "leads": list(leads),
        "scored_to": leads[trained - 1],
        "init_times": len(init_times),
    }


def figure(report: dict[str, Any], path: Path) -> None:
    """Plot RMSE and MAE by lead time, with one line for each setup.

    The panels show precipitation and temperature of the synthetic fields, and temperature over
    Norway.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(13, 7), layout="constrained")
    axes = fig.subplots(2, 3)
    panels = (
        ("synthetic", "tp", 1e3, "rain in mm, synthetic"),
        ("synthetic", "t2m", 1.0, "t2m in K, synthetic"),
        ("norway", "t2m", 1.0, "t2m in K, Norway"),
    )
    for column, (where, variable, factor, title) in enumerate(panels):
        for row, score in enumerate(("rmse", "mae")):
            ax = axes[row, column]
            rows = [r for r in report["rows"] if r["where"] == where and variable in r["curves"]]
            for r in rows:
                hours = [int(lead[:-1]) for lead in r["leads"]]
                colour = f"C{list(RECIPES).index(r['setup'])}"
                values = np.array(r["curves"][variable]["tuned"][score]) * factor
                ax.plot(hours, values, "o-", color=colour, label=r["setup"])
            whole = max(rows, key=lambda r: len(r["leads"]))
            hours = [int(lead[:-1]) for lead in whole["leads"]]
            start = np.array(whole["curves"][variable]["untuned"][score]) * factor
            ax.plot(hours, start, "k:", label="untuned")
            ax.set_title(f"{score.upper()} of {title}", fontsize=10)
            ax.set_xticks(hours)
            ax.set_ylim(bottom=0.0)
            ax.set_xlabel("lead time in h")
    handles: dict[str, Any] = {}
    for ax in axes.ravel():
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = sorted(handles)
    fig.legend(
        [handles[k] for k in order], order, loc="outside lower center", ncols=7, frameon=False
    )
    fig.savefig(path, dpi=120)


def page(report: dict[str, Any]) -> str:
    """Return the text of the page: the recipes, and the report in a table."""
    typed = {
        "1 full, one step": (
            "All parameters train on one step, as in the first stage of Aurora's own fine-tuning"
            " (Bodnar et al. 2025, supplement D)."
        ),
        "2 two steps": (
            "Two steps, with averaged losses and gradients through both. The model learns how its"
            " first step affects the second."
        ),
        "3 LoRA, push-forward": (
            "Low-rank adapters on a frozen base, three steps, no gradient between steps. Long"
            " forecasts need the memory of one step."
        ),
        "4 replay buffer": (
            "Forecasts are kept and advanced one step at a time, up to `rollout_steps` (40 for ten"
            " days). One in ten is fresh. Aurora's long forecasts were tuned in this way."
        ),
        "5 head, batch 1, bf16": (
            "For small GPUs: the backbone is frozen and runs in bfloat16, and only the head trains."
        ),
        "6 IMERG as target": (
            "Satellite precipitation, regridded onto the data's grid. Points without observations"
            " are left out."
        ),
    }
    shown = {
        "1 full, one step": (
            'ds.aurora.finetune("tp", strategy="full", learning_rate=5e-5, schedule="constant",'
            " warmup=1000)"
        ),
        "2 two steps": (
            'ds.aurora.finetune("tp", strategy="full", rollout_steps=2, learning_rate=5e-5)'
        ),
        "3 LoRA, push-forward": (
            'ds.aurora.finetune("tp", strategy="lora", rollout_steps=3, push_forward=True,'
            " learning_rate=5e-5)"
        ),
        "4 replay buffer": (
            'ds.aurora.finetune("tp", strategy="lora", rollout_steps=40, replay_buffer=200,'
            " learning_rate=5e-5)"
        ),
        "5 head, batch 1, bf16": (
            'ds.aurora.finetune("tp", strategy="frozen", batch_size=1, precision="bf16")'
        ),
        "6 IMERG as target": (
            'ds.aurora.finetune("tp", truth=xaurora.open_imerg("imerg/*.HDF5"), strategy="frozen")'
        ),
    }
    lines = [
        "# Recipes",
        "",
        "Written by `benchmarks/setups.py` from `benchmarks/reports/setups.json`. Each recipe",
        "consists of arguments only. The learning rates and lengths are those published for a",
        "pretrained Aurora. The runs below use tiny models, with higher rates and fewer steps",
        "(`TINY` in the script).",
        "",
        'To split by years, use `train=("2016", "2023"), validation="2024"`, with 2025 as the',
        "test year. Windows never cross from one part into the other. This covers the history,",
        "the rollout and the hours of a total. The pretrained Auroras used ERA5 up to",
        "2020, and `finetune` reports an overlap with the validation period.",
        "",
    ]
    for name, words in typed.items():
        lines += [f"**{name}.** {words}", "", "```python", shown[name], "```", ""]
    lines += [
        "## Side by side",
        "",
        "The table shows the gain over the untuned start on init times that were not used in",
        "training: the mean over the lead times that the setup trains, with a 95 % interval",
        "from a block bootstrap over init times. For the synthetic fields the score is the CRPS",
        "of precipitation, and the start is `tiny-pretrained` with a head that predicts only",
        "the climatology. For Norway, a week of real ERA5 without precipitation, the score is",
        "the squared error of four surface variables, each divided by that of the start, which",
        f"is a `tiny` after {START} steps. There, setup 5 trains a head for t2m on a base without",
        "t2m, and its score is the CRPS at +6 h.",
        "",
        "| setup | fields | score | up to | steps | gain | 95 % interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in report["rows"]:
        g = r["gain"]
        score = f"{r['score'].upper()} of {', '.join(r['scored'])}"
        lines.append(
            f"| {r['setup']} | {r['where']} | {score} | +{r['scored_to']} | {r['steps']} |"
            f" **{100 * g[0]:.0f} %** | {100 * g[1]:.0f} to {100 * g[2]:.0f} % |"
        )
    lines += [
        "",
        "![RMSE and MAE by lead time](setups.png)",
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
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("SETUP", "FIELDS"))
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    options = parser.parse_args()
    path = ROOT / "benchmarks" / "reports" / "setups.json"
    if options.one:
        print(json.dumps(run(*options.one, options.data, options.scale)))
        return
    from xaurora.utils import provenance

    report = json.loads(path.read_text()) if options.keep else None
    if report is None:
        rows = []
        places = ["synthetic"] + (
            ["norway"] if (options.data / "era5_norway_2025-06").is_dir() else []
        )
        for where in places:
            for name in RECIPES:
                if where == "norway" and name.startswith("6"):
                    continue  # there is no satellite precipitation for that week
                command = [
                    sys.executable,
                    __file__,
                    "--one",
                    name,
                    where,
                    "--data",
                    str(options.data),
                ]
                done = subprocess.run(
                    [*command, "--scale", str(options.scale)],
                    capture_output=True,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
                if done.returncode:
                    raise SystemExit(done.stderr)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(name, where, [round(v, 3) for v in rows[-1]["gain"]], flush=True)
        machine = f"{platform.machine()}, one thread, no GPU"
        report = {
            "date": provenance.now(),
            "versions": provenance.versions(),
            "machine": machine,
            "rows": rows,
        }
        path.write_text(json.dumps(report, indent=1) + "\n")
    figure(report, ROOT / "docs" / "setups.png")
    (ROOT / "docs" / "setups.md").write_text(page(report))


if __name__ == "__main__":
    main()

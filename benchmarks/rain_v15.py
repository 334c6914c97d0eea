r"""Compare the rain of Aurora 1.5, of its ensemble and of tuned heads, against ERA5 and IMERG.

    python benchmarks/rain_v15.py --data era5.zarr --static aurora-v1.5-static.pickle \
        --weights aurora-0.25-v1.5.ckpt --ensemble-weights aurora-0.25-v1.5-ensemble.ckpt \
        --head mine=runs/tp/best --head tuned=runs/own/best \
        --imerg "imerg/*.HDF5" --year 2022 --inits 52 --out rain
    python benchmarks/rain_v15.py --small          # tiny models on synthetic fields, here
    python benchmarks/rain_v15.py --sharing        # what lead times share, counted and timed
    python benchmarks/rain_v15.py --pretrain       # makes tiny-v1.5-pretrained, in 15 minutes

A run says first how long it will take and what it will store. Forecasts are written one init time
after another, so that an interrupted run resumes. The scores of all models are taken at the same
init times, lead times and points: rain over six hours, 6 to 72 hours ahead. ``rain.json`` has them
with the confidence intervals of their differences from the first model, and ``rain.html`` is the
scorecard. ``docs/aurora-1.5.md`` lists where the inputs can be read from.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "xaurora" / "assets"
METRICS = ("crps", "rmse", "mae", "bias", "seeps")
ABOVE = ("csi", "frequencybias")  # of amounts above each threshold
LEAD = "72h"


def compare(
    data: Any,
    models: dict[str, dict[str, Any]],
    out: Path,
    *,
    truths: dict[str, Any],
    inits: np.ndarray,
    lead: str = LEAD,
    only_estimate: bool = False,
) -> dict[str, Any]:
    """Forecast with every model, score against every truth, and write scorecards and JSON.

    Parameters
    ----------
    data : Dataset
        Fields that the forecasts start from.
    models : dict
        Arguments of ``predict`` by label.
    out : Path
    truths : dict of Dataset
        By label.
    inits : ndarray of datetime64
    lead : str
        The longest lead time.
    only_estimate : bool
        Say what it would take, and stop.
    """
    import xaurora

    seconds = {name: _seconds(data, options, inits[0]) for name, options in models.items()}
    steps = np.timedelta64(int(lead.removesuffix("h")), "h") // np.timedelta64(6, "h")
    total = sum(seconds.values()) * steps * len(inits)
    size = _bytes(data, models, len(inits) * int(steps))
    print(f"{len(inits)} init times, {len(models)} models, {steps} steps of six hours each:")
    for name, own in seconds.items():
        print(f"  {name}: {own:.2f} s a step")
    print(f"about {total / 3600:.2f} h, and {size / 1e9:.2f} GB in {out} before compression")
    if only_estimate:
        return {"hours": total / 3600, "gigabytes": size / 1e9}
    forecasts = {
        name: data.aurora.predict(
            lead, time=inits, variables=["tp"], store=out / f"{name}.zarr", **options
        )
        for name, options in models.items()
    }
    report: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {_device()}",
        "models": {name: _described(options["model"]) for name, options in models.items()},
        "inits": [str(inits[0]), str(inits[-1]), len(inits)],
        "seconds a step": {name: round(own, 3) for name, own in seconds.items()},
        "scores": {},
    }
    for label, truth in truths.items():
        climatology = xaurora.climatology(truth, ["tp"]) if len(truth.time) > 1000 else None
        metrics = [m for m in METRICS if climatology is not None or m != "seeps"]
        scores = xaurora.compare(
            forecasts,
            truth,
            climatology=climatology,
            metrics=[*metrics, *ABOVE],
            regrid="conservative",
        )
        first, *others = scores
        report["scores"][label] = {
            name: {metric: _by_lead(of["tp"].sel(metric=metric)) for metric in metrics}
            | {
                f"{metric} above {threshold:g} mm": _by_lead(
                    of["tp_exceed"].sel(metric=metric, threshold_mm=threshold)
                )
                for metric in ABOVE
                for threshold in of["threshold_mm"].values
            }
            for name, of in scores.items()
        }
        report["scores"][label]["differences"] = {
            other: _differences(scores[other], scores[first]) for other in others
        }
        scores[first].aurora.scorecard(
            out / f"rain-{label}.html",
            baseline={name: scores[name] for name in others},
            name=first,
            title=f"Rain over six hours against {label}",
            overwrite=True,
        )
    (out / "rain.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _seconds(data: Any, options: dict[str, Any], init: np.datetime64) -> float:
    """Return the seconds that a step of six hours takes, from two short forecasts."""
    took = []
    for lead in ("6h", "12h"):
        began = time.perf_counter()
        data.aurora.predict(lead, time=init, variables=["tp"], progress=False, **options)
        took.append(time.perf_counter() - began)
    return max(took[1] - took[0], took[0] / 10)


def _bytes(data: Any, models: dict[str, dict[str, Any]], fields: int) -> float:
    points = data.sizes["latitude"] * data.sizes["longitude"]
    members = sum(max(options.get("members", 0), 4) for options in models.values())
    return 4.0 * points * members * fields


def _by_lead(values: Any) -> dict[str, float | None]:
    """Return global scores by lead time; None where there is none."""
    own = values.sel(region="global")
    hours = (own["lead_time"] / np.timedelta64(1, "h")).values.astype(int)
    pairs = zip(hours, own.values, strict=True)
    return {f"{hour} h": float(v) if np.isfinite(v) else None for hour, v in pairs}


def _described(model: Any) -> str:
    return model if isinstance(model, str) else f"tuned on {model.base_name}"


def _differences(scores: Any, baseline: Any) -> dict[str, Any]:
    """Return the skill against the first model with its 95 % interval, by metric and lead time."""
    import xaurora

    found = xaurora.significance(scores, baseline)["tp"].sel(region="global")
    hours = (found["lead_time"] / np.timedelta64(1, "h")).values.astype(int)
    return {
        str(metric): {
            f"{hour} h": [
                round(float(v), 4)
                for v in found.sel(metric=metric, estimate=["skill", "low", "high", "p"]).values[
                    :, place
                ]
            ]
            for place, hour in enumerate(hours)
        }
        for metric in found["metric"].values
        if metric in METRICS
    }


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def small(
    out: Path, *, steps: int = 200, times: int = 500, shape: tuple[int, int] = (32, 64)
) -> dict[str, Any]:
    """Run the comparison with tiny models on synthetic fields."""
    import xaurora

    ds = xaurora.synthetic(shape=shape, times=times, model="v1.5")
    past, present = ds.isel(time=slice(None, times - 100)), ds.isel(time=slice(times - 100, None))
    tuned = {
        name: past.aurora.finetune(
            "tp",
            model="tiny-v1.5-pretrained",
            head=head,
            steps=steps,
            batch_size=4,
            out=out / name,
            workers=0,
            overwrite=True,
            progress=False,
        )
        for name, head in (("head", "auto"), ("own tuned", "own"))
    }
    models: dict[str, dict[str, Any]] = {
        "own": {"model": "tiny-v1.5-pretrained"},
        "ensemble": {"model": "tiny-v1.5-ensemble", "members": 4},
        **{name: {"model": model} for name, model in tuned.items()},
    }
    inits = present.time.values[2:-4:8]
    return compare(present, models, out, truths={"synthetic": present}, inits=inits, lead="12h")


def real(arguments: argparse.Namespace) -> None:
    """Run the comparison on ERA5 and IMERG."""
    import xaurora

    data = xaurora.open(*arguments.data)
    common = {"static_file": arguments.static, "precision": arguments.precision}
    models: dict[str, dict[str, Any]] = {
        "v1.5": {"model": "v1.5", "weights": arguments.weights, **common},
        "v1.5-ensemble": {
            "model": "v1.5-ensemble",
            "weights": arguments.ensemble_weights,
            "members": arguments.members,
            **common,
        },
    }
    for given in arguments.head:
        name, path = given.split("=", 1)
        tuned = xaurora.load(path)
        own = {"static_file": arguments.static} if tuned.needs.computed else {}
        models[name] = {"model": tuned, "precision": arguments.precision, **own}
    truths = {"ERA5": data}
    if arguments.imerg:
        truths["IMERG"] = xaurora.open_imerg(arguments.imerg, grid=data)
    year = data.time.dt.year.values == arguments.year
    hours = np.isin(data.time.dt.hour.values, (0, 12))
    there = data.time.values[year & hours][1:]
    places = np.unique(np.linspace(0, len(there) - 1, min(arguments.inits, len(there))).astype(int))
    compare(
        data,
        models,
        arguments.out,
        truths=truths,
        inits=there[places],
        only_estimate=arguments.estimate,
    )


def pretrain() -> None:
    """Train ``tiny-v1.5`` on synthetic fields, and write it to the package in bfloat16.

    States at the hours in between are interpolated, and an hour has a sixth of the rain. It learns
    its inputs and rain together, at all six lead times.
    """
    import torch
    from safetensors.torch import save_file

    import xaurora
    from xaurora.model import placement
    from xaurora.model.aurora import AuroraWithHead, Lead
    from xaurora.model.tiny import build_tiny_v15
    from xaurora.training import losses

    steps, size = 4000, 4
    model = build_tiny_v15(stochastic=False)
    module = AuroraWithHead(model)
    parts = [
        xaurora.synthetic(times=400, seed=100 + i, motion=motion, model="v1.5")
        for i, motion in enumerate(("east", "west", "fast", "still"))
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rng = np.random.default_rng(0)
    frames = [_frames(ds) for ds in parts]
    running, began = 0.0, time.perf_counter()
    for step in range(steps):
        batch, before, after, rain, grid = frames[int(rng.integers(len(frames)))](rng, size)
        hours = int(rng.integers(1, 7))
        share = hours / 6
        truth = {
            kind: {n: (1 - share) * before[kind][n] + share * after[kind][n] for n in after[kind]}
            for kind in after
        }
        area = torch.from_numpy(np.cos(np.deg2rad(grid.latitude)))[:, None].float()
        domain = losses.Domain(area, (slice(None), slice(None)))
        with placement.on_grid(module, grid):
            prediction = module(batch, lead=Lead(hours)).prediction
            loss, *_ = losses.base_loss_terms(model, prediction, truth, domain)
            own = prediction.surf_vars["scaled_tp_1h"][:, 0].clamp(min=-0.00099)
            loss = loss + 0.5 * (torch.log1p(own / 1e-3) - torch.log1p(rain / 6e-3)).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running += float(loss.detach())
        if step % 100 == 99:
            print(f"{step + 1} {running / 100:.4f} {time.perf_counter() - began:.0f} s", flush=True)
            running = 0.0
    state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(state, ASSETS / "tiny-v1.5.safetensors")


def _frames(ds: Any) -> Any:
    """Return what draws a batch with the states before and after, and the rain in between."""
    import torch

    from xaurora.fields import conventions, requirements
    from xaurora.model.loader import Loader
    from xaurora.model.models import TABLE

    fields = conventions.standardise(ds)
    used, _ = requirements.select_and_crop(fields, TABLE["tiny-v1.5"].needs)
    grid = used.layout.grid
    loader = Loader(used, {}, scored=used, most=10_000, budget=2 * 1024**3)
    rain = torch.from_numpy(ds["tp"].values)

    def draw(rng: np.random.Generator, size: int) -> tuple[Any, ...]:
        places = rng.integers(1, len(used.times) - 1, size)
        times = [used.times[i] for i in places]
        state = loader.truth(times).state
        following = loader.truth([used.times[i + 1] for i in places]).state
        return loader.batch(times), state, following, rain[places + 1], grid

    return draw


def sharing() -> None:
    """Count the operations of six lead times at 0.25°, and time the tiny model, with and without.

    Without sharing, each lead time encodes the state again, as upstream's rollout does.
    """
    import contextlib

    import torch
    from aurora import AuroraV1p5, Batch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from xaurora.fields.grid import lattice
    from xaurora.fields.variables import LEVELS
    from xaurora.model import memory, placement, rollout
    from xaurora.model.aurora import AuroraWithHead
    from xaurora.model.batch import metadata
    from xaurora.model.models import TABLE
    from xaurora.model.tiny import build_tiny_v15

    @contextlib.contextmanager
    def without() -> Any:
        real = rollout._sharing
        rollout._sharing = lambda *a, **k: contextlib.nullcontext()
        try:
            yield
        finally:
            rollout._sharing = real

    needs = TABLE["v1.5"].needs

    def run(module: AuroraWithHead, shape: tuple[int, int]) -> None:
        rows, columns = shape
        lat = 90 - (np.arange(rows) + 0.5) * 180 / rows
        grid = lattice.from_axes(lat, np.arange(columns) * 360 / columns)
        batch = Batch(
            {n: torch.rand(1, 2, *shape) for n in needs.surface},
            {n: torch.rand(*shape) for n in needs.static},
            {n: torch.rand(1, 2, len(LEVELS), *shape) for n in needs.atmos},
            metadata(grid, [np.datetime64("2020-01-01", "ns")], tuple(map(float, LEVELS))),
        )
        with torch.no_grad(), placement.on_grid(module, grid):
            for _ in rollout.leads(module, batch, range(1, 7)):
                pass

    def counted() -> float:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.device("meta"), memory.LiveBytes():
            model = AuroraV1p5(autocast=False, use_fp16_safe_attention=False)
        fake = memory.fake_copy(AuroraWithHead(model), mode, "cpu").eval()
        counter = memory.LiveBytes()
        with mode, counter, memory.cleared_mask_cache():
            run(fake, (720, 1440))
        return counter.flops / 1e12

    def timed() -> float:
        module = AuroraWithHead(build_tiny_v15(stochastic=False)).eval()
        took = []
        for _ in range(7):
            began = time.perf_counter()
            run(module, (96, 192))
            took.append(time.perf_counter() - began)
        return float(np.median(took))

    report = {"machine": platform.machine(), "grid": "720 x 1440, 13 levels, six lead times"}
    report["tflop shared"], report["tiny seconds shared"] = counted(), timed()
    with without():
        report["tflop encoded again"], report["tiny seconds encoded again"] = counted(), timed()
    path = Path(__file__).parent / "reports" / "v15-sharing.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", help="ERA5: files or stores with all inputs.")
    parser.add_argument("--static", help="aurora-v1.5-static.pickle, or an .npz of it.")
    parser.add_argument("--weights", help="Checkpoint of v1.5.")
    parser.add_argument("--ensemble-weights", help="Checkpoint of v1.5-ensemble.")
    parser.add_argument("--head", action="append", default=[], help="name=path of a tuned model.")
    parser.add_argument("--imerg", nargs="*", help="IMERG granules.")
    parser.add_argument("--year", type=int, default=2022)
    parser.add_argument("--inits", type=int, default=52)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=Path("rain"))
    parser.add_argument("--estimate", action="store_true", help="Only say what it would take.")
    parser.add_argument("--small", action="store_true", help="Tiny models, synthetic fields.")
    parser.add_argument("--sharing", action="store_true", help="What lead times share.")
    parser.add_argument("--pretrain", action="store_true", help="Make tiny-v1.5-pretrained.")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.pretrain:
        pretrain()
    elif arguments.sharing:
        sharing()
    elif arguments.small:
        small(arguments.out)
    elif arguments.data:
        real(arguments)
    else:
        parser.error("--data is needed, or --small")


if __name__ == "__main__":
    main()

"""Compare the simulated peak of a step with the bytes that are counted while it runs on a CPU.

    python benchmarks/simulated.py           # writes benchmarks/reports/simulated.json
    python benchmarks/simulated.py --page    # writes docs/cards.md from it

Both run the same code, once with tensors that have no values. Tensors that leave the device are
not counted: on a CPU they are copied to memory that is not tracked. ``--cards`` writes the peaks of
AuroraSmall and the 1.3-billion model on GPUs at 0.25°, simulated alone (ten minutes).
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cases
import numpy as np
import torch
import xarray as xr
from aurora import AuroraSmallPretrained

import xaurora
from xaurora.fields.grid import lattice
from xaurora.fields.variables import LEVELS
from xaurora.forecasting.memory import forward_peak
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.batch import metadata
from xaurora.model.memory import LiveBytes
from xaurora.model.options import StrategyOptions
from xaurora.model.tiny import randomise_modulation
from xaurora.training import costs, fitting, simulate
from xaurora.training import plan as planning
from xaurora.training.options import FinetuneOptions
from xaurora.utils import provenance

REPORT = Path(__file__).parent / "reports" / "simulated.json"
CPU = torch.device("cpu")
STRATEGIES = ("frozen", "lora", "full")
SIZES = {"tiny": (64, 128), "small": (48, 96), "small, wider": (64, 120)}
CARDS = {"base": (721, 1440), "small": (721, 1440), "v1.5": (721, 1440)}


def small() -> AuroraSmallPretrained:
    """Return AuroraSmall with random weights and active modulation."""
    torch.manual_seed(0)
    base = AuroraSmallPretrained(use_lora=False)
    randomise_modulation(base)
    return base


def plans(ds: xr.Dataset, model: Any, strategy: str, *, gpu: bool) -> list[planning.Plan]:
    """Return a plan for each way in which the step can run."""
    options = FinetuneOptions(
        target="tp", model=model, strategy=StrategyOptions(strategy), steps=10, precision="bf16"
    )
    plan = planning.plan(ds, options)
    ways = fitting.measures_for(plan, gpu=True) if gpu else fitting.MEASURES
    if strategy == "frozen":
        ways = ways[:1]
    return [fitting.with_measure(plan, way) for way in ways]


def counted(plan: planning.Plan) -> int:
    """Return the peak bytes that are counted while a step runs."""
    module, forms = simulate.real_module(plan)
    simulate.set_up_precision(plan, module, CPU, gpu=False)
    counter = LiveBytes()
    with simulate.weights_of_step(plan, module, gpu=False):
        simulate.count_step(plan, module, forms, CPU, counter)
    return counter.peak


def counted_forecast(module: AuroraWithHead, grid: lattice.Grid, levels: tuple[float, ...]) -> int:
    """Return the peak bytes that are counted while a forecast runs."""
    from aurora import Batch

    from xaurora.model import placement, rollout

    base, (h, w) = module.base, grid.shape
    counter = LiveBytes()
    for tensor in [*module.parameters(), *module.buffers()]:
        counter.track(tensor)
    module.eval().requires_grad_(False)
    with counter, torch.no_grad():
        batch = Batch(
            {n: torch.rand(1, 2, h, w) for n in base.surf_vars},
            {n: torch.rand(h, w) for n in base.static_vars},
            {n: torch.rand(1, 2, len(levels), h, w) for n in base.atmos_vars},
            metadata(grid, [np.datetime64("2020-01-01", "ns")], levels),
        )
        with placement.on_grid(module, grid):
            for _ in rollout.steps(module, rollout.prepare(module, batch), 1):
                pass
    return counter.peak


def row_of(plan: planning.Plan, name: str, simulated: int, **more: Any) -> dict[str, Any]:
    options = plan.options
    row = {
        "size": name,
        "strategy": plan.strategy.name,
        "activation_checkpointing": options.activation_checkpointing,
        "optimizer_state": options.optimizer_state,
        "simulated_gb": round(simulated / 1e9, 4),
        **more,
    }
    print(row, flush=True)
    return row


def on_cpu() -> list[dict[str, Any]]:
    """Return the rows of simulation beside count."""
    rows = []
    for name, shape in SIZES.items():
        ds = xaurora.synthetic(shape=shape, times=12, levels=(500.0, 700.0, 850.0))
        model: Any = "tiny" if name == "tiny" else small()
        for strategy in STRATEGIES:
            for plan in plans(ds, model, strategy, gpu=False):
                peak = simulate.simulate(plan, CPU).peak
                found = counted(plan)
                rows.append(
                    row_of(
                        plan,
                        name,
                        peak,
                        counted_gb=round(found / 1e9, 4),
                        ratio=round(peak / found, 4),
                    )
                )
        module = simulate.real_module(plan)[0]
        levels = tuple(plan.fields.levels)
        peak = forward_peak(module, plan.grid, levels)
        found = counted_forecast(module, plan.grid, levels)
        rows.append(
            {
                "size": name,
                "strategy": "predict",
                "simulated_gb": round(peak / 1e9, 4),
                "counted_gb": round(found / 1e9, 4),
                "ratio": round(peak / found, 4),
            }
        )
        print(rows[-1], flush=True)
    return rows


def at_full_size(name: str) -> xr.Dataset:
    """Return fields of a shape, which take no memory."""
    if name == "v1.5":
        little = xaurora.synthetic(
            shape=(8, 16), times=12, levels=tuple(map(float, LEVELS)), model="v1.5"
        )
    else:
        little = cases.fields(cases.SIZES["smoke"], times=12)
    sizes = dict(zip(("latitude", "longitude"), CARDS[name], strict=True))
    data = {
        n: (
            v.dims,
            np.broadcast_to(
                np.float32(0.0 if n in ("slt", "tvh", "tvl") else np.nanmean(v.values)),
                tuple(sizes.get(d, s) for d, s in v.sizes.items()),
            ),
            v.attrs,
        )
        for n, v in little.data_vars.items()
    }
    axes = {"latitude": 90 - np.arange(721) * 0.25, "longitude": np.arange(1440) * 0.25}
    return xr.Dataset(data, {"time": little["time"], "level": little["level"], **axes})


def on_cards(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of GPUs at 0.25°."""
    rows = []
    for name in names:
        ds = at_full_size(name)
        for strategy in STRATEGIES:
            for plan in plans(ds, name, strategy, gpu=True):
                cost = simulate.simulate(plan, CPU, gpu=True)
                rows.append(row_of(plan, name, cost.peak, host_gb=round(cost.host / 1e9, 2)))
        module = AuroraWithHead(simulate.meta_module(plan)[0].base)
        for precision in ("32", "bf16", "bf16-all"):
            peak = forward_peak(
                module, plan.grid, plan.fields.levels, precision=precision, gpu=True
            )
            rows.append(
                {
                    "size": name,
                    "strategy": "predict",
                    "precision": precision,
                    "simulated_gb": round(peak / 1e9, 4),
                }
            )
            print(rows[-1], flush=True)
    return rows


WAYS = {(m.checkpointing, m.optimizer_state): m for m in fitting.MEASURES}
CONTEXT = 0.5  # GB that CUDA takes for itself, roughly
NAMES = {
    "base": "base (1.3 billion)",
    "small": "small (AuroraSmall)",
    "v1.5": "v1.5 (1.3 billion)",
}


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by_card(rows: list[dict[str, Any]]) -> str:
    lines = []
    for name, strategy in dict.fromkeys((r["size"], r["strategy"]) for r in rows):
        own = [r for r in rows if (r["size"], r["strategy"]) == (name, strategy)]
        cells = []
        for card in costs.CARDS:
            own_bf16 = [r for r in own if r.get("precision", "bf16") == "bf16"]
            fits = [r for r in own_bf16 if 1.1 * r["simulated_gb"] + CONTEXT <= card]
            ways = [
                WAYS.get((r.get("activation_checkpointing"), r.get("optimizer_state")))
                for r in fits
            ]
            cells.append(
                "–"
                if not fits
                else "yes"
                if strategy in ("predict", "frozen")
                else SHORT[min((w for w in ways if w), key=fitting.MEASURES.index).words]
            )
        lines.append([NAMES[name], strategy, *cells])
    return _table(["model", "", *(f"{card} GB" for card in costs.CARDS)], lines)


SHORT = {
    m.words: words
    for m, words in zip(
        fitting.MEASURES,
        ("store", "recompute", "offload", "recompute, host", "offload, host"),
        strict=True,
    )
}


def _all_peaks(rows: list[dict[str, Any]]) -> str:
    lines = []
    for r in rows:
        way = WAYS.get((r.get("activation_checkpointing"), r.get("optimizer_state")))
        words = SHORT[way.words] if way is not None and r["strategy"] != "frozen" else ""
        lines.append(
            [
                NAMES[r["size"]],
                r["strategy"],
                r.get("precision", "bf16"),
                words,
                f"{r['simulated_gb']:.1f} GB",
                f"{r['host_gb']:.1f} GB" if r.get("host_gb") else "",
            ]
        )
    return _table(["model", "step", "precision", "way", "GPU", "host"], lines)


def _measured(path: Path, cards: list[dict[str, Any]]) -> str:
    known = {
        (
            r["size"],
            r["strategy"],
            r.get("precision", "bf16"),
            r.get("activation_checkpointing"),
            r.get("optimizer_state"),
        ): r["simulated_gb"]
        for r in cards
    }
    lines = []
    for r in json.loads(path.read_text())["rows"]:
        forecast = r["how"] == "predict"
        key = (
            r["size"].split("-")[0],
            r["how"],
            r["precision"],
            None if forecast else r["checkpointing"],
            None if forecast else r["optimizer_state"],
        )
        simulated = None if r["stock"] or r["compile"] else r.get("simulated_gb", known.get(key))
        way = "" if forecast else SHORT[WAYS[r["checkpointing"], r["optimizer_state"]].words]
        lines.append(
            [
                r["size"],
                r["how"],
                "stock" if r["stock"] else "xaurora" + (", compiled" if r["compile"] else ""),
                r["precision"],
                way,
                f"{r['seconds']:.2f} s",
                f"{r['peak_gb']:.1f} GB",
                f"{simulated:.1f} GB" if simulated else "",
                str(r["run"]),
            ]
        )
    titles = ["model", "step", "code", "precision", "way", "time", "peak", "simulated", "run"]
    return _table(titles, lines)


def write_page(report: dict[str, Any]) -> None:
    """Write docs/cards.md from the reports."""
    ratios = [r["ratio"] for r in report["cpu"]]
    h200 = REPORT.parent / "cards-nvidia-h200.json"
    note = json.loads(h200.read_text())
    text = PAGE.format(
        ways=_table(
            ["way", "what it does", "option"],
            [
                ["store", "everything stays on the device", "`activation_checkpointing=False`"],
                [
                    "recompute",
                    "blocks, encoder and decoder run again in the backward pass",
                    "`activation_checkpointing=True`",
                ],
                [
                    "offload",
                    "the inputs of the blocks wait in host memory meanwhile",
                    '`activation_checkpointing="offload"`',
                ],
                [
                    "host",
                    "float32 weights, gradients and the moments of AdamW are in host memory",
                    '`optimizer_state="host"`',
                ],
            ],
        ),
        by_card=_by_card(report["cards"]),
        peaks=_all_peaks(report["cards"]),
        count=len(ratios),
        worst=100 * max(abs(1 - r) for r in ratios),
        measured=_measured(h200, report["cards"]),
        machine=note["machine"],
        torch=note["versions"]["torch"],
        note=note["note"],
    )
    (REPORT.parents[2] / "docs" / "cards.md").write_text(text)


PAGE = """# Which GPU is needed?

Written by `benchmarks/simulated.py --page` from its reports. All figures are for global ERA5 at
0.25°, 13 levels, batch size 1.

```python
print(ds.aurora.estimate("tp", model="base", strategy="full", device="gpu", memory="24 GB"))
print(ds.aurora.estimate("tp", device="gpu", compare=True))  # every base, strategy and card
ds.aurora.finetune("tp", model="base", strategy="full", memory="24 GB")
```

`finetune` chooses the fastest way of running a step that fits into `memory=`, or into what is free:

{ways}

On a CPU losses and weights are the same to the bit in each of them (`benchmarks/policies.py`), on a
GPU within rounding, which bf16 amplifies: the loss of a fifth full step differed by 0.4 % where
AdamW ran on the host. In rollouts the optimiser on the host sums the gradients of the steps in the
precision of the weights. A run may be resumed in another way.

{by_card}

With `precision="bf16"`. A tenth is added for what Torch reserves, and half a gigabyte for CUDA
itself. On a card with room to spare Torch reserved 1.1 to 1.6 times the peak; on a full one it
gives back what it has cached, which was not tried on small cards. `frozen` trains a head on kept
latents; its peak is that of computing them once.

## Peaks by simulation

A step runs on tensors that have shapes and no values, with the data types that autocast uses on a
GPU. On a CPU, where the same step can be run and its bytes counted, {count} cases (three sizes, all
ways) differ from the count by at most {worst:.1f} %.

{peaks}

What makes them small, with the results of stock Aurora (to the bit on small grids, to rounding on
large ones): encoder and decoder run in strips of latitude, the decoder on a few levels at a time;
the inside of a block runs in pieces in a forecast; frozen weights of the backbone are kept in bf16,
which is what autocast makes of them in each step; tokens are gathered into windows with one copy
instead of rolled, padded and cut with several; and windows with the same mask share it.

## Measured on a GPU

{machine}, Torch {torch}, random weights (`benchmarks/cards.py`). Stock is microsoft-aurora with its
own activation checkpointing, and bf16 autocast of the backbone.

{measured}

{note}

Where both are known, the peak is within 7 % of the simulation, and within 1 % in training.
Offloading took no longer than recomputing. With `precision="bf16"` encoder and decoder stay in
float32, as upstream has them. `"bf16-tf32"` and `"bf16-all"` run them faster; what that does to
scores is in [training](training.md).
"""


def main() -> None:
    """Count and simulate, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cards", action="store_true")
    parser.add_argument("--model", choices=CARDS, action="append", help="only these cards' models")
    parser.add_argument("--page", action="store_true", help="only write docs/cards.md")
    arguments = parser.parse_args()
    before = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    if arguments.page:
        write_page(before)
        return
    names = arguments.model or list(CARDS)
    report = {
        **before,
        "machine": platform.machine(),
        "versions": provenance.versions(),
        **(
            {
                "cards": [r for r in before.get("cards", []) if r["size"] not in names]
                + on_cards(names)
            }
            if arguments.cards
            else {"cpu": on_cpu()}
        ),
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Compare the memory that ``estimate()`` predicts with the memory that training takes.

    python benchmarks/estimates.py    # writes benchmarks/reports/estimates.json, docs/memory.md

Each case runs in a fresh process that imports everything first. The measured value is the largest
resident set (VmHWM) above that of the imports, or on a GPU the largest memory allocated by Torch.
SLACK and FIXED in ``xaurora/training/costs.py`` come from the cases in CALIBRATION, which are
not in the table.
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

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (300.0, 500.0, 700.0, 850.0, 1000.0)
CALIBRATION = [
    {"model": "tiny", "strategy": "full", "shape": (48, 64), "batch_size": 2},
    {"model": "tiny", "strategy": "frozen", "shape": (48, 64), "batch_size": 2},
    {"model": "small", "strategy": "frozen", "shape": (48, 80)},
    {"model": "small", "strategy": "full", "shape": (64, 96)},
    {"model": "small", "strategy": "lora", "shape": (80, 128)},
    {
        "model": "small",
        "strategy": "lora",
        "shape": (64, 96),
        "precision": "bf16",
        "activation_checkpointing": True,
    },
    {"model": "small", "strategy": "decoder", "shape": (48, 80)},
    {"model": "small", "strategy": "peft", "shape": (80, 128)},
    {"model": "small", "strategy": "full", "shape": (80, 128), "activation_checkpointing": True},
    {"model": "tiny", "strategy": "full", "shape": (80, 128), "batch_size": 2},
]
CASES = [
    {"model": "tiny", "strategy": "full", "shape": (64, 128), "batch_size": 4},
    {"model": "tiny", "strategy": "peft", "shape": (96, 160), "precision": "bf16"},
    {"model": "tiny", "strategy": "lora", "shape": (64, 128), "rollout_steps": 3},
    {"model": "small", "strategy": "frozen", "shape": (64, 128)},
    {"model": "small", "strategy": "frozen", "shape": (96, 160), "precision": "bf16"},
    {"model": "small", "strategy": "decoder", "shape": (64, 128)},
    {"model": "small", "strategy": "lora", "shape": (64, 128)},
    {"model": "small", "strategy": "lora", "shape": (96, 160), "activation_checkpointing": True},
    {
        "model": "small",
        "strategy": "peft",
        "shape": (96, 160),
        "precision": "bf16",
        "activation_checkpointing": True,
    },
    {"model": "small", "strategy": "full", "shape": (48, 96)},
    {"model": "small", "strategy": "full", "shape": (96, 160), "activation_checkpointing": True},
    {"model": "small", "strategy": "full", "shape": (96, 160), "precision": "bf16"},
]


def resident(what: str) -> int:
    """Return the bytes of this process: ``VmRSS`` is the current value, ``VmHWM`` the peak.

    getrusage would include the peak of the parent process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    return 0


def measure(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train two steps in this process, and return the measured and the estimated memory."""
    import matplotlib.figure
    import peft
    import scipy.stats
    import torch
    import zarr
    from aurora import AuroraSmallPretrained

    import xaurora
    from xaurora.training import curves
    from xaurora.training import finetune as finetuning

    assert all(
        (matplotlib.figure, peft, scipy.stats, zarr, AuroraSmallPretrained, curves, finetuning)
    )
    gpu = torch.cuda.is_available()
    case = dict(case)
    model, strategy, rows = case.pop("model"), case.pop("strategy"), case.pop("shape")
    weights = str(folder / "small.safetensors") if model == "small" else None
    # Torch allocates memory at first use, which counts as part of the imports.
    torch.nn.functional.linear(torch.zeros(8, 8), torch.zeros(8, 8)).sum()
    ds = xaurora.open(folder / f"{rows[0]}x{rows[1]}.zarr", chunks={})
    before = resident("VmRSS")
    out = Path(tempfile.mkdtemp())
    options = {"steps": 2, "validations": 1, "progress": False, "workers": 0, **case}
    ds.aurora.finetune(
        "tp", model=model, weights=weights, strategy=strategy, out=out / "run", **options
    )
    measured = torch.cuda.max_memory_allocated() if gpu else resident("VmHWM") - before
    found = ds.aurora.estimate("tp", model=model, weights=weights, strategy=strategy, **options)
    return {"measured": measured, "estimated": found.memory, "parts": found.parts}


def run(cases: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Measure every case in a separate process."""
    rows = []
    for case in cases:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--one", json.dumps(case), "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        row = {**case, **json.loads(done.stdout.splitlines()[-1])}
        ratio = row["estimated"] / row["measured"]
        print(
            f"{case}: {row['measured'] / 1e6:.0f} MB, {row['estimated'] / 1e6:.0f} estimated,"
            f" {ratio:.2f}",
            flush=True,
        )
        rows.append(row)
    return rows


def prepare(folder: Path) -> None:
    """Write data of every size, and random weights of AuroraSmall, to a folder."""
    import torch
    from aurora import AuroraSmallPretrained
    from safetensors.torch import save_file

    import xaurora
    from xaurora.model.tiny import randomise_modulation

    for shape in sorted({tuple(c["shape"]) for c in [*CALIBRATION, *CASES]}):
        ds = xaurora.synthetic(shape=shape, times=16, levels=LEVELS)
        ds.chunk({"time": 1}).to_zarr(
            folder / f"{shape[0]}x{shape[1]}.zarr", mode="w", consolidated=False
        )
    torch.manual_seed(0)
    base = AuroraSmallPretrained()
    randomise_modulation(base)
    save_file(base.state_dict(), folder / "small.safetensors")


def page(report: dict[str, Any]) -> str:
    """Return the text of the page."""
    worst = max(abs(r["estimated"] / r["measured"] - 1.0) for r in report["rows"])
    where = "the GPU" if report["gpu"] else "the CPU"
    lines = [
        "# Memory",
        "",
        "Written by `benchmarks/estimates.py` from `benchmarks/reports/estimates.json`.",
        "",
        "```python",
        (
            'print(ds.aurora.estimate("tp", model="small", strategy="lora"))  # the arguments of'
            " finetune"
        ),
        (
            'print(ds.aurora.estimate("tp", model="small", compare=True))  # every base and'
            " strategy side by side"
        ),
        "```",
        "",
        "`estimate` runs the steps of the training with fake tensors, which have shapes but no",
        "values. The same code runs, nothing is computed, and the largest number of bytes alive",
        "at once is exact. On a CPU a process needs somewhat more. That overhead was measured",
        "on cases other than those in the table. The time is the number of floating-point",
        "operations divided by a rate that is measured when `estimate` runs, and is a rough",
        "figure. `finetune` makes the same estimate before it starts, compares it with the free",
        "memory, and suggests what to change.",
        "",
        (
            f"The table compares estimated and measured memory on {where}, {report['machine']}, for"
            " two steps each"
        ),
        f"and five levels. The largest difference is {100 * worst:.0f} %.",
        (
            "Measured memory is the largest resident set above that of the imports, in a fresh"
            " process."
            if not report["gpu"]
            else "Measured memory is the largest memory allocated by Torch."
        ),
        "",
        "| model | strategy | grid | more | measured | estimated | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in report["rows"]:
        more = ", ".join(
            f"{k} {v}"
            for k, v in r.items()
            if k in ("batch_size", "precision", "activation_checkpointing", "rollout_steps")
        )
        lines.append(
            f"| {r['model']} | {r['strategy']} | {r['shape'][0]} × {r['shape'][1]} |"
            f" {more.replace('activation_checkpointing True', 'checkpointing')} |"
            f" {r['measured'] / 1e6:,.0f} MB | {r['estimated'] / 1e6:,.0f} MB |"
            f" {r['estimated'] / r['measured']:.2f} |"
        )
    lines += recomputing()
    lines += [
        "",
        f"{report['date']}; " + ", ".join(f"{k} {v}" for k, v in report["versions"].items()) + ".",
        "",
    ]
    return "\n".join(lines)


def recomputing() -> list[str]:
    """Return the lines of the section on activation checkpointing, from its own report."""
    path = ROOT / "benchmarks" / "reports" / "checkpointing.json"
    if not path.exists():
        return []
    r = json.loads(path.read_text())
    rows = [
        f"| {words} | {min(r['seconds'][how]):.1f} s | {r['peaks'][how] / 1e6:,.0f} MB |"
        for how, words in (
            ("none", "nothing"),
            ("stock", "`configure_activation_checkpointing()`"),
            ("once", "`activation_checkpointing=True`"),
        )
    ]
    return [
        "",
        "## Recomputing instead of storing",
        "",
        "Upstream's activation checkpointing wraps the backbone, each layer and each block, one",
        "inside the other, so that the forward pass runs several times. xaurora wraps blocks,",
        (
            "encoder and decoder once. The table shows a full training step of AuroraSmall at"
            f" {r['shape'][0]}"
        ),
        f"× {r['shape'][1]}, five levels, {r['machine']} (`benchmarks/checkpointing.py`):",
        "",
        "| recomputed | fastest step | peak of tensors |",
        "|---|---|---|",
        *rows,
        "",
        f"xaurora's checkpointing runs at {r['speed_over_stock']:.2f} times upstream's speed"
        f" (median of {len(r['seconds']['once'])}",
        "rounds, one after the other in one process).",
        (
            "Its gradients differ from those without checkpointing by"
            f" {r['gradient_difference']:.0e} of the largest."
            if r["gradient_difference"]
            else "Its gradients are bit-identical to those without checkpointing."
        ),
        "The machine also did other work: single times vary, ratios within a round vary less.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", help="measure one case (JSON) and print the result")
    parser.add_argument("--folder", type=Path)
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="run the cases from which SLACK and FIXED are derived",
    )
    parser.add_argument("--keep", action="store_true", help="rewrite the page from the report")
    options = parser.parse_args()
    if options.keep:
        report = json.loads((ROOT / "benchmarks" / "reports" / "estimates.json").read_text())
        (ROOT / "docs" / "memory.md").write_text(page(report))
        return
    if options.one:
        print(json.dumps(measure(json.loads(options.one), options.folder)))
        return
    import torch

    from xaurora.utils import provenance

    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made))
        rows = run(CALIBRATION if options.calibrate else CASES, Path(made))
    if options.calibrate:
        return
    gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, one thread"
    report = {
        "date": provenance.now(),
        "versions": provenance.versions(),
        "gpu": gpu,
        "machine": machine,
        "rows": rows,
    }
    path = ROOT / "benchmarks" / "reports" / "estimates.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    (ROOT / "docs" / "memory.md").write_text(page(report))
    print(page(report))


if __name__ == "__main__":
    main()

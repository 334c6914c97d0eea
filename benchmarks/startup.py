"""How long commands take to start.

    python benchmarks/startup.py

The median of seven processes each. Writes ``benchmarks/reports/startup.json``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xaurora.utils import provenance

REPORT = Path(__file__).parent / "reports" / "startup.json"
COMMAND = str(Path(sys.executable).parent / "xaurora")
CASES: dict[str, list[str]] = {
    "an empty Python": [sys.executable, "-c", "pass"],
    "import xarray": [sys.executable, "-c", "import xarray"],
    "import xaurora": [sys.executable, "-c", "import xaurora"],
    "xaurora --version": [COMMAND, "--version"],
    "xaurora --help": [COMMAND, "--help"],
    "xaurora finetune --help": [COMMAND, "finetune", "--help"],
    "xaurora finetune, steps=-1": [COMMAND, "finetune", "data.nc", "--out", "run", "--steps", "-1"],
    "xaurora predict, a wrong option": [COMMAND, "predict", "data.nc", "--leed", "6h"],
    "xaurora evaluate, no such file": [COMMAND, "evaluate", "none.zarr", "none.nc"],
}
ROUNDS = 7


def main() -> None:
    """Time all cases."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data.nc").write_bytes(b"")
        for name, command in CASES.items():
            times = []
            for _ in range(ROUNDS + 1):  # the first fills the caches of files
                began = time.perf_counter()
                subprocess.run(command, capture_output=True, cwd=folder, check=False)
                times.append(time.perf_counter() - began)
            seconds[name] = round(statistics.median(times[1:]), 2)
            print(f"{seconds[name]:.2f} s  {name}", flush=True)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": provenance.versions(),
        "seconds": seconds,
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

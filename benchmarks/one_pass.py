"""Measure memory and time of ``ds.aurora.statistics()`` on a store that does not fit in memory.

    python benchmarks/one_pass.py --gigabytes 20    # writes benchmarks/reports/statistics.json

The script makes a Zarr store, computes the statistics in a separate process, and deletes the store.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (721, 1440)

CODE = """
import json, re, sys, time, xarray as xr, xaurora
ds = xr.open_zarr(sys.argv[1], chunks={}, consolidated=False)
began = time.monotonic()
got = ds.aurora.statistics("tp", progress=False)
seconds = time.monotonic() - began
values = dict(zip(got["statistic"].values.tolist(), got["tp"].values.tolist()))
# VmHWM is the peak of this process alone; getrusage would include that of the parent process.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024**2
print(json.dumps({"seconds": seconds, "peak_gib": peak, "values": values}))
"""


def make(path: Path, times: int, chunk: int) -> None:
    """Write a store of six-hour totals, in chunks of several times.

    The fields differ at every time, and are written chunk by chunk.
    """
    import dask.array

    rng = np.random.default_rng(0)
    base = np.where(rng.random(SHAPE) < 0.4, rng.gamma(0.5, 2e-3, SHAPE), 0.0).astype(np.float32)

    def block(index: np.ndarray) -> np.ndarray:
        return np.stack(
            [np.roll(base, int(i) * 7, axis=1) * np.float32(1.0 + 0.001 * (i % 97)) for i in index]
        )

    lazy = dask.array.arange(times, chunks=chunk).map_blocks(
        block,
        dtype=np.float32,
        new_axis=[1, 2],
        chunks=(dask.array.arange(times, chunks=chunk).chunks[0], SHAPE[:1], SHAPE[1:]),
    )
    coords = {
        "time": np.datetime64("2000-01-01", "ns") + np.arange(times) * np.timedelta64(6, "h"),
        "latitude": ("latitude", np.linspace(90.0, -90.0, SHAPE[0]), {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(SHAPE[1]) * 0.25, {"units": "degrees_east"}),
    }
    attrs = {"units": "m", "cell_methods": "time: sum (interval: 6 hours)"}
    ds = xr.Dataset({"tp": (("time", "latitude", "longitude"), lazy, attrs)}, coords)
    ds.to_zarr(path, consolidated=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--chunk", type=int, default=20, help="number of times in a chunk")
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="folder for the store; the temporary folder by default",
    )
    options = parser.parse_args()
    times = int(options.gigabytes * 1e9 / (4 * SHAPE[0] * SHAPE[1]))
    from xaurora.utils import provenance

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Path(folder) / "tp.zarr"
        began = time.monotonic()
        make(store, times, options.chunk)
        print(f"made {times} times in {time.monotonic() - began:.0f} s", flush=True)
        run = subprocess.run(
            [sys.executable, "-c", CODE, str(store)], capture_output=True, text=True, check=True
        )
    result = json.loads(run.stdout)
    report = {
        "date": provenance.now(),
        "versions": provenance.versions(),
        "machine": f"{platform.machine()}, no GPU",
        "gigabytes": times * 4 * SHAPE[0] * SHAPE[1] / 1e9,
        "times": times,
        "times_in_a_chunk": options.chunk,
        **result,
    }
    path = ROOT / "benchmarks" / "reports" / "statistics.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"{report['gigabytes']:.1f} GB: peak {result['peak_gib']:.2f} GiB,"
        f" {result['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()

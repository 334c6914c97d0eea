"""Compare scoring a global 0.25° forecast with a straightforward xarray program.

    python benchmarks/evaluation.py            # writes benchmarks/reports/evaluation.json
    python benchmarks/evaluation.py --small    # 1.5°, a test that the script runs

Time and memory for the same metrics are measured, each in a fresh process. The data are 40 init
times × 4 leads × 4 variables from Zarr, in chunks of one field. Two workers are used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "2m_temperature": 280.0,
    "10m_u_component_of_wind": 0.0,
    "10m_v_component_of_wind": 0.0,
    "mean_sea_level_pressure": 101_000.0,
}
METRICS = ("rmse", "mae", "bias")
MOST = 40


def make(folder: Path, step: float, inits: int) -> None:
    """Write the forecast and the truth.

    The fields are smooth with added noise, so that they compress as weather data do and not as
    zeros.
    """
    import zarr

    lat, lon = np.arange(90.0, -90.0 - step / 2, -step), np.arange(0.0, 360.0, step)
    rng = np.random.default_rng(0)
    init = np.datetime64("2020-01-01T00", "ns") + np.arange(inits) * np.timedelta64(12, "h")
    lead = (np.arange(1, 5) * np.timedelta64(6, "h")).astype("timedelta64[ns]")
    times = np.unique((init[:, None] + lead[None]).ravel())
    wave = np.cos(np.deg2rad(lat))[:, None] * np.sin(np.deg2rad(3 * lon))[None]
    import xarray as xr

    for name, shape, coords in (
        ("forecast", (inits, 4), {"time": init, "prediction_timedelta": lead}),
        ("truth", (len(times),), {"time": times}),
    ):
        path = folder / f"{name}.zarr"
        xr.Dataset(coords={**coords, "latitude": lat, "longitude": lon}).to_zarr(
            path, zarr_format=2, consolidated=False
        )
        group = zarr.open_group(path, mode="r+", zarr_format=2)
        for variable, middle in NAMES.items():
            full = (*shape, len(lat), len(lon))
            array = group.create_array(
                variable,
                shape=full,
                chunks=(*(1,) * len(shape), len(lat), len(lon)),
                dtype="float32",
                fill_value=np.nan,
            )
            array.attrs["_ARRAY_DIMENSIONS"] = [*coords, "latitude", "longitude"]
            for at in np.ndindex(*shape):
                noise = rng.integers(-512, 512, (len(lat), len(lon))).astype(np.float32) / 256
                array[at] = (middle + 10 * wave).astype(np.float32) + noise


CHILD = """
import sys, time, json
import numpy as np
import xarray as xr
folder, which, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
METRICS = {metrics!r}
began = time.monotonic()
if which == "xaurora":
    import xaurora
    fc = xaurora.open(folder + "/forecast.zarr")
    truth = xaurora.open(folder + "/truth.zarr")
    began = time.monotonic()
    got = fc.aurora.evaluate(truth, metrics=list(METRICS), regions=["global"], progress=True)
    world = got.sel(region="global").transpose("metric", "lead_time")
    out = {{n: world[n].values.tolist() for n in {names!r}}}
else:
    import dask
    dask.config.set(pool=__import__("concurrent.futures").futures.ThreadPoolExecutor(threads))
    fc = xr.open_zarr(folder + "/forecast.zarr", consolidated=False, decode_timedelta=True)
    truth = xr.open_zarr(folder + "/truth.zarr", consolidated=False)
    began = time.monotonic()
    lat = fc.latitude.values
    edges = np.concatenate([[90.0], (lat[1:] + lat[:-1]) / 2, [-90.0]])
    w = xr.DataArray(-np.diff(np.sin(np.deg2rad(edges))), {{"latitude": lat}}, "latitude")
    valid = (fc.time + fc.prediction_timedelta).drop_vars(["time", "prediction_timedelta"])
    error = fc.astype("float64") - truth.sel(time=valid)
    area = lambda x: x.weighted(w).mean(("latitude", "longitude"))
    mse, mae, bias = dask.compute(*(area(x).mean("time") for x in (error**2, abs(error), error)))
    scores = (np.sqrt(mse), mae, bias)
    out = {{n: [score[n].values.tolist() for score in scores] for n in {names!r}}}
seconds = time.monotonic() - began
status = open("/proc/self/status")
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
print(json.dumps({{"seconds": seconds, "peak_mb": peak, "scores": out}}))
"""


def run(folder: Path, which: str) -> dict[str, Any]:
    """Run one evaluation in a fresh process."""
    code = CHILD.format(metrics=METRICS, names=list(NAMES))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), which, "2"],
        capture_output=True,
        text=True,
        env=env,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    out: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return out


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Run both programs alternately; the first round fills the page cache and is not counted."""
    rows: dict[str, list[dict[str, Any]]] = {"xaurora": [], "xarray": []}
    for i in range(rounds + 1):
        for which, list_ in rows.items():
            got = run(folder, which)
            if i:
                list_.append(got)
    for name in NAMES:
        for mine, theirs in zip(
            rows["xaurora"][-1]["scores"][name], rows["xarray"][-1]["scores"][name], strict=True
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    return [
        {
            "program": which,
            "seconds": float(np.median([r["seconds"] for r in found])),
            "peak_mb": max(r["peak_mb"] for r in found),
        }
        for which, found in rows.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    step, inits = (1.5, 8) if options.small else (0.25, MOST)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), step, inits)
        few = None
        rows = measure(Path(folder), options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), step, inits // 4)
        few = run(Path(folder), "xaurora")["peak_mb"]
    import xarray as xr

    ratio = rows[0]["seconds"] / rows[1]["seconds"]
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, a shared machine",
        "versions": {
            "python": platform.python_version(),
            "xarray": xr.__version__,
            "numpy": np.__version__,
        },
        "what": (
            f"{inits} init times × 4 leads × {len(NAMES)} variables, {step}°, {', '.join(METRICS)},"
            " global, Zarr chunks of one field"
        ),
        "rows": rows,
        "time_over_xarray": ratio,
        "peak_mb_with_a_quarter_of_the_init_times": few,
    }
    print(json.dumps(report, indent=1))
    if not options.small:
        (ROOT / "benchmarks" / "reports" / "evaluation.json").write_text(
            json.dumps(report, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

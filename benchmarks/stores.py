"""Measure ``prepare``, the loader, and what scores, climatologies and statistics read.

    python benchmarks/stores.py            # writes benchmarks/reports/stores.json, docs/stores.md
    python benchmarks/stores.py --loader   # measures the loader again

Everything is compared with plain Zarr in the same run: ``prepare`` with a copy of the same chunks
by threads, with the same files and compression, and the loader with reading its chunks with Zarr
and nothing else. Bytes are counted by the stores.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import archives
import numpy as np
import xarray as xr
import zarr
from zarr.storage import LocalStore

import xaurora
from xaurora.fields import conventions, plausibility, requirements, targets, truth
from xaurora.model import loader as loading
from xaurora.model.resolve import resolve
from xaurora.utils import provenance

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "benchmarks" / "reports" / "stores.json"
PAGE = ROOT / "docs" / "stores.md"
SMALL = ((181, 360), (500, 700, 850, 1000))
GLOBE = ((721, 1440), (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000))
RUNS = 5


def made(folder: Path, form: tuple[Any, Any], *, rain_hours: int, times: int) -> xr.Dataset:
    """Write a store of real bytes, one time in a chunk, and open it."""
    step = np.timedelta64(rain_hours, "h")
    shape, levels = form
    store = archives.make(
        "2020-01-01", times, step, shape=shape, levels=levels, rain_hours=rain_hours
    )
    path = folder / f"{rain_hours}-{shape[0]}.zarr"
    if not path.exists():
        ds = archives.open_generated(store)
        noise = np.random.default_rng(0)
        for name, da in ds.data_vars.items():
            values = da.values
            if values.ndim > 2:  # bytes that do not compress to nothing, as those of ERA5
                for one in values:
                    one *= 1 + 1e-4 * noise.standard_normal(one.shape, np.float32)
            chunks = {name: {"chunks": (1, *da.shape[1:])}} if "time" in da.dims else {}
            whole = xr.Dataset({name: (da.dims, values, da.attrs)}, ds.coords)
            whole.to_zarr(path, mode="a", encoding=chunks, consolidated=False)
    return xr.open_zarr(path, chunks=None, consolidated=False)


def prepare(ds: xr.Dataset, folder: Path) -> dict[str, Any]:
    """Compare ``prepare`` with a plain copy into the same files, in turn."""
    rows = []
    for run in range(RUNS):
        mine, plain = folder / f"mine{run}.zarr", folder / f"plain{run}.zarr"
        began = time.perf_counter()
        ds.aurora.prepare(mine, target="total_precipitation_6hr", model=None, progress=False)
        ours = time.perf_counter() - began
        began = time.perf_counter()
        _copy(ds, mine, plain)
        rows.append((time.perf_counter() - began) / ours)
        subprocess.run(["rm", "-rf", str(mine), str(plain)], check=True)
    return {"ratios": [round(r, 3) for r in rows], "megabytes": ds.nbytes / 1e6}


def _copy(ds: xr.Dataset, like: Path, path: Path) -> None:
    """Copy all variables with Zarr alone: whole files of the new store, by threads."""
    made, source = zarr.open_group(like, mode="r"), zarr.open_group(ds.encoding["source"], mode="r")
    group = zarr.create_group(path)
    jobs = []
    for name, array in made.arrays():
        new = group.create_array(
            name,
            shape=array.shape,
            chunks=array.chunks,
            shards=array.shards,
            dtype=array.dtype,
            compressors=array.compressors,
        )
        length = array.shards[0] if array.shards else max(array.shape[0], 1)
        jobs += [
            (new, source[name], slice(i, min(i + length, array.shape[0])))
            for i in range(0, array.shape[0], length)
        ]

    def one(job: Any) -> None:
        new, old, part = job
        new[part] = old[part]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, jobs))


def load(ds: xr.Dataset, name: str, threads: int) -> list[float]:
    """Return the loader's byte rate beside Zarr's for the same chunks, once per run."""
    found = targets.recognise(ds, [name])
    fields = conventions.standardise(ds, found)
    wanted = truth.resolve_targets(fields, [name])
    used, _ = requirements.select_and_crop(fields, resolve("tiny").needs(fields))
    times = [t for t in wanted[0].times[4:] if t.astype("datetime64[h]").astype(int) % 6 == 0]
    inits = times[:-1:3][:24]
    group = zarr.open_group(ds.encoding["source"], mode="r")
    names = [i.source for k, i in used.layout.fields.items() if k[0] != "static"]
    names = [n for n in dict.fromkeys(names) if n in group and n != wanted[0].item.source]
    arrays = {n: group[n] for n in [*names, wanted[0].item.source]}
    place = {t: i for i, t in enumerate(ds["time"].values.astype("datetime64[ns]"))}
    hours = 6 if np.diff(ds["time"].values[:2])[0] == np.timedelta64(1, "h") else 1
    ratios = []
    for _ in range(RUNS):
        loader = loading.Loader(used, {t.name: t.values for t in wanted}, most=3)
        began = time.perf_counter()
        for _ in loading.prefetch([[t] for t in inits], loader.read, threads):
            pass
        ours = time.perf_counter() - began
        loader.close()

        def one(t: np.datetime64) -> None:
            for back in (1, 0):
                at = place[(t - back * np.timedelta64(6, "h")).astype("datetime64[ns]")]
                for n in names:
                    arrays[n][at]
            at = place[(t + np.timedelta64(6, "h")).astype("datetime64[ns]")]
            arrays[wanted[0].item.source][at + 1 - hours : at + 1]

        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, inits))
        ratios.append(round((time.perf_counter() - began) / ours, 3))
    return ratios


def guard(ds: xr.Dataset) -> dict[str, Any]:
    """Return the share of the guard against impossible values in the time of reading a frame."""
    fields = conventions.standardise(ds, targets.recognise(ds, []))
    used, _ = requirements.select_and_crop(fields, resolve("tiny").needs(fields))
    loader = loading.Loader(used, {}, most=3, readers=0)
    shares = []
    for run in range(RUNS):
        times = used.times[1 + 10 * run : 11 + 10 * run]
        began = time.perf_counter()
        frames = [loader.frame(t) for t in times]
        read = time.perf_counter() - began
        began = time.perf_counter()
        for t, frame in zip(times, frames, strict=True):
            for (kind, name), item in used.layout.fields.items():
                if name in frame.get(kind, ()):
                    plausibility.check_frame(frame[kind][name], item, used, t)
        shares.append(round((time.perf_counter() - began) / read, 4))
    loader.close()
    return {"shares": shares, "date": time.strftime("%Y-%m-%d")}


def _peak(code: Callable[[], Any]) -> float:
    """Return the megabytes by which the peak of this process grows."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def once(folder: Path) -> list[dict[str, Any]]:
    """Count the bytes that each verb reads, beside those of the data, and its memory."""
    rows = []

    def row(verb: str, stores: list[Any], size: float, run: Callable[[], Any]) -> None:
        for store in stores:
            store.requests.clear()
            store._bytes[0] = 0
        began = time.perf_counter()
        peak = _peak(run)
        read = sum(store.bytes_read for store in stores)
        rows.append(
            {
                "verb": verb,
                "megabytes": size / 1e6,
                "share_read": round(read / size, 4),
                "peak_megabytes": round(peak),
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
        print(rows[-1], flush=True)

    small = archives.weatherbench2(10.0, shape=(61, 120), levels=(500, 850))
    ds = archives.open_generated(small)
    names = ["total_precipitation_6hr", "2m_temperature", "temperature"]
    size = float(sum(ds[n].nbytes for n in names))
    row(
        "climatology of tp with SEEPS, a surface and a level variable, 10 years",
        [small],
        size,
        lambda: xaurora.climatology(ds, names, store=folder / "normals.zarr"),
    )
    row(
        "statistics of the same",
        [small],
        size,
        lambda: ds.aurora.statistics(names, progress=False),
    )
    truth_store = archives.weatherbench2(0.2, shape=(181, 360), levels=(500, 850))
    y = archives.open_generated(truth_store)[names]
    leads = [f"{6 * i}h" for i in range(1, 41)]
    fc = xaurora.persistence(y, names, leads).isel(init_time=slice(0, 16))
    encoding = {n: {"chunks": (1, 8, *fc[n].shape[2:]), "compressors": None} for n in names}
    fc.load().to_zarr(folder / "fc.zarr", encoding=encoding, consolidated=False)
    counted = archives.CountingStore(LocalStore(folder / "fc.zarr", read_only=True))
    stored = xr.open_zarr(counted, chunks=None, consolidated=False, decode_timedelta=True)
    valid = np.unique(fc["valid_time"])
    there = np.isin(y["time"].values, valid).sum()
    size = float(fc.nbytes + sum(y[n].nbytes for n in names) / y.sizes["time"] * there)
    row("evaluate 40 leads", [truth_store, counted], size, lambda: stored.aurora.evaluate(y))
    return rows


def page(report: dict[str, Any]) -> str:
    """Return ``docs/stores.md``."""
    lines = [
        "# Stores",
        "",
        f"`python benchmarks/stores.py` ({report['date']}, {report['machine']}).",
        "",
        "`prepare` beside a copy of the same values into the same files with Zarr alone, byte rate"
        f" over byte rate in {RUNS} runs: {', '.join(map(str, report['prepare']['ratios']))}.",
        "",
        f"The loader beside reading the same chunks with Zarr alone ({report['loader_date']}):",
        "",
        "| data | threads | ratio of the byte rates in each run |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['data']} | {row['threads']} | {', '.join(map(str, row['ratios']))} |"
        for row in report["loader"]
    ]
    if "guard" in report:
        lines += [
            "",
            "The guard against values that do not occur on Earth takes"
            f" {max(report['guard']['shares']):.1%} of the time of reading a frame, or less"
            f" ({RUNS} runs of ten frames, {report['guard']['date']}).",
        ]
    lines += [
        "",
        "What is read of the data, counted by the stores:",
        "",
        "| verb | data in MB | read | peak in MB beyond what was there | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in report["once"]:
        lines.append(
            f"| {row['verb']} | {row['megabytes']:,.0f} | {100 * row['share_read']:.1f} % |"
            f" {row['peak_megabytes']} | {row['seconds']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure everything and write the report."""
    only_loader = "--loader" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        today = time.strftime("%Y-%m-%d")
        report: dict[str, Any] = {
            "date": today,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
            "versions": provenance.versions(),
        }
        if only_loader:
            report = json.loads(REPORT.read_text())
        else:
            report["once"] = once(folder)
            six = made(folder, SMALL, rain_hours=6, times=240)
            report["prepare"] = prepare(six, folder)
            print(report["prepare"], flush=True)
            report["guard"] = guard(six)
        report["loader"], report["loader_date"] = [], today
        for label, form, hours, times, rain in (
            ("1°, 4 levels, 6-hourly", SMALL, 6, 240, "total_precipitation_6hr"),
            ("1°, 4 levels, hourly", SMALL, 1, 480, "total_precipitation"),
            ("0.25°, 13 levels, 6-hourly", GLOBE, 6, 24, "total_precipitation_6hr"),
            ("0.25°, 13 levels, hourly", GLOBE, 1, 72, "total_precipitation"),
        ):
            ds = made(folder, form, rain_hours=hours, times=times)
            for threads in (1, 2, 4):
                row = {"data": label, "threads": threads, "ratios": load(ds, rain, threads)}
                report["loader"].append(row)
                print(row, flush=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    PAGE.write_text(page(report))


if __name__ == "__main__":
    sys.exit(main())

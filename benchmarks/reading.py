"""Measure how long archives of real length keep users waiting.

    python benchmarks/reading.py    # writes benchmarks/reports/reading.json and docs/reading.md

Each verb is compared with reading the same chunks with Zarr alone, in the same run. The archives
are generated (``benchmarks/archives.py``), so that decompression and the network take no time: what
is left is what xaurora adds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import archives  # noqa: E402

import xaurora  # noqa: E402
from xaurora.training.loop import Trainer  # noqa: E402
from xaurora.utils import provenance  # noqa: E402

REPORT = ROOT / "benchmarks" / "reports" / "reading.json"
PAGE = ROOT / "docs" / "reading.md"
SMALL, GLOBE = (32, 64), (721, 1440)


def plain_seconds(store: archives.GeneratedStore) -> float:
    """Return the time of reading once more, with Zarr, the chunks that were requested."""
    keys = list(store.requests)
    arrays = {name: zarr.open_array(store, path=name, mode="r") for name in _names(keys)}
    began = time.perf_counter()
    for key in keys:
        name, _, place = key.partition("/c/")
        arrays[name].blocks[tuple(map(int, place.split("/")))]
    return time.perf_counter() - began


def _names(keys: list[str]) -> set[str]:
    return {key.partition("/c/")[0] for key in keys}


def timed(store: archives.GeneratedStore, verb: Callable[[], Any]) -> dict[str, Any]:
    """Return seconds of a verb and of plain reading, bytes, requests and repeated ones."""
    store.forget()
    began = time.perf_counter()
    verb()
    row: dict[str, Any] = {"seconds": time.perf_counter() - began}
    row |= {"megabytes": store.bytes_read / 1e6, "requests": sum(store.requests.values())}
    row["repeated"] = store.repeated
    row["plain_seconds"] = plain_seconds(store)
    return row


def verbs(name: str, store: archives.GeneratedStore, times: int) -> list[dict[str, Any]]:
    """Measure ``repr``, ``check`` and ``to_batch`` without dask and with it."""
    rows = []
    for chunks in (None, {}):
        began = time.perf_counter()
        ds = archives.open_generated(store, chunks=chunks)
        opened = time.perf_counter() - began
        middle = ds["time"].values[times // 2 // 6 * 6]
        cases: dict[str, Callable[[], Any]] = {
            "repr": lambda ds=ds: repr(ds.aurora),
            'check("tp")': lambda ds=ds: ds.aurora.check("tp"),
            "to_batch": lambda ds=ds, middle=middle: ds.aurora.to_batch(middle),
        }
        for verb, run in cases.items():
            row = timed(store, run)
            shown = "None" if chunks is None else "{}"
            rows.append(
                {"archive": name, "times": times, "chunks": shown, "verb": verb, **row}
                | {"xarray_open_seconds": opened}
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def frame(times: int) -> dict[str, Any]:
    """Measure one frame, the mean of many, of an archive of some length."""
    from xaurora.fields import conventions
    from xaurora.model import frames

    store = archives.arco(times, shape=SMALL)
    ds = archives.open_generated(store, chunks={})
    fields = conventions.standardise(ds)
    chosen = fields.times[np.linspace(6, times - 1, 200).astype(int)]
    frames.read(fields, chosen[0])
    best = np.inf
    for _ in range(5):
        began = time.perf_counter()
        for i in range(200):
            frames.read(fields, chosen[i], index=int(np.linspace(6, times - 1, 200)[i]))
        best = min(best, (time.perf_counter() - began) / 200)
    return {"times": times, "milliseconds": 1e3 * best}


class _FirstStepError(Exception):
    """Ends a run at its first step."""


def start(name: str, store: archives.GeneratedStore, folder: Path) -> dict[str, Any]:
    """Measure the time, and the bytes read, until the first step of a run could be taken."""
    ds = archives.open_generated(store)
    total = sum(ds[n].nbytes for n in ds.data_vars)

    def stop(*_: Any) -> None:
        raise _FirstStepError

    real, Trainer.take_step = Trainer.take_step, stop  # type: ignore[method-assign]
    rows: dict[str, Any] = {}
    try:
        for label in ("first", "again"):
            store.forget()
            began = time.perf_counter()
            with contextlib.suppress(_FirstStepError):
                ds.aurora.finetune(
                    "tp", model="tiny", steps=10, out=folder / name, progress=False, workers=1
                )
            rows[f"{label}_seconds"] = time.perf_counter() - began
            rows[f"{label}_share_read"] = store.bytes_read / total
    finally:
        Trainer.take_step = real  # type: ignore[method-assign]
    store.forget()
    began = time.perf_counter()
    for i in np.linspace(0, ds.sizes["time"] - 1, 200).astype(int):
        for n in ds.data_vars:
            if "time" in ds[n].dims:
                ds[n].variable[int(i)].values  # noqa: B018
    rows["plain_seconds_of_200_frames"] = time.perf_counter() - began
    row = {"archive": name, "times": ds.sizes["time"], "gigabytes": total / 1e9, **rows}
    print(json.dumps(row), flush=True)
    return row


def files(folder: Path, months: int) -> list[dict[str, Any]]:
    """Measure opening and reading monthly files of the CDS, hourly tp beside 6-hourly states."""
    paths = archives.cds(folder, months, SMALL)
    began = time.perf_counter()
    ds = xaurora.open(str(folder / "*.nc"))
    rows = [{"verb": "xaurora.open", "seconds": time.perf_counter() - began}]
    for verb, run in (
        ("repr", lambda: repr(ds.aurora)),
        ("check()", lambda: ds.aurora.check()),
        ("to_batch", lambda: ds.aurora.to_batch(ds["valid_time"].values[-1], model="tiny")),
    ):
        began = time.perf_counter()
        run()
        rows.append({"verb": verb, "seconds": time.perf_counter() - began})
    return [{"files": len(paths), "times": ds.sizes["valid_time"], **row} for row in rows]


def page(report: dict[str, Any]) -> str:
    """Return the report as a page."""
    lines = [
        "# Archives of real length",
        "",
        "How long archives of real length keep users waiting, beside reading the same chunks with"
        " Zarr alone in the same run. `python benchmarks/reading.py` measures it on generated"
        f" archives ({report['date'][:10]}, {report['machine']}).",
        "",
        "| archive | times | chunks | verb | seconds | Zarr alone | MB | requests | repeated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['archive']} | {r['times']:,} | `{r['chunks']}` | `{r['verb']}` |"
        f" {r['seconds']:.2f} | {r['plain_seconds']:.2f} | {r['megabytes']:.0f} |"
        f" {r['requests']} | {r['repeated']} |"
        for r in report["verbs"]
    ]
    a, b = report["frames"]
    lines += [
        "",
        f"One frame of an archive of {b['times']:,} times takes {b['milliseconds']:.2f} ms, of"
        f" {a['times']:,} times {a['milliseconds']:.2f} ms: a ratio of"
        f" {b['milliseconds'] / a['milliseconds']:.2f}.",
        "",
        "## Until the first step",
        "",
        '`finetune("tp", model="tiny", steps=10)` on ten years of the globe at 0.25°, until the'
        " first step could be taken, and the same again in the same folder.",
        "",
        "| archive | times | GB | seconds | share read | again | share read | 200 frames alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['archive']} | {r['times']:,} | {r['gigabytes']:,.0f} | {r['first_seconds']:.1f} |"
        f" {r['first_share_read']:.2%} | {r['again_seconds']:.1f} | {r['again_share_read']:.2%} |"
        f" {r['plain_seconds_of_200_frames']:.1f} |"
        for r in report["starts"]
    ]
    lines += ["", "## Monthly files", "", "| files | times | verb | seconds |", "|---|---|---|---|"]
    lines += [
        f"| {r['files']} | {r['times']:,} | `{r['verb']}` | {r['seconds']:.2f} |"
        for r in report["files"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small grids and short archives only")
    quick = parser.parse_args().quick
    import torch  # noqa: F401  # imported before anything is timed

    ten_years = 3653
    shape = SMALL if quick else GLOBE
    hourly = {"levels": archives.LEVELS_13, "shape": shape}
    with tempfile.TemporaryDirectory() as folder:
        rows = verbs("ARCO-like, 32 × 64", archives.arco(shape=SMALL), 1_323_648)
        rows += verbs("WeatherBench2-like, 32 × 64", archives.weatherbench2(shape=SMALL), 60 * 1461)
        if not quick:
            rows += verbs("ARCO-like, 0.25°", archives.arco(shape=GLOBE), 1_323_648)
            rows += verbs(
                "WeatherBench2-like, 0.25°", archives.weatherbench2(shape=GLOBE), 60 * 1461
            )
        starts = [
            start("6-hourly", archives.weatherbench2(10, shape=shape), Path(folder)),
            start("hourly", archives.arco(ten_years * 24, **hourly), Path(folder)),
        ]
        report = {
            "date": provenance.now(),
            "versions": provenance.versions(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
            "verbs": rows,
            "frames": [frame(1000), frame(1_323_648)],
            "starts": starts,
            "files": files(Path(folder) / "cds", 12 if quick else 120),
        }
    if quick:
        print(page(report))
        return
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    PAGE.write_text(page(report))


if __name__ == "__main__":
    main()

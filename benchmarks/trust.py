"""Break data, files and processes on purpose, and count what happens.

    python benchmarks/trust.py                # everything; writes the report and docs/trust.md
    python benchmarks/trust.py bytes kills    # some parts; the others stay in the report
    python benchmarks/trust.py fuzz --cases 10000

Each part returns counts by outcome. Outcomes that must not occur are in :data:`BAD`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import cases  # noqa: E402
from helpers import Script  # noqa: E402

import xaurora  # noqa: E402
from xaurora import errors  # noqa: E402
from xaurora.model.hashing import state_hash  # noqa: E402
from xaurora.utils import indexed, provenance  # noqa: E402

REPORT = ROOT / "benchmarks" / "reports" / "trust.json"
PAGE = ROOT / "docs" / "trust.md"
BAD = ("missed", "false alarm", "crash", "differs", "lost", "left behind")
"""Outcomes that must not occur."""
Counts = collections.Counter[str]
HEAD = xaurora.HeadOptions("csgd", width=8)


# --- wrong data -----------------------------------------------------------------------------------


_AT_ONCE = 2_000  # Hypothesis remembers what it has drawn, and is slower with every case


def fuzz(count: int, seed: int, examples: list[str]) -> dict[str, Counts]:
    """Check sound Datasets in every convention, and each with one fault."""
    out: dict[str, Counts] = collections.defaultdict(collections.Counter)
    for done in range(0, count, _AT_ONCE):
        for name, counts in _fuzz(min(_AT_ONCE, count - done), seed + done, examples).items():
            out[name].update(counts)
        if done:
            print(f"fuzz: {done + _AT_ONCE:,} of {count:,}", file=sys.stderr, flush=True)
    return dict(out)


def _fuzz(count: int, seed: int, examples: list[str]) -> dict[str, Counts]:
    from bad_inputs import fuzz as made_up
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    out: dict[str, Counts] = collections.defaultdict(collections.Counter)

    @seeded(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(st.data())
    def run(data: Any) -> None:
        made = data.draw(made_up.sound())
        name = data.draw(st.sampled_from(["sound", *made_up.FAULTS]))
        ds = made.ds if name == "sound" else made_up.FAULTS[name](data.draw, made)
        try:
            ok, code = made_up.verdict(ds)
        except Exception:  # whatever it is, it is a bug
            out[name]["crash"] += 1
            examples.append(f"{name}: {traceback.format_exc()[-1500:]}")
            return
        right = ok == (name == "sound")
        wrong = "missed" if ok else "false alarm"
        out[name]["right" if right else wrong] += 1
        if not right:
            chunks = bool(made.ds.chunks)
            examples.append(f"{name}: {code} {made.names} hourly={made.hourly} {chunks=}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    return dict(out)


# --- damaged files --------------------------------------------------------------------------------


def _fields(times: int = 20) -> xr.Dataset:
    return xaurora.synthetic(shape=(16, 32), times=times)


def _small_base() -> Any:
    torch.manual_seed(0)
    base = cases.SmokeAurora()
    cases.randomise_modulation(base)
    return base


def damaged(data: bytes, flips: int) -> Iterator[tuple[str, bytes]]:
    """Yield copies of a file with one byte changed, and cut off at every hundredth."""
    rng = random.Random(0)
    for place in np.unique(np.linspace(0, len(data) - 1, min(flips, len(data))).astype(int)):
        other = bytearray(data)
        other[place] ^= rng.randrange(1, 256)
        yield "changed", bytes(other)
    for share in range(100):
        yield "cut off", data[: len(data) * share // 100]


def _outcome(
    read: Callable[[], Any],
    expected: Any,
    examples: list[str],
    what: str,
    use: Callable[[], Any] = bool,
) -> str:
    """Return what happens when damaged files are read, and used if what is read differs."""
    try:
        found = read()
        if found != expected:
            use()
    except errors.XauroraError as error:
        return "refused" if error.fix else "crash"
    except Exception:  # whatever it is, it is a bug
        examples.append(f"{what}: {traceback.format_exc()[-1500:]}")
        return "crash"
    if found == expected:
        return "the same"
    examples.append(f"{what}: it was read and differs")
    return "differs"


def _damage(
    folder: Path, flips: int, read: Callable[[], Any], examples: list[str]
) -> dict[str, Counts]:
    """Damage every file of a folder in turn, and read the whole."""
    out: dict[str, Counts] = {}
    expected = read()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        data, name = file.read_bytes(), str(file.relative_to(folder))
        counts = out.setdefault(name, collections.Counter())
        for how, other in damaged(data, flips):
            file.write_bytes(other)
            counts[_outcome(read, expected, examples, f"{name} {how}")] += 1
        file.write_bytes(data)
    return out


def byte_flips(flips: int, examples: list[str]) -> dict[str, Counts]:
    """Damage an artefact, a checkpoint and a forecast store, a byte at a time."""
    ds, base = _fields(), _small_base()
    out: dict[str, Counts] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options: dict[str, Any] = {"head": HEAD, "progress": False, "validations": 1}
        tuned = ds.aurora.finetune("tp", model=base, steps=2, out=folder / "run", **options)
        tuned.save(folder / "artefact")

        def artefact() -> Any:
            loaded = xaurora.load(folder / "artefact", base=base)
            return loaded.hash, state_hash(loaded.model), loaded.config, loaded.history

        found = _damage(folder / "artefact", flips, artefact, examples)
        out |= {f"artefact: {n}": counts for n, counts in found.items()}
        out |= _damaged_checkpoint(ds, folder, flips, examples)
    return out


_FILES, _PLACES = 12, 40  # chunks of a store, and changed bytes in each


def stores(examples: list[str]) -> dict[str, Counts]:
    """Damage chunks of a forecast store and of a prepared store."""
    with tempfile.TemporaryDirectory() as name:
        return _damaged_stores(_fields(), Path(name), examples)


def _damaged_stores(ds: xr.Dataset, folder: Path, examples: list[str]) -> dict[str, Counts]:
    """Damage chunks of both, and read what is left."""
    ds.aurora.prepare(folder / "prepared.zarr", model="tiny", progress=False)
    ds.aurora.predict(
        "12h", model="tiny-pretrained", store=folder / "forecast.zarr", progress=False
    )
    out: dict[str, Counts] = {}
    for store in ("prepared.zarr", "forecast.zarr"):

        def read(path: Path = folder / store) -> Any:
            opened = xaurora.open(path)
            return {n: indexed.read(v, str(n)).tobytes() for n, v in opened.variables.items()}

        expected, counts = read(), out.setdefault(f"chunks of {store}", collections.Counter())

        def use(path: Path = folder / store) -> None:
            """Zarr reads an empty shard as missing values, which are refused when they are used."""
            for problem in xaurora.open(path).aurora.check("tp", model="tiny").problems:
                raise errors.MissingValuesError(problem.message, fix=problem.fix)

        used = use if store == "prepared.zarr" else bool
        chunks = sorted(p for p in (folder / store).rglob("c/*") if p.is_file())
        chunks += sorted(p for p in (folder / store).rglob("c/**/*") if p.is_file())
        step = max(len(chunks) // _FILES, 1)
        for file in chunks[::step]:
            data = file.read_bytes()
            for how, other in damaged(data, _PLACES):
                file.write_bytes(other)
                counts[_outcome(read, expected, examples, f"{file} {how}", used)] += 1
            file.write_bytes(data)
    return out


def _damaged_checkpoint(
    ds: xr.Dataset, folder: Path, flips: int, examples: list[str]
) -> dict[str, Counts]:
    from xaurora.training import checkpoints

    code = f"""
import sys, torch, xaurora
from xaurora.training import loop
real = loop.Trainer.take_step
def dies(self, *args):
    if self.progress.step == 3:
        import os; os._exit(9)
    return real(self, *args)
loop.Trainer.take_step = dies
ds = xaurora.synthetic(shape=(16, 32), times=20)
ds.aurora.finetune("tp", model="tiny", strategy="lora", steps=6, checkpoint_every=2,
    validations=1, head=xaurora.HeadOptions("csgd", width=8), out={str(folder / "stopped")!r},
    progress=False)
"""
    Script(code).wait()
    stopped = folder / "stopped"

    def read() -> Any:
        run = checkpoints.read_run(stopped)
        if run is None:
            raise errors.CheckpointError("there is no checkpoint.", fix="start again")
        return run, _digest(checkpoints.read_tensors(stopped, run["state"]))

    found = _damage(stopped / "checkpoint", flips, read, examples)
    return {f"checkpoint: {n}": counts for n, counts in found.items()}


def _digest(value: Any) -> Any:
    """Return nested tensors as bytes, which can be compared."""
    if torch.is_tensor(value):
        return value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {k: _digest(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_digest(v) for v in value]
    return repr(value)


# --- kills ----------------------------------------------------------------------------------------

_FINETUNE = """
ds.aurora.finetune("tp", model={model!r}, steps=16, batch_size=2, checkpoint_every=2,
    head=xaurora.HeadOptions("csgd", width=8), resume=True, out=sys.argv[1] + "/run",
    progress=False, **{options})
"""
TASKS = {
    "finetune, frozen with latents": _FINETUNE.format(
        model="tiny-pretrained", options={"strategy": "frozen", "latents": True}
    ),
    "finetune, LoRA": _FINETUNE.format(model="tiny-pretrained", options={"strategy": "lora"}),
    "finetune, full with replay": _FINETUNE.format(
        model="tiny", options={"strategy": "full", "rollout_steps": 3, "replay_buffer": 5}
    ),
    "predict to a store": """
ds.aurora.predict("12h", model="tiny-pretrained", store=sys.argv[1] + "/fc.zarr", progress=False)
""",
    "prepare": """
ds.aurora.prepare(sys.argv[1] + "/data.zarr", model="tiny", progress=False)
""",
    "evaluate to a file": """
from xaurora.cli.commands import main
sys.argv = ["xaurora", "evaluate", sys.argv[2] + "/fc.nc", sys.argv[2] + "/truth.nc", "--out",
    sys.argv[1] + "/scores.nc", "--overwrite"]
main()
""",
    "save": """
xaurora.load(sys.argv[2] + "/model").save(sys.argv[1] + "/model", overwrite=True)
""",
}
_BEFORE = """
import sys, torch
torch.set_num_threads(1)
import xaurora
ds = xaurora.synthetic(shape=(16, 32), times=20)
"""


def _contents(folder: Path) -> dict[str, Any]:
    """Return what a finished task has left, without what differs from run to run."""
    out: dict[str, Any] = {}
    for run in folder.glob("run"):
        tuned = xaurora.load(run)
        out["run"] = (tuned.hash, tuned.config["scores"], (run / "log.jsonl").read_text())
    for run in folder.glob("model"):
        out["model"] = xaurora.load(run).hash
    for store in folder.glob("*.zarr"):
        with xr.open_zarr(store, consolidated=False, decode_timedelta=True) as ds:
            out[store.name] = {n: v.values.tobytes() for n, v in ds.variables.items()}
    for file in folder.glob("*.nc"):
        with xr.open_dataset(file, decode_timedelta=True) as ds:
            out[file.name] = {n: v.values.tobytes() for n, v in ds.variables.items()}
    return out


def kills(count: int, examples: list[str]) -> dict[str, Counts]:
    """Kill tasks at random moments until they are through, and compare with one that was not."""
    rng, out = random.Random(0), {}
    ds = _fields()
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name) / "shared"
        shared.mkdir()
        ds.aurora.finetune(
            "tp", model="tiny", steps=1, head=HEAD, out=shared / "run", progress=False
        ).save(shared / "model")
        ds.to_netcdf(shared / "truth.nc")
        xaurora.persistence(ds, ["tp", "t2m"], ["6h", "12h"]).load().to_netcdf(shared / "fc.nc")
        Script(_BEFORE).wait()  # the first start takes longer
        for task, code in TASKS.items():
            counts = out.setdefault(task, collections.Counter())
            whole = Path(name) / f"{task} whole"
            whole.mkdir()
            began = time.monotonic()
            status = Script(_BEFORE + code, whole, shared).wait()
            seconds = time.monotonic() - began
            if status:
                counts["crash"] += 1
                continue
            expected = _contents(whole)
            wanted = -(-count // len(TASKS))
            for _ in range(wanted):
                if counts["killed"] >= wanted:
                    break
                _killed(task, code, Path(name), shared, (rng, seconds, expected), counts, examples)
    return out


def _killed(
    task: str,
    code: str,
    folder: Path,
    shared: Path,
    given: tuple[random.Random, float, dict[str, Any]],
    counts: Counts,
    examples: list[str],
) -> None:
    """Kill a task three times, let it end, and compare."""
    rng, seconds, expected = given
    out = Path(tempfile.mkdtemp(dir=folder))
    for _ in range(3):
        script = Script(_BEFORE + code, out, shared)
        time.sleep(rng.uniform(0.2, 0.95) * seconds)
        script.kill()
        if script.wait() != -signal.SIGKILL:
            counts["ended before it was killed"] += 1
            break
        counts["killed"] += 1
    last = Script(_BEFORE + code, out, shared)
    if last.wait():
        counts["crash"] += 1
        examples.append(f"{task}: {last.output[-1500:]}")
    elif _contents(out) != expected:
        counts["differs"] += 1
        examples.append(f"{task}: the result differs")
    else:
        counts["resumed to the same result"] += 1
    left = [p.name for p in out.iterdir() if ".new-" in p.name or p.name.endswith(".pieces")]
    if left:
        counts["left behind"] += 1
        examples.append(f"{task}: {left}")
    shutil.rmtree(out)


# --- fights ---------------------------------------------------------------------------------------


def fights(count: int, examples: list[str]) -> dict[str, Counts]:
    """Let two processes train in one folder, and kill one at random, twice in each round."""
    rng, counts = random.Random(2), collections.Counter()
    code = _BEFORE + TASKS["finetune, LoRA"]
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        Script(_BEFORE).wait()  # the first start takes longer
        began = time.monotonic()
        Script(code, whole).wait()
        seconds, expected = time.monotonic() - began, _contents(whole)
        while counts["killed"] < count:
            out = Path(tempfile.mkdtemp(dir=name))
            fighters = [Script(code, out) for _ in range(2)]
            for _ in range(2):
                time.sleep(rng.uniform(0.3, 0.9) * seconds)
                if running := [s for s in fighters if s.is_running]:
                    victim = rng.choice(running)
                    victim.kill()
                    counts["killed"] += victim.wait() == -signal.SIGKILL
                fighters.append(Script(code, out))
            for script in fighters:
                status = script.wait()
                if status == 1 and "is being written by process" in script.output:
                    counts["refused with the other's number"] += 1
                elif status not in (0, -signal.SIGKILL):
                    counts["crash"] += 1
                    examples.append(f"fight: {script.output[-1500:]}")
            last = Script(code, out)
            if last.wait():
                counts["crash"] += 1
                examples.append(f"fight, alone: {last.output[-1500:]}")
            elif _contents(out) != expected:
                counts["differs"] += 1
                examples.append("fight: the result differs")
            else:
                counts["resumed to the same result"] += 1
    return {"two processes in one folder": counts}


# --- disks ----------------------------------------------------------------------------------------


def disks(count: int, examples: list[str]) -> dict[str, Counts]:
    """Let a disk fill up, or become read-only, while something is written."""
    rng, out = random.Random(1), {}
    ds = _fields()
    tuned = None
    with tempfile.TemporaryDirectory() as name:
        tuned = ds.aurora.finetune(
            "tp", model="tiny", steps=1, head=HEAD, out=Path(name) / "run", progress=False
        )
    verbs: dict[str, tuple[int, Callable[[Path], Any]]] = {
        "save": (16_000, lambda p: tuned.save(p / "model")),
        "finetune": (
            40_000,
            lambda p: ds.aurora.finetune(
                "tp", model="tiny", steps=2, head=HEAD, out=p / "run", progress=False
            ),
        ),
        "predict": (
            600,
            lambda p: ds.aurora.predict(
                "6h", model="tiny-pretrained", store=p / "fc.zarr", progress=False
            ),
        ),
        "prepare": (
            800,
            lambda p: ds.aurora.prepare(p / "data.zarr", model="tiny", progress=False),
        ),
    }
    for verb, (kilobytes, write) in verbs.items():
        full = out.setdefault(f"a full disk, {verb}", collections.Counter())
        for _ in range(-(-count // len(verbs))):
            with mounted(max(int(rng.uniform(0.02, 0.9) * kilobytes), 16)) as disk:
                if disk is None:
                    full["no file system could be mounted"] += 1
                    break
                full[_written(write, disk, examples, f"a full disk, {verb}")] += 1
        still = out.setdefault(f"read-only, {verb}", collections.Counter())
        with tempfile.TemporaryDirectory() as name:
            began = time.monotonic()
            write(Path(name))
            seconds = time.monotonic() - began
        for _ in range(-(-count // len(verbs))):
            with mounted(100_000) as disk:
                if disk is None:
                    still["no file system could be mounted"] += 1
                    break
                after = rng.uniform(0.0, 0.8) * seconds
                switch = subprocess.Popen(
                    ["sh", "-c", f"sleep {after}; mount -o remount,ro {disk}"],
                    stderr=subprocess.DEVNULL,
                )
                still[_written(write, disk, examples, f"read-only, {verb}")] += 1
                switch.wait()
    return out


class mounted:
    """A small file system for a ``with`` block, or None where none may be mounted."""

    def __init__(self, kilobytes: int, mode: str = "rw") -> None:
        self.options = f"size={kilobytes}k,{mode}"
        self.path = Path(tempfile.mkdtemp())

    def __enter__(self) -> Path | None:
        command = ["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", str(self.path)]
        self.done = subprocess.run(command, capture_output=True, check=False).returncode == 0
        return self.path if self.done else None

    def __exit__(self, *error: object) -> None:
        if self.done:
            subprocess.run(["umount", "-l", str(self.path)], check=True)
        os.rmdir(self.path)


def _written(write: Callable[[Path], Any], disk: Path, examples: list[str], what: str) -> str:
    try:
        write(disk)
    except errors.XauroraError as error:
        left = [p.name for p in disk.iterdir() if ".new-" in p.name]
        if left and os.access(disk, os.W_OK) and not what.startswith("read-only"):
            examples.append(f"{what}: left {left}")
            return "left behind"
        return "refused" if error.fix else "crash"
    except Exception:  # whatever it is, it is a bug
        examples.append(f"{what}: {traceback.format_exc()[-1500:]}")
        return "crash"
    return "completed"


# --- report ---------------------------------------------------------------------------------------


def page(report: dict[str, Any]) -> str:
    """Return ``docs/trust.md``."""
    lines = [
        "# Trust",
        "",
        "<!-- Written by benchmarks/trust.py from benchmarks/reports/trust.json. -->",
        "",
        "What xaurora guarantees, and how this is tested.",
        "",
        "- **No silent errors.** Data that contradict their units, times or",
        "  coordinates raise a named error that says what was expected, what was found and what",
        "  to type. Frames with impossible values are logged and left out. A damaged file",
        "  raises an error.",
        "- **Nothing is lost.** A killed process, a full disk or a read-only disk leaves the",
        "  last complete artefact, checkpoint or store intact, and repeating the call resumes the"
        " run.",
        "- **Nothing is executed.** Artefacts and checkpoints hold tensors and JSON. Pickles that",
        "  would run code are refused. cfgrib's index of a GRIB file is a pickle; it is read",
        "  only from a folder of the user's cache that nobody else can write to.",
        "",
        "Not covered: values that are plausible but wrong, such as those of another year,",
        "cannot be detected. Chunks of the stores that xaurora writes have checksums; their",
        "metadata (`zarr.json`) and NetCDF files have none.",
        "",
        f"The last runs ({report['machine']}):",
        "",
        "| what was broken | outcome | times | run on |",
        "|---|---|---|---|",
    ]
    for part, by in report["parts"].items():
        totals: Counts = collections.Counter()
        for counts in by.values():
            totals.update(counts)
        for outcome, times in sorted(totals.items()):
            lines.append(f"| {TITLES[part]} | {outcome} | {times:,} | {report['dates'][part]} |")
    lines += [
        "",
        "`tests/bad_inputs/catalogue.py` lists bad inputs one by one, each with the error it must"
        " raise.",
        "Every piece of code in their fixes but `devices=` is executed, and the call repeated.",
        "`tests/bad_inputs/fuzz.py` generates Datasets in every convention that xaurora reads,",
        f"valid or with one of {report['faults']} faults. The test suite runs shortened versions of"
        " all parts.",
    ]
    return "\n".join(lines) + "\n"


TITLES = {
    "fuzz": "a Dataset, sound or with one fault",
    "bytes": "a file of an artefact or a checkpoint: a byte changed, or cut off",
    "stores": "a chunk of a forecast or of prepared data: a byte changed, or cut off",
    "kills": "a process, by SIGKILL at a random moment",
    "fights": "two processes in one folder, one killed by SIGKILL at a random moment",
    "disks": "a disk that fills up or becomes read-only while something is written",
}


def main() -> int:
    """Run the parts and write the report. Returns 1 if there is an outcome that must not be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*TITLES, []], help="by default all")
    parser.add_argument("--cases", type=int, default=100_000, help="Datasets of the fuzzer")
    parser.add_argument("--flips", type=int, default=3_000, help="changed bytes per file")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--fights", type=int, default=20)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    from bad_inputs.fuzz import FAULTS

    report = json.loads(REPORT.read_text()) if REPORT.exists() else {"parts": {}}
    examples: list[str] = []
    runs: dict[str, Callable[[], dict[str, Counts]]] = {
        "fuzz": lambda: fuzz(given.cases, given.seed, examples),
        "bytes": lambda: byte_flips(given.flips, examples),
        "stores": lambda: stores(examples),
        "kills": lambda: kills(given.kills, examples),
        "fights": lambda: fights(given.fights, examples),
        "disks": lambda: disks(given.disks, examples),
    }
    wrong = 0
    for part in given.parts or runs:
        began = time.monotonic()
        found = runs[part]()
        report.setdefault("dates", {})[part] = time.strftime("%Y-%m-%d")
        report["parts"][part] = {what: dict(counts) for what, counts in found.items()}
        wrong += sum(counts[bad] for counts in found.values() for bad in BAD)
        print(
            part, f"{time.monotonic() - began:.0f} s", json.dumps(report["parts"][part], indent=1)
        )
        for text in examples[:20]:
            print(text)
        examples.clear()
        sys.stdout.flush()
    report |= {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "versions": provenance.versions(),
        "faults": len(FAULTS),
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    PAGE.write_text(page(report))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

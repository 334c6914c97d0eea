"""Inject faults into a copy of the package, one at a time, and see whether the tests notice.

Run ``python tests/mutations/run.py`` for all faults of :mod:`faults`, or with words that occur in
the names of some. Exits with 1 if a fault passes the tests. The checkout itself is not changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from faults import FAULTS, Fault, faulty

ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT = 300.0  # seconds; a fault may make a test run for ever
_TIMED_OUT = -1
_FAILED = 1  # pytest's exit status when tests have run and some have failed


def copy_checkout(folder: Path) -> Path:
    """Copy what the tests need, beside a link to the real data. Return the copy's folder."""
    copy = folder / "checkout"
    copy.mkdir()
    for name in ("xaurora", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "docs"):
        (copy / name).symlink_to(ROOT / name)
    if (data := ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(data)
    return copy


def run_tests(copy: Path, tests: tuple[str, ...]) -> int:
    """Run some tests of the copy until the first failure, and return pytest's exit status."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/{test}" for test in tests]
    # Python would take the bytecode of the faulty file for that of the right one if both were
    # written within one second.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        print(f"stopped after {_TIMEOUT:g} s: {' '.join(tests)}", file=sys.stderr)
        return _TIMED_OUT
    if done.returncode not in (0, _FAILED):
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return done.returncode


def is_noticed(copy: Path, fault: Fault) -> bool:
    """Inject one fault, run its tests and take it out again."""
    path = copy / "xaurora" / fault.file
    text = path.read_text(encoding="utf-8")
    path.write_text(faulty(text, fault), encoding="utf-8")
    try:
        return run_tests(copy, fault.tests) == _FAILED
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """Run the faults named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="words that occur in the names of faults")
    parser.add_argument(
        "--sound", action="store_true", help="first run the same tests without any fault"
    )
    given = parser.parse_args()
    chosen = [f for f in FAULTS if not given.words or any(w in f.name for w in given.words)]
    if not chosen:
        parser.error(f"no fault has {' or '.join(given.words)} in its name")
    missed = []
    with tempfile.TemporaryDirectory(prefix="xaurora-faults-") as folder:
        copy = copy_checkout(Path(folder))
        tests = tuple(dict.fromkeys(test for fault in chosen for test in fault.tests))
        if given.sound and run_tests(copy, tests) != 0:
            print("The tests fail without a fault.")
            return 1
        for fault in chosen:
            began = time.monotonic()
            noticed = is_noticed(copy, fault)
            seconds = time.monotonic() - began
            print(f"{'noticed' if noticed else 'MISSED':<8} {seconds:5.0f} s  {fault.name}")
            sys.stdout.flush()
            if not noticed:
                missed.append(fault.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults are noticed.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

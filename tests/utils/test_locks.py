"""One process writes to a folder, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from helpers import Script

from xaurora import errors
from xaurora.utils import locks, storage

_HOLDER = """
import sys, time
from pathlib import Path
from xaurora.utils.locks import only_writer
path = Path(sys.argv[1])
with only_writer(path, argument="out=", wait=float(sys.argv[2])):
    path.mkdir(exist_ok=True)
    print("mine", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def _until(script: Script, words: str) -> None:
    deadline = time.monotonic() + 60
    while words not in script.output and time.monotonic() < deadline:
        time.sleep(0.02)
    assert words in script.output


def test_another_writer_is_named_and_a_killed_one_forgotten(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "tp"
    script = Script(_HOLDER, out, 0, 60)
    _until(script, "mine")
    with (
        pytest.raises(
            errors.BusyError, match=f"written by process {script.process.pid} on"
        ) as busy,
        locks.only_writer(out, argument="out="),
    ):
        pass
    assert "another out=" in busy.value.fix
    assert "wait=600" in busy.value.fix
    script.kill(signal.SIGKILL)
    script.wait()
    with locks.only_writer(out, argument="out="):
        known = json.loads(next(out.parent.glob("*.writer")).read_text())
        assert known["pid"] == os.getpid()
    assert sorted(p.name for p in out.parent.iterdir()) == ["tp"]


def test_a_writer_can_wait_for_one_that_ends(tmp_path: Path) -> None:
    first = Script(_HOLDER, tmp_path / "out", 0, 0.5)
    _until(first, "mine")
    began = time.monotonic()
    with locks.only_writer(tmp_path / "out", argument="out=", wait=60):
        assert time.monotonic() - began > 0.1
    assert first.wait() == 0


def test_of_many_that_wait_one_writes_at_a_time(tmp_path: Path) -> None:
    """The lock's file is removed by each, while others wait for it."""
    code = """
import sys, time
from pathlib import Path
from xaurora.utils.locks import only_writer
out, log = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(20):
    with only_writer(out, argument="out=", wait=60):
        with log.open("a") as file:
            file.write("in\\n")
        time.sleep(0.002)
        with log.open("a") as file:
            file.write("out\\n")
"""
    log = tmp_path / "log"
    several = [Script(code, tmp_path / "out", log) for _ in range(3)]
    for script in several:
        assert script.wait() == 0, script.output
    assert log.read_text().split() == ["in", "out"] * 60


def test_nothing_stays_behind_if_nothing_was_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="before"),
        locks.only_writer(tmp_path / "a" / "b" / "c", argument="out="),
    ):
        raise ValueError("before")
    assert list(tmp_path.iterdir()) == []


def test_the_rule_for_every_output(tmp_path: Path) -> None:
    """Nothing, an empty folder, a file and a folder with a file."""
    storage.check_overwrite(tmp_path / "new", overwrite=False)
    (tmp_path / "empty").mkdir()
    storage.check_overwrite(tmp_path / "empty", overwrite=False)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for name in ("file", "full"):
        with pytest.raises(errors.SaveError, match="already exists") as error:
            storage.check_overwrite(tmp_path / name, overwrite=False)
        assert "overwrite=True" in error.value.fix
        storage.check_overwrite(tmp_path / name, overwrite=True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder in which none can be made")
def test_a_folder_that_cannot_be_made_is_not_another_writer() -> None:
    with (
        pytest.raises(errors.SaveError, match="/proc") as error,
        locks.only_writer(Path("/proc/nowhere"), argument="out=", wait=600),
    ):
        pass
    assert type(error.value) is errors.SaveError

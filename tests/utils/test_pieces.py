"""Pieces of work that processes share, and the locks that they are claimed with."""

from __future__ import annotations

import threading

import pytest
from helpers import Script

from xaurora import errors
from xaurora.utils import locks
from xaurora.utils.pieces import Pieces


def _run(shared: Pieces, work) -> int:
    found = []
    shared.run(lambda left: ((n, shared.attempt(n, work)) for n in left), found.append)
    return sum(found)


def test_each_piece_is_done_once_by_one_of_several_threads(tmp_path) -> None:
    shared = Pieces(tmp_path / "pieces", 40)
    with shared.alone():
        shared.open()
    done: list[int] = []
    threads = [threading.Thread(target=_run, args=(shared, done.append)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(40))
    assert shared.finished() == sorted(done)


def test_who_comes_when_all_is_cleared_does_not_begin_again(tmp_path) -> None:
    shared = Pieces(tmp_path / "pieces", 3)
    with shared.alone():
        shared.open()
    assert _run(shared, lambda _: None) == 3
    shared.clear()
    assert not shared.folder.exists()
    assert _run(shared, lambda _: pytest.fail("done twice")) == 3
    assert not shared.folder.exists()


def test_a_piece_that_failed_is_not_finished(tmp_path) -> None:
    shared = Pieces(tmp_path / "pieces", 2)
    with shared.alone():
        shared.open()

    def broken(number: int) -> None:
        if number == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _run(shared, broken)
    assert shared.finished() == [0]


def test_a_killed_process_releases_what_it_held(tmp_path) -> None:
    script = Script(
        f"""
import pathlib, time
from xaurora.utils.pieces import locked
with locked(pathlib.Path({str(tmp_path / "lock")!r})):
    print("held", flush=True)
    time.sleep(300)
"""
    )
    while "held" not in script.output:
        assert script.is_running, script.output
    with locks.locked(tmp_path / "lock", wait=False) as mine:
        assert not mine
    script.kill()
    script.wait()
    with locks.locked(tmp_path / "lock", wait=False) as mine:
        assert mine


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch) -> None:
    import errno
    import fcntl

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    with (
        pytest.raises(errors.SaveError, match="file system without locks"),
        locks.locked(tmp_path / "lock"),
    ):
        pass


def test_a_lock_that_cannot_be_written_is_not_blamed_on_the_file_system(
    tmp_path, monkeypatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks.FileLock, "acquire", refused)
    with (
        pytest.raises(errors.SaveError, match="Permission denied") as error,
        locks.locked(tmp_path / "lock"),
    ):
        pass
    assert "may write to" in error.value.fix

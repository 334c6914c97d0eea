"""Locks between processes, which the operating system releases when their holder ends."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from xaurora.errors import BusyError, SaveError
from xaurora.utils.storage import output_path, save_error

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool | float = True) -> Iterator[bool]:
    """Hold a lock between processes; yields whether it was obtained.

    Parameters
    ----------
    path : path
        Of the lock, a file that stays.
    wait : bool or float
        Whether to wait until it is free, or for how many seconds.

    Raises
    ------
    SaveError
        If the file system has no locks, or the lock cannot be written.
    """
    lock = FileLock(
        path,
        timeout=-1 if wait is True else float(wait),
        fallback_to_soft=False,
        is_singleton=False,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # where that fails, acquiring would look like a lock that another holds
        lock.acquire()
        while _is_gone(lock, path):  # its holder has removed it while this process waited
            lock.release()
            lock.acquire()
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise save_error(path.parent, error) from error
        raise SaveError(
            f"'{path.parent}' is on a file system without locks ({error}), so that two writers"
            " could destroy each other's work.",
            fix="write to a local disk, or mount the file system with locks",
        ) from error
    try:
        yield True
    finally:
        lock.release()


def _is_gone(lock: FileLock, path: Path) -> bool:
    """Return whether a lock is held on a file that is no longer at its path."""
    handle = lock._context.lock_file_fd
    try:
        return handle is not None and os.fstat(handle).st_ino != path.stat().st_ino
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def only_writer(path: Path, *, argument: str, wait: float = 0.0) -> Iterator[None]:
    """Be the only process that writes to a path.

    Parameters
    ----------
    path : path
        A folder or store, which need not exist. While the lock is held, it is a hidden file beside
        it.
    argument : str
        The argument that names it, for the message.
    wait : float
        Seconds to wait for another writer to end.

    Raises
    ------
    BusyError
        Another process writes to it; with its number and machine.
    SaveError
        The file system has no locks.
    """
    path = output_path(os.path.abspath(path))
    holder, file = (path.with_name(f".{path.name}.{end}") for end in ("writer", "lock"))
    made = [parent for parent in path.parents if not parent.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, made)
        mine = stack.enter_context(locked(file, wait=wait))
        if not mine:
            raise BusyError(
                f"'{path}' is being written by {_described(holder)}.",
                fix=f"wait=600 waits up to ten minutes for it to end; or another {argument}",
            )
        known = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
        }
        with contextlib.suppress(OSError):  # only the message of others suffers
            holder.write_text(json.dumps(known), encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # Windows does not remove a file in use
                file.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that are empty, the innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _described(holder: Path) -> str:
    """Return who holds a lock, in words."""
    try:
        known = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']}, since {known['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

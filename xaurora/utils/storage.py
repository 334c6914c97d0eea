"""Writing files and folders so that what stood there before stays whole until the new is complete."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from xaurora.errors import SaveError

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2): swap two paths in one step
_AT_FDCWD = -100


def save_error(path: Path, error: BaseException) -> SaveError:
    """The error for a write that failed, with the usual reasons spelled out."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    fix = "free space, or choose another folder"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "choose a folder that you may write to"
    return SaveError(
        f"'{path}' could not be written: {reason}. What was there before is whole.", fix=fix
    )


@contextlib.contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """Turn what writing may raise into :class:`SaveError`."""
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        raise save_error(path, error) from error
    except Exception as error:
        if (
            type(error).__name__ != "SafetensorError"
        ):  # raised by safetensors for a full disk; derives from Exception alone
            raise
        raise save_error(path, error) from error


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Fill a new folder beside ``path``, then put it in its place in one step.

    A kill or a full disk at any moment leaves the old folder whole, under ``path`` or, on file
    systems that cannot swap, beside it, where :func:`recover` finds it.

    Raises
    ------
    SaveError
        Writing failed; nothing was changed.
    """
    path = Path(path)
    with named_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_dir():
            raise SaveError(
                f"'{path}' is a file, and a folder is to be written there.",
                fix="choose another name",
            )
        _sweep(path)
        staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
        try:
            staged.chmod(0o755)
            write(staged)
            for file in staged.rglob("*"):
                sync(file)
            sync(staged)
            _swap(staged, path)
            sync(path.parent)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _swap(staged: Path, path: Path) -> None:
    if not path.exists():
        os.rename(staged, path)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    exchange = getattr(libc, "renameat2", None)
    if (
        exchange is not None
        and exchange(_AT_FDCWD, os.fsencode(staged), _AT_FDCWD, os.fsencode(path), _EXCHANGE) == 0
    ):
        return  # `staged` now holds the old folder, which the caller removes
    backup = path.with_name(f".{path.name}.old")
    shutil.rmtree(backup, ignore_errors=True)
    os.rename(path, backup)
    os.rename(staged, path)
    shutil.rmtree(backup, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what earlier, killed writers left behind."""
    recover(path)
    for left in path.parent.glob(f".{path.name}.new-*"):
        shutil.rmtree(left, ignore_errors=True)


def recover(path: Path) -> None:
    """Bring back the old folder if a writer was killed between its two renames."""
    backup = path.with_name(f".{path.name}.old")
    if backup.is_dir() and not path.exists():
        os.rename(backup, path)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside ``path`` and put it in its place in one step.

    Raises
    ------
    SaveError
        Writing failed; nothing was changed.
    """
    path = Path(path)
    with named_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.stem}.new-*{path.suffix}"):
            left.unlink(missing_ok=True)  # of an earlier, killed writer
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.new-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        staged = Path(name)
        try:
            staged.chmod(0o644)
            write(staged)
            sync(staged)
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file or folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

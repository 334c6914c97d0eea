"""Atomic writes: existing files and folders stay intact until the new ones are complete."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from xaurora.errors import SaveError

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2): swap two paths in one step
_AT_FDCWD = -100
_LONGEST = 255 - 25  # bytes of a name, with what hidden files beside it are called


def save_error(path: Path, error: BaseException) -> SaveError:
    """Return the error for a failed write, with a fix for the usual reasons."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    fix = "free space, or choose another folder"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "choose a folder that you may write to"
    return SaveError(
        f"'{path}' could not be written: {reason}. Existing files are unchanged.", fix=fix
    )


def output_path(path: str | Path) -> Path:
    """Return a path at which something can be written, whether or not it exists.

    Raises
    ------
    SaveError
        It holds control characters, a name is too long, or a folder above it is a file.
    """
    path = Path(path)
    if any(unicodedata.category(c) == "Cc" for c in str(path)):
        raise SaveError(
            f"{str(path)!r} holds control characters.",
            fix="choose a name of letters, digits and -_.",
        )
    try:
        above = next(p for p in (*path.absolute().parents, Path("/")) if p.exists())
    except OSError as error:  # a name or all of them are too long
        raise save_error(path, error) from error
    if (length := len(os.fsencode(path.name))) > _LONGEST:
        raise SaveError(
            f"the name of '{path}' has {length} bytes; {_LONGEST} are possible.",
            fix="choose a shorter name",
        )
    if not above.is_dir():
        raise SaveError(f"'{above}' is a file, not a folder.", fix="choose another folder")
    return path


def check_overwrite(path: str | Path, *, overwrite: bool, resumes: str = "") -> None:
    """Raise if something is at a path and may not be overwritten: one rule for every output.

    Parameters
    ----------
    path : path
    overwrite : bool
        What the caller was given.
    resumes : str
        What continues the existing output, for the message.

    Raises
    ------
    SaveError
        Something other than an empty folder is there, and ``overwrite`` is False.
    """
    path = output_path(path)
    recover(path)
    if is_taken(path) and not overwrite:
        raise SaveError(
            f"'{path}' already exists and is not overwritten.",
            fix="overwrite=True, or another name" + (f", or {resumes}" if resumes else ""),
        )


def is_taken(path: Path) -> bool:
    """Return whether something other than an empty folder is at a path."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


@contextlib.contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Turn errors raised by writing into :class:`SaveError`."""
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        raise save_error(path, error) from error
    except Exception as error:
        if (
            type(error).__name__ != "SafetensorError"
        ):  # safetensors raises it for a full disk; a direct subclass of Exception
            raise
        raise save_error(path, error) from error


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Write a new folder beside ``path``, then move it into place in one step.

    A process that is killed or a full disk leaves the old folder intact, either under ``path`` or,
    on file systems that cannot swap two paths, beside it, where :func:`recover` finds it.

    Raises
    ------
    SaveError
        If writing fails. Nothing was changed.
    """
    path = output_path(path)
    with wrap_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_dir():
            raise SaveError(
                f"'{path}' is a file, but a folder must be written there.",
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
    """Remove what earlier writers left behind when they were killed."""
    recover(path)
    for left in path.parent.glob(f".{path.name}.new-*"):
        shutil.rmtree(left, ignore_errors=True)


def recover(path: Path) -> None:
    """Restore the old folder if a writer was killed between its two renames."""
    backup = path.with_name(f".{path.name}.old")
    if backup.is_dir() and not path.exists():
        os.rename(backup, path)


def cache_folder(name: str) -> Path | None:
    """Return a folder of the user's cache, or None if it cannot be made or others can write to it.

    It is in ``$XDG_CACHE_HOME/xaurora``, by default in ``~/.cache/xaurora``.
    """
    folder = cache_path(name)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError:
        return None
    mine = not hasattr(os, "getuid") or state.st_uid == os.getuid()
    return folder if mine and not state.st_mode & 0o022 and os.access(folder, os.W_OK) else None


def cache_path(name: str) -> Path:
    """Return the path of a folder of the user's cache, which need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "xaurora" / name


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside ``path``, then move it into place in one step.

    Raises
    ------
    SaveError
        If writing fails. Nothing was changed.
    """
    path = output_path(path)
    with wrap_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.stem}.new-*{path.suffix}"):
            left.unlink(missing_ok=True)  # left by a writer that was killed
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
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

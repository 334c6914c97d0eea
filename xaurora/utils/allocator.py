"""Keep freed memory for the next tensors of the same size, on Linux with glibc.

A forward pass frees and allocates the same large tensors again and again. By default glibc gives
large blocks back to the system at once, and each new one is faulted in page by page: up to a tenth
of the time of a step on a CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import threading
from collections.abc import Iterator

KEPT = 512 * 1024**2
"""Bytes of free memory that may stay with the process afterwards, for the next call."""

# of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1  # trims, as a threshold
_USUAL_MMAPS, _LARGE_BLOCK = 65536, 32 * 1024**2  # glibc's own, and the largest that it adapts to


class _Info(ctypes.Structure):
    """What ``mallinfo2`` returns (mallinfo(3))."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library, or None if it is another or the user has set its allocator."""
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or chosen or not os.access("/proc/self/statm", os.R_OK):
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):  # before 2.33
        return None
    library.mallinfo2.restype = _Info
    return library


class _Kept:
    """Counts the calls that keep memory, and measures what is left of it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.other: int | None = None  # resident bytes of what is not the allocator's

    def begin(self, library: ctypes.CDLL) -> None:
        with self.lock:
            self.users += 1
            if self.users == 1:
                if self.other is None:
                    self.other = _unused(library, int(library.mallinfo2().fordblks))
                library.mallopt(_MMAP_MAX, 0)
                library.mallopt(_TRIM_THRESHOLD, _NEVER)

    def end(self, library: ctypes.CDLL) -> None:
        with self.lock:
            self.users -= 1
            if self.users:
                return
            library.mallopt(_MMAP_MAX, _USUAL_MMAPS)
            library.mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)
            library.mallopt(_TRIM_THRESHOLD, KEPT)
            if _unused(library) - (self.other or 0) > KEPT:
                library.malloc_trim(ctypes.c_size_t(0))
                self.other = _unused(library)


def _unused(library: ctypes.CDLL, free: int = 0) -> int:
    """Return the resident bytes without those in use, and without ``free`` ones."""
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    info = library.mallinfo2()
    return resident - int(info.uordblks) - int(info.hblkhd) - free


_kept = _Kept()


@contextlib.contextmanager
def freed_memory_kept(*, on: bool = True) -> Iterator[None]:
    """Keep freed memory in the process; on exit, give it back if it is more than ``KEPT`` bytes.

    Blocks that are allocated inside and freed later stay with the process until the next call ends:
    large results do not belong inside. Nothing is done unless ``on``, on other systems, before
    glibc 2.33, or if an environment variable of its allocator is set.
    """
    library = _glibc() if on else None
    if library is None:
        yield
        return
    _kept.begin(library)
    try:
        yield
    finally:
        _kept.end(library)

"""Keep freed memory for the next tensors of the same size, on Linux with glibc.

A forward pass frees and allocates the same large tensors again and again. By default glibc gives
large blocks back to the system at once, and each new one is faulted in page by page: up to a tenth
of the time of a step on a CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import platform
import sys
import threading
from collections.abc import Iterator
from typing import Any

KEPT = 512 * 1024**2
"""Bytes of free memory that may stay with the process afterwards, for the next call."""

# of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1  # trims, as a threshold
_USUAL_MMAPS, _LARGE_BLOCK = 65536, 32 * 1024**2  # glibc's own, and the largest that it adapts to

_lock = threading.Lock()
_users = 0
_given_back = math.inf  # resident bytes when memory was last given back


@functools.cache
def _glibc() -> Any:  # noqa: ANN401 - ctypes has no type for a library's functions
    """Return the C library, or None if it is another or the user has set its allocator."""
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or chosen:
        return None
    return ctypes.CDLL(None)


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def freed_memory_kept(device_type: str = "cpu") -> Iterator[None]:
    """Keep freed memory in the process, and give it back on exit if it is more than ``KEPT`` bytes.

    What the user's own data take meanwhile counts too, so that it may be given back earlier.
    Nothing is done for other devices than the CPU, on other systems, or if an environment variable
    of glibc's allocator is set.
    """
    global _users, _given_back
    library = _glibc() if device_type == "cpu" else None
    if library is None:
        yield
        return
    with _lock:
        _users += 1
        if _users == 1:
            _given_back = min(_given_back, _resident())
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                library.mallopt(_MMAP_MAX, _USUAL_MMAPS)
                library.mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)
                library.mallopt(_TRIM_THRESHOLD, KEPT)
                if _resident() - _given_back > KEPT:
                    library.malloc_trim(ctypes.c_size_t(0))
                    _given_back = _resident()

"""Memory of this machine."""

from __future__ import annotations

import math
import os
from pathlib import Path


def free_host_memory() -> int:
    """Return the bytes that this process may still allocate."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
        return int(min(found["MemAvailable"], _group_memory()))
    except (OSError, KeyError, ValueError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_memory() -> float:
    """Return the bytes that a container or cluster job may still allocate (cgroup version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        return (
            math.inf
            if limit == "max"
            else int(limit) - int((folder / "memory.current").read_text())
        )
    except (OSError, ValueError):
        return math.inf

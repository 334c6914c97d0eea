"""Freed memory stays with the process while it is kept, and most goes back afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xaurora.utils import allocator

pytestmark = pytest.mark.skipif(
    allocator._glibc() is None, reason="another C library, or one with settings of the user's"
)

_START = """
import resource
import numpy as np
from xaurora.utils import allocator

def touched(count, size=64 * 1024**2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        np.ones(size // 8)  # larger than glibc keeps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    status = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

"""


def _run(code: str, tmp_path: Path) -> list[int]:
    """Return the numbers that a fresh process prints: its allocator is as it starts."""
    script = tmp_path / "script.py"
    script.write_text(_START + code)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    return [int(word) for word in ran.stdout.split()]


def test_large_blocks_are_faulted_in_once(tmp_path: Path) -> None:
    """64 MB are 16,384 pages of 4 kB: at each use without keeping them, once with."""
    usual, kept = _run(
        """
print(touched(5))
with allocator.freed_memory_kept():
    touched(1)
    print(touched(5))
""",
        tmp_path,
    )
    # A tenth: glibc may split a block for something else, and pages may be larger.
    assert kept < usual / 10


def test_most_goes_back_afterwards(tmp_path: Path) -> None:
    before, inside, nested, after, small, again = _run(
        """
large = 1024**3
print(resident())
with allocator.freed_memory_kept():
    with allocator.freed_memory_kept():
        touched(1, large)
        print(resident())
    print(resident())  # the outer one still keeps it
print(resident())
with allocator.freed_memory_kept():
    touched(1, allocator.KEPT // 2)
print(resident())
print(touched(1, allocator.KEPT // 2))
""",
        tmp_path,
    )
    large = 1024**3
    assert inside - before > 0.9 * large
    assert nested - before > 0.9 * large
    # 64 MB for what the interpreter itself allocates meanwhile.
    assert after - before < allocator.KEPT + 64 * 1024**2
    assert 0.9 * allocator.KEPT // 2 < small - before < allocator.KEPT + 64 * 1024**2
    assert again < allocator.KEPT // 2 // 4096 // 10, "what was kept is used again"


def test_what_was_freed_after_a_call_goes_back_with_the_next(tmp_path: Path) -> None:
    before, held, after = _run(
        """
print(resident())
with allocator.freed_memory_kept():
    kept = [np.ones(40 * 1024**2 // 8) for _ in range(20)]
    small = [bytearray(1000) for _ in range(1000)]  # above them, so that they are not at the top
print(resident())
del kept
with allocator.freed_memory_kept():
    pass
print(resident())
""",
        tmp_path,
    )
    assert held - before > 0.9 * 800 * 1024**2
    assert after - before < 64 * 1024**2


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_users_stay(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "131072")
    allocator._glibc.cache_clear()
    try:
        assert allocator._glibc() is None
        with allocator.freed_memory_kept():
            assert allocator._kept.users == 0
    finally:
        allocator._glibc.cache_clear()


def test_an_error_inside_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), allocator.freed_memory_kept():
        raise ZeroDivisionError
    assert allocator._kept.users == 0


def test_it_can_be_left_out() -> None:
    with allocator.freed_memory_kept(on=False):
        assert allocator._kept.users == 0

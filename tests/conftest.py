"""How the suite runs: on several processes, the slow tests first.

What tests share is in ``shared_fixtures.py``, which takes seconds to import. The process that only
deals out tests does without it.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import itertools
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
# JAX compiles longer than it runs here: the quick way, and once for all processes of the suite.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="xaurora-programs-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
if "XAURORA_TEST_CACHE" not in os.environ:  # one for all processes of the suite, not the user's
    os.environ["XAURORA_TEST_CACHE"] = tempfile.mkdtemp(prefix="xaurora-cache-")
    atexit.register(shutil.rmtree, os.environ["XAURORA_TEST_CACHE"], ignore_errors=True)


_MOST_PROCESSES = 4  # each takes about 2 GB


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite on several processes, unless ``-n`` says how many.

    There is one more than cores, because some tests wait for processes of their own.

    Single tests run in this process, and so do benchmarks, which would disturb each other.
    """
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    here = config.option.usepdb or config.option.showfixtures or config.option.collectonly
    worker = hasattr(config, "workerinput")
    if whole and not worker and config.option.numprocesses is None and not here:
        config.option.numprocesses = min((os.cpu_count() or 1) + 1, _MOST_PROCESSES)
        config.option.dist = "worksteal"


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures where tests run."""
    # A crash prints the thread that crashed, and not a screen of idle ones before it.
    faulthandler.enable(file=sys.__stderr__, all_threads=False)
    gc.set_threshold(100_000, 20, 20)  # collections went through a million objects each time
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("shared_fixtures")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out thorough tests if the whole suite runs, and order the others."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    left = [item for item in items if item.get_closest_marker("thorough")]
    if whole and not (config.option.markexpr or config.option.keyword):
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)
    _share(items)


def _share(items: list[pytest.Item]) -> None:
    """Give each process its share of the slow tests, and let it begin with them.

    Each starts with one of as many equal parts of ``items`` and takes over from others in the end.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes == 1:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = iter([item for item in items if not item.get_closest_marker("slow")])
    modules: dict[Path, list[pytest.Item]] = {}
    for item in slow:
        modules.setdefault(item.path, []).append(item)
    parts: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for tests in sorted(modules.values(), key=len, reverse=True):
        min(parts, key=len).extend(tests)
    length = len(items) // processes
    ordered = [
        i for part in parts for i in (*part, *itertools.islice(fast, max(length - len(part), 0)))
    ]
    items[:] = [*ordered, *fast]

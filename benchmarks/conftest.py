"""Define the option ``--size``, the shared fixtures, and the table at the end of a run."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import pytest
import torch

torch.set_num_threads(os.cpu_count() or 1)
cases.KEEPS_MODELS = True


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--size",
        default="default",
        choices=list(cases.SIZES),
        help="model and grid; the default takes about 6 minutes on 2 cores",
    )
    parser.addoption(
        "--pairs",
        default=1,
        type=int,
        help="pairs of runs, of stock code and xaurora, in float32 steps; about as many elsewhere",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Skip cases that do not depend on the size, unless the size is the default."""
    if config.getoption("--size") != "default":
        for item in items:
            if item.get_closest_marker("once"):
                item.add_marker(pytest.mark.skip(reason="does not depend on --size"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "once: does not depend on --size")


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> cases.Size:
    return cases.SIZES[request.config.getoption("--size")]


@pytest.fixture(scope="session")
def pairs(request: pytest.FixtureRequest) -> int:
    return max(request.config.getoption("--pairs"), 1)


@pytest.fixture(scope="session")
def peak(size: cases.Size) -> float:
    """Return the rate of the machine's own matrix product, in operations a second."""
    return cases.matrix_peak(size.device)


@pytest.fixture(scope="session")
def stock_code(size: cases.Size) -> Iterator[cases.StockProcess]:
    process = cases.StockProcess(size)
    yield process
    process.close()


@pytest.fixture
def stack(size: cases.Size) -> Iterator[Any]:
    """Give what a case opens, and keep freed memory as training does on a CPU."""
    import contextlib
    import gc

    from xaurora.utils.allocator import freed_memory_kept

    with contextlib.ExitStack() as opened:
        opened.enter_context(freed_memory_kept(on=size.device.type == "cpu"))
        yield opened
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    from xaurora.utils import provenance

    machine_info.clear()  # host and user names do not belong in a report
    machine_info |= {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "versions": provenance.versions(),
        "size": config.getoption("--size"),
        "pairs": config.getoption("--pairs"),
    }


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    commit_info.clear()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of seconds, stock, ratio, samples a second, share of peak and memory."""
    session = getattr(config, "_benchmarksession", None)
    found = [b for b in getattr(session, "benchmarks", []) if b.stats.data]
    if not found:
        return
    rows = [
        {"group": b.group, "name": b.name, "median": b.stats.median, **b.extra_info} for b in found
    ]
    terminalreporter.section("xaurora benchmarks")
    for line in table(rows):
        terminalreporter.write_line(line)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows of a saved or a finished run as lines of text."""
    lines = [
        f"{'case':<58}{'seconds':>10}{'stock':>10}{'ratio':>8}{'samples/s':>11}{'of peak':>9}"
        f"{'peak MB':>9}{'stock MB':>10}"
    ]
    group = None
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            lines.append(f"-- {group}")

        def cell(
            key: str, width: int, form: str, factor: float = 1.0, row: dict[str, Any] = row
        ) -> str:
            value = row.get(key)
            return f"{format(value * factor, form) if value is not None else '':>{width}}"

        lines.append(
            f"{row['name'].removeprefix('test_')[:57]:<58}"
            f"{cell('median', 10, '.4g')}{cell('stock_seconds', 10, '.4g')}"
            f"{cell('ratio', 8, '.2f')}"
            f"{cell('samples_a_second', 11, '.4g')}{cell('of_matrix_peak', 9, '.2f')}"
            f"{cell('peak_bytes', 9, '.0f', 1e-6)}{cell('stock_peak_bytes', 10, '.0f', 1e-6)}"
            + (f"  {row['note']}" if "note" in row else "")
        )
    return lines


def stamp() -> str:
    """Return the current time for a report."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read(path: Path) -> dict[str, Any]:
    """Return a saved run."""
    return json.loads(path.read_text(encoding="utf-8"))

"""Package versions and the present time, for provenance."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    names = ("xaurora", "microsoft-aurora", "torch", "xarray", "numpy")
    out = {}
    for name in names:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "unknown"
    return out


def now() -> str:
    """Return the current time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

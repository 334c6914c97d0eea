"""Arguments of ``evaluate`` and ``compare``: their defaults and checks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from xaurora.errors import KindError, OptionError
from xaurora.evaluation import frames
from xaurora.utils.types import Given

THRESHOLDS_MM = (0.1, 1.0, 5.0, 10.0, 20.0)


SIZES = (1, 3, 5, 9)


LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


CONVENTIONS = {
    "weatherbench2": "weatherbench2",
    "wb2": "weatherbench2",
    "weatherbenchx": "weatherbenchx",
    "wbx": "weatherbenchx",
}


def resolve_convention(name: Given) -> str:
    """Return the name of a convention as it is used inside."""
    known = CONVENTIONS.get(str(name).lower().replace("-", "").replace("_", "").replace(" ", ""))
    if known is None:
        raise OptionError(
            f"convention={name!r} is not known; valid values are 'weatherbench2' and"
            " 'weatherbenchx'.",
            fix="convention='weatherbench2'",
        )
    return known


def resolve_groups(by: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return the ways in which times are grouped."""
    by = (by,) if isinstance(by, str) else tuple(by or ())
    if unknown := [b for b in by if b not in frames.BY]:
        raise OptionError(
            f"by={unknown} is not known; valid values are {', '.join(map(repr, frames.BY))}.",
            fix="by='season'",
        )
    return by


def check_weatherbench2(
    by: Sequence[str], lead_bins: Given, convention: str, thresholds_mm: Sequence[float]
) -> None:
    """Raise OptionError for arguments that ``engine="weatherbench2"`` does not take."""
    other = by or lead_bins or convention != "weatherbench2"
    if other or tuple(thresholds_mm) != THRESHOLDS_MM:
        raise OptionError(
            "engine='weatherbench2' does not support by, lead_bins, thresholds_mm or another"
            " convention.",
            fix="engine='xaurora'",
        )


def check_options(
    forecasts: Given, which: str, thresholds_mm: Given, sizes: Given, levels: Given, seed: Given
) -> None:
    """Raise OptionError for arguments that are not valid."""
    if (
        not isinstance(forecasts, Mapping)
        or not forecasts
        or not all(isinstance(f, xr.Dataset) for f in forecasts.values())
    ):
        found = (
            {k: type(v).__name__ for k, v in forecasts.items()}
            if isinstance(forecasts, Mapping)
            else type(forecasts).__name__
        )
        raise KindError(
            f"forecasts must be a dict of Datasets by label, got {found}.",
            fix="xaurora.compare({'mine': fc, 'persistence': other}, truth)",
        )
    if which not in ("xaurora", "weatherbench2"):
        raise OptionError(
            f"engine={which!r} is not known; valid values are 'xaurora' and 'weatherbench2'.",
            fix="engine='xaurora'",
        )
    for name, values, good, what, fix in (
        (
            "thresholds_mm",
            thresholds_mm,
            lambda v: v >= 0,
            "increasing amounts in mm",
            "thresholds_mm=(0.1, 1, 5, 10, 20)",
        ),
        (
            "neighborhood_sizes",
            sizes,
            lambda v: v >= 1 and v == int(v) and v % 2 == 1,
            "odd numbers of grid points",
            "neighborhood_sizes=(1, 3, 5, 9)",
        ),
        (
            "quantile_levels",
            levels,
            lambda v: 0 < v < 1,
            "increasing levels between 0 and 1",
            "quantile_levels=(0.05, 0.5, 0.95)",
        ),
    ):
        try:
            numbers = [float(v) for v in values]
        except (TypeError, ValueError):
            numbers = []
        rising = all(b > a for a, b in itertools.pairwise(numbers))
        if not numbers or not rising or not all(good(v) for v in numbers):
            raise OptionError(f"{name} must be {what}, got {values!r}.", fix=fix)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise OptionError(f"seed must be a non-negative integer, got {seed!r}.", fix="seed=0")

"""The location and scale that a base normalises each of its variables with."""

from __future__ import annotations

from collections.abc import Sequence

from aurora import Aurora
from aurora.normalisation import level_to_str, locations, scales

from xaurora.model.tiny import TinyAurora


def surface_statistics(base: Aurora, name: str) -> tuple[float, float]:
    """Return location and scale of a surface or static variable, canonical units."""
    if name in (base.surf_stats or {}):
        location, scale = base.surf_stats[name]
        return float(location), float(scale)
    return float(locations[name]), float(scales[name])


def atmos_statistics(base: Aurora, name: str, levels: Sequence[float]) -> list[tuple[float, float]]:
    """Return location and scale of an atmospheric variable on each level, canonical units."""
    if isinstance(base, TinyAurora):
        own = base.atmos_stats[name]
        return [(float(a), float(b)) for a, b in (own[f"{float(lv):g}"] for lv in levels)]
    keys = [f"{name}_{level_to_str(level)}" for level in levels]
    return [(float(locations[key]), float(scales[key])) for key in keys]

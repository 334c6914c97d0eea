"""Heads that turn latents into the distribution of a target, and their training scores."""

from __future__ import annotations

from typing import Any

from xaurora.model.heads.base import Climatology, DistributionHead, Head, HeadSet
from xaurora.model.heads.families import CLASSES, WETTEST, OwnHead
from xaurora.model.heads.options import (
    AUTO_RAIN,
    DISTRIBUTIONS,
    EPSILON_RANGE,
    FAMILIES,
    OTHER,
    OWN,
    PRESETS,
    RAIN,
    SINGLE,
    HeadLike,
    HeadOptions,
    options_for,
    patch_margin,
    unknown_head,
)
from xaurora.model.heads.trunk import LatentMLP

__all__ = [
    "AUTO_RAIN",
    "CLASSES",
    "DISTRIBUTIONS",
    "EPSILON_RANGE",
    "FAMILIES",
    "OTHER",
    "OWN",
    "PRESETS",
    "RAIN",
    "SINGLE",
    "WETTEST",
    "Climatology",
    "DistributionHead",
    "Head",
    "HeadLike",
    "HeadOptions",
    "HeadSet",
    "LatentMLP",
    "OwnHead",
    "build",
    "from_config",
    "options_for",
    "patch_margin",
    "unknown_head",
]


def build(options: HeadOptions, levels: int, width_in: int, patch_size: int) -> DistributionHead:
    """Return a head for latents of ``levels`` × ``width_in``."""
    return CLASSES[options.family](options, levels, width_in, patch_size)


def from_config(config: dict[str, Any]) -> DistributionHead:
    """Return the head that ``head.config()`` describes."""
    return build(
        HeadOptions(**config["options"]), config["levels"], config["width_in"], config["patch_size"]
    )

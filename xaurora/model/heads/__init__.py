"""What is predicted: heads that turn latents into the distribution of a target, and the scores that
they train on.
"""

from __future__ import annotations

from typing import Any

from xaurora.model.heads.base import Climatology, DistributionHead, Head, HeadSet
from xaurora.model.heads.families import CLASSES, WETTEST
from xaurora.model.heads.options import (
    AUTO_RAIN,
    EPSILON_RANGE,
    FAMILIES,
    OTHER,
    PRESETS,
    RAIN,
    HeadOptions,
    options_for,
    unknown_head,
)
from xaurora.model.heads.trunk import LatentMLP

__all__ = [
    "AUTO_RAIN",
    "CLASSES",
    "EPSILON_RANGE",
    "FAMILIES",
    "OTHER",
    "PRESETS",
    "RAIN",
    "WETTEST",
    "Climatology",
    "DistributionHead",
    "Head",
    "HeadOptions",
    "HeadSet",
    "LatentMLP",
    "build",
    "from_config",
    "options_for",
    "unknown_head",
]


def build(options: HeadOptions, levels: int, width_in: int, patch_size: int) -> DistributionHead:
    """A head for latents of ``levels`` × ``width_in``."""
    return CLASSES[options.family](options, levels, width_in, patch_size)


def from_config(config: dict[str, Any]) -> DistributionHead:
    """The inverse of ``head.config()``."""
    return build(
        HeadOptions(**config["options"]), config["levels"], config["width_in"], config["patch_size"]
    )

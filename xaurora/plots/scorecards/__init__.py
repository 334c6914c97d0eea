"""Scorecards: scores beside those of baselines, as an HTML page or a figure.

The page is a single file without external resources. This package does not import torch.
"""

from __future__ import annotations

from xaurora.plots.scorecards.card import Scorecard, build
from xaurora.plots.scorecards.rows import Row, by_threshold

__all__ = ["Row", "Scorecard", "build", "by_threshold"]

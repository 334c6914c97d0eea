"""The scorecard: scores beside those of baselines, as one page that opens from disk, and as a
picture. Runs without torch.
"""

from __future__ import annotations

from xaurora.plots.scorecards.card import Scorecard, build
from xaurora.plots.scorecards.rows import Row, by_threshold

__all__ = ["Row", "Scorecard", "build", "by_threshold"]

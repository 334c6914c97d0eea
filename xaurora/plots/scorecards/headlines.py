"""The headline scores: one heat map of what people ask first, beside each baseline.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xaurora.fields import variables
from xaurora.plots.scorecards.rows import Row

MOST_LEADS = 8
"""Lead times of the heat map; of more, the first, the last and some between are shown."""

_RAIN_METRICS = ("crps", "mae", "rmse", "bias", "seeps")
_STATE = (
    (("surface", "2t"), None, "rmse"),
    (("surface", "msl"), None, "rmse"),
    (("surface", "10m_wind_vector"), None, "rmse"),
    (("atmos", "z"), 500.0, "rmse"),
    (("atmos", "t"), 850.0, "rmse"),
)
_SHORT = {
    ("surface", "tp"): "Rain",
    ("surface", "10m_wind_vector"): "10 metre wind",
}
_ENOUGH = 12  # rows of the heat map
_FEW = 8  # fewer are completed by other variables


@dataclass(frozen=True)
class Headline:
    """One row of the heat map."""

    text: str
    row: Row


def headlines(rows: Sequence[Row]) -> list[Headline]:
    """Return the headline scores of the first region: rain, then the usual variables.

    Where none of those was scored, the first rows.
    """
    if not rows:
        return []
    here = [row for row in rows if row.region == rows[0].region]
    chosen = [row for row in here if row.is_amount and row.metric in _RAIN_METRICS]
    if any(row.metric == "crps" for row in chosen):
        chosen = [row for row in chosen if row.metric != "mae"]
    chosen.sort(key=lambda row: (row.key != ("surface", "tp"), _RAIN_METRICS.index(row.metric)))
    usual = [
        next((r for r in here if r.key == key and r.level == level and r.metric == metric), None)
        for key, level, metric in _STATE
    ]
    chosen = [*chosen[:_ENOUGH], *(row for row in usual if row is not None)]
    # Where few of those were scored, one row of each other variable, at its middle level.
    known = {row.variable for row in chosen}
    for variable in dict.fromkeys(row.variable for row in here if row.variable not in known):
        rows = [r for r in here if r.variable == variable and r.metric in ("rmse", "mae", "crps")]
        if rows and len(chosen) < _FEW:
            metric = [r for r in rows if r.metric == rows[0].metric]
            chosen.append(metric[len(metric) // 2])
    chosen = chosen or here
    return [Headline(_text(row), row) for row in chosen[:_ENOUGH]]


def leads_shown(count: int) -> list[int]:
    """Return the positions of the lead times of the heat map."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_LEADS)).round().astype(int)).tolist()


def _text(row: Row) -> str:
    known = variables.BY_KEY.get(row.key)
    name = known.long_name if known is not None else row.label
    name = _SHORT.get(row.key, name[:1].upper() + name[1:])
    level = f" at {row.level:g} hPa" if row.level is not None else ""
    return f"{name}{level}, {row.metric_label}"

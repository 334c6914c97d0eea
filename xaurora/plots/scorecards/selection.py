"""What a scorecard shows. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import OptionError
from xaurora.plots.scorecards import rows as rows_
from xaurora.utils.types import Given


@dataclass(frozen=True)
class Selection:
    """What a card shows; None stands for everything, and for regions for the first one.

    Parameters
    ----------
    variables, metrics, regions : sequence of str, optional
    levels : sequence of float, optional
        In hPa. Surface variables are shown as well.
    """

    variables: Sequence[str] | None = None
    metrics: Sequence[str] | None = None
    levels: Sequence[float] | None = None
    regions: Sequence[str] | None = None

    def resolve(self, scores: xr.Dataset) -> Selection:
        """Return the selection with the names of the scores.

        Raises
        ------
        OptionError
            If something was not scored.
        """
        scored = [str(n) for n, da in scores.data_vars.items() if "metric" in da.dims]
        wanted = None
        if self.variables is not None:
            several = [self.variables] if isinstance(self.variables, str) else self.variables
            wanted = [rows_.name_in(scores, n) or n for n in several]
        levels = scores["level"].values.tolist() if "level" in scores.coords else []
        return Selection(
            _known("variables", wanted, scored),
            _known("metrics", self.metrics, [str(m) for m in scores["metric"].values])
            if "metric" in scores.coords
            else None,
            _known("levels", self.levels, levels),
            _known("regions", self.regions, [str(r) for r in scores["region"].values]),
        )


def _known(option: str, values: Given, scored: list[Any]) -> list[Any] | None:
    """Return the values as a list, after checking that all were scored."""
    if values is None:
        return None
    several = [values] if isinstance(values, str) or np.ndim(values) == 0 else list(values)
    if unknown := [v for v in several if v not in scored]:
        raise OptionError(
            f"{option}={unknown} were not scored; the scores have {scored}.",
            fix=f"{option}={scored[:1]}",
        )
    return several

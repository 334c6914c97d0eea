"""Detect training that diverges: a loss that is not finite, or that explodes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from xaurora.errors import TrainingError

EXPLOSION = 1e3  # times the recent losses; no rainfall, however heavy, reaches it
_WINDOW = 50  # losses
_FEWEST = 10  # losses before an explosion can be detected


class LossGuard:
    """Compares each loss with the recent ones.

    Attributes
    ----------
    recent : list of float
        The last losses that were accepted.
    """

    def __init__(self) -> None:
        self.recent: list[float] = []

    def is_exploded(self, loss: float) -> bool:
        """Return whether a finite loss is far above the recent ones."""
        if len(self.recent) < _FEWEST:
            return False
        # The median and the largest: over a desert nearly all losses are zero, and a shower is not
        # an explosion.
        usual = max(float(np.median(self.recent)), 0.1 * max(self.recent), 1e-2)
        return math.isfinite(loss) and loss > EXPLOSION * usual

    def accept(self, loss: float) -> bool:
        """Record a loss and return True, or return False if it is not finite or has exploded."""
        if not math.isfinite(loss) or self.is_exploded(loss):
            return False
        self.recent = [*self.recent[1 - _WINDOW :], loss]
        return True

    def error(
        self,
        loss: float,
        step: int,
        init_times: list[np.datetime64],
        *,
        what: str,
        kept: list[str],
        best: Path | None,
    ) -> TrainingError:
        """Return the error for training that has diverged.

        Parameters
        ----------
        loss : float
        step : int
        init_times : list of datetime64
            Samples of the step.
        what : str
            What is not finite: the loss or the gradient.
        kept : list of str
            What was saved, in words.
        best : path, optional
            Folder of the best model.
        """
        named = ", ".join(str(t.astype("datetime64[m]")) for t in init_times)
        found = "; ".join(kept)
        return TrainingError(
            f"the {what} became {loss:g}"
            + (
                f", more than {EXPLOSION:g} times the recent losses,"
                if self.is_exploded(loss)
                else ""
            )
            + f" at step {step}, at init time(s) {named}."
            + (f" {found[:1].upper()}{found[1:]}." if found else ""),
            fix=(
                "check those fields with ds.aurora.check(), correct them and use resume=True; or"
                " use a smaller learning_rate in another out="
            )
            + (f", from model='{best}'" if best is not None else ""),
        )

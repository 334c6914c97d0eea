"""Significance of the differences on a scorecard. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from xaurora.errors import KindError, TruthError
from xaurora.evaluation.autocorrelation import FEWEST, false_discovery
from xaurora.evaluation.significance import significance


def compare_all(
    scores: xr.Dataset, others: Mapping[str, xr.Dataset], level: float, name: str, test: str
) -> tuple[dict[tuple[str, str], xr.Dataset], list[str]]:
    """Return the significance of this forecast against every baseline, and of these, and notes.

    The other models are tested against the first baseline. Only scores that carry the values of
    each init time can be tested.
    """
    if not others:
        return {}, []
    first, *rest = others
    pairs = [(name, scores, label, ds) for label, ds in others.items()]
    pairs += [(label, others[label], first, others[first]) for label in rest]
    out: dict[tuple[str, str], xr.Dataset] = {}
    notes = []
    for label, ds, against, reference in pairs:
        try:
            result = significance(ds, reference, level=level, test=test)
        except KindError:
            if label == name:
                notes.append(
                    f"Significance is not shown: these scores or those of {against} do not contain"
                    " the values of each init time."
                )
            continue
        except TruthError as why:
            if label == name:
                notes.append(
                    f"Significance against {against} is not shown: {str(why).splitlines()[0]}"
                )
            continue
        out[label, against] = result
        low = [da.sel(estimate="low") for da in result.data_vars.values()]
        if label == name and not any(np.isfinite(da).any() for da in low):
            notes.append(
                f"Significance against {against} is not shown: {result.attrs['pairs']} init times"
                f" in common, but at least {FEWEST} are needed."
            )
    # Among many cells some differ by chance, so that all of the card are judged together.
    found = [
        da.sel(estimate="p").values.ravel() for r in out.values() for da in r.data_vars.values()
    ]
    largest = false_discovery(np.concatenate(found), 1.0 - level) if found else 0.0
    for result in out.values():
        result.attrs["largest_p"] = largest
    return out, notes

"""The area means of each init time that scores carry as coordinates, and combining scores."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import KindError
from xaurora.evaluation.aggregation import Table
from xaurora.evaluation.frames import Frame, VariableInfo

logger = logging.getLogger("xaurora")


def carried_coords(table: Table, frame: Frame, all_levels: tuple[float, ...]) -> dict[str, Any]:
    """Return the area means of the statistics by init time, as coordinates.

    They are not scores, but scores of several files are combined from them.
    """
    out: dict[str, Any] = {}
    if "init_time" not in frame.by:
        out["init_time"] = frame.init_times
    out["carried_lead_time"] = frame.leads
    for (key, statistic), slots in table.found.items():
        variable = frame.variables[key]
        dims = (
            "init_time",
            "carried_lead_time",
            "region",
            *slots.dims,
            *(("level",) if variable.levels else ()),
        )

        def wide(values: np.ndarray, variable: VariableInfo = variable) -> np.ndarray:
            if not variable.levels or variable.levels == all_levels:
                return values
            full = np.full((*values.shape[:-1], len(all_levels)), np.nan)
            full[..., [all_levels.index(v) for v in variable.levels]] = values
            return full

        name = f"{variable.name}{SEPARATOR}{statistic}"
        out[name] = (
            dims,
            wide(slots.mean),
            {
                "units": variable.units,
                "long_name": variable.long_name,
                "xaurora_variable": variable.canonical,
            },
        )
        out[name + SEPARATOR + WEIGHT] = (dims, wide(slots.weight))
    return out


def carriers(scores: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Return the attributes of the variables that carry values for each init time.

    The attributes are units, long name and the key in the table of variables.
    """
    out: dict[str, dict[str, Any]] = {}
    for c in map(str, scores.coords):
        if SEPARATOR in c and not c.endswith(SEPARATOR + WEIGHT):
            out.setdefault(c.split(SEPARATOR)[0], dict(scores.variables[c].attrs))
    return out


def carried(scores: xr.Dataset, name: str) -> dict[str, tuple[xr.DataArray, xr.DataArray]]:
    """Return the area means and weights of one variable by statistic, init time and lead time.

    Raises
    ------
    KindError
        If the scores carry none.
    """
    prefix = name + SEPARATOR
    found = [c for c in map(str, scores.coords) if c.startswith(prefix)]
    if not found:
        raise KindError(
            f"the scores of '{name}' do not carry values for each init time, which confidence"
            " intervals and combined scores need"
            + (" (they would take more than 128 MB)." if "init_time" not in scores.coords else "."),
            fix=(
                "evaluate fewer regions or metrics: evaluate(truth, metrics=['rmse'],"
                " regions=['global'])"
            ),
        )
    # A Dataset of these alone: a DataArray of the scores would bring all other coordinates along.
    kept = {c: scores.variables[c] for c in found}
    dims = {d for variable in kept.values() for d in variable.dims}
    alone = xr.Dataset(kept, {d: scores.variables[d] for d in dims if d in scores.variables})
    end = SEPARATOR + WEIGHT
    return {
        c.removeprefix(prefix): (alone[c], alone[c + end]) for c in found if not c.endswith(end)
    }


def without_carried(scores: xr.Dataset) -> xr.Dataset:
    """Drop the values by init time that scores carry."""
    names = [c for c in scores.coords if SEPARATOR in str(c)]
    out = scores.drop_vars([*names, "carried_lead_time"], errors="ignore")
    return (
        out.drop_vars("init_time")
        if "init_time" in out.coords and not any("init_time" in out[v].dims for v in out)
        else out
    )


SEPARATOR = "__"


WEIGHT = "weight"

"""The attributes of scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from xaurora.evaluation import frames
from xaurora.evaluation.alignment import Forecast
from xaurora.evaluation.blocks import Job, Plan
from xaurora.evaluation.sanity import notes_on_climatology, notes_on_training

_NOTES = "xaurora_notes"


def _hash(weights: Mapping[str, np.ndarray]) -> str:
    """Return a hash of the regions themselves, because different boxes may have the same name."""
    digest = hashlib.sha256()
    for name, values in weights.items():
        digest.update(name.encode() + np.ascontiguousarray(values.astype(np.float32)).tobytes())
    return digest.hexdigest()[:12]


def notes_on_scores(scores: xr.Dataset) -> list[str]:
    """Return what makes scores look better or worse than the forecast is."""
    try:
        notes = json.loads(str(scores.attrs.get(_NOTES, "[]")))
    except ValueError:  # someone else's attribute
        return []
    return [str(note) for note in notes] if isinstance(notes, list) else []


def described(job: Job, plan: Plan) -> frames.VariableInfo:
    """Return what is known of a scored variable."""
    item = plan.item(job.parts[0])
    units = str(item.attrs.get("units", item.variable.units))
    if len(job.parts) > 1:
        return frames.VariableInfo(job.key[1], units, "Wind vector", "/".join(job.key), job.levels)
    return frames.VariableInfo(
        item.source, units, item.variable.long_name, "/".join(job.key), job.levels
    )


def attributes(
    f: Forecast,
    first: Forecast,
    counts: dict[str, Any],
    jobs: int,
    shared: Mapping[str, Any],
    bins: Mapping[str, np.ndarray] | None,
    normals: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the attributes of a forecast's scores.

    Parameters
    ----------
    f, first : Forecast
        This forecast, and the first of those compared.
    counts : dict
        Numbers of fields that were scored, and that had no truth.
    jobs : int
    shared : dict
        What the scores of all forecasts have in common.
    bins : dict, optional
        Leads of each lead bin.
    normals : dict, optional
        Attributes of the climatology that ACC and SEEPS use.
    """
    out: dict[str, Any] = {
        "number_of_init_times": len(first.init_times),
        "first_init_time": str(first.init_times.min().astype("datetime64[m]")),
        "last_init_time": str(first.init_times.max().astype("datetime64[m]")),
        "fields_scored": counts["scored"] // max(jobs, 1),
        "fields_without_truth": counts["without_truth"] // max(jobs, 1),
        "grid": f"{len(first.latitude)} × {len(first.longitude)}",
        **shared,
    }
    if bins is not None:
        out["lead_bins"] = json.dumps(
            {k: v.astype("timedelta64[ns]").astype(np.int64).tolist() for k, v in bins.items()}
        )
    if first.hours != 6:
        out["precipitation_hours"] = first.hours
    for name in (
        "xaurora_base",
        "xaurora_base_note",
        "xaurora_base_hash",
        "xaurora_weights",
        "xaurora_strategy",
        "xaurora_trained",
        "title",
    ):
        if name in f.ds.attrs:
            out["forecast_title" if name == "title" else name] = f.ds.attrs[name]
    valid_times = first.init_times[:, None] + first.leads[None]
    notes = notes_on_training(f.ds.attrs, first.init_times)
    for attrs in (f.ds.attrs, normals or {}):
        notes += notes_on_climatology(attrs, valid_times)
    if notes := list(dict.fromkeys(notes)):
        out[_NOTES] = json.dumps(notes, ensure_ascii=False)
    return out

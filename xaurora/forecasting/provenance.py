"""Where a forecast comes from, as global attributes."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import numpy as np

from xaurora.fields.conventions import Fields
from xaurora.model import frames, hashing
from xaurora.model.aurora import AuroraWithHead
from xaurora.model.resolve import ResolvedModel
from xaurora.utils import provenance

logger = logging.getLogger("xaurora")


def global_attributes(
    model: ResolvedModel, module: AuroraWithHead, fields: Fields, first_time: np.datetime64
) -> dict[str, Any]:
    """Return the global attributes that name the model and its input.

    Logs how the input differs from what the model was tuned on.

    Parameters
    ----------
    model : ResolvedModel
    module : AuroraWithHead
    fields : Fields
        What the model reads.
    first_time : datetime64
        Time of the frame whose values are hashed.
    """
    name = model.name if model.instance is None else type(model.instance).__name__
    with frames.requests() as pool:
        frame = frames.read(fields, first_time, pool=pool, guard="off")
        still = frames.statics(fields, pool=pool)
    notes = [*model.differences(fields), *model.unlike(frame, fields.levels)]
    for note in notes:
        logger.warning("%s", note)
    parts = [*frame.values(), still]
    values = [np.ascontiguousarray(v) for part in parts for v in part.values()]
    digest = hashlib.sha256(b"".join(v.tobytes() for v in values)).hexdigest()
    start, end = (t.astype("datetime64[m]") for t in (fields.times[0], fields.times[-1]))
    out = {
        "title": "Forecast by Aurora with xaurora",
        "Conventions": "CF-1.11",
        "xaurora_base": str(name),
        "xaurora_versions": json.dumps(provenance.versions()),
        "xaurora_input": f"{start} to {end}",
        "xaurora_input_hash": f"sha256:{digest}",
        "xaurora_configuration": hashing.configuration_hash(module.base),
    }
    if model.spec is not None and model.spec.label:
        out["xaurora_base_note"] = model.spec.label
    if notes:
        out["xaurora_differences"] = json.dumps(notes, ensure_ascii=False)
    if model.tuned is not None:
        if {"start", "end"} <= set(model.trained):
            out["xaurora_trained"] = f"{model.trained['start']} to {model.trained['end']}"
        out["xaurora_strategy"] = model.tuned.config["strategy"]
        out["xaurora_base_weights"] = model.tuned.config["base"]["hash"]
    return out

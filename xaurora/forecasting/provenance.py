"""Where a forecast comes from, as global attributes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from xaurora.fields.conventions import Fields
from xaurora.model import aurora as models
from xaurora.model import batch as batches
from xaurora.model.tuned import TunedAurora
from xaurora.utils import provenance


def global_attributes(
    model: Any,
    module: models.AuroraWithHead,
    weights_hash: str,
    cut: Fields,
    first_time: np.datetime64,
    halo: int,
    precision: str,
) -> dict[str, Any]:
    name = (
        model
        if isinstance(model, str)
        else (
            model.config["base"]["name"] if isinstance(model, TunedAurora) else type(model).__name__
        )
    )
    first = batches.frame(cut, first_time)
    digest = hashlib.sha256(
        b"".join(
            np.ascontiguousarray(v).tobytes() for part in first.values() for v in part.values()
        )
    ).hexdigest()
    out = {
        "title": "Forecast by Aurora with xaurora",
        "Conventions": "CF-1.11",
        "xaurora_base": str(name),
        "xaurora_weights": weights_hash,
        "xaurora_versions": json.dumps(provenance.versions()),
        "xaurora_input": (
            f"{cut.times[0].astype('datetime64[m]')} to {cut.times[-1].astype('datetime64[m]')}"
        ),
        "xaurora_input_hash": f"sha256:{digest}",
        "xaurora_halo": halo,
        "xaurora_precision": precision,
    }
    if isinstance(model, TunedAurora):
        out["xaurora_strategy"] = model.config["strategy"]
        out["xaurora_base_weights"] = model.config["base"]["hash"]
    return out

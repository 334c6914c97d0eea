"""Variables that Aurora 1.5 predicts and does not read, in the form that users know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xaurora.fields import periods
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field
from xaurora.fields.unit_conversion import is_rate
from xaurora.fields.variables import BY_KEY, Variable

AMOUNTS = {"scaled_tp_1h": "tp", "scaled_sf_1h": "sf"}
"""Names of hourly totals in metres, in the model and in forecasts.

The model returns them on their physical scale. They may be as low as -1 mm, the floor of its
logarithm, and are set to at least zero before they are summed.
"""
HOURLY = {name: hourly for hourly, name in AMOUNTS.items()}
"""The model's names of amounts, by the name that users know."""
_OTHERS = {
    "uvb_1h": "Downward UV radiation at the surface in the last hour",
    "ssrd_1h": "Surface solar radiation downwards in the last hour",
    "ttr_1h": "Top net thermal radiation in the last hour",
}


def output_field(fields: Fields, name: str, hours: int) -> Field:
    """Return the form of an output: as in the data if they have the variable, else canonical.

    Parameters
    ----------
    fields : Fields
        The data.
    name : str
        The model's name of the variable.
    hours : int
        Period that amounts are summed over.
    """
    own = AMOUNTS.get(name, name)
    known = BY_KEY.get(("surface", own)) or Variable(own, "surface", "J m-2", _OTHERS[own], own)
    item = fields.layout.fields.get(("surface", own))
    if item is None or is_rate(str(item.attrs.get("units", ""))):
        attrs = {"units": known.units, "long_name": known.long_name}
        source = item.source if item is not None else own
        dims = tuple(fields.layout.axes[d].dim for d in ("time", "latitude", "longitude"))
        item = Field(known, source, 1.0, 0.0, np.dtype("float32"), dims, attrs)
    if name not in AMOUNTS:
        return item
    kept = {k: v for k, v in item.attrs.items() if k != "GRIB_stepRange"}
    methods = {"cell_methods": periods.cell_methods(hours), "comment": "Aurora's own forecast"}
    return replace(item, attrs={**kept, **methods})

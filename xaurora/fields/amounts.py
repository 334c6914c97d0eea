"""Whether a variable that is not in the table seems to be an amount over a period."""

from __future__ import annotations

import re

import xarray as xr

from xaurora.errors import AmbiguousVariableError
from xaurora.fields.unit_conversion import conversion, is_rate, normalise_units

_AMOUNT = re.compile(
    r"\b(precip\w*|prcp|rain|rainfall|rainrate|snowfall|snow fall|hail|showers?|drizzle|graupel|"
    r"runoff|evapo\w*|accumulat\w*|accum)\b",
    re.I,
)


def check_not_accumulated(da: xr.DataArray, name: str) -> None:
    """Raise for a variable that seems to hold amounts, or means of a flux, over a period.

    A head would model it as a value at a time, without a sum over six hours or a bound at zero.

    Raises
    ------
    AmbiguousVariableError
        With the attribute that settles it.
    """
    attrs = da.attrs
    methods = str(attrs.get("cell_methods", ""))
    if re.search(r"time:\s*point", methods):
        return
    units = str(attrs.get("units", ""))
    water = conversion(units, "m") is not None or is_rate(units)
    texts = [str(attrs.get("standard_name", "")), str(attrs.get("long_name", "")) * water]
    words = next((m.group(0) for t in (name, *texts) if (m := _AMOUNT.search(_spaced(t)))), None)
    says = (
        f"cell_methods={methods!r}"
        if re.search(r"time:\s*sum", methods)
        else f"GRIB_stepType={attrs['GRIB_stepType']!r}"
        if attrs.get("GRIB_stepType") == "accum"
        else f"units={units!r}"
        if is_rate(units) or normalise_units(units) == "J m-2"
        else f"the word {words!r}"
        if words is not None
        else None
    )
    if says is None:
        return
    known = (
        f"ds['{name}'].attrs['standard_name'] = 'precipitation_amount', 'snowfall_amount' or"
        " 'runoff_amount' if it is one of these; "
        if water
        else ""
    )
    raise AmbiguousVariableError(
        f"'{name}' seems to be an amount over a period ({says}), but is not one that xaurora knows:"
        " precipitation, convective or large-scale precipitation, snowfall and runoff.",
        fix=f"{known}ds['{name}'].attrs['cell_methods'] = 'time: point' if it is a value at a time,"
        " and then it is learnt as it is",
    )


def _spaced(text: str) -> str:
    """Return a name with its words apart: ``rain_rate`` and ``rainRate`` → ``rain rate``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text.replace("_", " "))

"""Whether forecast and truth can be the same quantity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xaurora.errors import UnitsError
from xaurora.evaluation.alignment import Forecast
from xaurora.fields.found import Field
from xaurora.fields.plausibility import NEGATIVE, extremes_of
from xaurora.fields.unit_conversion import CANONICAL, GRAVITY, conversion

if TYPE_CHECKING:
    import xarray as xr

# m in six hours: no rain, but millimetres labelled as metres (the record of 12 h is 1.1 m)
_MOST = 3.0


def own_units(da: xr.DataArray, mine: Field) -> Field:
    """Return the field with the units of an accompanying variable, such as its quantiles."""
    units = str(da.attrs.get("units", ""))
    found = (
        conversion(units, mine.variable.units)
        if units and mine.variable.units in CANONICAL
        else None
    )
    return mine if found is None else replace(mine, scale=found[0], offset=found[1])


# Factors between units that are often confused: Pa and hPa, m² s⁻² and m, kg/kg and g/kg, m and mm
# of rain.
_MISTAKES = {"Pa": 100.0, "m2 s-2": GRAVITY, "kg kg-1": 1000.0, "m": 1000.0}


_ZERO_CELSIUS = 273.15  # K


def check_size(values: np.ndarray, y: np.ndarray, item: Field, label: str) -> None:
    """Raise if forecast and truth differ by a factor or offset that indicates wrong units.

    Raises
    ------
    UnitsError
        If one of them is off by a known factor, or by 273.15 K.
    """
    name, units = item.source, item.variable.units
    there = [v[np.isfinite(v)] * item.scale + item.offset for v in (values.astype(np.float64), y)]
    if not all(v.size for v in there):
        return
    whose = "forecast" if label == "forecast" else f"forecast {label!r}"
    if units == "K" and abs(abs(there[0].mean() - there[1].mean()) - _ZERO_CELSIUS) < 15.0:
        cold = whose if there[0].mean() < there[1].mean() else "truth"
        raise UnitsError(
            f"'{name}' of the {cold} is 273 K colder than the other: it is probably in degrees"
            " Celsius but declared as kelvin.",
            fix=f"{'truth' if cold == 'truth' else 'fc'}['{name}'].attrs['units'] = 'degC'",
        )
    factor = _MISTAKES.get(units)
    sizes = [(float(np.sqrt((v**2).mean())), float(np.abs(v).max())) for v in there]
    if factor is None or min(min(pair) for pair in sizes) <= 0:
        return
    near = (
        2.5 if item.variable.accumulated else 1.05
    )  # forecast and truth of rain differ more than those of other variables
    ratios = [max(pair) / min(pair) for pair in zip(*sizes, strict=True)]
    drizzle = item.variable.accumulated and max(pair[0] for pair in sizes) < 2e-4
    if not drizzle and all(factor / near < r < factor * near for r in ratios):
        small = whose if sizes[0][0] < sizes[1][0] else "truth"
        raise UnitsError(
            f"'{name}' of the {small} is {ratios[0]:.0f} times smaller than the other, which"
            f" indicates wrong units ({units!r} is expected).",
            fix=(
                "check the units of both:"
                f" {'truth' if small == 'truth' else 'fc'}['{name}'].attrs['units'] = ..."
            ),
        )


def beyond_extremes(
    values: np.ndarray, item: Field, levels: tuple[float, ...], whose: str, when: str
) -> str:
    """Return a warning about physically implausible values, or an empty string.

    Models that fail, and experiments with invented data, may be scored; so it is no error.
    """
    limits = extremes_of(item.variable, levels)
    if limits is None:
        return ""
    axes = (-2, -1)
    ends = [f.reduce(values, axis=axes) * item.scale + item.offset for f in (np.fmin, np.fmax)]
    with np.errstate(invalid="ignore"):
        wrong = (ends[0] < limits[0]) | (ends[1] > limits[1])
    if not wrong.any():
        return ""
    low, high = (float(f(end)) for f, end in zip((np.nanmin, np.nanmax), ends, strict=True))
    units = item.variable.units
    return (
        f"'{item.source}' of the {whose} lies between {low:.4g} and {high:.4g} {units} at {when};"
        f" on Earth, {item.variable.long_name.lower()} lies between {np.min(limits[0]):.4g} and"
        f" {np.max(limits[1]):.4g} {units}. Check its units, and whether missing values were"
        " decoded."
    )


def notes_on_training(attrs: Mapping[str, Any], init_times: np.ndarray) -> list[str]:
    """Return what makes scores of a tuned model look better or worse than it is.

    Parameters
    ----------
    attrs : dict
        Global attributes of the forecast, as ``predict`` writes them.
    init_times : ndarray of datetime64
        Those that are scored.
    """
    out = []
    start, _, end = str(attrs.get("xaurora_trained", "")).partition(" to ")
    try:
        inside = (init_times >= np.datetime64(start)) & (init_times <= np.datetime64(end))
    except ValueError:  # other text
        inside = np.zeros(0, bool)
    if start and inside.any():
        out.append(
            f"{inside.sum()} of {len(init_times)} init times lie in the period that the model was"
            f" tuned on ({start} to {end}): their scores say how well it fits, not how well it"
            " forecasts."
        )
    try:
        differences = json.loads(str(attrs.get("xaurora_differences", "[]")))
    except ValueError:
        differences = []
    if isinstance(differences, list):
        out += [str(note) for note in differences]
    return out


_YEARS = 10  # below which normals vary with the years that they rest on


def notes_on_climatology(attrs: Mapping[str, Any], valid_times: np.ndarray) -> list[str]:
    """Return what makes scores of, or relative to, normals misleading.

    Parameters
    ----------
    attrs : dict
        Global attributes of a climatology, or of a forecast that was made from one.
    valid_times : ndarray of datetime64
        Those that are scored.
    """
    try:
        start, end = (np.datetime64(str(attrs[f"climatology_{k}"])) for k in ("start", "end"))
        years, left_out = (int(attrs[f"climatology_{k}"]) for k in ("years", "left_out"))
    except (KeyError, ValueError, TypeError):  # not one of xaurora
        return []
    out = []
    count = int(((valid_times >= start) & (valid_times <= end)).sum())
    if count and not left_out:
        out.append(
            f"The climatology rests on the scored times: {count} of {valid_times.size} valid times"
            f" lie in its period ({start} to {end}). Its own scores look better than they are, and"
            " scores relative to it worse. climatology(ds, leave_out=fc) leaves them out."
        )
    if years < _YEARS:
        out.append(
            f"The climatology rests on {years} year{'s' if years > 1 else ''}, and normals on at"
            f" least {_YEARS}."
        )
    return out


def check_rain(values: np.ndarray, item: Field, whose: str, forecast: Forecast, when: str) -> None:
    """Raise if precipitation is negative beyond packing noise, or looks like millimetres.

    Raises
    ------
    UnitsError
        If the values are not possible in the declared units.
    """
    low, high = (
        np.fmin.reduce(values, axis=None) * item.scale,
        np.fmax.reduce(values, axis=None) * item.scale,
    )
    name = item.source
    units = item.attrs.get("units", item.variable.units)
    if low < NEGATIVE:
        count = int((values * item.scale < NEGATIVE).sum())
        owner = "fc" if whose == "forecast" else "truth"
        raise UnitsError(
            f"the minimum of '{name}' of the {whose} is {low * 1e3:.3g} mm in {forecast.hours} h"
            f" at {when}, and {count} of {values.size} values are below zero; precipitation cannot"
            " be negative.",
            fix=(
                f"fc['{name}'] = fc['{name}'].clip(min=0) if the model produces such values, else"
                " check its units"
                if owner == "fc"
                else f"truth['{name}'] = truth['{name}'].where(truth['{name}'] >= 0), which masks"
                " missing values that were not decoded"
            ),
        )
    if high > _MOST * max(forecast.hours / 6.0, 1.0):
        raise UnitsError(
            f"'{name}' of the {whose} reaches {high:.3g} m in {forecast.hours} h"
            + (f" if its units are {units!r}" if whose == "forecast" else "")
            + "; the values look like millimetres.",
            fix=(
                f"{'fc' if whose == 'forecast' else 'truth'}"
                f"['{name if whose == 'forecast' else 'tp'}'].attrs['units'] = 'mm'"
            ),
        )

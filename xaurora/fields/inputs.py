"""What the inputs of a model look like, to compare data with those that it was tuned on.

For each variable and level, the mean and the standard deviation over the grid are computed of a few
frames. From frame to frame they vary with the weather and the season. Other data whose frames lie
outside of that variation are from another climate, in other units, or processed differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from xaurora.fields.conventions import Fields
from xaurora.fields.grid.lattice import Grid

FRAMES = 16
"""Frames that are read to describe training data."""

_PROBABILITY = 1e-3  # of a warning about any variable, if the frames are drawn as those before
_SHIFT = 0.3  # standard deviations over the grid; smaller shifts of the mean are not reported
_RATIO = 1.25  # of standard deviations; smaller ones are not reported
_FEWEST = 4  # independent frames, from which a variation can be told
_WEATHER = np.timedelta64(2, "D")  # after which a frame says something new
_EDGE = 1.01  # grid steps: patches may end one row earlier
_YEARS = 10  # after which the climate has changed
_ATTRIBUTES = {
    "GRIB_centre": "centre",
    "GRIB_dataType": "type",
    "institution": "institution",
    "source": "source",
}
"""Attributes that say where data come from, with the words for them."""

_HRES = re.compile(r"(?<![a-z])hres(?![a-z])", re.IGNORECASE)
_ERA5 = re.compile(r"era[-_ ]?5", re.IGNORECASE)

Frame = Mapping[str, Mapping[str, np.ndarray]]
Row = dict[str, tuple[float, float]]


def describe(fields: Fields) -> dict[str, Any]:
    """Return grid, levels and source of some fields, without reading them."""
    grid = fields.layout.grid
    return {"box": box_of(grid), "source": source_of(fields)}


def source_of(fields: Fields) -> dict[str, str]:
    """Return what the attributes say about where the state variables come from."""
    items = [i for i in fields.layout.fields.values() if i.variable.kind != "static"]
    states = [item.attrs for item in items if not item.variable.accumulated]
    out = {}
    for key in _ATTRIBUTES:
        values = {str(attrs[key]) for attrs in states if key in attrs}
        if not values and key in fields.layout.source.attrs:
            values = {str(fields.layout.source.attrs[key])}
        if len(values) == 1:
            out[key] = values.pop()
    return out


def is_ifs(fields: Fields) -> bool:
    """Return whether data come from the operational IFS: ECMWF's open data, or HRES.

    Open data are GRIB of edition 2, and ERA5 of edition 1. HRES is recognised by its name, in
    attributes or in the address of a store such as WeatherBench2's.
    """
    ds = fields.layout.source
    if source_of(fields).get("GRIB_centre") == "ecmf" and "GRIB_edition" in ds.attrs:
        return str(ds.attrs["GRIB_edition"]) == "2"
    encodings = [ds.encoding, *(ds[name].encoding for name in ds.data_vars)]
    texts = [str(ds.attrs.get(key, "")) for key in ("source", "title", "references")]
    texts += [str(encoding.get("source", "")) for encoding in encodings]
    return any(map(_HRES.search, texts)) and not any(map(_ERA5.search, texts))


def summarise(rows: Sequence[Row], times: np.ndarray) -> dict[str, Any]:
    """Return how mean and spread of each variable vary between frames.

    Parameters
    ----------
    rows : sequence of dict
        The :func:`moments` of each frame.
    times : ndarray of datetime64
        Of the frames.

    Returns
    -------
    dict
        ``{"independent": n, "variables": {"2t": [...]}}``: the number of frames days apart, and by
        variable the mean, its standard deviation from frame to frame, the mean logarithm of the
        standard deviation over the grid, and the standard deviation of that. Variables on levels
        are called ``"t 850"``.
    """
    out = {}
    for name in rows[0] if rows else ():
        means, spreads = (np.array([row[name][i] for row in rows]) for i in (0, 1))
        if (spreads > 0).all():
            logs = np.log(spreads)
            out[name] = [float(f(v)) for v in (means, logs) for f in (np.mean, _deviation)]
    apart = 1 if len(times) < 2 else 1 + int((times.max() - times.min()) / _WEATHER)
    return {"independent": min(len(rows), apart), "variables": out}


def unlike(frame: Frame, levels: Sequence[float], before: Mapping[str, Any]) -> list[str]:
    """Describe the variables of a frame that differ from those of training beyond their variation.

    Parameters
    ----------
    frame : dict
    levels : sequence of float
    before : dict
        As :func:`summarise` returns it.
    """
    count, known = int(before.get("independent", 0)), before.get("variables", {})
    if count < _FEWEST or not known:
        return []
    # Student's t, since the variation itself comes from few frames; corrected for the number of
    # comparisons.
    at_most = -float(special.stdtrit(count - 1, _PROBABILITY / (4 * len(known))))
    at_most *= float(np.sqrt(1.0 + 1.0 / count))
    out = []
    for name, (mean, spread) in moments(frame, levels).items():
        if name not in known or not spread > 0:
            continue
        usual, varies, log_usual, log_varies = known[name]
        shift, ratio = abs(mean - usual), abs(np.log(spread) - log_usual)
        width = float(np.exp(log_usual))
        if shift > max(at_most * varies, _SHIFT * width):
            out.append(f"{name} has a mean of {mean:.4g}, before {usual:.4g} ± {varies:.2g}")
        elif ratio > max(at_most * log_varies, float(np.log(_RATIO))):
            out.append(f"{name} has a standard deviation of {spread:.3g}, before {width:.3g}")
    return out


def differences(trained: Mapping[str, Any], fields: Fields) -> list[str]:
    """Describe how grid, levels, source and years differ from those of training.

    Parameters
    ----------
    trained : dict
        ``"training"`` of a tuned model's configuration.
    fields : Fields
        All levels of the data.
    """
    grid, known = fields.layout.grid, trained.get("inputs", {})
    out = [
        _other_spacing(grid, trained.get("grid_spacing", ())),
        _other_region(grid, known.get("box")),
        _other_levels(fields.levels, trained.get("levels", ())),
        _other_source(source_of(fields), known.get("source", {})),
        _other_years(fields.times, trained.get("end")),
    ]
    return [note for note in out if note]


def _other_spacing(grid: Grid, before: Sequence[float]) -> str:
    rounding = 0.01  # relative
    if all(abs(a / b - 1.0) <= rounding for a, b in zip(grid.spacing, before, strict=False)):
        return ""
    here, there = (" × ".join(f"{v:g}°" for v in pair) for pair in (grid.spacing, before))
    return (
        f"The grid spacing is {here}, but the model was tuned on {there}: its forecasts on another"
        " grid were never validated."
    )


def _other_region(grid: Grid, box: Sequence[float] | None) -> str:
    if box is None or _inside(box_of(grid), box, max(grid.spacing) * _EDGE):
        return ""
    here, there = (place(b) for b in (box_of(grid), box))
    return f"The data cover {here}, but the model was tuned on {there}."


def _other_levels(levels: Sequence[float], before: Sequence[float]) -> str:
    missing = [v for v in before if v not in levels]
    if not missing:
        return ""
    shown = [[f"{v:g}" for v in several] for several in (missing, before)]
    return (
        f"The pressure levels {shown[0]} hPa are not in the data, but the model was tuned with"
        f" {shown[1]} hPa."
    )


def _other_source(source: Mapping[str, str], before: Mapping[str, str]) -> str:
    other = [
        f"{_ATTRIBUTES[k]} is {v!r}, before {before[k]!r}"
        for k, v in source.items()
        if k in before and v != before[k]
    ]
    if not other:
        return ""
    return f"The inputs come from another source than those in training: {'; '.join(other)}."


def _other_years(times: np.ndarray, end: str | None) -> str:
    if end is None or not len(times):
        return ""
    later = (times[0].astype("datetime64[Y]") - np.datetime64(end, "Y")).astype(int)
    if later < _YEARS:
        return ""
    return (
        f"The data begin in {times[0].astype('datetime64[Y]')}, {later} years after the last data"
        " that the model was tuned on."
    )


def moments(frame: Frame, levels: Sequence[float]) -> Row:
    """Return mean and standard deviation over the grid, by variable and level.

    Parameters
    ----------
    frame : dict
        ``{"surface": {name: (h, w)}, "atmos": {name: (c, h, w)}}``, canonical units.
    levels : sequence of float
        Levels in hPa.
    """
    out = dict(frame["surface"])
    for name, values in frame["atmos"].items():
        out |= {f"{name} {level:g}": values[i] for i, level in enumerate(levels)}
    return {
        name: (float(v.mean(dtype=np.float64)), float(v.std(dtype=np.float64)))
        for name, v in out.items()
    }


def _deviation(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def box_of(grid: Grid) -> list[float]:
    """Return south, north, west and width; a width of 360 stands for the whole circle."""
    west, east = float(grid.longitude[0]), float(grid.longitude[-1])
    return [
        float(grid.latitude[-1]),
        float(grid.latitude[0]),
        west % 360.0,
        360.0 if grid.wraps else (east - west) % 360.0,
    ]


def _inside(box: Sequence[float], outer: Sequence[float], edge: float) -> bool:
    south, north, west, width = box
    if south < outer[0] - edge or north > outer[1] + edge:
        return False
    if outer[3] >= 360.0:
        return True
    start = (west - outer[2] + edge) % 360.0 - edge
    return start >= -edge and start + width <= outer[3] + edge


def place(box: Sequence[float]) -> str:
    """Return a box in words."""
    south, north, west, width = box
    if width >= 360.0:
        return f"{south:g} to {north:g}°N, all longitudes"
    return f"{south:g} to {north:g}°N, {west:g} to {(west + width) % 360:g}°E"

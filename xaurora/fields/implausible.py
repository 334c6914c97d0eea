"""What is said of implausible values, and how to mend or confirm them."""

from __future__ import annotations

import numpy as np

from xaurora.errors import ImplausibleValuesError
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field

CHECKED = "xaurora_values_checked"
"""Attribute that users set to confirm values that look implausible."""


def out_of_range(
    values: np.ndarray,
    item: Field,
    fields: Fields,
    time: np.datetime64,
    limits: tuple[np.ndarray, np.ndarray],
) -> ImplausibleValuesError:
    """Return the error for a frame with values outside the limits."""
    layered = values.reshape(-1, *values.shape[-2:])
    low, high = (np.broadcast_to(edge, len(layered)) for edge in limits)
    outside = (layered < low[:, None, None]) | (layered > high[:, None, None])
    if item.variable.zero_where_absent:
        outside &= layered != 0
    level, row, column = (int(i[0]) for i in np.nonzero(outside))
    grid = fields.layout.grid
    where = f"{grid.latitude[row]:.2f}°N {grid.true_longitude[column]:.2f}°E"
    if values.ndim == 3:
        where += f" and {fields.levels[level]:g} hPa"
    found = np.unique(layered[outside])
    several = f"{found[0]:.4g} to {found[-1]:.4g}" if len(found) > 1 else f"{found[0]:.4g}"
    units = item.variable.units
    return ImplausibleValuesError(
        f"'{item.source}' is {layered[level, row, column]:.4g} {units} at {where} at"
        f" {time_name(time)}; {item.variable.long_name.lower()} lies between {low[level]:.4g} and"
        f" {high[level]:.4g} {units}. Outside are {outside.sum()} of {outside.size} values"
        f" ({several}).",
        fix=masked(item, found, float(low.min()), float(high.max())),
    )


def masked(item: Field, found: np.ndarray, low: float, high: float) -> str:
    """Return how to mask the values ``found``, canonical, outside ``low`` to ``high``."""
    name = item.source
    own = [(float(v) - item.offset) / item.scale for v in (found[0], found[-1], low, high)]
    kept = []
    if own[0] < own[2]:
        kept.append(f"ds['{name}'] >= {own[2]:.6g}")
    if own[1] > own[3]:
        kept.append(f"ds['{name}'] <= {own[3]:.6g}")
    if not kept:  # possible on other levels
        kept.append(f"abs(ds['{name}'] - ({own[0]:.6g})) > {max(abs(own[0]), 1.0) * 1e-4:.1g}")
    condition = kept[0] if len(kept) == 1 else " & ".join(f"({k})" for k in kept)
    if item.variable.zero_where_absent and not item.offset:
        condition = f"({condition}) | (ds['{name}'] == 0)"
    return (
        "check the source at this time. If its units change, or these are undecoded missing"
        f" values: ds['{name}'] = ds['{name}'].where({condition}), then fill them."
        f" {confirmed(item)}"
    )


def filled(item: Field, fields: Fields, *, infinite: bool) -> str:
    """Return the line that fills missing values of a field, and infinite ones if there are any."""
    dim, name = fields.layout.axes["longitude"].dim, f"ds['{item.source}']"
    interpolated = f".interpolate_na('{dim}', fill_value='extrapolate')"
    if infinite:
        return (
            f"{name} = {name}.where(np.isfinite({name})).pipe(lambda v:"
            f" v{interpolated}.fillna(v.mean()))"
        )
    return f"{name} = {name}{interpolated}.fillna({name}.mean())"


def left_out(item: Field, fields: Fields, time: np.datetime64) -> str:
    """Return how to leave out a time."""
    axis = fields.layout.axes["time"]
    return (
        "get this time again from the source, or leave it out: ds ="
        f" ds.isel({axis.dim}=ds['{axis.name}'].values != np.datetime64('{time_name(time)}')). "
        + confirmed(item)
    )


def is_confirmed(item: Field) -> bool:
    """Return whether the user has confirmed values that look implausible."""
    return bool(item.attrs.get(CHECKED))


def confirmed(item: Field) -> str:
    """Return how to confirm values that look implausible."""
    return f"If the values are right: ds['{item.source}'].attrs['{CHECKED}'] = 1"


def at_time(time: np.datetime64 | None) -> str:
    """Return a time for a message, or nothing."""
    return "" if time is None else f" at {time_name(time)}"


def time_name(time: np.datetime64) -> str:
    """Return a time to the minute."""
    return str(time.astype("datetime64[m]"))

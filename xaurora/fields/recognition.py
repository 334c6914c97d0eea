"""Recognition of axes and variables in a Dataset: CF attributes first, then the table of names.

Ambiguous variables raise an error and conversions are noted; nothing is guessed silently. Lazy:
only coordinates are read.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import (
    AmbiguousVariableError,
    KindError,
    LevelError,
    TimeError,
    UnitsError,
    XauroraError,
)
from xaurora.fields import labels, periods, variables
from xaurora.fields.amounts import check_not_accumulated
from xaurora.fields.axes import (
    check_members,
    find_axes,
    note_expver,
    read_grid,
    read_levels,
    read_times,
)
from xaurora.fields.found import Field, Recognition
from xaurora.fields.unit_conversion import (
    accepted_units,
    conversion,
    is_rate,
    normalise_units,
    rate_to_amount,
)


def is_forecast(ds: xr.Dataset) -> bool:
    """Return whether a Dataset is a forecast, in this package's layout or in WeatherBench2's.

    A single init or lead time of a forecast counts as well.
    """
    return not is_scores(ds) and any(
        pair <= set(ds.dims) | set(ds.coords)
        for pair in ({"init_time", "lead_time"}, {"time", "prediction_timedelta"})
    )


def is_scores(ds: xr.Dataset) -> bool:
    """Return whether a Dataset holds scores from ``evaluate``."""
    return "region" in ds.coords and any(
        "xaurora_variable" in da.attrs or "metric" in da.dims for da in ds.data_vars.values()
    )


def recognise(ds: xr.Dataset) -> Recognition:
    """Find axes and variables, and collect all problems instead of raising the first.

    Lazy: only coordinates are read.
    """
    found = Recognition()
    if is_forecast(ds):
        found.problems.append(
            KindError(
                "this Dataset is a forecast (it has lead times), but fields with a time axis are"
                " expected here.",
                fix=(
                    "call this on the fields that the forecast was made from; forecasts have"
                    " evaluate(), plot() and to_weatherbench2()"
                ),
            )
        )
        return found
    find_axes(ds, found)
    found.attempt(lambda: check_members(ds, found))
    found.attempt(lambda: read_grid(ds, found))
    found.attempt(lambda: read_levels(ds, found))
    found.attempt(lambda: read_times(ds, found))
    found.attempt(lambda: labels.read_bounds(ds, found))
    _find_fields(ds, found)
    note_expver(ds, found)
    return found


# --- variables ------------------------------------------------------------------------------------


def _find_fields(ds: xr.Dataset, found: Recognition) -> None:
    by_standard_name_alone = []
    level = found.axes.get("level")
    one_level = (
        level.name
        if level is not None and level.name in ds.coords and ds[level.name].ndim == 0
        else None
    )
    for name in map(str, ds.data_vars):
        if found.bounds is not None and name == found.bounds.name:
            continue
        kind = _kind(ds[name], found)
        if (
            one_level
            and kind == "flat"
            and (aloft := _match(ds[name], name, "atmos")[0])
            and not _match(ds[name], name, "flat")[1] | (aloft.name == "z")
        ):
            found.attempt(
                functools.partial(_raise_one_level, name, one_level), ("atmos", aloft.name)
            )
            continue
        variable, sure = _match(ds[name], name, kind) if kind else (None, False)
        if variable is None:
            if kind is None and "step" in ds[name].dims and _match(ds[name], name, "flat")[1]:
                found.attempt(functools.partial(_raise_steps, name), ("surface", name))
            found.unrecognised.append(name)
        elif variable.auxiliary or (variable.accumulated and variable.name != "tp"):
            _add_if_usable(ds[name], name, variable, found)
        elif sure:
            found.attempt(
                functools.partial(_add_field, ds[name], name, variable, found),
                (variable.kind, variable.name),
            )
        else:
            by_standard_name_alone.append((name, variable))
    for name, variable in by_standard_name_alone:
        # A standard name does not state the height. It is accepted if no variable was found under
        # the proper name; otherwise this is another quantity.
        if (variable.kind, variable.name) in found.fields:
            by_name = [
                v
                for v in variables.TABLE
                if v.kind == variable.kind and name in (v.name, v.weatherbench2, *v.aliases)
            ]
            if by_name and (by_name[0].kind, by_name[0].name) not in found.fields:
                found.attempt(
                    functools.partial(_add_field, ds[name], name, by_name[0], found),
                    (by_name[0].kind, by_name[0].name),
                )
                continue
            found.unrecognised.append(name)
        else:
            found.notes.append(
                f"'{name}' is recognised as {variable.long_name.lower()} by its standard name"
                " alone."
            )
            found.attempt(
                functools.partial(_add_field, ds[name], name, variable, found),
                (variable.kind, variable.name),
            )


def _add_if_usable(
    da: xr.DataArray, name: str, variable: variables.Variable, found: Recognition
) -> None:
    """Add a variable that few models or targets need. Problems are only recorded."""
    try:
        _add_field(da, name, variable, found)
    except XauroraError as error:
        error.about = (variable.kind, variable.name)
        found.unusable[name] = error
        found.unrecognised.append(name)


def _raise_one_level(name: str, level: str) -> None:
    raise LevelError(
        f"'{name}' is on a single level, and its level is a scalar coordinate instead of a"
        " dimension.",
        fix=f"select with a list, which keeps the dimension: ds.sel({level}=[...])",
    )


def _raise_steps(name: str) -> None:
    raise TimeError(
        f"'{name}' has both a time dimension and 'step', the lead time of a GRIB forecast.",
        fix="open the file with xaurora.open('file.grib'), which combines them into one time axis",
    )


def _kind(da: xr.DataArray, found: Recognition) -> str | None:
    """Return ``"flat"`` for a field without levels, ``"atmos"`` with levels, else None."""
    axes = {
        axis: found.axes[axis].dim
        for axis in ("latitude", "longitude", "level", "time")
        if axis in found.axes
    }
    dims = {str(d) for d in da.dims if da.sizes[d] > 1 or d in axes.values()}
    if not {axes.get("latitude"), axes.get("longitude")} <= dims:
        return None
    number = found.axes.get("number")
    extra = dims - set(axes.values()) - ({number.dim} if number else set()) - {"expver"}
    if extra:
        return None
    return "atmos" if axes.get("level") in dims else "flat"


def _match(da: xr.DataArray, name: str, kind: str) -> tuple[variables.Variable | None, bool]:
    """Return the matching variable, and whether a name or GRIB code identifies it.

    The second value is False if only a standard name does.
    """
    pool = [v for v in variables.TABLE if (v.kind == "atmos") == (kind == "atmos")]
    short = str(da.attrs.get("GRIB_shortName", ""))
    by_name = [v for v in pool if name in (v.name, v.weatherbench2, *v.aliases)]
    if not by_name and (plain := periods.without_period(name)) != name:  # total_precipitation_24hr
        by_name = [v for v in pool if v.accumulated and plain in (v.name, *v.aliases)]
    if short and (by_short := [v for v in pool if short in (v.name, *v.aliases)]):
        return by_short[0], True
    standard = da.attrs.get("standard_name", "")
    by_standard = [v for v in pool if standard and standard in v.standard_names]
    if by_standard and by_name and by_standard[0] is not by_name[0] and by_name[0].standard_names:
        return (
            by_standard[0],
            False,
        )  # CF attributes take precedence over names, unless another variable matches already
    if by_name:
        return by_name[0], True
    return (by_standard[0], False) if len(by_standard) == 1 else (None, False)


def _add_field(
    da: xr.DataArray, name: str, variable: variables.Variable, found: Recognition
) -> None:
    key = (variable.kind, variable.name)
    if (
        key in found.fields
        and variable.accumulated
        and _claims_six_hours(name) != _claims_six_hours(found.fields[key].source)
    ):
        # WeatherBench2's stores may hold hourly totals as well as the six-hour ones that are needed
        # here.
        other = found.fields[key].source
        found.notes.append(
            f"'{other if _claims_six_hours(name) else name}' is ignored; the six-hour totals are"
            " used instead."
        )
        if not _claims_six_hours(name):
            return
        del found.fields[key]
    if key in found.fields and variable.accumulated:
        # An amount and its rate: use the amount.
        rates = [
            _is_rate_name(found.fields[key].source, found.fields[key].attrs),
            _is_rate_name(name, da.attrs),
        ]
        if rates == [False, True]:
            found.notes.append(
                f"'{name}', a rate, is ignored in favour of '{found.fields[key].source}'."
            )
            return
        if rates == [True, False]:
            found.notes.append(
                f"'{found.fields[key].source}', a rate, is ignored in favour of '{name}'."
            )
            del found.fields[key]
    if key in found.fields:
        raise AmbiguousVariableError(
            f"'{found.fields[key].source}' and '{name}' are both recognised as"
            f" {variable.long_name.lower()} ({variable.name}).",
            fix=f"ds.drop_vars('{name}'), or drop the other one",
        )
    if "scale_factor" in da.attrs or "add_offset" in da.attrs:
        raise UnitsError(
            f"'{name}' is packed (scale_factor, add_offset) and was not decoded.",
            fix="xr.decode_cf(ds)",
        )
    if not (np.issubdtype(da.dtype, np.number) or da.dtype == bool):
        raise UnitsError(
            f"'{name}' has dtype {da.dtype}, which is not numeric.",
            fix=f"ds['{name}'] = ds['{name}'].astype('float32')",
        )
    if variable.accumulated:
        da = labels.with_period(da, name, found)
    scale, offset = _conversion(da, name, variable, found)
    if (scale, offset) != (1.0, 0.0):
        found.notes.append(f"'{name}' is converted from {da.attrs['units']} to {variable.units}.")
    found.fields[key] = Field(
        variable, name, scale, offset, da.dtype, tuple(map(str, da.dims)), dict(da.attrs)
    )


def _is_rate_name(name: str, attrs: dict[Any, Any]) -> bool:
    return name in _RATE_NAMES or is_rate(str(attrs.get("units", "")))


def _claims_six_hours(name: str) -> bool:
    return name.endswith(f"_{variables.TIMESTEP_HOURS}hr")


def _conversion(
    da: xr.DataArray, name: str, variable: variables.Variable, found: Recognition
) -> tuple[float, float]:
    expected = accepted_units(variable.units)
    if "units" not in da.attrs:
        if name in (variable.weatherbench2, *variable.long_aliases) or variable.units in (
            "1",
            "category",
        ):
            if variable.units not in ("1", "category"):
                found.notes.append(
                    f"'{name}' has no units; {variable.units} is assumed, as in WeatherBench2 and"
                    " ARCO-ERA5."
                )
            return 1.0, 0.0
        raise UnitsError(
            f"'{name}' ({variable.long_name.lower()}) has no units; expected one of"
            f" {', '.join(expected)}.",
            fix=f"ds['{name}'].attrs['units'] = '{variable.units}'",
        )
    units = da.attrs["units"]
    if variable.accumulated:
        if is_rate(units):
            return rate_to_amount(units, _hours_of_rate(da, name, found)), 0.0
        _check_units_agree(da, name, units)
    found_conversion = conversion(units, variable.units)
    if found_conversion is None:
        raise UnitsError(
            f"'{name}' ({variable.long_name.lower()}) is in {units!r}; expected one of"
            f" {', '.join(expected)}.",
            fix=(
                f"ds['{name}'].attrs['units'] = '{variable.units}', after converting the values if"
                " necessary"
            ),
        )
    if (
        variable.name == "z"
        and variable.kind == "atmos"
        and name == "geopotential"
        and normalise_units(units) == "m"
    ):
        raise UnitsError(
            "'geopotential' cannot be in metres: geopotential height is in m, geopotential in m2"
            " s-2.",
            fix="ds.rename(geopotential='geopotential_height') if it is the height",
        )
    return found_conversion


def _hours_of_rate(da: xr.DataArray, name: str, found: Recognition) -> float:
    """Return the period of a mean rate in hours, which converts it to an amount."""
    hours = periods.declared_hours(name, da.attrs)
    if hours is not None:
        return hours
    if found.times is not None and len(found.times) > 1 and periods.spacing_hours(found.times) == 1:
        return 1
    raise UnitsError(
        f"'{name}' is a rate ({da.attrs['units']}), but its averaging period is unknown.",
        fix=(
            f"ds['{name}'].attrs['cell_methods'] = 'time: mean (interval: 1 hour)' with the right"
            " number of hours"
        ),
    )


def _check_units_agree(da: xr.DataArray, name: str, units: str) -> None:
    standard, label = str(da.attrs.get("standard_name", "")), str(da.attrs.get("long_name", ""))
    short = str(da.attrs.get("GRIB_shortName", name))
    says = next(
        (v for v in (standard, label) if re.search(r"\b(rate|flux)\b", v.replace("_", " "), re.I)),
        None,
    )
    if says is None and short in _RATE_NAMES:
        says = short
    if says is not None:
        raise UnitsError(
            f"'{name}' is called a rate ({says!r}), but its units are those of an amount"
            f" ({units!r}).",
            fix=(
                f"ds['{name}'].attrs['units'] = 'kg m-2 s-1' if it is a rate; otherwise fix its"
                f" standard name: ds['{name}'].attrs['standard_name'] = 'precipitation_amount'"
            ),
        )


_RATE_NAMES = ("mtpr", "avg_tprate", "tprate", "mean_total_precipitation_rate")


def add_generic(ds: xr.Dataset, name: str, found: Recognition) -> bool:
    """Add a variable that is not in the table as a field in its own units.

    Returns False if it does not have the dimensions of a surface field.

    Raises
    ------
    AmbiguousVariableError
        If it seems to be accumulated or averaged over a period.
    """
    if name in found.unusable:
        raise found.unusable[name]
    if name not in ds or _kind(ds[name], found) != "flat" or "time" not in found.axes:
        return False
    if found.axes["time"].dim not in ds[name].dims or not np.issubdtype(ds[name].dtype, np.number):
        return False
    da = ds[name]
    check_not_accumulated(da, name)
    label = str(da.attrs.get("long_name", name))
    plain = re.sub(r"\W", "_", name)  # a valid name of a PyTorch module
    variable = variables.Variable(plain, "surface", str(da.attrs.get("units", "1")), label, name)
    found.fields["surface", plain] = Field(
        variable, name, 1.0, 0.0, da.dtype, tuple(map(str, da.dims)), dict(da.attrs)
    )
    if name in found.unrecognised:
        found.unrecognised.remove(name)
    return True

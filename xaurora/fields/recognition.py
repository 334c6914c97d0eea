"""Finding axes and variables in a Dataset: CF attributes first, the table of names second.

Nothing is guessed silently: what is ambiguous raises, what was converted is noted. Lazy: only
coordinates are read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import (
    AmbiguousVariableError,
    CoordinateError,
    EnsembleError,
    GridError,
    KindError,
    LevelError,
    TimeError,
    UnitsError,
    XauroraError,
)
from xaurora.fields import periods, variables
from xaurora.fields.grid import lattice as grids

NAMES = {
    "time": ("time", "valid_time", "forecast_time", "date", "datetime"),
    "latitude": ("latitude", "lat", "nav_lat"),
    "longitude": ("longitude", "lon", "nav_lon"),
    "level": (
        "level",
        "pressure_level",
        "isobaricInhPa",
        "plev",
        "lev",
        "pressure",
        "isobaric",
        "levels",
    ),
    "number": ("number", "realization", "member", "ensemble", "ens"),
}
LEVEL_UNITS = {"hPa": 1.0, "millibar": 1.0, "mbar": 1.0, "mb": 1.0, "Pa": 0.01}


@dataclass(frozen=True)
class Axis:
    """One axis as the data have it: the coordinate's name, and the dimension it runs along."""

    name: str
    dim: str


@dataclass(frozen=True)
class Field:
    """One recognised variable: ``canonical = scale · value + offset``."""

    variable: variables.Variable
    source: str
    scale: float
    offset: float
    dtype: np.dtype
    dims: tuple[str, ...]
    attrs: dict[str, Any]

    @property
    def converted(self) -> bool:
        """Whether values differ between the user's form and the canonical one (but for the dtype)."""
        return (self.scale, self.offset) != (1.0, 0.0)


@dataclass
class Recognition:
    """What was found in a Dataset, what is wrong with it, and what is worth knowing."""

    axes: dict[str, Axis] = field(default_factory=dict)
    fields: dict[tuple[str, str], Field] = field(default_factory=dict)
    grid: grids.Grid | None = None
    levels: tuple[float, ...] = ()
    times: np.ndarray | None = None
    problems: list[XauroraError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unrecognised: list[str] = field(default_factory=list)

    def attempt(self, step: Callable[[], None], about: tuple[str, str] | None = None) -> None:
        """Run one step and keep its error instead of raising it, so that all problems are seen at
        once.
        """
        try:
            step()
        except XauroraError as error:
            error.about = about
            self.problems.append(error)

    def raise_first(self) -> None:
        """Raise the first problem, and say how many more there are."""
        if not self.problems:
            return
        first = self.problems[0]
        if len(self.problems) > 1:
            more = f" ({len(self.problems) - 1} more: ds.aurora.check() lists them)"
            raise type(first)(first.message + more, fix=first.fix)
        raise first


def is_forecast(ds: xr.Dataset) -> bool:
    """Whether a Dataset is a forecast in this package's layout or in WeatherBench2's, or one time
    of it.
    """
    return not is_scores(ds) and any(
        pair <= set(ds.dims) | set(ds.coords)
        for pair in ({"init_time", "lead_time"}, {"time", "prediction_timedelta"})
    )


def is_scores(ds: xr.Dataset) -> bool:
    """Whether a Dataset holds scores, as ``evaluate`` gives them."""
    return "region" in ds.coords and any(
        "xaurora_variable" in da.attrs or "metric" in da.dims for da in ds.data_vars.values()
    )


def recognise(ds: xr.Dataset) -> Recognition:
    """Find axes and variables, and collect every problem instead of stopping at the first. Lazy:
    reads coordinates only.
    """
    found = Recognition()
    if is_forecast(ds):
        found.problems.append(
            KindError(
                "this Dataset is a forecast (it has lead times), and fields with a time axis are"
                " expected here.",
                fix=(
                    "call this on the fields that the forecast was made from; a forecast has"
                    " evaluate(), plot() and to_weatherbench2()"
                ),
            )
        )
        return found
    _find_axes(ds, found)
    found.attempt(lambda: _check_members(ds, found))
    found.attempt(lambda: _read_grid(ds, found))
    found.attempt(lambda: _read_levels(ds, found))
    found.attempt(lambda: _read_times(ds, found))
    _find_fields(ds, found)
    _note_expver(ds, found)
    return found


# --- axes -----------------------------------------------------------------------------------------


def _find_axes(ds: xr.Dataset, found: Recognition) -> None:
    import cf_xarray  # noqa: F401  (registers ds.cf; imported late because it costs 0.1 s)

    by_cf: dict[str, list[Hashable]] = {}
    for key, cf_keys in {
        "latitude": ("latitude",),
        "longitude": ("longitude",),
        "level": ("vertical",),
        "time": ("time",),
    }.items():
        for cf_key in cf_keys:
            by_cf.setdefault(key, []).extend(ds.cf.coordinates.get(cf_key, []))
    for axis, names in NAMES.items():
        candidates = [n for n in (*by_cf.get(axis, []), *names) if n in ds.coords or n in ds.dims]
        if axis == "level":
            candidates = [n for n in candidates if _is_pressure(ds, str(n))]
        if axis == "time":
            candidates = [
                n for n in candidates if n in ds.dims or (n in ds.coords and ds[n].ndim == 1)
            ]
        # A coordinate along its own dimension is meant more than one that merely stands there.
        candidates.sort(key=lambda n: n not in ds.dims)
        if candidates:
            name = str(candidates[0])
            dim = str(ds[name].dims[0]) if name in ds.coords and ds[name].ndim == 1 else name
            found.axes[axis] = Axis(name, dim)


def _is_pressure(ds: xr.Dataset, name: str) -> bool:
    if name not in ds.coords:
        return False
    attrs = ds[name].attrs
    if attrs.get("standard_name") == "air_pressure":
        return True
    units = variables.normalise_units(attrs.get("units", ""))
    return units in LEVEL_UNITS or (units == "" and name in NAMES["level"])


def _check_members(ds: xr.Dataset, found: Recognition) -> None:
    axis = found.axes.get("number")
    if axis is not None and ds.sizes.get(axis.dim, 1) > 1:
        raise EnsembleError(
            f"the data hold {ds.sizes[axis.dim]} ensemble members along '{axis.dim}', and one is"
            " expected.",
            fix=f"ds.isel({axis.dim}=0), or ds.mean('{axis.dim}')",
        )
    if ds.sizes.get("expver", 1) > 1:
        raise CoordinateError(
            "final and preliminary ERA5 (expver 1 and 5) stand beside each other along 'expver',"
            " each half empty.",
            fix="ds = ds.sel(expver=1).combine_first(ds.sel(expver=5))",
        )


def _read_grid(ds: xr.Dataset, found: Recognition) -> None:
    for axis in ("latitude", "longitude"):
        if axis not in found.axes:
            raise CoordinateError(
                f"no {axis} was found among the coordinates {sorted(map(str, ds.coords))}.",
                fix=(
                    f"ds.rename({{'name_in_your_data': '{axis}'}}), or"
                    " ds['name_in_your_data'].attrs['units'] ="
                    f" 'degrees_{'north' if axis == 'latitude' else 'east'}'"
                ),
            )
        name = found.axes[axis].name
        if name not in ds.coords:
            raise CoordinateError(
                f"the dimension '{name}' has no {axis} values.",
                fix=(
                    f"ds.assign_coords({name}=...) with degrees"
                    f" {'north' if axis == 'latitude' else 'east'}"
                ),
            )
        if ds[name].ndim == 0:
            raise GridError(
                f"{axis} is a single value, so that this is a point or a line; a region is needed.",
                fix=f"select a box: ds.sel({name}=slice(...)), or ds.isel({name}=[...])",
            )
        if ds[name].ndim != 1:
            raise GridError(
                f"{axis} is {ds[name].ndim}-dimensional, which is a curvilinear or rotated grid;"
                " Aurora takes regular latitude–longitude grids.",
                fix=(
                    "regrid first, for example with xesmf: xe.Regridder(ds,"
                    " xe.util.grid_global(0.25, 0.25), 'bilinear')(ds)"
                ),
            )
    found.grid = grids.from_axes(
        ds[found.axes["latitude"].name].values, ds[found.axes["longitude"].name].values
    )


def _read_levels(ds: xr.Dataset, found: Recognition) -> None:
    axis = found.axes.get("level")
    if axis is None:
        return
    values = np.atleast_1d(ds[axis.name].values).astype(np.float64)
    units = variables.normalise_units(ds[axis.name].attrs.get("units", ""))
    if units not in LEVEL_UNITS:
        units = "Pa" if values.max() > 1100 else "hPa"  # no level of Aurora's is above 1000 hPa
        found.notes.append(f"'{axis.name}' has no units; taken as {units} by its values.")
    levels = tuple(float(np.round(v * LEVEL_UNITS[units], 4)) for v in values)
    doubled = sorted({level for level in levels if levels.count(level) > 1})
    if doubled:
        raise LevelError(
            f"level(s) {doubled} hPa are there more than once.",
            fix=f"ds.drop_duplicates('{axis.dim}')",
        )
    found.levels = levels


def _read_times(ds: xr.Dataset, found: Recognition) -> None:
    axis = found.axes.get("time")
    if axis is None or axis.dim not in ds.dims:
        raise TimeError(
            f"no time axis was found among the dimensions {sorted(map(str, ds.dims))}; Aurora needs"
            " two frames six hours apart.",
            fix=(
                "open all times together: xaurora.open('era5/*.nc'); or name the axis:"
                " ds.rename({'name_in_your_data': 'time'})"
            ),
        )
    coordinate = ds[axis.name] if axis.name in ds.coords else None
    valid = ds.coords.get("valid_time")
    if valid is not None and valid.dims == (axis.dim,):
        coordinate = valid  # GRIB: `time` is the base time, `valid_time` is when the field holds
    if coordinate is None:
        raise TimeError(
            f"the dimension '{axis.dim}' has no times.",
            fix=f"ds.assign_coords({axis.dim}=pd.date_range(...))",
        )
    if (
        getattr(coordinate.dtype, "tz", None) is not None
    ):  # aware times: `values` would drop the zone, and warn
        values = coordinate.to_index().tz_convert("UTC").tz_localize(None).to_numpy()
    else:
        values = coordinate.values
    if values.dtype == object and len(values) and getattr(values[0], "tzinfo", None) is not None:
        import pandas as pd

        values = pd.DatetimeIndex(values).tz_convert("UTC").tz_localize(None).to_numpy()
    if values.dtype == object and len(values) and hasattr(values[0], "timetuple"):
        if getattr(values[0], "calendar", "") not in (
            "standard",
            "gregorian",
            "proleptic_gregorian",
        ):
            raise TimeError(
                f"times are in the calendar {getattr(values[0], 'calendar', '?')!r}, and ERA5's is"
                " the standard one.",
                fix=f"ds.convert_calendar('standard', dim='{axis.dim}', use_cftime=False)",
            )
        values = np.array([np.datetime64(v.isoformat(), "ns") for v in values])
    if not np.issubdtype(values.dtype, np.datetime64):
        raise TimeError(
            f"'{axis.name}' holds {values.dtype}, not times.",
            fix="xr.decode_cf(ds), or open the file without decode_times=False",
        )
    values = values.astype("datetime64[ns]")
    if np.isnat(values).any():
        raise TimeError(
            f"{int(np.isnat(values).sum())} time(s) are missing (NaT).",
            fix=f"ds.dropna('{axis.dim}', subset=['{axis.name}'])",
        )
    unique, counts = np.unique(values, return_counts=True)
    if (counts > 1).any():
        raise TimeError(
            f"{int((counts > 1).sum())} time(s) are there more than once, the first"
            f" {unique[counts > 1][0].astype('datetime64[m]')}.",
            fix=f"ds.drop_duplicates('{axis.dim}')",
        )
    if (np.diff(values) < np.timedelta64(0, "ns")).any():
        raise TimeError("times are not in order.", fix=f"ds.sortby('{axis.name}')")
    found.times = values


def _note_expver(ds: xr.Dataset, found: Recognition) -> None:
    if "expver" in ds.coords and ds["expver"].ndim == 1 and "expver" not in ds.dims:
        values = {str(v).lstrip("0") for v in np.unique(ds["expver"].values.astype(str))}
        if len(values) > 1 and "5" in values:
            found.notes.append(
                "Preliminary ERA5T (expver 5) stands among final ERA5 (expver 1); it may still be"
                " revised."
            )
        elif values == {"5"}:
            found.notes.append(
                "All of this is preliminary ERA5T (expver 5); it may still be revised."
            )


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
        kind = _kind(ds[name], found)
        if (
            one_level
            and kind == "flat"
            and (aloft := _match(ds[name], name, "atmos")[0])
            and not _match(ds[name], name, "flat")[1] | (aloft.name == "z")
        ):
            found.attempt(
                functools.partial(_refuse_one_level, name, one_level), ("atmos", aloft.name)
            )
            continue
        variable, sure = _match(ds[name], name, kind) if kind else (None, False)
        if variable is None:
            if kind is None and "step" in ds[name].dims and _match(ds[name], name, "flat")[1]:
                found.attempt(functools.partial(_refuse_steps, name), ("surface", name))
            found.unrecognised.append(name)
        elif sure:
            found.attempt(
                functools.partial(_add_field, ds[name], name, variable, found),
                (variable.kind, variable.name),
            )
        else:
            by_standard_name_alone.append((name, variable))
    for name, variable in by_standard_name_alone:
        # A standard name does not say at which height. One that is
        # not there under its own name is welcome; beside that, it is something else.
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
                f"'{name}' is taken as {variable.long_name.lower()} by its standard name alone."
            )
            found.attempt(
                functools.partial(_add_field, ds[name], name, variable, found),
                (variable.kind, variable.name),
            )


def _refuse_one_level(name: str, level: str) -> None:
    raise LevelError(
        f"'{name}' stands on a single level, which is no dimension any more.",
        fix=f"select with a list, which keeps the dimension: ds.sel({level}=[...])",
    )


def _refuse_steps(name: str) -> None:
    raise TimeError(
        f"'{name}' runs along 'step', the steps of GRIB forecasts, as well as time.",
        fix="open the file with xaurora.open('file.grib'), which makes one time axis of them",
    )


def _kind(da: xr.DataArray, found: Recognition) -> str | None:
    """``"flat"`` for fields without levels, ``"atmos"`` with; None for what is no field."""
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
    """The variable, and whether a name or a GRIB code says so, not a standard name alone."""
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
        )  # CF attributes speak before names do, unless another variable is that already
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
        and _says_six_hours(name) != _says_six_hours(found.fields[key].source)
    ):
        # WeatherBench2's stores may hold hourly totals beside the six-hour ones, which are what is
        # wanted.
        other = found.fields[key].source
        found.notes.append(
            f"'{name if not _says_six_hours(name) else other}' is left alone beside the six-hour"
            " totals."
        )
        if not _says_six_hours(name):
            return
        del found.fields[key]
    if key in found.fields and variable.accumulated:
        # An amount and the rate that it is the integral of: the amount is what is wanted.
        rates = [
            _is_rate_name(found.fields[key].source, found.fields[key].attrs),
            _is_rate_name(name, da.attrs),
        ]
        if rates == [False, True]:
            found.notes.append(
                f"'{name}', a rate, is left alone beside '{found.fields[key].source}'."
            )
            return
        if rates == [True, False]:
            found.notes.append(
                f"'{found.fields[key].source}', a rate, is left alone beside '{name}'."
            )
            del found.fields[key]
    if key in found.fields:
        raise AmbiguousVariableError(
            f"'{found.fields[key].source}' and '{name}' are both {variable.long_name.lower()}"
            f" ({variable.name}).",
            fix=f"ds.drop_vars('{name}'), or the other one",
        )
    if "scale_factor" in da.attrs or "add_offset" in da.attrs:
        raise UnitsError(
            f"'{name}' is packed (scale_factor, add_offset) and was not decoded.",
            fix="xr.decode_cf(ds)",
        )
    if not (np.issubdtype(da.dtype, np.number) or da.dtype == bool):
        raise UnitsError(
            f"'{name}' holds {da.dtype}, not numbers.",
            fix=f"ds['{name}'] = ds['{name}'].astype('float32')",
        )
    scale, offset = _conversion(da, name, variable, found)
    if (scale, offset) != (1.0, 0.0):
        found.notes.append(f"'{name}' is converted from {da.attrs['units']} to {variable.units}.")
    found.fields[key] = Field(
        variable, name, scale, offset, da.dtype, tuple(map(str, da.dims)), dict(da.attrs)
    )


def _is_rate_name(name: str, attrs: dict[Any, Any]) -> bool:
    return name in _RATE_NAMES or variables.is_rate(str(attrs.get("units", "")))


def _says_six_hours(name: str) -> bool:
    return name.endswith(f"_{variables.TIMESTEP_HOURS}hr")


def _conversion(
    da: xr.DataArray, name: str, variable: variables.Variable, found: Recognition
) -> tuple[float, float]:
    expected = variables.accepted_units(variable.units)
    if "units" not in da.attrs:
        if name in (variable.weatherbench2, *variable.long_aliases) or variable.units in (
            "1",
            "category",
        ):
            if variable.units not in ("1", "category"):
                found.notes.append(
                    f"'{name}' has no units; taken as {variable.units}, as WeatherBench2 and"
                    " ARCO-ERA5 define it."
                )
            return 1.0, 0.0
        raise UnitsError(
            f"'{name}' ({variable.long_name.lower()}) has no units; one of {', '.join(expected)} is"
            " expected.",
            fix=f"ds['{name}'].attrs['units'] = '{variable.units}'",
        )
    units = da.attrs["units"]
    if variable.accumulated:
        if variables.is_rate(units):
            return variables.rate_to_amount(units, _hours_of_rate(da, name, found)), 0.0
        _refuse_contradiction(da, name, units)
    found_conversion = variables.conversion(units, variable.units)
    if found_conversion is None:
        raise UnitsError(
            f"'{name}' ({variable.long_name.lower()}) is in {units!r}; one of {', '.join(expected)}"
            " is expected.",
            fix=(
                f"ds['{name}'].attrs['units'] = '{variable.units}', after converting the values if"
                " they need it"
            ),
        )
    if (
        variable.name == "z"
        and variable.kind == "atmos"
        and name == "geopotential"
        and variables.normalise_units(units) == "m"
    ):
        raise UnitsError(
            "'geopotential' in metres is a contradiction: geopotential height is in m.",
            fix="ds.rename(geopotential='geopotential_height') if it is the height",
        )
    return found_conversion


def _hours_of_rate(da: xr.DataArray, name: str, found: Recognition) -> float:
    """The period that a mean rate stands for, which makes an amount of it."""
    hours = periods.declared_hours(name, da.attrs)
    if hours is not None:
        return hours
    if found.times is not None and len(found.times) > 1 and periods.spacing_hours(found.times) == 1:
        return 1
    raise UnitsError(
        f"'{name}' is a rate ({da.attrs['units']}), and nothing says over which period it is the"
        " mean.",
        fix=(
            f"ds['{name}'].attrs['cell_methods'] = 'time: mean (interval: 1 hour)' with the right"
            " number of hours"
        ),
    )


def _refuse_contradiction(da: xr.DataArray, name: str, units: str) -> None:
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
            f"'{name}' calls itself a rate ({says!r}), but its units are those of an amount"
            f" ({units!r}).",
            fix=(
                f"ds['{name}'].attrs['units'] = 'kg m-2 s-1' if it is a rate; else mend its names:"
                f" ds['{name}'].attrs['standard_name'] = 'precipitation_amount'"
            ),
        )


_RATE_NAMES = ("mtpr", "avg_tprate", "tprate", "mean_total_precipitation_rate")


def add_generic(ds: xr.Dataset, name: str, found: Recognition) -> bool:
    """Take a variable that the table does not know as a field in its own units, if it has the dims
    of one.
    """
    if name not in ds or _kind(ds[name], found) != "flat" or "time" not in found.axes:
        return False
    if found.axes["time"].dim not in ds[name].dims or not np.issubdtype(ds[name].dtype, np.number):
        return False
    da = ds[name]
    label = str(da.attrs.get("long_name", name))
    plain = re.sub(r"\W", "_", name)  # a name that modules of Torch can have
    variable = variables.Variable(plain, "surface", str(da.attrs.get("units", "1")), label, name)
    found.fields["surface", plain] = Field(
        variable, name, 1.0, 0.0, da.dtype, tuple(map(str, da.dims)), dict(da.attrs)
    )
    if name in found.unrecognised:
        found.unrecognised.remove(name)
    return True

"""Datasets in every convention, sound or with one fault, and what ``check()`` must say of them.

:func:`sound` draws a Dataset in which nothing is wrong: names, units, orders of dims, latitudes
and longitudes, dtypes, levels, missing values, calendars and chunks of the conventions that people
have.
:data:`FAULTS` each put one thing wrong. :func:`verdict` says whether xaurora answers as it must.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from hypothesis import assume
from hypothesis import strategies as st

from xaurora import errors
from xaurora.fields import variables
from xaurora.fields.unit_conversion import CONVERSIONS

H6 = np.timedelta64(6, "h")
GRAVITY = 9.80665  # m s-2
STATE = ("2t", "10u", "10v", "msl", "z", "u", "v", "t", "q")
STATIC = ("lsm", "slt", "z")


@dataclass
class Made:
    """A Dataset and how it is laid out.

    ``names`` gives the variable in the Dataset by kind and canonical name; ``dims`` the dims for
    time, level, latitude and longitude; ``hourly`` is whether totals are of one hour.
    """

    ds: xr.Dataset
    names: dict[tuple[str, str], str]
    dims: dict[str, str]
    hourly: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    def source(self, kind: str, name: str) -> str:
        return self.names[kind, name]


def _values(rng: np.random.Generator, name: str, kind: str, levels: np.ndarray, shape: Any) -> Any:
    """Return values that occur on Earth, canonical units, ``(time, [level,] lat, lon)``."""
    noise = rng.standard_normal(shape)
    if kind == "atmos":
        return _aloft(name, levels, noise)
    if kind == "static":
        return {
            "lsm": (noise > 0).astype(float),
            "slt": np.round(np.clip(3 + noise, 0, 7)),
            "z": GRAVITY * np.clip(300 * noise, -50, 4000),
        }[name]
    return {
        "2t": 282.0 + 9.0 * noise,
        "10u": 5.0 * noise,
        "10v": 5.0 * noise,
        "msl": 101_200.0 + 900.0 * noise,
        "tp": np.where(noise > 0.3, 2e-3 * noise**2, 0.0),
    }[name]


def _aloft(name: str, levels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    height = 44_330.8 * (1.0 - (levels[:, None, None] / 1013.25) ** 0.190263)  # m
    return {
        "z": GRAVITY * (height + 60.0 * noise),
        "u": 9.0 * noise,
        "v": 9.0 * noise,
        "t": np.maximum(288.0 - 6.5e-3 * height, 216.0) + 5.0 * noise,
        "q": 6e-3 * (levels[:, None, None] / 1000.0) ** 3 * np.exp(0.3 * noise),
    }[name]


_UNITS = {
    unit: [(u, scale, offset) for u, (scale, offset) in known.items() if u]
    for unit, known in CONVERSIONS.items()
}
# Units that mean something else for some variables, or whose values look like those of others.
_LEFT_OUT = {"fraction", "percent", "%"}


@st.composite
def sound(draw: st.DrawFn) -> Made:
    """Draw a Dataset in which nothing is wrong."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spacing = draw(st.sampled_from([0.25, 0.4, 1.0, 22.5]))
    is_global = spacing == 22.5
    rows, columns = (8, 16) if is_global else (draw(st.integers(12, 15)), draw(st.integers(12, 15)))
    north = 78.75 if is_global else draw(st.integers(-20, 60)) // 2 * 2.0
    west = 0.0 if is_global else draw(st.sampled_from([-4.0, 4.0, 100.0, 176.0, 352.0]))
    latitude = north - np.arange(rows) * spacing
    longitude = west + np.arange(columns) * spacing
    if draw(st.booleans()):
        longitude = longitude % 360 if not is_global else longitude
    elif not is_global:
        longitude = (longitude + 180) % 360 - 180
    if draw(st.booleans()):
        latitude = latitude[::-1]
    coordinate = draw(st.sampled_from(["float64", "float32"]))
    levels = np.array([1000.0, 850.0, 500.0, 300.0])[: draw(st.integers(3, 4))]
    levels = levels[:: draw(st.sampled_from([1, -1]))]
    names = dict(
        zip(
            ("time", "level", "latitude", "longitude"),
            draw(
                st.sampled_from(
                    [
                        ("time", "level", "latitude", "longitude"),
                        ("valid_time", "pressure_level", "latitude", "longitude"),
                        ("time", "isobaricInhPa", "latitude", "longitude"),
                        ("time", "plev", "lat", "lon"),
                    ]
                )
            ),
            strict=True,
        )
    )
    hourly = draw(st.booleans())
    count = draw(st.integers(4, 6)) if not hourly else 19
    step = np.timedelta64(1, "h") if hourly else H6
    times = np.datetime64("2021-02-27T18", "ns") + np.arange(count) * step
    sizes = dict(zip(names.values(), (count, len(levels), rows, columns), strict=True))
    long = draw(st.booleans())
    style = draw(st.sampled_from(["alias", "weatherbench2", "standard_name"]))
    made: dict[str, Any] = {}
    sources: dict[tuple[str, str], str] = {}
    for kind, wanted in (("surface", (*STATE[:4], "tp")), ("atmos", STATE[4:]), ("static", STATIC)):
        for name in wanted:
            variable = variables.BY_KEY[kind, name]
            source, attrs = _named(draw, variable, style)
            if source in made:  # GRIB's z of the surface and of the levels
                source = variable.weatherbench2
            dims = [names["time"]] if kind != "static" else []
            dims += [names["level"]] if kind == "atmos" else []
            dims += [names["latitude"], names["longitude"]]
            values = _values(rng, name, kind, levels, [sizes[d] for d in dims])
            if name == "tp":
                values = values / (6 if hourly else 1)
                hours = 1 if hourly else 6
                attrs["cell_methods"] = f"time: sum (interval: {hours} hour{'s' * (not hourly)})"
            unit, scale, offset = _unit(draw, variable)
            dtype = draw(st.sampled_from(["float32", "float64"]))
            order = draw(st.permutations(dims)) if long else dims
            da = xr.DataArray(((values - offset) / scale).astype(dtype), dims=dims)
            made[source] = da.transpose(*order).assign_attrs(attrs, units=unit)
            sources[kind, name] = source
    coords = {
        names["time"]: times,
        names["level"]: (names["level"], levels, {"units": "hPa"}),
        names["latitude"]: (
            names["latitude"],
            latitude.astype(coordinate),
            {"units": "degrees_north"},
        ),
        names["longitude"]: (
            names["longitude"],
            longitude.astype(coordinate),
            {"units": "degrees_east"},
        ),
    }
    ds = xr.Dataset(made, coords)
    if draw(st.booleans()):  # rain has gaps over the sea, say
        tp = sources["surface", "tp"]
        gap = {names["latitude"]: slice(0, 2)}
        values = ds[tp].copy(deep=True)
        values[gap] = np.nan
        ds[tp] = values
    # Of many lazy frames, check() reads a sample, and the others are guarded when they are read.
    if not hourly and draw(st.integers(0, 4)) == 0:
        ds = ds.chunk({names["time"]: draw(st.integers(1, 4))})
    if draw(st.integers(0, 9)) == 0:
        ds = ds.convert_calendar("proleptic_gregorian", dim=names["time"], use_cftime=True)
    return Made(ds, sources, names, hourly)


def _named(draw: st.DrawFn, variable: Any, style: str) -> tuple[str, dict[str, Any]]:
    """Return a name for a variable in a convention, and the attributes that say what it is."""
    if style == "standard_name" and variable.standard_names and variable.name != "tp":
        height = {"height": "2 m"} if variable.name == "2t" else {}
        name = variable.aliases[0] if variable.aliases else variable.name
        return name, {"standard_name": variable.standard_names[0], **height}
    if style == "weatherbench2":
        return variable.weatherbench2, {}
    usable = [a for a in (variable.name, *variable.aliases) if a.isidentifier()]
    usable = [a for a in usable if "rate" not in a and a != "mtpr"]  # here they are amounts
    return draw(st.sampled_from(usable)), {}


def _unit(draw: st.DrawFn, variable: Any) -> tuple[str, float, float]:
    known = _UNITS.get(variable.units)
    if known is None or variable.kind == "static":
        return variable.units, 1.0, 0.0
    left_out = {"m", "gpm", "gpdm", "dam"} if variable.name == "z" else _LEFT_OUT  # heights
    usable = [u for u in known if u[0] not in left_out]
    return draw(st.sampled_from(usable))


# --- faults ---------------------------------------------------------------------------------------

Fault = Callable[[st.DrawFn, Made], xr.Dataset]


def _some(draw: st.DrawFn, made: Made, *, kind: str | None = None) -> str:
    keys = [k for k in made.names if k[0] != "static" and k[1] != "tp"]
    keys = [k for k in keys if kind is None or k[0] == kind]
    return made.names[draw(st.sampled_from(keys))]


def _changed(ds: xr.Dataset, name: str, change: Callable[[xr.DataArray], Any]) -> xr.Dataset:
    da = ds[name].copy(deep=True)
    if da.chunks is not None:
        da = da.compute()
    return ds.assign({name: da.copy(data=np.asarray(change(da))).assign_attrs(ds[name].attrs)})


def _value(value: float) -> Fault:
    def fault(draw: st.DrawFn, made: Made) -> xr.Dataset:
        name = _some(draw, made)

        def change(da: xr.DataArray) -> np.ndarray:
            values = da.values.copy()
            flat = values.reshape(-1)
            flat[draw(st.integers(0, flat.size - 1))] = value
            return values

        return _changed(made.ds, name, change)

    return fault


def _frame(value: Callable[[np.ndarray, np.ndarray], Any]) -> Fault:
    """Replace a frame of a state by ``value(frame, the one before)``."""

    def fault(draw: st.DrawFn, made: Made) -> xr.Dataset:
        time, name = made.dims["time"], _some(draw, made)
        place = draw(st.integers(1, made.ds.sizes[time] - 1))

        def change(da: xr.DataArray) -> np.ndarray:
            axis = da.get_axis_num(time)
            values = np.moveaxis(da.values.copy(), axis, 0)
            values[place] = value(values[place], values[place - 1])
            return np.moveaxis(values, 0, axis)

        return _changed(made.ds, name, change)

    return fault


_LONG = {v.weatherbench2 for v in variables.TABLE}
"""Names of WeatherBench2 and ARCO-ERA5, which are in SI units where none are stated."""


def _units(unit: str | None) -> Fault:
    def fault(draw: st.DrawFn, made: Made) -> xr.Dataset:
        name = _some(draw, made)
        assume(unit is not None or name not in _LONG)
        ds = made.ds.assign({name: made.ds[name].copy()})
        ds[name].attrs.pop("units")
        if unit is not None:
            ds[name].attrs["units"] = unit
        return ds

    return fault


def _mislabelled(draw: st.DrawFn, made: Made) -> xr.Dataset:
    """Values in one unit under the name of another."""
    name, (scale, offset), canonical = draw(
        st.sampled_from(
            [
                (("surface", "2t"), (1.0, 273.15), "K"),
                (("atmos", "t"), (1.0, 273.15), "K"),
                (("surface", "msl"), (100.0, 0.0), "Pa"),
                (("atmos", "z"), (GRAVITY, 0.0), "m2 s-2"),
                (("atmos", "q"), (1e-3, 0.0), "kg kg-1"),
            ]
        )
    )
    source = made.names[name]
    own = CONVERSIONS[canonical][made.ds[source].attrs["units"]]
    ds = _changed(made.ds, source, lambda da: ((da.values * own[0] + own[1]) - offset) / scale)
    ds[source].attrs["units"] = canonical
    return ds


def _coordinate(axis: str, change: Callable[[np.ndarray], Any]) -> Fault:
    def fault(draw: st.DrawFn, made: Made) -> xr.Dataset:
        dim = made.dims[axis]
        values = np.array(change(made.ds[dim].values.copy()))
        return made.ds.assign_coords({dim: (dim, values, made.ds[dim].attrs)})

    return fault


def _at(index: int, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        if values.dtype == object and not isinstance(value, str):
            values[index] = values[0]
        else:
            values[index] = value
        return values

    return change


def _dtype(dtype: str) -> Fault:
    def fault(draw: st.DrawFn, made: Made) -> xr.Dataset:
        name = _some(draw, made)
        ds = made.ds
        return ds.assign({name: ds[name].astype(dtype).assign_attrs(ds[name].attrs)})

    return fault


def _twice(draw: st.DrawFn, made: Made) -> xr.Dataset:
    key = draw(st.sampled_from([k for k in made.names if k[0] != "static" and k[1] != "tp"]))
    variable, source = variables.BY_KEY[key], made.names[key]
    other = next(n for n in (variable.weatherbench2, *variable.aliases) if n not in made.ds)
    return made.ds.assign({other: made.ds[source] * 1.0}).assign(
        {other: lambda ds: ds[other].assign_attrs(made.ds[source].attrs)}
    )


def _rain(change: Callable[[xr.DataArray], Any], **attrs: str | None) -> Fault:
    def fault(draw: st.DrawFn, made: Made) -> xr.Dataset:
        name = made.names["surface", "tp"]
        ds = _changed(made.ds, name, change)
        for key, value in attrs.items():
            ds[name].attrs.pop(key, None)
            if value is not None:
                ds[name].attrs[key] = value
        return ds

    return fault


def _absurd_rain(da: xr.DataArray) -> np.ndarray:
    return np.where(da.values > 0, 1e5, da.values)


FAULTS: dict[str, Fault] = {
    "a missing value": _value(np.nan),
    "an infinite value": _value(np.inf),
    "a fill value": _value(9.96921e36),
    "another fill value": _value(-32767e4),
    "a frame of zeros, fill or one value": _frame(lambda frame, before: frame * 0 - 9999e3),
    "a repeated frame": _frame(lambda frame, before: before),
    "a constant frame": _frame(lambda frame, before: np.full_like(frame, frame.flat[0])),
    "no units": _units(None),
    "units that nobody knows": _units("bananas"),
    "units of something else": _units("kg m-3"),
    "values in other units": _mislabelled,
    "text": _dtype("str"),
    "objects": _dtype("object"),
    "a latitude that is missing": _coordinate("latitude", _at(2, np.nan)),
    "a latitude twice": _coordinate("latitude", lambda v: np.r_[v[:1], v[:-1]]),
    "a longitude twice": _coordinate("longitude", lambda v: np.r_[v[:1], v[:-1]]),
    "a latitude beyond the pole": _coordinate("latitude", lambda v: v + 120.0),
    "uneven latitudes": _coordinate("latitude", lambda v: np.r_[v[:2], v[3:], 2 * v[-1] - v[-2]]),
    "a level twice": _coordinate("level", lambda v: np.r_[v[:1], v[:-1]]),
    "times out of order": lambda draw, made: made.ds.isel(
        {made.dims["time"]: [1, 0, *range(2, made.ds.sizes[made.dims["time"]])]}
    ),
    "a time twice": _coordinate("time", lambda v: np.r_[v[:1], v[:-1]]),
    "times that are numbers": _coordinate("time", lambda v: np.arange(len(v)) * 1.0),
    "one time": lambda draw, made: made.ds.isel({made.dims["time"]: [0]}),
    "an axis has no values": lambda draw, made: made.ds.drop_vars(
        made.dims[draw(st.sampled_from(["time", "latitude"]))]
    ),
    "a variable twice": _twice,
    "ensemble members": lambda draw, made: made.ds.expand_dims(number=2),
    "rain in mm called metres": _rain(lambda da: da.values * 0 + 30.0, units="m"),
    "negative rain": _rain(lambda da: np.full_like(da.values, -0.02), units="m"),
    "rain beyond any record": _rain(_absurd_rain, units="m"),
    "totals over twelve hours": _rain(
        lambda da: da.values, cell_methods="time: sum (interval: 12 hours)"
    ),
    "a rate called metres": _rain(lambda da: da.values, standard_name="precipitation_flux"),
}


def verdict(ds: xr.Dataset) -> tuple[bool, str]:
    """Return whether ``check`` finds the data sound, and what it says.

    An exception that is not an error of this package propagates: it is a bug.
    """
    try:
        report = ds.aurora.check("tp", model="tiny")
    except errors.XauroraError as error:
        return False, error.code
    if report.ok:
        return True, ""
    assert all(p.fix for p in report.problems), f"no fix: {report}"
    return False, report.problems[0].code

"""The catalogue of bad inputs: what is wrong, how it is made, and which error it must end in.

Each case changes data that are right (:func:`sound`). ``verb`` says what is called with them;
``code`` is the code of the error, and ``words`` stand in its message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

import xaurora

Make = Callable[[xr.Dataset], xr.Dataset]
SURFACE, ATMOS = ("t2m", "u10", "v10", "msl"), ("z", "u", "v", "t", "q")
H6 = np.timedelta64(6, "h")


@dataclass(frozen=True)
class Case:
    """One bad input.

    Parameters
    ----------
    name : str
        What is wrong.
    make : callable
        Makes the bad data from sound ones.
    code : str
        Code of the error.
    words : str
        In its message.
    verb : {"check", "finetune", "predict", "evaluate"}
    options : dict
        Arguments of the verb.
    answers : dict
        What the user knows: gaps in the fix, and what is typed there.
    after : tuple of str
        Codes of problems that are left after the fix. By default none.
    """

    name: str
    make: Make
    code: str
    words: str = ""
    verb: str = "check"
    options: dict[str, Any] | None = None
    answers: dict[str, str] | None = None
    after: tuple[str, ...] = ()


def sound() -> xr.Dataset:
    """Return data with which everything works."""
    return xaurora.synthetic(shape=(8, 16), times=14)


def _same(ds: xr.Dataset) -> xr.Dataset:
    return ds


def _with_attr(name: str, key: str, value: Any) -> Make:
    def make(ds: xr.Dataset) -> xr.Dataset:
        ds[name].attrs[key] = value
        return ds

    return make


def _packed(name: str, scale: float = 0.01) -> Make:
    """Return data as a file holds them, before they are decoded."""

    def make(ds: xr.Dataset) -> xr.Dataset:
        attrs = {**ds[name].attrs, "scale_factor": scale, "add_offset": 1.0}
        return ds.assign({name: ((ds[name] - 1.0) / scale).assign_attrs(attrs)})

    return make


def _without_attr(name: str, key: str) -> Make:
    def make(ds: xr.Dataset) -> xr.Dataset:
        del ds[name].attrs[key]
        return ds

    return make


def _with_value(name: str, value: float, *, frame: int = 5, points: int = 3) -> Make:
    def make(ds: xr.Dataset) -> xr.Dataset:
        ds[name].values[frame, ..., 2, :points] = value
        return ds

    return make


def _with_frame(name: str, frame: int, value: Callable[[np.ndarray], Any]) -> Make:
    def make(ds: xr.Dataset) -> xr.Dataset:
        ds[name].values[frame] = value(ds[name].values)
        return ds

    return make


def _as(name: str, dtype: str) -> Make:
    def make(ds: xr.Dataset) -> xr.Dataset:
        return ds.assign({name: ds[name].astype(dtype).assign_attrs(ds[name].attrs)})

    return make


def _scaled(name: str, factor: float, offset: float = 0.0) -> Make:
    def make(ds: xr.Dataset) -> xr.Dataset:
        return ds.assign({name: (ds[name] * factor + offset).assign_attrs(ds[name].attrs)})

    return make


def _coordinate(name: str, change: Callable[[np.ndarray], Any], **attrs: str) -> Make:
    def make(ds: xr.Dataset) -> xr.Dataset:
        found = {**ds[name].attrs, **attrs}
        return ds.assign_coords({name: (name, change(ds[name].values.copy()), found)})

    return make


def _at(index: int, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return change


def cases() -> list[Case]:
    """Return all cases."""
    found = [*_units(), *_values(), *_dtypes(), *_coordinates(), *_times(), *_levels(), *_rain()]
    found += [*_variables(), *_options(), *_forecasts()]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), sorted({n for n in names if names.count(n) > 1})
    return found


def _units() -> Iterator[Case]:
    for name in (*SURFACE, *ATMOS, "tp"):
        yield Case(f"{name} has no units", _without_attr(name, "units"), "units")
        yield Case(
            f"{name} is in bananas", _with_attr(name, "units", "bananas"), "units", "bananas"
        )
        other = "K" if name not in ("t2m", "t") else "Pa"
        yield Case(f"{name} is in {other}", _with_attr(name, "units", other), "units", f"'{other}'")
        yield Case(f"{name} was not decoded", _packed(name), "units", "is packed")
    for name, factor, offset, unit in (
        ("t2m", 1.0, -273.15, "degC"),
        ("t", 1.0, -273.15, "degC"),
        ("msl", 0.01, 0.0, "hPa"),
        ("z", 1 / 9.80665, 0.0, "m"),
        ("q", 1e3, 0.0, "g kg-1"),
        ("t2m", 1.8, -459.67, "degF"),
        ("msl", 0.001, 0.0, "kPa"),
    ):
        what = f"{name} is {factor:g} times what its units say, and {offset:+g}"
        make = _scaled(name, factor, offset)
        yield Case(what, make, "units", f"'{name}'", answers={"'...'": f"'{unit}'"})


def _values() -> Iterator[Case]:
    for name in (*SURFACE, *ATMOS):
        yield Case(f"{name} has NaN", _with_value(name, np.nan), "missing_values")
        yield Case(f"{name} has infinity", _with_value(name, np.inf), "missing_values")
        for value in (-9999.0, 9.969209968386869e36, -32767.0):
            words = f"'{name}'"
            yield Case(
                f"{name} has {value:.5g}",
                _with_value(name, value),
                "implausible_values",
                words,
                after=("missing_values",),  # masked, which its own fix then fills
            )
        yield Case(
            f"a frame of {name} is zero",
            _with_frame(name, 7, lambda v: 0.0),
            "implausible_values",
            f"'{name}'",
        )
        yield Case(
            f"a frame of {name} is repeated",
            _with_frame(name, 7, lambda v: v[6]),
            "implausible_values",
            "is the same at",
        )
    for name in ("lsm", "slt", "geopotential_at_surface"):

        def hole(ds: xr.Dataset, name: str = name) -> xr.Dataset:
            if name not in ds:
                name = next(n for n in ds.data_vars if "time" not in ds[n].dims)
            values = ds[name].values.copy()
            values[0, 0] = np.nan
            return ds.assign({name: (ds[name].dims, values, ds[name].attrs)})

        yield Case(f"{name} has NaN", hole, "missing_values")


def _dtypes() -> Iterator[Case]:
    for name in (*SURFACE, *ATMOS, "tp"):
        yield Case(f"{name} is text", _as(name, "str"), "units", "not numeric")
        yield Case(f"{name} is an object", _as(name, "object"), "units", "not numeric")


def _coordinates() -> Iterator[Case]:
    for name in ("latitude", "longitude"):
        even = "np.linspace(78.75, -78.75, 8)" if name == "latitude" else "np.arange(16) * 22.5"
        yield Case(
            f"no {name}",
            lambda ds, n=name: ds.drop_vars(n),
            "coordinate",
            name,
            answers={"=...": f"={even}"},
        )
        yield Case(
            f"{name} is called foo",
            lambda ds, n=name: ds.rename({n: "foo"}).assign_coords(foo=ds[n].values),
            "coordinate",
            name,
            answers={"name_in_your_data": "foo"},
        )
        yield Case(f"{name} has NaN", _coordinate(name, _at(2, np.nan)), "coordinate", after=_FEWER)
        yield Case(
            f"{name} is doubled",
            _coordinate(name, lambda v: np.r_[v[:1], v[:-1]]),
            "coordinate",
            after=_FEWER,
        )
        yield Case(
            f"{name} is uneven",
            _coordinate(name, lambda v: v * np.abs(v) / (90 if v.min() < 0 else 360)),
            "grid",
            answers={"np.arange(...)": even},
            after=("missing_values",),  # beyond the last values
        )
        yield Case(f"a single {name}", lambda ds, n=name: ds.isel({n: 3}), "grid", "single value")
    yield Case(
        "latitude beyond the pole",
        _coordinate("latitude", lambda v: v * 1.2),
        "coordinate",
        after=_FEWER,
    )
    yield Case(
        "longitude around twice",
        _coordinate("longitude", lambda v: v * 2),
        "coordinate",
        after=_FEWER,
    )
    yield Case(
        "a curvilinear grid",
        lambda ds: (
            ds.drop_vars(["latitude", "longitude"])
            .rename(latitude="y", longitude="x")
            .assign_coords(
                latitude=(("y", "x"), np.add.outer(np.linspace(60, 40, 8), np.zeros(16))),
                longitude=(("y", "x"), np.add.outer(np.zeros(8), np.linspace(0, 30, 16))),
            )
        ),
        "grid",
        "2-dimensional",
    )
    yield Case(
        "members",
        lambda ds: ds.expand_dims(number=3).copy(),
        "ensemble",
        "3 ensemble members",
    )


_FEWER = ("grid", "region", "implausible_values")
"""What is left of the test's few rows and columns is uneven, too small or seems shifted."""


def _times() -> Iterator[Case]:
    yield Case(
        "a time twice",
        lambda ds: ds.isel(time=[0, 0, *range(1, 14)]),
        "time",
        "more than once",
    )
    yield Case(
        "times out of order",
        lambda ds: ds.isel(time=[1, 0, *range(2, 14)]),
        "time",
        "not in order",
    )
    yield Case("NaT", _coordinate("time", _at(3, np.datetime64("NaT"))), "time", "NaT")
    yield Case("one time", lambda ds: ds.isel(time=[0]), "time")
    yield Case("no time axis", lambda ds: ds.isel(time=0, drop=True), "time")
    yield Case(
        "twelve hours apart",
        lambda ds: ds.isel(time=slice(None, None, 2)),
        "time",
        "no two are six hours apart",
    )
    yield Case(
        "times that are numbers",
        lambda ds: ds.assign_coords(time=("time", np.arange(14.0) * 6)),
        "time",
        "not times",
        answers={"1900": "2020"},
    )
    yield Case(
        "times that were not decoded",
        lambda ds: ds.assign_coords(
            time=("time", np.arange(14) * 6, {"units": "hours since 2020-01-01"})
        ),
        "time",
        "not times",
    )
    yield Case(
        "times that are text",
        lambda ds: ds.assign_coords(time=("time", ds["time"].values.astype(str))),
        "time",
    )
    yield Case(
        "another calendar",
        lambda ds: ds.convert_calendar("noleap", dim="time", use_cftime=True),
        "time",
        "calendar",
    )
    yield Case(
        "times without values",
        lambda ds: ds.drop_vars("time"),
        "time",
        answers={"...": "'2020-01-01', periods=14, freq='6h'"},
    )


def _levels() -> Iterator[Case]:
    yield Case(
        "a level twice",
        lambda ds: ds.isel(level=[0, 0, *range(1, ds.sizes["level"])]),
        "level",
        "more than once",
    )
    yield Case("a single level", lambda ds: ds.isel(level=1), "level", "single level")
    yield Case("a grid too small for the model", _same, "region", "", options={"model": "small"})
    yield Case(
        "no levels",
        lambda ds: ds.drop_vars("level"),
        "level",
        options={"model": "tiny-pretrained"},
        answers={"[...]": "[500.0, 700.0, 850.0]"},
    )


def _variables() -> Iterator[Case]:
    for name in (*SURFACE, *ATMOS):
        yield Case(
            f"no {name}",
            lambda ds, n=name: ds.drop_vars(n),
            "missing_variable",
            "",
            options={"model": "tiny-pretrained"},
        )
        yield Case(
            f"{name} twice",
            lambda ds, n=name: ds.assign({_OTHER[n]: ds[n]}),
            "ambiguous_variable",
            "both recognised",
        )


_OTHER = {
    "t2m": "2m_temperature",
    "u10": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind",
    "msl": "mean_sea_level_pressure",
    "z": "geopotential",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "t": "temperature",
    "q": "specific_humidity",
}


def _rain() -> Iterator[Case]:
    target = {"target": "tp"}
    yield Case(
        "the period of rain is not known",
        _without_attr("tp", "cell_methods"),
        "accumulation",
        "not known",
        options=target,
    )
    for hours in (4, 5, 12, 24):
        method = f"time: sum (interval: {hours} hours)"
        yield Case(
            f"totals over {hours} hours",
            _with_attr("tp", "cell_methods", method),
            "accumulation",
            f"{hours}-hour totals",
            options=target,
        )
    yield Case(
        "one-hour totals every six hours",
        _with_attr("tp", "cell_methods", "time: sum (interval: 1 hour)"),
        "accumulation",
        "",
        options=target,
    )
    yield Case(
        "millimetres called metres",
        _scaled("tp", 1e3),
        "units",
        "probably in mm",
        options=target,
    )
    yield Case(
        "metres called millimetres",
        lambda ds: _with_attr("tp", "units", "mm")(ds),
        "units",
        "",
        options=target,
        answers={"'...'": "'m'"},
    )
    yield Case(
        "rain that was not decoded",
        _packed("tp", 1e-6),
        "units",
        "is packed",
        options=target,
    )
    yield Case(
        "negative rain everywhere",
        _scaled("tp", 1.0, -0.01),
        "implausible_values",
        "in 6 h",
        options=target,
    )
    yield Case(
        "a rate called an amount",
        _with_attr("tp", "standard_name", "precipitation_flux"),
        "units",
        "called a rate",
        options=target,
        after=("units",),  # one of the two fixes is for rates, which these are not
    )
    for name in ("no_such", "z", "lsm", "slt", "u"):
        yield Case(
            f"the target {name}",
            _same,
            "target",
            "",
            options={"target": name},
        )
    for bad in ([], ["tp", "tp"], 5, ["tp", 3], {"tp": 1}):
        yield Case(f"target={bad!r}", _same, "target", "", options={"target": bad})
    yield Case("rain is dry everywhere", _scaled("tp", 0.0), "split", "dry everywhere", "finetune")
    yield Case(
        "rain has no value",
        lambda ds: ds.assign(tp=(ds["tp"] * np.nan).assign_attrs(ds["tp"].attrs)),
        "split",
        "no valid value",
        "finetune",
    )


_AFTER = {
    "model": ("region", "weights_unavailable"),  # 'small' needs a larger grid and its weights
    "weights": ("region", "weights_unavailable"),
    "quantiles": ("option",),  # the model has no head
    "thresholds_mm": ("option",),
    "members": ("option",),
    "regions": ("region",),  # the Alps are between the points of this grid
}


def _options() -> Iterator[Case]:
    bad: dict[str, tuple[Any, ...]] = {
        "steps": (0, -1, 1.5, "ten"),
        "epochs": (0, "two"),
        "batch_size": (0, 2.5),
        "learning_rate": (0.0, -1e-3, "fast"),
        "strategy": ("cold", 3),
        "head": ("warm", 3),
        "precision": ("fp4",),
        "rollout_steps": (0, "one"),
        "validations": (0, -1),
        "gradient_accumulation": (0,),
        "ema": (1.5, -0.1),
        "clip": (0.0, "no"),
        "seed": ("a",),
        "first_look": (0, "all of it"),
        "train": ("soon", ("2020", "2021", "2022")),
        "validation": ("soon",),
        "region": ("atlantis", (10, 5, 0, 10), (1, 2, 3)),
        "checkpoint_every": (0,),
        "devices": (0, 99),
        "workers": (-1,),
        "base_loss": (-1.0,),
        "model": ("huge", 7),
        "weights": ("no_such_file.ckpt",),
        "colour": ("red",),
    }
    for name, values in bad.items():
        for value in values:
            yield Case(
                f"finetune({name}={value!r})",
                _same,
                "",
                "",
                "finetune",
                {name: value},
                after=_AFTER.get(name, ()),
            )
    predict: dict[str, tuple[Any, ...]] = {
        "lead": ("5h", "soon", [], -6, "0h"),
        "time": ("1999-01-01", [], "soon"),
        "variables": ([], ["no_such"]),
        "quantiles": ([0.0], [1.5], "a"),
        "thresholds_mm": ([-1.0],),
        "members": (1, -3, 2.5),
        "halo": (-1,),
        "batch_size": (0,),
        "devices": (0, 99),
        "region": ("atlantis",),
        "model": ("huge", 7, "no/such/folder"),
        "colour": ("red",),
    }
    for name, values in predict.items():
        for value in values:
            yield Case(
                f"predict({name}={value!r})",
                _same,
                "",
                "",
                "predict",
                {name: value},
                after=_AFTER.get(name, ()),
            )


def _forecasts() -> Iterator[Case]:
    def late(fc: xr.Dataset) -> xr.Dataset:
        return fc.assign_coords(init_time=fc["init_time"] + np.timedelta64(900, "D"))

    def cut(fc: xr.Dataset) -> xr.Dataset:
        return fc.assign_coords(latitude=fc["latitude"] + 0.4)

    changes: dict[str, tuple[Make, str]] = {
        "no lead times": (lambda fc: fc.isel(lead_time=0, drop=True), "kind"),
        "no init times": (lambda fc: fc.isel(init_time=slice(0, 0)), "kind"),
        "init times of another year": (late, "truth"),
        "another grid": (cut, "truth"),
        "doubled leads": (lambda fc: fc.isel(lead_time=[0, 0]), "lead_time"),
        "doubled init times": (lambda fc: fc.isel(init_time=[0, 0, 1]), "init_time"),
        "lead times without units": (
            lambda fc: fc.assign_coords(lead_time=[6.0, 12.0]),
            "lead_time",
        ),
        "no shared variable": (
            lambda fc: fc[["t2m"]].rename(t2m="colour").drop_attrs(deep=True),
            "truth",
        ),
        "negative rain": (
            lambda fc: fc.assign(tp=(fc["tp"] - 1).assign_attrs(fc["tp"].attrs)),
            "units",
        ),
        "rain in millimetres": (
            lambda fc: fc.assign(tp=(fc["tp"] * 0 + 9).assign_attrs(fc["tp"].attrs)),
            "units",
        ),
        "rain without a period": (
            lambda fc: fc.assign(tp=fc["tp"].drop_attrs().assign_attrs(units="m")),
            "accumulation",
        ),
        "temperature in degrees Celsius": (
            lambda fc: fc.assign(t2m=(fc["t2m"] - 273.15).assign_attrs(fc["t2m"].attrs)),
            "units",
        ),
    }
    for name, (make, code) in changes.items():
        again = {"model=...": "model='tiny-pretrained'"}
        yield Case(f"a forecast with {name}", make, code, "", "evaluate", answers=again)
    bad: dict[str, tuple[Any, ...]] = {
        "metrics": ("rsme", ["crpz"]),
        "regions": ("atlantis", {"a": (1, 2)}),
        "thresholds_mm": ([-1],),
        "by": ("moon",),
        "lead_bins": ({"a": 3},),
        "convention": ("mine",),
        "accumulate": ("5h", "soon"),
        "regrid": ("nearest",),
        "climatology": (3,),
    }
    for option, values in bad.items():
        for value in values:
            yield Case(
                f"evaluate({option}={value!r})",
                _same,
                "",
                "",
                "evaluate",
                {option: value},
                after=_AFTER.get(option, ()),
            )

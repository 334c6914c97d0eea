"""Output of a forecast in the user's own form: names, units, order of the grid, coordinates."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xaurora import distributions
from xaurora.fields import conventions, periods
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field
from xaurora.fields.outputs import output_field
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.forecasting.request import Request, target_field
from xaurora.model.heads import DistributionHead

logger = logging.getLogger("xaurora")


_NOT_SIGNED = (  # do not affect the values
    "xaurora_versions",
    "xaurora_base_note",
    "xaurora_differences",
    "xaurora_trained",
)


@dataclass(frozen=True)
class Output:
    """One variable of a forecast at one lead: values ``(init_time, *dims)``, and attributes."""

    name: str
    dims: tuple[str, ...]
    values: np.ndarray
    attrs: dict[str, Any]


class Writer:
    """Converts canonical arrays to the user's own form."""

    def __init__(
        self,
        fields: Fields,
        cut: Fields,
        part: tuple[slice | np.ndarray, slice | np.ndarray],
        request: Request,
        heads: Mapping[str, DistributionHead],
        infos: dict[str, Any],
        times: list[np.datetime64],
        attrs: dict[str, Any],
    ) -> None:
        self.fields, self.cut, self.request, self.attrs = fields, cut, request, attrs
        self.times = np.array(times, dtype="datetime64[ns]")
        self.heads = heads
        self.infos = infos
        layout = cut.layout
        self.grid = layout.grid.take(*part)
        self.rows, self.columns = (
            np.argsort(self.grid.rows, kind="stable"),
            np.argsort(self.grid.columns, kind="stable"),
        )
        self.leads = np.array(request.hours) * np.timedelta64(1, "h").astype("timedelta64[ns]")
        self.own_members = request.members if request.own_members else 0

    @property
    def outer(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Sizes and names of the dimensions that come before those of an :class:`Output`."""
        shape, dims = (len(self.times), len(self.leads)), ("init_time", "lead_time")
        if not self.own_members:
            return shape, dims
        return (*shape, self.own_members), (*dims, "number")

    def signature(self, coords: xr.Dataset) -> str:
        """Return a hash of everything that a stored forecast depends on.

        This covers weights, input, request, grid, names and units.
        """
        layout = self.fields.layout
        form = [
            [key, item.source, item.scale, item.offset, str(item.dtype)]
            for key, item in layout.fields.items()
        ]
        attrs = {k: v for k, v in self.attrs.items() if k not in _NOT_SIGNED}
        parts = [
            attrs,
            self.request.__dict__,
            [str(t) for t in self.times],
            coords["latitude"].values.tolist(),
            coords["longitude"].values.tolist(),
            self.cut.levels,
            form,
        ]
        return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()

    def coords(self) -> dict[str, Any]:
        """Return the coordinates of the forecast."""
        source, axes = self.cut.layout.source, self.cut.layout.axes
        lat = source[axes["latitude"].name].isel({axes["latitude"].dim: np.sort(self.grid.rows)})
        lon = source[axes["longitude"].name].isel(
            {axes["longitude"].dim: np.sort(self.grid.columns)}
        )
        out: dict[str, Any] = {
            "init_time": (
                "init_time",
                self.times,
                {"standard_name": "forecast_reference_time", "long_name": "initialisation time"},
            ),
            "lead_time": (
                "lead_time",
                self.leads,
                {"standard_name": "forecast_period", "long_name": "lead time"},
            ),
            "valid_time": (
                ("init_time", "lead_time"),
                self.times[:, None] + self.leads[None],
                {"standard_name": "time", "long_name": "valid time"},
            ),
            "latitude": (
                "latitude",
                lat.values,
                {**lat.attrs, "units": "degrees_north", "standard_name": "latitude"},
            ),
            "longitude": (
                "longitude",
                lon.values,
                {**lon.attrs, "units": "degrees_east", "standard_name": "longitude"},
            ),
        }
        if self.request.atmos:
            out["level"] = (
                "level",
                np.array(self.cut.levels),
                {"units": "hPa", "standard_name": "air_pressure", "positive": "down"},
            )
        if self.request.quantiles:
            out["quantile"] = ("quantile", np.array(self.request.quantiles))
        if self.request.members:
            out["number"] = (
                "number",
                np.arange(self.request.members),
                {"standard_name": "realization"},
            )
        if self.request.thresholds:
            out["threshold"] = ("threshold", np.array(self.request.thresholds), {"units": "mm"})
        return out

    def size(self) -> int:
        """Return the bytes of the whole forecast in memory."""
        request, form = self.request, self.fields.layout.fields
        single = sum(form["surface", n].dtype.itemsize for n in request.surface)
        single += sum(self._output_field(n).dtype.itemsize for n in request.outputs)
        column = sum(form["atmos", n].dtype.itemsize for n in request.atmos)
        fields = single + column * len(self.cut.levels)
        for name in request.targets:
            item, head = target_field(self.fields, name, self.infos[name]), self.heads[name]
            rain, is_single = bool(self.infos[name]["rain"]), head.options.single_value
            of_user = 1 + request.members + len(request.quantiles)
            others = (0 if is_single else len(head.law.parameters)) + rain * len(request.thresholds)
            fields += of_user * item.dtype.itemsize + 4 * others
        points = int(np.prod(self.grid.shape))
        return fields * points * len(self.times) * len(self.leads) * max(self.own_members, 1)

    def _output_field(self, name: str) -> Field:
        return output_field(self.fields, name, self.request.period)

    def outputs(self, block: dict[str, np.ndarray]) -> Iterator[Output]:
        """Yield the variables at one lead of some init times, in the user's form.

        Parameters
        ----------
        block : dict of ndarray, ``(init_time, ..., latitude, longitude)``
            Canonical arrays by key.
        """
        here = ("latitude", "longitude")

        def turned(values: np.ndarray) -> np.ndarray:
            return values[..., self.rows, :][..., self.columns]

        for kind, names, dims in (
            ("surface", self.request.surface, here),
            ("atmos", self.request.atmos, ("level", *here)),
        ):
            for name in names:
                item = self.fields.layout.fields[kind, name]
                values = conventions.to_user_values(turned(block[f"{kind}/{name}"]), item)
                yield Output(item.source, dims, values, _clean(item.attrs))
        for name in self.request.outputs:
            item = self._output_field(name)
            values = conventions.to_user_values(turned(block[f"output/{name}"]), item)
            yield Output(item.source, here, values, _clean(item.attrs))
        for name in self.request.targets:
            yield from self._target(name, block, turned)

    def _target(
        self, target: str, block: dict[str, np.ndarray], turned: Callable[[np.ndarray], np.ndarray]
    ) -> Iterator[Output]:
        item, head = target_field(self.fields, target, self.infos[target]), self.heads[target]
        name, here = item.source, ("latitude", "longitude")
        rain = bool(self.infos[target]["rain"])
        law = distributions.to_attrs(head.law)
        methods = {"cell_methods": periods.cell_methods(TIMESTEP_HOURS)} if rain else {}
        single = head.options.single_value
        when = "total over the 6 hours ending at valid_time; " if rain else ""
        is_mean = "single value, close to the median" if single else "mean of the distribution"
        own = {**_clean(item.attrs), **methods}
        mean = conventions.to_user_values(turned(block[f"{target}/mean"]), item)
        if self.request.members:
            members = conventions.to_user_values(turned(block[f"{target}/members"]), item)
            kept = {
                **own,
                **law,
                "comment": f"{when}members with the dependence of past fields (Schaake shuffle)",
            }
            yield Output(name, ("number", *here), members, kept)
            yield Output(f"{name}_mean", here, mean, {**own, "comment": f"{when}{is_mean}"})
        else:
            yield Output(name, here, mean, {**own, **law, "comment": f"{when}{is_mean}"})
        for parameter in () if single else head.law.parameters:
            described = {
                "long_name": _PARAMETERS.get((head.law.name, parameter), parameter),
                "parameter_of": name,
                **law,
            }
            units = (
                self.infos[target]["units"]
                if (head.law.name, parameter) in _IN_UNITS
                or (head.law.name == "quantile" and parameter != "p")
                else "1"
            )
            yield Output(
                f"{name}_{parameter}",
                here,
                turned(block[f"{target}/{parameter}"]),
                {"units": units, **described},
            )
        if self.request.quantiles:
            stacked = np.stack(
                [turned(block[f"{target}/quantile/{q}"]) for q in self.request.quantiles], axis=1
            )
            yield Output(
                f"{name}_quantile",
                ("quantile", *here),
                conventions.to_user_values(stacked, item),
                {**_clean(item.attrs), **methods},
            )
        if self.request.thresholds and rain:
            stacked = np.stack(
                [turned(block[f"{target}/probability/{t}"]) for t in self.request.thresholds],
                axis=1,
            )
            yield Output(
                f"{name}_probability",
                ("threshold", *here),
                stacked,
                {"units": "1", "long_name": "probability of exceeding the threshold in 6 hours"},
            )


_PARAMETERS = {
    ("censored_normal", "mu"): "location of z = log1p(tp / epsilon)",
    ("censored_normal", "sigma"): "scale of z = log1p(tp / epsilon)",
    ("hurdle_lognormal", "p"): "probability of precipitation",
    ("hurdle_lognormal", "mu"): "mean of the logarithm of the amount in mm, given precipitation",
    (
        "hurdle_lognormal",
        "sigma",
    ): "standard deviation of the logarithm of the amount, given precipitation",
    ("hurdle_gamma", "p"): "probability of precipitation",
    ("quantile", "p"): "probability of precipitation",
    ("hurdle_gamma", "shape"): "shape of the gamma amount, given precipitation",
    ("hurdle_gamma", "amount"): "mean amount, given precipitation",
    ("csgd", "shape"): "shape of the gamma distribution",
    ("csgd", "scale"): "scale of the gamma distribution",
    ("csgd", "shift"): "shift of the gamma distribution towards zero",
    ("normal", "mu"): "location",
    ("normal", "sigma"): "standard deviation",
    ("bounded_normal", "mu"): "location before censoring",
    ("bounded_normal", "sigma"): "standard deviation before censoring",
}
_IN_UNITS = {
    ("hurdle_gamma", "amount"),
    ("csgd", "scale"),
    ("csgd", "shift"),
    *((family, name) for family in ("normal", "bounded_normal") for name in ("mu", "sigma")),
}  # parameters in canonical units, whatever the user's own units are


def _clean(attrs: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that still apply to a forecast, without those of GRIB messages."""
    return {k: v for k, v in attrs.items() if not k.startswith("GRIB_")}

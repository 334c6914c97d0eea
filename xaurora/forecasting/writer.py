"""A forecast as a Dataset in the user's own form, and as a Zarr store that grows init time by init
time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xaurora import distributions
from xaurora.fields import conventions, periods
from xaurora.fields.conventions import Fields
from xaurora.fields.recognition import Field
from xaurora.fields.variables import BY_KEY, TIMESTEP_HOURS, Variable, is_rate
from xaurora.utils import storage
from xaurora.utils import zarr_stores as stores
from xaurora.utils.progress import watched

logger = logging.getLogger("xaurora")


@dataclass(frozen=True)
class Request:
    """What to put out for every init time."""

    steps: list[int]
    surface: list[str]
    atmos: list[str]
    targets: list[str]
    quantiles: tuple[float, ...]
    thresholds: tuple[float, ...]
    members: int = 0


def target_field(fields: Fields, name: str, learnt: dict[str, Any]) -> Field:
    """The user's own form of a target, or the one it was learnt in where the data have none.

    Parameters
    ----------
    fields : Fields
    name : str
        Canonical name.
    learnt : dict
        The target's entry in the tuned model's config.
    """
    known = BY_KEY.get(("surface", name))
    variable = known or Variable(name, "surface", learnt["units"], learnt["long_name"], name)
    item = fields.layout.fields.get(("surface", name))
    if item is not None and not is_rate(str(item.attrs.get("units", ""))):
        return item
    # A mean rate in the data is an amount in a forecast: what fell in six hours.
    source = item.source if item is not None else name if known else str(learnt["source"])
    attrs = {"units": variable.units, "long_name": variable.long_name}
    return Field(variable, source, 1.0, 0.0, np.dtype("float32"), (), attrs)


class Writer:
    """Turns canonical arrays into the user's own form."""

    def __init__(
        self,
        fields: Fields,
        cut: Fields,
        part: tuple[slice | np.ndarray, slice | np.ndarray],
        request: Request,
        heads: Any,
        learnt: dict[str, Any],
        times: list[np.datetime64],
        attrs: dict[str, Any],
    ) -> None:
        self.fields, self.cut, self.request, self.attrs = fields, cut, request, attrs
        self.times = np.array(times, dtype="datetime64[ns]")
        self.heads, self.learnt = heads, learnt
        layout = cut.layout
        self.grid = layout.grid.take(*part)
        self.rows, self.columns = (
            np.argsort(self.grid.rows, kind="stable"),
            np.argsort(self.grid.columns, kind="stable"),
        )
        self.leads = np.array(request.steps) * np.timedelta64(TIMESTEP_HOURS, "h").astype(
            "timedelta64[ns]"
        )

    def signature(self, coords: xr.Dataset) -> str:
        """A hash of all that a stored forecast depends on: weights, input, request, grid, names,
        units.
        """
        layout = self.fields.layout
        form = [
            [key, item.source, item.scale, item.offset, str(item.dtype)]
            for key, item in layout.fields.items()
        ]
        attrs = {k: v for k, v in self.attrs.items() if k != "xaurora_versions"}
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

    def variables(
        self, block: dict[str, np.ndarray]
    ) -> dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]:
        """One init time's arrays by the user's names, dims ``(lead_time, ..., latitude,
        longitude)``.
        """
        out: dict[str, Any] = {}
        here = ("latitude", "longitude")

        def turned(values: np.ndarray) -> np.ndarray:
            return values[..., self.rows, :][..., self.columns]

        for name in self.request.surface:
            item = self.fields.layout.fields["surface", name]
            out[item.source] = (
                ("lead_time", *here),
                conventions.to_user_values(turned(block[f"surface/{name}"]), item),
                _clean(item.attrs),
            )
        for name in self.request.atmos:
            item = self.fields.layout.fields["atmos", name]
            out[item.source] = (
                ("lead_time", "level", *here),
                conventions.to_user_values(turned(block[f"atmos/{name}"]), item),
                _clean(item.attrs),
            )
        for name in self.request.targets:
            out |= self._target(name, block, turned)
        return out

    def _target(
        self, target: str, block: dict[str, np.ndarray], turned: Callable[[np.ndarray], np.ndarray]
    ) -> dict[str, Any]:
        item, head = target_field(self.fields, target, self.learnt[target]), self.heads[target]
        name, here = item.source, ("latitude", "longitude")
        rain = bool(self.learnt[target]["rain"])
        law = distributions.to_attrs(head.law)
        methods = {"cell_methods": periods.cell_methods(TIMESTEP_HOURS)} if rain else {}
        single = head.options.family == "deterministic"
        when = "total over the 6 hours that end at valid_time; " if rain else ""
        is_mean = (
            "the one value of a deterministic head, near the median"
            if single
            else "the mean of the distribution"
        )
        own = {**_clean(item.attrs), **methods}
        out: dict[str, Any] = {}
        mean = conventions.to_user_values(turned(block[f"{target}/mean"]), item)
        if self.request.members:
            members = conventions.to_user_values(turned(block[f"{target}/members"]), item)
            kept = {
                **own,
                **law,
                "comment": f"{when}members with the dependence of past fields (Schaake shuffle)",
            }
            out[name] = (("lead_time", "number", *here), members, kept)
            out[f"{name}_mean"] = (
                ("lead_time", *here),
                mean,
                {**own, "comment": f"{when}{is_mean}"},
            )
        else:
            out[name] = (("lead_time", *here), mean, {**own, **law, "comment": f"{when}{is_mean}"})
        for parameter in () if single else head.law.parameters:
            described = {
                "long_name": _PARAMETERS.get((head.law.name, parameter), parameter),
                "parameter_of": name,
                **law,
            }
            units = (
                self.learnt[target]["units"]
                if (head.law.name, parameter) in _IN_UNITS
                or (head.law.name == "quantile" and parameter != "p")
                else "1"
            )
            out[f"{name}_{parameter}"] = (
                ("lead_time", *here),
                turned(block[f"{target}/{parameter}"]),
                {"units": units, **described},
            )
        if self.request.quantiles:
            stacked = np.stack(
                [turned(block[f"{target}/quantile/{q}"]) for q in self.request.quantiles], axis=1
            )
            out[f"{name}_quantile"] = (
                ("lead_time", "quantile", *here),
                conventions.to_user_values(stacked, item),
                {**_clean(item.attrs), **methods},
            )
        if self.request.thresholds and rain:
            stacked = np.stack(
                [turned(block[f"{target}/probability/{t}"]) for t in self.request.thresholds],
                axis=1,
            )
            out[f"{name}_probability"] = (
                ("lead_time", "threshold", *here),
                stacked,
                {"units": "1", "long_name": "probability of more than the threshold in 6 hours"},
            )
        return out

    def dataset(self, blocks: list[dict[str, np.ndarray]]) -> xr.Dataset:
        """All init times."""
        parts = [self.variables(block) for block in blocks]
        data = {
            name: (("init_time", *dims), np.stack([p[name][1] for p in parts]), attrs)
            for name, (dims, _, attrs) in parts[0].items()
        }
        return xr.Dataset(data, self.coords(), self.attrs)


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
}  # in canonical units, whatever the user's own


def _clean(attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes that still hold for a forecast: those of GRIB messages do not."""
    return {k: v for k, v in attrs.items() if not k.startswith("GRIB_")}


# --- a store, one init time after another ---------------------------------------------------------

_REQUEST = "xaurora_request"


def to_store(
    path: Path,
    writer: Writer,
    run: Callable[[np.ndarray], Iterable[dict[str, np.ndarray]]],
    progress: bool,
    together: int = 1,
) -> xr.Dataset:
    """Write init time after init time, each while the next one is computed; what an interrupted run
    has finished is not run again.

    Parameters
    ----------
    path : path
    writer : Writer
    run : callable
        Init times → their canonical arrays, one after another.
    progress : bool
    together : int
        Init times that are written at once.
    """
    coords = xr.Dataset(coords=writer.coords())
    signature = writer.signature(coords)
    done = 0
    if path.exists():
        done = stores.done(
            path,
            _REQUEST,
            signature,
            what="forecast store",
            argument="store=",
            differs="other weights, init times, leads, variables or region",
        )
        if done:
            logger.info("%s: %d of %d init times are there already.", path, done, len(writer.times))

    def write(first: int, blocks: list[dict[str, np.ndarray]]) -> None:
        parts = [writer.variables(block) for block in blocks]
        with storage.named_failures(path):
            if not path.exists():
                _create(path, parts[0], coords, {**writer.attrs, _REQUEST: signature})
            fields = xr.Dataset(
                {
                    name: (("init_time", *dims), np.stack([p[name][1] for p in parts]))
                    for name, (dims, _, _) in parts[0].items()
                }
            )
            fields.to_zarr(
                path, region={"init_time": slice(first, first + len(blocks))}, consolidated=False
            )
            stores.mark(path, first + len(blocks))

    left = writer.times[done:]
    with ThreadPoolExecutor(1, thread_name_prefix="xaurora-write") as pool:
        writing: Future[None] | None = None
        waiting: list[dict[str, np.ndarray]] = []
        forecasts = (
            watched(run(left), "predict", shown=progress, total=len(left)) if len(left) else ()
        )
        for i, block in enumerate(forecasts, 1):
            waiting.append(block)
            if len(waiting) == together or i == len(left):
                if writing is not None:
                    writing.result()
                writing = pool.submit(write, done + i - len(waiting), waiting)
                waiting = []
        if writing is not None:
            writing.result()
    return xr.open_dataset(
        path, engine="zarr", chunks={}, consolidated=False, decode_timedelta=True
    )


def _create(path: Path, parts: dict[str, Any], coords: xr.Dataset, attrs: dict[str, Any]) -> None:
    """An empty store of the right shape."""
    import dask.array

    count = coords.sizes["init_time"]
    data, encoding = {}, {}
    for name, (dims, values, own) in parts.items():
        # One task, never run, however many init times; the chunks on disk are the encoding's.
        empty = dask.array.full((count, *values.shape), np.nan, dtype=values.dtype, chunks=-1)
        data[name] = (("init_time", *dims), empty, own)
        encoding[name] = {"chunks": (1, *values.shape)}
    stores.create(path, xr.Dataset(data, coords.coords, attrs), encoding)

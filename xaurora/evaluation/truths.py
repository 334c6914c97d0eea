"""Truth and climatology on the forecast's grid.

Does not depend on torch.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import KindError, OptionError, TruthError
from xaurora.evaluation.alignment import Forecast
from xaurora.fields import conventions, periods, precipitation, recognition, variables
from xaurora.fields.found import Field
from xaurora.fields.grid import regridding
from xaurora.fields.unit_conversion import is_rate
from xaurora.utils import indexed

logger = logging.getLogger("xaurora")

_KEPT = 1024**3  # bytes of truth fields kept for later lead times


@dataclass
class FieldCache:
    """Least-recently-used cache of fields, limited to a number of bytes.

    Thread-safe. Only one thread reads at a time, so no field is read twice.
    """

    limit: int = field(default_factory=lambda: _KEPT)
    fields: OrderedDict[Any, np.ndarray] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    reading: threading.Lock = field(default_factory=threading.Lock)
    held: int = 0

    def get(
        self, keys: Sequence[Any], read: Callable[[list[Any]], dict[Any, np.ndarray]]
    ) -> dict[Any, np.ndarray]:
        """Return fields by key. ``read`` loads those not cached, and may return others too."""
        out = self._kept(keys)
        if len(out) < len(set(keys)):
            with self.reading:
                out |= self._kept([key for key in keys if key not in out])
                missing = [key for key in dict.fromkeys(keys) if key not in out]
                if missing:
                    new = read(missing)
                    out |= {key: new[key] for key in missing}
                    self._keep(new)
        return out

    def _kept(self, keys: Sequence[Any]) -> dict[Any, np.ndarray]:
        with self.lock:
            out = {key: self.fields[key] for key in keys if key in self.fields}
            for key in out:
                self.fields.move_to_end(key)
        return out

    def _keep(self, new: dict[Any, np.ndarray]) -> None:
        with self.lock:
            for key, values in new.items():
                if key not in self.fields:
                    self.fields[key] = values
                    self.held += values.nbytes
            while self.held > self.limit and len(self.fields) > 1:
                self.held -= self.fields.popitem(last=False)[1].nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}  # the cache starts empty in another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@dataclass
class Truth:
    """Fields to score against, on the forecast's grid.

    Parameters
    ----------
    fields : Fields
        Fields with canonical names and grid.
    rows, columns : ndarray of int
        Indices of the forecast's grid points.
    position : TimeIndex
    totals : dict of DataArray
        Precipitation and other amounts by name, accumulated over the forecast's period.
    masked : bool
        Whether missing values are expected, as in satellite data, so that only points with values
        are scored.
    needed : ndarray of int
        Positions of the valid times of the forecast, in increasing order.
    """

    fields: conventions.Fields
    rows: np.ndarray
    columns: np.ndarray
    position: periods.TimeIndex
    totals: dict[str, xr.DataArray]
    masked: bool = False
    needed: np.ndarray = field(default_factory=lambda: np.array([], int))
    kept: FieldCache = field(default_factory=FieldCache)

    def array(self, kind: str, name: str) -> xr.DataArray:
        """Return one variable in the truth's own units.

        Its dims are ``(time, [level,] latitude, longitude)``.
        """
        if kind == "surface" and name in self.totals:
            return self.totals[name]
        return getattr(self.fields, kind)[name]

    def read(
        self, kind: str, name: str, times: Sequence[np.datetime64], levels: tuple[float, ...]
    ) -> dict[int, np.ndarray]:
        """Return fields in the truth's own units, keyed by time in nanoseconds since 1970.

        Times that the truth lacks are omitted. :meth:`like` converts the units.
        """
        wanted = [int(t.astype("datetime64[ns]").astype(np.int64)) for t in times]
        there = [t for t in wanted if t in self.position]

        def fetch(keys: list[Any]) -> dict[Any, np.ndarray]:
            places = self._with_same_chunks(kind, name, [self.position[key[3]] for key in keys])
            da = self.array(kind, name).isel(time=indexed.as_slice(places))
            if kind == "atmos":
                da = da.isel(level=[self.fields.levels.index(level) for level in levels])
            values = indexed.read(da.variable, str(da.name))
            if not self._whole:
                values = values[..., self.rows, :][..., self.columns]
            stamps = self.fields.times[places].astype("datetime64[ns]").astype(np.int64)
            return {
                (kind, name, levels, int(stamp)): one.copy() if len(values) > 1 else one
                for stamp, one in zip(stamps, values, strict=True)
            }

        found = self.kept.get([(kind, name, levels, t) for t in there], fetch)
        return {key[3]: values for key, values in found.items()}

    def _with_same_chunks(self, kind: str, name: str, places: list[int]) -> np.ndarray:
        """Add the positions that are stored in the same chunks and needed later."""
        da = self.array(kind, name)
        dims = "time", self.fields.layout.axes["time"].dim
        stored = da.encoding.get("preferred_chunks", {})
        length = max(int(stored.get(dim, 1)) for dim in dims)
        if length == 1 or length * da.nbytes // max(len(da), 1) > self.kept.limit // 2:
            return np.unique(places)
        same = self.needed[np.isin(self.needed // length, np.unique(places) // length)]
        return np.union1d(same, places)

    def like(self, kind: str, name: str, values: np.ndarray, item: Field) -> np.ndarray:
        """Convert values of the truth to the units of a forecast's field, as float64."""
        mine = self.fields.layout.fields[kind, name]
        scale, offset = (
            (1.0, 0.0) if is_rate(str(mine.attrs.get("units", ""))) else (mine.scale, mine.offset)
        )
        values = values.astype(np.float64)
        if (scale, offset) == (item.scale, item.offset):
            return values
        return values * (scale / item.scale) + (offset - item.offset) / item.scale

    @property
    def _whole(self) -> bool:
        grid = self.fields.layout.grid
        return (
            len(self.rows) == len(grid.latitude)
            and len(self.columns) == len(grid.longitude)
            and (np.diff(self.rows) == 1).all()
            and (np.diff(self.columns) == 1).all()
        )

    def land(self) -> np.ndarray | None:
        """Return the land fraction on the forecast's grid, or None."""
        if "lsm" not in self.fields.static:
            return None
        return self.fields.static["lsm"].values[self.rows][:, self.columns].astype(np.float64)


def read_truth(
    ds: xr.Dataset,
    forecast: Forecast,
    regrid: str | None = None,
    fields_of: dict[Any, Field] | None = None,
) -> Truth:
    """Recognise the truth and find the forecast's grid points in it.

    Lazy.

    Parameters
    ----------
    ds : Dataset
    forecast : Forecast
    regrid : {"conservative"}, optional
        Regrid the truth to the forecast's grid first.
    fields_of : dict, optional
        Variables to look for; by default the forecast's.

    Raises
    ------
    KindError
        If a forecast was given as truth.
    OptionError
        If ``regrid`` is not supported.
    TruthError
        If its grid does not contain the forecast's points, or it shares no valid time with the
        forecast.
    AccumulationError
        If its precipitation cannot be summed over the forecast's period.
    """
    if regrid not in (None, "conservative"):
        raise OptionError(
            f"regrid={regrid!r} is not a regridding method.", fix="regrid='conservative'"
        )
    if not isinstance(ds, xr.Dataset):
        raise KindError(
            f"the truth must be a Dataset of fields, got {type(ds).__name__}.",
            fix="fc.aurora.evaluate(ds)",
        )
    if recognition.is_forecast(ds):
        raise KindError(
            "the truth must be fields, but this Dataset is a forecast (it has lead times).",
            fix="fc.aurora.evaluate(fields), where fields have one time axis",
        )
    found = recognition.recognise(ds)
    sought = forecast.fields if fields_of is None else fields_of
    wanted = set(sought)
    for key in wanted - set(variables.BY_KEY):
        recognition.add_generic(ds, sought[key].source, found)
    for key in [k for k in found.fields if k not in wanted and k != ("static", "lsm")]:
        del found.fields[key]
    found.problems = [p for p in found.problems if p.about is None or p.about in wanted]
    found.raise_first()
    fields = conventions.standardise(ds, found, own_values=True)
    amounts = {
        name: item.source
        for (kind, name), item in fields.layout.fields.items()
        if (kind, name) in wanted and item.variable.accumulated
    }
    totals = {
        name: precipitation.accumulate(fields.surface[name], forecast.hours, name=source)
        for name, source in amounts.items()
    }
    if regrid is not None:
        fields, totals = _onto(fields, totals, forecast)
        rows, columns = np.arange(len(forecast.latitude)), np.arange(len(forecast.longitude))
    else:
        rows = _match("latitude", fields.layout.grid.latitude, forecast.latitude, wrap=False)
        columns = _match(
            "longitude", fields.layout.grid.true_longitude, forecast.longitude, wrap=True
        )
    position = periods.TimeIndex(fields.times)
    truth = Truth(fields, rows, columns, position, totals, masked=_is_masked(ds))
    if not len(fields.times):
        raise TruthError(
            "the truth contains no times.", fix="pass a truth that covers init_time + lead_time"
        )
    valid = (forecast.init_times[:, None] + forecast.leads[None]).ravel()
    truth.needed = np.unique(position.locate(valid[position.has(valid)]))
    if not len(truth.needed):
        raise TruthError(
            f"no valid time of the forecast ({valid.min().astype('datetime64[m]')} to"
            f" {valid.max().astype('datetime64[m]')}) is in the truth"
            f" ({fields.times[0].astype('datetime64[m]')} to"
            f" {fields.times[-1].astype('datetime64[m]')}, every"
            f" {periods.spacing_hours(fields.times) if len(fields.times) > 1 else 0:g} h).",
            fix="pass a truth that covers init_time + lead_time",
        )
    return truth


def _is_masked(ds: xr.Dataset) -> bool:
    """Return whether missing values are expected, as in IMERG over snow and near the poles."""
    return ds.attrs.get("xaurora_source") == "IMERG" or "valid_fraction" in ds


def _onto(
    fields: conventions.Fields, totals: dict[str, xr.DataArray], forecast: Forecast
) -> tuple[conventions.Fields, dict[str, xr.DataArray]]:
    """Regrid surface and atmospheric variables and the land-sea mask conservatively.

    The result is on the forecast's grid. Lazy.
    """
    from dataclasses import replace

    grid = forecast.latitude, forecast.longitude
    if all(
        regridding.same(a, b)
        for a, b in zip(
            (fields.layout.grid.latitude, fields.layout.grid.true_longitude), grid, strict=True
        )
    ):
        return fields, totals
    # Longitudes of a region across Greenwich leave [0, 360); regridding needs them wrapped.
    true = {"longitude": fields.layout.grid.true_longitude}

    def turn(da: xr.DataArray) -> xr.DataArray:
        return regridding.onto(da.assign_coords(true), *grid)

    static = {name: turn(fields.static[name]) for name in ("lsm",) if name in fields.static}
    totals = {name: turn(da) for name, da in totals.items()}
    surface = xr.Dataset(
        {str(n): totals[str(n)] if n in totals else turn(da) for n, da in fields.surface.items()}
    )
    atmos = xr.Dataset({str(n): turn(da) for n, da in fields.atmos.items()})
    new = replace(fields, surface=surface, static=xr.Dataset(static), atmos=atmos)
    return new, totals


def _match(axis: str, have: np.ndarray, want: np.ndarray, *, wrap: bool) -> np.ndarray:
    distance = np.abs(have[None, :] - want[:, None])
    if wrap:
        distance = np.minimum(distance % 360.0, 360.0 - distance % 360.0)
    nearest = distance.argmin(axis=1)
    step = float(np.median(np.abs(np.diff(want)))) if len(want) > 1 else 1.0
    worst = float(distance[np.arange(len(want)), nearest].max())
    if worst > 0.01 * step:
        raise TruthError(
            f"the truth has no grid points at the forecast's {axis}s: the truth has {len(have)}"
            f" from {have[0]:g} to {have[-1]:g}, the forecast {len(want)} from {want[0]:g} to"
            f" {want[-1]:g}. Scores on different grids are not comparable.",
            fix="evaluate(truth, regrid='conservative'), or regrid one to the other's grid first",
        )
    return nearest

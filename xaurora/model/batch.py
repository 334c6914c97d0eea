"""Convert between Datasets and :class:`aurora.Batch`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from aurora import Batch, Metadata

from xaurora.errors import (
    GridError,
    InitTimeError,
)
from xaurora.fields import conventions
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import lattice as grids
from xaurora.fields.periods import TimeIndex
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model import frames
from xaurora.utils.types import Given, TimesLike

STEP = np.timedelta64(TIMESTEP_HOURS, "h")


@dataclasses.dataclass
class GreenwichBatch(Batch):
    """A Batch whose domain crosses Greenwich.

    ``Metadata`` cannot represent such longitudes, because it requires them to increase within
    [0, 360). ``metadata.lon`` therefore holds placeholders, and ``longitude`` the true values.
    Stock Aurora would silently put every patch in the wrong place; this class raises instead. To
    run such a batch with its true longitudes use :func:`xaurora.model.placement.on_grid`.
    """

    longitude: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))

    def normalise(self, surf_stats: dict[str, tuple[float, float]]) -> Batch:
        """Raise, because this is the first method that ``Aurora.forward`` calls on a Batch.

        Raises
        ------
        GridError
            Always.
        """
        raise GridError(
            "this Batch crosses Greenwich, which aurora.Metadata cannot represent; stock Aurora"
            " would misplace every patch.",
            fix=(
                "ds.aurora.predict('6h', model=model), or: with"
                " xaurora.model.placement.on_grid(model, grid):"
                " model(xaurora.model.batch.as_stock_batch(batch))"
            ),
        )

    def _fmap(self, f: Callable[[torch.Tensor], torch.Tensor]) -> GreenwichBatch:
        moved = Batch._fmap(self, f)
        return GreenwichBatch(
            moved.surf_vars,
            moved.static_vars,
            moved.atmos_vars,
            moved.metadata,
            longitude=self.longitude,
        )


def as_stock_batch(batch: Batch) -> Batch:
    """Return a stock Batch, for use inside :func:`xaurora.model.placement.on_grid`."""
    return Batch(batch.surf_vars, batch.static_vars, batch.atmos_vars, batch.metadata)


def utc(time: np.datetime64) -> datetime:
    """Return a timezone-aware datetime.

    Aurora's encoder calls ``timestamp()``, which interprets a naive one in the machine's time zone.
    """
    return datetime.fromtimestamp(int(time.astype("datetime64[s]").astype(np.int64)), tz=UTC)


def from_utc(time: datetime) -> np.datetime64:
    """Return a datetime as ``datetime64``, the inverse of :func:`utc`. Naive means UTC."""
    if time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(time, "ns")


def metadata(
    grid: grids.Grid, times: Sequence[np.datetime64], levels: Sequence[float], rollout_step: int = 0
) -> Metadata:
    """Return the metadata of a grid.

    Latitudes and longitudes are float64 tensors, which Aurora casts to float32 itself.
    """
    return Metadata(
        lat=torch.from_numpy(grid.latitude.copy()),
        lon=torch.from_numpy(grid.placed_longitude.copy()),
        time=tuple(utc(np.datetime64(t)) for t in times),
        atmos_levels=tuple(int(v) if float(v).is_integer() else float(v) for v in levels),
        rollout_step=rollout_step,
    )


_PERIOD = re.compile(r"\d{4}(-\d{2}){0,2}")


def resolve_times(times: np.ndarray, wanted: TimesLike) -> list[np.datetime64]:
    """Return the requested init times, after checking that each has a state six hours before.

    Parameters
    ----------
    times : ndarray of datetime64, ``(time,)``
        The times of the data.
    wanted : optional
        A time, several, a slice of times, or None for all. A text without an hour, such as
        ``"2021-06-01"``, selects the whole day, as xarray does.

    Raises
    ------
    InitTimeError
        If a time is not in the data, if the time six hours before it is missing, or if no time has
        its history.
    """
    index = TimeIndex(times)
    if wanted is None or isinstance(wanted, slice):
        with_history = times[index.has(times - STEP)]
        if isinstance(wanted, slice):
            if wanted.start is not None:
                with_history = with_history[with_history >= _time(wanted.start, times)]
            if wanted.stop is not None:
                with_history = with_history[with_history <= _time(wanted.stop, times, end=True)]
        chosen = list(with_history)
        if isinstance(wanted, slice) and not chosen:
            raise InitTimeError(
                f"no time in {wanted!r} has a state six hours before it; the data run from"
                f" {_name(times[0])} to {_name(times[-1])}.",
                fix="time=None forecasts from every time that has a state six hours before it",
            )
        if not chosen:
            raise InitTimeError(
                f"none of the {len(times)} time(s) has another time {TIMESTEP_HOURS} hours before"
                " it, and Aurora needs both.",
                fix=f"open at least two times {TIMESTEP_HOURS} hours apart",
            )
        return chosen
    single = isinstance(wanted, str | datetime | np.datetime64) or np.ndim(np.asarray(wanted)) == 0
    chosen = [wanted] if single else list(cast("Sequence[Any]", wanted))
    if not chosen:
        raise InitTimeError(
            "time=[] contains no init time.",
            fix="time=None forecasts from every time that has a state six hours before it",
        )
    out = []
    for value in chosen:
        if isinstance(value, str) and _PERIOD.fullmatch(value.strip()):
            first, last = _time(value, times), _time(value, times, end=True)
            if not ((times >= first) & (times <= last)).any():
                raise InitTimeError(
                    f"{value} is not in the data, which run from {_name(times[0])} to"
                    f" {_name(times[-1])}.",
                    fix="time=None forecasts from every time that has a state six hours before it",
                )
            out += resolve_times(times, slice(value, value))  # a day, a month or a year
            continue
        t = _time(value, times)
        if not index.has(t):
            raise InitTimeError(
                f"init time {_name(t)} is not in the data, which run from {_name(times[0])} to"
                f" {_name(times[-1])}.",
                fix="time=None forecasts from every time that has a state six hours before it",
            )
        if not index.has(t - STEP):
            raise InitTimeError(
                f"init time {_name(t)} has no frame {TIMESTEP_HOURS} hours before it"
                f" ({_name(t - STEP)}), which Aurora needs.",
                fix=f"add that time to the data, or start at {_name(t + STEP)}",
            )
        out.append(t)
    return out


def _time(value: Given, times: np.ndarray, *, end: bool = False) -> np.datetime64:
    import pandas as pd

    try:
        if end and isinstance(value, str):
            stamp = pd.Period(value).end_time
        else:
            stamp = pd.Timestamp(value.values if isinstance(value, xr.DataArray) else value)
        if stamp.tzinfo is not None:
            stamp = stamp.tz_convert("UTC").tz_localize(None)
        return stamp.to_datetime64().astype("datetime64[ns]")
    except (ValueError, TypeError):
        raise InitTimeError(f"{value!r} is not a time.", fix=f"time='{_name(times[-1])}'") from None


def _name(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


def to_batch(fields: Fields, init_times: Sequence[np.datetime64]) -> Batch:
    """Return a Batch of one or several init times, each with its history. This reads the data.

    Parameters
    ----------
    fields : Fields
        Canonical fields, reduced to the model's variables, levels and patches
        (:func:`xaurora.fields.requirements.select_and_crop`).
    init_times : sequence of datetime64
        Times that have their history (:func:`resolve_times`).

    Returns
    -------
    aurora.Batch
        ``surf_vars`` ``(b, 2, h, w)``, ``static_vars`` ``(h, w)``, ``atmos_vars`` ``(b, 2, c, h,
        w)``, SI units, float32. It is a :class:`GreenwichBatch` if the domain crosses Greenwich.
    """
    times = sorted({t for init in init_times for t in (init - STEP, init)})
    index = TimeIndex(fields.times)
    places = [int(index.locate(t)) for t in times]
    with frames.requests() as pool:
        if len(times) == 2:
            found = dict(
                zip(times, frames.read_pair(fields, times, places, pool=pool), strict=True)
            )
        else:
            found = {
                t: frames.read(fields, t, index=place, pool=pool)
                for t, place in zip(times, places, strict=True)
            }
        still = {
            name: torch.from_numpy(np.ascontiguousarray(v))
            for name, v in frames.statics(fields, pool=pool).items()
        }
    return assemble(found, still, init_times, fields.layout.grid, fields.levels)


def assemble(
    states: dict[np.datetime64, frames.Frame],
    still: dict[str, torch.Tensor],
    init_times: Sequence[np.datetime64],
    grid: grids.Grid,
    levels: Sequence[float],
) -> Batch:
    """Return a Batch, ``(b, t, ...)``, stacked from frames that were read before."""
    histories = [[states[t - STEP], states[t]] for t in init_times]
    whole = frames.read_together(*histories[0]) if len(histories) == 1 else None
    stacked: dict[str, dict[str, torch.Tensor]] = {}
    for kind in ("surface", "atmos"):
        stacked[kind] = {
            name: torch.from_numpy(
                _stacked([[state[kind][name] for state in pair] for pair in histories])
                if whole is None
                else whole[kind][name][None]
            )
            for name in histories[0][0][kind]
        }
    meta = metadata(grid, init_times, levels)
    if grid.crosses_greenwich:
        return GreenwichBatch(
            stacked["surface"],
            still,
            stacked["atmos"],
            meta,
            longitude=torch.from_numpy(grid.true_longitude.copy()),
        )
    return Batch(stacked["surface"], still, stacked["atmos"], meta)


def _stacked(pairs: list[list[np.ndarray]]) -> np.ndarray:
    """Return the pairs as one array ``(b, 2, ...)``, copied only once."""
    out = np.empty((len(pairs), 2, *pairs[0][0].shape), pairs[0][0].dtype)
    for own, pair in zip(out, pairs, strict=True):
        own[0], own[1] = pair
    return out


def from_batch(batch: Batch, fields: Fields) -> xr.Dataset:
    """Convert a Batch to a Dataset with the names, units and order of the original data.

    Parameters
    ----------
    batch : aurora.Batch
        A Batch from :func:`to_batch`, or a model's output for one.
    fields : Fields
        The fields that the Batch was made from. Their layout gives the form of the Dataset.

    Returns
    -------
    Dataset
        One entry along time for every distinct time in the Batch, history included.

    Raises
    ------
    GridError
        If the Batch has another grid than the Dataset.
    """
    grid = fields.layout.grid
    latitude = batch.metadata.lat.detach().cpu().numpy().astype(np.float64)
    if batch.spatial_shape != grid.shape or np.abs(latitude - grid.latitude).max() > 1e-3:
        raise GridError(
            f"the Batch has {batch.spatial_shape[0]} × {batch.spatial_shape[1]} grid points from"
            f" {latitude[0]:g}°N, but this Dataset has {grid.shape[0]} × {grid.shape[1]} from"
            f" {grid.latitude[0]:g}°N.",
            fix="call from_batch() on the Dataset that to_batch() was called on",
        )
    history = next(iter(batch.surf_vars.values())).shape[1]
    times = [
        from_utc(t) - STEP * (history - 1 - k) for t in batch.metadata.time for k in range(history)
    ]
    unique, first = np.unique(np.array(times, dtype="datetime64[ns]"), return_index=True)

    def flat(tensors: dict[str, torch.Tensor], dims: tuple[str, ...]) -> dict[str, Any]:
        return {
            name: (dims, v.detach().to("cpu", torch.float32).flatten(0, 1).numpy()[first])
            for name, v in tensors.items()
        }

    coords: dict[str, Any] = {
        "time": unique,
        "latitude": grid.latitude,
        "longitude": grid.longitude,
    }
    levels = [float(v) for v in batch.metadata.atmos_levels]
    surface = xr.Dataset(flat(batch.surf_vars, ("time", "latitude", "longitude")), coords)
    atmos = xr.Dataset(
        flat(batch.atmos_vars, ("time", "level", "latitude", "longitude")),
        {**coords, "level": levels},
    )
    still = {
        name: (("latitude", "longitude"), v.detach().cpu().numpy())
        for name, v in batch.static_vars.items()
    }
    static = xr.Dataset(still, {k: v for k, v in coords.items() if k != "time"})
    return conventions.restore(Fields(surface, static, atmos, fields.layout), levels=levels)

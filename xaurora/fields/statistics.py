"""Statistics in one streaming pass over the data.

Moments are float64 and merged after Chan, Golub and LeVeque (1983); quantiles come from a
histogram. Pretrained models keep Aurora's own normalisation. These statistics normalise tiny models
and new variables, and are computed from the training period alone. Memory does not grow with the
number of times: it holds a few blocks of 128 MB, or one chunk of the source if that is larger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import (
    MissingValuesError,
    MissingVariableError,
    OptionError,
    SourceError,
    XauroraError,
)
from xaurora.fields import inputs, periods, recognition
from xaurora.fields.conventions import Fields
from xaurora.fields.distribution import BIN_WIDTH, Distribution, Moments, PackedDistribution
from xaurora.fields.found import Field, Recognition
from xaurora.utils import dask_arrays, indexed, lazy
from xaurora.utils.progress import progress_bar, track
from xaurora.utils.types import Given, PeriodLike
from xaurora.utils.workers import in_order

if TYPE_CHECKING:
    from tqdm import tqdm

QUANTILES = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)
"""Default quantiles of ``statistics``."""


# --- normalisation of tiny models -----------------------------------------------------------------


def normalisation_statistics(
    fields: Fields,
    times: Sequence[np.datetime64],
    *,
    strict: bool = True,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return mean and standard deviation of all surface variables and of atmospheric ones by level.

    Reads ``times`` once. Unless ``strict``, times with NaN or that cannot be read are left out.

    Returns
    -------
    tuple of dict
        ``{"2t": (mean, std)}`` and ``{"t": {"850": (mean, std)}}``, canonical units.

    Raises
    ------
    MissingValuesError
        A field contains NaN, unless ``strict`` is off and others do not.
    SourceError
        Likewise, for a field that cannot be read.
    """
    surface = {str(name): Moments() for name in fields.surface}
    atmos = {
        str(name): {f"{level:g}": Moments() for level in fields.levels} for name in fields.atmos
    }
    error: XauroraError | None = None
    read = 0
    for t in track(times, "statistics", shown=progress):
        try:
            frames = {
                (kind, str(name)): _read_finite(fields, kind, str(name), t)
                for kind, names in (("surface", surface), ("atmos", atmos))
                for name in names
            }
        except (MissingValuesError, SourceError) as broken:
            if strict:
                raise
            error = error or broken
            continue
        read += 1
        for name, moments in surface.items():
            moments.add(frames["surface", name])
        for name, by_level in atmos.items():
            for i, level_moments in enumerate(by_level.values()):
                level_moments.add(frames["atmos", name][i])
    if not read and error is not None:
        raise error

    def pair(moments: Moments) -> tuple[float, float]:
        # A constant field has no spread to divide by.
        return moments.mean, (
            moments.std if moments.std > 1e-12 * max(abs(moments.mean), 1e-30) else 1.0
        )

    return {n: pair(m) for n, m in surface.items()}, {
        n: {lv: pair(m) for lv, m in by.items()} for n, by in atmos.items()
    }


def _read_finite(fields: Fields, kind: str, name: str, time: np.datetime64) -> np.ndarray:
    source = fields.layout.fields[kind, name].source
    place = int(periods.TimeIndex(fields.times).locate(time))
    variable = getattr(fields, kind).variables[name][place]
    values = indexed.read(variable, source, f" at {time.astype('datetime64[m]')}")
    if not np.isfinite(values).all():
        raise MissingValuesError(
            f"'{source}' has {int((~np.isfinite(values)).sum())} missing value(s) at"
            f" {time.astype('datetime64[m]')}, but Aurora does not accept missing values.",
            fix=(
                f"fill them, for example ds['{source}'] ="
                f" ds['{source}'].interpolate_na('{fields.layout.axes['longitude'].dim}',"
                f" fill_value='extrapolate').fillna(ds['{source}'].mean()), or drop the time"
            ),
        )
    return values


# --- ds.aurora.statistics -------------------------------------------------------------------------

_LABELS = (
    "mean",
    "std",
    "min",
    "max",
    "count",
    "wet_fraction",
    "wet_log_mean",
    "wet_log_std",
    "clipped",
)
_BLOCK = 128 * 1024**2  # bytes read at once, if chunks allow it
_CHUNKS = 256  # along time, read at once: each costs Zarr about 20 kB in addition to its values


def statistics(
    ds: xr.Dataset,
    names: Sequence[str] | str | None = None,
    *,
    time: PeriodLike = None,
    weights: str | None = "cosine",
    quantiles: Sequence[float] = QUANTILES,
    progress: bool = True,
) -> xr.Dataset:
    """Return statistics of variables; see :meth:`xaurora.accessor.AuroraAccessor.statistics`."""
    if weights not in ("cosine", None):
        raise OptionError(
            f"weights={weights!r} is not supported; it must be 'cosine' or None.",
            fix="weights='cosine'",
        )
    try:
        q = np.atleast_1d(np.asarray(quantiles, np.float64))
    except (TypeError, ValueError):
        q = np.array([np.nan])
    if not ((q > 0) & (q < 1)).all():
        raise OptionError(
            f"quantiles={list(quantiles)!r} must all lie between 0 and 1, exclusive.",
            fix="quantiles=[0.5, 0.99]",
        )
    ds = dask_arrays.dataset_without_dask(ds)
    found, items, chosen = _chosen(ds, names)
    where = _selected(found, time)
    total = sum(len(where) * (len(found.levels) if items[n][0] == "atmos" else 1) for n in chosen)
    out: dict[str, Any] = {}
    checksums = {}
    with progress_bar(total=total, label="statistics", unit="field", shown=progress) as meter:
        for source in chosen:
            kind, item = items[source]
            parts, checksums[source] = _of_variable(ds, item, kind, found, where, weights, meter)
            attrs = {"units": item.variable.units, "long_name": item.variable.long_name}
            if item.variable.accumulated and (
                hours := periods.declared_hours(item.source, item.attrs)
            ):
                attrs["cell_methods"] = periods.cell_methods(hours)
            level = ("level",) if kind == "atmos" else ()
            rows = np.array([_row(part) for part in parts]).T
            tails = np.array(
                [
                    np.clip(part.histogram.quantile(q), part.moments.low, part.moments.high)
                    for part in parts
                ]
            ).T
            out[source] = (("statistic", *level), rows if level else rows[:, 0], attrs)
            out[f"{source}_quantile"] = (
                ("quantile", *level),
                tails if level else tails[:, 0],
                attrs,
            )
            if kind == "surface":
                values, shares = parts[0].histogram.filled()
                bins = f"{source}_bin"
                out[bins] = ((bins,), values.astype(np.float32), attrs)
                out[f"{source}_histogram"] = ((bins,), shares, {"long_name": "Weight of each bin"})
    coords: dict[str, Any] = {"statistic": list(_LABELS), "quantile": q}
    if any("level" in v[0] for v in out.values()):
        coords["level"] = ("level", list(found.levels), {"units": "hPa"})
    times = found.times[where] if found.times is not None else np.array([])
    coords |= {name: out.pop(name) for name in list(out) if out[name][0] == (name,)}
    return xr.Dataset(
        out,
        coords,
        {
            "title": "Statistics in canonical (SI) units",
            "weights": weights or "none",
            "quantile_relative_bin_width": BIN_WIDTH,
            "start": str(times[0])[:16],
            "end": str(times[-1])[:16],
            "number_of_times": len(times),
            "box": inputs.box_of(found.grid) if found.grid is not None else [],
            "source_hash": _hash(found, items, chosen, times, checksums),
        },
    )


def _chosen(
    ds: xr.Dataset, names: Sequence[str] | str | None
) -> tuple[Recognition, dict[str, Any], list[Any]]:
    """Return what is recognised, the fields by their own names, and the names chosen of these."""
    found = recognition.recognise(ds)
    for name in (
        [names] if isinstance(names, str) else names if isinstance(names, list | tuple) else ()
    ):
        if name in found.unrecognised:
            recognition.add_generic(ds, name, found)
    found.raise_first()
    items = {
        item.source: (kind, item) for (kind, _), item in found.fields.items() if kind != "static"
    }
    chosen: list[Any] = (
        list(items)
        if names is None
        else [names]
        if not isinstance(names, list | tuple)
        else list(names)
    )
    if unknown := [n for n in chosen if n not in items]:
        raise MissingVariableError(
            f"{unknown} is not among the recognised variables {sorted(items)}.",
            fix="ds.aurora lists the recognised variables",
        )
    return found, items, chosen


def _selected(found: Recognition, time: PeriodLike) -> np.ndarray:
    times = found.times if found.times is not None else np.array([], "datetime64[ns]")
    if time is None:
        return np.arange(len(times))
    start, end = periods.bounds("time", time)
    where = np.flatnonzero((times >= start) & (times <= end))
    if not len(where):
        raise OptionError(
            f"time={time!r} selects no time; the times run from {str(times[0])[:16]} to"
            f" {str(times[-1])[:16]}.",
            fix="time=None for all of them",
        )
    return where


def _row(part: Distribution) -> list[float]:
    m, wet = part.moments, part.log_wet
    nan = float("nan")
    rain = (
        [part.wet_fraction, wet.mean if wet.count else nan, wet.std, part.clipped]
        if part.amounts
        else [nan] * 4
    )
    if not m.count:
        return [nan, nan, nan, nan, 0, *rain]
    return [m.mean, m.std, m.low, m.high, m.count, *rain]


def _of_variable(
    ds: xr.Dataset,
    item: Field,
    kind: str,
    found: Recognition,
    where: np.ndarray,
    weights: str | None,
    meter: tqdm,
) -> tuple[list[Distribution], int]:
    """Return the distributions of one variable by level, and a checksum of its values.

    Values are read block by block in their own dtype, in parallel, and converted frame by frame.
    """
    axes = found.axes
    names = (
        ["time", "level", "latitude", "longitude"]
        if kind == "atmos"
        else ["time", "latitude", "longitude"]
    )
    raw = ds[item.source]
    dims = [axes[n].dim for n in names]
    for dim in raw.dims:
        if dim not in dims:
            raw = raw.isel({dim: 0})
    raw = indexed.as_array(lazy.transpose(raw.variable, dims), raw)
    parts = [
        Distribution(amounts=item.variable.accumulated)
        for _ in (found.levels if kind == "atmos" else (0,))
    ]
    lat = np.asarray(ds[axes["latitude"].name].values, np.float64)
    area = np.broadcast_to(np.cos(np.deg2rad(lat))[:, None], raw.shape[-2:])
    stamps = found.times if found.times is not None else np.zeros(raw.shape[0], "datetime64[ns]")
    minutes = stamps.astype("datetime64[m]").astype(np.int64)
    source = _Source(raw, item, area, weighted=weights is not None, minutes=minutes)
    total = 0
    done = 0.0
    tiles = list(_tiles(raw, dims[0], where))
    computed = in_order(_of_tile, source, tiles, name="xaurora-statistics")
    for (block, rows, columns), (found_parts, checksum) in zip(tiles, computed, strict=True):
        for part, other in zip(parts, found_parts, strict=True):
            part.merge(other)
        total = (total + checksum) % 2**64
        share = area[rows, columns].size / area.size
        before, done = int(done), done + len(block) * len(parts) * share
        meter.update(int(done + 1e-6) - before)
    return parts, total


@dataclass(frozen=True)
class _Source:
    """One variable, ``(time, [level,] latitude, longitude)``, as it is stored."""

    raw: xr.DataArray
    item: Field
    area: np.ndarray
    weighted: bool
    minutes: np.ndarray


_Tile = tuple[np.ndarray, slice, slice]


def _of_tile(source: _Source, tile: _Tile) -> tuple[list[PackedDistribution], int]:
    """Return the distributions of a tile by level, and a checksum of its values."""
    raw, item = source.raw, source.item
    block, rows, columns = tile
    at = {raw.dims[0]: block, raw.dims[-2]: rows, raw.dims[-1]: columns}
    values = indexed.read(raw.variable.isel(at), item.source)
    values = values.reshape(len(block), -1, *values.shape[-2:])
    # A checksum that does not depend on the chunks: the sum of every value's bits times a number
    # for its position, modulo 2⁶⁴.
    rng = np.random.default_rng(20_240_229)
    places = rng.integers(0, 2**63, raw.shape[-2:], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    places = places[rows, columns]
    area = source.area[rows, columns] if source.weighted else None
    count = values.shape[1]
    checksum = 0
    out = []
    for k in range(count):
        part = Distribution(amounts=item.variable.accumulated)
        for i, t in enumerate(block):
            frame = np.asarray(values[i, k], np.float64)
            frame = frame * item.scale + item.offset if item.converted else frame
            finite = np.isfinite(frame)
            if finite.all():
                part.add(frame, area)
            else:
                part.add(frame[finite], None if area is None else area[finite])
                frame = np.where(finite, frame, np.nan)
            with np.errstate(over="ignore"):
                bits = int(
                    (np.ascontiguousarray(frame).view(np.uint64) * places).sum(dtype=np.uint64)
                )
            checksum += (2 * (int(source.minutes[t]) * count + k) + 1) * bits
        out.append(part.packed())
    return out, checksum % 2**64


def _tiles(raw: xr.DataArray, dim: str, where: np.ndarray) -> Iterator[_Tile]:
    """Yield times, rows and columns to read together: as many whole chunks as fit into a block.

    Smaller tiles would decode each chunk several times. A chunk larger than a block is read whole.
    """
    height, width = raw.shape[-2:]
    stored = raw.encoding.get("preferred_chunks", {})

    def chunk(name: Given, whole: int, unknown: int) -> int:
        return max(min(int(stored.get(name, unknown)), whole), 1)

    depth = chunk(dim, len(raw), 1)
    rows = chunk(raw.dims[-2], height, height)
    columns = chunk(raw.dims[-1], width, width)
    point = max(
        raw.dtype.itemsize * int(np.prod(raw.shape[1:])) // (height * width), 1
    )  # bytes of one point at one time, all levels
    tall, wide = height, width
    if (
        depth * point * height * width > _BLOCK
    ):  # one chunk of times over the whole grid is too large: read part of the grid
        wide = min(max(_BLOCK // (depth * point * rows) // columns, 1) * columns, width)
        tall = min(max(_BLOCK // (depth * point * wide) // rows, 1) * rows, height)
    length = max(min(_BLOCK // (point * tall * wide) // depth, _CHUNKS), 1) * depth
    edges = np.flatnonzero(np.diff(where // length)) + 1
    for block in np.split(where, edges):
        for top in range(0, height, tall):
            for left in range(0, width, wide):
                yield (
                    block,
                    slice(top, min(top + tall, height)),
                    slice(left, min(left + wide, width)),
                )


def _hash(
    found: Recognition,
    items: dict[str, tuple[str, Field]],
    chosen: list[str],
    times: np.ndarray,
    checksums: dict[str, int],
) -> str:
    grid = found.grid
    described = [
        [
            [name, items[name][1].variable.name, items[name][1].variable.units, checksums[name]]
            for name in sorted(chosen)
        ],
        [str(t) for t in times],
        list(found.levels),
        (
            []
            if grid is None
            else [grid.latitude.round(6).tolist(), grid.true_longitude.round(6).tolist()]
        ),
    ]
    return f"sha256:{hashlib.sha256(json.dumps(described).encode()).hexdigest()}"

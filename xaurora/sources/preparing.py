"""``prepare``: write a local Zarr store for training from a slow or remote source.

The store holds only what training needs: the model's variables and levels, the target as six-hour
totals, a region and a range of times. Values are float32 in canonical units, north first. Each time
of a variable is one chunk, and many chunks share a file (a shard). A sample is then read with one
request per variable, and the store has few files. It is written in pieces, by threads, by several
processes that are given the same path, or by the workers of a dask cluster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from xaurora.errors import OptionError, SaveError
from xaurora.fields import conventions, periods, requirements, targets, truth
from xaurora.fields.conventions import Fields
from xaurora.fields.found import Field
from xaurora.fields.grid import patches, regions
from xaurora.fields.grid.regions import RegionLike
from xaurora.fields.requirements import Needs
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.utils import indexed, lazy, pieces, storage
from xaurora.utils import zarr_stores as stores
from xaurora.utils.progress import log_line, progress_bar
from xaurora.utils.types import Given, PeriodLike
from xaurora.utils.workers import in_order

logger = logging.getLogger("xaurora")

NeedsOf: TypeAlias = Callable[[Fields, Sequence[str]], Needs]

_SHARD = 128 * 1024**2  # approximate bytes of a file before compression
_BLOCK = 512 * 1024**2  # approximate bytes that each thread reads at once
_ATTRIBUTE = "xaurora_prepared"
_COMPARED = 6  # stored times that are compared with the source before resuming
_MANTISSA = 23  # bits of float32


def prepare(
    ds: xr.Dataset,
    path: str | Path,
    *,
    target: str | Sequence[str] | None = "tp",
    needs: NeedsOf | None,
    region: RegionLike | None = None,
    time: PeriodLike = None,
    bits: int | None = None,
    overwrite: bool = False,
    client: Given = None,
    progress: bool = True,
) -> xr.Dataset:
    """Write a training store. See :meth:`xaurora.accessor.AuroraAccessor.prepare`.

    ``needs`` maps the fields and the names of the targets to the requirements of the model.
    With None, all recognised variables are stored.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise OptionError(
            f"path must be a non-empty path, got {path!r}.",
            fix="ds.aurora.prepare('training.zarr')",
        )
    whole = isinstance(bits, int | np.integer) and not isinstance(bits, bool)
    if bits is not None and not (whole and 1 <= bits <= _MANTISSA):
        raise OptionError(
            f"bits={bits!r} must be a number of mantissa bits, an integer from 1 to {_MANTISSA}.",
            fix="bits=12",
        )
    path = storage.output_path(path)
    variables = _variables(ds, target, needs, region, time)
    template, encoding, lengths = _template(variables)
    template.attrs |= {
        "title": "Prepared for training with xaurora",
        "Conventions": "CF-1.11",
        "xaurora_bits": "all" if bits is None else int(bits),
    }
    count = template.sizes["time"]
    numbered = tuple(
        _Piece(name, first, min(first + length, count))
        for name, length in lengths.items()
        for first in range(0, count, length)
    )
    signature = _signature(template, variables, bits, numbered)
    template.attrs |= {_ATTRIBUTE: signature, stores.PIECES: len(numbered)}
    shared = pieces.Pieces(path.with_name(f".{path.name}.pieces"), len(numbered))
    work = _Work(path, {n: da for n, (da, _) in variables.items()}, bits, numbered, shared)
    complete = _begin(work, template, encoding, signature, overwrite=overwrite)
    size = sum(v.nbytes for v in template.data_vars.values())
    files = sum(-(-count // encoding[n]["shards"][0]) for n in lengths)
    log_line(
        f"Writing {count} times, {size / 1e9:.3g} GB before compression in {files} files, to"
        f" {path}",
        shown=progress and not complete,
    )
    if not complete:
        with progress_bar(
            total=len(numbered), label="prepare", unit="piece", shown=progress
        ) as meter:
            shared.run(
                lambda left: in_order(_attempt, work, left, client=client, name="xaurora-prepare"),
                meter.update,
            )
        _finish(work)
    return xr.open_dataset(
        path, engine="zarr", chunks=None, consolidated=False, decode_timedelta=True
    )


@dataclass(frozen=True)
class _Piece:
    """A range of times of one variable that fills whole shards, written by one process."""

    name: str
    first: int
    stop: int


@dataclass(frozen=True)
class _Work:
    """Everything a worker needs to write pieces. It is pickled for other processes."""

    path: Path
    arrays: dict[str, xr.DataArray]
    bits: int | None
    numbered: tuple[_Piece, ...]
    shared: pieces.Pieces

    def write(self, number: int) -> None:
        """Read one piece of the source and write it."""
        import zarr

        piece = self.numbered[number]
        variable = self.arrays[piece.name].variable[piece.first : piece.stop]
        values = _rounded(indexed.read(variable, piece.name), self.bits)
        with storage.wrap_write_errors(self.path):
            group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
            array: Any = group[piece.name]
            array[piece.first : piece.stop] = values


def _attempt(work: _Work, number: int) -> tuple[int, bool]:
    return number, work.shared.attempt(number, work.write)


def _begin(
    work: _Work, template: xr.Dataset, encoding: dict[str, Any], signature: str, *, overwrite: bool
) -> bool:
    """Create the store, or check that an existing one is the same; return whether it is complete.

    Raises
    ------
    SaveError
        If the path holds something else, or the store cannot be created.
    """
    path, shared = work.path, work.shared

    def is_complete() -> bool | None:
        written = stores.count_written_pieces(
            path,
            _ATTRIBUTE,
            signature,
            what="prepared store",
            argument="path",
            differs="other variables, times, region, bits or values",
            overwrite=overwrite,
        )
        return None if written is None else written == shared.count

    if path.exists() and is_complete():
        _check_same_values(work, range(shared.count))
        return True
    try:
        with storage.wrap_write_errors(path), shared.alone():
            if path.exists() and is_complete() is None:
                shutil.rmtree(path)
            if not path.exists():
                shared.open()
                stores.create(path, template, encoding)
            elif is_complete():  # completed by another process meanwhile
                shared.clear()
                return True
            elif not shared.is_open:  # the store was moved without its folder of finished pieces
                shared.open()
    except BaseException:
        if not path.exists():
            shared.clear()
        raise
    if finished := shared.finished():
        logger.info("%s: %d of %d pieces are already written.", path, len(finished), shared.count)
        _check_same_values(work, finished)
    return False


def _finish(work: _Work) -> None:
    """Mark the store as complete, and delete partial files of killed writers."""
    with storage.wrap_write_errors(work.path):
        for left in work.path.rglob("*.partial"):
            left.unlink(missing_ok=True)
        stores.record_written_pieces(work.path, work.shared.count)
    work.shared.clear()


def _variables(
    ds: xr.Dataset,
    target: Given,
    needs_of: NeedsOf | None,
    region: RegionLike | None,
    time: PeriodLike,
) -> dict[str, tuple[xr.DataArray, dict[str, Any]]]:
    """Return lazy canonical arrays and their attributes by the data's own variable names."""
    names = [] if target is None else [n for n in targets.names_of(target) if n != targets.ALL]
    found = targets.recognise(ds, names)
    found.raise_first()
    fields = conventions.standardise(ds, found)
    wanted = truth.resolve_targets(fields, names) if names else []
    if needs_of is not None:
        needs = needs_of(fields, [t.name for t in wanted])
        requirements.check_variables(fields, needs)
        levels = requirements.levels_for(fields, needs)
        chosen = fields.select(**needs.read, levels=levels)
        patch = needs.patch_size
    else:
        own = {t.name for t in wanted}
        surface = [
            str(n) for n in fields.surface if n not in own and not _accumulates(fields, str(n))
        ]
        chosen = fields.select(
            surface=surface,
            static=list(map(str, fields.static)),
            atmos=list(map(str, fields.atmos)),
            levels=fields.levels,
        )
        patch = requirements.PATCH_SIZE
    rows, columns, longitude = _part(fields, region, patch)
    times = _times(chosen.times, time)
    at: dict[str, Any] = {"latitude": rows, "longitude": columns}
    coords = {"longitude": longitude}

    def cut(da: xr.DataArray) -> xr.DataArray:
        return da.isel(at).assign_coords(coords)

    out: dict[str, tuple[xr.DataArray, dict[str, Any]]] = {}
    for kind in ("static", "surface", "atmos"):
        for name, da in getattr(chosen, kind).items():
            item = fields.layout.fields[kind, str(name)]
            da = da.sel(time=times) if "time" in da.dims else da
            out[item.source] = (cut(da), _attrs(item))
    for t in wanted:
        totals = {"cell_methods": periods.cell_methods(TIMESTEP_HOURS)} if t.is_rain else {}
        places = periods.TimeIndex(t.values["time"].values).locate(times)
        da = lazy.combine_frames(t.values, "time", places[:, None]).assign_coords(time=times)
        out[t.item.source] = (cut(da), {**_attrs(t.item), **totals})
    return out


def _accumulates(fields: Fields, name: str) -> bool:
    return fields.layout.fields["surface", name].variable.accumulated


def _attrs(item: Field) -> dict[str, Any]:
    """Return the attributes that are still valid in canonical units."""
    kept = {
        k: v for k, v in item.attrs.items() if k in ("standard_name", "long_name", "short_name")
    }
    return {"long_name": item.variable.long_name, **kept, "units": item.variable.units}


def _times(times: np.ndarray, wanted: PeriodLike) -> np.ndarray:
    if wanted is None:
        return times
    start, end = periods.bounds("time", wanted)
    chosen = times[(times >= start) & (times <= end)]
    if not len(chosen):
        raise OptionError(
            f"time={wanted!r} contains none of the data's times, which run from"
            f" {times[0].astype('datetime64[m]')} to {times[-1].astype('datetime64[m]')}.",
            fix=f"time=('{str(times[0])[:10]}', '{str(times[-1])[:10]}')",
        )
    return chosen


def _part(
    fields: Fields, region: RegionLike | None, patch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, columns and longitudes of a region's box, extended to whole patches.

    Patches are those of the global grid.
    """
    grid = fields.layout.grid
    if region is None:
        return np.arange(grid.shape[0]), np.arange(grid.shape[1]), grid.longitude
    box = patches.window_around(grid, regions.cells(grid, fields.land, region), 1, 0)

    def out(first: int, last: int, origin: int) -> tuple[int, int]:
        return first - (origin + first) % patch, last + (patch - 1 - (origin + last) % patch)

    top, bottom = out(int(box.rows[0]), int(box.rows[-1]), grid.first_row)
    rows = np.arange(max(top, 0), min(bottom, grid.shape[0] - 1) + 1)
    width = grid.shape[1]
    if box.wraps:
        return rows, np.arange(width), grid.longitude
    start = int(box.columns[0])
    left, right = out(start, start + len(box.columns) - 1, grid.first_column)
    if not grid.wraps:
        columns = np.arange(max(left, 0), min(right, width - 1) + 1)
        return rows, columns, grid.longitude[columns]
    if right - left + 1 >= width:
        return rows, np.arange(width), grid.longitude
    columns = np.arange(left, right + 1) % width
    longitude = grid.longitude[columns]
    longitude = np.where(longitude < longitude[0], longitude + 360.0, longitude)
    return rows, columns, longitude - 360.0 if longitude[-1] >= 360.0 else longitude


def _template(
    variables: dict[str, tuple[xr.DataArray, dict[str, Any]]],
) -> tuple[xr.Dataset, dict[str, Any], dict[str, int]]:
    """Return an empty Dataset of the store, its encoding, and the number of times per piece.

    A piece is made of whole shards, and of whole chunks of the source unless these are very large.
    """
    import dask.array
    from zarr.codecs import BloscCodec

    data: dict[str, Any] = {}
    encoding: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    changing = [da for da, _ in variables.values() if "time" in da.dims]
    count = changing[0].sizes["time"]
    for name, (da, attrs) in variables.items():
        codec = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4)
        if "time" not in da.dims:
            data[name] = (da.dims, np.asarray(da.values, np.float32), attrs)
            encoding[name] = {"compressors": stores.checksummed(codec)}
            continue
        one = da.shape[1:]
        frame = 4 * int(np.prod(one))
        source = min(int(da.encoding.get("preferred_chunks", {}).get("time", 1)), count)
        shard = max(min(_SHARD // frame, count), 1)
        if source < shard:
            shard -= shard % source  # whole chunks of the source, so that each is read once
        lengths[name] = shard * max(round(min(source, max(_BLOCK // frame, 1)) / shard), 1)
        empty = dask.array.zeros(da.shape, dtype=np.float32, chunks=(shard, *one))
        data[name] = (da.dims, empty, attrs)
        encoding[name] = {
            "chunks": (1, *one),
            "shards": (shard, *one),
            "compressors": stores.checksummed(codec),
            "_FillValue": None,
        }
    first = changing[0]
    levels = next((da["level"].values for da in changing if "level" in da.dims), None)
    coords: dict[str, Any] = {
        "time": ("time", first["time"].values, {"standard_name": "time", "long_name": "time"}),
        "latitude": (
            "latitude",
            first["latitude"].values,
            {"units": "degrees_north", "standard_name": "latitude"},
        ),
        "longitude": (
            "longitude",
            first["longitude"].values,
            {"units": "degrees_east", "standard_name": "longitude"},
        ),
    }
    if levels is not None:
        attrs = {"units": "hPa", "standard_name": "air_pressure", "positive": "down"}
        coords["level"] = ("level", np.asarray(levels), attrs)
    return xr.Dataset(data, coords), encoding, lengths


def _signature(
    template: xr.Dataset,
    variables: dict[str, tuple[xr.DataArray, dict[str, Any]]],
    bits: int | None,
    numbered: tuple[_Piece, ...],
) -> str:
    """Return a hash of everything that the store depends on.

    Of the values, only static fields and the first time are included.
    """
    found = hashlib.sha256()
    shape = {
        n: [list(map(str, v.dims)), list(v.shape), v.attrs] for n, v in template.variables.items()
    }
    found.update(
        json.dumps(
            [shape, bits, [p.__dict__ for p in numbered]], default=str, sort_keys=True
        ).encode()
    )
    for name in sorted(map(str, template.coords)):
        found.update(np.ascontiguousarray(template[name].values).tobytes())
    for name, (da, _) in sorted(variables.items()):
        values = da.isel(time=0).values if "time" in da.dims else da.values
        found.update(name.encode() + np.ascontiguousarray(values, np.float32).tobytes())
    return found.hexdigest()


def _check_same_values(work: _Work, finished: Sequence[int]) -> None:
    """Compare stored values with the source, at the last time of a few finished pieces.

    Raises
    ------
    SaveError
        If the values of a variable differ.
    """
    there = xr.open_dataset(
        work.path, engine="zarr", chunks=None, consolidated=False, decode_timedelta=True
    )
    for i in np.unique(np.linspace(0, len(finished) - 1, _COMPARED).astype(int)):
        piece = work.numbered[finished[i]]
        da, last = work.arrays[piece.name], piece.stop - 1
        values = _rounded(indexed.read(da.variable[last], piece.name), work.bits)
        if not np.array_equal(values, there[piece.name].variable[last].values, equal_nan=True):
            when = np.datetime_as_string(da["time"].values[last], unit="h")
            raise SaveError(
                f"the values of {piece.name!r} at {when} in '{work.path}' differ from the data.",
                fix="choose another path, or remove it to start again",
            )


def _rounded(values: np.ndarray, bits: int | None) -> np.ndarray:
    """Round float32 values to a number of mantissa bits; NaN and infinity are unchanged.

    The relative error is at most 2^−(bits+1).
    """
    values = np.ascontiguousarray(values, np.float32)
    if bits is None or bits == _MANTISSA:
        return values
    shift = _MANTISSA - bits
    raw = values.view(np.uint32)
    half = np.uint32((1 << (shift - 1)) - 1)
    rounded = (raw + half + ((raw >> np.uint32(shift)) & np.uint32(1))) & np.uint32(
        ~((1 << shift) - 1) & 0xFFFFFFFF
    )
    return np.where(np.isfinite(values), rounded.view(np.float32), values)

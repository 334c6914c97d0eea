"""``prepare``: write a local Zarr store for training from a slow or remote source.

The store holds only what training needs: the model's variables and levels, the target as six-hour
totals, a region and a range of times. Values are float32 in canonical units, north first. Each time
of a variable is one chunk, and many chunks share a file (a shard). A sample is then read with one
request per variable, and the store has few files.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
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
from xaurora.utils import lazy, storage
from xaurora.utils import zarr_stores as stores
from xaurora.utils.progress import log_line, track
from xaurora.utils.types import Given, PeriodLike

logger = logging.getLogger("xaurora")

NeedsOf: TypeAlias = Callable[[Fields, Sequence[str]], Needs]

_SHARD = 64 * 1024**2  # approximate bytes of a file before compression
_BLOCK = 512 * 1024**2  # approximate bytes in memory at once
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
    progress: bool = True,
) -> xr.Dataset:
    """Write a training store. See :meth:`xaurora.accessor.AuroraAccessor.prepare`.

    ``needs`` returns what a model needs of the fields, without some variables. With None all
    recognised variables are stored.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise OptionError(
            f"path must be a path that is not empty, got {path!r}.",
            fix="ds.aurora.prepare('training.zarr')",
        )
    whole = isinstance(bits, int | np.integer) and not isinstance(bits, bool)
    if bits is not None and not (whole and 1 <= bits <= _MANTISSA):
        raise OptionError(
            f"bits={bits!r} is not a number of mantissa bits: an integer from 1 to {_MANTISSA}.",
            fix="bits=12",
        )
    path = Path(path)
    variables = _variables(ds, target, needs, region, time)
    template, encoding, length = _template(variables)
    template.attrs |= {
        "title": "Prepared for training with xaurora",
        "Conventions": "CF-1.11",
        "xaurora_bits": "all" if bits is None else int(bits),
    }
    signature = _signature(template, variables, bits)
    template.attrs[_ATTRIBUTE] = signature
    blocks = range(0, template.sizes["time"], length)
    template.attrs[stores.PIECES] = len(blocks)
    done = 0
    if path.exists():
        done = stores.count_written_pieces(
            path,
            _ATTRIBUTE,
            signature,
            what="prepared store",
            argument="path",
            differs="other variables, times, region, bits or values",
        )
        if done:
            logger.info(
                "%s: resuming, %d of %d pieces are already written.", path, done, len(blocks)
            )
    else:
        with storage.wrap_write_errors(path):
            stores.create(path, template, encoding)
    source = xr.Dataset({n: da for n, (da, _) in variables.items() if "time" in da.dims})
    if done:
        _check_same_values(path, source, min(done * length, template.sizes["time"]), bits)
    size = sum(v.nbytes for v in template.data_vars.values())
    log_line(
        f"Writing {template.sizes['time']} times, {size / 1e9:.3g} GB before compression, to"
        f" {path}",
        shown=progress,
    )
    for i, first in enumerate(track(blocks, "prepare", unit="piece", shown=progress)):
        if i < done:
            continue
        piece = source.isel(time=slice(first, first + length)).compute()
        with storage.wrap_write_errors(path):
            plain = {
                n: (v.dims, _rounded(np.asarray(v.values), bits))
                for n, v in piece.data_vars.items()
            }
            xr.Dataset(plain).to_zarr(
                path, region={"time": slice(first, first + length)}, consolidated=False
            )
            stores.record_written_pieces(path, i + 1)
    return xr.open_dataset(
        path, engine="zarr", chunks=None, consolidated=False, decode_timedelta=True
    )


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
        chosen = fields.select(
            surface=needs.surface, static=needs.static, atmos=needs.atmos, levels=levels
        )
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
    """Return the attributes that remain true for canonical values."""
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
) -> tuple[xr.Dataset, dict[str, Any], int]:
    """Return an empty Dataset of the store, its encoding, and the number of times per piece.

    A piece is made of whole shards, and of whole chunks of the source unless these are very large.
    """
    import dask.array
    from zarr.codecs import BloscCodec

    data: dict[str, Any] = {}
    encoding: dict[str, Any] = {}
    changing = [da for da, _ in variables.values() if "time" in da.dims]
    count = changing[0].sizes["time"]
    frame = sum(4 * da.size for da in changing) // count
    largest = max(4 * da.size // count for da in changing)
    shard = max(min(_SHARD // largest, count), 1)
    stored = (da.encoding.get("preferred_chunks", {}).get("time", 1) for da in changing)
    source = max(stored, default=1)
    length = shard * max(round(max(min(source, max(_BLOCK // frame, 1)), 1) / shard), 1)
    for name, (da, attrs) in variables.items():
        codec = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4)
        if "time" not in da.dims:
            data[name] = (da.dims, np.asarray(da.values, np.float32), attrs)
            encoding[name] = {"compressors": (codec,)}
            continue
        one = da.shape[1:]
        empty = dask.array.zeros(da.shape, dtype=np.float32, chunks=(shard, *one))
        data[name] = (da.dims, empty, attrs)
        encoding[name] = {
            "chunks": (1, *one),
            "shards": (shard, *one),
            "compressors": (codec,),
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
    return xr.Dataset(data, coords), encoding, length


def _signature(
    template: xr.Dataset,
    variables: dict[str, tuple[xr.DataArray, dict[str, Any]]],
    bits: int | None,
) -> str:
    """Return a hash of everything that the store depends on.

    Of the values, only static fields and the first time are included.
    """
    found = hashlib.sha256()
    shape = {
        n: [list(map(str, v.dims)), list(v.shape), v.attrs] for n, v in template.variables.items()
    }
    found.update(json.dumps([shape, bits], default=str, sort_keys=True).encode())
    for name in sorted(map(str, template.coords)):
        found.update(np.ascontiguousarray(template[name].values).tobytes())
    for name, (da, _) in sorted(variables.items()):
        values = da.isel(time=0).values if "time" in da.dims else da.values
        found.update(name.encode() + np.ascontiguousarray(values, np.float32).tobytes())
    return found.hexdigest()


def _check_same_values(path: Path, data: xr.Dataset, count: int, bits: int | None) -> None:
    """Raise if stored values differ from the source, at a few times including the last one.

    Raises
    ------
    SaveError
        If the values of a variable differ.
    """
    there = xr.open_dataset(
        path, engine="zarr", chunks=None, consolidated=False, decode_timedelta=True
    )
    for i in np.unique(np.linspace(0, count - 1, min(count, _COMPARED)).astype(int)):
        source = data.isel(time=int(i)).compute()
        for name, da in source.data_vars.items():
            if not np.array_equal(
                _rounded(np.asarray(da.values), bits),
                there[name].isel(time=int(i)).values,
                equal_nan=True,
            ):
                when = np.datetime_as_string(data["time"].values[int(i)], unit="h")
                raise SaveError(
                    f"the values of {name!r} at {when} in '{path}' differ from the data.",
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

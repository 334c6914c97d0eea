"""Climatology in WeatherBench2's layout: hour × dayofyear.

The definitions are those of WeatherBench2's explicit method (``compute_climatology.py`` and
``utils.py``, commit 021c0b3; Rasp et al. 2024, doi:10.1029/2023MS004019). Every year is a circle of
366 days, and years without a 29 February repeat their last day. In a window around each day, the
weights of the days decrease linearly to zero at both ends. Does not depend on torch.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import MemoryTooSmallError, OptionError
from xaurora.evaluation import baselines
from xaurora.evaluation.bands import Band, bands_of
from xaurora.evaluation.windows import Days, Wanted, bytes_per_point, of_band
from xaurora.fields import labels, periods, precipitation
from xaurora.fields.found import Recognition
from xaurora.fields.unit_conversion import conversion
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.utils import dask_arrays, indexed, lazy, storage
from xaurora.utils.memory import free_host_memory
from xaurora.utils.progress import progress_bar
from xaurora.utils.types import Given
from xaurora.utils.workers import count, in_order

if TYPE_CHECKING:
    from tqdm import tqdm

DRY_MM = {6: 0.1, 24: 0.25}
"""Hours of a total → amount in mm below which it is dry.

Sources: Rodwell et al. (2010), doi:10.1002/qj.656, and WeatherBench2.
"""
STATISTICS = ("mean", "std", "quantile")
_MEMORY = 1024**3  # bytes for bands in memory at once; as much again for reading and for Python


def build(
    ds: xr.Dataset,
    names: Sequence[str] | str | None = None,
    *,
    window_days: int = 61,
    statistics: Sequence[str] | str = ("mean",),
    quantiles: Sequence[float] = (0.01, 0.1, 0.5, 0.9, 0.99),
    seeps: bool | Sequence[int] | int = True,
    leave_out: xr.Dataset | Sequence[Given] | None = None,
    store: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Compute a climatology by hour of the day and day of the year.

    Statistics are taken over all years and a window around each day. The result is float32 with
    366 × 4 fields per statistic, 6 GB for a level of a global 0.25° variable, in memory or in a
    store. In addition at most 2 GiB are held in memory. The data are read once: large grids are
    processed in bands of latitude, for which they are copied to temporary files. Runs on threads,
    or on the workers of the active dask.distributed client, which must reach the folder for
    temporary files.

    Parameters
    ----------
    ds : Dataset
        Fields or a truth (:func:`xaurora.open_imerg`), with any naming convention. Precipitation is
        summed over six hours first; daily totals are used unchanged.
    names : str or sequence of str, optional
        Variables in the data's own names; by default all that change over time.
    window_days : int
        Length of the window in days, odd; 61 in WeatherBench2.
    statistics : sequence of {"mean", "std", "quantile"}
        Statistics to compute, stored as ``name``, ``name_std`` and ``name_quantile`` (with dim
        ``quantile``).
    quantiles : sequence of float
        Levels for ``"quantile"``.
    seeps : bool or sequence of int
        Whether to add ``total_precipitation_6hr_seeps_dry_fraction`` and ``…_seeps_threshold`` (in
        metres) for precipitation, which SEEPS needs; or the periods in hours for which to add them,
        6 or 24. By default six hours, or a day if the data hold daily totals.
    leave_out : Dataset or sequence of times, optional
        A forecast, whose valid times are left out with their whole days, or times. A forecast that
        is scored against normals of its own days looks worse than it is, and the normals better.
    store : path, optional
        Write the result to this Zarr store, band by band, instead of into memory.
    overwrite : bool
        Whether to replace what is at ``store``.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Dataset
        Dims ``(hour, dayofyear[, quantile][, level], latitude, longitude)``, with the data's own
        names and units. Days without a time in their window are dropped. Missing values are
        excluded from all statistics.

    Raises
    ------
    OptionError
        If the window is not odd and positive, a statistic is unknown, a quantile is out of range,
        or a SEEPS period is neither 6 nor 24 hours.
    SaveError
        If there is no space for temporary files, or the store exists.
    MemoryTooSmallError
        If the result is larger than the free memory, without ``store``.

    Examples
    --------
    >>> normal = xaurora.climatology(ds, ["t2m"])
    >>> normal["t2m"].dims
    ('hour', 'dayofyear', 'latitude', 'longitude')
    """
    if (
        isinstance(window_days, bool)
        or not isinstance(window_days, numbers.Integral)
        or window_days < 1
        or window_days % 2 == 0
    ):
        raise OptionError(
            f"window_days={window_days!r} is not an odd positive integer.",
            fix="window_days=61",
        )
    wanted_statistics = [statistics] if isinstance(statistics, str) else list(statistics)
    if unknown := [s for s in wanted_statistics if s not in STATISTICS]:
        raise OptionError(
            f"there is no statistic {unknown}; valid values are"
            f" {', '.join(map(repr, STATISTICS))}.",
            fix="statistics=['mean']",
        )
    q = np.atleast_1d(np.asarray(quantiles, float))
    if not ((q > 0) & (q < 1)).all():
        raise OptionError(
            f"all quantiles must be between 0 and 1, got {list(q)}.", fix="quantiles=[0.5, 0.9]"
        )
    hours_of_seeps = _seeps_hours(seeps)
    found, wanted = baselines._chosen(ds, names)
    ds = labels.by_end(ds, found)
    times = found.times if found.times is not None else np.array([], "datetime64[ns]")
    if leave_out is not None:
        kept = ~np.isin(times.astype("datetime64[D]"), _days_left_out(leave_out))
        if not kept.any():
            raise OptionError(
                f"leave_out= leaves none of the {len(times)} times.",
                fix="use data of other years as well, or leave_out=None",
            )
        dim = found.axes["time"].dim
        ds, times = ds.isel({dim: np.flatnonzero(kept)}), times[kept]
        found = dataclasses.replace(found, times=times)
    days = Days.of(times, int(window_days))
    jobs = _jobs(ds, found, wanted, wanted_statistics, hours_of_seeps)
    coords: dict[str, Any] = {"hour": days.hours, "dayofyear": days.days}
    for job in jobs:
        dims = [d for d in ("level", "latitude", "longitude") if d in job.fields.dims]
        coords |= {d: job.fields[d] for d in dims}
    if "quantile" in wanted_statistics:
        coords["quantile"] = q
    attrs: dict[str, Any] = {"title": "Climatology", "window_days": int(window_days)}
    attrs |= described_period(times, left_out=leave_out is not None)
    empty = {key: variable for job in jobs for key, variable in _empty(job, days, q).items()}
    template = xr.Dataset(empty, coords, attrs)

    def fill(put: Callable[[str, Band, np.ndarray], None]) -> None:
        with progress_bar(
            total=sum(len(job.fields) for job in jobs),
            label="climatology",
            unit="time",
            shown=progress,
        ) as meter:
            for job in jobs:
                _run(job, days, q, put, meter)

    if store is not None:
        storage.check_overwrite(store, overwrite=overwrite)
        return _to_store(Path(store), template, jobs, days, q, fill)
    return _to_memory(template, fill)


def _seeps_hours(seeps: Given) -> list[int]:
    hours = ([6] if seeps else []) if isinstance(seeps, bool) else np.atleast_1d(seeps).tolist()
    if unknown := [h for h in hours if h not in DRY_MM]:
        raise OptionError(
            f"seeps={unknown} is not supported: the dry threshold is defined for totals over"
            f" {' and '.join(map(str, DRY_MM))} hours.",
            fix="seeps=6",
        )
    return hours


# --- variables to read and to write ---------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """One variable to read, renamed to the output's dims, and the statistics to compute."""

    name: str
    fields: xr.DataArray
    time_dim: str
    statistics: tuple[str, ...]
    dry: float | None
    seeps_name: str


def _jobs(
    ds: xr.Dataset,
    found: Recognition,
    wanted: list[str],
    statistics: list[str],
    hours: list[int],
) -> list[_Job]:
    time_dim = found.axes["time"].dim
    items = {item.source: item for item in found.fields.values()}
    times = found.times if found.times is not None else np.array([], "datetime64[ns]")
    jobs = []
    for name in wanted:
        if not items[name].variable.accumulated:
            da = baselines._public(baselines._six_hourly(ds, found, name), found)
            jobs.append(_Job(name, _ordered(da, time_dim), time_dim, tuple(statistics), None, ""))
            continue
        own = periods.declared_hours(name, dict(ds[name].attrs))
        shortest = (
            int(own)
            if own is not None and own > TIMESTEP_HOURS and own == int(own)
            else TIMESTEP_HOURS
        )
        wanted_hours = [shortest] if hours == [TIMESTEP_HOURS] and shortest in DRY_MM else hours
        raw = ds[name].assign_coords({time_dim: times})
        precipitation.check_not_running_totals(raw, name=name, dim=time_dim)
        for total in dict.fromkeys([shortest, *wanted_hours]):
            da = baselines._public(
                precipitation.accumulate(raw, total, name=name, dim=time_dim), found
            )
            dry = DRY_MM[total] * 1e-3 if total in wanted_hours else None
            if total == shortest or dry is not None:
                seeps_name = f"total_precipitation_{total}hr_seeps"
                mine = tuple(statistics) if total == shortest else ()
                jobs.append(_Job(name, _ordered(da, time_dim), time_dim, mine, dry, seeps_name))
    return jobs


def _ordered(da: xr.DataArray, time_dim: str) -> xr.DataArray:
    dims = [time_dim, *[d for d in ("level", "latitude", "longitude") if d in da.dims]]
    return indexed.as_array(lazy.transpose(dask_arrays.without_dask(da.variable), dims), da)


def _wanted(job: _Job, q: np.ndarray) -> tuple[Wanted, float]:
    """Return the statistics of a variable, and the metres per unit of its amounts."""
    if job.dry is None:
        return Wanted(job.statistics, q), 1.0
    to_metres = (conversion(str(job.fields.attrs.get("units", "m")), "m") or (1.0, 0.0))[0]
    return Wanted(job.statistics, q, job.dry / to_metres), to_metres


def _outputs(job: _Job) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the names and attributes of the result by statistic."""
    attrs = dict(job.fields.attrs)
    suffixes = {"mean": "", "std": "_std", "quantile": "_quantile"}
    out = {
        key: (f"{job.name}{suffixes[key]}", attrs) for key in STATISTICS if key in job.statistics
    }
    if job.dry is not None:
        words = f"fraction of totals below {job.dry * 1e3:g} mm"
        out["dry"] = f"{job.seeps_name}_dry_fraction", {"units": "1", "long_name": words}
        words = "amount exceeded by one third of wet totals"
        out["heavy"] = f"{job.seeps_name}_threshold", {"units": "m", "long_name": words}
    return out


def _empty(job: _Job, days: Days, q: np.ndarray) -> dict[str, xr.Variable]:
    """Return placeholders of the right dims and shape by the names of the result."""
    import dask.array

    out = {}
    for key, (name, attrs) in _outputs(job).items():
        dims = "hour", "dayofyear", *(("quantile",) if key == "quantile" else ())
        sizes = len(days.hours), len(days.days), *((len(q),) if key == "quantile" else ())
        shape = *sizes, *job.fields.shape[1:]
        made = dask.array.zeros(shape, dtype=np.float32, chunks=-1)
        out[name] = xr.Variable((*dims, *job.fields.dims[1:]), made, attrs)
    return out


# --- computing ------------------------------------------------------------------------------------


def _starts(job: _Job, days: Days, q: np.ndarray) -> list[int]:
    """Return the first rows of the bands, which have whole levels, or are parts of one."""
    rows, columns = job.fields.shape[-2:]
    point = bytes_per_point(days, _wanted(job, q)[0], len(job.fields))
    length = max(_MEMORY // (count() * columns * max(point, 1)), 1)
    total = int(np.prod(job.fields.shape[1:-1]))
    if length >= rows:
        return list(range(0, total, length // rows * rows))
    return [top + row for top in range(0, total, rows) for row in range(0, rows, length)]


def _run(
    job: _Job, days: Days, q: np.ndarray, put: Callable[[str, Band, np.ndarray], None], meter: tqdm
) -> None:
    """Compute all statistics of one variable, by bands that fit into memory."""
    wanted, to_metres = _wanted(job, q)
    names = _outputs(job)
    with bands_of(job.fields, _starts(job, days, q), meter) as bands:
        computed = in_order(_of_band, (days, wanted), bands, name="xaurora-climatology")
        for band, found in zip(bands, computed, strict=True):
            for key, values in found.items():
                put(names[key][0], band, values * to_metres if key == "heavy" else values)


def _of_band(state: tuple[Days, Wanted], band: Band) -> dict[str, np.ndarray]:
    found = of_band(band, *state)
    return {key: values.astype(np.float32) for key, values in found.items()}


# --- writing --------------------------------------------------------------------------------------


def described_period(times: np.ndarray, *, left_out: bool) -> dict[str, Any]:
    """Return the attributes that say which times normals rest on."""
    if not len(times):
        return {}
    return {
        "climatology_start": str(times.min().astype("datetime64[m]")),
        "climatology_end": str(times.max().astype("datetime64[m]")),
        "climatology_years": len(np.unique(times.astype("datetime64[Y]"))),
        "climatology_left_out": int(left_out),
    }


def _days_left_out(leave_out: xr.Dataset | Sequence[Given]) -> np.ndarray:
    """Return the days of a forecast's valid times, or of some times.

    Raises
    ------
    OptionError
        If they are neither.
    """
    if isinstance(leave_out, xr.Dataset):
        times, leads = baselines.times_of(leave_out)
        return np.unique((times[:, None] + leads[None]).astype("datetime64[D]"))
    try:
        return np.unique(np.atleast_1d(np.asarray(leave_out, "datetime64[ns]")).astype("M8[D]"))
    except (TypeError, ValueError):
        raise OptionError(
            f"leave_out must be a forecast or times, got {leave_out!r}.",
            fix="climatology(ds, leave_out=fc)",
        ) from None


def _to_memory(
    template: xr.Dataset, fill: Callable[[Callable[[str, Band, np.ndarray], None]], None]
) -> xr.Dataset:
    free = free_host_memory()
    if template.nbytes > free:
        raise MemoryTooSmallError(
            f"the climatology takes {template.nbytes / 1e9:.3g} GB, and {free / 1e9:.3g} GB of"
            " memory are free.",
            fix="xaurora.climatology(ds, ..., store='climatology.zarr'), or fewer variables",
        )
    arrays = {name: np.empty(da.shape, np.float32) for name, da in template.data_vars.items()}

    def put(name: str, band: Band, values: np.ndarray) -> None:
        out = arrays[name]
        flat = out.reshape(*values.shape[:-2], -1, values.shape[-1])
        flat[..., band.start : band.stop, :] = values

    fill(put)
    return template.assign({n: v.variable.copy(data=arrays[n]) for n, v in template.items()})


def _to_store(
    path: Path,
    template: xr.Dataset,
    jobs: list[_Job],
    days: Days,
    q: np.ndarray,
    fill: Callable[[Callable[[str, Band, np.ndarray], None]], None],
) -> xr.Dataset:
    """Write the bands to a store: a chunk is a band at one hour and day, a file a band at all."""
    import zarr

    encoding: dict[str, Any] = {}
    for job in jobs:
        rows = job.fields.shape[-2]
        starts = _starts(job, days, q)
        length = starts[1] if len(starts) > 1 else rows
        for key, (name, _) in _outputs(job).items():
            own = template[name].shape
            levels = own[3 if key == "quantile" else 2 : -2]
            part = min(length, rows), own[-1]
            many = [min(max(length // rows, 1), n) for n in levels]
            first = own[: len(own) - len(levels) - 2]
            chunk = *[1] * 2, *first[2:], *[1] * len(levels), *part
            encoding[name] = {"chunks": chunk, "shards": (*first, *many, *part)}

    def write(folder: Path) -> None:
        template.to_zarr(folder, mode="w", compute=False, consolidated=False, encoding=encoding)
        group: Any = zarr.open_group(folder, mode="r+", use_consolidated=False)

        def put(name: str, band: Band, values: np.ndarray) -> None:
            rows = template[name].shape[-2]
            first, stop = band.start // rows, -(-band.stop // rows)
            inner = slice(band.start - first * rows, band.stop - (stop - 1) * rows)
            has_level = "level" in template[name].dims
            before = values.shape[:-2]
            shape = *before, *((stop - first,) if has_level else ()), -1, values.shape[-1]
            places = *[slice(None)] * len(before), *((slice(first, stop),) if has_level else ())
            group[name][(*places, inner, slice(None))] = values.reshape(shape)

        fill(put)

    storage.replace_folder(path, write)
    return xr.open_dataset(path, engine="zarr", chunks=None, consolidated=False)

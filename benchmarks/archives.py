"""Archives of real length without real bytes, for measuring how data are read.

:class:`GeneratedStore` is a Zarr store that makes the bytes of a chunk when they are requested. It
counts requests and bytes, and can be slow or faulty. The values vary in space and time and lie in
the range of each variable, so that checks of plausibility pass.

Examples
--------
>>> store = arco(hours=48, shape=(16, 32))
>>> ds = xr.open_zarr(store, chunks=None, consolidated=False)
>>> store.bytes_read
0
"""

from __future__ import annotations

import asyncio
import collections
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import MemoryStore, WrapperStore

LEVELS_13 = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
LEVELS_37 = (
    *(1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 125, 150, 175, 200, 225, 250, 300, 350, 400),
    *(450, 500, 550, 600, 650, 700, 750, 775, 800, 825, 850, 875, 900, 925, 950, 975, 1000),
)
HOUR = np.timedelta64(1, "h")


class GeneratedStore(MemoryStore):
    """A Zarr store whose chunks are generated when they are requested.

    Parameters
    ----------
    latency : float
        Seconds that each request for a chunk takes.
    fault : callable, optional
        Called with the key and the number of the request for it, from 1; may raise, or return a
        number of bytes after which the chunk is cut off.
    """

    def __init__(
        self, *, latency: float = 0.0, fault: Callable[[str, int], int | None] | None = None
    ) -> None:
        super().__init__()
        self.latency, self.fault = latency, fault
        self.requests: collections.Counter[str] = collections.Counter()
        self._bytes = [0]  # shared by read-only views of this store
        self._arrays: dict[str, tuple[np.ndarray, tuple[int, ...], float]] = {}

    def add(
        self,
        name: str,
        dims: Sequence[str],
        shape: Sequence[int],
        chunks: Sequence[int],
        attrs: dict[str, Any],
        pattern: np.ndarray,
        wave: float,
    ) -> None:
        """Add a variable whose frames are ``pattern`` times 1 + ``wave`` · sin(time)."""
        zarr.create_array(
            self,
            name=name,
            shape=tuple(shape),
            chunks=tuple(chunks),
            dtype="float32",
            compressors=None,
            fill_value=np.nan,
            dimension_names=list(dims),
            attributes=attrs,
        )
        self._arrays[name] = (pattern.astype(np.float32), tuple(chunks), wave)

    @property
    def repeated(self) -> int:
        """Number of requests for a chunk that had been requested before."""
        return sum(count - 1 for count in self.requests.values())

    def forget(self) -> None:
        """Start counting anew."""
        self.requests.clear()
        self._bytes[0] = 0

    @property
    def bytes_read(self) -> int:
        """Bytes of chunks that were handed out."""
        return self._bytes[0]

    def with_read_only(self, read_only: bool = False) -> GeneratedStore:
        """Return a view of this store, with the same counts."""
        view = copy.copy(self)
        view._read_only = read_only
        return view

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a chunk, or metadata from memory."""
        name, _, rest = key.partition("/c/")
        if name not in self._arrays or not rest:
            return await super().get(key, prototype, byte_range)
        self.requests[key] += 1
        if self.latency:
            await asyncio.sleep(self.latency)
        data = self._chunk(name, tuple(map(int, rest.split("/"))))
        if self.fault is not None and (cut := self.fault(key, self.requests[key])) is not None:
            data = data[:cut]
        self._bytes[0] += len(data)
        return prototype.buffer.from_bytes(data)

    def _chunk(self, name: str, place: tuple[int, ...]) -> bytes:
        pattern, chunks, wave = self._arrays[name]
        times = place[0] * chunks[0] + np.arange(chunks[0])
        scale = 1.0 + wave * np.sin(times * 0.7).astype(np.float32)
        part = np.broadcast_to(pattern, chunks[1:])
        return (part[None] * scale.reshape(-1, *(1,) * part.ndim)).astype("<f4").tobytes()


class CountingStore(WrapperStore[Store]):
    """A Zarr store that counts what is read from another one.

    Examples
    --------
    >>> store = CountingStore(LocalStore("forecast.zarr"))
    >>> fc = xr.open_zarr(store, chunks=None, consolidated=False, decode_timedelta=True)
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.requests: collections.Counter[str] = collections.Counter()
        self._bytes = [0]

    def _with_store(self, store: Store) -> CountingStore:
        view = copy.copy(self)
        view._store = store
        return view

    @property
    def repeated(self) -> int:
        """Number of requests for a chunk that had been requested before."""
        return sum(count - 1 for count in self.requests.values())

    @property
    def bytes_read(self) -> int:
        """Bytes of chunks that were handed out, compressed as they are."""
        return self._bytes[0]

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a chunk of the other store."""
        found = await self._store.get(key, prototype, byte_range)
        if "/c/" in key and found is not None:
            self.requests[key] += 1
            self._bytes[0] += len(found)
        return found


def _grid(shape: tuple[int, int]) -> dict[str, Any]:
    h, w = shape
    lat = np.linspace(90, -90, h) if h % 2 else 90 - (np.arange(h) + 0.5) * 180 / h
    return {"latitude": lat, "longitude": np.arange(w) * 360.0 / w}


# name → typical value, relative spread in space, relative wave in time, attributes
_SURFACE: dict[str, tuple[float, float, float, dict[str, str]]] = {
    "2m_temperature": (280.0, 0.08, 0.01, {"units": "K", "standard_name": "air_temperature"}),
    "10m_u_component_of_wind": (4.0, 2.0, 0.5, {"units": "m s**-1"}),
    "10m_v_component_of_wind": (2.0, 3.0, 0.5, {"units": "m s**-1"}),
    "mean_sea_level_pressure": (101_000.0, 0.01, 0.002, {"units": "Pa"}),
}
_ATMOS: dict[str, tuple[float, float, float, dict[str, str]]] = {
    "temperature": (250.0, 0.08, 0.01, {"units": "K", "standard_name": "air_temperature"}),
    "u_component_of_wind": (10.0, 1.0, 0.3, {"units": "m s**-1"}),
    "v_component_of_wind": (3.0, 3.0, 0.3, {"units": "m s**-1"}),
    "specific_humidity": (3e-3, 0.9, 0.05, {"units": "kg kg**-1"}),
    "geopotential": (1.0, 0.02, 0.005, {"units": "m**2 s**-2"}),
}
_STATIC = {
    "land_sea_mask": {"units": "1"},
    "soil_type": {"units": "1"},
    "geopotential_at_surface": {"units": "m**2 s**-2"},
}


def _pattern(shape: Sequence[int], mean: float, spread: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return mean * (1.0 + spread * (rng.random(tuple(shape)) - 0.5) * 2)


def _rain(shape: tuple[int, int], mean: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(0.5, 1.0, shape) * (rng.random(shape) < 0.4)
    return amounts * mean / amounts.mean()


def make(
    start: str,
    count: int,
    step: np.timedelta64,
    *,
    shape: tuple[int, int] = (721, 1440),
    levels: Sequence[float] = LEVELS_13,
    rain_hours: int = 6,
    chunk: int = 1,
    surface: Sequence[str] = tuple(_SURFACE),
    atmos: Sequence[str] = tuple(_ATMOS),
    **options: Any,
) -> GeneratedStore:
    """Return a store with Aurora's variables and precipitation.

    Parameters
    ----------
    start : str
        First time.
    count : int
        Number of times.
    step : timedelta64
        Between them.
    shape : (int, int)
        Rows and columns of the globe.
    levels : sequence of float
        hPa.
    rain_hours : int
        Period of ``total_precipitation``.
    chunk : int
        Times in a chunk.
    surface, atmos : sequence of str
        Variables.
    **options
        Of :class:`GeneratedStore`.
    """
    store = GeneratedStore(**options)
    zarr.create_group(store)
    dims = ("time", "latitude", "longitude")
    hours = ((np.datetime64(start, "h") - np.datetime64("1900-01-01", "h")) / HOUR) + (
        np.arange(count) * (step / HOUR)
    )
    coords: dict[str, tuple[np.ndarray, dict[str, str]]] = {
        "time": (hours.astype(np.int64), {"units": "hours since 1900-01-01"}),
        "level": (np.asarray(levels, np.int64), {"units": "hPa"}),
    }
    coords |= {
        name: (values, {"units": f"degrees_{'north' if name == 'latitude' else 'east'}"})
        for name, values in _grid(shape).items()
    }
    for name, (values, attrs) in coords.items():
        array = zarr.create_array(
            store,
            name=name,
            shape=values.shape,
            chunks=(min(len(values), 1_000_000),),
            dtype=values.dtype,
            dimension_names=[name],
            attributes=attrs,
        )
        array[:] = values
    for i, name in enumerate(surface):
        mean, spread, wave, attrs = _SURFACE[name]
        pattern = _pattern(shape, mean, spread, i)
        store.add(name, dims, (count, *shape), (chunk, *shape), attrs, pattern, wave)
    suffix = "" if rain_hours == 1 else f"_{rain_hours}hr"
    rain = {"units": "m", "standard_name": "lwe_thickness_of_precipitation_amount"}
    rain["cell_methods"] = f"time: sum (interval: {rain_hours} hour{'s' * (rain_hours > 1)})"
    pattern = _rain(shape, 1.2e-4 * rain_hours, 7)
    name = f"total_precipitation{suffix}"
    store.add(name, dims, (count, *shape), (chunk, *shape), rain, pattern, 0.9)
    for i, name in enumerate(atmos):
        mean, spread, wave, attrs = _ATMOS[name]
        pattern = _pattern((len(levels), *shape), mean, spread, 20 + i)
        if name == "geopotential":  # of the standard atmosphere
            height = 44_330.8 * (1.0 - (np.asarray(levels) / 1013.25) ** 0.190263)
            pattern *= (9.80665 * height)[:, None, None]
        full = (len(levels), *shape)
        store.add(
            name, ("time", "level", *dims[1:]), (count, *full), (chunk, *full), attrs, pattern, wave
        )
    for i, (name, attrs) in enumerate(_STATIC.items()):
        values = np.random.default_rng(40 + i).random(shape).astype(np.float32)
        array = zarr.create_array(
            store,
            name=name,
            shape=shape,
            chunks=shape,
            dtype="float32",
            dimension_names=list(dims[1:]),
            attributes=attrs,
        )
        array[:] = values
    return store


def arco(hours: int = 1_323_648, **options: Any) -> GeneratedStore:
    """Return a store like ARCO-ERA5: hourly since 1900, 37 levels, one time in a chunk."""
    made = {"levels": LEVELS_37, "rain_hours": 1, **options}
    return make("1900-01-01T00", hours, HOUR, **made)


def weatherbench2(years: float = 60, **options: Any) -> GeneratedStore:
    """Return a store like WeatherBench2's: 6-hourly, 13 levels."""
    return make("1963-01-01T00", int(years * 1461), 6 * HOUR, **options)


def cds(folder: Path, months: int = 120, shape: tuple[int, int] = (721, 1440)) -> list[Path]:
    """Write files like those of the CDS, sparse: monthly, hourly tp beside 6-hourly states.

    The values are fill values of HDF5 and take no space: zero, which the packing turns into a
    plausible number.
    """
    import h5netcdf

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for month in range(months):
        first = (np.datetime64("2010-01") + month).astype("datetime64[h]")
        last = (np.datetime64("2010-01") + month + 1).astype("datetime64[h]")
        for kind, step in (("states", 6), ("rain", 1)):
            path = folder / f"{kind}-{first.astype('datetime64[M]')}.nc"
            paths.append(path)
            times = np.arange(first, last, step)
            with h5netcdf.File(path, "w") as file:
                _write_cds(file, times, shape, rain=kind == "rain")
    paths.append(folder / "static.nc")
    with h5netcdf.File(paths[-1], "w") as file:
        grid = _grid(shape)
        file.dimensions = {name: len(values) for name, values in grid.items()}
        for name, values in grid.items():
            variable = file.create_variable(name, (name,), values.dtype, data=values)
            variable.attrs["units"] = f"degrees_{'north' if name == 'latitude' else 'east'}"
        land = np.random.default_rng(0).random(shape, np.float32)
        variable = file.create_variable("lsm", ("latitude", "longitude"), "f4", data=land)
        variable.attrs["units"] = "1"
    return paths


def _write_cds(file: Any, times: np.ndarray, shape: tuple[int, int], *, rain: bool) -> None:
    grid = _grid(shape)
    levels = np.array([1000, 850, 500, 250], np.float64)
    file.dimensions = {"valid_time": len(times), "pressure_level": len(levels)} | {
        name: len(values) for name, values in grid.items()
    }
    seconds = (times - np.datetime64("1970-01-01", "h")).astype("timedelta64[s]").astype(np.int64)
    coords = {
        "valid_time": (seconds, {"units": "seconds since 1970-01-01", "standard_name": "time"}),
        "pressure_level": (levels, {"units": "hPa", "standard_name": "air_pressure"}),
        "latitude": (grid["latitude"], {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": (grid["longitude"], {"units": "degrees_east", "standard_name": "longitude"}),
    }
    for name, (values, attrs) in coords.items():
        variable = file.create_variable(name, (name,), values.dtype, data=values)
        variable.attrs.update(attrs)
    surface = (
        {
            "tp": (1e-4, "m"),
        }
        if rain
        else {
            "t2m": (280.0, "K"),
            "u10": (4.0, "m s**-1"),
            "v10": (1.0, "m s**-1"),
            "msl": (101e3, "Pa"),
        }
    )
    atmos = (
        {}
        if rain
        else {
            "t": (250.0, "K"),
            "u": (10.0, "m s**-1"),
            "v": (1.0, "m s**-1"),
            "q": (3e-3, "kg kg**-1"),
            "z": (5e4, "m**2 s**-2"),
        }
    )
    for names, dims in (
        (surface, ("valid_time", "latitude", "longitude")),
        (atmos, ("valid_time", "pressure_level", "latitude", "longitude")),
    ):
        for name, (value, units) in names.items():
            chunks = (1, *(file.dimensions[d].size for d in dims[1:]))
            variable = file.create_variable(name, dims, "i2", chunks=chunks, fillvalue=0)
            variable.attrs.update(
                {"units": units, "add_offset": value, "scale_factor": 1e-3 * value}
            )
            variable.attrs["_FillValue"] = np.int16(-32767)


def open_generated(store: GeneratedStore, **options: Any) -> xr.Dataset:
    """Open a generated store, by default without dask."""
    return xr.open_zarr(store, consolidated=False, **{"chunks": None, **options})

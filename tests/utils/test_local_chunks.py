"""Chunks of local Zarr stores: the values that Zarr reads, and its errors for what is damaged."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from xaurora.utils import local_chunks
from xaurora.utils.dask_arrays import without_dask
from xaurora.utils.local_chunks import LocalChunks

SHAPE = (7, 3, 10, 11)
STORED: dict[str, dict[str, Any]] = {
    "fields": {"chunks": (1, 3, 10, 11)},
    "cut": {"chunks": (2, 2, 4, 5), "compressors": ZstdCodec(level=3)},
    "blosc": {"chunks": (3, 1, 10, 11), "compressors": BloscCodec(typesize=4)},
    "gzip": {"chunks": (2, 3, 10, 11), "compressors": GzipCodec()},
    "bare": {"chunks": (2, 3, 10, 4), "compressors": None},
    "checked": {"chunks": (2, 3, 10, 4), "compressors": (ZstdCodec(), Crc32cCodec())},
    "shards": {"chunks": (1, 3, 5, 11), "shards": (4, 3, 10, 11)},
    "index first": {
        "chunks": (4, 3, 10, 11),
        "serializer": ShardingCodec(
            chunk_shape=(2, 3, 5, 11),
            codecs=[BytesCodec(), ZstdCodec(), Crc32cCodec()],
            index_location="start",
        ),
        "compressors": None,
    },
    "2": {"zarr_format": 2, "chunks": (2, 3, 4, 11)},
    "2, folders": {
        "zarr_format": 2,
        "chunks": (2, 3, 4, 11),
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
    "2, no compressor": {"zarr_format": 2, "chunks": (2, 3, 4, 11), "compressors": None},
    "other separator": {
        "chunks": (2, 3, 10, 11),
        "chunk_key_encoding": {"name": "default", "separator": "."},
    },
}
LEFT: dict[str, dict[str, Any]] = {
    "big-endian": {"chunks": (2, 3, 10, 11), "serializer": BytesCodec(endian="big")},
    "column by column": {"zarr_format": 2, "order": "F", "chunks": (2, 3, 10, 11)},
    "booleans": {"dtype": bool, "chunks": (2, 3, 10, 11)},
}


def _made(path: Path, how: dict[str, Any], *, skipped: int = 4) -> zarr.Array:
    """Write an array, of whose first dim the last chunks are missing."""
    options = {"dtype": "float32", "fill_value": -1} | how
    names = {} if options.get("zarr_format") == 2 else {"dimension_names": [*"abcd"]}
    array = zarr.create_array(path, name="x", shape=SHAPE, **options, **names)
    if not names:
        array.attrs["_ARRAY_DIMENSIONS"] = [*"abcd"]
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(options["dtype"])
    array[:skipped] = values[:skipped]
    return array


def _opened(path: Path) -> xr.Variable:
    options: dict[str, Any] = {"chunks": None, "consolidated": False, "mask_and_scale": False}
    return xr.open_zarr(path, **options)["x"].variable


class _Arrays(dict[str, tuple[np.ndarray, xr.Variable]]):
    __repr__ = object.__repr__  # of all values, Hypothesis would complain


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> _Arrays:
    folder = tmp_path_factory.mktemp("arrays")
    made = {name: _made(folder / name, how)[:] for name, how in STORED.items()}
    return _Arrays({n: (v, without_dask(_opened(folder / n))) for n, v in made.items()})


def _is_direct(variable: xr.Variable) -> bool:
    data = variable._data
    while data is not None and not isinstance(data, LocalChunks):
        data = getattr(data, "array", None)
    return data is not None


def _indices(size: int) -> st.SearchStrategy[Any]:
    slices = st.slices(size)
    return st.one_of(st.integers(-size, size - 1), slices, st.lists(st.integers(0, size - 1)))


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from([*STORED]), key=st.tuples(*map(_indices, SHAPE)))
def test_values_are_those_of_zarr(arrays, name: str, key: tuple[Any, ...]) -> None:
    """At integers, slices with any step, and lists, which are Zarr's."""
    values, variable = arrays[name]
    assert _is_direct(variable)
    for index, size in zip(key, SHAPE, strict=True):  # where xarray itself fails
        assume(not isinstance(index, slice) or range(*index.indices(size)) or (index.step or 1) > 0)
    expected = xr.Variable(variable.dims, values)[key]
    found = variable[key]
    assert found.dims == expected.dims
    np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize("how", LEFT.values(), ids=LEFT.keys())
def test_others_are_left_to_zarr(tmp_path: Path, how: dict[str, Any]) -> None:
    values = _made(tmp_path / "a", how)[:]
    variable = without_dask(_opened(tmp_path / "a"))
    assert not _is_direct(variable)
    np.testing.assert_array_equal(variable.values, values)


def test_other_stores_are_left_to_zarr(tmp_path: Path) -> None:
    _made(tmp_path / "a", STORED["fields"])
    store = zarr.storage.WrapperStore(zarr.storage.LocalStore(tmp_path / "a", read_only=True))
    variable = xr.open_zarr(store, chunks=None, consolidated=False)["x"].variable
    assert without_dask(variable) is variable


@pytest.mark.parametrize("name", STORED)
def test_steps_go_on_across_chunks(arrays, name: str) -> None:
    values, variable = arrays[name]
    for key in (np.s_[::2, ::2, 1::3, 2::4], np.s_[1:6:3, 1, 3:, ::5], np.s_[2:, :, :9:7, 4]):
        np.testing.assert_array_equal(variable[key].values, values[key])


def test_positions_that_do_not_exist_are_refused(arrays) -> None:
    _, variable = arrays["cut"]
    for key in (SHAPE[0], 100):
        with pytest.raises(IndexError):
            _ = variable[key].values


def test_stores_joined_by_dask(tmp_path: Path) -> None:
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    values = [_made(path, STORED["cut"])[:] for path in paths]
    options: dict[str, Any] = {"combine": "nested", "concat_dim": "a", "consolidated": False}
    ds = xr.open_mfdataset(paths, engine="zarr", mask_and_scale=False, **options)
    variable = without_dask(ds["x"].variable)
    assert all(map(_is_direct, variable._data.array.parts))
    np.testing.assert_array_equal(variable[2:11:3].values, np.concatenate(values)[2:11:3])


def test_small_chunks_are_read_on_threads_too(tmp_path: Path) -> None:
    values = _made(tmp_path / "a", {"chunks": (1, 1, 2, 11), "shards": (2, 3, 4, 11)})[:]
    np.testing.assert_array_equal(without_dask(_opened(tmp_path / "a")).values, values)


def test_conversions_of_xarray_are_kept(tmp_path: Path) -> None:
    """Packed integers with missing values, opened as users do, also through dask."""
    values = np.random.default_rng(0).normal(280, 10, (6, 4, 5)).astype("float32")
    values[2, 1] = np.nan
    packed = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32768}
    ds = xr.Dataset({"x": (("time", "y", "z"), values)})
    ds.to_zarr(tmp_path / "a", encoding={"x": {**packed, "chunks": (1, 4, 5)}}, consolidated=False)
    for chunks in (None, {}):
        opened = xr.open_zarr(tmp_path / "a", chunks=chunks, consolidated=False)["x"].variable
        direct = without_dask(opened)
        assert _is_direct(direct)
        np.testing.assert_array_equal(direct[1:4].values, opened[1:4].values)
        assert direct.encoding == opened.encoding
        again = pickle.loads(pickle.dumps(direct))
        np.testing.assert_array_equal(again[2].values, opened[2].values)


@pytest.mark.parametrize(
    "name", ["fields", "blosc", "bare", "shards", "index first", "checked", "2"]
)
def test_damaged_files_are_errors(tmp_path: Path, name: str) -> None:
    """Cut off anywhere or emptied: never other values."""
    _made(tmp_path / "a", STORED[name], skipped=7)
    variable = without_dask(_opened(tmp_path / "a"))
    files = [p for p in (tmp_path / "a" / "x").rglob("*") if p.is_file() and ".z" not in p.name]
    file = max((p for p in files if p.name != "zarr.json"), key=lambda p: p.stat().st_size)
    whole = file.read_bytes()
    for length in (0, 1, 3, 4, 17, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises((ValueError, RuntimeError, OSError)):
            _ = variable.values
    file.write_bytes(whole)
    assert np.isfinite(variable.values).all()


def test_a_changed_byte_is_found_by_the_checksum(tmp_path: Path) -> None:
    _made(tmp_path / "a", STORED["checked"])
    variable = without_dask(_opened(tmp_path / "a"))
    file = tmp_path / "a" / "x" / "c" / "0" / "0" / "0" / "0"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="checksum"):
        _ = variable[0].values


def test_large_chunks_are_decoded_on_threads_and_buffers_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_chunks, "_LARGE", 1)
    made: list[int] = []
    real = np.empty

    def counted(shape: Any, *args: Any) -> np.ndarray:
        if args == (np.uint8,):
            made.append(int(shape))
        return real(shape, *args)

    values = _made(tmp_path / "a", STORED["cut"])[:]
    variable = without_dask(_opened(tmp_path / "a"))
    monkeypatch.setattr(local_chunks, "_free", [])
    monkeypatch.setattr(local_chunks.np, "empty", counted)
    for _ in range(20):
        np.testing.assert_array_equal(variable.values, values)
    # 72 chunks each time; two buffers for each thread, which may grow once or twice
    assert len(made) <= 8 * local_chunks._CORES
    assert variable.values.flags.owndata

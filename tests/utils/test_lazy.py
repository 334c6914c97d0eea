"""Lazy arrays: the same values as xarray's own arithmetic, and reads of what is indexed alone."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from xarray.backends import BackendArray
from xarray.core import indexing

from xaurora.utils import dask_arrays, lazy

SHAPE = (40, 4, 6)
DIMS = ("time", "y", "x")


class Counting(BackendArray):
    """An array that notes the positions along time that are read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.reads: list[Any] = []

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        self.reads.append(np.atleast_1d(np.arange(self.shape[0])[key[0]]).tolist())
        out = self.values
        for axis in reversed(range(len(key))):
            out = out[(slice(None),) * axis + (key[axis],)]
        return out


def _values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def _lazy(values: np.ndarray) -> tuple[xr.Variable, Counting]:
    array = Counting(values)
    return xr.Variable(DIMS, indexing.LazilyIndexedArray(array)), array


def _da(values: np.ndarray) -> xr.DataArray:
    return xr.DataArray(values, dims=DIMS, coords={"time": np.arange(len(values))})


def _lazy_da(values: np.ndarray) -> tuple[xr.DataArray, Counting]:
    variable, array = _lazy(values)
    return xr.DataArray(variable, {"time": np.arange(len(values))}), array


POSITIONS = np.stack([np.arange(40), np.arange(40) - 1, np.arange(40) - 2], axis=1)
POSITIONS[POSITIONS < 0] = lazy.MISSING
POSITIONS[5, 1] = lazy.NOTHING
CHOICE = np.array([[3, 4, 3], [39, 0, 1]])


def _summed(da: xr.DataArray) -> xr.DataArray:
    return lazy.combine_frames(da, "time", POSITIONS, weights=(1, 0.5, -1), clip="parts")


def _expected_sum(da: xr.DataArray) -> np.ndarray:
    values = np.clip(da.values.astype(np.float64), 0.0, None)
    total = np.zeros(SHAPE)
    for column, weight in zip(POSITIONS.T, (1, 0.5, -1), strict=True):
        part = values[np.maximum(column, 0)]
        part[column == lazy.MISSING] = np.nan
        part[column == lazy.NOTHING] = 0.0
        total += weight * part
    return total.astype(np.float32)


def _block_mean(values: np.ndarray) -> np.ndarray:
    return values.reshape(*values.shape[:-2], 2, 2, 3, 2).mean(axis=(-3, -1))


def _in_chunks(variable: xr.Variable) -> xr.Variable:
    variable.encoding["preferred_chunks"] = {"y": 4}
    return variable


OPERATIONS: dict[str, tuple[Callable[[xr.DataArray], Any], Callable[[xr.DataArray], Any]]] = {
    "map_values": (
        lambda da: lazy.map_values(da.variable, lambda v: 2 * v + 1, np.float64),
        lambda da: (2 * da.values + 1).astype(np.float64),
    ),
    "map_fields": (
        lambda da: lazy.map_fields(da.variable, _block_mean, (2, 3), np.float32),
        lambda da: _block_mean(da.values),
    ),
    "transpose": (
        lambda da: lazy.transpose(da.variable, ("x", "time", "y")),
        lambda da: da.values.transpose(2, 0, 1),
    ),
    "concat": (
        lambda da: lazy.concat([da.variable, da.variable[3:9]], "time"),
        lambda da: np.concatenate([da.values, da.values[3:9]]),
    ),
    "concat along x": (
        lambda da: lazy.concat([da.variable[:, :, 2:], da.variable], "x"),
        lambda da: np.concatenate([da.values[..., 2:], da.values], axis=2),
    ),
    "combine_frames": (lambda da: _summed(da).variable, _expected_sum),
    "gather": (
        lambda da: lazy.gather(da, {"time": CHOICE}, ("a", "b")).variable,
        lambda da: da.values[CHOICE],
    ),
    "gather of two dims": (
        lambda da: lazy.gather(da, {"time": CHOICE, "y": CHOICE % 4}, ("a", "b")).variable,
        lambda da: da.values[CHOICE, CHOICE % 4],
    ),
    "take": (
        lambda da: lazy.take(_in_chunks(da.variable), "y", [3, 0, 2]),
        lambda da: da.values[:, [3, 0, 2]],
    ),
    "expand": (lambda da: lazy.expand(da.variable, "lead"), lambda da: da.values[None]),
    "where_at_least": (
        lambda da: lazy.where_at_least(da, da * 2, 0.5).variable,
        lambda da: np.where(da.values * 2 >= 0.5, da.values, np.nan),
    ),
}


def _indexers(size: int) -> st.SearchStrategy[Any]:
    place = st.integers(-size, size - 1)
    return st.one_of(
        place,
        # xarray cannot take an empty part backwards
        st.slices(size).filter(lambda part: len(range(*part.indices(size))) > 0),
        st.lists(place, min_size=1, max_size=5).map(np.array),
    )


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_index_of_a_lazy_array_is_that_of_its_values(name: str, data: st.DataObject) -> None:
    make, expected = OPERATIONS[name]
    da = _lazy_da(_values())[0]
    made, values = make(da), expected(_da(_values()))
    assert made.shape == values.shape
    key = tuple(data.draw(_indexers(size)) for size in made.shape)
    reference = xr.Variable(made.dims, values)[key]
    np.testing.assert_array_equal(made[key].values, reference.values)
    again = data.draw(_indexers(max(reference.shape[0], 1))) if reference.ndim else ()
    if reference.size:
        np.testing.assert_array_equal(made[key][again].values, reference[again].values)


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_read_before_it_is_indexed(name: str) -> None:
    da, array = _lazy_da(_values())
    if name == "where_at_least":
        return  # its share is computed in the example itself
    made = OPERATIONS[name][0](da)
    assert not array.reads
    assert not made._in_memory
    made[(0,) * made.ndim].values  # noqa: B018
    assert len({t for read in array.reads for t in read}) <= 3


@pytest.mark.parametrize("name", OPERATIONS)
def test_values_in_memory_give_the_same(name: str) -> None:
    make, expected = OPERATIONS[name]
    np.testing.assert_array_equal(make(_da(_values())).values, expected(_da(_values())))


def test_a_running_sum_reads_each_frame_once() -> None:
    da, array = _lazy_da(_values())
    _summed(da).isel(time=slice(10, 20)).values  # noqa: B018
    assert [t for read in array.reads for t in read] == list(range(8, 20))


def test_a_long_sum_is_made_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_BLOCK", 8 * 24 * 7)
    da, array = _lazy_da(_values())
    np.testing.assert_array_equal(_summed(da).values, _expected_sum(_da(_values())))
    assert max(map(len, array.reads)) <= 9


def test_points_that_are_gathered_twice_are_read_once() -> None:
    da, array = _lazy_da(_values())
    lazy.gather(da, {"time": CHOICE}, ("a", "b")).values  # noqa: B018
    assert sorted(t for read in array.reads for t in read) == [0, 1, 3, 4, 39]


# --- dask ---


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lazy")
    ds = xr.Dataset(
        {"a": (DIMS, _values())},
        {"time": pd.date_range("2020", periods=40), "y": np.arange(4), "x": np.arange(6)},
    )
    ds.to_zarr(folder / "a.zarr", encoding={"a": {"chunks": (1, 4, 6)}}, consolidated=False)
    packed = {"a": {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -9999}}
    for i in range(4):
        part = ds.isel(time=slice(10 * i, 10 * i + 10))
        part.to_netcdf(folder / f"{i}.nc", engine="h5netcdf", encoding=packed)
    return folder


def _zarr(folder: Path) -> xr.DataArray:
    return xr.open_zarr(folder / "a.zarr", chunks={}, consolidated=False)["a"]


def _files(folder: Path) -> xr.DataArray:
    return xr.open_mfdataset(str(folder / "*.nc"), engine="h5netcdf")["a"]


SELECTIONS: dict[str, Callable[[xr.DataArray], xr.DataArray]] = {
    "all": lambda da: da,
    "times": lambda da: da.sel(time=slice("2020-01-05", "2020-02-01")),
    "every second time, from the end": lambda da: da.isel(time=slice(None, None, -2)),
    "one row": lambda da: da.isel(y=2),
    "rows": lambda da: da.isel(y=[2, 0, 1]),
    "some times": lambda da: da.isel(time=[5, 3, 20, 21, 39, 1]),
    "odd days": lambda da: da.isel(time=da["time"].dt.day.values % 2 == 1),
    "reversed rows": lambda da: da.sortby("y", ascending=False),
    "a box": lambda da: da.isel(time=slice(5, 25, 2), y=[3, 1], x=slice(1, 4)),
    "twice": lambda da: da.isel(time=slice(5, 30)).isel(time=[3, 4, 9]).isel(x=slice(1, 4)),
    "transposed": lambda da: da.transpose("x", "time", "y"),
    "transposed part": lambda da: da.isel(time=slice(3, 9)).transpose("y", "x", "time"),
    "other chunks": lambda da: da.chunk(time=7),
    "joined rows": lambda da: xr.concat([da.isel(y=[0, 1]), da.isel(y=[2, 3])], "y"),
}
COMPUTED: dict[str, Callable[[xr.DataArray], xr.DataArray]] = {
    "twice as much": lambda da: da * 2,
    "shifted": lambda da: da.shift(time=1),
    "other type": lambda da: da.astype("f2"),
    "mean": lambda da: da.mean("x"),
    "one time": lambda da: (da + 1).isel(time=3),
}


def _innermost(variable: xr.Variable) -> Any:
    data: Any = variable._data
    while hasattr(data, "array"):
        data = data.array
    return data


@pytest.mark.parametrize("of", [_zarr, _files], ids=["zarr", "files"])
@pytest.mark.parametrize("how", [*SELECTIONS, *COMPUTED])
def test_dask_is_taken_away(how: str, of: Callable[[Path], xr.DataArray], store: Path) -> None:
    da = {**SELECTIONS, **COMPUTED}[how](of(store))
    found = dask_arrays.without_dask(da.variable)
    assert found.chunks is None
    assert isinstance(_innermost(found), dask_arrays._Computed) == (how in COMPUTED)
    np.testing.assert_array_equal(found.values, da.values)
    part = tuple(slice(1, None, 2) if i % 2 else size // 2 for i, size in enumerate(da.shape))
    np.testing.assert_array_equal(found[part].values, da.variable[part].values)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).values, da.values)


def test_what_dask_computes_is_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []

    def note(block: np.ndarray) -> np.ndarray:
        computed.append(len(block))
        return block + 1

    da = _da(_values()).chunk(time=1)
    mapped = da.copy(data=da.data.map_blocks(note, dtype=np.float32, meta=np.empty((0, 0, 0))))
    monkeypatch.setattr(dask_arrays, "_MOST_FRAMES", 10)
    found = dask_arrays.without_dask(mapped.variable)
    computed.clear()
    for i in range(40):
        np.testing.assert_array_equal(found[i].values, _values()[i] + 1)
    assert sum(computed) == 40

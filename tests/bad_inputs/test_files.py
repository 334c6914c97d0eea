"""Files that are damaged, cut off or something else: named when opened, or when they are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import xarray as xr

import xaurora
from xaurora import errors
from xaurora.utils import indexed

NOT_DATA = {
    "empty.nc": b"",
    "text.nc": b"an error page that was saved as data",
    "page.nc": b"<html><body>404 Not found</body></html>",
    "archive.nc": b"PK\x03\x04" + bytes(100),
    "table.txt": b"time,latitude,longitude\n1,2,3\n",
    "empty.grib": b"",
    "text.grib": b"GRIB is not here",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NetCDF file whose chunks have checksums, and a Zarr store, of data that are right."""
    folder = tmp_path_factory.mktemp("good")
    ds = xaurora.synthetic(shape=(12, 16), times=14)
    moving = {n: v for n, v in ds.items() if "time" in v.dims}
    checked = {"zlib": True, "fletcher32": True}
    ds.to_netcdf(
        folder / "ok.nc",
        encoding={n: {**checked, "chunksizes": (1, *v.shape[1:])} for n, v in moving.items()},
    )
    ds.to_zarr(
        folder / "ok.zarr",
        encoding={n: {"chunks": (1, *v.shape[1:])} for n, v in moving.items()},
        consolidated=False,
    )
    return folder


@pytest.mark.parametrize("name", NOT_DATA)
def test_what_is_no_data_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(NOT_DATA[name])
    with pytest.raises(errors.SourceError, match=name) as error:
        xaurora.open(tmp_path / name)
    assert error.value.fix


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_a_netcdf_file_that_is_cut_off(good: Path, tmp_path: Path, share: float) -> None:
    data = (good / "ok.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(errors.SourceError, match=r"cut\.nc"):
        xaurora.open(tmp_path / "cut.nc")


def _chunks(store: Path) -> list[Path]:
    return sorted(p for p in (store / "t2m").rglob("*") if p.is_file() and p.name != "zarr.json")


def _broken_netcdf(good: Path, folder: Path) -> Path:
    shutil.copy(good / "ok.nc", folder / "data.nc")
    with h5py.File(good / "ok.nc") as file:
        found = [file["t2m"].id.get_chunk_info(i) for i in range(4, 9)]
    with (folder / "data.nc").open("r+b") as file:
        for chunk in found:
            file.seek(chunk.byte_offset + chunk.size // 2)
            file.write(bytes(8))
    return folder / "data.nc"


def _broken_zarr(change: Callable[[Path], Any]) -> Callable[[Path, Path], Path]:
    def make(good: Path, folder: Path) -> Path:
        shutil.copytree(good / "ok.zarr", folder / "data.zarr")
        for chunk in _chunks(folder / "data.zarr")[4:9]:
            change(chunk)
        return folder / "data.zarr"

    return make


DAMAGED: dict[str, Callable[[Path, Path], Path]] = {
    "a broken HDF5 chunk": _broken_netcdf,
    "a Zarr chunk that is cut off": _broken_zarr(lambda p: p.write_bytes(p.read_bytes()[:40])),
    "a Zarr chunk that is changed": _broken_zarr(
        lambda p: p.write_bytes(p.read_bytes()[:20] + bytes(60))
    ),
    "a Zarr chunk that is missing": _broken_zarr(lambda p: p.unlink()),
}
VERBS: dict[str, Callable[[xr.Dataset, Path], Any]] = {
    "check": lambda ds, folder: _raise_problems(ds.aurora.check("tp", model="tiny")),
    "to_batch": lambda ds, folder: [ds.aurora.to_batch(t) for t in ds["time"].values[1:]],
    "predict": lambda ds, folder: ds.aurora.predict("6h", model="tiny-pretrained", progress=False),
    "finetune": lambda ds, folder: ds.aurora.finetune(
        "tp", model="tiny", steps=1, strict=True, out=folder / "run", progress=False
    ),
    "prepare": lambda ds, folder: ds.aurora.prepare(
        folder / "out.zarr", model="tiny", progress=False
    ),
    "statistics": lambda ds, folder: ds.aurora.statistics(["t2m", "tp", "z"], progress=False),
    "climatology": lambda ds, folder: xaurora.climatology(ds, ["t2m", "tp", "z"]),
    "evaluate": lambda ds, folder: xaurora.persistence(
        xaurora.synthetic(shape=(12, 16), times=14), ["t2m", "tp", "z"], ["6h"]
    ).aurora.evaluate(ds),
}


def _raise_problems(report: Any) -> None:
    for problem in report.problems:
        if problem.code in ("source", "missing_values"):
            raise errors.SourceError(problem.message, fix=problem.fix)


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("verb", VERBS)
def test_damage_is_named_when_it_is_read(
    good: Path, tmp_path: Path, damage: str, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a traceback of h5py or Zarr. A missing chunk is a chunk of missing values."""
    ds = xaurora.open(DAMAGED[damage](good, tmp_path))
    missing = damage.endswith("missing")
    if missing and verb in ("statistics", "climatology", "evaluate"):
        VERBS[verb](ds, tmp_path)  # they leave out missing values
        return
    if missing and verb == "prepare":
        pytest.skip("a prepared store keeps missing values, which training then leaves out")
    with pytest.raises((errors.SourceError, errors.MissingValuesError)) as error:
        VERBS[verb](ds, tmp_path)
    assert error.value.fix
    assert not [p for p in tmp_path.iterdir() if ".new-" in p.name]


def test_training_leaves_out_what_cannot_be_read(good: Path, tmp_path: Path) -> None:
    ds = xaurora.open(DAMAGED["a Zarr chunk that is cut off"](good, tmp_path))
    tuned = ds.aurora.finetune("tp", model="tiny", steps=2, out=tmp_path / "run", progress=False)
    assert tuned.config["training"]["broken"]


@pytest.mark.parametrize("kind", ["prepared", "forecast"])
def test_a_changed_byte_in_a_store_of_ours_is_found(kind: str, tmp_path: Path) -> None:
    """Chunks have checksums: other values are never read from them."""
    ds, path = xaurora.synthetic(shape=(8, 16), times=6), tmp_path / "store.zarr"
    if kind == "prepared":
        ds.aurora.prepare(path, model=None, progress=False)
    else:
        ds.aurora.predict("6h", model="tiny", store=path, progress=False)
    chunks = sorted(p for p in (path / "t2m").rglob("*") if p.is_file() and p.name != "zarr.json")
    data = chunks[0].read_bytes()
    for place in range(0, len(data), max(len(data) // 12, 1)):
        chunks[0].write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        with pytest.raises(errors.SourceError, match="'t2m' could not be read"):
            indexed.read(xaurora.open(path)["t2m"].variable, "t2m")
    chunks[0].write_bytes(data)
    assert indexed.read(xaurora.open(path)["t2m"].variable, "t2m").std() > 0

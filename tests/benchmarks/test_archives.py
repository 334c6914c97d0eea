"""Archives of real length: what is read of them, counted, on small grids."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors
from xaurora.evaluation import climatology
from xaurora.fields.variables import BY_KEY
from xaurora.model.models import TABLE

SHAPE = (16, 32)
LEVELS = (500, 700, 850, 1000)
QUICK: dict[str, Any] = {"model": "tiny", "steps": 1, "validations": 1, "progress": False}


@pytest.fixture(scope="module")
def arco() -> archives.GeneratedStore:
    """A million hours."""
    return archives.arco(shape=SHAPE, levels=LEVELS)


@pytest.mark.parametrize("chunks", [None, {}], ids=["without dask", "with dask"])
def test_a_batch_reads_its_two_frames(arco: archives.GeneratedStore, chunks: Any) -> None:
    ds = archives.open_generated(arco, chunks=chunks)
    arco.forget()
    batch = ds.aurora.to_batch("2020-01-01T12", model="tiny")
    assert sum(arco.requests.values()) == 2 * (4 + 5)
    assert not arco.repeated
    index = int((np.datetime64("2020-01-01T12") - ds["time"].values[0]) / np.timedelta64(1, "h"))
    assert {key.split("/")[2] for key in arco.requests} == {str(index - 6), str(index)}
    np.testing.assert_allclose(
        batch.surf_vars["2t"][0, 1].numpy(),
        ds["2m_temperature"].isel(time=index).values,
        rtol=1e-6,
    )


def test_a_check_reads_a_few_frames(arco: archives.GeneratedStore) -> None:
    ds = archives.open_generated(arco, chunks={})
    arco.forget()
    assert ds.aurora.check("tp").ok
    assert sum(arco.requests.values()) < 400
    assert arco.bytes_read < 1e-5 * ds.nbytes


def test_six_hour_sums_of_a_part_read_each_hour_once() -> None:
    store = archives.arco(24 * 30, shape=SHAPE, levels=LEVELS)
    hourly = archives.open_generated(store)["total_precipitation"].values
    ds = archives.open_generated(store)  # values of the other one are in memory now
    totals = ds.aurora.accumulate("total_precipitation")
    store.forget()
    for start in range(100, 200, 20):  # the hours before each block are kept from the last one
        found = totals[start : start + 20].values
        expected = [hourly[i - 5 : i + 1].sum(axis=0) for i in range(start, start + 20)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert sum(store.requests.values()) == 105
    assert not store.repeated


def test_a_run_reads_a_sample_of_ten_years(tmp_path: Path) -> None:
    store = archives.arco(24 * 3653, shape=SHAPE, levels=LEVELS)
    ds = archives.open_generated(store, chunks={})
    store.forget()
    options = {**QUICK, "validation": ("1909-12-01", "1909-12-02"), "out": tmp_path / "run"}
    ds.aurora.finetune("total_precipitation", **options)
    first = store.bytes_read
    assert first < 0.05 * ds.nbytes
    store.forget()
    ds.aurora.finetune("total_precipitation", resume=True, **options)
    assert store.bytes_read < 0.2 * first


def _normals(store: archives.GeneratedStore, **options: Any) -> xr.Dataset:
    ds = archives.open_generated(store)
    names = ["total_precipitation_6hr", "2m_temperature", "temperature"]
    return xaurora.climatology(ds, names, window_days=5, **options)


def test_a_climatology_reads_the_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = archives.weatherbench2(
        0.2, shape=SHAPE, levels=LEVELS, surface=("2m_temperature",), atmos=("temperature",)
    )
    expected = _normals(store, statistics=("mean", "std", "quantile"))
    monkeypatch.setattr(climatology, "_MEMORY", 50_000_000)
    store.forget()
    found = _normals(store, statistics=("mean", "std", "quantile"))
    # Sums of other shapes are added in another order; the results are float32.
    xr.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not store.repeated
    assert not list(tmp_path.iterdir())


def test_a_climatology_without_space_for_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    store = archives.weatherbench2(0.2, shape=SHAPE, levels=LEVELS)
    monkeypatch.setattr(climatology, "_MEMORY", 50_000_000)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(errors.SaveError, match=r"GB for temporary files") as error:
        _normals(store)
    assert "TMPDIR" in error.value.fix


def test_faults_of_a_store_are_named() -> None:
    def fault(key: str, count: int) -> int | None:
        return 10 if key.startswith("2m_temperature/c/7/") else None

    store = archives.weatherbench2(0.1, shape=SHAPE, levels=LEVELS, fault=fault)
    ds = archives.open_generated(store)
    with pytest.raises(errors.SourceError, match=r"'2m_temperature' at .* could not be read"):
        ds.aurora.to_batch(ds["time"].values[7], model="tiny")


@pytest.mark.parametrize(
    "hourly",
    [pytest.param(False, marks=pytest.mark.thorough), True],
    ids=["six-hourly", "hourly"],
)
def test_an_estimate_counts_what_a_run_reads(tmp_path: Path, hourly: bool) -> None:
    """Ten steps on three years, with batches of two: first look, training and validation."""
    store = (
        archives.arco(24 * 365 * 3, shape=SHAPE, levels=LEVELS)
        if hourly
        else archives.weatherbench2(3.0, shape=SHAPE, levels=LEVELS)
    )
    name = "total_precipitation" if hourly else "total_precipitation_6hr"
    ds = archives.open_generated(store)
    last = ds["time"].values[[-40, -1]]
    options = {**QUICK, "steps": 10, "batch_size": 2, "validation": tuple(map(str, last))}
    found = ds.aurora.estimate(name, **options)
    store.forget()
    ds.aurora.finetune(name, out=tmp_path / "run", **options)
    # What is read twice or kept by chance, and the frames that are looked at for plausibility.
    assert 0.7 * store.bytes_read < found.bytes_read < 1.4 * store.bytes_read
    assert found.first_look < found.bytes_read


def test_a_batch_of_aurora_15_reads_its_two_frames(tmp_path: Path) -> None:
    """In a store of a million hours with ARCO-ERA5's names, and static fields from a file."""
    store, hours = archives.arco(shape=SHAPE, levels=LEVELS), 1_323_648
    dims = ("time", "latitude", "longitude")
    needs = TABLE["tiny-v1.5"].needs
    for name in (n for n in needs.state if n not in ("2t", "10u", "10v", "msl")):
        variable = BY_KEY["surface", name]
        low, high = variable.extremes or (0.0, 1.0)
        pattern = np.linspace(max(low, 0.2 * high), 0.8 * high, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
        attrs = {"units": variable.units}
        store.add(variable.weatherbench2, dims, (hours, *SHAPE), (1, *SHAPE), attrs, pattern, 0.01)
    ds = archives.open_generated(store, chunks=None)
    coords = {"lat": ds["latitude"].values, "lon": ds["longitude"].values}
    np.savez(tmp_path / "static.npz", **dict.fromkeys(needs.static, np.zeros(SHAPE)), **coords)
    store.forget()
    batch = ds.aurora.to_batch(
        "2020-01-01T12", model="tiny-v1.5", static_file=tmp_path / "static.npz"
    )
    assert len(batch.surf_vars) == 19
    assert sum(store.requests.values()) == 2 * (18 + 5)
    assert not store.repeated

"""The training store: what it holds, that it goes on, and that nothing reads half of one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from helpers import Script, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

import xaurora
from xaurora import errors
from xaurora.sources import preparing


def test_it_holds_what_training_needs(fields: xr.Dataset, tmp_path) -> None:
    ds = fields.assign(
        sst=fields["t2m"].assign_attrs(standard_name="sea_surface_temperature", long_name="SST")
    )
    made = ds.aurora.prepare(tmp_path / "a.zarr", model="tiny-pretrained", progress=False)
    again = xaurora.open(tmp_path / "a.zarr")
    xr.testing.assert_identical(made.load(), again.load())
    assert "sst" not in again
    for name in again.data_vars:
        np.testing.assert_array_equal(
            again[name].values, fields[name].transpose(*again[name].dims).values
        )
        if "time" in again[name].dims:
            assert again[name].encoding["chunks"] == (1, *again[name].shape[1:])
    assert again.aurora.check("tp", model="tiny-pretrained").ok
    a, b = (
        d.aurora.finetune(
            "tp", model="tiny", steps=4, validations=1, out=tmp_path / f"r{i}", progress=False
        )
        for i, d in enumerate((fields, again))
    )
    assert [e["loss"] for e in a.history] == [e["loss"] for e in b.history]
    everything = ds.aurora.prepare(tmp_path / "b.zarr", model=None, progress=False)
    assert "sst" in everything


def test_real_europe_with_hourly_rain_in_its_own_form(europe: xr.Dataset, tmp_path) -> None:
    """South first or north first, packed, across Greenwich, hourly totals: the store holds six-hour
    totals in metres, north first.
    """
    turned = europe.isel(latitude=slice(None, None, -1))
    made = turned.aurora.prepare(tmp_path / "a.zarr", model="tiny", progress=False)
    assert (np.diff(made["latitude"].values) < 0).all()
    assert "6 hour" in made["tp"].attrs["cell_methods"]
    totals = europe.aurora.accumulate("tp", "6h")
    np.testing.assert_allclose(
        made["tp"].values,
        totals.transpose(*made["tp"].dims).sel(latitude=made["latitude"]).values,
        rtol=1e-6,
        atol=1e-9,
    )
    assert xaurora.open(tmp_path / "a.zarr").aurora.check("tp", model="tiny").ok


def test_a_region_and_some_times(fields: xr.Dataset, tmp_path) -> None:
    part = fields.aurora.prepare(
        tmp_path / "a.zarr",
        model="tiny",
        region=(20, 70, -40, 50),
        time=("2020-01-02", "2020-01-04"),
        progress=False,
    )
    assert part["longitude"].values[0] < 0 < part["longitude"].values[-1]
    assert (np.diff(part["longitude"].values) > 0).all()
    assert part.sizes["latitude"] % 4 == 0
    assert part.sizes["longitude"] % 4 == 0
    assert str(part["time"].values[0])[:10] == "2020-01-02"
    assert str(part["time"].values[-1])[:13] == "2020-01-04T18"
    same = fields["t2m"].sel(
        time=part["time"], latitude=part["latitude"], longitude=part["longitude"] % 360
    )
    np.testing.assert_array_equal(part["t2m"].values, same.values)
    with pytest.raises(errors.OptionError, match="contains none of the data's times"):
        fields.aurora.prepare(tmp_path / "b.zarr", model="tiny", time="1999", progress=False)
    with pytest.raises(errors.RegionError, match="no grid point"):
        fields.aurora.prepare(
            tmp_path / "b.zarr", model="tiny", region=(1.0, 1.1, 1.0, 1.1), progress=False
        )
    assert not (tmp_path / "b.zarr").exists()


@given(bits=st.integers(1, 22), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_rounding_is_as_small_as_it_says(bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(500) * 10.0 ** rng.integers(-12, 12, 500)).astype(np.float32)
    values[:4] = np.nan, np.inf, -np.inf, 0.0
    rounded = preparing._rounded(values, bits)
    np.testing.assert_array_equal(np.isfinite(rounded), np.isfinite(values))
    np.testing.assert_array_equal(rounded[:4], values[:4])
    error = np.abs(rounded[4:].astype(float) - values[4:]) / np.abs(values[4:].astype(float))
    assert error.max() <= 2.0 ** -(bits + 1)
    np.testing.assert_array_equal(rounded[4:].view(np.uint32) & ((1 << (23 - bits)) - 1), 0)


def test_bits_are_kept(fields: xr.Dataset, tmp_path) -> None:
    made = fields.aurora.prepare(tmp_path / "a.zarr", model="tiny", bits=9, progress=False)
    error = np.abs(made["msl"].values - fields["msl"].values) / fields["msl"].values
    assert 0 < error.max() <= 2.0**-10
    assert made["msl"].values.max() > 65504  # what float16 ends at
    for bad in (0, 24, 1.5, True):
        with pytest.raises(errors.OptionError, match="bits="):
            fields.aurora.prepare(tmp_path / "b.zarr", model="tiny", bits=bad, progress=False)


_WRITER = """
import sys
import xaurora
from xaurora.sources import preparing
preparing._SHARD = preparing._BLOCK = 4 * 64 * 32 * 3
ds = xaurora.synthetic(shape=(32, 64), times=90)
ds.aurora.prepare(sys.argv[1], model="tiny", progress=False)
"""


def _files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.slow  # starts seven processes
def test_two_writers_that_are_killed_again_and_again(tmp_path) -> None:
    """The store is the same to the bit as one written in one go, and nothing else is left."""
    run_script(_WRITER, tmp_path / "whole.zarr")
    made = tmp_path / "made.zarr"
    rng = np.random.default_rng(0)
    killed = 0
    writers = [Script(_WRITER, made) for _ in range(2)]
    while killed < 4:
        time.sleep(rng.uniform(0.1, 0.6))
        if killed < 1 and not made.exists():
            continue
        chosen = int(rng.integers(2))
        writers[chosen].kill()
        writers[chosen].wait()
        killed += 1
        if killed == 2:
            with pytest.raises(errors.SourceError, match="is not complete"):
                xaurora.open(made)
        writers[chosen] = Script(_WRITER, made)
    assert [w.wait() for w in writers] == [0, 0]
    assert _files(made) == _files(tmp_path / "whole.zarr")
    assert sorted(os.listdir(tmp_path)) == ["made.zarr", "whole.zarr"]


def test_a_source_that_changed_in_between(fields: xr.Dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(preparing, "_SHARD", 8 * 16 * 32 * 4)
    monkeypatch.setattr(preparing, "_BLOCK", 1)
    real, written = preparing._Work.write, []

    def killed(work, number):
        if len(written) == 9:
            raise KeyboardInterrupt
        written.append(number)
        real(work, number)

    monkeypatch.setattr(preparing._Work, "write", killed)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        fields.aurora.prepare(tmp_path / "a.zarr", model="tiny", progress=False)
    changed = fields.copy(deep=True)
    for da in changed.data_vars.values():
        if "time" in da.dims:
            da.values[7::8] *= 1.01
    with pytest.raises(errors.SaveError, match=r"the values of '.*' at 2020"):
        changed.aurora.prepare(tmp_path / "a.zarr", model="tiny", progress=False)
    first = list(written)
    written.clear()
    monkeypatch.setattr(preparing._Work, "write", lambda w, n: (written.append(n), real(w, n)))
    fields.aurora.prepare(tmp_path / "a.zarr", model="tiny", progress=False)
    assert not set(first) & set(written)
    written.clear()
    fields.aurora.prepare(tmp_path / "a.zarr", model="tiny", progress=False)
    assert not written
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_half_a_store_that_was_moved_is_written_again(
    fields: xr.Dataset, tmp_path, monkeypatch
) -> None:
    """What is known of its pieces stays behind, so that none is taken for finished."""
    monkeypatch.setattr(preparing, "_SHARD", 8 * 16 * 32 * 4)
    real = preparing._Work.write

    def killed(work, number):
        if number == 3:
            raise KeyboardInterrupt
        real(work, number)

    monkeypatch.setattr(preparing._Work, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        fields.aurora.prepare(tmp_path / "a.zarr", model="tiny", progress=False)
    (tmp_path / "a.zarr").rename(tmp_path / "b.zarr")
    monkeypatch.setattr(preparing._Work, "write", real)
    for name in ("b.zarr", "a.zarr"):
        made = fields.aurora.prepare(tmp_path / name, model="tiny", progress=False)
        for var in made.data_vars:
            np.testing.assert_array_equal(
                made[var].values, fields[var].transpose(*made[var].dims).values
            )
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "b.zarr"]


def test_another_store_is_left_alone(fields: xr.Dataset, tmp_path) -> None:
    fields.aurora.prepare(tmp_path / "a.zarr", model="tiny", progress=False)
    for other in (fields.isel(time=slice(5, None)), fields.assign(t2m=fields["t2m"] + 1)):
        with pytest.raises(errors.SaveError, match="holds another prepared"):
            other.aurora.prepare(tmp_path / "a.zarr", model="tiny", progress=False)
    (tmp_path / "photos").mkdir()
    with pytest.raises(errors.SaveError, match="is not a prepared store"):
        fields.aurora.prepare(tmp_path / "photos", model="tiny", progress=False)
    with pytest.raises(errors.MissingVariableError):
        fields.drop_vars("t2m").aurora.prepare(
            tmp_path / "c.zarr", model="tiny-pretrained", progress=False
        )
    assert not (tmp_path / "c.zarr").exists()


def test_a_full_disk_is_named(fields: xr.Dataset, tmp_path, monkeypatch) -> None:
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_zarr", full)
    with pytest.raises(errors.SaveError, match="No space left"):
        fields.aurora.prepare(tmp_path / "a.zarr", model="tiny", progress=False)
    assert not list(Path(tmp_path).iterdir())

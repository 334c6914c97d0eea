"""Many files, one Dataset."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors


def test_norway_in_either_order(data) -> None:
    folder = data / "era5_norway_2025-06"
    a = xaurora.open(folder / "pressure_levels.nc", folder / "surface.nc")
    b = xaurora.open(folder / "surface.nc", folder / "pressure_levels.nc")
    assert set(a.data_vars) == set(b.data_vars)
    assert a["z"].ndim == 4
    assert b["geopotential_at_surface"].ndim == 3
    xr.testing.assert_identical(a["t2m"].load(), b["t2m"].load())
    assert not any(bool(a[v].isnull().any()) for v in a)


def test_europe_with_global_statics(europe: xr.Dataset, data) -> None:
    static = xaurora.open(data / "era5_static" / "static.nc")
    assert europe.sizes["latitude"] == 41
    want = (
        static["lsm"]
        .isel(valid_time=0)
        .sel(latitude=europe["latitude"].astype(float), longitude=europe["longitude"].astype(float))
    )
    np.testing.assert_array_equal(europe["lsm"].values, want.values)


def _split(fields: xr.Dataset, tmp_path, *, first_hour: int = -6) -> tuple[str, str]:
    """6-hourly states and hourly rain in different files."""
    states = fields.drop_vars("tp")
    hours = fields["time"].values[0] + np.arange(first_hour, 12 * 6) * np.timedelta64(1, "h")
    rain = (
        np.random.default_rng(1).random((len(hours), *fields["msl"].shape[1:])).astype("float32")
        * 1e-3
    )
    tp = xr.Dataset(
        {"tp": (("time", "latitude", "longitude"), rain, {"units": "m"})},
        {"time": hours, "latitude": fields["latitude"], "longitude": fields["longitude"]},
    )
    states.to_netcdf(tmp_path / "states.nc")
    tp.to_netcdf(tmp_path / "tp.nc")
    return str(tmp_path / "states.nc"), str(tmp_path / "tp.nc")


def test_six_hourly_states_and_hourly_rain(fields: xr.Dataset, tmp_path) -> None:
    states, rain = _split(fields, tmp_path)
    ds = xaurora.open(states, rain)
    assert ds["time"].values[0] == fields["time"].values[0]
    assert ds.sizes["time"] == 12
    assert not bool(ds["tp"].isnull().any())
    hourly = xr.open_dataset(rain)["tp"]
    t = ds["time"].values[3]
    np.testing.assert_allclose(
        ds["tp"].sel(time=t).values,
        hourly.sel(time=slice(t - np.timedelta64(5, "h"), t)).sum("time").values,
        rtol=1e-5,
    )
    assert ds.aurora.check("tp").ok


def test_rain_that_starts_with_the_states_loses_the_first_one(fields: xr.Dataset, tmp_path) -> None:
    ds = xaurora.open(*_split(fields, tmp_path, first_hour=0))
    assert ds["time"].values[0] == fields["time"].values[1]
    assert not bool(ds["tp"].isnull().any())


def test_files_that_continue_one_another(fields: xr.Dataset, tmp_path) -> None:
    fields.isel(time=slice(20, None)).to_netcdf(tmp_path / "b.nc")
    fields.isel(time=slice(0, 20)).to_netcdf(tmp_path / "a.nc")
    ds = xaurora.open(str(tmp_path / "*.nc"))
    xr.testing.assert_equal(ds["tp"].load(), fields["tp"])
    fields.isel(time=slice(19, 25)).to_netcdf(tmp_path / "c.nc")
    again = xaurora.open(str(tmp_path / "*.nc"))
    xr.testing.assert_equal(again["tp"].load(), fields["tp"])
    other = fields.isel(time=slice(21, 25))
    other = other.assign(tp=(other["tp"] + 1e-3).assign_attrs(other["tp"].attrs))
    other.to_netcdf(tmp_path / "d.nc")
    with pytest.raises(
        errors.SourceError, match=r"'tp' at .* differ by up to 0\.001: .*b\.nc"
    ) as e:
        xaurora.open(str(tmp_path / "*.nc"))
    assert "d.nc" in e.value.message


def test_expver_in_some_files_only(fields: xr.Dataset, tmp_path) -> None:
    fields.isel(time=slice(0, 20)).to_netcdf(tmp_path / "a.nc")
    new = fields.isel(time=slice(20, None)).assign_coords(expver=("time", ["0005"] * 20), number=0)
    new.to_netcdf(tmp_path / "b.nc")
    ds = xaurora.open(str(tmp_path / "*.nc"))
    assert ds["expver"].values.tolist() == [""] * 20 + ["0005"] * 20
    xr.testing.assert_equal(ds["tp"].load().drop_vars("expver"), fields["tp"])
    assert any("expver 5" in note for note in ds.aurora.check().notes)


def test_zarr_and_chunks(fields: xr.Dataset, tmp_path) -> None:
    fields.to_zarr(tmp_path / "fields.zarr", consolidated=False)
    lazy = xaurora.open(tmp_path / "fields.zarr", chunks={})
    assert lazy["t2m"].chunks is not None
    xr.testing.assert_equal(lazy["t2m"].load(), fields["t2m"])


def test_what_does_not_fit(fields: xr.Dataset, tmp_path) -> None:
    with pytest.raises(errors.SourceError, match="no file matches"):
        xaurora.open(tmp_path / "nothing*.nc")
    with pytest.raises(errors.SourceError, match="no path"):
        xaurora.open()
    (tmp_path / "broken.nc").write_bytes(b"not a file")
    with pytest.raises(errors.SourceError, match="could not be opened"):
        xaurora.open(tmp_path / "broken.nc")
    fields[["t2m"]].to_netcdf(tmp_path / "a.nc")
    fields[["msl"]].isel(latitude=slice(0, 8)).to_netcdf(tmp_path / "b.nc")
    with pytest.raises(errors.SourceError, match="different latitudes"):
        xaurora.open(tmp_path / "a.nc", tmp_path / "b.nc")
    later = fields[["msl"]].assign_coords(time=fields["time"] + np.timedelta64(1000, "D"))
    later.to_netcdf(tmp_path / "c.nc")
    with pytest.raises(errors.SourceError, match="share no time"):
        xaurora.open(tmp_path / "a.nc", tmp_path / "c.nc")
    fields[["t2m", "msl"]].to_netcdf(tmp_path / "d.nc")
    with pytest.raises(errors.SourceError, match="in several files"):
        xaurora.open(tmp_path / "a.nc", tmp_path / "d.nc")


def test_grib_without_the_extra(tmp_path, monkeypatch) -> None:
    import sys

    (tmp_path / "a.grib").write_bytes(b"GRIB")
    monkeypatch.setitem(sys.modules, "cfgrib", None)
    with pytest.raises(errors.MissingExtraError, match="is GRIB") as error:
        xaurora.open(tmp_path / "a.grib")
    assert "xaurora[grib]" in error.value.fix


def test_files_with_strings_are_read_with_h5netcdf(data, tmp_path, monkeypatch) -> None:
    """netCDF4 brings the process down when a file that holds strings, as CDS files do, is opened
    while it is open already. It does so now and then, so that what is asserted is who reads."""
    engines = []
    before = xr.open_dataset
    monkeypatch.setattr(
        xr, "open_dataset", lambda *a, **k: engines.append(k["engine"]) or before(*a, **k)
    )
    real = data / "era5_norway_2025-06" / "surface.nc"
    held = [xaurora.open(real) for _ in range(30)]
    assert {str(v) for v in held[0]["expver"].load().values} <= {"0001", "0005"}
    assert engines == ["h5netcdf"] * 30
    xr.testing.assert_identical(held[0].load(), xaurora.open(real, engine="netcdf4").load())
    held[0][["t2m"]].isel(valid_time=0, drop=True).to_netcdf(
        tmp_path / "old.nc", format="NETCDF3_64BIT"
    )
    assert xaurora.open(tmp_path / "old.nc")["t2m"].shape == held[0]["t2m"].shape[1:]
    assert engines[-1] is None

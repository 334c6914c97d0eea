"""IMERG: names and layouts of V03 to V07, times, windows, fill, regridding; and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dask
import netCDF4
import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors
from xaurora.fields.grid import regridding
from xaurora.sources.imerg.files import describe

V03 = "3B-HHR-E.MS.MRG.3IMERG.20151001-S000000-E002959.0000.V03E.RT-H5"
V06 = "3B-HHR.MS.MRG.3IMERG.20000601-S000000-E002959.0000.V06B.HDF5"
V07 = "3B-HHR.MS.MRG.3IMERG.20000601-S000000-E002959.0000.V07A.HDF5"
LAT, LON = np.arange(40.05, 44.0, 0.1), np.arange(-4.95, 5.0, 0.1)


def _name(start: str, *, run: str = "", version: str = "V07B", ending: str = "HDF5") -> str:
    t = np.datetime64(start, "m")
    day, minute = (
        str(t)[:10].replace("-", ""),
        int((t - t.astype("datetime64[D]")) / np.timedelta64(1, "m")),
    )
    clock = str(t)[11:].replace(":", "") + "00"
    end = f"{clock[:2]}{int(clock[2:4]) + 29}59"
    return f"3B-HHR{run}.MS.MRG.3IMERG.{day}-S{clock}-E{end}.{minute:04d}.{version}.{ending}"


def _granule(
    folder: Path, start: str, rate: np.ndarray, *, quality: float = 0.8, **name: str
) -> Path:
    """A file in the layout of V06 and V07: a group, (time, lon, lat), fill, a Julian calendar."""
    path = folder / _name(start, **name)
    variable = "precipitation" if "V07" in path.name else "precipitationCal"
    with netCDF4.Dataset(path, "w") as file:
        grid = file.createGroup("Grid")
        for dim, values in (("lon", LON), ("lat", LAT)):
            grid.createDimension(dim, len(values))
            grid.createVariable(dim, "f4", (dim,))[:] = values
        grid.createDimension("time", 1)
        t = grid.createVariable("time", "i4", ("time",))
        t.units, t.calendar = "seconds since 1980-01-06 00:00:00 UTC", "julian"
        t[:] = int((np.datetime64(start, "s") - np.datetime64("1980-01-06", "s")).astype(int))
        v = grid.createVariable(variable, "f4", ("time", "lon", "lat"), fill_value=-9999.9)
        v.units = "mm/hr"
        v[0] = np.where(np.isfinite(rate), rate, -9999.9).T
        q = grid.createVariable(
            "precipitationQualityIndex", "f4", ("time", "lon", "lat"), fill_value=-9999.9
        )
        q[0] = quality
    return path


@pytest.fixture
def day(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Half hours from 00:00 to 11:30, and their rates ``(24, lat, lon)`` in mm/h."""
    rng = np.random.default_rng(0)
    rates = np.where(
        rng.random((24, len(LAT), len(LON))) < 0.4,
        rng.gamma(0.5, 4.0, (24, len(LAT), len(LON))),
        0.0,
    )
    rates = rates.astype(np.float32)
    rates[3, 0, 0] = np.nan  # one of twelve: scaled up
    rates[3:5, 0, 1] = np.nan  # two of twelve: missing
    for i, rate in enumerate(rates):
        _granule(
            tmp_path, str(np.datetime64("2020-02-29T00:00") + i * np.timedelta64(30, "m")), rate
        )
    return tmp_path, rates


def test_real_granule_keeps_its_water(data: Path) -> None:
    path = data / "imerg" / V03
    native = xaurora.open_imerg(path, period="30min")
    assert native["time"].values == np.array(
        ["2015-10-01T00:30"], "datetime64[ns]"
    )  # the end, from the name
    assert native.attrs["imerg_run"] == "Early"
    with netCDF4.Dataset(path) as file:
        raw = file["Grid"]["precipitationCal"]
        i, j = 1802, 950  # lon 0.25, lat 5.05
        by_hand = float(raw[i, j])
    got = float(native["tp"].sel(latitude=5.05, longitude=0.25, method="nearest").values[0])
    assert got == pytest.approx(by_hand * 0.5 * 1e-3, rel=1e-6)  # half an hour, mm → m
    wet = np.unravel_index(np.nanargmax(native["tp"].values[0]), native["tp"].shape[1:])
    with netCDF4.Dataset(path) as file:
        assert native["tp"].values[0][wet] == pytest.approx(float(raw_max(file)) * 5e-4, rel=1e-6)

    onto = xaurora.open_imerg(path, period="30min", grid=0.25)
    assert onto["tp"].shape == (1, 721, 1440)

    def water(ds: xr.Dataset) -> float:
        area = _areas(ds["latitude"].values, ds["longitude"].values)
        return float(
            (
                ds["tp"].fillna(0.0).values[0].astype(float) * ds["valid_fraction"].values[0] * area
            ).sum()
        )

    assert water(onto) == pytest.approx(water(native), rel=1e-6)
    # poleward of 60° there is nothing; the cell on 60° is half seen
    assert np.isnan(onto["tp"].sel(latitude=61.0).values).all()
    assert onto["valid_fraction"].sel(latitude=60.0).values.mean() == pytest.approx(0.5, abs=2e-3)


def raw_max(file: netCDF4.Dataset) -> float:
    return float(np.ma.max(file["Grid"]["precipitationCal"][:]))


def _areas(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    half = abs(float(np.diff(lat).mean())) / 2
    up, low = np.clip(lat + half, -90, 90), np.clip(lat - half, -90, 90)
    return (np.sin(np.deg2rad(up)) - np.sin(np.deg2rad(low)))[:, None] * np.full(
        len(lon), abs(np.diff(lon).mean())
    )


@pytest.mark.parametrize(("name", "version"), [(V06, "V06B"), (V07, "V07A")])
def test_real_v06_and_v07_open_with_the_right_times(data: Path, name: str, version: str) -> None:
    ds = xaurora.open_imerg(data / "imerg" / name, period="30min")
    assert ds["time"].values == np.array(["2000-06-01T00:30"], "datetime64[ns]")
    assert ds.attrs["imerg_version"] == version
    assert ds.attrs["imerg_run"] == "Final"
    assert ds.sizes == {"time": 1, "latitude": 10, "longitude": 10}
    tp, share = ds["tp"].values, ds["valid_fraction"].values
    assert np.isnan(tp[0, :2]).all(), "the rows next to the pole hold the fill value"
    assert (np.nan_to_num(tp) == 0.0).all()
    np.testing.assert_array_equal(share, np.isfinite(tp))
    assert ds["latitude"].values[0] == pytest.approx(-89.95)


def test_the_header_tells_where_the_name_does_not(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "imerg" / V06, tmp_path / "download(1).h5")
    ds = xaurora.open_imerg(tmp_path / "download(1).h5", period="30min")
    assert str(ds["time"].values[0])[:16] == "2000-06-01T00:30"


def test_windows_end_at_their_time(day: tuple[Path, np.ndarray]) -> None:
    folder, rates = day
    ds = xaurora.open_imerg(str(folder / "*.HDF5"))
    assert [str(t)[:16] for t in ds["time"].values] == ["2020-02-29T06:00", "2020-02-29T12:00"]
    assert ds["tp"].chunks is not None, "nothing is read until it is asked for"
    tp = ds["tp"].values
    np.testing.assert_allclose(tp[1], 0.5e-3 * rates[12:].astype(float).sum(axis=0), rtol=1e-6)
    scaled = 0.5e-3 * np.nansum(rates[:12, 0, 0].astype(float)) * 12 / 11
    assert tp[0, 0, 0] == pytest.approx(scaled, rel=1e-6)
    assert np.isnan(tp[0, 0, 1])
    assert ds["valid_fraction"].values[0, 0, 1] == 0.0
    assert xaurora.open_imerg(folder / "*.HDF5", min_valid=0.8)["tp"].values[0, 0, 1] >= 0.0
    hourly = xaurora.open_imerg(folder / "*.HDF5", period="1h")
    np.testing.assert_allclose(
        hourly["tp"].values[5:12].sum(axis=0)[5:], 0.5e-3 * rates[10:24, 5:].sum(axis=0), rtol=1e-5
    )
    # the same totals, whether summed here or from hours
    summed = hourly.drop_vars("valid_fraction").aurora.accumulate("tp", "6h")
    np.testing.assert_allclose(summed.sel(time="2020-02-29T12:00").values, tp[1], rtol=1e-5)


def test_windows_end_at_other_hours(day: tuple[Path, np.ndarray]) -> None:
    folder, rates = day
    ds = xaurora.open_imerg(folder / "*.HDF5", offset="3h")
    assert [str(t)[:16] for t in ds["time"].values] == ["2020-02-29T09:00"]
    expected = 0.5e-3 * rates[6:18, 5:].astype(float).sum(axis=0)
    np.testing.assert_allclose(ds["tp"].values[0, 5:], expected, rtol=1e-6)
    same = xaurora.open_imerg(folder / "*.HDF5", offset="-9h")  # modulo the period
    assert (same["time"].values == ds["time"].values).all()
    early = sorted(folder.glob("*.HDF5"))[6:18]
    with pytest.raises(errors.AccumulationError, match="from 00:00 UTC on") as error:
        xaurora.open_imerg(early)
    assert "offset='3h'" in error.value.fix
    assert xaurora.open_imerg(early, offset="3h").sizes["time"] == 1
    for wrong in ("10min", "yes"):
        with pytest.raises(errors.AccumulationError, match="not a multiple of half an hour"):
            xaurora.open_imerg(folder / "*.HDF5", offset=wrong)


def test_quality_leaves_half_hours_out(tmp_path: Path) -> None:
    for i in range(12):
        start = str(np.datetime64("2020-01-01T00:00") + i * np.timedelta64(30, "m"))
        _granule(
            tmp_path, start, np.full((len(LAT), len(LON)), 1.0), quality=0.2 if i == 0 else 0.9
        )
    assert xaurora.open_imerg(tmp_path / "*.HDF5", quality=0.5)["tp"].values.min() == pytest.approx(
        6e-3
    )
    assert np.isnan(xaurora.open_imerg(tmp_path / "*.HDF5", quality=0.95)["tp"].values).all()


def test_onto_a_region_in_its_own_order(day: tuple[Path, np.ndarray]) -> None:
    """A box across Greenwich, 0…360 and north first, reads as the globe does."""
    folder, _ = day
    lat, lon = (
        np.arange(43.5, 40.4, -0.25),
        np.concatenate([np.arange(356.0, 360.0, 0.25), np.arange(0.0, 4.1, 0.25)]),
    )
    ds = xr.Dataset(
        coords={"latitude": lat, "longitude": lon, "time": [np.datetime64("2020-02-29T06", "ns")]}
    )
    ds["latitude"].attrs["units"], ds["longitude"].attrs["units"] = "degrees_north", "degrees_east"
    ours = xaurora.open_imerg(folder / "*.HDF5", grid=ds)
    np.testing.assert_array_equal(ours["latitude"].values, lat)
    np.testing.assert_array_equal(ours["longitude"].values, lon)
    native = xaurora.open_imerg(folder / "*.HDF5")["tp"].values[1].astype(float)
    # the cell around 42°N 0°E: columns and rows of 0.1° that it covers, the outer ones by half

    def weights(axis: np.ndarray, centre: float) -> np.ndarray:
        upper, lower = (
            np.minimum(axis + 0.05, centre + 0.125),
            np.maximum(axis - 0.05, centre - 0.125),
        )
        return np.clip(upper - lower, 0, None)

    w = (weights(LAT, 42.0) * np.cos(np.deg2rad(LAT)))[:, None] * weights(LON, 0.0)
    expected = (w * native).sum() / w.sum()
    # 1e-3: here, within a row that is cut, area is taken to change linearly
    assert ours["tp"].sel(latitude=42.0, longitude=0.0).values[1] == pytest.approx(
        expected, rel=1e-3
    )


def test_edges_of_cuts_and_poles_know_how_much_they_have_seen() -> None:
    lat, lon = np.arange(40.05, 45.0, 0.1), np.arange(0.05, 6.0, 0.1)
    to_lat, to_lon = np.array([44.95, 44.45, 43.95]), np.array([5.0, 5.5, 6.0])
    mean, share = regridding.Conservative(lat, lon, to_lat, to_lon)(np.full((50, 60), 2.0))
    np.testing.assert_allclose(mean, 2.0)
    np.testing.assert_allclose(share[:, 2] / share[:, 0], 0.5, rtol=1e-9)
    assert share[0, 0] == pytest.approx(0.6, abs=0.01)
    source = np.arange(-89.5, 90.0)
    holes = np.ones((180, 360))
    holes[-1] = np.nan
    _, share = regridding.Conservative(
        source, np.arange(0.5, 360), np.linspace(90, -90, 73), np.arange(0, 360, 2.5)
    )(holes)
    cap = lambda degrees: 1.0 - np.sin(np.deg2rad(90.0 - degrees))  # noqa: E731
    assert share[0, 0] == pytest.approx(1.0 - cap(1.0) / cap(1.25), rel=1e-9)


def test_conserves_on_random_globes() -> None:
    rng = np.random.default_rng(1)
    lat, lon = np.arange(-89.5, 90, 1.0), np.arange(-179.5, 180, 1.0)
    values = rng.gamma(0.3, size=(180, 360))
    values[rng.random(values.shape) < 0.2] = np.nan
    for to_lat, to_lon in (
        (np.linspace(90, -90, 46), np.arange(0, 360, 4.0)),
        (np.linspace(-88.75, 88.75, 72), np.arange(-180, 180, 2.5)),
    ):
        mean, share = regridding.Conservative(lat, lon, to_lat, to_lon)(values)
        before = np.nansum(values * _areas(lat, lon))
        after = np.nansum(mean * share * _areas(to_lat, to_lon))
        assert after == pytest.approx(before, rel=1e-12)
        ones, whole = regridding.Conservative(lat, lon, to_lat, to_lon)(np.ones((180, 360)))
        np.testing.assert_allclose(ones, 1.0, rtol=1e-12)
        np.testing.assert_allclose(whole, 1.0, rtol=1e-9)


def test_daily_files_give_days_and_nothing_shorter(tmp_path: Path) -> None:
    path = tmp_path / "3B-DAY.MS.MRG.3IMERG.20200101-S000000-E235959.V07B.nc4"
    rate = np.random.default_rng(0).gamma(0.5, 4.0, (len(LON), len(LAT)))
    with netCDF4.Dataset(path, "w") as file:
        for dim, values in (("lon", LON), ("lat", LAT)):
            file.createDimension(dim, len(values))
            file.createVariable(dim, "f4", (dim,))[:] = values
        file.createDimension("time", 1)
        t = file.createVariable("time", "i4", ("time",))
        t.units = "days since 1980-01-06 00:00:00 UTC"
        t[:] = int((np.datetime64("2020-01-01") - np.datetime64("1980-01-06")).astype(int))
        v = file.createVariable("precipitation", "f4", ("time", "lon", "lat"), fill_value=-9999.9)
        v.units = "mm/day"
        v[0] = rate
        count = file.createVariable("precipitation_cnt", "i4", ("time", "lon", "lat"))
        count[0] = 48
        count[0, 0, 0] = 30
    ds = xaurora.open_imerg(path, period="24h")
    assert str(ds["time"].values[0])[:16] == "2020-01-02T00:00"
    np.testing.assert_allclose(ds["tp"].values[0].T[1:], rate[1:] * 1e-3, rtol=1e-6)
    assert np.isnan(ds["tp"].values[0, 0, 0])
    with pytest.raises(
        errors.AccumulationError, match="totals over 6 hours are not possible with daily files"
    ):
        xaurora.open_imerg(path)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Files are made here by netCDF4 itself, which must not meet a reader that an error has left
    running.
    """
    with dask.config.set(scheduler="synchronous"):
        yield


def test_opening_and_reading_in_threads_do_not_meet(day: tuple[Path, np.ndarray]) -> None:
    """HDF5 is not safe in threads: a file that is opened while others are read would bring the
    process down.
    """
    from concurrent.futures import ThreadPoolExecutor

    folder, rates = day

    def both(_: int) -> float:
        return float(xaurora.open_imerg(folder / "*.HDF5", period="1h")["tp"].isel(time=-1).mean())

    with ThreadPoolExecutor(6) as pool:
        means = list(pool.map(both, range(24)))
    assert means == pytest.approx([0.5e-3 * float(rates[22:24].sum(axis=0).mean())] * 24, rel=1e-5)


@pytest.mark.usefixtures("one_thread")
def test_what_is_refused(day: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, rates = day
    first = folder / _name("2020-02-29T00:00")
    gone = folder / _name("2020-02-29T02:00")
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(
        errors.SourceError, match=r"1 file.s. are missing between .*S013000.* and .*S023000"
    ):
        xaurora.open_imerg(folder / "*.HDF5")
    bridged = xaurora.open_imerg(folder / "*.HDF5", missing="keep")
    assert bridged["tp"].values[0, 5, 5] == pytest.approx(
        0.5e-3 * np.delete(rates[:12, 5, 5].astype(float), 4).sum() * 12 / 11, rel=1e-5
    )
    gone.write_bytes(kept)
    twice = folder / _name("2020-02-29T00:00", ending="HDF5.nc4.HDF5")
    shutil.copy(first, twice)
    with pytest.raises(errors.SourceError, match="two files have the same time, 2020-02-29T00:00"):
        xaurora.open_imerg(folder / "*.HDF5")
    twice.unlink()
    for other in ({"version": "V06B"}, {"run": "-L"}):
        odd = folder / _name("2020-02-29T12:00", **other)
        shutil.copy(first, odd)
        with pytest.raises(errors.SourceError, match="are mixed"):
            xaurora.open_imerg(folder / "*.HDF5")
        odd.unlink()
    elsewhere = _granule(tmp_path, "2020-02-29T12:00", rates[0])
    with netCDF4.Dataset(elsewhere, "a") as file:
        file["Grid"]["lat"][:] = LAT + 10.0
    with pytest.raises(errors.SourceError, match=r"and the first file at 40\.05"):
        xaurora.open_imerg([*folder.glob("*.HDF5"), elsewhere], period="30min").load()
    with pytest.raises(errors.SourceError, match="is GPM IMERG"):
        xaurora.open(first)
    letters = folder / _name("2020-02-29T12:00", version="V07A")
    shutil.copy(first, letters)
    with pytest.raises(errors.SourceError, match="IMERG versions are mixed"):
        xaurora.open_imerg(folder / "*.HDF5")
    letters.unlink()
    renamed = folder / _name("2020-02-29T12:00")
    shutil.copy(first, renamed)
    with pytest.raises(
        errors.SourceError, match="is named after 2020-02-29T12:00, but contains 2020-02-29T00:00"
    ):
        xaurora.open_imerg(renamed, period="30min").load()
    renamed.unlink()
    with pytest.raises(errors.AccumulationError, match="fill no window of 6 hours"):
        xaurora.open_imerg([folder / _name("2020-02-29T00:00"), folder / _name("2020-02-29T00:30")])
    with pytest.raises(errors.AccumulationError, match="not a multiple of half an hour"):
        xaurora.open_imerg(first, period="45min")
    with pytest.raises(errors.OptionError, match="min_valid=0"):
        xaurora.open_imerg(first, min_valid=0)
    with pytest.raises(errors.OptionError, match="quality=3"):
        xaurora.open_imerg(first, quality=3)
    with pytest.raises(errors.OptionError, match="missing='skip'"):
        xaurora.open_imerg(first, missing="skip")
    with pytest.raises(errors.GridError, match="do not divide 180"):
        xaurora.open_imerg(first, period="30min", grid=0.7)
    globe = xr.Dataset(
        coords={"latitude": np.arange(-90.0, 91.0, 10.0), "longitude": np.arange(0.0, 361.0, 10.0)}
    )
    with pytest.raises(errors.GridError, match="same meridian"):
        xaurora.open_imerg(first, period="30min", grid=globe)
    with pytest.raises(errors.GridError, match="must be a Dataset, a DataArray or a number"):
        xaurora.open_imerg(first, period="30min", grid="era5")
    with pytest.raises(errors.TruthError, match="runs from"):
        xaurora.open_imerg(first, period="30min", grid=0.25)
    (tmp_path / "notes.h5").write_bytes(b"no HDF5")
    with pytest.raises(errors.SourceError, match="could not be opened as HDF5"):
        xaurora.open_imerg(tmp_path / "notes.h5")
    plain = tmp_path / "plain.h5"
    xr.Dataset({"a": 1}).to_netcdf(plain)
    with pytest.raises(errors.SourceError, match="is not recognised as an IMERG file"):
        xaurora.open_imerg(plain)
    with pytest.raises(errors.SourceError, match="monthly"):
        describe("3B-MO.MS.MRG.3IMERG.20200101-S000000-E235959.01.V06B.HDF5")
    with pytest.raises(errors.SourceError, match="has an invalid time"):
        describe("3B-HHR.MS.MRG.3IMERG.20201301-S000000-E002959.0000.V06B.HDF5")
    damaged = folder / _name("2020-02-29T12:00")
    damaged.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(errors.SourceError, match="could not be opened"):
        xaurora.open_imerg(damaged, period="30min").load()


def _states() -> xr.Dataset:
    """Fields every six hours on a quarter-degree box inside what the made granules cover."""
    ds = xaurora.synthetic(shape=(16, 32), times=9).drop_vars("tp").isel(latitude=slice(0, 12))
    return ds.assign_coords(
        latitude=("latitude", np.arange(43.25, 40.4, -0.25), {"units": "degrees_north"}),
        longitude=("longitude", np.arange(-4.0, 4.0, 0.25), {"units": "degrees_east"}),
    )


def test_learn_from_and_be_scored_against_satellite_rain(tmp_path: Path) -> None:
    ds = _states()
    rng = np.random.default_rng(0)
    start = ds["time"].values[0]
    for i in range(8 * 12):
        rate = rng.gamma(0.3, 2.0, (len(LAT), len(LON)))
        rate[:, :30] = np.nan  # the west is not seen
        _granule(tmp_path, str((start + i * np.timedelta64(30, "m")).astype("datetime64[m]")), rate)
    native = xaurora.open_imerg(tmp_path / "*.HDF5")
    onto = xaurora.open_imerg(tmp_path / "*.HDF5", grid=ds)
    options = {"model": "tiny", "strategy": "full", "steps": 3, "progress": False}
    a, b = (
        ds.aurora.finetune("tp", truth=t, out=tmp_path / f"run{i}", **options)
        for i, t in enumerate((native, onto))
    )
    first, second = (m.config["targets"]["tp"]["statistics"] for m in (a, b))
    # regridded here or there: the same, but for float32 and cells that are half seen
    assert first["mean"] == pytest.approx(second["mean"], rel=0.02)
    assert 0 < first["count"] < 7 * 12 * 32, "what is not seen is not learnt from"
    forecast = ds.aurora.predict(
        "6h", model=b, time=ds["time"].values[2:4], variables=["tp"], progress=False
    )
    assert forecast["tp"].attrs["units"] == "m"
    truth = xaurora.open_imerg(tmp_path / "*.HDF5", grid=forecast)
    scores = forecast.aurora.evaluate(truth, metrics=["rmse", "crps"], skipna=True)
    assert np.isfinite(scores["tp"]).all()
    seen = forecast.aurora.evaluate(
        truth, metrics=["rmse"]
    )  # missing by nature: scored where it is seen
    assert float(seen["tp"].sel(metric="coverage").squeeze()) == pytest.approx(0.75)
    np.testing.assert_allclose(seen["tp"].sel(metric="rmse"), scores["tp"].sel(metric="rmse"))
    other = truth.drop_vars("valid_fraction").drop_attrs(
        deep=False
    )  # not known to be a satellite's
    assert np.isnan(forecast.aurora.evaluate(other, metrics=["rmse"])["tp"]).all(), (
        "holes are not skipped unless asked"
    )

"""Statistics: equal to NumPy's, however the data are cut, in memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from helpers import run_script

from xaurora import errors
from xaurora.fields import statistics as normalisation
from xaurora.fields.distribution import BIN_WIDTH, Distribution, Histogram


def _weights(ds: xr.Dataset) -> np.ndarray:
    return np.broadcast_to(np.cos(np.deg2rad(ds["latitude"].values))[:, None], ds["tp"].shape)


def test_equals_numpy(fields: xr.Dataset) -> None:
    got = fields.aurora.statistics(["tp", "t"], progress=False)
    y, w = fields["tp"].values.astype(np.float64), _weights(fields)
    wet = y > 0
    expected = {
        "mean": np.average(y, weights=w),
        "std": np.sqrt(np.average((y - np.average(y, weights=w)) ** 2, weights=w)),
        "min": y.min(),
        "max": y.max(),
        "count": y.size,
        "wet_fraction": np.average(wet, weights=w),
        "wet_log_mean": np.average(np.log(y[wet]), weights=w[wet]),
        "wet_log_std": np.sqrt(np.cov(np.log(y[wet]), aweights=w[wet], ddof=0)),
        "clipped": 0,
    }
    for name, value in expected.items():
        assert float(got["tp"].sel(statistic=name)) == pytest.approx(value, rel=1e-12), name
    t = fields["t"].sel(level=700).values.astype(np.float64)
    assert float(got["t"].sel(statistic="mean", level=700)) == pytest.approx(
        np.average(t, weights=w), rel=1e-12
    )
    assert np.isnan(float(got["t"].sel(statistic="wet_fraction", level=700)))
    plain = fields.aurora.statistics("tp", weights=None, progress=False)
    assert float(plain["tp"].sel(statistic="mean")) == pytest.approx(y.mean(), rel=1e-12)
    assert float(plain["tp"].sel(statistic="std")) == pytest.approx(y.std(), rel=1e-12)
    width = plain.attrs["quantile_relative_bin_width"]
    for q in plain["quantile"].values:
        exact = np.sort(y.ravel())[max(int(np.ceil(q * y.size)) - 1, 0)]
        assert float(plain["tp_quantile"].sel(quantile=q)) == pytest.approx(exact, rel=width), q


def test_negative_numbers_have_quantiles_too() -> None:
    x = np.random.default_rng(0).normal(0.0, 3.0, 50_000)
    one, other = Histogram(), Histogram()
    one.add(x[:20_000])
    other.add(x[20_000:])
    one.merge(other)
    q = np.array([0.001, 0.2, 0.6, 0.999])
    exact = np.sort(x)[np.ceil(q * x.size).astype(int) - 1]
    np.testing.assert_allclose(one.quantile(q), exact, rtol=BIN_WIDTH)
    parts = [Distribution(), Distribution()]
    for part, values in zip(parts, np.split(x, [7]), strict=True):
        part.add(values)
    parts[0].merge(parts[1])
    assert parts[0].moments.std == pytest.approx(x.std(), rel=1e-12)
    values, shares = parts[0].binned(200)
    assert len(values) < 450
    assert (np.diff(values) > 0).all()
    assert shares.sum() == pytest.approx(1.0)
    assert shares @ values == pytest.approx(x.mean(), abs=3e-3)


def test_chunks_do_not_matter_and_changes_do(
    fields: xr.Dataset, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields[["tp", "t2m"]].chunk(time=7, latitude=5).to_zarr(tmp_path / "a.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False)
    whole = fields[["tp", "t2m"]].aurora.statistics(progress=False)
    for block in (1, 10**9):
        monkeypatch.setattr(normalisation, "_BLOCK", block)
        for ds in (
            stored,
            xr.open_zarr(tmp_path / "a.zarr", consolidated=False),
            fields[["tp", "t2m"]].chunk(time=3),
        ):
            got = ds.aurora.statistics(progress=False)
            xr.testing.assert_allclose(got, whole, rtol=1e-12)
            assert got.attrs == whole.attrs
    changed = fields[["tp", "t2m"]].copy(deep=True)
    changed["tp"][3, 2, 1] += 1e-7
    moved = fields[["tp", "t2m"]].copy(deep=True)
    moved["tp"][0] = fields["tp"][0].roll(longitude=1)
    later = fields[["tp", "t2m"]].assign_coords(time=fields["time"] + np.timedelta64(6, "h"))
    hashes = {
        ds.aurora.statistics(progress=False).attrs["source_hash"]
        for ds in (fields[["tp", "t2m"]], changed, moved, later)
    }
    assert len(hashes) == 4


def test_the_training_period_and_holes(fields: xr.Dataset) -> None:
    holes = fields[["tp"]].copy(deep=True)
    holes["tp"][:, :4] = np.nan
    holes["tp"][20, 8] = -1e-9
    got = holes.aurora.statistics("tp", time=("2020-01-01", "2020-01-05"), progress=False)
    part = holes["tp"].sel(time=slice("2020-01-01", "2020-01-05"))
    assert int(got["tp"].sel(statistic="count")) == int(part.notnull().sum())
    assert got.attrs["number_of_times"] == 20
    assert int(got["tp"].sel(statistic="clipped")) == 0
    every = holes.aurora.statistics("tp", progress=False)["tp"]
    assert int(every.sel(statistic="clipped")) == 32
    assert float(every.sel(statistic="min")) == 0.0
    empty = holes.isel(latitude=slice(0, 4)).aurora.statistics("tp", progress=False)["tp"]
    assert int(empty.sel(statistic="count")) == 0
    assert np.isnan(float(empty.sel(statistic="mean")))


def test_units_and_order_do_not_matter(fields: xr.Dataset) -> None:
    turned = (
        fields[["tp", "t2m"]]
        .transpose("longitude", "latitude", "time")
        .isel(latitude=slice(None, None, -1))
    )
    turned["tp"] = (turned["tp"].astype(float) * 1e3).assign_attrs(
        fields["tp"].attrs | {"units": "mm"}
    )
    a, b = (ds.aurora.statistics(["tp", "t2m"], progress=False) for ds in (fields, turned))
    np.testing.assert_allclose(b["tp"].values, a["tp"].values, rtol=1e-9)
    assert b["tp"].attrs["units"] == "m"


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"names": "hail"}, errors.MissingVariableError, "not among the recognised"),
        ({"weights": "area"}, errors.OptionError, "must be 'cosine' or None"),
        ({"quantiles": [0.5, 1.0]}, errors.OptionError, "between 0 and 1"),
        ({"time": "1999"}, errors.OptionError, "selects no time"),
        ({"time": "soon"}, errors.OptionError, "must be a slice, a year or a pair"),
        ({"names": 5}, errors.MissingVariableError, "not among the recognised"),
        ({"quantiles": "a"}, errors.OptionError, "between 0 and 1"),
    ],
)
def test_bad_options(fields: xr.Dataset, options: dict, kind: type, match: str) -> None:
    with pytest.raises(kind, match=match):
        fields.aurora.statistics(progress=False, **options)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("chunks", [(10, 91, 720), (800, 20, 60)])
def test_memory_does_not_grow_with_time(tmp_path, chunks: tuple[int, int, int]) -> None:
    """The peak of a process, after 150 times of 0.26 MB and after 400."""

    import dask.array

    shape = (400, 91, 720)
    coords = {
        "time": np.datetime64("2020-01-01", "ns") + np.arange(shape[0]) * np.timedelta64(6, "h"),
        "latitude": ("latitude", np.linspace(90, -90, 91), {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(720) * 0.5, {"units": "degrees_east"}),
    }
    amount = dask.array.random.default_rng(0).random(shape, dtype="float32", chunks=chunks) * 1e-3
    tp = (
        ("time", "latitude", "longitude"),
        amount,
        {"units": "m", "cell_methods": "time: sum (interval: 6 hours)"},
    )
    xr.Dataset({"tp": tp}, coords).to_zarr(tmp_path / "a.zarr", consolidated=False)
    code = f"""
import resource, xarray as xr, xaurora
from xaurora.fields import statistics as normalisation
normalisation._BLOCK = 4 * 1024**2
ds = xr.open_zarr({str(tmp_path / "a.zarr")!r}, chunks=None, consolidated=False)
ds.isel(time=slice(0, 150)).aurora.statistics("tp", progress=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ds.aurora.statistics("tp", progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(run_script(code).split()[-1])
    assert grown < 30 * 1024  # KiB; the 250 times more are 66 MB as stored


def test_the_hash_is_of_the_training_period(fields: xr.Dataset) -> None:
    a = fields.aurora.statistics("tp", time=("2020-01-01", "2020-01-03"), progress=False)
    b = fields.isel(time=slice(0, 30)).aurora.statistics(
        "tp", time=("2020-01-01", "2020-01-03"), progress=False
    )
    assert a.attrs["source_hash"] == b.attrs["source_hash"]

"""Datasets and Batches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import run_script

from xaurora import errors
from xaurora.model import batch as batches


def test_norway_there_and_back(norway: xr.Dataset, caplog) -> None:
    batch = norway.aurora.to_batch("2025-06-03T12")
    assert "1 row(s): 55°N; 1 column(s): 20°E" in caplog.text
    assert batch.surf_vars["2t"].shape == (1, 2, 60, 60)
    assert batch.metadata.time == (datetime(2025, 6, 3, 12, tzinfo=UTC),)
    assert batch.metadata.atmos_levels == (1000, 925, 850, 700)
    back = norway.aurora.from_batch(batch)
    kept = norway.sel(valid_time=["2025-06-03T06", "2025-06-03T12"]).isel(
        latitude=slice(0, 60), longitude=slice(0, 60)
    )
    xr.testing.assert_identical(back, kept)


@pytest.mark.parametrize("shift", [-12.0, 168.0])
@pytest.mark.parametrize("convention", ["as it runs", "0-360", "180"])
def test_norway_moved_across_greenwich_and_the_date_line(
    norway: xr.Dataset, shift: float, convention: str
) -> None:
    lon = norway["longitude"].values + shift
    lon = {"as it runs": lon, "0-360": lon % 360, "180": (lon + 180) % 360 - 180}[convention]
    moved = norway.assign_coords(longitude=("longitude", lon, norway["longitude"].attrs))
    back = moved.aurora.from_batch(moved.aurora.to_batch("2025-06-03T12"))
    kept = moved.sel(valid_time=back["valid_time"]).isel(
        latitude=slice(0, 60), longitude=slice(0, 60)
    )
    xr.testing.assert_identical(back, kept)
    forecast = moved.aurora.predict("6h", model="tiny", time="2025-06-03T12", progress=False)
    np.testing.assert_array_equal(forecast["longitude"].values, kept["longitude"].values)


def test_several_init_times(fields: xr.Dataset) -> None:
    batch = fields.aurora.to_batch(fields["time"].values[[3, 4, 8]])
    assert batch.surf_vars["2t"].shape[:2] == (3, 2)
    back = fields.aurora.from_batch(batch)
    np.testing.assert_array_equal(back["time"].values, fields["time"].values[[2, 3, 4, 7, 8]])
    np.testing.assert_array_equal(back["t"].values, fields["t"].values[[2, 3, 4, 7, 8]])


def test_latest_by_default(fields: xr.Dataset) -> None:
    assert fields.aurora.to_batch().metadata.time[0] == batches.utc(fields["time"].values[-1])


def test_times_are_utc_whatever_the_zone() -> None:
    code = """
import os, sys, time
os.environ["TZ"] = sys.argv[1]
time.tzset()
import xaurora
ds = xaurora.synthetic(shape=(16, 32), times=3)
batch = ds.aurora.to_batch("2020-01-01T06")
print(batch.metadata.time[0].timestamp(), ds.aurora.from_batch(batch)["time"].values[-1])
"""
    seen = {run_script(code, zone).strip() for zone in ("UTC", "Asia/Tokyo", "America/St_Johns")}
    assert seen == {
        f"{datetime(2020, 1, 1, 6, tzinfo=UTC).timestamp()} 2020-01-01T06:00:00.000000000"
    }


def test_aware_times_become_utc() -> None:
    zone = timezone(timedelta(hours=2))
    assert batches.from_utc(datetime(2020, 1, 1, 8, tzinfo=zone)) == np.datetime64("2020-01-01T06")
    assert batches.from_utc(datetime(2020, 1, 1, 8)) == np.datetime64("2020-01-01T08")


def test_init_times_that_are_not_there(fields: xr.Dataset) -> None:
    with pytest.raises(errors.InitTimeError, match="not in the data"):
        fields.aurora.to_batch("1999-01-01")
    with pytest.raises(errors.InitTimeError, match="has no frame 6 hours before it"):
        fields.aurora.to_batch(fields["time"].values[0])
    with pytest.raises(errors.InitTimeError, match="is not a time"):
        fields.aurora.to_batch("the day before yesterday")
    with pytest.raises(errors.InitTimeError, match="none of the 3 time"):
        fields.isel(time=[0, 2, 4]).aurora.to_batch()
    times = batches.resolve_times(fields["time"].values, slice("2020-01-02", "2020-01-02"))
    assert [str(t)[:13] for t in times] == [
        "2020-01-02T00",
        "2020-01-02T06",
        "2020-01-02T12",
        "2020-01-02T18",
    ]
    with pytest.raises(
        errors.InitTimeError, match=r"no time in .* has a state six hours before it"
    ):
        batches.resolve_times(fields["time"].values, slice("2031", None))


def test_a_batch_of_another_grid(fields: xr.Dataset, norway: xr.Dataset) -> None:
    batch = norway.aurora.to_batch()
    with pytest.raises(errors.XauroraError):
        fields.aurora.from_batch(batch)
    small = fields.isel(latitude=slice(0, 12)).aurora.to_batch()
    wider = fields.aurora.from_batch(small)
    assert wider.sizes["latitude"] == 12  # a window of the same data finds its place


def test_stock_aurora_refuses_a_batch_across_greenwich(norway: xr.Dataset, aurora_model) -> None:
    moved = norway.assign_coords(
        longitude=("longitude", norway["longitude"].values - 12.0, norway["longitude"].attrs)
    )
    batch = moved.aurora.to_batch("2025-06-03T12")
    with pytest.raises(errors.GridError, match="crosses Greenwich"), torch.no_grad():
        aurora_model(batch)
    assert isinstance(batch.to("cpu"), batches.GreenwichBatch)


def test_a_text_without_an_hour_selects_the_day(fields: xr.Dataset) -> None:
    times = fields["time"].values
    assert len(batches.resolve_times(times, "2020-01-02")) == 4
    assert len(batches.resolve_times(times, ["2020-01-02", "2020-01-03T06"])) == 5
    assert len(batches.resolve_times(times, "2020")) == 39
    assert batches.resolve_times(times, "2020-01-02T00") == [np.datetime64("2020-01-02", "ns")]

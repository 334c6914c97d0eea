"""What the label of a total says: bounds of times, step ranges and periods in attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors
from xaurora.fields import periods

H6 = np.timedelta64(6, "h")


def _labelled(ds: xr.Dataset, start: float, end: float, *, shift: float = 0.0) -> xr.Dataset:
    """Label the six-hour totals of ``ds`` so that they run from ``start`` to ``end`` hours."""
    hour = np.timedelta64(60, "m")
    times = ds["time"].values
    ends = np.stack([times + int(start) * hour, times + int(end) * hour], axis=1)
    tp = ds["tp"].drop_attrs().assign_attrs(units="m", long_name="rain")
    moved = tp.copy(data=np.roll(tp.values, -int(shift), axis=0))
    out = ds.assign(tp=moved, time_bnds=(("time", "nv"), ends))
    out["time"].attrs["bounds"] = "time_bnds"
    return out


def test_totals_labelled_at_the_start_are_moved(fields: xr.Dataset) -> None:
    """The value at t is the total from t to t + 6 h, so it belongs to t + 6 h."""
    start = _labelled(fields, 0, 6, shift=1)
    end = _labelled(fields, -6, 0)
    for ds in (start, end):
        report = ds.aurora.check("tp", model="tiny")
        assert report.ok, report
        assert any("6-hour totals" in note for note in report.notes)
    assert any("moved to its end" in note for note in start.aurora.check("tp", model="tiny").notes)
    a, b = (d.aurora.accumulate("tp", "6h") for d in (start, end))
    np.testing.assert_array_equal(a.values[1:], b.values[1:])
    assert np.isnan(a.values[0]).all()
    a, b = (xaurora.persistence(d, ["tp"], ["6h"]) for d in (start, end))
    common = a["init_time"].values[1:]
    np.testing.assert_array_equal(
        a["tp"].sel(init_time=common).values, b["tp"].sel(init_time=common).values
    )


def test_training_and_scores_use_the_end(fields: xr.Dataset, tmp_path: Path) -> None:
    start, end = _labelled(fields, 0, 6, shift=1), _labelled(fields, -6, 0)
    options = {"model": "tiny", "steps": 2, "validations": 1, "progress": False}
    part = {"train": ("2020-01-02", "2020-01-05"), "validation": ("2020-01-06", "2020-01-08")}
    a, b = (
        ds.aurora.finetune("tp", out=tmp_path / name, **options, **part)
        for name, ds in (("start", start), ("end", end))
    )
    assert [e["loss"] for e in a.history] == [e["loss"] for e in b.history]
    fc = end.aurora.predict("6h", model=b, time=end["time"].values[5:9], progress=False)
    one, other = (fc.aurora.evaluate(truth) for truth in (start, end))
    np.testing.assert_array_equal(one["tp"], other["tp"])


def test_files_are_moved_before_they_are_joined(fields: xr.Dataset, tmp_path: Path) -> None:
    start = _labelled(fields, 0, 6, shift=1)
    start["time"].encoding["units"] = "hours since 2020-01-01"
    start[["tp", "time_bnds"]].to_netcdf(tmp_path / "tp.nc")
    fields.drop_vars("tp").to_netcdf(tmp_path / "states.nc")
    ds = xaurora.open(tmp_path / "states.nc", tmp_path / "tp.nc")
    assert "time_bnds" not in ds
    np.testing.assert_allclose(
        ds["tp"].sel(time=fields["time"].values[5]).values, fields["tp"].values[5], rtol=1e-6
    )


def test_bounds_that_contradict_the_attributes(fields: xr.Dataset) -> None:
    ds = _labelled(fields, -6, 0)
    ds["tp"].attrs["cell_methods"] = "time: sum (interval: 1 hour)"
    (problem,) = [
        p for p in ds.aurora.check("tp", model="tiny").problems if "time_bnds" in p.message
    ]
    assert "1 hours by its attributes" in problem.message
    assert "6 hours by 'time_bnds'" in problem.message
    fixed = ds.drop_vars("time_bnds")
    del fixed["tp"].attrs["cell_methods"]
    fixed["tp"].attrs["cell_methods"] = periods.cell_methods(6)
    assert fixed.aurora.check("tp", model="tiny").ok


def test_bounds_that_are_none(fields: xr.Dataset) -> None:
    ds = fields.assign(time_bnds=("time", np.arange(fields.sizes["time"])))
    ds["time"].attrs["bounds"] = "time_bnds"
    problems = ds.aurora.check("tp", model="tiny").problems
    assert any("not a start and an end for each" in p.message for p in problems)
    middle = _labelled(fields, -3, 3)
    problems = middle.aurora.check("tp", model="tiny").problems
    assert any("end 3 h after their times" in p.message for p in problems)
    with pytest.raises(errors.AccumulationError, match="end 3 h after their times") as error:
        middle.aurora.accumulate("tp", "6h")
    typed: dict = {"ds": middle}
    exec(error.value.fix, typed)
    assert typed["ds"].aurora.accumulate("tp", "6h").sizes["time"] == fields.sizes["time"]


@pytest.mark.parametrize(
    ("attrs", "hours"),
    [
        ({"GRIB_stepRange": "0-6", "GRIB_stepType": "accum"}, 6),
        ({"GRIB_stepRange": "12-18"}, 6),
        ({"time_period_freq": "hour_6"}, 6),
        ({"time_period_freq": "day_1"}, 24),
        ({"GRIB_stepRange": "6"}, None),
        ({"cell_methods": "time: sum (interval: 3 hours)", "GRIB_stepRange": "0-6"}, 3),
    ],
)
def test_periods_in_attributes(attrs: dict, hours: int | None) -> None:
    assert periods.declared_hours("tp", attrs) == hours

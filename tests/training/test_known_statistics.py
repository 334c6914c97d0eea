"""Statistics that were computed before replace the first look, if they are of what is trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import xaurora
from xaurora import errors
from xaurora.cli.commands import app
from xaurora.cli.fixes import as_command
from xaurora.training import known_statistics, reads, scan
from xaurora.training.options import FinetuneOptions
from xaurora.training.plan import Plan, plan

QUICK: dict[str, Any] = {"model": "tiny", "steps": 2, "validations": 1, "progress": False}


def _period(ds: xr.Dataset, **options: Any) -> tuple[str, str]:
    """Return the first and the last time of the targets of the training part."""
    made = plan(ds, FinetuneOptions(target="tp", model="tiny", **options))
    step = np.timedelta64(6, "h")
    return str(made.split.train[0] + step), str(made.split.train[-1] + step)


def _plan(ds: xr.Dataset, given: xr.Dataset | None, **options: Any) -> Plan:
    return plan(ds, FinetuneOptions(target="tp", model="tiny", statistics=given, **options))


def test_they_say_what_a_look_at_all_frames_finds(fields: xr.Dataset) -> None:
    given = fields.aurora.statistics(time=_period(fields), progress=False)
    found = scan.scan_targets(_plan(fields, None))
    known = scan.scan_targets(_plan(fields, given))
    one, other = (s.climatology["tp"] for s in (found, known))
    assert one.moments.count == other.moments.count
    # Statistics weight by the cosine of latitude, training by the exact areas of rows: here, of
    # 11 degrees, they differ by 2 % next to the poles.
    for part in ("moments", "log_wet"):
        for name in ("mean", "std"):
            assert getattr(getattr(one, part), name) == pytest.approx(
                getattr(getattr(other, part), name), rel=2e-2
            )
    assert one.moments.high == other.moments.high
    assert one.wet_fraction == pytest.approx(other.wet_fraction, rel=2e-2)
    q = np.array([0.5, 0.9, 0.99, 0.999])
    np.testing.assert_allclose(one.histogram.quantile(q), other.histogram.quantile(q), rtol=3e-2)
    assert known.normalisation is not None
    assert found.normalisation is not None
    first, last = _period(fields)
    t = fields["t"].sel(time=slice(first, last), level=850).astype(float)
    area = t.weighted(np.cos(np.deg2rad(t["latitude"])))
    mean, std = known.normalisation[1]["t"]["850"]
    assert mean == pytest.approx(float(area.mean()), rel=1e-9)
    assert std == pytest.approx(float(area.std()), rel=1e-9)
    assert set(known.normalisation[0]) == set(found.normalisation[0])


def test_the_same_bins_come_back(fields: xr.Dataset) -> None:
    given = fields.aurora.statistics("tp", progress=False)
    known = known_statistics._distribution(given, _plan(fields, None).targets[0])
    values, weights = known.histogram.filled()
    np.testing.assert_array_equal(values.astype(np.float32), given["tp_bin"])
    np.testing.assert_array_equal(weights, given["tp_histogram"])
    area = np.cos(np.deg2rad(fields["latitude"])).broadcast_like(fields["tp"])
    assert known.moments.weight == pytest.approx(float(area.sum()), rel=1e-9)


def test_no_target_is_read_before_training(
    fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run and its continuation; and estimate counts so."""
    given = fields.aurora.statistics(time=_period(fields), progress=False)
    monkeypatch.setattr(scan, "_read_targets", _must_not_be_called)
    monkeypatch.setattr(scan.statistics, "normalisation_statistics", _must_not_be_called)
    options = {**QUICK, "out": tmp_path / "run", "statistics": given}
    first = fields.aurora.finetune("tp", **options)
    assert np.isfinite(first.history[-1]["validation_crps_mm"])
    again = fields.aurora.finetune("tp", resume=True, **options)
    assert again.hash == first.hash
    stored = fields.chunk({"time": 1})
    some = given[["tp", "tp_histogram"]]
    all_of_it, targets_only, nothing = (
        reads.of_run(_plan(stored, s), stored, 2).first_look for s in (given, some, None)
    )
    assert all_of_it < targets_only < nothing


def _must_not_be_called(*_: Any, **__: Any) -> Any:
    raise AssertionError("this was to be known")


def _hourly(ds: xr.Dataset) -> xr.Dataset:
    times = np.arange(ds["time"].values[0], ds["time"].values[-1], np.timedelta64(1, "h"))
    out = ds.interp(time=times)
    return out.assign(
        tp=(out["tp"] / 6).assign_attrs(units="m", cell_methods="time: sum (interval: 1 hour)")
    )


def _fixed(error: errors.XauroraError, **names: Any) -> xr.Dataset:
    """Type the fix."""
    assert error.fix is not None
    code = error.fix.removeprefix("statistics=")
    return eval(code.replace("statistics([", "statistics(progress=False, names=["), names)


WRONG = ["another variable", "hours", "no hours", "bounds", "the globe", "across Greenwich"]


@pytest.mark.parametrize("what", WRONG)
def test_other_statistics_are_refused_and_the_fix_works(fields: xr.Dataset, what: str) -> None:
    fields = fields.isel(time=slice(20))
    options: dict[str, Any] = {}
    if what == "another variable":
        ds, match = fields, "no histogram of the target 'tp'"
        given = ds.aurora.statistics("t2m", progress=False)
    elif what == "hours":
        ds, match = _hourly(fields), r"over 1 hour\(s\), but the target is its total over 6 hours"
        given = ds.aurora.statistics("tp", progress=False)
    elif what == "no hours":  # every sixth of hourly totals
        ds, match = _hourly(fields), "over a period that is not stated"
        del ds["tp"].attrs["cell_methods"]
        given = ds.isel(time=slice(None, None, 6)).aurora.statistics("tp", progress=False)
    elif what == "bounds":
        ds, match = _hourly(fields), "but the target is its total over 6 hours"
        ends = ds["time"].values
        ds["time"].attrs["bounds"] = "time_bnds"
        ds["time_bnds"] = ("time", "nv"), np.stack([ends - np.timedelta64(1, "h"), ends], axis=1)
        given = ds.aurora.statistics("tp", progress=False)
    else:
        ds, match = fields, "all longitudes, but the target is trained on"
        given = ds.aurora.statistics("tp", progress=False)
        west, east = (40.0, 230.0) if what == "the globe" else (-60.0, 60.0)
        options["region"] = (-60.0, 40.0, west, east)
    with pytest.raises(errors.OptionError, match=match) as caught:
        scan.scan_targets(_plan(ds, given, **options))
    right = _fixed(caught.value, ds=ds, np=np)
    assert scan.scan_targets(_plan(ds, right, **options)).climatology["tp"].moments.mean > 0


def test_the_fix_for_a_truth_takes_its_own_axes(fields: xr.Dataset) -> None:
    """Other names, the other order, longitudes from -180."""
    ds = fields.isel(time=slice(20)).drop_vars("tp")
    truth = fields[["tp"]].isel(time=slice(20), latitude=slice(None, None, -1))
    truth = truth.assign_coords(longitude=(truth["longitude"] + 180) % 360 - 180)
    truth = truth.sortby("longitude").rename(latitude="lat", longitude="lon")
    options: dict[str, Any] = {"truth": truth, "region": (-60.0, 40.0, -60.0, 60.0)}
    given = truth.aurora.statistics("tp", progress=False)
    with pytest.raises(errors.OptionError, match="is trained on") as caught:
        scan.scan_targets(_plan(ds, given, **options))
    right = _fixed(caught.value, truth=truth, np=np)
    known = scan.scan_targets(_plan(ds, right, **options)).climatology["tp"].moments
    plain = scan.scan_targets(_plan(ds, None, **options)).climatology["tp"].moments
    assert known.high == pytest.approx(plain.high)


def test_inputs_of_another_box_are_read(fields: xr.Dataset) -> None:
    part = fields.isel(latitude=slice(2, 10)).aurora.statistics(progress=False)
    assert known_statistics.of_inputs(_plan(fields, None), part) is None
    whole = fields.aurora.statistics(progress=False)
    assert known_statistics.of_inputs(_plan(fields, None), whole) is not None


def test_the_bases_own_variables_have_no_head_to_start(fields: xr.Dataset) -> None:
    given = fields.aurora.statistics(progress=False)
    with pytest.raises(errors.OptionError, match="statistics= applies to targets with a head"):
        fields.aurora.finetune("all", statistics=given, **{**QUICK, "strategy": "full"})


def test_the_fix_on_the_command_line(fields: xr.Dataset) -> None:
    given = fields.aurora.statistics("t2m", progress=False)
    with pytest.raises(errors.OptionError) as caught:
        scan.scan_targets(_plan(fields, given))
    first, last = (t[:13] for t in _period(fields))
    assert as_command(str(caught.value.fix)) == (
        f"xaurora stats FILES --names=tp --time={first}:{last} --out=statistics.nc, then"
        " --statistics=statistics.nc"
    )


def test_other_times_are_named(fields: xr.Dataset, caplog: pytest.LogCaptureFixture) -> None:
    whole = fields.aurora.statistics("tp", progress=False)
    scan.scan_targets(_plan(fields, whole))
    assert "includes the times of" in caplog.text
    caplog.clear()
    scan.scan_targets(_plan(fields, fields.aurora.statistics("tp", time=_period(fields))))
    assert not caplog.records
    late = whole.assign_attrs(start="1990-01-01T00:00", end="1990-02-01T00:00")
    with caplog.at_level(logging.WARNING, "xaurora"):
        scan.scan_targets(_plan(fields, late))
    assert "climate of other times" in caplog.text


@pytest.mark.parametrize("value", ["statistics.nc", "fields", 256])
def test_what_is_no_statistics(fields: xr.Dataset, value: Any) -> None:
    with pytest.raises(errors.OptionError, match=r"what ds\.aurora\.statistics"):
        FinetuneOptions(statistics=fields if value == "fields" else value)


def test_the_command_takes_a_file(fields: xr.Dataset, tmp_path: Path) -> None:
    fields.to_netcdf(tmp_path / "era5.nc")
    run = CliRunner().invoke
    data, out = str(tmp_path / "era5.nc"), str(tmp_path / "statistics.nc")
    done = run(app, ["stats", data, "--names=tp", f"--out={out}", "--quiet"])
    assert done.exit_code == 0, done.output
    with xr.open_dataset(out) as given:
        assert scan.scan_targets(_plan(fields, given)).climatology["tp"].wet_fraction > 0
    more = ["--model=tiny", "--steps=1", f"--out={tmp_path / 'run'}", "--quiet"]
    done = run(app, ["finetune", data, f"--statistics={out}", *more])
    assert done.exit_code == 0, done.output
    assert xaurora.load(tmp_path / "run").config["targets"]["tp"]["statistics"]["count"] > 0
    (tmp_path / "text.nc").write_text("no")
    done = run(app, ["finetune", data, f"--statistics={tmp_path / 'text.nc'}", *more[:2]])
    assert done.exit_code == 2
    assert "cannot be opened as statistics" in done.output

"""The first look: a sample of the frames, its error, and that a resumed run reads nothing."""

from __future__ import annotations

import logging
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import xaurora
from xaurora import errors
from xaurora.model import frames
from xaurora.training import scan
from xaurora.training.options import FinetuneOptions
from xaurora.training.plan import plan


@settings(max_examples=50, deadline=None)
@example(1930, 1, 179)  # hours with one frame less than others
@example(313, 1, 280)  # and nearly all frames asked for
@given(st.integers(1, 4000), st.sampled_from([1, 3, 6]), st.integers(8, 300))
def test_a_sample_is_even_over_hours_months_and_years(count: int, step: int, size: int) -> None:
    times = pd.date_range("2009-05-01", periods=count, freq=f"{step}h").values
    chosen = scan.stratified(times, size)
    assert len(np.unique(chosen)) == len(chosen)
    assert np.isin(chosen, times).all()
    if count <= size:
        assert len(chosen) == count
        return
    hours = 24 // step
    assert abs(len(chosen) - size) <= hours
    if count > 10 * size and size >= 4 * hours:
        index = pd.DatetimeIndex(chosen)
        per_hour = np.bincount(index.hour // step, minlength=hours)
        assert per_hour.max() - per_hour.min() <= 1
        # No part of the period has a gap of more than three times the mean distance.
        gaps = np.diff(np.concatenate([times[:1], chosen, times[-1:]]))
        assert gaps.max() <= 5 * (times[-1] - times[0]) / size + np.timedelta64(2, "D")


def _years(count: int = 4000) -> xr.Dataset:
    """Rain with a season and a daily cycle, and what a tiny model needs beside it."""
    rng = np.random.default_rng(0)
    time = pd.date_range("2010-01-01", periods=count, freq="6h")
    season = 1 + 0.5 * np.sin(2 * np.pi * time.day_of_year / 365) + 0.3 * (time.hour == 18)
    amount = rng.gamma(0.4, 1e-3, (count, 12, 16)) * np.asarray(season)[:, None, None]
    base = xaurora.synthetic(shape=(12, 16), times=2)
    ds = base.isel(time=np.zeros(count, int)).assign_coords(time=time.values)
    return ds.assign(tp=ds["tp"].copy(data=amount.astype(np.float32)))


def test_the_error_of_the_sample_is_what_it_says() -> None:
    ds = _years(1500)
    makes = [
        plan(ds, FinetuneOptions(target="tp", model="tiny", first_look=n)) for n in (200, 9999)
    ]
    sampled, whole = (scan.scan_targets(made) for made in makes)
    a, b = sampled.climatology["tp"], whole.climatology["tp"]
    error = sampled.errors["tp"]
    assert not whole.errors
    assert 0 < error < 0.05 * b.moments.mean
    # The stratified sample is at least as good as a random one, whose error is stated.
    assert abs(a.moments.mean - b.moments.mean) < 3 * error
    assert a.wet_fraction == pytest.approx(b.wet_fraction, abs=0.01)
    assert float(a.histogram.quantile(0.99)) == pytest.approx(
        float(b.histogram.quantile(0.99)), 0.1
    )
    assert len(sampled.train) == len(whole.train)


def test_only_the_sample_is_read_and_nothing_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ds = _years(1200)
    options: dict[str, Any] = {
        "model": "tiny",
        "steps": 4,
        "batch_size": 1,
        "validations": 1,
        "first_look": 20,
        "validation": ("2010-10-20", "2010-10-26"),
        "out": tmp_path / "run",
        "progress": True,
    }
    looked: list[int] = []
    real = scan._read_targets

    def counted(made: Any, times: np.ndarray, **more: Any) -> Any:
        looked.append(len(times))
        return real(made, times, **more)

    monkeypatch.setattr(scan, "_read_targets", counted)
    caplog.set_level(logging.INFO, "xaurora")
    first = ds.aurora.finetune("tp", **options)
    assert looked == [20, 20]
    looked.clear()
    again = ds.aurora.finetune("tp", resume=True, **options)
    assert not looked
    assert again.hash == first.hash
    other = ds.assign(tp=(ds["tp"] * 2).assign_attrs(ds["tp"].attrs))
    with pytest.raises(errors.OptionError, match="targets="):
        other.aurora.finetune("tp", resume=True, **options)
    assert looked, "other data are looked at"


@pytest.mark.parametrize(("workers", "at_once"), [(2, 9), (0, 1)])
def test_inputs_are_looked_at_one_frame_at_a_time_and_its_variables_at_once(
    fields: xr.Dataset, monkeypatch: pytest.MonkeyPatch, workers: int, at_once: int
) -> None:
    """All frames would be gigabytes at 0.25°, and one variable after another is slow from afar."""
    made = plan(fields.chunk(time=1), FinetuneOptions(target="tp", model="tiny", workers=workers))
    alive: list[weakref.ref] = []
    most = {"frames": 0, "variables": 0}
    reading: list[object] = []
    real, read = frames.indexed.read, frames.read

    def slowly(*args: Any) -> np.ndarray:
        reading.append(args)
        most["variables"] = max(most["variables"], len(reading))
        time.sleep(0.03)  # longer than Loader._timed takes for a fast store
        try:
            return real(*args)
        finally:
            reading.pop()

    def counted(*args: Any, **more: Any) -> Any:
        frame = read(*args, **more)
        alive.append(weakref.ref(frame))
        most["frames"] = max(most["frames"], sum(ref() is not None for ref in alive))
        return frame

    monkeypatch.setattr(scan.inputs, "FRAMES", 4)
    monkeypatch.setattr(frames.indexed, "read", slowly)
    monkeypatch.setattr(frames, "read", counted)
    found = scan._summary_of_inputs(made, made.split.train)
    assert len(alive) == scan.inputs.FRAMES
    assert most == {"frames": 2, "variables": at_once}
    assert {"2t", "q 850"} <= set(found["variables"])


def test_a_damaged_file_of_the_first_look_is_made_again(
    fields: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = plan(fields, FinetuneOptions(target="tp", model="tiny"))
    found = scan.scan_targets(made)
    scan.keep(made, found, tmp_path)
    kept = scan.scan_targets(made, tmp_path)
    assert kept.climatology["tp"].moments == found.climatology["tp"].moments
    assert kept.normalisation == found.normalisation
    for one, other in zip(
        kept.climatology["tp"].histogram.filled(),
        found.climatology["tp"].histogram.filled(),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    (tmp_path / scan.FILE).write_bytes(b"PK half")
    with caplog.at_level(logging.WARNING, "xaurora"):
        again = scan.scan_targets(made, tmp_path)
    assert again.climatology["tp"].moments == found.climatology["tp"].moments
    assert any("looked at again" in r.message for r in caplog.records)

"""Samples that are missing or broken: skipped, counted and named, or an error."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from helpers import make_aurora

from xaurora import errors
from xaurora.training.sound import Skipped, SoundReader

QUICK = {"steps": 12, "batch_size": 2, "validations": 1, "progress": False, "model": "tiny"}


def _broken(fields: xr.Dataset, places: dict[str, list[int]]) -> xr.Dataset:
    ds = fields.copy(deep=True)
    for name, times in places.items():
        ds[name][times] = np.nan
    return ds


def test_broken_samples_are_skipped_counted_and_named(
    fields: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ds = _broken(fields, {"u10": [7], "tp": [13]})
    caplog.set_level(logging.WARNING, "xaurora")
    # every sample once
    options = {**QUICK, "steps": 16, "first_look": 8, "latents": False}
    tuned = ds.aurora.finetune("tp", out=tmp_path / "run", **options)
    skipped = tuned.config["training"]["broken"]
    times = [str(t)[:16] for t in fields["time"].values]
    # A frame is the input of the samples at its time and six hours after; a total is the target of
    # the sample six hours before.
    expected = {times[7]: "u10", times[8]: "u10", times[12]: "target"}
    assert skipped["count"] == 3
    assert skipped["first"].keys() == expected.keys()
    for time, reason in skipped["first"].items():
        assert expected[time] in reason
        assert any(time in r.message and "is skipped" in r.message for r in caplog.records)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert np.isfinite([json.loads(line)["loss"] for line in lines]).all()


def test_skipping_gives_the_same_run_twice(fields: xr.Dataset, tmp_path: Path) -> None:
    ds = _broken(fields, {"u10": [7, 20]})
    a, b = (
        ds.aurora.finetune("tp", out=tmp_path / name, strategy="full", workers=w, **QUICK)
        for name, w in (("a", 0), ("b", 3))
    )
    assert a.hash == b.hash


@pytest.mark.parametrize("name", ["u10", "tp"])
def test_strict_stops_at_the_first(fields: xr.Dataset, tmp_path: Path, name: str) -> None:
    ds = _broken(fields, {name: [14]})
    options: dict[str, Any] = {**QUICK, "strict": True, "steps": 30, "first_look": 8}
    with pytest.raises(errors.MissingValuesError, match="u10" if name == "u10" else "a target"):
        ds.aurora.finetune("tp", out=tmp_path / "run", **options)


def test_data_that_are_broken_throughout_stop_before_anything_is_written(
    fields: xr.Dataset, tmp_path: Path
) -> None:
    ds = _broken(fields, {"u10": list(range(40))})
    options = {**QUICK, "model": make_aurora()}
    with pytest.raises(errors.MissingValuesError, match="'u10' has 512 missing"):
        ds.aurora.finetune("tp", out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_many_broken_in_a_row_stop_the_run(fields: xr.Dataset, tmp_path: Path) -> None:
    ds = _broken(fields, {"u10": list(range(4, 30))})
    options = {**QUICK, "model": make_aurora(), "steps": 30}
    with pytest.raises(errors.MissingValuesError, match="'u10' has 512 missing"):
        ds.aurora.finetune(
            "tp", out=tmp_path / "run", train=("2020-01-02", "2020-01-07"), **options
        )


def test_no_sample_is_left(fields: xr.Dataset) -> None:
    class Broken:
        def read(self, times: Any, steps: int) -> None:
            raise errors.MissingValuesError("nothing there", fix="")

    times = fields["time"].values[1:4]
    whole = (slice(None), slice(None))
    reader = SoundReader(Broken(), times, 1, whole, Skipped(), strict=False)
    with pytest.raises(errors.MissingValuesError, match="nothing there"):
        reader.read(times[:1])
    for _ in range(2):  # all are known to be broken by now
        with pytest.raises(errors.MissingValuesError, match=r"none of the 3 samples|nothing there"):
            reader.read(times[1:2])


def test_a_file_that_cannot_be_read_is_named(fields: xr.Dataset, tmp_path: Path) -> None:
    ds = fields.copy()
    ds.chunk(time=1).to_zarr(tmp_path / "a.zarr", consolidated=False)
    lazy = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False)
    for chunk in (tmp_path / "a.zarr" / "t2m" / "c").glob("9/*/*"):
        chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(errors.SourceError, match="T00:00 or 2020-01-03T06:00 could not be read"):
        lazy.aurora.to_batch(lazy["time"].values[9], model=make_aurora())
    tuned = lazy.aurora.finetune("tp", out=tmp_path / "run", **{**QUICK, "model": make_aurora()})
    reasons = tuned.config["training"]["broken"]["first"].values()
    assert all("'t2m' at 2020-01-03T06:00 could not be read" in r for r in reasons)


def test_replayed_forecasts_start_from_sound_samples(fields: xr.Dataset, tmp_path: Path) -> None:
    ds = _broken(fields, {"u10": [5, 9, 14]})
    options = {**QUICK, "steps": 20, "strategy": "full", "rollout_steps": 2, "replay_buffer": 4}
    tuned = ds.aurora.finetune("tp", out=tmp_path / "run", **options)
    assert tuned.config["training"]["broken"]["count"] > 0

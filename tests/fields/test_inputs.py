"""Data that differ from those that a model was tuned on, and data that do not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora.fields import inputs


def _frames(count: int, *, shift: float = 0.0, factor: float = 1.0, seed: int = 0) -> list:
    """Frames of a field whose mean and spread vary like weather."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        pattern = 10.0 * np.exp(0.05 * rng.standard_normal()) * rng.standard_normal((8, 16))
        values = 280.0 + shift + rng.standard_normal() + factor * pattern
        out.append({"surface": {"2t": values}, "atmos": {"t": np.stack([values, values - 40.0])}})
    return out


def _summary(count: int, times: np.ndarray) -> dict:
    return inputs.summarise([inputs.moments(f, (850.0, 500.0)) for f in _frames(count)], times)


def _days(count: int) -> np.ndarray:
    return np.datetime64("2020-01-01") + np.arange(count) * np.timedelta64(3, "D")


def test_frames_of_one_day_say_nothing() -> None:
    """They resemble each other more than the next week will."""
    times = np.datetime64("2020-01-01") + np.arange(16) * np.timedelta64(1, "h")
    before = _summary(16, times)
    assert inputs.unlike(_frames(1, shift=50.0)[0], (850.0, 500.0), before) == []


def test_frames_drawn_alike_are_not_reported() -> None:
    """Each of 2000 frames, beside 16 others; about one in a thousand may be reported by chance."""
    before = _summary(16, _days(16))
    found = [inputs.unlike(frame, (850.0, 500.0), before) for frame in _frames(2000, seed=1)]
    assert sum(map(bool, found)) <= 6


@pytest.mark.parametrize(
    ("shift", "factor", "words"),
    [(20.0, 1.0, "2t has a mean of"), (0.0, 2.0, "2t has a standard deviation of")],
)
def test_other_values_are_reported(shift: float, factor: float, words: str) -> None:
    before = _summary(16, _days(16))
    (frame,) = _frames(1, shift=shift, factor=factor, seed=2)
    found = inputs.unlike(frame, (850.0, 500.0), before)
    assert any(note.startswith(words) for note in found)
    assert any(note.startswith("t 500") for note in found)


def test_few_frames_say_nothing() -> None:
    before = _summary(3, _days(3))
    assert inputs.unlike(_frames(1, shift=50.0)[0], (850.0, 500.0), before) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> xaurora.TunedAurora:
    """Tuned on 40 days of the world, with attributes of analyses."""
    ds = _with_attributes(xaurora.synthetic(shape=(16, 32), times=160), "an", "ecmf")
    out = tmp_path_factory.mktemp("inputs")
    return ds.aurora.finetune("tp", model="tiny", steps=2, out=out, progress=False)


def _with_attributes(ds: xr.Dataset, kind: str, centre: str) -> xr.Dataset:
    for name in ("t2m", "u10", "v10", "msl", "z", "u", "v", "t", "q"):
        ds[name].attrs |= {"GRIB_dataType": kind, "GRIB_centre": centre}
    return ds


def _later(**options: object) -> xr.Dataset:
    ds = xaurora.synthetic(shape=(16, 32), times=180, **options).isel(time=slice(160, None))
    return _with_attributes(ds, "an", "ecmf")


def test_the_next_days_are_like_those_before(
    model: xaurora.TunedAurora, caplog: pytest.LogCaptureFixture
) -> None:
    report = _later().aurora.check("tp", model=model)
    assert report.ok
    assert not any("tuned on" in note or "in training" in note for note in report.notes), report
    with caplog.at_level(logging.WARNING, "xaurora"):
        forecast = _later().aurora.predict(model=model, progress=False)
    assert "tuned on" not in caplog.text
    assert "xaurora_differences" not in forecast.attrs


def _triple_wind(ds: xr.Dataset) -> xr.Dataset:
    return ds.assign(u10=(3.0 * ds["u10"]).assign_attrs(ds["u10"].attrs))


CASES = {
    "units": (_triple_wind, "10u has a mean of"),
    "forecasts": (lambda ds: _with_attributes(ds, "fc", "ecmf"), "type is 'fc', before 'an'"),
    "centre": (lambda ds: _with_attributes(ds, "an", "kwbc"), "centre is 'kwbc', before 'ecmf'"),
    "years": (
        lambda ds: ds.assign_coords(time=ds["time"] + np.timedelta64(15 * 365, "D")),
        "15 years after",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_other_data_are_told_by_check_predict_and_evaluate(
    model: xaurora.TunedAurora, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, words = CASES[name]
    other = change(_later())
    assert any(words in note for note in other.aurora.check("tp", model=model).notes)
    forecast = other.aurora.predict(model=model, progress=False)
    assert any(words in note for note in json.loads(forecast.attrs["xaurora_differences"]))
    assert words in caplog.text
    caplog.clear()
    scores = forecast.aurora.evaluate(other, metrics=["rmse"], progress=False)
    assert words in caplog.text
    assert words in scores.attrs["xaurora_notes"]


def test_another_grid_and_region(
    model: xaurora.TunedAurora, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = xaurora.synthetic(shape=(8, 16), times=8)
    notes = wide.aurora.check("tp", model=model).notes
    assert any(
        "grid spacing is 22.5° × 22.5°, but the model was tuned on 11.25°" in n for n in notes
    )
    north = xaurora.synthetic(shape=(16, 32), times=40).isel(latitude=slice(0, 8))
    tuned = north.aurora.finetune("tp", model="tiny", steps=1, out=tmp_path, progress=False)
    south = _later().isel(latitude=slice(8, 16))
    notes = south.aurora.check("tp", model=tuned).notes
    assert any(n.startswith("The data cover -84.375 to -5.625°N, all longitudes") for n in notes)
    assert not any("cover" in n for n in north.aurora.check("tp", model=tuned).notes)


def test_regions_across_greenwich_lie_inside_each_other() -> None:
    outer = [30.0, 60.0, 350.0, 40.0]  # 350°E to 30°E
    assert inputs._inside([40.0, 50.0, 355.0, 20.0], outer, 1.0)
    assert inputs._inside([30.0, 60.0, 349.5, 40.9], outer, 1.0)
    assert not inputs._inside([40.0, 50.0, 340.0, 20.0], outer, 1.0)
    assert not inputs._inside([40.0, 50.0, 20.0, 20.0], outer, 1.0)


def test_scores_of_training_days_are_marked(
    model: xaurora.TunedAurora, caplog: pytest.LogCaptureFixture
) -> None:
    """The forecast starts in training (the first 40 days but the last fifth) and ends after it."""
    ds = xaurora.synthetic(shape=(16, 32), times=180)
    forecast = ds.aurora.predict(
        model=model, time=list(ds.time.values[[8, 20, 178]]), progress=False
    )
    scores = forecast.aurora.evaluate(ds, metrics=["rmse"], progress=False)
    assert "2 of 3 init times lie in the period that the model was tuned on" in caplog.text
    assert "tuned on" in scores.aurora.scorecard().html

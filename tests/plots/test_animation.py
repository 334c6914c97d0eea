"""A rollout as a film: one frame for each lead time, with the truth beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr
from PIL import Image

import xaurora
from xaurora import errors
from xaurora.plots import animation


@pytest.fixture(scope="module")
def forecast(fields: xr.Dataset) -> xr.Dataset:
    return xaurora.persistence(fields, ["tp", "t"], ["6h", "12h", "18h"])


def test_each_lead_is_a_frame(forecast: xr.Dataset, fields: xr.Dataset, tmp_path: Path) -> None:
    path = forecast.aurora.animate(tmp_path / "rain.gif", truth=fields, progress=False)
    with Image.open(path) as film:
        assert film.n_frames == 3
        wide = film.size
        assert film.info["duration"] == 500
    with pytest.raises(errors.SaveError, match="already exists"):
        forecast.aurora.animate(path, progress=False)
    forecast.aurora.animate(path, "t", level=700.0, overwrite=True, progress=False)
    with Image.open(path) as film:
        assert film.n_frames == 3
        assert film.size[0] < wide[0]


def test_what_cannot_be_animated(
    forecast: xr.Dataset, fields: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call, kind, words in (
        (lambda: fields.aurora.animate("a.gif"), errors.KindError, "no lead times"),
        (lambda: forecast.aurora.animate("a.avi"), errors.OptionError, "one of .gif, .mp4"),
        (
            lambda: forecast.aurora.animate("a.gif", frames_per_second=0),
            errors.OptionError,
            "frames_per_second",
        ),
        (
            lambda: forecast.aurora.animate("a.gif", "hail"),
            errors.MissingVariableError,
            "'hail' is not in the forecast",
        ),
    ):
        with pytest.raises(kind, match=words):
            call()
    monkeypatch.setattr("matplotlib.animation.FFMpegWriter.isAvailable", lambda: False)
    with pytest.raises(errors.MissingExtraError, match="needs ffmpeg"):
        animation.animate(forecast, tmp_path / "rain.mp4", progress=False)
    assert not list(tmp_path.iterdir())

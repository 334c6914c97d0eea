"""Files and stores that are rewritten while they are read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora.errors import SourceChangedError
from xaurora.evaluation import engine
from xaurora.model import frames


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(shape=(8, 16), times=24)


def _write(ds: xr.Dataset, path: Path) -> None:
    if path.suffix == ".nc":
        ds.to_netcdf(path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)  # as a download does that is repeated
    else:
        ds.to_zarr(path, mode="w", consolidated=False)


def _after(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, calls: int, act: Any) -> None:
    """Do something after a function was called a number of times."""
    real, count = getattr(module, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        count.append(name)
        if len(count) == calls:
            act()
        return out

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize("name", ["fields.nc", "fields.zarr"])
def test_forecasts_and_runs_stop(
    name: str, ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    _write(ds, path)
    lazy = xaurora.open(path)
    with monkeypatch.context() as patched:
        _after(patched, frames, "_read_all", 3, lambda: _write(ds * 1.0, path))
        with pytest.raises(SourceChangedError, match=f"{name}.*has changed while it was read"):
            lazy.aurora.predict("6h", model="tiny-pretrained", progress=False)
    lazy = xaurora.open(path)
    with monkeypatch.context() as patched:
        _after(patched, frames, "_read_all", 30, lambda: _write(ds * 1.0, path))
        with pytest.raises(SourceChangedError) as error:
            lazy.aurora.finetune(
                model="tiny", strategy="full", steps=40, out=tmp_path / "run", progress=False
            )
    assert "open it again" in error.value.fix
    again = xaurora.open(path)
    assert (
        again.aurora.predict("6h", model="tiny-pretrained", progress=False).sizes["init_time"] == 23
    )


def test_scores_stop(ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "truth.zarr"
    _write(ds, path)
    forecast = xaurora.persistence(ds, ["t2m", "msl"], ["6h", "12h"])
    truth = xaurora.open(path)
    with monkeypatch.context() as patched:
        _after(patched, engine, "_score", 1, lambda: _write(ds * 1.0, path))
        with pytest.raises(SourceChangedError, match=r"truth\.zarr"):
            forecast.aurora.evaluate(truth, progress=False)
    forecast.aurora.evaluate(xaurora.open(path), progress=False)


def test_data_that_stay_raise_no_alarm(
    ds: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "fields.nc"
    _write(ds, path)
    with caplog.at_level(logging.WARNING):
        forecast = xaurora.open(path).aurora.predict(
            "6h", model="tiny-pretrained", time=ds["time"].values[3], progress=False
        )
    assert np.isfinite(forecast["t2m"]).all()


def test_data_in_memory_are_not_watched(ds: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "fields.nc"
    _write(ds, path)
    loaded = xaurora.open(path).load()
    path.unlink()
    loaded.aurora.predict("6h", model="tiny-pretrained", time=ds["time"].values[3], progress=False)

"""Fixtures: real data if available, synthetic fields, and small Auroras with random modulation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import torch
import xarray as xr
from aurora import Aurora
from helpers import LittleSmall, make_aurora, shrink_tiny

import xaurora
from xaurora.model.heads.base import Climatology, DistributionHead
from xaurora.training import costs, finetune

matplotlib.use("Agg")
torch.set_num_threads(1)
shrink_tiny()

_draw_history = finetune._draw_history
# Runs of tests and of their fixtures do not draw their learning curves, a third of a short run.
finetune._draw_history = lambda *_: None


@pytest.fixture(autouse=True)
def _figures_of_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of tests that look at them do."""
    if request.node.get_closest_marker("draws") is not None:
        monkeypatch.setattr(finetune, "_draw_history", _draw_history)


@pytest.fixture(autouse=True)
def _usual_tiny(request: pytest.FixtureRequest) -> Iterator[None]:
    """Models learn less with few weights."""
    if request.node.get_closest_marker("usual_tiny") is None:
        yield
        return
    shrink_tiny(False)
    yield
    shrink_tiny()


_fitted: dict[object, dict[str, torch.Tensor]] = {}


@pytest.fixture(autouse=True)
def _heads_are_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit a head to a climatology only the first time: it takes half of a short run."""
    real = DistributionHead.initialise

    def initialise(self: DistributionHead, climatology: Climatology) -> None:
        bins = (climatology.values.tobytes(), climatology.shares.tobytes())
        key = (type(self), repr(self.options), self.shape, *bins)
        own = dict(self.named_buffers(recurse=False))
        if key not in _fitted:
            real(self, climatology)
            _fitted[key] = {name: tensor.clone() for name, tensor in own.items()}
        with torch.no_grad():
            self.trunk.out.bias.zero_()
            for name, tensor in own.items():
                tensor.copy_(_fitted[key][name])

    monkeypatch.setattr(DistributionHead, "initialise", initialise)


@pytest.fixture(autouse=True)
def _no_timing_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates count steps and run none, which takes most of the time of a short one."""
    monkeypatch.setattr("xaurora.training.estimate.MEASURED_BELOW", 0.0)


@pytest.fixture
def timed_steps(_no_timing_of_steps: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates run and time a few steps, as they do for users."""
    monkeypatch.setattr("xaurora.training.estimate.MEASURED_BELOW", costs.MEASURED_BELOW)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["XAURORA_TEST_CACHE"])
    monkeypatch.setattr("xaurora.utils.storage.cache_path", lambda name: folder / name)


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are not forced to the disk. That matters when power fails, which no test can cause."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def little_small(monkeypatch: pytest.MonkeyPatch) -> type[Aurora]:
    """Let ``model="small"`` be a little Aurora: its weights are those of 2 MB, not of 450."""
    monkeypatch.setattr("aurora.AuroraSmallPretrained", LittleSmall)
    return LittleSmall


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def data() -> Path:
    """Real ERA5 and IMERG beside the repository."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real data are not beside this checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def oracle() -> Path:
    """Figures of the real WeatherBench2 beside the repository."""
    folder = SHARED / "oracle"
    if not folder.is_dir():
        pytest.skip("the WeatherBench2 figures are not beside this checkout (../shared/oracle)")
    return folder


@pytest.fixture(scope="session")
def norway(data: Path) -> xr.Dataset:
    folder = data / "era5_norway_2025-06"
    return xaurora.open(folder / "pressure_levels.nc", folder / "surface.nc").load()


@pytest.fixture(scope="session")
def europe(data: Path) -> xr.Dataset:
    return xaurora.open(
        str(data / "era5_europe_2020-01-01" / "*.nc"), data / "era5_static" / "static.nc"
    ).load()


@pytest.fixture(scope="session")
def fields() -> xr.Dataset:
    """A small globe with rain, every six hours."""
    return xaurora.synthetic(shape=(16, 32), times=40)


@pytest.fixture(scope="session")
def aurora_model() -> Aurora:
    return make_aurora()


@pytest.fixture(scope="session")
def tuned(fields: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> xaurora.TunedAurora:
    """A tiny Aurora after a few steps."""
    out = tmp_path_factory.mktemp("run")
    return fields.aurora.finetune(
        "tp",
        model="tiny",
        strategy="full",
        steps=12,
        batch_size=2,
        validations=2,
        out=out / "tuned",
        progress=False,
    )

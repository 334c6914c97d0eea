"""Sensitivities against finite differences, between engines, and against the law of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora.errors import (
    InitTimeError,
    LeadTimeError,
    MemoryTooSmallError,
    MissingVariableError,
    OptionError,
    RegionError,
)
from xaurora.forecasting import sensitivity as module
from xaurora.model import memory

BOX = (-30.0, 0.0, 60.0, 90.0)


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return xaurora.synthetic(shape=(16, 32), times=24)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"name": "tp", "lead": "12h"}, marks=pytest.mark.thorough),
        {"name": "tp", "lead": "6h", "statistic": "probability", "threshold_mm": 0.5},
        pytest.param(
            {"name": "z", "lead": "6h", "level": 500, "per_std": True}, marks=pytest.mark.thorough
        ),
    ],
    ids=["rain", "chance of rain", "geopotential"],
)
def test_engines_agree(ds: xr.Dataset, tuned: xaurora.TunedAurora, asked: dict[str, Any]) -> None:
    """Both compute in float32, so that they agree to 1e-4 of the largest value."""
    both = [
        ds.aurora.sensitivity(region=BOX, model=tuned, engine=e, progress=False, **asked)
        for e in ("torch", "jax")
    ]
    for name, expected in both[0].items():
        error = np.abs(both[1][name].values - expected.values).max()
        assert error <= 1e-4 * np.abs(expected.values).max(), name
    quantities = [b.attrs["xaurora_quantity"] for b in both]
    assert quantities[0] == pytest.approx(quantities[1], rel=1e-5)


def test_it_is_the_slope_of_the_forecast(ds: xr.Dataset, tuned: xaurora.TunedAurora) -> None:
    """Central differences of ``predict``, in the user's names and units, here °C and hPa.

    Perturbations are large enough for float32 and small enough for a straight line, hence 2 %.
    """
    mine = ds.assign(
        t2m=(ds["t2m"] - 273.15).assign_attrs(ds["t2m"].attrs, units="degC"),
        msl=(ds["msl"] / 100).assign_attrs(ds["msl"].attrs, units="hPa"),
    ).isel(time=slice(0, 4))
    found = mine.aurora.sensitivity("t2m", region=BOX, lead="6h", model=tuned, progress=False)
    assert found["msl"].attrs["units"] == "degC / (hPa)"
    area = np.cos(np.deg2rad(mine["latitude"]))
    inside = (mine["latitude"] >= BOX[0]) & (mine["latitude"] <= BOX[1])
    inside = inside & (mine["longitude"] >= BOX[2]) & (mine["longitude"] <= BOX[3])
    weight = area.where(inside, 0.0)
    asked = {"model": tuned, "time": mine["time"].values[-1], "variables": ["t2m"]}

    def forecast(data: xr.Dataset) -> float:
        fc = data.aurora.predict(progress=False, **asked)["t2m"].squeeze().astype(float)
        return float((fc * weight).sum() / weight.sum())

    assert found.attrs["xaurora_quantity"] == pytest.approx(forecast(mine), abs=1e-4)
    for name, size in (("msl", 10.0), ("v", 1.5), ("t2m", 3.0)):
        slope = found[name].isel(time=1)
        # Along its own gradient, the change is the largest.
        direction = slope / np.abs(slope).max() * size
        moved = []
        for sign in (1.0, -1.0):
            data = mine.copy(deep=True)
            data[name].values[-1] += sign * direction.values
            moved.append(forecast(data))
        expected = float((slope * direction).sum())
        assert (moved[0] - moved[1]) / 2 == pytest.approx(expected, rel=0.02), name


@pytest.mark.thorough
def test_it_points_upstream(tmp_path: Path) -> None:
    """Fields drift eastward, two columns in six hours: what matters lies to the west.

    Twelve seconds, because a head has to learn the law first.
    """
    ds = xaurora.synthetic(times=120, seed=1)
    tuned = ds.aurora.finetune(
        model="tiny-pretrained", steps=50, batch_size=4, validations=1, out=tmp_path, progress=False
    )
    found = ds.aurora.sensitivity(
        "tp", region=BOX, lead="6h", model=tuned, per_std=True, progress=False
    ).isel(time=1)
    east = (ds["longitude"] - 75.0 + 180.0) % 360.0 - 180.0
    for name, sign in (("v", 1.0), ("q", 1.0), ("z", -1.0)):  # rain grows with A and B
        by_column = sign * found[name].sum(["level", "latitude"]).where(abs(east) < 60.0, 0.0)
        assert by_column.sum() > 0, name
        up = by_column.clip(min=0.0)
        assert -12.0 < float((up * east).sum() / up.sum()) < -2.0, name


@pytest.mark.thorough
def test_what_rain_does_not_depend_on_hardly_matters(tmp_path: Path) -> None:
    """Noise in place of a variable: raised everywhere, it changes mean rain little.

    Point by point its sensitivity is not small, and alternates in sign. A quarter of a minute,
    because the whole model has to learn.
    """
    ds = xaurora.synthetic(times=160, seed=1, shape=(8, 16))
    noise = np.random.default_rng(0).standard_normal(ds["u10"].shape).astype("float32")
    ds["u10"] = ds["u10"].copy(data=5.0 + 4.0 * noise)
    ds.aurora.finetune(
        model="tiny", strategy="full", base_loss=0, steps=60, batch_size=4, validations=1,
        out=tmp_path, progress=False,
    )  # fmt: skip
    found = ds.aurora.sensitivity("tp", region="tropics", lead="6h", per_std=True, progress=False)
    total = {name: abs(float(values.sum())) for name, values in found.items()}
    assert total["u10"] < 0.3 * total["msl"]


def test_memory_is_known_before(
    ds: xr.Dataset, tuned: xaurora.TunedAurora, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count without values is that of the same steps with values."""
    asked: list[Any] = []
    real = module._check_memory
    monkeypatch.setattr(module, "_check_memory", lambda q, e: (asked.append(q), real(q, e))[1])
    usual = {"region": BOX, "lead": "12h", "model": tuned, "progress": False}
    ds.aurora.sensitivity("tp", **usual)
    counter = memory.LiveBytes()
    network = asked[0].module
    for tensor in [*network.parameters(), *network.buffers()]:
        counter.track(tensor)
    with counter:
        module._differentiate(asked[0], network, asked[0].batch)
    assert module._needed(asked[0]) == pytest.approx(counter.peak, rel=0.05)
    monkeypatch.setattr(memory, "free_memory", lambda where: 10**6)
    with pytest.raises(MemoryTooSmallError, match=r"over 2 step.*and 0\.0 GB are free") as error:
        ds.aurora.sensitivity("tp", **usual)
    assert "shorter lead=" in error.value.fix


def test_it_is_drawn(ds: xr.Dataset, tuned: xaurora.TunedAurora) -> None:
    found = ds.aurora.sensitivity("tp", region="europe", lead="6h", model=tuned, progress=False)
    axes = found.aurora.plot("q", level=850)
    assert [ax.get_title() for ax in axes] == ["q at 850 hPa, -6 h", "q at 850 hPa, init time"]
    assert "mean of tp after 6 h" in axes[0].figure.get_suptitle()
    assert len(found.isel(time=1).aurora.plot("t2m")) == 1
    assert found.attrs["xaurora_region"] == "europe"
    with pytest.raises(OptionError, match="no sensitivity to 'tp'"):
        found.aurora.plot("tp")
    with pytest.raises(OptionError, match="level=123 is not in the data"):
        found.aurora.plot("q", level=123)


@pytest.mark.parametrize(
    ("asked", "error", "words", "fix"),
    [
        ({"lead": ["6h", "12h"]}, LeadTimeError, "holds 2 lead times", {"lead": "6h"}),
        ({"time": slice(None)}, InitTimeError, "selects 23 init times", {"time": None}),
        ({"region": (50, 51, 0.5, 1)}, RegionError, "no grid point", {"region": "europe"}),
        ({"name": "z"}, OptionError, "has the levels 500, 700, 850 hPa", {"level": 700}),
        ({"level": 500}, OptionError, "is not one", {"level": None}),
        ({"level": "high"}, OptionError, "level must be a number", {"level": None}),
        ({"name": "wind"}, MissingVariableError, "cannot be forecast", {"name": "t2m"}),
        ({"threshold_mm": 1.0}, OptionError, "belong together", {"statistic": "probability"}),
        ({"statistic": "median"}, OptionError, "must be one of", {"statistic": "mean"}),
        (
            {"name": "t2m", "statistic": "probability", "threshold_mm": 1.0},
            OptionError,
            "needs a distribution of precipitation",
            {"statistic": "mean", "threshold_mm": None},
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_the_fix_works(
    ds: xr.Dataset,
    tuned: xaurora.TunedAurora,
    asked: dict[str, Any],
    error: type[Exception],
    words: str,
    fix: dict[str, Any],
) -> None:
    usual = {"name": "tp", "region": BOX, "lead": "6h", "model": tuned, "progress": False}
    with pytest.raises(error, match=words):
        ds.aurora.sensitivity(**{**usual, **asked})
    ds.aurora.sensitivity(**{**usual, **asked, **fix})

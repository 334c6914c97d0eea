"""Pictures and scorecards: what is drawn is what was computed."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors, plots
from xaurora.plots import maps


@pytest.fixture(scope="module")
def forecast(fields: xr.Dataset, tuned) -> xr.Dataset:
    return fields.aurora.predict(
        "12h", model=tuned, time=fields["time"].values[30:33], thresholds_mm=[1.0], progress=False
    )


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_a_map_of_rain_is_in_mm(forecast: xr.Dataset) -> None:
    ax = forecast.aurora.plot("tp")
    mesh = ax.collections[0]
    np.testing.assert_allclose(
        np.asarray(mesh.get_array()).ravel(), forecast["tp"].values[0, 0].ravel() * 1e3, rtol=1e-6
    )
    assert ax.figure.axes[1].get_ylabel() == "mm in 6 h"
    first, second = ax.get_title().splitlines()
    assert first == "tp, 2020-01-08 12 UTC + 6 h"
    assert second == "valid 2020-01-08 18 UTC"
    title = forecast.aurora.plot("t", level=700.0, lead="12h").get_title()
    assert title.splitlines()[0].endswith("12 h")


def test_a_triptych_shows_the_difference(forecast: xr.Dataset, fields: xr.Dataset) -> None:
    axes = forecast.aurora.plot(
        "tp", truth=fields, init_time=forecast["init_time"].values[1], lead="12h"
    )
    f, y, d = (np.asarray(a.collections[0].get_array()).reshape(16, 32) for a in axes)
    np.testing.assert_allclose(d, f - y, atol=1e-9)
    np.testing.assert_allclose(
        y, fields["tp"].sel(time=forecast["valid_time"].values[1, 1]).values * 1e3, rtol=1e-6
    )
    axes = forecast.aurora.plot("z", truth=fields)
    assert len(axes) == 3
    assert all("valid 2020-01-08 18 UTC" in ax.get_title() for ax in axes)
    _, mine = plt.subplots(1, 3)
    assert forecast.aurora.plot("t2m", truth=fields, ax=mine) is mine


def test_maps_go_on_across_greenwich() -> None:
    da = xr.DataArray(
        np.zeros((3, 4)),
        dims=("latitude", "longitude"),
        coords={"latitude": [50.0, 49, 48], "longitude": [358.0, 359, 0, 1]},
        attrs={"units": "K"},
    )
    ax = plots.field(da)
    low, high = ax.get_xlim()
    assert high - low < 6
    with pytest.raises(errors.OptionError, match="needs two dims"):
        plots.field(da.expand_dims(time=2))


def test_coastlines_need_nothing_and_follow_the_longitudes() -> None:
    """Of Great Britain: near Greenwich, in any convention of longitude."""
    for longitude in (
        np.arange(-12.0, 5.0),
        np.arange(348.0, 365.0),
        np.arange(348.0, 365.0) % 360,
    ):
        da = xr.DataArray(
            np.zeros((12, 17)),
            dims=("latitude", "longitude"),
            coords={"latitude": np.arange(61.0, 49.0, -1.0), "longitude": longitude},
        )
        ax = plots.field(da)
        lines = ax.collections[-1].get_segments()
        assert sum(map(len, lines)) > 300
        low, high = ax.get_xlim()
        assert any(((line[:, 0] > low) & (line[:, 0] < high)).all() for line in lines)


def test_no_coastline_crosses_the_map() -> None:
    """Segments are short: none jumps from one side of the date line to the other."""
    for scale in ("110m", "50m"):
        lines = maps._coastlines(scale)
        assert len(lines) > 100
        assert max(np.abs(np.diff(line[:, 0])).max() for line in lines) < 20.0


def test_a_map_in_a_projection() -> None:
    crs = pytest.importorskip("cartopy.crs")
    ax = plt.subplot(projection=crs.Robinson())
    da = xaurora.synthetic(shape=(16, 32), times=2)["t2m"][0]
    plots.field(da, ax=ax)
    assert len(ax.collections) == 2


def test_curves(tuned, forecast: xr.Dataset, fields: xr.Dataset) -> None:
    scores = forecast.aurora.evaluate(fields)
    ax = plots.lead_curve({"mine": scores}, "tp", "rmse")
    np.testing.assert_allclose(
        ax.lines[0].get_ydata(), scores["tp"].sel(metric="rmse", region="global").values * 1e3
    )
    assert ax.get_ylabel() == "RMSE of tp in mm"
    assert plots.lead_curve({"mine": scores}, "t", "rmse", level=850.0).lines


def test_what_cannot_be_drawn(forecast: xr.Dataset, fields: xr.Dataset) -> None:
    for call, kind in (
        (lambda: forecast.aurora.plot("hail"), errors.MissingVariableError),
        (lambda: forecast.aurora.plot("tp", lead="3h"), errors.LeadTimeError),
        (lambda: forecast.aurora.plot("tp", init_time="1999-01-01"), errors.InitTimeError),
        (lambda: forecast.aurora.plot("tp_shape", truth=fields), errors.MissingVariableError),
    ):
        with pytest.raises(kind):
            call()


def test_a_target_before_it_is_learnt(fields: xr.Dataset) -> None:
    axes = fields.aurora.plot("tp")
    assert len(axes) == 4
    assert "wet fraction" in axes[1].get_title()
    dry = float((fields["tp"] == 0).weighted(np.cos(np.deg2rad(fields["latitude"]))).mean())
    assert f"dry: {dry:.0%}" in axes[2].get_title()
    line = axes[3].lines[0].get_ydata()
    assert len(line) == 40
    assert 0.1 < line.mean() < 3.0  # mm
    _, own = plt.subplots(4, 1)
    assert fields.aurora.plot("t2m", ax=own)[1].get_title() == "standard deviation"
    from_truth = fields.drop_vars("tp").aurora.plot("tp", truth=fields[["tp"]])
    np.testing.assert_allclose(from_truth[3].lines[0].get_ydata(), line, rtol=1e-5)
    with pytest.raises(errors.TargetError, match="'hail' is not in the data"):
        fields.aurora.plot("hail")
    plt.close("all")


@pytest.mark.draws
def test_learning_curves(tuned, fields: xr.Dataset, tmp_path: Path) -> None:
    axes = xaurora.learning_curves(tuned)
    assert axes.shape == (2, 2)
    assert axes[0, 1].get_title() == "RMSE in mm"
    scored = [e for e in tuned.history if "validation_rmse_mm" in e]
    np.testing.assert_allclose(
        axes[0, 1].lines[-1].get_ydata(), [e["validation_rmse_mm"] for e in scored]
    )
    assert len(axes[1, 1].lines[0].get_ydata()) == len(tuned.history)
    assert (
        xaurora.learning_curves(tuned, name="all")[0, 1].get_title()
        == "RMSE in standard deviations"
    )
    for wrong in ("t2m", 3):
        with pytest.raises(errors.OptionError, match="the history has no"):
            xaurora.learning_curves(tuned, name=wrong)
    for nothing in ([], "runs/tp", None):
        with pytest.raises(errors.OptionError):
            xaurora.learning_curves(nothing)
    run = fields.aurora.finetune(
        "tp", model="tiny", steps=2, batch_size=1, out=tmp_path / "run", progress=False
    )
    assert (tmp_path / "run" / "learning.png").stat().st_size > 10_000
    assert run.history

"""Diagrams show what the scores say, draw where they are told to, and say what is missing."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors, plots
from xaurora.evaluation.histograms import INTENSITY_EDGES
from xaurora.plots import diagrams, forecasts


@pytest.fixture(scope="module")
def scores(fields: xr.Dataset, tuned) -> dict[str, xr.Dataset]:
    init = fields["time"].values[10:36]
    forecast = fields.aurora.predict(
        "12h", model=tuned, time=init, variables=["t2m", "tp"], progress=False
    )
    other = xaurora.persistence(fields, ["t2m", "tp"], ["6h", "12h"]).sel(
        init_time=forecast["init_time"]
    )
    got = xaurora.compare(
        {"mine": forecast, "persistence": other}, fields, metrics="all", regions=["global"]
    )
    return {**got, "forecast": forecast}


def test_lines_are_the_scores(scores: dict[str, xr.Dataset]) -> None:
    mine, both = scores["mine"], {n: scores[n] for n in ("mine", "persistence")}
    ax = diagrams.threshold_curve(mine, metric="csi")
    want = mine["tp_exceed"].sel(metric="csi", region="global")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), want.isel(lead_time=0))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["+6 h", "+12 h"]
    # Lines of lead times are not in the colours of forecasts.
    assert not {line.get_color() for line in ax.lines} & set(diagrams.COLOURS)
    ax = diagrams.threshold_curve(both, metric="frequencybias", lead="12h")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["mine", "persistence"]
    fss = diagrams.fss_curve(scores["persistence"])
    assert fss.lines[0].get_xdata().tolist() == [1, 3, 5, 9]
    pit = diagrams.calibration(mine)
    assert "integral transform" in pit.get_xlabel()
    ratio = diagrams.spectrum(both, "t2m", ratio=True)
    want = (
        (scores["persistence"]["t2m_spectrum"] / scores["persistence"]["t2m_truth_spectrum"])
        .sel(region="global")
        .isel(lead_time=0)
    )
    np.testing.assert_allclose(
        ratio.lines[1].get_ydata(), want.isel(zonal_wavenumber=slice(1, None))
    )
    assert len(diagrams.spectrum(mine, "t2m").lines) == 3  # two leads, and the truth
    over = diagrams.intensity(mine)
    assert over.lines[1].get_label() == "truth"
    assert over.lines[1].get_ydata()[0] == pytest.approx(
        1 - float(mine["tp_truth_intensity"].isel(intensity_bin=0, lead_time=0).squeeze())
    )
    plt.close("all")


def test_the_tail_is_read_off_the_distribution() -> None:
    """The 99 % quantile of an exponential distribution of mean 5 mm is 5 ln 100 = 23.0 mm."""
    edges = INTENSITY_EDGES
    share = -np.diff(np.concatenate([[1.0], np.exp(-edges / 5.0), [0.0]]))
    da = xr.DataArray(
        share[None, None],
        {
            "region": ["domain"],
            "lead_time": np.array([6], "timedelta64[h]"),
            "intensity_bin": np.concatenate([[0.0], edges]),
        },
        ("region", "lead_time", "intensity_bin"),
    )
    ds = xr.Dataset({"tp_intensity": da, "tp_truth_intensity": da})
    forecast, truth = diagrams.tail(ds)
    at99 = forecast[diagrams.TAIL.index(0.99)]
    assert at99 == pytest.approx(
        5 * np.log(100), rel=0.03
    )  # bins are a quarter wide, and the line between them is straight in log mm
    np.testing.assert_array_equal(forecast, truth)
    ax = diagrams.quantile_quantile(ds)
    assert ax.get_xlabel() == "truth in mm"
    plt.close("all")


def test_every_diagram_takes_axes(scores: dict[str, xr.Dataset], fields: xr.Dataset) -> None:
    mine, persistence = scores["mine"], scores["persistence"]
    for draw in (
        lambda ax: diagrams.threshold_curve(mine, ax=ax),
        lambda ax: diagrams.fss_curve(persistence, threshold_mm=1.0, ax=ax),
        lambda ax: diagrams.reliability(mine, ax=ax),
        lambda ax: diagrams.calibration(mine, lead="6h", ax=ax),
        lambda ax: diagrams.spectrum(mine, "t2m", ax=ax),
        lambda ax: diagrams.intensity(mine, ax=ax),
        lambda ax: diagrams.quantile_quantile(mine, ax=ax),
        lambda ax: plots.lead_curve(mine, "tp", "crps", ax=ax),
    ):
        figure, ax = plt.subplots()
        assert draw(ax) is ax
        assert ax.has_data()
        plt.close(figure)
    axes = forecasts.models(
        {"mine": scores["forecast"], "again": scores["forecast"]}, "tp", truth=fields
    )
    assert axes.shape == (3, 2)
    assert axes[2, 1].get_title().splitlines()[0] == "truth, +12 h"
    plt.close("all")


def test_intervals_by_lead(scores: dict[str, xr.Dataset]) -> None:
    both = {n: scores[n] for n in ("mine", "persistence")}
    ax = plots.lead_curve(both, "t2m", "rmse")
    skill = xaurora.significance(scores["mine"], scores["persistence"])["t2m"].sel(
        metric="rmse", region="global"
    )
    other = scores["persistence"]["t2m"].sel(metric="rmse", region="global").values
    (bars,) = ax.containers
    low = [segment[0][1] for segment in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(low, (1 - skill.sel(estimate="high").values) * other, rtol=1e-9)
    assert not plots.lead_curve(both, "t2m", "rmse", intervals=False).containers
    plt.close("all")


def test_what_is_missing_is_said(scores: dict[str, xr.Dataset]) -> None:
    mine = scores["mine"]
    for call, error, match in (
        (lambda: diagrams.fss_curve(mine), errors.MissingVariableError, r"metrics=\['fss'\]"),
        (
            lambda: diagrams.threshold_curve(mine, metric="fss"),
            errors.MissingVariableError,
            "do not contain 'fss'",
        ),
        (
            lambda: diagrams.reliability(mine, threshold_mm=3.3),
            errors.OptionError,
            "a threshold of 3.3 mm",
        ),
        (lambda: diagrams.intensity(mine, lead="9h"), errors.LeadTimeError, "the lead time '9h'"),
        (
            lambda: (
                plots.lead_curve(mine, "tp", "rmse", level=500.0)
                and forecasts.models(scores["forecast"], ax=[1])
            ),
            errors.OptionError,
            "shape",
        ),
        (
            lambda: diagrams.threshold_curve(mine, region="mars"),
            errors.OptionError,
            "the region 'mars'",
        ),
        (lambda: diagrams.error_by_edge(mine), errors.OptionError, "do not contain edge rings"),
        (
            lambda: plots.lead_curve(mine, "tp", "acc"),
            errors.MissingVariableError,
            "none of these scores",
        ),
    ):
        with pytest.raises(error, match=match):
            call()
    plt.close("all")


def test_leads_that_are_numbers(scores: dict[str, xr.Dataset]) -> None:
    numbers = scores["forecast"].assign_coords(lead_time=("lead_time", [6, 12], {"units": "hours"}))
    assert "+ 12 h" in numbers.aurora.plot("t2m", lead="12h").get_title()
    with pytest.raises(errors.LeadTimeError, match="not in the forecast"):
        numbers.aurora.plot("t2m", lead="18h")
    plt.close("all")

"""Intervals that hold what they promise, and differences that are found."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors

INITS = 100


def is_significant(result: xr.DataArray) -> xr.DataArray:
    """Return whether the interval excludes zero."""
    low, high = result.sel(estimate="low"), result.sel(estimate="high")
    return (low > 0) | (high < 0)


def _scores(values: np.ndarray) -> xr.Dataset:
    """Scores that carry a mean squared error of each init time, ``(init, lead)``, as ``evaluate``
    lays them out.
    """
    init = np.datetime64("2020-01-01", "ns") + np.arange(len(values)) * np.timedelta64(12, "h")
    lead = (np.arange(1, values.shape[1] + 1) * np.timedelta64(6, "h")).astype("timedelta64[ns]")
    dims = ("init_time", "carried_lead_time", "region")
    return xr.Dataset(
        {
            "t2m": (
                ("metric", "region", "lead_time"),
                np.sqrt(values.mean(axis=0))[None, None],
                {"units": "K", "xaurora_variable": "surface/2t"},
            )
        },
        {
            "metric": ["rmse"],
            "region": ["global"],
            "lead_time": lead,
            "init_time": init,
            "carried_lead_time": lead,
            "t2m__squared_error": (dims, values[..., None]),
            "t2m__squared_error__weight": (dims, np.ones((*values.shape, 1))),
        },
        {"metrics": "rmse", "convention": "weatherbench2"},
    )


def _weather(rng: np.random.Generator) -> np.ndarray:
    """Errors of a forecast at each init time: alike from one to the next, as the weather's
    predictability is.
    """
    out = np.empty(INITS)
    out[0] = rng.standard_normal()
    for i in range(1, INITS):
        out[i] = 0.6 * out[i - 1] + 0.8 * rng.standard_normal()
    return np.exp(0.25 * out)


TRIALS = 200
"""Each is a lead time of the same scores, and tested by itself."""


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_noise_is_not_significant(correlation: float) -> None:
    """A forecast that differs from its baseline by noise alone: of 200 seeded trials at least 93 %
    find nothing.
    """
    pairs = []
    for seed in range(TRIALS):
        rng = np.random.default_rng(seed)
        base = _weather(rng)
        noise = 0.1 * rng.standard_normal(INITS)
        for i in range(1, INITS):
            noise[i] = correlation * noise[i - 1] + np.sqrt(1 - correlation**2) * noise[i]
        pairs.append((base * np.exp(noise - 0.005), base))
    found = xaurora.significance(
        *(_scores(np.stack(one, axis=1)) for one in zip(*pairs, strict=True))
    )
    nothing = int((~is_significant(found["t2m"])).sum())
    assert nothing >= 0.93 * TRIALS, nothing


def test_a_true_gain_is_found() -> None:
    """5 % better in RMSE at 100 init times, under noise of a tenth: found in at least 80 % of 200
    trials.
    """
    pairs = []
    for seed in range(TRIALS):
        rng = np.random.default_rng(1000 + seed)
        base = _weather(rng)
        pairs.append((base * 0.95**2 * np.exp(0.1 * rng.standard_normal(INITS)), base))
    found = xaurora.significance(
        *(_scores(np.stack(one, axis=1)) for one in zip(*pairs, strict=True))
    )["t2m"]
    seen = int((is_significant(found) & (found.sel(estimate="skill") > 0)).sum())
    assert seen >= 0.8 * TRIALS, seen


def test_from_fields_to_intervals() -> None:
    """The same through ``evaluate``, with skill and layout checked."""
    rng = np.random.default_rng(0)
    lat, lon = np.linspace(40, 50, 6), np.arange(8.0)
    init = np.datetime64("2020-01-01", "ns") + np.arange(60) * np.timedelta64(6, "h")
    y = 280 + rng.standard_normal((61, 6, 8))
    truth = xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), y, {"units": "K"})},
        {
            "time": np.append(init, init[-1] + np.timedelta64(6, "h")),
            "latitude": lat,
            "longitude": lon,
        },
    )

    def forecast(error: float) -> xr.Dataset:
        values = y[1:] + error * rng.standard_normal((60, 6, 8))
        return xr.Dataset(
            {
                "t2m": (
                    ("init_time", "lead_time", "latitude", "longitude"),
                    values[:, None],
                    {"units": "K"},
                )
            },
            {
                "init_time": init,
                "lead_time": [np.timedelta64(6, "h").astype("timedelta64[ns]")],
                "latitude": lat,
                "longitude": lon,
            },
        )

    got = xaurora.compare(
        {"good": forecast(0.8), "bad": forecast(1.0)}, truth, regions=["domain", "europe"]
    )
    skill = xaurora.significance(got["good"], got["bad"])
    assert skill["t2m"].dims == ("estimate", "metric", "region", "lead_time")
    assert set(skill["metric"].values) == {
        "rmse",
        "mse",
        "mae",
    }  # a bias has no better side to be skilful at
    rmse = skill["t2m"].sel(metric="rmse", region="domain").isel(lead_time=0)
    good, bad = (
        float(got[n]["t2m"].sel(metric="rmse", region="domain").squeeze()) for n in ("good", "bad")
    )
    want = 1 - good / bad
    assert float(rmse.sel(estimate="skill")) == pytest.approx(want, rel=1e-12)
    assert 0.1 < float(rmse.sel(estimate="low")) < want < float(rmse.sel(estimate="high")) < 0.3
    xr.testing.assert_identical(skill, xaurora.significance(got["good"], got["bad"]))  # seeded
    same = xaurora.significance(got["good"], got["good"])["t2m"]
    assert float(same.sel(estimate=["skill", "low", "high"]).max()) == 0.0
    assert float(same.sel(estimate="p").min()) == 1.0


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"level": 95}, errors.OptionError, "between 0 and 1"),
        ({"metrics": "rsme"}, errors.OptionError, "no metric"),
        ({"metrics": "crps"}, errors.TruthError, "share no variable and metric"),
    ],
)
def test_bad_options(options: dict, error: type, match: str) -> None:
    scores = _scores(np.ones((30, 2)))
    with pytest.raises(error, match=match):
        xaurora.significance(scores, scores, **options)


def test_scores_that_cannot_be_paired() -> None:
    scores = _scores(np.ones((30, 2)))
    alone = scores.drop_vars(["t2m__squared_error", "t2m__squared_error__weight"])
    with pytest.raises(errors.KindError, match="do not carry values for each init time"):
        xaurora.significance(scores, alone)
    with pytest.raises(errors.KindError, match="is not a Dataset of scores"):
        xaurora.significance(scores, None)
    later = scores.assign_coords(init_time=scores["init_time"] + np.timedelta64(900, "D"))
    with pytest.raises(errors.TruthError, match="share no init time"):
        xaurora.significance(scores, later)


def test_few_init_times_have_no_interval() -> None:
    few = xaurora.significance(_scores(np.arange(1.0, 5.0)[:, None]), _scores(np.ones((4, 1))))[
        "t2m"
    ]
    assert np.isfinite(few.sel(estimate="skill")).all()
    assert few.sel(estimate=["low", "high", "p"]).isnull().all()

"""Members: the head's distribution at every point, the past's order in space and time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import xaurora
from xaurora import distributions, errors
from xaurora.fields import conventions
from xaurora.forecasting import members
from xaurora.model import heads


@pytest.fixture(scope="module")
def past() -> xr.Dataset:
    return xaurora.synthetic(shape=(16, 32), times=460, seed=3)


def test_two_hundred_members_are_the_head_at_every_point(
    fields: xr.Dataset, tuned, past: xr.Dataset
) -> None:
    t = fields["time"].values[10]
    forecast = fields.aurora.predict(
        "12h",
        model=tuned,
        time=t,
        members=200,
        past=past,
        variables=["tp"],
        quantiles=[0.25, 0.5, 0.9],
        progress=False,
    )
    tp = forecast["tp"]
    assert tp.dims == ("init_time", "lead_time", "number", "latitude", "longitude")
    law = distributions.from_attrs(tp.attrs)
    params = {p: forecast[f"tp_{p}"].values.astype(float)[:, :, None] for p in law.parameters}
    ranked = np.sort(tp.values, axis=2)
    positions = ((np.arange(200) + 0.5) / 200).reshape(1, 1, -1, 1, 1)
    np.testing.assert_allclose(ranked, law.quantile(params, positions), rtol=1e-4, atol=1e-8)
    # half a member's step away from the quantile itself
    for q in (0.25, 0.5, 0.9):
        low, high = (law.quantile(params, q + s * 0.5 / 200)[:, :, 0] for s in (-1.01, 1.01))
        got = np.quantile(ranked, q, axis=2, method="inverted_cdf")
        assert (got >= low - 1e-9).all()
        assert (got <= high + 1e-9).all()
    assert (forecast["tp_mean"].values >= 0).all()
    np.testing.assert_allclose(
        tp.mean("number").values.mean(), forecast["tp_mean"].values.mean(), rtol=0.05
    )


def test_members_have_the_past_fields_rank_correlations(
    fields: xr.Dataset, past: xr.Dataset
) -> None:
    """Of a head that is wet everywhere, so that every member has a rank: correlations in space and
    time are those of the past.
    """
    canonical = conventions.standardise(fields)
    order = members.PastOrder(past, canonical, ["tp"], [1, 2], 100, np.arange(16), np.arange(32))
    init = fields["time"].values[10]
    ranks = order.ranks(init)["tp"]
    assert (np.sort(ranks, axis=1) == np.arange(100).reshape(1, -1, 1, 1)).all()
    head = heads.build(heads.HeadOptions(family="hurdle_gamma"), 4, 16, 4)
    params = {
        "p": torch.full((16, 32), 0.9999),
        "shape": torch.full((16, 32), 0.8),
        "amount": torch.full((16, 32), 2e-3),
    }
    drawn = np.stack([members.draw(head, params, r) for r in ranks])

    def correlation(x: np.ndarray, y: np.ndarray) -> float:
        """Mean over points of Spearman's correlation; members first."""
        rx, ry = (np.argsort(np.argsort(v, axis=0), axis=0) - (len(v) - 1) / 2 for v in (x, y))
        return float(((rx * ry).sum(0) / np.sqrt((rx**2).sum(0) * (ry**2).sum(0))).mean())

    # the very dates: evenly spread over those at the same hour, two days around the forecast left
    # out
    dates = order._chosen(init)
    rain = past["tp"].sel(time=dates.astype("datetime64[ns]") + np.timedelta64(6, "h")).values
    wet = (rain > 0).mean(axis=0)
    assert 0.3 < wet.mean() < 0.8
    own = distributions.ranks_of(rain, np.random.default_rng(1))
    for shift in (1, 3, 12):
        got = correlation(drawn[0][:, :, :-shift], drawn[0][:, :, shift:])
        assert got == pytest.approx(correlation(own[:, :, :-shift], own[:, :, shift:]), abs=0.01)
    near = correlation(drawn[0][:, :, :-1], drawn[0][:, :, 1:])
    assert near > correlation(drawn[0][:, :, :-12], drawn[0][:, :, 12:]) + 0.3
    assert correlation(drawn[0], drawn[1]) > 0.3, "rain six hours later goes with rain now"
    alone = np.random.default_rng(0).permuted(drawn[0], axis=0)
    assert abs(correlation(alone[:, :, :-1], alone[:, :, 1:])) < 0.05


def test_members_add_up_over_leads_and_score_as_an_ensemble(fields: xr.Dataset, tuned) -> None:
    t = fields["time"].values[5:7]
    forecast = fields.aurora.predict(
        "24h", model=tuned, time=t, members=10, variables=["tp"], progress=False
    )
    day = forecast.aurora.accumulate("tp", "24h")
    assert day.dims == forecast["tp"].dims
    np.testing.assert_allclose(
        day.isel(lead_time=3), forecast["tp"].sum("lead_time"), rtol=1e-5, atol=1e-9
    )
    assert np.isnan(day.isel(lead_time=2)).all()
    with pytest.raises(errors.AccumulationError, match="parameters of a distribution"):
        forecast.aurora.accumulate("tp_shift", "24h")
    scores = forecast.aurora.evaluate(fields, metrics=["crps"], regions="global")
    truth = fields["tp"].sel(time=forecast["valid_time"].values[0, 0]).values
    by_hand = distributions.ensemble_crps(forecast["tp"].values[0, 0].astype(float), truth)
    first = forecast.isel(init_time=[0], lead_time=[0]).aurora.evaluate(
        fields, metrics=["crps"], regions="global"
    )
    area = xaurora.fields.grid.weights.latitude_weights(fields["latitude"].values)[:, None]
    assert float(first["tp"].values.ravel()[0]) == pytest.approx(
        float((by_hand * area).mean()), rel=1e-6
    )
    assert np.isfinite(scores["tp"]).all()


def test_the_forecasts_own_time_is_no_past(fields: xr.Dataset, tuned) -> None:
    """Rain that fell at the valid time does not order the members."""
    t = fields["time"].values[20]
    a = fields.aurora.predict(
        "6h", model=tuned, time=t, members=8, variables=["tp"], progress=False
    )
    changed = fields.copy(deep=True)
    changed["tp"][21] = changed["tp"][21].values[::-1]
    b = changed.aurora.predict(
        "6h", model=tuned, time=t, members=8, variables=["tp"], progress=False
    )
    xr.testing.assert_equal(a["tp"], b["tp"])


def test_bad_members(fields: xr.Dataset, tuned, tmp_path) -> None:
    t = fields["time"].values[5]
    for count in (1, -2, 2.5, True):
        with pytest.raises(errors.OptionError, match="must be 0 or an integer of at least 2"):
            fields.aurora.predict("6h", model=tuned, time=t, members=count)
    with pytest.raises(errors.EnsembleError, match="needs as many past dates, but there are only"):
        fields.aurora.predict("6h", model=tuned, time=t, members=200)
    with pytest.raises(
        errors.TargetError, match="members take their structure in space and time from past fields"
    ):
        fields.drop_vars("tp").aurora.predict("6h", model=tuned, time=t, members=5)
    with pytest.raises(errors.OptionError, match="past= is used only for members"):
        fields.aurora.predict("6h", model=tuned, time=t, past=fields)
    with pytest.raises(errors.OptionError, match="need a model with a head"):
        fields.aurora.predict("6h", model="tiny", time=t, members=5)
    one = fields.aurora.finetune(
        "tp", model="tiny", head="deterministic", steps=1, out=tmp_path / "one", progress=False
    )
    with pytest.raises(errors.OptionError, match="all members would be the same"):
        fields.aurora.predict("6h", model=one, time=t, members=5)
    # a store that was begun with another past is another forecast
    states = fields.drop_vars("tp")
    options = {
        "model": tuned,
        "time": t,
        "members": 5,
        "variables": ["tp"],
        "store": tmp_path / "fc.zarr",
        "progress": False,
    }
    states.aurora.predict("6h", past=fields.isel(time=slice(0, 20)), **options)
    with pytest.raises(errors.SaveError, match="holds another forecast"):
        states.aurora.predict("6h", past=fields.isel(time=slice(26, 40)), **options)
    assert (
        fields.aurora.predict(
            "6h", model=tuned, time=t, quantiles=[0.5, 0.5], progress=False
        ).sizes["quantile"]
        == 1
    )
    region = fields.isel(latitude=slice(0, 8), longitude=slice(0, 8))
    with pytest.raises(errors.TruthError, match="the past fields do not fit"):
        fields.aurora.predict("6h", model=tuned, time=t, members=5, past=region)

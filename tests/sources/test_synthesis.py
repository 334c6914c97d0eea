"""Synthetic data: their law, and the score of the forecaster that knows it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import errors
from xaurora.distributions import ensemble_crps
from xaurora.sources import laws, synthesis


@pytest.mark.parametrize("rain", laws.LAWS)
def test_the_perfect_score_equals_that_of_samples_from_the_law(rain: str) -> None:
    ds = xaurora.synthetic(times=40, rain=rain)
    law, rng = laws.law_of(rain), np.random.default_rng(1)
    mean, spread = synthesis._next_wetness(ds, 1)
    m, y = mean.values[:-1], ds["tp"].values[1:]
    members = np.stack(
        [law.sample(m + spread * rng.standard_normal(m.shape), rng) for _ in range(40)]
    )
    sampled = ensemble_crps(members, y).mean()
    # 80 000 points of 40 members: the sampled score is good to about half a per cent
    assert float(synthesis.perfect_crps(ds).mean()) == pytest.approx(sampled, rel=0.01)


def test_the_state_tells_more_than_nothing_and_fades() -> None:
    ds = xaurora.synthetic(times=60)
    near, far = (float(synthesis.perfect_crps(ds, h).mean()) for h in (6, 48))
    nothing = float(synthesis.climatology_crps(ds).mean())
    assert near < far < nothing


def test_the_law_by_hand() -> None:
    law = laws.HurdleLaw()
    rng = np.random.default_rng(0)
    for w in (-1.0, 0.5, 2.0):
        draws = law.sample(np.full(200_000, w), rng)
        for y in (1e-6, 1e-4, 2e-3, 1e-2):
            assert law.cdf_given(np.float64(w), np.float64(y)) == pytest.approx(
                (draws <= y).mean(), abs=0.005
            )
    assert laws.HurdleLaw(drizzle=False).sample(np.full(10_000, -2.0), rng).max() > 0


@pytest.mark.parametrize("rain", [name for name in laws.LAWS if laws.law_of(name).ahead])
def test_laws_of_a_family_are_that_family_given_the_state(rain: str) -> None:
    """The probability of what fell, given the state six hours before, is uniform; and nobody scores
    better than who knows the law.
    """
    ds = xaurora.synthetic(shape=(16, 32), times=200, rain=rain)
    law = laws.law_of(rain)
    w = (
        synthesis.MEMORY
        * synthesis.wetness(ds).roll(longitude=synthesis.MOTIONS["east"]).values[:-1]
    )
    y = ds["tp"].values[1:].astype(float)
    upper = law.cdf_given(w, np.maximum(y, 1e-12))
    rng = np.random.default_rng(0)
    u = np.where(y > 0, upper, rng.random(y.shape) * upper)
    counts = np.histogram(u, 20, (0, 1))[0]
    assert (
        (counts - u.size / 20) ** 2 / (u.size / 20)
    ).sum() < 45  # χ² with 19 degrees of freedom: 0.1 %
    near, far = (float(synthesis.perfect_crps(ds, h).mean()) for h in (6, 24))
    assert near < far < float(synthesis.climatology_crps(ds).mean()) * 1.02


def test_half_of_the_wet_is_drizzle_and_none_without(fields: xr.Dataset) -> None:
    tp = fields["tp"].values * 1e3
    share = ((tp > 0.001) & (tp < 0.1)).sum() / (tp > 0.001).sum()
    assert 0.2 < share < 0.6
    dry = xaurora.synthetic(shape=(16, 32), times=40, rain="drizzle-free")["tp"].values * 1e3
    assert ((dry > 0.001) & (dry < 0.05)).mean() < 0.001


def test_seeds_and_wetness(fields: xr.Dataset) -> None:
    xr.testing.assert_identical(xaurora.synthetic(shape=(16, 32), times=40), fields)
    assert not xaurora.synthetic(shape=(16, 32), times=40, seed=1)["tp"].equals(fields["tp"])
    w = synthesis.wetness(xaurora.synthetic(times=200))
    assert float(w.std()) == pytest.approx(1.5, rel=0.05)
    # drifts two columns a step
    ahead = float(
        xr.corr(
            w.isel(time=slice(1, None)).drop_vars("time"),
            w.roll(longitude=2).isel(time=slice(None, -1)).drop_vars("time"),
        )
    )
    assert ahead == pytest.approx(0.9, abs=0.02)


def test_is_what_aurora_takes(fields: xr.Dataset) -> None:
    assert fields.aurora.check("tp").ok
    assert fields.aurora.check("tp", model="tiny").ok


@pytest.mark.parametrize(
    "options", [{"times": 0}, {"shape": (2, 64)}, {"levels": ()}, {"rain": "frogs"}]
)
def test_bad_options(options: dict) -> None:
    with pytest.raises(errors.OptionError):
        xaurora.synthetic(**options)


@pytest.mark.parametrize("motion", list(synthesis.MOTIONS))
def test_laws_of_motion(motion: str) -> None:
    ds = xaurora.synthetic(shape=(16, 32), times=60, motion=motion, start="2001-05-01")
    assert str(ds["time"].values[0])[:10] == "2001-05-01"
    a = ds["v10"].values / 3.0
    best = max(range(-10, 11), key=lambda k: float((np.roll(a[:-1], k, axis=-1) * a[1:]).mean()))
    assert best == synthesis.MOTIONS[motion]
    assert float(synthesis.perfect_crps(ds).mean()) < float(synthesis.climatology_crps(ds).mean())


@pytest.mark.parametrize(
    "options",
    [
        {"motion": "up"},
        {"motion": ["east"]},
        {"start": "soon"},
        {"start": None},
        {"start": "3000-01-01"},
        {"times": 2.5},
        {"seed": -1},
    ],
    ids=str,
)
def test_fields_that_cannot_be_made(options: dict) -> None:
    with pytest.raises(errors.OptionError) as error:
        xaurora.synthetic(**{"shape": (8, 16), "times": 4, **options})
    assert error.value.fix


def test_exact_scores_of_what_is_not_whole() -> None:
    ds = xaurora.synthetic(shape=(8, 16), times=6)
    for broken, lead in (
        (ds, 9),
        (ds, -6),
        (ds, 600),
        (ds.isel(longitude=slice(8)), 6),
        (ds.isel(time=slice(None, None, 2)), 6),
        (ds.drop_attrs(), 6),
    ):
        with pytest.raises(errors.OptionError):
            synthesis.perfect_crps(broken, lead)

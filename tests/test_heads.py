"""Heads: bounded, proper, starting at the climatology."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xaurora import errors, heads, normalisation


def _head(family: str, epsilon: float = 1e-3) -> heads.CensoredNormalHead | heads.DeterministicHead:
    torch.manual_seed(0)
    return heads.build(heads.HeadOptions(family=family, epsilon=epsilon), levels=4, width_in=16, patch_size=4)


def _climate(amounts: np.ndarray, epsilon: float) -> heads.Climatology:
    rain = normalisation.RainMoments()
    rain.add(amounts)
    z = rain.in_z(epsilon)
    return heads.Climatology(rain.wet_fraction, z["mean"], z["median"], z["crps"])


@pytest.mark.parametrize("family", heads.HEADS)
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=2),
    y=st.one_of(st.just(0.0), st.floats(1e-7, 1.0)),
    epsilon=st.sampled_from([1e-5, 1e-3]),
)
def test_nothing_the_trunk_can_say_breaks_the_score(family: str, values: list[float], y: float, epsilon: float) -> None:
    head = _head(family, epsilon)
    head.initialise(heads.Climatology(0.4, 0.3, 0.1, 0.2))
    raw = torch.tensor(values[: head.outputs], dtype=torch.float32).reshape(1, head.outputs, 1, 1).requires_grad_()
    params = head.parameters_of(raw)
    loss = head.loss(params, torch.full((1, 1, 1), y))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert (loss >= 0).all()
    assert torch.isfinite(raw.grad).all()
    params = {name: value.detach() for name, value in params.items()}
    mean = float(head.mean(params))
    assert 0 <= mean <= 1.1 * heads.WETTEST  # m; the top of the bound and no more
    crps = float(head.crps(params, torch.full((1, 1, 1), y)))
    assert 0 <= crps < 2.0
    assert 0 <= float(head.probability_above(params, 1e-3)) <= 1


def test_starts_at_the_climatology() -> None:
    rng = np.random.default_rng(0)
    y = np.where(rng.random(100_000) < 0.4, 1e-3 * np.exp(rng.standard_normal(100_000)), 0.0)
    head = _head("censored_normal")
    head.initialise(_climate(y, 1e-3))
    params = head.parameters_of(torch.zeros(1, 2, 1, 1))
    assert float(head.probability_above(params, 0.0)) == pytest.approx(0.4, abs=0.02)
    z = np.log1p(y / 1e-3)
    draws = np.log1p(head.sample(params, 50_000, torch.Generator().manual_seed(0)).numpy() / 1e-3)
    assert draws.mean() == pytest.approx(z.mean(), rel=0.05)
    # the loss is in units of the climatology's own score
    assert float(
        head.loss(params, torch.tensor(y[:5000], dtype=torch.float32).reshape(1, -1, 1)).mean()
    ) == pytest.approx(1.0, abs=0.1)
    single = _head("deterministic")
    single.initialise(_climate(y + 1e-3, 1e-3))
    params = single.parameters_of(torch.zeros(1, 1, 1, 1))
    assert float(single.mean(params)) == pytest.approx(np.median(y + 1e-3), rel=0.1)


def test_in_z_equals_numpy() -> None:
    rng = np.random.default_rng(1)
    y = np.where(rng.random(4000) < 0.6, 1e-3 * rng.gamma(0.5, size=4000), 0.0)
    rain = normalisation.RainMoments()
    for part in np.array_split(y, 7):
        rain.add(part)
    z = np.log1p(y / 1e-4)
    got = rain.in_z(1e-4)
    assert got["mean"] == pytest.approx(z.mean(), rel=0.01)
    assert got["median"] == pytest.approx(np.median(z), rel=0.02, abs=1e-6)
    assert got["crps"] == pytest.approx(np.abs(z[:, None] - z[None]).mean() / 2, rel=0.01)
    assert rain.amounts.mean == pytest.approx(y.mean(), rel=1e-12)
    assert rain.amounts.std == pytest.approx(y.std(), rel=1e-12)


def test_mean_quantiles_and_probabilities_agree_with_samples() -> None:
    head = _head("censored_normal")
    params = {"mu": torch.tensor([[[0.5, -0.5]]]), "sigma": torch.tensor([[[0.7, 1.0]]])}
    draws = head.sample(params, 200_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(draws.mean(0), head.mean(params), rtol=0.02, atol=1e-5)
    torch.testing.assert_close(
        draws.double().quantile(0.9, dim=0).float(), head.quantile(params, 0.9), rtol=0.02, atol=1e-5
    )
    torch.testing.assert_close(
        (draws > 1e-3).float().mean(0), head.probability_above(params, 1e-3), rtol=0.02, atol=3e-3
    )


def test_epsilon_follows_the_climate() -> None:
    assert heads.HeadOptions().for_climate(5.9e-4).epsilon == pytest.approx(5.9e-4)
    assert heads.HeadOptions().for_climate(1.0).epsilon == heads.EPSILON_RANGE[1]
    assert heads.HeadOptions().for_climate(0.0).epsilon == heads.EPSILON_RANGE[0]
    assert heads.HeadOptions(epsilon=2e-4).for_climate(1.0).epsilon == 2e-4


def test_config_builds_the_same_head() -> None:
    for family in heads.HEADS:
        head = _head(family)
        twin = heads.from_config(head.config())
        twin.load_state_dict(head.state_dict())
        latents = torch.randn(1, 4, 2, 2, 16)
        assert torch.equal(head(latents), twin(latents))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"family": "normal"}, "there is no head 'normal'"),
        ({"epsilon": 0.0}, "epsilon=0.0 is not positive"),
        ({"epsilon": float("nan")}, "is not positive"),
        ({"width": 0}, "width=0"),
        ({"largest_sigma": 0.0}, "largest_sigma=0.0"),
    ],
)
def test_bad_options(options: dict, match: str) -> None:
    with pytest.raises(errors.OptionError, match=match):
        heads.HeadOptions(**options)
    with pytest.raises(errors.OptionError, match="there is no head"):
        heads.options_for("median")
    with pytest.raises(errors.OptionError, match="no epsilon yet"):
        _ = heads.build(heads.HeadOptions(), 4, 16, 4).epsilon

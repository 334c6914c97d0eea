"""Heads: bounded, proper, starting at the climatology, and honest about their options."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from xaurora import errors
from xaurora.fields.distribution import Distribution
from xaurora.model import heads

EVERY = pytest.mark.parametrize("family", heads.FAMILIES)
RAIN = pytest.mark.parametrize("family", heads.RAIN)


def _options(family: str, epsilon: float = 1e-3, **more: object) -> heads.HeadOptions:
    if family == "bounded_normal":
        more["bounds"] = (0.0, 1.0)
    if family in ("censored_normal", "quantile", "deterministic"):
        more["epsilon"] = epsilon
    return heads.HeadOptions(family=family, **more)  # type: ignore[arg-type]


def _head(family: str, epsilon: float = 1e-3, **more: object) -> heads.DistributionHead:
    torch.manual_seed(0)
    return heads.build(_options(family, epsilon, **more), levels=4, width_in=16, patch_size=4)


def _amounts(size: int = 40_000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(rng.random(size) < 0.4, 1e-3 * np.exp(rng.standard_normal(size)), 0.0)


def _climate(values: np.ndarray, amounts: bool = True) -> heads.Climatology:
    seen = Distribution(amounts=amounts)
    seen.add(values)
    return heads.Climatology(*seen.binned())


@functools.cache
def _initialised(family: str, epsilon: float) -> heads.DistributionHead:
    head = _head(family, epsilon)
    head.initialise(_climate(_amounts(2000)))
    return head


@RAIN
@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    data=st.data(),
    y=st.one_of(st.just(0.0), st.floats(1e-7, 1.0)),
    epsilon=st.sampled_from([1e-5, 1e-3]),
)
def test_nothing_the_trunk_can_say_breaks_the_score(
    family: str, data: st.DataObject, y: float, epsilon: float
) -> None:
    head = _initialised(family, epsilon)
    n = head.outputs
    values = data.draw(st.lists(st.floats(-1e4, 1e4), min_size=n, max_size=n))
    raw = torch.tensor(values, dtype=torch.float32).reshape(1, n, 1, 1).requires_grad_()
    params = head.parameters_of(raw)
    loss = head.loss(params, torch.full((1, 1, 1), y))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert (loss >= 0).all()
    assert torch.isfinite(raw.grad).all()
    params = {name: value.detach() for name, value in params.items()}
    assert all(value.dtype == torch.float32 for value in params.values())
    mean = float(head.mean(params))
    assert 0 <= mean <= 1.3 * heads.WETTEST  # m; a quantile head's tail adds a little to the bound
    crps = float(head.crps(params, torch.full((1, 1, 1), y)))
    assert 0 <= crps < 2.0
    assert 0 <= float(head.probability_above(params, 1e-3)) <= 1
    assert (
        0 <= float(head.median(params)) <= float(head.quantile(params, 0.999)) < 2.6
    )  # m; no tail is absurd
    assert np.isfinite(float(head.quantile(params, 1.0 - 1e-9)))


@EVERY
def test_starts_at_the_climatology(family: str) -> None:
    """The start is as good as the best member of the family; its score is the unit of the loss."""
    y = (
        _amounts()
        if family in heads.RAIN
        else np.random.default_rng(0).normal(0.5, 0.2, 40_000).clip(0, 1)
    )
    head = _head(family)
    head.initialise(_climate(y, amounts=family in heads.RAIN))
    params = head.parameters_of(torch.zeros(1, head.outputs, 1, 1))
    seen = torch.tensor(y[:20_000], dtype=torch.float32).reshape(1, 1, -1)
    assert float(head.loss(params, seen).mean()) == pytest.approx(1.0, abs=0.05)
    if family == "deterministic":
        return
    best = (
        np.abs(y[:3000, None] - y[None, :3000]).mean() / 2
    )  # CRPS of the sample's own distribution
    assert float(head.crps(params, seen).mean()) < 1.03 * best
    assert float(head.mean(params)) == pytest.approx(
        y.mean(), rel=0.15
    )  # a proper score need not keep the mean exactly
    raw = torch.zeros(1, head.outputs, 1, 1, requires_grad=True)
    head.loss(head.parameters_of(raw), seen[..., :500]).mean().backward()
    assert (raw.grad.abs() > 1e-7).all(), "no output starts where it cannot learn"


@EVERY
def test_samples_mean_quantiles_and_probabilities_agree(family: str) -> None:
    head = _head(family)
    y = _amounts() + (1e-4 if family == "deterministic" else 0.0)
    if family not in heads.RAIN:
        y = np.random.default_rng(0).normal(0.5, 0.2, 40_000).clip(0, 1)
    head.initialise(_climate(y, amounts=family in heads.RAIN))
    generator = torch.Generator().manual_seed(1)
    params = head.parameters_of(0.3 * torch.randn((1, head.outputs, 1, 2), generator=generator))
    draws = head.sample(params, 100_000, generator)
    assert draws.shape == (100_000, 1, 1, 2)
    torch.testing.assert_close(draws.mean(0), head.mean(params), rtol=0.03, atol=1e-5)
    level = float(head.quantile(params, 0.8).mean())
    torch.testing.assert_close(
        (draws > level).float().mean(0), head.probability_above(params, level), rtol=0.03, atol=6e-3
    )
    torch.testing.assert_close(
        draws.double().quantile(0.9, dim=0).float(),
        head.quantile(params, 0.9),
        rtol=0.03,
        atol=1e-5,
    )


def _pit_is_flat(
    head: heads.DistributionHead, params: dict[str, torch.Tensor], y: torch.Tensor
) -> float:
    """χ² of the randomised probability integral transform in 20 bins."""
    upper = head.law.cdf({k: v.double().numpy() for k, v in params.items()}, y.double().numpy())
    u = np.where(y.numpy() > 0, upper, np.random.default_rng(0).random(upper.shape) * upper)
    counts = np.histogram(u, 20, (0.0, 1.0))[0]
    return float(((counts - u.size / 20) ** 2 / (u.size / 20)).sum())


@pytest.mark.parametrize("family", [f for f in heads.RAIN if f != "deterministic"])
def test_pit_is_flat_on_the_own_law_and_not_when_broken(family: str) -> None:
    head = _head(family)
    head.initialise(_climate(_amounts()))
    generator = torch.Generator().manual_seed(4)
    params = head.parameters_of(0.7 * torch.randn((1, head.outputs, 200, 200), generator=generator))
    y = head.sample(params, 1, generator)[0]
    limit = 43.8  # χ² with 19 degrees of freedom: one in a thousand
    assert _pit_is_flat(head, params, y) < limit
    broken = {
        "mu": 0.8,
        "sigma": 0.8,
        "p": 0.9,
        "shape": 1.4,
        "amount": 0.8,
        "scale": 0.8,
        "shift": 0.6,
    }
    for name in params:
        if family == "quantile" and name != "p":
            continue
        wrong = {**params, name: params[name] * broken[name] + (0.1 if name == "mu" else 0.0)}
        assert _pit_is_flat(head, wrong, y) > limit, name


def test_quantiles_never_cross() -> None:
    head = _head("quantile")
    head.initialise(_climate(_amounts(4000)))
    raw = 20.0 * torch.randn((1, head.outputs, 8, 8), generator=torch.Generator().manual_seed(0))
    values = torch.stack(list(head.parameters_of(raw).values())[1:])
    assert (values.diff(dim=0) >= 0).all()


@RAIN
def test_gradients_of_the_loss_are_right_through_the_bounds(family: str) -> None:
    """From raw output to score, in float64, dry and wet."""
    head = _head(family).double()
    head.initialise(_climate(_amounts(4000)))
    raw = (
        0.5 * torch.randn((1, head.outputs, 1, 3), generator=torch.Generator().manual_seed(2))
    ).double()
    raw.requires_grad_()
    for y in (0.0, 3e-3):
        seen = torch.full((1, 1, 3), y, dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda r, s=seen: head.loss(head.parameters_of(r), s), (raw,), atol=2e-5
        )


def test_float32_under_autocast() -> None:
    """Parameters and score stay in float32, whatever the backbone runs in."""
    for family in heads.RAIN:
        head = _head(family)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            params = head.parameters_of(torch.zeros(1, head.outputs, 2, 2, dtype=torch.bfloat16))
            loss = head.loss(params, torch.full((1, 2, 2), 1e-3))
        assert {v.dtype for v in params.values()} == {torch.float32}, family
        assert loss.dtype == torch.float32


def test_epsilon_follows_the_climate() -> None:
    assert heads.HeadOptions("censored_normal").for_climate(5.9e-4).epsilon == pytest.approx(5.9e-4)
    assert heads.HeadOptions("censored_normal").for_climate(1.0).epsilon == heads.EPSILON_RANGE[1]
    assert heads.HeadOptions("censored_normal").for_climate(0.0).epsilon == heads.EPSILON_RANGE[0]
    assert heads.HeadOptions("censored_normal", epsilon=2e-4).for_climate(1.0).epsilon == 2e-4
    assert heads.HeadOptions(family="csgd").for_climate(1.0).epsilon is None


@EVERY
def test_config_builds_the_same_head(family: str) -> None:
    import json

    head = _head(family)
    twin = heads.from_config(json.loads(json.dumps(head.config())))
    twin.load_state_dict(head.state_dict())
    latents = torch.randn(1, 4, 2, 2, 16)
    assert torch.equal(head(latents), twin(latents))
    assert twin.law == head.law


def test_the_trunk_reads_what_it_is_told_to() -> None:
    latents = torch.randn(1, 4, 3, 5, 16)
    moved = latents.clone()
    moved[:, 1:] += 1.0
    surface = _head("csgd", latents="surface")
    assert torch.equal(surface(latents), surface(moved))
    every = _head("csgd")
    assert not torch.equal(every(latents), every(moved))
    deep = _head("csgd", depth=4, width=32)
    assert [m.out_features for m in deep.trunk.hidden if isinstance(m, torch.nn.Linear)] == [
        32,
        32,
        32,
    ]
    lehmann = heads.build(heads.options_for("lehmann2025", "csgd"), 4, 1024, 4)
    # arXiv:2506.19088: 1024 → 512 → 512 → 256 → 16
    assert [
        tuple(m.weight.shape)
        for m in [*lehmann.trunk.hidden, lehmann.trunk.out]
        if hasattr(m, "weight")
    ] == [
        (512, 1024),
        (512, 512),
        (256, 512),
        (16, 256),
    ]


@pytest.mark.parametrize("patch", [3, 4])
def test_patches_blend_and_the_globe_is_round(patch: int) -> None:
    torch.manual_seed(0)
    head = heads.build(heads.HeadOptions(family="csgd"), levels=4, width_in=16, patch_size=patch)
    latents = torch.randn(1, 4, 3, 6, 16)
    moved = latents.clone()
    moved[:, :, 1, 0] += torch.randn(16)
    for wraps in (False, True):
        head.trunk.wraps = wraps
        changed = (head(latents) != head(moved)).any(dim=1)[0].any(dim=0)
        reach = patch // 2
        expected = torch.zeros(6 * patch, dtype=torch.bool)
        expected[: patch + reach] = True
        if wraps:
            expected[-reach:] = True
        assert changed.tolist() == expected.tolist()
    # where all latents are alike there is nothing to see of the patches' edges but the weights of
    # one patch
    with torch.no_grad():
        head.trunk.out.weight.zero_()
        head.trunk.out.bias.fill_(1.0)
    assert torch.allclose(head(latents), torch.ones(1, 3, 3 * patch, 6 * patch)), (
        "weights add up to one"
    )
    alone = heads.build(
        heads.HeadOptions(family="csgd", neighbours=1), levels=4, width_in=16, patch_size=patch
    )
    assert (alone(latents) != alone(moved)).any(dim=1)[0].sum() == patch**2
    wide = heads.build(
        heads.HeadOptions(family="csgd", neighbours=5), levels=4, width_in=16, patch_size=patch
    )
    torch.nn.init.normal_(wide.trunk.around.weight)
    assert wide(latents).shape == (1, 3, 3 * patch, 6 * patch)
    assert (wide(latents) != wide(moved)).any(dim=1)[0].any(dim=0)[: 2 * patch].all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"family": "gumbel"}, "there is no head 'gumbel'"),
        ({"epsilon": 0.0}, "positive amount in metres, got 0.0"),
        ({"family": "quantile", "epsilon": float("nan")}, "must be a positive amount"),
        ({"family": "csgd", "epsilon": 1e-3}, "the head 'csgd' takes no epsilon"),
        ({"family": "hurdle_gamma", "largest_sigma": 1.0}, "takes no largest_sigma"),
        ({"family": "normal", "bounds": (0, 1)}, "takes no bounds"),
        ({"levels": (0.1, 0.5, 0.9)}, "takes no levels"),
        ({"family": "quantile", "levels": (0.5, 0.1, 0.9)}, "increasing probabilities"),
        ({"family": "bounded_normal", "bounds": (1.0, 0.0)}, "must be a pair of numbers"),
        ({"width": 0}, "width must be .*, got 0"),
        ({"width": ()}, r"width must be .*, got \(\)"),
        ({"depth": 0}, "depth must be a positive integer, got 0"),
        ({"width": (8, 8), "depth": 5}, "contradicts width"),
        ({"latents": "atmos"}, "must be 'all' or 'surface'"),
        ({"neighbours": 2}, "positive odd integer"),
        ({"activation": "tanh"}, "must be 'gelu' or 'relu'"),
        ({"family": "hurdle_lognormal", "largest_sigma": 0.0}, "largest_sigma .* got 0.0"),
        ({"family": "censored_normal", "largest_sigma": 20.0}, "unrealistic tails"),
        ({"family": "bounded_normal", "bounds": 5}, "must be a pair of numbers"),
        ({"family": "quantile", "levels": 0.5}, "increasing probabilities"),
        ({"family": "own", "width": 8}, "the head 'own' is a layer of the model itself"),
        ({"family": "own", "latents": "surface"}, "takes no latents"),
    ],
)
def test_bad_options(options: dict, match: str) -> None:
    with pytest.raises(errors.OptionError, match=match):
        heads.HeadOptions(**options)


def _own_head(bias: float) -> heads.OwnHead:
    """A head of Aurora 1.5's own layer whose hours all have this logarithm."""
    head = heads.build(heads.HeadOptions("own", epsilon=1e-3), 4, 16, 4)
    layer = torch.nn.Linear(16, 16)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.bias, bias)
    head.start_from(layer, location=0.5, scale=2.0)
    head.initialise(_climate(_amounts(2000)))
    return head


def test_own_amounts_are_clipped_by_the_hour_and_summed() -> None:
    latents = torch.zeros(1, 4 + 5, 2, 3, 16)
    latents[:, 0] = 1.0  # the sixth hour; the five before are the last levels
    head = _own_head(-0.75)  # 0.5 - 1.5 is below zero on the logarithmic scale
    with torch.no_grad():
        head.trunk.out.weight.fill_(1.0 / 16)
    values = head.mean(head.parameters_of(head(latents))).detach()
    # The sixth hour is 0.5 + 2 (-0.75 + 1) = 1 on the scale ln(x + 1 mm) - ln(1 mm).
    torch.testing.assert_close(values, torch.full((1, 8, 12), 1e-3 * (np.e - 1)))
    huge = _own_head(1e4)
    most = huge.mean(huge.parameters_of(huge(latents))).detach().max()
    assert float(most) <= 6 * heads.WETTEST * 1.001


@pytest.mark.parametrize(
    ("bias", "truth", "sign"),
    [(-1.0, 5e-3, -1), (-1.0, 0.0, 0), (1e4, 5e-3, 1), (1e4, 4.0, 0)],
)
def test_hours_at_their_limits_learn_inwards(bias: float, truth: float, sign: int) -> None:
    """A dry hour can become wet and no drier, and one at the ceiling can become less."""
    head, latents = _own_head(bias), torch.zeros(1, 9, 1, 1, 16)
    params = head.parameters_of(head(latents))
    head.loss(params, torch.full((1, 4, 4), truth)).sum().backward()
    assert (head.trunk.out.bias.grad.sign() == sign).all()


def test_options_of_numpy_are_options() -> None:
    options = heads.HeadOptions(
        "quantile", levels=np.array([0.1, 0.5, 0.9]), width=np.int64(32), epsilon=np.float64(1e-3)
    )  # type: ignore[arg-type]
    assert options == heads.HeadOptions("quantile", levels=(0.1, 0.5, 0.9), width=32, epsilon=1e-3)


def test_bad_heads() -> None:
    for head in ("median", 3, None):
        with pytest.raises(errors.OptionError, match="there is no head"):
            heads.options_for(head, "csgd")
    with pytest.raises(errors.OptionError, match="no epsilon yet"):
        _ = heads.build(heads.HeadOptions("censored_normal"), 4, 16, 4).epsilon
    with pytest.raises(errors.OptionError, match="no bounds yet"):
        _ = heads.build(heads.HeadOptions(family="bounded_normal"), 4, 16, 4).law

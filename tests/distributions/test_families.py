"""Every family: its CRPS against the integral of its own cdf, against scoringrules, in float32, and
its gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import integrate

from xaurora import distributions as d

AMOUNT = st.one_of(st.just(0.0), st.floats(1e-7, 1.0))
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def _quantiles(p: float, steps: list[float]) -> dict[str, float]:
    return {"p": p, **{f"q{i + 1}": float(v) for i, v in enumerate(np.cumsum(steps))}}


# The parameters that the heads can emit, with the families' constants.
CASES: dict[str, st.SearchStrategy[tuple[Any, dict[str, float]]]] = {
    "censored_normal": st.builds(
        lambda e, mu, s: (d.CensoredNormal(e), {"mu": mu, "sigma": s}),
        st.sampled_from([1e-5, 1e-4, 1e-3]),
        st.floats(-6.0, 6.0),
        st.floats(0.02, 1.5),
    ),
    "hurdle_lognormal": st.builds(
        lambda p, mu, s: (d.HurdleLognormal(), {"p": p, "mu": mu, "sigma": s}),
        st.floats(1e-5, 1.0 - 1e-5),
        st.floats(-6.0, 4.0),
        st.floats(0.1, 2.0),
    ),
    "hurdle_gamma": st.builds(
        lambda p, a, m: (d.HurdleGamma(), {"p": p, "shape": a, "amount": m}),
        st.floats(1e-5, 1.0 - 1e-5),
        st.floats(0.1, 20.0),
        st.floats(1e-6, 0.1),
    ),
    "csgd": st.builds(
        lambda k, m, c: (d.CensoredShiftedGamma(), {"shape": k, "scale": m / k, "shift": c * m}),
        st.floats(0.1, 20.0),
        st.floats(1e-6, 0.1),
        st.floats(1e-3, 5.0),
    ),
    "quantile": st.builds(
        lambda p, steps: (d.Quantiles(LEVELS), _quantiles(p, steps)),
        st.floats(1e-5, 1.0 - 1e-5),
        st.lists(
            st.one_of(st.just(0.0), st.floats(1e-7, 0.02)),
            min_size=len(LEVELS),
            max_size=len(LEVELS),
        ),
    ),
    "normal": st.builds(
        lambda mu, s: (d.Normal(), {"mu": mu, "sigma": s}),
        st.floats(-3.0, 3.0),
        st.floats(0.02, 2.0),
    ),
    "bounded_normal": st.builds(
        lambda mu, s: (d.BoundedNormal(0.0, 1.0), {"mu": mu, "sigma": s}),
        st.floats(-2.0, 3.0),
        st.floats(0.02, 2.0),
    ),
}
EVERY = pytest.mark.parametrize("name", CASES)


def _np(params: dict[str, float]) -> dict[str, np.ndarray]:
    return {k: np.float64(v) for k, v in params.items()}


def _integral(family: Any, params: dict[str, float], y: float) -> float:
    """∫ (F − 1{y ≤ x})² dx by adaptive quadrature, in the logarithm above 1e-12 where the range has
    an end at zero.
    """
    p = _np(params)
    qs = [1e-9, 1e-6, 1e-4, 0.01, 0.05, *LEVELS, 0.3, 0.7, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12]
    bends = {float(family.quantile(p, q)) for q in qs} | {y}
    if family.name == "quantile":
        bends |= {float(v) for k, v in params.items() if k != "p"}
    if family.name == "normal":
        bends |= {params["mu"] - 9 * params["sigma"], params["mu"] + 9 * params["sigma"]}
    elif family.name == "bounded_normal":
        bends |= {0.0, 1.0}
    else:
        bends |= {0.0, 1e-9, 1e-7, 1e-5, 1e-3, 0.1}
        bends |= {b * 4 for b in bends} | {b * 0.25 for b in bends}
    points = sorted(b for b in bends if np.isfinite(b))

    def squared(x: float) -> float:
        f = float(family.cdf(p, x))
        return f * f if x < y else (1.0 - f) ** 2

    return sum(
        integrate.quad(squared, a, b, epsabs=1e-15, epsrel=1e-9, limit=200)[0]
        for a, b in itertools.pairwise(points)
        if b > a
    )


@EVERY
@pytest.mark.filterwarnings(
    "ignore::scipy.integrate.IntegrationWarning"
)  # where F jumps by rounding beside a bend
@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(data=st.data(), y=AMOUNT)
def test_crps_is_the_integral(name: str, data: st.DataObject, y: float) -> None:
    family, params = data.draw(CASES[name])
    score = float(family.crps(_np(params), np.float64(y)))
    assert score >= 0
    scale = max(y, float(family.mean(_np(params))), 1e-6)
    # 1e-5 relative, as the quadrature is good to 1e-9; 1e-8 of the scale where next to nothing is
    # left
    assert score == pytest.approx(_integral(family, params, y), rel=1e-5, abs=1e-8 * scale)


@EVERY
@settings(max_examples=60, deadline=None)
@given(data=st.data(), y=AMOUNT)
def test_float32_holds(name: str, data: st.DataObject, y: float) -> None:
    family, params = data.draw(CASES[name])
    rounded = {k: torch.tensor(v, dtype=torch.float32) for k, v in params.items()}
    seen = torch.tensor(y, dtype=torch.float32)
    got = float(family.crps(rounded, seen))
    exact = float(
        family.crps({k: np.float64(float(v)) for k, v in rounded.items()}, np.float64(float(seen)))
    )
    assert got >= 0
    scale = max(
        float(seen), float(family.mean({k: np.float64(float(v)) for k, v in rounded.items()})), 1e-9
    )
    spread = float(rounded["sigma"]) if name == "normal" else 0.0
    assert got == pytest.approx(exact, rel=1e-3, abs=1e-6 * max(scale, spread))


@EVERY
@settings(max_examples=30, deadline=None)
@given(data=st.data(), y=AMOUNT, single=st.booleans())
def test_gradients_are_finite(name: str, data: st.DataObject, y: float, single: bool) -> None:
    family, params = data.draw(CASES[name])
    dtype = torch.float32 if single else torch.float64
    leaves = {k: torch.tensor(v, dtype=dtype, requires_grad=True) for k, v in params.items()}
    score = family.crps(leaves, torch.tensor(y, dtype=dtype))
    score.backward()
    assert torch.isfinite(score)
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad)


GRADIENTS = {
    "censored_normal": (
        d.CensoredNormal(1e-3),
        [{"mu": 0.3, "sigma": 0.6}, {"mu": -1.5, "sigma": 0.8}],
    ),
    "hurdle_lognormal": (
        d.HurdleLognormal(),
        [{"p": 0.4, "mu": 0.3, "sigma": 0.6}, {"p": 0.01, "mu": -3.0, "sigma": 1.8}],
    ),
    "hurdle_gamma": (
        d.HurdleGamma(),
        [{"p": 0.4, "shape": 0.7, "amount": 2.0}, {"p": 0.9, "shape": 8.0, "amount": 0.5}],
    ),
    "csgd": (
        d.CensoredShiftedGamma(),
        [{"shape": 0.7, "scale": 2.0, "shift": 0.5}, {"shape": 6.0, "scale": 0.3, "shift": 1.9}],
    ),
    "quantile": (d.Quantiles((0.25, 0.5, 0.9)), [{"p": 0.8, "q1": 0.11, "q2": 0.5, "q3": 1.7}]),
    "normal": (d.Normal(), [{"mu": 0.3, "sigma": 0.6}]),
    "bounded_normal": (
        d.BoundedNormal(0.0, 1.0),
        [{"mu": 0.3, "sigma": 0.6}, {"mu": 1.4, "sigma": 0.3}],
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("y", [0.0, 0.3, 0.9, 40.0])
def test_gradcheck(name: str, y: float) -> None:
    """Amounts of order one, so that the differences of gradcheck are no rounding; the forms do not
    depend on the unit.
    """
    family, cases = GRADIENTS[name]
    for params in cases:
        names = list(params)
        unit = (
            1e-3 if name in ("censored_normal", "hurdle_lognormal") else 1.0
        )  # these two count in mm

        def score(
            *values: torch.Tensor, names: list[str] = names, unit: float = unit
        ) -> torch.Tensor:
            return (
                family.crps(
                    dict(zip(names, values, strict=True)),
                    torch.tensor([y * unit], dtype=torch.float64),
                )
                / unit
            )

        leaves = [
            torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in params.values()
        ]
        assert torch.autograd.gradcheck(score, leaves, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["hurdle_gamma", "csgd"])
def test_the_gradient_in_the_shape_holds_in_the_far_tails(name: str) -> None:
    """Against a Richardson-extrapolated difference of SciPy's own functions, where Torch has no
    derivative at all.
    """
    from scipy.special import gammainc, gammaincc

    from xaurora.distributions import torch_gamma

    function: Callable[..., torch.Tensor] = (
        torch_gamma.gamma_above if name == "csgd" else torch_gamma.gamma_below
    )
    for a, x in itertools.product([0.05, 0.3, 1.0, 5.0, 30.0], [1e-6, 0.01, 0.5, 2.0, 20.0, 80.0]):
        shape = torch.tensor([a], dtype=torch.float64, requires_grad=True)
        function(shape, torch.tensor([x], dtype=torch.float64)).backward()
        above = gammaincc(a, x) < 0.5
        f: Callable[[float], float] = (
            (lambda s, x=x: gammaincc(s, x)) if above else (lambda s, x=x: -gammainc(s, x))
        )

        def slope(h: float, f: Callable[[float], float] = f, a: float = a) -> float:
            return float((f(a + h) - f(a - h)) / (2 * h))

        h = 4e-3 * a
        table = [slope(h / 2**k) for k in range(3)]
        once = [(4 * table[k + 1] - table[k]) / 3 for k in range(2)]
        reference = (16 * once[1] - once[0]) / 15 * (1.0 if name == "csgd" else -1.0)
        assert float(shape.grad) == pytest.approx(reference, rel=1e-6, abs=1e-12)


@EVERY
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_quantile_inverts_the_cdf_and_torch_equals_numpy(name: str, data: st.DataObject) -> None:
    family, params = data.draw(CASES[name])
    p = _np(params)
    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in params.items()}
    before = -np.inf
    for q in (0.02, 0.3, 0.5, 0.8, 0.95, 0.999):
        value = float(family.quantile(p, q))
        assert value >= before
        before = value
        assert float(family.cdf(p, value * (1 + 1e-9) + 1e-15)) >= q - 1e-6
        assert float(family.quantile(tensors, q)) == pytest.approx(value, rel=1e-7, abs=1e-12)
        assert float(family.cdf(tensors, value)) == pytest.approx(
            float(family.cdf(p, value)), rel=1e-7, abs=1e-9
        )
    assert float(family.mean(tensors)) == pytest.approx(float(family.mean(p)), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_the_mean_is_that_of_the_quantile_function(name: str) -> None:
    """∫ Q(u) du over 200 000 midpoints; heavy tails are cut there, hence the 2 %."""
    family, params = _example(name)
    u = (np.arange(200_000) + 0.5) / 200_000
    draws = family.quantile({k: np.full(u.shape, v) for k, v in params.items()}, u)
    assert float(family.mean(_np(params))) == pytest.approx(draws.mean(), rel=0.02)


def _example(name: str) -> tuple[Any, dict[str, float]]:
    if name == "quantile":
        return d.Quantiles(LEVELS), _quantiles(0.7, [0.0, 0.0, 1e-3, 2e-3, 4e-3, 8e-3])
    family, cases = GRADIENTS[name]
    return family, cases[0]


def test_against_scoringrules() -> None:
    """Where scoringrules has the same law."""
    sr = pytest.importorskip("scoringrules")
    y = np.array([0.0, 0.2, 1.0, 7.0])
    np.testing.assert_allclose(
        d.CensoredShiftedGamma().crps(
            {"shape": np.float64(0.7), "scale": np.float64(2.0), "shift": np.float64(0.5)}, y
        ),
        sr.crps_csg0(y, shape=0.7, scale=2.0, shift=0.5),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        d.normal_crps(np.float64(0.4), np.float64(1.3), y), sr.crps_normal(y, 0.4, 1.3), rtol=1e-9
    )
    np.testing.assert_allclose(
        d.bounded_normal_crps(np.float64(0.4), np.float64(0.7), y.clip(0, 1), 0.0, 1.0),
        sr.crps_cnormal(y.clip(0, 1), 0.4, 0.7, lower=0.0, upper=1.0),
        rtol=1e-7,
    )
    one = np.float64(1.0)
    np.testing.assert_allclose(
        d.HurdleGamma().crps({"p": one, "shape": np.float64(0.7), "amount": np.float64(1.4)}, y),
        sr.crps_gamma(y, shape=0.7, scale=2.0),
        rtol=1e-7,
    )
    np.testing.assert_allclose(
        d.HurdleLognormal().crps(
            {"p": one, "mu": np.float64(0.3), "sigma": np.float64(0.6)}, y * 1e-3
        )
        * 1e3,
        sr.crps_lognormal(y.clip(1e-12), 0.3, 0.6),
        rtol=1e-7,
        atol=1e-9,
    )


def test_families_travel_in_attributes() -> None:
    for family in (
        d.CensoredNormal(1e-4),
        d.HurdleGamma(),
        d.Quantiles(LEVELS),
        d.BoundedNormal(0.0, 1.0),
    ):
        attrs = d.to_attrs(family)
        assert d.from_attrs(attrs) == family
        assert all(d.is_attr(name) for name in attrs)
    assert d.from_attrs({"distribution": "cauchy"}) is None
    assert d.from_attrs({"distribution": "quantile"}) is None
    assert d.from_attrs({"units": "m"}) is None


def test_ties_are_broken_by_the_rain_nearby() -> None:
    """Of two fields that are dry at a point, the one with rain beside it ranks higher; ranks are a
    permutation everywhere.
    """
    past = np.zeros((3, 12, 12))
    past[1, 5, 5] = 4.0
    past[2, 0, 0] = 1.0
    ranks = d.ranks_of(past, np.random.default_rng(0))
    assert (np.sort(ranks, axis=0) == np.arange(3).reshape(-1, 1, 1)).all()
    assert ranks[1, 5, 6] == 2
    assert ranks[1, 5, 5] == 2
    np.testing.assert_allclose(d.plotting_positions(4), [0.125, 0.375, 0.625, 0.875])

"""Heads in JAX against those in Torch."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from xaurora.jax import precision
from xaurora.jax.heads import Trunk
from xaurora.jax.weights import State, to_jax
from xaurora.model import heads
from xaurora.model.heads import Climatology, HeadOptions

TRUNKS = [
    ({}, 4),
    ({"neighbours": 1, "activation": "relu", "latents": "surface"}, 4),
    ({"neighbours": 5, "width": (8, 6)}, 4),
    ({"depth": 1, "normalise": False}, 3),
]


@pytest.mark.parametrize(("options", "patch"), TRUNKS, ids=str)
@pytest.mark.parametrize("wraps", [True, False])
def test_a_trunk_gives_the_same_fields(options: dict, patch: int, wraps: bool) -> None:
    torch.manual_seed(0)
    trunk = heads.build(HeadOptions("csgd", **{"width": 8, **options}), 4, 6, patch).trunk
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    trunk.wraps = wraps
    latents = torch.randn(2, 4, 5, 7, 6)
    relu = options.get("activation") == "relu"
    ours = Trunk.of(State(trunk.state_dict()), trunk, relu=relu, wraps=wraps)
    with torch.inference_mode():
        expected = trunk(latents).numpy()
    assert (
        np.abs(np.asarray(ours(to_jax(latents))) - expected).max() < 1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[pytest.mark.thorough] * (name not in ("csgd", "quantile")))
        for name in (*heads.RAIN, *heads.OTHER)
    ],
)
def test_losses_and_their_gradients_are_the_same(family: str) -> None:
    """The gradient of a gamma in its shape is a difference in Torch, hence 1e-4."""
    bounds = (0.0, 1.0) if family == "bounded_normal" else None
    options = HeadOptions(family, width=8, bounds=bounds).for_climate(1e-3)
    head = heads.build(options, 4, 6, 4)
    amounts = np.array([0.0, 1e-4, 1e-3, 5e-3, 2e-2])
    values = amounts if family in heads.RAIN else np.linspace(0.05, 0.9, 5)
    head.initialise(Climatology(values, np.array([0.6, 0.15, 0.15, 0.07, 0.03])))
    rng = torch.Generator().manual_seed(0)
    raw = torch.randn(1, head.outputs, 6, 8, generator=rng) * 1.5
    y = torch.from_numpy(np.random.default_rng(0).choice(values, (1, 6, 8))).float()
    ours = raw.clone().requires_grad_(True)
    loss = head.loss(head.parameters_of(ours), y).mean()
    loss.backward()

    def in_jax(raw: jax.Array) -> jax.Array:
        return head.loss(head.parameters_of(raw), to_jax(y)).mean()

    with precision.exact():
        found, gradient = jax.jit(jax.value_and_grad(in_jax))(to_jax(raw))
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    expected = ours.grad.numpy()
    assert np.abs(np.asarray(gradient) - expected).max() < 1e-4 * np.abs(expected).max()
    mean = head.mean(head.parameters_of(to_jax(raw)))
    expected = head.mean(head.parameters_of(raw)).numpy()
    assert np.abs(np.asarray(mean) - expected).max() < 1e-4 * np.abs(expected).max()

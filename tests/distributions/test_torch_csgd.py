"""The gradient by hand is that of the closed form, recorded operation by operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xaurora.distributions import csgd
from xaurora.distributions.namespace import Torch

Tensors = list[torch.Tensor]


def _params(dtype: torch.dtype) -> tuple[Tensors, torch.Tensor]:
    """Shape, scale, shift and amounts, half of them zero, from drizzle to a cloudburst."""
    rng = np.random.default_rng(0)
    k, mean = np.exp(rng.normal(-1, 1.2, 2000)), np.exp(rng.normal(-7, 1.5, 2000))
    shift = mean * (1e-3 + 3 * rng.random(2000) ** 3)
    y = np.where(rng.random(2000) < 0.5, 0.0, mean * np.exp(rng.normal(0, 1, 2000)))
    given = [torch.tensor(v, dtype=dtype) for v in (k, mean / k, shift)]
    return given, torch.tensor(y, dtype=dtype)


def _score(given: Tensors, y: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    leaves = [v.clone().requires_grad_() for v in (*given, y)]
    score = csgd.crps(*leaves)
    score.sum().backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return score.detach(), gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_gradient_is_that_of_the_closed_form(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, y = _params(dtype)
    values, gradients = _score(given, y)
    monkeypatch.setattr(Torch, "is_differentiated", lambda self, *arrays: False)
    recorded, expected = _score(given, y)
    # The value is a mean over shapes that differ by 2e-5, hence h² (k ∂ ln CRPS/∂k)²; float32 is
    # rounded to 6e-8.
    torch.testing.assert_close(values, recorded, rtol=5e-7, atol=1e-12)
    assert len(gradients) == len(expected) == 4
    for name, one, other in zip(("shape", "scale", "shift", "y"), gradients, expected, strict=True):
        assert one.dtype == dtype
        least = 1e-6 * float(other.abs().max())
        assert float(((one - other).abs() / (other.abs() + least)).max()) < 1e-5, name


def test_parameters_of_a_column_are_added_up() -> None:
    """Arguments of other shapes, as in the fit to a climatology."""
    given, y = _params(torch.float64)
    one = [v[:1] for v in given]
    _, gradients = _score(one, y)
    _, each = _score([v.expand(2000) for v in one], y)
    assert [g.shape for g in gradients[:3]] == [(1,)] * 3
    for found, expected in zip(gradients[:3], each[:3], strict=True):
        torch.testing.assert_close(found[0], expected.sum())


def test_one_gradient_alone_is_that_beside_the_others() -> None:
    given, y = _params(torch.float64)
    _, every = _score(given, y)
    for i in range(3):
        leaves = [v.clone().requires_grad_(j == i) for j, v in enumerate(given)]
        csgd.crps(*leaves, y).sum().backward()
        torch.testing.assert_close(leaves[i].grad, every[i], rtol=0, atol=0)


def test_without_a_gradient_the_value_is_exact() -> None:
    given, y = _params(torch.float64)
    k = given[0].clone().requires_grad_()
    with torch.no_grad():
        exact = csgd.crps(k, *given[1:], y)
    plain = csgd.crps(*(v.numpy() for v in given), y.numpy())
    # Torch and SciPy have incomplete gamma functions of their own.
    np.testing.assert_allclose(exact.numpy(), plain, rtol=1e-9, atol=1e-15)

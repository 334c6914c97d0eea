"""Cases of the benchmark suite: what their count of memory says."""

from __future__ import annotations

import cases
import pytest
import torch

from xaurora.model.memory import LiveBytes


@pytest.mark.parametrize(
    ("samples", "options"),
    [(4096, {"fused": True}), (1, {"foreach": True})],
    ids=["activations", "scratch of the optimiser"],
)
def test_the_peak_is_that_of_a_later_step(samples: int, options: dict[str, bool]) -> None:
    """In the optimiser's step, which makes its moments in the first, or before it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 8))
    moving = list(model.parameters())
    optimizer = torch.optim.AdamW(moving, **options)
    x = torch.randn(samples, 64)
    kept: list[torch.Tensor] = []

    def step() -> None:
        kept.clear()
        kept.append(model(x))  # until the next step
        kept[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    flops, peak = cases.Run(step, [*moving, x]).counted()
    # Two products forward, two for the weights, and one for the hidden layer.
    assert flops == 2 * samples * (2 * 64 * 256 + 3 * 256 * 8)
    kept.clear()
    state = [v for s in optimizer.state.values() for v in s.values()]
    with LiveBytes() as later:
        for tensor in (*moving, x, *state):
            later.track(tensor)
        step()
    assert peak == later.peak

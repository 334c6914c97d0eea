"""Where tokens lie among windows, beside upstream's masks."""

from __future__ import annotations

import pytest
import torch
from aurora.model.swin3d import compute_3d_shifted_window_mask

from xaurora.model import windows
from xaurora.model.windows import windows_of

WINDOW = (2, 6, 12)


@pytest.mark.parametrize("wraps", [True, False])
def test_windows_with_the_same_mask_lie_together(
    wraps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_MASKS", 0)
    windows.windows_of.cache_clear()
    res, shift = (4, 18, 36), (1, 3, 6)
    found = windows_of(res, WINDOW, shift, 2, torch.device("cpu"), torch.float32, wraps=wraps)
    # Upstream has a mask for each window. On a globe four of them differ: at no edge, at that of
    # levels, at that of rows, at both.
    assert len(found.groups) == (4 if wraps else 8)
    masks, _ = compute_3d_shifted_window_mask(
        *res, WINDOW, shift, torch.device("cpu"), torch.float32, warped=wraps
    )
    assert sum(g.last - g.first for g in found.groups) == 2 * len(masks)
    free = [g for g in found.groups if g.mask is None]
    assert len(free) == 1
    assert free[0].last == 2 * int((masks == 0).all(dim=(1, 2)).sum())
    tokens = torch.arange(2 * 4 * 18 * 36)
    assert torch.equal(tokens[found.gather][found.scatter], tokens), "there and back"
    # On a small grid, all masked windows are one group, in the same order.
    monkeypatch.undo()
    windows.windows_of.cache_clear()
    small = windows_of(res, WINDOW, shift, 2, torch.device("cpu"), torch.float32, wraps=wraps)
    assert torch.equal(small.gather, found.gather)
    assert [(g.first, g.last) for g in small.groups] == [
        (0, free[0].last),
        (free[0].last, 2 * len(masks)),
    ]
    for g in found.groups[1:]:
        own = small.groups[1].part(g.first - free[0].last, g.last - free[0].last)
        assert torch.equal(own.mask, g.mask.expand_as(own.mask))
        assert torch.equal(own.strict, torch.where(own.mask < 0, -torch.inf, 0.0))

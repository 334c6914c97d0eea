"""Where the tokens of a batch lie among the windows of a block.

Upstream rolls, pads and partitions the tokens, and back, with a copy for each, and repeats the mask
of shifted windows for every window and sample. Here one index holds all of that. Windows with the
same mask lie next to each other and share it, and windows without one are not masked.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from aurora.model.swin3d import get_3d_merge_groups, get_three_sidded_padding
from aurora.model.util import maybe_adjust_windows
from torch.utils._python_dispatch import _disable_current_modes

Triple: TypeAlias = tuple[int, int, int]
MASKED = -100.0
"""What upstream adds to the attention between tokens of different parts."""
_MASKS = 8 * 1024**2  # bytes of masks: with fewer, all masked windows of a batch are one group


@dataclass(frozen=True, eq=False)
class Group:
    """Windows that lie next to each other and are attended to at once.

    Attributes
    ----------
    first, last : int
        The first window and the one after the last.
    mask : torch.Tensor or None
        What is added to their scores: ``(1, 1, size, size)`` if they share it, or one of each
        window; or None.
    strict : torch.Tensor or None
        The same with minus infinity in place of -100, on a CPU.
    """

    first: int
    last: int
    mask: torch.Tensor | None = None
    strict: torch.Tensor | None = None

    def part(self, begin: int, end: int) -> Group:
        """Return some windows of it, counted from its first, as a group that begins at 0."""
        if self.mask is None or len(self.mask) == 1:
            return Group(0, end - begin, self.mask, self.strict)
        strict = None if self.strict is None else self.strict[begin:end]
        return Group(0, end - begin, self.mask[begin:end], strict)


Groups: TypeAlias = tuple[Group, ...]


@dataclass(frozen=True, eq=False)
class Windows:
    """Where each token of a batch lies among the windows.

    Attributes
    ----------
    size : int
        Tokens in a window.
    gather : torch.Tensor
        Token of each slot, ``(windows * samples * size,)``, among ``samples * tokens``. Slots of
        padding name token 0.
    scatter : torch.Tensor
        Slot of each token, ``(samples * tokens,)``.
    padding : torch.Tensor or None
        Slots that hold no token, if there are any.
    is_padding : torch.Tensor or None
        Whether each slot is one of them, ``(windows * samples * size, 1)``.
    groups : tuple of Group
    """

    size: int
    gather: torch.Tensor
    scatter: torch.Tensor
    padding: torch.Tensor | None
    is_padding: torch.Tensor | None
    groups: Groups


def _slots(values: np.ndarray, window: Triple, padding: Triple, fill: int) -> np.ndarray:
    """Return values ``(C, H, W)`` by window and slot, ``(windows, size)``, padded as upstream."""
    left, right, top, bottom, front, back = get_three_sidded_padding(*padding)
    padded = np.pad(values, ((front, back), (top, bottom), (left, right)), constant_values=fill)
    (levels, rows, columns), (wc, wh, ww) = padded.shape, window
    cut = padded.reshape(levels // wc, wc, rows // wh, wh, columns // ww, ww)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, wc * wh * ww)


def _parts(res: Triple, window: Triple, shift: Triple, *, wraps: bool) -> np.ndarray:
    """Return the part of each rolled token, ``(C, H, W)``: tokens of one part see each other."""
    cuts = [(slice(-w), slice(-w, -s), slice(-s, None)) for w, s in zip(window, shift, strict=True)]
    parts = np.zeros(res, dtype=np.int64)
    count = 0
    for levels in cuts[0]:
        for rows in cuts[1]:
            for columns in cuts[2]:
                parts[levels, rows, columns] = count
                count += 1
    if wraps:
        for first, second in get_3d_merge_groups():
            parts[parts == first] = second
    return parts


@functools.lru_cache(maxsize=64)
def _numbered(
    res: Triple, window: Triple, shift: Triple, *, wraps: bool
) -> tuple[np.ndarray, list[tuple[int, np.ndarray | None]]]:
    """Return the token of each slot, ``(windows, size)``, -1 for padding, sorted by mask.

    Also return how many windows share a mask, and the parts of their slots (None if no mask is
    needed), in the same order.
    """
    window, shift = maybe_adjust_windows(window, shift, res)
    tokens = np.arange(np.prod(res)).reshape(res)
    padding: Any = tuple(-n % w for n, w in zip(res, window, strict=True))
    shifted = any(shift)
    rolled = np.roll(tokens, [-s for s in shift], axis=(0, 1, 2)) if shifted else tokens
    slots = _slots(rolled, window, padding, -1)
    if not shifted:
        return slots, [(len(slots), None)]
    parts = _slots(_parts(res, window, shift, wraps=wraps), window, padding, 27)
    # Windows share a mask if the same of their slots belong together, whatever the parts' numbers.
    same = parts[:, :, None] == parts[:, None, :]
    first = np.argmax(same, axis=2)  # for each slot, the first one of its part
    patterns, of_window = np.unique(first, axis=0, return_inverse=True)
    order = np.argsort(of_window.ravel(), kind="stable")
    counts = np.bincount(of_window.ravel(), minlength=len(patterns))
    groups = [
        (int(n), pattern if pattern.any() else None)
        for n, pattern in zip(counts, patterns, strict=True)
    ]
    return slots[order], groups


@functools.lru_cache(maxsize=64)
def windows_of(
    res: Triple,
    window: Triple,
    shift: Triple,
    samples: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    wraps: bool,
) -> Windows:
    """Return the windows of a batch of tokens.

    Parameters
    ----------
    res : tuple of int
        Latent levels, rows and columns of patches.
    window, shift : tuple of int
        Size and shift of the windows, adjusted to small grids as upstream does.
    samples : int
    device : torch.device
    dtype : torch.dtype
        Data type of the masks.
    wraps : bool
        Whether the grid's first and last columns are neighbours.
    """
    slots, groups = _numbered(res, window, shift, wraps=wraps)
    count = int(np.prod(res))
    # (windows, samples, size): windows of a group lie together for all samples
    tokens = slots[:, None, :] + count * np.arange(samples)[:, None]
    empty = np.broadcast_to(slots[:, None, :] < 0, tokens.shape).ravel()
    gather = np.where(empty, 0, tokens.ravel())
    scatter = np.empty(samples * count, dtype=np.int64)
    scatter[gather[~empty]] = np.flatnonzero(~empty)
    # The cached tensors are created outside fake and inference modes, so that later calls can
    # train with them.
    with _disable_current_modes(), torch.inference_mode(False):
        made = _groups(groups, samples, device, dtype)
        return Windows(
            slots.shape[1],
            torch.from_numpy(gather).to(device),
            torch.from_numpy(scatter).to(device),
            torch.from_numpy(np.flatnonzero(empty)).to(device) if empty.any() else None,
            torch.from_numpy(empty[:, None].copy()).to(device) if empty.any() else None,
            made,
        )


def _groups(
    patterns: list[tuple[int, np.ndarray | None]],
    samples: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Groups:
    """Return the groups of a batch's windows, from the number of each pattern and its parts."""
    made: list[Group] = []
    start = 0
    for number, pattern in patterns:
        end, masks = start + number * samples, []
        if pattern is not None:
            hidden = torch.from_numpy(pattern[:, None] != pattern[None, :])[None, None]
            masks = [
                torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, value).to(device)
                for value in (MASKED, -torch.inf)[: 2 if device.type == "cpu" else 1]
            ]
        made.append(Group(start, end, *masks))
        start = end
    masked = [g for g in made if g.mask is not None]
    size = sum((g.last - g.first) * g.mask.nbytes for g in masked if g.mask is not None)
    if len(masked) < 2 or size > _MASKS:
        return tuple(made)
    # A call for each group would take longer than the masks of all windows take memory.
    counts = torch.tensor([g.last - g.first for g in masked], device=device)
    whole = [
        torch.cat([m for m in each if m is not None]).repeat_interleave(counts, dim=0)
        for each in ([g.mask for g in masked], [g.strict for g in masked])
        if each[0] is not None
    ]
    free = [g for g in made if g.mask is None]
    return (*free, Group(masked[0].first, masked[-1].last, *whole))

"""Blocks of the backbone with less copying: tokens are gathered into windows once each way.

Upstream rolls, pads and partitions the tokens, and back, with a copy for each, and repeats the mask
of shifted windows for every window and sample. Here one index holds all of that. Windows with the
same mask lie next to each other and share it, and windows without one are not masked.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from aurora.model.swin3d import (
    Swin3DTransformerBlock,
    WindowAttention,
    get_3d_merge_groups,
    get_three_sidded_padding,
)
from aurora.model.util import fp16_safe_scaled_dot_product_attention, maybe_adjust_windows
from torch.utils._python_dispatch import _disable_current_modes

Triple: TypeAlias = tuple[int, int, int]
Groups: TypeAlias = tuple[tuple[int, int, torch.Tensor | None], ...]
_MASKED = -100.0  # what upstream adds to the attention between tokens of different parts
_PIECE = 256 * 1024**2  # bytes of the largest tensor inside a block at once, without gradients


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
    groups : tuple
        First window of each group and the one after its last, and the mask ``(size, size)`` that
        its windows share, or None.
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
    made, start = [], 0
    # The cached tensors are created outside fake and inference modes, so that later calls can
    # train with them.
    with _disable_current_modes(), torch.inference_mode(False):
        for number, pattern in groups:
            mask = None
            if pattern is not None:
                seen = torch.from_numpy(pattern[:, None] == pattern[None, :])
                mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, _MASKED).to(device)
            made.append((start * samples, (start + number) * samples, mask))
            start += number
        return Windows(
            slots.shape[1],
            torch.from_numpy(gather).to(device),
            torch.from_numpy(scatter).to(device),
            torch.from_numpy(np.flatnonzero(empty)).to(device) if empty.any() else None,
            torch.from_numpy(empty[:, None].copy()).to(device) if empty.any() else None,
            tuple(made),
        )


class _Reorder(torch.autograd.Function):
    """Take rows by an index whose inverse is known: the gradient is a gather too."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - Torch has no public type for it
        x: torch.Tensor,
        index: torch.Tensor,
        inverse: torch.Tensor,
        empty: torch.Tensor | None,
        empty_inverse: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse, empty_inverse)
        return _take(x, index, empty)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        inverse, empty = ctx.saved_tensors
        return _take(gradients[0], inverse, empty), None, None, None, None


def _take(x: torch.Tensor, index: torch.Tensor, empty: torch.Tensor | None) -> torch.Tensor:
    out = x.index_select(0, index)
    return out if empty is None else out.index_fill_(0, empty, 0.0)


def attend(attn: WindowAttention, x: torch.Tensor, groups: Groups, step: int) -> torch.Tensor:
    """Return the attention within windows ``x``, ``(windows * samples, size, d)``."""
    qkv = _with_lora(attn.qkv, attn.lora_qkv, x, step)
    q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    kernel = (
        fp16_safe_scaled_dot_product_attention
        if attn.use_fp16_safe_attention
        else F.scaled_dot_product_attention
    )
    dropout, out = attn.attn_drop if attn.training else 0.0, []
    for first, last, mask in groups:
        bias = None if mask is None else mask.to(q.dtype)[None, None]
        part = slice(first, last)
        out.append(kernel(q[part], k[part], v[part], attn_mask=bias, dropout_p=dropout))
    joined = out[0] if len(out) == 1 else torch.cat(out)
    x = joined.transpose(1, 2).flatten(2)
    return attn.proj_drop(_with_lora(attn.proj, attn.lora_proj, x, step))


def _attend_to_all(
    attn: WindowAttention, flat: torch.Tensor, windows: Windows, step: int
) -> torch.Tensor:
    """Return the attention of tokens ``(samples * tokens, d)``, one row for each slot.

    On a large grid, without gradients, queries, keys and values of some windows exist at a time.
    """
    width, size, slots = flat.shape[1], windows.size, len(windows.gather)
    needed = slots * 3 * width * flat.element_size()
    if torch.is_grad_enabled() or needed <= _PIECE:
        cut = _Reorder.apply(flat, windows.gather, windows.scatter, windows.padding, None)
        return attend(attn, cut.view(-1, size, width), windows.groups, step).reshape(-1, width)
    out = flat.new_empty((slots, width))
    for first, last, mask in windows.groups:
        count = -(-(last - first) * needed // (_PIECE * (slots // size)))
        edges = [first + (last - first) * i // count for i in range(count + 1)]
        for begin, end in itertools.pairwise(edges):
            rows = slice(begin * size, end * size)
            cut = flat.index_select(0, windows.gather[rows])
            if windows.is_padding is not None:
                cut.masked_fill_(windows.is_padding[rows], 0.0)
            group = ((0, end - begin, mask),)
            out[rows] = attend(attn, cut.view(-1, size, width), group, step).reshape(-1, width)
    return out


def _with_lora(
    linear: torch.nn.Module, lora: Callable[..., Any], x: torch.Tensor, step: int
) -> torch.Tensor:
    # Without LoRA, upstream adds the number 0, which copies the result.
    return linear(x) + lora(x, step) if isinstance(lora, torch.nn.Module) else linear(x)


def run_block(
    block: Swin3DTransformerBlock,
    x: torch.Tensor,
    context: torch.Tensor,
    windows: Windows,
    step: int,
) -> torch.Tensor:
    """Run a block of the backbone.

    Parameters
    ----------
    block : Swin3DTransformerBlock
    x : torch.Tensor
        Tokens ``(b, l, d)``.
    context : torch.Tensor
        Embedding of the lead time, ``(b, d)`` or ``(b, l, d)``.
    windows : Windows
    step : int
        Rollout step.
    """
    samples, tokens, width = x.shape
    flat = x.reshape(-1, width)
    if torch.is_autocast_enabled(x.device.type):  # so that fewer bytes are gathered
        flat = flat.to(torch.get_autocast_dtype(x.device.type))
    out = _attend_to_all(block.attn, flat, windows, step)
    del flat
    back = _Reorder.apply(out, windows.scatter, windows.gather, None, windows.padding)
    del out
    back = back.view(samples, tokens, width)
    drops = block.training and not isinstance(block.drop_path, torch.nn.Identity)
    if torch.is_grad_enabled() or drops:  # whole samples are dropped
        x = x + block.drop_path(block.norm1(back, context))
        del back
        return x + block.drop_path(block.norm2(block.mlp(x), context))
    return _finish_in_pieces(block, x, back, context)


def _finish_in_pieces(
    block: Swin3DTransformerBlock, x: torch.Tensor, attended: torch.Tensor, context: torch.Tensor
) -> torch.Tensor:
    """Return a block's output from its input and attention, some tokens at a time.

    The hidden layer of the MLP is the largest tensor of a forward pass, and layer norms in float32
    are the next.
    """
    samples, tokens, _ = x.shape
    hidden = samples * tokens * block.mlp.fc1.out_features * x.element_size()
    pieces = max(-(-hidden // _PIECE), 1)
    out: torch.Tensor | None = None
    for i in range(pieces):
        rows = slice(tokens * i // pieces, tokens * (i + 1) // pieces)
        local = context if context.ndim == 2 else context[:, rows]
        part = x[:, rows] + block.norm1(attended[:, rows], local)
        part = part + block.norm2(block.mlp(part), local)
        if out is None:  # under autocast the type is that of the layer norms, not of x
            out = part.new_empty(x.shape)
        out[:, rows] = part
    assert out is not None
    return out


def _lora_step(attn: WindowAttention, step: int) -> int:
    """Return the first rollout step with the same LoRA: compiled code is made for each step."""
    lora = attn.lora_qkv
    if not isinstance(lora, torch.nn.Module):
        return 0
    mode, most = getattr(lora, "mode", "all"), getattr(lora, "max_steps", step)
    if mode == "all" or step >= most:
        return min(step, most)
    return 0 if mode == "single" else min(step, 1)


class BlockForward:
    """The forward pass of a block on a grid, in place of the module's own.

    Attributes
    ----------
    run : callable
        :func:`run_block`, or the same compiled.
    around : callable or None
        What calls it: activation checkpointing, for example.
    """

    def __init__(self, block: Swin3DTransformerBlock, *, wraps: bool) -> None:
        self.block, self.wraps = block, wraps
        self.run: Callable[..., torch.Tensor] = run_block
        self.around: Callable[..., torch.Tensor] | None = None

    def __call__(
        self,
        x: torch.Tensor,
        c: torch.Tensor,
        res: Triple,
        rollout_step: int,
        warped: bool = True,
    ) -> torch.Tensor:
        """Run the block with upstream's arguments."""
        block = self.block
        windows = windows_of(
            tuple(res),
            block.window_size,
            block.shift_size,
            x.shape[0],
            x.device,
            x.dtype,
            wraps=self.wraps and warped,
        )
        args = (block, x, c, windows, _lora_step(block.attn, rollout_step))
        return self.run(*args) if self.around is None else self.around(self.run, *args)

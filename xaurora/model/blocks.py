"""Blocks of the backbone with less copying and less work on padding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from aurora.model.film import AdaptiveLayerNorm
from aurora.model.swin3d import Swin3DTransformerBlock, WindowAttention
from aurora.model.util import fp16_safe_scaled_dot_product_attention

from xaurora.model.memory import is_fake
from xaurora.model.windows import MASKED, Groups, Triple, Windows, windows_of

_LOST = 40.0  # of the exponent: exp(-40) is lost in rounding beside 1
_PIECE = 256 * 1024**2  # bytes of the largest tensor inside a block at once, without gradients


class _Reorder(torch.autograd.Function):
    """Take rows by an index whose inverse is known: the gradient is a gather too.

    Rows without a source, ``empty``, get the values of ``fill``, ``(1, d)``, or zeros.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - Torch has no public type for it
        x: torch.Tensor,
        index: torch.Tensor,
        inverse: torch.Tensor,
        empty: torch.Tensor | None,
        empty_inverse: torch.Tensor | None,
        fill: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse, empty, empty_inverse)
        ctx.fills = fill is not None
        if fill is None or empty is None:
            return _take(x, index, empty)
        out = x.index_select(0, index)
        out[empty] = fill
        return out

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        inverse, empty, empty_inverse = ctx.saved_tensors
        given = gradients[0]
        fill = given.index_select(0, empty).sum(dim=0, keepdim=True) if ctx.fills else None
        return _take(given, inverse, empty_inverse), None, None, None, None, fill


def _take(x: torch.Tensor, index: torch.Tensor, empty: torch.Tensor | None) -> torch.Tensor:
    out = x.index_select(0, index)
    return out if empty is None else out.index_fill_(0, empty, 0.0)


def _attend(attn: WindowAttention, qkv: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Return the attention within windows, ``(slots, d)``, before its projection.

    ``qkv`` are queries, keys and values of the windows, ``(windows * samples, size, 3 d)``.
    """
    q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    kernel = (
        fp16_safe_scaled_dot_product_attention
        if attn.use_fp16_safe_attention
        else F.scaled_dot_product_attention
    )
    dropout, out = attn.attn_drop if attn.training else 0.0, []
    masked = any(group.mask is not None for group in groups)
    strict = masked and torch.is_grad_enabled() and _may_be_strict(attn, q, k)
    for group in groups:
        mask = group.strict if strict else group.mask
        bias = None if mask is None else mask.to(q.dtype)
        part = slice(group.first, group.last)
        out.append(kernel(q[part], k[part], v[part], attn_mask=bias, dropout_p=dropout))
    joined = out[0] if len(out) == 1 else torch.cat(out)
    return joined.transpose(1, 2).reshape(-1, qkv.shape[-1] // 3)


def _may_be_strict(attn: WindowAttention, q: torch.Tensor, k: torch.Tensor) -> bool:
    """Return whether a mask of minus infinity gives the same as one of -100, and is faster.

    exp(-100) is a denormal number, with which the gradient of attention takes four times as long
    on a CPU. Where no score is far above another, it is lost in rounding.
    """
    if q.device.type != "cpu" or attn.use_fp16_safe_attention or torch.compiler.is_compiling():
        return False
    if is_fake(q):  # the masks differ in their values only
        return False
    longest = [x.detach().norm(dim=-1).amax().item() for x in (q, k)]
    return 2 * longest[0] * longest[1] / q.shape[-1] ** 0.5 < -MASKED - _LOST


def _attend_to_all(
    attn: WindowAttention, flat: torch.Tensor, windows: Windows, step: int
) -> torch.Tensor:
    """Return the attention of tokens ``(samples * tokens, d)``, one row for each slot.

    On a large grid, without gradients, queries, keys and values of some windows exist at a time.
    """
    width, size, slots = flat.shape[1], windows.size, len(windows.gather)

    def project(x: torch.Tensor) -> torch.Tensor:
        return _with_lora(attn.qkv, attn.lora_qkv, x, step)

    needed = slots * 3 * width * flat.element_size()
    if torch.is_grad_enabled() or needed <= _PIECE:
        there = windows.gather, windows.scatter, windows.padding, None
        if windows.padding is None:  # a third of the bytes is gathered before the product
            qkv = project(_Reorder.apply(flat, *there, None))
        else:  # and after it, padding is not multiplied: it is zero
            qkv = _Reorder.apply(project(flat), *there, project(flat.new_zeros(1, width)))
        return _attend(attn, qkv.view(-1, size, 3 * width), windows.groups)
    out = flat.new_empty((slots, width))
    for group in windows.groups:
        number = group.last - group.first
        count = -(-number * needed // (_PIECE * (slots // size)))
        edges = [number * i // count for i in range(count + 1)]
        for begin, end in itertools.pairwise(edges):
            rows = slice((group.first + begin) * size, (group.first + end) * size)
            cut = flat.index_select(0, windows.gather[rows])
            if windows.is_padding is not None:
                cut.masked_fill_(windows.is_padding[rows], 0.0)
            qkv = project(cut).view(-1, size, 3 * width)
            out[rows] = _attend(attn, qkv, (group.part(begin, end),))
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
    drops = block.training and not isinstance(block.drop_path, torch.nn.Identity)
    whole = torch.is_grad_enabled() or drops  # whole samples are dropped

    def project(x: torch.Tensor) -> torch.Tensor:
        return block.attn.proj_drop(_with_lora(block.attn.proj, block.attn.lora_proj, x, step))

    # Without padding, the output of attention, which is kept for its gradient, is the input.
    projects_first = whole and windows.padding is None
    if projects_first:
        out = project(out)
    back = _Reorder.apply(out, windows.scatter, windows.gather, None, windows.padding, None)
    del out
    back = back.view(samples, tokens, width)
    if whole:
        back = back if projects_first else project(back)
        x = x + block.drop_path(block.norm1(back, context))
        del back
        return x + block.drop_path(block.norm2(block.mlp(x), context))
    return _finish_in_pieces(block, x, back, project, context)


def _finish_in_pieces(
    block: Swin3DTransformerBlock,
    x: torch.Tensor,
    attended: torch.Tensor,
    project: Callable[[torch.Tensor], torch.Tensor],
    context: torch.Tensor,
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
        part = _add_normalised(x[:, rows], block.norm1, project(attended[:, rows]), local)
        part = _add_normalised(part, block.norm2, block.mlp(part), local)
        if out is None:  # under autocast the type is that of the layer norms, not of x
            out = part.new_empty(x.shape)
        out[:, rows] = part
    assert out is not None
    return out


def _add_normalised(
    x: torch.Tensor, norm: AdaptiveLayerNorm, update: torch.Tensor, context: torch.Tensor
) -> torch.Tensor:
    """Return ``x + norm(update, context)``, computed in one tensor if all have one data type."""
    modulation = norm.ln_modulation(context)
    if modulation.ndim == 2:
        modulation = modulation.unsqueeze(1)
    shift, scale = modulation.chunk(2, dim=-1)
    normal = norm.ln(update)
    if not normal.dtype == scale.dtype == x.dtype:
        return x + (normal * (norm.scale_bias + scale) + shift)
    return normal.mul_(norm.scale_bias + scale).add_(shift).add_(x)


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

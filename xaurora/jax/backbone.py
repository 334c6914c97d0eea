"""The 3D Swin transformer between Aurora's encoder and decoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from xaurora.jax.layers import Array, LayerNorm, Linear, Sequential, gelu, layer_norm
from xaurora.jax.weights import State

if TYPE_CHECKING:
    from aurora.model import lora, swin3d

Size = tuple[int, int, int]
"""Latent levels, rows and columns."""
_NumPyOrJax = TypeVar("_NumPyOrJax", np.ndarray, jax.Array)


class Mode(NamedTuple):
    """How the backbone runs.

    ``wraps``: whether the eastern edge joins the western one. ``recompute``: whether each block is
    recomputed in the backward pass. ``dtype``: in which linear layers and attention are computed.
    """

    wraps: bool = True
    recompute: bool = False
    dtype: str = "float32"


class LoRA(eqx.Module):
    """Low-rank adapters of a linear layer, which may depend on the rollout step."""

    lora_A: list[Array]
    lora_B: list[Array]
    scaling: float = eqx.field(static=True)
    mode: str = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    @classmethod
    def of(cls, state: State, module: lora.LoRARollout) -> LoRA:
        """Take the weights of upstream's ``LoRARollout``."""
        places = [state.at(f"loras.{i}") for i in range(len(module.loras))]
        return cls(
            [own["lora_A"] for own in places],
            [own["lora_B"] for own in places],
            float(module.loras[0].scaling),
            module.mode,
            int(module.max_steps),
        )

    def __call__(self, x: Array, step: Array) -> Array:
        """Return the correction of the layer's output at a rollout step, counted from 0."""
        if self.mode == "all":
            place = jnp.clip(step, 0, self.max_steps - 1)
            down, up = jnp.stack(self.lora_A)[place], jnp.stack(self.lora_B)[place]
        else:
            down, up = self.lora_A[0], self.lora_B[0]
        acts = step < self.max_steps
        if self.mode == "from_second":
            acts = acts & (step > 0)
        low = jnp.einsum("...i,ri->...r", x, down.astype(x.dtype))
        out = jnp.einsum("...r,or->...o", low, up.astype(x.dtype))
        return out * (self.scaling * acts).astype(x.dtype)


def _lora_of(state: State, module: lora.LoRARollout) -> LoRA | None:
    return LoRA.of(state, module) if state.has("loras.0.lora_A") else None


class WindowAttention(eqx.Module):
    """Self-attention within windows."""

    qkv: Linear
    proj: Linear
    lora_qkv: LoRA | None
    lora_proj: LoRA | None
    num_heads: int = eqx.field(static=True)

    @classmethod
    def of(cls, state: State, module: swin3d.WindowAttention) -> WindowAttention:
        """Take the weights of upstream's ``WindowAttention``."""
        return cls(
            Linear.of(state.at("qkv")),
            Linear.of(state.at("proj")),
            _lora_of(state.at("lora_qkv"), module.lora_qkv),
            _lora_of(state.at("lora_proj"), module.lora_proj),
            module.num_heads,
        )

    def __call__(self, x: Array, group: np.ndarray | None, step: Array) -> Array:
        """Attend within windows.

        Parameters
        ----------
        x : array, ``(b, w, n, d)``
            Tokens by window.
        group : ndarray, ``(w, n)``, optional
            Tokens of a window attend only to those of the same number.
        step : array
            Rollout step, counted from 0.
        """
        b, w, n, d = x.shape
        qkv = self.qkv(x)
        if self.lora_qkv is not None:
            qkv = qkv + self.lora_qkv(x, step)
        qkv = qkv.reshape(b * w, n, 3, self.num_heads, d // self.num_heads)
        query, key, value = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
        scores = jnp.einsum("whqd,whkd->whqk", query * query.shape[-1] ** -0.5, key)
        scores = scores.astype(jnp.float32)
        if group is not None:
            apart = group[:, :, None] != group[:, None, :]
            scores = scores.reshape(b, w, -1, n, n) + jnp.where(apart, -100.0, 0.0)[None, :, None]
            scores = scores.reshape(b * w, -1, n, n)
        share = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        out = jnp.einsum("whqk,whkd->whqd", share, value)
        out = out.swapaxes(1, 2).reshape(b, w, n, d)
        projected = self.proj(out)
        return projected if self.lora_proj is None else projected + self.lora_proj(out, step)


class AdaptiveLayerNorm(eqx.Module):
    """Layer normalisation with a scale and shift that depend on lead time."""

    ln_modulation: Linear

    @classmethod
    def of(cls, state: State) -> AdaptiveLayerNorm:
        """Take the weights of upstream's ``AdaptiveLayerNorm``."""
        return cls(Linear.of(state.at("ln_modulation.1")))

    def __call__(self, x: Array, context: Array) -> Array:
        """Normalise ``(b, l, d)`` with the context ``(b, d)``, or ``(b, l, d)`` with noise."""
        shift, scale = jnp.split(self.ln_modulation(jax.nn.silu(context)), 2, axis=-1)
        if context.ndim == 2:
            shift, scale = shift[:, None], scale[:, None]
        return layer_norm(x) * scale + shift


class Block(eqx.Module):
    """One Swin block: attention in windows, then an MLP, each with a norm after it."""

    norm1: AdaptiveLayerNorm
    attn: WindowAttention
    norm2: AdaptiveLayerNorm
    fc1: Linear
    fc2: Linear
    window_size: Size = eqx.field(static=True)
    shift_size: Size = eqx.field(static=True)

    @classmethod
    def of(cls, state: State, module: swin3d.Swin3DTransformerBlock) -> Block:
        """Take the weights of upstream's ``Swin3DTransformerBlock``."""
        return cls(
            AdaptiveLayerNorm.of(state.at("norm1")),
            WindowAttention.of(state.at("attn"), module.attn),
            AdaptiveLayerNorm.of(state.at("norm2")),
            Linear.of(state.at("mlp.fc1")),
            Linear.of(state.at("mlp.fc2")),
            tuple(module.window_size),
            tuple(module.shift_size),
        )

    def __call__(self, x: Array, context: Array, size: Size, step: Array, mode: Mode) -> Array:
        """Update the tokens ``(b, l, d)`` of a grid of patches of the given size.

        Attention and MLP are computed in the mode's dtype; what is added to the tokens is float32,
        as under Torch's autocast.
        """
        b, _, d = x.shape
        window, shift = _adjusted(self.window_size, self.shift_size, size)
        padding = [_sides(-n % v) for n, v in zip(size, window, strict=True)]
        grid = x.reshape(b, *size, d)
        if any(shift):
            grid = jnp.roll(grid, [-s for s in shift], axis=(1, 2, 3))
        grid = jnp.pad(grid, [(0, 0), *padding, (0, 0)])
        group = _groups(size, window, shift, padding, wraps=mode.wraps) if any(shift) else None
        grid = _merge_windows(
            self.attn(_split_windows(grid, window).astype(mode.dtype), group, step),
            grid.shape,
            window,
        )
        grid = grid[:, *(slice(p[0], p[0] + n) for p, n in zip(padding, size, strict=True)), :]
        if any(shift):
            grid = jnp.roll(grid, shift, axis=(1, 2, 3))
        x = x + self.norm1(grid.reshape(b, -1, d), context)
        return x + self.norm2(self.fc2(gelu(self.fc1(x.astype(mode.dtype)))), context)


def _adjusted(window: Size, shift: Size, size: Size) -> tuple[Size, Size]:
    """Return window and shift; along an axis that one window covers, nothing is shifted."""
    fits = [n <= w for n, w in zip(size, window, strict=True)]
    own: Any = tuple(n if f else w for n, w, f in zip(size, window, fits, strict=True))
    moved: Any = tuple(0 if f else s for s, f in zip(shift, fits, strict=True))
    return own, moved


def _sides(padding: int) -> tuple[int, int]:
    """Split a padding between both sides; the second takes the odd one."""
    return padding // 2, padding - padding // 2


def _split_windows(grid: _NumPyOrJax, window: Size) -> _NumPyOrJax:
    """Return ``(b, c, h, w, d)`` as windows ``(b, windows, tokens, d)``."""
    b, c, h, w, d = grid.shape
    wc, wh, ww = window
    grid = grid.reshape(b, c // wc, wc, h // wh, wh, w // ww, ww, d)
    return grid.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, wc * wh * ww, d)


def _merge_windows(windows: Array, shape: tuple[int, ...], window: Size) -> Array:
    """Return windows as the grid of the given shape, the inverse of :func:`_split_windows`."""
    b, c, h, w, d = shape
    wc, wh, ww = window
    grid = windows.reshape(b, c // wc, h // wh, w // ww, wc, wh, ww, d)
    return grid.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(shape)


def _groups(
    size: Size, window: Size, shift: Size, padding: list[tuple[int, int]], *, wraps: bool
) -> np.ndarray:
    """Return numbers of tokens by window: after a shift only equal ones are neighbours.

    They are those of ``compute_3d_shifted_window_mask`` (microsoft-aurora 2.0.1,
    ``aurora/model/swin3d.py``): a shifted grid consists of parts that met at its edges. On a grid
    that wraps, the eastern and western parts are neighbours indeed.
    """
    parts = []
    for axis, (n, w, s) in enumerate(zip(size, window, shift, strict=True)):
        part = np.zeros(n, int)
        part[-w:] = 1
        # ``slice(-0, None)`` covers the whole axis in upstream's code, so that an axis without a
        # shift is one part.
        part[-s if s else 0 :] = 2
        if axis == 2 and wraps:
            part[part == 1] = 2
        parts.append(part)
    number = parts[0][:, None, None] * 9 + parts[1][None, :, None] * 3 + parts[2]
    number = np.pad(number, padding, constant_values=27)
    return _split_windows(number[None, ..., None], window)[0, :, :, 0]


class PatchMerging(eqx.Module):
    """Halve the rows and columns of patches."""

    reduction: Linear
    norm: LayerNorm | None

    @classmethod
    def of(cls, state: State) -> PatchMerging:
        """Take the weights of upstream's ``PatchMerging3D``."""
        return cls(
            Linear.of(state.at("reduction")),
            LayerNorm.of(state.at("norm")) if state.has("norm.weight") else None,
        )

    def __call__(self, x: Array, size: Size, dtype: str) -> Array:
        """Map tokens ``(b, c h w, d)`` to ``(b, c h/2 w/2, 2 d)``; odd edges are padded."""
        (b, _, d), (c, h, w) = x.shape, size
        grid = x.reshape(b, c, h, w, d)
        grid = jnp.pad(grid, [(0, 0), (0, 0), _sides(h % 2), _sides(w % 2), (0, 0)])
        h, w = (h + 1) // 2, (w + 1) // 2
        grid = grid.reshape(b, c, h, 2, w, 2, d).transpose(0, 1, 2, 4, 3, 5, 6)
        x = grid.reshape(b, c * h * w, 4 * d)
        return self.reduction((x if self.norm is None else self.norm(x)).astype(dtype))


class PatchSplitting(eqx.Module):
    """Double the rows and columns of patches."""

    lin1: Linear
    lin2: Linear
    norm: LayerNorm

    @classmethod
    def of(cls, state: State) -> PatchSplitting:
        """Take the weights of upstream's ``PatchSplitting3D``."""
        return cls(
            Linear.of(state.at("lin1")), Linear.of(state.at("lin2")), LayerNorm.of(state.at("norm"))
        )

    def __call__(self, x: Array, size: Size, finer: Size, dtype: str) -> Array:
        """Map tokens ``(b, c h w, d)`` to those of a finer grid of patches, ``(b, ..., d/2)``."""
        (c, h, w), (_, rows, columns) = size, finer
        x = self.lin1(x.astype(dtype))
        b, _, d = x.shape
        grid = x.reshape(b, c, h, w, 2, 2, d // 4).transpose(0, 1, 2, 4, 3, 5, 6)
        grid = grid.reshape(b, c, 2 * h, 2 * w, d // 4)
        top, left = _sides(2 * h - rows)[0], _sides(2 * w - columns)[0]
        grid = grid[:, :, top : top + rows, left : left + columns]
        return self.lin2(self.norm(grid.reshape(b, -1, d // 4)).astype(dtype))


class Stage(eqx.Module):
    """Blocks on one grid of patches, and the change to the next grid."""

    blocks: list[Block]
    downsample: PatchMerging | None
    upsample: PatchSplitting | None

    @classmethod
    def of(cls, state: State, module: swin3d.BasicLayer3D) -> Stage:
        """Take the weights of upstream's ``BasicLayer3D``."""
        down, up = state.at("downsample"), state.at("upsample")
        return cls(
            [Block.of(state.at(f"blocks.{i}"), own) for i, own in enumerate(module.blocks)],
            PatchMerging.of(down) if module.downsample is not None else None,
            PatchSplitting.of(up) if module.upsample is not None else None,
        )

    def __call__(self, x: Array, context: Array, size: Size, step: Array, mode: Mode) -> Array:
        """Run the blocks on the tokens ``(b, l, d)``, without the change to the next grid."""

        def run(block: Block, x: Array, context: Array) -> Array:
            return block(x, context, size, step, mode)

        for block in self.blocks:
            x = (jax.checkpoint(run) if mode.recompute else run)(block, x, context)
        return x


def _stages_of(state: State, layers: Iterable[swin3d.BasicLayer3D]) -> list[Stage]:
    return [Stage.of(state.at(str(i)), own) for i, own in enumerate(layers)]


class Backbone(eqx.Module):
    """The U-net of Swin stages."""

    time_mlp: Sequential
    noise_mlp: Sequential | None
    encoder_layers: list[Stage]
    decoder_layers: list[Stage]
    context_down_layers: list[PatchMerging]

    @classmethod
    def of(cls, state: State, module: swin3d.Swin3DTransformerBackbone) -> Backbone:
        """Take the weights of upstream's ``Swin3DTransformerBackbone``."""
        stochastic = module.stochastic
        down = module.context_down_layers if stochastic else ()
        return cls(
            Sequential.of(state.at("time_mlp"), "silu"),
            Sequential.of(state.at("noise_mlp"), "silu") if stochastic else None,
            _stages_of(state.at("encoder_layers"), module.encoder_layers),
            _stages_of(state.at("decoder_layers"), module.decoder_layers),
            [PatchMerging.of(state.at(f"context_down_layers.{i}")) for i in range(len(down))],
        )

    def __call__(
        self,
        x: Array,
        lead_time: Array,
        size: Size,
        step: Array,
        mode: Mode,
        *,
        noise: Array | None = None,
        stages: list[Array] | None = None,
    ) -> Array:
        """Run the backbone.

        Parameters
        ----------
        x : array, ``(b, l, d)``
            Tokens, level by level.
        lead_time : array, ``(b, d)``
            Fourier expansion of the lead time.
        size : tuple of int
            Levels, rows and columns of patches.
        step : array
            Rollout step, counted from 0.
        mode : Mode
        noise : array, ``(b, l, d)``, optional
            Noise of a member, for a model that takes it.
        stages : list, optional
            The output of every stage is appended to it.

        Returns
        -------
        array, ``(b, l, 2 d)``
        """
        context = self.time_mlp(lead_time.astype(mode.dtype))
        if self.noise_mlp is not None and noise is not None:
            context = context[:, None] + self.noise_mlp(noise.astype(mode.dtype))
        sizes = [size]
        for _ in self.encoder_layers[1:]:
            c, h, w = sizes[-1]
            sizes.append((c, (h + 1) // 2, (w + 1) // 2))

        def blocks(stage: Stage, x: Array, context: Array, size: Size) -> Array:
            x = stage(x, context, size, step, mode)
            if stages is not None:
                stages.append(x)
            return x

        skips, contexts = [], []
        for i, stage in enumerate(self.encoder_layers):
            contexts.append(context)
            x = blocks(stage, x, context, sizes[i])
            skips.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x, sizes[i], mode.dtype)
                if self.context_down_layers:
                    context = self.context_down_layers[i](context, sizes[i], mode.dtype)
        last = len(self.decoder_layers) - 1
        for i, stage in enumerate(self.decoder_layers):
            place = last - i
            x = blocks(stage, x, context, sizes[place])
            if stage.upsample is not None:
                x = stage.upsample(x, sizes[place], sizes[place - 1], mode.dtype)
            if 0 < i < last:
                x = x + skips[place - 1]
            elif i == last:
                x = jnp.concatenate([x, skips[0]], axis=-1)
            if self.context_down_layers:
                context = contexts[place - 1]
        return x

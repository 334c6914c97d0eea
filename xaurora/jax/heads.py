"""The heads in JAX: their trunks, and the parameters of their distributions.

How raw output becomes parameters, and every score, is the code of the Torch heads: it is written
for the array namespace (:mod:`xaurora.distributions.namespace`).
"""

from __future__ import annotations

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from xaurora.jax.layers import Array, LayerNorm, Linear, activations, layer_norm
from xaurora.jax.weights import State
from xaurora.model.heads import DistributionHead
from xaurora.model.heads.trunk import LatentMLP, blending_window


class Conv(eqx.Module):
    """A depthwise convolution over patches."""

    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        """Convolve ``(b, d, h, w)``, without padding."""
        out = jax.lax.conv_general_dilated(
            x, self.weight, (1, 1), "VALID", feature_group_count=x.shape[1]
        )
        return out + self.bias[:, None, None]


class Trunk(eqx.Module):
    """:class:`xaurora.model.heads.trunk.LatentMLP` in JAX."""

    norm: LayerNorm | None
    hidden: dict[str, Linear]
    around: Conv | None
    out: Linear
    activation: str = eqx.field(static=True)
    levels: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    patch_size: int = eqx.field(static=True)
    overlap: int = eqx.field(static=True)
    wraps: bool = eqx.field(static=True)

    @classmethod
    def of(cls, state: State, trunk: LatentMLP, *, relu: bool, wraps: bool) -> Trunk:
        """Take the weights of a trunk on a grid that wraps or not."""
        hidden, around = state.at("hidden"), state.at("around")
        return cls(
            LayerNorm.of(state.at("norm")) if state.has("norm.weight") else None,
            {place: Linear.of(hidden.at(place)) for place in hidden.names()},
            Conv(around["weight"], around["bias"]) if around.has("weight") else None,
            Linear.of(state.at("out")),
            "relu" if relu else "gelu",
            trunk.levels,
            trunk.outputs,
            trunk.patch_size,
            trunk.overlap,
            wraps,
        )

    def __call__(self, latents: Array) -> Array:
        """Map latents ``(b, c, hp, wp, d)`` to raw output ``(b, n, h, w)``."""
        latents = latents[:, : self.levels]
        b, _, h, w, _ = latents.shape
        x = latents.transpose(0, 2, 3, 1, 4).reshape(b, h, w, -1)
        layers = list(self.hidden.values())
        if self.norm is not None and layers:
            # The norm's scale and shift are folded into the first layer, as in Torch: normalised
            # latents, which need no gradient, then get none.
            x = layer_norm(x, self.norm.eps)
            layers[0] = _folded(self.norm, layers[0])
        elif self.norm is not None:
            x = self.norm(x)
        for layer in layers:
            x = activations[self.activation](layer(x))
        if self.around is not None:
            reach = self.around.weight.shape[-1] // 2
            near = self.around(self._padded(x, reach).transpose(0, 3, 1, 2))
            x = x + near.transpose(0, 2, 3, 1)
        n, p = self.outputs, self.patch_size
        if not self.overlap:
            grid = self.out(x).reshape(b, h, w, n, p, p).transpose(0, 3, 1, 4, 2, 5)
            return grid.reshape(b, n, h * p, w * p)
        return self._blended(self.out(self._padded(x, 1)))

    def _blended(self, flat: Array) -> Array:
        """Add up overlapping patches ``(b, h, w, n k k)``, the outermost of which are padding."""
        b, h, w, _ = flat.shape
        n, p, kernel = self.outputs, self.patch_size, self.patch_size + 2 * self.overlap
        blocks = flat.reshape(b, h, w, n, kernel, kernel) * self._window(kernel)
        # Patches reach into the next one at most, so that each axis is a sum of two shifted grids.
        # Its first and last patch belong to the padding alone and are left out.
        rest = 2 * p - kernel
        blocks = jnp.pad(blocks, [(0, 0)] * 4 + [(0, rest)] * 2)
        blocks = blocks.reshape(b, h, w, n, 2, p, 2, p).transpose(0, 3, 4, 6, 1, 5, 2, 7)
        rows = blocks[:, :, 0, :, 1:] + blocks[:, :, 1, :, :-1]  # (b, n, 2, h - 1, p, w, p)
        whole = rows[:, :, 0, ..., 1:, :] + rows[:, :, 1, ..., :-1, :]  # (b, n, h - 1, p, w - 1, p)
        whole = whole.reshape(b, n, (h - 1) * p, (w - 1) * p)
        start = self.overlap
        return whole[..., start : start + (h - 2) * p, start : start + (w - 2) * p]

    def _window(self, kernel: int) -> np.ndarray:
        """Return the blending weights ``(k, k)`` of the Torch trunk."""
        return blending_window(self.patch_size, self.overlap).numpy().reshape(kernel, kernel)

    def _padded(self, x: Array, reach: int) -> Array:
        """Return ``(b, h, w, d)`` with ``reach`` more patches on every side."""
        wraps = self.wraps and x.shape[2] >= reach
        x = jnp.pad(x, [(0, 0), (0, 0), (reach, reach), (0, 0)], "wrap" if wraps else "edge")
        return jnp.pad(x, [(0, 0), (reach, reach), (0, 0), (0, 0)], "edge")


def _folded(norm: LayerNorm, layer: Linear) -> Linear:
    """Return a linear layer on normalised values that scales and shifts them first."""
    bias = layer.weight @ norm.bias
    return Linear(layer.weight * norm.weight, bias if layer.bias is None else layer.bias + bias)


def trunks_of(
    state: State, heads: Mapping[str, DistributionHead], *, wraps: bool
) -> dict[str, Trunk]:
    """Return the trunks of heads, by target, from the part ``head.heads`` of a state dict."""
    return {
        name: Trunk.of(
            state.at(f"of_{name}.trunk"),
            head.trunk,
            relu=head.options.activation == "relu",
            wraps=wraps,
        )
        for name, head in heads.items()
    }

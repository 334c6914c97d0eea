"""The layers of Aurora as Equinox modules, with the attribute names of ``aurora.model``.

Each is built by ``of`` from a :class:`~xaurora.jax.weights.State`, which gives the tensors by the
path that upstream's ``state_dict`` has for them.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from xaurora.jax.weights import State

Array = jax.Array


class Linear(eqx.Module):
    """``x Wᵀ + b`` over the last axis."""

    weight: Array
    bias: Array | None

    @classmethod
    def of(cls, state: State) -> Linear:
        """Take the weights of a ``torch.nn.Linear``."""
        return cls(state["weight"], state.get("bias"))

    def __call__(self, x: Array) -> Array:
        """Map ``(..., in)`` to ``(..., out)``, in the dtype of ``x``."""
        # As one matrix: with several leading axes, the gradient of the weight is slow on a CPU.
        flat = x.reshape(-1, x.shape[-1]) @ self.weight.astype(x.dtype).T
        out = flat.reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias.astype(x.dtype)


def layer_norm(x: Array, eps: float = 1e-5) -> Array:
    """Return ``x`` normalised over its last axis, computed in at least float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps)


class LayerNorm(eqx.Module):
    """Layer normalisation with scale and shift."""

    weight: Array
    bias: Array
    eps: float = eqx.field(static=True)

    @classmethod
    def of(cls, state: State, eps: float = 1e-5) -> LayerNorm:
        """Take the weights of a ``torch.nn.LayerNorm``."""
        return cls(state["weight"], state["bias"], eps)

    def __call__(self, x: Array) -> Array:
        """Normalise the last axis of ``(..., d)``; the dtype of ``x`` is kept."""
        return (layer_norm(x, self.eps) * self.weight + self.bias).astype(x.dtype)


class Sequential(eqx.Module):
    """Linear layers with an activation between them, named by their place as in Torch."""

    layers: dict[str, Linear]
    activation: str = eqx.field(static=True)

    @classmethod
    def of(cls, state: State, activation: str) -> Sequential:
        """Take the two linear layers of ``Sequential(Linear, activation, Linear)``."""
        return cls({place: Linear.of(state.at(place)) for place in ("0", "2")}, activation)

    def __call__(self, x: Array) -> Array:
        """Map ``(..., d)`` to ``(..., d)``."""
        return self.layers["2"](activations[self.activation](self.layers["0"](x)))


def gelu(x: Array) -> Array:
    """Return the exact GELU, with the error function."""
    return jax.nn.gelu(x, approximate=False)


activations = {"gelu": gelu, "silu": jax.nn.silu, "relu": jax.nn.relu}


class PerceiverAttention(eqx.Module):
    """Cross-attention of a few queries to a few tokens, separately at every patch."""

    to_q: Linear
    to_kv: Linear
    to_out: Linear
    ln_k: LayerNorm | None
    ln_q: LayerNorm | None
    num_heads: int = eqx.field(static=True)

    @classmethod
    def of(cls, state: State, num_heads: int) -> PerceiverAttention:
        """Take the weights of upstream's ``PerceiverAttention``."""
        normalised = state.has("ln_k.weight")
        return cls(
            Linear.of(state.at("to_q")),
            Linear.of(state.at("to_kv")),
            Linear.of(state.at("to_out")),
            LayerNorm.of(state.at("ln_k")) if normalised else None,
            LayerNorm.of(state.at("ln_q")) if normalised else None,
            num_heads,
        )

    def __call__(self, latents: Array, x: Array) -> Array:
        """Attend from ``(l or 1, q, d)`` to ``(l, k, d)``; return ``(l, q, d)``.

        Queries that are the same at every patch are given once. Their scores are then one matrix
        product per head. Products over the few tokens of one patch are written as sums: as batched
        products they are thousands of tiny matrices, which XLA runs one after another on a CPU.
        """
        query, (key, value) = self.to_q(latents), jnp.split(self.to_kv(x), 2, axis=-1)
        if self.ln_k is not None and self.ln_q is not None:
            key, query = self.ln_k(key), self.ln_q(query)

        def heads(v: Array) -> Array:
            return v.reshape(*v.shape[:-1], self.num_heads, -1)

        query, key, value = heads(query), heads(key), heads(value)
        scale = query.shape[-1] ** -0.5
        if query.shape[0] == 1:
            scores = jnp.einsum("qhd,lkhd->lqkh", query[0] * scale, key)
        else:
            scores = jnp.sum((query * scale)[:, :, None] * key[:, None], axis=-1)
        share = jax.nn.softmax(scores.astype(jnp.float32), axis=2).astype(x.dtype)
        out = jnp.sum(share[..., None] * value[:, None], axis=2)
        return self.to_out(out.reshape(*out.shape[:2], -1))


class PerceiverLayer(eqx.Module):
    """One layer of the resampler: attention, MLP, and a norm after each."""

    attention: PerceiverAttention
    mlp: Sequential
    norm_attention: LayerNorm
    norm_mlp: LayerNorm

    def __call__(self, latents: Array, x: Array) -> Array:
        """Update the latents ``(l or 1, q, d)`` from the tokens ``(l, k, d)``."""
        latents = self.norm_attention(self.attention(latents, x)) + latents
        return self.norm_mlp(self.mlp(latents)) + latents


class PerceiverResampler(eqx.Module):
    """Layers that read the tokens of a patch into its latents."""

    layers: list[PerceiverLayer]

    @classmethod
    def of(cls, state: State, num_heads: int, eps: float) -> PerceiverResampler:
        """Take the weights of upstream's ``PerceiverResampler``."""
        layers: list[PerceiverLayer] = []
        while state.has(f"layers.{len(layers)}.0.to_q.weight"):
            own = state.at(f"layers.{len(layers)}")
            layers.append(
                PerceiverLayer(
                    PerceiverAttention.of(own.at("0"), num_heads),
                    Sequential.of(own.at("1.net"), "gelu"),
                    LayerNorm.of(own.at("2"), eps),
                    LayerNorm.of(own.at("3"), eps),
                )
            )
        return cls(layers)

    def __call__(self, latents: Array, x: Array) -> Array:
        """Read the tokens ``(l, k, d)`` into the latents; return ``(l, q, d)``."""
        for layer in self.layers:
            latents = layer(latents, x)
        return latents

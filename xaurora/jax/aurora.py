"""Aurora's forward pass: encoder, backbone, decoder, normalisation and rollout.

It follows ``aurora.model`` (microsoft-aurora 2.0.1). Fourier expansions depend on the grid and the
time alone, so they are computed beforehand by upstream's own functions in float64
(:mod:`xaurora.jax.encodings`): one unit in the last digit of a patch's area changes its encoding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from aurora import Aurora as TorchAurora

from xaurora.jax.backbone import Backbone, Mode, Size
from xaurora.jax.encodings import Encodings
from xaurora.jax.layers import Array, LayerNorm, Linear, PerceiverResampler, Sequential
from xaurora.jax.settings import Settings, settings_of
from xaurora.jax.weights import State

if TYPE_CHECKING:
    from aurora.model.decoder import Perceiver3DDecoder
    from aurora.model.encoder import Perceiver3DEncoder

LOG_FLOOR = 1e-3
"""Added before the logarithm of a log-scaled variable (``aurora/normalisation.py``)."""


class Frames(NamedTuple):
    """A state with its history, or a prediction, in physical units.

    ``surface`` has arrays ``(b, t, h, w)`` by variable, ``atmos`` ``(b, t, c, h, w)``.
    """

    surface: dict[str, Array]
    atmos: dict[str, Array]


class PatchEmbed(eqx.Module):
    """Embed the patches of several variables and times as one token each."""

    weights: dict[str, Array]
    bias: Array

    @classmethod
    def of(cls, state: State) -> PatchEmbed:
        """Take the weights of upstream's ``LevelPatchEmbed``."""
        own = state.at("weights")
        return cls({name: own[name] for name in own.names()}, state["bias"])

    def __call__(self, x: Array, names: Sequence[str]) -> Array:
        """Map ``(n, v, t, h, w)`` to tokens ``(n, l, d)``."""
        n, v, t, h, w = x.shape
        kernel = jnp.concatenate([self.weights[name][:, :, :t] for name in names], axis=1)
        p = kernel.shape[-1]
        patches = x.reshape(n, v, t, h // p, p, w // p, p).transpose(0, 3, 5, 1, 2, 4, 6)
        patches = patches.reshape(n, (h // p) * (w // p), v * t * p * p)
        return patches @ kernel.reshape(kernel.shape[0], -1).T + self.bias


class Encoder(eqx.Module):
    """Upstream's ``Perceiver3DEncoder``: fields to latents of every patch."""

    atmos_latents: Array
    surf_level_encoding: Array
    surf_mlp: Sequential
    surf_norm: LayerNorm
    pos_embed: Linear
    scale_embed: Linear
    lead_time_embed: Linear
    absolute_time_embed: Linear
    atmos_levels_embed: Linear
    surf_token_embeds: PatchEmbed
    atmos_token_embeds: PatchEmbed
    level_agg: PerceiverResampler

    @classmethod
    def of(cls, state: State, module: Perceiver3DEncoder) -> Encoder:
        """Take the weights of upstream's encoder."""
        first = module.level_agg.layers[0]
        return cls(
            state["atmos_latents"],
            state["surf_level_encoding"],
            Sequential.of(state.at("surf_mlp.net"), "gelu"),
            LayerNorm.of(state.at("surf_norm")),
            Linear.of(state.at("pos_embed")),
            Linear.of(state.at("scale_embed")),
            Linear.of(state.at("lead_time_embed")),
            Linear.of(state.at("absolute_time_embed")),
            Linear.of(state.at("atmos_levels_embed")),
            PatchEmbed.of(state.at("surf_token_embeds")),
            PatchEmbed.of(state.at("atmos_token_embeds")),
            PerceiverResampler.of(state.at("level_agg"), first[0].num_heads, first[2].eps),
        )

    def __call__(
        self,
        surface: dict[str, Array],
        static: dict[str, Array],
        atmos: dict[str, Array],
        place: Encodings,
    ) -> Array:
        """Encode normalised fields.

        Parameters
        ----------
        surface : dict of array, ``(b, t, h, w)``
        static : dict of array, ``(h, w)``
        atmos : dict of array, ``(b, t, c, h, w)``
        place : Encodings

        Returns
        -------
        array, ``(b, levels l, d)``
            Tokens, the surface first.
        """
        b, t, c, h, w = next(iter(atmos.values())).shape
        still = [jnp.broadcast_to(v, (b, t, h, w)) for v in static.values()]
        stacked = jnp.stack([*surface.values(), *still], axis=1)
        x_surf = self.surf_token_embeds(stacked, [*surface, *static]) + self.surf_level_encoding
        x_surf = x_surf + self.surf_norm(self.surf_mlp(x_surf))

        columns = jnp.stack(list(atmos.values()), axis=1)  # (b, v, t, c, h, w)
        columns = columns.transpose(0, 3, 1, 2, 4, 5).reshape(b * c, len(atmos), t, h, w)
        tokens = self.atmos_token_embeds(columns, list(atmos))
        d = tokens.shape[-1]
        tokens = tokens.reshape(b, c, -1, d) + self.atmos_levels_embed(place.levels)[:, None]
        by_patch = tokens.swapaxes(1, 2).reshape(-1, c, d)
        latents = self.level_agg(self.atmos_latents[None], by_patch)
        latents = latents.reshape(b, -1, latents.shape[1], d).swapaxes(1, 2)

        x = jnp.concatenate([x_surf[:, None], latents], axis=1)
        x = x + self.pos_embed(place.position) + self.scale_embed(place.scale)
        x = x.reshape(b, -1, d)
        at = self.lead_time_embed(place.lead_time)[:, None]
        return x + at + self.absolute_time_embed(place.time)[:, None]


class Decoder(eqx.Module):
    """Upstream's ``Perceiver3DDecoder``: latents to fields."""

    level_decoder: PerceiverResampler
    surf_heads: dict[str, Linear]
    atmos_heads: dict[str, Linear]
    atmos_levels_embed: Linear

    @classmethod
    def of(cls, state: State, module: Perceiver3DDecoder) -> Decoder:
        """Take the weights of upstream's decoder."""
        first = module.level_decoder.layers[0]
        surface, atmos = state.at("surf_heads"), state.at("atmos_heads")
        return cls(
            PerceiverResampler.of(state.at("level_decoder"), first[0].num_heads, first[2].eps),
            {name: Linear.of(surface.at(name)) for name in surface.names()},
            {name: Linear.of(atmos.at(name)) for name in atmos.names()},
            Linear.of(state.at("atmos_levels_embed")),
        )

    def __call__(
        self,
        x: Array,
        size: Size,
        place: Encodings,
        surface: Sequence[str],
        atmos: Sequence[str],
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Decode tokens ``(b, levels l, d)``.

        Returns
        -------
        tuple of dict
            Normalised surface fields ``(b, h, w)`` and atmospheric fields ``(b, c, h, w)``.
        """
        b, _, d = x.shape
        levels, rows, columns = size
        latents = x.reshape(b, levels, rows * columns, d)
        flat = self._heads(self.surf_heads, surface, latents[:, 0])
        fields = _unpatchify(flat[:, None], len(surface), rows, columns)
        found = {name: fields[:, i, 0] for i, name in enumerate(surface)}
        if not atmos:
            return found, {}
        queries = self.atmos_levels_embed(place.levels_out)[None]
        tokens = latents[:, 1:].swapaxes(1, 2).reshape(b * rows * columns, levels - 1, d)
        decoded = self.level_decoder(queries, tokens)  # (b l, c, d)
        flat = self._heads(self.atmos_heads, atmos, decoded)
        flat = flat.reshape(b, rows * columns, *flat.shape[1:]).swapaxes(1, 2)
        fields = _unpatchify(flat, len(atmos), rows, columns)
        return found, {name: fields[:, i] for i, name in enumerate(atmos)}

    @staticmethod
    def _heads(heads: dict[str, Linear], names: Sequence[str], x: Array) -> Array:
        """Return ``(..., v p p)``: the linear heads of all variables, as one matrix product."""
        chosen = [heads[name] for name in names]
        whole = Linear(
            jnp.concatenate([head.weight for head in chosen]),
            jnp.concatenate([head.bias for head in chosen if head.bias is not None]),
        )
        return whole(x)


def _unpatchify(flat: Array, variables: int, rows: int, columns: int) -> Array:
    """Return patches ``(b, c, l, v p p)`` as fields ``(b, v, c, h, w)``."""
    b, c, _, _ = flat.shape
    p = math.isqrt(flat.shape[-1] // variables)
    grid = flat.reshape(b, c, rows, columns, variables, p, p).transpose(0, 4, 1, 2, 5, 3, 6)
    return grid.reshape(b, variables, c, rows * p, columns * p)


class Aurora(eqx.Module):
    """Aurora's forward pass on physical fields."""

    encoder: Encoder
    backbone: Backbone
    decoder: Decoder
    settings: Settings = eqx.field(static=True)

    @classmethod
    def of(cls, state: State, base: TorchAurora, levels: Sequence[float]) -> Aurora:
        """Take the weights of an upstream Aurora.

        Raises
        ------
        CheckpointError
            If the weights lack a tensor, or hold one that has no place.
        OptionError
            If the model uses what this engine lacks.
        """
        settings = settings_of(base, levels)
        made = cls(
            Encoder.of(state.at("encoder"), base.encoder),
            Backbone.of(state.at("backbone"), base.backbone),
            Decoder.of(state.at("decoder"), base.decoder),
            settings,
        )
        state.check_all_taken()
        return made

    @property
    def out_surface(self) -> tuple[str, ...]:
        """Surface variables that it predicts, in the decoder's order."""
        return self.settings.surf_vars

    def size(self, shape: tuple[int, int]) -> Size:
        """Return the levels, rows and columns of the latents of a grid of this shape."""
        p = self.settings.patch_size
        return self.settings.latent_levels, shape[0] // p, shape[1] // p

    def normalised(self, frames: Frames) -> Frames:
        """Return the fields as the encoder takes them."""
        own = self.settings
        stats = dict(own.surface_stats)
        surface = {}
        for name, values in frames.surface.items():
            x = (
                jnp.log(values + LOG_FLOOR) - math.log(LOG_FLOOR)
                if name in own.log_scaled
                else values
            )
            surface[name] = (x - stats[name][0]) / stats[name][1]
        for name in own.output_only:
            surface[name] = jnp.zeros_like(next(iter(surface.values())))
        atmos = {}
        for name, values in frames.atmos.items():
            location, scale = self._atmos(name)
            atmos[name] = (values - location) / scale
        return Frames(surface, atmos)

    def physical(self, surface: dict[str, Array], atmos: dict[str, Array]) -> Frames:
        """Return a prediction in physical units, with a time axis."""
        own = self.settings
        stats = dict(own.surface_stats)
        out_surface, out_atmos = {}, {}
        for name, values in surface.items():
            x = values.astype(jnp.float32) * stats[name][1] + stats[name][0]
            out_surface[name] = (LOG_FLOOR * (jnp.exp(x) - 1) if name in own.log_scaled else x)[
                :, None
            ]
        for name, values in atmos.items():
            location, scale = self._atmos(name)
            out_atmos[name] = (values.astype(jnp.float32) * scale + location)[:, None]
        return Frames(out_surface, out_atmos)

    def _atmos(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        pairs = np.asarray(dict(self.settings.atmos_stats)[name], np.float32)
        return pairs[:, 0, None, None], pairs[:, 1, None, None]

    def latents(
        self,
        frames: Frames,
        static: dict[str, Array],
        place: Encodings,
        step: Array,
        noise: Array | None = None,
        stages: list[Array] | None = None,
    ) -> Array:
        """Return what the backbone gives to the decoder, ``(b, levels l, 2 d)``, float32."""
        inputs = self.normalised(frames)
        stats = dict(self.settings.surface_stats)
        still = {n: (v - stats[n][0]) / stats[n][1] for n, v in static.items()}
        own = self.settings
        encode = jax.checkpoint(Encoder.__call__) if own.recompute else Encoder.__call__
        x = encode(self.encoder, inputs.surface, still, inputs.atmos, place)
        if stages is not None:
            stages.append(x)
        h, w = next(iter(frames.surface.values())).shape[-2:]
        x = self.backbone(
            x,
            place.lead_time,
            self.size((h, w)),
            step,
            Mode(own.wraps, own.recompute, own.backbone_dtype),
            noise=noise,
            stages=stages,
        )
        return x.astype(jnp.float32)

    def decode(
        self,
        latents: Array,
        shape: tuple[int, int],
        place: Encodings,
        atmos: Sequence[str] | None = None,
    ) -> Frames:
        """Return the prediction ``(b, 1, ...)``, by default with all atmospheric variables."""
        names = self.settings.atmos_vars if atmos is None else tuple(atmos)

        def decode(
            decoder: Decoder, latents: Array, place: Encodings
        ) -> tuple[dict[str, Array], dict[str, Array]]:
            return decoder(latents, self.size(shape), place, self.out_surface, names)

        run = jax.checkpoint(decode) if self.settings.recompute else decode
        return self.physical(*run(self.decoder, latents, place))

    def __call__(
        self,
        frames: Frames,
        static: dict[str, Array],
        place: Encodings,
        step: Array,
        noise: Array | None = None,
    ) -> Frames:
        """Return the prediction one step after the frames, ``(b, 1, ...)``."""
        h, w = next(iter(frames.surface.values())).shape[-2:]
        return self.decode(self.latents(frames, static, place, step, noise), (h, w), place)

    def advance(self, frames: Frames, prediction: Frames) -> Frames:
        """Return the next input: the history without its oldest frame, and the prediction."""
        limits = {name: (low, high) for name, low, high in self.settings.clipping}

        def following(name: str, before: Array, after: Array) -> Array:
            low, high = limits.get(name, (None, None))
            after = after if low is None and high is None else jnp.clip(after, low, high)
            return jnp.concatenate([before[:, 1:], after], axis=1)

        return Frames(
            {n: following(n, v, prediction.surface[n]) for n, v in frames.surface.items()},
            {n: following(n, v, prediction.atmos[n]) for n, v in frames.atmos.items()},
        )


def with_mode(model: Aurora, mode: Mode) -> Aurora:
    """Return the model with its backbone, encoder and decoder run in another way."""
    settings = model.settings._replace(
        wraps=mode.wraps, recompute=mode.recompute, backbone_dtype=mode.dtype
    )
    return dataclasses.replace(model, settings=settings)

"""What a model knows beside its weights, and which models the engine supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aurora import Aurora as TorchAurora
from aurora import AuroraV1p5

from xaurora.errors import OptionError
from xaurora.model.normalisation import atmos_statistics, surface_statistics
from xaurora.model.tiny import TinyAurora

_HOOKS = (
    "batch_transform_hook",
    "_pre_norm_hook",
    "_pre_encoder_hook",
    "_post_decoder_hook",
    "_post_unnorm_hook",
)
"""Methods of upstream's Aurora that subclasses replace."""


class Settings(NamedTuple):
    """What a model knows beside its weights; hashable, so that it selects a compiled program.

    Statistics are pairs of location and scale, by variable and, for atmospheric ones, by level.
    """

    surf_vars: tuple[str, ...]
    static_vars: tuple[str, ...]
    atmos_vars: tuple[str, ...]
    latent_levels: int
    patch_size: int
    surface_stats: tuple[tuple[str, tuple[float, float]], ...]
    atmos_stats: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    log_scaled: tuple[str, ...]
    output_only: tuple[str, ...]
    clipping: tuple[tuple[str, float | None, float | None], ...]
    backbone_dtype: str = "float32"
    wraps: bool = True
    recompute: bool = False


def settings_of(base: TorchAurora, levels: Sequence[float]) -> Settings:
    """Return the settings of an upstream Aurora for data on some levels.

    Raises
    ------
    OptionError
        If the model uses what this engine lacks.
    """
    check_supported(base)
    clipping = base.rollout_input_clipping or {}
    return Settings(
        tuple(base.surf_vars),
        tuple(base.static_vars or ()),
        tuple(base.atmos_vars),
        base.encoder.latent_levels,
        base.patch_size,
        tuple((n, surface_statistics(base, n)) for n in (*base.surf_vars, *base.static_vars)),
        tuple((n, tuple(atmos_statistics(base, n, levels))) for n in base.atmos_vars),
        tuple(getattr(base, "log_transformed_surf_vars", ())),
        tuple(base.output_only_surf_vars),
        tuple((n, own.get("min"), own.get("max")) for n, own in clipping.items()),
    )


def check_supported(base: TorchAurora) -> None:
    """Raise if a model uses what this engine lacks.

    Raises
    ------
    OptionError
        It names all of it.
    """
    known = isinstance(base, TinyAurora | AuroraV1p5)
    own_hooks = [n for n in _HOOKS if getattr(type(base), n) is not getattr(TorchAurora, n)]
    lacks = [
        (base.encoder.level_condition, "weights for each level"),
        (base.encoder.dynamic_vars, "variables made from the time"),
        (base.encoder.atmos_static_vars, "static variables on every level"),
        (base.decoder.separate_perceiver, "a second decoder of levels"),
        (base.decoder.modulation_heads, "modulation heads"),
        (base.positive_surf_vars or base.positive_atmos_vars, "variables clamped at zero"),
        (hasattr(base, "density_channel_surf_vars"), "wave variables"),
        (base.output_only_atmos_vars, "atmospheric variables that it only predicts"),
        (own_hooks and not known, f"hooks of its own ({', '.join(own_hooks)})"),
    ]
    found = [words for used, words in lacks if used]
    if found:
        raise OptionError(
            f"{type(base).__name__} has {', '.join(found)}, which engine='jax' does not support.",
            fix="engine='torch'",
        )

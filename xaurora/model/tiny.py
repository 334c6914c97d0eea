"""A small Aurora for any variables, with its own normalisation.

It serves tests, the demo, and data that no pretrained model takes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from aurora import Aurora, AuroraV1p5, Batch

from xaurora.fields.requirements import Needs
from xaurora.model.batch import GreenwichBatch
from xaurora.model.models import TABLE

TINY_CONFIG: dict[str, Any] = {
    "encoder_depths": (1, 1),
    "decoder_depths": (1, 1),
    "encoder_num_heads": (4, 8),
    "decoder_num_heads": (8, 4),
    "embed_dim": 128,
    "num_heads": 4,
}
"""Shape of the ``tiny`` Aurora: 3.8 million parameters, two stages."""

TINY_V15_CONFIG: dict[str, Any] = {
    "encoder_depths": (1, 1),
    "decoder_depths": (1, 1),
    "encoder_num_heads": (2, 4),
    "decoder_num_heads": (4, 2),
    "embed_dim": 64,
    "num_heads": 2,
}
"""Shape of the ``tiny-v1.5`` Aurora."""

Stats = dict[str, tuple[float, float]]


@dataclasses.dataclass
class _OwnStats(Batch):
    """A Batch that normalises atmospheric variables with its own statistics.

    Upstream keeps the statistics of atmospheric variables in global dicts (microsoft-aurora 2.0.1,
    ``aurora/normalisation.py``), which one model must not change under another.
    ``Aurora.forward`` lets a subclass substitute its own kind of Batch instead.
    """

    atmos_stats: Mapping[str, Stats] = dataclasses.field(default_factory=dict)

    def _atmos_pairs(self, name: str, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [
            self.atmos_stats[name][f"{float(level):g}"] for level in self.metadata.atmos_levels
        ]
        both = torch.tensor(pairs, dtype=like.dtype, device=like.device)
        return both[:, 0, None, None], both[:, 1, None, None]

    def normalise(self, surf_stats: Stats) -> Batch:
        """Return the Batch normalised, with its own statistics for atmospheric variables."""
        flat = Batch(self.surf_vars, self.static_vars, {}, self.metadata).normalise(surf_stats)
        atmos = {}
        for name, values in self.atmos_vars.items():
            location, scale = self._atmos_pairs(name, values)
            atmos[name] = (values - location) / scale
        return dataclasses.replace(flat, atmos_vars=atmos)

    def unnormalise(self, surf_stats: Stats) -> Batch:
        """Return the Batch in physical units, the inverse of :meth:`normalise`."""
        flat = Batch(self.surf_vars, self.static_vars, {}, self.metadata).unnormalise(surf_stats)
        atmos = {}
        for name, values in self.atmos_vars.items():
            location, scale = self._atmos_pairs(name, values)
            atmos[name] = values * scale + location
        return dataclasses.replace(flat, atmos_vars=atmos)

    def _fmap(self, f: Callable[[torch.Tensor], torch.Tensor]) -> _OwnStats:
        moved = Batch._fmap(self, f)
        return _OwnStats(
            moved.surf_vars,
            moved.static_vars,
            moved.atmos_vars,
            moved.metadata,
            atmos_stats=self.atmos_stats,
        )


class TinyAurora(Aurora):
    """A small Aurora for any set of variables and levels, with its own normalisation.

    Parameters
    ----------
    needs : Needs
        Its variables and levels.
    surf_stats : dict
        Mean and standard deviation by surface variable.
    atmos_stats : dict
        Mean and standard deviation by variable and level: ``{"t": {"850": (mean, std)}}``.
    """

    def __init__(self, needs: Needs, surf_stats: Stats, atmos_stats: Mapping[str, Stats]) -> None:
        super().__init__(
            surf_vars=needs.surface,
            static_vars=needs.static,
            atmos_vars=needs.atmos,
            patch_size=needs.patch_size,
            use_lora=False,
            **TINY_CONFIG,
        )
        # Set here and not passed to the constructor, which warns that statistics were changed by
        # hand. Here they are meant to be.
        self.surf_stats = dict(surf_stats)
        self.atmos_stats = {name: dict(by_level) for name, by_level in atmos_stats.items()}
        self.levels = needs.levels

    def _pre_norm_hook(self, batch: Batch) -> Batch:
        return batch if isinstance(batch, GreenwichBatch) else _own(batch, self.atmos_stats)

    def _post_decoder_hook(self, batch: Batch, pred: Batch) -> Batch:
        return _own(pred, self.atmos_stats)


def _own(batch: Batch, atmos_stats: Mapping[str, Stats]) -> _OwnStats:
    return _OwnStats(
        batch.surf_vars,
        batch.static_vars,
        batch.atmos_vars,
        batch.metadata,
        atmos_stats=atmos_stats,
    )


def build_tiny(
    needs: Needs, surf_stats: Stats, atmos_stats: Mapping[str, Stats], seed: int = 0
) -> TinyAurora:
    """Return a ``tiny`` model with random weights that depend only on ``seed``.

    The global random state is unchanged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyAurora(needs, surf_stats, atmos_stats)
        randomise_modulation(model)
    return model


class TinyAuroraV1p5(AuroraV1p5):
    """An Aurora 1.5 with few parameters, in float32, with upstream's own normalisation.

    Parameters
    ----------
    stochastic : bool
        Whether it draws members.
    """

    def __init__(self, *, stochastic: bool = False) -> None:
        super().__init__(
            stochastic=stochastic,
            autocast=False,
            use_fp16_safe_attention=False,
            **TINY_V15_CONFIG,
        )


def build_tiny_v15(*, stochastic: bool, seed: int = 0) -> TinyAuroraV1p5:
    """Return a ``tiny-v1.5`` model with random weights that depend only on ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyAuroraV1p5(stochastic=stochastic)
        randomise_modulation(model)
        for name, parameter in model.decoder.named_parameters():
            # Small outputs, because rain is an exponential of its own.
            if "heads" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    return model


ASSETS = Path(__file__).parents[1] / "assets"


def load_tiny_pretrained() -> TinyAurora:
    """Return the pretrained ``tiny`` model.

    It was pretrained on the state variables of :func:`xaurora.synthetic` under five laws of motion,
    as Aurora was on weather data. ``benchmarks/strategies.py --pretrain`` writes it. Its weights
    are stored in bfloat16.
    """
    from safetensors.torch import load_file

    about = json.loads((ASSETS / "tiny.json").read_text(encoding="utf-8"))
    surface = {name: (float(v[0]), float(v[1])) for name, v in about["surface"].items()}
    atmos = {
        n: {lv: (float(v[0]), float(v[1])) for lv, v in by.items()}
        for n, by in about["atmos"].items()
    }
    model = TinyAurora(TABLE["tiny-pretrained"].needs, surface, atmos)
    state = load_file(ASSETS / "tiny.safetensors")
    model.load_state_dict({name: values.float() for name, values in state.items()})
    return model


def load_tiny_v15_pretrained() -> TinyAuroraV1p5:
    """Return the pretrained ``tiny-v1.5`` model.

    ``benchmarks/rain_v15.py --pretrain`` writes it. Its weights are stored in bfloat16.
    """
    from safetensors.torch import load_file

    model = TinyAuroraV1p5()
    state = load_file(ASSETS / "tiny-v1.5.safetensors")
    model.load_state_dict({name: values.float() for name, values in state.items()})
    return model


def randomise_modulation(model: Aurora, std: float = 0.1) -> None:
    """Randomise the adaptive layer norms of an untrained Aurora, in place.

    They start at zero (``aurora/model/film.py``), so every block is the identity until weights are
    loaded. A frozen random backbone would pass its input through, and tests on it would not test
    attention.
    """
    for name, parameter in model.named_parameters():
        if "ln_modulation" in name:
            torch.nn.init.normal_(parameter, std=std)

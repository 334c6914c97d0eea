"""Small Auroras for tests."""

from __future__ import annotations

import torch
from aurora import Aurora

from xaurora.model.tiny import randomise_modulation


def make_aurora(*, seed: int = 0, **options: object) -> Aurora:
    """A small three-stage Aurora with random weights and awake blocks; its latitude and longitude
    encodings are the real ones.
    """
    torch.manual_seed(seed)
    config: dict = {
        "encoder_depths": (2, 2, 2),
        "decoder_depths": (2, 2, 2),
        "encoder_num_heads": (2, 4, 8),
        "decoder_num_heads": (8, 4, 2),
        "embed_dim": 32,
        "num_heads": 2,
        "use_lora": False,
    }
    model = Aurora(**{**config, **options})
    randomise_modulation(model, std=0.5)
    return model.eval()

"""Options of the verbs, checked where they are made."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

from xaurora.errors import OptionError

PRECISIONS = ("auto", "32", "bf16")


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how to train.

    Parameters
    ----------
    epochs : int, optional
        Passes over the training samples; ten where neither this nor ``steps`` is given.
    steps : int, optional
        Optimiser steps; takes precedence over ``epochs``.
    batch_size : int
        Samples a step.
    learning_rate : float, optional
        Peak rate for all parameters; by default 1e-3 for new ones and 5e-5 for pretrained ones (2e-3 for all of a tiny model).
    warmup : int, optional
        Steps of linear warm-up; by default a twentieth of all, at most 1000.
    clip : float
        Largest norm of the gradient.
    weight_decay : float
        AdamW's.
    base_loss : float
        Weight of the loss on Aurora's own variables, where the strategy moves the base. On tp alone, training ruins the state
        that later leads stand on.
    precision : {"auto", "32", "bf16"}
        Of the backbone; head and score are float32 always. ``auto`` is bf16 on a GPU that has it.
    activation_checkpointing : bool or "auto"
        Recompute instead of store; ``auto`` is on for a GPU when the base trains.
    validations : int
        How often to score the validation samples.
    seed : int
        Of initial weights and sample order.
    progress : bool
        Whether to show a bar.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 1
    learning_rate: float | None = None
    warmup: int | None = None
    clip: float = 1.0
    weight_decay: float = 0.01
    base_loss: float = 1.0
    precision: str = "auto"
    activation_checkpointing: bool | str = "auto"
    validations: int = 10
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("steps", 1),
            ("batch_size", 1),
            ("warmup", 0),
            ("validations", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if (value is None and name not in ("epochs", "steps", "warmup")) or (
                value is not None and not _whole(value, least)
            ):
                raise OptionError(
                    f"{name}={value!r} is no whole number of at least {least}.", fix=f"{name}={max(least, 1)}"
                )
        for name, low in (("learning_rate", 0.0), ("clip", 0.0)):
            value = getattr(self, name)
            if (value is None and name == "clip") or (value is not None and not (_number(value) and value > low)):
                raise OptionError(
                    f"{name}={value!r} is not positive.", fix=f"{name}={5e-5 if name == 'learning_rate' else 1.0}"
                )
        for name in ("base_loss", "weight_decay"):
            if not (_number(getattr(self, name)) and getattr(self, name) >= 0):
                raise OptionError(f"{name}={getattr(self, name)!r} is negative.", fix=f"{name}=0 turns it off")
        check_precision(self.precision)
        if self.activation_checkpointing not in (True, False, "auto"):
            raise OptionError(
                f"activation_checkpointing={self.activation_checkpointing!r} is not True, False or 'auto'.",
                fix="activation_checkpointing='auto'",
            )

    def total_steps(self, samples: int) -> int:
        """Optimiser steps for this many samples."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 10) * -(-samples // self.batch_size)

    def warmup_steps(self, total: int) -> int:
        """Steps of warm-up."""
        return min(self.warmup if self.warmup is not None else min(total // 20, 1000), max(total - 1, 0))


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(float(value))


def _whole(value: Any, least: int) -> bool:
    return _number(value) and float(value).is_integer() and value >= least


def check_precision(precision: Any) -> None:
    """Raise :class:`OptionError` for an unknown precision."""
    if precision not in PRECISIONS:
        raise OptionError(
            f"precision={precision!r} is not among {', '.join(map(repr, PRECISIONS))}.", fix="precision='auto'"
        )


def check_halo(halo: Any) -> int:
    """A halo in grid points."""
    if isinstance(halo, bool) or not isinstance(halo, int) or halo < 0:
        raise OptionError(f"halo={halo!r} is no whole number of grid points.", fix="halo=4")
    return halo

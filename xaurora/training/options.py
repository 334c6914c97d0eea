"""Options of the verbs, checked where they are made."""

from __future__ import annotations

import contextlib
import difflib
import math
import numbers
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from xaurora.errors import OptionError

PRECISIONS = ("auto", "32", "bf16", "fp16")
STRATEGIES = ("frozen", "decoder", "lora", "peft", "full")
"""Names that ``strategy=`` takes."""
LORA_MODES = ("single", "from_second", "all")
PEFT_METHODS = ("lora", "dora", "rslora")
PARALLEL = ("auto", "ddp", "fsdp")
SCHEDULES = ("cosine", "constant")
LATENT_DTYPES = ("bfloat16", "float32")

_OWN = {
    "layers": ("decoder", "peft"),
    "rank": ("lora", "peft"),
    "alpha": ("lora", "peft"),
    "dropout": ("lora", "peft"),
    "mode": ("lora",),
    "method": ("peft",),
}


@dataclass(frozen=True)
class StrategyOptions:
    """What trains, in detail.

    Parameters
    ----------
    name : {"frozen", "decoder", "lora", "peft", "full"}
        The strategy.
    layers : int or tuple of str, optional
        For ``decoder``: how many of the backbone's last decoder layers train beside Aurora's own
        decoder (1), or the names of modules of the decoding half, such as
        ``("backbone.decoder_layers.1", "decoder.surf_heads")``. For ``peft``: the linear layers
        that get an adapter, by the last part of their name or by a module that holds them
        (``("qkv", "proj", "fc1", "fc2")`` of the backbone).
    rank : int, optional
        Of the low-rank matrices; 8.
    alpha : float, optional
        They are scaled by alpha / rank (by alpha / √rank for ``rslora``); by default alpha is the
        rank.
    dropout : float, optional
        On the adapter's input; 0.
    mode : {"single", "from_second", "all"}, optional
        For ``lora``: one LoRA for all rollout steps, one from the second step on, or one a step
        (upstream's ``lora_mode``).
    method : {"lora", "dora", "rslora"}, optional
        For ``peft``.
    """

    name: str = "frozen"
    layers: int | tuple[str, ...] | None = None
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    mode: str | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        if self.name not in STRATEGIES:
            raise OptionError(
                f"there is no strategy {self.name!r}; valid are"
                f" {', '.join(map(repr, STRATEGIES))}.",
                fix="strategy='frozen'",
            )
        for option, names in _OWN.items():
            if getattr(self, option) is not None and self.name not in names:
                raise OptionError(
                    f"the strategy {self.name!r} takes no {option}; it belongs to"
                    f" {', '.join(map(repr, names))}.",
                    fix=(
                        f"StrategyOptions({self.name!r}) without {option}, or"
                        f" StrategyOptions({names[0]!r}, {option}=...)"
                    ),
                )
        if isinstance(self.layers, list):  # JSON knows no tuples
            object.__setattr__(self, "layers", tuple(self.layers))
        if isinstance(self.layers, str):
            object.__setattr__(self, "layers", (self.layers,))
        if self.rank is not None and not _whole(self.rank, 1):
            raise OptionError(
                f"rank={self.rank!r} is no whole number of at least 1.",
                fix=f"StrategyOptions({self.name!r}, rank=8)",
            )
        if self.alpha is not None and not (_number(self.alpha) and self.alpha > 0):
            raise OptionError(
                f"alpha={self.alpha!r} is not positive.",
                fix=f"StrategyOptions({self.name!r}, alpha=8)",
            )
        if self.dropout is not None and not (_number(self.dropout) and 0 <= self.dropout < 1):
            raise OptionError(
                f"dropout={self.dropout!r} is not between 0 and 1.",
                fix=f"StrategyOptions({self.name!r}, dropout=0.1)",
            )
        for option, valid in (("mode", LORA_MODES), ("method", PEFT_METHODS)):
            if getattr(self, option) is not None and getattr(self, option) not in valid:
                raise OptionError(
                    f"{option}={getattr(self, option)!r} is not among"
                    f" {', '.join(map(repr, valid))}.",
                    fix=f"StrategyOptions({self.name!r}, {option}={valid[0]!r})",
                )
        if self.name == "decoder":
            fine = self.layers is None or (
                _whole(self.layers, 0) if not isinstance(self.layers, tuple) else self.layers
            )
        else:
            fine = self.layers is None or (isinstance(self.layers, tuple) and self.layers)
        if not fine or (
            isinstance(self.layers, tuple) and not all(isinstance(v, str) for v in self.layers)
        ):
            raise OptionError(
                f"layers={self.layers!r} are no names of modules"
                + (", nor how many of the last layers." if self.name == "decoder" else "."),
                fix=(
                    "StrategyOptions('decoder', layers=1)"
                    if self.name == "decoder"
                    else "StrategyOptions('peft', layers=('qkv', 'proj'))"
                ),
            )
        # What was left open is settled here, so that what is written down says what was done.
        if self.layers is not None and not isinstance(self.layers, tuple):
            object.__setattr__(self, "layers", int(self.layers))
        if self.name == "decoder" and self.layers is None:
            object.__setattr__(self, "layers", 1)
        if self.name in ("lora", "peft"):
            rank = 8 if self.rank is None else int(self.rank)
            object.__setattr__(self, "rank", rank)
            object.__setattr__(
                self, "alpha", float(rank) if self.alpha is None else float(self.alpha)
            )
            object.__setattr__(self, "dropout", float(self.dropout or 0.0))
        if self.name == "lora" and self.mode is None:
            object.__setattr__(self, "mode", "single")
        if self.name == "peft":
            object.__setattr__(self, "method", self.method or "lora")
            object.__setattr__(self, "layers", self.layers or ("qkv", "proj", "fc1", "fc2"))


def strategy_of(strategy: Any) -> StrategyOptions:
    """Resolve ``strategy=`` of finetune.

    Raises
    ------
    OptionError
        Unknown strategy.

    Examples
    --------
    >>> strategy_of("lora").rank, strategy_of(StrategyOptions("peft", method="dora", rank=4)).alpha
    (8, 4.0)
    """
    if isinstance(strategy, StrategyOptions):
        return strategy
    return StrategyOptions(strategy if isinstance(strategy, str) else repr(strategy))


@dataclass(frozen=True)
class ReplayOptions:
    """A replay buffer: forecasts that go on from forecasts, one step of each at a time (Bodnar et
    al. 2025, supplement D).

    Parameters
    ----------
    size : int
        How many forecasts are kept, on disk.
    refresh : int
        Every so many steps one is replaced by fresh data.
    grow : float
        Share of training after which forecasts may be as long as ``rollout_steps``; until then
        their length grows evenly.
    """

    size: int = 200
    refresh: int = 10
    grow: float = 0.5

    def __post_init__(self) -> None:
        for name in ("size", "refresh"):
            if not _whole(getattr(self, name), 1):
                raise OptionError(
                    f"replay_buffer: {name}={getattr(self, name)!r} is no whole number of at"
                    " least 1.",
                    fix="replay_buffer=ReplayOptions(size=200, refresh=10)",
                )
            object.__setattr__(self, name, int(getattr(self, name)))
        if not (_number(self.grow) and 0 <= self.grow <= 1):
            raise OptionError(
                f"replay_buffer: grow={self.grow!r} is not between 0 and 1.",
                fix="replay_buffer=ReplayOptions(grow=0.5)",
            )


@dataclass(frozen=True)
class LatentOptions:
    """How the latents of a frozen backbone are kept (:mod:`xaurora.training.latents`).

    Parameters
    ----------
    path : str, optional
        The store; by default one beside the run's folder, ``latents/<key>.zarr``, which other runs
        and heads find again.
    dtype : {"bfloat16", "float32"}
        Half the room, or every bit.
    size : float or str, optional
        Most bytes that the store may hold, or in words: ``"200 GB"``; by default half of what is
        free on its disk. Samples that do not fit any more are computed each time; nothing that is
        stored is thrown away.
    """

    path: str | None = None
    dtype: str = "bfloat16"
    size: float | str | None = None

    def __post_init__(self) -> None:
        if self.path is not None:
            if not isinstance(self.path, str | os.PathLike) or not str(self.path):
                raise OptionError(
                    f"latents: path={self.path!r} is no path.", fix="latents='latents.zarr'"
                )
            object.__setattr__(self, "path", os.fspath(self.path))
        if self.dtype not in LATENT_DTYPES:
            raise OptionError(
                f"latents: dtype={self.dtype!r} is not among"
                f" {', '.join(map(repr, LATENT_DTYPES))}.",
                fix="latents=LatentOptions(dtype='float32')",
            )
        if self.size is not None:
            object.__setattr__(self, "size", bytes_of(self.size))


def bytes_of(size: Any) -> float:
    """Bytes of ``2e9`` or ``"2 GB"``.

    Raises
    ------
    OptionError
        It is no amount.

    Examples
    --------
    >>> bytes_of("1.5 GB"), bytes_of("2 MiB")
    (1500000000.0, 2097152.0)
    """
    if _number(size) and size > 0:
        return float(size)
    words = re.fullmatch(r"\s*([0-9.]+)\s*([kMGT]i?)?B\s*", size) if isinstance(size, str) else None
    if words is not None:
        prefix = words[2] or ""
        with contextlib.suppress(ValueError):
            found = float(words[1]) * (1024 if prefix.endswith("i") else 1000) ** " kMGT".index(
                prefix[:1] or " "
            )
            if found > 0:
                return found
    raise OptionError(f"latents: size={size!r} is no amount of bytes.", fix="size='200 GB'")


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
        Samples at once on each device.
    gradient_accumulation : int
        Batches whose gradients are averaged for one step: the memory of one, the effect of all.
    learning_rate : float, optional
        Peak rate; by default 1e-3 for new parameters and 5e-5 for pretrained ones (2e-3 for all of
        a tiny model).
    head_learning_rate : float, optional
        Peak rate of new parameters alone; by default ``learning_rate`` where that is given.
    schedule : {"cosine", "constant"}
        After the warm-up: down to a twentieth along a cosine, or constant.
    warmup : int, optional
        Steps of linear warm-up; by default a twentieth of all, at most 1000.
    clip : float
        Largest norm of the gradient.
    weight_decay : float
        AdamW's.
    base_loss : float
        Weight of the loss on Aurora's own variables, where the strategy moves the base. On tp
        alone, training ruins the state that later leads stand on.
    rollout_steps : int
        Six-hour steps of each training forecast; the losses of all are averaged.
    push_forward : bool
        Stop gradients between steps: each step learns from the state that it was given, and memory
        holds one step.
    replay_buffer : int or ReplayOptions, optional
        Keep so many forecasts and go one step on with one of them at a time; they grow up to
        ``rollout_steps`` long.
    precision : {"auto", "32", "bf16", "fp16"}
        Of the backbone; head and score are float32 always. ``auto`` is bf16 on a GPU that has it,
        else float32. ``fp16`` is for GPUs without bf16: it scales the loss.
    activation_checkpointing : bool or "auto"
        Recompute instead of store; ``auto`` is on for a GPU when the base trains.
    latents : {"auto", True, False}, path or LatentOptions
        Whether the latents of a frozen backbone are computed once and kept; ``auto`` does so where
        the backbone stays as it is and samples are seen more than once.
    compile : bool
        Compile the backbone's blocks with ``torch.compile``.
    ema : float, optional
        Decay of an exponential moving average of the weights, such as 0.999; it is what is
        validated and kept.
    early_stopping : int, optional
        Stop after so many validations without a better score.
    validations : int
        How often to score the validation samples.
    checkpoint_every : int, optional
        Steps between checkpoints to resume from; by default a twentieth of all, at least 10 and at
        most 500.
    resume : bool
        Go on from the checkpoint in ``out``; where there is none, begin.
    devices, num_nodes : int
        Devices on each machine (processes where there is no GPU), and machines.
    parallel : {"auto", "ddp", "fsdp"}
        How several devices share the work: each holds the model (``auto``, ``ddp``), or a part of
        it.
    workers : int
        Threads that read ahead; 0 reads when needed.
    seed : int
        Of initial weights, sample order and dropout.
    progress : bool
        Whether to show a bar.
    logger : optional
        One of Lightning Fabric's loggers, or several.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 1
    gradient_accumulation: int = 1
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    schedule: str = "cosine"
    warmup: int | None = None
    clip: float = 1.0
    weight_decay: float = 0.01
    base_loss: float = 1.0
    rollout_steps: int = 1
    push_forward: bool = False
    replay_buffer: int | ReplayOptions | None = None
    precision: str = "auto"
    activation_checkpointing: bool | str = "auto"
    latents: Any = "auto"
    compile: bool = False
    ema: float | None = None
    early_stopping: int | None = None
    validations: int = 10
    checkpoint_every: int | None = None
    resume: bool = False
    devices: int = 1
    num_nodes: int = 1
    parallel: str = "auto"
    workers: int = 2
    seed: int = 0
    progress: bool = True
    logger: Any = None

    def __post_init__(self) -> None:
        optional = ("epochs", "steps", "warmup", "early_stopping", "checkpoint_every")
        for name, least in (
            ("epochs", 1),
            ("steps", 1),
            ("batch_size", 1),
            ("gradient_accumulation", 1),
            ("warmup", 0),
            ("rollout_steps", 1),
            ("early_stopping", 1),
            ("validations", 1),
            ("checkpoint_every", 1),
            ("devices", 1),
            ("num_nodes", 1),
            ("workers", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if (value is None and name not in optional) or (
                value is not None and not _whole(value, least)
            ):
                raise OptionError(
                    f"{name}={value!r} is no whole number of at least {least}.",
                    fix=f"{name}={max(least, 1)}",
                )
            if value is not None:
                object.__setattr__(
                    self, name, int(value)
                )  # 2.0 and NumPy's numbers are whole, and JSON knows neither
        if self.seed >= 2**31:
            raise OptionError(
                f"seed={self.seed} is larger than random generators take.", fix="seed=0"
            )
        for name in ("learning_rate", "head_learning_rate", "clip"):
            value = getattr(self, name)
            if (value is None and name == "clip") or (
                value is not None and not (_number(value) and value > 0)
            ):
                raise OptionError(
                    f"{name}={value!r} is not positive.",
                    fix=f"{name}={1.0 if name == 'clip' else 5e-5}",
                )
        for name in ("base_loss", "weight_decay"):
            if not (_number(getattr(self, name)) and getattr(self, name) >= 0):
                raise OptionError(
                    f"{name}={getattr(self, name)!r} is negative.", fix=f"{name}=0 turns it off"
                )
        if self.ema is not None and not (_number(self.ema) and 0 < self.ema < 1):
            raise OptionError(f"ema={self.ema!r} is no decay between 0 and 1.", fix="ema=0.999")
        for name, valid in (("schedule", SCHEDULES), ("parallel", PARALLEL)):
            if getattr(self, name) not in valid:
                raise OptionError(
                    f"{name}={getattr(self, name)!r} is not among {', '.join(map(repr, valid))}.",
                    fix=f"{name}={valid[0]!r}",
                )
        for name in ("push_forward", "resume", "progress", "compile"):
            if getattr(self, name) not in (True, False):
                raise OptionError(
                    f"{name}={getattr(self, name)!r} is neither True nor False.", fix=f"{name}=True"
                )
        for name in (
            "learning_rate",
            "head_learning_rate",
            "clip",
            "base_loss",
            "weight_decay",
            "ema",
        ):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("push_forward", "resume", "progress", "compile"):
            object.__setattr__(self, name, bool(getattr(self, name)))
        if isinstance(self.activation_checkpointing, int):
            object.__setattr__(
                self, "activation_checkpointing", bool(self.activation_checkpointing)
            )
        loggers = (
            self.logger
            if isinstance(self.logger, list | tuple)
            else [self.logger]
            if self.logger
            else []
        )
        if not all(callable(getattr(one, "log_metrics", None)) for one in loggers):
            raise OptionError(
                f"logger={self.logger!r} is none of Lightning Fabric's loggers.",
                fix="logger=lightning_fabric.loggers.CSVLogger('logs')",
            )
        check_precision(self.precision)
        if self.activation_checkpointing not in (True, False, "auto"):
            raise OptionError(
                f"activation_checkpointing={self.activation_checkpointing!r} is not True, False or"
                " 'auto'.",
                fix="activation_checkpointing='auto'",
            )
        if isinstance(self.latents, str | os.PathLike) and self.latents != "auto":
            object.__setattr__(self, "latents", LatentOptions(path=os.fspath(self.latents)))
        if not isinstance(self.latents, LatentOptions | bool) and self.latents != "auto":
            raise OptionError(
                f"latents={self.latents!r} is neither True, False, 'auto', a path, nor"
                " LatentOptions.",
                fix="latents='auto'",
            )
        if self.replay_buffer is not None and not isinstance(self.replay_buffer, ReplayOptions):
            if not _whole(self.replay_buffer, 1):
                raise OptionError(
                    f"replay_buffer={self.replay_buffer!r} is no number of forecasts to keep.",
                    fix="replay_buffer=200",
                )
            object.__setattr__(self, "replay_buffer", ReplayOptions(int(self.replay_buffer)))
        if (
            self.replay is not None
            and self.replay.size < self.batch_size * self.gradient_accumulation
        ):
            raise OptionError(
                f"replay_buffer: size={self.replay.size} holds fewer forecasts than a step takes"
                f" ({self.batch_size * self.gradient_accumulation}).",
                fix="replay_buffer=200",
            )
        if self.push_forward and self.rollout_steps == 1:
            raise OptionError(
                "push_forward=True stops gradients between steps, and rollout_steps=1 has but one.",
                fix="rollout_steps=3",
            )
        if self.replay_buffer is not None and self.rollout_steps == 1:
            raise OptionError(
                "replay_buffer= is for forecasts of several steps, and rollout_steps=1 has but"
                " one.",
                fix="rollout_steps=8",
            )
        if self.replay_buffer is not None and self.push_forward:
            raise OptionError(
                "a replay buffer goes one step at a time, so that push_forward=True has nothing to"
                " stop.",
                fix="leave push_forward out",
            )
        if self.precision == "fp16" and self.parallel == "fsdp":
            raise OptionError(
                "precision='fp16' scales the loss, which parallel='fsdp' does not do here.",
                fix="precision='bf16', or parallel='ddp'",
            )

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.devices * self.num_nodes

    @property
    def samples_a_step(self) -> int:
        """Samples of one optimiser step, over all devices."""
        return self.batch_size * self.gradient_accumulation * self.world_size

    @property
    def replay(self) -> ReplayOptions | None:
        """The replay buffer, if there is one."""
        return self.replay_buffer if isinstance(self.replay_buffer, ReplayOptions) else None

    def total_steps(self, samples: int) -> int:
        """Optimiser steps for this many samples."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 10) * -(-samples // self.samples_a_step)

    def warmup_steps(self, total: int) -> int:
        """Steps of warm-up."""
        return min(
            self.warmup if self.warmup is not None else min(total // 20, 1000), max(total - 1, 0)
        )

    def checkpoint_steps(self, total: int) -> int:
        """Steps between checkpoints."""
        return self.checkpoint_every or min(max(total // 20, 10), 500)


def training_options(options: Mapping[str, Any]) -> TrainingOptions:
    """:class:`TrainingOptions` of keyword arguments.

    Raises
    ------
    OptionError
        One is unknown, or has a value that is not valid.
    """
    valid = [f.name for f in fields(TrainingOptions)]
    if unknown := [name for name in options if name not in valid]:
        close = difflib.get_close_matches(unknown[0], [*valid, *_MEANT], n=1)
        meant = _MEANT.get(close[0], close[0]) if close else "steps"
        raise OptionError(
            f"finetune takes no {unknown[0]}=; valid are target, truth, model, weights, strategy,"
            f" head, as_input, train, validation, halo, out, {', '.join(valid)}.",
            fix=f"{meant}=..." if close else "leave it out",
        )
    return TrainingOptions(**options)


_MEANT = {
    "lr": "learning_rate",
    "accumulate_grad_batches": "gradient_accumulation",
    "gradient_clip_val": "clip",
    "patience": "early_stopping",
    "nodes": "num_nodes",
    "rank": "strategy=StrategyOptions('lora', rank=8)",
}


def _number(value: Any) -> bool:
    return (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and math.isfinite(float(value))
    )


def _whole(value: Any, least: int) -> bool:
    return _number(value) and float(value).is_integer() and value >= least


def check_precision(precision: Any) -> None:
    """Raise :class:`OptionError` for an unknown precision."""
    if precision not in PRECISIONS:
        raise OptionError(
            f"precision={precision!r} is not among {', '.join(map(repr, PRECISIONS))}.",
            fix="precision='auto'",
        )


def check_running(*, batch_size: Any, devices: Any, compile: Any) -> None:
    """Raise :class:`OptionError` for how a forecast cannot be run."""
    for name, value in (("batch_size", batch_size), ("devices", devices)):
        if not _whole(value, 1) or not isinstance(value, numbers.Integral):
            raise OptionError(
                f"{name}={value!r} is no whole number of at least 1.", fix=f"{name}=1"
            )
    if compile not in (True, False):
        raise OptionError(f"compile={compile!r} is neither True nor False.", fix="compile=True")


def check_halo(halo: Any) -> int:
    """A halo in grid points."""
    if not _whole(halo, 0) or not isinstance(halo, numbers.Integral):
        raise OptionError(f"halo={halo!r} is no whole number of grid points.", fix="halo=4")
    return int(halo)

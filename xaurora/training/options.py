"""Options of fine-tuning: each documented, typed, checked and given its default here.

The signatures of ``ds.aurora.finetune`` and ``ds.aurora.estimate``, the command line and
``docs/options.md`` follow from these definitions (``docs/generate.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xaurora.errors import OptionError
from xaurora.model.options import (
    JAX_PRECISIONS,
    STATIC_FILE,
    StrategyLike,
    StrategyOptions,
    check_engine_options,
    resolve_strategy,
)
from xaurora.training.execution_options import ExecutionOptions
from xaurora.training.nested_options import (
    LatentOptions,
    ReplayOptions,
    check_latents,
    check_logger,
    check_replay_buffer,
    check_seed,
    check_statistics,
)
from xaurora.utils import checks
from xaurora.utils.options import documented, from_arguments, option, run_checks
from xaurora.utils.types import Given, PeriodLike

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

    from xaurora.fields.grid.regions import RegionLike
    from xaurora.model.heads import HeadLike
    from xaurora.model.resolve import ModelLike


MEANT = {
    "lr": "learning_rate",
    "accumulate_grad_batches": "gradient_accumulation",
    "gradient_clip_val": "clip",
    "patience": "early_stopping",
    "nodes": "num_nodes",
    "rank": "strategy=StrategyOptions('lora', rank=8)",
}
"""Names that other packages use."""


def _out(name: str, value: Given) -> Given:
    checks.path("runs/tp")(name, value)
    return value


@documented
@dataclass(frozen=True, kw_only=True)
class TrainingOptions(ExecutionOptions):
    """How long and how to train.

    Examples
    --------
    >>> xaurora.TrainingOptions(steps=100, batch_size=4).batch_size
    4
    """

    epochs: int | None = option(
        None,
        "int, optional",
        "Passes over the training samples. Ten if neither this nor ``steps`` is given.",
        checks.optional(checks.integer(1)),
    )
    steps: int | None = option(
        None,
        "int, optional",
        "Optimiser steps. Takes precedence over ``epochs``.",
        checks.optional(checks.integer(1)),
    )
    batch_size: int = option(
        1, "int", "Samples in one forward pass on each device.", checks.integer(1)
    )
    gradient_accumulation: int = option(
        1,
        "int",
        "Batches whose gradients are averaged for one step: the memory of one, the effect of all.",
        checks.integer(1),
    )
    learning_rate: float | None = option(
        None,
        "float, optional",
        """Peak learning rate. By default 1e-3 for new parameters and 5e-5 for pretrained ones
        (2e-3 for all parameters of a random tiny model).""",
        checks.optional(checks.positive(5e-5)),
    )
    head_learning_rate: float | None = option(
        None,
        "float, optional",
        "Peak learning rate of new parameters alone. By default ``learning_rate`` if it is given.",
        checks.optional(checks.positive(5e-5)),
    )
    schedule: str = option(
        "cosine",
        '{"cosine", "constant"}',
        """What the learning rate does after the warm-up: decay to a twentieth along a cosine, or
        stay constant.""",
        checks.one_of("cosine", "constant"),
    )
    warmup: int | None = option(
        None,
        "int, optional",
        "Steps of linear warm-up. By default a twentieth of all steps, at most 1000.",
        checks.optional(checks.integer(0)),
    )
    clip: float = option(1.0, "float", "Largest norm of the gradient.", checks.positive(1.0))
    weight_decay: float = option(0.01, "float", "Weight decay of AdamW.", checks.non_negative)
    base_loss: float = option(
        1.0,
        "float",
        """Weight of the loss on Aurora's own variables, for strategies that train the base. 0 turns
        it off. Training on rain alone ruins the state that later leads start from.""",
        checks.non_negative,
    )
    rollout_steps: int = option(
        1,
        "int",
        "Six-hour steps of each training forecast. Their losses are averaged.",
        checks.integer(1),
    )
    push_forward: bool = option(
        False,
        "bool",
        "Stop gradients between rollout steps, so that memory holds one step.",
        checks.boolean,
    )
    replay_buffer: int | ReplayOptions | None = option(
        None,
        "int or ReplayOptions, optional",
        """Keep this many forecasts on disk and continue one of them by one step at a time, up to
        ``rollout_steps`` steps.""",
        checks.optional(check_replay_buffer),
        command_line="int",
    )
    latents: bool | str | LatentOptions = option(
        "auto",
        '{"auto", True, False}, path or LatentOptions',
        """Compute the latents of a frozen backbone once and keep them, in bfloat16 unless
        :class:`~xaurora.LatentOptions` say otherwise, in ``latents/`` beside the run's folder or in
        the store that is named. ``"auto"`` does so if samples are seen more than once
        (``docs/latents.md``).""",
        check_latents,
        command_line="switch",
        annotation="bool | str | Path | LatentOptions",
    )
    ema: float | None = option(
        None,
        "float, optional",
        """Decay of an exponential moving average of the weights, such as 0.999. The average is what
        is validated and kept.""",
        checks.optional(checks.share(0.999, ends="()")),
    )
    early_stopping: int | None = option(
        None,
        "int, optional",
        "Stop after this many validations without a better score.",
        checks.optional(checks.integer(1)),
    )
    validations: int = option(
        10, "int", "How often to score the validation samples.", checks.integer(1)
    )
    checkpoint_every: int | None = option(
        None,
        "int, optional",
        """Steps between checkpoints. By default a twentieth of all steps, at least 10 and at most
        500. A checkpoint is also written at SIGTERM and Ctrl-C.""",
        checks.optional(checks.integer(1)),
    )
    resume: bool = option(
        False,
        "bool",
        """Resume from the checkpoint in ``out``, exactly to the bit on a CPU. Start from the
        beginning if there is none.""",
        checks.boolean,
    )
    overwrite: bool = option(
        False, "bool", "Whether to replace a finished or stopped run in ``out``.", checks.boolean
    )
    wait: float = option(
        0.0,
        "float",
        """Seconds to wait if another process still writes to ``out``, such as a job that is being
        stopped and queued again.""",
        checks.non_negative,
    )
    workers: int = option(
        2, "int", "Threads that read ahead. 0 reads when data are needed.", checks.integer(0)
    )
    first_look: int = option(
        256,
        "int",
        """Frames of the training period that are read before training, evenly spread over years,
        months and hours of the day: they give the heads their starting point, the losses their
        scale and a tiny model its normalisation. All frames if there are fewer.""",
        checks.integer(8),
    )
    strict: bool = option(
        False,
        "bool",
        """Whether a sample that is missing or broken stops the run. By default it is skipped,
        counted and named.""",
        checks.boolean,
    )
    seed: int = option(0, "int", "Seed of initial weights, sample order and dropout.", check_seed)
    progress: bool = option(
        True,
        "bool",
        "Whether to show a progress bar with loss and learning rate.",
        checks.boolean,
        command_line="hidden",
    )
    logger: Any = option(
        None,
        "logger or list of loggers, optional",
        "Lightning Fabric's loggers. ``log.jsonl`` is always written.",
        checks.optional(check_logger),
        command_line="hidden",
        annotation="object",
    )

    def __post_init__(self) -> None:
        run_checks(self)
        self.check_optimizer_state()
        step = self.batch_size * self.gradient_accumulation
        if self.replay is not None and self.replay.size < step:
            raise OptionError(
                f"replay_buffer has size={self.replay.size}, fewer forecasts than a step takes"
                f" ({step}).",
                fix="replay_buffer=200",
            )
        for given, name, effect, fix in (
            (self.push_forward, "push_forward=True", "stops gradients between steps", 3),
            (self.replay is not None, "replay_buffer=", "continues forecasts", 8),
        ):
            if given and self.rollout_steps == 1:
                raise OptionError(
                    f"{name} {effect}, but rollout_steps=1 has only one step.",
                    fix=f"rollout_steps={fix}",
                )
        if self.replay is not None and self.push_forward:
            raise OptionError(
                "a replay buffer takes one step at a time, so push_forward=True has no effect.",
                fix="leave push_forward out",
            )
        if self.precision == "fp16" and self.parallel == "fsdp":
            raise OptionError(
                "precision='fp16' scales the loss, which is not supported with parallel='fsdp'.",
                fix="precision='bf16', or parallel='ddp'",
            )

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimiser step, over all devices."""
        return self.batch_size * self.gradient_accumulation * self.world_size

    @property
    def replay(self) -> ReplayOptions | None:
        """The replay buffer, if there is one."""
        return self.replay_buffer if isinstance(self.replay_buffer, ReplayOptions) else None

    def training_values(self) -> dict[str, Any]:
        """Return the options on how long and how to train, as JSON takes them.

        Loggers and the place of latents are left out.
        """
        names = [f.name for f in dataclasses.fields(TrainingOptions)]
        values = {n: getattr(self, n) for n in names if n not in ("logger", "latents")}
        return {
            n: dataclasses.asdict(v) if isinstance(v, ReplayOptions) else v
            for n, v in values.items()
        }

    def total_steps(self, samples: int) -> int:
        """Return the optimiser steps for a number of training samples."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 10) * -(-samples // self.samples_per_step)

    def warmup_steps(self, total: int) -> int:
        """Return the steps of warm-up."""
        warmup = min(total // 20, 1000) if self.warmup is None else self.warmup
        return min(warmup, max(total - 1, 0))

    def checkpoint_steps(self, total: int) -> int:
        """Return the steps between checkpoints."""
        return self.checkpoint_every or min(max(total // 20, 10), 500)


@documented
@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """All arguments of ``ds.aurora.finetune``."""

    target: str | tuple[str, ...] = option(
        "tp",
        "str or sequence of str",
        """What to learn: one or several surface variables. Hourly totals are summed over six hours.
        A variable that is not known is taken in its own units. ``"all"`` trains Aurora's own
        variables, ``["all", "tp"]`` both.""",
        command_line="targets",
        annotation="str | Sequence[str]",
    )
    truth: xr.Dataset | None = option(
        None,
        "Dataset, optional",
        """Where the target is taken from, by default the data themselves. It is aligned in time and
        regridded conservatively onto the data's grid.""",
        command_line="truth",
    )
    statistics: xr.Dataset | None = option(
        None,
        "Dataset, optional",
        """What ``ds.aurora.statistics(time=...)`` returned for the training period: the heads start
        from all of it, and only a few frames of the targets are read before training. If it has all
        inputs of a new tiny model, they are normalised by it, too. By default a sample of the
        frames is read (``first_look``).""",
        checks.optional(check_statistics),
        command_line="statistics",
    )
    model: ModelLike = option(
        "small",
        "str or model",
        """``"tiny"`` (built here, random), ``"tiny-pretrained"`` (trained on synthetic fields),
        ``"small"``, ``"base"``, ``"finetuned"``, ``"v1.5"``, ``"v1.5-ensemble"``, the toys
        ``"tiny-v1.5"``, ``"tiny-v1.5-ensemble"`` and ``"tiny-v1.5-pretrained"``, a
        :class:`~xaurora.TunedAurora` or its path, or an :class:`aurora.Aurora`, which is
        copied.""",
        command_line="str",
    )
    weights: str | Path | None = option(
        None,
        "path, optional",
        "Local checkpoint of the named model. By default the published one is fetched.",
        command_line="path",
    )
    static_file: str | Path | None = STATIC_FILE
    strategy: StrategyLike = option(
        "frozen",
        '{"frozen", "decoder", "lora", "peft", "full"} or StrategyOptions',
        """What trains: the head alone; the head and the last layers of Aurora's decoding half;
        low-rank adapters, Aurora's own or those of Hugging Face PEFT, on a frozen base; or
        everything.""",
        command_line="str",
        annotation="str | StrategyOptions",
    )
    head: HeadLike = option(
        "auto",
        "str, HeadOptions, or dict of them by target",
        """What is predicted. For precipitation ``"censored_normal"``, ``"hurdle_lognormal"``,
        ``"hurdle_gamma"``, ``"csgd"``, ``"quantile"``, ``"deterministic"``, the preset
        ``"lehmann2025"`` or ``"own"``, Aurora 1.5's own decoder. For other variables ``"normal"``
        or ``"bounded_normal"``. ``"auto"`` chooses by the variable.""",
        command_line="str",
    )
    as_input: bool = option(
        False,
        "bool",
        """Also feed the target to the encoder, with an embedding that starts at zero. Forecasts
        then need the target at the init time and six hours before.""",
        checks.boolean,
    )
    train: PeriodLike = option(
        None,
        "slice, str, int or pair, optional",
        """Training period: a slice, a year, or a pair such as ``("2016", "2022")``. By default
        all but the last fifth of the samples.""",
        command_line="period",
    )
    validation: PeriodLike = option(
        None,
        "slice, str, int or pair, optional",
        """Validation period. By default the last fifth of the samples, with a gap between that
        neither history nor accumulation crosses.""",
        command_line="period",
    )
    halo: int = option(
        0,
        "int",
        """Grid points at the edges of a region that are computed and not trained on
        (``docs/regions.md``).""",
        checks.integer(0, example=4),
    )
    region: RegionLike | None = option(
        None,
        "str, tuple, mask or polygon, optional",
        """Where the target is learnt and scored: a name such as ``"europe"``, a box ``(south,
        north, west, east)``, a DataArray, a polygon. The backbone sees all of the data, the heads
        this part of its latents, so that with global data a region has no edges
        (``docs/regions.md``).""",
        command_line="region",
    )
    out: str | Path | None = option(
        None,
        "path, optional",
        """Folder for ``best/``, ``last/``, ``checkpoint/``, ``log.jsonl`` and ``learning.png``. By
        default ``runs/<target>-<time>``.""",
        checks.optional(_out),
        command_line="path",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        strategy = self.strategy_options
        check_engine_options(
            self.engine,
            {
                "strategy='peft'": strategy.name == "peft",
                "dropout": bool(strategy.name == "lora" and strategy.dropout),
                "replay_buffer": self.replay is not None,
                f"precision={self.precision!r}": self.precision not in JAX_PRECISIONS,
                "activation_checkpointing='offload'": self.activation_checkpointing == "offload",
                f"optimizer_state={self.optimizer_state!r}": self.optimizer_state
                in ("host", "8bit"),
                "memory=": self.memory is not None,
                "compile=True": self.compile,
                "num_nodes": self.num_nodes > 1,
                "parallel='fsdp'": self.parallel == "fsdp",
            },
        )
        if self.resume and self.out is None:
            raise OptionError(
                "resume=True needs the folder of the run, but out= is not set.",
                fix="out='runs/tp', resume=True",
            )

    @property
    def strategy_options(self) -> StrategyOptions:
        """The strategy with its options."""
        return resolve_strategy(self.strategy)


def options_from(arguments: Mapping[str, Any], *, verb: str) -> FinetuneOptions:
    """Return the options of a method's arguments (:func:`xaurora.utils.options.from_arguments`)."""
    return from_arguments(FinetuneOptions, arguments, verb=verb, meant=MEANT)

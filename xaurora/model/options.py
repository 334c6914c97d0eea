"""Options of the model: its precision, and what a strategy trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from xaurora.errors import OptionError
from xaurora.utils import checks
from xaurora.utils.options import documented, option, run_checks

PRECISIONS = ("auto", "32", "tf32", "bf16", "bf16-tf32", "bf16-all", "fp16")
JAX_PRECISIONS = ("auto", "32", "bf16")
STRATEGIES = ("frozen", "decoder", "lora", "peft", "full")
"""Valid names for ``strategy=``."""
LORA_MODES = ("single", "from_second", "all")
PEFT_METHODS = ("lora", "dora", "rslora")
PEFT_LAYERS = ("qkv", "proj", "fc1", "fc2")

check_precision = checks.one_of(*PRECISIONS)
ENGINES = ("torch", "jax")
check_engine = checks.one_of(*ENGINES)


def check_engine_options(engine: str, unsupported: dict[str, bool]) -> None:
    """Raise if an option that is set has no meaning for the engine.

    Parameters
    ----------
    engine : str
    unsupported : dict of bool
        Options that the JAX engine lacks, as they are typed, and whether they are set.

    Raises
    ------
    OptionError
        It names all of them.
    """
    found = [name for name, is_set in unsupported.items() if is_set]
    if engine == "jax" and found:
        raise OptionError(
            f"engine='jax' does not support {', '.join(found)}.",
            fix=f"engine='torch', or engine='jax' without {', '.join(found)}",
        )


def _known_strategy(name: str, value: object) -> str:
    if not isinstance(value, str) or value not in STRATEGIES:
        raise OptionError(
            f"there is no strategy {value!r}; valid values are {', '.join(map(repr, STRATEGIES))}.",
            fix="strategy='frozen'",
        )
    return value


STATIC_FILE = option(
    None,
    "path, optional",
    """For ``"v1.5"``: file of its static fields, ``aurora-v1.5-static.pickle`` as it was published
    or an ``.npz`` of the same arrays. By default ERA5's static fields in the data, or where they
    lack some the file in the hub's cache. Code in a pickle is not run.""",
    command_line="path",
)
"""The option ``static_file=`` of everything that takes ``model=``."""

_BELONGS_TO = {
    "layers": ("decoder", "peft"),
    "rank": ("lora", "peft"),
    "alpha": ("lora", "peft"),
    "dropout": ("lora", "peft"),
    "mode": ("lora",),
    "method": ("peft",),
}


@documented
@dataclass(frozen=True)
class StrategyOptions:
    """A strategy, which selects the weights to train, and its options.

    Examples
    --------
    >>> xaurora.StrategyOptions("lora", rank=16).rank
    16
    """

    name: str = option(
        "frozen",
        '{"frozen", "decoder", "lora", "peft", "full"}',
        "The strategy.",
        _known_strategy,
        command_line="hidden",
    )
    layers: int | tuple[str, ...] | None = option(
        None,
        "int or tuple of str, optional",
        """For ``decoder``: how many of the backbone's last decoder layers train beside Aurora's own
        decoder (default 1), or the names of modules of the decoding half, such as
        ``("backbone.decoder_layers.1", "decoder.surf_heads")``. For ``peft``: the linear layers
        that get an adapter, by the last part of their name or by a module that holds them
        (default ``("qkv", "proj", "fc1", "fc2")`` of the backbone).""",
        command_line="layers",
    )
    rank: int | None = option(
        None,
        "int, optional",
        "Rank of the low-rank matrices of ``lora`` and ``peft``, default 8.",
        checks.optional(checks.integer(1, example=8)),
    )
    alpha: float | None = option(
        None,
        "float, optional",
        """The low-rank matrices are scaled by alpha / rank (by alpha / √rank for ``rslora``).
        By default alpha equals the rank.""",
        checks.optional(checks.positive(8)),
    )
    dropout: float | None = option(
        None,
        "float, optional",
        "Dropout on the input of the adapter, default 0.",
        checks.optional(checks.share(0.1, ends="[)")),
    )
    mode: str | None = option(
        None,
        '{"single", "from_second", "all"}, optional',
        """For ``lora``: one LoRA for all rollout steps, one from the second step on, or one per
        step (``lora_mode`` upstream).""",
        checks.optional(checks.one_of(*LORA_MODES)),
    )
    method: str | None = option(
        None,
        '{"lora", "dora", "rslora"}, optional',
        "For ``peft``: the kind of adapter.",
        checks.optional(checks.one_of(*PEFT_METHODS)),
    )

    def __post_init__(self) -> None:
        run_checks(self)
        for name, strategies in _BELONGS_TO.items():
            if getattr(self, name) is not None and self.name not in strategies:
                raise OptionError(
                    f"strategy {self.name!r} has no option {name}; it belongs to"
                    f" {', '.join(map(repr, strategies))}.",
                    fix=(
                        f"StrategyOptions({self.name!r}) without {name}, or"
                        f" StrategyOptions({strategies[0]!r}, {name}=...)"
                    ),
                )
        # Defaults are filled in here, so that what is written to disk says what was done.
        defaults: dict[str, object] = {"layers": self._checked_layers()}
        if self.name in ("lora", "peft"):
            rank = 8 if self.rank is None else self.rank
            defaults |= {"rank": rank, "alpha": self.alpha or float(rank)}
            defaults["dropout"] = self.dropout or 0.0
        if self.name == "lora":
            defaults["mode"] = self.mode or "single"
        if self.name == "peft":
            defaults["method"] = self.method or "lora"
        for name, value in defaults.items():
            object.__setattr__(self, name, value)

    def _checked_layers(self) -> int | tuple[str, ...] | None:
        if self.layers is None:
            return 1 if self.name == "decoder" else PEFT_LAYERS if self.name == "peft" else None
        if self.name == "decoder" and checks.is_integer(self.layers, 0):
            return int(self.layers)
        layers = (self.layers,) if isinstance(self.layers, str) else self.layers
        if (
            not isinstance(layers, list | tuple)
            or not layers
            or not all(isinstance(v, str) for v in layers)
        ):
            number = ", or how many of the last layers" if self.name == "decoder" else ""
            example = "1" if self.name == "decoder" else "('qkv', 'proj')"
            raise OptionError(
                f"layers must be names of modules{number}, got {self.layers!r}.",
                fix=f"StrategyOptions({self.name!r}, layers={example})",
            )
        return tuple(layers)


StrategyLike: TypeAlias = str | StrategyOptions


def resolve_strategy(strategy: StrategyLike) -> StrategyOptions:
    """Return the options of ``strategy=``.

    Raises
    ------
    OptionError
        There is no such strategy.

    Examples
    --------
    >>> resolve_strategy("lora").rank
    8
    >>> resolve_strategy(StrategyOptions("peft", method="dora", rank=4)).alpha
    4.0
    """
    if isinstance(strategy, StrategyOptions):
        return strategy
    return StrategyOptions(strategy)

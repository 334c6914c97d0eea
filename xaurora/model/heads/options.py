"""Options of heads: families, presets, and which options each family has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

from xaurora.errors import OptionError
from xaurora.utils.types import Given

DISTRIBUTIONS = ("censored_normal", "hurdle_lognormal", "hurdle_gamma", "csgd", "quantile")
"""Families for amounts that are never negative and often zero."""
RAIN = (*DISTRIBUTIONS, "deterministic")
"""The same, and a single value."""
OTHER = ("normal", "bounded_normal")
"""Families for other surface variables, unbounded and bounded."""
FAMILIES = (*RAIN, *OTHER)
"""Families that a head on any Aurora can have."""
OWN = "own"
"""The head that is the decoder of Aurora 1.5's own hourly amounts."""
SINGLE = ("deterministic", OWN)
"""Heads that predict a single value and no distribution."""

AUTO_RAIN = "csgd"
"""The family of ``head="auto"`` for precipitation. On rain from five known distributions its gain
in CRPS is within 0.01 of that of any other family, its mean is right to 6 %, and its 90 % interval
is reliable there and on real totals, where other three-parameter families fail once
(``docs/heads.md``)."""

EPSILON_RANGE = (1e-5, 1e-3)
"""Range of ε of log1p(tp/ε) in metres. By default ε is the mean six-hour total of the training
period, limited to this range. With ε far below the mean, the score would give drizzle the weight of
rain and allow an unrealistic tail in mm. Far above it, rain of all amounts in a dry region would
look alike."""

QUANTILE_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.998)
"""Default probabilities of wet amounts for the ``quantile`` head."""

# Options that only some families have, and their defaults.
_OWN: dict[str, tuple[str, ...]] = {
    "epsilon": ("censored_normal", "quantile", *SINGLE),
    "largest_sigma": ("censored_normal", "hurdle_lognormal"),
    "levels": ("quantile",),
    "bounds": ("bounded_normal",),
}
_LARGEST_SIGMA = {"censored_normal": 1.5, "hurdle_lognormal": 2.0}
SMALLEST_SIGMA = {"censored_normal": 1e-3, "hurdle_lognormal": 0.1}
"""Lower bounds of σ: in z for ``censored_normal``, of the logarithm of wet amounts for
``hurdle_lognormal``."""
MOST_SIGMA = 3.0
"""Upper limit of ``largest_sigma``."""


@dataclass(frozen=True)
class HeadOptions:
    """How a target is modelled.

    Parameters
    ----------
    family : str
        ``"censored_normal"``, ``"hurdle_lognormal"``, ``"hurdle_gamma"``, ``"csgd"``,
        ``"quantile"``, ``"deterministic"`` or ``"own"`` for rain; ``"normal"`` or
        ``"bounded_normal"`` for other variables. ``"own"`` is a layer of Aurora 1.5 itself, and has
        no options but ``epsilon``.
    epsilon : float, optional
        ε of ``z = log1p(tp / ε)`` in metres, positive. By default the mean six-hour total of the
        training period, between 1e-5 and 1e-3. For ``censored_normal``, ``quantile``,
        ``deterministic`` and ``own``.
    depth : int
        Number of linear layers of the MLP, including the last one.
    width : int or tuple of int
        Hidden width. A tuple gives the width of each hidden layer and sets the depth.
    latents : {"all", "surface"}
        Latent levels to read. All by default, because the atmospheric ones hold moisture.
    neighbours : int
        Side of the window of patches whose latents affect a pixel, odd. With 3, patches are decoded
        with overlap and blended. With 1 each is decoded on its own, and the seams are visible.
    activation : {"gelu", "relu"}
        Activation function between layers.
    normalise : bool
        Whether to apply layer norm to the latents.
    largest_sigma : float, optional
        Upper bound of σ, which keeps the tail in mm realistic: in z for ``censored_normal`` (1.5),
        of the logarithm for ``hurdle_lognormal`` (2).
    levels : tuple of float, optional
        Probabilities among wet amounts of the ``quantile`` head, increasing, between 0 and 1.
    bounds : tuple of float, optional
        Ends of the range of ``bounded_normal``, in canonical units; by default those of the
        variable.

    Examples
    --------
    >>> options = xaurora.HeadOptions(family="hurdle_gamma", width=64)
    >>> tuned = ds.aurora.finetune(
    ...     "tp", model="tiny", head=options, steps=1, out="runs/head", progress=False
    ... )
    """

    family: str = AUTO_RAIN
    epsilon: float | None = None
    depth: int = 2
    width: int | tuple[int, ...] = 512
    latents: str = "all"
    neighbours: int = 3
    activation: str = "gelu"
    normalise: bool = True
    largest_sigma: float | None = None
    levels: tuple[float, ...] | None = None
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.family not in (*FAMILIES, OWN):
            raise unknown_head(self.family)
        for name in ("width", "levels", "bounds"):  # JSON and NumPy turn tuples into lists, arrays
            value = getattr(self, name)
            if hasattr(value, "tolist"):
                value = value.tolist()
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        for name in ("epsilon", "largest_sigma", "depth", "neighbours"):
            if hasattr(getattr(self, name), "item"):
                object.__setattr__(self, name, getattr(self, name).item())
        if self.epsilon is not None and not (_number(self.epsilon) and self.epsilon > 0):
            raise OptionError(
                f"epsilon must be a positive amount in metres, got {self.epsilon!r}.",
                fix="HeadOptions(family='censored_normal', epsilon=1e-3)",
            )
        for option, families in _OWN.items():
            if getattr(self, option) is not None and self.family not in families:
                raise OptionError(
                    f"the head {self.family!r} takes no {option}; it is an option of"
                    f" {', '.join(map(repr, families))}.",
                    fix=(
                        f"HeadOptions(family={self.family!r}) without {option}, or"
                        f" family={families[0]!r}"
                    ),
                )
        if self.family == OWN:
            self._check_own()
        self._check_shape()
        self._check_range()

    def _check_own(self) -> None:
        """Raise if the shape of Aurora's own layer is to be changed."""
        fixed = [f for f in fields(self) if f.name not in ("family", "epsilon")]
        if changed := [f.name for f in fixed if getattr(self, f.name) != f.default]:
            raise OptionError(
                f"the head 'own' is a layer of the model itself and takes no {changed[0]}.",
                fix=f"HeadOptions(family='own') without {changed[0]}",
            )

    def _check_shape(self) -> None:
        """Check what the trunk is built from."""
        if not (_whole(self.depth) and self.depth >= 1):
            raise OptionError(
                f"depth must be a positive integer, got {self.depth!r}.",
                fix="HeadOptions(depth=2)",
            )
        widths = self.width if isinstance(self.width, tuple) else (self.width,)
        if not widths or not all(_whole(w) and w >= 1 for w in widths):
            raise OptionError(
                f"width must be a positive integer or a tuple of them, got {self.width!r}.",
                fix="HeadOptions(width=512)",
            )
        if isinstance(self.width, tuple):
            if self.depth not in (2, len(widths) + 1):
                raise OptionError(
                    f"depth={self.depth!r} contradicts width={self.width!r}, which gives the width"
                    " of every hidden layer.",
                    fix="leave depth out",
                )
            object.__setattr__(self, "depth", len(widths) + 1)
        if self.latents not in ("all", "surface"):
            raise OptionError(
                f"latents must be 'all' or 'surface', got {self.latents!r}.", fix="latents='all'"
            )
        if not (_whole(self.neighbours) and self.neighbours >= 1 and self.neighbours % 2):
            raise OptionError(
                f"neighbours must be a positive odd integer, got {self.neighbours!r}.",
                fix="neighbours=3",
            )
        if self.activation not in ("gelu", "relu"):
            raise OptionError(
                f"activation must be 'gelu' or 'relu', got {self.activation!r}.",
                fix="activation='gelu'",
            )

    def _check_range(self) -> None:
        """Check the limits of the distribution."""
        if self.largest_sigma is not None and not (
            _number(self.largest_sigma)
            and SMALLEST_SIGMA[self.family] < self.largest_sigma <= MOST_SIGMA
        ):
            raise OptionError(
                f"largest_sigma must be above {SMALLEST_SIGMA[self.family]} and at most"
                f" {MOST_SIGMA:g}, got {self.largest_sigma!r}; larger values give unrealistic"
                " tails.",
                fix=f"HeadOptions(largest_sigma={_LARGEST_SIGMA[self.family]})",
            )
        if self.levels is not None:
            _check_levels(self.levels)
        if self.bounds is not None and not (
            isinstance(self.bounds, tuple)
            and len(self.bounds) == 2
            and all(map(_number, self.bounds))
            and self.bounds[0] < self.bounds[1]
        ):
            raise OptionError(
                f"bounds must be a pair of numbers, lower first, got {self.bounds!r}.",
                fix="bounds=(0, 1)",
            )

    def for_climate(self, mean_amount: float) -> HeadOptions:
        """Return the same options with ε set.

        If ``epsilon`` was not given and the family uses it, it becomes ``mean_amount``, the mean
        six-hour total in metres, limited to :data:`EPSILON_RANGE`.
        """
        if self.epsilon is not None or self.family not in _OWN["epsilon"]:
            return self
        return replace(
            self, epsilon=float(f"{min(max(mean_amount, EPSILON_RANGE[0]), EPSILON_RANGE[1]):.3g}")
        )

    @property
    def for_amounts(self) -> bool:
        """Whether the head predicts amounts that are never negative and often zero."""
        return self.family in (*RAIN, OWN)

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Range of the target, in canonical units, as far as it has ends."""
        return (0.0, None) if self.for_amounts else self.bounds or (None, None)

    @property
    def surface_only(self) -> bool:
        """Whether the head reads the surface latent alone."""
        return self.latents == "surface" or self.family == OWN

    @property
    def sums_hours(self) -> bool:
        """Whether the head reads the latents of six hours, whose amounts it sums."""
        return self.family == OWN

    @property
    def single_value(self) -> bool:
        """Whether the head predicts a single value and no distribution."""
        return self.family in SINGLE

    @property
    def sigma_bounds(self) -> tuple[float, float]:
        """Smallest and largest σ, for the families that have ``largest_sigma``."""
        return SMALLEST_SIGMA[self.family], self.largest_sigma or _LARGEST_SIGMA[self.family]


def _number(value: Given) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Given) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_levels(levels: Sequence[float]) -> None:
    if (
        not isinstance(levels, tuple)
        or len(levels) < 3
        or not all(_number(v) and 0 < v < 1 for v in levels)
        or any(b <= a for a, b in itertools.pairwise(levels))
    ):
        raise OptionError(
            "levels must be at least three increasing probabilities between 0 and 1, got"
            f" {levels!r}.",
            fix="levels=(0.1, 0.5, 0.9, 0.99)",
        )


PRESETS: dict[str, HeadOptions] = {
    "lehmann2025": HeadOptions(
        family="deterministic",
        epsilon=1e-5,
        width=(512, 512, 256),
        latents="surface",
        neighbours=1,
        activation="relu",
        normalise=False,
    ),
}
"""Published decoders by name. ``lehmann2025``: Lehmann et al. (2025), arXiv:2506.19088, an MLP of
three hidden layers on the surface latent, log1p(tp/1e-5). The published one is not bounded at zero;
this one is."""


def unknown_head(name: object) -> OptionError:
    """Return the error for an unknown head."""
    return OptionError(
        f"there is no head {name!r}; valid values are 'auto',"
        f" {', '.join(map(repr, (*FAMILIES, OWN, *PRESETS)))}, or a HeadOptions.",
        fix="head='auto'",
    )


HeadLike: TypeAlias = "str | HeadOptions | dict[str, str | HeadOptions]"
"""A family, a preset, options, or one of these by target."""


def patch_margin(heads: Iterable[HeadOptions]) -> int:
    """Return how many patches around a region influence its values through some heads."""
    return max([1, *(options.neighbours // 2 for options in heads)])


def options_for(head: object, family: str) -> HeadOptions:
    """Return the options for the ``head=`` argument of finetune.

    Parameters
    ----------
    head : str or HeadOptions
        ``"auto"``, a family, or a preset.
    family : str
        The family for ``"auto"``.

    Raises
    ------
    OptionError
        If the head is unknown.
    """
    if isinstance(head, HeadOptions):
        return head
    if not isinstance(head, str):
        raise unknown_head(head)
    if head in PRESETS:
        return PRESETS[head]
    name = family if head == "auto" else head
    if name not in (*FAMILIES, OWN):
        raise unknown_head(head)
    return HeadOptions(family=name)

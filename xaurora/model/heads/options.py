"""How a target is modelled: families, presets, and the options that each takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from xaurora.errors import OptionError

RAIN = ("censored_normal", "hurdle_lognormal", "hurdle_gamma", "csgd", "quantile", "deterministic")
"""Families for amounts that are never negative and often zero."""
OTHER = ("normal", "bounded_normal")
"""Families for other surface variables: unbounded, and between two ends."""
FAMILIES = (*RAIN, *OTHER)

AUTO_RAIN = "csgd"
"""What ``head="auto"`` is for precipitation. On rain of five laws it gains as much of the CRPS as
any other to within 0.01, its mean is right to 6 %, and its 90 % interval holds there and on real
totals, where other three-parameter families fail once (``docs/heads.md``)."""

EPSILON_RANGE = (1e-5, 1e-3)
"""m; ε of log1p(tp/ε) is the mean six-hour total of the training period, within this range. Far
below the mean, the score would weigh drizzle like rain and leave an absurd tail in mm; far above
it, a dry region's rain would all look alike."""

QUANTILE_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.998)
"""Of wet amounts, for the ``quantile`` head where none are given."""

# Options that belong to some families alone, and their values where nothing is said.
_OWN: dict[str, tuple[str, ...]] = {
    "epsilon": ("censored_normal", "quantile", "deterministic"),
    "largest_sigma": ("censored_normal", "hurdle_lognormal"),
    "levels": ("quantile",),
    "bounds": ("bounded_normal",),
}
_LARGEST_SIGMA = {"censored_normal": 1.5, "hurdle_lognormal": 2.0}
SMALLEST_SIGMA = {"censored_normal": 1e-3, "hurdle_lognormal": 0.1}
"""Lower bounds of σ: in z, and of the logarithm of wet amounts."""
MOST_SIGMA = 3.0
"""What ``largest_sigma`` can be set to."""


@dataclass(frozen=True)
class HeadOptions:
    """How a target is modelled.

    Parameters
    ----------
    family : str
        ``"censored_normal"``, ``"hurdle_lognormal"``, ``"hurdle_gamma"``, ``"csgd"``,
        ``"quantile"`` or ``"deterministic"`` for rain; ``"normal"`` or ``"bounded_normal"`` for
        other variables.
    epsilon : float, optional
        ε of ``z = log1p(tp / ε)`` in metres, positive; by default the mean six-hour total of the
        training period, between 1e-5 and 1e-3. For ``censored_normal``, ``quantile`` and
        ``deterministic``.
    depth : int
        Linear layers of the MLP, the last one included.
    width : int or tuple of int
        Hidden width; one for each hidden layer where several are given, which sets the depth.
    latents : {"all", "surface"}
        Which latent levels are read. All by default: moisture aloft sits in the atmospheric ones.
    neighbours : int
        Side of the window of patches whose latents shape a pixel, odd. With 3, patches are decoded
        with overlap and blended; with 1 each is on its own, and the seams between them show.
    activation : {"gelu", "relu"}
        Between layers.
    normalise : bool
        Layer norm on the latents.
    largest_sigma : float, optional
        Upper bound of σ, so that no tail is absurd in mm: in z for ``censored_normal`` (1.5), of
        the logarithm for ``hurdle_lognormal`` (2).
    levels : tuple of float, optional
        Probabilities among wet amounts of the ``quantile`` head, increasing, between 0 and 1.
    bounds : tuple of float, optional
        Ends of the range of ``bounded_normal``, in canonical units; by default those of the
        variable.
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
        if self.family not in FAMILIES:
            raise unknown_head(self.family)
        for name in ("width", "levels", "bounds"):  # JSON knows no tuples, and neither does NumPy
            value = getattr(self, name)
            if hasattr(value, "tolist"):
                value = value.tolist()
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        for name in ("epsilon", "largest_sigma", "depth", "neighbours"):
            if hasattr(getattr(self, name), "item"):
                object.__setattr__(self, name, getattr(self, name).item())
        if self.epsilon is not None and not (_number(self.epsilon) and self.epsilon > 0):
            raise OptionError(
                f"epsilon={self.epsilon!r} is not positive; it is an amount in metres.",
                fix="HeadOptions(family='censored_normal', epsilon=1e-3)",
            )
        for option, families in _OWN.items():
            if getattr(self, option) is not None and self.family not in families:
                raise OptionError(
                    f"the head {self.family!r} takes no {option}; it belongs to"
                    f" {', '.join(map(repr, families))}.",
                    fix=(
                        f"HeadOptions(family={self.family!r}) without {option}, or"
                        f" family={families[0]!r}"
                    ),
                )
        if not (_whole(self.depth) and self.depth >= 1):
            raise OptionError(
                f"depth={self.depth!r} is no whole number of at least 1.",
                fix="HeadOptions(depth=2)",
            )
        widths = self.width if isinstance(self.width, tuple) else (self.width,)
        if not widths or not all(_whole(w) and w >= 1 for w in widths):
            raise OptionError(
                f"width={self.width!r} is not positive.", fix="HeadOptions(width=512)"
            )
        if isinstance(self.width, tuple):
            if self.depth not in (2, len(widths) + 1):
                raise OptionError(
                    f"depth={self.depth!r} contradicts width={self.width!r}, which names every"
                    " hidden layer.",
                    fix="leave depth out",
                )
            object.__setattr__(self, "depth", len(widths) + 1)
        if self.latents not in ("all", "surface"):
            raise OptionError(
                f"latents={self.latents!r} is neither 'all' nor 'surface'.", fix="latents='all'"
            )
        if not (_whole(self.neighbours) and self.neighbours >= 1 and self.neighbours % 2):
            raise OptionError(
                f"neighbours={self.neighbours!r} is no odd number of patches.", fix="neighbours=3"
            )
        if self.activation not in ("gelu", "relu"):
            raise OptionError(
                f"activation={self.activation!r} is neither 'gelu' nor 'relu'.",
                fix="activation='gelu'",
            )
        if self.largest_sigma is not None and not (
            _number(self.largest_sigma)
            and SMALLEST_SIGMA[self.family] < self.largest_sigma <= MOST_SIGMA
        ):
            raise OptionError(
                f"largest_sigma={self.largest_sigma!r} is not above {SMALLEST_SIGMA[self.family]}"
                f" and at most {MOST_SIGMA:g}, where tails leave this world.",
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
                f"bounds={self.bounds!r} is no pair of ends, lower first.", fix="bounds=(0, 1)"
            )

    def for_climate(self, mean_amount: float) -> HeadOptions:
        """The same options with ε set, from the mean six-hour total in metres where it was left
        open.
        """
        if self.epsilon is not None or self.family not in _OWN["epsilon"]:
            return self
        return replace(
            self, epsilon=float(f"{min(max(mean_amount, EPSILON_RANGE[0]), EPSILON_RANGE[1]):.3g}")
        )

    @property
    def sigma_bounds(self) -> tuple[float, float]:
        """Smallest and largest σ of the families that bound it by an option."""
        return SMALLEST_SIGMA[self.family], self.largest_sigma or _LARGEST_SIGMA[self.family]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_levels(levels: Sequence[float]) -> None:
    if (
        not isinstance(levels, tuple)
        or len(levels) < 3
        or not all(_number(v) and 0 < v < 1 for v in levels)
        or any(b <= a for a, b in itertools.pairwise(levels))
    ):
        raise OptionError(
            f"levels={levels!r} are not at least three increasing probabilities between 0 and 1.",
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
three hidden layers on the surface latent, log1p(tp/1e-5). Theirs is not bounded at zero; this
one is."""


def unknown_head(name: object) -> OptionError:
    """The error for a head that is not known."""
    return OptionError(
        f"there is no head {name!r}; valid are 'auto',"
        f" {', '.join(map(repr, (*FAMILIES, *PRESETS)))}, or a HeadOptions.",
        fix="head='auto'",
    )


def options_for(head: Any, family: str) -> HeadOptions:
    """Resolve ``head=`` of finetune.

    Parameters
    ----------
    head : str or HeadOptions
        ``"auto"``, a family, or a preset.
    family : str
        What ``"auto"`` stands for.

    Raises
    ------
    OptionError
        Unknown head.
    """
    if isinstance(head, HeadOptions):
        return head
    if not isinstance(head, str):
        raise unknown_head(head)
    if head in PRESETS:
        return PRESETS[head]
    name = family if head == "auto" else head
    if name not in FAMILIES:
        raise unknown_head(head)
    return HeadOptions(family=name)

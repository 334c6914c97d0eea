"""What is predicted: heads that turn latents into the distribution of six-hour precipitation, and their scores."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import nn

from xaurora import distributions
from xaurora.errors import OptionError

HEADS = ("censored_normal", "deterministic")
"""Names that ``head=`` takes, beside ``"auto"`` and a :class:`HeadOptions`."""

EPSILON_RANGE = (1e-5, 1e-3)
"""m; ε of log1p(tp/ε) is the mean six-hour total of the training period, within this range. Far below the mean, the score would
weigh drizzle like rain and leave an absurd tail in mm; far above it, a dry region's rain would all look alike."""

WETTEST = 0.5
"""m over six hours; the median-like location e^{μ+σ²/2}·ε stays below (the record is about 0.84 m, WMO archive of extremes)."""


@dataclass(frozen=True)
class HeadOptions:
    """How rain is modelled.

    Parameters
    ----------
    family : {"censored_normal", "deterministic"}
        Distribution of ``z = log1p(tp / ε)``.
    epsilon : float, optional
        ε in metres, positive; by default the mean six-hour total of the training period, between 1e-5 and 1e-3.
    width : int
        Hidden width of the MLP.
    largest_sigma : float
        Upper bound of σ in z, so that no tail is absurd in mm.
    """

    family: str = "censored_normal"
    epsilon: float | None = None
    width: int = 512
    largest_sigma: float = 1.5

    def __post_init__(self) -> None:
        if self.family not in HEADS:
            raise unknown_head(self.family)
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise OptionError(
                f"epsilon={self.epsilon!r} is not positive; it is an amount in metres.", fix="HeadOptions(epsilon=1e-3)"
            )
        if self.width < 1:
            raise OptionError(f"width={self.width!r} is not positive.", fix="HeadOptions(width=512)")
        if not self.largest_sigma > SMALLEST_SIGMA:
            raise OptionError(
                f"largest_sigma={self.largest_sigma!r} is not above {SMALLEST_SIGMA}.",
                fix="HeadOptions(largest_sigma=1.5)",
            )

    def for_climate(self, mean_amount: float) -> HeadOptions:
        """The same options with ε set, from the mean six-hour total in metres where it was left open."""
        if self.epsilon is not None:
            return self
        return replace(self, epsilon=float(f"{min(max(mean_amount, EPSILON_RANGE[0]), EPSILON_RANGE[1]):.3g}"))


SMALLEST_SIGMA = 1e-3
LARGEST_RATIO = 300.0
"""Of μ to σ: up to there the CRPS is good to 1e-3 in float32."""


def unknown_head(name: object) -> OptionError:
    """The error for a head that is not known."""
    return OptionError(
        f"there is no head {name!r}; valid are 'auto', {', '.join(map(repr, HEADS))}, or a HeadOptions.",
        fix="head='auto'",
    )


def options_for(head: str | HeadOptions) -> HeadOptions:
    """Resolve ``head=`` of finetune.

    Raises
    ------
    OptionError
        Unknown head.
    """
    if isinstance(head, HeadOptions):
        return head
    if head == "auto":
        return HeadOptions()
    if head not in HEADS:
        raise unknown_head(head)
    return HeadOptions(family=head)


@dataclass(frozen=True)
class Climatology:
    """What a head starts from: of all points and times of the training period.

    Parameters
    ----------
    wet_fraction : float
        Share of amounts above zero.
    mean_z : float
        Mean of ``log1p(tp / ε)``, zeros included.
    median_z : float
        Its median.
    crps_z : float
        CRPS in z of the climatology itself; losses are in units of it, so that a dry region weighs no less than a wet one.
    """

    wet_fraction: float
    mean_z: float
    median_z: float
    crps_z: float = 1.0


class Head(Protocol):
    """What training and prediction need of a head. ``params`` are fields ``(b, h, w)``, float32; amounts are in metres."""

    options: HeadOptions

    def __call__(self, latents: torch.Tensor) -> torch.Tensor: ...
    def parameters_of(self, raw: torch.Tensor) -> dict[str, torch.Tensor]: ...
    def loss(self, params: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor: ...
    def crps(self, params: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor: ...
    def mean(self, params: dict[str, torch.Tensor]) -> torch.Tensor: ...
    def quantile(self, params: dict[str, torch.Tensor], q: float) -> torch.Tensor: ...
    def probability_above(self, params: dict[str, torch.Tensor], threshold: float) -> torch.Tensor: ...
    def sample(
        self, params: dict[str, torch.Tensor], n: int, generator: torch.Generator | None = None
    ) -> torch.Tensor: ...
    def initialise(self, climatology: Climatology) -> None: ...


class LatentMLP(nn.Module):
    """A two-layer MLP per patch on all latent levels.

    All levels, because moisture aloft sits in the atmospheric latents: on synthetic rain the surface latent alone gave a quarter
    of the skill.

    Parameters
    ----------
    levels, width_in : int
        Latent levels and their width.
    outputs : int
        Fields to predict.
    patch_size : int
        Pixels along a patch's side.
    width : int
        Hidden width.
    """

    def __init__(self, levels: int, width_in: int, outputs: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.outputs, self.patch_size = outputs, patch_size
        self.norm = nn.LayerNorm(levels * width_in)
        self.hidden = nn.Linear(levels * width_in, width)
        self.out = nn.Linear(width, outputs * patch_size**2)
        nn.init.trunc_normal_(self.out.weight, std=0.05)
        nn.init.zeros_(self.out.bias)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """``(b, c, hp, wp, d)`` → ``(b, n, h, w)``, float32."""
        x = rearrange(latents, "b c h w d -> b h w (c d)")
        x = self.out(nn.functional.gelu(self.hidden(self.norm(x))))
        p = self.patch_size
        return rearrange(x, "b h w (n p q) -> b n (h p) (w q)", n=self.outputs, p=p, q=p)


class _RainHead(nn.Module):
    """What both heads share: the trunk, and ε."""

    outputs = 1

    def __init__(self, options: HeadOptions, levels: int, width_in: int, patch_size: int) -> None:
        super().__init__()
        self.options = options
        self.shape = (levels, width_in, patch_size)
        self.trunk = LatentMLP(levels, width_in, self.outputs, patch_size, options.width)
        # Where the climatology lies in z, and how wide it is: the trunk learns deviations in these units.
        self.register_buffer("location", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("unit_of_loss", torch.ones(()))

    location: torch.Tensor
    scale: torch.Tensor
    unit_of_loss: torch.Tensor

    @property
    def epsilon(self) -> float:
        """ε in metres."""
        if self.options.epsilon is None:
            raise OptionError("the head has no epsilon yet.", fix="heads.build(options.for_climate(mean_amount), ...)")
        return self.options.epsilon

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Raw output ``(b, n, h, w)``."""
        return self.trunk(latents)

    def _start_at(self, location: float, scale: float, climatology: Climatology) -> None:
        self.location.fill_(location)
        self.scale.fill_(scale)
        self.unit_of_loss.fill_(max(climatology.crps_z, 1e-6))
        with torch.no_grad():
            self.trunk.out.bias.zero_()

    def config(self) -> dict[str, Any]:
        """All that is needed to build the head again."""
        levels, width_in, patch_size = self.shape
        return {"options": asdict(self.options), "levels": levels, "width_in": width_in, "patch_size": patch_size}


class CensoredNormalHead(_RainHead):
    """``z = log1p(tp / ε)`` as a normal that is censored at zero; trained on its closed-form CRPS in z.

    μ is bounded above so that ``ε e^{μ+σ²/2}`` stays below :data:`WETTEST`, and below at −8 where rain has no chance left; σ lies
    between 0.001 (or μ/300) and ``largest_sigma``.
    """

    outputs = 2
    _DRIEST = -8.0

    def parameters_of(self, raw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Raw output → ``mu``, ``sigma`` in z, ``(b, h, w)``."""
        raw = raw.float()
        span = self.options.largest_sigma - SMALLEST_SIGMA
        share = ((self.scale - SMALLEST_SIGMA) / span).clamp(1e-4, 1.0 - 1e-4)
        sigma = SMALLEST_SIGMA + span * torch.sigmoid(raw[:, 1] + torch.logit(share))
        top = math.log(WETTEST / self.epsilon) - 0.5 * sigma**2
        # Two soft corners: the identity in between, never beyond.
        mu = top - nn.functional.softplus(top - self.location - self.scale * raw[:, 0])
        mu = self._DRIEST + nn.functional.softplus(mu - self._DRIEST)
        return {"mu": mu, "sigma": torch.maximum(sigma, mu.detach() / LARGEST_RATIO)}

    def loss(self, params: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        """CRPS in z, in units of the climatology's, ``(b, h, w)``."""
        return (
            distributions.censored_normal_crps_z(
                params["mu"], params["sigma"], distributions.to_latent(y, self.epsilon)
            )
            / self.unit_of_loss
        )

    def crps(self, params: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        """CRPS in metres, ``(b, h, w)``, computed in float64."""
        return distributions.censored_normal_crps(
            params["mu"].double(), params["sigma"].double(), y.double(), self.epsilon
        )

    def mean(self, params: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean amount, metres."""
        return distributions.censored_normal_mean(params["mu"], params["sigma"], self.epsilon)

    def quantile(self, params: dict[str, torch.Tensor], q: float) -> torch.Tensor:
        """Amount not exceeded with probability ``q``, metres."""
        return distributions.censored_normal_quantile(params["mu"], params["sigma"], q, self.epsilon)

    def probability_above(self, params: dict[str, torch.Tensor], threshold: float) -> torch.Tensor:
        """``P(tp > threshold)``, threshold in metres: ``Φ((μ − z_t)/σ)``."""
        return torch.special.ndtr((params["mu"] - math.log1p(threshold / self.epsilon)) / params["sigma"])

    def sample(self, params: dict[str, torch.Tensor], n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """``(n, b, h, w)`` amounts in metres, each pixel on its own."""
        mu = params["mu"]
        noise = torch.randn((n, *mu.shape), generator=generator, dtype=mu.dtype, device=mu.device)
        return self.epsilon * torch.expm1((mu + params["sigma"] * noise).clamp(min=0.0))

    def initialise(self, climatology: Climatology) -> None:
        """Start at the climatology: the censored normal with its wet fraction and its mean of z."""
        wet = min(max(climatology.wet_fraction, 1e-4), 1.0 - 1e-4)
        low = -float(torch.special.ndtri(torch.tensor(wet, dtype=torch.float64)))  # −μ/σ
        tail = 0.5 * math.erfc(low / math.sqrt(2.0))
        mean_over_sigma = math.exp(-0.5 * low**2) / math.sqrt(2.0 * math.pi) - low * tail
        span = self.options.largest_sigma - SMALLEST_SIGMA
        sigma = climatology.mean_z / max(mean_over_sigma, 1e-6)
        sigma = min(max(sigma, SMALLEST_SIGMA + 1e-3 * span), SMALLEST_SIGMA + 0.98 * span)
        self._start_at(max(-low * sigma, self._DRIEST + 1.0), sigma, climatology)


class DeterministicHead(_RainHead):
    """``z = log1p(tp / ε)`` as one number, bounded at zero; trained on the absolute error in z, which makes it the median."""

    outputs = 1

    def parameters_of(self, raw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Raw output → ``z`` ≥ 0, ``(b, h, w)``."""
        top = math.log(WETTEST / self.epsilon)
        sharp = 4.0  # of the corner at zero, in units of the climatology's spread
        z = self.scale * nn.functional.softplus(self.location + raw[:, 0].float(), beta=sharp)
        return {"z": top - nn.functional.softplus(top - z) + nn.functional.softplus(torch.tensor(-top)).to(z)}

    def loss(self, params: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        """Absolute error in z, in units of the climatology's CRPS, ``(b, h, w)``."""
        return (params["z"] - distributions.to_latent(y, self.epsilon)).abs() / self.unit_of_loss

    def crps(self, params: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        """Absolute error in metres, which is the CRPS of a single number."""
        return (self.mean(params) - y).abs()

    def mean(self, params: dict[str, torch.Tensor]) -> torch.Tensor:
        """The amount, metres (a median by its training, for want of a distribution)."""
        return distributions.from_latent(params["z"], self.epsilon).clamp(min=0.0)

    def quantile(self, params: dict[str, torch.Tensor], q: float) -> torch.Tensor:
        """The amount, whatever ``q``: all mass lies on it."""
        return self.mean(params)

    def probability_above(self, params: dict[str, torch.Tensor], threshold: float) -> torch.Tensor:
        """One where the amount is above the threshold, else zero."""
        return (self.mean(params) > threshold).float()

    def sample(self, params: dict[str, torch.Tensor], n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """``n`` times the same amount."""
        return self.mean(params).expand(n, *params["z"].shape)

    def initialise(self, climatology: Climatology) -> None:
        """Start at the median of z."""
        scale = max(2.0 * climatology.crps_z, 1e-3)
        self._start_at(math.log(math.expm1(4.0 * max(climatology.median_z / scale, 0.05))) / 4.0, scale, climatology)


_CLASSES: dict[str, type[CensoredNormalHead] | type[DeterministicHead]] = {
    "censored_normal": CensoredNormalHead,
    "deterministic": DeterministicHead,
}


def build(options: HeadOptions, levels: int, width_in: int, patch_size: int) -> CensoredNormalHead | DeterministicHead:
    """A head for latents of ``levels`` × ``width_in``."""
    return _CLASSES[options.family](options, levels, width_in, patch_size)


def from_config(config: dict[str, Any]) -> CensoredNormalHead | DeterministicHead:
    """The inverse of ``head.config()``."""
    return build(HeadOptions(**config["options"]), config["levels"], config["width_in"], config["patch_size"])

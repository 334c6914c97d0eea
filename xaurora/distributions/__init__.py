"""Closed forms of the distribution families: CRPS, CDF, quantile and mean.

The formulas are written once over an array namespace, NumPy for scoring and Torch for training.
Precipitation amounts are in metres over six hours. The censored normal is defined in
``z = log1p(y / ε)``, with ε in metres.
"""

from __future__ import annotations

from xaurora.distributions.ensembles import ensemble_crps, plotting_positions, ranks_of
from xaurora.distributions.families import (
    FAMILIES,
    BoundedNormal,
    CensoredNormal,
    CensoredShiftedGamma,
    Deterministic,
    Family,
    HurdleGamma,
    HurdleLognormal,
    Normal,
    Quantiles,
    from_attrs,
    is_attr,
    to_attrs,
)
from xaurora.distributions.normals import (
    bounded_normal_crps,
    bounded_normal_mean,
    censored_normal_cdf,
    censored_normal_crps,
    censored_normal_crps_z,
    censored_normal_mean,
    censored_normal_quantile,
    from_latent,
    normal_crps,
    to_latent,
)

__all__ = [
    "FAMILIES",
    "BoundedNormal",
    "CensoredNormal",
    "CensoredShiftedGamma",
    "Deterministic",
    "Family",
    "HurdleGamma",
    "HurdleLognormal",
    "Normal",
    "Quantiles",
    "bounded_normal_crps",
    "bounded_normal_mean",
    "censored_normal_cdf",
    "censored_normal_crps",
    "censored_normal_crps_z",
    "censored_normal_mean",
    "censored_normal_quantile",
    "csgd",
    "ensemble_crps",
    "from_attrs",
    "from_latent",
    "hurdles",
    "is_attr",
    "normal_crps",
    "plotting_positions",
    "quantiles",
    "ranks_of",
    "to_attrs",
    "to_latent",
]

"""One init time and lead time of one variable, with everything that a statistic may need.

Does not depend on torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from xaurora.distributions import Deterministic, Family


@dataclass(frozen=True)
class Settings:
    """Settings that are the same for all samples.

    Parameters
    ----------
    thresholds_mm : tuple of float
        Precipitation thresholds in mm.
    sizes : tuple of int
        Neighbourhood sizes of the FSS in grid points, odd.
    levels : tuple of float
        Quantile levels at which coverage and quantile score are computed.
    convention : {"weatherbench2", "weatherbenchx"}
        Whose definition is used where the two differ.
    wraps : bool
        Whether the grid is periodic in longitude.
    seed : int
        Seed for random draws: ties of ranks, and the PIT of dry cells.
    order : tuple of int
        Order of the columns for neighbourhoods, if it is not the grid's own. WeatherBench-X sorts
        longitudes from 0 to 360°, so that in a region across Greenwich its neighbourhoods join the
        east to the west.
    """

    thresholds_mm: tuple[float, ...] = (0.1, 1.0, 5.0, 10.0, 20.0)
    sizes: tuple[int, ...] = (1, 3, 5, 9)
    levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)
    convention: str = "weatherbench2"
    wraps: bool = False
    seed: int = 0
    order: tuple[int, ...] = ()


@dataclass
class Sample:
    """Fields of one variable at one valid time, ``([level,] h, w)``.

    They are float64 in the forecast's own units, except ``raw``, which is as stored.

    Parameters
    ----------
    settings : Settings
    raw : ndarray, ``([number,] [level,] h, w)``
        The forecast as stored.
    ensemble : bool
        Whether the first axis of ``raw`` holds members.
    y : ndarray
        Truth.
    valid : ndarray of bool, optional
        Points that are scored; None for all.
    normal : ndarray, optional
        Climatological mean of the valid time.
    law : Family, optional
        Distribution of the forecast, with ``params`` in canonical units.
    scale, offset : float
        Conversion to canonical units: canonical = own · scale + offset.
    mm : float
        Millimetres per unit; 0 if the variable is not precipitation.
    hours : int
        Accumulation period in hours; 0 if the variable is not precipitation.
    quantiles : dict
        Level → ``(h, w)``: quantiles stored in the forecast.
    probabilities : dict
        Threshold in mm → ``(h, w)``: probabilities stored in the forecast.
    normal_quantiles : ndarray, ``(q, [level,] h, w)``, optional
        Climatological quantiles of the valid time.
    seeps : tuple of ndarray, optional
        Fraction of dry totals, and the threshold of heavy totals in metres, ``(h, w)`` each.
    number : tuple of int
        Init time and lead time in seconds; part of the seed of random draws.
    partner : Sample, optional
        The other component of a wind vector.
    lost : bool
        Whether this is the mean of a distribution whose parameters are not in the forecast.
    """

    settings: Settings
    raw: np.ndarray
    ensemble: bool
    y: np.ndarray
    valid: np.ndarray | None = None
    normal: np.ndarray | None = None
    law: Family | None = None
    params: Mapping[str, np.ndarray] = field(default_factory=dict)
    scale: float = 1.0
    offset: float = 0.0
    mm: float = 0.0
    hours: int = 0
    quantiles: Mapping[float, np.ndarray] = field(default_factory=dict)
    probabilities: Mapping[float, np.ndarray] = field(default_factory=dict)
    normal_quantiles: np.ndarray | None = None
    seeps: tuple[np.ndarray, np.ndarray] | None = None
    number: tuple[int, ...] = (0,)
    partner: Sample | None = None
    lost: bool = False

    @cached_property
    def members(self) -> np.ndarray:
        """Members, ``(number, [level,] h, w)``; a single forecast is an ensemble of one."""
        return (self.raw if self.ensemble else self.raw[None]).astype(np.float64)

    @cached_property
    def f(self) -> np.ndarray:
        """Single-valued forecast: for an ensemble its mean.

        The mean is computed in the stored precision, as in WeatherBench2. A float32 sum depends on
        its order. For geopotential, rounded to 0.004 m² s⁻², it affects the fifth digit of a small
        region's RMSE. WeatherBench2 adds up the chunks of a Zarr store, whose defaults split the
        members of pressure-level variables into two halves. The same order is used here whatever
        the chunks are, so that scores do not depend on chunking.
        """
        if not self.ensemble:
            return self.raw.astype(np.float64)
        kind = np.float32 if self.raw.dtype.itemsize < 4 else self.raw.dtype.type
        half = -(-len(self.raw) // 2) if self.raw.ndim > 3 else len(self.raw)
        total = self.raw[:half].sum(axis=0, dtype=kind)
        if half < len(self.raw):
            total = total + self.raw[half:].sum(axis=0, dtype=kind)
        mean: np.ndarray = (total / kind(len(self.raw))).astype(np.float64)
        return mean

    @cached_property
    def mean(self) -> np.ndarray:
        """Ensemble mean as WeatherBench2's ensemble scores compute it.

        It is computed in the stored precision, one member after another.
        """
        return self.raw.mean(axis=0).astype(np.float64) if self.ensemble else self.f

    @cached_property
    def error(self) -> np.ndarray:
        """``f − y``."""
        return self.f - self.y

    @cached_property
    def f_anomaly(self) -> np.ndarray:
        """``f − climatology``."""
        return self.f - self.normal

    @cached_property
    def y_anomaly(self) -> np.ndarray:
        """``y − climatology``."""
        return self.y - self.normal

    @property
    def thresholds(self) -> np.ndarray:
        """Precipitation thresholds in the forecast's units."""
        return np.asarray(self.settings.thresholds_mm) / self.mm

    @cached_property
    def y_canonical(self) -> np.ndarray:
        """Truth in canonical units; negative precipitation (packing noise) is set to zero."""
        y = self.y * self.scale + self.offset
        return np.maximum(y, 0.0) if self.mm else y

    def rng(self) -> np.random.Generator:
        """Return a random generator that does not depend on the order of computation.

        It is seeded with the settings' seed and the sample's init and lead time.
        """
        return np.random.default_rng((self.settings.seed, *self.number))

    def probability(self, i: int) -> np.ndarray | None:
        """Return the probability of exceeding threshold ``i``, or None.

        It is the fraction of members, the probability of the distribution, or the stored
        probability.
        """
        threshold_mm = self.settings.thresholds_mm[i]
        if self.ensemble:
            over = (self.members > self.thresholds[i]).mean(axis=0)
            return np.where(np.isnan(self.members).any(axis=0), np.nan, over)
        if self.law is not None and not isinstance(self.law, Deterministic):
            return 1.0 - np.asarray(
                self.law.cdf(self.params, threshold_mm * 1e-3), dtype=np.float64
            )
        for there, values in self.probabilities.items():
            if abs(there - threshold_mm) <= 1e-6 * threshold_mm:
                return values
        return None

    def quantile(self, level: float) -> np.ndarray | None:
        """Return a quantile of the forecast in its own units, or None.

        It comes from the members, the distribution, or the stored quantiles.
        """
        if self.ensemble:
            return np.quantile(self.members, level, axis=0)
        if self.law is not None and not isinstance(self.law, Deterministic):
            return (
                np.asarray(self.law.quantile(self.params, level), dtype=np.float64) - self.offset
            ) / self.scale
        for there, values in self.quantiles.items():
            if abs(there - level) < 1e-6:
                return values
        return None

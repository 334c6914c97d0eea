"""Statistics: values computed at every point before any averaging.

Each statistic takes a :class:`~xaurora.evaluation.sample.Sample` and returns a float64 array
``(*extra, [level,] h, w)`` that is NaN where an input is missing, some also a mask of the points
that are scored. Their area means can be added up over init times, and
:mod:`xaurora.evaluation.metrics` computes scores from them. Does not depend on torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xaurora.distributions import Deterministic, ensemble_crps
from xaurora.evaluation import histograms, neighbourhoods, spectra
from xaurora.evaluation.aggregation import AreaMeans
from xaurora.evaluation.sample import Sample


@dataclass(frozen=True)
class Statistic:
    """Definition of one statistic.

    Parameters
    ----------
    compute : callable
        Function from a sample to an array, or to an array and a mask of the points that are scored.
    dims : tuple of str
        Extra dims, which come first in the array.
    by_region : callable, optional
        Replaces ``compute`` for statistics that are not means over points: a function from a sample
        and :class:`AreaMeans` to ``(region, *extra)`` and the share of the region that it stands
        for.
    applies : callable
        Function from a sample to whether it has what the statistic needs.
    """

    compute: Callable[[Sample], Any] | None = None
    dims: tuple[str, ...] = ()
    by_region: Callable[[Sample, AreaMeans], tuple[np.ndarray, np.ndarray]] | None = None
    applies: Callable[[Sample], bool] = lambda s: True

    def means(self, sample: Sample, areas: AreaMeans) -> tuple[np.ndarray, np.ndarray]:
        """Return area means and the shares of the region that they stand for.

        Both are ``(region, *extra, [level])``.
        """
        if self.by_region is not None:
            return self.by_region(sample, areas)
        assert self.compute is not None
        out = self.compute(sample)
        values, own = out if isinstance(out, tuple) else (out, None)
        valid = sample.valid if own is None else own if sample.valid is None else own & sample.valid
        return areas(values, valid)


# --- errors ---------------------------------------------------------------------------------------


def _squared_error(s: Sample) -> np.ndarray:
    if s.partner is not None:
        return s.error**2 + s.partner.error**2
    return s.error**2


def _anomaly_correlation(s: Sample, areas: AreaMeans) -> tuple[np.ndarray, np.ndarray]:
    """Return WeatherBench2's ACC: one value per init time, uncentred."""
    both, share = areas(s.f_anomaly * s.y_anomaly, s.valid)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = both / np.sqrt(areas(s.f_anomaly**2, s.valid)[0] * areas(s.y_anomaly**2, s.valid)[0])
    return out, share


def _root_of_area_mean(s: Sample, areas: AreaMeans) -> tuple[np.ndarray, np.ndarray]:
    mean, share = areas(_squared_error(s), s.valid)
    return np.sqrt(mean), share


# --- ensembles ------------------------------------------------------------------------------------


def _squared_error_of_mean(s: Sample) -> np.ndarray:
    own = (s.mean - s.y) ** 2
    return own + (s.partner.mean - s.partner.y) ** 2 if s.partner is not None else own


def _variance(s: Sample) -> np.ndarray:
    """Return the unbiased variance of the members; zero for a single one, as in WeatherBench2."""
    if s.partner is not None:
        return _own_variance(s) + _own_variance(s.partner)
    return _own_variance(s)


def _own_variance(s: Sample) -> np.ndarray:
    return s.raw.var(axis=0, ddof=1).astype(np.float64) if len(s.raw) > 1 else np.zeros_like(s.f)


def _debiased(s: Sample) -> np.ndarray:
    """Return the squared error of the mean minus the part due to the finite number of members.

    It is computed in the stored precision, because two nearly equal numbers are subtracted and
    WeatherBench2's are float32.
    """
    if s.partner is not None:
        return _own_debiased(s) + _own_debiased(s.partner)
    return _own_debiased(s)


def _own_debiased(s: Sample) -> np.ndarray:
    count = len(s.raw)
    if count < 2:
        return np.full_like(s.f, np.nan)
    kind = s.raw.dtype.type
    difference = s.mean.astype(kind) - s.y.astype(kind)
    return (difference**2 - s.raw.var(axis=0, ddof=1) / kind(count)).astype(np.float64)


def _spread(s: Sample, *, fair: bool) -> np.ndarray:
    """Return ``E|X − X'|`` over pairs of members."""
    count = len(s.members)
    if count < 2:
        return np.zeros_like(s.f)
    ranked = np.sort(s.members, axis=0)
    weights = (2.0 * np.arange(1, count + 1) - count - 1).reshape((-1,) + (1,) * (ranked.ndim - 1))
    return 2.0 * (weights * ranked).sum(axis=0) / (count * (count - 1 if fair else count))


def _crps(s: Sample) -> np.ndarray:
    """Return the CRPS of members (fair), a distribution or quantiles, else the absolute error."""
    if s.ensemble:
        return ensemble_crps(s.members, s.y, fair=True)
    if s.law is not None and not isinstance(s.law, Deterministic):
        there = np.isfinite(s.y)
        score = s.law.crps(s.params, np.where(there, s.y_canonical, 0.0))
        return np.where(there, score, np.nan) / abs(s.scale)
    if s.quantiles:
        return crps_of_quantiles(dict(s.quantiles), s.y)
    return np.abs(s.error)


def crps_of_quantiles(quantiles: dict[float, np.ndarray], y: np.ndarray) -> np.ndarray:
    """Return ``2 ∫ ρ_τ(y − q_τ) dτ`` over the quantile levels.

    Each level stands for the levels that are nearest to it (Laio and Tamea 2007,
    doi:10.5194/hess-11-1267-2007).
    """
    levels = np.array(sorted(quantiles))
    middle = np.concatenate([[0.0], 0.5 * (levels[1:] + levels[:-1]), [1.0]])
    out = np.zeros_like(y)
    for level, width in zip(levels, np.diff(middle), strict=True):
        out += 2.0 * width * pinball(y, quantiles[float(level)], float(level))
    return out


def pinball(y: np.ndarray, q: np.ndarray, level: float) -> np.ndarray:
    """Return ``ρ_τ(y − q) = (τ − 1{y < q}) (y − q)``.

    Reference: Koenker and Bassett (1978), doi:10.2307/1913643.
    """
    return (level - (y < q)) * (y - q)


def _energy(s: Sample, areas: AreaMeans, *, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return WeatherBench2's energy score: norms over the area, spread of adjacent members."""

    def norm(of: Callable[[Sample], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        squares = of(s) ** 2 + (of(s.partner) ** 2 if s.partner is not None else 0.0)
        mean, share = areas(squares, s.valid)
        return np.sqrt(mean).mean(axis=1), share[:, 0]

    skill, share = norm(lambda one: one.members - one.y)
    if part == "skill" or len(s.members) < 2:
        return (skill if part != "spread" else np.zeros_like(skill)), share
    spread, _ = norm(lambda one: one.members[:-1] - one.members[1:])
    return (spread if part == "spread" else skill - 0.5 * spread), share


# --- threshold exceedance -------------------------------------------------------------------------


def _stacked(fields: list[np.ndarray]) -> np.ndarray:
    return np.stack(fields)


def _counts(s: Sample, forecast: bool, truth: bool, *, climatological: bool) -> np.ndarray:
    """Return 1 where forecast and truth are on the given sides of the threshold.

    A value exceeds a threshold if it is strictly greater, as in WeatherBench2 and WeatherBench-X.
    """
    thresholds = s.normal_quantiles if climatological else s.thresholds
    missing = ~(np.isfinite(s.f) & np.isfinite(s.y))
    out = []
    for t in thresholds:  # type: ignore[union-attr]
        hit = ((s.f > t) == forecast) & ((s.y > t) == truth)
        gone = missing | ~np.isfinite(t) if climatological else missing
        out.append(np.where(gone, np.nan, hit))
    return _stacked(out)


def _brier(s: Sample, *, debiased: bool) -> np.ndarray:
    out = []
    for i, t in enumerate(s.thresholds):
        p = s.probability(i)
        if p is None:
            out.append(np.full(s.y.shape, np.nan))
            continue
        score = (p - np.where(np.isnan(s.y), np.nan, s.y > t)) ** 2
        if debiased:
            count = len(s.members)
            score = (
                score - p * (1.0 - p) / (count - 1) if count > 1 else np.full_like(score, np.nan)
            )
        out.append(score)
    return _stacked(out)


# --- SEEPS ----------------------------------------------------------------------------------------

_DRY_SHARES = (
    0.1,
    0.85,
)  # Rodwell et al. 2010: outside this range a climate is too wet or too dry to be scored


def _seeps(s: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return SEEPS: categories dry, light and heavy, with penalties by the fraction of dry totals.

    Reference: Rodwell et al. (2010), doi:10.1002/qj.656, section 3.
    """
    from xaurora.evaluation.climatology import DRY_MM

    p1, heavy = s.seeps  # type: ignore[misc]
    strict = s.settings.convention == "weatherbench2"
    kept = (
        (p1 > _DRY_SHARES[0]) & (p1 < _DRY_SHARES[1])
        if strict
        else (p1 >= _DRY_SHARES[0]) & (p1 <= _DRY_SHARES[1])
    )
    # The threshold has the precision of the data. Otherwise totals equal to it would be dry.
    dry = np.float64(
        np.asarray(
            DRY_MM[s.hours] * 1e-3, dtype=s.raw.dtype if s.raw.dtype.kind == "f" else np.float64
        )
    )
    metres = 1e-3 * s.mm
    with np.errstate(invalid="ignore", divide="ignore"):
        categories = []
        for x in (s.f * metres, s.y * metres):
            is_dry = x < dry if strict else x <= dry
            categories.append((is_dry, (x > dry) & (x < heavy), x >= heavy))
        (f_dry, f_light, f_heavy), (y_dry, y_light, y_heavy) = categories
        out = 0.5 * (
            f_dry * (y_light / (1.0 - p1) + y_heavy * 4.0 / (1.0 - p1))
            + f_light * (y_dry / p1 + y_heavy * 3.0 / (1.0 - p1))
            + f_heavy * (y_dry * (1.0 / p1 + 3.0 / (2.0 + p1)) + y_light * 3.0 / (2.0 + p1))
        )
    missing = np.isnan(s.f) | np.isnan(s.y) | np.isnan(heavy)
    return np.where(missing, np.nan, np.where(kept, out, 0.0)), np.broadcast_to(kept, s.y.shape)


# --- quantiles ------------------------------------------------------------------------------------


def _quantiles(s: Sample, of: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> np.ndarray:
    out = []
    for level in s.settings.levels:
        q = s.quantile(level)
        out.append(
            np.full(s.y.shape, np.nan)
            if q is None
            else np.where(np.isnan(s.y), np.nan, of(s.y, q, level))
        )
    return _stacked(out)


# --- requirements of a sample ---------------------------------------------------------------------


def _has_law(s: Sample) -> bool:
    return s.law is not None and not s.ensemble and not isinstance(s.law, Deterministic)


def _is_ensemble(s: Sample) -> bool:
    return s.ensemble


def _has_normal(s: Sample) -> bool:
    return s.normal is not None


def _is_rain(s: Sample) -> bool:
    return s.mm > 0


def _has_probability(s: Sample) -> bool:
    return _is_rain(s) and (s.ensemble or _has_law(s) or bool(s.probabilities))


def _has_quantiles(s: Sample) -> bool:
    return s.partner is None and (s.ensemble or _has_law(s) or bool(s.quantiles))


def _is_joint(s: Sample) -> bool:
    """Return whether the field has spatial structure.

    A distribution that is independent at every point does not.
    """
    return not _has_law(s) and not (s.lost and not s.ensemble)


def _is_joint_rain(s: Sample) -> bool:
    return _is_rain(s) and _is_joint(s)


_T, _C, _Q = ("threshold_mm",), ("quantile",), ("forecast_quantile",)
_BIN = (*_T, "probability_bin")


def _four(climatological: bool) -> dict[str, Statistic]:
    prefix, dims = ("quantile_", _C) if climatological else ("", _T)

    def count(forecast: bool, truth: bool) -> Statistic:
        return Statistic(
            lambda s: _counts(s, forecast, truth, climatological=climatological),
            dims,
            applies=(lambda s: s.normal_quantiles is not None) if climatological else _is_rain,
        )

    return {
        f"{prefix}truepositives": count(True, True),
        f"{prefix}falsepositives": count(True, False),
        f"{prefix}falsenegatives": count(False, True),
        f"{prefix}truenegatives": count(False, False),
    }


def _coverage(s: Sample, areas: AreaMeans) -> tuple[np.ndarray, np.ndarray]:
    share = areas(np.ones(s.y.shape), s.valid)[1]
    return share, np.ones_like(share)


def _energies(part: str) -> Statistic:
    return Statistic(by_region=lambda s, areas: _energy(s, areas, part=part), applies=_is_ensemble)


def _reliability(what: str) -> Statistic:
    return Statistic(None, _BIN, lambda s, a: histograms.reliability(s, a, what), _has_probability)


def _fractions(what: str) -> Statistic:
    dims = ("neighborhood_size", *_T)
    return Statistic(None, dims, lambda s, a: neighbourhoods.fractions(s, a, what), _is_joint_rain)


def _intensity(forecast: bool) -> Statistic:
    return Statistic(
        None,
        ("intensity_bin",),
        lambda s, a: histograms.intensity(s, a, forecast=forecast),
        lambda s: _is_rain(s),
    )


def _spectrum(forecast: bool) -> Statistic:
    return Statistic(
        None, ("zonal_wavenumber",), lambda s, a: spectra.power(s, a, forecast=forecast), _is_joint
    )


STATISTICS: dict[str, Statistic] = {
    "squared_error": Statistic(_squared_error),
    "absolute_error": Statistic(lambda s: np.abs(s.error)),
    "error": Statistic(lambda s: s.error),
    "root_of_area_mean": Statistic(by_region=_root_of_area_mean),
    "anomaly_correlation": Statistic(by_region=_anomaly_correlation, applies=_has_normal),
    "anomaly_covariance": Statistic(lambda s: s.f_anomaly * s.y_anomaly, applies=_has_normal),
    "squared_forecast_anomaly": Statistic(lambda s: s.f_anomaly**2, applies=_has_normal),
    "squared_truth_anomaly": Statistic(lambda s: s.y_anomaly**2, applies=_has_normal),
    "seeps": Statistic(_seeps, applies=lambda s: s.seeps is not None),
    "crps": Statistic(_crps, applies=lambda s: s.ensemble or not s.lost),
    "crps_skill": Statistic(lambda s: np.abs(s.members - s.y).mean(axis=0), applies=_is_ensemble),
    "crps_spread": Statistic(lambda s: _spread(s, fair=True), applies=_is_ensemble),
    "crps_spread_unfair": Statistic(lambda s: _spread(s, fair=False), applies=_is_ensemble),
    "squared_error_of_mean": Statistic(_squared_error_of_mean, applies=_is_ensemble),
    "variance": Statistic(_variance, applies=_is_ensemble),
    "debiased_squared_error": Statistic(_debiased, applies=_is_ensemble),
    "energy_score": _energies("score"),
    "energy_score_skill": _energies("skill"),
    "energy_score_spread": _energies("spread"),
    **_four(False),
    **_four(True),
    "brier": Statistic(lambda s: _brier(s, debiased=False), _T, applies=_has_probability),
    "debiased_brier": Statistic(
        lambda s: _brier(s, debiased=True), _T, applies=lambda s: s.ensemble and _is_rain(s)
    ),
    "quantile_coverage": Statistic(
        lambda s: _quantiles(s, lambda y, q, level: (y <= q).astype(np.float64)),
        _Q,
        applies=_has_quantiles,
    ),
    "quantile_score": Statistic(lambda s: _quantiles(s, pinball), _Q, applies=_has_quantiles),
    "fractions_error": _fractions("error"),
    "forecast_fractions": _fractions("forecast"),
    "truth_fractions": _fractions("truth"),
    "bin_share": _reliability("share"),
    "bin_probability": _reliability("probability"),
    "bin_observed": _reliability("observed"),
    "ranks": Statistic(
        None, ("rank",), histograms.ranks, lambda s: s.ensemble and s.partner is None
    ),
    "pit": Statistic(None, ("pit_bin",), histograms.pit, _has_law),
    "forecast_intensity": _intensity(True),
    "truth_intensity": _intensity(False),
    "forecast_spectrum": _spectrum(True),
    "truth_spectrum": _spectrum(False),
    "coverage": Statistic(by_region=_coverage),
}
"""Statistics by name. Dims: extra ones, then ``level`` if the variable has levels."""

OF_WINDS = (
    "squared_error",
    "squared_error_of_mean",
    "root_of_area_mean",
    "variance",
    "debiased_squared_error",
    "energy_score",
    "energy_score_skill",
    "energy_score_spread",
    "coverage",
)
"""Statistics that are defined for wind vectors."""

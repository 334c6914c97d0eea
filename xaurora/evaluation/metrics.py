"""Metrics: functions of the means of statistics.

The tables in ``docs/evaluation.md`` list the formula, units and reference of each metric. Names are
those of WeatherBench-X and WeatherBench2. The usual short names (``pod``, ``far``, ``f1``) are
aliases. Does not depend on torch.

References: Rasp et al. (2024), WeatherBench 2, J. Adv. Model. Earth Syst.,
doi:10.1029/2023MS004019, section 3; Jolliffe and Stephenson (2012), Forecast Verification,
doi:10.1002/9781119960003, chapters 3 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xaurora.errors import OptionError

Means = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Parameters
    ----------
    statistics : tuple of str
        Statistics whose means it is computed from.
    formula : callable
        Function from the means by name to the score.
    words : str
        Description with the formula.
    needs : str
        What a forecast must have: ``""``, ``"climatology"``, ``"seeps"``, ``"members"``,
        ``"probability"``, ``"quantile"``, ``"rain"``, ``"law"``, ``"joint"``,
        ``"normal_quantiles"``.
    better : {"low", "high", "zero", "one", ""}
        Which values are better.
    units : {"own", "square", ""}
        The variable's units, their square, or none.
    suffix : str
        Suffix of the variable of the scores Dataset that holds the metric: ``""`` for metrics that
        have only the dims region, lead time and level, ``"_exceed"``, …
    """

    statistics: tuple[str, ...]
    formula: Callable[[Means], np.ndarray]
    words: str
    needs: str = ""
    better: str = "low"
    units: str = "own"
    suffix: str = ""


def _one(name: str) -> Callable[[Means], np.ndarray]:
    return lambda m: m[name]


def _root(name: str) -> Callable[[Means], np.ndarray]:
    return lambda m: np.sqrt(m[name])


def _acc(m: Means) -> np.ndarray:
    if "anomaly_correlation" in m:
        return m["anomaly_correlation"]
    return m["anomaly_covariance"] / np.sqrt(
        m["squared_forecast_anomaly"] * m["squared_truth_anomaly"]
    )


# --- contingency table: hits a, false alarms b, misses c, correct negatives d ---------------------


def _sedi(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return the symmetric extremal dependence index.

    Ferro and Stephenson (2011), doi:10.1175/WAF-D-10-05030.1. Rates are kept away from 0 and 1 as
    in WeatherBench-X.
    """
    h, f = np.clip(a / (a + c), 1e-6, 1 - 1e-6), np.clip(b / (b + d), 1e-6, 1 - 1e-6)
    top = np.log(f) - np.log(h) + np.log(1 - h) - np.log(1 - f)
    return top / (np.log(f) + np.log(h) + np.log(1 - h) + np.log(1 - f))


def _ets(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    by_chance = (a + b) * (a + c) / (a + b + c + d)
    return (a - by_chance) / (a + b + c - by_chance)


_COUNTS: dict[str, tuple[Callable[[Any, Any, Any, Any], Any], str, str]] = {
    "recall": (lambda a, b, c, d: a / (a + c), "high", "probability of detection, a/(a+c)"),
    "falsealarmrate": (lambda a, b, c, d: b / (a + b), "low", "false alarm ratio, b/(a+b)"),
    "precision": (lambda a, b, c, d: a / (a + b), "high", "success ratio, a/(a+b)"),
    "pofd": (lambda a, b, c, d: b / (b + d), "low", "probability of false detection, b/(b+d)"),
    "csi": (lambda a, b, c, d: a / (a + b + c), "high", "critical success index, a/(a+b+c)"),
    "ets": (_ets, "high", "equitable threat score, (a−r)/(a+b+c−r), r = (a+b)(a+c)/n"),
    "hss": (
        lambda a, b, c, d: 2 * (a * d - b * c) / ((a + c) * (c + d) + (a + b) * (b + d)),
        "high",
        "Heidke skill score, 2(ad−bc)/((a+c)(c+d)+(a+b)(b+d))",
    ),
    "sedi": (_sedi, "high", "symmetric extremal dependence index"),
    "f1score": (lambda a, b, c, d: 2 * a / (2 * a + b + c), "high", "2a/(2a+b+c)"),
    "accuracy": (lambda a, b, c, d: (a + d) / (a + b + c + d), "high", "(a+d)/n"),
    "frequencybias": (
        lambda a, b, c, d: (a + b) / (a + c),
        "one",
        "forecast over observed frequency, (a+b)/(a+c)",
    ),
    "truepositives": (lambda a, b, c, d: a, "", "share of hits, a/n"),
    "falsepositives": (lambda a, b, c, d: b, "", "share of false alarms, b/n"),
    "falsenegatives": (lambda a, b, c, d: c, "", "share of misses, c/n"),
    "truenegatives": (lambda a, b, c, d: d, "", "share of correct negatives, d/n"),
}
_FOUR = ("truepositives", "falsepositives", "falsenegatives", "truenegatives")


def _of_counts(prefix: str, needs: str, suffix: str) -> dict[str, Metric]:
    names = tuple(prefix + n for n in _FOUR)

    def formula(function: Callable[[Any, Any, Any, Any], Any]) -> Callable[[Means], np.ndarray]:
        return lambda m: function(*(m[n] for n in names))

    return {
        prefix + name: Metric(names, formula(function), words, needs, better, "", suffix)
        for name, (function, better, words) in _COUNTS.items()
    }


# --- probability bins -----------------------------------------------------------------------------

_BINS = ("bin_share", "bin_probability", "bin_observed")


def _per_bin(m: Means) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    share = m["bin_share"]
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(share > 0, m["bin_probability"] / share, 0.0)
        o = np.where(share > 0, m["bin_observed"] / share, 0.0)
    return share, p, o, m["bin_observed"].sum(axis=-1)


def _reliability(m: Means) -> np.ndarray:
    share, p, o, _ = _per_bin(m)
    return (share * (p - o) ** 2).sum(axis=-1)


def _resolution(m: Means) -> np.ndarray:
    share, _, o, mean = _per_bin(m)
    return (share * (o - mean[..., None]) ** 2).sum(axis=-1)


def _uncertainty(m: Means) -> np.ndarray:
    mean = m["bin_observed"].sum(axis=-1)
    return mean * (1.0 - mean)


def _roc_area(m: Means) -> np.ndarray:
    """Return the area under the curve of hit rate over false alarm rate (Mason 1982).

    The warning threshold is lowered one probability bin at a time.
    """
    hits = np.flip(m["bin_observed"], -1).cumsum(axis=-1)
    alarms = np.flip(m["bin_share"] - m["bin_observed"], -1).cumsum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        h, f = hits / hits[..., -1:], alarms / alarms[..., -1:]
    start = np.zeros((*h.shape[:-1], 1))
    h, f = np.concatenate([start, h], -1), np.concatenate([start, f], -1)
    return 0.5 * ((h[..., 1:] + h[..., :-1]) * np.diff(f, axis=-1)).sum(axis=-1)


def _brier_skill(m: Means) -> np.ndarray:
    mean = m["bin_observed"].sum(axis=-1)
    return 1.0 - m["brier"] / (mean * (1.0 - mean))


def _fss(m: Means) -> np.ndarray:
    return 1.0 - m["fractions_error"] / (m["forecast_fractions"] + m["truth_fractions"])


def _blur(m: Means) -> np.ndarray:
    """Return the power of the shorter half of the waves, forecast over truth."""
    f, y = m["forecast_spectrum"], m["truth_spectrum"]
    there = np.isfinite(y)
    longest = np.argmax(
        np.where(there, np.arange(f.shape[_WAVE]).reshape(-1, *(1,) * (f.ndim - _WAVE - 1)), -1),
        axis=_WAVE,
    )
    number = np.arange(f.shape[_WAVE]).reshape(-1, *(1,) * (f.ndim - _WAVE - 1))
    short = there & (number > np.expand_dims(longest, _WAVE) / 2)
    return np.where(short, f, 0.0).sum(_WAVE) / np.where(short, y, 0.0).sum(_WAVE)


_WAVE = 3  # axis of the wavenumber in means (group, lead, region, wavenumber[, level])

METRICS: dict[str, Metric] = {
    "rmse": Metric(
        ("squared_error",),
        _root("squared_error"),
        "√ of the mean over init times of the area mean of (f − y)²",
    ),
    "mse": Metric(("squared_error",), _one("squared_error"), "mean of (f − y)²", units="square"),
    "mae": Metric(("absolute_error",), _one("absolute_error"), "mean of |f − y|"),
    "bias": Metric(("error",), _one("error"), "mean of f − y", better="zero"),
    "rmse_sqrt_before_time_avg": Metric(
        ("root_of_area_mean",),
        _one("root_of_area_mean"),
        "mean over init times of √ of the area mean of (f − y)²",
    ),
    "acc": Metric(
        ("anomaly_correlation",),
        _acc,
        "anomaly correlation, Σf'y' / √(Σf'² Σy'²), uncentred",
        "climatology",
        "high",
        "",
    ),
    "prediction_activity": Metric(
        ("squared_forecast_anomaly",),
        _root("squared_forecast_anomaly"),
        "√ of the mean of f'²",
        "climatology",
        "",
    ),
    "truth_activity": Metric(
        ("squared_truth_anomaly",),
        _root("squared_truth_anomaly"),
        "√ of the mean of y'²",
        "climatology",
        "",
    ),
    "seeps": Metric(
        ("seeps",), _one("seeps"), "stable equitable error in probability space", "seeps", units=""
    ),
    "crps": Metric(
        ("crps",),
        _one("crps"),
        "∫ (F(x) − 1{y ≤ x})² dx; of members the fair estimate; of a single value |f − y|",
        "crps",
    ),
    "crps_skill": Metric(("crps_skill",), _one("crps_skill"), "E|X − y|", "members"),
    "crps_spread": Metric(("crps_spread",), _one("crps_spread"), "E|X − X'|, fair", "members", ""),
    "crps_ensemble": Metric(
        ("crps_skill", "crps_spread_unfair"),
        lambda m: m["crps_skill"] - 0.5 * m["crps_spread_unfair"],
        "CRPS of the members as the distribution itself, not fair",
        "members",
    ),
    "ensemble_mean_mse": Metric(
        ("squared_error_of_mean",),
        _one("squared_error_of_mean"),
        "mean of (mean of the members − y)²",
        "members",
        units="square",
    ),
    "ensemble_mean_rmse": Metric(
        ("squared_error_of_mean",), _root("squared_error_of_mean"), "its root", "members"
    ),
    "mean_rmse": Metric(
        ("squared_error_of_mean",),
        _root("squared_error_of_mean"),
        "the same, as WeatherBench-X calls it",
        "members",
    ),
    "debiased_ensemble_mean_mse": Metric(
        ("debiased_squared_error",),
        _one("debiased_squared_error"),
        "less the part that finite members add, variance / n",
        "members",
        units="square",
    ),
    "unbiased_mean_rmse": Metric(
        ("debiased_squared_error",),
        _root("debiased_squared_error"),
        "its root; NaN where chance makes it negative",
        "members",
    ),
    "ensemble_variance": Metric(
        ("variance",), _one("variance"), "mean variance of the members", "members", "", "square"
    ),
    "ensemble_stddev": Metric(
        ("variance",), _root("variance"), "its root: the spread", "members", ""
    ),
    "spread_skill_ratio": Metric(
        ("variance", "squared_error_of_mean"),
        lambda m: np.sqrt(m["variance"] / m["squared_error_of_mean"]),
        "spread over RMSE of the mean",
        "members",
        "one",
        "",
    ),
    "unbiased_spread_skill": Metric(
        ("variance", "debiased_squared_error"),
        lambda m: np.sqrt(m["variance"] / m["debiased_squared_error"]),
        "spread over unbiased RMSE of the mean",
        "members",
        "one",
        "",
    ),
    "energy_score": Metric(
        ("energy_score",),
        _one("energy_score"),
        "E‖X − y‖ − ½ E‖X − X'‖, norms over the area",
        "members",
    ),
    "energy_score_skill": Metric(
        ("energy_score_skill",), _one("energy_score_skill"), "E‖X − y‖", "members"
    ),
    "energy_score_spread": Metric(
        ("energy_score_spread",),
        _one("energy_score_spread"),
        "E‖X − X'‖ of neighbouring members",
        "members",
        "",
    ),
    "blur": Metric(
        ("forecast_spectrum", "truth_spectrum"),
        _blur,
        "power of the shorter half of the zonal waves, forecast over truth; below 1 is blurred",
        "joint",
        "one",
        "",
    ),
    **_of_counts("", "rain", "_exceed"),
    "brier_score_mm": Metric(
        ("brier",),
        _one("brier"),
        "Brier score, mean of (p − 1{y > t})²",
        "probability",
        units="",
        suffix="_exceed",
    ),
    "debiased_brier_score_mm": Metric(
        ("debiased_brier",),
        _one("debiased_brier"),
        "less p(1 − p)/(n − 1) for n members",
        "members rain",
        units="",
        suffix="_exceed",
    ),
    "brier_skill": Metric(
        ("brier", *_BINS),
        _brier_skill,
        "1 − Brier / (ō(1 − ō)): against the frequency of the truth itself",
        "probability",
        "high",
        "",
        "_exceed",
    ),
    "brier_reliability": Metric(
        _BINS,
        _reliability,
        "Σ n(p − o)² over bins (Murphy 1973)",
        "probability",
        units="",
        suffix="_exceed",
    ),
    "brier_resolution": Metric(
        _BINS, _resolution, "Σ n(o − ō)²", "probability", "high", "", "_exceed"
    ),
    "brier_uncertainty": Metric(_BINS, _uncertainty, "ō(1 − ō)", "probability", "", "", "_exceed"),
    "roc_area": Metric(
        _BINS,
        _roc_area,
        "area under the ROC curve; ½ is chance",
        "probability",
        "high",
        "",
        "_exceed",
    ),
    "fss": Metric(
        ("fractions_error", "forecast_fractions", "truth_fractions"),
        _fss,
        "fractions skill score, 1 − Σ(pf − po)² / (Σpf² + Σpo²)",
        "rain joint",
        "high",
        "",
        "_fss",
    ),
    **_of_counts("quantile_", "normal_quantiles", "_exceed_quantile"),
    "quantile_coverage": Metric(
        ("quantile_coverage",),
        _one("quantile_coverage"),
        "share of the truth at or below the forecast's quantile",
        "quantile",
        "",
        "",
        "_quantile_coverage",
    ),
    "quantile_score": Metric(
        ("quantile_score",),
        _one("quantile_score"),
        "mean of (τ − 1{y < q})(y − q)",
        "quantile",
        suffix="_quantile_score",
    ),
    "reliability": Metric(
        _BINS,
        lambda m: _per_bin(m)[2],
        "observed frequency by forecast probability",
        "probability",
        "",
        "",
        "_reliability",
    ),
    "rank_histogram": Metric(
        ("ranks",),
        _one("ranks"),
        "share of the truth by rank among the members",
        "members",
        "",
        "",
        "_rank_histogram",
    ),
    "pit": Metric(
        ("pit",),
        _one("pit"),
        "share of the truth by its probability integral transform",
        "law",
        "",
        "",
        "_pit",
    ),
    "intensity": Metric(
        ("forecast_intensity", "truth_intensity"),
        _one("forecast_intensity"),
        "share of the area by amount",
        "rain",
        "",
        "",
        "_intensity",
    ),
    "bias_map": Metric(
        (),
        lambda m: np.empty(0),
        "mean of f − y at every grid point",
        "map",
        "zero",
        suffix="_bias_map",
    ),
    "spectrum": Metric(
        ("forecast_spectrum", "truth_spectrum"),
        _one("forecast_spectrum"),
        "zonal power by wavenumber",
        "joint",
        "",
        "square",
        "_spectrum",
    ),
}

STANDARD = (
    "rmse",
    "mse",
    "mae",
    "bias",
    "acc",
    "prediction_activity",
    "seeps",
    "crps",
    "crps_skill",
    "crps_spread",
    "ensemble_stddev",
    "spread_skill_ratio",
    "debiased_ensemble_mean_mse",
    *_COUNTS,
    "brier_score_mm",
)
"""Metrics computed by default: all that need only one pass over the fields."""

ALIASES = {
    "pod": "recall",
    "hit_rate": "recall",
    "far": "falsealarmrate",
    "false_alarm_ratio": "falsealarmrate",
    "f1": "f1score",
    "frequency_bias": "frequencybias",
    "hits": "truepositives",
    "false_alarms": "falsepositives",
    "misses": "falsenegatives",
    "correct_negatives": "truenegatives",
    "seeps_6hr": "seeps",
    "seeps_24hr": "seeps",
    "activity": "prediction_activity",
    "forecast_activity": "prediction_activity",
    "vector_rmse": "rmse",
    "wind_vector_rmse": "rmse",
    "spread_skill": "spread_skill_ratio",
    "unbiased_ensemble_mean_mse": "debiased_ensemble_mean_mse",
    "debiased_ensemble_mean_rmse": "unbiased_mean_rmse",
    "brier_score": "brier_score_mm",
    "brier": "brier_score_mm",
    "debiased_brier_score": "debiased_brier_score_mm",
    "spectral_ratio": "blur",
    "roc": "roc_area",
    "ranks": "rank_histogram",
}
"""Aliases; a score is labelled with the name that was requested."""


def check(names: Sequence[str] | str | None) -> dict[str, str]:
    """Resolve ``metrics=`` to a dict from label to name in :data:`METRICS`.

    Raises
    ------
    OptionError
        If a metric is unknown, or none is given.
    """
    if names is None:
        return {n: n for n in STANDARD}
    if isinstance(names, str) and names == "all":
        return {n: n for n in METRICS}
    if not isinstance(names, str) and not hasattr(names, "__iter__"):
        raise OptionError(
            f"metrics must be a name or a list of names, got {names!r}.",
            fix="metrics=['rmse', 'crps']",
        )
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise OptionError("no metric was given.", fix="metrics=['rmse', 'crps'], or metrics='all'")
    out = {}
    for name in wanted:
        known = ALIASES.get(name, name) if isinstance(name, str) else None
        if known not in METRICS:
            import difflib

            near = difflib.get_close_matches(str(name), [*METRICS, *ALIASES], n=3)
            raise OptionError(
                f"there is no metric {name!r}"
                + (f"; did you mean {' or '.join(map(repr, near))}?" if near else ".")
                + f" Valid values are 'all', {', '.join(map(repr, METRICS))}.",
                fix="metrics=['rmse', 'crps']",
            )
        out[name] = known
    return out


def statistics_of(metric: str, convention: str) -> tuple[str, ...]:
    """Return the statistics that a metric needs.

    WeatherBench-X's ACC is computed from sums over all init times.
    """
    if metric == "acc" and convention != "weatherbench2":
        return ("anomaly_covariance", "squared_forecast_anomaly", "squared_truth_anomaly")
    return METRICS[metric].statistics


def compute(metric: str, means: Means) -> np.ndarray:
    """Compute a score from the means of its statistics; 0/0 is NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(METRICS[metric].formula(means))

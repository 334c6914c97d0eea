"""Metrics: functions of the means of statistics.

The tables in ``docs/evaluation.md`` list the formula, units and reference of each metric. Names are
those of WeatherBench-X and WeatherBench2. The usual short names (``pod``, ``far``, ``f1``) are
aliases. Does not depend on torch.

References: Rasp et al. (2024), WeatherBench 2, J. Adv. Model. Earth Syst.,
doi:10.1029/2023MS004019, section 3; Jolliffe and Stephenson (2012), Forecast Verification,
doi:10.1002/9781119960003, chapters 3 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xaurora.errors import OptionError
from xaurora.evaluation.formulas import (
    BINS,
    CONTINGENCY,
    Means,
    acc,
    blur,
    brier_skill,
    fss,
    one,
    per_bin,
    reliability,
    resolution,
    roc_area,
    root,
    uncertainty,
)


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


_FOUR = ("truepositives", "falsepositives", "falsenegatives", "truenegatives")


def _of_counts(prefix: str, needs: str, suffix: str) -> dict[str, Metric]:
    names = tuple(prefix + n for n in _FOUR)

    def formula(function: Callable[[Any, Any, Any, Any], Any]) -> Callable[[Means], np.ndarray]:
        return lambda m: function(*(m[n] for n in names))

    return {
        prefix + name: Metric(names, formula(function), words, needs, better, "", suffix)
        for name, (function, better, words) in CONTINGENCY.items()
    }


METRICS: dict[str, Metric] = {
    "rmse": Metric(
        ("squared_error",),
        root("squared_error"),
        "√ of the mean over init times of the area mean of (f − y)²",
    ),
    "mse": Metric(("squared_error",), one("squared_error"), "mean of (f − y)²", units="square"),
    "mae": Metric(("absolute_error",), one("absolute_error"), "mean of |f − y|"),
    "bias": Metric(("error",), one("error"), "mean of f − y", better="zero"),
    "rmse_sqrt_before_time_avg": Metric(
        ("root_of_area_mean",),
        one("root_of_area_mean"),
        "mean over init times of √ of the area mean of (f − y)²",
    ),
    "acc": Metric(
        ("anomaly_correlation",),
        acc,
        "anomaly correlation, Σf'y' / √(Σf'² Σy'²), uncentred",
        "climatology",
        "high",
        "",
    ),
    "prediction_activity": Metric(
        ("squared_forecast_anomaly",),
        root("squared_forecast_anomaly"),
        "√ of the mean of f'²",
        "climatology",
        "",
    ),
    "truth_activity": Metric(
        ("squared_truth_anomaly",),
        root("squared_truth_anomaly"),
        "√ of the mean of y'²",
        "climatology",
        "",
    ),
    "seeps": Metric(
        ("seeps",), one("seeps"), "stable equitable error in probability space", "seeps", units=""
    ),
    "crps": Metric(
        ("crps",),
        one("crps"),
        "∫ (F(x) − 1{y ≤ x})² dx; for members, the fair estimate; for a single value, |f − y|",
        "crps",
    ),
    "crps_skill": Metric(("crps_skill",), one("crps_skill"), "E|X − y|", "members"),
    "crps_spread": Metric(("crps_spread",), one("crps_spread"), "E|X − X'|, fair", "members", ""),
    "crps_ensemble": Metric(
        ("crps_skill", "crps_spread_unfair"),
        lambda m: m["crps_skill"] - 0.5 * m["crps_spread_unfair"],
        "CRPS of the members' empirical distribution (not fair)",
        "members",
    ),
    "ensemble_mean_mse": Metric(
        ("squared_error_of_mean",),
        one("squared_error_of_mean"),
        "mean of (mean of the members − y)²",
        "members",
        units="square",
    ),
    "ensemble_mean_rmse": Metric(
        ("squared_error_of_mean",),
        root("squared_error_of_mean"),
        "root mean squared error of the ensemble mean",
        "members",
    ),
    "mean_rmse": Metric(
        ("squared_error_of_mean",),
        root("squared_error_of_mean"),
        "root mean squared error of the ensemble mean (WeatherBench-X's name)",
        "members",
    ),
    "debiased_ensemble_mean_mse": Metric(
        ("debiased_squared_error",),
        one("debiased_squared_error"),
        "mean squared error of the ensemble mean minus variance / n",
        "members",
        units="square",
    ),
    "unbiased_mean_rmse": Metric(
        ("debiased_squared_error",),
        root("debiased_squared_error"),
        "root of the debiased mean squared error; NaN where that is negative",
        "members",
    ),
    "ensemble_variance": Metric(
        ("variance",), one("variance"), "mean variance of the members", "members", "", "square"
    ),
    "ensemble_stddev": Metric(
        ("variance",), root("variance"), "ensemble spread, root of the mean variance", "members", ""
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
        one("energy_score"),
        "E‖X − y‖ − ½ E‖X − X'‖, norms over the area",
        "members",
    ),
    "energy_score_skill": Metric(
        ("energy_score_skill",), one("energy_score_skill"), "E‖X − y‖", "members"
    ),
    "energy_score_spread": Metric(
        ("energy_score_spread",),
        one("energy_score_spread"),
        "E‖X − X'‖ of neighbouring members",
        "members",
        "",
    ),
    "blur": Metric(
        ("forecast_spectrum", "truth_spectrum"),
        blur,
        "spectral power of the shorter half of the zonal wavelengths, forecast divided by truth;"
        " below 1, the forecast is blurred",
        "joint",
        "one",
        "",
    ),
    **_of_counts("", "rain", "_exceed"),
    "brier_score_mm": Metric(
        ("brier",),
        one("brier"),
        "Brier score, mean of (p − 1{y > t})²",
        "probability",
        units="",
        suffix="_exceed",
    ),
    "debiased_brier_score_mm": Metric(
        ("debiased_brier",),
        one("debiased_brier"),
        "Brier score minus p(1 − p)/(n − 1) for n members",
        "members rain",
        units="",
        suffix="_exceed",
    ),
    "brier_skill": Metric(
        ("brier", *BINS),
        brier_skill,
        "1 − Brier / (ō(1 − ō)): skill relative to the observed frequency",
        "probability",
        "high",
        "",
        "_exceed",
    ),
    "brier_reliability": Metric(
        BINS,
        reliability,
        "Σ n(p − o)² over bins (Murphy 1973)",
        "probability",
        units="",
        suffix="_exceed",
    ),
    "brier_resolution": Metric(
        BINS, resolution, "Σ n(o − ō)²", "probability", "high", "", "_exceed"
    ),
    "brier_uncertainty": Metric(BINS, uncertainty, "ō(1 − ō)", "probability", "", "", "_exceed"),
    "roc_area": Metric(
        BINS,
        roc_area,
        "area under the ROC curve; ½ is chance",
        "probability",
        "high",
        "",
        "_exceed",
    ),
    "fss": Metric(
        ("fractions_error", "forecast_fractions", "truth_fractions"),
        fss,
        "fractions skill score, 1 − Σ(pf − po)² / (Σpf² + Σpo²)",
        "rain joint",
        "high",
        "",
        "_fss",
    ),
    **_of_counts("quantile_", "normal_quantiles", "_exceed_quantile"),
    "quantile_coverage": Metric(
        ("quantile_coverage",),
        one("quantile_coverage"),
        "share of the truth at or below the forecast's quantile",
        "quantile",
        "",
        "",
        "_quantile_coverage",
    ),
    "quantile_score": Metric(
        ("quantile_score",),
        one("quantile_score"),
        "mean of (τ − 1{y < q})(y − q)",
        "quantile",
        suffix="_quantile_score",
    ),
    "reliability": Metric(
        BINS,
        lambda m: per_bin(m)[2],
        "observed frequency by forecast probability",
        "probability",
        "",
        "",
        "_reliability",
    ),
    "rank_histogram": Metric(
        ("ranks",),
        one("ranks"),
        "share of the truth by rank among the members",
        "members",
        "",
        "",
        "_rank_histogram",
    ),
    "pit": Metric(
        ("pit",),
        one("pit"),
        "share of the truth by its probability integral transform",
        "law",
        "",
        "",
        "_pit",
    ),
    "intensity": Metric(
        ("forecast_intensity", "truth_intensity"),
        one("forecast_intensity"),
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
        one("forecast_spectrum"),
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
    *CONTINGENCY,
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

"""Choose the statistics of each variable, and check that named metrics can be computed.

Does not depend on torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from xaurora.distributions import Deterministic, Family
from xaurora.errors import KindError, OptionError, TruthError
from xaurora.evaluation import alignment, climatology_fields, truths
from xaurora.evaluation import metrics as _metrics
from xaurora.evaluation.alignment import Forecast
from xaurora.evaluation.blocks import Job, Key
from xaurora.evaluation.sample import Settings
from xaurora.evaluation.statistics import OF_WINDS
from xaurora.fields.found import Field

logger = logging.getLogger("xaurora")

_WINDS = {
    ("surface", "10m_wind_vector"): (("surface", "10u"), ("surface", "10v")),
    ("surface", "100m_wind_vector"): (("surface", "100u"), ("surface", "100v")),
    ("atmos", "wind_vector"): (("atmos", "u"), ("atmos", "v")),
}


@dataclass(frozen=True)
class Comparison:
    """What is compared, and by which metrics.

    Parameters
    ----------
    forecasts : dict of Forecast
        By label, at their common times, leads and points.
    truth : Truth
    climatology : ClimatologyFields, optional
    keys : list of tuple
        Kinds and names of the variables to score.
    labels : dict
        Label → metric.
    explicit, everything : bool
        Whether metrics were named, or all requested.
    laws : dict
        Families of the distributions, by label and key.
    settings : Settings
    """

    forecasts: dict[str, Forecast]
    truth: truths.Truth
    climatology: climatology_fields.ClimatologyFields | None
    keys: list[Key]
    labels: dict[str, str]
    explicit: bool
    everything: bool
    laws: dict[tuple[str, Key], Family]
    settings: Settings

    @property
    def first(self) -> Forecast:
        """The first forecast, whose names and units the scores have."""
        return next(iter(self.forecasts.values()))

    @property
    def statistics(self) -> list[str]:
        """Names of the statistics that the metrics need."""
        convention = self.settings.convention
        found = (s for m in self.labels.values() for s in _metrics.statistics_of(m, convention))
        return list(dict.fromkeys(found))

    @property
    def named(self) -> dict[str, str]:
        """Metric → label of the metrics that were named."""
        return {m: label for label, m in self.labels.items()} if self.explicit else {}

    def field(self, key: Key) -> Field:
        """Return a variable as the first forecast that has it does."""
        return next(f.fields[key] for f in self.forecasts.values() if key in f.fields)

    @property
    def rain(self) -> list[Key]:
        """Keys of accumulated variables."""
        return [key for key in self.keys if self.field(key).variable.accumulated]

    def has_members(self, key: Key) -> bool:
        """Return whether any forecast has ensemble members of a variable."""
        return any(
            f.has_members(f.fields[key].source) for f in self.forecasts.values() if key in f.fields
        )

    def has_distribution(self, key: Key) -> bool:
        """Return whether any forecast has a distribution of a variable, in closed form."""
        return any(k == key and not isinstance(v, Deterministic) for (_, k), v in self.laws.items())

    def has_companion(self, key: Key, suffix: str) -> bool:
        """Return whether any forecast has a variable beside it, such as ``tp_quantile``."""
        return any(
            f"{f.fields[key].source}_{suffix}" in f.ds
            for f in self.forecasts.values()
            if key in f.fields
        )


def make_jobs(comparison: Comparison) -> list[Job]:
    """Return what to score for each variable.

    Raises
    ------
    OptionError, KindError
        If a metric was named that the forecasts cannot provide.
    TruthError
        If the climatology lacks a variable, time or field that is needed, or no level is shared.
    """
    named, climatology = comparison.named, comparison.climatology
    wanted: list[str] = [m for m in ("acc", "prediction_activity", "truth_activity") if m in named]
    if wanted and climatology is None:
        raise OptionError(
            f"{wanted[0]} needs a climatology.",
            fix="evaluate(truth, climatology=xaurora.climatology(past))",
        )
    jobs = [_job(comparison, key) for key in comparison.keys]
    if climatology is not None:
        anomalies = any("anomal" in s for s in comparison.statistics)
        lacking = [
            comparison.field(job.key).source for job in jobs if anomalies and not job.normals
        ]
        if lacking:
            _report_lacking(comparison, lacking, wanted)
        _check_times(comparison, jobs)
    _check_jobs(comparison, jobs)
    return [*jobs, *_wind_jobs(comparison, jobs)]


def _job(comparison: Comparison, key: Key) -> Job:
    """Return the statistics of one variable."""
    climatology, first = comparison.climatology, comparison.first
    levels = _shared_levels(comparison, key)
    statistics = comparison.statistics
    anomalies = {s for s in statistics if "anomal" in s}
    has_normal = (
        climatology is not None
        and climatology.has(key)
        and set(levels) <= set(climatology.found.levels)
    )
    rain = key in comparison.rain
    seeps = "seeps" in statistics and key == ("surface", "tp") and climatology is not None
    drop = set() if has_normal else set(anomalies)
    probabilistic = comparison.has_distribution(key) or comparison.has_members(key)
    if not comparison.named and not comparison.everything and not probabilistic:
        drop.add("crps")  # for single-valued forecasts it equals the MAE
    return Job(
        key,
        (key,),
        levels,
        tuple(s for s in (*statistics, "coverage") if s not in drop),
        bool(anomalies) and has_normal,
        has_normal
        and bool(climatology.quantile_levels(key))  # type: ignore[union-attr]
        and any(s.startswith("quantile_true") for s in statistics),
        seeps and climatology.seeps_name(first.hours) is not None,  # type: ignore[union-attr]
        first.whole if rain else None,
    )


def _report_lacking(comparison: Comparison, lacking: list[str], wanted: list[str]) -> None:
    """Warn about variables without climatology, or raise if a named metric needs it."""
    climatology: Any = comparison.climatology
    text = f"the climatology has no field of {', '.join(map(repr, lacking))}"
    if ("surface", "tp") in climatology.found.fields and not climatology.has(("surface", "tp")):
        text += (
            f" (its precipitation is over {climatology.rain_hours:g} h, the forecast's over"
            f" {comparison.first.hours} h)"
        )
    if wanted:
        raise TruthError(
            f"{text}, which {wanted[0]} needs.",
            fix=f"xaurora.climatology(past, {lacking}), or evaluate fc[[...]] without them",
        )
    logger.warning(
        "the climatology has no field of %s; anomaly metrics are not computed for it.",
        ", ".join(lacking),
    )


def _check_times(comparison: Comparison, jobs: list[Job]) -> None:
    """Raise if the climatology lacks days or hours that are needed."""
    climatology: Any = comparison.climatology
    if any(j.normals or j.seeps or j.normal_quantiles for j in jobs):
        first = comparison.first
        valid = (first.init_times[:, None] + first.leads[None]).ravel()
        if missing := climatology.lacks(valid):
            raise TruthError(
                f"the climatology lacks {', '.join(missing)}, which the forecast's valid times"
                " need.",
                fix="xaurora.climatology(ds) over at least that season and those hours",
            )


def _wind_jobs(comparison: Comparison, jobs: list[Job]) -> Iterator[Job]:
    """Yield the jobs of wind vectors, whose two components are scored together."""
    winds = [s for s in comparison.statistics if s in OF_WINDS]
    for key, parts in _WINDS.items():
        if winds and all(p in comparison.keys for p in parts):
            levels = next(j.levels for j in jobs if j.key == parts[0])
            same = all(j.levels == levels for j in jobs if j.key in parts)
            alike = all(
                f.has_members(f.fields[parts[0]].source) == f.has_members(f.fields[parts[1]].source)
                for f in comparison.forecasts.values()
                if all(p in f.fields for p in parts)
            )
            if same and alike:
                yield Job(key, parts, levels, (*winds, "coverage"))


def _check_jobs(comparison: Comparison, jobs: list[Job]) -> None:
    """Raise if a named metric cannot be computed for any variable.

    Raises
    ------
    OptionError, KindError
        If the forecasts do not have what the metric needs.
    TruthError
        If the climatology does not.
    """
    for metric, label in comparison.named.items():
        needs = _metrics.METRICS[metric].needs
        if ("rain" in needs or needs in ("seeps", "probability")) and not comparison.rain:
            raise OptionError(
                f"{label} is a score of precipitation, and the variables to score are only"
                f" {[comparison.field(k).source for k in comparison.keys]}.",
                fix="metrics=['rmse', 'mae', 'bias']",
            )
        if needs == "seeps" and not any(j.seeps for j in jobs):
            _check_seeps(comparison, label)
        _check_distribution(comparison, label, needs)
        if needs in ("probability", "quantile"):
            _check_levels(comparison, label, needs)
        if "joint" in needs:
            _check_marginal(comparison, label, needs)
        if needs == "normal_quantiles" and not any(j.normal_quantiles for j in jobs):
            raise TruthError(
                f"{label} needs quantiles of the climatology.",
                fix=(
                    "climatology=xaurora.climatology(past, statistics=['mean', 'quantile'],"
                    " quantiles=[0.9, 0.95])"
                ),
            )


def _check_seeps(comparison: Comparison, label: str) -> None:
    hours = comparison.first.hours
    if hours not in (6, 24):
        raise OptionError(
            f"{label} is defined for totals over 6 and 24 hours, and these are over {hours} h.",
            fix="accumulate='24h'",
        )
    lacks = (
        "a climatology"
        if comparison.climatology is None
        else f"the fields total_precipitation_{hours}hr_seeps_dry_fraction and …_threshold of the"
        " climatology"
    )
    raise TruthError(
        f"{label} needs {lacks}.",
        fix=f"evaluate(truth, climatology=xaurora.climatology(past, seeps={hours}))",
    )


def _check_distribution(comparison: Comparison, label: str, needs: str) -> None:
    """Raise if a metric needs members or a distribution that no forecast has."""
    members, law = comparison.has_members, comparison.has_distribution
    rain, keys = comparison.rain, comparison.keys
    if needs.startswith("members") and not any(map(members, rain if "rain" in needs else keys)):
        raise OptionError(
            f"{label} is a score of an ensemble, but the forecast has no members.",
            fix="predict(members=50), or metrics=['rmse', 'crps']",
        )
    for kind, noun, among, fix in (
        (
            "probability",
            "probabilities",
            rain,
            "predict(thresholds_mm=(1, 5)), members, or the head's parameters",
        ),
        ("quantile", "quantiles", keys, "predict(quantiles=(0.05, 0.5, 0.95))"),
    ):
        if needs == kind and not any(
            members(k) or law(k) or comparison.has_companion(k, kind) for k in among
        ):
            raise OptionError(f"{label} is a score of {noun}, but the forecast has none.", fix=fix)
    if needs == "law" and not any(law(k) and not members(k) for k in keys):
        raise OptionError(
            f"{label} is a score of a distribution, but the forecast has none.",
            fix=(
                "keep the head's parameters in the forecast, or metrics='rank_histogram' for"
                " members"
            ),
        )


def _check_levels(comparison: Comparison, label: str, needs: str) -> None:
    """Raise if probabilities or quantiles stand at other values than those to score."""
    settings, keys = comparison.settings, comparison.keys
    if any(comparison.has_members(k) or comparison.has_distribution(k) for k in keys):
        return
    is_probability = needs == "probability"
    wanted = settings.thresholds_mm if is_probability else settings.levels
    dim = "threshold" if is_probability else "quantile"
    found = {
        float(v) * (alignment.to_mm(f.ds[dim]) if is_probability else 1.0)
        for f in comparison.forecasts.values()
        for k in keys
        if k in f.fields and f"{f.fields[k].source}_{needs}" in f.ds
        for v in f.ds[dim].values
    }
    if not any(abs(v - w) <= 1e-6 * max(w, 1e-9) for v in found for w in wanted):
        names = "thresholds_mm" if is_probability else "quantile_levels"
        raise OptionError(
            f"{label}: the forecast has {needs} at {sorted(found)}, but {names} are"
            f" {list(wanted)}.",
            fix=f"{names}={sorted(found)}",
        )


def _check_marginal(comparison: Comparison, label: str, needs: str) -> None:
    """Raise for a metric of spatial structure if the forecast is independent at every point."""
    among = comparison.rain if "rain" in needs else comparison.keys
    marginal = [
        k for k in among if comparison.has_distribution(k) and not comparison.has_members(k)
    ]
    if marginal and (len(marginal) == len(among) or "rain" in needs):
        raise KindError(
            f"{label} measures spatial structure, but '{comparison.field(marginal[0]).source}' is"
            " an independent distribution at every point, and its mean is not a realistic field.",
            fix="predict(members=50), whose members are joint in space and time",
        )


def _shared_levels(comparison: Comparison, key: Key) -> tuple[float, ...]:
    if key[0] != "atmos":
        return ()
    truth = comparison.truth
    having = [f for f in comparison.forecasts.values() if key in f.fields]
    levels = tuple(
        v
        for v in having[0].levels
        if v in truth.fields.levels and all(v in f.levels for f in having)
    )
    if not levels:
        raise TruthError(
            f"forecast and truth share no pressure level of {key[1]!r}.",
            fix="pass a truth with the forecast's levels",
        )
    return levels

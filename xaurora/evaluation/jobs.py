"""Choose the statistics of each variable, and check that named metrics can be computed.

Does not depend on torch.
"""

from __future__ import annotations

import logging
from typing import Any

from xaurora.distributions import Deterministic, Family
from xaurora.errors import KindError, OptionError, TruthError
from xaurora.evaluation import alignment, truths
from xaurora.evaluation import metrics as _metrics
from xaurora.evaluation.alignment import Forecast
from xaurora.evaluation.engine import Job
from xaurora.evaluation.sample import Settings
from xaurora.evaluation.statistics import OF_WINDS

logger = logging.getLogger("xaurora")

_WINDS = {
    ("surface", "10m_wind_vector"): (("surface", "10u"), ("surface", "10v")),
    ("surface", "100m_wind_vector"): (("surface", "100u"), ("surface", "100v")),
    ("atmos", "wind_vector"): (("atmos", "u"), ("atmos", "v")),
}


def make_jobs(
    read: dict[str, Forecast],
    right: truths.Truth,
    normals: truths.ClimatologyFields | None,
    keys: list[tuple[str, str]],
    statistics: list[str],
    labels: dict[str, str],
    laws: dict[tuple[str, tuple[str, str]], Family],
    explicit: bool,
    settings: Settings,
    *,
    everything: bool,
) -> list[Job]:
    """Return what to score for each variable.

    Raises
    ------
    OptionError, KindError
        If a metric was named that the forecasts cannot provide.
    TruthError
        If the climatology lacks a variable, time or field that is needed, or no level is shared.
    """
    named = {m: label for label, m in labels.items()} if explicit else {}
    anomalies = [s for s in statistics if "anomal" in s]
    wanted_normals = [m for m in ("acc", "prediction_activity", "truth_activity") if m in named]
    if wanted_normals and normals is None:
        raise OptionError(
            f"{wanted_normals[0]} needs a climatology.",
            fix="evaluate(truth, climatology=xaurora.climatology(past))",
        )
    first = next(iter(read.values()))
    fields = {key: next(f.fields[key] for f in read.values() if key in f.fields) for key in keys}
    rain = [key for key in keys if fields[key].variable.accumulated]
    jobs = []
    lacking = []
    for key in keys:
        levels = _shared_levels(read, right, key)
        mine = list(statistics)
        has_normal = (
            normals is not None and normals.has(key) and set(levels) <= set(normals.found.levels)
        )
        if anomalies and normals is not None and not has_normal:
            lacking.append(fields[key].source)
        seeps = (
            "seeps" in mine
            and key in rain
            and normals is not None
            and normals.seeps_name(first.hours) is not None
        )
        quantiled = (
            normals is not None
            and has_normal
            and bool(normals.quantile_levels(key))
            and any(s.startswith("quantile_true") for s in mine)
        )
        drop = set() if has_normal and anomalies else set(anomalies)
        probabilistic = any(
            k == key and not isinstance(v, Deterministic) for (_, k), v in laws.items()
        ) or any(f.has_members(f.fields[key].source) for f in read.values() if key in f.fields)
        if not named and not everything and not probabilistic:
            drop.add("crps")  # for single-valued forecasts it equals the MAE
        jobs.append(
            Job(
                key,
                (key,),
                levels,
                tuple(s for s in (*mine, "coverage") if s not in drop),
                bool(anomalies) and has_normal,
                quantiled,
                seeps,
                first.whole if key in rain else None,
            )
        )
    if lacking and (wanted_normals or len(lacking) == len(keys)):
        text = f"the climatology has no field of {', '.join(map(repr, lacking))}"
        if (
            normals is not None
            and ("surface", "tp") in normals.found.fields
            and not normals.has(("surface", "tp"))
        ):
            text += (
                f" (its precipitation is over {normals.rain_hours:g} h, the forecast's over"
                f" {first.hours} h)"
            )
        if wanted_normals:
            raise TruthError(
                f"{text}, which {wanted_normals[0]} needs.",
                fix=f"xaurora.climatology(past, {lacking}), or evaluate fc[[...]] without them",
            )
    if lacking:
        logger.warning(
            "the climatology has no field of %s; anomaly metrics are not computed for it.",
            ", ".join(lacking),
        )
    if normals is not None and any(j.normals or j.seeps or j.normal_quantiles for j in jobs):
        valid = (first.init_times[:, None] + first.leads[None]).ravel()
        if missing := normals.lacks(valid):
            raise TruthError(
                f"the climatology lacks {', '.join(missing)}, which the forecast's valid times"
                " need.",
                fix="xaurora.climatology(ds) over at least that season and those hours",
            )
    _refuse_impossible(fields, read, normals, keys, rain, named, laws, jobs, settings)
    winds = [s for s in statistics if s in OF_WINDS]
    for key, parts in _WINDS.items():
        if winds and all(p in keys for p in parts):
            levels = next(j.levels for j in jobs if j.key == parts[0])
            same = all(j.levels == levels for j in jobs if j.key in parts)
            alike = all(
                f.has_members(f.fields[parts[0]].source) == f.has_members(f.fields[parts[1]].source)
                for f in read.values()
                if all(p in f.fields for p in parts)
            )
            if same and alike:
                jobs.append(Job(key, parts, levels, (*winds, "coverage")))
    return jobs


def _refuse_impossible(
    fields: dict[tuple[str, str], Any],
    read: dict[str, Forecast],
    normals: truths.ClimatologyFields | None,
    keys: list[tuple[str, str]],
    rain: list[tuple[str, str]],
    named: dict[str, str],
    laws: dict[tuple[str, tuple[str, str]], Family],
    jobs: list[Job],
    settings: Settings,
) -> None:
    """Raise if a named metric cannot be computed for any variable.

    Raises
    ------
    OptionError, KindError
        If the forecasts do not have what the metric needs.
    TruthError
        If the climatology does not.
    """

    def members(key: tuple[str, str]) -> bool:
        return any(f.has_members(f.fields[key].source) for f in read.values() if key in f.fields)

    def law(key: tuple[str, str]) -> bool:
        return any(k == key and not isinstance(v, Deterministic) for (_, k), v in laws.items())

    def beside(key: tuple[str, str], suffix: str) -> bool:
        return any(
            f"{f.fields[key].source}_{suffix}" in f.ds for f in read.values() if key in f.fields
        )

    for metric, label in named.items():
        needs = _metrics.METRICS[metric].needs
        if ("rain" in needs or needs in ("seeps", "probability")) and not rain:
            raise OptionError(
                f"{label} is a score of precipitation, and the variables to score are only"
                f" {[fields[k].source for k in keys]}.",
                fix="metrics=['rmse', 'mae', 'bias']",
            )
        if needs == "seeps" and not any(j.seeps for j in jobs):
            hours = next(iter(read.values())).hours
            lacks = (
                "a climatology"
                if normals is None
                else (
                    f"the fields total_precipitation_{hours}hr_seeps_dry_fraction and …_threshold"
                    " of the climatology"
                )
            )
            if hours not in (6, 24):
                raise OptionError(
                    f"{label} is defined for totals over 6 and 24 hours, and these are over"
                    f" {hours} h.",
                    fix="accumulate='24h'",
                )
            raise TruthError(
                f"{label} needs {lacks}.",
                fix=f"evaluate(truth, climatology=xaurora.climatology(past, seeps={hours}))",
            )
        if needs.startswith("members") and not any(
            members(k) for k in (rain if "rain" in needs else keys)
        ):
            raise OptionError(
                f"{label} is a score of an ensemble, but the forecast has no members.",
                fix="predict(members=50), or metrics=['rmse', 'crps']",
            )
        if needs == "probability" and not any(
            members(k) or law(k) or beside(k, "probability") for k in rain
        ):
            raise OptionError(
                f"{label} is a score of probabilities, but the forecast has none.",
                fix="predict(thresholds_mm=(1, 5)), members, or a head's parameters beside tp",
            )
        if needs == "quantile" and not any(
            members(k) or law(k) or beside(k, "quantile") for k in keys
        ):
            raise OptionError(
                f"{label} is a score of quantiles, but the forecast has none.",
                fix="predict(quantiles=(0.05, 0.5, 0.95))",
            )
        wanted = settings.thresholds_mm if needs == "probability" else settings.levels
        suffix, dim = (
            ("probability", "threshold") if needs == "probability" else ("quantile", "quantile")
        )
        if needs in ("probability", "quantile") and not any(members(k) or law(k) for k in keys):
            found = [
                float(v) * (alignment.to_mm(f.ds[dim]) if dim == "threshold" else 1.0)
                for f in read.values()
                for k in keys
                if k in f.fields and f"{f.fields[k].source}_{suffix}" in f.ds
                for v in f.ds[dim].values
            ]
            if not any(abs(v - w) <= 1e-6 * max(w, 1e-9) for v in found for w in wanted):
                names = "thresholds_mm" if needs == "probability" else "quantile_levels"
                raise OptionError(
                    f"{label}: the forecast has {suffix} at {sorted(set(found))}, but {names} are"
                    f" {list(wanted)}.",
                    fix=f"{names}={sorted(set(found))}",
                )
        if needs == "law" and not any(law(k) and not members(k) for k in keys):
            raise OptionError(
                f"{label} is a score of a distribution, but the forecast has none.",
                fix="keep the head's parameters beside tp, or metrics='rank_histogram' for members",
            )
        if "joint" in needs:
            among = rain if "rain" in needs else keys
            marginal = [k for k in among if law(k) and not members(k)]
            if marginal and (len(marginal) == len(among) or "rain" in needs):
                raise KindError(
                    f"{label} measures spatial structure, but '{fields[marginal[0]].source}' is an"
                    " independent distribution at every point, and its mean is not a realistic"
                    " field.",
                    fix="predict(members=50), whose members are joint in space and time",
                )
        if needs == "normal_quantiles" and not any(j.normal_quantiles for j in jobs):
            raise TruthError(
                f"{label} needs quantiles of the climatology.",
                fix=(
                    "climatology=xaurora.climatology(past, statistics=['mean', 'quantile'],"
                    " quantiles=[0.9, 0.95])"
                ),
            )


def _shared_levels(
    read: dict[str, Forecast], truth: truths.Truth, key: tuple[str, str]
) -> tuple[float, ...]:
    if key[0] != "atmos":
        return ()
    having = [f for f in read.values() if key in f.fields]
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

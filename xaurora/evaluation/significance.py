"""Significance of score differences: a t-test of paired init times that are correlated.

Does not depend on torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from xaurora.errors import KindError, OptionError, TruthError
from xaurora.evaluation import autocorrelation, carried
from xaurora.evaluation import metrics as _metrics
from xaurora.fields import variables
from xaurora.fields.unit_conversion import conversion

Interval: TypeAlias = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def significance(
    scores: xr.Dataset,
    baseline: xr.Dataset,
    *,
    metrics: Sequence[str] | str | None = None,
    level: float = 0.95,
    test: str = "autoregressive",
) -> xr.Dataset:
    """Compute the skill of a forecast against a baseline with confidence intervals.

    The two are paired at common init times. The contribution of each init time to the skill (the
    jackknife's pseudo-value) is tested with Student's t, whose quantiles are simulated for series
    with the correlation between consecutive init times that is found
    (:mod:`xaurora.evaluation.autocorrelation`). The data are computed, not lazy.

    Parameters
    ----------
    scores, baseline : Dataset
        Results of ``evaluate`` or :func:`xaurora.compare` against the same truth.
    metrics : str or sequence of str, optional
        Labels of metrics; by default all that both have and for which high or low is better.
    level : float
        Confidence level of the interval.
    test : {"autoregressive", "diebold_mariano"}
        The first keeps its level for short and strongly correlated series. The second is the usual
        one, with a variance corrected for autocorrelation, and finds more by chance in those.

    Returns
    -------
    Dataset
        The variables of the scores with a dim ``estimate``: ``skill``, ``low``, ``high`` and
        ``p``, the p-value of no difference. Skill is ``1 − S/S_baseline`` for scores that are
        better when small, and ``(S − S_baseline)/(1 − S_baseline)`` for those whose best value is
        1. Positive values are better. A difference whose interval does not contain zero is
        significant at ``1 − level``. With fewer than ten common init times there is no interval.

    Raises
    ------
    KindError
        If an argument is not a Dataset of scores, or does not carry values for each init time.
    TruthError
        If the scores share no variable, metric or init time.
    OptionError
        If the level is out of range.

    Examples
    --------
    >>> simple = xaurora.persistence(ds, ["tp"], ["6h", "12h"])
    >>> found = xaurora.compare({"tuned": fc, "persistence": simple}, ds, metrics=["mae"])
    >>> skill = xaurora.significance(found["tuned"], found["persistence"])
    >>> skill["estimate"].values.tolist()
    ['skill', 'low', 'high', 'p']
    """
    for name, ds in (("scores", scores), ("baseline", baseline)):
        if not isinstance(ds, xr.Dataset) or "region" not in ds.dims:
            raise KindError(
                f"{name} is not a Dataset of scores.",
                fix="xaurora.significance(mine, theirs), each from evaluate(truth)",
            )
    if not 0.0 < level < 1.0:
        raise OptionError(f"level must be between 0 and 1, got {level!r}.", fix="level=0.95")
    if test not in autocorrelation.TESTS:
        raise OptionError(
            f"there is no test {test!r}; valid tests are {', '.join(autocorrelation.TESTS)}.",
            fix="test='autoregressive'",
        )
    interval, words = autocorrelation.TESTS[test]
    wanted = None if metrics is None else list(_metrics.check(metrics))
    out: dict[str, Any] = {}
    count = 0
    for name, other in _pairs(scores, baseline):
        for target, result, pairs in _variable(
            scores, baseline, name, other, wanted, functools.partial(interval, level=level)
        ):
            out[target] = result
            count = max(count, pairs)
    if not out:
        raise TruthError(
            "the scores share no variable and metric. The variables are"
            f" {sorted(map(str, scores.data_vars))} and {sorted(map(str, baseline.data_vars))}.",
            fix="evaluate both with the same arguments, or xaurora.compare({...}, truth)",
        )
    attrs = {
        "level": level,
        "test": words,
        "pairs": count,
    }
    return xr.Dataset(out, {"estimate": list(ESTIMATES)}, attrs)


_ROUNDING = 1e-9  # of a skill; forecasts that differ by rounding alone are the same
ESTIMATES = ("skill", "low", "high", "p")


def _pairs(scores: xr.Dataset, baseline: xr.Dataset) -> Iterator[tuple[str, str]]:
    """Yield the names of matching variables, whatever they are called in each.

    Both must carry values for each init time.
    """
    mine, theirs = (carried.carriers(ds) for ds in (scores, baseline))
    for ds, found in ((scores, mine), (baseline, theirs)):
        if not found:
            carried.carried(ds, str(next(iter(ds.data_vars), "tp")))
    keys = {str(attrs.get("xaurora_variable", n)): n for n, attrs in theirs.items()}
    for n, attrs in mine.items():
        if (key := str(attrs.get("xaurora_variable", n))) in keys:
            yield n, keys[key]


def _factor(scores: xr.Dataset, baseline: xr.Dataset, name: str, other: str) -> float:
    """Return the factor that converts a baseline's values to the units of the scores.

    Raises
    ------
    TruthError
        If the units cannot be converted, or the accumulation periods differ.
    """
    known_of = [carried.carriers(ds)[n] for ds, n in ((scores, name), (baseline, other))]
    mine, theirs = (str(attrs.get("units", "")) for attrs in known_of)
    hours = [int(ds.attrs.get("precipitation_hours", 6)) for ds in (scores, baseline)]
    key = str(known_of[0].get("xaurora_variable", ""))
    if key == "surface/tp" and hours[0] != hours[1]:
        raise TruthError(
            f"'{name}' is accumulated over {hours[0]} h in one and over {hours[1]} h in the other.",
            fix="accumulate='24h' for both",
        )
    if mine == theirs:
        return 1.0
    kind, _, short = key.partition("/")
    known = variables.BY_KEY.get((kind, short))
    scales = (
        [conversion(u, known.units) for u in (mine, theirs)] if known is not None else [None, None]
    )
    if scales[0] is None or scales[1] is None:
        raise TruthError(
            f"the units of '{name}' are {mine!r} in one and {theirs!r} in the other.",
            fix="xaurora.compare({...}, truth), which scores all in the same units",
        )
    return float(scales[1][0] / scales[0][0])


Pair = list[tuple[xr.DataArray, xr.DataArray]]


def _common(
    scores: xr.Dataset, baseline: xr.Dataset, name: str, other: str
) -> tuple[dict[str, Pair], int, np.ndarray]:
    """Return the statistics that both carry, at common times, leads, regions and levels.

    Also returns the number of init times, and the leads.
    """
    mine, theirs = carried.carried(scores, name), carried.carried(baseline, other)
    times, leads = (
        np.intersect1d(scores.variables[d].values, baseline.variables[d].values)
        for d in ("init_time", "carried_lead_time")
    )
    theirs_too = baseline.variables["region"].values
    regions = [r for r in scores.variables["region"].values if r in theirs_too]
    if not len(times) or not len(leads) or not regions:
        raise TruthError(
            f"the scores of '{name}' share no"
            f" {'init time' if not len(times) else 'lead time' if not len(leads) else 'region'}.",
            fix="evaluate both at the same init times: xaurora.compare({...}, truth)",
        )
    at = {"init_time": times, "carried_lead_time": leads, "region": regions}
    fields = {}
    for s in (s for s in mine if s in theirs):
        both = []
        for part in (mine[s], theirs[s]):
            mean, weight = (_selected(da, at) for da in part)
            if "level" in mean.dims and "level" in mine[s][0].dims:
                other_levels = theirs[s][0]["level"].values
                levels = [v for v in mine[s][0]["level"].values if v in other_levels]
                mean, weight = mean.sel(level=levels), weight.sel(level=levels)
            both.append((mean, weight))
        first, second = both[0][0], both[1][0]
        _check_dims(first, second, name)
        if first.shape == second.shape:  # ensembles of different sizes have different ranks
            fields[s] = both
    return fields, len(times), leads


def _selected(da: xr.DataArray, at: dict[str, Any]) -> xr.DataArray:
    """Return some labels, or the array itself if it has no others."""
    if all(np.array_equal(da[d].values, v) for d, v in at.items()):
        return da
    return da.sel(at)


def _check_dims(first: xr.DataArray, second: xr.DataArray, name: str) -> None:
    """Raise if scores have other thresholds, scales or bins than those of the baseline."""
    for d in map(str, first.dims[3:]):
        differs = d in first.coords and d in second.coords
        if d not in second.dims or (differs and not np.array_equal(first[d], second[d])):
            raise TruthError(
                f"the scores of '{name}' have {d}"
                f" {first[d].values.tolist() if d in first.coords else first.sizes[d]} in one"
                f" and {second[d].values.tolist() if d in second.coords else 'others'} in the"
                " other Dataset.",
                fix="evaluate both with the same arguments",
            )


def _variable(
    scores: xr.Dataset,
    baseline: xr.Dataset,
    name: str,
    other: str,
    wanted: list[str] | None,
    interval: Interval,
) -> Iterator[tuple[str, xr.DataArray, int]]:
    """Yield the skill of one variable with its interval: name, values, number of init times."""
    fields, count, leads = _common(scores, baseline, name, other)
    drawn = 1.0 - np.concatenate([np.zeros((1, count)), np.eye(count)])  # all, and all but one
    convention = str(scores.attrs.get("convention", "weatherbench2"))
    factor = _factor(scores, baseline, name, other)
    resampled: dict[tuple[str, int], np.ndarray] = {}
    labels = wanted if wanted is not None else str(scores.attrs.get("metrics", "")).split()
    shared: dict[str, list[tuple[str, np.ndarray]]] = {}
    dims_of: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {}
    for label in labels:
        metric = _metrics.ALIASES.get(label, label)
        spec = _metrics.METRICS[metric]
        needed = _metrics.statistics_of(metric, convention)
        if (
            spec.better not in ("low", "high")
            or spec.suffix not in ("", "_exceed", "_exceed_quantile", "_fss")
            or any(n not in fields for n in needed)
        ):
            continue
        values = []
        for which in (0, 1):
            means = {}
            for n in needed:
                if (n, which) not in resampled:
                    resampled[n, which] = _means(fields[n], which, drawn, convention)
                means[n] = resampled[n, which]
            power = {"own": 1, "square": 2, "": 0}[spec.units] if which else 0
            values.append(_metrics.compute(metric, means) * factor**power)
        with np.errstate(invalid="ignore", divide="ignore"):
            skill = (
                1.0 - values[0] / values[1]
                if spec.better == "low"
                else (values[0] - values[1]) / (1.0 - values[1])
            )
        both = [
            (one[1].values > 0) & (other[1].values > 0)
            for one, other in (fields[n] for n in needed)
        ]
        scored = np.logical_and.reduce(both).reshape(count, *skill.shape[1:3], -1).any(axis=-1)
        estimate = _estimate(skill, scored, interval)
        first = fields[needed[0]][0][0]
        dims = ["lead_time", "region", *(str(d) for d in first.dims[3:] if d != "probability_bin")]
        target = name + spec.suffix
        shared.setdefault(target, []).append((label, estimate))
        dims_of[target] = (
            ("metric", "estimate", *dims),
            {d: first[d].values for d in dims if d in first.coords and d != "lead_time"}
            | {"lead_time": leads},
        )
    for target, rows in shared.items():
        names, coords = dims_of[target]
        stacked = np.stack([e for _, e in rows])
        da = xr.DataArray(
            stacked, dims=names, coords={**coords, "metric": [label for label, _ in rows]}
        )
        yield target, da.transpose("estimate", "metric", "region", "lead_time", ...), count


def _means(
    pair: list[tuple[xr.DataArray, xr.DataArray]], which: int, drawn: np.ndarray, convention: str
) -> np.ndarray:
    """Return the means of every sample, ``(sample, lead, region, ...)``.

    Only fields that were scored in both are included.
    """
    both = (pair[0][1].values > 0) & (pair[1][1].values > 0)
    mean, weight = pair[which][0].values, pair[which][1].values
    weight = (
        both.astype(np.float64) if convention == "weatherbench2" else np.where(both, weight, 0.0)
    )
    filled = np.where(both, mean, 0.0) * weight
    flat = (len(mean), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((drawn @ filled.reshape(flat)) / (drawn @ weight.reshape(flat))).reshape(
            len(drawn), *mean.shape[1:]
        )


def _estimate(skill: np.ndarray, scored: np.ndarray, interval: Interval) -> np.ndarray:
    """Return the skill, the ends of its interval and its p-value.

    Parameters
    ----------
    skill : ndarray, ``(1 + n, lead, region, ...)``
        Of all init times, and of all but each of them.
    scored : ndarray of bool, ``(n, lead, region)``
        Where both forecasts were scored.
    interval : callable
        Returns half the width of the interval of a mean, and its p-value.
    """
    here, without = skill[0], skill[1:]
    shape = *scored.shape, *[1] * (skill.ndim - 3)
    count = scored.sum(axis=0).reshape(shape[1:])
    with np.errstate(invalid="ignore"):  # the baseline's score is zero
        values = count * here - (count - 1) * without
    values = np.where(scored.reshape(shape) & np.isfinite(values), values, np.nan)
    half, p = interval(values)
    p = np.where((np.abs(here) < _ROUNDING) & np.isfinite(p), 1.0, p)
    return np.stack([here, here - half, here + half, p])

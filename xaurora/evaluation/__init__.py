"""Scores as WeatherBench2 defines them: statistics per point → weighted means → metrics. Runs without torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from xaurora import distributions
from xaurora.distributions import Family
from xaurora.errors import KindError, OptionError, TruthError
from xaurora.evaluation import alignment, statistics
from xaurora.evaluation import metrics as _metrics
from xaurora.evaluation import regions as region_weights
from xaurora.evaluation.aggregation import Means, area_mean
from xaurora.evaluation.alignment import Forecast

logger = logging.getLogger("xaurora")

__all__ = ["evaluate", "to_weatherbench2"]


def evaluate(
    ds: xr.Dataset,
    truth: xr.Dataset,
    *,
    climatology: xr.Dataset | None = None,
    metrics: Sequence[str] | None = None,
    regions: Any = None,
    skipna: bool = False,
) -> xr.Dataset:
    """Score a forecast. See :meth:`xaurora.accessor.AuroraAccessor.evaluate`."""
    chosen = _metrics.check(metrics)
    forecast = alignment.read_forecast(ds)
    right = alignment.read_truth(truth, forecast)
    keys = alignment.matched_variables(forecast, right)
    normals = alignment.ClimatologyFields(climatology, forecast) if climatology is not None else None
    if metrics is not None and "acc" in chosen and normals is None:
        raise OptionError("acc needs a climatology.", fix="evaluate(truth, climatology=xaurora.climatology(past))")
    weights = region_weights.weights(forecast.latitude, forecast.longitude, regions, right.land())
    laws = (
        {key: alignment.distribution(forecast, forecast.fields[key], needed=metrics is not None) for key in keys}
        if "crps" in chosen
        else {}
    )
    levels = {key: _shared_levels(forecast, right, normals, key) for key in keys}
    means = {key: Means(skipna=skipna) for key in keys}
    scored, missing = 0, 0
    for i, init in enumerate(forecast.init_times):
        for j, lead in enumerate(forecast.leads):
            if (init + lead).item() not in right.position:
                missing += 1
                continue
            scored += 1
            for key in keys:
                _score(
                    forecast, right, normals, key, i, j, levels[key], weights, laws.get(key), chosen, means[key], skipna
                )
    if missing:
        logger.warning(
            "%d of %d forecast fields have no truth at their valid time and are left out.", missing, missing + scored
        )
    return _collect(forecast, keys, levels, means, chosen, list(weights), scored, missing)


def _shared_levels(
    forecast: Forecast, truth: alignment.Truth, normals: alignment.ClimatologyFields | None, key: tuple[str, str]
) -> tuple[float, ...]:
    if key[0] != "atmos":
        return ()
    levels = tuple(
        v
        for v in forecast.levels
        if v in truth.fields.levels and (normals is None or not normals.has(key) or v in normals.found.levels)
    )
    if not levels:
        raise TruthError(
            f"forecast and truth share no pressure level of {key[1]!r}.", fix="give a truth with the forecast's levels"
        )
    return levels


def _score(
    forecast: Forecast,
    truth: alignment.Truth,
    normals: alignment.ClimatologyFields | None,
    key: tuple[str, str],
    i: int,
    j: int,
    levels: tuple[float, ...],
    weights: dict[str, np.ndarray],
    law: Family | None,
    chosen: list[str],
    means: Means,
    skipna: bool,
) -> None:
    """Add one init time and lead of one variable to its running means; values in the forecast's own units."""
    kind, name = key
    item = forecast.fields[key]
    valid = forecast.init_times[i] + forecast.leads[j]
    y_si = truth.read(kind, name, valid, levels)
    if y_si is None:
        return
    f = forecast.raw(item.source, i, j)
    y = (y_si - item.offset) / item.scale
    if kind == "atmos":
        f = np.take(f, [forecast.levels.index(v) for v in levels], axis=-3)
    ensemble = forecast.members > 0 and f.ndim == y.ndim + 1

    def add(statistic: str, values: np.ndarray) -> None:
        means.add(statistic, j, {region: area_mean(values, w, skipna=skipna) for region, w in weights.items()})

    single = f.mean(axis=0) if ensemble else f  # an ensemble's deterministic scores are those of its mean
    for statistic in {_metrics.STATISTIC[m] for m in chosen} - {"acc", "crps"}:
        add(statistic, getattr(statistics, statistic)(single, y))
    if "acc" in chosen and normals is not None and normals.has(key):
        normal = normals.read(key, valid, levels)
        if normal is not None:
            normal = (normal - item.offset) / item.scale
            means.add(
                "acc",
                j,
                {
                    r: _metrics.anomaly_correlation(single - normal, y - normal, w, skipna=skipna)
                    for r, w in weights.items()
                },
            )
    if "crps" in chosen:
        if ensemble:
            add("crps", statistics.crps_of_members(f, y))
        elif law is not None:
            params = alignment.parameters(forecast, item, law, i, j)
            rain = item.variable.accumulated
            add("crps", statistics.crps_of_parameters(law, params, y_si, rain=rain) / abs(item.scale))


def _collect(
    forecast: Forecast,
    keys: list[tuple[str, str]],
    levels: dict[tuple[str, str], tuple[float, ...]],
    means: dict[tuple[str, str], Means],
    chosen: list[str],
    regions: list[str],
    scored: int,
    missing: int,
) -> xr.Dataset:
    all_levels = [v for v in forecast.levels if any(v in found for found in levels.values())]
    names = [
        m
        for m in chosen
        if any(
            means[k].mean(_metrics.STATISTIC[m], regions[0], j) is not None
            for k in keys
            for j in range(len(forecast.leads))
        )
    ]
    data = {}
    for key in keys:
        shape = (len(names), len(regions), len(forecast.leads)) + ((len(all_levels),) if key[0] == "atmos" else ())
        values = np.full(shape, np.nan)
        for a, metric in enumerate(names):
            for b, region in enumerate(regions):
                for c in range(len(forecast.leads)):
                    mean = means[key].mean(_metrics.STATISTIC[metric], region, c)
                    if mean is not None:
                        place: Any = (
                            (a, b, c, [all_levels.index(v) for v in levels[key]]) if key[0] == "atmos" else (a, b, c)
                        )
                        values[place] = _metrics.from_mean(metric, mean)
        item = forecast.fields[key]
        dims = ("metric", "region", "lead_time", "level")[: values.ndim]
        attrs = {"units": item.attrs.get("units", item.variable.units), "long_name": item.variable.long_name}
        data[item.source] = (dims, values, attrs)
    coords: dict[str, Any] = {"metric": names, "region": regions, "lead_time": forecast.leads}
    if any(key[0] == "atmos" for key in keys):
        coords["level"] = ("level", all_levels, {"units": "hPa"})
    attrs = {
        "title": "Scores with WeatherBench2's definitions",
        "number_of_init_times": len(forecast.init_times),
        "fields_scored": scored,
        "fields_without_truth": missing,
        "grid": f"{len(forecast.latitude)} × {len(forecast.longitude)}",
    }
    for name in ("xaurora_base", "xaurora_weights", "xaurora_strategy"):
        if name in forecast.ds.attrs:
            attrs[name] = forecast.ds.attrs[name]
    return xr.Dataset(data, coords, attrs)


def to_weatherbench2(ds: xr.Dataset) -> xr.Dataset:
    """A forecast in WeatherBench2's names, units and layout. See :meth:`xaurora.accessor.AuroraAccessor.to_weatherbench2`. Lazy."""
    forecast = alignment.read_forecast(ds)
    source = forecast.ds
    out = {}
    for item in forecast.fields.values():
        da = source[item.source]
        if item.scale != 1.0 or item.offset != 0.0:
            da = (da.astype(np.float64) * item.scale + item.offset).astype(np.float32)
        # The parameters of a distribution have no name in WeatherBench2; what leads to them must not be left behind.
        attrs = {k: v for k, v in da.attrs.items() if not distributions.is_attr(k)}
        out[item.variable.weatherbench2] = da.drop_attrs(deep=False).assign_attrs(
            {**attrs, "units": item.variable.units, "long_name": item.variable.long_name}
        )
    if not out:
        raise KindError(
            "no variable of this forecast has a name in WeatherBench2.", fix="ds.aurora lists what was recognised"
        )
    result = xr.Dataset(out, attrs=ds.attrs).drop_vars("valid_time", errors="ignore")
    names = {"init_time": "time", "lead_time": "prediction_timedelta"} | {
        found: axis for axis, found in forecast.dims.items() if found != axis
    }
    result = result.rename(names).assign_coords(prediction_timedelta=forecast.leads)
    result = result.assign_coords(longitude=("longitude", forecast.longitude, {"units": "degrees_east"}))
    return result.sortby("latitude").sortby("longitude")

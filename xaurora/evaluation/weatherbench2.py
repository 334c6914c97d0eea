"""Compute the scores with WeatherBench2's own classes, if it is installed.

It is not on the package index. ``docs/evaluation.md`` shows how to install it from its repository.
Does not depend on torch.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

import numpy as np
import xarray as xr

from xaurora.errors import MissingExtraError, OptionError
from xaurora.evaluation.alignment import Forecast
from xaurora.evaluation.climatology_fields import ClimatologyFields
from xaurora.evaluation.truths import Truth
from xaurora.fields.grid import regions as _regions
from xaurora.fields.grid.regions import RegionLike

INSTALL = 'pip install "weatherbench2 @ git+https://github.com/google-research/weatherbench2.git"'
METRICS = (
    "rmse",
    "mse",
    "mae",
    "bias",
    "acc",
    "seeps",
    "crps",
    "crps_skill",
    "crps_spread",
    "ensemble_stddev",
    "ensemble_variance",
    "ensemble_mean_mse",
    "mean_rmse",
    "ensemble_mean_rmse",
    "debiased_ensemble_mean_mse",
    "energy_score",
    "rmse_sqrt_before_time_avg",
)
"""Metrics that its classes compute."""
_AXIS = "realization"


class _Metric(Protocol):
    """A metric of WeatherBench2."""

    precip_name: str  # of SEEPS alone

    def compute_chunk(
        self, forecast: xr.Dataset, truth: xr.Dataset, *, region: _Region, skipna: bool
    ) -> xr.Dataset: ...


def _package() -> ModuleType:
    try:
        from weatherbench2 import metrics
    except ImportError as why:
        raise MissingExtraError(
            f"engine='weatherbench2' needs the package weatherbench2 ({why}), which is not on the"
            " package index.",
            fix=f"{INSTALL}, or engine='xaurora', whose scores agree with it",
        ) from why
    return metrics


def evaluate(
    forecast: Forecast,
    truth: Truth,
    normals: ClimatologyFields | None,
    keys: list[tuple[str, str]],
    labels: dict[str, str],
    regions: RegionLike | None,
    *,
    skipna: bool,
    explicit: bool,
) -> xr.Dataset:
    """Compute scores in the layout of ``evaluate``, one init time after another.

    Raises
    ------
    MissingExtraError
        If WeatherBench2 is not installed.
    OptionError
        If it does not have a named metric.
    """
    metrics = _package()
    if explicit and (unknown := [label for label, name in labels.items() if name not in METRICS]):
        raise OptionError(
            f"engine='weatherbench2' does not support {', '.join(unknown)}; valid values are"
            f" {', '.join(METRICS)}.",
            fix="engine='xaurora'",
        )
    weights = _regions.weights(forecast.latitude, forecast.longitude, regions, truth.land())
    chosen = {label: name for label, name in labels.items() if name in METRICS}
    total: dict[tuple[str, str], Any] = {}
    count = 0
    for i in range(len(forecast.init_times)):
        for k in range(len(forecast.leads)):
            pair = _pair(forecast, truth, [key for key in keys if key in forecast.fields], i, k)
            if pair is None:
                continue
            count += 1
            for label, name in chosen.items():
                metric = _metric(metrics, name, forecast, normals, pair[0])
                if metric is None:
                    continue
                squared = name in ("rmse", "mean_rmse", "ensemble_mean_rmse", "ensemble_stddev")
                for region, weight in weights.items():
                    found = _chunk(metric, pair, _Region(weight, forecast), skipna)
                    for variable, value in found.items():
                        key = (str(variable), label)
                        box = total.setdefault(key, {"squared": squared, "sum": {}})
                        at = box["sum"].setdefault((region, k), [0.0, 0])
                        at[0] = at[0] + np.asarray(value.values, np.float64).squeeze()
                        at[1] += 1
    return _collect(forecast, keys, chosen, list(weights), total, count)


class _Region:
    """A region with the interface of WeatherBench2's regions."""

    def __init__(self, weight: np.ndarray, forecast: Forecast) -> None:
        order = np.argsort(forecast.latitude)
        self.weight = xr.DataArray(
            weight[order],
            {"latitude": forecast.latitude[order], "longitude": forecast.longitude},
            ("latitude", "longitude"),
        )

    def apply(self, dataset: xr.Dataset, weights: xr.DataArray) -> tuple[xr.Dataset, xr.DataArray]:
        """Replace WeatherBench2's latitude weights, which extend regional grids to the poles."""
        return dataset, self.weight


def _pair(
    forecast: Forecast, truth: Truth, keys: list[tuple[str, str]], i: int, k: int
) -> tuple[xr.Dataset, xr.Dataset] | None:
    """Return one init time and lead time of forecast and truth in WeatherBench2's form.

    Latitudes are sorted south first. None if the truth lacks the valid time.
    """
    valid = forecast.init_times[i] + forecast.leads[k]
    coords = {
        "latitude": forecast.latitude,
        "longitude": forecast.longitude,
        "time": [forecast.init_times[i]],
    }
    one: dict[str, Any] = {}
    other: dict[str, Any] = {}
    for key in keys:
        item = forecast.fields[key]
        levels = (
            tuple(v for v in forecast.levels if v in truth.fields.levels)
            if key[0] == "atmos"
            else ()
        )
        found = truth.read(*key, [valid], levels)
        if not found:
            return None
        y = truth.like(*key, next(iter(found.values())), item)
        f = forecast.block(item.source, slice(i, i + 1), slice(k, k + 1), levels)[0, 0]
        inner = (*(("level",) if levels else ()), "latitude", "longitude")
        members = (_AXIS,) if forecast.has_members(item.source) else ()
        if levels:
            coords["level"] = list(levels)
        name = item.variable.weatherbench2
        one[name] = (("time", *members, *inner), f[None])
        other[name] = (("time", *inner), y.astype(f.dtype)[None])
    both = [xr.Dataset(d, coords).sortby("latitude") for d in (one, other)]
    both = [ds.assign_coords(valid_time=("time", [valid])) for ds in both]
    return both[0], both[1]


def _metric(
    metrics: ModuleType,
    name: str,
    forecast: Forecast,
    normals: ClimatologyFields | None,
    sample: xr.Dataset,
) -> _Metric | None:
    members = _AXIS in sample.dims
    if name in ("rmse", "mse"):
        return metrics.MSE()
    if name in ("mae", "bias"):
        return metrics.MAE() if name == "mae" else metrics.Bias()
    if name == "rmse_sqrt_before_time_avg":
        return metrics.RMSESqrtBeforeTimeAvg()
    if name in ("acc", "seeps"):
        if normals is None:
            return None
        climatology = _climatology(normals, forecast)
        if name == "acc":
            wanted = [n for n in sample.data_vars if n in climatology]
            return (
                metrics.ACC(climatology=climatology[wanted])
                if len(wanted) == len(sample.data_vars)
                else None
            )
        rain = f"total_precipitation_{forecast.hours}hr"
        if normals.seeps_name(forecast.hours) is None or rain not in sample:
            return None
        return metrics.SEEPS(
            climatology=climatology,
            dry_threshold_mm={6: 0.1, 24: 0.25}[forecast.hours],
            precip_name=rain,
        )
    if not members:
        return None
    classes = {
        "crps": "CRPS",
        "crps_skill": "CRPSSkill",
        "crps_spread": "CRPSSpread",
        "ensemble_stddev": "EnsembleVariance",
        "ensemble_variance": "EnsembleVariance",
        "ensemble_mean_mse": "EnsembleMeanMSE",
        "mean_rmse": "EnsembleMeanMSE",
        "ensemble_mean_rmse": "EnsembleMeanMSE",
        "debiased_ensemble_mean_mse": "DebiasedEnsembleMeanMSE",
        "energy_score": "EnergyScore",
    }
    return getattr(metrics, classes[name])(ensemble_dim=_AXIS)


def _climatology(normals: ClimatologyFields, forecast: Forecast) -> xr.Dataset:
    """Return the climatology with WeatherBench2's names on the forecast's grid, cached."""
    if "in_weatherbench2" in normals.__dict__:
        return normals.__dict__["in_weatherbench2"]
    out: dict[str, Any] = {}
    rename = {normals.dims[a]: a for a in ("level", "latitude", "longitude") if a in normals.dims}
    for key, item in normals.found.fields.items():
        if item.source not in normals.ds or key not in forecast.fields:
            continue
        da = normals.ds[item.source].rename(
            {k: v for k, v in rename.items() if k in normals.ds[item.source].dims and k != v}
        )
        mine = forecast.fields[key]
        out[mine.variable.weatherbench2] = (
            da * item.scale + item.offset - mine.offset
        ) / mine.scale
    for name in normals.ds.data_vars:
        if "_seeps_" in str(name):
            out[str(name)] = normals.ds[name].rename(
                {k: v for k, v in rename.items() if k != v and k in normals.ds[name].dims}
            )
    rows = {"latitude": normals.rows, "longitude": normals.columns}
    ds = (
        xr.Dataset(out)
        .isel(rows)
        .assign_coords(latitude=forecast.latitude, longitude=forecast.longitude)
    )
    normals.__dict__["in_weatherbench2"] = ds = ds.sortby("latitude")
    return ds


def _chunk(
    metric: _Metric, pair: tuple[xr.Dataset, xr.Dataset], region: _Region, skipna: bool
) -> xr.Dataset:
    forecast, truth = pair
    name = type(metric).__name__
    if name == "SEEPS":
        forecast, truth = (ds[[metric.precip_name]] for ds in pair)
    if _AXIS in forecast.dims and name in (
        "MSE",
        "MAE",
        "Bias",
        "RMSESqrtBeforeTimeAvg",
        "ACC",
        "SEEPS",
    ):
        forecast = forecast.mean(_AXIS, skipna=False)
    if name in ("ACC", "SEEPS"):  # they look up the climatology by `time`: give the valid time
        forecast, truth = (
            ds.assign_coords(time=ds["valid_time"].values).assign_coords(
                valid_time=("time", ds["valid_time"].values)
            )
            for ds in (forecast, truth)
        )
        if name == "SEEPS":
            rain = metric.precip_name
            forecast, truth = (
                ds.assign({rain: ds[rain].assign_coords(valid_time=ds["valid_time"])})
                for ds in (forecast, truth)
            )
    return metric.compute_chunk(forecast, truth, region=region, skipna=skipna)


def _collect(
    forecast: Forecast,
    keys: list[tuple[str, str]],
    chosen: dict[str, str],
    regions: list[str],
    total: dict[tuple[str, str], Any],
    count: int,
) -> xr.Dataset:
    data = {}
    labels = [m for m in chosen if any(k[1] == m for k in total)]
    levels: tuple[float, ...] = ()
    for key in (k for k in keys if k in forecast.fields):
        item = forecast.fields[key]
        mine = item.variable.weatherbench2
        found = {m: total[mine, m] for m in labels if (mine, m) in total}
        if not found:
            continue
        size = next(np.size(v[0]) for box in found.values() for v in box["sum"].values())
        has_level = key[0] == "atmos"
        if has_level:
            levels = forecast.levels[:size]
        values = np.full(
            (len(labels), len(regions), len(forecast.leads), *((size,) if has_level else ())),
            np.nan,
        )
        for a, m in enumerate(labels):
            for (region, k), (value, n) in found.get(m, {"sum": {}})["sum"].items():
                mean = value / n
                values[a, regions.index(region), k] = np.sqrt(mean) if found[m]["squared"] else mean
        dims = ("metric", "region", "lead_time", *(("level",) if has_level else ()))
        attrs = {
            "units": str(item.attrs.get("units", item.variable.units)),
            "long_name": item.variable.long_name,
            "xaurora_variable": "/".join(key),
        }
        data[item.source] = (dims, values, attrs)
    coords: dict[str, Any] = {"metric": labels, "region": regions, "lead_time": forecast.leads}
    if levels:
        coords["level"] = ("level", list(levels), {"units": "hPa"})
    info: dict[str, Any] = {
        "title": "Scores by WeatherBench2's own classes",
        "engine": "weatherbench2",
        "number_of_init_times": len(forecast.init_times),
        "fields_scored": count,
        "grid": f"{len(forecast.latitude)} × {len(forecast.longitude)}",
    }
    return xr.Dataset(data, coords, info)

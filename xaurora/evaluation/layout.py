"""Convert forecasts and scores to WeatherBench2's names and layout.

Does not depend on torch.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from xaurora import distributions
from xaurora.errors import KindError
from xaurora.evaluation import alignment
from xaurora.evaluation import metrics as _metrics
from xaurora.evaluation.carried import without_carried
from xaurora.fields import recognition, variables
from xaurora.fields.unit_conversion import conversion


def results(scores: xr.Dataset) -> xr.Dataset:
    """Return scores with WeatherBench2's names of variables and metrics, in SI units.

    This is the format of WeatherBench2's own evaluation. The values by init time that scores carry
    are dropped. Variables with more dims than ``metric``, ``region``, ``lead_time`` and ``level``
    get its names as far as it has any.
    """
    out = {}
    for name, da in without_carried(scores).data_vars.items():
        kind, _, short = str(da.attrs.get("xaurora_variable", "")).partition("/")
        variable = variables.BY_KEY.get((kind, short))
        if variable is None:
            out[str(name)] = da
            continue
        suffix = str(name).removeprefix(_base(scores, str(name), str(da.attrs["xaurora_variable"])))
        public = variable.weatherbench2
        if variable.accumulated and scores.attrs.get("precipitation_hours", 6) != 6:
            public = f"total_precipitation_{scores.attrs['precipitation_hours']}hr"
        units = str(da.attrs.get("units", ""))
        scale, _ = conversion(units, variable.units) or (1.0, 0.0)
        if "metric" in da.dims and scale != 1.0:
            kinds = [
                _metrics.METRICS[_metrics.ALIASES.get(m, m)].units if m != "coverage" else ""
                for m in map(str, da["metric"].values)
            ]
            factors = xr.DataArray(
                [{"own": scale, "square": scale**2, "": 1.0}[k] for k in kinds],
                {"metric": da["metric"]},
            )
            da = (da * factors).transpose(*da.dims).assign_attrs(da.attrs)
        out[public + suffix] = da.assign_attrs(units=variable.units)
    attrs = {
        k: v
        for k, v in scores.attrs.items()
        if k in ("number_of_init_times", "grid", "convention", "title")
    }
    ds = xr.Dataset(out, attrs=attrs)
    if "metric" in ds.coords:
        ds = ds.assign_coords(metric=[_RESULT.get(m, m) for m in map(str, ds["metric"].values)])
    return ds


_RESULT = {"seeps": "seeps_6hr"}
"""Metric names of WeatherBench2's own evaluation that differ from those of this package."""


def _base(scores: xr.Dataset, name: str, key: str) -> str:
    """Return the variable that a name with a suffix belongs to."""
    same = [
        str(n)
        for n, da in scores.data_vars.items()
        if da.attrs.get("xaurora_variable") == key and name.startswith(str(n))
    ]
    return min(same, key=len)


def to_weatherbench2(ds: xr.Dataset) -> xr.Dataset:
    """Return a forecast or scores with WeatherBench2's names, units and layout.

    Lazy. See :meth:`xaurora.accessor.AuroraAccessor.to_weatherbench2`.
    """
    if recognition.is_scores(ds):
        return results(ds)
    forecast = alignment.read_forecast(ds)
    source = forecast.ds
    out = {}
    for item in forecast.fields.values():
        da = source[item.source]
        if item.scale != 1.0 or item.offset != 0.0:
            da = (da.astype(np.float64) * item.scale + item.offset).astype(np.float32)
        # WeatherBench2 has no names for the parameters of a distribution, so the attributes that
        # refer to them are dropped.
        attrs = {k: v for k, v in da.attrs.items() if not distributions.is_attr(k)}
        name = item.variable.weatherbench2
        if item.variable.accumulated and forecast.hours != 6:
            name = f"total_precipitation_{forecast.hours}hr"
        out[name] = da.drop_attrs(deep=False).assign_attrs(
            {**attrs, "units": item.variable.units, "long_name": item.variable.long_name}
        )
    if not out:
        raise KindError(
            "no variable of this forecast has a name in WeatherBench2.",
            fix="ds.aurora lists the recognised variables",
        )
    result = xr.Dataset(out, attrs=ds.attrs).drop_vars("valid_time", errors="ignore")
    names = {"init_time": "time", "lead_time": "prediction_timedelta"} | {
        found: axis for axis, found in forecast.dims.items() if found != axis
    }
    result = result.rename(names).assign_coords(prediction_timedelta=forecast.leads)
    result = result.assign_coords(
        longitude=("longitude", forecast.longitude, {"units": "degrees_east"})
    )
    return result.sortby("latitude").sortby("longitude")

"""A Dataset in one screen: what was recognised as what."""

from __future__ import annotations

import numpy as np
import xarray as xr

from xaurora.errors import printable
from xaurora.fields import (
    periods,
    recognition,
    variables,
)


def describe(ds: xr.Dataset) -> str:
    """Return a short text that lists recognised axes and variables. Lazy."""
    return printable(_described(ds))


def _described(ds: xr.Dataset) -> str:
    if recognition.is_scores(ds):
        return _describe_scores(ds)
    if recognition.is_forecast(ds):
        return _describe_forecast(ds)
    found = recognition.recognise(ds)
    lines = ["xaurora: recognised axes and variables"]
    if found.grid is not None:
        grid = found.grid
        where = "global" if grid.is_global else "region"
        lines.append(
            f"  grid       {where}, {grid.shape[0]} × {grid.shape[1]} at {grid.spacing[0]:.4g}° ×"
            f" {grid.spacing[1]:.4g}°, {grid.latitude[-1]:g} to {grid.latitude[0]:g}°N,"
            f" {grid.longitude[0]:g} to {grid.longitude[-1]:g}°E"
            + (", across Greenwich" if grid.crosses_greenwich else "")
        )
    if found.times is not None and len(found.times):
        times = found.times
        every = f" every {periods.spacing_hours(times):g} h" if len(times) > 1 else ""
        lines.append(
            f"  times      {len(times)}{every}, {times[0].astype('datetime64[m]')} to"
            f" {times[-1].astype('datetime64[m]')} UTC"
        )
    if found.levels:
        used = [v for v in found.levels if v in variables.LEVELS]
        lines.append(
            f"  levels     {', '.join(f'{v:g}' for v in found.levels)} hPa ({len(used)} of Aurora's"
            f" {len(variables.LEVELS)})"
        )
    for kind, label in (("surface", "surface"), ("atmos", "atmos"), ("static", "static")):
        items = [
            found.fields[kind, n]
            for n in variables.order(kind, tuple(n for k, n in found.fields if k == kind))
        ]
        for i, item in enumerate(items):
            unit = item.attrs.get("units", "no units")
            change = f" → {item.variable.units}" if item.converted else ""
            lines.append(
                f"  {label if i == 0 else '':<10} {item.variable.name:<5} {item.source}"
                f" [{unit}{change}] {item.variable.long_name}"
            )
    if found.unrecognised:
        lines.append(f"  ignored    {', '.join(found.unrecognised)}")
    if found.problems:
        lines.append(
            f"  {len(found.problems)} problem(s): ds.aurora.check() lists them with their fixes"
        )
    return "\n".join(lines)


def _describe_scores(ds: xr.Dataset) -> str:
    carried = (
        "including those of each init time"
        if any("__" in str(c) for c in ds.coords)
        else "without those of each init time"
    )
    listed = np.atleast_1d(ds["metric"].values) if "metric" in ds.coords else ["–"]
    metrics = ", ".join(map(str, listed))
    lines = [
        "xaurora: scores",
        f"  regions    {', '.join(map(str, np.atleast_1d(ds['region'].values)))}",
        f"  metrics    {metrics}",
        f"  variables  {', '.join(map(str, ds.data_vars))}",
        f"  over       {ds.attrs.get('number_of_init_times', '?')} init times, {carried}",
        (
            "  next       scorecard(path, baseline=...), xaurora.significance(scores, other),"
            " xaurora.combine_scores([...])"
        ),
    ]
    return "\n".join(lines)


def _describe_forecast(ds: xr.Dataset) -> str:
    init = "init_time" if "init_time" in ds.dims else "time"
    lead = "lead_time" if "lead_time" in ds.dims else "prediction_timedelta"
    hours = (
        [f"{v / periods.HOUR:g}" for v in ds[lead].values[:8]]
        if np.issubdtype(ds[lead].dtype, np.timedelta64)
        else ["?"]
    )
    lines = [
        "xaurora: a forecast",
        (
            f"  init times {ds.sizes[init]}, {str(ds[init].values[0])[:16]} to"
            f" {str(ds[init].values[-1])[:16]} UTC"
        ),
        f"  lead times {ds.sizes[lead]}: {', '.join(hours)}{' …' if ds.sizes[lead] > 8 else ''} h",
        f"  variables  {', '.join(map(str, ds.data_vars))}",
        "  next       evaluate(truth), plot(), to_weatherbench2()",
    ]
    return "\n".join(lines)

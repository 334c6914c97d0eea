"""Climatology in WeatherBench2's layout: hour × dayofyear. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from xaurora.errors import OptionError
from xaurora.evaluation import baselines


def build(ds: xr.Dataset, names: Sequence[str] | str | None = None, *, window_days: int = 61) -> xr.Dataset:
    """Mean over the years and over a window around each day of the year, by hour of the day. Computes; reads each time once. Holds 366 float64
    fields an hour of the day (a globe at 0.25°: 3 GB each), so cut or coarsen large data first.

    Weights fall linearly from the day itself to the window's edge, as in WeatherBench2 (``compute_climatology.py``, commit
    021c0b3); the year is a circle of 366 days.

    Parameters
    ----------
    ds : Dataset
        Fields, in any naming; precipitation is summed over six hours first.
    names : str or sequence of str, optional
        Variables in the data's own names; by default all that change over time.
    window_days : int
        Odd; 61 in WeatherBench2.

    Returns
    -------
    Dataset
        Dims ``(hour, dayofyear[, level], latitude, longitude)``, the data's own names and units; days that no time comes near are left
        out.

    Raises
    ------
    OptionError
        A window that is not odd and positive.
    """
    import pandas as pd

    if window_days < 1 or window_days % 2 == 0:
        raise OptionError(f"window_days={window_days} is not an odd positive number of days.", fix="window_days=61")
    found, wanted = baselines._chosen(ds, names)
    times = pd.DatetimeIndex(found.times)
    hours = np.unique(times.hour)
    half = window_days // 2
    day = np.arange(1, 367)
    distance = np.abs(day[:, None] - day[None, :])
    distance = np.minimum(distance, 366 - distance)
    kernel = np.clip(1.0 - distance / (half + 1), 0.0, None)
    near = (kernel[:, np.unique(times.day_of_year) - 1] > 0).any(axis=1)
    days = day[near]
    time_dim = found.axes["time"].dim
    out = {}
    for name in wanted:
        da = baselines._public(baselines._six_hourly(ds, found, name), found)
        order = [time_dim, *[d for d in ("level", "latitude", "longitude") if d in da.dims]]
        da = da.transpose(*order)
        shape = da.shape[1:]
        sums = np.zeros((len(hours), 366, *shape))
        counts = np.zeros((len(hours), 366, *shape))
        for i, stamp in enumerate(times):
            values = da.isel({time_dim: i}).values.astype(np.float64)
            there = np.isfinite(values)
            at = (int(np.searchsorted(hours, stamp.hour)), stamp.day_of_year - 1)
            sums[at] += np.where(there, values, 0.0)
            counts[at] += there
        weighted = np.tensordot(kernel[near], sums, axes=(1, 1))
        total = np.tensordot(kernel[near], counts, axes=(1, 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.moveaxis(np.where(total > 0, weighted / total, np.nan), 0, 1)
        out[name] = (("hour", "dayofyear", *order[1:]), mean.astype(np.float32), dict(da.attrs))
        coords = {d: da[d] for d in order[1:]}
    return xr.Dataset(
        out, {"hour": hours, "dayofyear": days, **coords}, {"title": "Climatology", "window_days": window_days}
    )

"""The fields of a climatology, read for the valid times of a forecast."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import KindError, TruthError
from xaurora.evaluation.alignment import Forecast
from xaurora.evaluation.truths import FieldCache, _match
from xaurora.fields import periods, recognition, variables
from xaurora.utils import dask_arrays, indexed, lazy


class ClimatologyFields:
    """A climatology in WeatherBench2's layout (``hour``, ``dayofyear``) on the forecast's grid.

    Raises
    ------
    KindError
        If it is not a Dataset.
    TruthError
        If its dims are different, or its grid does not contain the forecast's points.
    """

    def __init__(self, ds: xr.Dataset, forecast: Forecast) -> None:
        if not isinstance(ds, xr.Dataset):
            raise KindError(
                f"a climatology must be a Dataset, got {type(ds).__name__}.",
                fix="climatology=xaurora.climatology(past)",
            )
        if not {"hour", "dayofyear"} <= set(ds.dims):
            raise TruthError(
                "a climatology must have the dims hour and dayofyear, and this one has"
                f" {sorted(map(str, ds.dims))}.",
                fix="xaurora.climatology(ds)",
            )
        # WeatherBench2 also has means with a suffix, such as `2m_temperature_mean`.
        ds = dask_arrays.dataset_without_dask(ds)
        ds = ds.rename(
            {n: n[:-5] for n in map(str, ds.data_vars) if n.endswith("_mean") and n[:-5] not in ds}
        )
        self.hours = forecast.hours
        probe = ds.isel(hour=0, drop=True).rename(dayofyear="time")
        probe = probe.assign_coords(
            time=np.datetime64("2000-01-01", "ns")
            + np.arange(probe.sizes["time"]) * np.timedelta64(1, "D")
        )
        found = recognition.recognise(probe)
        if found.grid is None:
            found.raise_first()
        # Other problems are ignored, because fields such as those of SEEPS are not variables.
        self.ds, self.found = ds, found
        grid = found.grid
        self.dims = {
            axis: found.axes[axis].dim
            for axis in ("latitude", "longitude", "level")
            if axis in found.axes
        }
        if grid is None:
            raise TruthError("the climatology has no grid.", fix="xaurora.climatology(ds)")
        self.rows = grid.rows[_match("latitude", grid.latitude, forecast.latitude, wrap=False)]
        self.columns = grid.columns[
            _match("longitude", grid.true_longitude, forecast.longitude, wrap=True)
        ]
        self.kept = FieldCache()
        self._p1: np.ndarray | None = None

    def has(self, key: tuple[str, str]) -> bool:
        """Return whether it holds a variable; precipitation must have the forecast's period."""
        item = self.found.fields.get(key)
        if item is None or not item.variable.accumulated:
            return item is not None
        hours = periods.declared_hours(item.source, item.attrs) or variables.TIMESTEP_HOURS
        return hours == self.hours

    @property
    def rain_hours(self) -> float:
        """Accumulation period of its precipitation in hours; six if it is not declared."""
        item = self.found.fields.get(("surface", "tp"))
        return (
            periods.declared_hours(item.source, item.attrs) if item is not None else None
        ) or variables.TIMESTEP_HOURS

    def lacks(self, valid: np.ndarray) -> list[str]:
        """Describe the hours and days of the year that are needed and missing."""
        import pandas as pd

        index = pd.DatetimeIndex(valid)
        hours = sorted(set(index.hour) - set(self.ds["hour"].values.tolist()))
        days = sorted(set(index.day_of_year) - set(self.ds["dayofyear"].values.tolist()))
        out = [f"hour {h:02d}" for h in hours]
        return out + ([f"{len(days)} days of the year from {days[0]} on"] if days else [])

    def _ordered(self, name: str, first: tuple[str, ...] = ()) -> xr.DataArray:
        da = self.ds[name]
        order = [
            self.dims[d] for d in ("level", "latitude", "longitude") if self.dims.get(d) in da.dims
        ]
        ordered = lazy.transpose(da.variable, ("hour", "dayofyear", *first, *order))
        return indexed.as_array(ordered, da)

    def _at(
        self, name: str, time: int, levels: tuple[float, ...], first: tuple[str, ...] = ()
    ) -> np.ndarray:
        """Return one variable at a valid time in ns, in its own units, on the forecast's grid."""
        import pandas as pd

        stamp = pd.Timestamp(time)

        def fetch(keys: list[Any]) -> dict[Any, np.ndarray]:
            da = self._ordered(name, first).sel(hour=stamp.hour, dayofyear=stamp.day_of_year)
            if levels:
                places = [self.found.levels.index(level) for level in levels]
                da = da.isel({self.dims["level"]: places})
            return {keys[0]: da.values[..., self.rows, :][..., self.columns]}

        key = (name, levels, stamp.hour, stamp.day_of_year)
        return self.kept.get([key], fetch)[key]

    def normal(self, key: tuple[str, str], time: int, levels: tuple[float, ...]) -> np.ndarray:
        """Return the mean of a variable at a valid time in canonical units."""
        item = self.found.fields[key]
        return self._at(item.source, time, levels) * item.scale + item.offset

    def quantile_levels(self, key: tuple[str, str]) -> tuple[float, ...]:
        """Return the quantile levels of a variable."""
        name = f"{self.found.fields[key].source}_quantile" if self.has(key) else ""
        if name not in self.ds or "quantile" not in self.ds[name].dims:
            return ()
        return tuple(map(float, self.ds["quantile"].values))

    def quantiles(self, key: tuple[str, str], time: int, levels: tuple[float, ...]) -> np.ndarray:
        """Return quantiles at a valid time, ``(quantile, [level,] h, w)``, in canonical units."""
        item = self.found.fields[key]
        return (
            self._at(f"{item.source}_quantile", time, levels, ("quantile",)) * item.scale
            + item.offset
        )

    def seeps_name(self, hours: int) -> str | None:
        """Return the prefix of its SEEPS fields for totals over ``hours``, or None."""
        name = f"total_precipitation_{hours}hr_seeps"
        return (
            name if f"{name}_dry_fraction" in self.ds and f"{name}_threshold" in self.ds else None
        )

    def seeps(self, hours: int, time: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the fraction of dry totals, and the threshold of heavy totals in metres.

        The fraction is the mean over all days and hours. The threshold is that of the valid time.
        """
        name = self.seeps_name(hours)
        if self._p1 is None:
            share = self._ordered(f"{name}_dry_fraction").variable
            by_hour = [_mean_of_days(share[i]) for i in range(share.shape[0])]
            self._p1 = np.mean(by_hour, axis=0)[self.rows][:, self.columns]
        return self._p1, self._at(f"{name}_threshold", time, ()).astype(np.float64)


_DAYS = 32  # read at once


def _mean_of_days(share: xr.Variable) -> np.ndarray:
    """Return the mean over the first dim, float64, reading a few days at a time."""
    total = np.zeros(share.shape[1:], np.float64)
    for start in range(0, len(share), _DAYS):
        total += share[start : start + _DAYS].values.sum(axis=0, dtype=np.float64)
    return total / len(share)

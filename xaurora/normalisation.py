"""Mean and standard deviation in one streaming pass: float64, merged after Chan, Golub and LeVeque (1983).

Pretrained models keep Aurora's own normalisation; these statistics serve models made here and new variables, and come from
the training period alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from xaurora import distributions
from xaurora.conventions import Fields
from xaurora.errors import MissingValuesError, MissingVariableError
from xaurora.progress import watched


@dataclass
class Moments:
    """Running count, mean and sum of squared deviations, with the extremes.

    References
    ----------
    Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, Am. Stat. 37, doi:10.1080/00031305.1983.10483115.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, values: np.ndarray) -> None:
        """Merge an array in, whatever its shape."""
        v = np.asarray(values, dtype=np.float64)
        n = float(v.size)
        if not n:
            return
        mean = float(v.mean())
        squares = float(((v - mean) ** 2).sum())
        delta = mean - self.mean
        total = self.count + n
        self.squares += squares + delta * delta * self.count * n / total
        self.mean += delta * n / total
        self.count = total
        self.low, self.high = min(self.low, float(v.min())), max(self.high, float(v.max()))

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return float(np.sqrt(self.squares / self.count)) if self.count else float("nan")


_EDGES = np.geomspace(1e-9, 2.0, 2160)  # m; bins 1 % wide, dry on its own below, absurd on its own above
_CENTRES = np.concatenate([[0.0], np.sqrt(_EDGES[1:] * _EDGES[:-1]), [2.0]])  # m


@dataclass
class RainMoments:
    """What is known of six-hour totals after a pass: amounts in metres, and their distribution in bins of 1 %."""

    amounts: Moments = field(default_factory=Moments)
    wet: int = 0
    clipped: int = 0
    clipped_amount: float = 0.0
    _histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(_CENTRES), np.int64))

    def add(self, values: np.ndarray) -> None:
        """Merge six-hour totals in, before negative noise is clipped."""
        negative = values < 0
        self.clipped += int(negative.sum())
        self.clipped_amount += float(-values[negative].sum(dtype=np.float64))
        y = np.maximum(values.astype(np.float64), 0.0)
        self.amounts.add(y)
        self.wet += int((y > 0).sum())
        self._histogram += np.bincount(np.searchsorted(_EDGES, y.ravel(), side="right"), minlength=len(_CENTRES))

    @property
    def wet_fraction(self) -> float:
        """Share of amounts above zero."""
        return self.wet / self.amounts.count

    def in_z(self, epsilon: float) -> dict[str, float]:
        """Mean, median and climatological CRPS, ``∫ F (1 − F) dz``, of ``z = log1p(tp / ε)``; to the bins' 1 %."""
        share = self._histogram / self.amounts.count
        z = distributions.to_latent(_CENTRES, epsilon)
        f = np.cumsum(share)
        return {
            "mean": float(share @ z),
            "median": float(z[min(int(np.searchsorted(f, 0.5)), len(z) - 1)]),
            "crps": float((f * (1.0 - f))[:-1] @ np.diff(z)),
        }


def statistics_of(
    fields: Fields, times: Sequence[np.datetime64], *, progress: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean and standard deviation of every surface variable, and of every atmospheric one by level. Reads ``times`` once.

    Returns
    -------
    tuple of dict
        ``{"2t": (mean, std)}`` and ``{"t": {"850": (mean, std)}}``, canonical units.

    Raises
    ------
    MissingValuesError
        A field holds NaN.
    """
    surface = {str(name): Moments() for name in fields.surface}
    atmos = {str(name): {f"{level:g}": Moments() for level in fields.levels} for name in fields.atmos}
    index = {t: i for i, t in enumerate(fields.times)}
    for t in watched(times, "statistics", shown=progress):
        for name, moments in surface.items():
            moments.add(_finite(fields.surface[name].isel(time=index[t]).values, fields, "surface", name, t))
        for name, by_level in atmos.items():
            values = _finite(fields.atmos[name].isel(time=index[t]).values, fields, "atmos", name, t)
            for i, level_moments in enumerate(by_level.values()):
                level_moments.add(values[i])

    def pair(moments: Moments) -> tuple[float, float]:
        # A constant field has no spread to divide by.
        return moments.mean, moments.std if moments.std > 1e-12 * max(abs(moments.mean), 1e-30) else 1.0

    return {n: pair(m) for n, m in surface.items()}, {
        n: {lv: pair(m) for lv, m in by.items()} for n, by in atmos.items()
    }


def _finite(values: np.ndarray, fields: Fields, kind: str, name: str, time: np.datetime64) -> np.ndarray:
    if not np.isfinite(values).all():
        source = fields.layout.fields[kind, name].source
        raise MissingValuesError(
            f"'{source}' has {int((~np.isfinite(values)).sum())} missing value(s) at {time.astype('datetime64[m]')}, and Aurora takes none.",
            fix=f"fill them, for example ds['{source}'] = ds['{source}'].interpolate_na('{fields.layout.axes['longitude'].dim}', fill_value='extrapolate').fillna(ds['{source}'].mean()), or drop the time",
        )
    return values


def summary(ds: xr.Dataset, fields: Fields, names: Sequence[str] | None, *, progress: bool = True) -> xr.Dataset:
    """Mean, standard deviation, extremes and count of surface and atmospheric variables, canonical units, in one pass.

    Returns
    -------
    Dataset
        Dims ``(statistic[, level])``, variables in the user's names; precipitation has ``wet_fraction`` besides.
    """
    kinds = {fields.layout.fields[key].source: key for key in fields.layout.fields if key[0] != "static"}
    chosen = list(kinds) if names is None else list(names)
    if unknown := [n for n in chosen if n not in kinds]:
        raise MissingVariableError(
            f"{unknown} is not among the recognised variables {sorted(kinds)}.",
            fix="ds.aurora lists what was recognised",
        )
    labels = ["mean", "std", "min", "max", "count", "wet_fraction"]
    out: dict[str, Any] = {}
    for source in watched(chosen, "statistics", unit="variable", shown=progress):
        kind, name = kinds[source]
        da = getattr(fields, kind)[name]
        units = {"units": da.attrs.get("units", "")}
        if kind == "atmos":
            columns = [_moments(da.isel(level=i), False) for i in range(da.sizes["level"])]
            out[source] = (("statistic", "level"), np.array(columns).T, units)
        else:
            out[source] = (
                ("statistic",),
                np.array(_moments(da, fields.layout.fields[kind, name].variable.accumulated)),
                units,
            )
    coords: dict[str, Any] = {"statistic": labels}
    if any("level" in v[0] for v in out.values()):
        coords["level"] = list(fields.levels)
    return xr.Dataset(out, coords, {"title": "Statistics in canonical (SI) units"})


def _moments(da: xr.DataArray, rain: bool) -> list[float]:
    moments, wet = Moments(), 0
    for i in range(da.sizes["time"]):
        values = da.isel(time=i).values
        values = values[np.isfinite(values)]
        moments.add(values)
        wet += int((values > 0).sum()) if rain else 0
    return [
        moments.mean,
        moments.std,
        moments.low,
        moments.high,
        moments.count,
        wet / moments.count if rain and moments.count else float("nan"),
    ]

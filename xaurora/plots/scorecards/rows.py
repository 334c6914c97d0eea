"""Rows of a scorecard: a variable and a metric in one region, for every model.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from xaurora.evaluation import metrics as _metrics
from xaurora.evaluation.metrics import Metric
from xaurora.fields import variables
from xaurora.fields.unit_conversion import conversion
from xaurora.fields.variables import Variable
from xaurora.plots.panels import display_scale, label_of

_SHOWN = ("rmse", "mae", "bias", "acc", "crps", "seeps", "spread_skill_ratio", "blur", "coverage")
"""Metrics of the card. mse is redundant with rmse, and the activities are diagnostics."""
_LABELS = {"spread_skill_ratio": "spread/skill", "blur": "blur (1 is none)"}
_POINTS = ("acc",)


@dataclass(frozen=True)
class Row:
    """One row of the card: a variable (at a level) and a metric in one region, by lead time.

    Parameters
    ----------
    region, label, metric, units : str
    values : ndarray, ``(lead,)``
        Of this forecast.
    others : dict of ndarray
        Of the other models, by label.
    marks : dict of ndarray of bool
        Where the difference between two models is significant, by their labels.
    name : str
        Label of this forecast.
    key : tuple of str
        Kind and canonical name of the variable, such as ``("surface", "tp")``.
    level : float, optional
        In hPa.
    variable : str
        Name of the variable in the scores.
    """

    region: str
    label: str
    metric: str
    units: str
    values: np.ndarray
    others: dict[str, np.ndarray]
    marks: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    name: str = "forecast"
    key: tuple[str, str] = ("", "")
    level: float | None = None
    variable: str = ""

    @property
    def is_amount(self) -> bool:
        """Whether the variable is precipitation or another accumulated amount."""
        known = variables.BY_KEY.get(self.key) or variables.find(self.variable)
        return known is not None and known.accumulated

    @property
    def metric_label(self) -> str:
        """The metric as displayed."""
        return _LABELS.get(self.metric, label_of(self.metric))

    def of(self, model: str) -> np.ndarray:
        """Return the values of one model."""
        return self.values if model == self.name else self.others[model]

    def relative(self, model: str, baseline: str | None = None) -> np.ndarray:
        """Return the relative difference to a baseline, ``(lead,)``, where negative is better.

        For ACC it is that of ``1 − ACC``, the distance from a perfect pattern. For a ratio that is
        best at 1, it is that of the distance from 1. A bias and a coverage have none and give NaN.
        """
        if baseline is None:  # a single name is the baseline of this forecast
            model, baseline = self.name, model
        a, b = self.of(model), self.others.get(baseline, np.full(len(self.values), np.nan))
        known = _metrics.METRICS.get(_metrics.ALIASES.get(self.metric, self.metric))
        better = known.better if known else ""
        if better not in ("low", "high", "one"):
            return np.full(len(a), np.nan)
        if better == "high":
            a, b = 1.0 - a, 1.0 - b
        elif better == "one":
            a, b = np.abs(1.0 - a), np.abs(1.0 - b)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((a - b) / b)

    def difference(self, model: str, baseline: str, i: int) -> str:
        """Format the difference to a baseline: in per cent, or in points of ACC."""
        relative = self.relative(model, baseline)[i]
        if not np.isfinite(relative):
            return ""
        if self.metric in _POINTS:
            return f"{self.of(model)[i] - self.others[baseline][i]:+.2f}"
        return f"{relative:+.1%}" if abs(relative) < 10 else ">+999%"

    def significant(self, model: str, i: int, baseline: str) -> bool:
        """Return whether the difference to a baseline is significant."""
        marks = self.marks.get((model, baseline))
        return marks is not None and bool(marks[i])


def repeats_mae(row: Row, rows: list[Row]) -> bool:
    """Return whether this row repeats the MAE.

    That is the case for the CRPS of deterministic forecasts.
    """
    mae = next(
        (r for r in rows if (r.region, r.label, r.metric) == (row.region, row.label, "mae")),
        None,
    )
    if row.metric != "crps" or mae is None:
        return False
    pairs = [
        (row.values, mae.values),
        *((v, mae.others[n]) for n, v in row.others.items()),
    ]
    return all(np.allclose(a, b, rtol=1e-12, equal_nan=True) for a, b in pairs)


_FEW = 8  # a table with at most this many metrics shows all of them


def table_metrics(scores: xr.Dataset) -> list[str]:
    """Return the metrics of the table in order.

    These are the common ones, and also the others if only a few metrics were scored.
    """
    if "metric" not in scores.coords:
        return []
    plain = [
        m
        for m in map(str, scores["metric"].values)
        if m == "coverage"
        or _metrics.METRICS.get(_metrics.ALIASES.get(m, m), _NOTHING).suffix == ""
    ]
    known = [m for m in plain if _metrics.ALIASES.get(m, m) in _SHOWN]
    others = [m for m in plain if m not in known] if len(plain) <= _FEW else []
    return [*sorted(known, key=lambda m: _SHOWN.index(_metrics.ALIASES.get(m, m))), *others]


_NOTHING = _metrics.Metric((), lambda m: np.empty(0), "", suffix="?")


def matching_variable(scores: xr.Dataset, other: xr.Dataset, name: str) -> str | None:
    """Return the variable of other scores that is the same quantity, whatever its name."""
    if name in other:
        return name
    key = scores.variables[name].attrs.get("xaurora_variable")
    several = ((str(n), other.variables[n]) for n in other.data_vars)
    return next(
        (
            n
            for n, found in several
            if key and found.attrs.get("xaurora_variable") == key and "metric" in found.dims
        ),
        None,
    )


def name_in(scores: xr.Dataset, name: str) -> str | None:
    """Return the name that a variable has in the scores, given any name of it."""
    if name in scores:
        return name
    known = variables.find(name)
    key = f"{known.kind}/{known.name}" if known is not None else None
    return next(
        (
            str(n)
            for n, da in scores.data_vars.items()
            if da.attrs.get("xaurora_variable") == key and "metric" in da.dims
        ),
        None,
    )


def pick(ds: xr.Dataset, name: str, leads: np.ndarray, **at: object) -> np.ndarray | None:
    """Return the values of a variable at some labels by lead time, NaN where a lead is missing.

    None if a label is missing. Selecting with xarray takes a hundred times as long, and a card has
    thousands of values.
    """
    variable = ds.variables[name]
    place: dict[str, int] = {}
    for dim, label in at.items():
        if dim in variable.dims:
            found = np.flatnonzero(ds.variables[dim].values == label)
            if not len(found):
                return None
            place[dim] = int(found[0])
    values = variable.isel(place).values
    there = ds.variables["lead_time"].values
    if np.array_equal(there, leads):
        return np.asarray(values, np.float64)
    out = np.full(len(leads), np.nan)
    for i, lead in enumerate(leads):
        found = np.flatnonzero(there == lead)
        if len(found):
            out[i] = values[found[0]]
    return out


def build_row(
    scores: xr.Dataset,
    others: Mapping[str, xr.Dataset],
    tested: Mapping[tuple[str, str], xr.Dataset],
    region: str,
    name: str,
    level: float | None,
    metric: str,
    label: str,
) -> Row | None:
    """Return one row of the card, or None if this forecast has no finite values for it."""
    at = {"region": region, "metric": metric} | ({} if level is None else {"level": level})
    leads = scores.variables["lead_time"].values
    mine = pick(scores, name, leads, **at)
    if mine is None or not np.isfinite(mine).any():
        return None
    described = scores.variables[name]
    known = variables.find(name)
    factor, units = display_scale(described, name, metric)
    spec = _metrics.METRICS.get(_metrics.ALIASES.get(metric, metric))
    beside = {}
    for who, other in others.items():
        found = matching_variable(scores, other, name)
        values = None
        if found is not None and "metric" in other.variables:
            values = pick(other, found, leads, **at)
        if found is None or values is None:
            beside[who] = np.full(len(leads), np.nan)
        else:
            own = _factor(described, other.variables[found], known, spec)
            beside[who] = values * factor * own
    marks = {}
    for pair, result in tested.items():
        target = name if pair[0] == label else matching_variable(scores, others[pair[0]], name)
        if target in result:
            p = pick(result, str(target), leads, estimate="p", **at)
            if p is not None:
                with np.errstate(invalid="ignore"):
                    marks[pair] = p <= result.attrs["largest_p"]
    text = f"{name} {level:g} hPa" if level is not None else name
    kind, _, canonical = str(described.attrs.get("xaurora_variable", "")).partition("/")
    if not canonical and known is not None:
        kind, canonical = known.kind, known.name
    return Row(
        region,
        text,
        metric,
        units,
        mine * factor,
        beside,
        marks,
        label,
        (kind, canonical),
        level,
        name,
    )


def _factor(
    mine: xr.Variable, other: xr.Variable, known: Variable | None, spec: Metric | None
) -> float:
    """Return the factor that converts another model's score to the units of this one."""
    if spec is None or spec.units == "" or known is None:
        return 1.0
    scales = [conversion(str(da.attrs.get("units", "")), known.units) for da in (mine, other)]
    if scales[0] is None or scales[1] is None:
        return 1.0
    return float((scales[1][0] / scales[0][0]) ** (2 if spec.units == "square" else 1))


def by_threshold(scores: xr.Dataset) -> list[tuple[str, str, str, np.ndarray]]:
    """Return categorical scores as rows of a table.

    Each row is the region, the variable with its threshold, the metric, and the values by lead
    time.
    """
    out = []
    for name in map(str, scores.data_vars):
        if "threshold_mm" not in scores[name].dims or set(scores[name].dims) - {
            "metric",
            "region",
            "lead_time",
            "threshold_mm",
            "neighborhood_size",
        }:
            continue
        da = (
            scores[name]
            if "metric" in scores[name].dims
            else scores[name].expand_dims(metric=[name.rsplit("_", 1)[-1]])
        )
        da = da if "neighborhood_size" in da.dims else da.expand_dims(neighborhood_size=[0])
        for region in map(str, da["region"].values):
            for metric in map(str, da["metric"].values):
                for t in da["threshold_mm"].values:
                    for size in da["neighborhood_size"].values:
                        values = da.sel(
                            region=region, metric=metric, threshold_mm=t, neighborhood_size=size
                        ).values
                        if np.isfinite(values).any():
                            beside = f", {size} points" if size else ""
                            out.append(
                                (
                                    region,
                                    f"{name.rsplit('_', 1)[0]} > {t:g} mm{beside}",
                                    metric,
                                    values,
                                )
                            )
    return out

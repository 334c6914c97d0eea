"""Published scores of other models, to compare orders of magnitude.

Does not depend on torch.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import OptionError, SourceError
from xaurora.evaluation import metrics as _metrics

SOURCE = "WeatherBench, sites.research.google/weatherbench: 2022 against ERA5"
_CARRIED = Path(__file__).resolve().parents[1] / "assets" / "published_tp_scores_2022.csv.gz"
_COLUMNS = ("model", "metric", "variable", "lead_hours", "resolution", "value")
_NAMES = {"spreadskill": "spread_skill_ratio", "unbiased_spreadskill": "unbiased_spread_skill"}


def published_scores(
    path: str | Path | None = None,
    *,
    models: Sequence[str] | str | None = None,
    hours: int = 6,
    source: str = SOURCE,
) -> dict[str, xr.Dataset]:
    """Load precipitation scores of published models in the layout of ``evaluate``.

    The grids and the year may differ from yours, so they only show an order of magnitude. The
    scorecard states this.

    Parameters
    ----------
    path : path, optional
        A CSV file (or .csv.gz) with the columns ``model, metric, variable, lead_hours, resolution,
        value``, values in metres and variables ``6h_precipitation`` or ``24h_precipitation``. By
        default the scores included in the package, those of the WeatherBench site for 2022.
    models : sequence of str, optional
        Models to load; by default all.
    hours : {6, 24}
        Accumulation period of the totals.
    source : str
        Source of the scores, shown beside them.

    Returns
    -------
    dict of Dataset
        Model → scores, with the variable ``tp`` and the region ``global``.

    Raises
    ------
    SourceError
        If the file cannot be read, or lacks a column.
    OptionError
        If there is no such model or period.

    Examples
    --------
    >>> import xaurora
    >>> ifs = xaurora.published_scores(models="ifs_hres")["ifs_hres"]
    >>> ifs["tp"].sel(metric="rmse", region="global").sel(lead_time="24h").item() < 0.01  # m
    True
    """
    rows = _read(Path(path) if path is not None else _CARRIED)
    there = sorted({r["model"] for r in rows})
    wanted = there if models is None else [models] if isinstance(models, str) else list(models)
    if unknown := [m for m in wanted if m not in there]:
        raise OptionError(
            f"there are no published scores of {unknown}; valid values are {', '.join(there)}.",
            fix=f"models=[{there[0]!r}]",
        )
    periods = sorted({int(r["variable"].split("h_")[0]) for r in rows})
    if hours not in periods:
        raise OptionError(
            f"hours={hours!r} is not available: the totals are over"
            f" {' and '.join(map(str, periods))} hours.",
            fix=f"hours={periods[0]}",
        )
    out = {}
    for model in wanted:
        mine = [
            r for r in rows if r["model"] == model and r["variable"] == f"{hours}h_precipitation"
        ]
        if mine:
            out[model] = _dataset(mine, model, hours, source)
    return out


def _read(path: Path) -> list[dict[str, str]]:
    try:
        text = (
            gzip.decompress(path.read_bytes()).decode()
            if path.suffix == ".gz"
            else path.read_text(encoding="utf-8")
        )
    except (OSError, UnicodeDecodeError, EOFError) as why:
        raise SourceError(
            f"'{path}' cannot be read: {why}.",
            fix="give a CSV file with the columns " + ", ".join(_COLUMNS),
        ) from why
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or set(_COLUMNS) - set(rows[0]):
        missing = sorted(set(_COLUMNS) - set(rows[0])) if rows else list(_COLUMNS)
        raise SourceError(
            f"'{path}' has no columns {missing}.",
            fix="give a CSV file with the columns " + ", ".join(_COLUMNS),
        )
    try:
        for r in rows:
            float(r["value"]), float(r["lead_hours"]), int(r["variable"].split("h_")[0])
    except (ValueError, TypeError) as why:
        raise SourceError(
            f"'{path}' holds the row {dict(r)}, whose numbers cannot be read.",
            fix="lead_hours and value must be numbers, and variable like 6h_precipitation",
        ) from why
    return rows


def _dataset(rows: list[dict[str, str]], model: str, hours: int, source: str) -> xr.Dataset:
    names = {m: _NAMES.get(m, m) for m in dict.fromkeys(r["metric"] for r in rows)}
    known = {m: n for m, n in names.items() if n in _metrics.METRICS or n in _metrics.ALIASES}
    leads = sorted({float(r["lead_hours"]) for r in rows})
    values: dict[str, Any] = defaultdict(lambda: np.full(len(leads), np.nan))
    for r in rows:
        if r["metric"] in known:
            values[known[r["metric"]]][leads.index(float(r["lead_hours"]))] = float(r["value"])
    width, height = rows[0]["resolution"].split("x")
    attrs = {"units": "m", "long_name": "Total precipitation", "xaurora_variable": "surface/tp"}
    return xr.Dataset(
        {
            "tp": (
                ("metric", "region", "lead_time"),
                np.stack(list(values.values()))[:, None],
                attrs,
            )
        },
        {
            "metric": list(values),
            "region": ["global"],
            "lead_time": (np.array(leads) * 3.6e12).astype("timedelta64[ns]"),
        },
        {
            "title": f"Published scores of {model}",
            "source": source,
            "grid": f"{height} × {width}",
            "precipitation_hours": hours,
        },
    )

"""The scorecard: scores as one page that opens from disk, and as a picture. Knows nothing of torch."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xaurora import storage, variables
from xaurora.errors import KindError, OptionError

_SHOWN = ("rmse", "mae", "bias", "acc", "crps")
"""Metrics of the card; mse says the same as rmse."""


@dataclass(frozen=True)
class Row:
    """One line of the card: a variable (at a level) and a metric in one region, by lead time."""

    region: str
    label: str
    metric: str
    units: str
    values: np.ndarray
    others: dict[str, np.ndarray]

    def relative(self, name: str) -> np.ndarray:
        """Relative difference to a baseline, ``(lead,)``; negative is better.

        Of ACC it is that of ``1 − ACC``, what is missing to a perfect pattern. A bias has none: a baseline's may be zero.
        """
        other = self.others[name]
        a, b = (1.0 - self.values, 1.0 - other) if self.metric == "acc" else (self.values, other)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.full(len(a), np.nan) if self.metric == "bias" else (a - b) / b

    def difference(self, name: str, i: int) -> str:
        """The difference to a baseline in words: per cent, or points of ACC."""
        relative = self.relative(name)[i]
        if not np.isfinite(relative):
            return ""
        return f"{self.values[i] - self.others[name][i]:+.2f}" if self.metric == "acc" else f"{relative:+.1%}"


@dataclass(frozen=True)
class Scorecard:
    """Scores beside those of baselines.

    Parameters
    ----------
    rows : tuple of Row
    leads : ndarray
        Hours.
    baselines : tuple of str
    notes : tuple of str
        Provenance, and what was left out.
    """

    rows: tuple[Row, ...]
    leads: np.ndarray
    baselines: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def html(self) -> str:
        """A page that needs nothing else."""
        return _page(self)

    def _repr_html_(self) -> str:
        return self.html

    def plot(self) -> Any:
        """The card as a Matplotlib figure: relative difference to the first baseline, blue is better."""
        return _figure(self)

    def save(self, path: str | Path) -> Path:
        """Write ``.html`` or ``.png``.

        Raises
        ------
        OptionError
            Another ending.
        SaveError
            Writing failed.
        """
        path = Path(path)
        if path.suffix == ".html":
            storage.replace_file(path, lambda p: _write_text(p, self.html))
        elif path.suffix == ".png":
            import matplotlib.pyplot as plt

            figure = self.plot()
            try:
                storage.replace_file(path, lambda p: figure.savefig(p, dpi=150, format="png"))
            finally:
                plt.close(figure)
        else:
            raise OptionError(
                f"a scorecard is written as .html or .png, and '{path}' is neither.", fix="scorecard('scorecard.html')"
            )
        return path


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def build(
    scores: xr.Dataset, path: str | Path | None = None, *, baseline: xr.Dataset | Mapping[str, xr.Dataset] | None = None
) -> Scorecard:
    """Make a scorecard. See :meth:`xaurora.accessor.AuroraAccessor.scorecard`.

    Raises
    ------
    KindError
        What is given are no scores.
    """
    if not {"metric", "region", "lead_time"} <= set(scores.dims):
        raise KindError(
            f"scores have the dims metric, region and lead_time, and this Dataset has {sorted(map(str, scores.dims))}.",
            fix="scores = fc.aurora.evaluate(truth); scores.aurora.scorecard('scorecard.html')",
        )
    others = (
        {}
        if baseline is None
        else dict(baseline)
        if isinstance(baseline, Mapping) and not isinstance(baseline, xr.Dataset)
        else {"baseline": baseline}
    )
    for label, other in others.items():
        if not isinstance(other, xr.Dataset) or not {"metric", "region", "lead_time"} <= set(other.dims):
            raise KindError(
                f"the baseline {label!r} is no Dataset of scores.",
                fix="baseline={'persistence': persistence_forecast.aurora.evaluate(truth)}",
            )
    notes = [
        f"{scores.attrs.get('number_of_init_times', '?')} init times; {scores.attrs.get('fields_scored', '?')} fields scored, {scores.attrs.get('fields_without_truth', 0)} without truth left out; grid {scores.attrs.get('grid', '?')}."
    ]
    if "xaurora_base" in scores.attrs:
        base = scores.attrs["xaurora_base"]
        notes.append(f"Base model: {base}" + (" (for debugging, by its authors' word)." if base == "small" else "."))
    for name, other in others.items():
        if other.attrs.get("grid") != scores.attrs.get("grid"):
            notes.append(
                f"{name} was scored on another grid ({other.attrs.get('grid', '?')}); scores on different grids are not comparable."
            )
        if other.attrs.get("fields_scored") != scores.attrs.get("fields_scored"):
            notes.append(
                f"{name} was scored on {other.attrs.get('fields_scored', '?')} fields, this forecast on {scores.attrs.get('fields_scored', '?')}."
            )
    rows = []
    for region in map(str, scores["region"].values):
        for name in map(str, scores.data_vars):
            for level in scores[name]["level"].values if "level" in scores[name].dims else [None]:
                for metric in (m for m in map(str, scores["metric"].values) if m in _SHOWN):
                    row = _row(scores, others, region, name, level, metric)
                    if row is not None:
                        rows.append(row)
    card = Scorecard(tuple(rows), scores["lead_time"].values / np.timedelta64(1, "h"), tuple(others), tuple(notes))
    if path is not None:
        card.save(path)
    return card


def _row(
    scores: xr.Dataset, others: Mapping[str, xr.Dataset], region: str, name: str, level: Any, metric: str
) -> Row | None:
    at = {"region": region, "metric": metric} | ({} if level is None else {"level": level})
    da = scores[name].sel(at)
    if not np.isfinite(da.values).any():
        return None
    known = variables.find(name)
    units, factor = str(da.attrs.get("units", "")), 1.0
    if known is not None and known.accumulated and (scale := variables.conversion(units, "m")):
        units, factor = "mm", 1e3 * scale[0]
    if metric == "acc":
        units, factor = "", 1.0
    beside = {}
    for label, other in others.items():
        values = np.full(len(scores["lead_time"]), np.nan)
        if (
            name in other
            and metric in other["metric"].values
            and region in other["region"].values
            and (level is None or level in other[name].coords.get("level", xr.DataArray([])).values)
        ):
            there = other[name].sel(at)
            for i, lead in enumerate(scores["lead_time"].values):
                if lead in other["lead_time"].values:
                    values[i] = float(there.sel(lead_time=lead)) * factor
        beside[label] = values
    label = f"{name} {level:g} hPa" if level is not None else name
    return Row(region, label, metric, units, da.values * factor, beside)


def _colour(relative: float) -> str:
    """WeatherBench's colours: blue is better, red is worse, full at 30 %."""
    if not np.isfinite(relative):
        return "#ffffff"
    strength = min(abs(relative) / 0.3, 1.0)
    target = (33, 102, 172) if relative < 0 else (178, 24, 43)
    return "#" + "".join(f"{round(255 + (c - 255) * 0.75 * strength):02x}" for c in target)


def _ink(background: str) -> str:
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else "#111111"


_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; color: #111; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
td small { display: block; opacity: .85; }
.note { color: #555; }
@media print { body { margin: 0; max-width: none; } .wide { overflow: visible; } td { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def _number(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.4g}"


def _page(card: Scorecard) -> str:
    first = card.baselines[0] if card.baselines else None
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    ]
    parts.append(f"<title>Scorecard</title><style>{_STYLE}</style></head><body><h1>Scorecard</h1>")
    if first:
        parts.append(
            f"<p>Large: this forecast. Small: the baselines, and the difference relative to <b>{html.escape(first)}</b>, which colours the cell: blue is better, red is worse.</p>"
        )
    for region in dict.fromkeys(row.region for row in card.rows):
        parts.append(
            f"<h2>{html.escape(region)}</h2><div class='wide'><table><thead><tr><th>variable</th><th>metric</th>"
        )
        parts += [f"<th>{lead:g} h</th>" for lead in card.leads]
        parts.append("</tr></thead><tbody>")
        for row in (r for r in card.rows if r.region == region):
            parts.append(
                f"<tr><td>{html.escape(row.label)}</td><td>{row.metric.upper()}{' ' + html.escape(row.units) if row.units else ''}</td>"
            )
            parts += [_cell(card, row, i) for i in range(len(card.leads))]
            parts.append("</tr>")
        parts.append("</tbody></table></div>")
    parts += [f"<p class='note'>{html.escape(note)}</p>" for note in card.notes]
    parts.append("</body></html>")
    return "".join(parts)


def _cell(card: Scorecard, row: Row, i: int) -> str:
    small, background = "", "#ffffff"
    if card.baselines:
        relative = row.relative(card.baselines[0])[i]
        background = _colour(relative)
        lines = [
            f"{html.escape(name)} {_number(row.others[name][i])}"
            for name in card.baselines
            if np.isfinite(row.others[name][i])
        ]
        if difference := row.difference(card.baselines[0], i):
            lines.append(difference)
        small = "".join(f"<small>{line}</small>" for line in lines)
    return f"<td style='background:{background};color:{_ink(background)}'>{_number(row.values[i])}{small}</td>"


def _figure(card: Scorecard) -> Any:
    import matplotlib.pyplot as plt

    height = 0.42 * (len(card.rows) + 1) + 1.2
    figure, ax = plt.subplots(figsize=(3.8 + 1.5 * len(card.leads), max(height, 2.5)), layout="constrained")
    ax.set_xlim(0, len(card.leads))
    ax.set_ylim(len(card.rows), 0)
    for y, row in enumerate(card.rows):
        relative = row.relative(card.baselines[0]) if card.baselines else np.full(len(card.leads), np.nan)
        for x in range(len(card.leads)):
            background = _colour(relative[x])
            ax.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=background, edgecolor="white", linewidth=1.5))
            difference = row.difference(card.baselines[0], x) if card.baselines else ""
            text = _number(row.values[x]) + (f"  ({difference})" if difference else "")
            ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color=_ink(background))
    ax.set_xticks(np.arange(len(card.leads)) + 0.5, [f"{lead:g} h" for lead in card.leads])
    several = len({row.region for row in card.rows}) > 1
    labels = [
        f"{row.region + ': ' if several else ''}{row.label}, {row.metric.upper()}{' ' + row.units if row.units else ''}"
        for row in card.rows
    ]
    ax.set_yticks(np.arange(len(card.rows)) + 0.5, labels)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    if card.baselines:
        ax.set_title(f"relative to {card.baselines[0]}: blue is better", fontsize=10)
    return figure

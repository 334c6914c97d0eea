"""Render a scorecard as a self-contained HTML page.

The page is laid out for screens, phones and paper. This module does not import torch.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xaurora.fields import variables
from xaurora.plots.panels import model_colours
from xaurora.plots.scorecards.headlines import headlines, leads_shown

if TYPE_CHECKING:
    from xaurora.plots.scorecards.rows import Row

Card: TypeAlias = Any
"""A :class:`~xaurora.plots.scorecards.card.Scorecard`, whose module imports this one."""

STYLE = (Path(__file__).parents[2] / "assets" / "scorecard.css").read_text(encoding="utf-8")
"""Applies only inside ``.xaurora-card``, so that a notebook is not restyled."""


def colour(relative: float) -> str:
    """Return a colour of WeatherBench's scale: blue is better, red is worse, saturated at 30 %."""
    if not np.isfinite(relative):
        return "#ffffff"
    strength = min(abs(relative) / 0.3, 1.0)
    target = (33, 102, 172) if relative < 0 else (178, 24, 43)
    return "#" + "".join(f"{round(255 + (c - 255) * 0.75 * strength):02x}" for c in target)


def ink(background: str) -> str:
    """Return black or white, whichever is readable on the background."""
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else "#111111"


def number(value: float) -> str:
    """Format a value with four significant digits."""
    return "–" if not np.isfinite(value) else f"{value:.4g}"


def render_html(card: Card) -> str:
    """Render the whole card as a self-contained HTML page."""
    title = html.escape(card.title)
    sections = [s for s in _sections(card) if s[2]]
    links = "".join(f"<a href='#{key}'>{html.escape(name)}</a>" for key, name, _ in sections)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport'"
        f" content='width=device-width, initial-scale=1'><title>{title}</title>"
        f"<style>{STYLE}</style></head><body class='xaurora-card'><h1>{title}</h1>",
        f"<p class='soft'>{html.escape(summary(card))}</p><nav>{links}</nav>",
    ]
    parts += [
        f"<section id='{key}'><h2>{html.escape(name)}</h2>{body}</section>"
        for key, name, body in sections
    ]
    return "".join([*parts, "</body></html>"])


def render_compact(card: Card) -> str:
    """Render the headline scores for a notebook, with styles that apply to nothing else."""
    return (
        f"<div class='xaurora-card'><style>{STYLE}</style><b>{html.escape(card.title)}</b>"
        f"<div class='soft'>{html.escape(summary(card))}</div>{_headlines(card)}"
        "<div class='soft'>card.save('scorecard.html') writes the whole page.</div></div>"
    )


def summary(card: Card) -> str:
    """Return what was scored, in one line."""
    known = dict(card.provenance)
    words = [f"init times {known['Init times']}"] if "Init times" in known else []
    region = card.rows[0].region if card.rows else ""
    words += [f"region {region}"] if region else []
    words += [f"grid {known['Grid']}"] if known.get("Grid", "?") != "?" else []
    return ", ".join(words)


def _sections(card: Card) -> list[tuple[str, str, str]]:
    """Return anchor, title and body of each section; an empty body is left out."""
    out = [("headlines", "Headlines", _headlines(card))]
    out += [
        (f"figures-{i}", name, _gallery(figures))
        for i, (name, figures, folded) in enumerate(card.figures)
        if not folded
    ]
    rows_of = {
        variable: [row for row in card.rows if row.variable == variable]
        for variable in dict.fromkeys(
            row.variable for row in sorted(card.rows, key=lambda row: not row.is_amount)
        )
    }
    details = [
        f"<details><summary>{html.escape(_name_of(rows[0]))}"
        f" <span class='soft'>{html.escape(_contents(rows))}</span></summary>"
        f"{_table(card, rows)}</details>"
        for rows in rows_of.values()
    ]
    details += [
        f"<details><summary>{html.escape(name)}</summary>{_gallery(figures)}</details>"
        for name, figures, folded in card.figures
        if folded
    ]
    out.append(("details", "Details", "".join(details)))
    out.append(("notes", "Notes and provenance", _notes(card)))
    return out


def _name_of(row: Row) -> str:
    known = variables.BY_KEY.get(row.key)
    if known is None:
        return row.variable
    return f"{known.long_name} ({row.variable})"


def _contents(rows: Sequence[Row]) -> str:
    """Return the levels and metrics of some rows, in words."""
    levels = [f"{v:g}" for v in dict.fromkeys(row.level for row in rows) if v is not None]
    shown = levels if len(levels) <= 3 else [levels[0], "…", levels[-1]]
    metrics = ", ".join(dict.fromkeys(row.metric_label for row in rows))
    return (f"{', '.join(shown)} hPa: " if levels else "") + metrics


def _gallery(figures: Sequence[Any]) -> str:
    return f"<div class='figures'>{''.join(_figure(f) for f in figures)}</div>" if figures else ""


def _notes(card: Card) -> str:
    out = ["<dl>"]
    out += [f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in card.provenance]
    out.append("</dl>")
    out += [f"<p class='note'>{html.escape(note)}</p>" for note in card.notes]
    return "".join(out)


def _dot(card: Card, model: str) -> str:
    colour_of_model = model_colours((card.name, *card.baselines))[model]
    return f"<span class='dot' style='background:{colour_of_model}'></span>{html.escape(model)}"


def _legend(card: Card) -> str:
    if not card.baselines:
        return "<p class='note'>No baseline was given, so nothing is coloured.</p>"
    steps = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)
    bar = "".join(f"<i style='background:{colour(s if s else 1e-9)}'></i>" for s in steps)
    text = (
        f"<div class='legend'><span>30 % better</span><span class='bar'>{bar}</span>"
        "<span>30 % worse than the baseline</span>"
    )
    if card.marked:
        text += (
            f"<span>★ significant: {html.escape(card.test)}; of all stars"
            f" {100 * (1 - card.level):g} % are expected to be false</span>"
        )
    if any(row.metric == "acc" for row in card.rows):
        text += "<span>ACC: difference in points, coloured by 1 − ACC</span>"
    return text + "</div>"


def _headlines(card: Card) -> str:
    """Return the heat map: values of this forecast, and its difference to each baseline."""
    lines = headlines(card.rows)
    if not lines:
        return "<p class='note'>These scores hold no values.</p>"
    leads = leads_shown(len(card.leads))
    out = ["<div class='wide'><table><thead><tr><th></th>"]
    out.append(f"<th class='gap' colspan='{len(leads)}'>{_dot(card, card.name)}</th>")
    out += [
        f"<th class='gap' colspan='{len(leads)}'>against {_dot(card, b)}</th>"
        for b in card.baselines
    ]
    out.append("</tr><tr><th></th>")
    for _ in range(1 + len(card.baselines)):
        out += [
            f"<th{_gap(n == 0)}>{html.escape(card.columns[i])}</th>" for n, i in enumerate(leads)
        ]
    out.append("</tr></thead><tbody>")
    for line in lines:
        units = (
            f" <span class='soft'>{html.escape(line.row.units)}</span>" if line.row.units else ""
        )
        out.append(f"<tr><td>{html.escape(line.text)}{units}</td>")
        for n, i in enumerate(leads):
            value = float(line.row.values[i])
            exact = f" data-value='{value!r}'" if np.isfinite(value) else ""
            out.append(f"<td{_gap(n == 0)}{exact}>{number(value)}</td>")
        for baseline in card.baselines:
            relative = line.row.relative(card.name, baseline)
            for n, i in enumerate(leads):
                out.append(_difference(line.row, card.name, baseline, relative, i, first=n == 0))
        out.append("</tr>")
    out.append("</tbody></table></div>")
    return "".join(out) + _legend(card)


def _gap(first: bool) -> str:
    return " class='gap'" if first else ""


def _difference(
    row: Row, model: str, baseline: str, relative: np.ndarray, i: int, *, first: bool
) -> str:
    """Return a cell of the heat map; scores that are not better or worse have the baseline's."""
    if not np.isfinite(relative[i]):
        value = row.others[baseline][i]
        return f"<td{_gap(first)}><span class='soft'>{number(value)}</span></td>"
    background = colour(relative[i])
    star = " ★" if row.significant(model, i, baseline) else ""
    return (
        f"<td{_gap(first)} style='background:{background};color:{ink(background)}'>"
        f"{row.difference(model, baseline, i)}{star}</td>"
    )


def _table(card: Card, rows: Sequence[Row]) -> str:
    """Return rows as a table, with all models and lead times."""
    out = ["<div class='wide'><table><thead><tr><th></th>"]
    out += [f"<th>{html.escape(c)}</th>" for c in card.columns]
    out.append("</tr></thead><tbody>")
    several = len(dict.fromkeys(row.region for row in rows)) > 1
    for row in rows:
        units = f" <span>{html.escape(row.units)}</span>" if row.units else ""
        region = f"{html.escape(row.region)}: " if several else ""
        out.append(
            f"<tr class='group'><th colspan='{len(card.leads) + 1}'>{region}"
            f"{html.escape(row.label)}, {html.escape(row.metric_label)}{units}</th></tr>"
        )
        for model in (card.name, *card.baselines):
            values = row.values if model == card.name else row.others.get(model)
            if values is None or not np.isfinite(values).any():
                continue
            mine = " class='mine'" if model == card.name else ""
            out.append(f"<tr{mine}><td>{_dot(card, model)}</td>")
            out += [_cell(card, row, model, values, i) for i in range(len(card.leads))]
            out.append("</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


def _cell(card: Card, row: Row, model: str, values: np.ndarray, i: int) -> str:
    background, small = "", ""
    if card.baselines and model != card.baselines[0]:
        relative = row.relative(model, card.baselines[0])[i]
        background = colour(relative) if np.isfinite(relative) else ""
        difference = row.difference(model, card.baselines[0], i)
        star = " ★" if row.significant(model, i, card.baselines[0]) else ""
        small = f"<small>{difference}{star}</small>" if difference or star else ""
    value = float(values[i])
    exact = "" if not np.isfinite(value) else f" data-value='{value!r}'"
    style = f" style='background:{background};color:{ink(background)}'" if background else ""
    return f"<td{exact}{style}>{number(value)}{small}</td>"


def _figure(figure: tuple[str, bytes, str, bool]) -> str:
    title, png, caption, wide = figure
    encoded = base64.b64encode(png).decode()
    full = " class='full'" if wide else ""
    return (
        f"<figure{full}><h3>{html.escape(title)}</h3><img alt='{html.escape(title, quote=True)}'"
        f" src='data:image/png;base64,{encoded}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )

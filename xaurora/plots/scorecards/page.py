"""Render a scorecard as a self-contained HTML page, or as a figure.

The page is laid out for screens, phones and paper. This module does not import torch.
"""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xaurora.plots.scorecards.rows import Row

Card: TypeAlias = Any
"""A :class:`~xaurora.plots.scorecards.card.Scorecard`, whose module imports this one."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; margin: 1.5rem auto;
  max-width: 76rem; padding: 0 1rem; color: #111; background: #fff; }
h1 { font-size: 1.45rem; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 60%; }
th, td { padding: .22rem .55rem; text-align: right; border: 1px solid #ddd; white-space: nowrap;
  vertical-align: middle; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff;
  max-width: 15rem; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
tr.group th { max-width: none; }
tr.group th { background: #f1f3f5; text-align: left; font-weight: 600; }
tr.group th span { font-weight: 400; color: #555; }
tr.mine td:first-child { font-weight: 600; }
td small { margin-left: .35rem; font-size: .8em; opacity: .9; }
.legend { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .8rem; color: #333;
  font-size: .9rem; }
.bar { display: inline-flex; } .bar i { width: 1.5rem; height: .8rem; display: inline-block; }
.note, dl { color: #444; font-size: .92rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem; margin: .4rem 0; }
dt { color: #666; }
dd { margin: 0; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%),
  1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; }
figure.full { grid-column: 1 / -1; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .88rem; color: #444; }
@media (max-width: 520px) {
  body { font-size: 13.5px; padding: 0 .6rem; margin: .8rem auto; }
  th, td { padding: .2rem .35rem; }
  th:first-child, td:first-child { min-width: 0; max-width: 7rem; overflow-wrap: break-word;
    font-size: .94em; }
  tr.group th { max-width: none !important; }
  td small { display: block; margin: 0; white-space: nowrap; font-size: .78em; }
  dl { grid-template-columns: 1fr; }
  dt { margin-top: .3rem; }
}
@media print {
  body { margin: 0; max-width: none; font-size: 10pt; }
  .wide { overflow: visible; }
  td, th, .bar i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  th:first-child, td:first-child { position: static; }
}
"""


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
    """Render the whole card as HTML."""
    parts = [
        (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport'"
            " content='width=device-width, initial-scale=1'>"
        ),
        f"<title>{html.escape(card.title)}</title><style>{STYLE}</style></head>",
        f"<body><h1>{html.escape(card.title)}</h1>",
    ]
    parts.append(_legend(card))
    regions = dict.fromkeys(row.region for row in card.rows)
    parts += [
        f"<section><h2>{html.escape(region)}</h2>{_table(card, region)}</section>"
        for region in regions
    ]
    for heading, figures in card.figures:
        parts.append(f"<section><h2>{html.escape(heading)}</h2><div class='figures'>")
        parts += [_figure(f) for f in figures]
        parts.append("</div></section>")
    parts.append("<h2>Provenance</h2><dl>")
    parts += [f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in card.provenance]
    parts.append("</dl>")
    parts += [f"<p class='note'>{html.escape(note)}</p>" for note in card.notes]
    parts.append("</body></html>")
    return "".join(parts)


def _legend(card: Card) -> str:
    if not card.baselines:
        return "<p class='note'>No baseline was given, so nothing is coloured.</p>"
    steps = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)
    bar = "".join(f"<i style='background:{colour(s if s else 1e-9)}'></i>" for s in steps)
    text = (
        "<p class='legend'><span>Difference relative to"
        f" <b>{html.escape(card.baselines[0])}</b>:</span> <span>30 % better</span><span"
        f" class='bar'>{bar}</span><span>30 % worse</span></p>"
    )
    if card.marked:
        text += (
            "<p class='note'>★: significant (t-test of paired init times that are correlated; of"
            f" all stars on this card, {100 * (1 - card.level):g} % are expected to be false).</p>"
        )
    if any(row.metric == "acc" for row in card.rows):
        text += (
            "<p class='note'>For ACC, the difference is given in points and coloured by 1 −"
            " ACC.</p>"
        )
    return text


def _table(card: Card, region: str) -> str:
    rows = [r for r in card.rows if r.region == region]
    out = ["<div class='wide'><table><thead><tr><th>forecast</th>"]
    out += [f"<th>{html.escape(c)}</th>" for c in card.columns]
    out.append("</tr></thead><tbody>")
    for row in rows:
        units = f" <span>{html.escape(row.units)}</span>" if row.units else ""
        out.append(
            f"<tr class='group'><th colspan='{len(card.leads) + 1}'>{html.escape(row.label)},"
            f" {html.escape(row.metric_label)}{units}</th></tr>"
        )
        for model in (card.name, *card.baselines):
            values = row.values if model == card.name else row.others.get(model)
            if values is None or not np.isfinite(values).any():
                continue
            mine = " class='mine'" if model == card.name else ""
            out.append(f"<tr{mine}><td>{html.escape(model)}</td>")
            out += [_cell(card, row, model, values, i) for i in range(len(card.leads))]
            out.append("</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


def _cell(card: Card, row: Row, model: str, values: np.ndarray, i: int) -> str:
    background, small = "#ffffff", ""
    if card.baselines and model != card.baselines[0]:
        background = colour(row.relative(model, card.baselines[0])[i])
        difference = row.difference(model, card.baselines[0], i)
        star = " ★" if row.significant(model, i) else ""
        small = f"<small>{difference}{star}</small>" if difference or star else ""
    value = float(values[i])
    exact = "" if not np.isfinite(value) else f" data-value='{value!r}'"
    return (
        f"<td{exact}"
        f" style='background:{background};color:{ink(background)}'>{number(value)}{small}</td>"
    )


def _figure(figure: tuple[str, bytes, str, bool]) -> str:
    title, png, caption, wide = figure
    encoded = base64.b64encode(png).decode()
    full = " class='full'" if wide else ""
    return (
        f"<figure{full}><h3>{html.escape(title)}</h3><img alt='{html.escape(title, quote=True)}'"
        f" src='data:image/png;base64,{encoded}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def render_figure(card: Card) -> Figure:
    """Draw the card as a Matplotlib figure.

    Colours show the relative difference to the first baseline: blue is better.
    """
    import matplotlib.pyplot as plt

    models = [
        m for m in (card.name, *card.baselines) if not card.baselines or m != card.baselines[0]
    ] or [card.name]
    lines = [
        (row, m)
        for row in card.rows
        for m in models
        if (row.values if m == card.name else row.others.get(m)) is not None
    ]
    height = 0.36 * (len(lines) + 1) + 1.4
    figure, ax = plt.subplots(
        figsize=(4.6 + 1.5 * len(card.leads), max(height, 2.5)), layout="constrained"
    )
    ax.set_xlim(0, len(card.leads))
    ax.set_ylim(len(lines), 0)
    for y, (row, model) in enumerate(lines):
        values = row.values if model == card.name else row.others[model]
        relative = (
            row.relative(model, card.baselines[0])
            if card.baselines
            else np.full(len(card.leads), np.nan)
        )
        for x in range(len(card.leads)):
            background = colour(relative[x])
            ax.add_patch(
                plt.Rectangle((x, y), 1, 1, facecolor=background, edgecolor="white", linewidth=1.5)
            )
            difference = row.difference(model, card.baselines[0], x) if card.baselines else ""
            mark = " *" if card.baselines and row.significant(model, x) else ""
            text = number(values[x]) + (f"  ({difference}{mark})" if difference else mark)
            ax.text(
                x + 0.5,
                y + 0.5,
                text,
                ha="center",
                va="center",
                fontsize=8.5,
                color=ink(background),
            )
    ax.set_xticks(np.arange(len(card.leads)) + 0.5, list(card.columns))
    several = len({row.region for row in card.rows}) > 1
    labels = [
        f"{row.region + ': ' if several else ''}{row.label},"
        f" {row.metric_label}{' ' + row.units if row.units else ''}"
        + (f" — {model}" if len(models) > 1 else "")
        for row, model in lines
    ]
    ax.set_yticks(np.arange(len(lines)) + 0.5, labels, fontsize=8.5)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    if card.baselines:
        star = "; * significant" if card.marked else ""
        ax.set_title(f"relative to {card.baselines[0]}: blue is better{star}", fontsize=10)
    return figure

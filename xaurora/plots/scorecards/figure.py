"""Draw the headline scores as a Matplotlib figure. This module does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xaurora.plots.panels import model_colours
from xaurora.plots.scorecards.headlines import headlines, leads_shown
from xaurora.plots.scorecards.page import Card, colour, ink, number, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xaurora.plots.scorecards.rows import Row


def render_figure(card: Card) -> Figure:
    """Draw the headline scores as a Matplotlib figure.

    The first block holds the values of this forecast, the others its difference to each baseline:
    blue is better.
    """
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.patches import Rectangle

    lines, leads = headlines(card.rows), leads_shown(len(card.leads))
    blocks = (card.name, *card.baselines)
    width = len(leads)
    figure = NewFigure(
        figsize=(3.6 + 0.85 * width * len(blocks) + 0.3, 1.5 + 0.36 * max(len(lines), 1)),
        layout="constrained",
    )
    ax = figure.subplots()
    gap = 0.25
    ax.set_xlim(0, len(blocks) * (width + gap) - gap)
    ax.set_ylim(max(len(lines), 1), 0)
    ticks, labels = [], []
    for b, block in enumerate(blocks):
        left = b * (width + gap)
        text = block if b == 0 else f"against {block}"
        ax.annotate(
            text,
            (left + width / 2, 0),
            (0, 26),
            textcoords="offset points",
            ha="center",
            weight="bold",
            color=model_colours(blocks)[block],
        )
        ticks += [left + i + 0.5 for i in range(width)]
        labels += [card.columns[i] for i in leads]
        for y, line in enumerate(lines):
            for x, i in enumerate(leads):
                background, words = _drawn(line.row, card.name, block if b else None, i)
                ax.add_patch(
                    Rectangle(
                        (left + x, y), 1, 1, facecolor=background, edgecolor="white", linewidth=1.5
                    )
                )
                ax.text(
                    left + x + 0.5,
                    y + 0.5,
                    words,
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color=ink(background),
                )
    ax.set_xticks(ticks, labels, fontsize=8.5)
    names = [f"{ln.text}{f' ({ln.row.units})' if ln.row.units else ''}" for ln in lines]
    ax.set_yticks(np.arange(len(lines)) + 0.5, names, fontsize=9)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    footer = summary(card) + ("; * significant" if card.marked else "")
    figure.supxlabel(footer, fontsize=8, color="0.35")
    figure.suptitle(card.title, fontsize=12)
    return figure


def _drawn(row: Row, model: str, baseline: str | None, i: int) -> tuple[str, str]:
    """Return background and text of a cell of the figure."""
    if baseline is None:
        return "#f3f5f7", number(float(row.values[i]))
    relative = row.relative(model, baseline)[i]
    if not np.isfinite(relative):
        return "#ffffff", number(float(row.others[baseline][i]))
    star = " *" if row.significant(model, i, baseline) else ""
    return colour(relative), row.difference(model, baseline, i) + star

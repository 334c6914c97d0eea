"""Draw docs/data-flow.png: the data flow of the three verbs.

python docs/data_flow.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

# Folder, colour of its boxes.
COLOURS = {
    "fields": "#dcebf7",
    "training": "#fde3c8",
    "forecasting": "#e3f0d8",
    "evaluation": "#f4dcec",
    "model": "#e6e1f3",
    "plots": "#f0f0f0",
    "you": "#ffffff",
}
# Verb, and its boxes from top to bottom: folder, module, what comes out.
FLOWS = {
    "finetune": (
        ("you", "Dataset", "any CF names and units"),
        ("fields", "recognition", "axes, names, units"),
        ("training", "plan", "targets, samples, split"),
        ("training", "scan", "climatology of the targets"),
        ("training", "build", "base, heads, adapter"),
        ("training", "loop ⟲ steps", "loss, best, checkpoint"),
        ("model", "tuned", "TunedAurora"),
    ),
    "predict": (
        ("you", "Dataset + model", "a name or TunedAurora"),
        ("model", "resolve", "base, weights, needs"),
        ("fields", "conventions", "canonical fields"),
        ("forecasting", "request", "leads, variables, members"),
        ("model", "batch, rollout", "states, latents, heads"),
        ("forecasting", "writer, store", "your names and units"),
        ("you", "forecast", "memory or Zarr"),
    ),
    "evaluate": (
        ("you", "forecast + truth", "ERA5 or IMERG"),
        ("evaluation", "alignment, truths", "same grid, valid time"),
        ("evaluation", "jobs", "what is scored"),
        ("evaluation", "engine, statistics", "error per point"),
        ("evaluation", "aggregation", "area and time means"),
        ("evaluation", "metrics, scores", "a Dataset of scores"),
        ("plots", "scorecards", "page or picture"),
    ),
}


def draw() -> Figure:
    """Return the figure: a column for each verb."""
    figure = Figure(figsize=(7.2, 8.6), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set(xlim=(0, 3), ylim=(-0.55, 7.45))
    axes.axis("off")
    for column, (verb, boxes) in enumerate(FLOWS.items()):
        x = column + 0.5
        axes.text(x, 7.25, verb, ha="center", va="center", fontsize=19, weight="bold")
        for row, (folder, module, result) in enumerate(boxes):
            y = 6.45 - row
            box = FancyBboxPatch(
                (x - 0.44, y - 0.33),
                0.88,
                0.66,
                boxstyle="round,pad=0.01,rounding_size=0.05",
                facecolor=COLOURS[folder],
                edgecolor="0.35",
                linestyle="--" if folder == "you" else "-",
            )
            axes.add_patch(box)
            name = module if folder == "you" else f"{folder}/"
            axes.text(x, y + 0.2, name, ha="center", va="center", fontsize=12.5, weight="bold")
            if folder != "you":
                axes.text(x, y - 0.01, module, ha="center", va="center", fontsize=12.5)
            axes.text(x, y - 0.22, result, ha="center", va="center", fontsize=11, color="0.3")
            if row:
                arrow = {"arrowstyle": "-|>", "color": "0.35", "linewidth": 1.5}
                axes.annotate("", (x, y + 0.34), (x, y + 0.66), arrowprops=arrow)
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_name("data-flow.png"), dpi=110)

"""Reference pages that follow from the code, written by ``docs/generate.py``."""

from __future__ import annotations

import inspect
from typing import Any

import typer

import xaurora
from xaurora.accessor import AuroraAccessor
from xaurora.cli.commands import app
from xaurora.fields import variables
from xaurora.fields.downloads import cds_name
from xaurora.model.models import TABLE

WRITTEN = "<!-- Written by docs/generate.py. -->"
GROUPS = {
    "Open and make data": ("open", "open_imerg", "synthetic"),
    "Baselines": (
        *("climatology", "climatology_forecast", "persistence"),
        *("probabilistic_climatology", "published_scores"),
    ),
    "Scores": ("compare", "significance", "combine_scores", "edge_rings"),
    "Models": ("load", "learning_curves", "TunedAurora"),
    "Options": (
        *("HeadOptions", "StrategyOptions", "LatentOptions", "ReplayOptions", "TrainingOptions"),
    ),
    "Errors": ("XauroraError",),
}
METHODS = {
    "Fields": (
        *("check", "to_batch", "from_batch", "accumulate", "deaccumulate", "statistics"),
        "prepare",
    ),
    "Training and forecasting": ("estimate", "finetune", "predict", "sensitivity"),
    "Forecasts and scores": (*("evaluate", "scorecard", "plot", "animate", "to_weatherbench2"),),
}


def _autosummary(names: list[str]) -> list[str]:
    return [
        "```{eval-rst}",
        ".. autosummary::",
        "   :toctree: generated",
        "   :nosignatures:",
        "",
        *(f"   {name}" for name in names),
        "```",
        "",
    ]


def api_page() -> str:
    """Return ``docs/reference/api.md``: a page for each public name."""
    public = {name for name in xaurora.__all__ if not name.startswith("_")}
    missing = public - {name for names in GROUPS.values() for name in names}
    methods = {name for name in vars(AuroraAccessor) if not name.startswith("_")}
    missing |= methods - {name for names in METHODS.values() for name in names}
    if missing:
        raise SystemExit(f"docs/reference_pages.py: in no group: {sorted(missing)}")
    lines = [
        "# Python",
        "",
        WRITTEN,
        "",
        "In the examples, `ds` are fields of `xaurora.synthetic(shape=(16, 32), times=60)`, `tuned`"
        " is a model tuned on their rain, `fc` its forecast and `scores` what `evaluate` returns."
        " They are run with the tests.",
        "",
        "## Accessor",
        "",
        "Methods of `ds.aurora`, on a Dataset of fields, a forecast or scores.",
        "",
    ]
    for title, names in METHODS.items():
        lines += [f"### {title}", ""]
        lines += _autosummary([f"xaurora.accessor.AuroraAccessor.{name}" for name in names])
    lines += ["## Functions and classes", ""]
    for title, names in GROUPS.items():
        lines += [f"### {title}", "", *_autosummary([f"xaurora.{name}" for name in names])]
    return "\n".join(lines).rstrip() + "\n"


def commands_page() -> str:
    """Return ``docs/reference/commands.md``: every command with its arguments and options."""
    command: Any = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        WRITTEN,
        "",
        "Options have the names of the Python arguments. Files and Zarr stores go in and out. For"
        " bad input, a command prints one line and exits with status 2.",
        "",
    ]
    for name, one in sorted(command.commands.items()):
        lines += [f"## xaurora {name}", "", inspect.cleandoc(one.help or ""), ""]
        lines += ["| argument | default | |", "|---|---|---|"]
        for p in one.params:
            if p.name == "help" or getattr(p, "hidden", False):
                continue
            title = ", ".join([*p.opts, *p.secondary_opts]) if p.opts[0][0] == "-" else p.name
            default = "required" if p.required else _default(p.default)
            lines.append(f"| `{title}` | {default} | {_cell(getattr(p, 'help', '') or '')} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _default(value: object) -> str:
    return "" if value is None or callable(value) or value in ((), []) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def models_page() -> str:
    """Return ``docs/reference/models.md``: the model table."""
    lines = [
        "# Models",
        "",
        WRITTEN,
        "",
        "What `model=` takes by name. It also takes a `TunedAurora`, its path, or an"
        " `aurora.Aurora`.",
        "",
        "| name | class | parameters | surface | static | levels | lead times | trained before | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for spec in TABLE.values():
        needs = spec.needs
        adapts = spec.adapts_to_data
        levels = "as the data" if needs.levels is None or adapts else str(len(needs.levels))
        until = str(spec.first_unseen_year) if spec.first_unseen_year else ""
        note = "; ".join(filter(None, (spec.label, "draws members" if needs.draws_members else "")))
        lines.append(
            f"| `{spec.name}` | {spec.class_name or 'made here'} | {spec.parameters / 1e6:,.0f} M |"
            f" {'as the data' if adapts else len(needs.surface)} |"
            f" {'as the data' if adapts else len(needs.static)} | {levels} |"
            f" every {needs.lead_step_hours} h | {until} | {note} |"
        )
    return "\n".join(lines) + "\n"


def variables_page() -> str:
    """Return ``docs/reference/variables.md``: the table of variables."""
    lines = [
        "# Variables",
        "",
        WRITTEN,
        "",
        "Variables that are recognised, by CF standard name, GRIB short name or one of the names"
        " here. Data may have other units that convert to these. Any other surface variable can"
        " be a target under its own name.",
        "",
        "| name | kind | units | long name | Climate Data Store | other names |",
        "|---|---|---|---|---|---|",
    ]
    kinds = {"surface": "surface", "static": "static", "atmos": "on levels"}
    for v in variables.TABLE:
        others = dict.fromkeys((v.weatherbench2, *v.aliases))
        names = ", ".join(f"`{name}`" for name in others if name != v.name)
        lines.append(
            f"| `{v.name}` | {kinds[v.kind]} | {v.units} | {v.long_name} | `{cds_name(v)}` |"
            f" {names} |"
        )
    return "\n".join(lines) + "\n"

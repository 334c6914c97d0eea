"""What each Aurora needs from the data, and cutting the data to it. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from xaurora.errors import LevelError, MissingVariableError, OptionError
from xaurora.fields import variables
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import patches

MODELS = ("tiny", "tiny-pretrained", "small", "base", "finetuned")
"""Names that ``model=`` takes, beside a :class:`~xaurora.model.tuned.TunedAurora`, its path, or an
:class:`aurora.Aurora`.
"""

FEWEST_LEVELS = 3
"""A pretrained Aurora runs on any number of levels, but its encoder makes three atmospheric latent
levels of them; of fewer, it would have to invent."""


@dataclass(frozen=True)
class Needs:
    """What a model takes.

    Parameters
    ----------
    model : str
        Name for messages.
    surface, static, atmos : tuple of str
        Canonical names, in the model's order.
    levels : tuple of float or None
        hPa that it may use; None takes all that the data have.
    fewest_levels : int
        With fewer of them it refuses.
    patch_size : int
        Pixels along a patch's side.
    merges : int
        How often its backbone halves the resolution.
    """

    model: str
    surface: tuple[str, ...] = variables.SURFACE
    static: tuple[str, ...] = variables.STATIC
    atmos: tuple[str, ...] = variables.ATMOS
    levels: tuple[float, ...] | None = tuple(float(v) for v in variables.LEVELS)
    fewest_levels: int = FEWEST_LEVELS
    patch_size: int = 4
    merges: int = 2


TINY = Needs("tiny", fewest_levels=1, merges=1)
TINY_PRETRAINED = Needs("tiny-pretrained", levels=(500.0, 700.0, 850.0), merges=1)
_OWN = {"tiny": TINY, "tiny-pretrained": TINY_PRETRAINED}
_NAMED = {name: _OWN.get(name) or Needs(name) for name in MODELS}
_PRETRAINED_NOTES = {
    "small": (
        "AuroraSmall is, by its authors' word, for debugging; model='base' is the one for results."
    ),
    "finetuned": (
        "The fine-tuned Aurora was tuned on IFS HRES analyses, not on ERA5; model='base' was"
        " pretrained on ERA5."
    ),
}


def unknown_model(name: object) -> OptionError:
    """The error for a model name that is not known."""
    if name in ("v1.5", "v1.5-ensemble"):
        return OptionError(
            f"model={name!r} takes 19 surface variables and computed insolation, which this version"
            " does not assemble.",
            fix=(
                "model='base' or 'small'; Aurora 1.5 already predicts rain with microsoft-aurora"
                " alone (scaled_tp_1h)"
            ),
        )
    return OptionError(
        f"there is no model {name!r}; valid are {', '.join(map(repr, MODELS))}, a tuned model or"
        " its path, or an aurora.Aurora.",
        fix="model='small'",
    )


def needs_of(name: str, fields: Fields | None = None, without: Sequence[str] = ()) -> Needs:
    """What a named model needs; ``tiny``, which is made for the data, takes what they have but for
    the variables it is to learn.

    Raises
    ------
    OptionError
        The name is unknown.
    """
    if name not in _NAMED:
        raise unknown_model(name)
    if name != "tiny" or fields is None:
        return _NAMED[name]
    have: dict[str, Any] = {
        "surface": tuple(
            str(n) for n in fields.surface if _is_state(str(n)) and str(n) not in without
        ),
        "static": tuple(map(str, fields.static)),
        "atmos": tuple(map(str, fields.atmos)),
    }
    known = tuple(level for level in fields.levels if level in variables.LEVELS)
    needs = replace(TINY, levels=known or fields.levels, **have)
    for kind, examples in (("surface", "2t"), ("static", "lsm"), ("atmos", "t")):
        if not have[kind]:
            word = {"surface": "surface", "static": "static", "atmos": "pressure-level"}[kind]
            raise MissingVariableError(
                f"the data hold no {word} variable that Aurora could take; every model needs at"
                " least one.",
                fix=(
                    f"add one, for example {examples!r}: xaurora.open('surface.nc',"
                    " 'pressure_levels.nc', 'static.nc')"
                ),
            )
    return needs


def _is_state(name: str) -> bool:
    """What a tiny model takes of the surface: no totals, and nothing that is missing over land or
    sea.
    """
    variable = variables.BY_KEY.get(("surface", name))
    return variable is not None and not (variable.accumulated or variable.masked)


def fit(fields: Fields, needs: Needs) -> tuple[Fields, patches.Crop]:
    """Select the variables and levels that a model takes, and cut the grid to its patches. Lazy.

    Raises
    ------
    MissingVariableError
        Variables are missing; all of them are listed.
    LevelError
        Too few levels.
    RegionError, GridError
        The grid does not fit the patches.
    """
    check_variables(fields, needs)
    levels = levels_for(fields, needs)
    chosen = fields.select(
        surface=needs.surface, static=needs.static, atmos=needs.atmos, levels=levels
    )
    crop = patches.crop_to_patches(fields.layout.grid, needs.patch_size, needs.merges)
    return chosen.crop(crop), crop


def check_variables(fields: Fields, needs: Needs) -> None:
    """Raise one error that lists every missing variable."""
    missing = []
    for kind in ("surface", "static", "atmos"):
        for name in getattr(needs, kind):
            if name not in getattr(fields, kind):
                variable = variables.BY_KEY.get((kind, name))
                label = f" ({variable.long_name.lower()})" if variable else ""
                where = {"surface": "", "static": ", static", "atmos": ", on pressure levels"}[kind]
                missing.append(f"{name}{label}{where}")
    if missing:
        raise MissingVariableError(
            f"model {needs.model!r} needs {len(missing)} variable(s) that are not in the data:"
            f" {'; '.join(missing)}.",
            fix=(
                "add them: xaurora.open('what_you_have.nc', 'the_missing_ones.nc'); or"
                " model='tiny', which is made for the variables there are"
            ),
        )


def levels_for(fields: Fields, needs: Needs) -> tuple[float, ...]:
    """Levels of the data that a model takes, in the data's order.

    Raises
    ------
    LevelError
        Too few of them.
    """
    levels = tuple(
        level for level in fields.levels if needs.levels is None or level in needs.levels
    )
    if len(levels) < needs.fewest_levels:
        raise LevelError(
            f"the data hold {len(levels)} of the pressure levels that model {needs.model!r} knows,"
            f" and it needs at least {needs.fewest_levels} (found"
            f" {[f'{v:g}' for v in fields.levels]} hPa; known are"
            f" {[f'{v:g}' for v in needs.levels or ()]}).",
            fix="download more levels, at best all 13; or model='tiny'",
        )
    return levels


def notes_for(fields: Fields, needs: Needs) -> list[str]:
    """What is legal but unwise with a pretrained model."""
    if needs.model not in _NAMED or needs.model == "tiny":
        return []
    if needs.model == "tiny-pretrained":
        return ["'tiny-pretrained' knows the fields of xaurora.synthetic, and no weather."]
    out = []
    if note := _PRETRAINED_NOTES.get(needs.model):
        out.append(note)
    grid = fields.layout.grid
    if max(abs(s - 0.25) for s in grid.spacing) > 0.01:
        out.append(
            f"The grid spacing is {grid.spacing[0]:.3g}° × {grid.spacing[1]:.3g}°, and this model"
            " was made for 0.25°."
        )
    have = [level for level in fields.levels if needs.levels is None or level in needs.levels]
    if needs.levels is not None and len(have) < len(needs.levels):
        out.append(
            f"{len(have)} of Aurora's {len(needs.levels)} pressure levels are there; its forecasts"
            " are best with all."
        )
    if extra := [level for level in fields.levels if level not in have]:
        out.append(
            f"{len(extra)} level(s) that Aurora does not use are left out:"
            f" {', '.join(f'{v:g}' for v in extra)} hPa."
        )
    if not grid.is_global:
        out.append(
            "The data are regional, and pretrained Auroras were made for the globe: expect errors"
            " near the edges, or tune with strategy='full'."
        )
    return out

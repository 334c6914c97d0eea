"""Variables, levels and grid that each Aurora needs, and the selection of data to match.

Does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from xaurora.errors import LevelError, MissingVariableError
from xaurora.fields import variables
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import patches

PATCH_SIZE = 4
"""Pixels along a patch's side in the pretrained ERA5 models."""

FEWEST_LEVELS = 3
"""Minimum number of pressure levels for a pretrained Aurora.

It runs on any number of levels, but its encoder aggregates them into three atmospheric latent
levels, which fewer than three input levels cannot determine.
"""


@dataclass(frozen=True)
class Needs:
    """Variables, levels and grid that a model needs.

    Parameters
    ----------
    model : str
        Name for messages.
    surface, static, atmos : tuple of str
        Canonical names, in the model's order.
    levels : tuple of float or None
        Pressure levels that the model can use, in hPa; None accepts all levels of the data.
    fewest_levels : int
        Minimum number of these levels in the data.
    patch_size : int
        Pixels along a patch's side.
    merges : int
        Number of times that the backbone halves the resolution.
    """

    model: str
    surface: tuple[str, ...] = variables.SURFACE
    static: tuple[str, ...] = variables.STATIC
    atmos: tuple[str, ...] = variables.ATMOS
    levels: tuple[float, ...] | None = tuple(float(v) for v in variables.LEVELS)
    fewest_levels: int = FEWEST_LEVELS
    patch_size: int = PATCH_SIZE
    merges: int = 2


def select_and_crop(fields: Fields, needs: Needs) -> tuple[Fields, patches.Crop]:
    """Select the variables and levels that a model takes, and crop the grid to whole patches. Lazy.

    Raises
    ------
    MissingVariableError
        Variables are missing; all of them are listed.
    LevelError
        There are too few levels.
    RegionError, GridError
        The grid cannot be cropped to whole patches.
    """
    check_variables(fields, needs)
    levels = levels_for(fields, needs)
    chosen = fields.select(
        surface=needs.surface, static=needs.static, atmos=needs.atmos, levels=levels
    )
    crop = patches.crop_to_patches(fields.layout.grid, needs.patch_size, needs.merges)
    return chosen.crop(crop), crop


def check_variables(fields: Fields, needs: Needs) -> None:
    """Raise an error that lists all missing variables, if there are any."""
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
                " model='tiny', which is built for the variables in the data"
            ),
        )


def levels_for(fields: Fields, needs: Needs) -> tuple[float, ...]:
    """Return the levels of the data that a model takes, in the data's order.

    Raises
    ------
    LevelError
        There are too few of them.
    """
    levels = tuple(
        level for level in fields.levels if needs.levels is None or level in needs.levels
    )
    if len(levels) < needs.fewest_levels:
        raise LevelError(
            f"the data have {len(levels)} of the pressure levels that model {needs.model!r}"
            f" supports, and it needs at least {needs.fewest_levels} (found"
            f" {[f'{v:g}' for v in fields.levels]} hPa; supported are"
            f" {[f'{v:g}' for v in needs.levels or ()]}).",
            fix="download more levels, ideally all 13; or model='tiny'",
        )
    return levels

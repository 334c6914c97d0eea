"""What each Aurora needs from the data, and cutting the data to it. Knows nothing of torch."""

from __future__ import annotations

from dataclasses import dataclass

from xaurora.errors import LevelError, MissingVariableError
from xaurora.fields import variables
from xaurora.fields.conventions import Fields
from xaurora.fields.grid import patches

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

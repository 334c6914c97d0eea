"""Variables, levels and grid that each Aurora needs, and the selection of data to match.

Does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from xaurora.errors import LevelError, MissingVariableError
from xaurora.fields import derived, downloads, variables
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
    computed : tuple of str
        Surface inputs that are computed and not read: ``"insolation"``.
    filled : tuple of str
        Surface inputs whose missing values, over land or sea, are set to zero.
    output_only : tuple of str
        Surface variables that it predicts and does not read.
    lead_step_hours : int
        Hours between its forecasts.
    draws_members : bool
        Whether it draws ensemble members itself.
    static_file : str, optional
        File that the static inputs are read from instead of the data.
    """

    model: str
    surface: tuple[str, ...] = variables.SURFACE
    static: tuple[str, ...] = variables.STATIC
    atmos: tuple[str, ...] = variables.ATMOS
    levels: tuple[float, ...] | None = tuple(float(v) for v in variables.LEVELS)
    fewest_levels: int = FEWEST_LEVELS
    patch_size: int = PATCH_SIZE
    merges: int = 2
    computed: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    output_only: tuple[str, ...] = ()
    lead_step_hours: int = variables.TIMESTEP_HOURS
    draws_members: bool = False
    static_file: str | None = None

    @property
    def read(self) -> dict[str, tuple[str, ...]]:
        """Variables that the data have to hold, by kind, in the model's order."""
        static = () if self.static_file else map(derived.source_of, self.static)
        return {
            "surface": tuple(name for name in self.surface if name not in self.computed),
            "static": tuple(dict.fromkeys(static)),
            "atmos": self.atmos,
        }

    @property
    def state(self) -> tuple[str, ...]:
        """Surface variables that it reads and predicts."""
        return self.read["surface"]


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
    chosen, crop = select_with_gaps(fields, needs)
    return derived.fill(chosen, needs.filled), crop


def select_with_gaps(fields: Fields, needs: Needs) -> tuple[Fields, patches.Crop]:
    """Return what :func:`select_and_crop` does, before missing values are set to zero."""
    check_variables(fields, needs)
    levels = levels_for(fields, needs)
    crop = patches.crop_to_patches(fields.layout.grid, needs.patch_size, needs.merges)
    cropped = fields.select(**needs.read, levels=levels).crop(crop)
    completed = derived.complete(
        cropped, static=needs.static, computed=needs.computed, file=needs.static_file
    )
    kinds = {"surface": needs.surface, "static": needs.static, "atmos": needs.atmos}
    return completed.select(**kinds, levels=levels), crop


def check_variables(fields: Fields, needs: Needs) -> None:
    """Raise an error that lists all missing variables, if there are any.

    Its ``request`` is the code that downloads them from the Climate Data Store.
    """
    missing: list[tuple[str, str]] = [
        (kind, name)
        for kind, names in needs.read.items()
        for name in names
        if name not in getattr(fields, kind)
    ]
    if not missing:
        return
    described = []
    for kind, name in missing:
        where = {"surface": "", "static": ", static", "atmos": ", on pressure levels"}[kind]
        unusable = fields.layout.unusable.get((kind, name))
        aside = f" (what the data hold cannot be used: {unusable.message})" if unusable else ""
        described.append(f"{name}{_label(kind, name)}{where}{aside}")
    fix = "add them: xaurora.open('what_you_have.nc', 'the_missing_ones.nc')"
    if not needs.computed:
        fix += "; or model='tiny', which is built for the variables in the data"
    elif any(kind == "static" for kind, _ in missing):
        fix += (
            "; for the static ones static_file='path/to/aurora-v1.5-static.pickle' (hf download"
            " microsoft/aurora aurora-v1.5-static.pickle)"
        )
    error = MissingVariableError(
        f"model {needs.model!r} needs {len(missing)} variable(s) that are not in the data:"
        f" {'; '.join(described)}.",
        fix=fix,
    )
    known = [key for key in missing if key in variables.BY_KEY]
    error.request = downloads.request(known, fields, needs.levels)
    raise error


def _label(kind: str, name: str) -> str:
    """Return the long name of a variable, and its name in the Climate Data Store if it differs."""
    variable = variables.BY_KEY.get((kind, name))
    if variable is None:
        return ""
    long, cds = variable.long_name.lower(), downloads.cds_name(variable)
    same = cds.replace("_", " ") == long.replace("-", " ")
    return f" ({long})" if same else f" ({long}; {cds})"


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

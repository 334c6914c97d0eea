"""The one table of the models that ``model=`` names.

Runs without torch, so that ``check()`` works on a machine that only reads and scores data. To
support another base model, add an entry here. If its data differ from those of the pretrained
Auroras, add an adapter (:func:`needs_of` shows the one of ``tiny``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xaurora.errors import MissingVariableError, OptionError
from xaurora.fields import inputs, variables
from xaurora.fields.conventions import Fields
from xaurora.fields.requirements import Needs


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a base model before it is built.

    Parameters
    ----------
    name : str
        What ``model=`` takes.
    needs : Needs
        Variables, levels and patches.
    class_name : str
        Its class in the package ``aurora``; empty for a model that is built here.
    parameters, width : int
        Number of parameters, and size of the embedding.
    spacing : float, optional
        Grid spacing that it was trained on, degrees.
    first_unseen_year : int, optional
        First year that is not in its training data.
    caveat : str
        What ``check()`` notes about it.
    reads_ifs : bool
        Whether it was tuned on analyses of the operational IFS rather than on ERA5.
    label : str
        What a scorecard adds to its name.
    adapts_to_data : bool
        Whether it is built for the variables in the data.
    random_weights : bool
        Whether its weights are random, so that they are saved with what is tuned on it.
    static_file : str
        Published file of its static fields.
    checkpoint : str
        File of its published weights.
    """

    name: str
    needs: Needs
    class_name: str = ""
    parameters: int = 0
    width: int = 512
    spacing: float | None = None
    first_unseen_year: int | None = None
    caveat: str = ""
    reads_ifs: bool = False
    label: str = ""
    adapts_to_data: bool = False
    random_weights: bool = False
    static_file: str = ""
    checkpoint: str = ""

    @property
    def built_here(self) -> bool:
        """Whether this package builds it, so that no weights have to be fetched."""
        return not self.class_name

    @property
    def is_cached(self) -> bool:
        """Whether its weights are in the hub's cache on this machine. Looks at files only."""
        return _cached(self.checkpoint) is not None

    @property
    def cached_static_file(self) -> str | None:
        """Path of its static fields in the hub's cache, if they are there."""
        return _cached(self.static_file) if self.static_file else None


def _cached(name: str) -> str | None:
    """Return the path of a published file in the hub's cache on this machine."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    snapshots = Path(cache) / "models--microsoft--aurora" / "snapshots"
    return next(map(str, snapshots.glob(f"*/{name}")), None)


V15_OUTPUT_ONLY = (
    *("i10fg", "blh", "uvb_1h", "ssrd_1h", "ttr_1h", "scaled_tp_1h", "scaled_sf_1h"),
)
"""Surface variables that Aurora 1.5 predicts and does not read."""
V15_FILLED = ("stl1", "swvl1", "ci", "scaled_sd")
"""Surface variables of Aurora 1.5 whose missing values are set to zero."""
# microsoft-aurora 2.0.1, aurora/model/aurora.py, AuroraV1p5
_V15_NEEDS = Needs(
    "v1.5",
    surface=(
        *("2t", "10u", "10v", "msl", "2d", "tcwv", "tcc", "100u", "100v", "sp", "lcc", "mcc"),
        *("hcc", "skt", "stl1", "swvl1", "ci", "scaled_sd", "insolation"),
    ),
    static=(
        *("lsm", "z", "anor", "isor", "cvh", "cl", "dl", "cvl", "slor"),
        *(f"slt_{i}" for i in range(8)),
        *("sdfor", "sdor"),
        *(f"tvh_{i}" for i in (0, 18, 19, 3, 4, 5, 6)),
        *(f"tvl_{i}" for i in (0, 1, 10, 11, 13, 16, 17, 2, 7, 9)),
    ),
    computed=("insolation",),
    filled=V15_FILLED,
    output_only=V15_OUTPUT_ONLY,
    lead_step_hours=1,
)
_V15 = ModelSpec(
    "v1.5",
    _V15_NEEDS,
    "AuroraV1p5",
    parameters=1_300_000_000,
    spacing=0.25,
    static_file="aurora-v1.5-static.pickle",
    checkpoint="aurora-0.25-v1.5.ckpt",
)
_TINY_V15 = ModelSpec(
    "tiny-v1.5",
    replace(_V15_NEEDS, model="tiny-v1.5", levels=None, fewest_levels=1, merges=1),
    parameters=1_100_000,
    width=64,
    label="a toy made here",
    random_weights=True,
    caveat="'tiny-v1.5' has random weights. It only tests that data and code work.",
)


def _with_members(
    spec: ModelSpec, name: str, class_name: str = "", checkpoint: str = ""
) -> ModelSpec:
    """Return the entry of the variant that draws members."""
    needs = replace(spec.needs, model=name, draws_members=True)
    return replace(spec, name=name, needs=needs, class_name=class_name, checkpoint=checkpoint)


# Training periods: Bodnar et al. (2025), doi:10.1038/s41586-025-09005-y, supplements C and D.
_SPECS = (
    ModelSpec(
        "tiny",
        Needs("tiny", fewest_levels=1, merges=1),
        parameters=4_000_000,
        width=128,
        label="a toy made here",
        adapts_to_data=True,
        random_weights=True,
    ),
    ModelSpec(
        "tiny-pretrained",
        Needs("tiny-pretrained", levels=(500.0, 700.0, 850.0), merges=1),
        parameters=4_000_000,
        width=128,
        caveat="'tiny-pretrained' was trained on the fields of xaurora.synthetic, not on weather.",
        label="a toy pretrained on synthetic fields",
    ),
    ModelSpec(
        "small",
        Needs("small"),
        "AuroraSmallPretrained",
        checkpoint="aurora-0.25-small-pretrained.ckpt",
        parameters=120_000_000,
        width=256,
        spacing=0.25,
        first_unseen_year=2021,
        caveat=(
            "The authors of AuroraSmall recommend it for debugging. Use model='base' for results."
        ),
        label="AuroraSmall, which its authors recommend for debugging",
    ),
    ModelSpec(
        "base",
        Needs("base"),
        "AuroraPretrained",
        checkpoint="aurora-0.25-pretrained.ckpt",
        parameters=1_300_000_000,
        spacing=0.25,
        first_unseen_year=2021,
    ),
    ModelSpec(
        "finetuned",
        Needs("finetuned"),
        "Aurora",
        checkpoint="aurora-0.25-finetuned.ckpt",
        parameters=1_300_000_000,
        spacing=0.25,
        first_unseen_year=2022,
        reads_ifs=True,
    ),
    _V15,
    _with_members(
        _V15,
        "v1.5-ensemble",
        class_name="AuroraV1p5Ensemble",
        checkpoint="aurora-0.25-v1.5-ensemble.ckpt",
    ),
    _TINY_V15,
    _with_members(_TINY_V15, "tiny-v1.5-ensemble"),
    replace(
        _TINY_V15,
        name="tiny-v1.5-pretrained",
        needs=replace(_TINY_V15.needs, model="tiny-v1.5-pretrained", levels=(500.0, 700.0, 850.0)),
        label="a toy pretrained on synthetic fields",
        caveat="'tiny-v1.5-pretrained' was trained on the fields of xaurora.synthetic.",
        random_weights=False,
    ),
)

TABLE: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
NAMES = tuple(TABLE)
"""Names that ``model=`` accepts.

It also accepts a :class:`~xaurora.model.tuned.TunedAurora`, its path, or an
:class:`aurora.Aurora`.
"""


def spec_of(name: object) -> ModelSpec:
    """Return the entry of a named model.

    Raises
    ------
    OptionError
        The name is unknown.
    """
    spec = TABLE.get(name) if isinstance(name, str) else None
    if spec is None and isinstance(name, str | os.PathLike) and os.sep in os.fspath(name):
        raise OptionError(
            f"model={os.fspath(name)!r}: there is no such folder.",
            fix="give the folder that finetune wrote (out=), or model='small' for the untuned base",
        )
    if spec is None:
        raise OptionError(
            f"there is no model {name!r}; valid values are {', '.join(map(repr, NAMES))}, a tuned"
            " model or its path, or an aurora.Aurora.",
            fix="model='small'",
        )
    return spec


def needs_of(name: object, fields: Fields | None = None, without: Sequence[str] = ()) -> Needs:
    """Return what a named model needs.

    Parameters
    ----------
    name : str
        A name of the table.
    fields : Fields, optional
        The data; ``tiny``, which is built for them, takes the variables and levels that they have.
    without : sequence of str
        Targets, which are therefore not inputs.

    Raises
    ------
    OptionError
        The name is unknown.
    MissingVariableError
        The data hold no surface, static or pressure-level variable at all.
    """
    spec = spec_of(name)
    if not spec.adapts_to_data or fields is None:
        return spec.needs
    known = tuple(level for level in fields.levels if level in variables.LEVELS)
    needs = replace(
        spec.needs,
        surface=tuple(
            str(n) for n in fields.surface if _is_state(str(n)) and str(n) not in without
        ),
        static=tuple(n for n in map(str, fields.static) if _is_plain("static", n)),
        atmos=tuple(map(str, fields.atmos)),
        levels=known or fields.levels,
    )
    for kind, word, example in (
        ("surface", "surface", "2t"),
        ("static", "static", "lsm"),
        ("atmos", "pressure-level", "t"),
    ):
        if not getattr(needs, kind):
            raise MissingVariableError(
                f"the data have no {word} variable that Aurora can take; every model needs at"
                " least one.",
                fix=(
                    f"add one, for example {example!r}: xaurora.open('surface.nc',"
                    " 'pressure_levels.nc', 'static.nc')"
                ),
            )
    return needs


def _is_state(name: str) -> bool:
    """Whether a surface variable has values everywhere and is no total over a period."""
    variable = variables.BY_KEY.get(("surface", name))
    return _is_plain("surface", name) and not (
        variable is None or variable.accumulated or variable.masked
    )


def _is_plain(kind: str, name: str) -> bool:
    """Whether a variable is in the table, and not there for one model alone."""
    variable = variables.BY_KEY.get((kind, name))
    return variable is not None and not variable.auxiliary


def notes_for(fields: Fields, needs: Needs) -> list[str]:
    """Return what is allowed but unwise with a pretrained model, as sentences."""
    spec = TABLE.get(needs.model)
    if spec is None:
        return []
    out = [spec.caveat] if spec.caveat else []
    if spec.checkpoint and not spec.is_cached:
        out.append(
            f"The weights ({spec.checkpoint}, {4e-9 * spec.parameters:.2g} GB) are not in this"
            " machine's cache. They are downloaded when they are first used, or given as weights=."
        )
    is_ifs = inputs.is_ifs(fields)
    if spec.reads_ifs and not is_ifs:
        out.append(
            "The fine-tuned Aurora was tuned on IFS HRES analyses, not on ERA5. model='base' was"
            " pretrained on ERA5."
        )
    elif spec.checkpoint and is_ifs and not spec.reads_ifs:
        out.append(
            "The data are of the operational IFS (ECMWF's open data or HRES), and this model was"
            " trained on ERA5. model='finetuned' was tuned on analyses of the IFS."
        )
    if spec.spacing is None:  # it was made for no particular grid
        return out
    grid = fields.layout.grid
    if max(abs(s - spec.spacing) for s in grid.spacing) > 0.01:
        out.append(
            f"The grid spacing is {grid.spacing[0]:.3g}° × {grid.spacing[1]:.3g}°. This model was"
            f" trained at {spec.spacing:g}°."
        )
    have = [level for level in fields.levels if needs.levels is None or level in needs.levels]
    if needs.levels is not None and len(have) < len(needs.levels):
        out.append(
            f"The data have {len(have)} of Aurora's {len(needs.levels)} pressure levels. Forecasts"
            " are best with all of them."
        )
    if extra := [level for level in fields.levels if level not in have]:
        out.append(
            f"{len(extra)} level(s) that Aurora does not use are ignored:"
            f" {', '.join(f'{v:g}' for v in extra)} hPa."
        )
    if not grid.is_global:
        out.append(
            "The data are regional, and pretrained Auroras were trained on the globe. Expect errors"
            " near the edges, or tune with strategy='full'."
        )
    return out

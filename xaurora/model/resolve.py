"""What ``model=`` and ``weights=`` stand for: the one place that decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from xaurora.errors import OptionError
from xaurora.fields.conventions import Fields
from xaurora.fields.requirements import Needs
from xaurora.model import models
from xaurora.model.models import ModelSpec

if TYPE_CHECKING:
    from aurora import Aurora

    from xaurora.model.tuned import TunedAurora

_SPACING = 0.01  # relative difference of grid spacings that is no rounding

ModelLike: TypeAlias = "str | Path | TunedAurora | Aurora"
"""A name of the model table, a tuned model or the path of one, or an Aurora."""


@dataclass(frozen=True)
class ResolvedModel:
    """A base model, found and not yet built.

    Parameters
    ----------
    name : str
        Of the base: a name of the model table, or ``"given"`` for an Aurora that the caller built.
    tuned : TunedAurora, optional
        The tuned model that was given or loaded.
    instance : Aurora, optional
        The Aurora that was given.
    weights : path, optional
        Local checkpoint of a named model.
    """

    name: str
    tuned: TunedAurora | None = None
    instance: Aurora | None = None
    weights: str | Path | None = None

    @property
    def spec(self) -> ModelSpec | None:
        """The entry of the model table, if the base has one."""
        return models.TABLE.get(self.name)

    @property
    def built_here(self) -> bool:
        """Whether the base is one of the small models that this package builds."""
        return self.spec is not None and self.spec.built_here

    def needs(self, fields: Fields, without: Sequence[str] = ()) -> Needs:
        """Return what the model takes of some data.

        Parameters
        ----------
        fields : Fields
        without : sequence of str
            Targets, which are therefore not inputs.
        """
        if self.tuned is not None:
            return self.tuned.needs
        if self.instance is not None:
            from xaurora.model.aurora import needs_of_instance

            return needs_of_instance(self.instance)
        return models.needs_of(self.name, fields, without)

    def differences(self, fields: Fields) -> list[str]:
        """Describe how data differ from those that the model was tuned on.

        Parameters
        ----------
        fields : Fields
            All levels of the data.
        """
        if self.tuned is None:
            return []
        trained, out = self.tuned.config["training"], []
        before, here = trained.get("grid_spacing", ()), fields.layout.grid.spacing
        if any(abs(a / b - 1.0) > _SPACING for a, b in zip(here, before, strict=False)):
            words = [" × ".join(f"{v:g}°" for v in pair) for pair in (here, before)]
            out.append(
                f"The grid spacing is {words[0]}, but the model was tuned on {words[1]}: its"
                " forecasts on another grid were never validated."
            )
        levels = trained.get("levels", ())
        if missing := [v for v in levels if v not in fields.levels]:
            shown = [[f"{v:g}" for v in several] for several in (missing, levels)]
            out.append(
                f"The pressure levels {shown[0]} hPa are not in the data, but the model was tuned"
                f" with {shown[1]} hPa."
            )
        return out


def resolve(model: object, weights: str | Path | None = None) -> ResolvedModel:
    """Resolve ``model=`` and ``weights=``.

    Imports torch only if ``model`` is not a name. Loads a tuned model from its path.

    Raises
    ------
    OptionError
        There is no such model, or it cannot take ``weights``.
    CheckpointError
        The path holds no tuned model, or a damaged one.
    """
    if isinstance(model, str) and model in models.TABLE:
        spec = models.spec_of(model)
        if weights is not None and spec.built_here:
            raise OptionError(
                f"weights= applies to pretrained models, but model={model!r} needs none.",
                fix="model='small', weights='file.ckpt'",
            )
        return ResolvedModel(model, weights=weights)
    from aurora import Aurora

    from xaurora.model import tuned

    if isinstance(model, str | Path) and str(model) and Path(model).is_dir():
        loaded = tuned.load(model, weights=weights)
        return ResolvedModel(loaded.base_name, tuned=loaded)
    if not isinstance(model, Aurora | tuned.TunedAurora):
        models.spec_of(model)  # raises
    if weights is not None:
        raise OptionError(
            "weights= applies to a model given by name, but model= is an object with weights.",
            fix=(
                "model='small', weights='file.ckpt'; for a tuned model xaurora.load(path,"
                " weights='file.ckpt')"
            ),
        )
    if isinstance(model, tuned.TunedAurora):
        return ResolvedModel(model.base_name, tuned=model)
    return ResolvedModel("given", instance=model)

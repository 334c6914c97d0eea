"""What ``model=`` and ``weights=`` stand for: the one place that decides."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xaurora.errors import OptionError, XauroraError
from xaurora.fields import inputs, requirements
from xaurora.fields.conventions import Fields
from xaurora.fields.requirements import Needs
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model import models
from xaurora.model.models import ModelSpec

if TYPE_CHECKING:
    from aurora import Aurora

    from xaurora.model.tuned import TunedAurora

logger = logging.getLogger("xaurora")

_UNLIKE = (
    "The inputs differ from those that the model was tuned on by more than those varied: {}. Check"
    " units, region and season."
)

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
    static_file : path, optional
        File of its static fields.
    """

    name: str
    tuned: TunedAurora | None = None
    instance: Aurora | None = None
    weights: str | Path | None = None
    static_file: str | Path | None = None

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
        return self._with_static_file(self._plain_needs(fields, without), fields)

    def _plain_needs(self, fields: Fields, without: Sequence[str]) -> Needs:
        if self.tuned is not None:
            return self.tuned.needs
        if self.instance is not None:
            from xaurora.model.aurora import needs_of_instance

            return needs_of_instance(self.instance)
        return models.needs_of(self.name, fields, without)

    def _with_static_file(self, needs: Needs, fields: Fields) -> Needs:
        """Return the needs with the file that static fields are read from, if there is one.

        It is the one given, that of the tuning if it is still there, or that in the hub's cache if
        the data lack static fields.
        """
        given = self.static_file
        if given is not None and not needs.computed:
            raise OptionError(
                f"static_file= belongs to Aurora 1.5, and model {needs.model!r} reads its static"
                " fields from the data.",
                fix="leave static_file= out",
            )
        before, plain = needs.static_file, replace(needs, static_file=None)
        if given is not None:
            return replace(needs, static_file=str(given))
        if before is not None and Path(before).is_file():
            return needs
        if needs.computed and not set(plain.read["static"]) <= set(fields.static):
            cached = models.TABLE["v1.5"].cached_static_file
            if cached is not None:
                logger.info("Static fields are read from %s.", cached)
            return replace(plain, static_file=cached)
        return plain

    def notes(self, fields: Fields, needs: Needs) -> list[str]:
        """Return what is allowed but unwise with the model. Reads a few frames if it was tuned.

        Parameters
        ----------
        fields : Fields
            All variables and levels of the data.
        needs : Needs
            What the model takes of them.
        """
        out = [*models.notes_for(fields, needs), *self.differences(fields)]
        if self.tuned is None:
            return out
        from xaurora.model import frames

        try:
            used, _ = requirements.select_and_crop(fields, needs)
            some = np.unique(np.linspace(0, len(used.times) - 1, 4).astype(int))
            with frames.requests() as pool:
                for time in used.times[some]:
                    found = self.unlike(
                        frames.read(used, time, pool=pool, guard="off"), used.levels
                    )
                    if found:
                        return [*out, *found]
        except XauroraError as error:  # a problem of the data, which is listed as such
            logger.debug("%s", error)
        return out

    def differences(self, fields: Fields) -> list[str]:
        """Describe how data differ from those that the model was tuned on.

        Grid, levels, source and years are compared; values are by :meth:`unlike`.

        Parameters
        ----------
        fields : Fields
            All levels of the data.
        """
        return [] if self.tuned is None else inputs.differences(self.trained, fields)

    def unlike(self, frame: inputs.Frame, levels: Sequence[float]) -> list[str]:
        """Describe how the values of a frame differ from those that the model was tuned on.

        Parameters
        ----------
        frame : dict
            As :func:`xaurora.model.frames.read` reads it.
        levels : sequence of float
            Its levels in hPa.
        """
        found = inputs.unlike(frame, levels, self.trained.get("inputs", {}))
        return [_UNLIKE.format("; ".join(found))] if found else []

    @property
    def trained(self) -> dict[str, Any]:
        """What the model was tuned on, or nothing."""
        return self.tuned.config["training"] if self.tuned is not None else {}


def resolve(
    model: object, weights: str | Path | None = None, static_file: str | Path | None = None
) -> ResolvedModel:
    """Resolve ``model=``, ``weights=`` and ``static_file=``.

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
        return ResolvedModel(model, weights=weights, static_file=static_file)
    from aurora import Aurora

    from xaurora.model import tuned

    if isinstance(model, str | Path) and str(model) and Path(model).is_dir():
        loaded = tuned.load(model, weights=weights)
        return ResolvedModel(loaded.base_name, tuned=loaded, static_file=static_file)
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
        return ResolvedModel(model.base_name, tuned=model, static_file=static_file)
    return ResolvedModel("given", instance=model, static_file=static_file)


def check_engine_supports(engine: str, needs: Needs) -> None:
    """Raise if an engine cannot run a model.

    Raises
    ------
    OptionError
        The model has hourly lead times, and the engine is JAX.
    """
    if engine == "jax" and needs.lead_step_hours != TIMESTEP_HOURS:
        raise OptionError(
            f"engine='jax' does not run models with hourly lead times ({needs.model}).",
            fix="engine='torch'",
        )

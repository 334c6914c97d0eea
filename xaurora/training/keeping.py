"""The models that a run keeps: the best and the last, saved and loaded by all its processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xaurora.model.aurora import AuroraWithHead
from xaurora.model.tuned import TunedAurora
from xaurora.training import parallel
from xaurora.training.options import TrainingOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Kept:
    """The models in a run's folder.

    Parameters
    ----------
    fabric : Fabric
    folder : Path
    options : TrainingOptions
    module : AuroraWithHead
        What trains.
    result : TunedAurora
        What is saved.
    """

    fabric: Fabric
    folder: Path
    options: TrainingOptions
    module: AuroraWithHead
    result: TunedAurora

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are sharded over devices."""
        return parallel.is_sharded(self.options, self.fabric)

    def save(self, name: str, history: list[dict[str, Any]]) -> None:
        """Save an artefact, unsharded, on the first process."""
        result = self.result
        if self.is_sharded:
            result.model.load_state_dict(parallel.gathered_state(self.module))
        saved = TunedAurora(result.model, result.needs, result.config, history)
        parallel.run_on_first(self.fabric, lambda: saved.save(self.folder / name, overwrite=True))

    def load_best(self, scores: dict[str, Any], trained: set[str]) -> dict[str, Any]:
        """Load the best weights on all processes, and return their scores.

        Parameters
        ----------
        scores : dict
            Of the first process.
        trained : set of str
            Names of the parameters that training has changed.
        """
        result = self.result
        if self.fabric.global_rank == 0:
            changed = {name.removeprefix("base.") for name in trained}
            scores = result.load_weights(self.folder / "best", changed)
        scores = self.fabric.broadcast(scores)
        if self.fabric.world_size > 1:
            for p in result.model.parameters():
                p.data.copy_(self.fabric.broadcast(p.detach().cpu()))
        if self.is_sharded:
            parallel.load_shards(self.module, result.model.state_dict())
        return scores

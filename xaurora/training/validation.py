"""Scores on held-out samples during training.

Targets are scored in their own units. Aurora's own variables are scored as well if the strategy
trains them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from xaurora.model import rollout
from xaurora.model.aurora import AuroraWithHead, Step
from xaurora.model.heads import DistributionHead
from xaurora.model.loader import STEP, Sample
from xaurora.training import losses
from xaurora.training.losses import Domains
from xaurora.training.plan import Plan
from xaurora.training.sound import SoundReader

MOST_VALIDATED = 100  # samples of a validation during training; the last one scores all
MOST_KEPT = 100  # truth fields kept in memory to compute the score of the climatology


@dataclass(frozen=True)
class Task:
    """What is validated, and how the scores are named.

    Parameters
    ----------
    units : dict
        Suffix and factor of the scores of each target: ``("_mm", 1e3)`` for precipitation.
    base : bool
        Whether Aurora's own variables are scored.
    base_chooses : bool
        Whether they also count in the choice of the best model, as for ``target="all"``.
    steps : int
        Number of six-hour steps in a forecast. Scores are means over the steps.
    """

    units: dict[str, tuple[str, float]]
    base: bool
    base_chooses: bool
    steps: int = 1

    @classmethod
    def of(cls, plan: Plan) -> Task:
        """Return the task of a plan."""
        units = {t.name: ("_mm", 1e3) if t.is_rain else ("", 1.0) for t in plan.targets}
        steps = plan.options.rollout_steps
        return cls(units, plan.scores_base, plan.trains_base_variables, steps)


def prefix(place: int, name: str) -> str:
    """Return the prefix of a target's score names: empty for the first target, else its name."""
    return "" if place == 0 else f"{name}_"


def format_scores(scores: dict[str, Any], task: Task, what: str = "crps") -> str:
    """Format one score of every target as text.

    Includes Aurora's own variables if they count in the choice of the best model.
    """
    parts = []
    for i, (name, (unit, _)) in enumerate(task.units.items()):
        value = scores[f"validation_{prefix(i, name)}{what}{unit}"]
        parts.append(
            f"{value:.4f}{' mm' if unit else ''}" + (f" ({name})" if len(task.units) > 1 else "")
        )
    if task.base_chooses:
        key = "validation_base_loss" if what == "crps" else "validation_persistence_loss"
        parts.append(f"{scores[key]:.4f} (Aurora's own variables)")
    return ", ".join(parts)


@dataclass(frozen=True)
class Processes:
    """The processes that share the work.

    Parameters
    ----------
    rank, world : int
        Rank of this process, and the number of processes.
    total : callable
        Sums a tensor over processes.
    """

    rank: int = 0
    world: int = 1
    total: Callable[[torch.Tensor], torch.Tensor] = lambda x: x


class Validator:
    """Scores a fixed set of init times.

    Parameters
    ----------
    task : Task
    reader : SoundReader
    init_times : ndarray of datetime64
    domains : Domains
        Where scores are computed, on the device.
    batch_size : int
    processes : Processes
    """

    def __init__(
        self,
        task: Task,
        reader: SoundReader,
        init_times: np.ndarray,
        domains: Domains,
        batch_size: int,
        processes: Processes,
    ) -> None:
        self.task, self.reader, self.domains, self.total = task, reader, domains, processes.total
        self.loader = reader.loader
        self.device = domains.base.area.device
        self.init_times = init_times
        batches = [
            list(init_times[i : i + batch_size]) for i in range(0, len(init_times), batch_size)
        ]
        rounds = -(-len(batches) // processes.world)
        mine = batches[processes.rank :: processes.world]
        # Every process runs the same number of batches, padded with batches of zero weight: with
        # sharded weights all processes must run the model together.
        self.batches = [(b, 1.0) for b in mine] + [(batches[0], 0.0)] * (rounds - len(mine))
        self._reference: dict[str, float] | None = None

    def reference(self, module: AuroraWithHead) -> dict[str, float]:
        """Return the CRPS of the samples' climatology by target, in canonical units.

        The climatology is the distribution of the samples' own truth at each point. The result
        depends on the truth alone and is computed once. The loss of persistence is computed in
        :meth:`score`.
        """
        if self._reference is None:
            count = min(len(self.init_times), MOST_KEPT)
            places = np.unique(np.linspace(0, len(self.init_times) - 1, count).astype(int))
            chosen = [t for t in self.init_times[places] if t not in self.reader.skipped]
            targets = self.domains.targets
            weight = targets.area.cpu().numpy()[targets.trim[0]]
            heads = module.heads
            self._reference = {}
            for name in self.task.units:
                low, high = heads[name].options.limits
                per_step = []
                for k in range(1, self.task.steps + 1):
                    truth = np.stack(
                        [self.loader.target_at(name, t + STEP * k)[targets.trim] for t in chosen]
                    )
                    bounded = truth if low is None and high is None else np.clip(truth, low, high)
                    per_step.append(climatology_crps(bounded, weight))
                self._reference[name] = float(np.mean(per_step))
        return self._reference

    @torch.no_grad()
    def score(self, module: AuroraWithHead) -> dict[str, float]:
        """Return the scores of a model on the init times.

        Targets have CRPS, RMSE, MAE and bias (mm for precipitation), and the CRPS of their
        climatology. Aurora's own variables have loss, RMSE and MAE, and the loss of persistence.

        ``validation_skill_score`` is the mean of 1 − score / reference score. The reference is the
        climatology for targets and persistence for Aurora's own variables. The best model has the
        highest score.
        """
        was_training = module.training
        module.eval()
        heads = module.heads
        keys = ("crps", "squares", "absolute", "bias", "weight")
        sums = {name: dict.fromkeys(keys, 0.0) for name in self.task.units}
        base = dict.fromkeys(("loss", "squares", "absolute", "persistence", "weight"), 0.0)
        for times, counts in self.batches:
            sample = self.reader.read(times)
            for k, step in enumerate(self._steps(module, sample)):
                truth = sample.truths[k]
                for name, head in heads.items():
                    self._add(sums[name], head, step.raw[name], truth.targets[name], counts)
                if self.task.base and truth.state is not None:
                    own = losses.base_loss_terms(
                        module.base,
                        step.prediction,
                        truth.state,
                        self.domains.base,
                        tuple(module.inputs),
                    )
                    still = self._persistence(module, sample, truth.state)
                    for key, value in zip(
                        ("loss", "squares", "absolute", "persistence"), (*own, still), strict=True
                    ):
                        base[key] += float(value) * len(times) * counts
                    base["weight"] += len(times) * counts
        module.train(was_training)
        return self._scores(sums, base, self.reference(module))

    def _steps(self, module: AuroraWithHead, sample: Sample) -> Iterable[Step]:
        if sample.batch is not None:
            return rollout.steps(module, sample.batch, self.task.steps)
        return [module(None, latents=self.loader.latents.of(module, sample, self.device))]

    def _add(
        self,
        sums: dict[str, float],
        head: DistributionHead,
        raw: torch.Tensor,
        target: torch.Tensor,
        counts: float,
    ) -> None:
        target = target.to(self.device)
        area, (rows, columns) = self.domains.targets.area, self.domains.targets.trim
        params, y = head.parameters_of(raw), losses.valid_target(head, target)
        share = (torch.isfinite(target) * area)[..., rows, columns]
        error = head.mean(params) - y
        found = (
            ("crps", head.crps(params, y).float()),
            ("squares", error**2),
            ("absolute", error.abs()),
            ("bias", error),
        )
        for key, values in found:
            inside = values[..., rows, columns]
            inside = torch.where(share > 0, inside, torch.zeros_like(inside)) * share
            sums[key] += float(inside.sum(dtype=torch.float64)) * counts
        sums["weight"] += float(share.sum(dtype=torch.float64)) * counts

    def _persistence(
        self, module: AuroraWithHead, sample: Sample, state: dict[str, dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        batch: Any = sample.batch
        same = type(batch)._fmap(batch, lambda v: v[:, -1:] if v.ndim > 2 else v)
        same.surf_vars = {k: v.to(self.device) for k, v in same.surf_vars.items()}
        same.atmos_vars = {k: v.to(self.device) for k, v in same.atmos_vars.items()}
        return losses.base_loss_terms(
            module.base, same, state, self.domains.base, tuple(module.inputs)
        )[0]

    def _scores(
        self,
        sums: dict[str, dict[str, float]],
        base: dict[str, float],
        reference: dict[str, float],
    ) -> dict[str, float]:
        flat = [v for part in (*sums.values(), base) for v in part.values()]
        whole = iter(self.total(torch.tensor(flat, dtype=torch.float64)).tolist())
        sums = {name: {key: next(whole) for key in part} for name, part in sums.items()}
        base = {key: next(whole) for key in base}
        out: dict[str, float] = {}
        skills = []
        for i, (name, (unit, factor)) in enumerate(self.task.units.items()):
            own, front, weight = (
                sums[name],
                f"validation_{prefix(i, name)}",
                max(sums[name]["weight"], 1e-30),
            )
            normal = reference[name] * factor
            out[f"{front}crps{unit}"] = own["crps"] / weight * factor
            out[f"{front}rmse{unit}"] = math.sqrt(own["squares"] / weight) * factor
            out[f"{front}mae{unit}"] = own["absolute"] / weight * factor
            out[f"{front}bias{unit}"] = own["bias"] / weight * factor
            out[f"{front}climatology_crps{unit}"] = normal
            known = math.isfinite(normal) and normal > 0  # NaN for a single sample
            skills.append(
                1.0 - out[f"{front}crps{unit}"] / normal if known else -out[f"{front}crps{unit}"]
            )
        if base["weight"]:
            out["validation_base_loss"] = base["loss"] / base["weight"]
            out["validation_base_rmse"] = math.sqrt(base["squares"] / base["weight"])
            out["validation_base_mae"] = base["absolute"] / base["weight"]
            out["validation_persistence_loss"] = base["persistence"] / base["weight"]
            if self.task.base_chooses:
                skills.append(
                    1.0
                    - out["validation_base_loss"] / max(out["validation_persistence_loss"], 1e-30)
                )
        out["validation_skill_score"] = float(np.mean(skills))
        return out


def climatology_crps(truth: np.ndarray, area: np.ndarray) -> float:
    """Return the CRPS of the sample climatology at each point, averaged over area.

    Each sample is scored against the other samples, so that few samples do not look better than
    many. Points and times without truth are left out. NaN if no point has two samples.

    Parameters
    ----------
    truth : ndarray, ``(n, h, w)``
    area : ndarray
        Cell areas, broadcastable to ``(h, w)``.
    """
    there = np.isfinite(truth)
    count = there.sum(axis=0)
    ranked = np.sort(truth.astype(np.float64), axis=0)  # NaN sorts last
    place = np.arange(1, len(truth) + 1).reshape(-1, 1, 1)
    # The mean over observations of E|X−y| equals E|X−X'|, which leaves ½E|X−X'|.
    terms = np.where(place <= count, (2 * place - count - 1) * np.nan_to_num(ranked), 0.0).sum(
        axis=0
    )
    score = terms / np.maximum(count * (count - 1), 1)
    weight = area * np.where(count > 1, count, 0)
    return float((score * weight).sum() / weight.sum()) if weight.any() else float("nan")

"""The training loop, on Lightning Fabric: steps, validation, the best and the last kept."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aurora import Aurora, Batch
from aurora.normalisation import scales as aurora_scales

from xaurora import config, rollout, samples, storage
from xaurora import grid as grids
from xaurora import model as models
from xaurora.errors import TrainingError
from xaurora.heads import RAIN
from xaurora.progress import bar, say
from xaurora.tiny import TinyAurora
from xaurora.tuned import TunedAurora

# Weights of the loss on Aurora's own variables: Bodnar et al. (2025), supplement D.1; other variables weigh 1.
_SURFACE_SHARE, _ATMOS_SHARE = 0.25, 1.0
_WEIGHTS = {
    "surface": {"2t": 3.0, "msl": 1.5, "10u": 0.77, "10v": 0.66},
    "atmos": {"z": 2.8, "q": 0.78, "t": 1.7, "u": 0.87, "v": 0.6},
}
_MOST_VALIDATED = 100  # samples of a validation during training; the last one scores all


def fit(
    result: TunedAurora,
    loader: samples.Loader,
    groups: list[dict[str, Any]],
    train: np.ndarray,
    validation: np.ndarray,
    grid: grids.Grid,
    trim: tuple[slice, slice],
    options: config.TrainingOptions,
    folder: Path,
    moves_base: bool,
) -> None:
    from lightning_fabric import Fabric

    # Precision and checkpointing are set on the base itself, as upstream does: only the backbone is autocast.
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu", devices=1
    )  # Aurora's encodings need float64, which MPS lacks
    module = result.model
    total = options.total_steps(len(train))
    warmup = options.warmup_steps(total)
    optimizer: Any = torch.optim.AdamW(groups, weight_decay=options.weight_decay, betas=(0.9, 0.95))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    runner, optimizer = fabric.setup(module, optimizer)
    area = torch.from_numpy(grids.latitude_weights(grid.latitude)).float().to(fabric.device)[:, None]
    models.set_precision(module.base, options.precision, fabric.device)
    checkpointing = options.activation_checkpointing
    recompute = moves_base and fabric.device.type == "cuda" if checkpointing == "auto" else bool(checkpointing)
    rng = np.random.default_rng(options.seed)
    every = max(total // options.validations, 1)
    best = -math.inf
    interim = validation[
        np.unique(np.linspace(0, len(validation) - 1, min(len(validation), _MOST_VALIDATED)).astype(int))
    ]

    known = {name: info["rain"] for name, info in result.config["targets"].items()}
    units = {name: ("_mm", 1e3) if rain else ("", 1.0) for name, rain in known.items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(models.placed(module, grid))
        if recompute:
            stack.enter_context(models.recomputed(module.base))
        log = stack.enter_context(_Log(folder))
        meter = stack.enter_context(bar(total=total, label="finetune", unit="step", shown=options.progress))
        smooth = math.nan
        for step, init_times in enumerate(_order(train, options.batch_size, total, rng)):
            runner.train()
            sample = loader.read(init_times)
            loss, parts = _loss(
                runner, module, sample, area, trim, options.base_loss if moves_base else 0.0, fabric.device
            )
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value} at step {step}, at init time(s) {', '.join(str(t.astype('datetime64[m]')) for t in init_times)}."
                    + (f" The best state so far is in '{folder / 'best'}'." if math.isfinite(best) else ""),
                    fix="a smaller learning_rate, or look at that time's fields: ds.aurora.check()",
                )
            fabric.backward(loss)
            fabric.clip_gradients(runner, optimizer, max_norm=options.clip, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            current = float(schedule.get_last_lr()[0])
            schedule.step()
            smooth = value if math.isnan(smooth) else 0.95 * smooth + 0.05 * value
            entry: dict[str, Any] = {"step": step + 1, "loss": value, **parts, "learning_rate": current}
            meter.update(1)
            meter.set_postfix_str(
                f"loss {smooth:.4f} rate {current:.1e}"
                + (f" best {_told(result.config['scores'], units)}" if math.isfinite(best) else ""),
                refresh=False,
            )
            if (step + 1) % every == 0 or step + 1 == total:
                scores = _validate(module, units, loader, interim, area, trim, options.batch_size, fabric.device)
                entry.update(scores)
                if scores["validation_skill_score"] > best:
                    best = scores["validation_skill_score"]
                    result.config["scores"] = {**scores, "step": step + 1}
                    result.history.append(entry)
                    result.save(folder / "best")
                    result.history.pop()
            result.history.append(entry)
            log.write(entry)
        last = TunedAurora(
            module,
            result.needs,
            {**result.config, "scores": {k: v for k, v in entry.items() if k.startswith("validation")}},
            result.history,
        )
        last.save(folder / "last")
        if not math.isfinite(best):
            raise TrainingError(
                f"no validation gave a score that is a number; what training ended with is in '{folder / 'last'}'.",
                fix="a smaller learning_rate",
            )
        _back_to_best(result, folder)
        final = _validate(module, units, loader, validation, area, trim, options.batch_size, fabric.device)
    result.config["scores"] = {**final, "step": result.config["scores"]["step"]}
    module.to("cpu")
    models.set_precision(module.base, "32", torch.device("cpu"))
    module.eval()
    # As they were made: Torch picks other kernels for parameters without gradient, and forecasts would differ in the last bit.
    module.requires_grad_(True)
    result.save(folder / "best")
    say(
        f"Best at step {result.config['scores']['step']}: CRPS {_told(final, units)}, climatology "
        f"{_told(final, units, 'climatology_crps')}; saved in {folder / 'best'}",
        shown=options.progress,
    )


def _back_to_best(result: TunedAurora, folder: Path) -> None:
    best = folder / "best"
    state = models.read_state(best / "head.safetensors")
    result.heads.load_state_dict({k: v for k, v in state.items() if not k.startswith("input.")})
    for name in result.model.inputs:
        if f"input.{name}" in state:
            embedding = result.model.base.encoder.surf_token_embeds.weights[name]
            embedding.data.copy_(state[f"input.{name}"])
    if (best / "model.safetensors").exists():
        result.model.base.load_state_dict(models.read_state(best / "model.safetensors"))


def _told(scores: dict[str, Any], units: dict[str, tuple[str, float]], what: str = "crps") -> str:
    """A score of every target, in words."""
    parts = []
    for i, (name, (unit, _)) in enumerate(units.items()):
        value = scores[f"validation_{_prefix(i, name)}{what}{unit}"]
        parts.append(f"{value:.4f}{' mm' if unit else ''}" + (f" ({name})" if len(units) > 1 else ""))
    return ", ".join(parts)


def _prefix(place: int, name: str) -> str:
    """Scores of the first target have plain names, those of others carry theirs."""
    return "" if place == 0 else f"{name}_"


def _order(times: np.ndarray, batch_size: int, total: int, rng: np.random.Generator) -> Iterator[list[np.datetime64]]:
    """Batches of init times, reshuffled each epoch; the last batch of an epoch may be smaller."""
    done = 0
    while True:
        shuffled = times[rng.permutation(len(times))]
        for start in range(0, len(shuffled), batch_size):
            if done == total:
                return
            done += 1
            yield list(shuffled[start : start + batch_size])


def _loss(
    runner: Any,
    module: models.AuroraWithHead,
    sample: samples.Sample,
    area: torch.Tensor,
    trim: tuple[slice, slice],
    base_loss: float,
    device: torch.device,
) -> tuple[torch.Tensor, dict[str, float]]:
    step = runner(rollout.prepare(module, sample.batch))
    parts: dict[str, float] = {}
    score: Any = 0.0
    heads: Any = module.head
    for name, head in heads.items():
        target = sample.targets[name].to(device)
        own = _mean(head.loss(head.parameters_of(step.raw[name]), _seen(head, target)), target, area, trim)
        score = score + own / len(sample.targets)
        if len(sample.targets) > 1:
            parts[f"{name}_loss"] = float(own.detach())
    parts["head_loss"] = float(score.detach())
    if base_loss and sample.next_state is not None:
        state = base_variables_loss(module.base, step.prediction, sample.next_state, area, trim, tuple(module.inputs))
        parts["base_loss"] = float(state.detach())
        score = score + base_loss * state
    return score, parts


def _seen(head: Any, target: torch.Tensor) -> torch.Tensor:
    """The truth without gaps, which are weighed out later, and without values that the family cannot have."""
    y = target.nan_to_num()
    if head.options.family in RAIN:
        return y.clamp(min=0.0)
    return y.clamp(*head.options.bounds) if head.options.bounds else y


def _mean(values: torch.Tensor, target: torch.Tensor, area: torch.Tensor, trim: tuple[slice, slice]) -> torch.Tensor:
    """Area mean over the points that have truth, halo left out."""
    weight = (torch.isfinite(target) * area)[..., trim[0], trim[1]]
    inside = values[..., trim[0], trim[1]]
    return (torch.where(weight > 0, inside, torch.zeros_like(inside)) * weight).sum() / weight.sum().clamp(min=1e-12)


def base_variables_loss(
    base: Aurora,
    prediction: Batch,
    truth: dict[str, dict[str, torch.Tensor]],
    area: torch.Tensor,
    trim: tuple[slice, slice],
    without: tuple[str, ...] = (),
) -> torch.Tensor:
    """Aurora's own loss: weighted, latitude-weighted mean absolute error of normalised variables.

    References
    ----------
    Bodnar et al. (2025), doi:10.1038/s41586-025-09005-y, supplement D.1.
    """
    total: Any = 0.0
    weight = area / area.mean()
    predicted = {"surface": prediction.surf_vars, "atmos": prediction.atmos_vars}
    for kind, share in (("surface", _SURFACE_SHARE), ("atmos", _ATMOS_SHARE)):
        for name, values in truth[kind].items():
            if kind == "surface" and name in without:
                continue  # a target among the inputs has its own score
            scale = _scales(base, kind, name, prediction.metadata.atmos_levels).to(area.device)
            error = (predicted[kind][name][:, 0] - values.to(area.device)).abs() / scale
            total = total + share * _WEIGHTS[kind].get(name, 1.0) * (error * weight)[..., trim[0], trim[1]].mean()
    return total / (len(truth["surface"]) + len(truth["atmos"]) - len(without))


def _scales(base: Aurora, kind: str, name: str, levels: tuple[int | float, ...]) -> torch.Tensor:
    if kind == "surface":
        return torch.tensor(base.surf_stats[name][1] if name in base.surf_stats else aurora_scales[name])
    if isinstance(base, TinyAurora):
        return torch.tensor([base.atmos_stats[name][f"{float(level):g}"][1] for level in levels])[:, None, None]
    return torch.tensor([aurora_scales[f"{name}_{level}"] for level in levels])[:, None, None]


@torch.no_grad()
def _validate(
    module: models.AuroraWithHead,
    units: dict[str, tuple[str, float]],
    loader: samples.Loader,
    init_times: np.ndarray,
    area: torch.Tensor,
    trim: tuple[slice, slice],
    batch_size: int,
    device: torch.device,
) -> dict[str, float]:
    """CRPS, RMSE and bias on held-out samples (mm for amounts), beside the CRPS of their climatology: all values at a point as an ensemble.

    ``validation_skill_score`` is the mean over targets of 1 − CRPS/CRPS of the climatology, by which the best state is chosen.
    """
    module.eval()
    heads: Any = module.head
    sums = {name: {"crps": 0.0, "squares": 0.0, "bias": 0.0, "weight": 0.0} for name in units}
    truths: dict[str, list[np.ndarray]] = {name: [] for name in units}
    kept = set(np.linspace(0, len(init_times) - 1, min(len(init_times), _MOST_VALIDATED)).astype(int).tolist())
    for start in range(0, len(init_times), batch_size):
        sample = loader.read(list(init_times[start : start + batch_size]))
        step = module(rollout.prepare(module, sample.batch))
        for name, head in heads.items():
            params = head.parameters_of(step.raw[name])
            target = sample.targets[name].to(device)
            y = _seen(head, target)
            share = (torch.isfinite(target) * area)[..., trim[0], trim[1]]
            error = head.mean(params) - y
            for key, values in (("crps", head.crps(params, y).float()), ("squares", error**2), ("bias", error)):
                inside = values[..., trim[0], trim[1]]
                sums[name][key] += float(
                    (torch.where(share > 0, inside, torch.zeros_like(inside)) * share).sum(dtype=torch.float64)
                )
            sums[name]["weight"] += float(share.sum(dtype=torch.float64))
            here = torch.where(torch.isfinite(target), y, target).cpu().numpy()[..., trim[0], trim[1]]
            truths[name] += [here[i] for i in range(len(here)) if start + i in kept]
    out: dict[str, float] = {}
    skills = []
    for i, (name, (unit, factor)) in enumerate(units.items()):
        own, front = sums[name], f"validation_{_prefix(i, name)}"
        normal = _climatology_crps(np.stack(truths[name]), area.cpu().numpy()[trim[0]]) * factor
        out[f"{front}crps{unit}"] = own["crps"] / own["weight"] * factor
        out[f"{front}rmse{unit}"] = math.sqrt(own["squares"] / own["weight"]) * factor
        out[f"{front}bias{unit}"] = own["bias"] / own["weight"] * factor
        out[f"{front}climatology_crps{unit}"] = normal
        skills.append(1.0 - out[f"{front}crps{unit}"] / max(normal, 1e-30))
    out["validation_skill_score"] = float(np.mean(skills))
    return out


def _climatology_crps(truth: np.ndarray, area: np.ndarray) -> float:
    """CRPS of the samples' own distribution at each point; points and times without truth are left out."""
    there = np.isfinite(truth)
    count = there.sum(axis=0)
    ranked = np.sort(truth.astype(np.float64), axis=0)  # NaN comes last
    place = np.arange(1, len(truth) + 1).reshape(-1, 1, 1)
    # Mean over the observations of E|X−y| is E|X−X'|, so that ½E|X−X'| remains.
    terms = np.where(place <= count, (2 * place - count - 1) * np.nan_to_num(ranked), 0.0).sum(axis=0)
    score = terms / np.maximum(count, 1) ** 2
    weight = area * count
    return float((score * weight).sum() / weight.sum())


class _Log:
    """``log.jsonl`` in the run's folder, one line a step; the file appears with the first line."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"
        self._file: Any = None

    def __enter__(self) -> _Log:
        return self

    def write(self, entry: dict[str, Any]) -> None:
        with storage.named_failures(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("w", encoding="utf-8")
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

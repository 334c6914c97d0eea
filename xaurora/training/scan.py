"""The one pass over the targets before training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xaurora.errors import SplitError
from xaurora.fields.distribution import Distribution
from xaurora.fields.grid.weights import latitude_weights
from xaurora.fields.targets import Target
from xaurora.model.batch import STEP
from xaurora.model.loader import MAX_PREFETCH, Loader, prefetch, time_positions
from xaurora.training.plan import Plan
from xaurora.utils.progress import track


@dataclass(frozen=True)
class TargetScan:
    """Init times with truth, and the climatology of the targets in the training samples."""

    train: np.ndarray
    validation: np.ndarray
    climatology: dict[str, Distribution]


def scan_targets(plan: Plan) -> TargetScan:
    """Read the targets once: find the init times with truth, and the climatology in training."""
    if not plan.targets:
        return TargetScan(plan.split.train, plan.split.validation, {})
    train, climatology = _drop_without_truth(plan, plan.split.train, progress=plan.options.progress)
    validation, _ = _drop_without_truth(plan, plan.split.validation, progress=False)
    return TargetScan(train, validation, climatology)


_SCANNED = 4 * 1024**3  # bytes of frames that are checked


def check_missing_values(
    plan: Plan, loader: Loader, init_times: np.ndarray, *, after: bool = True
) -> None:
    """Raise if the frames contain NaN, before anything is written.

    All frames are checked if they take up to 4 GiB, else as many evenly spaced ones as fit into
    that. Frames stay in the loader's cache while they fit.
    """
    if not len(init_times):
        return
    steps = plan.options.rollout_steps
    after = after and (plan.scores_base or steps > 1)  # otherwise later states are never read
    parts = [init_times - STEP, init_times] + (
        [init_times + STEP * k for k in range(1, steps + 1)] if after else []
    )
    frames = np.unique(np.concatenate(parts))
    count = min(len(frames), max(_SCANNED // loader.frame_bytes, 20))
    chosen = list(frames[np.unique(np.linspace(0, len(frames) - 1, count).astype(int))])
    room = int(min(MAX_PREFETCH, loader.budget / 2 // loader.frame_bytes))
    reading = prefetch(chosen, loader.frame, plan.options.workers, room)
    for _ in track(reading, "scan", unit="time", shown=plan.options.progress, total=len(chosen)):
        pass


def _drop_without_truth(
    plan: Plan, init_times: np.ndarray, *, progress: bool
) -> tuple[np.ndarray, dict[str, Distribution]]:
    """Return the init times with truth inside the halo, and the climatology of their targets.

    The climatology is weighted by area. Each target is read once.
    """
    grid, trim, steps = plan.target_grid, plan.target_trim, plan.options.rollout_steps
    seen = {t.name: Distribution(amounts=t.is_rain) for t in plan.targets}
    position = {t.name: time_positions(t.values) for t in plan.targets}
    area = np.broadcast_to(latitude_weights(grid.latitude)[:, None], grid.shape)[trim]
    whole: dict[int, bool] = {}  # by valid time: rollouts overlap, and each time counts once
    valid = {_stamp(time + STEP * k): None for time in init_times for k in range(1, steps + 1)}

    def read(key: int) -> dict[str, np.ndarray]:
        return {
            t.name: t.values.isel(time=position[t.name][key]).values[trim] for t in plan.targets
        }

    reading = prefetch(valid, read, plan.options.workers, MAX_PREFETCH)
    for key, found in track(reading, "target", shown=progress, total=len(valid)):
        there = {name: np.isfinite(values) for name, values in found.items()}
        whole[key] = all(mask.any() for mask in there.values())
        if whole[key]:
            for name, values in found.items():
                seen[name].add(values[there[name]], area[there[name]])
    kept = [
        time
        for time in init_times
        if all(whole[_stamp(time + STEP * k)] for k in range(1, steps + 1))
    ]
    if not kept:
        raise SplitError(
            "the target has no valid value in any sample of the training or validation part.",
            fix=(
                f"check the target: ds['{plan.targets[0].item.source}'].isnull().mean(('latitude',"
                " 'longitude'))"
            ),
        )
    _check_climatology(plan.targets, seen)
    return np.array(kept, dtype="datetime64[ns]"), seen


def _check_climatology(wanted: list[Target], climatology: dict[str, Distribution]) -> None:
    """Raise if a target does not vary, so that there is nothing to learn."""
    for t in wanted:
        if t.is_rain and not climatology[t.name].log_wet.count:
            raise SplitError(
                "the target is dry everywhere in the training or validation part, so there is"
                " nothing to train on or to score.",
                fix="use a longer period or a wetter region",
            )
        if not climatology[t.name].moments.high > climatology[t.name].moments.low:
            raise SplitError(
                f"the target '{t.item.source}' is constant in space and time in the training or"
                f" validation part ({climatology[t.name].moments.high:g}).",
                fix="use another target, a longer period or a larger region",
            )


def _stamp(time: np.datetime64) -> int:
    return int(time.astype("datetime64[ns]").astype(np.int64))

"""How much a training run reads: before the first step, while training, and to validate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xaurora.fields import inputs, periods
from xaurora.fields.found import Field
from xaurora.fields.variables import TIMESTEP_HOURS
from xaurora.model.batch import STEP
from xaurora.model.loader import MAX_CACHED
from xaurora.training import known_statistics
from xaurora.training.plan import Plan
from xaurora.training.scan import normalised_frames
from xaurora.training.validation import MOST_VALIDATED


@dataclass(frozen=True)
class Reads:
    """Bytes read of the source by what they are for, before compression."""

    first_look: int
    training: int
    validation: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.first_look + self.training + self.validation


NOTHING = Reads(0, 0, 0)


def states_needed(plan: Plan) -> int:
    """Return the number of states that the samples of the whole period need."""
    return sum(
        len(_states(times, plan.options.rollout_steps))
        for times in (plan.split.train, plan.split.validation)
    )


def _states(init_times: np.ndarray, steps: int) -> np.ndarray:
    return np.unique(np.concatenate([init_times + STEP * k for k in range(-1, steps + 1)]))


def samples_scored(plan: Plan, steps: int) -> int:
    """Return the number of validation samples that are forecast, those of all validations."""
    count = len(plan.split.validation)
    several = min(count, MOST_VALIDATED) * min(plan.options.validations, steps)
    return several + (count if count > MOST_VALIDATED else 0)


def of_run(plan: Plan, ds: xr.Dataset | None, steps: int) -> Reads:
    """Return what a run of so many steps reads."""
    options, split = plan.options, plan.split
    state, target = _state_bytes(plan, ds), _target_bytes(plan, ds)
    several = options.rollout_steps
    valid = np.unique(np.concatenate([split.train + STEP * k for k in range(1, several + 1)]))
    look = min(inputs.FRAMES, len(split.train)) * state
    given = options.statistics
    if given is None:
        look += min(len(valid), options.first_look) * target
        other = [split.validation + STEP * k for k in range(1, several + 1)]
        look += min(len(np.unique(np.concatenate(other))), options.first_look) * target
    if plan.built_for_data and (given is None or known_statistics.of_inputs(plan, given) is None):
        look += min(normalised_frames(plan), len(split.train)) * state
    # The state at the init time, the one before, and those that the base's variables are compared
    # with.
    states = 2 + several * int(plan.scores_base or plan.trains_base_variables)
    each = states * state + several * target
    visits, scored = steps * options.samples_per_step, samples_scored(plan, steps)
    needed = states_needed(plan)
    if plan.latents is not None or needed <= MAX_CACHED:  # each sample is read once
        visits = min(visits, len(split.train))
        scored = min(scored, len(split.validation))
    if needed <= MAX_CACHED:  # and so is each state
        share = needed / max(len(split.train) + len(split.validation), 1)
        each = share * state + several * target
    return Reads(int(look), int(visits * each), int(scored * each))


def _state_bytes(plan: Plan, ds: xr.Dataset | None) -> float:
    """Return the bytes that are read for the inputs at one time."""
    form = plan.fields.layout.fields
    items = [form["surface", n] for n in plan.needs.state]
    items += [form["atmos", n] for n in plan.needs.atmos]
    return sum(_chunk_bytes(plan, ds, item, 1) for item in items)


def _target_bytes(plan: Plan, ds: xr.Dataset | None) -> float:
    """Return the bytes that are read for the targets at one time: of rain, all parts of a total."""
    total = 0.0
    for target in plan.targets:
        hours = None
        if target.is_rain:
            hours = periods.declared_hours(target.item.source, target.item.attrs)
        parts = max(round(TIMESTEP_HOURS / hours), 1) if hours else 1
        total += _chunk_bytes(plan, ds, target.item, parts)
    return total


def _chunk_bytes(plan: Plan, ds: xr.Dataset | None, item: Field, times: int) -> float:
    """Return the bytes read for consecutive times of a variable; chunks are read whole."""
    rows, columns = plan.grid.shape
    if ds is None or str(item.source) not in ds:
        levels = len(plan.fields.levels) if item.variable.kind == "atmos" else 1
        return 4.0 * rows * columns * levels * times
    da: xr.DataArray = ds[item.source]
    if da.variable._in_memory:
        return 0.0
    time = plan.fields.layout.axes["time"].dim
    stored: dict[Any, Any] = da.encoding.get("preferred_chunks", {})
    length = int(stored.get(time, 0)) or max(da.chunksizes.get(time, (1,)))
    # An upper bound: a region may need fewer chunks.
    frame = da.nbytes / max(da.sizes.get(time, 1), 1)
    return frame * length * -(-times // length)

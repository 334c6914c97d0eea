"""The first look at the data: frames that say where heads, inputs and tiny models start.

Of a long period it reads a sample of frames, evenly spread over years, months and hours of the day.
What it found is kept beside the run, so that a resumed run reads nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xaurora.errors import ImplausibleValuesError, MissingValuesError, SourceError, SplitError
from xaurora.fields import inputs, plausibility, statistics
from xaurora.fields.distribution import Bins, Distribution, Moments
from xaurora.fields.grid.weights import latitude_weights
from xaurora.fields.targets import Target, unit_of
from xaurora.model.batch import STEP
from xaurora.model.loader import (
    MAX_PREFETCH,
    REQUESTS,
    Guards,
    Loader,
    prefetch,
    time_positions,
)
from xaurora.training import known_statistics
from xaurora.training.plan import Plan
from xaurora.utils import indexed, storage
from xaurora.utils.progress import log_line, track

logger = logging.getLogger("xaurora")

FILE = "first_look.npz"
_NORMALISED = 4 * 1024**3  # bytes of frames that a tiny model's normalisation is computed from
_FEWEST = 32  # frames, however large
_WRONG = 0.1  # of the frames may hold targets that cannot be; they are left out


@dataclass(frozen=True)
class TargetScan:
    """Init times with truth, and what was found in the training samples.

    Parameters
    ----------
    train, validation : ndarray of datetime64
    climatology : dict of Distribution
        Of each target.
    errors : dict of float
        Standard error of the mean of each target, if it comes from a sample of the frames.
    normalisation : tuple of dict, optional
        Mean and standard deviation of the inputs, for a new tiny model.
    inputs : dict
        What the inputs look like, as :func:`xaurora.fields.inputs.summarise` returns it.
    """

    train: np.ndarray
    validation: np.ndarray
    climatology: dict[str, Distribution]
    errors: dict[str, float] = field(default_factory=dict)
    normalisation: tuple[dict[str, Any], dict[str, Any]] | None = None
    inputs: dict[str, Any] = field(default_factory=dict)


def scan_targets(plan: Plan, folder: Path | None = None) -> TargetScan:
    """Look at the targets and the inputs, or return what :func:`keep` has kept in ``folder``.

    Raises
    ------
    SplitError
        A target has no value, does not vary, or is dry everywhere.
    """
    if folder is not None and (kept := _read(folder / FILE, _name_of(plan))) is not None:
        return kept
    train, validation = plan.split.train, plan.split.validation
    climatology: dict[str, Distribution] = {}
    errors: dict[str, float] = {}
    given = plan.options.statistics
    if plan.targets and given is not None:
        climatology = known_statistics.of_targets(plan, given)
        _check_climatology(plan.targets, climatology)
    elif plan.targets:
        train, climatology, errors = _look(plan, train, progress=plan.options.progress)
        validation, *_ = _look(plan, validation, progress=False)
    normalisation = _normalisation(plan, train) if plan.built_for_data else None
    return TargetScan(
        train, validation, climatology, errors, normalisation, _summary_of_inputs(plan, train)
    )


def keep(plan: Plan, found: TargetScan, folder: Path) -> None:
    """Keep what was found in the run's folder, so that a resumed run reads nothing."""
    name = _name_of(plan)
    storage.replace_file(folder / FILE, lambda path: _write(path, name, found))


def stratified(times: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` times, evenly spread over the period and over the hours of the day.

    All of them if there are not more.
    """
    if len(times) <= count:
        return times
    times = np.sort(times)
    hours = (times - times.astype("datetime64[D]")).astype("timedelta64[m]")
    groups = [times[hours == hour] for hour in np.unique(hours)]
    longest = max(map(len, groups))
    # Hours with one frame less get as many: other distances would leave gaps between hours.
    shares = [1.0 if len(group) >= longest - 1 else len(group) / longest for group in groups]
    most = max(round(count / sum(shares)), 1)
    chosen = []
    for i, (group, share) in enumerate(zip(groups, shares, strict=True)):
        size = min(max(round(most * share), 1), len(group))
        # The hours do not share their days.
        places = (np.arange(size) + (i + 0.5) / len(groups)) / size * len(group)
        chosen.append(group[places.astype(int)])
    return np.sort(np.concatenate(chosen))


def _valid_times(init_times: np.ndarray, steps: int) -> np.ndarray:
    return np.unique(np.concatenate([init_times + STEP * k for k in range(1, steps + 1)]))


def _look(
    plan: Plan, init_times: np.ndarray, *, progress: bool
) -> tuple[np.ndarray, dict[str, Distribution], dict[str, float]]:
    """Return the init times with truth, the targets' climatology, weighted by area, and its errors.

    If only a sample of the frames is read, all init times are kept: those without truth are skipped
    when they are read.
    """
    steps, most = plan.options.rollout_steps, plan.options.first_look
    valid = _valid_times(init_times, steps)
    chosen = stratified(valid, most)
    seen = {t.name: Distribution(amounts=t.is_rain) for t in plan.targets}
    means: dict[str, list[float]] = {t.name: [] for t in plan.targets}
    whole, wrong = set(), []
    for time, found in _read_targets(plan, chosen, progress=progress):
        if isinstance(found, ImplausibleValuesError | SourceError):
            wrong.append(found)
            if plan.options.strict or len(wrong) > _WRONG * len(chosen):
                raise found
            logger.warning("%s", found)
        elif all(values.size for values, _ in found.values()):
            whole.add(time)
            for name, (values, area) in found.items():
                seen[name].add(values, area)
                means[name].append(float(np.average(values, weights=area)))
    sampled = len(chosen) < len(valid)
    kept = [
        t
        for t in init_times
        if (sampled and whole) or all(_stamp(t + STEP * k) in whole for k in range(1, steps + 1))
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
    errors = {n: float(np.std(m, ddof=1) / np.sqrt(len(m))) for n, m in means.items() if sampled}
    if progress and sampled:
        for t in plan.targets:
            unit, factor = unit_of(t.variable)
            log_line(
                f"Climatology of {t.item.source} from {len(chosen)} of {len(valid)} times: mean"
                f" {seen[t.name].moments.mean * factor:.4g} ± {errors[t.name] * factor:.2g} {unit}"
                " (standard error).",
                shown=True,
            )
    return np.array(kept, dtype="datetime64[ns]"), seen, errors


_Found = dict[str, tuple[np.ndarray, np.ndarray]]


def _read_targets(
    plan: Plan, times: np.ndarray, *, progress: bool
) -> Iterable[tuple[int, _Found | ImplausibleValuesError | SourceError]]:
    """Yield times, and the values and areas of each target's points with truth, inside the halo.

    Instead of values that cannot be, the error for them.
    """
    grid, trim = plan.target_grid, plan.target_trim
    position = {t.name: time_positions(t.values) for t in plan.targets}
    area = np.broadcast_to(latitude_weights(grid.latitude)[:, None], grid.shape)[trim]

    def read(key: int) -> _Found | ImplausibleValuesError | SourceError:
        out = {}
        for t in plan.targets:
            try:
                values = indexed.read(t.values.variable[position[t.name][key]], t.item.source)
                plausibility.check_target_frame(t, values, np.datetime64(key, "ns"))
            except (ImplausibleValuesError, SourceError) as error:
                return error
            values = values[trim]
            there = np.isfinite(values)
            out[t.name] = values[there], area[there]
        return out

    keys = [_stamp(t) for t in times]
    reading = prefetch(keys, read, plan.options.workers, MAX_PREFETCH)
    return track(reading, "target", shown=progress, total=len(keys))


def _normalisation(plan: Plan, train: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return mean and standard deviation of the inputs, for a new tiny model."""
    given = plan.options.statistics
    known = None if given is None else known_statistics.of_inputs(plan, given)
    if known is not None:
        return known
    steps = plan.options.rollout_steps
    frames = np.unique(np.concatenate([train + STEP * k for k in range(-1, steps + 1)]))
    chosen = stratified(frames, normalised_frames(plan))
    return statistics.normalisation_statistics(
        plan.fields, list(chosen), strict=plan.options.strict, progress=plan.options.progress
    )


def _summary_of_inputs(plan: Plan, train: np.ndarray) -> dict[str, Any]:
    """Return what the inputs look like in a few frames; broken ones are left out."""
    fields, rows, times = plan.fields, [], []
    # One frame at a time, because all are gigabytes.
    readers = REQUESTS if plan.options.workers else 0
    loader = Loader(fields, {}, readers=readers, most=1, guards=Guards("off"))
    with contextlib.closing(loader):
        for time in stratified(train, inputs.FRAMES):
            try:
                rows.append(inputs.moments(loader.frame(time), fields.levels))
                times.append(time)
            except (MissingValuesError, SourceError) as error:
                logger.info("%s", error)
    return inputs.summarise(rows, np.array(times, "datetime64[ns]"))


def normalised_frames(plan: Plan) -> int:
    """Return the largest number of frames that a tiny model's normalisation is computed from."""
    size = 4 * sum(v.size for v in (*plan.fields.surface.values(), *plan.fields.atmos.values()))
    most = max(_NORMALISED * len(plan.fields.times) // max(size, 1), _FEWEST)
    return min(plan.options.first_look, most)


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


# --- kept beside the run --------------------------------------------------------------------------


def _name_of(plan: Plan) -> str:
    """Return a hash of everything that the first look depends on; of the values, two frames."""
    grid, given = plan.target_grid, plan.options.statistics
    described = {
        "targets": [[t.name, t.item.source, str(t.item.attrs.get("units"))] for t in plan.targets],
        "train": [_stamp(t) for t in plan.split.train],
        "validation": [_stamp(t) for t in plan.split.validation],
        "grid": [grid.latitude.round(6).tolist(), grid.true_longitude.round(6).tolist()],
        "trim": str(plan.target_trim),
        "steps": plan.options.rollout_steps,
        "frames": plan.options.first_look,
        "statistics": None if given is None else known_statistics.digest(given),
        "inputs": [plan.built_for_data, plan.needs.surface, plan.needs.atmos, plan.fields.levels],
        "values": _fingerprint(plan),
    }
    return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()


def _fingerprint(plan: Plan) -> list[str]:
    """Return a hash of two frames of each target: other data are looked at again."""
    valid = _valid_times(plan.split.train, plan.options.rollout_steps)
    places = sorted({len(valid) // 3, len(valid) // 2})
    out = []
    for t in plan.targets:
        position = time_positions(t.values)
        for time in valid[places]:
            values = indexed.read(t.values.variable[position[_stamp(time)]], t.item.source)
            out.append(hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16])
    return out


def _write(path: Path, name: str, found: TargetScan) -> None:
    arrays: dict[str, Any] = {"train": found.train, "validation": found.validation}
    described: dict[str, Any] = {
        "name": name,
        "errors": found.errors,
        "normalisation": found.normalisation,
        "inputs": found.inputs,
        "targets": {},
    }
    for i, (target, seen) in enumerate(found.climatology.items()):
        bins = seen.histogram.packed()
        arrays[f"bins {i}"], arrays[f"weights {i}"] = bins.keys, bins.weights
        described["targets"][target] = {
            "amounts": seen.amounts,
            "clipped": seen.clipped,
            "clipped_amount": seen.clipped_amount,
            "moments": dataclasses.asdict(seen.moments),
            "log_wet": dataclasses.asdict(seen.log_wet),
        }
    with path.open("wb") as file:
        np.savez_compressed(file, described=np.array(json.dumps(described)), **arrays)


def _read(path: Path, name: str) -> TargetScan | None:
    """Return what was kept, if it is of the same data and options."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as stored:
            described = json.loads(str(stored["described"]))
            if described["name"] != name:
                return None
            climatology = {}
            for i, (target, parts) in enumerate(described["targets"].items()):
                seen = Distribution(parts["amounts"])
                seen.clipped, seen.clipped_amount = parts["clipped"], parts["clipped_amount"]
                seen.moments = Moments(**parts["moments"])
                seen.log_wet = Moments(**parts["log_wet"])
                seen.histogram.merge(Bins(stored[f"bins {i}"], stored[f"weights {i}"]))
                climatology[target] = seen
            normalisation = described["normalisation"]
            return TargetScan(
                stored["train"],
                stored["validation"],
                climatology,
                described["errors"],
                _as_pairs(normalisation) if normalisation is not None else None,
                described["inputs"],
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("'%s' cannot be read (%s); the data are looked at again.", path, error)
        return None


def _as_pairs(normalisation: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    surface, atmos = normalisation
    return (
        {name: tuple(pair) for name, pair in surface.items()},
        {n: {level: tuple(pair) for level, pair in by.items()} for n, by in atmos.items()},
    )


def _stamp(time: np.datetime64) -> int:
    return int(time.astype("datetime64[ns]").astype(np.int64))

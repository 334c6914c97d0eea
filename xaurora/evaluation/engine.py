"""Evaluation loop: read blocks, compute statistics, accumulate area means.

Blocks (:mod:`xaurora.evaluation.blocks`) are independent. They run on threads, or on the workers
of a ``dask.distributed`` client if there is one. Only area means are returned, a few numbers per
field, so that memory does not grow with the number of init times. Does not depend on torch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xaurora.distributions import Deterministic
from xaurora.evaluation import alignment
from xaurora.evaluation.aggregation import Table
from xaurora.evaluation.blocks import Block, Job, Key, Plan, blocks_of
from xaurora.evaluation.sample import Sample
from xaurora.evaluation.sanity import beyond_extremes, check_rain, check_size, own_units
from xaurora.evaluation.statistics import STATISTICS
from xaurora.fields.found import Field
from xaurora.utils.progress import progress_bar
from xaurora.utils.types import Given
from xaurora.utils.unchanged import Unchanged
from xaurora.utils.workers import in_order

logger = logging.getLogger("xaurora")


@dataclass
class BlockResult:
    """Results of one block: area means by label, key, statistic and position, and counts."""

    means: list[tuple[str, Key, str, int, int, np.ndarray, np.ndarray]]
    scored: int = 0
    without_truth: int = 0
    missing_truth: set[str] = field(default_factory=set)
    warnings: dict[tuple[str, Key], str] = field(default_factory=dict)
    maps: dict[tuple[str, Key, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def score_blocks(plan: Plan, *, progress: bool) -> tuple[dict[str, Table], dict[str, Any]]:
    """Score all blocks.

    Returns
    -------
    tuple of dict
        Sums by label, with keys (kind/name, statistic); and counts: the number of fields scored and
        of fields without truth, the variables whose truth has missing values, and error maps.
    """
    tables = {
        label: Table(int(plan.groups.max(initial=0)) + 1, plan.groups.shape[1], plan.one_by_one)
        for label in plan.forecasts
    }
    counts: dict[str, Any] = {"scored": 0, "without_truth": 0, "missing_truth": set(), "maps": {}}
    warned: set[tuple[str, Key]] = set()
    blocks = list(blocks_of(plan))
    truth = plan.truth.fields
    unchanged = Unchanged(
        *(f.ds for f in plan.forecasts.values()),
        truth.surface,
        truth.atmos,
        *plan.truth.totals.values(),
        opened=truth.layout.source,
    )
    with progress_bar(
        total=sum(b.fields for b in blocks),
        label="evaluate",
        unit="field",
        shown=progress,
        after=2.0,
    ) as meter:
        results = in_order(_score, plan, blocks, name="xaurora-evaluate")
        for block, found in zip(blocks, results, strict=True):
            unchanged.check()
            for label, key, name, i, k, means, share in found.means:
                tables[label].add(
                    ("/".join(key), name),
                    STATISTICS[name].dims,
                    int(plan.groups[i, k]),
                    k,
                    means,
                    share,
                )
            for (label, key, k), parts in found.maps.items():
                _add(counts["maps"], (label, key, k), parts)
            counts["scored"] += found.scored
            counts["without_truth"] += found.without_truth
            counts["missing_truth"] |= found.missing_truth
            for about, text in found.warnings.items():
                if about not in warned:
                    warned.add(about)
                    logger.warning("%s", text)
            meter.update(block.fields)
    return tables, counts


def _score(plan: Plan, block: Block) -> BlockResult:
    """Compute the area means of one block, for all jobs that need its variables."""
    found = BlockResult([])
    read = _Reader(plan, block)
    for number in block.jobs:
        _score_job(plan, plan.jobs[number], read, found)
    return found


class _Reader:
    """Reads the variables of a block, each of them once."""

    def __init__(self, plan: Plan, block: Block) -> None:
        self.plan, self.init, self.lead = plan, block.init, block.lead
        first = plan.first
        self.valid = first.init_times[self.init][:, None] + first.leads[self.lead][None]
        self._forecasts: dict[Given, np.ndarray] = {}
        self._truths: dict[Given, dict[int, np.ndarray]] = {}

    def forecast(self, label: str, name: str, levels: tuple[float, ...]) -> np.ndarray:
        """Return a variable of a forecast, as stored."""
        key = label, name, levels
        if key not in self._forecasts:
            forecast = self.plan.forecasts[label]
            self._forecasts[key] = forecast.block(name, self.init, self.lead, levels)
        return self._forecasts[key]

    def truth(self, part: Key, levels: tuple[float, ...]) -> dict[int, np.ndarray]:
        """Return the fields of a truth by valid time in ns."""
        key = part, levels
        if key not in self._truths:
            self._truths[key] = self.plan.truth.read(*part, self.valid.ravel(), levels)
        return self._truths[key]


def _score_job(plan: Plan, job: Job, read: _Reader, found: BlockResult) -> None:
    init, lead = read.init, read.lead
    times = read.valid.astype("datetime64[ns]").astype(np.int64)
    truths = [read.truth(part, job.levels) for part in job.parts]
    blocks = {label: _ForecastBlock(label, job, read) for label in plan.forecasts}
    for i, k in np.ndindex(*times.shape):
        time = int(times[i, k])
        if job.whole is not None and lead.start + k not in job.whole:
            continue  # the accumulation period is not complete
        if any(time not in truth for truth in truths):
            found.without_truth += 1
            continue
        found.scored += 1
        row, column = init.start + i, lead.start + k
        ys = [truth[time] for truth in truths]
        if any(not np.isfinite(y).all() for y in ys):
            found.missing_truth.add(job.key[1])
        samples = {
            label: _sample(
                plan,
                job,
                label,
                block,
                (i, k),
                (row, column),
                (ys, time),
                found.warnings,
            )
            for label, block in blocks.items()
            if block.there
        }
        if plan.skipna or plan.truth.masked:
            _mask(list(samples.values()))
        for label, sample in samples.items():
            if plan.maps and sample.partner is None:
                here = (
                    np.isfinite(sample.error)
                    if sample.valid is None
                    else np.isfinite(sample.error) & sample.valid
                )
                _add(
                    found.maps,
                    (label, job.key, column),
                    (np.where(here, sample.error, 0.0), here.astype(np.float64)),
                )
            for name in job.statistics:
                if not STATISTICS[name].applies(sample):
                    continue
                means, share = STATISTICS[name].means(sample, plan.areas)
                found.means.append((label, job.key, name, row, column, means, share))


def _add(maps: dict[Any, Any], key: Given, parts: tuple[np.ndarray, np.ndarray]) -> None:
    if key in maps:
        for total, part in zip(maps[key], parts, strict=True):
            total += part
    else:
        maps[key] = parts


class _ForecastBlock:
    """Fields of one forecast for one job, with their parameters, quantiles and probabilities."""

    def __init__(self, label: str, job: Job, read: _Reader) -> None:
        forecast = read.plan.forecasts[label]
        self.there = all(part in forecast.fields for part in job.parts)
        if not self.there:
            return

        def values(name: str) -> np.ndarray:
            return read.forecast(label, name, job.levels)

        self.items = [forecast.fields[part] for part in job.parts]
        self.raw = [values(item.source) for item in self.items]
        self.params: dict[str, np.ndarray] = {}
        self.beside: dict[str, np.ndarray] = {}
        law = read.plan.laws.get((label, job.key))
        source = self.items[0].source
        if (
            law is not None
            and not isinstance(law, Deterministic)
            and not forecast.has_members(source)
            and len(job.parts) == 1
        ):
            self.params = {p: values(f"{source}_{p}") for p in law.parameters}
        for suffix in ("quantile", "probability") if len(job.parts) == 1 else ():
            if f"{source}_{suffix}" in forecast.ds:
                self.beside[suffix] = values(f"{source}_{suffix}")


def _sample(
    plan: Plan,
    job: Job,
    label: str,
    block: _ForecastBlock,
    at: tuple[int, int],
    place: tuple[int, int],
    truth: tuple[list[np.ndarray], int],
    warnings: dict[tuple[str, Key], str],
) -> Sample:
    """Return a forecast and its truth at one init time and lead.

    ``at`` and ``place`` are positions in the block and in the forecast, ``truth`` the fields and
    the position of their time. What is implausible is added to ``warnings``.
    """
    (ys, time), parts, forecast = truth, [], plan.forecasts[label]
    stamp = (
        forecast.init_times[place[0]].astype("datetime64[s]").astype(int),
        forecast.leads[place[1]] // np.timedelta64(1, "s"),
    )
    for part, raw, mine, own in zip(job.parts, block.raw, block.items, ys, strict=True):
        item = plan.item(part)  # all forecasts are scored in the same units
        rain = item.variable.accumulated
        y = plan.truth.like(*part, own, item)
        values = _like(raw[at], mine, item)
        when = np.datetime_as_string(np.datetime64(time, "ns"), unit="m")
        if rain:
            check_rain(values, item, "forecast", forecast, when)
            check_rain(y, item, "truth", forecast, when)
        for whose, found in (("truth", y), ("forecast" if label == "forecast" else label, values)):
            if not rain and (whose, part) not in warnings:
                text = beyond_extremes(found, item, job.levels, whose, when)
                warnings.update({(whose, part): text} if text else {})
        if place[0] == 0:
            check_size(values, y, item, label)
        parts.append(
            Sample(
                plan.settings,
                values,
                forecast.has_members(mine.source),
                y,
                scale=item.scale,
                offset=item.offset,
                mm=1e3 * item.scale if rain else 0.0,
                hours=forecast.hours if rain else 0,
                number=tuple(map(int, stamp)),
            )
        )
    sample = parts[0]
    if len(parts) > 1:
        sample.partner = parts[1]
        return sample
    mine, item = block.items[0], plan.item(job.key)
    sample.law = plan.laws.get((label, job.key))
    sample.lost = sample.law is None and "distribution" in forecast.ds[mine.source].attrs
    sample.params = {name: values[at].astype(np.float64) for name, values in block.params.items()}
    if "quantile" in block.beside:
        levels = forecast.ds["quantile"].values
        quantile_units = own_units(forecast.ds[f"{mine.source}_quantile"], mine)
        sample.quantiles = {
            float(q): _like(v.astype(np.float64), quantile_units, item)
            for q, v in zip(levels, block.beside["quantile"][at], strict=True)
        }
    if "probability" in block.beside:
        coordinate = forecast.ds["threshold"]
        to_mm = alignment.to_mm(coordinate)
        sample.probabilities = {
            float(t) * to_mm: v.astype(np.float64)
            for t, v in zip(coordinate.values, block.beside["probability"][at], strict=True)
        }
    if plan.normals is not None:
        if job.normals:
            sample.normal = (
                plan.normals.normal(job.key, time, job.levels) - item.offset
            ) / item.scale
        if job.normal_quantiles:
            sample.normal_quantiles = (
                plan.normals.quantiles(job.key, time, job.levels) - item.offset
            ) / item.scale
        if job.seeps:
            sample.seeps = plan.normals.seeps(forecast.hours, time)
    return sample


def _like(values: np.ndarray, mine: Field, item: Field) -> np.ndarray:
    """Convert values of one forecast to the units of the scores.

    They are returned unchanged if the units are the same.
    """
    if (mine.scale, mine.offset) == (item.scale, item.offset):
        return values
    return (
        values.astype(np.float64) * (mine.scale / item.scale)
        + (mine.offset - item.offset) / item.scale
    )


def _mask(samples: list[Sample]) -> None:
    """Set one mask for all samples: points where the truth and all inputs have values.

    The inputs are every forecast with its parameters, quantiles and probabilities, and the
    climatological mean.
    """
    if not samples:
        return
    valid = np.ones(samples[0].y.shape, bool)
    for s in [*samples, *(s.partner for s in samples if s.partner is not None)]:
        valid &= np.isfinite(s.y)
        valid &= np.isfinite(s.members).all(axis=0) if s.ensemble else np.isfinite(s.raw)
        for other in (
            s.normal,
            *s.params.values(),
            *s.quantiles.values(),
            *s.probabilities.values(),
        ):
            if other is not None:
                valid &= np.isfinite(other)
    for s in samples:
        s.valid = None if valid.all() else valid

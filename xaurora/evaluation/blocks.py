"""What is scored, and the blocks of init times and lead times in which it is read.

A block is made of whole chunks of the forecast, and serves all jobs that need its variables, so
that each chunk is read once. Blocks follow each other in the order of their valid times, so that
few truths have to be kept until others need them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from xaurora.distributions import Family
from xaurora.evaluation.aggregation import AreaMeans
from xaurora.evaluation.alignment import Forecast
from xaurora.evaluation.climatology_fields import ClimatologyFields
from xaurora.evaluation.sample import Settings
from xaurora.evaluation.truths import Truth
from xaurora.fields.found import Field

Key = tuple[str, str]

_BLOCK = 64 * 1024**2  # bytes of one variable to read at once, if chunks allow it
_LARGEST = 512 * 1024**2  # larger blocks are cut, although their chunks are then read again
_SMALL = 4 * 1024**2  # bytes to read at once at least, if the data have that many
_MOST_FIELDS = 512  # in a block, because each field produces some hundred numbers


@dataclass(frozen=True)
class Job:
    """One variable to score, or the two components of a wind.

    Parameters
    ----------
    key : (kind, name)
    parts : tuple of (kind, name)
        The variable itself, or the two components.
    levels : tuple of float
        Levels that forecast and truth share.
    statistics : tuple of str
    normals : bool
        Whether statistics need the climatological mean.
    normal_quantiles : bool
        Whether statistics need climatological quantiles.
    seeps : bool
        Whether statistics need the SEEPS fields of the climatology.
    whole : frozenset of int, optional
        Indices of lead times with a complete accumulation period; None for all.
    """

    key: Key
    parts: tuple[Key, ...]
    levels: tuple[float, ...]
    statistics: tuple[str, ...]
    normals: bool = False
    normal_quantiles: bool = False
    seeps: bool = False
    whole: frozenset[int] | None = None


@dataclass
class Plan:
    """Everything that scoring needs; it can be pickled for another process.

    Parameters
    ----------
    forecasts : dict of Forecast
        Forecasts by label, with the same init times and lead times.
    truth : Truth
    normals : ClimatologyFields, optional
    jobs : list of Job
    areas : AreaMeans
    settings : Settings
    laws : dict
        (label, key) → distribution family, if the forecast has one.
    skipna : bool
        Whether to score only points with values.
    groups : ndarray of int, ``(init, lead)``
        Group of each field.
    one_by_one : bool
        Whether every init time is a group of its own.
    maps : bool
        Whether to accumulate errors at every grid point.
    """

    forecasts: dict[str, Forecast]
    truth: Truth
    normals: ClimatologyFields | None
    jobs: list[Job]
    areas: AreaMeans
    settings: Settings
    laws: dict[tuple[str, Key], Family]
    skipna: bool
    groups: np.ndarray
    one_by_one: bool
    maps: bool = False

    @property
    def first(self) -> Forecast:
        """First forecast, whose init times, lead times and grid are those of all."""
        return next(iter(self.forecasts.values()))

    def item(self, key: Key) -> Field:
        """Return the field that gives the scores their name and units.

        It is that of the first forecast that has the variable.
        """
        return next(f.fields[key] for f in self.forecasts.values() if key in f.fields)


@dataclass(frozen=True)
class Block:
    """Init times and leads that are read at once, and the jobs that need their variables."""

    jobs: tuple[int, ...]
    init: slice
    lead: slice

    @property
    def fields(self) -> int:
        """Number of fields to score."""
        shape = self.init.stop - self.init.start, self.lead.stop - self.lead.start
        return len(self.jobs) * shape[0] * shape[1]


def blocks_of(plan: Plan) -> Iterator[Block]:
    """Yield the blocks, for variable after variable, in the order of their last valid time."""
    count = len(plan.first.init_times), len(plan.first.leads)
    for numbers in _sharing(plan.jobs):
        inits, leads = _lengths(plan, numbers)
        blocks = [
            Block(numbers, slice(i, min(i + inits, count[0])), slice(k, min(k + leads, count[1])))
            for i in range(0, count[0], inits)
            for k in range(0, count[1], leads)
        ]
        yield from sorted(
            blocks,
            key=lambda b: (
                plan.first.init_times[b.init.stop - 1] + plan.first.leads[b.lead.stop - 1]
            ),
        )


def _sharing(jobs: list[Job]) -> list[tuple[int, ...]]:
    """Return groups of jobs that share a variable, such as a wind and its components."""
    groups: list[tuple[set[Key], list[int]]] = []
    for number, job in enumerate(jobs):
        parts, numbers = set(job.parts), [number]
        for group in [g for g in groups if g[0] & parts]:
            groups.remove(group)
            parts, numbers = parts | group[0], group[1] + numbers
        groups.append((parts, numbers))
    return sorted(tuple(sorted(numbers)) for _, numbers in groups)


def _lengths(plan: Plan, numbers: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of init times and lead times to read at once.

    They are whole chunks of all forecasts, unless these are chunks of small areas and many times.
    """
    parts = {part for number in numbers for part in plan.jobs[number].parts}
    read = [
        (f, f.fields[part].source)
        for f in plan.forecasts.values()
        for part in parts
        if part in f.fields
    ]
    count = len(plan.first.init_times), len(plan.first.leads)
    field_size = max(f.field_size(name) for f, name in read)
    most = min(max(_BLOCK // field_size, 1), _MOST_FIELDS)
    chunks = np.lcm.reduce([f.chunk(name) for f, name in read])
    leads = min(max(most // chunks[1], 1) * chunks[1], count[1])
    few = min(max(_SMALL // field_size, 1), _MOST_FIELDS) // leads
    inits = min(max(min(most // leads, few) // chunks[0], 1) * chunks[0], count[0])
    largest = max(_LARGEST // field_size, max(np.prod(f.chunk(name)) for f, name in read))
    if inits * leads > largest:
        leads = min(leads, largest)
        inits = max(largest // leads, 1)
    return int(inits), int(leads)

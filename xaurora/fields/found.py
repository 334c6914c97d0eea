"""What recognition finds in a Dataset: axes, fields and problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xaurora.errors import (
    XauroraError,
)
from xaurora.fields import variables
from xaurora.fields.grid import lattice as grids

LEVEL_UNITS = {"hPa": 1.0, "millibar": 1.0, "mbar": 1.0, "mb": 1.0, "Pa": 0.01}


@dataclass(frozen=True)
class Axis:
    """One axis of the data: the name of its coordinate and the dimension that it runs along."""

    name: str
    dim: str


@dataclass(frozen=True)
class Field:
    """One recognised variable: ``canonical = scale · value + offset``."""

    variable: variables.Variable
    source: str
    scale: float
    offset: float
    dtype: np.dtype
    dims: tuple[str, ...]
    attrs: dict[str, Any]

    @property
    def converted(self) -> bool:
        """Whether canonical values differ from the user's, apart from the dtype."""
        return (self.scale, self.offset) != (1.0, 0.0)


@dataclass(frozen=True)
class PeriodBounds:
    """Bounds of the time coordinate: hours from each time to the start and end of its period."""

    name: str
    start: float
    end: float

    @property
    def hours(self) -> float:
        """Length of the period."""
        return self.end - self.start


@dataclass
class Recognition:
    """Recognised axes and variables of a Dataset, its problems, and notes on it."""

    axes: dict[str, Axis] = field(default_factory=dict)
    fields: dict[tuple[str, str], Field] = field(default_factory=dict)
    grid: grids.Grid | None = None
    levels: tuple[float, ...] = ()
    times: np.ndarray | None = None
    bounds: PeriodBounds | None = None
    problems: list[XauroraError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unrecognised: list[str] = field(default_factory=list)
    unusable: dict[str, XauroraError] = field(default_factory=dict)
    """Amounts that only some targets need, and why they cannot be used."""

    def attempt(self, step: Callable[[], None], about: tuple[str, str] | None = None) -> None:
        """Run one step and store its error instead of raising it, so that all are collected."""
        try:
            step()
        except XauroraError as error:
            error.about = about
            self.problems.append(error)

    def raise_first(self) -> None:
        """Raise the first problem, with the number of further ones."""
        if not self.problems:
            return
        first = self.problems[0]
        if len(self.problems) > 1:
            more = f" ({len(self.problems) - 1} more: ds.aurora.check() lists them)"
            raise type(first)(first.message + more, fix=first.fix)
        raise first

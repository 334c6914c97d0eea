"""Names for the types of arguments that people type."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

Given: TypeAlias = Any
"""What a user passed, before it is checked."""

TimeLike: TypeAlias = "str | np.datetime64 | datetime.datetime | xr.DataArray"
TimesLike: TypeAlias = "TimeLike | Sequence[TimeLike] | slice | None"
LeadLike: TypeAlias = "str | np.timedelta64 | datetime.timedelta | int"
LeadsLike: TypeAlias = "LeadLike | Sequence[LeadLike] | xr.DataArray"

PeriodLike: TypeAlias = "str | int | slice | tuple[str | None, str | None] | None"
"""A slice, a year, or a pair of dates."""

Chunks: TypeAlias = "dict[str, int] | int | str | None"
"""As in :func:`xarray.open_dataset`."""

GridLike: TypeAlias = "xr.Dataset | xr.DataArray | float"
"""Data whose latitudes and longitudes are taken, or the spacing of a global grid in degrees."""

AnyAxes: TypeAlias = Any
"""Matplotlib axes, an array of them, or None to make new ones."""

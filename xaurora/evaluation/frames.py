"""The axes of scores: times and leads in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xaurora.errors import OptionError

BY = ("init_time", "season", "month", "hour", "year")


@dataclass
class VariableInfo:
    """Description of one variable of the scores.

    Parameters
    ----------
    name : str
        Name in the scores.
    units, long_name : str
    canonical : str
        ``kind/name`` in the table of variables, which matches scores with different names.
    levels : tuple of float
    """

    name: str
    units: str
    long_name: str
    canonical: str
    levels: tuple[float, ...] = ()


@dataclass
class Frame:
    """Everything about the scores except the sums.

    Parameters
    ----------
    variables : dict
        Key of the sums → :class:`VariableInfo`.
    regions : list of str
    init_times, leads : ndarray
    labels : dict
        Label of each metric → its name.
    by : tuple of str
        Time dims that are kept separate.
    lead_bins : dict, optional
        Label → first and last lead time.
    convention : str
    coords : dict
        Coordinates of extra dims.
    attrs : dict
    """

    variables: dict[str, VariableInfo]
    regions: list[str]
    init_times: np.ndarray
    leads: np.ndarray
    labels: dict[str, str]
    by: tuple[str, ...]
    lead_bins: dict[str, np.ndarray] | None
    convention: str
    coords: dict[str, Any]
    attrs: dict[str, Any]


def groups_of(
    init_times: np.ndarray, leads: np.ndarray, by: Sequence[str]
) -> tuple[np.ndarray, list[tuple[Any, ...]]]:
    """Return the group of each field, ``(init, lead)``, and the sorted keys of the groups.

    The keys are properties of the valid time, or the init time itself.
    """
    import pandas as pd

    valid = init_times[:, None] + leads[None]
    index = pd.DatetimeIndex(valid.ravel())
    columns: list[Any] = []
    for name in by:
        if name == "init_time":
            columns.append(np.repeat(init_times, len(leads)).tolist())
        elif name == "season":
            columns.append([("DJF", "MAM", "JJA", "SON")[m % 12 // 3] for m in index.month])
        else:
            columns.append([int(v) for v in getattr(index, name)])
    keys = list(zip(*columns, strict=True)) if columns else [()] * len(index)
    seasons = {"DJF": 0, "MAM": 1, "JJA": 2, "SON": 3}
    values = sorted(set(keys), key=lambda key: tuple(seasons.get(v, v) for v in key))
    place = {key: i for i, key in enumerate(values)}
    return np.array([place[key] for key in keys]).reshape(valid.shape), values


def lead_groups(
    leads: np.ndarray, bins: Mapping[str, Any] | None
) -> tuple[np.ndarray, dict[str, np.ndarray] | None]:
    """Return the bin of each lead time, −1 for none, and the ends of each bin.

    Raises
    ------
    OptionError
        If the bins are not a dict of (first, last), hold no lead time, or overlap.
    """
    if bins is None:
        return np.arange(len(leads)), None
    import pandas as pd

    if not isinstance(bins, Mapping) or not bins:
        raise OptionError(
            f"lead_bins must be a dict of label → (first, last) lead time, got {bins!r}.",
            fix="lead_bins={'day 1': ('6h', '24h')}",
        )
    out, found = np.full(len(leads), -1), {}
    for i, (label, ends) in enumerate(bins.items()):
        try:
            first, last = (pd.Timedelta(e).to_timedelta64() for e in ends)
        except (ValueError, TypeError) as why:
            raise OptionError(
                f"lead_bins: {label!r} must be a pair of durations, got {ends!r}.",
                fix="lead_bins={'day 1': ('6h', '24h')}",
            ) from why
        inside = (leads >= first) & (leads <= last)
        if not inside.any():
            raise OptionError(
                f"lead_bins: no lead time lies in {label!r}, {ends[0]} to {ends[1]}.",
                fix="choose bins that contain some of the lead times"
                f" {', '.join(f'{h:g}h' for h in leads / np.timedelta64(1, 'h'))}",
            )
        if (out[inside] >= 0).any():
            raise OptionError(
                f"lead_bins: {label!r} overlaps another bin.",
                fix="put every lead time into at most one bin",
            )
        out[inside] = i
        found[str(label)] = np.array([first, last]).astype("timedelta64[ns]")
    return out, found

"""Periods of accumulated and mean values, from attributes, names or the spacing of times."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from xaurora.errors import LeadTimeError, OptionError, TimeError
from xaurora.utils.types import Given

HOUR = np.timedelta64(1, "h")
_CELL_METHODS = re.compile(
    r"time:\s*(?:sum|mean)\s*\(\s*interval:\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*\)"
)
_UNITS = {
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 60),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 1),
    **dict.fromkeys(("d", "day", "days"), 1440),
}  # minutes
_STEP_RANGE = re.compile(r"(\d+)-(\d+)")  # hours of a GRIB total
_FREQUENCY = re.compile(r"(hour|day)_(\d+)")  # of CESM
_NAME = re.compile(r"(?:_|^tp_?)(\d+)_?(?:h|hr|hour)s?$")


class TimeIndex:
    """Increasing times, of which the positions of others are looked up.

    A dict of a million times would take seconds to make and hundreds of megabytes.

    Examples
    --------
    >>> index = TimeIndex(np.array(["2020-01-01T00", "2020-01-01T06"], "datetime64[h]"))
    >>> index.locate(np.array(["2020-01-01T06", "2020-01-01T12"], "datetime64[h]"))
    array([ 1, -1])
    """

    def __init__(self, times: np.ndarray) -> None:
        self._stamps = stamps = _stamps(times)
        # Positions among evenly spaced times follow from the times alone, ten times as fast.
        step = int(stamps[1] - stamps[0]) if len(stamps) > 1 else 0
        even = len(stamps) > 1 and stamps[-1] - stamps[0] == step * (len(stamps) - 1)
        self._step = step if even and bool((np.diff(stamps) == step).all()) else 0

    def __getitem__(self, stamp: int) -> int:
        """Return the position of a time in ns since 1970."""
        place = int(np.searchsorted(self._stamps, stamp))
        if place == len(self._stamps) or self._stamps[place] != stamp:
            raise KeyError(stamp)
        return place

    def __contains__(self, stamp: int) -> bool:
        place = int(np.searchsorted(self._stamps, stamp))
        return place < len(self._stamps) and bool(self._stamps[place] == stamp)

    def locate(self, times: np.ndarray | np.datetime64) -> np.ndarray:
        """Return the positions of times, -1 where they are missing."""
        wanted = _stamps(times)
        if not len(self._stamps):
            return np.full(wanted.shape, -1)
        if self._step:
            places, rest = np.divmod(wanted - self._stamps[0], self._step)
            return np.where((rest == 0) & (places >= 0) & (places < len(self._stamps)), places, -1)
        places = np.searchsorted(self._stamps, wanted)
        places = np.minimum(places, len(self._stamps) - 1)
        return np.where(self._stamps[places] == wanted, places, -1)

    @property
    def step(self) -> np.timedelta64:
        """Distance of evenly spaced times, 0 for others."""
        return np.timedelta64(self._step, "ns")

    def has(self, times: np.ndarray | np.datetime64) -> np.ndarray:
        """Return which times are there."""
        return self.locate(times) >= 0


def _stamps(times: np.ndarray | np.datetime64) -> np.ndarray:
    return np.asarray(times, "datetime64[ns]").astype(np.int64)


def span(hours: float) -> np.timedelta64:
    """Return a number of hours, which may be half an hour, as a timedelta."""
    return np.timedelta64(round(hours * 60), "m")


def cell_methods(hours: float) -> str:
    """Return the CF attribute ``cell_methods`` of a total over ``hours``."""
    if hours != int(hours):
        return f"time: sum (interval: {round(hours * 60)} minutes)"
    hours = int(hours)
    return f"time: sum (interval: {hours} hour{'s' if hours != 1 else ''})"


def declared_hours(name: str, attrs: dict[str, Any]) -> float | None:
    """Return the period in hours that the attributes or the name state, or None.

    Whole hours are integers.

    Examples
    --------
    >>> declared_hours("total_precipitation_6hr", {}), declared_hours("tp", {})
    (6, None)
    >>> declared_hours("tp", {"cell_methods": "time: sum (interval: 6 hours)"})
    6
    """
    match = _CELL_METHODS.search(str(attrs.get("cell_methods", "")))
    if match and match.group(2) in _UNITS:
        hours = float(match.group(1)) * _UNITS[match.group(2)] / 60.0
        return int(hours) if hours == int(hours) else hours
    if match := _STEP_RANGE.fullmatch(str(attrs.get("GRIB_stepRange", ""))):
        return int(match.group(2)) - int(match.group(1)) or None
    if match := _FREQUENCY.fullmatch(str(attrs.get("time_period_freq", ""))):
        return int(match.group(2)) * (24 if match.group(1) == "day" else 1)
    if match := _NAME.search(name):
        return int(match.group(1))
    return None


def without_period(name: str) -> str:
    """Return a name without its period.

    Examples
    --------
    >>> without_period("total_precipitation_24hr")
    'total_precipitation'
    """
    match = _NAME.search(name)
    return name[: match.start()].rstrip("_") or "tp" if match else name


def spacing_hours(times: np.ndarray) -> float:
    """Return the most frequent step between times, in hours.

    Raises
    ------
    TimeError
        There are fewer than two times.
    """
    if len(times) < 2:
        raise TimeError(
            f"there is {len(times)} time, but at least two are required.",
            fix="open more than one time",
        )
    steps = np.diff(times.astype("datetime64[ns]")) / HOUR
    values, counts = np.unique(steps, return_counts=True)
    return float(values[np.argmax(counts)])


def hours_of(value: Given) -> int:
    """Return a duration as a whole number of hours.

    Raises
    ------
    LeadTimeError
        It is not a positive whole number of hours.
    """
    import pandas as pd

    try:
        # pandas deprecates the lower-case day.
        text = re.sub(r"(?<=\d)\s*d$", "D", value.strip()) if isinstance(value, str) else value
        hours = pd.Timedelta(text) / pd.Timedelta(hours=1)
    except (ValueError, TypeError):
        hours = float("nan")
    if not (np.isfinite(hours) and hours > 0 and float(hours).is_integer()):
        raise LeadTimeError(
            f"{value!r} is not a positive whole number of hours.",
            fix="give it as '6h', '24h' or '5 days'",
        )
    return int(hours)


def bounds(name: str, value: Given) -> tuple[np.datetime64, np.datetime64]:
    """Return the start and end, both included, of a slice, a year or date, or a pair of them.

    Raises
    ------
    OptionError
        It is none of these.

    Examples
    --------
    >>> [str(t)[:19] for t in bounds("train", ("2016", "2017-06"))]
    ['2016-01-01T00:00:00', '2017-06-30T23:59:59']
    """
    import pandas as pd

    if isinstance(value, slice):
        pair = (value.start, value.stop)
    elif isinstance(value, tuple | list):
        if len(value) != 2:
            raise OptionError(
                f"{name}={value!r} must be a pair of start and end.", fix=f"{name}=('2016', '2023')"
            )
        pair = (value[0], value[1])
    else:
        pair = (value, value)
    try:
        start = pd.Timestamp.min if pair[0] is None else pd.Period(str(pair[0])).start_time
        end = pd.Timestamp.max if pair[1] is None else pd.Period(str(pair[1])).end_time
    except ValueError:
        raise OptionError(
            f"{name}={value!r} must be a slice, a year or a pair of dates.",
            fix=f"{name}=('2016', '2023')",
        ) from None
    return start.to_datetime64().astype("datetime64[ns]"), end.to_datetime64().astype(
        "datetime64[ns]"
    )

"""What a value of precipitation stands for: the period that attributes, names or spacing state."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from xaurora.errors import LeadTimeError, OptionError, TimeError

HOUR = np.timedelta64(1, "h")
_CELL_METHODS = re.compile(
    r"time:\s*(?:sum|mean)\s*\(\s*interval:\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*\)"
)
_UNITS = {
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 60),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 1),
    **dict.fromkeys(("d", "day", "days"), 1440),
}  # minutes
_NAME = re.compile(r"(?:_|^tp_?)(\d+)_?(?:h|hr|hour)s?$")


def span(hours: float) -> np.timedelta64:
    """A duration in hours, which may be half an hour."""
    return np.timedelta64(round(hours * 60), "m")


def cell_methods(hours: float) -> str:
    """The CF attribute of a total over ``hours``."""
    if hours != int(hours):
        return f"time: sum (interval: {round(hours * 60)} minutes)"
    hours = int(hours)
    return f"time: sum (interval: {hours} hour{'s' if hours != 1 else ''})"


def declared_hours(name: str, attrs: dict[str, Any]) -> float | None:
    """The period that attributes or name state, in hours; None when they say nothing. Whole hours
    are whole numbers.

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
    if match := _NAME.search(name):
        return int(match.group(1))
    return None


def without_period(name: str) -> str:
    """A name without the period at its end: ``total_precipitation_24hr`` → ``total_precipitation``."""
    match = _NAME.search(name)
    return name[: match.start()].rstrip("_") or "tp" if match else name


def spacing_hours(times: np.ndarray) -> float:
    """The commonest step between times, in hours.

    Raises
    ------
    TimeError
        There are fewer than two times.
    """
    if len(times) < 2:
        raise TimeError(
            f"there is {len(times)} time, and at least two are needed.",
            fix="open more than one time",
        )
    steps = np.diff(times.astype("datetime64[ns]")) / HOUR
    values, counts = np.unique(steps, return_counts=True)
    return float(values[np.argmax(counts)])


def hours_of(value: Any) -> int:
    """A duration as whole hours.

    Raises
    ------
    LeadTimeError
        It is none.
    """
    import pandas as pd

    try:
        hours = pd.Timedelta(value) / pd.Timedelta(hours=1)
    except (ValueError, TypeError):
        hours = float("nan")
    if not (np.isfinite(hours) and hours > 0 and float(hours).is_integer()):
        raise LeadTimeError(
            f"{value!r} is no positive whole number of hours.", fix="'6h', '24h' or '5 days'"
        )
    return int(hours)


def bounds(name: str, value: Any) -> tuple[np.datetime64, np.datetime64]:
    """Start and end, both included, of a slice, a year or date, or a pair of them.

    Raises
    ------
    OptionError
        It is none of these.

    Examples
    --------
    >>> bounds("train", ("2016", "2017-06"))
    (np.datetime64('2016-01-01T00:00:00.000000000'), np.datetime64('2017-06-30T23:59:59.999999999'))
    """
    import pandas as pd

    if isinstance(value, slice):
        pair = (value.start, value.stop)
    elif isinstance(value, tuple | list):
        if len(value) != 2:
            raise OptionError(
                f"{name}={value!r} is not a pair of start and end.", fix=f"{name}=('2016', '2023')"
            )
        pair = (value[0], value[1])
    else:
        pair = (value, value)
    try:
        start = pd.Timestamp.min if pair[0] is None else pd.Period(str(pair[0])).start_time
        end = pd.Timestamp.max if pair[1] is None else pd.Period(str(pair[1])).end_time
    except ValueError:
        raise OptionError(
            f"{name}={value!r} is no slice, year or pair of dates.", fix=f"{name}=('2016', '2023')"
        ) from None
    return start.to_datetime64().astype("datetime64[ns]"), end.to_datetime64().astype(
        "datetime64[ns]"
    )

"""Checks of option values. Each returns the value in its plain Python form, or raises."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeGuard

from xaurora.errors import OptionError
from xaurora.utils.types import Given

Check: TypeAlias = Callable[[str, Any], Any]
"""Takes the option's name and value; returns the value or raises :class:`OptionError`."""


def is_number(value: object) -> bool:
    """Return whether a value is a finite real number."""
    return (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and math.isfinite(float(value))
    )


def is_integer(value: object, least: int) -> TypeGuard[int]:
    """Return whether a value is a whole number of at least ``least``; 2.0 and NumPy's count."""
    return is_number(value) and float(value).is_integer() and value >= least  # type: ignore


def integer(least: int = 1, *, example: int | None = None) -> Check:
    """Return a check for integers of at least ``least``."""
    what = {0: "a non-negative integer", 1: "a positive integer"}.get(
        least, f"an integer of at least {least}"
    )

    def check(name: str, value: Given) -> int:
        if not is_integer(value, least):
            raise OptionError(
                f"{name} must be {what}, got {value!r}.",
                fix=f"{name}={max(least, 1) if example is None else example}",
            )
        return int(value)

    return check


def positive(example: float) -> Check:
    """Return a check for positive numbers."""

    def check(name: str, value: Given) -> float:
        if not (is_number(value) and value > 0):
            raise OptionError(
                f"{name} must be a positive number, got {value!r}.", fix=f"{name}={example}"
            )
        return float(value)

    return check


def non_negative(name: str, value: Given) -> float:
    """Check that a number is not negative."""
    if not (is_number(value) and value >= 0):
        raise OptionError(
            f"{name} must not be negative, got {value!r}.", fix=f"{name}=0 turns it off"
        )
    return float(value)


def share(example: float, *, ends: str = "[]") -> Check:
    """Return a check for numbers between 0 and 1.

    Parameters
    ----------
    example : float
        A good value, for the message.
    ends : {"[]", "[)", "()"}
        Which of the two ends are allowed, as in interval notation.
    """

    def check(name: str, value: Given) -> float:
        words = {
            "[]": "between 0 and 1",
            "[)": "at least 0 and less than 1",
            "()": "greater than 0 and less than 1",
        }
        low = is_number(value) and (value >= 0 if ends[0] == "[" else value > 0)
        if not (low and (value <= 1 if ends[1] == "]" else value < 1)):
            raise OptionError(
                f"{name} must be {words[ends]}, got {value!r}.", fix=f"{name}={example}"
            )
        return float(value)

    return check


def one_of(*valid: str) -> Check:
    """Return a check for one of several words."""

    def check(name: str, value: Given) -> str:
        if not isinstance(value, str) or value not in valid:
            raise OptionError(
                f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}.",
                fix=f"{name}={valid[0]!r}",
            )
        return value

    return check


def boolean(name: str, value: Given) -> bool:
    """Check for True or False."""
    if value not in (True, False):
        raise OptionError(f"{name} must be True or False, got {value!r}.", fix=f"{name}=True")
    return bool(value)


def boolean_or(*words: str) -> Check:
    """Return a check for True, False, or one of several words."""

    def check(name: str, value: Given) -> bool | str:
        if isinstance(value, str) and value in words:
            return value
        if value not in (True, False):
            expected = ", ".join(["True", "False", *map(repr, words)])
            raise OptionError(
                f"{name} must be one of {expected}, got {value!r}.", fix=f"{name}={words[0]!r}"
            )
        return bool(value)

    return check


def optional(check: Check) -> Check:
    """Return a check that also accepts None."""
    return lambda name, value: None if value is None else check(name, value)


def path(example: str) -> Check:
    """Return a check for a path, as a string."""

    def check(name: str, value: Given) -> str:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise OptionError(f"{name} must be a path, got {value!r}.", fix=f"{name}={example!r}")
        return os.fspath(value)

    return check


def byte_count(name: str, value: Given) -> float:
    """Check for an amount of memory, and return its bytes.

    Raises
    ------
    OptionError
        It is not an amount.

    Examples
    --------
    >>> byte_count("size", "1.5 GB"), byte_count("size", "2 MiB"), byte_count("size", 1e6)
    (1500000000.0, 2097152.0, 1000000.0)
    """
    if is_number(value) and value > 0:
        return float(value)
    parts = (
        re.fullmatch(r"\s*([0-9.]+)\s*([kMGT]i?)?B\s*", value) if isinstance(value, str) else None
    )
    if parts is not None:
        prefix = parts[2] or ""
        base = 1024 if prefix.endswith("i") else 1000
        with contextlib.suppress(ValueError):
            found = float(parts[1]) * base ** " kMGT".index(prefix[:1] or " ")
            if found > 0:
                return found
    raise OptionError(f"{name} must be an amount of bytes, got {value!r}.", fix=f"{name}='200 GB'")


def names(name: str, value: Sequence[str]) -> tuple[str, ...]:
    """Check for one name or several, and return them as a tuple."""
    out = (value,) if isinstance(value, str) else tuple(value)
    if not out or not all(isinstance(v, str) for v in out):
        raise OptionError(f"{name} must be names, got {value!r}.", fix=f"{name}=('qkv', 'proj')")
    return out

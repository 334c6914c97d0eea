"""Read frames: the fields at one time, checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Literal, TypeAlias

import numpy as np

from xaurora.errors import ImplausibleValuesError, MissingValuesError
from xaurora.fields import implausible, plausibility
from xaurora.fields.conventions import Fields
from xaurora.utils import indexed

logger = logging.getLogger("xaurora")

Guard: TypeAlias = Literal["raise", "warn", "off"]
"""How physically implausible values are handled."""

Frame: TypeAlias = dict[str, dict[str, np.ndarray]]
"""``{"surface": {name: (h, w)}, "atmos": {name: (c, h, w)}}``, canonical units, float32."""


class _Half(Frame):
    """A frame, and all that were read together with it, which it keeps in memory.

    ``both`` has their values in one, ``(2, h, w)`` and ``(2, c, h, w)``; ``place`` is the frame's.
    """

    both: Frame
    place: int


def read_together(first: Frame, second: Frame) -> Frame | None:
    """Return both in one, if :func:`read_pair` read them together and in this order."""
    if isinstance(first, _Half) and isinstance(second, _Half) and first.both is second.both:
        return first.both if (first.place, second.place) == (0, 1) else None
    return None


def requests() -> ThreadPoolExecutor:
    """Return threads that request four variables at once, as ``pool`` of the functions below.

    Without them a slow store is asked for one variable after another.
    """
    return ThreadPoolExecutor(4, thread_name_prefix="xaurora-request")


def read(
    fields: Fields,
    time: np.datetime64,
    *,
    index: int | None = None,
    pool: Executor | None = None,
    guard: Guard = "warn",
) -> Frame:
    """Read one time of the surface and atmospheric fields, and check its values.

    Parameters
    ----------
    fields : Fields
    time : datetime64
    index : int, optional
        Position of the time along the time axis, if known.
    pool : Executor, optional
        Reads the variables concurrently, so that a frame from a slow store takes as long as one
        request.
    guard : {"raise", "warn", "off"}
        What is done about physically implausible values.

    Returns
    -------
    dict
        See :data:`Frame`.

    Raises
    ------
    MissingValuesError
        If a field holds NaN.
    ImplausibleValuesError
        If ``guard`` is ``"raise"`` and a value is physically implausible, or a field does not vary.
    """
    place = int(np.flatnonzero(fields.times == time)[0]) if index is None else index
    return _read_all(fields, place, [time], pool, guard)[0]


def read_pair(
    fields: Fields,
    times: Sequence[np.datetime64],
    index: Sequence[int],
    *,
    pool: Executor | None = None,
    guard: Guard = "warn",
) -> list[Frame]:
    """Read two times at once, as :func:`read` reads one.

    That halves the number of requests, and a chunk that holds both is decoded once. The values of
    a variable are one array, which need not be copied to make a Batch (:func:`read_together`).
    """
    if all(
        v._in_memory for part in (fields.surface, fields.atmos) for v in part.variables.values()
    ):
        return [read(fields, t, index=i, guard=guard) for t, i in zip(times, index, strict=True)]
    return _read_all(fields, indexed.as_slice(np.asarray(index)), list(times), pool, guard)


def _read_all(
    fields: Fields,
    place: int | slice | np.ndarray,
    times: list[np.datetime64],
    pool: Executor | None,
    guard: Guard,
) -> list[Frame]:
    """Return the frames at one place or at several."""
    when = f" at {' or '.join(map(_name, times))}"

    def of_variable(key: tuple[str, str]) -> tuple[np.ndarray, list[np.ndarray]]:
        kind, name = key
        # Index the variable alone: selecting a time of a whole Dataset costs more than reading a
        # small variable.
        variable = getattr(fields, kind).variables[name][place]
        item = fields.layout.fields[kind, name]
        values = indexed.read(variable, item.source, when)
        if len(times) > 1 and not values.flags.owndata:
            values = values.copy()  # a view of the user's own array
        found = [values] if len(times) == 1 else list(values)
        # Fast check: the sum of squares is not finite if any value is not. It may also overflow, so
        # all values are checked only in that case.
        with np.errstate(invalid="ignore", over="ignore"):
            flat = values.reshape(-1)
            total = np.dot(flat, flat)
        whole = np.isfinite(total)
        for time, one in zip(times, found, strict=True):
            if not whole and not np.isfinite(one).all():
                raise _missing(fields, kind, name, one, f" at {_name(time)}")
            if guard == "off":
                continue
            try:
                plausibility.check_frame(one, item, fields, time)
            except ImplausibleValuesError as error:
                if guard == "raise":
                    raise
                logger.warning("%s", error)
        return values, found

    keys = [(kind, str(name)) for kind in ("surface", "atmos") for name in getattr(fields, kind)]
    read_all = list(map(of_variable, keys) if pool is None else pool.map(of_variable, keys))
    out = [_Half({"surface": {}, "atmos": {}}) for _ in times]
    both: Frame = {"surface": {}, "atmos": {}}
    for (kind, name), (values, found) in zip(keys, read_all, strict=True):
        both[kind][name] = values
        for half, own in zip(out, found, strict=True):
            half[kind][name] = own
    for i, half in enumerate(out):
        half.both, half.place = both, i
    return list(out)


def statics(fields: Fields, *, pool: Executor | None = None) -> dict[str, np.ndarray]:
    """Read the static fields, ``(h, w)``, float32, and check them for missing values."""

    def of_variable(name: str) -> np.ndarray:
        source = fields.layout.fields["static", name].source
        return indexed.read(fields.static.variables[name], source)

    names = list(map(str, fields.static))
    out = dict(
        zip(
            names,
            map(of_variable, names) if pool is None else pool.map(of_variable, names),
            strict=True,
        )
    )
    for name, values in out.items():
        if not np.isfinite(values).all():
            raise _missing(fields, "static", name, values, "")
    return out


def _missing(
    fields: Fields, kind: str, name: str, values: np.ndarray, when: str
) -> MissingValuesError:
    item = fields.layout.fields[kind, name]
    count = int((~np.isfinite(values)).sum())
    fill = implausible.filled(item, fields, infinite=bool(np.isinf(values).any()))
    return MissingValuesError(
        f"'{item.source}' has {count} missing value(s){when} in the part that Aurora reads."
        " Aurora does not accept missing values.",
        fix=f"fill them, for example {fill}, or drop the time",
    )


def _name(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))

"""Exceptions with a message (what was expected and found) and a fix (what to type).

Every error is a :class:`XauroraError` and also the builtin exception that a reader would expect, so
that ``except ValueError`` keeps working. The fix is kept apart from the message in
:attr:`XauroraError.fix`, so that :meth:`ds.aurora.check() <xaurora.accessor.AuroraAccessor.check>`
can list problems together with their fixes.
"""

from __future__ import annotations

import re

_LONGEST = 300  # characters without a space


def printable(text: str) -> str:
    r"""Return text that is harmless in a terminal, whatever names are in it.

    Control characters and those that change the direction of writing are escaped, and words of
    thousands of characters are shortened.

    Examples
    --------
    >>> printable("\x1b[2J")
    '\\x1b[2J'
    """
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
            for c in text
        )
    if any(len(word) > _LONGEST for word in text.split()):
        text = re.sub(
            rf"(\S{{{_LONGEST // 2}}})\S{{{_LONGEST // 2},}}", lambda match: f"{match[1]}…", text
        )
    return text


class XauroraError(Exception):
    """Base class of all errors of this package.

    Parameters
    ----------
    message : str
        What was expected and what was found.
    fix : str, optional
        What to type, usually one line of code.

    Attributes
    ----------
    code : str
        Short, stable name of the kind of problem, as listed in a
        :class:`~xaurora.fields.checking.Report`.
    about : tuple of str, optional
        Kind and canonical name of the variable concerned.

    Examples
    --------
    >>> try:
    ...     ds.aurora.predict("7h", model=tuned)
    ... except xaurora.XauroraError as error:
    ...     print(error.fix)
    lead='6h', '24h' or ['6h', '24h']
    """

    code = "error"

    def __init__(self, message: str, *, fix: str = "") -> None:
        self.message = message = printable(message)
        self.about: tuple[str, str] | None = None
        self.fix = fix = printable(fix)
        super().__init__(message, fix)

    def __str__(self) -> str:
        return f"{self.message}\n  Fix: {self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Unpickling passes ``args`` to ``__init__``, which cannot hold the keyword-only ``fix``.
        return (_rebuild, (type(self), self.message, self.fix))


def _rebuild(kind: type[XauroraError], message: str, fix: str) -> XauroraError:
    return kind(message, fix=fix)


class CoordinateError(XauroraError, ValueError):
    """A latitude, longitude, level or time axis is missing, duplicated or unreadable."""

    code = "coordinate"


class GridError(XauroraError, ValueError):
    """The horizontal grid is not supported by Aurora."""

    code = "grid"


class RegionError(XauroraError, ValueError):
    """A region is unknown, or too small for the model."""

    code = "region"


class LevelError(XauroraError, ValueError):
    """Pressure levels are duplicated, or there are too few."""

    code = "level"


class MissingVariableError(XauroraError, KeyError):
    """A required variable is not in the data."""

    request = ""
    """Code that downloads what is missing, for :meth:`check`."""
    code = "missing_variable"


class AmbiguousVariableError(XauroraError, ValueError):
    """Two variables of the data represent the same quantity."""

    code = "ambiguous_variable"


class UnitsError(XauroraError, ValueError):
    """Units are missing, unknown, or inconsistent with the values."""

    code = "units"


class ImplausibleValuesError(UnitsError):
    """Values are physically implausible, or fields repeat or do not vary."""

    code = "implausible_values"


class MissingValuesError(XauroraError, ValueError):
    """An input field contains NaN."""

    code = "missing_values"


class TimeError(XauroraError, ValueError):
    """Times are duplicated, unordered or missing."""

    code = "time"


class InitTimeError(XauroraError, KeyError):
    """An initialisation time is not in the data, or has no state six hours before it."""

    code = "init_time"


class LeadTimeError(XauroraError, ValueError):
    """A lead time is not a positive multiple of six hours."""

    code = "lead_time"


class AccumulationError(XauroraError, ValueError):
    """Precipitation is not accumulated over the required period, and cannot be."""

    code = "accumulation"


class EnsembleError(XauroraError, ValueError):
    """Ensemble members are given where one is expected, or ``members=`` is too large."""

    code = "ensemble"


class TargetError(XauroraError, KeyError):
    """The target variable is unknown or not in the data."""

    code = "target"


class SplitError(XauroraError, ValueError):
    """The samples cannot be split into training and validation."""

    code = "split"


class OptionError(XauroraError, ValueError):
    """An option has an invalid value."""

    code = "option"


class CheckpointError(XauroraError, ValueError):
    """A checkpoint or tuned model is damaged, or does not match the model it is loaded into."""

    code = "checkpoint"


class WeightsUnavailableError(XauroraError, OSError):
    """The weights of a pretrained Aurora could not be downloaded."""

    code = "weights"


class NoModelError(XauroraError, LookupError):
    """No model was given, and none was tuned in this session."""

    code = "no_model"


class KindError(XauroraError, TypeError):
    """A forecast was given where fields are expected, or vice versa."""

    code = "kind"


class TruthError(XauroraError, ValueError):
    """Forecast and truth do not match."""

    code = "truth"


class SourceError(XauroraError, OSError):
    """A file could not be found, read or combined with the others."""

    code = "source"


class SourceChangedError(XauroraError, OSError):
    """A file or store was rewritten while it was read."""

    code = "source-changed"


class SaveError(XauroraError, OSError):
    """Writing failed. Nothing was written, and existing files are unchanged."""

    code = "save"


class BusyError(SaveError):
    """Another process writes to the same folder or store."""

    code = "busy"


class TrainingError(XauroraError, ArithmeticError):
    """Training diverged."""

    code = "training"


class LatentsError(XauroraError, ValueError):
    """A store of latents belongs to other data or another model, or is not available."""

    code = "latents"


class MemoryTooSmallError(XauroraError, MemoryError):
    """Training does not fit into the device's memory."""

    code = "memory"


class MissingExtraError(XauroraError, ImportError):
    """An optional dependency is not installed."""

    code = "missing_extra"

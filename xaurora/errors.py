"""The exceptions: what was expected, what was found, and what to type.

Every error is a :class:`XauroraError` and also the builtin that a reader would expect, so that
``except ValueError`` keeps working. The line that mends the problem is kept apart in
:attr:`XauroraError.fix`, so that :meth:`ds.aurora.check() <xaurora.accessor.AuroraAccessor.check>`
can list problems beside their mends.
"""

from __future__ import annotations


class XauroraError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    message : str
        What was expected and what was found.
    fix : str, optional
        What to type, usually one line of code.

    Attributes
    ----------
    code : str
        Short, stable name of the kind of problem, as it stands in a
        :class:`~xaurora.fields.checking.Report`.
    about : tuple of str, optional
        Kind and canonical name of the variable that it concerns.
    """

    code = "error"

    def __init__(self, message: str, *, fix: str = "") -> None:
        self.message = message
        self.about: tuple[str, str] | None = None
        self.fix = fix
        super().__init__(message, fix)

    def __str__(self) -> str:
        return f"{self.message}\n  To mend it: {self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are rebuilt from ``args`` alone, which cannot carry the keyword-only ``fix``.
        return (_rebuild, (type(self), self.message, self.fix))


def _rebuild(kind: type[XauroraError], message: str, fix: str) -> XauroraError:
    return kind(message, fix=fix)


class CoordinateError(XauroraError, ValueError):
    """A latitude, longitude, level or time axis is missing, doubled or cannot be read."""

    code = "coordinate"


class GridError(XauroraError, ValueError):
    """The horizontal grid is not one that Aurora can take."""

    code = "grid"


class RegionError(XauroraError, ValueError):
    """A region is unknown, or smaller than the model can take."""

    code = "region"


class LevelError(XauroraError, ValueError):
    """Pressure levels are doubled or too few."""

    code = "level"


class MissingVariableError(XauroraError, KeyError):
    """A variable that is needed is not in the data."""

    code = "missing_variable"


class AmbiguousVariableError(XauroraError, ValueError):
    """Two variables of the data claim to be the same quantity."""

    code = "ambiguous_variable"


class UnitsError(XauroraError, ValueError):
    """Units are missing, unknown, or at odds with the values."""

    code = "units"


class MissingValuesError(XauroraError, ValueError):
    """An input field holds NaN."""

    code = "missing_values"


class TimeError(XauroraError, ValueError):
    """Times are doubled, unordered, or not there."""

    code = "time"


class InitTimeError(XauroraError, KeyError):
    """An initialisation time is not in the data, or lacks the frame six hours before it."""

    code = "init_time"


class LeadTimeError(XauroraError, ValueError):
    """A lead time is no positive multiple of six hours."""

    code = "lead_time"


class AccumulationError(XauroraError, ValueError):
    """Precipitation is not, and cannot be, accumulated over the period that is needed."""

    code = "accumulation"


class EnsembleError(XauroraError, ValueError):
    """The data hold several ensemble members where one is expected."""

    code = "ensemble"


class TargetError(XauroraError, KeyError):
    """The variable to be learnt is unknown or not in the data."""

    code = "target"


class SplitError(XauroraError, ValueError):
    """There are too few samples to train on or to validate with."""

    code = "split"


class OptionError(XauroraError, ValueError):
    """An option has a value that is not among the valid ones."""

    code = "option"


class CheckpointError(XauroraError, ValueError):
    """A checkpoint or a tuned model does not belong to the model it is loaded into, or is damaged."""

    code = "checkpoint"


class WeightsUnavailableError(XauroraError, OSError):
    """The weights of a pretrained Aurora could not be fetched."""

    code = "weights"


class NoModelError(XauroraError, LookupError):
    """No model was named and none was tuned in this session."""

    code = "no_model"


class KindError(XauroraError, TypeError):
    """A forecast was given where fields are expected, or the reverse."""

    code = "kind"


class TruthError(XauroraError, ValueError):
    """Forecast and truth do not fit together."""

    code = "truth"


class SourceError(XauroraError, OSError):
    """A file could not be found, read, or put together with the others."""

    code = "source"


class SaveError(XauroraError, OSError):
    """Nothing was written, because writing failed; what stood there before is whole."""

    code = "save"


class TrainingError(XauroraError, ArithmeticError):
    """Training diverged."""

    code = "training"


class LatentsError(XauroraError, ValueError):
    """A store of latents that belongs to something else, or that cannot be had."""

    code = "latents"


class MemoryTooSmallError(XauroraError, MemoryError):
    """Training does not fit into the device's memory."""

    code = "memory"


class MissingExtraError(XauroraError, ImportError):
    """An optional dependency is not installed."""

    code = "missing_extra"

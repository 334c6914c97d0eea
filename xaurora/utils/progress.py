"""Progress bars: redrawn often on a terminal, every ten seconds in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(*, total: int, label: str, unit: str, shown: bool, after: float = 0.0) -> tqdm:
    """Return a bar to be updated by the caller.

    It appears only if the work takes longer than ``after`` seconds.
    """
    from tqdm.auto import tqdm

    return tqdm(
        total=total, desc=label, unit=unit, disable=not shown, mininterval=_interval(), delay=after
    )


def track(
    items: Iterable[Any],
    label: str,
    *,
    unit: str = "time",
    shown: bool = True,
    total: int | None = None,
) -> Iterable[Any]:
    """Iterate with a bar that is removed at the end."""
    if not shown:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc=label, unit=unit, leave=False, total=total, mininterval=_interval())


def log_line(text: str, *, shown: bool = True) -> None:
    """Print a line to stderr without breaking a progress bar."""
    if shown:
        from tqdm.auto import tqdm

        tqdm.write(text, file=sys.stderr)


def _interval() -> float:
    return 0.2 if sys.stderr.isatty() else 10.0

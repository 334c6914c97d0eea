"""The training log, and handling of the signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
from pathlib import Path
from typing import Any, TextIO

from xaurora.training.validation import Task, format_scores, prefix
from xaurora.utils import storage


class Stop:
    """Context manager that lets the current step finish when the process is asked to stop.

    It handles SIGTERM, which clusters send before they kill a job, and SIGINT (Ctrl-C). A second
    signal stops at once. Signal handlers can only be set in the main thread, so elsewhere this does
    nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._asked)
        return self

    def _asked(self, number: int, frame: object) -> None:
        if self.signal is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.signal = number

    def again(self) -> None:
        """Restore the previous signal handlers and raise the signal again."""
        number = self.signal if self.signal is not None else signal.SIGTERM
        self.__exit__()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.raise_signal(number)
        raise SystemExit(128 + number)  # in case a handler returns

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class Log:
    """Writer of ``log.jsonl`` in the run's folder, one line per step.

    The file is created with the first line.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.path, self.writes = folder / "log.jsonl", writes
        self._file: TextIO | None = None
        self._goes_on = False

    def __enter__(self) -> Log:
        return self

    def keep(self, step: int) -> list[dict[str, Any]]:
        """Drop entries after ``step``, which a resumed run writes again, and return the others."""
        entries = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a line cut off when the process was killed
                    entries.append(json.loads(line))
        entries = [e for e in entries if e["step"] <= step]
        if self.writes:
            text = "".join(json.dumps(e) + "\n" for e in entries)
            storage.replace_file(self.path, lambda path: _write(path, text))
        self._goes_on = True
        return entries

    def write(self, entry: dict[str, Any]) -> None:
        """Append one entry, if this process writes the log."""
        if not self.writes:
            return
        with storage.wrap_write_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a" if self._goes_on else "w", encoding="utf-8")
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Flush the file to disk."""
        if self._file is not None:
            with storage.wrap_write_errors(self.path):
                storage.sync(self.path)

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a failed write has already raised an error
                self._file.close()
            self._file = None
            self._goes_on = True


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def step_entry(step: int, means: dict[str, float], norm: float, task: Task) -> dict[str, Any]:
    """Return a step's line of the log, without the learning rates.

    Parameters
    ----------
    step : int
        Counted from 1.
    means : dict
        Losses and errors, weighted means over the step's samples.
    norm : float
        Norm of the gradient before clipping.
    task : Task
    """
    entry: dict[str, Any] = {"step": step}
    entry |= {k: v for k, v in means.items() if ":" not in k}
    for i, (name, (unit, factor)) in enumerate(task.units.items()):
        front = f"training_{prefix(i, name)}"
        entry[f"{front}rmse{unit}"] = math.sqrt(means[f"{name}:squares"]) * factor
        entry[f"{front}mae{unit}"] = means[f"{name}:absolute"] * factor
    if "base:squares" in means:
        entry["training_base_rmse"] = math.sqrt(means["base:squares"])
        entry["training_base_mae"] = means["base:absolute"]
    entry["gradient_norm"] = norm
    return entry


def best_line(scores: dict[str, Any], step: int, total: int, task: Task) -> str:
    """Return the best scores and their reference as text."""
    early = f" (stopped after {step} of {total} steps)" if step < total else ""
    own = bool(task.units)
    return (
        f"Best at step {scores['step']}{early}: {'CRPS' if own else 'loss'}"
        f" {format_scores(scores, task)}, {'climatology' if own else 'persistence'}"
        f" {format_scores(scores, task, 'climatology_crps')}"
    )

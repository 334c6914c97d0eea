"""Pieces of work that processes and machines share: each is done by one of them.

A piece is claimed with a lock of the operating system, which is released when its process ends,
however it ends. A finished piece leaves a file. So a writer can be killed at any time, another one
takes over what it had claimed, and several can start, join and leave as they like.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xaurora.utils.locks import locked

_POLL = 0.5  # seconds between two looks at pieces that others have claimed


@dataclass(frozen=True)
class Pieces:
    """Numbered pieces of work, and a folder for their locks and what is finished.

    Parameters
    ----------
    folder : path
        Shared by all who work on the pieces.
    count : int
    """

    folder: Path
    count: int

    @property
    def _marker(self) -> Path:
        """Exists while there is work, so that who comes late does not begin again."""
        return self.folder / "open"

    @property
    def is_open(self) -> bool:
        """Whether there is work, or was when its last writer ended."""
        return self._marker.exists()

    def alone(self) -> contextlib.AbstractContextManager[bool]:
        """Hold a lock on the whole, to open it."""
        return locked(self.folder / "whole.lock")

    def open(self) -> None:
        """Forget what was finished, and begin. Call it while :meth:`alone` is held."""
        for file in self.folder.glob("*.done"):
            file.unlink(missing_ok=True)
        self._marker.touch()

    def finished(self) -> list[int]:
        """Return the numbers of the pieces that are finished."""
        return sorted(int(file.stem) for file in self.folder.glob("*.done"))

    def attempt(self, number: int, work: Callable[[int], None]) -> bool:
        """Do one piece unless another process is at it; return whether it is finished."""
        done = self.folder / f"{number}.done"
        if done.exists() or not self.is_open:
            return True
        with locked(self.folder / f"{number}.lock", wait=False) as mine:
            if not mine:
                return False
            if not done.exists() and self.is_open:
                work(number)
                done.touch()
        return True

    def run(
        self,
        attempt_all: Callable[[list[int]], Iterator[tuple[int, bool]]],
        report: Callable[[int], object],
    ) -> None:
        """Work until every piece is finished, by this process or another.

        Parameters
        ----------
        attempt_all : callable
            Calls :meth:`attempt` for numbers, perhaps in parallel, and yields each with its result.
        report : callable
            Is told how many pieces were finished since the last call.
        """
        finished_before = set(self.finished())
        left = [n for n in range(self.count) if n not in finished_before]
        report(self.count - len(left))
        while left:
            waiting = []
            for number, finished in attempt_all(left):
                if finished:
                    report(1)
                else:
                    waiting.append(number)
            if len(waiting) == len(left):
                time.sleep(_POLL)  # others are at what is left
            left = waiting

    def clear(self) -> None:
        """Remove the folder, when all is finished or nothing is to be kept."""
        self._marker.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

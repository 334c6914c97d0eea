"""Replay buffer of unfinished training forecasts, stored on disk.

Each entry is an unfinished forecast: its init time, the number of steps made so far, and the files
of its last two states. A state file is written once and never modified, so a checkpoint only has to
store the list of entries. Files referenced neither by that list nor by the last checkpoint are
deleted after the next checkpoint.

References
----------
Bodnar et al. (2025), doi:10.1038/s41586-025-09005-y, supplement D.4: long rollouts at the memory of
one step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aurora import Batch

from xaurora.errors import CheckpointError
from xaurora.model.batch import STEP, metadata
from xaurora.model.loader import Loader
from xaurora.training.nested_options import ReplayOptions
from xaurora.utils import storage


@dataclass(frozen=True)
class Entry:
    """An unfinished forecast.

    Parameters
    ----------
    init_time : int
        Nanoseconds since 1970.
    done : int
        Steps made so far. The next one ends at init time + 6 h · (done + 1).
    frames : tuple of str or None
        Files of the two states that the next step starts from. None stands for a state of the data.
    """

    init_time: int
    done: int = 0
    frames: tuple[str | None, str | None] = (None, None)

    @property
    def time(self) -> np.datetime64:
        """Init time."""
        return np.datetime64(self.init_time, "ns")

    @property
    def next_time(self) -> np.datetime64:
        """Valid time of the next step."""
        return self.time + STEP * (self.done + 1)


class ReplayBuffer:
    """Unfinished forecasts, advanced one step at a time.

    Parameters
    ----------
    folder : path
        Folder of this process. No other process writes to it.
    options : ReplayOptions
    longest : int
        Largest number of steps of a forecast.
    init_times : ndarray of datetime64
        Init times assigned to this process, with truth for all ``longest`` steps.
    seed : int
    """

    def __init__(
        self, folder: Path, options: ReplayOptions, longest: int, init_times: np.ndarray, seed: int
    ) -> None:
        self.folder, self.options, self.longest, self.init_times = (
            folder,
            options,
            longest,
            init_times,
        )
        self.rng = np.random.default_rng(seed)
        self.entries: list[Entry] = []
        self.drawn = 0
        self.written = 0
        self._protected: set[str] = set()

    def __len__(self) -> int:
        return len(self.entries)

    def _fresh(self) -> Entry:
        return _entry_of(self.init_times[self.rng.integers(len(self.init_times))])

    def fill(self) -> None:
        """Fill the buffer with new forecasts."""
        shutil.rmtree(self.folder, ignore_errors=True)  # left by an earlier run
        self.entries = [self._fresh() for _ in range(self.options.size)]

    def allowed(self, progress: float) -> int:
        """Return the largest number of steps allowed at ``progress``, a fraction of training."""
        if self.options.grow == 0:
            return self.longest
        return int(min(1 + progress / self.options.grow * (self.longest - 1), self.longest))

    def draw(self, progress: float, taken: Collection[int] = (), *, fresh: bool = True) -> int:
        """Return the index of the entry to advance next.

        Entries in ``taken`` were already drawn in this training step and are avoided while others
        remain. With ``fresh``, the draw counts towards ``refresh``: every ``refresh`` counted
        draws, a random entry is replaced by a new forecast. An entry that has reached the allowed
        length is replaced when it is drawn.
        """
        self.drawn += fresh
        if fresh and self.drawn % self.options.refresh == 0:
            self._put(int(self.rng.integers(len(self.entries))), self._fresh())
        place = int(self.rng.integers(len(self.entries)))
        while place in taken and len(taken) < len(self.entries):
            place = (place + 1) % len(self.entries)
        if self.entries[place].done >= self.allowed(progress):
            self._put(place, self._fresh())
        return place

    def _put(self, place: int, entry: Entry) -> None:
        """Replace an entry and delete files that only the old entry needed."""
        before = self.entries[place]
        self.entries[place] = entry
        for name in before.frames:
            if name is not None and name not in self._protected and name not in entry.frames:
                (self.folder / name).unlink(missing_ok=True)

    def batch(self, entry: Entry, loader: Loader) -> Batch:
        """Return the input of the entry's next step.

        This is a Batch of one sample whose ``rollout_step`` is the number of steps made so far.
        """
        newest = entry.time + STEP * entry.done
        frames = []
        for name, time in zip(entry.frames, (newest - STEP, newest), strict=True):
            frames.append(self._read(name) if name is not None else None)
            if frames[-1] is None:
                source = loader.frame(time)
                frames[-1] = {
                    f"{kind}/{n}": torch.from_numpy(v)
                    for kind, part in source.items()
                    for n, v in part.items()
                }
        found: Any = frames
        both = {key: torch.stack([f[key] for f in found])[None] for key in found[1]}
        grid = loader.fields.layout.grid
        return Batch(
            {k.removeprefix("surface/"): v for k, v in both.items() if k.startswith("surface/")},
            loader.still,
            {k.removeprefix("atmos/"): v for k, v in both.items() if k.startswith("atmos/")},
            metadata(grid, [newest], loader.fields.levels, entry.done),
        )

    def store(self, place: int, following: Batch) -> None:
        """Store a forecast after a step.

        ``following`` is the input of the step after it (:func:`xaurora.model.rollout.advance`).
        """
        entry = self.entries[place]
        name = f"{self.written:08d}.safetensors"
        self.written += 1
        state = {f"surface/{k}": v[0, -1] for k, v in following.surf_vars.items()}
        state |= {f"atmos/{k}": v[0, -1] for k, v in following.atmos_vars.items()}
        self._write(name, {k: v.detach().float().cpu().contiguous() for k, v in state.items()})
        self._put(place, Entry(entry.init_time, entry.done + 1, (entry.frames[1], name)))

    def start(self, place: int, time: np.datetime64) -> None:
        """Replace a forecast by a new one from an init time."""
        self._put(place, _entry_of(time))

    def renew(self, place: int) -> None:
        """Replace a forecast that has reached its full length."""
        self._put(place, self._fresh())

    def _write(self, name: str, state: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        with storage.wrap_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(state, self.folder / name)

    def _read(self, name: str) -> dict[str, torch.Tensor]:
        from xaurora.model.weights import read_state

        return read_state(self.folder / name)

    # --- checkpoints ---

    def state(self) -> dict[str, Any]:
        """Return the buffer's state for a checkpoint, after flushing its files to disk."""
        used = self._used()
        with storage.wrap_write_errors(self.folder):
            for name in used - self._protected:
                storage.sync(self.folder / name)
        return {
            "entries": [asdict(e) for e in self.entries],
            "drawn": self.drawn,
            "written": self.written,
            "rng": self.rng.bit_generator.state,
        }

    def checkpointed(self) -> None:
        """Delete files that neither the last checkpoint nor the buffer needs.

        Call this once the checkpoint that contains :meth:`state` is complete.
        """
        self._protected = self._used()
        if self.folder.is_dir():
            for file in os.listdir(self.folder):
                if file not in self._protected:
                    (self.folder / file).unlink(missing_ok=True)

    def _used(self) -> set[str]:
        return {name for entry in self.entries for name in entry.frames if name is not None}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the buffer from a checkpoint.

        Raises
        ------
        CheckpointError
            If a file of the buffer is missing.
        """
        self.entries = [
            Entry(e["init_time"], e["done"], tuple(e["frames"])) for e in state["entries"]
        ]
        self.drawn, self.written = state["drawn"], state["written"]
        self.rng.bit_generator.state = state["rng"]
        if lost := sorted(n for n in self._used() if not (self.folder / n).is_file()):
            raise CheckpointError(
                f"the replay buffer in '{self.folder}' is missing {len(lost)} of its files, such"
                f" as {lost[0]}.",
                fix="start a new run with another out=",
            )
        self.checkpointed()


def _entry_of(time: np.datetime64) -> Entry:
    return Entry(int(time.astype("datetime64[ns]").astype(np.int64)))

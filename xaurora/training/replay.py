"""A replay buffer: forecasts that go on from forecasts, kept on disk.

Each entry is a forecast under way: its init time, how many steps it has made, and where its last
two states are. A state is written once and never changed, so that a checkpoint needs the entries'
list alone; files that neither the list nor the last checkpoint names are deleted after the next
checkpoint.

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
from xaurora.training.options import ReplayOptions
from xaurora.utils import storage


@dataclass(frozen=True)
class Entry:
    """A forecast under way.

    Parameters
    ----------
    init_time : int
        Nanoseconds since 1970.
    done : int
        Steps that it has made; its next one ends at init time + 6 h · (done + 1).
    frames : tuple of str or None
        Files of the two states it goes on from; None is a state of the data.
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
        """Valid time of its next step."""
        return self.time + STEP * (self.done + 1)


class ReplayBuffer:
    """Forecasts under way, one of which goes a step on at a time.

    Parameters
    ----------
    folder : path
        Of this process alone.
    options : ReplayOptions
    longest : int
        Steps of the longest forecasts.
    init_times : ndarray of datetime64
        Of this process; all have the truth of ``longest`` steps.
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
        time = self.init_times[self.rng.integers(len(self.init_times))]
        return Entry(int(time.astype("datetime64[ns]").astype(np.int64)))

    def fill(self) -> None:
        """Begin with fresh forecasts."""
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier run
        self.entries = [self._fresh() for _ in range(self.options.size)]

    def allowed(self, progress: float) -> int:
        """Steps that forecasts may have made in all, at a share of training."""
        if self.options.grow == 0:
            return self.longest
        return int(min(1 + progress / self.options.grow * (self.longest - 1), self.longest))

    def draw(self, progress: float, taken: Collection[int] = (), *, fresh: bool = True) -> int:
        """The place of the forecast that goes on next: none that is ``taken`` in this step already,
        while there are others. Every ``refresh`` steps (draws that are ``fresh``) one is
        replaced by fresh data, and so is any that may not go further when it is drawn.
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
        """Replace an entry, and delete the files of the old one that nothing needs any more."""
        before = self.entries[place]
        self.entries[place] = entry
        for name in before.frames:
            if name is not None and name not in self._protected and name not in entry.frames:
                (self.folder / name).unlink(missing_ok=True)

    def batch(self, entry: Entry, loader: Loader) -> Batch:
        """The input of its next step: a Batch of one, whose ``rollout_step`` is the number of steps
        made.
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
        names = list(frames[1])  # type: ignore[arg-type]
        both = {key: torch.stack([f[key] for f in frames])[None] for key in names}  # type: ignore[index]
        grid = loader.fields.layout.grid
        return Batch(
            {k.removeprefix("surface/"): v for k, v in both.items() if k.startswith("surface/")},
            loader.still,
            {k.removeprefix("atmos/"): v for k, v in both.items() if k.startswith("atmos/")},
            metadata(grid, [newest], loader.fields.levels, entry.done),
        )

    def store(self, place: int, following: Batch) -> None:
        """Put a forecast back after its step; ``following`` is the input of the one after
        (:func:`xaurora.model.rollout.advance`).
        """
        entry = self.entries[place]
        name = f"{self.written:08d}.safetensors"
        self.written += 1
        state = {f"surface/{k}": v[0, -1] for k, v in following.surf_vars.items()}
        state |= {f"atmos/{k}": v[0, -1] for k, v in following.atmos_vars.items()}
        self._write(name, {k: v.detach().float().cpu().contiguous() for k, v in state.items()})
        self._put(place, Entry(entry.init_time, entry.done + 1, (entry.frames[1], name)))

    def renew(self, place: int) -> None:
        """Replace a forecast that is as long as may be."""
        self._put(place, self._fresh())

    def _write(self, name: str, state: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        with storage.named_failures(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(state, self.folder / name)

    def _read(self, name: str) -> dict[str, torch.Tensor]:
        from xaurora.model.weights import read_state

        return read_state(self.folder / name)

    # --- checkpoints ---

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps. The states' files are made durable first."""
        used = self._used()
        with storage.named_failures(self.folder):
            for name in used - self._protected:
                storage.sync(self.folder / name)
        return {
            "entries": [asdict(e) for e in self.entries],
            "drawn": self.drawn,
            "written": self.written,
            "rng": self.rng.bit_generator.state,
        }

    def checkpointed(self) -> None:
        """The checkpoint that :meth:`state` went into is complete: delete what neither it nor the
        buffer needs.
        """
        self._protected = self._used()
        if self.folder.is_dir():
            for file in os.listdir(self.folder):
                if file not in self._protected:
                    (self.folder / file).unlink(missing_ok=True)

    def _used(self) -> set[str]:
        return {name for entry in self.entries for name in entry.frames if name is not None}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        CheckpointError
            A file of the buffer is gone.
        """
        self.entries = [
            Entry(e["init_time"], e["done"], tuple(e["frames"])) for e in state["entries"]
        ]
        self.drawn, self.written = state["drawn"], state["written"]
        self.rng.bit_generator.state = state["rng"]
        if lost := sorted(n for n in self._used() if not (self.folder / n).is_file()):
            raise CheckpointError(
                f"the replay buffer in '{self.folder}' lacks {len(lost)} of its files, such as"
                f" {lost[0]}.",
                fix="start again with another out=",
            )
        self.checkpointed()

"""The checkpoint of a run: everything that training needs to go on as if it had not stopped.

A folder ``checkpoint`` beside ``best`` and ``last`` with ``run.json`` (settings, counters, the
replay buffer's list) and ``state.pt`` (weights that train, optimiser, moving average, random
states). It is put in its place in one step, so that a kill leaves the one before. Once a run has
finished, ``run.json`` alone remains and says so. Tensors are read with ``weights_only=True``: no
code is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xaurora.errors import CheckpointError, OptionError, SaveError
from xaurora.utils import storage

FOLDER = "checkpoint"
FORMAT = 1
_MAY_DIFFER = ("progress", "resume", "workers", "logger", "latents")


def settings_of(options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What a resumed run must have in common with the one that stopped, as JSON gives it back."""
    kept = {k: v for k, v in options.items() if k not in _MAY_DIFFER}
    return json.loads(json.dumps({**kept, **more}, default=str))


def save(folder: Path, run: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Write a checkpoint; the one before stays whole until this one is.

    Raises
    ------
    SaveError
        Writing failed; the checkpoint before is whole.
    """

    def write(into: Path) -> None:
        try:
            torch.save(tensors, into / "state.pt")
        except (
            RuntimeError
        ) as error:  # Torch's own writer does not tell a full disk from other failures
            raise SaveError(
                f"the checkpoint in '{folder}' could not be written: {str(error).splitlines()[0]}"
                " The one before is whole.",
                fix="free space, then go on with resume=True",
            ) from error
        _dump(into, run)

    storage.replace_folder(folder / FOLDER, write)


def finish(folder: Path, run: dict[str, Any]) -> None:
    """Mark a run as finished; what it needed to go on is deleted."""
    storage.replace_folder(folder / FOLDER, lambda into: _dump(into, {**run, "finished": True}))
    shutil.rmtree(folder / "replay", ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete a checkpoint that is out of date, in one step as far as a later run can see."""
    path = folder / FOLDER
    shutil.rmtree(path.with_name(f".{FOLDER}.old"), ignore_errors=True)
    if path.is_dir():
        with storage.named_failures(path):
            gone = path.with_name(f".{FOLDER}.new-discarded")
            shutil.rmtree(gone, ignore_errors=True)
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _dump(folder: Path, run: dict[str, Any]) -> None:
    (folder / "run.json").write_text(
        json.dumps({**run, "format": FORMAT}, indent=1) + "\n", encoding="utf-8"
    )


def read_run(folder: Path) -> dict[str, Any] | None:
    """``run.json`` of a checkpoint, or None where there is none.

    Raises
    ------
    CheckpointError
        It is damaged, or of another version.
    """
    storage.recover(folder / FOLDER)
    path = folder / FOLDER / "run.json"
    if not (folder / FOLDER).is_dir() or not any((folder / FOLDER).iterdir()):
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint in '{folder}' is damaged: {error}", fix="another out=, to begin anew"
        ) from error
    if run.get("format") != FORMAT:
        raise CheckpointError(
            f"the checkpoint in '{folder}' has format {run.get('format')!r}, and this version reads"
            f" format {FORMAT}.",
            fix="the version of xaurora that wrote it, or another out= to begin anew",
        )
    return run


def read_tensors(folder: Path) -> dict[str, Any]:
    """``state.pt`` of a checkpoint.

    Raises
    ------
    CheckpointError
        It is missing or damaged.
    """
    path = folder / FOLDER / "state.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Torch raises many kinds for a file that was cut or changed
        raise CheckpointError(
            f"'{path}' is missing or damaged ({type(error).__name__}).",
            fix="another out=, to begin anew",
        ) from error


def check(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """The run to go on with, or None to begin.

    Raises
    ------
    OptionError
        A run stopped in this folder, and nothing was said of going on with it.
    """
    run = read_run(folder)
    if run is None:
        return None
    if not resume:
        if run.get("finished"):
            return None
        raise OptionError(
            f"'{folder}' holds a run that stopped at step {run['step']} of {run['total']}; it would"
            " be lost.",
            fix="resume=True to go on with it, or another out=",
        )
    return run


def refuse_unseen(folder: Path) -> None:
    """Raise where another process has found a checkpoint that this one does not see."""
    if not (folder / FOLDER / "state.pt").is_file():
        raise CheckpointError(
            f"'{folder / FOLDER}' lacks its weights, or is not seen from every machine.",
            fix="an out= that all machines share, or another out= to begin anew",
        )


def compare(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise :class:`OptionError` that lists how a resumed run differs from the one that stopped."""
    names = [n for n in dict.fromkeys([*there, *here]) if there.get(n) != here.get(n)]
    if names:
        parts = [f"{n}={_short(there.get(n))} there and {_short(here.get(n))} here" for n in names]
        raise OptionError(
            f"the run in '{folder}' was made with other settings: {'; '.join(parts)}.",
            fix="the same arguments and data as before, or another out= to begin anew",
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:87]}…"


def compare_tensors(
    folder: Path, what: str, expected: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    """Raise :class:`CheckpointError` with the names and shapes that differ."""
    problems = [f"{n} is missing" for n in expected if n not in found]
    problems += [f"{n} is not expected" for n in found if n not in expected]
    problems += [
        f"{n} is {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}"
        for n in expected
        if n in found and tuple(found[n].shape) != tuple(expected[n].shape)
    ]
    if problems:
        raise CheckpointError(
            f"the {what} in the checkpoint of '{folder}' does not fit this model:"
            f" {', '.join(problems[:5])}"
            + (f", … ({len(problems)} in all)." if len(problems) > 5 else "."),
            fix="the same arguments as before, or another out= to begin anew",
        )


def check_best(folder: Path, *, expected: bool) -> None:
    """Raise :class:`CheckpointError` where the best state is gone that the checkpoint counts on."""
    if expected and not (folder / "best" / "config.json").is_file():
        raise CheckpointError(
            f"the checkpoint in '{folder}' counts on '{folder / 'best'}', which is gone.",
            fix="another out=, to begin anew",
        )

"""Checkpoint of a run: everything needed to resume training as if it had not stopped.

A checkpoint is a folder ``checkpoint`` beside ``best`` and ``last`` with ``run.json`` (settings,
counters, entries of the replay buffer) and ``state.pt`` (trainable weights, optimiser, moving
average, random states). It is moved into place atomically, so a killed process leaves the previous
checkpoint. Once a run has finished, only ``run.json`` remains and marks it as finished. Tensors are
read with ``weights_only=True``, so no code is ever unpickled.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xaurora.errors import CheckpointError, OptionError, SaveError
from xaurora.model.artefact import check_digest, hash_file, with_digest, write_json
from xaurora.training import parallel
from xaurora.utils import storage
from xaurora.utils.types import Given

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from xaurora.training.optimisation import Optimisation
    from xaurora.training.replay import ReplayBuffer


FOLDER = "checkpoint"
FORMAT = 2
_READS = (1, 2)  # format 1 has no checksums
_STATE = "state.pt"
_MAY_DIFFER = (
    "progress",
    "resume",
    "workers",
    "logger",
    "latents",
    "engine",  # both take the same steps
    "first_look",  # what it found is compared
    "strict",
    "overwrite",
    "wait",
    # how a step runs, which changes no result beyond rounding
    "memory",
    "activation_checkpointing",
    "optimizer_state",
)


def settings_of(options: Mapping[str, Any], **more: object) -> dict[str, Any]:
    """Return the settings that must be the same in a resumed run, as JSON returns them."""
    kept = {k: v for k, v in options.items() if k not in _MAY_DIFFER}
    return json.loads(json.dumps({**kept, **more}, default=str))


def save(folder: Path, run: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Write a checkpoint. The previous one stays intact until this one is complete.

    Raises
    ------
    SaveError
        If writing failed. The previous checkpoint is intact.
    """

    def write(into: Path) -> None:
        try:
            torch.save(tensors, into / _STATE)
        except (
            RuntimeError
        ) as error:  # Torch's writer does not distinguish a full disk from other failures
            raise SaveError(
                f"the checkpoint in '{folder}' could not be written: {str(error).splitlines()[0]}"
                " The previous checkpoint is intact.",
                fix="free disk space, then continue with resume=True",
            ) from error
        _dump(into, run)

    storage.replace_folder(folder / FOLDER, write)


def finish(folder: Path, run: dict[str, Any]) -> None:
    """Mark a run as finished and delete what it needed to resume."""
    storage.replace_folder(folder / FOLDER, lambda into: _dump(into, {**run, "finished": True}))
    shutil.rmtree(folder / "replay", ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete an outdated checkpoint, atomically as seen by a later run."""
    path = folder / FOLDER
    shutil.rmtree(path.with_name(f".{FOLDER}.old"), ignore_errors=True)
    if path.is_dir():
        with storage.wrap_write_errors(path):
            gone = path.with_name(f".{FOLDER}.new-discarded")
            shutil.rmtree(gone, ignore_errors=True)
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _dump(folder: Path, run: dict[str, Any]) -> None:
    state = folder / _STATE
    hashes = {"state": hash_file(state)} if state.exists() else {}
    write_json(folder / "run.json", with_digest({**run, **hashes, "format": FORMAT}))


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return ``run.json`` of a checkpoint, or None if there is no checkpoint.

    Raises
    ------
    CheckpointError
        If it is damaged or has another format version.
    """
    storage.recover(folder / FOLDER)
    path = folder / FOLDER / "run.json"
    if not (folder / FOLDER).is_dir() or not any((folder / FOLDER).iterdir()):
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        made = run.get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint in '{folder}' is damaged: {error}",
            fix="use another out= to start a new run",
        ) from error
    if made not in _READS:
        raise CheckpointError(
            f"the checkpoint in '{folder}' has format {made!r}, but this version reads format"
            f" {FORMAT}.",
            fix="use the version of xaurora that wrote it, or another out= to start a new run",
        )
    return check_digest(run, path, required=made == FORMAT)


def read_tensors(folder: Path, expected: str | None = None) -> dict[str, Any]:
    """Return the contents of ``state.pt`` of a checkpoint, if it has the ``expected`` SHA-256.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    """
    path = folder / FOLDER / _STATE
    try:
        if expected is not None and hash_file(path) != expected:
            raise ValueError("its SHA-256 is not that of the saved file")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Torch raises many exception types for a truncated or modified file
        raise CheckpointError(
            f"'{path}' is missing or damaged ({type(error).__name__}: {error}).",
            fix="use another out= to start a new run",
        ) from error


def check(folder: Path, *, resume: bool, overwrite: bool = False) -> dict[str, Any] | None:
    """Return the run to resume, or None to start a new one.

    Raises
    ------
    SaveError, OptionError
        If the folder holds a finished run, or a stopped one, and neither ``resume`` nor
        ``overwrite`` is set.
    """
    if overwrite and not resume:
        return None
    run = read_run(folder)
    if run is None:
        # A run that was killed before its first checkpoint may have saved a model already.
        if not resume and any(tuned_in(folder / part) for part in ("best", "last")):
            raise SaveError(
                f"'{folder}' contains a tuned model; it would be lost.",
                fix="overwrite=True to replace it, or another out=",
            )
        return None
    if resume:
        return run
    if run.get("finished"):
        raise SaveError(
            f"'{folder}' contains a finished run; it would be lost.",
            fix="resume=True to load it, overwrite=True to replace it, or another out=",
        )
    raise OptionError(
        f"'{folder}' contains a run that stopped at step {run['step']} of {run['total']}; it would"
        " be lost.",
        fix="resume=True to continue it, overwrite=True to replace it, or another out=",
    )


def tuned_in(folder: Path) -> bool:
    """Return whether a folder holds a tuned model."""
    storage.recover(folder)
    return (folder / "config.json").exists()


def check_visible(folder: Path) -> None:
    """Raise if this process cannot see a checkpoint that another process has found."""
    if not (folder / FOLDER / _STATE).is_file():
        raise CheckpointError(
            f"'{folder / FOLDER}' has no weights, or is not visible on every machine.",
            fix="use an out= that all machines share, or another out= to start a new run",
        )


def compare(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise :class:`OptionError` if settings differ from those of the stopped run."""
    names = [  # an earlier version kept more of them
        n
        for n in dict.fromkeys([*there, *here])
        if there.get(n) != here.get(n) and n not in _MAY_DIFFER
    ]
    if names:
        parts = [
            f"{n}={_short(there.get(n))} in the checkpoint and {_short(here.get(n))} now"
            for n in names
        ]
        raise OptionError(
            f"the run in '{folder}' was made with other settings: {'; '.join(parts)}.",
            fix="use the same arguments and data as before, or another out= to start a new run",
        )


def _short(value: Given) -> str:
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:87]}…"


def compare_tensors(
    folder: Path, what: str, expected: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    """Raise :class:`CheckpointError` with the names and shapes that differ."""
    problems = [f"{n} is missing" for n in expected if n not in found]
    problems += [f"{n} is unexpected" for n in found if n not in expected]
    problems += [
        f"{n} has shape {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}"
        for n in expected
        if n in found and tuple(found[n].shape) != tuple(expected[n].shape)
    ]
    if problems:
        raise CheckpointError(
            f"the {what} in the checkpoint of '{folder}' does not fit this model:"
            f" {', '.join(problems[:5])}"
            + (f", … ({len(problems)} in all)." if len(problems) > 5 else "."),
            fix="use the same arguments as before, or another out= to start a new run",
        )


def check_best(folder: Path, *, expected: bool) -> None:
    """Raise :class:`CheckpointError` if the best model that a checkpoint refers to is missing."""
    if expected and not (folder / "best" / "config.json").is_file():
        raise CheckpointError(
            f"the checkpoint in '{folder}' refers to '{folder / 'best'}', which is missing.",
            fix="use another out= to start a new run",
        )


# --- the state of a run ---------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a run has come.

    Parameters
    ----------
    step, saved : int
        Steps done, and steps done at the last checkpoint.
    best : float
        Best skill score so far.
    waited : int
        Validations since then.
    """

    step: int = 0
    saved: int = 0
    best: float = -math.inf
    waited: int = 0


def save_run(
    fabric: Fabric,
    folder: Path,
    progress: Progress,
    optimisation: Optimisation,
    buffer: ReplayBuffer | None,
    run: dict[str, Any],
) -> None:
    """Write a checkpoint of everything that a run needs to resume. All processes must call this.

    Parameters
    ----------
    fabric : Fabric
    folder : path
    progress : Progress
    optimisation : Optimisation
    buffer : ReplayBuffer, optional
    run : dict
        What is known on all processes: settings, scores, recent losses.
    """
    random = {"cpu": torch.get_rng_state()}
    if fabric.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(fabric.device)
    tensors = {**optimisation.state(), "random": parallel.all_gather(fabric, random)}
    run = {
        **run,
        "step": progress.step,
        "total": optimisation.total,
        "best": progress.best if math.isfinite(progress.best) else None,
        "waited": progress.waited,
        "replay": parallel.all_gather(fabric, buffer.state() if buffer is not None else None),
    }
    parallel.run_on_first(fabric, lambda: save(folder, run, tensors))
    if buffer is not None:
        buffer.checkpointed()
    progress.saved = progress.step


def restore_run(
    fabric: Fabric,
    folder: Path,
    optimisation: Optimisation,
    buffer: ReplayBuffer | None,
    run: dict[str, Any],
) -> Progress:
    """Resume from a checkpoint.

    Raises
    ------
    CheckpointError
        If it does not fit the model, or is damaged.
    """
    state = read_tensors(folder, run.get("state"))
    parameters = optimisation.parameters  # a sharded parameter has the shape of the full one
    compare_tensors(folder, "weights", parameters, state["weights"])
    moments = {
        f"{name} {key}": v
        for name, part in state["optimizer"].items()
        for key, v in part.items()
        if key != "step"
    }
    if moments:
        expected = {
            f"{name} {key}": p
            for name, p in parameters.items()
            for key in ("exp_avg", "exp_avg_sq")
        }
        compare_tensors(folder, "optimiser's state", expected, moments)
    optimisation.load_state(state)
    random = state["random"][fabric.global_rank]
    torch.set_rng_state(random["cpu"])
    if "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], fabric.device)
    if buffer is not None:
        buffer.restore(run["replay"][fabric.global_rank])
    best = -math.inf if run["best"] is None else run["best"]
    check_best(folder, expected=math.isfinite(best))
    return Progress(run["step"], run["step"], best, run["waited"])

"""Plots of training curves (loss, RMSE, MAE, learning rate) and of scores by lead time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xaurora.errors import OptionError
from xaurora.utils.types import Given

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xaurora.model.tuned import TunedAurora
    from xaurora.utils.types import AnyAxes

_TRAINING, _VALIDATION = "#1f5aa6", "#a0287d"


def learning_curves(
    history: TunedAurora | Sequence[Mapping[str, Any]],
    *,
    name: str | None = None,
    figure: Figure | None = None,
) -> np.ndarray:
    """Plot loss, RMSE, MAE and learning rate over the training steps in four panels.

    The loss panel also shows the validation CRPS. RMSE and MAE are shown for training and
    validation.

    Parameters
    ----------
    history : TunedAurora or sequence of dict
        A tuned model, or its ``history``.
    name : str, optional
        Target to plot, or ``"all"`` for Aurora's own variables (in units of their standard
        deviations). By default the first target.
    figure : matplotlib figure, optional

    Returns
    -------
    ndarray of matplotlib axes, ``(2, 2)``

    Raises
    ------
    OptionError
        If nothing was trained, or the target is not in the history.

    Examples
    --------
    >>> axes = xaurora.learning_curves(tuned)
    >>> axes.shape
    (2, 2)
    """
    names = _names(history)
    history = getattr(history, "history", history)
    if not isinstance(history, list | tuple) or not all(
        isinstance(e, Mapping) and "step" in e for e in history
    ):
        raise OptionError(
            f"{type(history).__name__} is not a tuned model or its history.",
            fix="xaurora.learning_curves(tuned)",
        )
    if not history:
        raise OptionError(
            "the history is empty: nothing was trained.", fix="call ds.aurora.finetune(...) first"
        )
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    steps = np.array([entry["step"] for entry in history])
    front, unit = _target(history, names, name)
    units = names.get(front, (None, ""))[1]
    _training(axes[0, 0], steps, [entry["loss"] for entry in history], "loss")
    axes[0, 0].set_title("loss")
    scored, normal = f"validation_{front}crps{unit}", f"validation_{front}climatology_crps{unit}"
    words = "validation CRPS" + _words(unit, units) + "\n(dotted: climatology)"
    if front == "base_":
        scored, normal = "validation_base_loss", "validation_persistence_loss"
        words = "validation loss of Aurora's variables\n(dotted: persistence)"
    if any(scored in entry for entry in history):
        right = axes[0, 0].twinx()
        kept = [entry for entry in history if scored in entry]
        right.plot(
            [e["step"] for e in kept],
            [e[scored] for e in kept],
            "o-",
            color=_VALIDATION,
            markersize=4,
        )
        right.axhline(kept[-1][normal], color=_VALIDATION, linestyle=":")
        right.set_ylabel(words, color=_VALIDATION)
    for ax, score in ((axes[0, 1], "rmse"), (axes[1, 0], "mae")):
        key = f"{front}{score}{unit}"
        _training(
            ax, steps, [entry.get(f"training_{key}", np.nan) for entry in history], "training"
        )
        there = [entry for entry in history if f"validation_{key}" in entry]
        values = [e[f"validation_{key}"] for e in there]
        ax.plot(
            [e["step"] for e in there],
            values,
            "o-",
            color=_VALIDATION,
            markersize=4,
            label="validation",
        )
        ax.set_title(f"{score.upper()}{_words(unit, units, base=front == 'base_')}")
        ax.set_ylim(bottom=0.0)
        ax.legend(frameon=False)
    rates = [k for k in history[0] if k.startswith("learning_rate_")] or ["learning_rate"]
    for key in rates:
        label = key.removeprefix("learning_rate_").replace("learning_rate", "all")
        axes[1, 1].plot(steps, [entry.get(key, np.nan) for entry in history], label=label)
    axes[1, 1].set_title("learning rate")
    axes[1, 1].set_ylim(bottom=0.0)
    axes[1, 1].legend(frameon=False)
    for ax in axes[1]:
        ax.set_xlabel("step")
    return axes


def _names(history: TunedAurora | Sequence[Mapping[str, Any]]) -> dict[str, tuple[str | None, str]]:
    """Return, by prefix of a target's entries, its names and its units.

    Empty for a bare history, which has no names.
    """
    config = getattr(history, "config", {})
    out: dict[str, tuple[str | None, str]] = {}
    for i, (name, info) in enumerate(config.get("targets", {}).items()):
        out["" if i == 0 else f"{name}_"] = (
            f"{name} {info.get('source', name)}",
            str(info.get("units", "")),
        )
    return out


def _target(
    history: Sequence[Mapping[str, Any]], names: Mapping[str, tuple[str | None, str]], name: Given
) -> tuple[str, str]:
    """Return the prefix and suffix of a target's entries."""
    keys = [
        k.removeprefix("training_")
        for k in history[-1]
        if k.startswith("training_") and "rmse" in k
    ]
    found = {k.split("rmse")[0]: k.split("rmse")[1] for k in keys}
    if not found:
        return "", ""
    if name is None:
        front = "" if "" in found else next(iter(found))
        return front, found[front]
    known = {word: front for front, (words, _) in names.items() for word in str(words).split()}
    known |= {"all": "base_"} if "base_" in found else {}
    known |= {
        f.rstrip("_"): f for f in found if f not in ("", "base_") and f.rstrip("_") not in known
    }
    if name not in known:
        raise OptionError(
            f"the history has no {name!r}; it has {sorted(known) or 'one target without a name'}.",
            fix="use xaurora.learning_curves(tuned) with the tuned model itself, or remove name=",
        )
    return known[name], found[known[name]]


def _words(unit: str, units: str = "", *, base: bool = False) -> str:
    return (
        " in mm"
        if unit == "_mm"
        else " in standard deviations"
        if base
        else f" in {units}"
        if units
        else ""
    )


def _training(ax: AnyAxes, steps: np.ndarray, values: Sequence[float], label: str) -> None:
    array = np.asarray(values, dtype=float)
    ax.plot(steps, array, color="0.85", linewidth=0.7)
    width = max(len(array) // 50, 1)
    smooth = np.convolve(array, np.ones(width) / width, mode="valid")
    ax.plot(steps[width - 1 :], smooth, color=_TRAINING, label=label)

"""Learning curves: loss, RMSE and MAE in training and validation, and the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xaurora.errors import OptionError

_TRAINING, _VALIDATION = "#1f5aa6", "#a0287d"


def learning_curves(history: Any, *, name: str | None = None, figure: Any = None) -> Any:
    """Four panels over the steps: loss (and validation CRPS), RMSE and MAE in training and validation, and the learning rate.

    Parameters
    ----------
    history : TunedAurora or sequence of dict
        A tuned model, or its ``history``.
    name : str, optional
        Which target; by default the first, or Aurora's own variables (in units of their standard deviations) where there is none.
    figure : matplotlib figure, optional

    Returns
    -------
    ndarray of matplotlib axes, ``(2, 2)``

    Raises
    ------
    OptionError
        Nothing was trained, or not that target.
    """
    history = list(getattr(history, "history", history))
    if not history:
        raise OptionError("the history is empty: nothing was trained.", fix="ds.aurora.finetune(...) first")
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    steps = np.array([entry["step"] for entry in history])
    front, unit = _target(history, name)
    _training(axes[0, 0], steps, [entry["loss"] for entry in history], "loss")
    axes[0, 0].set_title("loss")
    crps = f"validation_{front}crps{unit}"
    if any(crps in entry for entry in history):
        right = axes[0, 0].twinx()
        scored = [entry for entry in history if crps in entry]
        right.plot([e["step"] for e in scored], [e[crps] for e in scored], "o-", color=_VALIDATION, markersize=4)
        right.axhline(scored[-1][f"validation_{front}climatology_crps{unit}"], color=_VALIDATION, linestyle=":")
        right.set_ylabel("validation CRPS" + _words(unit) + "\n(dotted: climatology)", color=_VALIDATION)
    for ax, score in ((axes[0, 1], "rmse"), (axes[1, 0], "mae")):
        key = f"{front}{score}{unit}"
        _training(ax, steps, [entry.get(f"training_{key}", np.nan) for entry in history], "training")
        scored = [entry for entry in history if f"validation_{key}" in entry]
        values = [e[f"validation_{key}"] for e in scored]
        ax.plot([e["step"] for e in scored], values, "o-", color=_VALIDATION, markersize=4, label="validation")
        ax.set_title(f"{score.upper()}{_words(unit, base=front == 'base_')}")
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


def _target(history: Sequence[Mapping[str, Any]], name: str | None) -> tuple[str, str]:
    """Prefix and suffix of a target's entries."""
    keys = [k.removeprefix("training_") for k in history[-1] if k.startswith("training_") and "rmse" in k]
    found = {k.split("rmse")[0]: k.split("rmse")[1] for k in keys}
    if not found:
        return "", ""
    if name is None:
        front = "" if "" in found else next(iter(found))
    else:
        front = f"{name}_" if f"{name}_" in found else ""
        if front not in found or (front == "" and len(found) > 1 and name not in ("", "tp")):
            raise OptionError(
                f"the history holds no {name!r}; it holds {[k.rstrip('_') or 'the first target' for k in found]}.",
                fix="leave name out",
            )
    return front, found[front]


def _words(unit: str, *, base: bool = False) -> str:
    return " in mm" if unit == "_mm" else " in standard deviations" if base else ""


def _training(ax: Any, steps: np.ndarray, values: Sequence[float], label: str) -> None:
    array = np.asarray(values, dtype=float)
    ax.plot(steps, array, color="0.85", linewidth=0.7)
    width = max(len(array) // 50, 1)
    smooth = np.convolve(array, np.ones(width) / width, mode="valid")
    ax.plot(steps[width - 1 :], smooth, color=_TRAINING, label=label)

"""Curves: learning (loss, RMSE, MAE, learning rate) and scores by lead time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import MissingVariableError, OptionError
from xaurora.fields import variables

_TRAINING, _VALIDATION = "#1f5aa6", "#a0287d"


def learning_curves(history: Any, *, name: str | None = None, figure: Any = None) -> Any:
    """Four panels over the steps: loss (and validation CRPS), RMSE and MAE in training and
    validation, and the learning rate.

    Parameters
    ----------
    history : TunedAurora or sequence of dict
        A tuned model, or its ``history``.
    name : str, optional
        Which target, or ``"all"`` for Aurora's own variables (in units of their standard
        deviations); by default the first.
    figure : matplotlib figure, optional

    Returns
    -------
    ndarray of matplotlib axes, ``(2, 2)``

    Raises
    ------
    OptionError
        Nothing was trained, or not that target.
    """
    names = _names(history)
    history = getattr(history, "history", history)
    if not isinstance(history, list | tuple) or not all(
        isinstance(e, Mapping) and "step" in e for e in history
    ):
        raise OptionError(
            f"{type(history).__name__} is no tuned model and no history of one.",
            fix="xaurora.learning_curves(tuned)",
        )
    if not history:
        raise OptionError(
            "the history is empty: nothing was trained.", fix="ds.aurora.finetune(...) first"
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


def _names(history: Any) -> dict[str, tuple[str | None, str]]:
    """Prefix of a target's entries → its names, and its units; of a bare history nothing is known."""
    config = getattr(history, "config", {})
    out: dict[str, tuple[str | None, str]] = {}
    for i, (name, info) in enumerate(config.get("targets", {}).items()):
        out["" if i == 0 else f"{name}_"] = (
            f"{name} {info.get('source', name)}",
            str(info.get("units", "")),
        )
    return out


def _target(
    history: Sequence[Mapping[str, Any]], names: Mapping[str, tuple[str | None, str]], name: Any
) -> tuple[str, str]:
    """Prefix and suffix of a target's entries."""
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
            f"the history holds no {name!r}; it holds"
            f" {sorted(known) or 'one target, whose name it does not say'}.",
            fix="xaurora.learning_curves(tuned) with the tuned model itself, or name left out",
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


def _training(ax: Any, steps: np.ndarray, values: Sequence[float], label: str) -> None:
    array = np.asarray(values, dtype=float)
    ax.plot(steps, array, color="0.85", linewidth=0.7)
    width = max(len(array) // 50, 1)
    smooth = np.convolve(array, np.ones(width) / width, mode="valid")
    ax.plot(steps[width - 1 :], smooth, color=_TRAINING, label=label)


def lead_curve(
    scores: xr.Dataset | Mapping[str, xr.Dataset],
    name: str = "tp",
    metric: str = "rmse",
    *,
    region: str | None = None,
    level: float | None = None,
    intervals: bool = True,
    ax: Any = None,
) -> Any:
    """One metric by lead time, one line a forecast.

    Parameters
    ----------
    scores : Dataset or dict of Dataset
        Label → what ``evaluate`` gave.
    name, metric, region, level
        What to draw; by default the first region and level. Variables that mean the same are found
        under other names as well.
    intervals : bool
        With two forecasts or more, bars on the first one's line: the 95 % interval of its
        difference to the next that it can be paired with (:func:`xaurora.significance`).
    ax : matplotlib axes, optional
    """
    from xaurora.plots.diagrams import COLOURS, axes, label_of, labelled, shown

    ax = axes(ax, (6.0, 4.0))
    units, several = "", labelled(scores)
    first = next(iter(several.values()))
    key = first[name].attrs.get("xaurora_variable") if name in first else None
    for (label, ds), colour in zip(several.items(), COLOURS * 9, strict=False):
        found = (
            name
            if name in ds
            else next(
                (
                    str(n)
                    for n in ds.data_vars
                    if key and ds[n].attrs.get("xaurora_variable") == key and "metric" in ds[n].dims
                ),
                None,
            )
        )
        if found is None or metric not in ds["metric"].values:
            continue
        da = ds[found].sel(metric=metric)
        if kept := [str(d) for d in da.dims if d not in ("region", "lead_time", "level")]:
            raise OptionError(
                f"the scores {label!r} are kept apart by {', '.join(kept)}, and a curve goes over"
                " lead times.",
                fix=f"scores.isel({kept[0]}=0, drop=True)",
            )
        if region is None:
            region = str(da["region"].values[0])
        if region not in da["region"].values:
            continue  # a curve of another region is no comparison
        da = da.sel(region=region)
        if "level" in da.dims:
            if level is not None and level not in da["level"].values:
                raise OptionError(
                    f"the scores hold no level {level!r}; they hold {da['level'].values.tolist()}.",
                    fix=f"level={da['level'].values[0]:g}",
                )
            da = da.isel(level=0) if level is None else da.sel(level=level)
        if not np.isfinite(da.values).any():
            continue
        own, units = shown(ds[found], name, metric)
        factor = own if ds is first else own * _alike(first, name, ds, found, metric)
        hours = ds["lead_time"].values / np.timedelta64(1, "h")
        ax.plot(hours, da.values * factor, "o-", label=label, color=colour, markersize=4)
        bars = (
            _bars(first, ds, name, found, metric, region, level)
            if intervals and ds is not first
            else None
        )
        if (
            bars is not None
        ):  # what the first forecast would score at either end of the interval of its skill
            reference = da.sel(lead_time=bars["lead_time"]).values * factor
            middle = (1.0 - bars.sel(estimate="skill").values) * reference
            low, high = ((1.0 - bars.sel(estimate=e).values) * reference for e in ("high", "low"))
            at = bars["lead_time"].values / np.timedelta64(1, "h")
            ax.errorbar(
                at,
                middle,
                [middle - low, high - middle],
                fmt="none",
                ecolor=COLOURS[0],
                capsize=3,
                linewidth=1,
            )
            intervals = False  # one set of bars is enough
    if not ax.lines:
        raise MissingVariableError(
            f"none of these scores holds {metric!r} of '{name}'.",
            fix=f"evaluate(truth, metrics=[{metric!r}])",
        )
    leads: Any = np.unique(np.concatenate([line.get_xdata() for line in ax.lines]))
    if len(leads) <= 12:
        ax.set_xticks(leads)
    ax.set_xlabel("lead time in h")
    ax.set_ylabel(f"{label_of(metric)} of {name}" + (f" in {units}" if units else ""))
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.legend(frameon=False)
    return ax


def _alike(first: xr.Dataset, name: str, ds: xr.Dataset, found: str, metric: str) -> float:
    """What brings a score of other units to those of the first, where both are known and are not
    rain, which is shown in mm in any case.
    """
    from xaurora.evaluation.metrics import ALIASES, METRICS

    known = variables.find(name)
    kind = (
        METRICS[ALIASES.get(metric, metric)].units if ALIASES.get(metric, metric) in METRICS else ""
    )
    if name not in first or known is None or known.accumulated or kind == "":
        return 1.0
    scales = [
        variables.conversion(str(d[n].attrs.get("units", "")), known.units)
        for d, n in ((first, name), (ds, found))
    ]
    if scales[0] is None or scales[1] is None:
        return 1.0
    return float((scales[1][0] / scales[0][0]) ** (2 if kind == "square" else 1))


def _bars(
    first: xr.Dataset,
    other: xr.Dataset,
    name: str,
    found: str,
    metric: str,
    region: str | None,
    level: float | None,
) -> xr.DataArray | None:
    """Interval of the first forecast's skill against another, where there is one; scores that are
    better when small.
    """
    from xaurora.errors import XauroraError
    from xaurora.evaluation.metrics import ALIASES, METRICS
    from xaurora.evaluation.significance import significance

    if METRICS[ALIASES.get(metric, metric)].better != "low":
        return None
    try:
        # Only what this curve needs: the others' samples would be drawn as well.
        alone = (
            ds.drop_vars(
                [c for c in ds.coords if "__" in str(c) and not str(c).startswith(f"{n}__")]
            )
            for ds, n in ((first, name), (other, found))
        )
        result = significance(*alone, metrics=[metric])
    except XauroraError:
        return None
    if name not in result:
        return None
    da = result[name].sel(metric=metric)
    da = da.isel(region=0) if region is None else da.sel(region=region)
    if "level" in da.dims:
        da = da.isel(level=0) if level is None else da.sel(level=level)
    return da if bool(np.isfinite(da.sel(estimate="low")).any()) else None

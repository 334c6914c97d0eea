"""``xaurora demo``: fine-tune, forecast and score offline.

The data come from a known distribution, so the best possible score is known exactly.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora import plots
from xaurora.errors import SaveError
from xaurora.evaluation import aggregation, baselines, climatology
from xaurora.evaluation.compare import compare
from xaurora.fields.grid.weights import latitude_weights
from xaurora.sources import synthesis
from xaurora.training import curves
from xaurora.utils import figures, storage

if TYPE_CHECKING:
    from xaurora.model.tuned import TunedAurora
    from xaurora.utils.types import AnyAxes

LEADS = ("6h", "12h", "18h", "24h")
_PAST = 540  # times used for training and model selection
_TIMES = 600
_SCORED = 40  # init times


def exact_scores(ds: xr.Dataset, init_times: np.ndarray) -> dict[str, xr.Dataset]:
    """Return the exact CRPS of the perfect forecaster and of climatology, by lead time.

    Both use the true distribution of the data. The perfect forecaster also uses the initial state.

    Parameters
    ----------
    ds : Dataset
        From :func:`xaurora.synthetic`.
    init_times : ndarray of datetime64
        Init times of the forecast.

    Returns
    -------
    dict of Dataset
        Scores by forecaster, in the layout of ``evaluate``.
    """
    weights = np.repeat(
        latitude_weights(ds["latitude"].values)[:, None], ds.sizes["longitude"], axis=1
    )
    out = {}
    for name, scorer in (
        ("perfect forecaster", synthesis.perfect_crps),
        ("climatology", synthesis.climatology_crps),
    ):
        values = []
        for lead in baselines.durations(LEADS):
            hours = int(lead / np.timedelta64(1, "h"))
            score = scorer(ds, hours).sel(init_time=init_times).values
            values.append(aggregation.area_mean(score, weights, skipna=False).mean())
        tp = (("metric", "region", "lead_time"), np.array(values)[None, None], {"units": "m"})
        out[name] = xr.Dataset(
            {"tp": tp},
            {"metric": ["crps"], "region": ["global"], "lead_time": baselines.durations(LEADS)},
        )
    return out


def run(out: Path, *, steps: int = 200, progress: bool = True) -> str:
    """Run the demo and return a text summary of the results.

    It creates data, fine-tunes ``tiny-pretrained`` on precipitation, forecasts, scores and draws.

    Parameters
    ----------
    out : path
        Folder for all output.
    steps : int
        Training steps of four samples each.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    str
        A table of the CRPS by lead time, with an interpretation.
    """
    import matplotlib

    from xaurora import accessor  # noqa: F401  (registers ds.aurora)

    matplotlib.use("Agg")
    began = time.monotonic()
    with storage.wrap_write_errors(out):
        if out.exists() and not out.is_dir():
            raise SaveError(f"'{out}' is a file.", fix="--out another-folder")
        out.mkdir(parents=True, exist_ok=True)
    ds = synthesis.synthetic(times=_TIMES)
    with storage.wrap_write_errors(out):
        storage.replace_file(out / "fields.nc", lambda path: ds.to_netcdf(path, engine="netcdf4"))
    past = ds.isel(time=slice(None, _PAST))
    # As with a real Aurora, the pretrained backbone is frozen and a new head learns precipitation.
    tuned = past.aurora.finetune(
        "tp",
        model="tiny-pretrained",
        strategy="frozen",
        steps=steps,
        batch_size=4,
        out=out / "run",
        overwrite=True,  # the command has asked before
        progress=progress,
    )
    # Skip one time, so that no input of a forecast was used in training or in choosing the best
    # checkpoint.
    held_out = ds["time"].values[_PAST + 1 : _PAST + 1 + _SCORED]
    forecast = ds.aurora.predict(
        LEADS[-1],
        model=tuned,
        time=held_out,
        thresholds_mm=(1.0,),
        variables=["t2m", "msl", "tp"],
        progress=progress,
    )
    storage.replace_file(
        out / "forecast.nc", lambda path: forecast.to_netcdf(path, engine="netcdf4")
    )

    scores, rivals = _scored(ds, past, forecast, progress)
    storage.replace_file(out / "scores.nc", lambda path: scores.to_netcdf(path, engine="netcdf4"))
    card = scores.aurora.scorecard(
        out / "scorecard.html",
        baseline=rivals,
        name="this forecast",
        title="Scorecard of the demo",
        forecast=forecast,
        truth=ds,
        overwrite=True,
    )
    card.save(out / "scorecard.png", overwrite=True)
    _pictures(out, ds, forecast, {"this forecast": scores, **rivals}, tuned.history)
    return _verdict(out, tuned, scores, rivals, time.monotonic() - began)


def _scored(
    ds: xr.Dataset, past: xr.Dataset, forecast: xr.Dataset, progress: bool
) -> tuple[xr.Dataset, dict[str, xr.Dataset]]:
    """Return scores of the forecast, and of the forecasts it is compared with."""
    normals = climatology.build(past, ["t2m", "msl", "tp"])
    persistence = baselines.persistence(ds, ["t2m", "msl", "tp"], LEADS).sel(
        init_time=forecast["init_time"]
    )
    together = {
        "this forecast": forecast,
        "climatology": baselines.climatology_forecast(normals, forecast),
        "persistence": persistence,
    }
    rivals = compare(
        together, ds, climatology=normals, regions=["global"], metrics="all", progress=progress
    )
    scores = rivals.pop("this forecast")
    exact = exact_scores(ds, forecast["init_time"].values)
    # For precipitation, score climatology as the full distribution, not its mean. Its CRPS is
    # known exactly.
    tp = rivals["climatology"]["tp"].copy()
    tp.loc[{"metric": "crps"}] = exact["climatology"]["tp"].sel(metric="crps")
    rivals["climatology"] = scores_without(rivals["climatology"].assign(tp=tp), "tp__crps")
    rivals["perfect forecaster"] = (
        exact["perfect forecaster"]
        .reindex(metric=scores["metric"].values)
        .assign_attrs({k: scores.attrs[k] for k in ("grid", "fields_scored") if k in scores.attrs})
    )
    return scores, rivals


def scores_without(scores: xr.Dataset, carried: str) -> xr.Dataset:
    """Return scores without the per-init-time values of a statistic whose score was replaced."""
    return scores.drop_vars([c for c in scores.coords if str(c).startswith(carried)])


def _pictures(
    out: Path,
    ds: xr.Dataset,
    forecast: xr.Dataset,
    scores: dict[str, xr.Dataset],
    history: list[dict[str, Any]],
) -> None:
    import matplotlib.pyplot as plt

    def save(name: str, axes: AnyAxes) -> None:
        figure = np.ravel(axes)[0].figure
        figures.save(figure, out / name, dpi=130)
        plt.close(figure)

    save("forecast-6h.png", forecast.aurora.plot("tp", truth=ds))
    save("forecast-24h.png", forecast.aurora.plot("tp", lead="24h", truth=ds))
    chance = forecast["tp_probability"].isel(init_time=0, lead_time=0, threshold=0)
    save(
        "probability-of-1mm-6h.png",
        plots.field(
            chance,
            title="probability of more than 1 mm in the first 6 hours",
            rain=False,
            limits=(0.0, 1.0),
        ),
    )
    save("learning.png", curves.learning_curves(history))
    save("crps-by-lead.png", plots.lead_curve(scores, "tp", "crps"))


def _verdict(
    out: Path, tuned: TunedAurora, scores: xr.Dataset, rivals: dict[str, xr.Dataset], seconds: float
) -> str:
    def crps(which: xr.Dataset, lead: int) -> float:
        return float(which["tp"].sel(metric="crps", region="global").isel(lead_time=lead)) * 1e3

    lines = [
        "",
        (
            "Fine-tuned a tiny, pretrained Aurora on"
            f" {tuned.config['training']['samples']} synthetic samples of precipitation and"
            f" forecast from {scores.attrs['number_of_init_times']} held-out init times."
        ),
        "",
    ]
    lines.append(
        f"{'CRPS of tp in mm (smaller is better)':<40}" + "".join(f"{lead:>8}" for lead in LEADS)
    )
    for name, which in (("this forecast", scores), *rivals.items()):
        lines.append(
            f"  {name:<38}" + "".join(f"{crps(which, i):>8.3f}" for i in range(len(LEADS)))
        )
    gains = [
        (crps(rivals["climatology"], i) - crps(scores, i))
        / (crps(rivals["climatology"], i) - crps(rivals["perfect forecaster"], i))
        for i in range(len(LEADS))
    ]
    lines.append(f"  {'skill (100% is perfect)':<38}" + "".join(f"{g:>8.0%}" for g in gains))
    first = gains[0]
    if first >= 0.7:
        words = (
            "A good forecast: at six hours it achieves most of the possible improvement over"
            " climatology."
        )
    elif first >= 0.3:
        words = (
            "A fair forecast: at six hours it achieves part of the possible improvement over"
            " climatology. Train for more steps."
        )
    elif first > 0.0:
        words = "That is a weak forecast, little better than climatology. Train for more steps."
    else:
        words = "That is no better than climatology. Train for more steps."
    lines += [
        "",
        words,
        (
            "The perfect forecaster knows the distribution and initial state; no forecast can do"
            f" better. Total time: {seconds:.0f} s."
        ),
        "",
        (
            f"See {out / 'scorecard.html'} and the figures in the same folder. Continue with:"
            f" xaurora predict {out / 'fields.nc'} --model {out / 'run'} --out next.nc"
        ),
    ]
    return "\n".join(lines)

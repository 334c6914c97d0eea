"""Select and describe the figures of a scorecard. This module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from xaurora.errors import XauroraError
from xaurora.plots.panels import model_colours
from xaurora.utils.types import AnyAxes

Picture = tuple[str, Callable[[], Any], str, bool]


def _has(ds: xr.Dataset, name: str, metric: str | None = None) -> bool:
    if name not in ds or (
        metric is not None and ("metric" not in ds.coords or metric not in ds["metric"].values)
    ):
        return False
    da = ds[name] if metric is None else ds[name].sel(metric=metric)
    return bool(np.isfinite(da.isel(region=0)).any())


def lead_time_figures(scores: xr.Dataset, models: Mapping[str, xr.Dataset]) -> Iterator[Picture]:
    """Yield curves of scores over lead time, with all models, for up to four variables."""
    from xaurora import plots

    if scores.sizes["lead_time"] < 2:
        return
    shown = 0
    for name in map(str, scores.data_vars):
        for metric in ("crps", "rmse"):
            if (
                shown < 4
                and "metric" in scores[name].dims
                and "threshold_mm" not in scores[name].dims
                and "quantile" not in scores[name].dims
                and _has(scores, name, metric)
                and not (metric == "crps" and _is_mae(scores, name))
            ):
                shown += 1
                region = str(scores["region"].values[0])
                yield (
                    f"{metric.upper()} of {name}",
                    partial(
                        plots.lead_curve, models, name, metric, colours=model_colours(list(models))
                    ),
                    (
                        f"Region {region}. Bars are the 95 % interval of the difference to the"
                        " first baseline, if there is one."
                    ),
                    False,
                )
                break


def _is_mae(ds: xr.Dataset, name: str) -> bool:
    """Return whether the CRPS equals the MAE, as for deterministic forecasts."""
    if "mae" not in ds["metric"].values:
        return False
    return bool(
        np.allclose(
            ds[name].sel(metric="crps"), ds[name].sel(metric="mae"), rtol=1e-12, equal_nan=True
        )
    )


def precipitation_figures(
    scores: xr.Dataset,
    models: Mapping[str, xr.Dataset],
    name: str,
    published: Mapping[str, xr.Dataset] | None,
) -> Iterator[Picture]:
    """Yield the figures of precipitation that these scores allow."""
    yield from _threshold_figures(scores, models, name)
    yield from _probability_figures(scores, models, name)
    yield from _structure_figures(scores, name)
    if published:
        yield from _published_figures(scores, name, published)


_BY_THRESHOLD = {
    "csi": (
        "CSI by threshold",
        "Critical success index: hits / (hits + misses + false alarms). 1 is perfect.",
    ),
    "ets": (
        "ETS by threshold",
        "Equitable threat score: CSI corrected for random hits. 1 is perfect, 0 is no better than"
        " chance.",
    ),
    "frequencybias": (
        "Frequency bias",
        "How often the forecast exceeds the threshold, divided by how often the truth does. Above 1"
        " is too often.",
    ),
}


def _threshold_figures(
    scores: xr.Dataset, models: Mapping[str, xr.Dataset], name: str
) -> Iterator[Picture]:
    """Yield the figures of scores by threshold, neighbourhood and category."""
    from xaurora import plots
    from xaurora.plots import diagrams

    region, colours = str(scores["region"].values[0]), model_colours(list(models))
    with_counts = {n: ds for n, ds in models.items() if _has(ds, f"{name}_exceed", "csi")}
    for metric, (title, words) in _BY_THRESHOLD.items():
        if few := {n: ds for n, ds in with_counts.items() if _has(ds, f"{name}_exceed", metric)}:
            draw = partial(diagrams.threshold_curve, few, name, metric, colours=colours)
            yield title, draw, f"{words} Region {region}, the first lead time.", False
    if _has(scores, f"{name}_exceed", "brier_score_mm"):
        few = {n: ds for n, ds in models.items() if _has(ds, f"{name}_exceed", "brier_score_mm")}
        yield (
            "Brier score by threshold",
            partial(diagrams.threshold_curve, few, name, "brier_score_mm", colours=colours),
            "Mean squared difference between probability and outcome. Smaller is better.",
            False,
        )
    if _has(scores, f"{name}_fss"):
        yield (
            "FSS by scale",
            lambda: diagrams.fss_curve(scores, name),
            "Fractions skill score: agreement of the fractions of wet neighbours. Above ½, the"
            " forecast is useful at that scale.",
            False,
        )
    several = {n: ds for n, ds in models.items() if _has(ds, f"{name}_fss")}
    if len(several) > 1:
        yield (
            "FSS, side by side",
            partial(diagrams.fss_curve, several, name, colours=colours),
            "The same at the middle threshold, the first lead time.",
            False,
        )
    with_seeps = {n: ds for n, ds in models.items() if _has(ds, name, "seeps")}
    if with_seeps and scores.sizes["lead_time"] > 1 and scores["lead_time"].dtype.kind == "m":
        yield (
            "SEEPS",
            partial(plots.lead_curve, with_seeps, name, "seeps", colours=colours),
            "Error in the categories dry, light and heavy, which depend on the climatology. 0 is"
            " perfect, 1 is no skill.",
            False,
        )


def _probability_figures(
    scores: xr.Dataset, models: Mapping[str, xr.Dataset], name: str
) -> Iterator[Picture]:
    """Yield the figures of reliability, calibration and the distribution of amounts."""
    from xaurora.plots import diagrams

    if _has(scores, f"{name}_reliability"):
        yield (
            "Reliability",
            lambda: diagrams.reliability(scores, name),
            "On the diagonal, events forecast with 30 % occur in 30 % of cases. Larger points are"
            " more cases.",
            False,
        )
    others = {n: ds for n, ds in models.items() if _has(ds, f"{name}_reliability")}
    if len(others) > 1:
        yield (
            "Reliability, side by side",
            partial(diagrams.reliability, others, name, colours=model_colours(list(models))),
            "The same at the middle threshold.",
            False,
        )
    if _has(scores, f"{name}_pit") or _has(scores, f"{name}_rank_histogram"):
        yield (
            "Calibration",
            lambda: diagrams.calibration(scores, name),
            "A flat histogram is calibrated, ∪ is too narrow, ∩ too wide, a slope biased.",
            False,
        )
    if _has(scores, f"{name}_intensity"):
        yield (
            "Intensity",
            lambda: diagrams.intensity(scores, name),
            "Share of area and time that exceeds each amount.",
            False,
        )
        yield (
            "Quantiles of the tail",
            lambda: diagrams.quantile_quantile(scores, name),
            "Below the diagonal, the heavy totals of the forecast are too small.",
            False,
        )


def _structure_figures(scores: xr.Dataset, name: str) -> Iterator[Picture]:
    """Yield the figures of spectra and of the mean error."""
    from xaurora.plots import diagrams

    spectra = [
        str(n).removesuffix("_spectrum")
        for n in scores.data_vars
        if str(n).endswith("_spectrum") and not str(n).endswith("_truth_spectrum")
    ]
    if _has(scores, f"{name}_spectrum") and _has(scores, f"{name}_truth_spectrum"):
        yield (
            "Zonal spectrum relative to truth",
            lambda: diagrams.spectrum(scores, name, ratio=True),
            "Below 1, the forecast is smoother than the truth at that scale.",
            False,
        )
    elif spectra:
        yield (
            f"Zonal spectrum of {spectra[0]} relative to truth",
            lambda: diagrams.spectrum(scores, spectra[0], ratio=True),
            f"{name} is a separate distribution at every point and has no spectrum without"
            " members. Below 1, the forecast is smoother than the truth.",
            False,
        )
    if f"{name}_bias_map" in scores:
        yield (
            "Mean error",
            lambda: _bias_map(scores, name),
            "Forecast − truth, mean over init times, at the first lead time.",
            False,
        )


def _published_figures(
    scores: xr.Dataset, name: str, published: Mapping[str, xr.Dataset]
) -> Iterator[Picture]:
    """Yield the figure of published scores beside these."""
    from xaurora import plots

    for metric in ("crps", "rmse"):
        if _has(scores, name, metric) and any(
            metric in ds["metric"].values for ds in published.values()
        ):
            both = {
                "this forecast": scores,
                **{f"{n} (published)": ds for n, ds in published.items()},
            }
            yield (
                f"Compared with published scores, {metric.upper()}",
                partial(plots.lead_curve, both, name, metric),
                "Other grids and years: an order of magnitude, not a comparison.",
                False,
            )
            return


def _bias_map(scores: xr.Dataset, name: str) -> AnyAxes:
    from xaurora import plots

    da = scores[f"{name}_bias_map"].isel(map_lead_time=0)
    return plots.field(da.rename(name), title="", symmetric=True)


def case_figures(
    scores: xr.Dataset, forecast: xr.Dataset, truth: xr.Dataset, name: str
) -> Iterator[Picture]:
    """Yield maps of forecast, truth and difference for the best and the worst init time.

    They are chosen by the mean error over the first region at the first lead time.
    """
    from xaurora.evaluation.carried import carried
    from xaurora.plots import forecasts

    try:
        found = carried(scores, name)
    except XauroraError:
        return
    statistic = next((s for s in ("crps", "absolute_error", "squared_error") if s in found), None)
    if statistic is None or name not in forecast:
        return
    series = found[statistic][0].isel(region=0, carried_lead_time=0)
    series = series.where(found[statistic][1].isel(region=0, carried_lead_time=0) > 0).dropna(
        "init_time"
    )
    lead = scores["carried_lead_time"].values[0]
    if not series.size:
        return
    words = {
        "crps": "CRPS",
        "absolute_error": "mean absolute error",
        "squared_error": "mean squared error",
    }[statistic]
    for label, i in (
        ("Best case", int(np.argmin(series.values))),
        ("Worst case", int(np.argmax(series.values))),
    ):
        init = series["init_time"].values[i]

        def draw(init: np.datetime64 = init) -> AnyAxes:
            return forecasts.forecast(forecast, name, init_time=init, lead=lead, truth=truth)

        yield (
            f"{label}: {str(init)[:13]}",
            draw,
            f"By {words} over the first region at the first lead time.",
            True,
        )

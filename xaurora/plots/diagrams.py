"""Diagrams of scores, by threshold, probability, rank, scale or amount. All take ``ax=``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from xaurora.errors import MissingVariableError, OptionError
from xaurora.fields import variables
from xaurora.plots.panels import (
    COLOURS,
    at_lead,
    at_threshold,
    axes,
    colour_of,
    colour_of_lead,
    display_scale,
    first_scores,
    label_of,
    lead_label,
    middle_threshold,
    plain_ticks,
    scores_by_label,
    select_metric,
    thresholds_axis,
)
from xaurora.utils.types import LeadLike

if TYPE_CHECKING:
    from xaurora.utils.types import AnyAxes


def threshold_curve(
    scores: xr.Dataset | Mapping[str, xr.Dataset],
    name: str = "tp",
    metric: str = "csi",
    *,
    region: str | None = None,
    lead: LeadLike | None = None,
    colours: Mapping[str, str] | None = None,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw a categorical score by threshold.

    With several forecasts, or if ``lead`` is given, there is one line per forecast. Otherwise there
    is one line per lead time.

    Parameters
    ----------
    scores : Dataset or dict of Dataset
        Scores from ``evaluate``, by label.
    name, metric, region, lead
        What to draw. By default the first region and, for several forecasts, the first lead time.
    colours : dict of str, optional
        Colours of the forecasts' lines.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes
    """
    ax = axes(ax)
    several = scores_by_label(scores)
    lines: list[tuple[str, xr.DataArray]] = []
    by_lead = len(several) == 1 and lead is None
    for label, ds in several.items():
        da = select_metric(ds, f"{name}_exceed", metric, region)
        if by_lead:
            leads = [da.isel(lead_time=i) for i in range(da.sizes["lead_time"])]
            lines += [(lead_label(one), one) for one in leads]
        else:
            at = 0 if lead is None else lead
            lines.append((label, select_metric(ds, f"{name}_exceed", metric, region, at)))
    for i, (label, da) in enumerate(lines):
        # Lead times are in order, and so are their colours; those of forecasts tell them apart.
        colour = colour_of_lead(i, len(lines)) if by_lead else colour_of(label, i, colours)
        # A bias of 0 (never exceeded) cannot be shown on a logarithmic axis.
        values = da.where(da > 0) if metric == "frequencybias" else da
        ax.plot(da["threshold_mm"], values, "o-", label=label, color=colour, markersize=4)
    if metric == "frequencybias":
        ax.axhline(1.0, color="0.6", linewidth=0.8)
        plain_ticks(ax, "y")
    elif "brier" in metric:
        ax.set_ylim(bottom=0.0)
    else:
        ax.set_ylim(min(0.0, float(np.nanmin([ax.get_ylim()[0], 0.0]))), 1.0)
    thresholds_axis(ax, lines[0][1]["threshold_mm"].values)
    name_of = {"frequencybias": "frequency bias", "brier_score_mm": "Brier score"}.get(
        metric, label_of(metric)
    )
    one = len({lead_label(da) for _, da in lines}) == 1
    ax.set_ylabel(f"{name_of} at {lead_label(lines[0][1])}" if one else name_of)
    ax.legend(frameon=False, fontsize=8)
    return ax


def fss_curve(
    scores: xr.Dataset | Mapping[str, xr.Dataset],
    name: str = "tp",
    *,
    threshold_mm: float | None = None,
    region: str | None = None,
    lead: LeadLike = 0,
    colours: Mapping[str, str] | None = None,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw the FSS by neighbourhood size.

    With several forecasts there is one line per forecast at ``threshold_mm``, by default the middle
    threshold. For a single forecast there is one line per threshold, or only ``threshold_mm`` if
    given.
    """
    ax = axes(ax)
    several = scores_by_label(scores)
    lines: list[tuple[str, xr.DataArray]] = []
    for label, ds in several.items():
        da = select_metric(ds, f"{name}_fss", None, region, lead)
        if len(several) == 1 and threshold_mm is None:
            lines += [(f"{t:g} mm", da.sel(threshold_mm=t)) for t in da["threshold_mm"].values]
        else:
            lines.append(
                (
                    label,
                    at_threshold(
                        da, middle_threshold(da) if threshold_mm is None else threshold_mm
                    ),
                )
            )
    for i, (label, da) in enumerate(lines):
        colour = colour_of(label, i, colours)
        ax.plot(da["neighborhood_size"], da, "o-", label=label, color=colour, markersize=4)
    ax.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    ax.set_xticks(lines[0][1]["neighborhood_size"].values)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("neighbourhood in grid points")
    one = (
        f" of {float(lines[0][1]['threshold_mm']):g} mm"
        if len({float(da["threshold_mm"]) for _, da in lines}) == 1
        else ""
    )
    ax.set_ylabel(f"FSS{one} at {lead_label(lines[0][1])}")
    ax.legend(frameon=False, fontsize=8)
    return ax


def reliability(
    scores: xr.Dataset | Mapping[str, xr.Dataset],
    name: str = "tp",
    *,
    threshold_mm: float | None = None,
    region: str | None = None,
    lead: LeadLike = 0,
    colours: Mapping[str, str] | None = None,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw a reliability diagram: observed frequency by forecast probability.

    The size of a point is its share of all forecasts, and the diagonal is perfectly reliable. With
    several forecasts there is one line per forecast at ``threshold_mm``, by default the middle
    threshold. For a single forecast there is one line per threshold, or only ``threshold_mm`` if
    given.
    """
    ax = axes(ax, (4.4, 4.2))
    several = scores_by_label(scores)
    lines: list[tuple[str, xr.Dataset, xr.DataArray]] = []
    for label, ds in several.items():
        da = select_metric(ds, f"{name}_reliability", None, region, lead)
        every = da["threshold_mm"].values
        wanted = (
            every
            if len(several) == 1 and threshold_mm is None
            else [middle_threshold(da) if threshold_mm is None else threshold_mm]
        )
        lines += [
            (f"{t:g} mm" if len(several) == 1 else label, ds, at_threshold(da, t)) for t in wanted
        ]
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    for i, (label, ds, da) in enumerate(lines):
        colour = colour_of(label, i, colours)
        at = {k: da[k] for k in ("region", "lead_time", "threshold_mm")}
        share = ds[f"{name}_bin_share"].sel(at).values
        p = ds[f"{name}_forecast_probability"].sel(at).values
        there = share > 1e-4  # below that, too few cases to estimate a frequency
        ax.plot(p[there], da.values[there], "-", color=colour, linewidth=1)
        ax.scatter(
            p[there],
            da.values[there],
            s=8 + 120 * np.sqrt(share[there]),
            color=colour,
            label=label,
            zorder=3,
        )
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_aspect("equal")
    ax.set_xlabel("forecast probability")
    one = (
        f" of {float(lines[0][2]['threshold_mm']):g} mm"
        if len({float(da["threshold_mm"]) for *_, da in lines}) == 1
        else ""
    )
    ax.set_ylabel(f"observed frequency{one}, {lead_label(lines[0][2])}")
    ax.legend(frameon=False, fontsize=8, markerscale=0.6, loc="upper left")
    return ax


def calibration(
    scores: xr.Dataset | Mapping[str, xr.Dataset],
    name: str = "tp",
    *,
    region: str | None = None,
    lead: LeadLike | None = None,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw the PIT histogram, or the rank histogram of an ensemble.

    A flat histogram is calibrated, a ∪ too narrow, a ∩ too wide, and a slope biased. There is one
    line per lead time.
    """
    ax, scores = axes(ax), first_scores(scores)
    pit = f"{name}_pit" in scores
    da = select_metric(scores, f"{name}_pit" if pit else f"{name}_rank_histogram", None, region)
    dim = "pit_bin" if pit else "rank"
    da = da * da.sizes[dim]
    leads = range(da.sizes["lead_time"]) if lead is None else [lead]
    edges = np.linspace(0.0, 1.0, da.sizes[dim] + 1) if pit else np.arange(da.sizes[dim] + 1) - 0.5
    for i, colour in zip(leads, COLOURS * 9, strict=False):
        one = (
            da.isel(lead_time=i)
            if isinstance(i, int)
            else select_metric(scores, str(da.name), None, region, i) * da.sizes[dim]
        )
        ax.stairs(one.values, edges, label=lead_label(one), color=colour, baseline=None)
    ax.axhline(1.0, color="0.6", linewidth=0.8)
    ax.set_ylim(0, max(2.0, 1.05 * float(np.nanmax(da))))
    ax.set_xlabel(
        "probability integral transform of the truth"
        if pit
        else "rank of the truth among the members"
    )
    ax.set_ylabel("relative frequency")
    ax.legend(frameon=False, fontsize=8, ncols=2)
    return ax


def spectrum(
    scores: xr.Dataset | Mapping[str, xr.Dataset],
    name: str = "t2m",
    *,
    region: str | None = None,
    lead: LeadLike | None = None,
    level: float | None = None,
    ratio: bool = False,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw the zonal power spectra of forecast and truth.

    With ``ratio``, draw the spectrum of the forecast divided by that of the truth: below 1, the
    forecast is blurred. There is one line per forecast, or one per lead time for a single forecast.
    """
    ax = axes(ax)
    several = scores_by_label(scores)

    def pick(da: xr.DataArray) -> xr.DataArray:
        if "level" in da.dims:
            da = da.isel(level=0) if level is None else da.sel(level=level)
        return da.isel(zonal_wavenumber=slice(1, None))

    lines = []
    for label, ds in several.items():
        da, y = (
            pick(
                select_metric(
                    ds,
                    f"{name}_{n}",
                    None,
                    region,
                    lead if lead is not None or len(several) == 1 else 0,
                )
            )
            for n in ("spectrum", "truth_spectrum")
        )
        each = range(da.sizes["lead_time"]) if "lead_time" in da.dims else [None]
        for i in each:
            one, truth = (da, y) if i is None else (da.isel(lead_time=i), y.isel(lead_time=i))
            lines.append((lead_label(one) if len(several) == 1 else label, one, truth))
    for (label, one, truth), colour in zip(lines, COLOURS * 9, strict=False):
        ax.plot(
            one["zonal_wavenumber"],
            one / truth if ratio else one,
            label=label,
            color=colour,
            linewidth=1.3,
        )
    if not any(np.isfinite(line.get_ydata()).any() for line in ax.lines):
        raise MissingVariableError(
            f"the spectra of '{name}' are all missing: the region has no complete rows of values.",
            fix="regions=['global'], or a box without missing values",
        )
    if ratio:
        ax.axhline(1.0, color="0.6", linewidth=0.8)
        ax.set_ylim(0, 1.5)
        ax.set_ylabel(f"power of {name} relative to truth")
    else:
        ax.plot(
            lines[0][2]["zonal_wavenumber"],
            lines[0][2],
            color="black",
            linestyle="--",
            linewidth=1.3,
            label="truth",
        )
        if any((np.asarray(line.get_ydata()) > 0).any() for line in ax.lines):
            ax.set_yscale("log")
        ax.set_ylabel(f"zonal power of {name}")
    ax.set_xscale("log")
    ax.set_xlabel("zonal wavenumber")
    ax.legend(frameon=False, fontsize=8)
    return ax


def intensity(
    scores: xr.Dataset | Mapping[str, xr.Dataset],
    name: str = "tp",
    *,
    region: str | None = None,
    lead: LeadLike = 0,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw the share of the area that exceeds each amount, for forecast and truth."""
    ax, scores = axes(ax), first_scores(scores)
    for label, variable, style in (
        ("forecast", f"{name}_intensity", "-"),
        ("truth", f"{name}_truth_intensity", "--"),
    ):
        da = select_metric(scores, variable, None, region, lead)
        over = da.values[::-1].cumsum()[::-1][1:]
        edges = da["intensity_bin"].values[1:]
        there = over > 0
        ax.plot(
            edges[there],
            over[there],
            style,
            label=label,
            color=COLOURS[0] if label == "forecast" else "black",
        )
    wettest = float(edges[there][-1]) if there.any() else 1.0
    ax.set_xlim(
        0.08, max(10.0, 3.0 * wettest)
    )  # limited by the truth; the tail of a distribution has no end
    ax.set_yscale("log")
    ax.set_ylim(1e-7, 1.5)
    plain_ticks(ax, "x")
    ax.set_xlabel("amount in mm")
    ax.set_ylabel("share of area and time that exceeds it")
    ax.legend(frameon=False, fontsize=8)
    return ax


def quantile_quantile(
    scores: xr.Dataset | Mapping[str, xr.Dataset],
    name: str = "tp",
    *,
    region: str | None = None,
    lead: LeadLike = 0,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw quantiles of the forecast against those of the truth, in mm.

    The levels are those of :data:`TAIL`, from about the median of the wet amounts into the tail.
    """
    ax, scores = axes(ax, (4.2, 4.2)), first_scores(scores)
    forecast, truth = tail(scores, name, region=region, lead=lead)
    ax.plot(truth, forecast, "o-", color=COLOURS[0], markersize=4)
    for q, x, y in zip(TAIL, truth, forecast, strict=True):
        if np.isfinite(x) and np.isfinite(y):
            ax.annotate(
                f"{100 * q:g} %", (x, y), textcoords="offset points", xytext=(4, -9), fontsize=7
            )
    both = np.concatenate([forecast, truth])
    both = both[np.isfinite(both)]
    if len(both):
        low, high = both.min() * 0.8, both.max() * 1.25
        ax.plot([low, high], [low, high], color="0.6", linewidth=0.8)
        ax.set_xlim(low, high)
        ax.set_ylim(low, high)
        plain_ticks(ax, "x")
        plain_ticks(ax, "y")
    ax.set_xlabel("truth in mm")
    ax.set_ylabel("forecast in mm")
    return ax


TAIL = (0.8, 0.9, 0.95, 0.99, 0.995, 0.999)
"""Quantile levels of the tail that are drawn."""


def tail(
    scores: xr.Dataset, name: str = "tp", *, region: str | None = None, lead: LeadLike | None = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return amounts of forecast and truth at the levels of :data:`TAIL`, in mm.

    They are interpolated in the intensity distribution. NaN below 0.1 mm.
    """
    out = []
    for variable in (f"{name}_intensity", f"{name}_truth_intensity"):
        da = select_metric(scores, variable, None, region, lead)
        below = da.values.cumsum()[:-1]
        edges = np.log(da["intensity_bin"].values[1:])
        rising = np.concatenate([[True], np.diff(below) > 0])
        level = np.interp(TAIL, below[rising], edges[rising], left=np.nan, right=np.nan)
        out.append(np.exp(level))
    return out[0], out[1]


def error_by_edge(
    scores: xr.Dataset | Mapping[str, xr.Dataset],
    name: str = "t2m",
    metric: str = "rmse",
    *,
    lead: LeadLike | None = None,
    ax: AnyAxes = None,
) -> AnyAxes:
    """Draw a score by distance from the domain's edge, one line per lead time.

    Requires scores computed with ``regions="edge"``.
    """
    ax, scores = axes(ax), first_scores(scores)
    rings = [str(r) for r in scores["region"].values if str(r).startswith("edge ")]
    if not rings:
        raise OptionError(
            "these scores do not contain edge rings.", fix="evaluate(truth, regions='edge')"
        )
    factor, units = display_scale(scores[name], name, metric)
    da = scores[name].sel(metric=metric, region=rings) * factor
    da = da.isel(level=0) if "level" in da.dims else da
    leads = range(da.sizes["lead_time"]) if lead is None else [lead]
    for i, colour in zip(leads, COLOURS * 9, strict=False):
        one = da.isel(lead_time=i) if isinstance(i, int) else at_lead(da, i)
        ax.plot(range(len(rings)), one.values, "o-", label=lead_label(one), color=colour)
    ax.set_xticks(range(len(rings)), [r.removeprefix("edge ") for r in rings], rotation=20)
    ax.set_xlabel("distance from the edge")
    label = known.long_name.lower() if (known := variables.find(name)) else name
    ax.set_ylabel(f"{label_of(metric)} of {label}" + (f" in {units}" if units else ""))
    ax.legend(frameon=False, fontsize=8)
    return ax

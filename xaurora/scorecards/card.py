"""The scorecard: scores beside those of baselines, as one page that opens from disk, and as a picture. Knows nothing of torch."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xaurora import storage, variables
from xaurora.errors import KindError, OptionError, TruthError, XauroraError
from xaurora.evaluation import metrics as _metrics
from xaurora.evaluation import scores as _scores
from xaurora.evaluation.significance import significance
from xaurora.scorecards import page

_SHOWN = ("rmse", "mae", "bias", "acc", "crps", "seeps", "spread_skill_ratio", "blur", "coverage")
"""Metrics of the card; mse says the same as rmse, and the activities are for looking up."""
_LABELS = {"spread_skill_ratio": "spread/skill", "blur": "blur (1 is none)"}
_POINTS = ("acc",)
_WORDS = {
    "small": "AuroraSmall, which its authors made for debugging",
    "tiny": "a toy made here",
    "tiny-pretrained": "a toy pretrained on synthetic fields",
}


@dataclass(frozen=True)
class Row:
    """One line of the card: a variable (at a level) and a metric in one region, by lead time.

    Parameters
    ----------
    region, label, metric, units : str
    values : ndarray, ``(lead,)``
        Of this forecast.
    others : dict of ndarray
        Of the others, by label.
    marks : dict of ndarray of bool
        Where a difference to the first baseline is more than luck, by label; ``""`` for this forecast.
    name : str
        Label of this forecast.
    """

    region: str
    label: str
    metric: str
    units: str
    values: np.ndarray
    others: dict[str, np.ndarray]
    marks: dict[str, np.ndarray] = field(default_factory=dict)
    name: str = "forecast"

    @property
    def metric_label(self) -> str:
        """As it is printed."""
        return _LABELS.get(self.metric, self.metric.upper() if len(self.metric) <= 5 else self.metric.replace("_", " "))

    def of(self, model: str) -> np.ndarray:
        """Values of one model."""
        return self.values if model == self.name else self.others[model]

    def relative(self, model: str, baseline: str | None = None) -> np.ndarray:
        """Relative difference to a baseline, ``(lead,)``; negative is better.

        Of ACC it is that of ``1 − ACC``, what is missing to a perfect pattern; of a ratio that is best at 1, that of its distance from 1. A bias
        and a coverage have none.
        """
        if baseline is None:  # one name: this forecast against it
            model, baseline = self.name, model
        a, b = self.of(model), self.others.get(baseline, np.full(len(self.values), np.nan))
        known = _metrics.METRICS.get(_metrics.ALIASES.get(self.metric, self.metric))
        better = known.better if known else ""
        if better not in ("low", "high", "one"):
            return np.full(len(a), np.nan)
        if better == "high":
            a, b = 1.0 - a, 1.0 - b
        elif better == "one":
            a, b = np.abs(1.0 - a), np.abs(1.0 - b)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((a - b) / b)

    def difference(self, model: str, baseline: str, i: int) -> str:
        """The difference to a baseline in words: per cent, or points of ACC."""
        relative = self.relative(model, baseline)[i]
        if not np.isfinite(relative):
            return ""
        if self.metric in _POINTS:
            return f"{self.of(model)[i] - self.others[baseline][i]:+.2f}"
        return f"{relative:+.1%}" if abs(relative) < 10 else ">+999%"

    def significant(self, model: str, i: int) -> bool:
        """Whether the difference to the first baseline is more than luck."""
        marks = self.marks.get("" if model == self.name else model)
        return marks is not None and bool(marks[i])


@dataclass(frozen=True)
class Scorecard:
    """Scores beside those of baselines and other models.

    Parameters
    ----------
    rows : tuple of Row
    leads : ndarray
        Hours.
    baselines : tuple of str
        The first is what the others are compared with.
    notes : tuple of str
        What was left out, and warnings.
    provenance : tuple of (str, str)
        What the scores rest on.
    figures : tuple
        (heading, figures): each figure is (title, PNG bytes, caption, whether it takes the whole width).
    name, title : str
    level : float
        Of the intervals behind the marks.
    columns : tuple of str
        Leads as they are printed.
    """

    rows: tuple[Row, ...]
    leads: np.ndarray
    baselines: tuple[str, ...]
    notes: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...] = ()
    figures: tuple[tuple[str, tuple[tuple[str, bytes, str, bool], ...]], ...] = ()
    name: str = "forecast"
    title: str = "Scorecard"
    level: float = 0.95
    columns: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """Labels beside this forecast's."""
        return self.baselines

    @property
    def marked(self) -> bool:
        """Whether significance was worked out."""
        return any(row.marks for row in self.rows)

    @property
    def html(self) -> str:
        """A page that needs nothing else."""
        return page.page(self)

    def _repr_html_(self) -> str:
        return self.html

    def plot(self) -> Any:
        """The card as a Matplotlib figure: relative difference to the first baseline, blue is better."""
        return page.picture(self)

    def save(self, path: str | Path) -> Path:
        """Write ``.html`` or ``.png``.

        Raises
        ------
        OptionError
            Another ending.
        SaveError
            Writing failed.
        """
        path = Path(path)
        if path.suffix == ".html":
            storage.replace_file(path, lambda p: _write_text(p, self.html))
        elif path.suffix == ".png":
            import matplotlib.pyplot as plt

            figure = self.plot()
            try:
                storage.replace_file(path, lambda p: figure.savefig(p, dpi=150, format="png"))
            finally:
                plt.close(figure)
        else:
            raise OptionError(
                f"a scorecard is written as .html or .png, and '{path}' is neither.", fix="scorecard('scorecard.html')"
            )
        return path


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def build(
    scores: xr.Dataset,
    path: str | Path | None = None,
    *,
    baseline: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    name: str = "forecast",
    title: str = "Scorecard",
    forecast: xr.Dataset | None = None,
    truth: xr.Dataset | None = None,
    published: Mapping[str, xr.Dataset] | None = None,
    level: float = 0.95,
    seed: int = 0,
    pictures: bool = True,
) -> Scorecard:
    """Make a scorecard. See :meth:`xaurora.accessor.AuroraAccessor.scorecard`.

    Raises
    ------
    KindError
        What is given are no scores.
    OptionError
        Truth without forecast or the reverse; a label twice.
    """
    if not _are_scores(scores):
        raise KindError(
            f"scores have the dims metric, region and lead_time, and this Dataset has {sorted(map(str, getattr(scores, 'dims', ())))}.",
            fix="scores = fc.aurora.evaluate(truth); scores.aurora.scorecard('scorecard.html')",
        )
    if not 0.0 < level < 1.0:
        raise OptionError(f"level={level!r} does not lie between 0 and 1.", fix="level=0.95")
    scores = _whole(scores)
    if (forecast is None) != (truth is None):
        raise OptionError("pictures of cases need forecast and truth.", fix="scorecard(path, forecast=fc, truth=ds)")
    kept = [d for d in _scores.BY if any(d in da.dims for da in scores.data_vars.values())]
    if kept:
        raise KindError(f"these scores are kept apart by {', '.join(kept)}, and a card has one table.", fix=f"scores.isel({kept[0]}=0, drop=True).aurora.scorecard(path)")  # fmt: skip
    others = (
        {}
        if baseline is None
        else dict(baseline)
        if isinstance(baseline, Mapping) and not isinstance(baseline, xr.Dataset)
        else {"baseline": baseline}
    )
    for label, other in others.items():
        if not _are_scores(other):
            raise KindError(
                f"the baseline {label!r} is no Dataset of scores.",
                fix="baseline={'persistence': persistence_forecast.aurora.evaluate(truth)}",
            )
    others = {n: _whole(o) for n, o in others.items()}
    if name in others:
        raise OptionError(f"{name!r} is this forecast's label and a baseline's.", fix="scorecard(path, name='mine')")
    tested, notes = _tests(scores, others, level, seed)
    notes = [*_notes(scores, others), *notes]
    rows: list[Row] = []
    for region in map(str, scores["region"].values):
        for variable in map(str, scores.data_vars):
            if "metric" not in scores[variable].dims or set(scores[variable].dims) - {
                "metric",
                "region",
                "lead_time",
                "level",
            }:
                continue
            for at in scores[variable]["level"].values if "level" in scores[variable].dims else [None]:
                for metric in _in_order(scores):
                    row = _row(scores, others, tested, region, variable, at, metric, name)
                    if row is not None and not _says_the_same(row, rows):
                        rows.append(row)
    figures = () if not pictures else _figures(scores, {name: scores, **others}, forecast, truth, published, notes)
    for label, other in (published or {}).items():
        notes += _period(scores, other, f"{label} (published)")
        if other.attrs.get("grid") != scores.attrs.get("grid"):
            notes.append(f"{label} (published) was scored on another grid ({other.attrs.get('grid', '?')}) and year; it shows an order of magnitude. {other.attrs.get('source', '')}")  # fmt: skip
    binned = scores["lead_time"].dtype.kind in "UO"
    leads = np.arange(scores.sizes["lead_time"]) if binned else scores["lead_time"].values / np.timedelta64(1, "h")
    columns = tuple(map(str, scores["lead_time"].values)) if binned else tuple(f"{v:g} h" for v in leads)
    shown = _in_order(scores)
    if "metric" in scores.coords:
        rest = [m for m in map(str, scores["metric"].values) if m not in shown]
        if rest:
            notes.append(f"Scored, and not in the table: {', '.join(rest)}.")
    card = Scorecard(
        tuple(rows),
        leads,
        tuple(others),
        tuple(dict.fromkeys(notes)),
        _provenance(scores),
        figures,
        name,
        title,
        level,
        columns,
    )
    if path is not None:
        card.save(path)
    return card


def _are_scores(ds: Any) -> bool:
    return isinstance(ds, xr.Dataset) and "region" in ds.coords and any(d in ds.coords for d in ("lead_time", "lead_bin")) and any("xaurora_variable" in da.attrs or "metric" in da.dims for da in ds.data_vars.values())  # fmt: skip


def _whole(scores: xr.Dataset) -> xr.Dataset:
    """With the dims that a selection of one region, metric or lead has taken away."""
    for dim in ("lead_time", "region", "metric"):
        if dim in scores.coords and dim not in scores.dims:
            names = [n for n in scores.data_vars if dim in scores[n].coords]
            carried = {c: scores.coords[c] for c in scores.coords if "__" in str(c) or c == "carried_lead_time"}
            plain = scores.drop_vars(list(carried))
            kept = [c for c in carried if dim != "region" and c in carried]
            scores = plain.assign({n: plain[n].expand_dims(dim) for n in names}).assign_coords(
                {c: carried[c] for c in kept}
            )
    if "lead_bin" in scores.dims:  # columns are what they are
        scores = scores.rename(lead_bin="lead_time")
    return scores


def _says_the_same(row: Row, rows: list[Row]) -> bool:
    """Whether this is a CRPS of single values, which is the MAE above it."""
    mae = next((r for r in rows if (r.region, r.label, r.metric) == (row.region, row.label, "mae")), None)
    if row.metric != "crps" or mae is None:
        return False
    pairs = [(row.values, mae.values), *((v, mae.others[n]) for n, v in row.others.items())]
    return all(np.allclose(a, b, rtol=1e-12, equal_nan=True) for a, b in pairs)


_FEW = 8  # metrics of a table that are all shown


def _in_order(scores: xr.Dataset) -> list[str]:
    """Metrics of the table: those that most people ask for, or all of a few that were chosen."""
    if "metric" not in scores.coords:
        return []
    plain = [
        m
        for m in map(str, scores["metric"].values)
        if m == "coverage" or _metrics.METRICS.get(_metrics.ALIASES.get(m, m), _NOTHING).suffix == ""
    ]
    known = [m for m in plain if _metrics.ALIASES.get(m, m) in _SHOWN]
    others = [m for m in plain if m not in known] if len(plain) <= _FEW else []
    return [*sorted(known, key=lambda m: _SHOWN.index(_metrics.ALIASES.get(m, m))), *others]


_NOTHING = _metrics.Metric((), lambda m: np.empty(0), "", suffix="?")


def _tests(
    scores: xr.Dataset, others: Mapping[str, xr.Dataset], level: float, seed: int
) -> tuple[dict[str, xr.Dataset], list[str]]:
    """Significance of every model against the first baseline, as far as scores carry their init times."""
    if not others:
        return {}, []
    first, *rest = others
    out, notes = {}, []
    for label, ds in (("", scores), *((n, others[n]) for n in rest)):
        try:
            out[label] = significance(ds, others[first], level=level, seed=seed)
        except KindError:
            if label == "":
                notes.append(
                    f"No significance is marked: the scores or those of {first} do not carry their init times one by one."
                )
        except TruthError as why:
            if label == "":
                notes.append(f"No significance is marked: {str(why).splitlines()[0]}")
    if "" in out and not any(np.isfinite(da.sel(estimate="low")).any() for da in out[""].data_vars.values()):
        notes.append(
            f"No significance is marked: {out['']['estimate'].size and out[''].attrs['pairs']} common init times are too few."
        )
    return out, notes


def _notes(scores: xr.Dataset, others: Mapping[str, xr.Dataset]) -> list[str]:
    notes = []
    if scores.attrs.get("fields_without_truth"):
        notes.append(
            f"{scores.attrs['fields_without_truth']} fields without a truth at their valid time were left out."
        )
    if scores.attrs.get("masked"):
        notes.append("Scored where truth and forecasts have values; coverage is that share of the area.")
    for label, other in others.items():
        notes += _period(scores, other, label)
        if other.attrs.get("grid") != scores.attrs.get("grid"):
            notes.append(
                f"{label} was scored on another grid ({other.attrs.get('grid', '?')}); scores on different grids are not comparable."
            )
        if other.attrs.get("fields_scored") != scores.attrs.get("fields_scored"):
            notes.append(
                f"{label} was scored on {other.attrs.get('fields_scored', '?')} fields, this forecast on {scores.attrs.get('fields_scored', '?')}."
            )
    return notes


def _period(scores: xr.Dataset, other: xr.Dataset, label: str) -> list[str]:
    """What to say where totals are over other periods."""
    hours = [int(ds.attrs.get("precipitation_hours", 6)) for ds in (scores, other)]
    return (
        []
        if hours[0] == hours[1]
        else [f"{label} is of precipitation over {hours[1]} h, this forecast over {hours[0]} h: they do not compare."]
    )


def _provenance(scores: xr.Dataset) -> tuple[tuple[str, str], ...]:
    from importlib.metadata import PackageNotFoundError, version

    attrs = scores.attrs
    out = []
    if "xaurora_base" in attrs:
        base = str(attrs["xaurora_base"])
        out.append(("Base model", base + (f" ({_WORDS[base]})" if base in _WORDS else "")))
    for key, label in (
        ("xaurora_strategy", "Strategy"),
        ("xaurora_weights", "Weights"),
        ("forecast_title", "Forecast"),
    ):
        if key in attrs:
            out.append((label, str(attrs[key])))
    if "number_of_init_times" in attrs:
        span = f", {attrs['first_init_time']} to {attrs['last_init_time']}" if "first_init_time" in attrs else ""
        out.append(("Init times", f"{attrs['number_of_init_times']}{span}"))
    out.append(("Fields scored", f"{attrs.get('fields_scored', '?')} of each variable"))
    out.append(("Grid", str(attrs.get("grid", "?"))))
    out.append(
        (
            "Definitions",
            {"weatherbench2": "WeatherBench 2", "weatherbenchx": "WeatherBench-X"}.get(
                str(attrs.get("convention")), "?"
            ),
        )
    )
    if "precipitation_hours" in attrs:
        out.append(("Precipitation", f"totals over {attrs['precipitation_hours']} h"))
    with contextlib.suppress(PackageNotFoundError):
        out.append(("Written by", f"xaurora {version('xaurora')}"))
    return tuple(out)


def _match(scores: xr.Dataset, other: xr.Dataset, name: str) -> str | None:
    """The variable of other scores that means the same, whatever it is called there."""
    if name in other:
        return name
    key = scores[name].attrs.get("xaurora_variable")
    return next(
        (
            str(n)
            for n, da in other.data_vars.items()
            if key and da.attrs.get("xaurora_variable") == key and "metric" in da.dims
        ),
        None,
    )


def _row(
    scores: xr.Dataset,
    others: Mapping[str, xr.Dataset],
    tested: Mapping[str, xr.Dataset],
    region: str,
    name: str,
    level: Any,
    metric: str,
    label: str,
) -> Row | None:
    at = {"region": region, "metric": metric} | ({} if level is None else {"level": level})
    da = scores[name].sel(at)
    if not np.isfinite(da.values).any():
        return None
    known = variables.find(name)
    units, factor = str(da.attrs.get("units", "")), 1.0
    if known is not None and known.accumulated and (scale := variables.conversion(units, "m")):
        units, factor = "mm", 1e3 * scale[0]
    spec = _metrics.METRICS.get(_metrics.ALIASES.get(metric, metric))
    if spec is None or spec.units == "":
        units, factor = "", 1.0
    elif spec.units == "square":
        units, factor = f"({units})²" if " " in units else f"{units}²", factor**2
    beside = {}
    for who, other in others.items():
        values = np.full(len(scores["lead_time"]), np.nan)
        found = _match(scores, other, name)
        if (
            found is not None
            and "metric" in other.coords
            and metric in other["metric"].values
            and region in other["region"].values
            and (level is None or level in other[found].coords.get("level", xr.DataArray([])).values)
        ):
            there = other[found].sel(at)
            own = factor * _factor(da, other[found], known, spec)
            for i, lead in enumerate(scores["lead_time"].values):
                if lead in other["lead_time"].values:
                    values[i] = float(there.sel(lead_time=lead)) * own
        beside[who] = values
    marks = {}
    for who, result in tested.items():
        target = name if who == "" else _match(scores, others[who], name)
        if target in result and metric in result[target]["metric"].values and region in result[target]["region"].values:
            one = result[target].sel(at).reindex(lead_time=scores["lead_time"].values)
            marks[who] = np.asarray((one.sel(estimate="low") > 0) | (one.sel(estimate="high") < 0))
    text = f"{name} {level:g} hPa" if level is not None else name
    return Row(region, text, metric, units, da.values * factor, beside, marks, label)


def _factor(mine: xr.DataArray, other: xr.DataArray, known: Any, spec: Any) -> float:
    """What brings a score of other units to one's own."""
    if spec is None or spec.units == "" or known is None:
        return 1.0
    scales = [variables.conversion(str(da.attrs.get("units", "")), known.units) for da in (mine, other)]
    if scales[0] is None or scales[1] is None:
        return 1.0
    return float((scales[1][0] / scales[0][0]) ** (2 if spec.units == "square" else 1))


def by_threshold(scores: xr.Dataset) -> list[tuple[str, str, str, np.ndarray]]:
    """Scores of yes or no as lines of a table: region, variable with its threshold, metric, values by lead."""
    out = []
    for name in map(str, scores.data_vars):
        if "threshold_mm" not in scores[name].dims or set(scores[name].dims) - {
            "metric",
            "region",
            "lead_time",
            "threshold_mm",
            "neighborhood_size",
        }:
            continue
        da = (
            scores[name]
            if "metric" in scores[name].dims
            else scores[name].expand_dims(metric=[name.rsplit("_", 1)[-1]])
        )
        da = da if "neighborhood_size" in da.dims else da.expand_dims(neighborhood_size=[0])
        for region in map(str, da["region"].values):
            for metric in map(str, da["metric"].values):
                for t in da["threshold_mm"].values:
                    for size in da["neighborhood_size"].values:
                        values = da.sel(region=region, metric=metric, threshold_mm=t, neighborhood_size=size).values
                        if np.isfinite(values).any():
                            beside = f", {size} points" if size else ""
                            out.append((region, f"{name.rsplit('_', 1)[0]} > {t:g} mm{beside}", metric, values))
    return out


# --- pictures --------------------------------------------------------------------------------------------------------------


def _pictures(found: Any, notes: list[str]) -> tuple[tuple[str, bytes, str, bool], ...]:
    """Pictures that can be drawn; one that cannot is said, and does not cost the page."""
    out = []
    for title, draw, caption, wide in found:
        try:
            out.append((title, _png(draw), caption, wide))
        except XauroraError as why:
            notes.append(f"No picture of {title}: {why.args[0] if why.args else why}".split("\n")[0])
    return tuple(out)


def _png(draw: Any) -> bytes:
    """A picture, drawn off screen."""
    import matplotlib.pyplot as plt

    try:
        ax = draw()
    except Exception:
        plt.close("all")
        raise
    figure = np.ravel(ax)[0].figure
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    plt.close(figure)
    return buffer.getvalue()


def _figures(
    scores: xr.Dataset,
    models: dict[str, xr.Dataset],
    forecast: xr.Dataset | None,
    truth: xr.Dataset | None,
    published: Mapping[str, xr.Dataset] | None,
    notes: list[str],
) -> tuple[tuple[str, tuple[tuple[str, bytes, str, bool], ...]], ...]:
    from xaurora.scorecards import pictures

    out = []
    bases = {
        n: n
        for n in map(str, scores.data_vars)
        if "metric" in scores[n].dims and not n.endswith(("_exceed", "_exceed_quantile"))
    }
    bases |= {
        str(n).removesuffix(s): str(n)
        for n in scores.data_vars
        for s in ("_exceed", "_fss", "_reliability")
        if str(n).endswith(s)
    }
    for variable in bases:
        known = variables.find(variable)
        if known is None or not known.accumulated:
            continue
        if made := _pictures(pictures.of_rain(scores, models, variable, published), notes):
            out.append((f"Precipitation ({variable})", made))
        if (
            forecast is not None
            and truth is not None
            and (cases := _pictures(pictures.of_cases(scores, forecast, truth, variable), notes))
        ):
            out.append((f"Cases of {variable}", cases))
    if scores["lead_time"].dtype.kind == "m" and (lines := _pictures(pictures.by_lead(scores, models), notes)):
        out.append(("By lead time", lines))
    return tuple(out)

"""Build a scorecard: scores beside those of baselines, as an HTML page or a figure.

The page is a single file without external resources. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import KindError, OptionError, XauroraError
from xaurora.evaluation import frames
from xaurora.evaluation.autocorrelation import TESTS
from xaurora.evaluation.carried import without_carried
from xaurora.fields import recognition, variables
from xaurora.plots.scorecards import page
from xaurora.plots.scorecards import rows as rows_
from xaurora.plots.scorecards.headlines import headlines
from xaurora.plots.scorecards.marks import compare_all
from xaurora.plots.scorecards.notes import notes_of, period_notes, provenance_rows
from xaurora.plots.scorecards.rows import Row
from xaurora.plots.scorecards.selection import Selection
from xaurora.utils import figures, storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".html", ".png", ".pdf", ".svg")
"""How a card can be written."""


@dataclass(frozen=True)
class Scorecard:
    """Scores beside those of baselines and other models.

    Parameters
    ----------
    rows : tuple of Row
    leads : ndarray
        Lead times in hours.
    baselines : tuple of str
        Labels of the other models. Everything is compared with the first one.
    notes : tuple of str
        What was left out, and warnings.
    provenance : tuple of (str, str)
        What the scores were computed from, as (label, value) pairs.
    figures : tuple
        (heading, figures, whether they are folded). Each figure is (title, PNG bytes, caption,
        whether it spans the full width).
    name, title : str
        Name of this forecast, and title of the page.
    level : float
        Confidence level of the intervals behind the significance marks.
    columns : tuple of str
        Lead times as displayed.
    test : str
        The test of significance, in words.
    """

    rows: tuple[Row, ...]
    leads: np.ndarray
    baselines: tuple[str, ...]
    notes: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...] = ()
    figures: tuple[tuple[str, tuple[tuple[str, bytes, str, bool], ...], bool], ...] = ()
    name: str = "forecast"
    title: str = "Scorecard"
    level: float = 0.95
    columns: tuple[str, ...] = ()
    test: str = ""

    @property
    def marked(self) -> bool:
        """Whether significance was computed."""
        return any(mark.any() for row in self.rows for mark in row.marks.values())

    @property
    def html(self) -> str:
        """The card as a self-contained HTML page."""
        return page.render_html(self)

    def _repr_html_(self) -> str:
        return page.render_compact(self)

    def __repr__(self) -> str:
        lines = [
            f"  {line.text}: {', '.join(page.number(float(v)) for v in line.row.values)}"
            f" {line.row.units}".rstrip()
            for line in headlines(self.rows)
        ]
        return "\n".join([f"{self.title} ({page.summary(self)})", *lines])

    def plot(self) -> Figure:
        """Draw the headline scores as a Matplotlib figure.

        The first block holds the values of this forecast, the others its relative difference to
        each baseline: blue is better.

        Returns
        -------
        matplotlib figure
        """
        from xaurora.plots.scorecards.figure import render_figure

        return render_figure(self)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the card and return the path.

        Parameters
        ----------
        path : path
            ``.html`` for the whole page; ``.png``, ``.pdf`` or ``.svg`` for the headline scores.
        overwrite : bool
            Whether to replace an existing file.

        Raises
        ------
        OptionError
            If the path has another suffix.
        SaveError
            If the file exists, or writing fails.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise OptionError(
                f"a scorecard must be written as one of {', '.join(SUFFIXES)}, got '{path}'.",
                fix="scorecard('scorecard.html')",
            )
        storage.check_overwrite(path, overwrite=overwrite)
        if path.suffix == ".html":
            storage.replace_file(path, lambda p: _write_text(p, self.html))
        else:
            figures.save(self.plot(), path, dpi=150)
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
    test: str = "autoregressive",
    variables: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    levels: Sequence[float] | None = None,
    regions: Sequence[str] | None = None,
    overwrite: bool = False,
    pictures: bool = True,
) -> Scorecard:
    """Build a scorecard. See :meth:`xaurora.accessor.AuroraAccessor.scorecard`.

    Raises
    ------
    KindError
        If the Dataset does not hold scores.
    OptionError
        If only one of forecast and truth is given, or a label occurs twice.
    """
    if path is not None:
        storage.check_overwrite(path, overwrite=overwrite)
    scores, others = _checked(scores, baseline, name)
    if test not in TESTS:
        raise OptionError(
            f"there is no test {test!r}; valid tests are {', '.join(TESTS)}.",
            fix="test='autoregressive'",
        )
    selection = Selection(variables, metrics, levels, regions).resolve(scores)
    if not 0.0 < level < 1.0:
        raise OptionError(f"level must be between 0 and 1, got {level!r}.", fix="level=0.95")
    if (forecast is None) != (truth is None):
        raise OptionError(
            "maps of cases need both forecast and truth.",
            fix="scorecard(path, forecast=fc, truth=ds)",
        )
    tested, notes = compare_all(scores, others, level, name, test)
    notes = [*notes_of(scores, others), *notes]
    models = {name: scores, **others}
    figures = _figures(scores, models, forecast, truth, published, notes) if pictures else ()
    for label, other in (published or {}).items():
        notes += period_notes(scores, other, f"{label} (published)")
        if other.attrs.get("grid") != scores.attrs.get("grid"):
            notes.append(
                f"{label} (published) was scored on another grid ({other.attrs.get('grid', '?')})"
                f" and year: compare orders of magnitude only. {other.attrs.get('source', '')}"
            )
    shown = rows_.table_metrics(scores)
    scored = map(str, scores["metric"].values) if "metric" in scores.coords else ()
    if rest := [m for m in scored if m not in (selection.metrics or shown)]:
        notes.append(f"Scored but not in the tables: {', '.join(rest)}.")
    if more := [str(r) for r in scores["region"].values[1:]] if selection.regions is None else []:
        notes.append(f"Scored but not shown: the regions {', '.join(more)} (regions={more}).")
    lead_time = scores["lead_time"]
    if lead_time.dtype.kind in "UO":  # lead bins
        leads, columns = np.arange(float(lead_time.size)), tuple(map(str, lead_time.values))
    else:
        leads = lead_time.values / np.timedelta64(1, "h")
        columns = tuple(f"{v:g} h" for v in leads)
    # Rows do without what scores carry: each DataArray would bring hundreds of coordinates along.
    plain = {label: without_carried(ds) for label, ds in others.items()}
    card = Scorecard(
        tuple(_rows(without_carried(scores), plain, tested, name, selection)),
        leads,
        tuple(others),
        tuple(dict.fromkeys(notes)),
        provenance_rows(scores),
        figures,
        name,
        title,
        level,
        columns,
        TESTS[test][1],
    )
    if path is not None:
        card.save(path, overwrite=overwrite)
    return card


def _checked(
    scores: xr.Dataset, baseline: xr.Dataset | Mapping[str, xr.Dataset] | None, name: str
) -> tuple[xr.Dataset, dict[str, xr.Dataset]]:
    """Return the scores and those of the baselines by label, after checking them."""
    if not _are_scores(scores):
        raise KindError(
            "expected scores with dims metric, region and lead_time, but this Dataset has"
            f" {sorted(map(str, getattr(scores, 'dims', ())))}.",
            fix="scores = fc.aurora.evaluate(truth); scores.aurora.scorecard('scorecard.html')",
        )
    scores = _whole(scores)
    kept = [d for d in frames.BY if any(d in da.dims for da in scores.data_vars.values())]
    if kept:
        raise KindError(
            f"these scores are grouped by {', '.join(kept)}, but a scorecard has one table.",
            fix=f"scores.isel({kept[0]}=0, drop=True).aurora.scorecard(path)",
        )
    if isinstance(baseline, xr.Dataset):
        baseline = {"baseline": baseline}
    for label, other in (baseline or {}).items():
        if not _are_scores(other):
            raise KindError(
                f"the baseline {label!r} is not a Dataset of scores.",
                fix="baseline={'persistence': persistence_forecast.aurora.evaluate(truth)}",
            )
    if name in (baseline or {}):
        raise OptionError(
            f"{name!r} is the label of both this forecast and a baseline.",
            fix="scorecard(path, name='mine')",
        )
    return scores, {label: _whole(other) for label, other in (baseline or {}).items()}


def _rows(
    scores: xr.Dataset,
    others: Mapping[str, xr.Dataset],
    tested: Mapping[tuple[str, str], xr.Dataset],
    name: str,
    selection: Selection,
) -> list[Row]:
    """Return the rows of the tables."""
    rows: list[Row] = []
    usual = {"metric", "region", "lead_time", "level"}
    metrics = selection.metrics or rows_.table_metrics(scores)
    for region in selection.regions or map(str, scores["region"].values[:1]):
        for variable in map(str, scores.data_vars):
            dims = set(scores[variable].dims)
            if "metric" not in dims or dims - usual:
                continue
            if selection.variables is not None and variable not in selection.variables:
                continue
            for at in scores[variable]["level"].values if "level" in dims else [None]:
                if at is not None and selection.levels is not None and at not in selection.levels:
                    continue
                for metric in metrics:
                    row = rows_.build_row(
                        scores, others, tested, region, variable, at, metric, name
                    )
                    if row is not None and not rows_.repeats_mae(row, rows):
                        rows.append(row)
    return rows


def _are_scores(ds: object) -> bool:
    return (
        isinstance(ds, xr.Dataset)
        and recognition.is_scores(ds)
        and any(d in ds.coords for d in ("lead_time", "lead_bin"))
    )


def _whole(scores: xr.Dataset) -> xr.Dataset:
    """Restore dims that were dropped by selecting one region, metric or lead time."""
    for dim in ("lead_time", "region", "metric"):
        if dim in scores.coords and dim not in scores.dims:
            names = [n for n in scores.data_vars if dim in scores[n].coords]
            carried = {
                c: scores.coords[c]
                for c in scores.coords
                if "__" in str(c) or c == "carried_lead_time"
            }
            plain = scores.drop_vars(list(carried))
            kept = [c for c in carried if dim != "region" and c in carried]
            scores = plain.assign({n: plain[n].expand_dims(dim) for n in names}).assign_coords(
                {c: carried[c] for c in kept}
            )
    if "lead_bin" in scores.dims:  # lead bins become the columns of the table
        scores = scores.rename(lead_bin="lead_time")
    return scores


# --- figures --------------------------------------------------------------------------------------


def _pictures(
    found: Iterable[tuple[str, Callable[[], Any], str, bool]], notes: list[str]
) -> tuple[tuple[str, bytes, str, bool], ...]:
    """Draw the figures that can be drawn. One that fails becomes a note."""
    out = []
    for title, draw, caption, wide in found:
        try:
            out.append((title, _png(draw), caption, wide))
        except XauroraError as why:
            notes.append(f"No figure of {title}: {why.args[0] if why.args else why}".split("\n")[0])
    return tuple(out)


def _png(draw: Callable[[], Any]) -> bytes:
    """Render a figure as PNG bytes."""
    import matplotlib.pyplot as plt

    try:
        ax = draw()
    except Exception:
        plt.close("all")
        raise
    figure = np.ravel(ax)[0].figure
    content = figures.rendered(figure, dpi=110)
    plt.close(figure)
    return content


def _figures(
    scores: xr.Dataset,
    models: dict[str, xr.Dataset],
    forecast: xr.Dataset | None,
    truth: xr.Dataset | None,
    published: Mapping[str, xr.Dataset] | None,
    notes: list[str],
) -> tuple[tuple[str, tuple[tuple[str, bytes, str, bool], ...], bool], ...]:
    """Return the figures: those of precipitation, of cases, and folded by lead time."""
    from xaurora.plots.scorecards import pictures

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
        if made := _pictures(
            pictures.precipitation_figures(scores, models, variable, published), notes
        ):
            out.append((f"Precipitation ({variable})", made, False))
        if (
            forecast is not None
            and truth is not None
            and (
                cases := _pictures(pictures.case_figures(scores, forecast, truth, variable), notes)
            )
        ):
            out.append((f"Cases of {variable}", cases, False))
    if scores["lead_time"].dtype.kind == "m" and (
        lines := _pictures(pictures.lead_time_figures(scores, models), notes)
    ):
        out.append(("By lead time", lines, True))
    return tuple(out)

"""Build a scorecard: scores beside those of baselines, as an HTML page or a figure.

The page is a single file without external resources. This module does not import torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xaurora.errors import KindError, OptionError, TruthError, XauroraError
from xaurora.evaluation import frames
from xaurora.evaluation.autocorrelation import FEWEST, false_discovery
from xaurora.evaluation.significance import significance
from xaurora.fields import recognition, variables
from xaurora.plots.scorecards import page
from xaurora.plots.scorecards import rows as rows_
from xaurora.plots.scorecards.notes import notes_of, period_notes, provenance_rows
from xaurora.plots.scorecards.rows import Row
from xaurora.utils import storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        Label and value of what the scores are based on.
    figures : tuple
        (heading, figures). Each figure is (title, PNG bytes, caption, whether it spans the full
        width).
    name, title : str
        Name of this forecast, and title of the page.
    level : float
        Confidence level of the intervals behind the significance marks.
    columns : tuple of str
        Lead times as displayed.
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
    def marked(self) -> bool:
        """Whether significance was computed."""
        return any(row.marks for row in self.rows)

    @property
    def html(self) -> str:
        """The card as a self-contained HTML page."""
        return page.render_html(self)

    def _repr_html_(self) -> str:
        return self.html

    def plot(self) -> Figure:
        """Draw the card as a Matplotlib figure.

        Colours show the relative difference to the first baseline: blue is better.

        Returns
        -------
        matplotlib figure
        """
        return page.render_figure(self)

    def save(self, path: str | Path) -> Path:
        """Write the card as ``.html`` or ``.png`` and return the path.

        Raises
        ------
        OptionError
            If the path has another suffix.
        SaveError
            If writing fails.
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
                f"a scorecard must be written as .html or .png, got '{path}'.",
                fix="scorecard('scorecard.html')",
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
    scores, others = _checked(scores, baseline, name)
    if not 0.0 < level < 1.0:
        raise OptionError(f"level must be between 0 and 1, got {level!r}.", fix="level=0.95")
    if (forecast is None) != (truth is None):
        raise OptionError(
            "maps of cases need both forecast and truth.",
            fix="scorecard(path, forecast=fc, truth=ds)",
        )
    tested, notes = _tests(scores, others, level)
    notes = [*notes_of(scores, others), *notes]
    models = {name: scores, **others}
    figures = _figures(scores, models, forecast, truth, published, notes) if pictures else ()
    for label, other in (published or {}).items():
        notes += period_notes(scores, other, f"{label} (published)")
        if other.attrs.get("grid") != scores.attrs.get("grid"):
            notes.append(
                f"{label} (published) was scored on another grid ({other.attrs.get('grid', '?')})"
                f" and year and shows only an order of magnitude. {other.attrs.get('source', '')}"
            )
    shown = rows_.table_metrics(scores)
    scored = map(str, scores["metric"].values) if "metric" in scores.coords else ()
    if rest := [m for m in scored if m not in shown]:
        notes.append(f"Scored but not in the table: {', '.join(rest)}.")
    lead_time = scores["lead_time"]
    if lead_time.dtype.kind in "UO":  # lead bins
        leads, columns = np.arange(float(lead_time.size)), tuple(map(str, lead_time.values))
    else:
        leads = lead_time.values / np.timedelta64(1, "h")
        columns = tuple(f"{v:g} h" for v in leads)
    card = Scorecard(
        tuple(_rows(scores, others, tested, name)),
        leads,
        tuple(others),
        tuple(dict.fromkeys(notes)),
        provenance_rows(scores),
        figures,
        name,
        title,
        level,
        columns,
    )
    if path is not None:
        card.save(path)
    return card


def _checked(
    scores: xr.Dataset, baseline: xr.Dataset | Mapping[str, xr.Dataset] | None, name: str
) -> tuple[xr.Dataset, dict[str, xr.Dataset]]:
    """Return the scores and those of the baselines by label, after checking them."""
    if not _are_scores(scores):
        raise KindError(
            "scores have the dims metric, region and lead_time, but this Dataset has"
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
    tested: Mapping[str, xr.Dataset],
    name: str,
) -> list[Row]:
    """Return the rows of the table."""
    rows: list[Row] = []
    usual = {"metric", "region", "lead_time", "level"}
    for region in map(str, scores["region"].values):
        for variable in map(str, scores.data_vars):
            dims = set(scores[variable].dims)
            if "metric" not in dims or dims - usual:
                continue
            for at in scores[variable]["level"].values if "level" in dims else [None]:
                for metric in rows_.table_metrics(scores):
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
    """Restore the dims that selecting one region, metric or lead time has removed."""
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


def _tests(
    scores: xr.Dataset, others: Mapping[str, xr.Dataset], level: float
) -> tuple[dict[str, xr.Dataset], list[str]]:
    """Return the significance of every model against the first baseline, and notes.

    Only scores that carry the values of each init time can be tested.
    """
    if not others:
        return {}, []
    first, *rest = others
    out, notes = {}, []
    for label, ds in (("", scores), *((n, others[n]) for n in rest)):
        try:
            out[label] = significance(ds, others[first], level=level)
        except KindError:
            if label == "":
                notes.append(
                    f"No significance is marked: these scores or those of {first} do not contain"
                    " the values of each init time."
                )
        except TruthError as why:
            if label == "":
                notes.append(f"No significance is marked: {str(why).splitlines()[0]}")
    if "" in out and not any(
        np.isfinite(da.sel(estimate="low")).any() for da in out[""].data_vars.values()
    ):
        notes.append(
            f"No significance is marked: {out['']['estimate'].size and out[''].attrs['pairs']}"
            f" init times in common are too few: at least {FEWEST} are needed."
        )
    for result in out.values():
        # Among many cells some differ by chance.
        found = [da.sel(estimate="p").values.ravel() for da in result.data_vars.values()]
        result.attrs["largest_p"] = false_discovery(np.concatenate(found), 1.0 - level)
    return out, notes


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
            out.append((f"Precipitation ({variable})", made))
        if (
            forecast is not None
            and truth is not None
            and (
                cases := _pictures(pictures.case_figures(scores, forecast, truth, variable), notes)
            )
        ):
            out.append((f"Cases of {variable}", cases))
    if scores["lead_time"].dtype.kind == "m" and (
        lines := _pictures(pictures.lead_time_figures(scores, models), notes)
    ):
        out.append(("By lead time", lines))
    return tuple(out)

"""Commands that show scores and forecasts: scorecards, maps and animations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xaurora.cli.options import (
    Overwrite,
    Quiet,
    Truths,
    check_out,
    given_only,
    labelled,
    open_fields,
    open_truth,
    report_errors,
)

if TYPE_CHECKING:
    import xarray as xr


@report_errors
def scorecard(
    scores: Annotated[Path, typer.Argument(help="File written by evaluate.", show_default=False)],
    baseline: Annotated[
        list[str] | None, typer.Option(help="name=scores.nc of another forecast. Repeatable.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help=".html, or .png, .pdf and .svg for the headlines")
    ] = Path("scorecard.html"),
    name: Annotated[str, typer.Option(help="Name of this forecast.")] = "forecast",
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Scorecard",
    forecast: Annotated[
        str | None, typer.Option(help="The forecast, to show its best and worst cases.")
    ] = None,
    truth: Annotated[
        list[str] | None, typer.Option(help="The truth of those cases. Repeatable.")
    ] = None,
    published: Annotated[
        list[str] | None, typer.Option(help="Published models to draw beside it, such as ifs_hres.")
    ] = None,
    variables: Annotated[
        list[str] | None, typer.Option(help="Show only these variables. Repeatable.")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(help="Show only these metrics. Repeatable.")
    ] = None,
    levels: Annotated[
        list[float] | None, typer.Option(help="Show only these levels in hPa. Repeatable.")
    ] = None,
    regions: Annotated[
        list[str] | None, typer.Option(help="Regions to show, by default the first. Repeatable.")
    ] = None,
    level: Annotated[
        float, typer.Option(help="Confidence level of the intervals that mark differences.")
    ] = 0.95,
    test: Annotated[
        str, typer.Option(help="Test of significance: autoregressive or diebold_mariano.")
    ] = "autoregressive",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a scorecard as a page, or its headlines as an image, compared with baselines."""
    from xaurora.plots.scorecards.card import SUFFIXES

    check_out(out, SUFFIXES, overwrite=overwrite)
    others = {
        label: open_scores(path) for label, path in labelled(baseline or [], "baselines").items()
    }
    made = open_fields([forecast]) if forecast else None
    beside = None
    if published:
        from xaurora.evaluation.published import published_scores

        beside = published_scores(models=published)
    open_scores(str(scores)).aurora.scorecard(
        out,
        baseline=others or None,
        name=name,
        title=title,
        forecast=made,
        truth=open_truth(list(truth), made) if truth else None,
        published=beside,
        level=level,
        test=test,
        overwrite=overwrite,
        **given_only(variables=variables, metrics=metrics, levels=levels, regions=regions),
    )
    typer.echo(f"Wrote {out}.")


PICTURES = (".png", ".pdf", ".svg")


@report_errors
def plot(
    file: Annotated[str, typer.Argument(help="A forecast, or fields.", show_default=False)],
    out: Annotated[Path, typer.Option(help=".png, .pdf or .svg; .gif or .mp4 of all lead times")],
    name: Annotated[str, typer.Option(help="The variable.")] = "tp",
    init_time: Annotated[str | None, typer.Option(help="Init time, by default the first.")] = None,
    lead: Annotated[str | None, typer.Option(help="Lead time, by default the first.")] = None,
    level: Annotated[float | None, typer.Option(help="Pressure level in hPa.")] = None,
    truth: Truths = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw maps of a forecast, beside the truth if it is given, or an overview of a target."""
    from xaurora.plots.animation import MOVIES

    check_out(out, (*PICTURES, *MOVIES), overwrite=overwrite)
    ds = open_fields([file])
    beside = open_truth(list(truth), ds) if truth else None
    if out.suffix in MOVIES:
        ds.aurora.animate(
            out,
            name,
            truth=beside,
            init_time=init_time,
            level=level,
            overwrite=overwrite,
            progress=not quiet,
        )
    else:
        import matplotlib as mpl
        import numpy as np

        from xaurora.utils import figures

        mpl.use("Agg")
        drawn = ds.aurora.plot(name, init_time=init_time, lead=lead, level=level, truth=beside)
        figure = np.ravel(drawn)[0].figure
        figures.save(figure, out, dpi=150)
    typer.echo(f"Wrote {out}.")


def open_scores(path: str) -> xr.Dataset:
    """Open a file of scores as it was written."""
    from xaurora import accessor  # noqa: F401  (registers ds.aurora)
    from xaurora.sources import opening

    return opening.read_as_stored(path)

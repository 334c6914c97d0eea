"""Commands that score forecasts and show the scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xaurora.cli.options import (
    Quiet,
    check_out,
    open_fields,
    open_truth,
    parse_region,
    report_errors,
    write,
)
from xaurora.errors import OptionError

if TYPE_CHECKING:
    import xarray as xr


@report_errors
def evaluate(
    forecast: Annotated[
        str,
        typer.Argument(
            help="A forecast, in xaurora's or WeatherBench2's layout.", show_default=False
        ),
    ],
    files: Annotated[
        list[str] | None, typer.Argument(help="The truth.", show_default=False)
    ] = None,
    truth: Annotated[
        list[str] | None, typer.Option(help="The truth, as an option. Repeatable.")
    ] = None,
    climatology: Annotated[
        Path | None, typer.Option(help="In WeatherBench2's layout, for ACC and SEEPS.")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(help="Such as rmse, crps or csi; or all. Repeatable.")
    ] = None,
    regions: Annotated[
        list[str] | None,
        typer.Option(help="Such as europe, edge, or a box south,north,west,east. Repeatable."),
    ] = None,
    thresholds_mm: Annotated[
        list[float] | None,
        typer.Option(help="Thresholds of categorical precipitation scores, in mm."),
    ] = None,
    neighborhood_sizes: Annotated[
        list[int] | None, typer.Option(help="Odd neighbourhood sizes of the FSS, in grid points.")
    ] = None,
    quantile_levels: Annotated[
        list[float] | None, typer.Option(help="Levels at which quantiles are scored.")
    ] = None,
    accumulate: Annotated[
        str | None, typer.Option(help="Sum precipitation over this period first, such as 24h.")
    ] = None,
    regrid: Annotated[
        str | None, typer.Option(help="conservative: regrid the truth onto the forecast's grid.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Score separately by season, month, hour, year or init_time."),
    ] = None,
    convention: Annotated[
        str, typer.Option(help="weatherbench2 or weatherbenchx.")
    ] = "weatherbench2",
    engine: Annotated[
        str, typer.Option(help="xaurora, or weatherbench2 if it is installed.")
    ] = "xaurora",
    seed: Annotated[int, typer.Option(help="Random seed, for example for ties in ranks.")] = 0,
    skipna: Annotated[bool, typer.Option(help="Leave missing values out.")] = False,
    quiet: Quiet = False,
    out: Annotated[Path | None, typer.Option(help="scores.nc or scores.zarr")] = None,
) -> None:
    """Score a forecast against fields, with the definitions of WeatherBench2."""
    check_out(out)
    paths = [*(files or []), *(truth or [])]
    if not paths:
        raise OptionError("no truth was given.", fix="xaurora evaluate forecast.nc era5/*.nc")
    normals = open_fields([str(climatology)]) if climatology is not None else None
    made = open_fields([forecast])
    chosen = {
        "thresholds_mm": thresholds_mm,
        "neighborhood_sizes": neighborhood_sizes,
        "quantile_levels": quantile_levels,
    }
    more: dict[str, Any] = {k: v for k, v in chosen.items() if v}
    scores = made.aurora.evaluate(
        open_truth(paths, made if regrid is None else None),
        climatology=normals,
        metrics="all" if metrics == ["all"] else metrics or None,
        regions=_parse_regions(regions),
        seed=seed,
        accumulate=accumulate,
        regrid=regrid,
        by=by or (),
        convention=convention,
        engine=engine,
        skipna=skipna,
        progress=not quiet,
        **more,
    )
    if out is not None:
        write(scores, out)
    typer.echo(_table(scores))


def _parse_regions(texts: list[str] | None) -> dict[str, Any] | None:
    """Parse names of regions, and boxes such as ``20,50,0,60``."""
    if not texts:
        return None
    found = {text: parse_region(text) for text in texts}
    return {text: None if value == text else value for text, value in found.items()}


def _table(scores: xr.Dataset) -> str:
    """Format scores as text, with precipitation in mm."""
    from xaurora.evaluation.carried import without_carried
    from xaurora.plots import scorecards

    kept = [
        d
        for d in ("init_time", "season", "month", "hour", "year")
        if any(d in scores[v].dims for v in scores.data_vars)
    ]
    if kept:
        return str(without_carried(scores))
    card = scorecards.build(scores, pictures=False)
    lines = [
        (r.region, r.label, f"{r.metric_label}{' ' + r.units if r.units else ''}", r.values)
        for r in card.rows
    ]
    lines += scorecards.by_threshold(scores)
    widths = [
        max([len(line[i]) for line in lines] + [len(h)]) + 2
        for i, h in enumerate(("region", "variable", "metric"))
    ]
    head = "".join(
        h.ljust(w) for h, w in zip(("region", "variable", "metric"), widths, strict=True)
    )
    table = [head + "".join(f"{c:>12}" for c in card.columns)]
    table += [
        "".join(str(t).ljust(w) for t, w in zip(line[:3], widths, strict=True))
        + "".join(f"{v:>12.4g}" for v in line[3])
        for line in lines
    ]
    return "\n".join([*table, *card.notes, *(f"{k}: {v}" for k, v in card.provenance)])


@report_errors
def scorecard(
    scores: Annotated[Path, typer.Argument(help="File written by evaluate.", show_default=False)],
    baseline: Annotated[
        list[str] | None, typer.Option(help="name=scores.nc of another forecast. Repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="scorecard.html or scorecard.png")] = Path(
        "scorecard.html"
    ),
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
    level: Annotated[
        float, typer.Option(help="Confidence level of the intervals that mark differences.")
    ] = 0.95,
) -> None:
    """Write a scorecard as an HTML page or PNG image, compared with baselines."""
    check_out(out, (".html", ".png"))
    others = {}
    for entry in baseline or []:
        label, found, path = entry.partition("=")
        if not found:
            label, path = Path(entry).stem, entry
        if label in others:
            raise OptionError(
                f"two baselines are called {label!r}.", fix=f"--baseline first={path}"
            )
        others[label] = open_scores(path)
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
    )
    typer.echo(f"Wrote {out}.")


def open_scores(path: str) -> xr.Dataset:
    """Open a file of scores as it was written."""
    from xaurora.sources import opening

    return opening.read_as_stored(path)

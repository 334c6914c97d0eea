"""Commands that score forecasts and show the scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    parse_region,
    report_errors,
    write,
)
from xaurora.errors import OptionError

if TYPE_CHECKING:
    import xarray as xr


Normals = Annotated[Path | None, typer.Option(help="In WeatherBench2's layout, for ACC and SEEPS.")]
Metrics = Annotated[
    list[str] | None, typer.Option(help="Such as rmse, crps or csi; or all. Repeatable.")
]
Regions = Annotated[
    list[str] | None,
    typer.Option(help="Such as europe, edge, or a box south,north,west,east. Repeatable."),
]
Thresholds = Annotated[
    list[float] | None,
    typer.Option(help="Thresholds of categorical precipitation scores, in mm. Repeatable."),
]
Accumulate = Annotated[
    str | None, typer.Option(help="Sum precipitation over this period first, such as 24h.")
]
Regrid = Annotated[
    str | None, typer.Option(help="conservative: regrid the truth onto the forecast's grid.")
]
SkipMissing = Annotated[bool, typer.Option(help="Leave missing values out.")]


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
    truth: Truths = None,
    climatology: Normals = None,
    metrics: Metrics = None,
    regions: Regions = None,
    thresholds_mm: Thresholds = None,
    neighborhood_sizes: Annotated[
        list[int] | None, typer.Option(help="Of the FSS, in grid points, odd. Repeatable.")
    ] = None,
    quantile_levels: Annotated[
        list[float] | None, typer.Option(help="Levels at which quantiles are scored. Repeatable.")
    ] = None,
    accumulate: Accumulate = None,
    regrid: Regrid = None,
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
    seed: Annotated[int, typer.Option(help="Of random draws, such as ties of ranks.")] = 0,
    skipna: SkipMissing = False,
    quiet: Quiet = False,
    out: Annotated[Path | None, typer.Option(help="scores.nc or scores.zarr")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a forecast against fields, with the definitions of WeatherBench2."""
    check_out(out, overwrite=overwrite)
    paths = [*(files or []), *(truth or [])]
    if not paths:
        raise OptionError("no truth was given.", fix="xaurora evaluate forecast.nc era5/*.nc")
    made = open_fields([forecast])
    more = given_only(
        thresholds_mm=thresholds_mm,
        neighborhood_sizes=neighborhood_sizes,
        quantile_levels=quantile_levels,
    )
    scores = made.aurora.evaluate(
        open_truth(paths, made if regrid is None else None),
        climatology=open_fields([str(climatology)]) if climatology is not None else None,
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
        write(scores, out, overwrite=overwrite)
    typer.echo(_table(scores))


@report_errors
def compare(
    forecasts: Annotated[
        list[str],
        typer.Argument(
            help="Forecasts, as name=forecast.nc. The first one is compared with the others.",
            show_default=False,
        ),
    ],
    truth: Truths = None,
    climatology: Normals = None,
    metrics: Metrics = None,
    regions: Regions = None,
    thresholds_mm: Thresholds = None,
    accumulate: Accumulate = None,
    regrid: Regrid = None,
    skipna: SkipMissing = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the scores, one NetCDF file per forecast.")
    ] = None,
    scorecard: Annotated[
        Path | None, typer.Option(help="Also write a scorecard: .html, .png, .pdf or .svg.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Score several forecasts at their common times and points."""
    paths = labelled(forecasts, "forecasts")
    files = {label: out / f"{label}.nc" for label in paths} if out is not None else {}
    for path in files.values():
        check_out(path, overwrite=overwrite)
    if scorecard is not None:
        from xaurora.plots.scorecards.card import SUFFIXES

        check_out(scorecard, SUFFIXES, overwrite=overwrite)
    if not truth:
        raise OptionError(
            "no truth was given.", fix="xaurora compare mine=fc.nc other=p.nc --truth 'era5/*.nc'"
        )
    made = {label: open_fields([path]) for label, path in paths.items()}
    first = next(iter(made))
    import xaurora

    scores = xaurora.compare(
        made,
        open_truth(truth, made[first] if regrid is None else None),
        climatology=open_fields([str(climatology)]) if climatology is not None else None,
        metrics="all" if metrics == ["all"] else metrics or None,
        regions=_parse_regions(regions),
        accumulate=accumulate,
        regrid=regrid,
        skipna=skipna,
        progress=not quiet,
        **given_only(thresholds_mm=thresholds_mm),
    )
    for label, path in files.items():
        write(scores[label], path, overwrite=overwrite)
    others = {label: ds for label, ds in scores.items() if label != first}
    if scorecard is not None:
        scores[first].aurora.scorecard(
            scorecard, baseline=others or None, name=first, overwrite=overwrite
        )
        typer.echo(f"Wrote {scorecard}.")
    typer.echo(_headlines(scores[first], others, first))


def _headlines(scores: xr.Dataset, others: dict[str, xr.Dataset], name: str) -> str:
    """Format the headline scores of several forecasts as text."""
    from xaurora.plots import scorecards
    from xaurora.plots.scorecards.headlines import headlines

    card = scorecards.build(scores, baseline=others or None, name=name, pictures=False)
    lines = [["", "", *card.columns]]
    for line in headlines(card.rows):
        units = f" {line.row.units}" if line.row.units else ""
        for i, model in enumerate((name, *others)):
            values = [f"{v:.4g}" for v in line.row.of(model)]
            lines.append([f"{line.text}{units}" if i == 0 else "", model, *values])
    widths = [max(len(row[i]) for row in lines) + 2 for i in range(len(lines[0]))]
    table = [
        "".join(
            c.ljust(w) if i < 2 else c.rjust(w)
            for i, (c, w) in enumerate(zip(r, widths, strict=True))
        )
        for r in lines
    ]
    return "\n".join([*table, *card.notes])


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

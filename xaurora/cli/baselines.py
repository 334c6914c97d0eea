"""Commands that make baselines: normals and persistence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xaurora.cli.options import (
    Files,
    Overwrite,
    Quiet,
    check_out,
    given_only,
    open_fields,
    report_errors,
    select_period,
    write,
)

Leads = Annotated[list[str], typer.Option(help="Lead times, such as 6h. Repeatable.")]


@report_errors
def climatology(
    files: Files,
    out: Annotated[Path, typer.Option(help=".zarr, written band by band, or .nc")],
    names: Annotated[
        list[str] | None, typer.Option(help="Variables, all by default. Repeatable.")
    ] = None,
    window_days: Annotated[int, typer.Option(help="Length of the window in days, odd.")] = 61,
    statistics: Annotated[
        list[str] | None, typer.Option(help="mean, std or quantile. Repeatable.")
    ] = None,
    quantiles: Annotated[
        list[float] | None, typer.Option(help="Levels for --statistics quantile. Repeatable.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="2016:2021, or one year or date.")] = None,
    leave_out: Annotated[
        str | None, typer.Option(help="A forecast, whose valid days are left out.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compute normals by hour and day of the year, with the fields that SEEPS needs."""
    check_out(out, overwrite=overwrite)
    import xaurora

    ds = open_fields(files)
    made = xaurora.climatology(
        select_period(ds, time),
        names or None,
        window_days=window_days,
        leave_out=open_fields([leave_out]) if leave_out else None,
        store=out if out.suffix == ".zarr" else None,
        overwrite=overwrite,
        progress=not quiet,
        **given_only(statistics=statistics, quantiles=quantiles),
    )
    if out.suffix == ".zarr":
        typer.echo(f"Wrote {out}.")
    else:
        write(made, out, overwrite=overwrite)


@report_errors
def persistence(
    files: Files,
    out: Annotated[Path, typer.Option(help="forecast.nc or forecast.zarr")],
    names: Annotated[
        list[str] | None, typer.Option(help="Variables, all by default. Repeatable.")
    ] = None,
    leads: Leads = ["6h"],  # noqa: B006  (typer reads it and does not change it)
    like: Annotated[
        str | None, typer.Option(help="A forecast whose init and lead times are taken.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="2016:2021, or one year or date.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a forecast that repeats the state of the init time, as a baseline."""
    check_out(out, overwrite=overwrite)
    import xaurora
    from xaurora.evaluation.baselines import times_of

    ds = select_period(open_fields(files), time)
    if like is None:
        made = xaurora.persistence(ds, names or None, leads)
    else:
        times, wanted = times_of(open_fields([like]))
        made = xaurora.persistence(ds, names or None, list(wanted))
        made = made.sel(init_time=[t for t in times if t in made["init_time"].values])
    write(made, out, overwrite=overwrite)

"""The command line: the same verbs and option names as in Python, files in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xaurora.cli import baselines, pictures, scoring, training
from xaurora.cli.options import (
    Files,
    Overwrite,
    Quiet,
    check_out,
    open_fields,
    parse_period,
    plain_text,
    report_errors,
    write,
)
from xaurora.training.options import FinetuneOptions
from xaurora.utils.options import options_of

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than everything else here
    help="Fine-tune, run and score Microsoft's Aurora, with precipitation as a new variable.",
)
ModelName = Annotated[
    str,
    typer.Option(
        help=next(plain_text(o.text) for o in options_of(FinetuneOptions) if o.name == "model")
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from xaurora import __version__

        typer.echo(f"xaurora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Fine-tune, run and score Microsoft's Aurora, with precipitation as a new variable."""


@report_errors
def check(
    files: Files,
    target: Annotated[
        str | None, typer.Option(help="Also check this variable as a training target.")
    ] = None,
    model: ModelName = "small",
    static_file: Annotated[
        Path | None, typer.Option(help="File of the static fields of v1.5.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """List every problem of the data, each with its fix. Exit status 1 if there is one."""
    ds = open_fields(files)
    typer.echo(repr(ds.aurora))
    report = ds.aurora.check(target, model, static_file=static_file)
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)


@report_errors
def stats(
    files: Files,
    names: Annotated[
        list[str] | None, typer.Option(help="Variables, all by default. Repeatable.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="The training period: 2016:2021, or one year or date.")
    ] = None,
    weights: Annotated[str, typer.Option(help="cosine (of latitude), or none.")] = "cosine",
    quantiles: Annotated[
        list[float] | None, typer.Option(help="Such as 0.999. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=".nc or .zarr")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compute mean, spread, extremes, quantiles and count of the variables, in SI units."""
    check_out(out, overwrite=overwrite)
    result = open_fields(files).aurora.statistics(
        names,
        time=parse_period(time) if time else None,
        weights=None if weights == "none" else weights,
        quantiles=quantiles or None,
        progress=not quiet,
    )
    for name in (n for n in result.data_vars if "statistic" in result[n].dims):
        da, tails = result[name], result[f"{name}_quantile"]
        for i, level in enumerate(da["level"].values if "level" in da.dims else [None]):
            at = {} if level is None else {"level": i}
            row = da.isel(at)
            values = [
                f"{label} {value:.6g}"
                for label, value in zip(result["statistic"].values, row.values, strict=True)
                if value == value
            ]
            values += [
                f"{100 * q:g} % {v:.4g}"
                for q, v in zip(result["quantile"].values, tails.isel(at).values, strict=True)
                if q in (0.5, 0.99, 0.9999) or quantiles
            ]
            unit = da.attrs.get("units", "")
            typer.echo(
                f"{name}{'' if level is None else f' {level:g} hPa'} [{unit}]: {', '.join(values)}"
            )
    if out is not None:
        write(result, out, overwrite=overwrite)


@report_errors
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for data, model, forecast, scores and pictures.")
    ] = Path("xaurora-demo"),
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 200,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Run the main workflow offline, on synthetic data whose best possible score is known."""
    from xaurora.utils import storage

    storage.check_overwrite(out, overwrite=overwrite)
    from xaurora.cli.demo import run

    typer.echo(run(out, steps=steps, progress=not quiet))


for command in (
    check,
    stats,
    baselines.climatology,
    baselines.persistence,
    training.prepare,
    training.estimate,
    training.finetune,
    training.merge,
    training.predict,
    scoring.evaluate,
    scoring.compare,
    pictures.scorecard,
    pictures.plot,
    demo,
):
    app.command()(command)


def main() -> None:
    """Entry point of the ``xaurora`` command."""
    app()

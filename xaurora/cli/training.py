"""Commands that prepare, estimate, fine-tune and forecast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xaurora.cli.options import (
    Files,
    Overwrite,
    Quiet,
    Region,
    check_out,
    open_fields,
    parse_period,
    parse_region,
    report_errors,
    shown_options,
    with_options,
    write,
)
from xaurora.errors import OptionError
from xaurora.forecasting.options import PredictOptions
from xaurora.model.options import StrategyOptions
from xaurora.training.options import FinetuneOptions

if TYPE_CHECKING:
    import xarray as xr


@report_errors
def prepare(
    files: Files,
    out: Annotated[
        Path, typer.Option(help="The Zarr store. Run again to resume an interrupted call.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Variables stored beside the model's own, tp by default; 'none' for none."
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="Store the variables and levels that this model takes; 'none' for all."),
    ] = "small",
    region: Region = None,
    time: Annotated[str | None, typer.Option(help="2016:2021, or one year or date.")] = None,
    bits: Annotated[int | None, typer.Option(help="Mantissa bits to keep; all by default.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a local, rechunked store for training, from a slow or huge source."""
    names = target or ["tp"]
    made = open_fields(files).aurora.prepare(
        out,
        target=None if names == ["none"] else names,
        model=None if model == "none" else model,
        region=parse_region(region) if region else None,
        time=parse_period(time) if time else None,
        bits=bits,
        overwrite=overwrite,
        progress=not quiet,
    )
    typer.echo(f"{out}: {made.sizes['time']} times, {made.nbytes / 1e9:.3g} GB before compression.")


def _arguments(
    given: dict[str, Any], files: list[str], quiet: bool
) -> tuple[xr.Dataset, dict[str, Any]]:
    """Return the data, and the arguments of ``finetune`` and ``estimate``."""
    details = {o.name: given.pop(o.name) for o in shown_options(StrategyOptions) if o.name in given}
    if details:
        given["strategy"] = StrategyOptions(given.get("strategy", "frozen"), **details)
    return open_fields(files), {**given, "progress": not quiet}


@report_errors
@with_options(FinetuneOptions, StrategyOptions)
def finetune(files: Files, quiet: Quiet = False, *, given: dict[str, Any]) -> None:
    """Fine-tune an Aurora so that it also predicts six-hour precipitation.

    Other surface variables and Aurora's own (--target all) can be trained as well.
    """
    ds, arguments = _arguments(given, files, quiet)
    tuned = ds.aurora.finetune(**arguments)
    typer.echo(tuned.summary())
    typer.echo(f"Saved in {tuned.path}.")


@report_errors
@with_options(FinetuneOptions, StrategyOptions)
def estimate(
    files: Files,
    quiet: Quiet = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also estimate every base model and strategy.")
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="What trains: auto, cpu or gpu, on any machine.")
    ] = "auto",
    *,
    given: dict[str, Any],
) -> None:
    """Estimate what finetune would cost with the same options, without training.

    Prints peak memory, time, bytes read and disk space.
    """
    ds, arguments = _arguments(given, files, quiet)
    typer.echo(str(ds.aurora.estimate(**arguments, compare=compare, device=device)))


@report_errors
def merge(
    model: Annotated[
        Path, typer.Argument(help="A tuned model with an adapter.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the merged model.")],
    weights: Annotated[
        Path | None, typer.Option(help="Local checkpoint of the base, if it is not saved with it.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Merge the adapter of a tuned model into its weights."""
    import xaurora
    from xaurora.utils import storage

    storage.check_overwrite(out, overwrite=overwrite)
    merged = xaurora.load(model, weights=weights).merge()
    merged.save(out, overwrite=overwrite)
    typer.echo(f"Wrote {out}.")


@report_errors
@with_options(PredictOptions)
def predict(
    files: Files,
    out: Annotated[Path | None, typer.Option(help="forecast.nc or forecast.zarr")] = None,
    quiet: Quiet = False,
    *,
    given: dict[str, Any],
) -> None:
    """Forecast with a tuned or untuned model."""
    overwrite = given.get("overwrite", False)
    check_out(out, overwrite=overwrite)
    if out is None and "store" not in given:
        raise OptionError(
            "no output was given for the forecast.",
            fix="out='forecast.nc', or store='forecast.zarr'",
        )
    forecast = open_fields(files).aurora.predict(**given, progress=not quiet)
    typer.echo(repr(forecast.aurora))
    if out is not None:
        write(forecast, out, overwrite=overwrite)
    else:
        typer.echo(f"Wrote {given['store']}.")

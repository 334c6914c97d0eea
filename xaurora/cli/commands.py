"""Command line interface: the methods of ``ds.aurora``, with files or Zarr stores in and out."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from xaurora.errors import OptionError, XauroraError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune, run and score Microsoft's Aurora, with precipitation as a new variable.",
)

Files = Annotated[
    list[str],
    typer.Argument(
        help=(
            "ERA5 as NetCDF, GRIB or Zarr: surface, pressure-level and static files in any"
            " combination; globs."
        ),
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="tiny, tiny-pretrained, small, base, finetuned, or the folder of a tuned model."
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Local checkpoint of the named model; downloaded by default.")
]
Region = Annotated[
    str | None, typer.Option(help="A name such as europe, or --region=south,north,west,east.")
]
Precision = Annotated[str, typer.Option(help="Precision of the backbone: auto, 32, bf16 or fp16.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Hide progress bars and notes.")]


def _readable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that bad input ends with one readable line and exit status 2."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        logging.basicConfig(
            level=logging.WARNING if kwargs.get("quiet") else logging.INFO,
            format="xaurora: %(message)s",
            stream=sys.stderr,
        )
        for noisy in ("lightning_fabric", "lightning.fabric", "httpx", "fsspec", "matplotlib"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        try:
            return function(*args, **kwargs)
        except XauroraError as error:
            line = f"xaurora: {error.message}" + (f" Fix: {error.fix}" if error.fix else "")
            typer.echo(" ".join(line.split()), err=True)
            raise typer.Exit(2) from None

    return run


def _open(paths: list[str]) -> Any:
    import xaurora

    return xaurora.open(*paths)


def _truth(paths: list[str], grid: Any = None) -> Any:
    """Open files of fields, or of IMERG precipitation if all file names say so."""
    import xaurora
    from xaurora.sources import imerg, opening

    files = opening.expand(paths)
    if all(imerg.is_imerg(file) for file in files):
        return xaurora.open_imerg(files, grid=grid)
    return xaurora.open(*files)


def _period(text: str | None) -> Any:
    """Parse a period: ``2016:2023`` → a pair; ``2024`` → that year."""
    if text is None:
        return None
    start, found, end = text.partition(":")
    return (start or None, end or None) if found else text


def _write(ds: Any, out: Path) -> None:
    """Write NetCDF or Zarr, depending on the suffix, completely or not at all."""
    from xaurora.utils import storage

    if out.suffix == ".zarr":
        if out.exists():
            raise OptionError(f"'{out}' already exists.", fix="another --out, or remove it first")
        storage.replace_folder(out, lambda folder: ds.to_zarr(folder, mode="w", consolidated=False))
    elif out.suffix in (".nc", ".nc4"):
        storage.replace_file(out, lambda path: ds.to_netcdf(path, engine="netcdf4"))
    else:
        raise OptionError(f"'{out}' must end in .nc or .zarr.", fix="--out result.nc")
    typer.echo(f"Wrote {out}.")


def _check_out(out: Path | None, endings: tuple[str, ...]) -> None:
    """Raise for an invalid suffix before hours of work, not after."""
    if out is not None and out.suffix not in endings:
        raise OptionError(
            f"'{out}' must end in one of {', '.join(endings)}.", fix=f"--out result{endings[0]}"
        )


@app.command()
@_readable
def check(
    files: Files,
    target: Annotated[
        str | None, typer.Option(help="Also check this variable as a training target.")
    ] = None,
    model: Model = "small",
) -> None:
    """List every problem of the data, each with its fix. Exit status 1 if there is one."""
    ds = _open(files)
    typer.echo(repr(ds.aurora))
    report = ds.aurora.check(target, model)
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
@_readable
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
    quiet: Quiet = False,
) -> None:
    """Compute mean, spread, extremes, quantiles and count of the variables, in SI units."""
    _check_out(out, (".nc", ".nc4", ".zarr"))
    result = _open(files).aurora.statistics(
        names,
        time=_period(time),
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
        _write(result, out)


def _strategy(name: str, **options: Any) -> Any:
    from xaurora.training.options import StrategyOptions

    return StrategyOptions(name, **options)


def _layers(names: list[str] | None) -> Any:
    """Parse a number of layers, or names of modules."""
    if names and len(names) == 1 and names[0].isdigit():
        return int(names[0])
    return tuple(names) if names else None


@app.command()
@_readable
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
    quiet: Quiet = False,
) -> None:
    """Write a local, rechunked store for training, from a slow or huge source."""
    names = target or ["tp"]
    made = _open(files).aurora.prepare(
        out,
        target=None if names == ["none"] else names,
        model=None if model == "none" else model,
        region=_region(region),
        time=_period(time),
        bits=bits,
        progress=not quiet,
    )
    typer.echo(f"{out}: {made.sizes['time']} times, {made.nbytes / 1e9:.3g} GB before compression.")


@app.command()
@_readable
def finetune(
    files: Files,
    target: Annotated[
        list[str] | None, typer.Option(help="Variables to predict, tp by default. Repeatable.")
    ] = None,
    truth: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Files to take the target from, IMERG included; by default the data themselves."
                " Repeatable."
            )
        ),
    ] = None,
    model: Model = "small",
    weights: Weights = None,
    strategy: Annotated[
        str, typer.Option(help="frozen (head alone), decoder, lora, peft or full.")
    ] = "frozen",
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="decoder: number of layers, or modules; peft: linear layers. Repeatable."
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="lora, peft: rank, 8 by default.")] = None,
    alpha: Annotated[float | None, typer.Option(help="lora, peft: the rank by default.")] = None,
    dropout: Annotated[float | None, typer.Option(help="lora, peft: 0 by default.")] = None,
    mode: Annotated[str | None, typer.Option(help="lora: single, from_second or all.")] = None,
    method: Annotated[str | None, typer.Option(help="peft: lora, dora or rslora.")] = None,
    head: Annotated[
        str,
        typer.Option(
            help=(
                "auto; for tp: censored_normal, hurdle_lognormal, hurdle_gamma, csgd, quantile,"
                " deterministic, lehmann2025; for others: normal, bounded_normal."
            )
        ),
    ] = "auto",
    as_input: Annotated[
        bool, typer.Option("--as-input", help="Also feed the target to the encoder.")
    ] = False,
    train: Annotated[str | None, typer.Option(help="2016:2023, or one year or date.")] = None,
    validation: Annotated[
        str | None, typer.Option(help="Like --train; by default the last fifth of the data.")
    ] = None,
    halo: Annotated[
        int, typer.Option(help="Grid points at a region's edges that are not trained on.")
    ] = 0,
    region: Region = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/<target>-<time> by default.")
    ] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int, typer.Option()] = 1,
    gradient_accumulation: Annotated[int, typer.Option(help="Batches per step.")] = 1,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    head_learning_rate: Annotated[
        float | None, typer.Option(help="For new parameters alone.")
    ] = None,
    schedule: Annotated[str, typer.Option(help="cosine or constant.")] = "cosine",
    warmup: Annotated[int | None, typer.Option(help="Steps of warm-up.")] = None,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    weight_decay: Annotated[float, typer.Option()] = 0.01,
    base_loss: Annotated[
        float, typer.Option(help="Weight of Aurora's own loss if the base trains.")
    ] = 1.0,
    rollout_steps: Annotated[int, typer.Option(help="Six-hour steps per training forecast.")] = 1,
    push_forward: Annotated[
        bool, typer.Option("--push-forward", help="Stop gradients between steps.")
    ] = False,
    replay_buffer: Annotated[
        int | None, typer.Option(help="Forecasts to keep and continue from.")
    ] = None,
    precision: Precision = "auto",
    activation_checkpointing: Annotated[
        str, typer.Option(help="auto, on or off: recompute activations instead of storing them.")
    ] = "auto",
    latents: Annotated[
        str,
        typer.Option(
            help="Cache the latents of a frozen backbone: auto, on, off, or the path of a store."
        ),
    ] = "auto",
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile the backbone's blocks.")
    ] = False,
    ema: Annotated[
        float | None, typer.Option(help="Decay of a moving average of the weights.")
    ] = None,
    early_stopping: Annotated[
        int | None, typer.Option(help="Stop after this many validations without a better score.")
    ] = None,
    validations: Annotated[int, typer.Option(help="Number of validations.")] = 10,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    devices: Annotated[int, typer.Option(help="Devices on each machine.")] = 1,
    num_nodes: Annotated[int, typer.Option(help="Number of machines.")] = 1,
    parallel: Annotated[str, typer.Option(help="auto, ddp or fsdp.")] = "auto",
    workers: Annotated[int, typer.Option(help="Threads that prefetch samples.")] = 2,
    seed: Annotated[int, typer.Option()] = 0,
    quiet: Quiet = False,
) -> None:
    """Fine-tune Aurora to predict six-hour precipitation or other surface variables.

    --target all fine-tunes Aurora's own variables instead.
    """
    ds, arguments = _training_arguments(**locals())
    tuned = ds.aurora.finetune(**arguments)
    typer.echo(tuned.summary())
    typer.echo(f"Saved in {tuned.path}.")


_ON_OFF = {"on": True, "true": True, "off": False, "false": False}


def _training_arguments(
    *,
    files: list[str],
    target: list[str] | None,
    truth: list[str] | None,
    strategy: str,
    layers: list[str] | None,
    rank: int | None,
    alpha: float | None,
    dropout: float | None,
    mode: str | None,
    method: str | None,
    train: str | None,
    validation: str | None,
    activation_checkpointing: str,
    latents: str,
    region: str | None,
    quiet: bool,
    **same: Any,
) -> tuple[Any, dict[str, Any]]:
    """Return the data and the arguments of ``finetune`` and ``estimate`` from command options."""
    names = target or ["tp"]
    how = _strategy(
        strategy,
        layers=_layers(layers),
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        mode=mode,
        method=method,
    )
    return _open(files), {
        **same,
        "target": names[0] if len(names) == 1 else names,
        "truth": _truth(truth) if truth else None,
        "strategy": how,
        "train": _period(train),
        "validation": _period(validation),
        "activation_checkpointing": _ON_OFF.get(
            activation_checkpointing.lower(), activation_checkpointing
        ),
        "latents": _ON_OFF.get(latents.lower(), latents),
        "region": _region(region),
        "progress": not quiet,
    }


def _region(text: str | None) -> Any:
    """Parse the name of a region, or a box."""
    if text is None or not any(c.isdigit() for c in text):
        return text
    try:
        values = tuple(float(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 4:
        raise OptionError(
            f"'{text}' is not a box south,north,west,east.", fix="--region=35,75,-12.5,42.5"
        )
    return values


def _estimate(compare: bool = False, **options: Any) -> None:
    """Estimate what finetune would cost with the same options, without training.

    Prints peak memory, time, bytes read and disk space.
    """
    ds, arguments = _training_arguments(**options)
    typer.echo(str(ds.aurora.estimate(**arguments, compare=compare)))


def _like_finetune(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of ``finetune`` and ``--compare``."""
    same = inspect.signature(finetune, eval_str=True)
    hint = Annotated[
        bool, typer.Option("--compare", help="Also estimate every base model and strategy.")
    ]
    extra = inspect.Parameter(
        "compare", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hint
    )
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in same.parameters.values()]
    function.__signature__ = same.replace(parameters=[*parameters, extra])  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in [*parameters, extra]} | {
        "return": None
    }
    return function


app.command("estimate")(_readable(_like_finetune(_estimate)))


@app.command()
@_readable
def predict(
    files: Files,
    model: Annotated[
        str | None,
        typer.Option(help="Folder of a tuned model, or tiny-pretrained, small, base, finetuned."),
    ] = None,
    lead: Annotated[
        list[str] | None,
        typer.Option(help="24h gives every six hours up to 24 h; several give only those."),
    ] = None,
    weights: Weights = None,
    time: Annotated[
        list[str] | None, typer.Option(help="Init times, all by default. Repeatable.")
    ] = None,
    variables: Annotated[
        list[str] | None, typer.Option(help="Only these variables. Repeatable.")
    ] = None,
    quantiles: Annotated[list[float] | None, typer.Option(help="Such as 0.9. Repeatable.")] = None,
    thresholds_mm: Annotated[
        list[float] | None,
        typer.Option(help="Probability of exceeding this amount in mm. Repeatable."),
    ] = None,
    members: Annotated[
        int, typer.Option(help="Ensemble members, with the dependence of past fields.")
    ] = 0,
    past: Annotated[
        list[str] | None,
        typer.Option(help="Files of past fields for the members. Repeatable."),
    ] = None,
    halo: Annotated[
        int | None, typer.Option(help="Grid points trimmed from a region's edges.")
    ] = None,
    region: Region = None,
    batch_size: Annotated[int, typer.Option(help="Init times per batch.")] = 1,
    devices: Annotated[int, typer.Option(help="GPUs that share the init times.")] = 1,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile the backbone's blocks.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="forecast.nc or forecast.zarr")] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="A Zarr store, written one init time at a time. Run again to resume."),
    ] = None,
    precision: Precision = "auto",
    quiet: Quiet = False,
) -> None:
    """Forecast with a tuned or untuned model."""
    _check_out(out, (".nc", ".nc4", ".zarr"))
    if out is None and store is None:
        raise OptionError(
            "no output was given for the forecast.",
            fix="--out forecast.nc, or --store forecast.zarr",
        )
    leads = lead or ["6h"]
    forecast = _open(files).aurora.predict(
        leads[0] if len(leads) == 1 else leads,
        model=model,
        weights=weights,
        time=time or None,
        variables=variables or None,
        quantiles=quantiles or (),
        thresholds_mm=thresholds_mm or (),
        members=members,
        past=_open(past) if past else None,
        halo=halo,
        region=_region(region),
        batch_size=batch_size,
        devices=devices,
        compile=compile,
        store=store,
        precision=precision,
        progress=not quiet,
    )
    typer.echo(repr(forecast.aurora))
    if out is not None:
        _write(forecast, out)
    else:
        typer.echo(f"Wrote {store}.")


@app.command()
@_readable
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
        list[int] | None, typer.Option(help="Of the FSS, in grid points, odd.")
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
    seed: Annotated[int, typer.Option(help="Of random draws, such as ties of ranks.")] = 0,
    skipna: Annotated[bool, typer.Option(help="Leave missing values out.")] = False,
    quiet: Quiet = False,
    out: Annotated[Path | None, typer.Option(help="scores.nc or scores.zarr")] = None,
) -> None:
    """Score a forecast against fields, with the definitions of WeatherBench2."""
    _check_out(out, (".nc", ".nc4", ".zarr"))
    paths = [*(files or []), *(truth or [])]
    if not paths:
        raise OptionError("no truth was given.", fix="xaurora evaluate forecast.nc era5/*.nc")
    normals = _open([str(climatology)]) if climatology is not None else None
    made = _open([forecast])
    chosen = {
        "thresholds_mm": thresholds_mm,
        "neighborhood_sizes": neighborhood_sizes,
        "quantile_levels": quantile_levels,
    }
    more: dict[str, Any] = {k: v for k, v in chosen.items() if v}
    scores = made.aurora.evaluate(
        _truth(paths, made if regrid is None else None),
        climatology=normals,
        metrics="all" if metrics == ["all"] else metrics or None,
        regions=_regions(regions),
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
        _write(scores, out)
    typer.echo(_table(scores))


def _regions(texts: list[str] | None) -> Any:
    """Parse names of regions, and boxes such as ``20,50,0,60``."""
    if not texts:
        return None
    out: dict[str, Any] = {}
    for text in texts:
        parts = text.split(",")
        try:
            out[text] = tuple(float(p) for p in parts) if len(parts) == 4 else None
        except ValueError:
            out[text] = None
    return out


def _table(scores: Any) -> str:
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


@app.command()
@_readable
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
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
) -> None:
    """Write a scorecard as a page or a picture, beside the scores of baselines."""
    _check_out(out, (".html", ".png"))
    others = {}
    for entry in baseline or []:
        label, found, path = entry.partition("=")
        if not found:
            label, path = Path(entry).stem, entry
        if label in others:
            raise OptionError(
                f"two baselines are called {label!r}.", fix=f"--baseline first={path}"
            )
        others[label] = _scores(path)
    made = _open([forecast]) if forecast else None
    beside = None
    if published:
        from xaurora.evaluation.published import published_scores

        beside = published_scores(models=published)
    _scores(str(scores)).aurora.scorecard(
        out,
        baseline=others or None,
        name=name,
        title=title,
        forecast=made,
        truth=_truth(list(truth), made) if truth else None,
        published=beside,
        level=level,
        seed=seed,
    )
    typer.echo(f"Wrote {out}.")


def _scores(path: str) -> Any:
    from xaurora.sources import opening

    return opening._read(opening.expand([path])[0], None, None)[0]


@app.command()
@_readable
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for data, model, forecast, scores and pictures.")
    ] = Path("xaurora-demo"),
    steps: Annotated[int, typer.Option(help="Training steps.")] = 200,
    quiet: Quiet = False,
) -> None:
    """Run the main workflow offline, on synthetic data whose best possible score is known."""
    from xaurora.cli.demo import run

    typer.echo(run(out, steps=steps, progress=not quiet))


def main() -> None:
    """Entry point of the ``xaurora`` command."""
    app()

"""Command-line options, generated from the option classes of the Python API."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from xaurora.cli.fixes import as_command
from xaurora.errors import OptionError, SourceError, XauroraError
from xaurora.utils.options import Option, options_of

if TYPE_CHECKING:
    import xarray as xr

T = TypeVar("T")

Files = Annotated[
    list[str],
    typer.Argument(
        help=(
            "NetCDF, GRIB or Zarr of ERA5: surface, pressure-level and static files in any order,"
            " also as globs."
        ),
        show_default=False,
    ),
]
Region = Annotated[
    str | None, typer.Option(help="A name such as europe, or --region=south,north,west,east.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print results and errors only: no progress, no warnings.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print everything that is logged.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Truths = Annotated[list[str] | None, typer.Option(help="The truth. Repeatable.")]
ENDINGS = (".nc", ".nc4", ".zarr")


def report_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command to print a :class:`XauroraError` as one line and exit with status 2."""

    @functools.wraps(function)
    def run(*args: object, **kwargs: object) -> None:
        verbose = kwargs.pop("verbose", False)
        logging.basicConfig(
            level=logging.INFO
            if verbose
            else logging.ERROR
            if kwargs.get("quiet")
            else logging.WARNING,
            format="xaurora: %(message)s",
            stream=sys.stderr,
        )
        for noisy in ("lightning_fabric", "lightning.fabric", "httpx", "fsspec", "matplotlib"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        try:
            function(*args, **kwargs)
        except XauroraError as error:
            fix = f" Fix: {as_command(error.fix)}" if error.fix else ""
            line = f"xaurora: {error.message}{fix}"
            typer.echo(" ".join(line.split()), err=True)
            raise typer.Exit(2) from None

    # Every command has --verbose, which is not passed on.
    own = inspect.signature(function, eval_str=True)
    shown = inspect.Parameter(
        "verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose
    )
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.parameters.values()]
    run.__signature__ = own.replace(parameters=[*parameters, shown])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*parameters, shown]} | {"return": None}
    return run


# --- from text to values --------------------------------------------------------------------------


def open_fields(paths: list[str]) -> xr.Dataset:
    """Open files of fields as one Dataset."""
    import xaurora
    from xaurora import accessor  # noqa: F401  (registers ds.aurora)

    return xaurora.open(*paths)


def open_truth(paths: list[str], grid: xr.Dataset | None = None) -> xr.Dataset:
    """Open files of fields, or of satellite rain if their names say so."""
    import xaurora
    from xaurora.sources import imerg, opening

    files = opening.expand(paths)
    if all(imerg.is_imerg(file) for file in files):
        return xaurora.open_imerg(files, grid=grid)
    return xaurora.open(*files)


def open_statistics(path: Path) -> xr.Dataset:
    """Open what ``xaurora stats --out`` wrote."""
    import xarray as xr

    try:
        return xr.open_dataset(path, engine="zarr" if path.suffix == ".zarr" else None)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"'{path}' cannot be opened as statistics: {str(error).splitlines()[0]}",
            fix="xaurora stats surface.nc --time=2016:2021 --out=statistics.nc",
        ) from error


def parse_period(text: str) -> str | tuple[str | None, str | None]:
    """Parse ``2016:2023`` as a pair, and ``2024`` as that year."""
    start, found, end = text.partition(":")
    return (start or None, end or None) if found else text


def select_period(ds: xr.Dataset, text: str | None) -> xr.Dataset:
    """Return the times of ``2016:2023``, of a year or of a date; all without a period."""
    if text is None:
        return ds
    from xaurora.fields import recognition

    found = recognition.recognise(ds)
    if "time" not in found.axes:
        found.raise_first()
    start, is_range, end = text.partition(":")
    wanted = slice(start or None, end or None) if is_range else text
    try:
        out = ds.sel({found.axes["time"].dim: wanted})
    except (KeyError, ValueError, TypeError):
        out = ds.isel({found.axes["time"].dim: slice(0, 0)})
    if not out.sizes[found.axes["time"].dim]:
        raise OptionError(f"no time lies in '{text}'.", fix="time='2016:2021', or a year or a date")
    return out


def parse_region(text: str) -> str | tuple[float, ...]:
    """Parse the name of a region, or a box."""
    if not any(c.isdigit() for c in text):
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


def _parse_switch(text: str) -> bool | str:
    return {"on": True, "true": True, "off": False, "false": False}.get(text.lower(), text)


def _parse_layers(names: list[str]) -> int | tuple[str, ...]:
    if len(names) == 1 and names[0].isdigit():
        return int(names[0])
    return tuple(names)


def _one_or_several(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


def _same(value: T) -> T:
    return value


# For each kind of option: the type that typer parses, and the function that converts the value.
_KINDS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "str": (str, _same),
    "int": (int, _same),
    "path": (Path, _same),
    "names": (list[str], _same),
    "numbers": (list[float], _same),
    "times": (list[str], _same),
    "targets": (list[str], _one_or_several),
    "leads": (list[str], _one_or_several),
    "layers": (list[str], _parse_layers),
    "switch": (str, _parse_switch),
    "period": (str, parse_period),
    "region": (str, parse_region),
    "truth": (list[str], open_truth),
    "fields": (list[str], open_fields),
    "statistics": (Path, open_statistics),
}
_OPENED = ("truth", "fields", "statistics")
"""Kinds whose values are files that are opened."""
_SIMPLE = {"int": int, "float": float, "str": str, "bool": bool}


def _parsed(item: Option) -> tuple[Any, Callable[[Any], Any]]:
    """Return the type that typer parses for an option, and the function that converts its value."""
    if item.command_line:
        return _KINDS[item.command_line]
    return _SIMPLE[item.annotation.removesuffix(" | None")], _same


def shown_options(*classes: type) -> list[Option]:
    """Return the options of the given classes, without those hidden from the command line."""
    return [o for cls in classes for o in options_of(cls) if o.command_line != "hidden"]


def with_options(*classes: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command with the options of the given classes: help, types and defaults.

    The command is called with its own parameters and with ``given``, a dict of the options that
    have a value.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        items = shown_options(*classes)
        own = inspect.signature(function, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.name != "given"]
        for item in items:
            kind, _ = _parsed(item)
            flag = f"--{item.name.replace('_', '-')}"
            repeatable = " Repeatable." if getattr(kind, "__origin__", None) is list else ""
            default: Any = item.default if isinstance(item.default, str | int | float) else None
            if repeatable and isinstance(default, str):
                default = [default]
            annotation = kind if kind is bool else kind | None
            hint = typer.Option(flag, help=plain_text(item.text) + repeatable)
            parameters.append(
                inspect.Parameter(
                    item.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=Annotated[annotation, hint],
                )
            )
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]

        @functools.wraps(function)
        def run(**values: object) -> None:
            typed = {item.name: values.pop(item.name) for item in items}
            typed = {name: v for name, v in typed.items() if v is not None and v != []}
            checks_of = {
                f.name: f.metadata.get("check") for cls in classes for f in dataclasses.fields(cls)
            }
            given = {}
            # What is cheap comes first, so that a wrong number is not found after minutes of
            # reading.
            for item in sorted(items, key=lambda item: item.command_line in _OPENED):
                if item.name not in typed:
                    continue
                value = _parsed(item)[1](typed[item.name])
                check = checks_of[item.name]
                if check is not None and item.command_line not in (*_OPENED, "layers"):
                    check(item.name, value)
                given[item.name] = value
            function(**values, given=given)

        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        return run

    return decorate


def plain_text(text: str) -> str:
    """Strip reStructuredText markup from an option's help text."""
    import re

    text = re.sub(r":class:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    return text.replace("``", "")


def labelled(texts: list[str], option: str) -> dict[str, str]:
    """Return paths by label; ``name=path`` gives the label, else it is the file's name."""
    out: dict[str, str] = {}
    for text in texts:
        label, found, path = text.partition("=")
        if not found:
            label, path = Path(text).stem, text
        if label in out:
            raise OptionError(
                f"two {option} are called {label!r}.", fix=f"give them names: first={path}"
            )
        out[label] = path
    return out


def given_only(**options: list[Any] | None) -> dict[str, Any]:
    """Return the options that were typed."""
    return {name: value for name, value in options.items() if value}


# --- files that are written -----------------------------------------------------------------------


def check_out(
    out: Path | None, endings: tuple[str, ...] = ENDINGS, *, overwrite: bool = False
) -> None:
    """Raise for a wrong file extension or an existing output, before the work starts."""
    if out is None:
        return
    if out.suffix not in endings:
        raise OptionError(
            f"'{out}' must end in one of {', '.join(endings)}.", fix=f"out='result{endings[0]}'"
        )
    from xaurora.utils import storage

    storage.check_overwrite(out, overwrite=overwrite)


def write(ds: xr.Dataset, out: Path, *, overwrite: bool = False) -> None:
    """Write NetCDF or Zarr by the file extension, completely or not at all.

    Values are float32 and compressed, whatever the packing of the input.
    """
    from xaurora.utils import files, storage

    storage.check_overwrite(out, overwrite=overwrite)
    ds, encoding = files.compressed(ds, zarr=out.suffix == ".zarr")
    if out.suffix == ".zarr":
        storage.replace_folder(
            out, lambda folder: ds.to_zarr(folder, mode="w", consolidated=False, encoding=encoding)
        )
    else:
        storage.replace_file(
            out, lambda path: ds.to_netcdf(path, engine="netcdf4", encoding=encoding)
        )
    typer.echo(f"Wrote {out}.")

"""Command-line options, generated from the option classes of the Python API."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xaurora.errors import OptionError, XauroraError
from xaurora.utils.options import Option, options_of
from xaurora.utils.types import Given

if TYPE_CHECKING:
    import xarray as xr

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
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars and no notes.")]
ENDINGS = (".nc", ".nc4", ".zarr")


def report_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command to print a :class:`XauroraError` as one line and exit with status 2."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        logging.basicConfig(
            level=logging.WARNING if kwargs.get("quiet") else logging.INFO,
            format="xaurora: %(message)s",
            stream=sys.stderr,
        )
        for noisy in ("lightning_fabric", "lightning.fabric", "httpx", "fsspec", "matplotlib"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        try:
            function(*args, **kwargs)
        except XauroraError as error:
            line = f"xaurora: {error.message}" + (f" Fix: {error.fix}" if error.fix else "")
            typer.echo(" ".join(line.split()), err=True)
            raise typer.Exit(2) from None

    return run


# --- from text to values --------------------------------------------------------------------------


def open_fields(paths: list[str]) -> xr.Dataset:
    """Open files of fields as one Dataset."""
    import xaurora

    return xaurora.open(*paths)


def open_truth(paths: list[str], grid: xr.Dataset | None = None) -> xr.Dataset:
    """Open files of fields, or of satellite rain if their names say so."""
    import xaurora
    from xaurora.sources import imerg, opening

    files = opening.expand(paths)
    if all(imerg.is_imerg(file) for file in files):
        return xaurora.open_imerg(files, grid=grid)
    return xaurora.open(*files)


def parse_period(text: str) -> str | tuple[str | None, str | None]:
    """Parse ``2016:2023`` as a pair, and ``2024`` as that year."""
    start, found, end = text.partition(":")
    return (start or None, end or None) if found else text


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


def _same(value: Given) -> Any:
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
}
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
        def run(**values: Any) -> None:
            given = {}
            for item in items:
                value = values.pop(item.name)
                if value is not None and value != []:
                    given[item.name] = _parsed(item)[1](value)
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


# --- files that are written -----------------------------------------------------------------------


def check_out(out: Path | None, endings: tuple[str, ...] = ENDINGS) -> None:
    """Raise for a wrong file extension before the work starts."""
    if out is not None and out.suffix not in endings:
        raise OptionError(
            f"'{out}' must end in one of {', '.join(endings)}.", fix=f"--out result{endings[0]}"
        )


def write(ds: xr.Dataset, out: Path) -> None:
    """Write a Dataset atomically, as NetCDF or Zarr according to the file extension."""
    from xaurora.utils import storage

    if out.suffix == ".zarr":
        if out.exists():
            raise OptionError(f"'{out}' already exists.", fix="another --out, or remove it first")
        storage.replace_folder(out, lambda folder: ds.to_zarr(folder, mode="w", consolidated=False))
    else:
        storage.replace_file(out, lambda path: ds.to_netcdf(path, engine="netcdf4"))
    typer.echo(f"Wrote {out}.")

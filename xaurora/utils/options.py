"""Options that are documented, typed, checked and given their default in one place.

A dataclass of options declares each field with :func:`option`. Signatures and docstrings of the
accessor, the command line and ``docs/options.md`` are made from these declarations.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from xaurora.errors import OptionError
from xaurora.utils.checks import Check

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


class Option(NamedTuple):
    """One option: its name, annotation and default as source code, its type in words, and text."""

    name: str
    annotation: str
    default: Any
    type: str
    text: str
    command_line: str


def option(
    default: T,
    type: str,
    text: str,
    check: Check | None = None,
    *,
    command_line: str = "",
    annotation: str = "",
) -> T:
    """Declare a field of a dataclass of options.

    Parameters
    ----------
    default : object
    type : str
        The type in words, as in a NumPy docstring.
    text : str
        What the option does: sentences.
    check : callable, optional
        Takes the name and the value, returns the value or raises.
    command_line : str, optional
        How the command line reads it (:mod:`xaurora.cli.options`); by default from the
        annotation, and ``"hidden"`` leaves it out.
    annotation : str, optional
        The annotation of the argument, where it accepts more than the field holds.
    """
    metadata = {
        "type": type,
        "text": " ".join(text.split()),
        "check": check,
        "command_line": command_line,
        "annotation": annotation,
    }
    return dataclasses.field(default=default, metadata=metadata)


def run_checks(options: DataclassInstance) -> None:
    """Check every field of an instance, and keep what the checks return. For ``__post_init__``."""
    for field in dataclasses.fields(options):
        if check := field.metadata.get("check"):
            value = check(field.name, getattr(options, field.name))
            object.__setattr__(options, field.name, value)


def options_of(cls: type) -> tuple[Option, ...]:
    """Return the options of a dataclass, in their order."""
    return tuple(
        Option(
            f.name,
            f.metadata["annotation"] or str(f.type),
            f.default,
            f.metadata["type"],
            f.metadata["text"],
            f.metadata["command_line"],
        )
        for f in dataclasses.fields(cls)
        if "text" in f.metadata
    )


def parameters_section(items: Iterable[Option], indent: str = "", width: int = 100) -> str:
    """Return options as the entries of a NumPy docstring's ``Parameters`` section."""
    lines = []
    for item in items:
        lines.append(f"{indent}{item.name} : {item.type}")
        lines += textwrap.wrap(
            item.text,
            width,
            initial_indent=f"{indent}    ",
            subsequent_indent=f"{indent}    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def documented(cls: type[T]) -> type[T]:
    """Complete a dataclass's docstring with its options. A decorator."""
    summary, mark, examples = inspect.cleandoc(cls.__doc__ or "").partition("\n\nExamples\n")
    options = f"Parameters\n----------\n{parameters_section(options_of(cls))}"
    cls.__doc__ = f"{summary}\n\n{options}{mark}{examples}\n"
    return cls


def from_arguments(
    cls: type[T], arguments: Mapping[str, Any], *, verb: str, meant: Mapping[str, str] | None = None
) -> T:
    """Make options from a method's arguments.

    Parameters
    ----------
    cls : type
        The dataclass.
    arguments : dict
        ``locals()`` of the method: ``self`` is left out, ``unknown`` holds what it does not name.
    verb : str
        The method's name, for the message.
    meant : dict, optional
        Names from elsewhere, and what they are called here.

    Raises
    ------
    OptionError
        An argument is unknown, or has a value that is not valid.
    """
    given = {k: v for k, v in arguments.items() if k not in ("self", "unknown")}
    given |= arguments.get("unknown", {})
    valid = [item.name for item in options_of(cls)]
    if unknown := [name for name in given if name not in valid]:
        meant = meant or {}
        close = difflib.get_close_matches(unknown[0], [*valid, *meant], n=1)
        raise OptionError(
            f"{verb} has no option {unknown[0]}=; valid options are {', '.join(valid)}.",
            fix=f"{meant.get(close[0], close[0])}=..." if close else "leave it out",
        )
    return cls(**given)

"""What a user can type of the fix of an error: every piece of code in its text."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import xaurora

_DATASETS = ("ds", "fc")
_MODULES = {"np": np, "numpy": np, "pd": pd, "xr": xr, "xaurora": xaurora}
_START = re.compile(
    r"(?<![\w.'\[(/])(?:(?:ds|fc)(?=[.\[ ])|xr(?=\.)|xaurora(?=\.climatology)|\w+(?==[^=]))"
)


@dataclass(frozen=True)
class Fix:
    """A piece of code: arguments of the call, or a line that changes a Dataset."""

    text: str
    is_option: bool

    @property
    def open(self) -> bool:
        """Whether it has a part that only the user knows."""
        return "..." in self.text or "name_in_your_data" in self.text

    def options(self, **known: Any) -> dict[str, Any]:
        """Return the arguments."""
        return dict(eval(f"dict({self.text})", {**_MODULES, **known}))

    def apply(self, ds: xr.Dataset, /, **known: Any) -> xr.Dataset:
        """Return a changed copy of a Dataset, which is called ``ds`` and ``fc``."""
        copy = ds.copy(deep=True)
        space: dict[str, Any] = {**_MODULES, **dict.fromkeys(_DATASETS, copy), **known}
        line = ast.parse(self.text).body[0]
        if isinstance(line, ast.Expr):
            return eval(self.text, space)
        exec(self.text, space)
        assert isinstance(line, ast.Assign)
        target = line.targets[0]
        while not isinstance(target, ast.Name):
            assert isinstance(target, ast.Subscript | ast.Attribute)
            target = target.value
        return space[target.id]


def find(text: str, options: Collection[str]) -> list[Fix]:
    """Return the code in the text of a fix, from left to right.

    Parameters
    ----------
    text : str
    options : collection of str
        Names that arguments of the call can have.
    """
    found, place = [], 0
    while (match := _START.search(text, place)) is not None:
        name = match.group()
        is_option = name not in (*_DATASETS, "xr", "xaurora")
        ends = range(len(text), match.end(), -1)
        code = next(
            (
                text[match.start() : end]
                for end in ends
                if _is_code(text[match.start() : end], is_option)
            ),
            "",
        )
        if code and (not is_option or name in options):
            found.append(Fix(code, is_option))
        place = match.start() + max(len(code), len(name))
    return found


def _is_code(text: str, is_option: bool) -> bool:
    if text.endswith((",", " ", ";", ".")) or re.search(r"\.\s", text):
        return False
    try:
        body = ast.parse(f"dict({text})" if is_option else text).body
    except SyntaxError:
        return False
    if len(body) != 1:
        return False
    if not is_option and isinstance(body[0], ast.Expr):
        if not isinstance(body[0].value, ast.Call | ast.Subscript):
            return False
    elif not is_option and not isinstance(body[0], ast.Assign):
        return False
    if is_option and body[0].value.args:  # type: ignore[attr-defined]  # words, not arguments
        return False
    known = {*_DATASETS, *_MODULES, *dir(builtins), "past", "truth", "v", "path"}
    names = {n.id for n in ast.walk(body[0]) if isinstance(n, ast.Name)}
    return names <= known

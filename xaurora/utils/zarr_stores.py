"""Zarr stores that grow piece by piece: made whole and empty in one step, filled in order, and gone
on with after a kill.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from xaurora.errors import SaveError, SourceError

PIECES = "xaurora_pieces"
"""Attribute that says how many pieces make a store whole."""
_DONE = "xaurora_complete"


def create(path: Path, template: xr.Dataset, encoding: Mapping[str, Any] | None = None) -> None:
    """An empty store of the right shape, in its place in one step.

    Parameters
    ----------
    path : path
    template : Dataset
        Dask arrays stand for what will be written; the rest is written now.
    encoding : dict, optional
        As :meth:`xarray.Dataset.to_zarr` takes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.new-*"):
        shutil.rmtree(left, ignore_errors=True)  # of an earlier, killed writer
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        template.assign_attrs({_DONE: 0}).to_zarr(
            staged, mode="w", compute=False, consolidated=False, encoding=dict(encoding or {})
        )
        staged.chmod(0o755)
        staged.rename(path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def done(
    path: Path, attribute: str, signature: str, *, what: str, argument: str, differs: str
) -> int:
    """How many pieces of a store are there.

    Parameters
    ----------
    path : path
    attribute, signature : str
        Where the store says what it holds, and what it has to say.
    what, argument, differs : str
        For messages: what kind of store, the argument that names it, and what may be different.

    Raises
    ------
    SaveError
        What is there is something else.
    """
    import zarr

    try:
        attrs = dict(zarr.open_group(path, mode="r", use_consolidated=False).attrs)
    except (OSError, ValueError, KeyError, TypeError):
        attrs = {}
    if attribute not in attrs:
        raise SaveError(
            f"'{path}' is there and is no {what}; it is not overwritten.",
            fix=f"choose another {argument}",
        )
    if attrs[attribute] != signature:
        raise SaveError(
            f"'{path}' holds another {what.removesuffix(' store')} ({differs}).",
            fix=f"choose another {argument}, or remove it to start again",
        )
    return int(str(attrs.get(_DONE, 0)))


def mark(path: Path, count: int) -> None:
    """Say that so many pieces are there. After the data: a kill between the two costs one piece,
    and never leaves a hole.
    """
    import zarr

    zarr.open_group(path, mode="r+", use_consolidated=False).attrs[_DONE] = count


def refuse_unfinished(attrs: Mapping[str, Any], path: str) -> None:
    """Raise for a store of known length whose filling was interrupted: what is missing would read
    as zeros.

    Raises
    ------
    SourceError
        It is not complete.
    """
    if PIECES in attrs and (there := int(str(attrs.get(_DONE, 0)))) < int(str(attrs[PIECES])):
        raise SourceError(
            f"'{path}' was not prepared to the end: {there} of {attrs[PIECES]} pieces are there.",
            fix="the same ds.aurora.prepare(path, ...) once more, which goes on where it stopped",
        )

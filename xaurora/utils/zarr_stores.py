"""Zarr stores that are written piece by piece and can be resumed.

A store is created in one step, complete but empty. Its pieces are then filled in order.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from xaurora.errors import SaveError, SourceError
from xaurora.utils.types import Given

PIECES = "xaurora_pieces"
"""Attribute that holds the number of pieces of a complete store."""
_DONE = "xaurora_complete"


def checksummed(codec: Given = None) -> tuple[Any, ...]:
    """Return the compressors of an array: a codec, by default Zarr's own, and a checksum.

    A chunk whose bytes have changed is then an error, and never other values.
    """
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return (codec or ZstdCodec(level=0), Crc32cCodec())


def create(path: Path, template: xr.Dataset, encoding: Mapping[str, Any] | None = None) -> None:
    """Create an empty store of the right shape in one step.

    Parameters
    ----------
    path : path
    template : Dataset
        Dask arrays are placeholders for what will be written later. The rest is written now.
    encoding : dict, optional
        As in :meth:`xarray.Dataset.to_zarr`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.new-*"):
        shutil.rmtree(left, ignore_errors=True)  # left by a writer that was killed
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        given = {n: dict((encoding or {}).get(n, {})) for n in map(str, template.variables)}
        for name, own in given.items():
            if template.variables[name].dtype.kind not in "OU":
                own.setdefault("compressors", checksummed())
        template.assign_attrs({_DONE: 0}).to_zarr(
            staged, mode="w", compute=False, consolidated=False, encoding=given
        )
        staged.chmod(0o755)
        staged.rename(path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def count_written_pieces(
    path: Path,
    attribute: str,
    signature: str,
    *,
    what: str,
    argument: str,
    differs: str,
    overwrite: bool = False,
) -> int | None:
    """Return how many pieces of a store are written.

    Parameters
    ----------
    path : path
    attribute, signature : str
        Attribute of the store that identifies its contents, and the value that it must have.
    what, argument, differs : str
        For messages: the kind of store, the argument that names it, and what may differ.
    overwrite : bool
        Whether a store of this kind may be replaced.

    Returns
    -------
    int or None
        None for a store that is to be replaced.

    Raises
    ------
    SaveError
        If the path holds something else.
    """
    import zarr

    try:
        attrs = dict(zarr.open_group(path, mode="r", use_consolidated=False).attrs)
    except (OSError, ValueError, KeyError, TypeError):
        attrs = {}
    if attribute not in attrs:
        raise SaveError(
            f"'{path}' exists but is not a {what}; it is not overwritten.",
            fix=f"choose another {argument}",
        )
    if attrs[attribute] != signature:
        if overwrite:
            return None
        raise SaveError(
            f"'{path}' holds another {what.removesuffix(' store')} ({differs}).",
            fix=f"choose another {argument}, or overwrite=True to replace it",
        )
    return int(str(attrs.get(_DONE, 0)))


def record_written_pieces(path: Path, count: int) -> None:
    """Record that this many pieces are written.

    Called after the data are written: a kill between the two costs one piece, but never leaves a
    gap.
    """
    import zarr

    zarr.open_group(path, mode="r+", use_consolidated=False).attrs[_DONE] = count


def require_complete(attrs: Mapping[str, Any], path: str) -> None:
    """Raise if filling a store was interrupted, because its missing pieces would read as zeros.

    Only stores of known length are checked.

    Raises
    ------
    SourceError
        If the store is not complete.
    """
    if PIECES in attrs and int(str(attrs.get(_DONE, 0))) < int(str(attrs[PIECES])):
        raise SourceError(
            f"'{path}' is not complete: it is being written, or writing it was interrupted.",
            fix="call ds.aurora.prepare(path, ...) again with the same arguments to resume",
        )

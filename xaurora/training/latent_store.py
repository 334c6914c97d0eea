"""The Zarr store of the outputs of a frozen backbone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time as clock
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aurora import Batch

from xaurora.errors import LatentsError, SaveError
from xaurora.utils import storage

logger = logging.getLogger("xaurora")


FORMAT = 1


_ATTRIBUTE = "xaurora_latents"


_EPOCH = np.datetime64("1900-01-01T00", "h")


_LENGTH = 24 * 366 * 400  # hours


_DIGEST = 16  # bytes


# samples of a store that was there before whose fields are compared with the data, where these have
# to be read
CHECKED = 32


_RECOUNTED = 32  # samples


_STALE = 3600.0  # seconds after which a file that was never finished belongs to nobody


def time_index(time: np.datetime64) -> int | None:
    """Return the position of an init time in a store.

    None if the time is not a full hour or is out of range.
    """
    hours = time.astype("datetime64[h]")
    if hours != time:
        return None
    place = int((hours - _EPOCH) / np.timedelta64(1, "h"))
    return place if 0 <= place < _LENGTH else None


def digest(batch: Batch) -> bytes:
    """Return a 16-byte digest of the fields that a sample's latents are computed from."""
    found = hashlib.blake2b(digest_size=_DIGEST)
    for part in (batch.surf_vars, batch.static_vars, batch.atmos_vars):
        for name in sorted(part):
            found.update(name.encode())
            found.update(np.ascontiguousarray(part[name].detach().cpu().numpy()).tobytes())
    return found.digest()


class LatentStore:
    """Latents on disk.

    Parameters
    ----------
    path : path
    shape : tuple of int
        Shape of one sample: latent levels, patch rows, patch columns, channels.
    dtype : {"bfloat16", "float32"}
    description : dict
        What the latents depend on, by name: weights, grid, region, precision, versions.
    limit : float, optional
        Largest size in bytes. By default the current size plus half of the free disk space.

    Raises
    ------
    LatentsError
        If the path is not a store of latents, or holds latents of other weights, another region and
        so on.
    SaveError
        If the store cannot be created.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: str,
        description: Mapping[str, Any],
        limit: float | None = None,
    ) -> None:
        self.path, self.shape, self.dtype = Path(path), tuple(map(int, shape)), dtype
        self.description = json.loads(
            json.dumps({**description, "format": FORMAT, "shape": self.shape, "dtype": dtype})
        )
        self.sample_bytes = int(np.prod(self.shape)) * (2 if dtype == "bfloat16" else 4)
        self._asked = 0
        self._open()
        self._there = self._listed()
        self.limit = float(limit) if limit is not None else self._free()

    def _listed(self) -> set[int]:
        """Return the positions stored on disk by any process."""
        with storage.wrap_write_errors(self.path):
            names = os.listdir(self.path / "latents")
        return {int(found[1]) for n in names if (found := _CHUNK.fullmatch(n))}

    def _free(self) -> float:
        """Return the default limit: the current size plus half of the free disk space."""
        return (
            len(self._there) * self.sample_bytes
            + _SHARE_OF_DISK * shutil.disk_usage(self.path).free
        )

    # --- opening ---

    def _open(self) -> None:
        import zarr

        if not self.path.exists():
            with storage.wrap_write_errors(self.path):
                self._create()
        try:
            group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
            there = dict(group.attrs)[_ATTRIBUTE]
            arrays: Any = group
            self._latents, self._inputs = arrays["latents"], arrays["inputs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LatentsError(
                f"'{self.path}' exists but is not a store of latents ({type(error).__name__}); it"
                " is not overwritten.",
                fix="another latents= path",
            ) from error
        if there != self.description:
            names = {**self.description, **(there if isinstance(there, dict) else {})}
            differ = [
                n
                for n in names
                if not isinstance(there, dict) or there.get(n) != self.description.get(n)
            ]
            raise LatentsError(
                f"the latents in '{self.path}' do not match this run; they differ in"
                f" {', '.join(differ)} and are not used.",
                fix=(
                    "choose another latents= path, or remove the existing store; latents=True"
                    " finds a matching store or creates one"
                ),
            )
        self._sweep()

    def _create(self) -> None:
        """Create an empty store atomically.

        If another process creates it first, that one is used.
        """
        import zarr
        from zarr.codecs import Crc32cCodec

        self.path.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.new-", dir=self.path.parent))
        try:
            group = zarr.create_group(
                staged, overwrite=True, attributes={_ATTRIBUTE: self.description}
            )
            flat: Any = {"name": "default", "separator": "."}
            for name, one, dtype in (
                ("latents", self.shape, self._stored_as),
                ("inputs", (_DIGEST,), "uint8"),
            ):
                group.create_array(
                    name,
                    shape=(_LENGTH, *one),
                    chunks=(1, *one),
                    dtype=dtype,
                    fill_value=0,
                    compressors=(Crc32cCodec(),),
                    chunk_key_encoding=flat,
                    config={"write_empty_chunks": True},
                )
            staged.chmod(0o755)
            try:
                staged.rename(self.path)
            except OSError:
                if not self.path.is_dir():
                    raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    @property
    def _stored_as(self) -> str:
        return "uint16" if self.dtype == "bfloat16" else "float32"

    def _sweep(self) -> None:
        """Remove temporary files left by killed processes."""
        for part in ("latents", "inputs"):
            for left in (self.path / part).glob("*.partial"):
                with contextlib.suppress(OSError):
                    if clock.time() - left.stat().st_mtime > _STALE:
                        left.unlink()

    def _file(self, part: str, place: int) -> Path:
        return self.path / part / f"c.{place}{'.0' * (len(self.shape) if part == 'latents' else 1)}"

    # --- samples ---

    @property
    def count(self) -> int:
        """Number of stored samples that this process knows of."""
        return len(self._there)

    def has(self, place: int) -> bool:
        """Return whether a sample is stored, by this process or another."""
        if place not in self._there and self._file("latents", place).exists():
            self._there.add(place)
        return place in self._there

    def read(self, place: int) -> torch.Tensor | None:
        """Return a sample in the stored dtype, or None if it is missing or damaged.

        A damaged sample is logged and deleted.
        """
        if not self.has(place) or not self._file("latents", place).exists():
            self._there.discard(place)
            return None
        try:
            values = np.asarray(self._latents[place])
        except (
            OSError,
            MemoryError,
        ):  # a fault of the machine rather than of the chunk: a later read may succeed
            return None
        except (
            Exception
        ) as error:  # Zarr's codecs raise many exception types for a truncated or modified chunk
            self._drop(place, error)
            return None
        if not self._file("latents", place).exists():
            self._there.discard(place)  # removed meanwhile: Zarr would return its fill value
            return None
        found = torch.from_numpy(values)
        return found.view(torch.bfloat16) if self.dtype == "bfloat16" else found

    def _drop(self, place: int, error: Exception) -> None:
        logger.warning(
            "The latents of %s in '%s' are damaged (%s) and will be recomputed.",
            _EPOCH + place,
            self.path,
            type(error).__name__,
        )
        self._there.discard(place)
        for part in ("latents", "inputs"):
            with contextlib.suppress(OSError):
                self._file(part, place).unlink(missing_ok=True)

    def inputs_of(self, place: int) -> bytes | None:
        """Return the digest of the fields that a sample was computed from, or None."""
        try:
            return (
                np.asarray(self._inputs[place]).tobytes()
                if self._file("inputs", place).exists()
                else None
            )
        except Exception as error:
            self._drop(place, error)
            return None

    def fits_another(self) -> bool:
        """Return whether one more sample stays within the limit.

        From time to time, and near the limit, samples stored by other processes are counted as
        well.
        """
        self._asked += 1
        if (
            self._asked % _RECOUNTED == 0
            or (len(self._there) + _RECOUNTED) * self.sample_bytes > self.limit
        ):
            with contextlib.suppress(SaveError):
                self._there |= self._listed()
        return (len(self._there) + 1) * self.sample_bytes <= self.limit

    def write(self, place: int, values: torch.Tensor, inputs: bytes) -> None:
        """Store a sample. A failed write leaves nothing of it behind.

        Raises
        ------
        SaveError
            If the disk is full or not writable.
        """
        raw = values.view(torch.uint16) if self.dtype == "bfloat16" else values
        try:
            with storage.wrap_write_errors(self.path):
                self._inputs[place] = np.frombuffer(
                    inputs, np.uint8
                )  # written first, so that stored latents always have a digest
                self._latents[place] = raw.contiguous().numpy()
                if not (
                    self.path / "zarr.json"
                ).exists():  # the store was removed and Zarr has recreated its folders
                    shutil.rmtree(self.path, ignore_errors=True)
                    raise SaveError(
                        f"the store '{self.path}' was removed.",
                        fix="run again to create a new store",
                    )
        except SaveError:
            with contextlib.suppress(OSError):
                self._file("latents", place).unlink(missing_ok=True)
            raise
        self._there.add(place)


_CHUNK = re.compile(r"c\.(\d+)(\.0)+")


def key_of(description: Mapping[str, Any]) -> str:
    """Return a short hash of everything that latents depend on."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


_SHARE_OF_DISK = 0.5  # of what is free

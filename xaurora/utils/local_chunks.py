"""Chunks of Zarr stores on a local disk, decoded into the array that is returned.

Zarr decodes each chunk into new memory and copies it from there. With large fields most of the time
goes into the system's providing that memory, again for every chunk. Here files are read into
buffers that are used again, and decoded to where their values belong.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from xaurora.utils.indexed import is_integer
from xaurora.utils.types import Given

_COMPRESSORS = ("blosc", "gzip", "lz4", "zlib", "zstd")  # as Zarr and numcodecs both call them
_LARGE = 1024**2  # bytes of a chunk; smaller ones are decoded faster than they are handed over
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_THREADS = max(_CORES, 8)  # for small chunks: a network disk takes its time for each file
_SMALL_AT_ONCE = 8  # chunks that one thread reads
_KEPT = 512 * 1024**2  # bytes of buffers that are kept
_ABSENT = 2**64 - 1  # offset and length of a chunk that a shard does not hold
_CHECKSUM = 4  # bytes


@dataclass(frozen=True)
class _Layout:
    """How the values of an array are stored.

    Attributes
    ----------
    folder : str
    prefix, separator : str
        Names of files are the prefix and the numbers of chunks, separated.
    chunk : tuple of int
        Shape of the values that are decoded together.
    in_file : tuple of int
        Chunks of a file along each dim; more than one in a shard.
    dtype : numpy.dtype
    fill : scalar
        Value of chunks that are not stored.
    compressor : str or None
    has_checksum : bool
        Whether each chunk ends with a checksum.
    index : str or None
        Where the index of a shard is, ``"start"`` or ``"end"``.
    index_has_checksum : bool
    """

    folder: str
    prefix: str
    separator: str
    chunk: tuple[int, ...]
    in_file: tuple[int, ...]
    dtype: np.dtype
    fill: Any
    compressor: str | None
    has_checksum: bool = False
    index: str | None = None
    index_has_checksum: bool = False

    def file(self, numbers: tuple[int, ...]) -> str:
        """Return the path of a file from its numbers along the dims."""
        names = [self.prefix, *map(str, numbers)] if self.prefix else list(map(str, numbers))
        return os.path.join(self.folder, *self.separator.join(names or ["0"]).split("/"))


class LocalChunks(BackendArray):
    """The array of a local Zarr store.

    Integers and slices with a positive step are read here, and everything else by Zarr.

    Parameters
    ----------
    wrapped : xarray's wrapper of a Zarr array
    layout : _Layout
    """

    def __init__(self, wrapped: Given, layout: _Layout) -> None:
        self.wrapped, self.layout = wrapped, layout
        self.shape, self.dtype = wrapped.shape, wrapped.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        box = [_range(index, n) for index, n in zip(key.tuple, self.shape, strict=True)]
        if isinstance(key, indexing.VectorizedIndexer) or any(part is None for part in box):
            return self.wrapped[key]
        kept = [not is_integer(index) for index in key.tuple]
        return self._read([part for part in box if part is not None], kept)

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        """Let Zarr read for ``load_async``."""
        return await self.wrapped.async_getitem(key)

    def _read(self, box: list[range], kept: list[bool]) -> np.ndarray:
        shape = [len(part) for part in box]
        out = np.empty([n for n, is_kept in zip(shape, kept, strict=True) if is_kept], self.dtype)
        full = out.reshape(shape)
        parts = [list(_by_chunk(*pair)) for pair in zip(box, self.layout.chunk, strict=True)]
        chunks = list(itertools.product(*parts))
        indices: dict[Any, np.ndarray] = {}

        def work(some: list[Any]) -> None:
            for chunk in some:
                self._fill(full, chunk, indices)

        if self._chunk_bytes >= _LARGE:
            count = min(len(chunks), _CORES)
        else:
            count = min(len(chunks) // _SMALL_AT_ONCE, _THREADS)
        if count > 1:
            list(_pool(os.getpid()).map(work, (chunks[i::count] for i in range(count))))
        else:
            work(chunks)
        return out

    @property
    def _chunk_bytes(self) -> int:
        return int(np.prod(self.layout.chunk)) * self.dtype.itemsize

    def _fill(
        self,
        out: np.ndarray,
        parts: tuple[tuple[int, slice, slice], ...],
        indices: dict[Any, np.ndarray],
    ) -> None:
        """Decode one chunk.

        Parameters
        ----------
        out : ndarray
        parts : tuple
            Its number along each dim, and slices of ``out`` and of the chunk.
        indices : dict
            Indices of shards that were read before.
        """
        target = out[tuple(to for _, to, _ in parts)]
        source = tuple(within for _, _, within in parts)
        numbers = tuple(number for number, _, _ in parts)
        whole = target.shape == self.layout.chunk and target.flags.c_contiguous
        with self._stored(numbers, indices) as data:
            if data is None:
                target[...] = self.layout.fill
            elif whole:
                self._decode(data, target)
            else:
                with _buffer(self._chunk_bytes) as memory:
                    values = memory.view(self.dtype).reshape(self.layout.chunk)
                    self._decode(data, values)
                    target[...] = values[source]

    @contextlib.contextmanager
    def _stored(
        self, numbers: tuple[int, ...], indices: dict[Any, np.ndarray]
    ) -> Iterator[np.ndarray | None]:
        """Yield the bytes of a chunk, or None if it is not stored."""
        layout = self.layout
        pairs = list(zip(numbers, layout.in_file, strict=True))
        with contextlib.ExitStack() as stack:
            try:
                path = layout.file(tuple(i // n for i, n in pairs))
                file = stack.enter_context(open(path, "rb", buffering=0))
            except FileNotFoundError:
                yield None
                return
            status = os.fstat(file.fileno())
            first, size = 0, status.st_size
            if layout.index is not None:
                place = np.ravel_multi_index([i % n for i, n in pairs], layout.in_file)
                key = (path, status.st_ino, status.st_mtime_ns, size)
                if key not in indices:
                    indices[key] = self._index_of_shard(file, size)
                first, of_chunk = map(int, indices[key][place])
                if (first, of_chunk) == (_ABSENT, _ABSENT):
                    yield None
                    return
                if first + of_chunk > size:
                    raise ValueError(f"'{path}' ends before one of its chunks")
                size = of_chunk
            with _buffer(size) as memory:
                _read_into(file, first, memory)
                yield memory

    def _index_of_shard(self, file: Given, size: int) -> np.ndarray:
        """Return where each chunk begins in a shard, and its length, ``(chunks, 2)``."""
        layout = self.layout
        count = int(np.prod(layout.in_file))
        length = 16 * count + _CHECKSUM * layout.index_has_checksum
        if size < length:
            raise ValueError(f"'{file.name}' has {size} bytes, which is less than its index")
        index = np.empty(length, np.uint8)
        _read_into(file, 0 if layout.index == "start" else size - length, index)
        if layout.index_has_checksum:
            index = _verified(index)
        return index.view("<u8").reshape(count, 2)

    def _decode(self, data: np.ndarray, target: np.ndarray) -> None:
        """Decode bytes into contiguous memory."""
        import numcodecs

        if self.layout.has_checksum:
            data = _verified(data)
        name, flat = self.layout.compressor, target.reshape(-1).view(np.uint8)
        if name is not None and _decoded_size(name, data) == flat.nbytes:
            numcodecs.get_codec({"id": name}).decode(data, flat)
            return
        if name is not None:
            data = np.frombuffer(numcodecs.get_codec({"id": name}).decode(data), np.uint8)
        if data.nbytes != flat.nbytes:
            raise ValueError(f"a chunk holds {data.nbytes} bytes instead of {flat.nbytes}")
        flat[:] = data


def _read_into(file: Given, first: int, memory: np.ndarray) -> None:
    """Fill memory with bytes of a file. One call may return fewer than it is asked for."""
    file.seek(first)
    rest = memory.data
    while rest:
        count = file.readinto(rest)
        if not count:
            raise OSError(f"'{file.name}' is cut off, or was changed while it was read")
        rest = rest[count:]


def decoded_in_place(variable: xr.Variable) -> xr.Variable:
    """Return a variable that reads a local Zarr store chunk by chunk, or the same variable.

    Values are those that Zarr reads. Each read decodes again.
    """
    found = _replaced(variable._data)
    if found is None:
        return variable
    return xr.Variable(variable.dims, found, variable.attrs, variable.encoding, fastpath=True)


def _replaced(data: Given) -> indexing.ExplicitlyIndexed | None:
    """Return xarray's lazy array with the Zarr array under it replaced, or None."""
    if type(data).__name__ == "ZarrArrayWrapper":
        layout = _layout(data.get_array())
        return None if layout is None else LocalChunks(data, layout)
    if not isinstance(data, indexing.ExplicitlyIndexed):
        return None
    inner = _replaced(getattr(data, "array", None))
    if inner is None or isinstance(data, indexing.MemoryCachedArray | indexing.CopyOnWriteArray):
        return inner
    out: Any = copy.copy(data)
    out.array = inner
    return out


def _layout(array: Given) -> _Layout | None:
    """Return how a Zarr array is stored, or None if only Zarr can read it.

    It is taken from the metadata of the file format, whose versions 2 and 3 differ.
    """
    from zarr.storage import LocalStore

    store, dtype, fill = array.store, array.dtype, array.fill_value
    if type(store) is not LocalStore or dtype.kind not in "fiu" or not dtype.isnative:
        return None
    if fill is None or not array.shape:
        return None
    known: Any = array.metadata.to_dict()
    folder = str(Path(store.root) / array.path)
    if known["zarr_format"] == 2:
        compressor = known["compressor"]
        name = None if compressor is None else compressor["id"]
        if known["filters"] or known["order"] != "C" or name not in (None, *_COMPRESSORS):
            return None
        chunk = tuple(known["chunks"])
        separator = known["dimension_separator"]
        return _Layout(folder, "", separator, chunk, (1,) * len(chunk), dtype, fill, name)
    grid, keys = known["chunk_grid"], known["chunk_key_encoding"]
    if (grid["name"], known.get("storage_transformers") or ()) != ("regular", ()):
        return None
    separator = keys.get("configuration", {}).get("separator", "/")
    in_file = tuple(grid["configuration"]["chunk_shape"])
    codecs, chunk, more = known["codecs"], in_file, {}
    if codecs[0]["name"] == "sharding_indexed" and len(codecs) == 1:
        shard = codecs[0]["configuration"]
        of_index = _bytes_codecs(shard["index_codecs"])
        if of_index is None or of_index[0] is not None:
            return None
        codecs, chunk = shard["codecs"], tuple(shard["chunk_shape"])
        more = {"index": shard["index_location"], "index_has_checksum": of_index[1]}
    found = _bytes_codecs(codecs)
    if found is None or keys["name"] != "default":
        return None
    counts = tuple(n // own for n, own in zip(in_file, chunk, strict=True))
    return _Layout(folder, "c", separator, chunk, counts, dtype, fill, *found, **more)


def _bytes_codecs(codecs: Given) -> tuple[str | None, bool] | None:
    """Return the compressor and whether there is a checksum, or None for any other codecs."""
    names = [codec["name"] for codec in codecs]
    endian = codecs[0].get("configuration", {}).get("endian", sys.byteorder)
    if names[0] != "bytes" or endian != "little" or sys.byteorder != "little":
        return None
    has_checksum = names[-1] == "crc32c"
    rest = names[1 : len(names) - has_checksum]
    if len(rest) > 1 or not set(rest) <= set(_COMPRESSORS):
        return None
    return (rest[0] if rest else None), has_checksum


def _range(index: Given, size: int) -> range | None:
    """Return the positions of an integer or a slice, or None for anything else."""
    if isinstance(index, slice):
        found = range(*index.indices(size))
        return found if found.step > 0 else None
    if not is_integer(index) or not -size <= index < size:
        return None
    return range(int(index) % size, int(index) % size + 1)


def _by_chunk(positions: range, length: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield the number of each chunk of some positions, its slices of the result and of itself."""
    done, step = 0, positions.step
    while done < len(positions):
        number, first = divmod(positions[done], length)
        count = min(-(-(length - first) // step), len(positions) - done)
        within = slice(first, first + step * (count - 1) + 1, step)
        yield number, slice(done, done + count), within
        done += count


def _verified(data: np.ndarray) -> np.ndarray:
    """Return data without the checksum at their end."""
    import google_crc32c

    body = data[:-_CHECKSUM]
    if google_crc32c.value(body) != int.from_bytes(data[-_CHECKSUM:].tobytes(), "little"):
        raise ValueError("a checksum does not match: bytes have changed since they were written")
    return body


def _decoded_size(name: str, data: np.ndarray) -> int | None:
    """Return the decoded size that the header states, or None if it states none."""
    head = data[:32].tobytes()
    if name == "blosc":
        if len(head) < 16 or int.from_bytes(head[12:16], "little") != data.nbytes:
            raise ValueError(f"a chunk has {data.nbytes} bytes, but not by its own header")
        return int.from_bytes(head[4:8], "little")
    if name != "zstd" or len(head) < 5 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    flags = head[4]  # RFC 8878, section 3.1.1
    is_single = flags >> 5 & 1
    length = (is_single, 2, 4, 8)[flags >> 6]
    start = 6 - is_single + (0, 1, 2, 4)[flags & 3]
    if not length:
        return None
    return int.from_bytes(head[start : start + length], "little") + 256 * (length == 2)


_free: list[np.ndarray] = []


@contextlib.contextmanager
def _buffer(size: int) -> Iterator[np.ndarray]:
    """Lend memory whose contents are undefined."""
    try:
        memory = _free.pop()
    except IndexError:
        memory = np.empty(0, np.uint8)
    if memory.nbytes < size:
        memory = np.empty(size + size // 8, np.uint8)
    try:
        yield memory[:size]
    finally:
        if sum(kept.nbytes for kept in list(_free)) + memory.nbytes <= _KEPT:
            _free.append(memory)


@functools.lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads that decode, once for each process: a fork does not inherit them."""
    return ThreadPoolExecutor(_THREADS, "xaurora-decode")

"""GRIB files: the kept index, and files that are damaged."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
import xarray as xr

import xaurora
from xaurora.errors import SourceError
from xaurora.utils import storage

messages = pytest.importorskip("cfgrib.messages")


def _lengths(content: bytes) -> list[int]:
    """Return the lengths of GRIB 1 messages."""
    out, start = [], 0
    while start < len(content):
        assert content[start : start + 4] == b"GRIB"
        out.append(int.from_bytes(content[start + 4 : start + 7], "big"))
        start += out[-1]
    return out


@pytest.fixture
def path(data: Path, tmp_path: Path) -> Path:
    """The first 70 messages of the real file, in a folder of their own."""
    content = (data / "era5_yukon_2023-01" / "surface.grib").read_bytes()[:40_000]
    end = sum(_lengths(content)[:70])
    file = tmp_path / "surface.grib"
    file.write_bytes(content[:end])
    os.utime(file, (1.6e9, 1.6e9))
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(storage, "cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "grib"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often the messages of a file are gone through."""
    count: list[int] = []
    real = messages.FileIndex.from_fieldset.__func__
    monkeypatch.setattr(
        messages.FileIndex,
        "from_fieldset",
        classmethod(lambda cls, *args: (count.append(1), real(cls, *args))[1]),
    )
    return count


def test_the_index_is_kept_until_the_file_changes(
    path: Path, cache: Path, built: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = xaurora.open(path).load()
    monkeypatch.chdir(path.parent)
    xr.testing.assert_identical(xaurora.open(path.name).load(), first)
    assert len(built) == 1
    assert len(list(cache.iterdir())) == 1
    assert {p.name for p in path.parent.iterdir()} == {"cache", "surface.grib"}
    os.utime(path, (1.7e9, 1.7e9))
    xr.testing.assert_identical(xaurora.open(path).load(), first)
    assert len(built) == 2


def test_a_damaged_index_is_made_again(
    path: Path, cache: Path, built: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    first = xaurora.open(path).load()
    (file,) = cache.glob("*/*.idx")
    file.write_bytes(file.read_bytes()[:100])
    xr.testing.assert_identical(xaurora.open(path).load(), first)
    xaurora.open(path)
    assert len(built) == 2
    assert not caplog.records


def test_an_index_that_others_could_have_written_is_not_read(
    path: Path, cache: Path, built: list[int]
) -> None:
    xaurora.open(path)
    cache.chmod(0o777)
    xaurora.open(path)
    assert len(built) == 2
    cache.chmod(0o700)
    xaurora.open(path)
    assert len(built) == 2


def test_without_a_cache_it_is_read_all_the_same(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[int]
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(storage, "cache_path", lambda name: tmp_path / "file" / name)
    for _ in range(2):
        xaurora.open(path)
    assert len(built) == 2


def test_a_full_cache_stops_nobody(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tempfile.mkdtemp

    def full(*args: object, dir: Path | None = None, **options: object) -> str:
        if dir == cache:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, dir=dir, **options)

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    assert xaurora.open(path).sizes["time"] > 0
    assert not list(cache.iterdir())


@pytest.mark.parametrize("damage", ["cut in a message", "bytes of a header"])
def test_damaged_messages_are_named(path: Path, cache: Path, damage: str) -> None:
    """Otherwise cfgrib prints a traceback, leaves the message out and goes on."""
    content = bytearray(path.read_bytes())
    if damage == "cut in a message":
        del content[-30:]
    else:
        start = sum(_lengths(bytes(content))[:30])
        content[start + 8 : start + 40] = bytes(32)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"surface\.grib' could not be read as GRIB"):
        xaurora.open(path)
    assert not cache.exists() or not list(cache.iterdir())


def test_only_the_indexes_used_last_are_kept(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xaurora.sources.grib._KEPT", 2)
    for i in range(4):
        os.utime(path, (1.6e9 + i, 1.6e9 + i))
        xaurora.open(path)
    assert len(list(cache.iterdir())) == 2


def test_indexing_shows_progress(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("xaurora.sources.grib._SHOWN_AFTER", 0.0)
    xaurora.open(path)
    assert "Indexing surface.grib" in capsys.readouterr().err


def test_each_message_is_decoded_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening finds out from the index which steps of a forecast there are."""
    count: list[str] = []
    real = messages.Message.__getitem__

    def counted(self: object, key: str) -> object:
        if key == "values":
            count.append(key)
        return real(self, key)

    monkeypatch.setattr(messages.Message, "__getitem__", counted)
    ds = xaurora.open(data / "era5_yukon_2023-01" / "surface.grib")
    assert not count
    assert ds.sizes["time"] == 744
    part = ds[["tp", "t2m"]].isel(time=slice(40)).load()
    assert len(count) == 2 * part.sizes["time"] == 80
    assert part["tp"].notnull().all()

"""Hashes of weights: computed once for a file, and never reused for other weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from xaurora.model import hashing, weights
from xaurora.model.aurora import AuroraWithHead


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The models whose tensors were hashed, with a cache of its own."""
    monkeypatch.setattr("xaurora.utils.storage.cache_path", lambda name: tmp_path / "cache" / name)
    seen: list[str] = []
    real = hashing._hash_state
    monkeypatch.setattr(
        hashing, "_hash_state", lambda m: (seen.append(type(m).__name__), real(m))[1]
    )
    return seen


@pytest.fixture
def checkpoint(little_small: type, tmp_path: Path) -> Path:
    path = tmp_path / "small.ckpt"
    torch.save(little_small().state_dict(), path)
    return path


def test_a_file_is_hashed_once(checkpoint: Path, counted: list[str]) -> None:
    models = [weights.load_pretrained("small", checkpoint) for _ in range(3)]
    found = {hashing.state_hash(m, cached=True) for m in models}
    assert found == {hashing.state_hash(models[0])}
    assert counted == ["LittleSmall", "LittleSmall"]  # the second was not to be cached
    counted.clear()
    wrapped = {hashing.state_hash(AuroraWithHead(m), cached=True) for m in models}
    assert wrapped == {hashing.state_hash(AuroraWithHead(models[0]))}
    assert wrapped != found
    assert len(counted) == 2


@pytest.mark.parametrize("what", ["weights", "file", "copy", "cache"])
def test_what_has_changed_is_hashed_again(
    checkpoint: Path, counted: list[str], what: str, tmp_path: Path, little_small: type
) -> None:
    model = weights.load_pretrained("small", checkpoint)
    before = hashing.state_hash(model, cached=True)
    counted.clear()
    stat = checkpoint.stat()
    if what == "weights":
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
    elif what == "file":  # of the same size and date
        torch.manual_seed(1)
        torch.save(little_small().state_dict(), checkpoint)
        os.utime(checkpoint, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        model = weights.load_pretrained("small", checkpoint)
    elif what == "copy":
        shutil.copy(checkpoint, tmp_path / "other.ckpt")
        model = weights.load_pretrained("small", tmp_path / "other.ckpt")
    else:
        for kept in (tmp_path / "cache" / "weights").iterdir():
            kept.write_text("sha256:half")
        model = weights.load_pretrained("small", checkpoint)
    found = hashing.state_hash(model, cached=True)
    assert counted == ["LittleSmall"]
    assert found == hashing.state_hash(model)
    assert (found == before) == (what in ("copy", "cache"))


def test_a_cache_that_cannot_be_written_stops_nothing(
    checkpoint: Path, counted: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    model = weights.load_pretrained("small", checkpoint)
    assert hashing.state_hash(model, cached=True) == hashing.state_hash(model)

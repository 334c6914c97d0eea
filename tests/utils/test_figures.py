"""Figures are laid out once, and written as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from xaurora.errors import SaveError
from xaurora.utils import figures


@pytest.fixture
def figure() -> Figure:
    made = Figure(layout="constrained")
    made.subplots().set_title("rain")
    return made


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
def test_the_suffix_is_the_format(
    suffix: str, start: bytes, figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, execute = [], ConstrainedLayoutEngine.execute
    monkeypatch.setattr(
        ConstrainedLayoutEngine, "execute", lambda *a: (count.append(1), execute(*a))[1]
    )
    figures.save(figure, tmp_path / f"rain{suffix}", dpi=50)
    assert (tmp_path / f"rain{suffix}").read_bytes().startswith(start)
    assert len(count) == 1


def test_nothing_is_written_where_it_cannot(figure: Figure, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError):
        figures.save(figure, tmp_path / "file" / "rain.png", dpi=50)

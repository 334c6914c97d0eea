"""Names and attributes that would be code, commands or whole pages elsewhere are names here."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import xarray as xr

import xaurora
from xaurora.errors import printable

NAMES = {
    "markup": "<script>alert(1)</script>",
    "an escape sequence": "\x1b[2J\x1b]0;owned\x07",
    "a path": "../../etc/passwd",
    "quotes": "a'b\"c`d{0}%s",
    "a null character": "a\x00b",
    "right to left": "abc\u202egnp.exe",
    "very long": "x" * 100_000,
}


def _harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text) and len(text) < 20_000


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_is_only_a_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a variable, as attributes, and as a target that is trained, saved, scored and shown."""
    monkeypatch.chdir(tmp_path)
    name = NAMES[kind]
    ds = xaurora.synthetic(shape=(8, 16), times=14)
    ds = ds.assign({name: (ds["t2m"] * 0.5).assign_attrs(units="1", long_name=name)})
    ds.attrs |= {"title": name, "source": name, "institution": name}
    with caplog.at_level(logging.INFO, "xaurora"):
        report = ds.aurora.check(name, model="tiny")
        assert _harmless(repr(ds.aurora))
        assert _harmless(str(report))
        tuned = ds.aurora.finetune(name, model="tiny", steps=1, validations=1, progress=False)
    assert _harmless(tuned.summary())
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    assert all(len(p.name) < 100 for p in tmp_path.rglob("*"))
    forecast = ds.aurora.predict(model=xaurora.load(tuned.path), progress=False)
    assert name in forecast
    scores = forecast.aurora.evaluate(ds, metrics=["rmse"], progress=False)
    page = scores.aurora.scorecard(title=name).html
    assert "<script" not in page
    assert len(page) < 600_000


def test_errors_are_harmless() -> None:
    for name in NAMES.values():
        ds = xr.Dataset({name: ("x", [1.0])}, attrs={"title": name})
        with pytest.raises(xaurora.XauroraError) as error:
            ds.aurora.to_batch()
        assert _harmless(str(error.value))
        assert _harmless(printable(name))
    assert printable("plain\ttext\n") == "plain\ttext\n"

"""The comparison of rain with Aurora 1.5 runs on tiny models, and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rain_v15


@pytest.mark.thorough
def test_the_comparison_runs_and_resumes(tmp_path: Path, monkeypatch, capsys) -> None:
    report = rain_v15.small(tmp_path, steps=3, times=140, shape=(16, 32))
    assert json.loads((tmp_path / "rain.json").read_text()) == report
    scores = report["scores"]["synthetic"]
    assert set(scores) == {"own", "ensemble", "head", "own tuned", "differences"}
    for name in ("own", "ensemble", "head", "own tuned"):
        assert all(v > 0 for v in scores[name]["crps"].values())
    skill, low, high, p = scores["differences"]["head"]["crps"]["6 h"]
    assert low < skill < high
    assert 0 <= p <= 1
    assert (tmp_path / "rain-synthetic.html").stat().st_size > 10_000
    assert "a step" in capsys.readouterr().out
    # Forecasts that are stored are not computed again.
    monkeypatch.setattr(rain_v15, "_seconds", lambda *args: 0.0)
    again = rain_v15.small(tmp_path, steps=3, times=140, shape=(16, 32))
    assert again["scores"] == report["scores"]

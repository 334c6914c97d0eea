"""The published setups run on real and on synthetic fields, and the committed report says what they
gain.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import setups  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("4 replay buffer", "synthetic"),
        ("6 IMERG as target", "synthetic"),
        ("1 full, one step", "norway"),
    ],
)
def test_setups_run(name: str, where: str, data: Path) -> None:
    row = setups.run(name, where, data, scale=0.01)
    assert np.isfinite(row["gain"]).all()
    for by in row["curves"].values():
        assert np.isfinite(by["tuned"]["rmse"]).all()
    # A frozen backbone leaves the state as it was, to the bit; what is scored has moved.
    assert all(
        row["curves"][n]["tuned"] != row["curves"][n]["untuned"]
        for n in row["scored"]
        if n in row["curves"]
    )


def test_every_setup_beat_its_start() -> None:
    """The committed report: the interval of the gain lies above zero."""
    report = json.loads((ROOT / "benchmarks" / "reports" / "setups.json").read_text())
    rows = {(r["setup"], r["where"]): r["gain"] for r in report["rows"]}
    assert {(n, w) for n in setups.RECIPES for w in ("synthetic", "norway")} - rows.keys() == {
        ("6 IMERG as target", "norway")
    }
    for case, (mean, low, high) in rows.items():
        assert low <= mean <= high
        assert low > 0, case


def test_the_block_bootstrap() -> None:
    rng = np.random.default_rng(0)
    start = 1.0 + 0.1 * rng.standard_normal((60, 2))
    mean, low, high = setups.bootstrap(start, 0.8 * start)
    assert mean == pytest.approx(0.2, abs=0.01)
    assert low < mean < high
    alike = np.repeat(rng.standard_normal(10), 6)[:, None]  # six neighbours are one
    independent = rng.permutation(alike)
    widths = [
        np.diff(setups.bootstrap(start[:, :1], start[:, :1] - 0.1 - 0.1 * noise)[1:])[0]
        for noise in (alike, independent)
    ]
    assert widths[0] > 1.3 * widths[1]

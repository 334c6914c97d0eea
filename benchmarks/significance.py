"""How often the test of ``xaurora.significance`` finds a difference where there is none.

    python benchmarks/significance.py

Autoregressive series of the first order with a mean of zero, at a nominal level of 5 %. Writes
``benchmarks/reports/significance.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from xaurora.evaluation.autocorrelation import TESTS

COUNTS = (40, 60, 120, 365, 730)
CORRELATIONS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9)
TRIALS = 20_000


def series(rng: np.random.Generator, count: int, correlation: float) -> np.ndarray:
    """Return series of values, ``(count, TRIALS)``."""
    x = rng.standard_normal(TRIALS) / np.sqrt(1.0 - correlation**2)
    out = [x]
    for _ in range(count - 1):
        x = correlation * x + rng.standard_normal(TRIALS)
        out.append(x)
    return np.stack(out)


def main() -> None:
    """Simulate all cases."""
    rng = np.random.default_rng(1)
    rows = []
    for count in COUNTS:
        found: dict[str, dict[str, float]] = {name: {} for name in TESTS}
        for correlation in CORRELATIONS:
            values = series(rng, count, correlation)
            for name, (interval, _) in TESTS.items():
                _, p = interval(values, 0.95)
                found[name][f"{correlation:g}"] = round(float((p < 0.05).mean()), 4)
        rows.append({"init_times": count, "false_positives": found})
        print(rows[-1])
    path = Path(__file__).parent / "reports" / "significance.json"
    path.write_text(json.dumps({"nominal": 0.05, "trials": TRIALS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

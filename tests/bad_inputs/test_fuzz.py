"""Sound Datasets in every convention pass ``check()``, and with one fault they do not."""

from __future__ import annotations

import pytest
import trust
from bad_inputs import fuzz
from hypothesis import HealthCheck, given, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@pytest.mark.filterwarnings("ignore")  # of conversions of calendars
@settings(max_examples=15, deadline=None, suppress_health_check=_SLOW)
@given(fuzz.sound())
def test_sound_data_give_no_false_alarm(made: fuzz.Made) -> None:
    assert fuzz.verdict(made.ds) == (True, "")


@pytest.mark.slow  # 1,000 Datasets in all; benchmarks/trust.py takes a hundred times as many
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(1, 8))]
)
def test_every_fault_is_found_and_none_is_a_crash(seed: int) -> None:
    examples: list[str] = []
    found = trust.fuzz(125, seed, examples)
    assert len(found) >= 8  # so few Datasets do not hold every fault
    for name, counts in found.items():
        assert set(counts) == {"right"}, (name, examples)

"""The faults still apply to the code, and name tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from faults import FAULTS, Fault, faulty

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "xaurora"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_changes_the_code_and_names_tests(fault: Fault) -> None:
    text = (PACKAGE / fault.file).read_text(encoding="utf-8")
    compile(faulty(text, fault), fault.file, "exec")
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name or 'test_'}", (TESTS / file).read_text(), re.MULTILINE), test


def test_a_fault_that_no_longer_applies_is_an_error() -> None:
    with pytest.raises(ValueError, match="occurs 0 times"):
        faulty("pass", FAULTS[0])


def test_names_are_unique() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 30

"""Every bad input ends in a named error, or in a problem of ``check``, and its fix works."""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from pathlib import Path

import pytest
import typed_fixes
import xarray as xr
from bad_inputs.catalogue import Case, cases, sound

import xaurora
from xaurora import errors
from xaurora.accessor import AuroraAccessor

CASES = cases()
NEEDS_OTHER_DATA = {
    "a single latitude",
    "a single longitude",
    "a single level",
    "no time axis",
}
"""What is missing cannot be typed."""
ELSEWHERE = ("devices",)
"""Arguments that start this process again."""


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return sound()


@pytest.fixture(scope="module")
def forecast(data: xr.Dataset) -> xr.Dataset:
    return (
        xaurora.persistence(data, ["tp", "t2m"], ["6h", "12h"]).isel(init_time=slice(1, 6)).load()
    )


def _problems(
    case: Case, ds: xr.Dataset, data: xr.Dataset, folder: Path
) -> list[tuple[str, str, str]]:
    """Return code, message and fix of what is wrong."""
    options = dict(case.options or {})
    try:
        if case.verb == "check":
            report = ds.aurora.check(**{"model": "tiny", **options})
            return [tuple(problem) for problem in report.problems]
        if case.verb == "finetune":
            quick = {"model": "tiny", "steps": 1, "validations": 1, "progress": False}
            ds.aurora.finetune("tp", **{**quick, "out": folder / "run", **options})
        elif case.verb == "predict":
            quick = {"model": "tiny", "time": data["time"].values[-2:], "progress": False}
            ds.aurora.predict(**{**quick, "store": folder / "fc.zarr", **options})
        else:
            ds.aurora.evaluate(data, **options)
    except errors.XauroraError as error:
        return [(error.code, error.message, error.fix)]
    return []


def test_there_are_two_hundred() -> None:
    assert len(CASES) >= 200


def test_the_sound_data_are_sound(data: xr.Dataset, forecast: xr.Dataset, tmp_path: Path) -> None:
    assert data.aurora.check("tp", model="tiny").ok
    forecast.aurora.evaluate(data)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_it_ends_in_a_named_error(
    case: Case, data: xr.Dataset, forecast: xr.Dataset, tmp_path: Path
) -> None:
    start = forecast if case.verb == "evaluate" else data
    ds = case.make(start.copy(deep=True))
    found = _problems(case, ds, data, tmp_path)
    assert found, "it passed without a word"
    mine = [p for p in found if case.code in ("", p[0]) and case.words in p[1]]
    assert mine, found
    assert all(fix for _, _, fix in found), "an error without a fix"
    assert os.listdir(tmp_path) == [], "something half-written was left"
    for fix in typed_fixes.find(mine[0][2], _arguments(case.verb)):
        _assert_it_works(fix, case, mine[0], (ds, data), tmp_path)


def _arguments(verb: str) -> set[str]:
    return set(inspect.signature(getattr(AuroraAccessor, verb)).parameters) - {*ELSEWHERE}


def _assert_it_works(
    fix: typed_fixes.Fix,
    case: Case,
    problem: tuple[str, str, str],
    given: tuple[xr.Dataset, xr.Dataset],
    folder: Path,
) -> None:
    """Type a fix, and call again."""
    for gap, answer in (case.answers or {}).items():
        fix = replace(fix, text=fix.text.replace(gap, answer))
    assert not fix.open or case.name in NEEDS_OTHER_DATA, fix.text
    if fix.open:
        return
    ds, data = given
    known = {"past": data, "truth": data}
    if case.verb == "evaluate":
        known["ds"] = data
        if ".evaluate(" in fix.text:
            return  # the call itself
    if fix.is_option:
        case = replace(case, options=(case.options or {}) | fix.options(**known))
    else:
        ds = fix.apply(ds, **known)
        if not isinstance(ds, xr.Dataset):
            return  # only a look at the data, or a total of one variable
    left = _problems(case, ds, data, folder)
    assert problem not in left, fix.text
    assert {code for code, _, _ in left} <= set(case.after), (fix.text, left)

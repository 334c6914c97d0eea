"""Every bad input ends in a named error, or in a problem of ``check``, and its fix works."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from bad_inputs.catalogue import Case, cases, sound

import xaurora
from xaurora import errors

CASES = cases()


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
            quick = {"model": "tiny", "progress": False}
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
    if case.fixed:
        typed: dict[str, Any] = {"ds": ds, "np": np, "pd": pd, "xr": xr, "xaurora": xaurora}
        fix = mine[0][2].partition(", or ")[0]
        if isinstance(ast.parse(fix).body[0], ast.Expr):  # an expression for the new Dataset
            fix = f"ds = {fix}"
        exec(fix, typed)
        left = _problems(case, typed["ds"], data, tmp_path)
        assert mine[0] not in left, left

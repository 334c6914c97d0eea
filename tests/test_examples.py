"""The examples in docstrings run and show what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import xaurora
from xaurora import TunedAurora
from xaurora.accessor import AuroraAccessor

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
METHODS = [n for n in vars(AuroraAccessor) if not n.startswith("_")]
PUBLIC = [n for n in xaurora.__all__ if not n.startswith("_")]
MODULES = [
    m.name
    for m in pkgutil.walk_packages(xaurora.__path__, "xaurora.")
    if not m.name.startswith("xaurora.jax.") and m.name != "xaurora.__main__"
]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What examples may use: fields, a tuned model, its forecast and their scores."""
    ds = xaurora.synthetic(shape=(16, 32), times=60)
    tuned = ds.aurora.finetune(
        "tp",
        model="tiny-pretrained",
        steps=2,
        out=tmp_path_factory.mktemp("example") / "run",
        progress=False,
        workers=0,
    )
    times = slice("2020-01-08", "2020-01-10")
    fc = ds.aurora.predict("12h", model=tuned, time=times, progress=False)
    scores = fc.aurora.evaluate(ds, progress=False)
    return {
        "xaurora": xaurora,
        "xr": xr,
        "np": np,
        "ds": ds,
        "tuned": tuned,
        "fc": fc,
        "scores": scores,
    }


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


def run(test: doctest.DocTest, names: dict[str, Any]) -> None:
    own = {k: v.copy() if isinstance(v, xr.Dataset) else v for k, v in names.items()}
    test.globs = {**test.globs, **own}
    out: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=out.append)
    assert not out, "".join(out)


@pytest.mark.parametrize("name", [*METHODS, *PUBLIC, "save", "summary", "merge", "load_weights"])
def test_every_public_name_has_an_example_that_runs(name: str, names: dict[str, Any]) -> None:
    owner = AuroraAccessor if name in METHODS else xaurora if name in PUBLIC else TunedAurora
    given = getattr(owner, name)
    tests = doctest.DocTestFinder(recurse=False).find(given, name)
    assert tests
    assert tests[0].examples, f"{name} has no example"
    run(tests[0], names)


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_internal_functions(module: str, names: dict[str, Any]) -> None:
    loaded = importlib.import_module(module)
    public = {id(getattr(xaurora, n)) for n in PUBLIC} | {id(AuroraAccessor), id(TunedAurora)}
    for test in doctest.DocTestFinder().find(loaded):
        own = getattr(loaded, test.name.removeprefix(f"{module}.").split(".")[0], None)
        if test.examples and id(inspect.unwrap(own) if callable(own) else own) not in public:
            run(test, names)

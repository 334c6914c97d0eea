"""Who imports whom: docs/architecture.md's table, checked against the real imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1] / "xaurora"

# Folder → what it may import. `errors` is open to all but `distributions`.
MAY_IMPORT = {
    "__init__": {"accessor", "training", "evaluation", "sources", "model", "fields"},
    "__main__": {"cli"},
    "accessor": {
        *("training", "forecasting", "plots", "evaluation", "sources", "model", "fields", "utils"),
    },
    "cli": {
        *("accessor", "training", "forecasting", "plots", "evaluation", "sources", "model"),
        *("fields", "distributions", "utils"),
    },
    "training": {"jax", "model", "fields", "utils"},
    "forecasting": {"jax", "model", "fields", "distributions", "utils"},
    "jax": {"model", "fields", "distributions", "utils"},
    "plots": {"evaluation", "fields", "utils"},
    "evaluation": {"fields", "distributions", "utils"},
    "sources": {"fields", "distributions", "utils"},
    "model": {"fields", "distributions", "utils"},
    "fields": {"utils"},
    "utils": set(),
    "distributions": set(),
    "errors": set(),
}
# These import nothing else of the folder they are in.
CLOSED = ("model/heads", "fields/grid")
TORCH = ("training", "forecasting", "jax", "model")


class Import(NamedTuple):
    """One import of this package: where it is written, and the module."""

    path: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT.parent)}:{self.line} imports {self.module}"


MODULES = {
    ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(ROOT.rglob("*.py"))
}


def _imports(path: Path) -> Iterator[Import]:
    """Yield the imports of a file, those for type checking alone included."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            both = [(f"{node.module}.{a.name}", node.module) for a in node.names]
            names = [full if full in MODULES else module for full, module in both]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        for name in names:
            if name == "xaurora" or name.startswith("xaurora."):
                yield Import(path, node.lineno, name)


def _folder(module: str) -> str:
    """Return the folder or file below the package: ``xaurora.model.heads.base`` → ``model``."""
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_as_the_table_says(path: Path) -> None:
    own = _folder(
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    )
    allowed = {own, *MAY_IMPORT[own], *(() if own == "distributions" else ("errors",))}
    for found in _imports(path):
        other = _folder(found.module)
        if other == "__init__":  # the public interface: the commands and the pages of plots use it
            assert own in ("accessor", "cli", "plots"), found
            continue
        assert other in allowed, f"{found}; {own}/ may import {', '.join(sorted(allowed))}"
    for closed in CLOSED:
        if path.is_relative_to(ROOT / closed):
            inside = f"xaurora.{closed.replace('/', '.')}"
            for found in _imports(path):
                if _folder(found.module) == own:
                    assert found.module.startswith(inside), found


def test_there_is_no_cycle() -> None:
    """Between modules, imports inside functions and for type checking included."""
    graph = {
        name: {i.module for i in _imports(path) if i.module in MODULES and i.module != name}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module in done:
            return
        for other in graph[module] - {"xaurora"}:
            visit(other, (*trail, module))
        done.add(module)

    for module in graph.keys() - {"xaurora"}:
        visit(module, ())


def test_the_folders_are_those_of_the_table() -> None:
    found = {p.stem if p.suffix == ".py" else p.name for p in ROOT.iterdir()}
    assert found - {"__pycache__"} == {*MAY_IMPORT, "assets", "py.typed"}


def test_every_test_file_mirrors_a_source_file() -> None:
    tests = Path(__file__).parent
    extra = {"test_imports.py", "test_docs.py", "test_examples.py", "test_first_hour.py"}
    for path in sorted(tests.rglob("test_*.py")):
        if path.name in extra or path.parent.name in ("mutations", "bad_inputs"):
            continue
        mirrored = path.relative_to(tests).with_name(path.name.removeprefix("test_"))
        root = ROOT.parent if mirrored.parts[0] == "benchmarks" else ROOT
        assert (root / mirrored).is_file(), f"{path} mirrors no {mirrored}"


@pytest.mark.parametrize(
    "path",
    [p for n, p in MODULES.items() if _folder(n) not in TORCH],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_torch_outside_the_folders_for_it(path: Path) -> None:
    # `distributions` imports torch when it is handed a tensor, and not before
    if path.parent.name == "distributions":
        return
    found = re.findall(r"^( *)(?:import torch|from (?:torch|aurora)\b)", path.read_text(), re.M)
    assert not found or "if TYPE_CHECKING:" in path.read_text(), path


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_is_light() -> None:
    heavy = (
        *("torch", "aurora", "dask.array", "zarr", "matplotlib", "xarray_regrid"),
        *("lightning_fabric", "scipy", "cf_xarray"),
    )
    loaded = _python(
        "import sys, xarray; before = set(sys.modules); import xaurora;"
        f" print([m for m in {heavy} if m in sys.modules and m not in before])"
    )
    assert loaded == "[]"


def test_reading_and_scoring_run_without_torch(tmp_path: Path) -> None:
    """In a process in which torch and aurora cannot be imported at all."""
    code = """
import sys
sys.modules["torch"] = None
sys.modules["aurora"] = None
import xaurora
ds = xaurora.synthetic(shape=(16, 32), times=12)
assert ds.aurora.check("tp").problems == []
fc = xaurora.persistence(ds, ["t2m", "tp"], ["6h"])
normals = xaurora.climatology(ds, ["t2m", "tp"])
scores = fc.aurora.evaluate(ds, climatology=normals)
scores.aurora.scorecard(PATH)
ds.aurora.statistics(["tp"], progress=False)
ds.aurora.accumulate("tp", "6h")
fc.aurora.to_weatherbench2()
print(sorted(m for m in sys.modules if m == "torch" or m.startswith("torch.")))
""".replace("PATH", repr(str(tmp_path / "card.html")))
    assert _python(code) == "['torch']"


def test_public_names_are_there() -> None:
    import xaurora

    for name in xaurora.__all__:
        assert getattr(xaurora, name) is not None
    assert "synthetic" in dir(xaurora)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = xaurora.nonsense

"""Imports run downward only, and are late: DESIGN's layers, checked."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "xaurora"

LAYERS = {
    0: ("variables", "errors", "config", "storage", "progress", "lazy"),
    1: (
        "recognition",
        "conventions",
        "grid",
        "precipitation",
        "normalisation",
        "periods",
        "regridding",
        "targets",
        "distributions",
        "requirements",
        "joining",
        "stores",
        "opening",
        "imerg",
        "synthesis",
        "checking",
    ),
    2: ("batch", "memory", "tiny", "adapters", "model", "heads", "strategies"),
    3: (
        "samples",
        "loading",
        "losses",
        "parallel",
        "checkpoints",
        "journal",
        "latents",
        "replay",
        "rollout",
        "tuned",
        "validation",
    ),
    4: (
        "planning",
        "preparing",
        "estimation",
        "training",
        "finetuning",
        "curves",
        "bridge",
        "members",
        "forecasts",
        "prediction",
        "diagrams",
        "evaluation",
        "scorecards",
        "plots",
    ),
    5: ("accessor", "demonstration", "cli"),
}
LAYER = {module: layer for layer, modules in LAYERS.items() for module in modules}


def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, but for type checking alone."""
    out: set[str] = set()
    skipped: set[int] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            skipped |= {id(n) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "xaurora"
        ):
            parts = node.module.split(".")
            out |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            out |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("xaurora.")
            }
    return out - {"__version__"}


def _modules() -> list[Path]:
    return [
        p
        for p in sorted(ROOT.rglob("*.py"))
        if p.name not in ("__init__.py", "__main__.py") or p.parent != ROOT
    ]


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downward(path: Path) -> None:
    name = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert name in LAYER, f"{name} has no layer"
    for other in _imports(path):
        if other in LAYER and other != name:
            assert LAYER[other] <= LAYER[name], f"{name} imports {other}, which lies above it"


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in _modules():
        name = path.relative_to(ROOT).parts[0].removesuffix(".py")
        graph.setdefault(name, set()).update(m for m in _imports(path) if m in LAYER and m != name)

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        for other in graph.get(module, ()):
            visit(other, (*trail, module))

    for module in graph:
        visit(module, ())


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_is_light() -> None:
    heavy = (
        "torch",
        "aurora",
        "dask.array",
        "zarr",
        "matplotlib",
        "xarray_regrid",
        "lightning_fabric",
        "scipy",
        "cf_xarray",
    )
    loaded = _python(
        f"import sys, xarray; before = set(sys.modules); import xaurora; print([m for m in {heavy}"
        " if m in sys.modules and m not in before])"
    )
    assert loaded == "[]"
    times = [
        float(
            _python(
                "import time, xarray; t = time.perf_counter(); import xaurora;"
                " print(time.perf_counter() - t)"
            )
        )
        for _ in range(5)
    ]
    assert statistics.median(times) <= 0.25


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


def test_lower_layers_know_no_torch() -> None:
    """The ground, the xarray layer and evaluation know neither torch nor aurora."""
    for layer in (0, 1):
        for name in LAYERS[layer]:
            # distributions imports torch inside, once a tensor has come in: whoever made that has
            # it already
            path = ROOT / f"{name}.py"
            for file in [path] if path.exists() else (ROOT / name).glob("*.py"):
                if file.name != "torch_gamma.py":  # itself imported inside
                    assert not re.search(
                        r"^(import torch|from (torch|aurora)\b)", file.read_text(), re.M
                    ), file
    for path in (ROOT / "evaluation").glob("*.py"):
        assert "import torch" not in path.read_text()


def test_public_names_are_there() -> None:
    import xaurora

    for name in xaurora.__all__:
        assert getattr(xaurora, name) is not None
    assert "synthetic" in dir(xaurora)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = xaurora.nonsense

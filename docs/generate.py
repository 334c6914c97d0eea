"""Write what follows from the code: signatures of the accessor, and pages of options and errors.

    python docs/generate.py           # write
    python docs/generate.py --check   # exit with status 1 if something is out of date

The options of ``finetune``, ``estimate`` and ``predict`` are declared in dataclasses. This script
copies their names, types, defaults and text into ``xaurora/accessor.py``, so that editors show
them, and into ``docs/options.md``. ``docs/errors.md`` lists every error that the package can raise,
and ``docs/reference/`` public names, commands, models and variables.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import reference_pages

from xaurora import errors
from xaurora.forecasting.options import PredictOptions
from xaurora.model.heads import HeadOptions
from xaurora.model.options import StrategyOptions
from xaurora.sources.remote import PUBLIC
from xaurora.training.nested_options import LatentOptions, ReplayOptions
from xaurora.training.options import FinetuneOptions, TrainingOptions
from xaurora.utils.options import Option, options_of, parameters_section

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "xaurora"

# Method of the accessor, dataclass, its first positional option, further parameters.
METHODS = (
    ("finetune", FinetuneOptions, "target", ()),
    (
        "estimate",
        FinetuneOptions,
        "target",
        (
            Option(
                "compare",
                "bool",
                False,
                "bool",
                "Also estimate every base and strategy, for comparison; for a GPU with the cards"
                " that each fits on.",
                "",
            ),
            Option(
                "device",
                "str",
                "auto",
                '{"auto", "cpu", "gpu"}',
                "What trains, by default a GPU if there is one. A GPU's step can be estimated on"
                " any machine.",
                "",
            ),
        ),
    ),
    ("predict", PredictOptions, "lead", ()),
)


# --- the accessor ---------------------------------------------------------------------------------


def ordered(cls: type) -> list[Option]:
    """Return the options of a class, its own before inherited ones."""
    inherited = {o.name for o in options_of(TrainingOptions)} if cls is FinetuneOptions else set()
    items = options_of(cls)
    return [
        *(o for o in items if o.name not in inherited),
        *(o for o in items if o.name in inherited),
    ]


def accessor() -> str:
    """Return the source of the accessor with signatures and parameters as the options say."""
    source = (PACKAGE / "accessor.py").read_text(encoding="utf-8")
    for name, cls, first, further in METHODS:
        source = _with_signature(source, name, [*ordered(cls), *further], first)
    return source


def _with_signature(source: str, name: str, items: list[Option], first: str) -> str:
    tree = ast.parse(source)
    methods = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    (method,) = methods
    lines = source.splitlines()
    docstring = method.body[0]
    text = _docstring("\n".join(lines[docstring.lineno - 1 : docstring.end_lineno]), items)
    returns = ast.unparse(method.returns)
    head = [f"    def {name}(", "        self,"]
    head += [_parameter(o) for o in items if o.name == first] + ["        *,"]
    head += [_parameter(o) for o in items if o.name != first]
    head += ["        **unknown: object,", f"    ) -> {returns}:"]
    lines[method.lineno - 1 : docstring.end_lineno] = [*head, *text.splitlines()]
    return "\n".join(lines) + "\n"


def _parameter(item: Option) -> str:
    return f"        {item.name}: {item.annotation} = {_double_quoted(repr(item.default))},"


def _double_quoted(text: str) -> str:
    return f'"{text[1:-1]}"' if text.startswith("'") else text


def _docstring(text: str, items: list[Option]) -> str:
    """Return a docstring whose section of parameters lists the options."""
    start = text.index("        Parameters\n")
    after = re.search(r"\n\n        [A-Z]\w+\n        -{4,}\n", text[start:])
    assert after is not None, "the docstring needs a section after its parameters"
    section = "\n".join(
        [
            "        Parameters",
            "        ----------",
            *(parameters_text(item) for item in items),
        ]
    )
    return text[:start] + section + text[start + after.start() :]


def parameters_text(item: Option) -> str:
    """Return the entry of one option in a docstring of the accessor."""
    return parameters_section([item], "        ")


# --- the pages ------------------------------------------------------------------------------------


def options_page() -> str:
    """Return ``docs/options.md``."""
    lines = [
        "# Options",
        "",
        "<!-- Written by docs/generate.py. -->",
        "",
        "The same options have the same names, types and defaults in Python and on the command"
        " line, where `learning_rate=1e-4` is `--learning-rate 1e-4`.",
    ]
    inherited = {o.name for o in options_of(TrainingOptions)}
    own = [o for o in options_of(FinetuneOptions) if o.name not in inherited]
    sections = (
        ("`ds.aurora.finetune` and `ds.aurora.estimate`: what is trained on what", own),
        (
            "`ds.aurora.finetune` and `ds.aurora.estimate`: how long and how",
            options_of(TrainingOptions),
        ),
        ("`StrategyOptions`", options_of(StrategyOptions)),
        ("`LatentOptions`", options_of(LatentOptions)),
        ("`ReplayOptions`", options_of(ReplayOptions)),
        ("`ds.aurora.predict`", options_of(PredictOptions)),
    )
    for title, items in sections:
        lines += ["", f"## {title}", "", "| option | type | default | |", "|---|---|---|---|"]
        for item in items:
            text = re.sub(r":class:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", item.text).replace("``", "`")
            kind = item.type.replace("|", "\\|")
            lines.append(f"| `{item.name}` | {kind} | `{item.default!r}` | {text} |")
    lines += [
        "",
        f"Options of heads: see `help(xaurora.{HeadOptions.__name__})` and"
        " [comparison of heads](heads.md).",
    ]
    return "\n".join(lines) + "\n"


def stores_page() -> str:
    """Return ``docs/public-stores.md``."""
    lines = [
        "# Public stores",
        "",
        "<!-- Written by docs/generate.py. -->",
        "",
        "`xaurora.open` takes the names of public copies of ERA5, which need no account:",
        "",
        "| name | grid | times | years | levels | precipitation |",
        "|---|---|---|---|---|---|",
    ]
    for name, store in PUBLIC.items():
        row = store.grid, store.times, store.years, str(store.levels), store.rain
        lines.append(f"| `{name}` | {' | '.join(row)} |")
    lines += [
        "",
        "```python",
        'ds = xaurora.open("weatherbench2:1.5deg", variables=["2t", "msl", "tp"])',
        "```",
        "",
        "Nothing but coordinates is read before it is needed. `variables=` and `levels=` leave out"
        " what is not. ARCO-ERA5 has times from 1900 to 2050; those for which it says that it has"
        " values are kept.",
        "",
        "Any other Zarr store is opened by its URL (`gs://`, `s3://`, `az://`, `https://`), with"
        " `storage_options=` as `obstore.store.from_url` takes them. A request that fails is"
        " repeated with growing pauses, and so is a chunk that arrives damaged. If it fails for"
        " good, the error names variable and store; in training, the sample is left out and"
        " counted. `ds.aurora.prepare` makes a local copy ([training stores](latents.md)).",
        "",
        "Addresses and licences:",
        "",
    ]
    lines += [f"- `{name}`: `{store.url}`. {store.licence}." for name, store in PUBLIC.items()]
    return "\n".join(lines) + "\n"


def _classes() -> dict[str, type[errors.XauroraError]]:
    return {
        name: cls
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.XauroraError)
    }


def _as_text(node: ast.expr | None) -> str:
    """Return a message as it stands in the code, with what is filled in between braces."""
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_as_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "{" + ast.unparse(node.value) + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _as_text(node.left) + _as_text(node.right)
    if isinstance(node, ast.IfExp):
        return f"[{_as_text(node.body)} | {_as_text(node.orelse)}]"
    return "{" + ast.unparse(node) + "}"


def messages() -> list[tuple[str, str, str, str]]:
    """Return every error in the code: module, class, message, fix."""
    classes, out = _classes(), []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name in classes and node.args:
                fix = next((k.value for k in node.keywords if k.arg == "fix"), None)
                where = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                out.append((where, name, _as_text(node.args[0]), _as_text(fix)))
    return out


def errors_page() -> str:
    """Return ``docs/errors.md``."""
    found = messages()
    lines = [
        "# Errors",
        "",
        "<!-- Written by docs/generate.py. -->",
        "",
        "Every error is an `xaurora.XauroraError` and also the builtin in the second column. Its"
        " message says what was expected and what was found, and `error.fix` what to type. Text in"
        " braces is filled in when the error is raised.",
        "",
        "| class | also a | meaning |",
        "|---|---|---|",
    ]
    for name, cls in _classes().items():
        builtin = next(
            (b.__name__ for b in cls.__bases__ if b.__module__ == "builtins"), "Exception"
        )
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        lines.append(f"| `{name}` | `{builtin}` | {summary} |")
    for name in sorted({row[1] for row in found}):
        lines += ["", f"## {name}", "", "| message | fix | raised in |", "|---|---|---|"]
        for where, cls_name, message, fix in found:
            if cls_name == name:
                cells = (_cell(message), _cell(fix), f"`{where}`")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


FILES = {
    PACKAGE / "accessor.py": accessor,
    ROOT / "docs" / "options.md": options_page,
    ROOT / "docs" / "errors.md": errors_page,
    ROOT / "docs" / "public-stores.md": stores_page,
    ROOT / "docs" / "reference" / "api.md": reference_pages.api_page,
    ROOT / "docs" / "reference" / "commands.md": reference_pages.commands_page,
    ROOT / "docs" / "reference" / "models.md": reference_pages.models_page,
    ROOT / "docs" / "reference" / "variables.md": reference_pages.variables_page,
}


def main() -> int:
    """Write all files, or check them; return the exit status."""
    stale = []
    for path, make in FILES.items():
        text = make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(ROOT))
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{'out of date' if '--check' in sys.argv else 'wrote'}: {path}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())

"""Signatures, docstrings, pages and the command line are those of the declared options."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import xaurora
from xaurora.accessor import AuroraAccessor
from xaurora.cli.commands import app
from xaurora.forecasting.options import PredictOptions
from xaurora.training.options import FinetuneOptions
from xaurora.utils.options import options_of

ROOT = Path(__file__).resolve().parents[1]
VERBS = {"finetune": FinetuneOptions, "predict": PredictOptions}


def test_generated_text_is_up_to_date() -> None:
    """``python docs/generate.py`` writes what this finds out of date."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_has_every_public_name() -> None:
    reference = ROOT / "docs" / "reference"
    listed = set(re.findall(r"^   (xaurora\.\S+)$", (reference / "api.md").read_text(), re.M))
    public = {f"xaurora.{name}" for name in xaurora.__all__ if not name.startswith("_")}
    methods = {
        f"xaurora.accessor.AuroraAccessor.{name}"
        for name in vars(AuroraAccessor)
        if not name.startswith("_")
    }
    assert listed == public | methods
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    titles = re.findall(r"^## xaurora (\S+)$", (reference / "commands.md").read_text(), re.M)
    assert set(titles) == commands


def test_pages_are_in_the_site_and_links_lead_somewhere() -> None:
    made = {"generated", "runs", "_build"}  # by builds
    pages = {p for p in (ROOT / "docs").rglob("*.md") if not made & set(p.parts)}
    listed = {ROOT / "docs" / "index.md"}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.S):
            entries = [line for line in tree.splitlines() if line and line[0] != ":"]
            listed |= {(page.parent / f"{entry}.md").resolve() for entry in entries}
        for target in re.findall(r"\]\(([^)#: ]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert pages == listed
    for target in re.findall(r"\]\((docs/[^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_method_takes_every_declared_option(verb: str) -> None:
    parameters = inspect.signature(getattr(AuroraAccessor, verb)).parameters
    for option in options_of(VERBS[verb]):
        assert parameters[option.name].default == option.default, option.name


@pytest.mark.parametrize("verb", list(VERBS))
def test_the_help_lists_every_declared_option(verb: str) -> None:
    page = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).stdout
    for option in options_of(VERBS[verb]):
        if option.command_line != "hidden" and option.name not in ("progress", "target"):
            assert f"--{option.name.replace('_', '-')}" in page, option.name

"""Signatures, docstrings, pages and the command line are those of the declared options."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

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

"""Configuration of the documentation: ``sphinx-build -W docs docs/_build``."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import xaurora

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

sys.path.insert(0, str(Path(__file__).parent))
# What notebooks run is small.
os.environ.setdefault("OMP_NUM_THREADS", "2")
warnings.filterwarnings("ignore", category=FutureWarning)

project = "xaurora"
author = "the authors of xaurora"
copyright = "the authors of xaurora, MIT licence"
release = version = xaurora.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "**/runs", "**/.ipynb_checkpoints", "data"]
html_theme = "furo"
html_title = "xaurora"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

# Docstrings are NumPy's. A page for each public name, made from its docstring.
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True

# Notebooks are text, and are run with each build. An exception fails it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_output_stderr = "remove"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _spread_tutorials(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Give each process of ``-j`` its share of the tutorials.

    Sphinx deals out stretches of the sorted names. All tutorials would be in one.
    """
    tutorials = [name for name in docnames if name.startswith("tutorials/")]
    others = [name for name in docnames if not name.startswith("tutorials/")]
    distance = len(docnames) / max(len(tutorials), 1)
    for i, name in enumerate(tutorials):
        others.insert(round(i * distance), name)
    docnames[:] = others


def setup(app: Sphinx) -> None:
    """Connect what this configuration adds."""
    app.connect("env-before-read-docs", _spread_tutorials)

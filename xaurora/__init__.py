"""Fine-tune, run and score Microsoft's Aurora from xarray.

``import xaurora`` registers the ``ds.aurora`` accessor. Slow imports are deferred to first use.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from xaurora.errors import XauroraError

# The ``xaurora`` command answers --help and wrong arguments before it imports xarray, which takes
# longer than all the rest; it registers ds.aurora when it opens data (:mod:`xaurora.cli.options`).
if "xarray" in sys.modules or sys.argv[0].rpartition("/")[2] != "xaurora":
    from xaurora import accessor as _accessor  # noqa: F401  (registers ds.aurora)

if TYPE_CHECKING:
    from xaurora.evaluation.baselines import (
        climatology_forecast,
        persistence,
        probabilistic_climatology,
    )
    from xaurora.evaluation.climatology import build as climatology
    from xaurora.evaluation.combine import combine as combine_scores
    from xaurora.evaluation.compare import compare
    from xaurora.evaluation.published import published_scores
    from xaurora.evaluation.significance import significance
    from xaurora.fields.grid.regions import edge_rings
    from xaurora.model.heads import HeadOptions
    from xaurora.model.options import StrategyOptions
    from xaurora.model.tuned import TunedAurora, load
    from xaurora.sources.imerg import open_imerg
    from xaurora.sources.opening import open
    from xaurora.sources.synthesis import synthetic
    from xaurora.training.curves import learning_curves
    from xaurora.training.nested_options import LatentOptions, ReplayOptions
    from xaurora.training.options import TrainingOptions

__version__ = "0.1.0"

_LAZY = {
    "open": ("xaurora.sources.opening", "open"),
    "open_imerg": ("xaurora.sources.imerg", "open_imerg"),
    "synthetic": ("xaurora.sources.synthesis", "synthetic"),
    "load": ("xaurora.model.tuned", "load"),
    "TunedAurora": ("xaurora.model.tuned", "TunedAurora"),
    "HeadOptions": ("xaurora.model.heads", "HeadOptions"),
    "StrategyOptions": ("xaurora.model.options", "StrategyOptions"),
    "TrainingOptions": ("xaurora.training.options", "TrainingOptions"),
    "LatentOptions": ("xaurora.training.nested_options", "LatentOptions"),
    "ReplayOptions": ("xaurora.training.nested_options", "ReplayOptions"),
    "learning_curves": ("xaurora.training.curves", "learning_curves"),
    "climatology": ("xaurora.evaluation.climatology", "build"),
    "climatology_forecast": ("xaurora.evaluation.baselines", "climatology_forecast"),
    "combine_scores": ("xaurora.evaluation.combine", "combine"),
    "compare": ("xaurora.evaluation.compare", "compare"),
    "edge_rings": ("xaurora.fields.grid.regions", "edge_rings"),
    "persistence": ("xaurora.evaluation.baselines", "persistence"),
    "probabilistic_climatology": ("xaurora.evaluation.baselines", "probabilistic_climatology"),
    "published_scores": ("xaurora.evaluation.published", "published_scores"),
    "significance": ("xaurora.evaluation.significance", "significance"),
}

__all__ = [
    "HeadOptions",
    "LatentOptions",
    "ReplayOptions",
    "StrategyOptions",
    "TrainingOptions",
    "TunedAurora",
    "XauroraError",
    "__version__",
    "climatology",
    "climatology_forecast",
    "combine_scores",
    "compare",
    "edge_rings",
    "learning_curves",
    "load",
    "open",
    "open_imerg",
    "persistence",
    "probabilistic_climatology",
    "published_scores",
    "significance",
    "synthetic",
]


def __getattr__(name: str) -> object:
    if name in ("plots", "diagrams"):
        import importlib

        return importlib.import_module(
            "xaurora.plots" if name == "plots" else "xaurora.plots.diagrams"
        )
    if name in _LAZY:
        import importlib

        module, attribute = _LAZY[name]
        value = getattr(importlib.import_module(module), attribute)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'xaurora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, "plots", "diagrams"])

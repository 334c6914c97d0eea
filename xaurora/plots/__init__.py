"""Maps, diagrams and scorecards."""

from xaurora.plots.forecasts import forecast, models
from xaurora.plots.lead_curves import lead_curve
from xaurora.plots.maps import coastlines, field, rain_colours
from xaurora.plots.sensitivities import sensitivity
from xaurora.plots.targets import target

__all__ = [
    "coastlines",
    "field",
    "forecast",
    "lead_curve",
    "models",
    "rain_colours",
    "sensitivity",
    "target",
]

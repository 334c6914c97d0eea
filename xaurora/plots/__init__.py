"""Maps, diagrams and scorecards."""

from xaurora.plots.maps import coastlines, field, forecast, lead_curve, models, rain_colours, target

__all__ = ["coastlines", "field", "forecast", "lead_curve", "models", "rain_colours", "target"]

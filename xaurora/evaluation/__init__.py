"""Scores of forecasts: statistics, aggregation, metrics."""

"""Forecasts from a model and a Dataset, in memory or in a Zarr store."""

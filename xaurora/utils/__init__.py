"""Helpers that are not specific to weather: atomic writes, Zarr stores, progress bars."""

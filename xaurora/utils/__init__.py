"""Helpers without any knowledge of weather: atomic writes, Zarr stores, progress bars."""

"""Satellite rain of GPM IMERG as a Dataset of totals."""

from xaurora.sources.imerg.files import is_imerg
from xaurora.sources.imerg.opening import open_imerg

__all__ = ["is_imerg", "open_imerg"]

"""Command line interface."""

from xaurora.cli.commands import main

__all__ = ["main"]

"""The command line."""

from xaurora.cli.commands import main

__all__ = ["main"]

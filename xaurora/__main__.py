"""Run the command line with ``python -m xaurora``."""

from xaurora.cli.commands import main

main()

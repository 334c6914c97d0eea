"""``python -m xaurora``."""

from xaurora.cli.commands import main

main()

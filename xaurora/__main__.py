"""``python -m xaurora``."""

from xaurora.cli import main

main()

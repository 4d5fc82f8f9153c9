"""The command line, `python -m gmmkernel`."""

from gmmkernel.cli.main import main

__all__ = ["main"]

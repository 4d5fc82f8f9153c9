"""Subcommands and their common error handling."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import gmmkernel
from gmmkernel.cli import compare, evaluate, info, sample, train, verify
from gmmkernel.cli.options import OPTION_OF
from gmmkernel.cli.outputs import lasting_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after the program's name; None: those of the process.

    Returns:
        Exit status: 0 on success, 1 when a check failed, 2 on bad arguments, 130 when it was interrupted.
    """
    try:
        with lasting_output():
            return _run(arguments)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gmmkernel", description=gmmkernel.__doc__)
    parser.add_argument("--version", action="version", version=f"gmmkernel {gmmkernel.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for module in (sample, compare, train, evaluate, verify, info):
        module.add_parser(commands)
    parsed = parser.parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except (ValueError, TypeError, IndexError, RuntimeError, ImportError, OSError) as error:
        name, colon, rest = str(error).partition(":")
        print(f"error: {OPTION_OF.get(name, name)}{colon}{rest}", file=sys.stderr)
        return 2
    return status

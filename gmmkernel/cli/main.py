"""Subcommands and their common error handling."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

import gmmkernel
from gmmkernel._checks import check_choice, suggestion
from gmmkernel.cli import compare, evaluate, info, sample, train, verify
from gmmkernel.cli.options import OPTION_OF
from gmmkernel.cli.outputs import lasting_output

_DESCRIPTION = (
    "Draw samples from diffusion models with fused sampling steps that have the same bits on every backend; train and "
    "judge such models. Each command has a --help of its own."
)

_NO_OPTIONS = ("command", "run", "samples")
"""What the parsed arguments hold besides options: of `samples`, a place says which they are."""


class _Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviation for an option that it was not meant for, as --prompt for --prompts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after the program's name; None: those of the process.

    Returns:
        Exit status: 0 on success and after help, 1 when a check failed, 2 on bad arguments, 130 when it was
        interrupted.
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
    parser = _Parser(prog="python -m gmmkernel", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"gmmkernel {gmmkernel.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for module in (sample, compare, train, evaluate, verify, info):
        module.add_parser(commands)
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and not words[0].startswith("-"):
        try:
            check_choice("command", words[0], commands.choices)
        except ValueError as error:
            parser.error(str(error))
    parsed, unknown = parser.parse_known_args(words)
    if unknown:
        own = commands.choices.get(parsed.command, parser)
        options = sorted({*re.findall(r"--[a-z-]+", own.format_usage())})
        guess = suggestion(unknown[0].partition("=")[0], options)
        own.error(f"unrecognized arguments: {' '.join(unknown)}{guess}")
    if parsed.command is None:
        parser.print_help()
        return 0
    try:
        status: int = parsed.run(parsed)
    except (ValueError, TypeError, IndexError, RuntimeError, ImportError, OSError) as error:
        name, colon, rest = str(error).partition(":")
        print(f"error: {_option(name, parsed)}{colon}{rest}", file=sys.stderr)
        return 2
    return status


def _option(name: str, parsed: argparse.Namespace) -> str:
    """Return the option that sets the argument an error names, or the name itself where none does."""
    if name in OPTION_OF:
        return OPTION_OF[name]
    return "--" + name.replace("_", "-") if name in vars(parsed) and name not in _NO_OPTIONS else name

"""`info`: versions, and every backend with what it runs on or why it is not there."""

from __future__ import annotations

import argparse
import platform
from typing import Any

import numpy
import torch

import gmmkernel
from gmmkernel import backends
from gmmkernel.cli.figures import add_json_option, versions, write_json
from gmmkernel.cli.outputs import check_file


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser("info", help="versions, backends and why each is or is not there, threads")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report, write the file."""
    check_file("--json", arguments.json)
    print(f"gmmkernel {gmmkernel.__version__}, torch {torch.__version__}, numpy {numpy.__version__}")
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    print()
    statuses = backends.available_backends()
    for status in statuses:
        print(f"{status.name:10s} {'available' if status.available else 'missing':10s} {status.detail}")
    print()
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    used: dict[str, str | None] = {}
    for device in (torch.device("cpu"), *(torch.device("cuda", index) for index in range(found))):
        usable = [status.name for status in statuses if device in status.devices]
        used[str(device)] = usable[0] if usable else None
        print(f"{device} tensors use: {usable[0]}" if usable else f"{device} tensors: no backend")
    if found == 0:
        used["cuda"] = None
        print("cuda tensors: no backend")
    known = {
        "system": platform.system(),
        "machine": platform.machine(),
        "backends": [status._asdict() | {"available": status.available} for status in statuses],
        "tensors_use": used,
        "versions": versions(),
    }
    write_json(arguments.json, known)
    return 0

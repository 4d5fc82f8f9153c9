"""What tools/gpu_check.py runs its stages with: the machine as found, processes with a time limit, the report."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ROOT / "build" / "gpu-check"
PASSED, FAILED, SKIPPED, UNAVAILABLE = "passed", "FAILED", "skipped", "not available"
TAIL = 4000

PROBE = """
import importlib, importlib.metadata, json, platform, sys, sysconfig
found = {"python": platform.python_version(), "purelib": sysconfig.get_path("purelib"), "versions": {}, "programs": {}}
for name in ("torch", "triton", "numpy", "setuptools", "cmake", "ninja", "pybind11", "pytest", "hypothesis", "tqdm",
             "safetensors", "diffusers", "gmmkernel"):
    try:
        found["versions"][name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found["versions"][name] = None
for name, folder in (("cmake", "CMAKE_BIN_DIR"), ("ninja", "BIN_DIR")):
    try:
        found["programs"][name] = getattr(importlib.import_module(name), folder)
    except (ImportError, AttributeError):
        found["programs"][name] = None
try:
    import pybind11
    found["pybind11"] = True
except ImportError:
    found["pybind11"] = False
try:
    import torch
    found["cuda"] = torch.cuda.is_available()
    found["torch_cuda"] = torch.version.cuda
    if found["cuda"]:
        found["name"] = torch.cuda.get_device_name(0)
        found["capability"] = list(torch.cuda.get_device_capability(0))
        found["devices"] = torch.cuda.device_count()
except Exception as error:
    found["cuda"] = False
    found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@dataclass
class Outcome:
    """What became of a stage."""

    status: str
    summary: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A process that has ended; no `status` means that it ran out of time."""

    status: int | None
    output: str

    @property
    def tail(self) -> str:
        """The end of what it printed."""
        return self.output[-TAIL:]

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        return "ran out of time" if self.status is None else f"exit status {self.status}"


class Check:
    """The run: its options, what was found of the machine, and the report."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rehearsal: bool = options.rehearsal
        self.end = time.monotonic() + 60 * options.minutes
        self.environment = dict(os.environ)
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment |= {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        SCRATCH.mkdir(parents=True, exist_ok=True)
        self.results: Path = options.results or ROOT / "benchmarks" / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        self.log = (options.results or SCRATCH) / "gpu-check.log"
        self.log.write_text("", encoding="utf-8")
        self.found = self._probe()
        name = str(self.found.get("name", "rehearsal"))
        self.prefix = "gpu-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.report: dict[str, Any] = {"machine": self.found, "minutes": options.minutes, "stages": {}}

    def _probe(self) -> dict[str, Any]:
        finished = self.run([sys.executable, "-c", PROBE], 120)
        lines = [line for line in finished.output.splitlines() if line.startswith("{")]
        try:
            found: dict[str, Any] = json.loads(lines[-1])
        except (IndexError, ValueError):
            raise SystemExit(f"{sys.executable} cannot be asked what it has:\n{finished.tail}") from None
        return found

    @property
    def left(self) -> float:
        """Seconds left of the whole run."""
        return float(self.end - time.monotonic())

    def run(self, command: Sequence[str], seconds: float, **environment: str) -> Finished:
        """Run a command in the repository's root with a time limit; its output goes to the log too."""
        name = SCRATCH / "output.txt"
        with name.open("wb") as file:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=self.environment | environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                return Finished(127, f"{command[0]}: {error}")
            try:
                status: int | None = process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end_group(process)
        output = name.read_text(encoding="utf-8", errors="replace")
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(command)[:300]}\n{output}\n[{status}]\n")
        return Finished(status, output)

    def write(self) -> None:
        """Write the report: whole, or not at all."""
        path = self.results / f"{self.prefix}.json"
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    def nvcc(self) -> str | None:
        """Return nvcc's path."""
        return self.program("nvcc")

    def program(self, name: str) -> str | None:
        """Return the path of one of the CUDA toolkit's programs, or None."""
        folders = [Path(os.environ[key]) / "bin" for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
        folders += [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
        folders += [Path("/usr/local/cuda/bin"), *Path(self.found["purelib"]).glob("nvidia/*/bin")]
        folders += [folder.parent / "compute-sanitizer" for folder in folders]
        for folder in folders:
            candidate = folder / name
            if candidate.is_file() and os.access(candidate, os.X_OK):
                return str(candidate)
        return None

    @property
    def architecture(self) -> str:
        """The device's compute capability without the dot."""
        major, minor = self.found.get("capability", (9, 0))
        return f"{major}{minor}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started: a compiler's workers may outlive it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def failed(finished: Finished, what: str, **details: Any) -> Outcome:
    """Return a failure with the end of what was printed."""
    return Outcome(FAILED, f"{what}: {finished.ending}", {**details, "output": finished.tail})

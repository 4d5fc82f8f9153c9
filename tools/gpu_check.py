"""Everything that needs a GPU, in one run: `make gpu-check PYTHON=python3 [RESULTS=folder]`.

Uses that Python as it is: nothing is installed. Builds the extensions for the device's own architecture, then checks
the golden digests, bits against the CPU core, the square root exhaustively, tests/gpu and the memory, and measures.
Each stage is a process of its own, and its result is written to the JSON file as soon as it is there; a stage that
fails does not stop the later ones. The exit status is 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_machine import FAILED, PASSED, ROOT, SCRATCH, SKIPPED, UNAVAILABLE, Check, Outcome, failed

# Before version 77, setuptools cannot read this pyproject.toml; the extension needs none of what it says.
OLD_SETUPTOOLS = """
import runpy, sys
from setuptools.dist import Distribution
Distribution.parse_config_files = lambda self, *args, **kwargs: None
sys.argv[:] = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""

# ---- the stages ----


def build(check: Check, seconds: float) -> Outcome:
    """Build the extensions in place, for this device only."""
    found = check.found
    for name in ("cmake", "ninja"):
        folder = found["programs"][name]
        if shutil.which(name) is None and folder:
            check.environment["PATH"] = f"{folder}{os.pathsep}{check.environment.get('PATH', '')}"
    missing = [
        name for name in ("cmake", "ninja") if shutil.which(name, path=check.environment.get("PATH")) is None
    ]
    missing += [name for name in ("torch", "numpy", "setuptools") if found["versions"][name] is None]
    missing += [] if found["pybind11"] else ["pybind11"]
    missing += [] if check.nvcc() else ["nvcc"]
    if missing:
        return Outcome(FAILED, f"needs {', '.join(missing)}: not found by {sys.executable}")
    _write_metadata(check)
    old = int(found["versions"]["setuptools"].split(".")[0]) < 77
    script = ["-c", OLD_SETUPTOOLS] if old else ["setup.py", "build_ext", "--inplace"]
    options = (
        f"{os.environ.get('CMAKE_ARGS', '')} -DGMM_CUDA=ON -DGMM_CUDA_ARCHITECTURES={check.architecture}"
    )
    nvcc = Path(check.nvcc() or "nvcc")
    if shutil.which("nvcc") is None:
        check.environment["PATH"] = f"{nvcc.parent}{os.pathsep}{check.environment.get('PATH', '')}"
    finished = check.run(
        [sys.executable, *script],
        seconds,
        GMM_CUDA_ARCHITECTURES=check.architecture,
        CMAKE_ARGS=options.strip(),
    )
    if finished.status != 0:
        return failed(finished, "setup.py build_ext --inplace")
    program = (
        "from gmmkernel.backends import available_backends as b\n"
        "for s in b(): print(f'{s.name}: {s.available}: {s.detail}')"
    )
    loaded = check.run([sys.executable, "-c", program], 120)
    backends = [line for line in loaded.output.splitlines() if re.match(r"[a-z_]+: (True|False): ", line)]
    details = {"setuptools_worked_around": old, "nvcc": str(nvcc), "backends": backends}
    if loaded.status != 0:
        return failed(loaded, "import gmmkernel", **details)
    if not check.rehearsal and not any(line.startswith("cuda: True") for line in backends):
        return Outcome(FAILED, "built, but the cuda backend is not there", details)
    return Outcome(PASSED, f"sm_{check.architecture}" + (", by an old setuptools" if old else ""), details)


def _write_metadata(check: Check) -> None:
    """Let the package know its version where it is not installed."""
    if check.found["versions"]["gmmkernel"] is not None:
        return
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    folder = ROOT / "gmmkernel.egg-info"
    folder.mkdir(exist_ok=True)
    number = version[1] if version else "0"
    lines = f"Metadata-Version: 2.1\nName: gmmkernel\nVersion: {number}\n"
    (folder / "PKG-INFO").write_text(lines, encoding="utf-8")


def verify(check: Check, seconds: float) -> Outcome:
    """Compute the golden digests with every backend."""
    finished = check.run([sys.executable, "-m", "gmmkernel", "verify"], seconds)
    held = re.findall(r"^(.+): (\d+) of (\d+) digests hold$", finished.output, re.MULTILINE)
    differs = re.findall(r"^DIFFERS (.+)$", finished.output, re.MULTILINE)
    details = {"digests": {label: f"{hold} of {all_}" for label, hold, all_ in held}, "differs": differs}
    if finished.status != 0:
        return failed(finished, f"{len(differs)} digests differ", **details)
    if not check.rehearsal and not any(label.startswith("cuda") for label, _, _ in held):
        return Outcome(FAILED, "the cuda backend was not among those verified", details)
    return Outcome(PASSED, "; ".join(f"{label} {hold}/{all_}" for label, hold, all_ in held), details)


def bits(check: Check, seconds: float) -> Outcome:
    """Compare CUDA with the CPU core on random inputs."""
    output = SCRATCH / "bits.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, "tools/gpu_bits.py", "--output", str(output)]
    command += ["--seconds", f"{max(5, min(60, seconds - 20)):.0f}"]
    if check.rehearsal:
        command += ["--device", "cpu", "--log2-elements", "12", "--most-small", "100"]
    finished = check.run(command, seconds)
    if not output.exists():
        return failed(finished, "nothing compared")
    details: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    summary = (
        f"{details['elements']:,} elements, {details['mismatches']} differ, {len(details['errors'])} errors"
    )
    wrong = details["mismatches"] or details["errors"]
    if wrong or finished.status not in (0, None):
        return failed(finished, summary, **details)
    return Outcome(PASSED, summary + ("" if finished.status == 0 else ", cut off"), details)


def square_root(check: Check, seconds: float) -> Outcome:
    """Try every argument of the kernels' square root, clamps and conversions."""
    nvcc = check.nvcc()
    if nvcc is None:
        return Outcome(UNAVAILABLE, "no nvcc")
    program = SCRATCH / "square_root"
    command = [nvcc, "-std=c++17", "-O3", "-fmad=false", "-Icsrc", "-Icsrc/include"]
    command += [f"-arch=sm_{check.architecture}", "-o", str(program), "csrc/cuda/tools/square_root.cu"]
    began = time.monotonic()
    compiled = check.run(command, seconds)
    if compiled.status != 0:
        return failed(compiled, "nvcc")
    if check.rehearsal:
        return Outcome(SKIPPED, "compiled; there is no GPU to run it")
    finished = check.run([str(program)], seconds - (time.monotonic() - began))
    lines = re.findall(r"^(\w+) (\d+) (\d+)(?: (0x\w+))?$", finished.output, re.MULTILINE)
    details = {
        name: {"tried": int(tried), "mismatches": int(wrong), "first": first or None}
        for name, tried, wrong, first in lines
    }
    summary = ", ".join(f"{name} {wrong} of {int(tried):,} differ" for name, tried, wrong, _ in lines)
    if finished.status != 0 or len(lines) != 6:
        return failed(finished, summary or "nothing tried", **details)
    return Outcome(PASSED, "every argument: " + ", ".join(details), details)


def tests(check: Check, seconds: float) -> Outcome:
    """Run tests/gpu."""
    if check.found["versions"]["pytest"] is None:
        return Outcome(UNAVAILABLE, "pytest is not installed")
    junit = SCRATCH / "tests.xml"
    junit.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-o", "addopts=", "--strict-markers"]
    command += ["-v", "-ra", "--durations=8", f"--junitxml={junit}", "-p", "no:cacheprovider", "--tb=short"]
    if check.found["versions"]["hypothesis"] is None:
        command.append("--confcutdir=tests/gpu")  # the conftest above needs it
    # Compiling in the process itself leaves no workers behind.
    finished = check.run(command, seconds, TORCHINDUCTOR_COMPILE_THREADS="1")
    if not junit.exists():
        counts = {
            name: len(re.findall(rf" {name}\b", finished.output)) for name in ("PASSED", "FAILED", "ERROR")
        }
        return failed(finished, f"no report; {counts}", counts=counts)
    suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    wrong, skipped = [], []
    for case in suite.iter("testcase"):
        for element in case:
            line = f"{case.get('name')}: {(element.get('message') or '')[:300]}"
            if element.tag in ("failure", "error"):
                wrong.append(line)
            elif element.tag == "skipped":
                skipped.append(line)
    details = {"counts": counts, "wrong": wrong, "skipped": skipped}
    summary = f"{passed} passed, {counts['failures'] + counts['errors']} failed, {counts['skipped']} skipped"
    if finished.status != 0:
        return failed(finished, summary, **details)
    if passed == 0 and not check.rehearsal:
        return Outcome(FAILED, f"{summary}: no test ran", details)
    return Outcome(PASSED if passed else SKIPPED, summary, details)


def sanitizer(check: Check, seconds: float) -> Outcome:
    """Run small cases under compute-sanitizer, where it is installed and takes this device."""
    program = check.program("compute-sanitizer")
    if program is None:
        return Outcome(UNAVAILABLE, "compute-sanitizer is not installed")
    if check.rehearsal:
        return Outcome(SKIPPED, "there is no GPU")
    # Without PyTorch's cache every tensor is an allocation of its own, whose bounds memcheck knows.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    cases = [
        sys.executable,
        "tools/gpu_bits.py",
        "--only",
        "small",
        "--most-small",
        "240",
        "--seconds",
        "600",
    ]
    details: dict[str, Any] = {}
    words, statuses = [], []
    for tool, share in (("memcheck", 0.5), ("racecheck", 1.0)):
        options = ["--tool", tool, "--error-exitcode", "99", "--report-api-errors", "no"]
        if tool != "memcheck":
            options = options[:4]
        began = time.monotonic()
        finished = check.run([program, *options, *cases], share * seconds, **uncached)
        seconds -= time.monotonic() - began
        summary = re.findall(r"[A-Z]+ SUMMARY: (.+)", finished.output)
        refused = re.search(
            r"Device not supported|Internal Sanitizer Error|LibraryNotLoaded", finished.output
        )
        if finished.status == 0 and summary:
            status, word = PASSED, summary[-1]
        elif refused:
            status, word = UNAVAILABLE, refused[0]
        elif finished.status is None:
            status, word = SKIPPED, "ran out of time"
        else:
            status, word = FAILED, f"{finished.ending}, {summary[-1] if summary else 'no summary'}"
        statuses.append(status)
        words.append(f"{tool}: {word}")
        details[tool] = {
            "status": status,
            "summary": word,
            "output": "" if status == PASSED else finished.tail,
        }
    order = (FAILED, PASSED, SKIPPED, UNAVAILABLE)
    return Outcome(min(statuses, key=order.index), "; ".join(words), details)


def benchmarks(check: Check, seconds: float) -> Outcome:
    """Measure; an unmet target is no failure."""
    if check.rehearsal:
        return Outcome(SKIPPED, "there is no GPU")
    output = SCRATCH / "benchmarks"
    shutil.rmtree(output, ignore_errors=True)
    # Compilation takes seconds a case: of it, float32 has to do.
    patterns = [
        "gmm_step/*",
        "standard_normal/*",
        "rl/*",
        "eager/*",
        "compile/*/float32",
        "diffusers/*",
        "randn/*",
        "copy/*",
    ]
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--device",
        "cuda",
        "--output",
        str(output),
        "--cases",
        *patterns,
    ]
    command += ["--minutes", f"{max(0.1, (seconds - 45) / 60):.2f}"]
    finished = check.run(command, seconds, TORCHINDUCTOR_COMPILE_THREADS="1")
    for ending in ("json", "txt", "png"):
        made = output / f"results.{ending}"
        if made.exists():
            shutil.copyfile(made, check.results / f"{check.prefix}-benchmarks.{ending}")
    data_file, table = output / "results.json", output / "results.txt"
    if not data_file.exists():
        return failed(finished, "nothing measured")
    data = json.loads(data_file.read_text(encoding="utf-8"))
    print(table.read_text(encoding="utf-8") if table.exists() else "", flush=True)
    beside = check.run([sys.executable, "tools/sass_bound.py", "--beside", str(data_file)], 60)
    print(beside.output, flush=True)
    with (check.results / f"{check.prefix}-benchmarks.txt").open("a", encoding="utf-8") as file:
        file.write(f"\n{beside.output}")
    keys = ("label", "shape", "value", "bound", "outcome")
    targets = [{key: target[key] for key in keys} for target in data["targets"] if target["bound"]]
    outcomes = [target["outcome"] for target in targets]
    summary = f"{len(data['figures'])} figures; targets: " + ", ".join(
        f"{outcomes.count(word)} {word}" for word in ("PASS", "unmet", "not measured")
    )
    details = {"targets": targets, "missing": data["missing"], "file": f"{check.prefix}-benchmarks.json"}
    own = [one for one in data["missing"] if one["case"].startswith(("gmm_step", "standard_normal", "rl/"))]
    broken = [
        one for one in own if "would take" not in one["reason"] and "not available" not in one["reason"]
    ]
    if broken:
        return Outcome(FAILED, f"{summary}; {broken[0]['case']}: {broken[0]['reason']}", details)
    if finished.status not in (0, None):
        return failed(finished, summary, **details)
    return Outcome(PASSED, summary + ("" if finished.status == 0 else ", cut off"), details)


@dataclass(frozen=True)
class Stage:
    """A stage: it gets at most `most` seconds, and those before it leave it `least`."""

    name: str
    run: Callable[[Check, float], Outcome]
    most: float
    least: float


STAGES = (
    Stage("build", build, 300, 60),
    Stage("verify", verify, 90, 20),
    Stage("bits", bits, 90, 40),
    Stage("square root", square_root, 60, 20),
    Stage("tests", tests, 240, 90),
    Stage("sanitizer", sanitizer, 60, 0),
    Stage("benchmarks", benchmarks, 240, 100),
)


def run_stage(check: Check, index: int) -> Outcome:
    """Run a stage within the time that it may take."""
    stage = STAGES[index]
    seconds = min(stage.most, check.left - sum(later.least for later in STAGES[index + 1 :]))
    if seconds < 8:
        return Outcome(SKIPPED, "no time was left")
    print(f"== {stage.name}: at most {seconds:.0f} s", flush=True)
    try:
        return stage.run(check, seconds)
    except Exception as error:  # a mistake in this program must not cost the stages that follow
        return Outcome(FAILED, f"{type(error).__name__}: {str(error)[:500]}")


def main() -> int:
    """Run the stages and return 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="where to write (default: benchmarks/results)"
    )
    parser.add_argument("--minutes", type=float, default=8, help="time for the whole run (default: 8)")
    parser.add_argument("--stages", nargs="+", choices=[stage.name for stage in STAGES], help="only these")
    parser.add_argument("--rehearsal", action="store_true", help="without a GPU: does this program work?")
    options = parser.parse_args()
    check = Check(options)
    if not check.found["cuda"] and not check.rehearsal:
        print(f"no CUDA device: {check.found.get('error', 'torch finds none')}")
        return 1
    print(json.dumps(check.found), flush=True)
    rows = []
    for index, stage in enumerate(STAGES):
        if options.stages and stage.name not in options.stages:
            continue
        began = time.monotonic()
        outcome = run_stage(check, index)
        seconds = time.monotonic() - began
        check.report["stages"][stage.name] = {
            "status": outcome.status,
            "seconds": round(seconds, 1),
            "summary": outcome.summary,
            **outcome.details,
        }
        check.write()
        rows.append((stage.name, outcome.status, f"{seconds:.1f} s", outcome.summary))
        print(f"   {outcome.status} after {seconds:.1f} s: {outcome.summary}", flush=True)
        if outcome.status == FAILED:
            print(str(outcome.details.get("output", "")), flush=True)
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    print("\n" + "\n".join(" ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows))
    print(f"\nwritten: {check.results / check.prefix}.json; what the stages printed: {check.log}")
    return 1 if any(row[1] == FAILED for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

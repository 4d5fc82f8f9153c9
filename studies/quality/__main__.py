"""Where does a mixture transition help? Tried on data with known denoisers, on digits and on photographs' patches.

Every way to sample gets the same seeds, and is compared with plain DDIM seed by seed. Scales are chosen on other
seeds than those reported. Needs scikit-learn and matplotlib.

What is done is kept in the output folder: stop it whenever you like, run it again, and it goes on. Run it several
times at once, and the processes share the work; each uses one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from gmmkernel.cli.outputs import lasting_output
from gmmkernel.samplers import Sampler
from studies.folder import OutOfTimeError, check_report, check_settings, taken, write_json
from studies.quality.choices import Choice, Line, Losses, control_of, lines, make_sampler
from studies.quality.closed_form import ClosedForm
from studies.quality.networks import PATCH_STEPS, Digits, Patches
from studies.quality.report import write_report
from studies.quality.settings import DATA, Cell, Settings
from studies.quality.task import Task

TUNING_SEED = 1000
SEED_STRIDE = 1_000_000
"""Between the first samples' seeds of two seeds of the study."""


def make_tasks(folder: Path, patch_steps: int, end: float, device: str) -> dict[str, Callable[[], Task]]:
    """Return how each task is made, those that cost least first."""
    found: dict[str, Callable[[], Task]] = {}
    for elements in (2, 64, 1024):
        for kind in ("gaussians", "points"):
            found[f"{kind}-{elements}"] = partial(ClosedForm, kind, elements)
    found["digits"] = partial(Digits, device)
    found["patches"] = partial(Patches, folder, patch_steps, end, device)
    return found


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.quality", description=__doc__.splitlines()[0] if __doc__ else None
    )
    names = list(make_tasks(Path(), 0, 0.0, "cpu"))
    parser.add_argument(
        "--output", type=Path, default=Path("out/quality"), help="folder (default out/quality)"
    )
    parser.add_argument(
        "--report", type=Path, help="folder for tables and plots (default: the output folder)"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after about so long")
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, help="(default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="runs that are reported (default 5)")
    parser.add_argument("--tuning-seeds", type=int, default=1, help="runs to choose scales by (default 1)")
    parser.add_argument("--samples", type=int, default=2000, help="of each run (default 2000)")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 5, 20], help="(default 10 5 20)")
    parser.add_argument("--eta", type=float, nargs="+", default=[0.0, 1.0, 0.2], help="(default 0 1 0.2)")
    parser.add_argument(
        "--patch-steps", type=int, default=PATCH_STEPS, help=f"training steps (default {PATCH_STEPS})"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="of the trained models (default cpu)"
    )
    arguments = parser.parse_args(words)
    for name, least in (("seeds", 2), ("tuning_seeds", 1), ("samples", 20), ("patch_steps", 1)):
        if getattr(arguments, name) < least:
            parser.error(
                f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(arguments, name)}"
            )
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected cuda to be there, got no CUDA device")
    if arguments.samples % 10:
        parser.error(f"--samples: expected a multiple of 10, got {arguments.samples}")
    if not 2 <= min(arguments.steps) <= max(arguments.steps) <= 29:
        parser.error(f"--steps: expected 2 to 29, which all timesteps allow, got {arguments.steps}")
    if not 0 <= min(arguments.eta) <= max(arguments.eta) <= 1:
        parser.error(f"--eta: expected numbers from 0 to 1, got {arguments.eta}")
    return arguments


class Runner:
    """Samples of one task, and their distances.

    Args:
        task: what to sample.
        settings: of the study.
        end: of the time given, of `time.monotonic`.
    """

    def __init__(self, task: Task, settings: Settings, end: float) -> None:
        self.task, self._settings, self._end = task, settings, end
        self._losses = Losses(task, settings.samples)

    def sampler(self, cell: Cell, choice: Choice, seed: int) -> Sampler:
        """Return the sampler of a choice."""
        return make_sampler(self.task, cell, choice, seed, self._losses)

    def sample(self, sampler: Sampler, seed: int) -> torch.Tensor:
        """Draw samples.

        Raises:
            OutOfTimeError: the time is over.
        """
        if time.monotonic() > self._end:
            raise OutOfTimeError
        seeds = torch.arange(self._settings.samples) + (seed + 1) * SEED_STRIDE
        drawn = sampler.sample(
            self.task.predict, seeds, self.task.shape, batch_size=self.task.chunk, progress=False
        )
        return drawn.sample.cpu()

    def tune(self, cell: Cell, line: Line) -> list[float]:
        """Return the main distance of each candidate, the mean over the seeds that are not reported."""
        seeds = range(TUNING_SEED, TUNING_SEED + self._settings.tuning_seeds)
        return [
            sum(self.task.distance(self.sample(self.sampler(cell, choice, seed), seed)) for seed in seeds)
            / len(seeds)
            for choice in line.candidates
        ]

    def measure(self, cell: Cell, chosen: dict[str, Choice], seed: int) -> dict[str, dict[str, float]]:
        """Return all distances of what was chosen, and of the data itself, by a seed."""
        found = {DATA: self.task.distances(self.task.data(self._settings.samples, seed + 100))}
        done: dict[bytes, dict[str, float]] = {}
        for name, choice in chosen.items():
            sampler = self.sampler(cell, choice, seed)
            # Where a mixture adds no variance, its control is DDIM.
            key = b"".join(part.cpu().numpy().tobytes() for part in (sampler.coefficients, sampler.timesteps))
            distances = done.get(key) if sampler.tables is None else None
            if distances is None:
                distances = self.task.distances(self.sample(sampler, seed))
            if sampler.tables is None:
                done[key] = distances
            found[name] = distances
        return found


def choose(compared: Sequence[Line], tuned: dict[str, list[float]]) -> dict[str, Choice]:
    """Return the choice for each line, and for its control."""
    chosen = {}
    for line in compared:
        values = tuned.get(line.name, [0.0])
        best = line.candidates[values.index(min(values))]
        chosen[line.name] = best
        if line.has_control:
            chosen[f"{line.name}, control"] = control_of(best)
    return chosen


def study_cell(cell: Cell, runner: Runner, settings: Settings, folder: Path) -> None:
    """Do what is left of one table's column."""
    compared = lines(runner.task, cell)
    path = folder / cell.file("tuning")
    if not path.exists():
        begin = time.process_time()
        write_json(
            path, {line.name: runner.tune(cell, line) for line in compared if len(line.candidates) > 1}
        )
        print(f"{cell.name}: chosen in {time.process_time() - begin:.0f} s of processor time", flush=True)
    chosen = choose(compared, json.loads(path.read_text()))
    for seed in range(settings.seeds):
        path = folder / cell.file(seed)
        if not path.exists():
            begin = time.process_time()
            found = runner.measure(cell, chosen, seed)
            levels = {name: choice.level for name, choice in chosen.items()}
            write_json(path, {"levels": levels, "distances": found})
            print(f"{cell.name}, seed {seed}: {time.process_time() - begin:.0f} s", flush=True)


def main(words: Sequence[str] | None = None) -> bool:
    """Do what is left of the study, as far as the time goes, and report what there is.

    Returns:
        Whether it is complete.
    """
    arguments = parse_arguments(words)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    settings = Settings(
        arguments.samples,
        arguments.seeds,
        arguments.tuning_seeds,
        tuple(arguments.steps),
        tuple(arguments.eta),
    )
    folder, end = arguments.output, time.monotonic() + 60 * arguments.minutes
    check_settings(
        folder, {**settings._asdict(), "patch_steps": arguments.patch_steps, "device": arguments.device}
    )
    check_report(arguments.report or folder)
    tasks = make_tasks(folder, arguments.patch_steps, end, arguments.device)
    # What matters most comes first, for every task.
    cells = [cell for stage in zip(*map(settings.cells, arguments.tasks), strict=True) for cell in stage]
    runners: dict[str, Runner] = {}
    try:
        for cell in cells:
            if settings.is_done(folder, cell):
                continue
            with taken(folder / cell.file("lock")) as mine:
                if mine:
                    if cell.task not in runners:
                        runners[cell.task] = Runner(tasks[cell.task](), settings, end)
                    study_cell(cell, runners[cell.task], settings, folder)
    except OutOfTimeError:
        pass
    complete = all(settings.is_done(folder, cell) for cell in cells)
    with lasting_output():
        print(write_report(arguments.report or folder, folder, settings, arguments.tasks))
        if not complete:
            print("not complete: run it again to go on")
    return complete


if __name__ == "__main__":
    main()

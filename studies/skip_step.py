"""Does the skip-step loss of S2-DM (arXiv 2401.01520) improve sampling in few steps? Tried on the digits.

Models are trained with DDPM's loss and with the skip-step loss, from the same seeds, in the same way. Each draws digits
with three samplers from the same seeds, and is compared by digit-FID, seed by seed. Beside them stand what the losses
amount to without training: the baseline's output scaled to their optimum. Needs scikit-learn and matplotlib.

What is done is kept in the output folder: stop it whenever you like, run it again, and it goes on. Run it several
times at once, and the processes share the seeds; each uses one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from gmmkernel import noise_schedule
from gmmkernel.cli.outputs import lasting_output
from gmmkernel.digits import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    DigitsUNet,
    denoising_loss,
    digit_fid,
    digits_trainer,
    load_digits,
)
from studies.folder import OutOfTimeError, check_report, check_settings, taken, write_json
from studies.skip_step_methods import METHODS, SAMPLERS, Method, make_sampler, optimal_scale, scaled
from studies.skip_step_report import Settings, write_report

CHUNK = 500
"""Samples carried together: a network's bits depend on it."""


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.skip_step", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument(
        "--output", type=Path, default=Path("out/skip_step"), help="folder (default out/skip_step)"
    )
    parser.add_argument("--report", type=Path, help="folder for table and plot (default: the output folder)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after about so long")
    parser.add_argument("--training-steps", type=int, default=2000, help="of each model (default 2000)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each loss (default 5)")
    parser.add_argument("--samples", type=int, default=2000, help="digits for each distance (default 2000)")
    parser.add_argument(
        "--sampling-steps", type=int, nargs="+", default=[10, 20, 50], help="(default 10 20 50)"
    )
    arguments = parser.parse_args(words)
    for name, least in (("training_steps", 1), ("seeds", 2)):
        if getattr(arguments, name) < least:
            parser.error(
                f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(arguments, name)}"
            )
    if arguments.samples < 2 * NUM_CLASSES or arguments.samples % NUM_CLASSES:
        parser.error(f"--samples: expected a multiple of 10, at least 20, got {arguments.samples}")
    if min(arguments.sampling_steps) < 4:
        parser.error(f"--sampling-steps: expected at least 4, got {min(arguments.sampling_steps)}")
    return arguments


def train(method: Method, seed: int, settings: Settings, folder: Path, end: float) -> DigitsUNet:
    """Train the model that a method needs, or go on with it; return the moving average of its weights."""
    loss = method if method.trained else METHODS[0]
    trainer = digits_trainer(
        settings.training_steps,
        seed=seed,
        skip=loss.skip,
        tau=loss.tau,
        target=loss.target or "independent",
    )
    trainer.fit(
        load_digits("train"),
        settings.training_steps,
        folder=folder / f"{loss.folder}-{seed}",
        progress=False,
        callback=lambda _: time.monotonic() > end,
    )
    if trainer.step < settings.training_steps:
        raise OutOfTimeError
    unet = trainer.average
    assert isinstance(unet, DigitsUNet)
    return unet.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def measure(method: Method, unet: DigitsUNet, settings: Settings, end: float) -> dict[str, float]:
    """Return the digit-FID of each sampler and number of steps, and the held-out loss of a trained model."""
    schedule = noise_schedule("linear")
    model = scaled(unet, optimal_scale(schedule, method) if not method.trained else torch.ones(1000))
    found = {"held-out loss": denoising_loss(unet)} if method.trained else {}
    for name in SAMPLERS:
        for steps in settings.sampling_steps:
            if time.monotonic() > end:
                raise OutOfTimeError
            sampler = make_sampler(name, schedule, steps)
            drawn = sampler.sample(
                model, torch.arange(settings.samples), IMAGE_SHAPE, batch_size=CHUNK, progress=False
            )
            found[f"{name} {steps}"] = digit_fid(drawn.sample.clamp(-1, 1))
    return found


def result_file(folder: Path, method: Method, seed: int) -> Path:
    """Where a method's distances are kept."""
    return folder / f"{method.name.replace(', ', '-').replace(' ', '-')}-{seed}.json"


def read_results(folder: Path, settings: Settings) -> dict[tuple[str, int], dict[str, float]]:
    """Return what is done."""
    files = {
        (method.name, seed): result_file(folder, method, seed)
        for seed in range(settings.seeds)
        for method in METHODS
    }
    return {key: json.loads(path.read_text()) for key, path in files.items() if path.exists()}


def study_seed(seed: int, settings: Settings, folder: Path, end: float) -> None:
    """Do what is left of one seed's trainings and measurements."""
    for method in METHODS:
        path = result_file(folder, method, seed)
        if path.exists():
            continue
        begin = time.process_time()
        unet = train(method, seed, settings, folder, end)
        trained = time.process_time()
        found = measure(method, unet, settings, end)
        write_json(path, found)
        print(
            f"seed {seed}, {method.name}: trained in {trained - begin:.0f} s of processor time, "
            f"measured in {time.process_time() - trained:.0f} s",
            flush=True,
        )


def main(words: Sequence[str] | None = None) -> bool:
    """Do what is left of the study, as far as the time goes, and report what there is.

    Returns:
        Whether it is complete.
    """
    arguments = parse_arguments(words)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    settings = Settings(
        arguments.training_steps, arguments.seeds, arguments.samples, tuple(arguments.sampling_steps)
    )
    folder, end = arguments.output, time.monotonic() + 60 * arguments.minutes
    check_settings(folder, settings._asdict())
    check_report(arguments.report or folder)
    # Seed by seed, so that a study that is stopped has pairs to compare.
    try:
        for seed in range(settings.seeds):
            with taken(folder / f"seed-{seed}.lock") as mine:
                if mine:
                    study_seed(seed, settings, folder, end)
    except OutOfTimeError:
        pass
    results = read_results(folder, settings)
    complete = len(results) == settings.seeds * len(METHODS)
    with lasting_output():
        print(write_report(arguments.report or folder, settings, results))
        if not complete:
            print("not complete: run it again to go on")
    return complete


if __name__ == "__main__":
    main()

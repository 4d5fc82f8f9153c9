"""The experiments of DDIM-GMM (arXiv 2311.04938) and S2-DM (arXiv 2401.01520) at full size, on your GPU.

    python -m studies.papers EXPERIMENT --output FOLDER --reference FOLDER_OR_NPZ --device cuda

What is done is kept in the output folder: stop it whenever you like, run it again, and it goes on, with any number of
ranks (`torchrun --nproc-per-node N -m studies.papers ...`). docs/studies/papers.md has the commands.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gmmkernel.cli.outputs import lasting_output
from gmmkernel.cli.values import existing_file, folder, integer, number
from studies.papers.experiments import EXPERIMENTS
from studies.papers.run import Options, run

LEAST = 10
"""Images of a cell: the splits of the Inception Score, and more than the neighbours of precision and recall."""

_DTYPES = ("float32", "bfloat16", "float16")
_DECODED = 10
_OPTIONS = {name: f"--{name}" for name in ("images", "pipeline", "recipe", "reference", "weights")}
_OPTIONS["num_inference_steps"] = "--steps"
"""The options that arguments of functions come from, whose errors begin with their names."""


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; options of the other paper's experiments are refused."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.papers", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("experiment", choices=EXPERIMENTS, metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--output", type=folder, required=True, metavar="FOLDER", help="for everything")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FOLDER|FILE.npz",
        help="real images or their statistics, as `python -m gmmkernel evaluate` takes them (S2-DM: those of --images)",
    )
    parser.add_argument("--count", type=integer(LEAST), metavar="N", help="images of each cell (the paper's)")
    parser.add_argument("--batch-size", type=integer(1), metavar="B", help="samples made together")
    parser.add_argument("--steps", type=integer(1), nargs="+", metavar="S", help="of sampling (the paper's)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda", help="where to work (default cuda)"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="of the network (default float32)"
    )
    parser.add_argument(
        "--weights", type=existing_file, metavar="FILE", help="Inception's (torch-fidelity's own)"
    )
    parser.add_argument(
        "--estimate", action="store_true", help="check everything, say how long it takes, and stop"
    )
    parser.add_argument("--keep-images", action="store_true", help="leave the images of cells that are done")
    sampled = parser.add_argument_group("DDIM-GMM")
    of_sampling = [
        sampled.add_argument(
            "--pipeline", metavar="FOLDER|NAME", help="of diffusers (FFHQ: there is no default)"
        ),
        sampled.add_argument(
            "--vae-batch-size", type=integer(1), metavar="B", help=f"images decoded together ({_DECODED})"
        ),
        sampled.add_argument(
            "--eta", type=number(0, 1), nargs="+", metavar="E", help="shares of noise (the paper's)"
        ),
        sampled.add_argument(
            "--scales", type=number(0), nargs="+", metavar="S", help="of the offsets (the paper's)"
        ),
    ]
    trained = parser.add_argument_group("S2-DM")
    of_training = [
        trained.add_argument("--images", type=Path, metavar="FOLDER|FILE.npz", help="to train on"),
        trained.add_argument("--recipe", metavar="NAME|FILE.toml", help="of the trainings (the data's)"),
        trained.add_argument(
            "--training-steps", type=integer(1), metavar="N", help="of each training (the recipe's)"
        ),
        trained.add_argument(
            "--workers", type=integer(0), metavar="N", help="processes that load images (2)"
        ),
    ]
    arguments = parser.parse_args(words)
    experiment = EXPERIMENTS[arguments.experiment]
    trains = experiment.recipe is not None
    for action in of_sampling if trains else of_training:
        if getattr(arguments, action.dest) is not None:
            other = "DDIM-GMM" if trains else "S2-DM"
            parser.error(
                f"{action.option_strings[0]}: is for the experiments of {other}, got {experiment.name}"
            )
    if arguments.reference is None and not trains:
        parser.error("--reference: needed, real images or their statistics, got none")
    if arguments.images is None and trains:
        parser.error("--images: needed for the trainings, a folder or an .npz, got none")
    return arguments


def options_of(arguments: argparse.Namespace) -> Options:
    """Return what the words say, with the experiment's full size where they say nothing."""
    experiment = EXPERIMENTS[arguments.experiment]

    def distinct(name: str) -> tuple[float, ...]:
        given = getattr(arguments, name)
        return getattr(experiment, name) if given is None else tuple(dict.fromkeys(given))

    return Options(
        output=arguments.output,
        reference=arguments.reference,
        pipeline=arguments.pipeline,
        count=arguments.count or experiment.count,
        batch_size=arguments.batch_size or experiment.batch_size,
        vae_batch_size=arguments.vae_batch_size or _DECODED,
        steps=tuple(map(int, distinct("steps"))),
        eta=distinct("eta"),
        scales=distinct("scales"),
        device=arguments.device,
        dtype=arguments.dtype,
        weights=arguments.weights,
        images=arguments.images,
        recipe=arguments.recipe or experiment.recipe,
        training_steps=arguments.training_steps,
        workers=2 if arguments.workers is None else arguments.workers,
        keep_images=arguments.keep_images,
        estimate_only=arguments.estimate,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Do what is left of an experiment, and write its report.

    Returns:
        Exit status: 0 on success, 2 on what was wrong with arguments or files.
    """
    arguments = parse_arguments(words)
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # the trainings' deterministic algorithms need it
    try:
        with lasting_output():
            run(EXPERIMENTS[arguments.experiment], options_of(arguments))
            if not arguments.estimate:
                print(f"report: {arguments.output / 'report.md'}")
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        name, colon, rest = str(error).partition(":")
        print(f"error: {_OPTIONS.get(name, name)}{colon}{rest}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Train the network of faces: `python -m examples.faces.train faces` after `python -m examples.faces.render faces`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from examples.faces.model import NULL_CLASS, PREDICTION_TYPE, WEIGHTS, FacesUNet, faces_schedule
from gmmkernel import Trainer
from gmmkernel.recipes import Settings, load_images


def main() -> None:
    """Train, or go on with a training that was stopped, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="folder with one folder for each hair colour")
    parser.add_argument("--steps", type=int, default=12000, help="default 12000")
    parser.add_argument("--output", type=Path, default=Path("out/faces"), help="checkpoint and log")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = Trainer(
        FacesUNet().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        faces_schedule(),
        tau=1.0,  # DDPM's loss
        prediction_type=PREDICTION_TYPE,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=100,
        cosine_steps=given.steps,
        ema_decay=0.998,
        conditioning_dropout=0.1,
        null_conditioning=[NULL_CLASS],
    )
    images = load_images(given.images, Settings(size=32, classes="folders"))
    trainer.fit(images, given.steps, folder=given.output, progress=sys.stderr.isatty())
    weights = trainer.average.state_dict()
    save_file({name: tensor.half().contiguous() for name, tensor in weights.items()}, given.weights)


if __name__ == "__main__":
    main()

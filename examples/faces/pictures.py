"""Two pictures of faces: a few samplers side by side, and a mixture component by component.

python -m examples.faces.pictures --output out          # out/faces.png and out/components.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.faces.model import (
    CLASSES,
    IMAGE_SHAPE,
    NULL_CLASS,
    PREDICTION_TYPE,
    FacesUNet,
    faces_schedule,
    load_faces_unet,
)
from gmmkernel import (
    DDIMSampler,
    DPMSolverSampler,
    Mixture,
    MixtureTables,
    Sampler,
    gaussian_mixture,
    gmm_step,
    standard_normal,
)

Model = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

OPTIONS: dict[str, Any] = {
    "prediction_type": PREDICTION_TYPE,
    "guidance_scale": 2.0,
    "clip_sample_range": 1.0,
    "spacing": "trailing",
}
SHOWN = 12
COMPONENTS, STEPS, MIXED_STEP = 8, 10, 3
"""Only one step of the second picture has the mixture, so that no offset hides another."""


def guided(unet: FacesUNet) -> Model:
    """Return a sampler's model, which gives a pair (without a class, with it)."""

    @torch.no_grad()
    def model(sample: Tensor, timestep: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([torch.full_like(labels, NULL_CLASS), labels])
        uncond, output = unet(sample.repeat(2, 1, 1, 1), timestep.repeat(2), both).chunk(2)
        return uncond, output

    return model


def ortho(scale: float, n_steps: int | None = None) -> Mixture:
    """Return a mixture of eight orthogonal offsets."""
    return gaussian_mixture(
        "ortho", elements=prod(IMAGE_SHAPE), n_components=COMPONENTS, scale=scale, n_steps=n_steps
    )


def draw(model: Model, sampler: Sampler, count: int) -> Tensor:
    """Return faces [B, 3, 32, 32] of all hair colours in turn, from the seeds 0, 1, ..."""
    seeds = torch.arange(count)
    labels = seeds % len(CLASSES)
    return sampler.sample(model, seeds, IMAGE_SHAPE, conditioning=(labels,), progress=False).sample


def only(tables: MixtureTables, component: int) -> MixtureTables:
    """Return tables with which that component alone is drawn: all of the distribution function is at it."""
    cdf = torch.zeros_like(tables.cdf)
    cdf[:, component:] = 2**32
    return tables._replace(cdf=cdf)


def draw_component(model: Model, scale: float, component: int | None, count: int) -> Tensor:
    """Return faces as `draw` does, with one component in one step of ten, or without a mixture."""
    sampler = DDIMSampler(faces_schedule(), STEPS, mixture=ortho(scale), **OPTIONS)
    tables = None if component is None or sampler.tables is None else only(sampler.tables, component)
    seeds = torch.arange(count)
    sample = standard_normal(seeds, IMAGE_SHAPE)
    for row, timestep in enumerate(sampler.timesteps):
        uncond, output = model(sample, timestep.expand(count), seeds % len(CLASSES))
        sample = gmm_step(
            sample,
            output,
            sampler.coefficients,
            model_output_uncond=uncond,
            row=row,
            seeds=seeds,
            mixture=tables if row == MIXED_STEP else None,
        ).prev_sample
    return sample


def write(path: Path, rows: dict[str, Tensor], heading: list[str] | None = None) -> None:
    """Write rows of images [N, 3, H, W] in [-1, 1], labelled on the left, with a heading over each column."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = max(len(images) for images in rows.values())
    figure = Figure(
        figsize=(0.75 * count + 1.6, 0.75 * len(rows) + 0.3),
        layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0),
    )
    axes = figure.subplots(len(rows), count, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
        for axis, image in zip(line[count - len(images) :], images, strict=True):
            axis.imshow(np.asarray(image.clamp(-1, 1).add(1).div(2).movedim(0, -1)), interpolation="nearest")
    for axis, word in zip(axes[0], heading or [], strict=False):
        axis.set_title(word, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write_faces(model: Model, path: Path) -> None:
    """Write faces from the same seeds by four samplers."""
    schedule = faces_schedule()
    samplers = {
        "DDIM, 50 steps": DDIMSampler(schedule, 50, **OPTIONS),
        "DPM-Solver++, 10": DPMSolverSampler(schedule, 10, **OPTIONS),
        "DDIM, 10": DDIMSampler(schedule, 10, **OPTIONS),
        "DDIM-GMM, 10": DDIMSampler(schedule, 10, mixture=ortho(4.0, 10), **OPTIONS),
    }
    write(path, {name: draw(model, sampler, SHOWN) for name, sampler in samplers.items()})


def write_components(model: Model, path: Path, scale: float) -> None:
    """Write four faces without a mixture, and with each component in one step, from the same seeds."""
    offsets = ortho(scale).offsets[0].view(COMPONENTS, *IMAGE_SHAPE)
    columns = [draw_component(model, scale, which, 4) for which in [None, *range(COMPONENTS)]]
    rows = {"offset": offsets / offsets.abs().amax()}
    rows |= {f"seed {seed}": torch.stack([column[seed] for column in columns]) for seed in range(4)}
    write(path, rows, ["none", *map(str, range(COMPONENTS))])


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder (default out)")
    parser.add_argument("--scale", type=float, default=25.0, help="of the second picture (default 25)")
    given = parser.parse_args()
    model = guided(load_faces_unet())
    write_faces(model, given.output / "faces.png")
    write_components(model, given.output / "components.png", given.scale)
    print(f"pictures: {given.output / 'faces.png'} and {given.output / 'components.png'}")


if __name__ == "__main__":
    main()

"""What a mixture does to a sample: the same seeds, with each component in one step of the run.

A mixture is data: with all of the distribution function at one component, that component is drawn.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch
from torch import Tensor

from gmmkernel import DDIMSampler, MixtureTables, gaussian_mixture, gmm_step, noise_schedule, standard_normal
from gmmkernel.digits import IMAGE_SHAPE, load_unet

STEPS, COMPONENTS, ELEMENTS = 10, 8, 64
MIXED_STEP = 5
"""The step that has the mixture; the others are DDIM's, so that no offset hides another."""


def only(tables: MixtureTables, component: int) -> MixtureTables:
    """Return tables with which that component alone is drawn."""
    cdf = torch.zeros_like(tables.cdf)
    cdf[:, component:] = 2**32
    return tables._replace(cdf=cdf)


def draw(seeds: Tensor, digits: Tensor, scale: float, component: int | None) -> Tensor:
    """Return digits [B, 1, 8, 8] of one component, or without a mixture."""
    schedule, unet = noise_schedule("linear"), load_unet()
    mixture = gaussian_mixture("ortho", elements=ELEMENTS, n_components=COMPONENTS, scale=scale)
    sampler = DDIMSampler(schedule, STEPS, spacing="quadratic", mixture=mixture)
    tables = None if component is None or sampler.tables is None else only(sampler.tables, component)
    sample = standard_normal(seeds, IMAGE_SHAPE)
    with torch.no_grad():
        for row, timestep in enumerate(sampler.timesteps):
            output = unet(sample, timestep, digits)
            mixed = tables if row == MIXED_STEP else None
            made = gmm_step(sample, output, sampler.coefficients, row=row, seeds=seeds, mixture=mixed)
            sample = made.prev_sample
    return sample


def write_picture(path: Path, scale: float) -> None:
    """Draw five digits without a mixture, and with each component in one step, the same seeds in each column."""
    from matplotlib.figure import Figure

    seeds, digits = torch.arange(5), torch.tensor([2, 3, 5, 8, 9])
    offsets = gaussian_mixture("ortho", elements=ELEMENTS, n_components=COMPONENTS, scale=scale).offsets[0]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(len(seeds) + 1, COMPONENTS + 1)
    for axis in axes.flat:
        axis.set_axis_off()
    for column, component in enumerate([None, *range(COMPONENTS)]):
        images = draw(seeds, digits, scale, component)
        axes[0, column].set_title("none" if component is None else f"{component}", fontsize=11)
        if component is not None:
            axes[0, column].imshow(offsets[component].view(8, 8), cmap="RdBu", vmin=-0.5, vmax=0.5)
        for line, image in enumerate(images):
            axes[line + 1, column].imshow(image[0].clamp(-1, 1), cmap="gray", vmin=-1, vmax=1)
    figure.suptitle(f"component, its offset (scale {scale:g}), and five digits from the same seeds")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    path.write_bytes(picture.getvalue())


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("components.png"))
    parser.add_argument(
        "--scale", type=float, default=3.0, help="of the offsets; 0.72 is what helps (default 3)"
    )
    given = parser.parse_args()
    write_picture(given.output, given.scale)


if __name__ == "__main__":
    main()

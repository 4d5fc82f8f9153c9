"""Which sampler, at which timesteps: the distance of digits drawn with equal numbers of calls of the network.

Every sampler starts from the same noise and draws as many of each digit, with the model that ships with the package.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from gmmkernel import (
    DDIMSampler,
    DEISSampler,
    DPMSolverSampler,
    NoiseSchedule,
    PNDMSampler,
    Sampler,
    noise_schedule,
)
from gmmkernel.digits import IMAGE_SHAPE, NUM_CLASSES, DigitsUNet, digit_fid_by_group, load_unet

GROUPS = 5
BATCH = 500

METHODS: dict[str, Callable[..., Sampler]] = {
    "DDIM": DDIMSampler,
    "DDPM": partial(DDIMSampler, eta=1.0),
    "PLMS": partial(PNDMSampler, skip_prk_steps=True),
    "DEIS, order 2": partial(DEISSampler, solver_order=2),
    "DEIS, order 3": DEISSampler,
    "DEIS, order 3, rho": partial(DEISSampler, interpolation="rho"),
    "DPM-Solver++(2M)": DPMSolverSampler,
    "SDE-DPM-Solver++(2M)": partial(DPMSolverSampler, algorithm_type="sde-dpmsolver++"),
}


def make_sampler(method: str, schedule: NoiseSchedule, calls: int, spacing: str) -> Sampler:
    """Return the sampler that calls the network `calls` times: PLMS does a step fewer, for it calls once more."""
    steps = calls - 1 if method == "PLMS" else calls
    sampler = METHODS[method](schedule, steps, spacing=spacing)
    assert len(sampler.timesteps) == calls
    return sampler


def measure(sampler: Sampler, unet: DigitsUNet, count: int) -> Tensor:
    """Return the digit-FID of each of five groups of samples, from the seeds 0, 1, ..., `count` - 1.

    Every digit is asked for as often: which of them come up by luck is most of the noise of a distance.
    """
    seeds = torch.arange(count)
    made = sampler.sample(
        unet,
        seeds,
        IMAGE_SHAPE,
        conditioning=(seeds % NUM_CLASSES,),
        batch_size=min(BATCH, count),
        progress=False,
    )
    return digit_fid_by_group(made.sample.clamp(-1, 1), GROUPS)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 10, 20], help="calls of the network")
    parser.add_argument("--spacing", nargs="+", default=["trailing", "quadratic"], help="timesteps")
    parser.add_argument("--count", type=int, default=2500, help="samples, a multiple of 50")
    parser.add_argument("--threads", type=int, default=1, help="the network's bits depend on it")
    arguments = parser.parse_args()
    if arguments.count < 50 or arguments.count % 50:
        parser.error(f"--count: expected a multiple of 50, got {arguments.count}")
    torch.set_num_threads(arguments.threads)
    columns = [(calls, spacing) for calls in arguments.calls for spacing in arguments.spacing]
    schedule, unet = noise_schedule("linear"), load_unet()
    lines = []
    with tqdm(total=len(METHODS) * len(columns), disable=None) as bar:  # shown on a terminal alone
        for method in METHODS:
            cells = [method]
            for calls, spacing in columns:
                distances = measure(make_sampler(method, schedule, calls, spacing), unet, arguments.count)
                cells.append(f"{float(distances.mean()):.2f} ± {float(distances.std()) / GROUPS**0.5:.2f}")
                bar.update()
            lines.append(f"| {' | '.join(cells)} |")
    print(f"| digit-FID | {' | '.join(f'{calls} calls, {spacing}' for calls, spacing in columns)} |")
    print("|---" * (1 + len(columns)) + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

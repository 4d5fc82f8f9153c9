"""Learn a mixture's offsets by differentiating through a five-step sampler.

The loss is the energy distance between the classifier's features of generated and of real training digits. Its
gradient passes through every step and the network before it; activations are computed again in the backward pass
(torch.utils.checkpoint), and noise comes from the seeds, so there is no generator whose state would have to be kept.

What is measured is not what was optimised: Frechet distances, on other seeds, from digits that the loss has not seen.
Beside the mixture stand controls that know nothing of it: Gaussian noise whose levels were chosen, or learned by the
same loss. Needs scikit-learn, for the real digits. docs/learning.md has the equations and what came out.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gmmkernel import (
    MAX_COMPONENTS,
    Column,
    Mixture,
    MixtureTables,
    Stream,
    ddim_coefficients,
    gaussian_mixture,
    gmm_step,
    moment_report,
    noise_schedule,
    standard_normal,
    timesteps,
)
from gmmkernel.digits import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    DigitsClassifier,
    DigitsUNet,
    digit_fid_by_group,
    feature_statistics,
    frechet_distance,
    load_classifier,
    load_digits,
    load_unet,
)

ELEMENTS = math.prod(IMAGE_SHAPE)
GROUPS = 5
BATCH = 250
"""Samples carried together: as many of each digit."""

SCALES = (0.72, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""What ORTHO and isotropic noise are tried at; the scale s stands for a variance of s^2 (K - 1)/(K D)."""

CHOICE_SEEDS, HELD_OUT_SEEDS = 10**6, 2 * 10**6
"""Where the seeds begin by which scales are chosen, and by which all is measured; those of training begin at 0."""

Transition = Callable[[Tensor], MixtureTables | None]
"""From the coefficient rows to the tables to sample with."""


class Problem(NamedTuple):
    """What stays as it is.

    Attributes:
        unet: the trained noise predictor, frozen.
        classifier: the network whose features are compared, frozen.
        visited: int64 [S], the timesteps.
        rows: float32 [S, 16], the coefficient rows.
    """

    unet: DigitsUNet
    classifier: DigitsClassifier
    visited: Tensor
    rows: Tensor

    @classmethod
    def make(cls, n_steps: int, eta: float) -> Problem:
        """Load the networks and lay out the steps."""
        visited = timesteps(n_steps, spacing="trailing")
        rows = ddim_coefficients(noise_schedule("linear"), visited, eta=eta)
        unet, classifier = load_unet().requires_grad_(False), load_classifier().requires_grad_(False)
        return cls(unet, classifier, visited, rows)


class LearnedMixture(nn.Module):
    """Equal weights and centred offsets s (V_k - mean of V), with V [K, D] and s learned for each step.

    It starts as ORTHO. What the offsets add to an element's variance is taken from the noise, where there is some.
    """

    def __init__(self, n_steps: int, n_components: int, scale: float, seed: int) -> None:
        super().__init__()
        start = gaussian_mixture(
            "ortho", elements=ELEMENTS, n_components=n_components, n_steps=n_steps, seed=seed
        )
        self.weights = start.weights
        self.directions = nn.Parameter(start.offsets)
        self.scale = nn.Parameter(torch.full((n_steps, 1, 1), scale, dtype=torch.float64))

    def mixture(self) -> Mixture:
        """Return the mixture, through which gradients reach the parameters."""
        offsets = self.scale * (self.directions - self.directions.mean(1, keepdim=True))
        reductions = offsets.square().mean(1, keepdim=True)
        return Mixture("learned", float(self.scale.detach().abs().max()), self.weights, offsets, reductions)

    def forward(self, rows: Tensor) -> MixtureTables:
        """Return the mixture's tables."""
        return self.mixture().bind(rows)


class LearnedNoise(nn.Module):
    """The control: one Gaussian, no offsets; levels l, [S, 1, 1 or D], change the variance by l |l| / D."""

    def __init__(self, levels: Tensor) -> None:
        super().__init__()
        self.levels = nn.Parameter(levels.clone())

    def forward(self, rows: Tensor) -> MixtureTables:
        """Return the tables of a mixture of one component."""
        sigma, weight = (rows[:, column, None, None].double() for column in (Column.SIGMA, Column.OFFSET))
        variance = sigma.square() + weight.square() * self.levels * self.levels.abs() / ELEMENTS
        # A root has no derivative at 0, where the last step is.
        std = torch.where(variance > 0, variance.clamp_min(1e-12).sqrt(), 0.0).to(rows.dtype)
        nothing = rows.new_zeros(1, 1, ELEMENTS)
        return MixtureTables(torch.empty(1, 0, dtype=torch.int64), nothing, std.expand(-1, -1, ELEMENTS))


def gaussian_of(mixture: Mixture, draws: int = MAX_COMPONENTS) -> Mixture:
    """Return a control: draws from the Gaussian of a mixture's covariance, sum_k c_k delta_k / sqrt(K)."""
    delta = mixture.offsets.detach()
    normal = standard_normal(
        torch.arange(len(delta)), (draws, delta.shape[1]), stream=Stream.OFFSETS, dtype=torch.float64
    )
    offsets = normal @ delta / delta.shape[1] ** 0.5
    offsets -= offsets.mean(1, keepdim=True)
    weights = torch.full((draws,), 1 / draws, dtype=torch.float64)
    return Mixture("gaussian", mixture.scale, weights, offsets, mixture.reductions.detach())


def generate(problem: Problem, transition: Transition, seeds: Tensor, *, recompute: bool = False) -> Tensor:
    """Sample digits, as many of each class, with gradients where they are asked for.

    Args:
        problem: networks and steps.
        transition: what to sample with.
        seeds: int64 [B].
        recompute: keep no activations of the network; compute them again in the backward pass.

    Returns:
        float32 [B, 1, 8, 8], clamped to [-1, 1].
    """
    tables = transition(problem.rows)
    labels = torch.arange(len(seeds)) % NUM_CLASSES
    sample = standard_normal(seeds, IMAGE_SHAPE, stream=Stream.INITIAL)

    def step(sample: Tensor, row: int) -> Tensor:
        noise = problem.unet(sample, problem.visited[row], labels)
        return gmm_step(sample, noise, problem.rows, row=row, seeds=seeds, mixture=tables).prev_sample

    for row in range(len(problem.visited)):
        if recompute:
            sample = checkpoint(step, sample, row, use_reentrant=False, preserve_rng_state=False)
        else:
            sample = step(sample, row)
    return sample.clamp(-1, 1)


@torch.no_grad()
def generate_many(problem: Problem, transition: Transition, first_seed: int, count: int) -> Tensor:
    """Sample from consecutive seeds, batch by batch."""
    seeds = torch.arange(first_seed, first_seed + count)
    return torch.cat([generate(problem, transition, batch) for batch in seeds.split(BATCH)])


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Energy distance 2 E|a - b| - E|a - a'| - E|b - b'| of samples [N, F] and [M, F]."""
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return 2 * torch.cdist(a, b).mean() - within[0] - within[1]


def learn(
    problem: Problem,
    transition: nn.Module,
    real: Tensor,
    *,
    iterations: int,
    batch: int = BATCH,
    learning_rate: float = 0.03,
    recompute: bool = True,
) -> list[float]:
    """Minimise the energy distance with Adam, with new seeds in every iteration.

    Args:
        problem: networks and steps.
        transition: what to learn, in place.
        real: float32 [N, 64], features of the training digits.
        iterations: how often.
        batch: samples in an iteration.
        learning_rate: where the cosine to 0 begins.
        recompute: as in `generate`.

    Returns:
        The losses.
    """
    optimiser = torch.optim.Adam(transition.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    losses = []
    for iteration in range(iterations):
        seeds = torch.arange(iteration * batch, (iteration + 1) * batch)
        images = generate(problem, transition, seeds, recompute=recompute)
        loss = energy_distance(problem.classifier.features(images), real)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


class Measured(NamedTuple):
    """Distances of one method, by group of seeds: each float64 [GROUPS].

    Attributes:
        held_out: of features, from the held-out digits.
        pixels: of pixels, from the same.
        digit_fid: of features, from all real digits.
    """

    held_out: Tensor
    pixels: Tensor
    digit_fid: Tensor


def measure(problem: Problem, images: Tensor, held_out: Tensor) -> Measured:
    """Measure groups of consecutive images [N, 1, 8, 8]; `held_out` are real digits, [M, 1, 8, 8]."""
    features, pixels = feature_statistics(held_out, problem.classifier), pixel_statistics(held_out)
    distances = [
        (
            frechet_distance(*feature_statistics(group, problem.classifier), *features),
            frechet_distance(*pixel_statistics(group), *pixels),
        )
        for group in images.split(len(images) // GROUPS)
    ]
    of_features, of_pixels = torch.tensor(distances, dtype=torch.float64).unbind(1)
    return Measured(of_features, of_pixels, digit_fid_by_group(images, GROUPS))


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of the pixels, float64 [64] and [64, 64]."""
    pixels = images.flatten(1).double()
    return pixels.mean(0), torch.cov(pixels.T)


def choose_scale(
    problem: Problem, make: Callable[[float], Transition], training: Tensor, count: int
) -> float:
    """Return the scale whose samples are nearest to the training digits in Frechet distance."""
    target = feature_statistics(training, problem.classifier)

    def distance(scale: float) -> float:
        images = generate_many(problem, make(scale), CHOICE_SEEDS, count)
        return frechet_distance(*feature_statistics(images, problem.classifier), *target)

    return min(SCALES, key=distance)


def mean_and_error(values: Tensor, sign: str = "") -> str:
    """Return the mean of some values and its standard error, as text."""
    return f"{float(values.mean()):{sign}6.2f} ± {float(values.std() / len(values) ** 0.5):4.2f}"


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5, help="sampling steps")
    parser.add_argument("--eta", type=float, default=0.0, help="share of the DDPM noise")
    parser.add_argument("--components", type=int, default=8, help="mixture components K")
    parser.add_argument("--scale", type=float, default=2.0, help="scale to start from")
    parser.add_argument("--iterations", type=int, default=100, help="optimiser steps of each method")
    parser.add_argument("--count", type=int, default=2500, help=f"samples measured, in {GROUPS} groups")
    parser.add_argument("--choice-count", type=int, default=1000, help="samples by which a scale is chosen")
    parser.add_argument("--seed", type=int, default=0, help="seed of the directions to start from")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the network's bits depend on it")
    arguments = parser.parse_args(words)
    for name, of in (("--count", arguments.count), ("--choice-count", arguments.choice_count)):
        if of < 1 or of % (GROUPS * NUM_CLASSES):
            parser.error(f"{name}: expected a positive multiple of {GROUPS * NUM_CLASSES}, got {of}")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    """Choose, learn, measure, and print the table."""
    arguments = parse_arguments(words)
    torch.set_num_threads(arguments.threads)
    problem = Problem.make(arguments.steps, arguments.eta)
    training, held_out = load_digits("train")[0], load_digits("test")[0]
    with torch.no_grad():
        real = problem.classifier.features(training)

    def ortho(scale: float) -> LearnedMixture:
        return LearnedMixture(arguments.steps, arguments.components, scale, arguments.seed)

    def noise(scale: float, elements: int = 1) -> LearnedNoise:
        level = scale * (1 - 1 / arguments.components) ** 0.5
        return LearnedNoise(torch.full((arguments.steps, 1, elements), level, dtype=torch.float64))

    methods: dict[str, Transition] = {"DDIM": lambda rows: None}
    for name, make in (("ORTHO", ortho), ("isotropic noise", noise)):
        scale = choose_scale(problem, make, training, arguments.choice_count)
        methods[f"{name}, best scale: {scale:g}"] = make(scale)
    mixture = ortho(arguments.scale)
    to_learn: dict[str, nn.Module] = {
        "isotropic noise, learned levels": noise(arguments.scale),
        "noise learned for each pixel": noise(arguments.scale, ELEMENTS),
        "learned mixture": mixture,
    }
    methods |= to_learn
    for name, module in to_learn.items():
        begin = time.perf_counter()
        losses = learn(problem, module, real, iterations=arguments.iterations)
        tenth = max(len(losses) // 10, 1)
        first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
        print(f"{name}: loss {first:.3f} -> {last:.3f} in {time.perf_counter() - begin:.0f} s", flush=True)
    learned = mixture.mixture()
    report = moment_report(learned, problem.rows)
    added = (ELEMENTS * report.excess_variance.clamp_min(0)).sqrt()[:, None, None]
    methods["isotropic noise, the mixture's variance"] = LearnedNoise(added)
    methods["Gaussian of the mixture's covariance"] = gaussian_of(learned).bind

    measured = {
        name: measure(problem, generate_many(problem, method, HELD_OUT_SEEDS, arguments.count), held_out)
        for name, method in methods.items()
    }
    print(f"\n{report}\n")
    print(
        f"{arguments.steps} steps, eta {arguments.eta:g}: Frechet distances of {GROUPS} groups of "
        f"{arguments.count // GROUPS} samples, mean ± standard error, lower is better"
    )
    print(f"{'':40s}{'held-out digits':17s}{'above the mixture':19s}{'their pixels':17s}digit-FID")
    best = measured["learned mixture"].held_out
    for name, of in measured.items():
        columns = [
            mean_and_error(of.held_out),
            mean_and_error(of.held_out - best, "+"),
            *map(mean_and_error, of[1:]),
        ]
        print(f"{name:40s}" + "".join(f"{column:17s}" for column in columns))


if __name__ == "__main__":
    main()

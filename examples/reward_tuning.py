"""Tune a sampler for a reward that is not differentiated: policy gradients from the steps' log-densities.

Each of the five steps (eta = 1) is an action whose probability density `gmm_step` returns. Samples are drawn, rewarded
with the classifier's probability of one digit, and the log-densities of what was drawn are pushed up or down by how
much better than the batch a sample did, with PPO's clipped ratio (Schulman et al. 2017, arXiv 1707.06347; for
diffusion: DDPO, Black et al. 2023, arXiv 2305.13301). Steps without noise have no density and take no part.

What is tuned: the mixture's offsets and weights; a density alone gives the weights a gradient. The network stays as it
was, so what it returned is kept. docs/learning.md has the equations and what came out. Needs scikit-learn, for the real
digits that samples are compared with.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gmmkernel import (
    Column,
    Mixture,
    MixtureTables,
    Stream,
    ddim_coefficients,
    gaussian_mixture,
    gmm_step,
    gmm_step_log_prob,
    noise_schedule,
    standard_normal,
    timesteps,
)
from gmmkernel.digits import IMAGE_SHAPE, DigitsClassifier, load_classifier, load_digits, load_unet

N_STEPS = 5
BATCH = 250
CLIP = 0.2
"""PPO: a ratio has no gradient once it is this far from 1 on the side that pays."""

HELD_OUT_SEEDS = 10**6
"""Where the seeds begin on which the reward is measured; those of training begin at 0."""


class Move(NamedTuple):
    """One step of a batch.

    Attributes:
        row: its index.
        sample: [B, 1, 8, 8], where it started.
        model_output: [B, 1, 8, 8], what the network returned there.
        prev_sample: [B, 1, 8, 8], where it ended.
        log_prob: [B], the log-density it was drawn with; NaN where there is none.
    """

    row: int
    sample: Tensor
    model_output: Tensor
    prev_sample: Tensor
    log_prob: Tensor


class Policy(nn.Module):
    """A five-step sampler whose mixture can be tuned.

    Args:
        scale: scale of the ORTHO mixture that it starts from.
        seed: seed of that mixture.
    """

    def __init__(self, scale: float, seed: int) -> None:
        super().__init__()
        self.visited = timesteps(N_STEPS, spacing="trailing")
        self.rows = ddim_coefficients(noise_schedule("linear"), self.visited, eta=1.0)
        self.unet = load_unet().requires_grad_(False)
        start = gaussian_mixture(
            "ortho", elements=math.prod(IMAGE_SHAPE), n_components=8, n_steps=N_STEPS, scale=scale, seed=seed
        )
        self.offsets = nn.Parameter(start.offsets)
        self.logits = nn.Parameter(start.weights.log())

    def tables(self) -> MixtureTables:
        """Return the mixture's tables; what the offsets vary by is removed from the noise.

        The offsets need not stay centred: their mean is what moves all samples.
        """
        weights = self.logits.softmax(0)
        mean = torch.einsum("k,skd->sd", weights, self.offsets)[:, None]
        reductions = torch.einsum("k,skd->sd", weights, (self.offsets - mean).square())[:, None]
        return Mixture("tuned", 1.0, weights, self.offsets, reductions).bind(self.rows)

    @torch.no_grad()
    def draw(self, seeds: Tensor) -> tuple[Tensor, list[Move]]:
        """Sample; return the samples [B, 1, 8, 8] and the steps that have a density."""
        tables, moves = self.tables(), []
        sample = standard_normal(seeds, IMAGE_SHAPE, stream=Stream.INITIAL)
        for row, timestep in enumerate(self.visited):
            output = self.unet(sample, timestep)
            made = gmm_step(
                sample, output, self.rows, row=row, seeds=seeds, mixture=tables, return_log_prob=True
            )
            assert made.log_prob is not None
            if float(self.rows[row, Column.SIGMA]) > 0:
                moves.append(Move(row, sample, output, made.prev_sample, made.log_prob))
            else:
                assert bool(made.log_prob.isnan().all())  # all of its mass is in one place
            sample = made.prev_sample
        return sample, moves

    def log_prob(self, move: Move) -> Tensor:
        """Return the log-densities [B] of a step as the policy is now, with gradients.

        Where the network is tuned too, run it again here, at the batch size that it was drawn at: its bits may depend
        on it.
        """
        return gmm_step_log_prob(
            move.prev_sample,
            move.sample,
            move.model_output,
            self.rows,
            row=move.row,
            mixture=self.tables(),
        )


def reward_of(classifier: DigitsClassifier, samples: Tensor, digit: int) -> Tensor:
    """Return the classifier's probability [B] of a digit."""
    with torch.no_grad():
        probabilities: Tensor = classifier(samples.clamp(-1, 1)).softmax(1)
    return probabilities[:, digit]


def improve(
    policy: Policy, optimiser: torch.optim.Optimizer, moves: list[Move], rewards: Tensor, inner_steps: int
) -> float:
    """Make some steps of PPO on one batch.

    Args:
        policy: what drew the moves.
        optimiser: over its parameters.
        moves: what was drawn.
        rewards: [B].
        inner_steps: how many; before the first, every ratio is exactly 1.

    Returns:
        The share of ratios that were clipped in the last one.
    """
    advantage = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    clipped = 0.0
    for inner in range(inner_steps):
        optimiser.zero_grad()
        clipped = 0.0
        for move in moves:
            log_prob = policy.log_prob(move)
            ratio = (log_prob - move.log_prob).exp()
            if inner == 0:
                assert torch.equal(log_prob, move.log_prob)
                assert bool((ratio == 1).all())
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            (-gain.mean()).backward()
            clipped += float(((ratio - 1).abs() > CLIP).float().mean()) / len(moves)
        optimiser.step()
    return clipped


def learn(
    policy: Policy,
    classifier: DigitsClassifier,
    digit: int,
    *,
    iterations: int,
    learning_rate: float = 0.01,
    batch: int = BATCH,
    inner_steps: int = 4,
) -> list[float]:
    """Tune a policy, with new seeds in every iteration; return the mean reward of each."""
    optimiser = torch.optim.Adam([policy.offsets, policy.logits], lr=learning_rate)
    history = []
    for iteration in range(iterations):
        samples, moves = policy.draw(torch.arange(iteration * batch, (iteration + 1) * batch))
        rewards = reward_of(classifier, samples, digit)
        clipped = improve(policy, optimiser, moves, rewards, inner_steps)
        history.append(float(rewards.mean()))
        if (iteration + 1) % 10 == 0:
            recent = sum(history[-10:]) / 10
            print(f"{iteration + 1:4d} iterations: reward {recent:.3f}, {clipped:.0%} clipped", flush=True)
    return history


class Measured(NamedTuple):
    """What is reported of some images: each float64 [N].

    Attributes:
        reward: the classifier's probability of the digit.
        nearest: distance to the nearest real image of the digit.
        spread: mean distance to the other images.
    """

    reward: Tensor
    nearest: Tensor
    spread: Tensor


def measure(classifier: DigitsClassifier, samples: Tensor, digit: int, real: Tensor) -> Measured:
    """Measure images [N, 1, 8, 8] beside real ones of the digit, [M, 1, 8, 8]."""
    pixels = samples.clamp(-1, 1).flatten(1).double()
    between = torch.cdist(pixels, pixels).sum(1) / (len(pixels) - 1)
    nearest = torch.cdist(pixels, real.flatten(1).double()).amin(1)
    return Measured(reward_of(classifier, samples, digit).double(), nearest, between)


def mean_and_error(values: Tensor) -> str:
    """Return the mean of independent values with its standard error, as text."""
    return f"{float(values.mean()):6.3f} ± {float(values.std() / len(values) ** 0.5):5.3f}"


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--digit", type=int, choices=range(10), default=3, help="the digit that is rewarded")
    parser.add_argument("--scale", type=float, default=2.0, help="scale of the mixture to start from")
    parser.add_argument("--iterations", type=int, default=40, help="batches drawn")
    parser.add_argument("--inner-steps", type=int, default=4, help="optimiser steps on each of them")
    parser.add_argument("--count", type=int, default=1000, help="samples on which the reward is measured")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mixture to start from")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the network's bits depend on it")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, tune, measure again, and print the table."""
    arguments = parse_arguments(words)
    torch.set_num_threads(arguments.threads)
    digit, classifier = arguments.digit, load_classifier().requires_grad_(False)
    policy = Policy(arguments.scale, arguments.seed)
    training, labels = load_digits("train")
    real = training[labels == digit]
    held_out, labels = load_digits("test")

    def measure_policy() -> Measured:
        seeds = torch.arange(HELD_OUT_SEEDS, HELD_OUT_SEEDS + arguments.count)
        samples = torch.cat([policy.draw(some)[0] for some in seeds.split(BATCH)])
        return measure(classifier, samples, digit, real)

    rows = {"before": measure_policy()}
    begin = time.perf_counter()
    learn(
        policy,
        classifier,
        digit,
        iterations=arguments.iterations,
        inner_steps=arguments.inner_steps,
    )
    seconds = time.perf_counter() - begin
    rows["after"] = measure_policy()
    rows["real, held out"] = measure(classifier, held_out[labels == digit], digit, real)

    print(f"\ntuned for digit {digit} in {seconds:.0f} s; held-out seeds, mean ± standard error")
    print(f"{'':16s}{'reward':18s}{'nearest real ' + str(digit):18s}between samples")
    for name, of in rows.items():
        print(f"{name:16s}" + "".join(f"{mean_and_error(values):18s}" for values in of))


if __name__ == "__main__":
    main()

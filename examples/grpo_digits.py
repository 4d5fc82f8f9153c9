"""Fine-tune a flow by rewards: GRPO on the digits model, with ratios that are exactly 1 where nothing has changed.

Flow-GRPO (Liu et al. 2025, arXiv 2505.05470) with windows as in MixGRPO (arXiv 2507.21802): two steps of each rollout
draw noise, so that they have a density, and the network's weights are moved towards what did better than the rest of
the group, by PPO's clipped ratio and a penalty on the divergence from the network as it was. The rollout keeps what
the network said, and `gmm_step_log_ratio` compares it with what the network says now.

The reward is the classifier's probability of one of two digits, for samples without a class. docs/rl.md says what came
out, and what it cost in variety. Needs matplotlib, for the picture.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gmmkernel import FlowSampler, flow_times, gmm_step_log_ratio, seeds_from_ids
from gmmkernel.digits import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    DigitsClassifier,
    DigitsUNet,
    feature_statistics,
    frechet_distance,
    load_classifier,
    load_flow_unet,
)

N_STEPS, NOISE_LEVEL = 10, 0.7
WINDOW = 2
"""Steps of a rollout that draw noise: the first two, in the next iteration those from the second on, and so on."""

GROUP = 96
INNER_STEPS = 2
"""Optimiser steps on each group; before the first, every ratio is exactly 1."""

CLIP = 0.003
"""PPO's clip range. Log-ratios are means over elements, as in Flow-GRPO: of 64 elements, 0.2 nats in their sum."""

MAX_NORM = 0.01  # of a gradient

HELD_OUT_SEEDS = 10**6
"""Where the seeds begin by which networks are measured; those of rollouts are hashes."""


class Rollout(NamedTuple):
    """A group, and its steps that drew noise: latents, next latents and outputs are [n, B, 1, 8, 8]."""

    sampler: FlowSampler
    steps: list[int]
    latents: Tensor
    next_latents: Tensor
    outputs: Tensor
    images: Tensor
    rewards: Tensor


class Progress(NamedTuple):
    """What an iteration did; all but the first as of its last optimiser step.

    Attributes:
        deviation: largest |log-ratio| before its first optimiser step.
        divergence: KL from the network that drew the rollout, nats an element.
        to_reference: KL from the network that all began with.
        clipped: share of ratios outside of the clip range.
    """

    deviation: float
    divergence: float
    to_reference: float
    clipped: float


class Images(NamedTuple):
    """What is reported of some images.

    Attributes:
        reward: [B], the classifier's probability of a rewarded digit.
        digits: effective number of digits, exp(entropy) of those predicted.
        spread: mean distance, of 64 pixels, between samples of the same rewarded digit.
    """

    reward: Tensor
    digits: float
    spread: float


@torch.no_grad()
def judge(classifier: DigitsClassifier, images: Tensor, digits: Sequence[int]) -> Images:
    """Reward images [B, 1, 8, 8], and say how various they are."""
    images = images.clamp(-1, 1)
    probability = classifier(images).softmax(1)
    predicted = probability.argmax(1)
    shares = torch.bincount(predicted, minlength=NUM_CLASSES).double() / len(predicted)
    wanted = torch.isin(predicted, torch.tensor(digits))
    alike = (predicted[:, None] == predicted) & wanted & ~torch.eye(len(predicted), dtype=torch.bool)
    distance = torch.cdist(images.flatten(1), images.flatten(1))[alike].mean()
    entropy = torch.special.entr(shares).sum()
    return Images(probability[:, digits].sum(1), float(entropy.exp()), float(distance))


@torch.no_grad()
def draw(
    network: DigitsUNet, classifier: DigitsClassifier, digits: Sequence[int], base: str, iteration: int
) -> Rollout:
    """Sample a group; each sample has noise of its own in each iteration, whatever the batch or rank."""
    first = iteration % (N_STEPS - WINDOW)  # the last step, which ends in the image, draws nothing
    steps = list(range(first, first + WINDOW))
    sampler = FlowSampler(N_STEPS, dynamics="flow-sde", noise_level=NOISE_LEVEL, sde_steps=steps)
    seeds = seeds_from_ids(f"{base}/{iteration}", range(GROUP))
    made = sampler.sample(network, seeds, IMAGE_SHAPE, keep_steps=steps, progress=False)
    kept, rewards = made.kept, judge(classifier, made.sample, digits).reward
    assert kept is not None
    return Rollout(sampler, steps, kept.latents, kept.next_latents, kept.model_outputs, made.sample, rewards)


def improve(
    network: DigitsUNet,
    reference: DigitsUNet,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    penalty: float,
) -> Progress:
    """Make some optimiser steps on one group; `penalty` is the weight of the divergence from the reference."""
    advantage = (rollout.rewards - rollout.rewards.mean()) / (rollout.rewards.std() + 1e-2)
    rows, times, n = rollout.sampler.coefficients, rollout.sampler.timesteps, len(rollout.steps)
    with torch.no_grad():
        others = [reference(rollout.latents[j], times[step]) for j, step in enumerate(rollout.steps)]
    deviation, last = 0.0, torch.zeros(3)
    for inner in range(INNER_STEPS):
        optimiser.zero_grad()
        last.zero_()
        for j, step in enumerate(rollout.steps):
            latents, following = rollout.latents[j], rollout.next_latents[j]
            output = network(latents, times[step])  # at the batch size of the rollout: its bits depend on it
            (log_ratio, divergence), (_, to_reference) = (
                gmm_step_log_ratio(following, latents, output, old, rows, row=step, reduction="mean")
                for old in (rollout.outputs[j], others[j])
            )
            ratio = log_ratio.exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            ((penalty * to_reference - gain).mean() / n).backward()
            if inner == 0:
                deviation = max(deviation, float(log_ratio.detach().abs().max()))
            clipped = (ratio.detach() - 1).abs() > CLIP
            last += torch.stack([divergence.detach(), to_reference.detach(), clipped.float()]).mean(1) / n
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimiser.step()
    return Progress(deviation, *last.tolist())


def tune(
    network: DigitsUNet,
    classifier: DigitsClassifier,
    digits: Sequence[int],
    *,
    base: str = "0",
    iterations: int = 40,
    learning_rate: float = 1e-4,
    penalty: float = 0.1,
) -> list[tuple[float, ...]]:
    """Fine-tune a network in place; return mean reward, `digits` and `spread` of each rollout."""
    reference = load_flow_unet().requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    curve = []
    for iteration in range(iterations):
        rollout = draw(network, classifier, digits, base, iteration)
        made = improve(network, reference, optimiser, rollout, penalty)
        assert made.deviation == 0, made
        reward, *variety = judge(classifier, rollout.images, digits)
        curve.append((float(reward.mean()), *variety))
        if (iteration + 1) % 10 == 0:
            print(
                f"{iteration + 1:4d} iterations: reward {curve[-1][0]:.3f}; KL of an element {made.divergence:.1e} "
                f"from the rollout's network, {made.to_reference:.1e} from the first; {made.clipped:.0%} clipped",
                flush=True,
            )
    return curve


@torch.no_grad()
def generate(network: DigitsUNet, count: int, first: int, digits: Sequence[int] = ()) -> Tensor:
    """Sample without noise in the steps, from consecutive seeds, and ask for digits in turn if some are given."""
    labels = (torch.tensor(digits).repeat(count)[:count],) if digits else ()
    seeds = torch.arange(first, first + count)
    made = FlowSampler(N_STEPS).sample(
        network, seeds, IMAGE_SHAPE, conditioning=labels, batch_size=250, progress=False
    )
    return made.sample.clamp(-1, 1)


def eager_log_prob(step: int, following: Tensor, latents: Tensor, output: Tensor) -> Tensor:
    """Return a log-density as it is usually written: in float32, from the mean, itself a mean over elements."""
    times = flow_times(N_STEPS).float()
    t, dt = times[step], times[step + 1] - times[step]
    g = (t / (1 - torch.where(t == 1, times[1], t))).sqrt() * NOISE_LEVEL
    mean = latents * (1 + g**2 / (2 * t) * dt) + output * (1 + g**2 * (1 - t) / (2 * t)) * dt
    std = g * (-dt).sqrt()
    log_prob = -((following - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
    return log_prob.mean(dim=(1, 2, 3))


@torch.no_grad()
def log_ratios(network: DigitsUNet, rollout: Rollout, batch: int, *, again: bool) -> Tensor:
    """Return log-ratios of an unchanged network to itself, [3, n, B]: eager, `gmm_step_log_ratio`, that in float64.

    Args:
        network: what drew the rollout.
        rollout: its steps.
        batch: batch size to recompute at.
        again: run the network again too, not only the density.
    """
    found = []
    for j, step in enumerate(rollout.steps):
        latents, following, old = rollout.latents[j], rollout.next_latents[j], rollout.outputs[j]
        time, new = rollout.sampler.timesteps[step], old
        if again:
            new = torch.cat([network(some, time) for some in latents.split(batch)])
        parts = zip(*(whole.split(batch) for whole in (following, latents, new)), strict=True)
        eager = torch.cat([eager_log_prob(step, *part) for part in parts])
        given = following, latents, new, old, rollout.sampler.coefficients
        here, exact = (
            gmm_step_log_ratio(*(tensor.to(dtype) for tensor in given), row=step, reduction="mean").log_ratio
            for dtype in (torch.float32, torch.float64)
        )
        before = eager_log_prob(step, following, latents, old)
        found.append(torch.stack([(eager - before).double(), here.double(), exact]))
    return torch.stack(found, 1)


def draw_picture(path: Path, curves: dict[int, list[tuple[float, ...]]], grids: dict[str, Tensor]) -> None:
    """Draw the curves of all seeds above grids of 40 images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplot_mosaic("rrddss;000111")
    titles = {"r": "reward", "d": "effective number of digits", "s": "distance within a rewarded digit"}
    for place, (key, title) in enumerate(titles.items()):
        for seed, curve in curves.items():
            axes[key].plot([entry[place] for entry in curve], label=f"seed {seed}")
        axes[key].set(title=title, xlabel="iteration", ylim=(0, None))
    axes["r"].legend(frameon=False)
    for key, (title, images) in zip("01", grids.items(), strict=True):
        lines = torch.nn.functional.pad(images[:40, 0], (0, 1, 0, 1), value=1.0).split(10)
        picture = torch.cat([torch.cat(list(line), 1) for line in lines])
        axes[key].imshow(picture.numpy(), cmap="gray", vmin=-1, vmax=1)
        axes[key].set_title(title)
        axes[key].set_axis_off()
    figure.savefig(path, dpi=100)


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--digits", type=int, nargs=2, choices=range(10), default=[3, 8], help="what is rewarded"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training each")
    parser.add_argument("--iterations", type=int, default=40, help="groups drawn")
    parser.add_argument("--penalty", type=float, default=0.1, help="weight of the KL from the first network")
    parser.add_argument("--count", type=int, default=1000, help="samples by which a network is measured")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the network's bits depend on it")
    parser.add_argument("--output", type=Path, default=Path("out/grpo"), help="folder of picture and curves")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Compare ratios, tune from each seed, measure."""
    arguments = parse_arguments(words)
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    digits, count, classifier = arguments.digits, arguments.count, load_classifier().requires_grad_(False)
    network = load_flow_unet()
    rollout = draw(network, classifier, digits, "ratios", 1)
    print("log-ratios of the network to itself, largest of a rollout")
    for name, batch, again in (
        ("outputs kept", 5, False),
        ("run again", GROUP, True),
        ("run again by 5", 5, True),
    ):
        eager, here, exact = log_ratios(network, rollout, batch, again=again)
        print(
            f"{name:14s}  eager {eager.abs().max():.1e}, off by {(eager - exact).abs().max():.1e}"
            f"   gmm_step_log_ratio {here.abs().max():.1e}, off by {(here - exact).abs().max():.1e}"
        )
    made = {
        "before": generate(network, count, HELD_OUT_SEEDS),
        "before, asked for the digits": generate(network, count, HELD_OUT_SEEDS, digits),
    }
    target = feature_statistics(generate(network, count, 2 * HELD_OUT_SEEDS, digits), classifier)
    curves = {}
    for seed in arguments.seeds:
        begin, network = time.perf_counter(), load_flow_unet()
        print(f"\nseed {seed}")
        options = {"iterations": arguments.iterations, "penalty": arguments.penalty}
        curves[seed] = tune(network, classifier, digits, base=str(seed), **options)
        print(f"{time.perf_counter() - begin:.0f} s", flush=True)
        made[f"after, seed {seed}"] = generate(network, count, HELD_OUT_SEEDS)

    print(f"\n| {count} held-out seeds | reward | digits | distance within a digit | Fréchet distance |")
    print("|---|---|---|---|---|")
    for name, images in made.items():
        found = judge(classifier, images, digits)
        reward, error = float(found.reward.mean()), float(found.reward.std()) / count**0.5
        distance = frechet_distance(*feature_statistics(images, classifier), *target)
        print(
            f"| {name} | {reward:.3f} ± {error:.3f} | {found.digits:.2f} | {found.spread:.2f} | {distance:.1f} |"
        )
    after = f"after, seed {arguments.seeds[0]}"
    grids = {f"{name}: equal seeds": made[name] for name in ("before", after)}
    draw_picture(arguments.output / "grpo_digits.png", curves, grids)
    text = json.dumps({str(seed): curve for seed, curve in curves.items()})
    (arguments.output / "curves.json").write_text(text + "\n")
    print(f"\npicture and curves: {arguments.output}")


if __name__ == "__main__":
    main()

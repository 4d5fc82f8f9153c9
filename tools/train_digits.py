"""Train the digits models: classifier, reference statistics, U-Net and flow U-Net, a file each, and measure them.

The same seed, options, thread count, torch version and machine give the same weights. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from gmmkernel import DDIMSampler, FlowSampler, Sampler, TrainingColumn, add_noise, noise_schedule
from gmmkernel._files import write_whole
from gmmkernel.digits.classifier import DigitsClassifier
from gmmkernel.digits.data import load_digits
from gmmkernel.digits.distance import feature_statistics, frechet_distance
from gmmkernel.digits.loading import CLASSIFIER_FILE, FLOW_UNET_FILE, STATISTICS_FILE, UNET_FILE
from gmmkernel.digits.training import denoising_loss, digits_trainer, new_unet, velocity_loss
from gmmkernel.digits.unet import IMAGE_SHAPE, NULL_CLASS, NUM_CLASSES, DigitsUNet
from gmmkernel.training.average import start_average, update_average
from gmmkernel.training.choices import DataOrder, dropped, noise_seeds

WEIGHTS = Path(__file__).resolve().parent.parent / "gmmkernel" / "digits" / "weights"
BATCH = 128
HELD_OUT_EVERY = 1000
SAMPLING_STEPS = (50, 20, 10, 5)
CLASS_SAMPLES = 500
CHUNK = 500
"""Samples carried together: a network's bits depend on it."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder for the four files")
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps of each U-Net")
    parser.add_argument(
        "--classifier-steps", type=int, default=2000, help="optimiser steps of the classifier"
    )
    parser.add_argument(
        "--keep-classifier",
        action="store_true",
        help="do not train it: read it and the statistics from the output folder, so that distances keep their scale",
    )
    parser.add_argument(
        "--keep-unet",
        action="store_true",
        help="do not train it: read it from the output folder, and measure",
    )
    parser.add_argument(
        "--keep-flow-unet", action="store_true", help="the same for the U-Net of the rectified flow"
    )
    parser.add_argument(
        "--samples", type=int, default=5000, help="images drawn to measure the digit-FID, in 5 groups"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the weights, the data order and the noise"
    )
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the weights depend on it")
    arguments = parser.parse_args()
    for name in ("steps", "classifier_steps", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(arguments, name)}")
    if arguments.samples < 10 or arguments.samples % 5:
        parser.error(f"--samples: expected a multiple of 5, at least 10, got {arguments.samples}")
    return arguments


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by -1, 0 or 1 pixels along each axis, background (-1) coming in."""
    batch = images.shape[0]
    offsets = torch.randint(0, 3, (2, batch, 1, 1), generator=generator)
    rows = offsets[0] + torch.arange(8)[None, :, None]
    columns = offsets[1] + torch.arange(8)[None, None, :]
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    return padded[torch.arange(batch)[:, None, None], 0, rows, columns].unsqueeze(1)


def optimise(model: nn.Module, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """Make one step with the gradient's norm clipped to 1."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


def train_classifier(steps: int, device: str, generator: torch.Generator) -> DigitsClassifier:
    """Train on shifted images with a little noise."""
    images, labels = load_digits("train")
    model = DigitsClassifier().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in tqdm(range(steps), desc="classifier", mininterval=1.0):
        index = torch.randint(0, len(images), (BATCH,), generator=generator)
        batch = shift(images[index], generator)
        batch = batch + 0.1 * torch.randn(batch.shape, generator=generator)
        optimise(model, F.cross_entropy(model(batch.to(device)), labels[index].to(device)), optimiser)
        schedule.step()
    return model.eval()


def train_unet(steps: int, seed: int, device: str) -> DigitsUNet:
    """Train with the loss of DDPM; the held-out loss is printed on the way.

    Returns:
        The exponential moving average of the weights.
    """
    trainer = digits_trainer(steps, tau=1.0, seed=seed, device=device)
    unet = trainer.average
    assert isinstance(unet, DigitsUNet)
    for done in [*range(HELD_OUT_EVERY, steps, HELD_OUT_EVERY), steps]:
        trainer.fit(load_digits("train"), done)
        print(f"step {done}: held-out loss {denoising_loss(unet):.4f}", flush=True)
    return unet


def train_flow_unet(steps: int, seed: int, device: str) -> DigitsUNet:
    """Train on the velocity e - x0 of x_t = (1 - t) x0 + t e, t uniform, with the settings of `digits_trainer`.

    Returns:
        The exponential moving average of the weights.
    """
    images, labels = (tensor.to(device) for tensor in load_digits("train"))
    model = new_unet(seed, device)
    average = start_average(model)
    assert isinstance(average, DigitsUNet)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    order, seeds = DataOrder(len(images), BATCH, seed), noise_seeds(seed, BATCH).to(device)
    places = torch.arange(BATCH, device=device)
    for step in tqdm(range(steps), desc="flow U-Net", mininterval=1.0):
        index = order.batch(step).to(device)
        drawn = torch.rand(BATCH // 2, generator=generator)
        times = torch.cat([drawn, 1 - drawn]).to(device)  # antithetic
        rows = torch.zeros(BATCH, len(TrainingColumn), device=device)  # of `add_noise`, one for each sample
        rows[:, TrainingColumn.SIGNAL], rows[:, TrainingColumn.NOISE] = 1 - times, times
        noisy, noise = add_noise(images[index], rows, row=places, seeds=seeds, step=step, return_noise=True)
        known = labels[index].masked_fill(dropped(seed, step, BATCH, 0.5).to(device), NULL_CLASS)
        loss = F.mse_loss(model(noisy, 1000 * times, known), noise - images[index])
        optimise(model, loss, optimiser)
        schedule.step()
        update_average(average, model, step, 0.999)
        if (step + 1) % HELD_OUT_EVERY == 0 or step + 1 == steps:
            print(f"step {step + 1}: held-out loss {velocity_loss(average):.4f}", flush=True)
    return average


class Network(NamedTuple):
    """A U-Net to train and to measure.

    Attributes:
        name: what its lines begin with.
        file: its file's name.
        train: trains it, given the steps, the seed and the device.
        loss: its loss on real images.
        method: the name of the sampler.
        sampler: makes the deterministic sampler of a number of steps, on a device.
    """

    name: str
    file: str
    train: Callable[[int, int, str], DigitsUNet]
    loss: Callable[..., float]
    method: str
    sampler: Callable[[int, str], Sampler]


NETWORKS = (
    Network(
        "U-Net",
        UNET_FILE,
        train_unet,
        denoising_loss,
        "DDIM",
        lambda steps, device: DDIMSampler(noise_schedule("linear"), steps, device=device),
    ),
    Network(
        "flow U-Net",
        FLOW_UNET_FILE,
        train_flow_unet,
        velocity_loss,
        "flow",
        lambda steps, device: FlowSampler(steps, device=device),
    ),
)


def sample_digits(sampler: Sampler, unet: DigitsUNet, count: int, labels: Tensor | None = None) -> Tensor:
    """Draw digits of any class or of those given, clamped to [-1, 1] at the end."""
    conditioning = () if labels is None else (labels,)
    drawn = sampler.sample(
        unet, torch.arange(count), IMAGE_SHAPE, conditioning=conditioning, batch_size=min(CHUNK, count)
    )
    return drawn.sample.clamp(-1, 1)


def noise_floor(classifier: DigitsClassifier, device: str) -> list[float]:
    """Distances between random halves (898 and 899 images) of the real digits, for ten splits."""
    images = load_digits()[0].to(device)
    generator = torch.Generator().manual_seed(3)
    distances = []
    for _ in range(10):
        order = torch.randperm(len(images), generator=generator)
        first, second = images[order].tensor_split(2)
        distances.append(
            frechet_distance(*feature_statistics(first, classifier), *feature_statistics(second, classifier))
        )
    return distances


def mean_and_error(values: list[float]) -> str:
    """Write the mean and its standard error."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return f"{float(tensor.mean()):.3f} +- {float(tensor.std()) / len(values) ** 0.5:.3f}"


def nearest(images: Tensor, split: str) -> float:
    """Return the mean Euclidean distance of images from the nearest of 355 real ones."""
    real = load_digits(split)[0][:355].flatten(1)
    return float(torch.cdist(images.flatten(1).cpu(), real).amin(dim=1).mean())


def evaluate(
    unets: list[DigitsUNet],
    classifier: DigitsClassifier,
    reference: tuple[Tensor, Tensor],
    count: int,
    device: str,
) -> None:
    """Print the noise floor, and of each of NETWORKS the losses and the digit-FID of `count` samples in 5 groups."""
    print(f"noise floor, two halves of the real digits: {mean_and_error(noise_floor(classifier, device))}")
    for network, unet in zip(NETWORKS, unets, strict=True):
        evaluate_unet(network, unet, classifier, reference, count, device)


def evaluate_unet(
    network: Network,
    unet: DigitsUNet,
    classifier: DigitsClassifier,
    reference: tuple[Tensor, Tensor],
    count: int,
    device: str,
) -> None:
    """Print what `evaluate` does of one network."""
    for split in ("train", "test"):
        for conditional in (False, True):
            loss = network.loss(unet, split, conditional=conditional)
            print(f"{network.name}: {split} loss {loss:.4f} ({'with' if conditional else 'without'} class)")
    for steps in SAMPLING_STEPS:
        samples = sample_digits(network.sampler(steps, device), unet, count)
        distances = [
            frechet_distance(*feature_statistics(group, classifier), *reference) for group in samples.chunk(5)
        ]
        print(
            f"digit-FID of {steps}-step {network.method}, 5 groups of {count // 5}: {mean_and_error(distances)}",
            flush=True,
        )
        if steps == SAMPLING_STEPS[0]:
            whole = frechet_distance(*feature_statistics(samples, classifier), *reference)
            print(f"the same, {count} as one group: {whole:.3f}")
            print(
                f"distance from the nearest real image: {nearest(samples, 'train'):.3f} (training), "
                f"{nearest(samples, 'test'):.3f} (held out)"
            )
    labels = torch.arange(min(count, CLASS_SAMPLES), device=device) % NUM_CLASSES
    drawn = sample_digits(network.sampler(SAMPLING_STEPS[0], device), unet, len(labels), labels)
    right = (classifier(drawn).argmax(dim=1) == labels).double().mean().item()
    print(
        f"class asked for, {len(labels)} samples of {SAMPLING_STEPS[0]}-step {network.method}: {right:.3f} right"
    )


def write(path: Path, tensors: dict[str, Tensor], training: dict[str, object]) -> None:
    """Write a safetensors file whole or not at all; `training` goes into its metadata as JSON."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(tensors, {"training": json.dumps(training, sort_keys=True)}))


def main() -> None:
    """Train, write the files and print what was measured."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Deterministic algorithms on a GPU need it.
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    device, output = arguments.device, arguments.output
    output.mkdir(parents=True, exist_ok=True)
    command = (
        f"python tools/train_digits.py --steps {arguments.steps} "
        f"--classifier-steps {arguments.classifier_steps} "
        f"--seed {arguments.seed} --device {device} --threads {arguments.threads}"
    )
    training: dict[str, object] = {"command": command, "seed": arguments.seed, "torch": torch.__version__}
    start = time.process_time()

    if arguments.keep_classifier:
        classifier = DigitsClassifier()
        classifier.load_state_dict(load_file(output / CLASSIFIER_FILE))
        classifier = classifier.to(device).eval()
        statistics = load_file(output / STATISTICS_FILE)
        reference = statistics["mean"], statistics["cov"]
    else:
        classifier = train_classifier(arguments.classifier_steps, device, generator)
        write(output / CLASSIFIER_FILE, classifier.state_dict(), training)
        reference = feature_statistics(load_digits()[0].to(device), classifier)
        write(output / STATISTICS_FILE, {"mean": reference[0], "cov": reference[1]}, training)
    images, labels = load_digits("test")
    with torch.no_grad():
        accuracy = (classifier(images.to(device)).argmax(dim=1).cpu() == labels).double().mean().item()
    print(f"classifier: held-out accuracy {accuracy:.4f}", flush=True)

    unets = []
    for network, keep in zip(NETWORKS, (arguments.keep_unet, arguments.keep_flow_unet), strict=True):
        if not keep:
            trained = network.train(arguments.steps, arguments.seed, device)
            write(output / network.file, trained.state_dict(), training)
        unet = DigitsUNet()
        unet.load_state_dict(load_file(output / network.file))
        unets.append(unet.to(device).eval())
    print(f"trained in {time.process_time() - start:.0f} s of processor time")
    with torch.no_grad():
        evaluate(unets, classifier, reference, arguments.samples, device)


if __name__ == "__main__":
    main()
